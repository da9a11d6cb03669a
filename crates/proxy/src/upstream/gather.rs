//! Writes of one turn of the event loop, gathered: an HTTP/2 connection hands over its frames one by one, and each would be a TLS
//! record and a system call of its own. They leave together when the connection's task has done what there was to do.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is gathered at most; also what a TLS record holds (RFC 8446 section 5.1). Larger writes are not copied.
const MOST: usize = 16 * 1024;
/// What a turn's writes get room for at first.
const FIRST: usize = 2 * 1024;

/// The stream that the connection writes to.
#[derive(Debug)]
pub struct Gathering<S>(Rc<RefCell<Gathered<S>>>);

/// The other end: ends the turns.
#[derive(Debug)]
pub struct Turns<S>(Rc<RefCell<Gathered<S>>>);

#[derive(Debug)]
struct Gathered<S> {
    io: S,
    /// Empty between turns, unless the peer does not read.
    buffer: BytesMut,
    /// Something was written to the stream below that it may still hold.
    unflushed: bool,
}

/// Splits a stream into what a connection writes to, and what ends its turns.
pub fn gather<S>(io: S) -> (Gathering<S>, Turns<S>) {
    let gathered = Rc::new(RefCell::new(Gathered { io, buffer: BytesMut::new(), unflushed: false }));
    (Gathering(Rc::clone(&gathered)), Turns(gathered))
}

impl<S: AsyncWrite + Unpin> Turns<S> {
    /// Lets the connection work, then sends what it wrote. The connection's result is held back for nobody: a peer that does not
    /// read its last words does not get them.
    ///
    /// # Errors
    /// What was written could not be sent.
    pub fn turn<C: Future>(&self, connection: Pin<&mut C>, context: &mut Context<'_>) -> Poll<io::Result<C::Output>> {
        let worked = connection.poll(context);
        let sent = self.0.borrow_mut().send(context);
        match (worked, sent) {
            (Poll::Ready(output), _) => Poll::Ready(Ok(output)),
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Pending, _) => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        self.drain(context).map_ok(|()| {
            // Given back: a connection that is idle now must hold nothing.
            self.buffer = BytesMut::new();
        })
    }

    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unflushed = true;
        while !self.buffer.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(context, &self.buffer))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.buffer.advance(written),
            }
        }
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Makes room for so many bytes; `false`: they are too many to be copied, and nothing is in their way.
    fn room(&mut self, length: usize, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.buffer.len() + length > MOST {
            ready!(self.drain(context))?;
            self.buffer.clear();
        }
        if length >= MOST {
            self.unflushed = true;
            return Poll::Ready(Ok(false));
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(FIRST.max(length));
        }
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(context, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.borrow_mut();
        if !ready!(gathered.room(bytes.len(), context))? {
            return Pin::new(&mut gathered.io).poll_write(context, bytes);
        }
        gathered.buffer.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        let mut gathered = self.0.borrow_mut();
        if !ready!(gathered.room(length, context))? {
            return Pin::new(&mut gathered.io).poll_write_vectored(context, parts);
        }
        parts.iter().for_each(|part| gathered.buffer.extend_from_slice(part));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The turn's end flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.drain(context))?;
        Pin::new(&mut gathered.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Writes and counts the writes that reach the stream below.
    async fn written(parts: Vec<Vec<u8>>, room: usize) -> (Vec<u8>, usize) {
        struct Counting(tokio::io::DuplexStream, Rc<std::cell::Cell<usize>>);
        impl AsyncWrite for Counting {
            fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                let this = self.get_mut();
                let written = ready!(Pin::new(&mut this.0).poll_write(context, bytes))?;
                this.1.set(this.1.get() + 1);
                Poll::Ready(Ok(written))
            }
            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().0).poll_flush(context)
            }
            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().0).poll_shutdown(context)
            }
        }
        impl AsyncRead for Counting {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                out: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().0).poll_read(context, out)
            }
        }
        let length: usize = parts.iter().map(Vec::len).sum();
        let (near, mut far) = tokio::io::duplex(room);
        let calls = Rc::new(std::cell::Cell::new(0));
        let (mut stream, turns) = gather(Counting(near, Rc::clone(&calls)));
        let connection = async move {
            for part in parts {
                stream.write_all(&part).await.unwrap();
                stream.flush().await.unwrap();
            }
            // Stays: the turn ends by waiting, not by leaving.
            std::future::pending::<()>().await;
        };
        let mut connection = std::pin::pin!(connection);
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while seen.len() < length {
            tokio::select! {
                biased;
                _ = std::future::poll_fn(|context| turns.turn(connection.as_mut(), context)) => unreachable!(),
                read = far.read(&mut buffer) => seen.extend_from_slice(&buffer[..read.unwrap()]),
            }
        }
        (seen, calls.get())
    }

    #[tokio::test]
    async fn small_writes_leave_together() {
        let (seen, calls) = written(vec![vec![1; 9], vec![2; 1024], vec![3; 9], vec![4; 1024]], 1 << 20).await;
        assert_eq!((seen.len(), calls), (2066, 1));
    }

    #[tokio::test]
    async fn order_is_kept_whatever_the_sizes_and_however_slow_the_reader() {
        for room in [7, 4096, 1 << 20] {
            let parts: Vec<Vec<u8>> = [9, 20_000, 1, 16_384, 16_383, 300, 0, 40_000]
                .iter()
                .enumerate()
                .map(|(place, length)| vec![place as u8; *length])
                .collect();
            let wanted: Vec<u8> = parts.concat();
            let (seen, _) = written(parts, room).await;
            assert!(seen == wanted, "{room}: {} of {}", seen.len(), wanted.len());
        }
    }
}
