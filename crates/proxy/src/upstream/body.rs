//! The body of a request on its way upstream. It streams; what passed is kept as long as it is small, so that the request can
//! be repeated.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::failure::Failure;
use crate::mux;

/// Bytes of a request body that are kept for a repetition at most.
pub const KEPT: usize = 64 * 1024;

/// What went by of one request's body.
#[derive(Debug, Default)]
pub struct Tally {
    /// Bytes.
    pub bytes: Cell<u64>,
    /// The end was reached.
    pub complete: Cell<bool>,
    /// gRPC messages.
    pub messages: Cell<u64>,
}

/// Counts gRPC messages in a stream of bytes: each has a flag, a length of four bytes and so many bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages {
    header: [u8; 5],
    have: usize,
    left: usize,
}

impl Messages {
    /// How many messages begin in these bytes.
    pub fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut found = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have == 5 {
                self.have = 0;
                self.left =
                    u32::from_be_bytes([self.header[1], self.header[2], self.header[3], self.header[4]]) as usize;
                found += 1;
            }
        }
        found
    }
}

/// A request's body.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// These bytes.
    Full(Option<Bytes>),
    /// From the client.
    Stream(Tap),
}

/// What a client sends, by the connection's protocol.
#[derive(Debug)]
pub enum ClientBody {
    /// HTTP/1 or HTTP/2.
    Http(Incoming),
    /// The protocol between our proxies.
    Mux(mux::Received),
    /// One whose beginning was read before.
    Begun(Box<Begun>),
    /// Somebody reads it.
    Gone,
}

/// A client's body whose beginning was read before.
#[derive(Debug)]
pub struct Begun {
    read: VecDeque<Frame<Bytes>>,
    rest: ClientBody,
    ended: bool,
}

impl ClientBody {
    /// Reads until there are so many bytes or the body has ended; says which bytes, and whether the body has ended. Each part of it
    /// is waited for `idle`; zero: for ever.
    ///
    /// # Errors
    /// The client broke off, or sent nothing for that long.
    pub async fn begin(self, most: usize, idle: Duration) -> Result<(ClientBody, Bytes, bool), Failure> {
        let mut begun = Begun { read: VecDeque::new(), rest: self, ended: false };
        let mut bytes = BytesMut::new();
        while bytes.len() < most && !begun.rest.is_end_stream() {
            let frame = std::future::poll_fn(|context| Pin::new(&mut begun.rest).poll_frame(context));
            let frame = match idle.is_zero() {
                true => frame.await,
                false => tokio::time::timeout(idle, frame).await.map_err(|_| Failure::StreamIdle)?,
            };
            let Some(frame) = frame.transpose().map_err(|_| Failure::ClientGone)? else {
                begun.ended = true;
                break;
            };
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(data);
            }
            begun.read.push_back(frame);
        }
        let ended = begun.ended || begun.rest.is_end_stream();
        Ok((ClientBody::Begun(Box::new(begun)), bytes.freeze(), ended))
    }
}

impl Begun {
    fn left(&self) -> u64 {
        self.read.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum()
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Ended;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Ended>>> {
        Poll::Ready(match self.get_mut() {
            ClientBody::Http(body) => ready!(Pin::new(body).poll_frame(context)).map(|frame| frame.map_err(|_| Ended)),
            ClientBody::Mux(body) => ready!(Pin::new(body).poll_frame(context)).map(|frame| frame.map_err(|_| Ended)),
            ClientBody::Begun(begun) => match begun.read.pop_front() {
                Some(frame) => Some(Ok(frame)),
                None if begun.ended => None,
                None => ready!(Pin::new(&mut begun.rest).poll_frame(context)),
            },
            ClientBody::Gone => Some(Err(Ended)),
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Http(body) => body.is_end_stream(),
            ClientBody::Mux(body) => body.is_end_stream(),
            ClientBody::Begun(begun) => begun.read.is_empty() && (begun.ended || begun.rest.is_end_stream()),
            ClientBody::Gone => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Http(body) => body.size_hint(),
            ClientBody::Mux(body) => body.size_hint(),
            ClientBody::Gone => SizeHint::default(),
            ClientBody::Begun(begun) if begun.ended => SizeHint::with_exact(begun.left()),
            ClientBody::Begun(begun) => {
                let rest = begun.rest.size_hint().exact();
                rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(rest + begun.left()))
            }
        }
    }
}

/// One try's end of the client's body. Only the newest try reads.
#[derive(Debug)]
pub struct Tap {
    source: Rc<Source>,
    attempt: u32,
    replayed: usize,
}

/// The client's body with what is kept of it.
#[derive(Debug)]
pub struct Source {
    incoming: RefCell<ClientBody>,
    kept: RefCell<Kept>,
    attempt: Cell<u32>,
    grpc: Option<Cell<Messages>>,
    /// What went by.
    pub tally: Tally,
}

#[derive(Debug)]
struct Kept {
    frames: Vec<KeptFrame>,
    bytes: usize,
    /// Everything that went by is in `frames`.
    whole: bool,
    broken: bool,
}

#[derive(Clone, Debug)]
enum KeptFrame {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

impl Source {
    /// Of a client's body; `keep` says that the request may be repeated or copied, `grpc` that messages are counted.
    pub fn new(incoming: ClientBody, keep: bool, grpc: bool) -> Rc<Self> {
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            kept: RefCell::new(Kept { frames: Vec::new(), bytes: 0, whole: keep, broken: false }),
            attempt: Cell::new(0),
            grpc: grpc.then(Cell::default),
            tally: Tally::default(),
        })
    }

    /// The body for another try, if everything that went by is kept.
    pub fn tap(self: &Rc<Self>) -> Option<RequestBody> {
        if !self.replayable() {
            return None;
        }
        self.attempt.set(self.attempt.get() + 1);
        Some(RequestBody::Stream(Tap { source: Rc::clone(self), attempt: self.attempt.get(), replayed: 0 }))
    }

    /// Whether everything that went by is kept, so that another try can begin anew.
    pub fn replayable(&self) -> bool {
        let kept = self.kept.borrow();
        !kept.broken && (kept.whole || (self.tally.bytes.get() == 0 && !self.tally.complete.get()))
    }

    /// Whether the client broke off.
    pub fn broken(&self) -> bool {
        self.kept.borrow().broken
    }

    /// All bytes, if the body is complete and small.
    pub fn whole(&self) -> Option<Bytes> {
        let kept = self.kept.borrow();
        if !kept.whole || !self.tally.complete.get() {
            return None;
        }
        let mut all = Vec::with_capacity(kept.bytes);
        for frame in &kept.frames {
            if let KeptFrame::Data(data) = frame {
                all.extend_from_slice(data);
            }
        }
        Some(all.into())
    }

    fn note(&self, frame: &Frame<Bytes>) {
        let mut kept = self.kept.borrow_mut();
        if let Some(data) = frame.data_ref() {
            self.tally.bytes.set(self.tally.bytes.get() + data.len() as u64);
            kept.bytes += data.len();
            if let Some(messages) = &self.grpc {
                let mut counting = messages.get();
                self.tally.messages.set(self.tally.messages.get() + counting.count(data));
                messages.set(counting);
            }
            if kept.bytes > KEPT {
                kept.whole = false;
                kept.frames = Vec::new();
            }
            if kept.whole {
                kept.frames.push(KeptFrame::Data(data.clone()));
            }
        } else if let (Some(trailers), true) = (frame.trailers_ref(), kept.whole) {
            kept.frames.push(KeptFrame::Trailers(trailers.clone()));
        }
    }

    fn poll_incoming(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Ended>>> {
        let frame = ready!(Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.note(frame),
            Some(Err(_)) => self.kept.borrow_mut().broken = true,
            None => self.tally.complete.set(true),
        }
        if self.incoming.borrow().is_end_stream() {
            self.tally.complete.set(true);
        }
        Poll::Ready(frame)
    }
}

/// The body of an upstream's answer, by the connection's protocol.
#[derive(Debug)]
pub enum AnswerBody {
    /// HTTP/1.
    One(super::http1::Received),
    /// HTTP/1 with the spelling of names kept.
    Spelled(Incoming),
    /// HTTP/2.
    Two(super::http2::Received),
    /// The protocol between our proxies.
    Mux(mux::Received),
}

/// The upstream broke off.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct BrokenOff(pub Failure);

impl From<h2::Error> for BrokenOff {
    fn from(error: h2::Error) -> Self {
        let reset = error.is_reset() && error.is_remote();
        Self(if reset { Failure::UpstreamBrokenOff } else { Failure::UpstreamBroken })
    }
}

impl From<mux::Broken> for BrokenOff {
    fn from(broken: mux::Broken) -> Self {
        Self(if broken == mux::Broken::Reset { Failure::UpstreamBrokenOff } else { Failure::UpstreamBroken })
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let frame = match self.get_mut() {
            AnswerBody::One(body) => ready!(Pin::new(body).poll_frame(context))
                .map(|frame| frame.map_err(|_| BrokenOff(Failure::UpstreamTruncated))),
            AnswerBody::Spelled(body) => ready!(Pin::new(body).poll_frame(context))
                .map(|frame| frame.map_err(|_| BrokenOff(Failure::UpstreamTruncated))),
            AnswerBody::Two(body) => {
                ready!(Pin::new(body).poll_frame(context)).map(|frame| frame.map_err(BrokenOff::from))
            }
            AnswerBody::Mux(body) => {
                ready!(Pin::new(body).poll_frame(context)).map(|frame| frame.map_err(BrokenOff::from))
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::One(body) => body.is_end_stream(),
            AnswerBody::Spelled(body) => body.is_end_stream(),
            AnswerBody::Two(body) => body.is_end_stream(),
            AnswerBody::Mux(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::One(body) => body.size_hint(),
            AnswerBody::Spelled(body) => body.size_hint(),
            AnswerBody::Two(body) => body.size_hint(),
            AnswerBody::Mux(body) => body.size_hint(),
        }
    }
}

/// The try is over: another one reads the body now, or the client broke off.
#[derive(Debug, thiserror::Error)]
#[error("the request's body ended early")]
pub struct Ended;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Ended;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Ended>>> {
        match self.get_mut() {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            RequestBody::Stream(tap) => {
                if tap.attempt != tap.source.attempt.get() {
                    return Poll::Ready(Some(Err(Ended)));
                }
                let replay = tap.source.kept.borrow().frames.get(tap.replayed).cloned();
                if let Some(frame) = replay {
                    tap.replayed += 1;
                    return Poll::Ready(Some(Ok(match frame {
                        KeptFrame::Data(data) => Frame::data(data),
                        KeptFrame::Trailers(trailers) => Frame::trailers(trailers),
                    })));
                }
                if tap.source.tally.complete.get() {
                    return Poll::Ready(None);
                }
                let frame = ready!(tap.source.poll_incoming(context));
                tap.replayed = tap.source.kept.borrow().frames.len();
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty | RequestBody::Full(None) => true,
            RequestBody::Full(Some(_)) => false,
            RequestBody::Stream(tap) => {
                tap.source.tally.complete.get() && tap.replayed >= tap.source.kept.borrow().frames.len()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty | RequestBody::Full(None) => SizeHint::with_exact(0),
            RequestBody::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            RequestBody::Stream(tap) => {
                // What is left of the client's body and what will be replayed.
                let left = tap.source.incoming.borrow().size_hint().exact();
                let kept = tap.source.kept.borrow();
                let replay: u64 = kept
                    .frames
                    .iter()
                    .skip(tap.replayed)
                    .map(|frame| if let KeptFrame::Data(data) = frame { data.len() as u64 } else { 0 })
                    .sum();
                left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + replay))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let stream = [0, 0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9];
        for cut in 1..stream.len() {
            let mut messages = Messages::default();
            assert_eq!(stream.chunks(cut).map(|part| messages.count(part)).sum::<u64>(), 3, "{cut}");
        }
    }
}
