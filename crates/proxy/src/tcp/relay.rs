//! Bytes both ways, half-closes passed on, buffers only while there is something in them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides closed.
    Closed,
    /// The client's side broke.
    ClientBroke,
    /// The upstream's side broke.
    UpstreamBroke,
    /// Nothing moved for long.
    Idle,
}

/// What was carried.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Bytes from the client.
    pub to_upstream: u64,
    /// Bytes to the client.
    pub to_client: u64,
    /// How it ended.
    pub ended: Ended,
    /// The client closed its side before the upstream did.
    pub client_first: bool,
}

const BUFFER: usize = 16 * 1024;

#[derive(Default)]
struct OneWay {
    buffer: Vec<u8>,
    from: usize,
    carried: u64,
    read_done: bool,
    done: bool,
}

enum Side {
    Reader,
    Writer,
}

impl OneWay {
    /// Moves what can be moved.
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut bool,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.from == self.buffer.len() && !self.read_done {
                // The buffer is on the stack of this call until there are bytes: an idle connection holds none.
                let mut space = [std::mem::MaybeUninit::<u8>::uninit(); BUFFER];
                let mut read = ReadBuf::uninit(&mut space);
                match Pin::new(&mut *reader).poll_read(context, &mut read) {
                    Poll::Pending => {
                        self.buffer = Vec::new();
                        self.from = 0;
                        // What was written so far must not wait in TLS buffers.
                        return match Pin::new(&mut *writer).poll_flush(context) {
                            Poll::Ready(Err(_)) => Poll::Ready(Err(Side::Writer)),
                            _ => Poll::Pending,
                        };
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Reader)),
                    Poll::Ready(Ok(())) if read.filled().is_empty() => self.read_done = true,
                    Poll::Ready(Ok(())) => {
                        *moved = true;
                        self.buffer.clear();
                        self.from = 0;
                        // Written at once if possible; only what is left is copied.
                        let bytes = read.filled();
                        match Pin::new(&mut *writer).poll_write(context, bytes) {
                            Poll::Ready(Ok(written)) => {
                                self.carried += written as u64;
                                self.buffer.extend_from_slice(&bytes[written..]);
                            }
                            Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Writer)),
                            Poll::Pending => self.buffer.extend_from_slice(bytes),
                        }
                    }
                }
            }
            while self.from < self.buffer.len() {
                match Pin::new(&mut *writer).poll_write(context, &self.buffer[self.from..]) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) | Poll::Ready(Ok(0)) => return Poll::Ready(Err(Side::Writer)),
                    Poll::Ready(Ok(written)) => {
                        *moved = true;
                        self.from += written;
                        self.carried += written as u64;
                    }
                }
            }
            if self.read_done {
                return match Pin::new(&mut *writer).poll_shutdown(context) {
                    Poll::Pending => Poll::Pending,
                    // A side that is closed already cannot be closed again: that is no failure.
                    Poll::Ready(_) => {
                        self.done = true;
                        Poll::Ready(Ok(()))
                    }
                };
            }
        }
    }
}

/// Relays until both sides have closed, one broke, nothing moved for `idle` (zero: no bound), or the worker ends.
pub async fn both_ways<A, B>(client: &mut A, upstream: &mut B, idle: Duration) -> Counted
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (OneWay::default(), OneWay::default());
    let mut timer: Option<Pin<Box<Sleep>>> = (!idle.is_zero()).then(|| Box::pin(tokio::time::sleep(idle)));
    let mut last = Instant::now();
    let mut client_first = false;
    let ended = std::future::poll_fn(|context| {
        let mut moved = false;
        if !up.done
            && let Poll::Ready(Err(side)) = up.poll(context, client, upstream, &mut moved)
        {
            return Poll::Ready(if matches!(side, Side::Reader) { Ended::ClientBroke } else { Ended::UpstreamBroke });
        }
        if !down.done
            && let Poll::Ready(Err(side)) = down.poll(context, upstream, client, &mut moved)
        {
            return Poll::Ready(if matches!(side, Side::Reader) { Ended::UpstreamBroke } else { Ended::ClientBroke });
        }
        client_first |= up.read_done && !down.read_done;
        if up.done && down.done {
            return Poll::Ready(Ended::Closed);
        }
        if moved && timer.is_some() {
            last = Instant::now();
        }
        if let Some(timer) = &mut timer {
            // The timer is set anew only when it fires: moving bytes costs no timer.
            while timer.as_mut().poll(context).is_ready() {
                if last.elapsed() >= idle {
                    return Poll::Ready(Ended::Idle);
                }
                timer.as_mut().reset(last + idle);
            }
        }
        Poll::Pending
    })
    .await;
    Counted { to_upstream: up.carried, to_client: down.carried, ended, client_first }
}

use std::future::Future;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn half_closes_are_passed_on() {
        let (mut app, mut client) = tokio::io::duplex(64);
        let (mut upstream, mut server) = tokio::io::duplex(64);
        let relay = async { both_ways(&mut client, &mut upstream, Duration::ZERO).await };
        let talk = async {
            app.write_all(&[7; 1000]).await.unwrap();
            app.shutdown().await.unwrap();
            let mut answer = Vec::new();
            app.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let serve = async {
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.unwrap();
            server.write_all(b"bye").await.unwrap();
            server.shutdown().await.unwrap();
            all
        };
        let (counted, answer, all) = tokio::join!(relay, talk, serve);
        assert_eq!((all.len(), answer.as_slice()), (1000, b"bye".as_slice()));
        assert_eq!((counted.to_upstream, counted.to_client, counted.ended), (1000, 3, Ended::Closed));
    }

    #[tokio::test]
    async fn silence_ends_it() {
        let (_app, mut client) = tokio::io::duplex(64);
        let (mut upstream, _server) = tokio::io::duplex(64);
        assert_eq!(both_ways(&mut client, &mut upstream, Duration::from_millis(5)).await.ended, Ended::Idle);
    }
}
