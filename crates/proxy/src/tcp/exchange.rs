//! A byte stream that begins with what both ends tell of themselves. Ours is written as soon as something is read or written;
//! the other end's is taken out of what is read. Neither waits for the other, and the application's bytes wait for neither.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::telemetry::exchange::{HEAD, Heard, hear};
use crate::telemetry::peer::Peer;

/// What the other end told: `None` until that is known.
pub type Introduced = watch::Receiver<Option<Option<Arc<Peer>>>>;

/// A byte stream, perhaps with an exchange in front.
#[derive(Debug)]
pub struct Exchange<S> {
    inner: S,
    /// What is still to be told.
    telling: Bytes,
    /// It is written, but may stand in the buffers of TLS.
    unflushed: bool,
    /// What was read while the exchange is not complete; `None` when it is.
    hearing: Option<BytesMut>,
    /// Read, and the application's.
    ready: Bytes,
    introduced: watch::Sender<Option<Option<Arc<Peer>>>>,
}

impl<S> Exchange<S> {
    /// A stream of nothing but the application's bytes.
    pub fn without(inner: S) -> Self {
        let introduced = watch::Sender::new(Some(None));
        Self { inner, telling: Bytes::new(), unflushed: false, hearing: None, ready: Bytes::new(), introduced }
    }

    /// A stream that begins with an exchange; `preface` is ours.
    pub fn with(inner: S, preface: Bytes) -> Self {
        let introduced = watch::Sender::new(None);
        Self {
            inner,
            telling: preface,
            unflushed: true,
            hearing: Some(BytesMut::new()),
            ready: Bytes::new(),
            introduced,
        }
    }

    /// Who is at the other end, as soon as it told.
    pub fn introduced(&self) -> Introduced {
        self.introduced.subscribe()
    }

    /// Puts bytes in front that were read already.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.ready = bytes;
    }

    /// Looks at what was read so far.
    fn look(&mut self, ended: bool) {
        let Some(bytes) = &mut self.hearing else { return };
        let peer = match hear(bytes) {
            Heard::More if !ended => return,
            // The other end left in the middle of its metadata: there are no bytes of an application. Less than the head of an
            // exchange may be an application's.
            Heard::More => {
                if bytes.len() >= HEAD {
                    bytes.clear();
                }
                None
            }
            Heard::Nothing => None,
            Heard::Told(length, metadata) => {
                bytes.advance(length);
                metadata.map(|metadata| Arc::new(Peer::of_struct(&metadata)))
            }
        };
        self.ready = std::mem::take(bytes).freeze();
        self.hearing = None;
        self.introduced.send_replace(Some(peer));
    }
}

impl<S: AsyncWrite + Unpin> Exchange<S> {
    /// Writes what is to be told before anything else.
    fn poll_tell(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.telling.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(context, &self.telling))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.telling.advance(written),
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.inner).poll_flush(context))?;
            self.unflushed = false;
            self.telling = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Exchange<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Whoever only listens tells too; what cannot be written now does not keep us from listening.
        if this.unflushed
            && let Poll::Ready(Err(error)) = this.poll_tell(context)
        {
            return Poll::Ready(Err(error));
        }
        while let Some(bytes) = &mut this.hearing {
            let mut space = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            bytes.extend_from_slice(read.filled());
            let ended = read.filled().is_empty();
            this.look(ended);
        }
        if !this.ready.is_empty() {
            let length = this.ready.len().min(out.remaining());
            out.put_slice(&this.ready.split_to(length));
            if this.ready.is_empty() {
                // Gives the buffer back: an idle connection must not hold it.
                this.ready = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_read(context, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Exchange<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.telling.is_empty() {
            ready!(this.poll_tell(context))?;
        }
        Pin::new(&mut this.inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_tell(context))?;
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_tell(context))?;
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exchange::preface;
    use api::xds::json_to_struct;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn told(workload: &str) -> Bytes {
        preface(&json_to_struct(&serde_json::json!({"WORKLOAD_NAME": workload})), "id")
    }

    /// What the application gets when the other end writes these pieces and closes, and who it turned out to be.
    async fn hears(pieces: &[&[u8]]) -> (Vec<u8>, Option<String>) {
        let (mut far, near) = tokio::io::duplex(1024);
        let own = told("near");
        let mut near = Exchange::with(near, own.clone());
        let introduced = near.introduced();
        let write = async {
            for piece in pieces {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            far.shutdown().await.unwrap();
            let mut first = vec![0; own.len()];
            far.read_exact(&mut first).await.unwrap();
            assert_eq!(first, own, "ours is told to whoever it is");
        };
        let mut application = Vec::new();
        let ((), read) = tokio::join!(write, near.read_to_end(&mut application));
        read.unwrap();
        let peer = introduced.borrow().clone().expect("it is known by then");
        (application, peer.map(|peer| peer.workload.clone()))
    }

    #[tokio::test]
    async fn bytes_are_the_same_at_every_cut() {
        let mut all = told("far").to_vec();
        all.extend(b"application");
        for cut in 0..=all.len() {
            let (first, second) = all.split_at(cut);
            assert_eq!(hears(&[first, second]).await, (b"application".to_vec(), Some("far".to_owned())), "{cut}");
        }
        let bytes: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(hears(&bytes).await, (b"application".to_vec(), Some("far".to_owned())));
    }

    #[tokio::test]
    async fn who_tells_nothing_loses_nothing() {
        let long = [&told("far")[..4], &u32::MAX.to_be_bytes(), b"application"].concat();
        for all in [b"application".as_slice(), b"=", b"=#\x04", &told("far")[..7], &long, b""] {
            for cut in 0..=all.len() {
                let (first, second) = all.split_at(cut);
                assert_eq!(hears(&[first, second]).await, (all.to_vec(), None), "{all:?} at {cut}");
            }
        }
        // An exchange that is broken off has nothing for the application.
        assert_eq!(hears(&[&told("far")[..12]]).await, (vec![], None));
    }

    #[tokio::test]
    async fn the_side_that_speaks_first_is_not_kept_waiting() {
        let (far, near) = tokio::io::duplex(1024);
        let (mut far, mut near) = (Exchange::with(far, told("far")), Exchange::with(near, told("near")));
        near.write_all(b"welcome").await.unwrap();
        near.flush().await.unwrap();
        let mut bytes = [0; 7];
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"welcome");
        assert_eq!(far.introduced().borrow().clone().unwrap().unwrap().workload, "near");
        far.write_all(b"thanks").await.unwrap();
        far.flush().await.unwrap();
        near.read_exact(&mut bytes[..6]).await.unwrap();
        assert_eq!(&bytes[..6], b"thanks");
        assert_eq!(near.introduced().borrow().clone().unwrap().unwrap().workload, "far");
    }
}
