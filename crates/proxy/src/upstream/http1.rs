//! HTTP/1.1 towards an upstream (RFC 9112): one request at a time, written and read by whoever sends it, so that a request costs
//! no task, no channel and no wake of its own. Names are written in lower case; connections that must keep the spelling of names
//! are hyper's.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::body::RequestBody;
use super::io::Io;
use crate::message::Head;

/// Room for what is read at first; enough for most answers as a whole.
const FIRST_READ: usize = 4 * 1024;
/// Room for what is read of long bodies.
const LONG_READ: usize = 16 * 1024;
/// A longer request may be read in parts; of a shorter one a peer has read all or nothing.
const ONE_READ: usize = 4 * 1024;
/// So much is gathered before it is written.
const WRITE: usize = 16 * 1024;
/// The longest head of an answer, and the longest trailers.
const LONGEST_HEAD: usize = 256 * 1024;
/// Headers that a head has at most without more ado, and at all.
const HEADERS: (usize, usize) = (64, 1024);
/// Interim answers before the answer.
const INTERIM: u32 = 32;

/// A connection.
#[derive(Debug)]
pub struct Connection(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    stream: RefCell<Stream>,
    /// The exchange is over before its time: what is left of the request is not sent.
    given_up: Cell<bool>,
    /// Of the task that sends the rest of a request.
    sender: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Stream {
    io: Io,
    read: BytesMut,
    write: BytesMut,
    /// The peer is a program on this host.
    local: bool,
    /// So much of the request has been written to the socket.
    sent: usize,
    /// The peer has reset the connection, and the socket has told so.
    reset: bool,
    /// What is still to be sent.
    body: Option<(RequestBody, Framing)>,
    answer: Answer,
    /// Another request may follow.
    keep: bool,
}

/// How a request's body is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// The head told its length.
    Length,
    Chunked,
}

/// What is to come of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing.
    Complete,
    Length(u64),
    /// The size of a chunk.
    Size,
    /// So much of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    Trailers,
    UntilClose,
}

/// What is known of a request on a connection that broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The peer's program has read nothing of it, says its kernel.
    Unread,
    /// The peer's program, on this host, had all of it at once, and closed the connection without a word. If it has left
    /// something unread, or wants it to look so (`SO_LINGER`), the connection is reset, then or shortly after:
    /// `Connection::was_reset`.
    Closed,
    /// Nothing: it may have been processed.
    Unknown,
}

/// Why there is no answer, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The connection closed or broke.
    #[error("the connection closed")]
    Closed {
        /// Whether the peer's program has read the request.
        seen: Seen,
    },
    /// What came is not HTTP/1.
    #[error("the answer is not HTTP/1.1")]
    Protocol,
    /// The request's body ended early.
    #[error("the request's body ended early")]
    Body,
}

const CLOSED: Broken = Broken::Closed { seen: Seen::Unknown };

impl Connection {
    /// On a new stream of bytes.
    pub fn new(io: Io) -> Self {
        let local = io.is_local();
        Self(Rc::new(Inner {
            stream: RefCell::new(Stream {
                io,
                local,
                read: BytesMut::new(),
                write: BytesMut::new(),
                sent: 0,
                reset: false,
                body: None,
                answer: Answer::Complete,
                keep: true,
            }),
            given_up: Cell::new(false),
            sender: RefCell::default(),
        }))
    }

    /// It cannot take a request: it is closed, says something that nobody asked for, or has not ended the exchange before.
    pub fn is_closed(&self) -> bool {
        let mut stream = self.0.stream.borrow_mut();
        if !stream.keep || stream.sends() || stream.answer != Answer::Complete || !stream.read.is_empty() {
            return true;
        }
        let mut byte = [0];
        Pin::new(&mut stream.io)
            .poll_read(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut byte))
            .is_ready()
    }

    /// Its peer has closed it, as far as this host's kernel knows at this moment.
    pub fn has_ended(&self) -> bool {
        self.0.stream.borrow().io.has_ended()
    }

    /// Its peer has reset it, as far as this host's kernel knows at this moment.
    pub fn was_reset(&self) -> bool {
        let stream = self.0.stream.borrow();
        stream.reset || stream.io.was_reset()
    }

    /// Gives back what it reads with, for the time that it has no use.
    pub fn rest(&self) {
        let mut stream = self.0.stream.borrow_mut();
        if stream.read.is_empty() {
            (stream.read, stream.write) = (BytesMut::new(), BytesMut::new());
        }
    }

    /// Sends a request and waits for the answer's head. A body that is longer than the wait for it is sent on beside.
    ///
    /// # Errors
    /// The connection cannot be used after one.
    pub async fn send(&self, head: Head<'_>, body: RequestBody) -> Result<Response<Received>, Broken> {
        let head_only = head.method == Method::HEAD;
        let connect = head.method == Method::CONNECT;
        self.0.stream.borrow_mut().begin(head, body);
        let mut gone = false;
        let mut interim = 0;
        let mut answer = poll_fn(|context| {
            let mut stream = self.0.stream.borrow_mut();
            match stream.poll_send(context) {
                // It may have answered before it closed.
                Poll::Ready(Err(Broken::Closed { .. })) => gone = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                _ => {}
            }
            loop {
                match ready!(stream.poll_head(context))? {
                    head if head.status().is_informational() && head.status() != StatusCode::SWITCHING_PROTOCOLS => {
                        interim += 1;
                        if interim > INTERIM {
                            return Poll::Ready(Err(Broken::Protocol));
                        }
                    }
                    head => return Poll::Ready(Ok(head)),
                }
            }
        })
        .await
        .map_err(|broken| self.0.stream.borrow().knowing_what_was_read(broken, interim > 0))?;
        let mut stream = self.0.stream.borrow_mut();
        stream.expect(&mut answer, head_only, connect)?;
        if gone {
            stream.stop_sending();
        }
        if stream.sends() {
            self.send_beside();
        }
        drop(stream);
        Ok(answer.map(|()| Received(Rc::clone(&self.0))))
    }

    fn send_beside(&self) {
        let inner = Rc::clone(&self.0);
        tokio::task::spawn_local(async move {
            poll_fn(|context| {
                if inner.given_up.get() {
                    return Poll::Ready(());
                }
                *inner.sender.borrow_mut() = Some(context.waker().clone());
                let mut stream = inner.stream.borrow_mut();
                if ready!(stream.poll_send(context)).is_err() {
                    stream.stop_sending();
                }
                Poll::Ready(())
            })
            .await;
        });
    }
}

impl Stream {
    /// Some of the request has not left yet.
    fn sends(&self) -> bool {
        self.body.is_some() || !self.write.is_empty()
    }

    /// The peer takes no more of the request: its answer may still be read, but no other follows.
    fn stop_sending(&mut self) {
        (self.keep, self.body) = (false, None);
        self.write.clear();
    }

    /// Programs that end close connections with requests on them which they have not read, and will not.
    fn knowing_what_was_read(&self, broken: Broken, answered: bool) -> Broken {
        if broken != CLOSED {
            return broken;
        }
        let whole = self.local && self.sent <= ONE_READ;
        let seen = if self.sent == 0 || (whole && self.io.is_unread(self.sent)) {
            Seen::Unread
        } else if whole && !answered && self.read.is_empty() {
            Seen::Closed
        } else {
            Seen::Unknown
        };
        Broken::Closed { seen }
    }

    fn broke(&mut self, error: &io::Error) -> Broken {
        self.reset |= matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        CLOSED
    }

    /// Writes the head down.
    fn begin(&mut self, head: Head<'_>, body: RequestBody) {
        (self.keep, self.sent) = (true, 0);
        let out = &mut self.write;
        out.reserve(128 + 48 * head.headers.len());
        out.put_slice(head.method.as_str().as_bytes());
        out.put_u8(b' ');
        match head.target {
            Some(target) if head.method != Method::CONNECT => out.put_slice(target.as_str().as_bytes()),
            _ if head.method == Method::CONNECT => out.put_slice(head.host.as_bytes()),
            _ => out.put_u8(b'/'),
        }
        out.put_slice(b" HTTP/1.1\r\n");
        // The host comes first (RFC 9110 section 7.2).
        line(out, b"host", head.host.as_bytes());
        for (name, value) in head.headers {
            line(out, name.as_str().as_bytes(), value.as_bytes());
        }
        if let Some(upgrade) = head.upgrade {
            line(out, b"connection", b"upgrade");
            line(out, b"upgrade", upgrade.as_bytes());
        }
        if !body.is_end_stream() {
            let told = head.headers.contains_key(CONTENT_LENGTH);
            let framing = match body.size_hint().exact() {
                _ if told => Framing::Length,
                Some(length) => {
                    line(out, b"content-length", length.to_string().as_bytes());
                    Framing::Length
                }
                None => {
                    line(out, b"transfer-encoding", b"chunked");
                    Framing::Chunked
                }
            };
            self.body = Some((body, framing));
        }
        out.put_slice(b"\r\n");
    }

    /// Sends what there is; ready when all of the request has left.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if self.write.len() >= WRITE {
                ready!(self.poll_flush(context))?;
            }
            let Some((body, framing)) = &mut self.body else { return self.poll_flush(context) };
            let framing = *framing;
            match Pin::new(&mut *body).poll_frame(context) {
                Poll::Pending => {
                    ready!(self.poll_flush(context))?;
                    return Poll::Pending;
                }
                Poll::Ready(Some(Err(_))) => {
                    self.keep = false;
                    return Poll::Ready(Err(Broken::Body));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        put_data(&mut self.write, framing, &data);
                        if body.is_end_stream() {
                            self.end_body(framing, None);
                        }
                    }
                    Err(frame) => self.end_body(framing, frame.into_trailers().ok()),
                },
                Poll::Ready(None) => self.end_body(framing, None),
            }
        }
    }

    fn end_body(&mut self, framing: Framing, trailers: Option<HeaderMap>) {
        self.body = None;
        if framing == Framing::Chunked {
            self.write.put_slice(b"0\r\n");
            for (name, value) in trailers.iter().flatten() {
                // Neither cuts messages nor names where they go (RFC 9110 section 6.5.1).
                if ![CONTENT_LENGTH, TRANSFER_ENCODING, HOST, TRAILER, CONNECTION].contains(name) {
                    line(&mut self.write, name.as_str().as_bytes(), value.as_bytes());
                }
            }
            self.write.put_slice(b"\r\n");
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.write.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.write));
            match written.map_err(|error| self.broke(&error))? {
                0 => return Poll::Ready(Err(CLOSED)),
                written => {
                    self.sent += written;
                    self.write.advance(written);
                }
            }
        }
        Pin::new(&mut self.io).poll_flush(context).map_err(|error| self.broke(&error))
    }

    /// Reads more; zero: the end.
    fn poll_fill(&mut self, room: usize, context: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        if self.read.capacity() - self.read.len() < room / 2 {
            self.read.reserve(room);
        }
        poll_read_buf(Pin::new(&mut self.io), context, &mut self.read).map_err(|error| self.broke(&error))
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        loop {
            if !self.read.is_empty()
                && let Some(head) = parse_head(&mut self.read, &mut self.keep)?
            {
                return Poll::Ready(Ok(head));
            }
            if self.read.len() >= LONGEST_HEAD {
                return Poll::Ready(Err(Broken::Protocol));
            }
            if ready!(self.poll_fill(FIRST_READ, context))? == 0 {
                return Poll::Ready(Err(CLOSED));
            }
        }
    }

    /// Notes how the body of this answer ends (RFC 9112 section 6.3).
    fn expect(&mut self, head: &mut Response<()>, head_only: bool, connect: bool) -> Result<(), Broken> {
        let status = head.status();
        let tunnel = status == StatusCode::SWITCHING_PROTOCOLS || (connect && status.is_success());
        self.answer = if tunnel {
            self.keep = false;
            Answer::UntilClose
        } else if head_only || matches!(status.as_u16(), 204 | 304) {
            Answer::Complete
        } else if let Some(coding) = head.headers().get_all(TRANSFER_ENCODING).iter().next_back() {
            let chunked = coding.to_str().is_ok_and(|coding| {
                coding.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"))
            });
            // Both at once is how answers are smuggled: the length does not count and is not passed on.
            head.headers_mut().remove(CONTENT_LENGTH);
            if chunked { Answer::Size } else { Answer::UntilClose }
        } else {
            match length_of(head.headers())? {
                Some(0) => Answer::Complete,
                Some(length) => Answer::Length(length),
                None => Answer::UntilClose,
            }
        };
        if self.answer == Answer::UntilClose {
            self.keep = false;
        }
        Ok(())
    }

    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            let room = match self.answer {
                Answer::Complete => return Poll::Ready(None),
                Answer::Length(left) | Answer::Chunk(left) if !self.read.is_empty() => {
                    let part = left.min(self.read.len() as u64);
                    let left = left - part;
                    self.answer = match self.answer {
                        Answer::Chunk(_) if left == 0 => Answer::ChunkEnd,
                        Answer::Chunk(_) => Answer::Chunk(left),
                        _ if left == 0 => Answer::Complete,
                        _ => Answer::Length(left),
                    };
                    let data = self.read.split_to(part as usize).freeze();
                    self.skip_chunk_end();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Answer::UntilClose if !self.read.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(self.read.split().freeze()))));
                }
                Answer::Size => match httparse::parse_chunk_size(&self.read) {
                    Ok(httparse::Status::Complete((length, size))) => {
                        self.read.advance(length);
                        self.answer = if size == 0 { Answer::Trailers } else { Answer::Chunk(size) };
                        continue;
                    }
                    Ok(httparse::Status::Partial) if self.read.len() < 4096 => FIRST_READ,
                    _ => return self.broken(),
                },
                Answer::ChunkEnd if self.read.len() >= 2 => {
                    self.skip_chunk_end();
                    if self.answer == Answer::ChunkEnd {
                        return self.broken();
                    }
                    continue;
                }
                Answer::Trailers => match parse_trailers(&mut self.read) {
                    Ok(None) if self.read.len() < LONGEST_HEAD => FIRST_READ,
                    Ok(Some(trailers)) => {
                        self.answer = Answer::Complete;
                        return Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))));
                    }
                    _ => return self.broken(),
                },
                Answer::Length(left) | Answer::Chunk(left) if left <= FIRST_READ as u64 => FIRST_READ,
                Answer::ChunkEnd => FIRST_READ,
                Answer::Length(_) | Answer::Chunk(_) | Answer::UntilClose => LONG_READ,
            };
            match ready!(self.poll_fill(room, context)) {
                Ok(0) if self.answer == Answer::UntilClose => self.answer = Answer::Complete,
                Ok(0) | Err(_) => {
                    self.keep = false;
                    return Poll::Ready(Some(Err(CLOSED)));
                }
                Ok(_) => {}
            }
        }
    }

    /// Goes on behind a chunk, as far as it has come: the last chunk's end is then known without another turn.
    fn skip_chunk_end(&mut self) {
        if self.answer == Answer::ChunkEnd && self.read.starts_with(b"\r\n") {
            self.read.advance(2);
            self.answer = Answer::Size;
        }
        if self.answer == Answer::Size && self.read.starts_with(b"0\r\n\r\n") {
            self.read.advance(5);
            self.answer = Answer::Complete;
        }
    }

    fn broken(&mut self) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.keep = false;
        Poll::Ready(Some(Err(Broken::Protocol)))
    }
}

fn line(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn put_data(out: &mut BytesMut, framing: Framing, data: &[u8]) {
    match framing {
        Framing::Chunked if data.is_empty() => {}
        Framing::Chunked => {
            out.reserve(data.len() + 20);
            let mut size = [0; 18];
            let mut rest = &mut size[..];
            let _ = write!(rest, "{:x}\r\n", data.len());
            let unused = rest.len();
            out.put_slice(&size[..18 - unused]);
            out.put_slice(data);
            out.put_slice(b"\r\n");
        }
        Framing::Length => out.put_slice(data),
    }
}

/// The head in front of the buffer, if it is complete; says whether the connection stays.
fn parse_head(buffer: &mut BytesMut, keep: &mut bool) -> Result<Option<Response<()>>, Broken> {
    let parsed = match parse_head_of::<{ HEADERS.0 }>(buffer) {
        Err(httparse::Error::TooManyHeaders) => parse_head_of::<{ HEADERS.1 }>(buffer),
        parsed => parsed,
    };
    let Some((head, version)) = parsed.map_err(|_| Broken::Protocol)? else { return Ok(None) };
    *keep = stays(head.headers(), version);
    Ok(Some(head))
}

/// A head of at most so many headers.
fn parse_head_of<const MOST: usize>(buffer: &mut BytesMut) -> Result<Option<(Response<()>, u8)>, httparse::Error> {
    // Where names and values are: the buffer is cut only when nothing borrows from it any more.
    let mut places = [(0_u32, 0_u32, 0_u32, 0_u32); MOST];
    let (length, status, version, count) = {
        let mut room = [const { MaybeUninit::uninit() }; MOST];
        let mut answer = httparse::Response::new(&mut []);
        let bytes: &[u8] = buffer;
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, bytes, &mut room)?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let place = |text: &[u8]| (text.as_ptr() as usize - bytes.as_ptr() as usize) as u32;
        for (slot, header) in places.iter_mut().zip(answer.headers.iter()) {
            let name = header.name.as_bytes();
            *slot = (place(name), name.len() as u32, place(header.value), header.value.len() as u32);
        }
        (length, answer.code.unwrap_or(0), answer.version.unwrap_or(1), answer.headers.len())
    };
    let bytes = buffer.split_to(length).freeze();
    let part = |start: u32, length: u32| start as usize..(start + length) as usize;
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(status).map_err(|_| httparse::Error::Status)?;
    *head.version_mut() = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    // With room for what is added on the way to the client.
    let mut headers = HeaderMap::with_capacity(count + 6);
    for (name, name_length, value, value_length) in &places[..count] {
        let name = HeaderName::from_bytes(&bytes[part(*name, *name_length)]);
        let value = HeaderValue::from_maybe_shared(bytes.slice(part(*value, *value_length)));
        headers
            .append(name.map_err(|_| httparse::Error::HeaderName)?, value.map_err(|_| httparse::Error::HeaderValue)?);
    }
    *head.headers_mut() = headers;
    Ok(Some((head, version)))
}

/// RFC 9112 section 9.3.
fn stays(headers: &HeaderMap, version: u8) -> bool {
    let says = |wanted: &str| {
        headers.get_all(CONNECTION).iter().any(|value| {
            value.to_str().is_ok_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(wanted)))
        })
    };
    if version == 0 {
        says("keep-alive") && !says("close")
    } else {
        !headers.contains_key(CONNECTION) || !says("close")
    }
}

/// The length that all `content-length` headers agree on (RFC 9112 section 6.3).
fn length_of(headers: &HeaderMap) -> Result<Option<u64>, Broken> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for part in value.to_str().map_err(|_| Broken::Protocol)?.split(',') {
            let part = part.trim();
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let parsed = part.parse().ok().filter(|_| digits).ok_or(Broken::Protocol)?;
            if length.is_some_and(|known| known != parsed) {
                return Err(Broken::Protocol);
            }
            length = Some(parsed);
        }
    }
    Ok(length)
}

fn parse_trailers(buffer: &mut BytesMut) -> Result<Option<HeaderMap>, Broken> {
    let mut room = [httparse::EMPTY_HEADER; HEADERS.0];
    let mut trailers = HeaderMap::new();
    let length = match httparse::parse_headers(buffer, &mut room).map_err(|_| Broken::Protocol)? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete((length, parsed)) => {
            for header in parsed {
                let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| Broken::Protocol)?;
                let value = HeaderValue::from_bytes(header.value).map_err(|_| Broken::Protocol)?;
                trailers.append(name, value);
            }
            length
        }
    };
    buffer.advance(length);
    Ok(Some(trailers))
}

/// An answer's body.
#[derive(Debug)]
pub struct Received(Rc<Inner>);

impl Received {
    /// The stream of bytes, once the connection is no longer HTTP.
    pub fn into_io(self) -> Io {
        // Nobody else reads or writes it: the exchange is over.
        self.0.given_up.set(true);
        let mut stream = self.0.stream.borrow_mut();
        stream.body = None;
        let rest = std::mem::take(&mut stream.read).freeze();
        let mut io = std::mem::replace(&mut stream.io, Io::Gone(tokio::io::empty()));
        if !rest.is_empty() {
            io.put_back(rest);
        }
        io
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.0.stream.borrow_mut().poll_body(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.stream.borrow().answer == Answer::Complete
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.stream.borrow().answer {
            Answer::Complete => SizeHint::with_exact(0),
            Answer::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let complete = self.0.stream.try_borrow().is_ok_and(|stream| stream.answer == Answer::Complete);
        if !complete {
            self.0.given_up.set(true);
            if let Some(waker) = self.0.sender.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use http::uri::PathAndQuery;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    use super::super::io::Prefixed;
    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Connection::new(Io::Unix(Prefixed { prefix: Bytes::new(), inner: near })), far)
    }

    static TARGET: LazyLock<PathAndQuery> = LazyLock::new(|| PathAndQuery::from_static("/x?y"));
    static HEADERS: LazyLock<HeaderMap> =
        LazyLock::new(|| [(HeaderName::from_static("x-one"), HeaderValue::from_static("1"))].into_iter().collect());
    static A_HOST: HeaderValue = HeaderValue::from_static("a.b");

    fn head(method: &Method) -> Head<'_> {
        let version = Version::HTTP_11;
        Head { method, target: Some(&TARGET), host: &A_HOST, version, headers: &HEADERS, upgrade: None }
    }

    /// What comes of an answer that arrives in pieces of this size, and whether the connection stays.
    async fn answered(method: Method, answer: &str, piece: usize, close: bool) -> (Result<String, Broken>, bool) {
        let (connection, mut far) = pair();
        let answer = answer.as_bytes().to_vec();
        let serve = async move {
            let mut asked = [0; 1024];
            assert_ne!(far.read(&mut asked).await.unwrap(), 0);
            for part in answer.chunks(piece) {
                if far.write_all(part).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            (!close).then_some(far)
        };
        let ask = async {
            let answer = connection.send(head(&method), RequestBody::Empty).await?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await?;
            let trailers = body.trailers().map(|trailers| format!(" {trailers:?}")).unwrap_or_default();
            let told = head.headers.get(CONTENT_LENGTH).map(|length| format!(" of {length:?}")).unwrap_or_default();
            let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
            Ok(format!("{}{told} {body}{trailers}", head.status.as_u16()))
        };
        let (far, result) = tokio::join!(serve, ask);
        let stays = !connection.is_closed();
        drop(far);
        (result, stays)
    }

    #[tokio::test]
    async fn answers_end_where_they_say_however_they_arrive() {
        let get = Method::GET;
        for (method, answer, wanted, stays) in [
            (&get, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "200 of \"3\" abc", true),
            (&get, "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc", "200 of \"3, 3\" abc", true),
            (&get, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "200 of \"0\" ", true),
            (
                &get,
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: x, close\r\n\r\nabc",
                "200 of \"3\" abc",
                false,
            ),
            (&get, "HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc", "200 of \"3\" abc", false),
            (
                &get,
                "HTTP/1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\nabc",
                "200 of \"3\" abc",
                true,
            ),
            (
                &get,
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
                "200 abcd",
                true,
            ),
            (
                &get,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n1\r\na\r\n0\r\nx-end: 1\r\n\r\n",
                "200 a {\"x-end\": \"1\"}",
                true,
            ),
            // Chunks count, the length does not, nor is it passed on.
            (
                &get,
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
                "200 a",
                true,
            ),
            (&get, "HTTP/1.1 204 No Content\r\n\r\n", "204 ", true),
            (&get, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", "304 of \"5\" ", true),
            (&Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "200 of \"5\" ", true),
            (
                &get,
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na",
                "200 of \"1\" a",
                true,
            ),
        ] {
            for piece in [1, 2, 7, 4096] {
                let (result, kept) = answered(method.clone(), answer, piece, false).await;
                assert_eq!((result, kept), (Ok(wanted.to_owned()), stays), "{answer:?} in pieces of {piece}");
            }
        }
        for piece in [1, 4096] {
            let (result, kept) = answered(get.clone(), "HTTP/1.1 200 OK\r\n\r\nall of it", piece, true).await;
            assert_eq!((result, kept), (Ok("200 all of it".to_owned()), false));
        }
    }

    #[tokio::test]
    async fn what_is_not_an_answer_is_refused() {
        let many: String = (0..2000).map(|number| format!("x-{number}: 1\r\n")).collect();
        for (answer, close, wanted) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", false, Broken::Protocol),
            ("HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc", false, Broken::Protocol),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", false, Broken::Protocol),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc", false, Broken::Protocol),
            ("SSH-2.0-x\r\n\r\n", false, Broken::Protocol),
            (&format!("HTTP/1.1 200 OK\r\n{many}\r\n"), false, Broken::Protocol),
            (&format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(LONGEST_HEAD + 1)), false, Broken::Protocol),
            ("", true, CLOSED),
            ("HTTP/1.1 200 OK\r\ncontent-le", true, CLOSED),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", true, CLOSED),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", true, CLOSED),
        ] {
            let (result, kept) = answered(Method::GET, answer, 4096, close).await;
            let begin: String = answer.chars().take(80).collect();
            assert_eq!((result, kept), (Err(wanted), false), "{begin:?}");
        }
    }

    #[tokio::test]
    async fn requests_are_written_as_they_are_and_the_connection_is_used_again() {
        let (connection, mut far) = pair();
        for (body, wanted) in [
            (RequestBody::Empty, "GET /x?y HTTP/1.1\r\nhost: a.b\r\nx-one: 1\r\n\r\n"),
            (
                RequestBody::Full(Some(Bytes::from_static(b"abc"))),
                "GET /x?y HTTP/1.1\r\nhost: a.b\r\nx-one: 1\r\ncontent-length: 3\r\n\r\nabc",
            ),
        ] {
            assert!(!connection.is_closed());
            let mut asked = vec![0; wanted.len()];
            let serve = async {
                far.read_exact(&mut asked).await.unwrap();
                far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nz").await.unwrap();
            };
            let (answer, ()) = tokio::join!(connection.send(head(&Method::GET), body), serve);
            assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "z");
            assert_eq!(String::from_utf8(asked).unwrap(), wanted);
        }
        assert!(!connection.is_closed());
        far.write_all(b"HTTP/1.1 408 Too late\r\n").await.unwrap();
        while !connection.is_closed() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_connection_that_its_peer_closes_is_seen_to_be_closed() {
        let (connection, far) = pair();
        assert!(!connection.is_closed());
        drop(far);
        while !connection.is_closed() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_kernel_knows_of_an_end_before_the_runtime_does() {
        let (connection, peer) = pair();
        assert!(!connection.has_ended());
        drop(peer);
        // Nothing was waited for in between: the runtime had no turn.
        assert!(connection.has_ended());
    }

    /// How a request fails, on a TCP connection that has carried one before and that its peer closes.
    async fn closed(reads: bool, before: bool) -> Broken {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let connection = Connection::new(Io::Tcp(Prefixed { prefix: Bytes::new(), inner: near }));
        let body = || RequestBody::Full(Some(Bytes::from_static(b"abc")));
        let post = || connection.send(head(&Method::POST), body());
        let mut room = [0; 1024];
        let serve = async {
            assert_ne!(far.read(&mut room).await.unwrap(), 0);
            far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        let (answer, ()) = tokio::join!(post(), serve);
        drop(answer.unwrap());
        if before {
            drop(far);
            return post().await.unwrap_err();
        }
        let close = async move {
            far.readable().await.unwrap();
            if reads {
                assert_ne!(far.read(&mut room).await.unwrap(), 0);
            }
        };
        let (answer, ()) = tokio::join!(post(), close);
        answer.unwrap_err()
    }

    #[tokio::test]
    async fn a_request_that_its_peer_has_not_read_is_told_from_one_that_it_has() {
        assert_eq!(closed(false, true).await, Broken::Closed { seen: Seen::Unread });
        assert_eq!(closed(false, false).await, Broken::Closed { seen: Seen::Unread });
        assert_eq!(closed(true, false).await, Broken::Closed { seen: Seen::Closed });
    }

    #[tokio::test]
    async fn what_the_socket_could_not_take_yet_follows_an_early_answer() {
        const LONG: usize = 3 << 20;
        let (connection, mut far) = pair();
        let work = async {
            let body = RequestBody::Full(Some(vec![7; LONG].into()));
            let serve = async {
                let mut asked = [0; 64];
                far.read_exact(&mut asked).await.unwrap();
                far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nz").await.unwrap();
            };
            let (answer, ()) = tokio::join!(connection.send(head(&Method::POST), body), serve);
            let answer = answer.unwrap();
            assert!(connection.is_closed(), "it still has something to send");
            let head = "POST /x?y HTTP/1.1\r\nhost: a.b\r\nx-one: 1\r\ncontent-length: 3145728\r\n\r\n".len();
            let mut rest = vec![0; head + LONG - 64];
            far.read_exact(&mut rest).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "z");
            while connection.is_closed() {
                tokio::task::yield_now().await;
            }
        };
        let local = tokio::task::LocalSet::new();
        tokio::time::timeout(std::time::Duration::from_secs(20), local.run_until(work)).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_given_up_closes_the_connection() {
        let (connection, mut far) = pair();
        let serve = async {
            let mut asked = [0; 1024];
            assert_ne!(far.read(&mut asked).await.unwrap(), 0);
            far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await.unwrap();
        };
        let (answer, ()) = tokio::join!(connection.send(head(&Method::GET), RequestBody::Empty), serve);
        drop(answer);
        assert!(connection.is_closed());
    }
}
