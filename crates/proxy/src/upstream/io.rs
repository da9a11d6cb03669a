//! One byte stream, whatever is below it: plain TCP, TLS of either side, a Unix socket, with bytes already read in front.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Bytes up to which parts are joined before they are written.
const SMALL: usize = 2048;

/// A byte stream.
#[derive(Debug)]
pub enum Io {
    /// TCP.
    Tcp(Prefixed<TcpStream>),
    /// A Unix socket.
    Unix(Prefixed<UnixStream>),
    /// None any more: it was taken over by somebody else. Reads end, writes lead nowhere.
    Gone(tokio::io::Empty),
    /// TLS, dialled.
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>, Bytes),
    /// TLS, accepted.
    Server(Box<tokio_rustls::server::TlsStream<Prefixed<TcpStream>>>, Bytes),
}

impl Io {
    /// Whether the peer of a plain connection has closed it, or sent what nobody asked for; asks the kernel and takes nothing.
    /// TLS says so itself, and is not asked.
    pub fn has_ended(&self) -> bool {
        let socket = match self {
            Io::Tcp(stream) => stream.inner.as_raw_fd(),
            Io::Unix(stream) => stream.inner.as_raw_fd(),
            Io::Gone(_) | Io::Client(..) | Io::Server(..) => return false,
        };
        let seen = recv(socket, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        seen != Err(Errno::EAGAIN)
    }

    /// Whether the peer has sent what was not read yet; asks the kernel, which knows before the runtime does, and takes nothing.
    pub fn has_input(&self) -> bool {
        let socket = match self {
            Io::Tcp(stream) => stream.inner.as_raw_fd(),
            Io::Unix(stream) => stream.inner.as_raw_fd(),
            Io::Client(stream, _) => stream.get_ref().0.as_raw_fd(),
            Io::Server(stream, _) => stream.get_ref().0.inner.as_raw_fd(),
            Io::Gone(_) => return false,
        };
        matches!(recv(socket, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT), Ok(1..))
    }

    /// The peer of a plain connection has reset it since the socket was last used: after an end (FIN) too, which is all that
    /// reads tell.
    pub fn was_reset(&self) -> bool {
        matches!(self, Io::Tcp(stream) if matches!(SockRef::from(&stream.inner).take_error(), Ok(Some(_))))
    }

    /// The peer is a program on this host: what its kernel says of what it has read is true at this moment. To be asked while
    /// the connection stands.
    pub fn is_local(&self) -> bool {
        let Io::Tcp(stream) = self else { return false };
        match (stream.inner.local_addr(), stream.inner.peer_addr()) {
            (Ok(own), Ok(peer)) => {
                let same = own.ip() == peer.ip() || own.ip().is_loopback() || peer.ip().is_loopback();
                // In a client's name only the application beside this proxy is called.
                same || is_in_clients_name(&stream.inner, own.is_ipv4())
            }
            _ => false,
        }
    }

    /// Whether a local peer that has closed a plain connection has left these last written bytes unread. Its kernel
    /// acknowledges what was read at the latest with the end (FIN) of the connection; where something was left unread, it
    /// sends a reset. Only a program that aborts on purpose (`SO_LINGER` of zero) within the 40 ms of a delayed
    /// acknowledgement looks the same. `false`: not known.
    pub fn is_unread(&self, last: usize) -> bool {
        matches!(self, Io::Tcp(stream) if unacknowledged(&stream.inner) == Some(last))
    }
}

fn is_in_clients_name(stream: &TcpStream, four: bool) -> bool {
    let options = SockRef::from(stream);
    let transparent = if four { options.ip_transparent_v4() } else { options.ip_transparent_v6() };
    transparent.unwrap_or(false)
}

/// Bytes that were written and that the peer's kernel has not acknowledged (tcp(7) `SIOCOUTQ`); known also after the end.
// No safe crate has this call.
#[allow(unsafe_code)]
fn unacknowledged(stream: &TcpStream) -> Option<usize> {
    let mut bytes: nix::libc::c_int = 0;
    // SAFETY: the descriptor is open while `stream` is borrowed; the call writes one int (tcp(7)).
    let result = unsafe { nix::libc::ioctl(stream.as_raw_fd(), nix::libc::TIOCOUTQ, &raw mut bytes) };
    (result == 0).then(|| usize::try_from(bytes).ok()).flatten()
}

/// A stream with bytes in front that were read before.
#[derive(Debug)]
pub struct Prefixed<S> {
    /// What is read first.
    pub prefix: Bytes,
    /// The stream.
    pub inner: S,
}

fn take(prefix: &mut Bytes, out: &mut ReadBuf<'_>) -> bool {
    if prefix.is_empty() {
        return false;
    }
    let length = prefix.len().min(out.remaining());
    out.put_slice(&prefix[..length]);
    prefix.advance(length);
    if prefix.is_empty() {
        // Gives the buffer back: an idle connection must not hold it.
        *prefix = Bytes::new();
    }
    true
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if take(&mut this.prefix, out) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_read(context, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.get_mut().inner);
        // A small message in several parts costs less as one: the kernel's way for many parts is longer than the copy.
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > SMALL {
            return stream.poll_write_vectored(context, parts);
        }
        let mut joined = [0; SMALL];
        let mut end = 0;
        for part in parts {
            joined[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        stream.poll_write(context, &joined[..end])
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self {
            Io::Tcp($stream) => $call,
            Io::Unix($stream) => $call,
            Io::Gone($stream) => $call,
            Io::Client($stream, _) => $call,
            Io::Server($stream, _) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Io::Server(_, prefix) | Io::Client(_, prefix) = this
            && take(prefix, out)
        {
            return Poll::Ready(Ok(()));
        }
        each!(this, stream => Pin::new(stream).poll_read(context, out))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(context))
    }
}

impl Io {
    /// A plain socket of which nothing was read ahead: what it says of being readable is all there is.
    pub fn is_bare(&self) -> bool {
        matches!(self, Io::Tcp(stream) if stream.prefix.is_empty())
    }

    /// Waits until there is something to read, or the end. To be asked only while nothing is buffered here.
    pub async fn readable(&self) {
        // An error is found by whoever reads.
        let _ = match self {
            Io::Tcp(stream) => stream.inner.readable().await,
            Io::Unix(stream) => stream.inner.readable().await,
            Io::Client(stream, _) => stream.get_ref().0.readable().await,
            Io::Server(stream, _) => stream.get_ref().0.inner.readable().await,
            Io::Gone(_) => Ok(()),
        };
    }

    /// Puts bytes in front that were read already.
    pub fn put_back(&mut self, bytes: Bytes) {
        match self {
            Io::Tcp(stream) => stream.prefix = bytes,
            Io::Server(_, prefix) | Io::Client(_, prefix) => *prefix = bytes,
            Io::Unix(stream) => stream.prefix = bytes,
            Io::Gone(_) => {}
        }
    }
}
