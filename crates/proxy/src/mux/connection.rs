//! What both ends of a connection have in common: streams, windows, frames in and out.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::Broken;
use super::head::{self, Decoder, Encoder};
use crate::message::Head;

/// Bytes that a stream's receiver takes before it has read any.
pub(super) const WINDOW: usize = 1 << 20;
/// The same for all streams of a connection together.
const CONNECTION_WINDOW: usize = 16 << 20;
/// The data of one frame, at most; also what a TLS record holds.
const MOST_DATA: usize = 16 * 1024;
/// Data of this size is not copied before it is written.
const LARGE: usize = 8 * 1024;
/// Pieces up to this size are put together while they wait for their reader.
const SMALL: usize = 1024;
/// Senders wait while so much has not been written yet.
const ROOM: usize = 64 * 1024;
/// Room for what is read at once.
const READ: usize = 16 * 1024;
/// Reads of one turn: then others of this thread have theirs.
const READS: usize = 16;
/// Time for the last bytes of a connection.
const GOODBYE: Duration = Duration::from_secs(1);
/// Streams of a connection at once, at most.
pub(super) const STREAMS: usize = 8192;
/// Requests that the peer may break off before more of them than these have been answered (CVE-2023-44487).
const RESETS: u32 = 1024;

const FRAME: usize = 8;
/// Stands for the connection where a stream is named.
const ALL: u32 = u32::MAX;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;
const TRAILERS: u8 = 4;
const RESET: u8 = 5;
const CREDIT: u8 = 6;
const LEAVE: u8 = 7;
/// Nothing of this message follows.
const END: u8 = 0x80;

/// Codes of a reset.
const CANCEL: u8 = 0;
const REFUSED: u8 = 1;
const BROKEN: u8 = 2;

/// A stream.
#[derive(Debug, Default)]
struct Stream {
    used: bool,
    count: u16,
    /// Answers: not taken yet.
    head: Option<http::response::Parts>,
    data: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    received_all: bool,
    broken: Option<Broken>,
    reader: Option<Waker>,
    /// What the peer may still send.
    receive_window: usize,
    /// Read, and not told yet.
    uncredited: usize,
    /// What may be sent.
    window: usize,
    sent_all: bool,
    sender: Option<Waker>,
    /// How many requests were sent before it on this connection.
    order: u32,
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Out {
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    queued: usize,
    flush: bool,
}

impl Out {
    fn frame(&mut self, length: usize, kind: u8, stream: u32) {
        self.tail.reserve(FRAME + length.min(LARGE));
        self.tail.put_uint(length as u64, 3);
        self.tail.put_u8(kind);
        self.tail.put_u32(stream);
        self.queued += FRAME;
    }

    /// A frame whose length is known when it is written.
    fn built(&mut self, kind: u8, stream: u32, write: impl FnOnce(&mut BytesMut)) {
        let start = self.tail.len();
        self.frame(0, kind, stream);
        self.tail.reserve(512);
        write(&mut self.tail);
        let length = self.tail.len() - start - FRAME;
        self.tail[start..start + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        self.queued += length;
    }

    fn data(&mut self, data: Bytes) {
        self.queued += data.len();
        if data.len() < LARGE {
            self.tail.put_slice(&data);
            return;
        }
        self.queue.push_back(self.tail.split().freeze());
        self.queue.push_back(data);
    }

    fn advance(&mut self, mut written: usize) {
        self.queued -= written;
        while let Some(first) = self.queue.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.queue.pop_front();
        }
        self.tail.advance(written);
    }
}

/// One end of a connection, as streams and the connection's task share it.
#[derive(Debug)]
pub(super) struct Shared {
    out: Out,
    encoder: Encoder,
    streams: Vec<Stream>,
    free: Vec<u16>,
    active: usize,
    /// The connection's task: it writes.
    task: Option<Waker>,
    wait_room: VecDeque<Waker>,
    wait_window: VecDeque<Waker>,
    pub(super) wait_place: VecDeque<Waker>,
    window: usize,
    receive_window: usize,
    uncredited: usize,
    ended: Option<Broken>,
    /// No request follows: the peer takes leave, or nobody is left to send one.
    pub(super) leaves: bool,
    /// Requests sent, or taken.
    requests: u32,
    /// Broken off by the peer, less those answered.
    resets: u32,
}

impl Shared {
    pub(super) fn new() -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            out: Out::default(),
            encoder: Encoder::default(),
            streams: Vec::new(),
            free: Vec::new(),
            active: 0,
            task: None,
            wait_room: VecDeque::new(),
            wait_window: VecDeque::new(),
            wait_place: VecDeque::new(),
            window: CONNECTION_WINDOW,
            receive_window: CONNECTION_WINDOW,
            uncredited: 0,
            ended: None,
            leaves: false,
            requests: 0,
            resets: 0,
        }))
    }

    pub(super) fn ended(&self) -> Option<Broken> {
        self.ended
    }

    pub(super) fn active(&self) -> usize {
        self.active
    }

    pub(super) fn is_written(&self) -> bool {
        self.out.queued == 0 && !self.out.flush
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        let count = (id >> 16) as u16;
        self.streams.get_mut(usize::from(id as u16)).filter(|stream| stream.used && stream.count == count)
    }

    pub(super) fn wake_task(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    pub(super) fn wait_as_task(&mut self, context: &Context<'_>) {
        self.task = Some(context.waker().clone());
    }

    fn begin(&mut self, place: u16, count: u16) {
        let order = self.requests;
        self.requests = self.requests.wrapping_add(1);
        let stream = &mut self.streams[usize::from(place)];
        if !stream.used {
            self.active += 1;
        }
        stream.data.clear();
        *stream = Stream {
            used: true,
            count,
            receive_window: WINDOW,
            window: WINDOW,
            order,
            data: std::mem::take(&mut stream.data),
            ..Stream::default()
        };
    }

    /// Opens a stream with a request's head; `None`: there are too many.
    pub(super) fn open(&mut self, head: &Head<'_>, ends: bool) -> Option<u32> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.streams.len() < STREAMS => {
                self.streams.push(Stream::default());
                (self.streams.len() - 1) as u16
            }
            None => return None,
        };
        let count = self.streams[usize::from(place)].count.wrapping_add(1);
        self.begin(place, count);
        let id = u32::from(count) << 16 | u32::from(place);
        self.streams[usize::from(place)].sent_all = ends;
        let kind = if ends { REQUEST | END } else { REQUEST };
        self.out.built(kind, id, |out| self.encoder.request(head, out));
        self.wake_task();
        Some(id)
    }

    /// Sends an answer's head.
    pub(super) fn answer(&mut self, id: u32, status: StatusCode, headers: &HeaderMap, ends: bool) {
        let Some(stream) = self.stream(id) else { return };
        stream.sent_all = ends;
        let kind = if ends { RESPONSE | END } else { RESPONSE };
        self.out.built(kind, id, |out| self.encoder.response(status, headers, out));
        self.wake_task();
    }

    fn trailers(&mut self, id: u32, trailers: &HeaderMap) {
        let Some(stream) = self.stream(id) else { return };
        stream.sent_all = true;
        self.out.built(TRAILERS, id, |out| self.encoder.fields(trailers, out));
        self.wake_task();
    }

    fn reset(&mut self, id: u32, code: u8) {
        if self.ended.is_none() {
            self.out.frame(1, RESET, id);
            self.out.tail.put_u8(code);
            self.out.queued += 1;
            self.wake_task();
        }
    }

    /// Tells the client to send no more requests, and how many have been taken.
    pub(super) fn take_leave(&mut self) {
        self.leaves = true;
        self.out.frame(4, LEAVE, ALL);
        self.out.tail.put_u32(self.requests);
        self.out.queued += 4;
    }

    /// Sends data, as much as may be sent. Ready when all of it is, or nobody wants it.
    fn poll_data(&mut self, id: u32, data: &mut Bytes, last: bool, context: &Context<'_>) -> Poll<()> {
        loop {
            let (queued, window) = (self.out.queued, self.window);
            let Some(stream) = self.stream(id) else { return Poll::Ready(()) };
            if queued >= ROOM {
                self.wait_room.push_back(context.waker().clone());
                return Poll::Pending;
            }
            let length = data.len().min(MOST_DATA).min(stream.window).min(window);
            if length == 0 && !data.is_empty() {
                if stream.window == 0 {
                    stream.sender = Some(context.waker().clone());
                } else {
                    self.wait_window.push_back(context.waker().clone());
                }
                return Poll::Pending;
            }
            let part = data.split_to(length);
            let ends = last && data.is_empty();
            stream.window -= length;
            stream.sent_all = ends;
            self.window -= length;
            self.out.frame(length, if ends { DATA | END } else { DATA }, id);
            self.out.data(part);
            self.wake_task();
            if data.is_empty() {
                return Poll::Ready(());
            }
        }
    }

    /// The stream's owner is done with it.
    fn release(&mut self, id: u32, chosen_here: bool) {
        let ended = self.ended.is_some();
        let Some(stream) = self.stream(id) else { return };
        let whole = stream.received_all && stream.sent_all;
        let cancel = !whole && stream.broken.is_none() && !ended;
        stream.used = false;
        (stream.head, stream.trailers, stream.reader, stream.sender) = (None, None, None, None);
        let unread = stream.data.drain(..).map(|data| data.len()).sum();
        self.active -= 1;
        if cancel {
            self.reset(id, CANCEL);
        }
        if !chosen_here {
            // An answered request makes up for one that was broken off.
            self.resets = if whole { self.resets.saturating_sub(1) } else { self.resets };
        } else {
            self.free.push(id as u16);
            if let Some(waiting) = self.wait_place.pop_front() {
                waiting.wake();
            }
        }
        self.credit(unread);
        if self.active == 0 {
            self.wake_task();
        }
    }

    /// These bytes of the connection's window are free again.
    fn credit(&mut self, bytes: usize) {
        self.uncredited += bytes;
        if self.uncredited >= CONNECTION_WINDOW / 4 && self.ended.is_none() {
            self.receive_window += self.uncredited;
            let credit = std::mem::take(&mut self.uncredited);
            self.put_credit(ALL, credit);
        }
    }

    fn put_credit(&mut self, id: u32, bytes: usize) {
        self.out.frame(4, CREDIT, id);
        self.out.tail.put_u32(bytes as u32);
        self.out.queued += 4;
        self.wake_task();
    }

    /// The connection is over: all who wait are told.
    pub(super) fn end(&mut self, why: Broken) {
        self.ended.get_or_insert(why);
        (self.leaves, self.out) = (true, Out::default());
        for stream in &mut self.streams {
            stream.reader.take().into_iter().chain(stream.sender.take()).for_each(Waker::wake);
        }
        let room = self.wait_room.drain(..).chain(self.wait_window.drain(..));
        room.chain(self.wait_place.drain(..)).for_each(Waker::wake);
    }

    /// Why there will be no more of a stream.
    fn broken(&mut self, id: u32) -> Option<Broken> {
        let ended = self.ended;
        match self.stream(id) {
            None => Some(Broken::Closed),
            Some(stream) => stream.broken.or(ended),
        }
    }
}

/// A stream's owner; whoever lets go of it before both sides are done breaks it off.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Rc<RefCell<Shared>>,
    pub(super) id: u32,
    /// The number is ours: the client's.
    pub(super) chosen_here: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.borrow_mut().release(self.id, self.chosen_here);
    }
}

impl Handle {
    /// An answer's head.
    pub(super) fn poll_head(&self, context: &Context<'_>) -> Poll<Result<http::response::Parts, Broken>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        let ended = shared.ended;
        let Some(stream) = shared.stream(self.id) else { return Poll::Ready(Err(Broken::Closed)) };
        if let Some(head) = stream.head.take() {
            return Poll::Ready(Ok(head));
        }
        match stream.broken.or(ended) {
            Some(broken) => Poll::Ready(Err(broken)),
            None => {
                stream.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Waits until the peer breaks off. Not while data is being sent.
    pub(super) fn poll_broken(&self, context: &Context<'_>) -> Poll<()> {
        let mut shared = self.shared.borrow_mut();
        if shared.broken(self.id).is_some() {
            return Poll::Ready(());
        }
        if let Some(stream) = shared.stream(self.id) {
            match &mut stream.sender {
                Some(known) if known.will_wake(context.waker()) => {}
                sender => *sender = Some(context.waker().clone()),
            }
        }
        Poll::Pending
    }

    pub(super) fn refuse(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.reset(self.id, REFUSED);
        if let Some(stream) = shared.stream(self.id) {
            stream.broken = Some(Broken::Refused);
        }
    }

    /// The message cannot be finished.
    pub(super) fn break_off(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.reset(self.id, BROKEN);
        if let Some(stream) = shared.stream(self.id) {
            stream.broken = Some(Broken::Reset);
        }
    }
}

/// A body on its way out.
#[derive(Debug)]
pub(super) struct Sending<B> {
    pub(super) handle: Rc<Handle>,
    pub(super) body: B,
    /// Data that waits, and whether it is the last.
    pub(super) hand: Option<(Bytes, bool)>,
}

impl<B: Body<Data = Bytes> + Unpin> Sending<B> {
    /// Sends what there is. Ready when all is sent, or nobody wants more.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.handle.shared.borrow_mut().broken(self.handle.id).is_some() {
                return Poll::Ready(());
            }
            if let Some((data, last)) = &mut self.hand {
                ready!(self.handle.shared.borrow_mut().poll_data(self.handle.id, data, *last, context));
                let last = *last;
                self.hand = None;
                if last {
                    return Poll::Ready(());
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                // Meanwhile the peer may break off.
                return self.handle.poll_broken(context);
            };
            match frame {
                None => self.hand = Some((Bytes::new(), true)),
                Some(Err(_)) => {
                    self.handle.break_off();
                    return Poll::Ready(());
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = self.body.is_end_stream();
                        if last || !data.is_empty() {
                            self.hand = Some((data, last));
                        }
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.handle.shared.borrow_mut().trailers(self.handle.id, &trailers);
                        return Poll::Ready(());
                    }
                },
            }
        }
    }
}

/// A body that comes in.
#[derive(Debug)]
pub struct Received {
    pub(super) handle: Rc<Handle>,
    /// Bytes to come, if the head told.
    left: Option<u64>,
    /// Ends what else belongs to the stream, if it is let go of too early.
    pub(super) beside: Option<tokio::task::AbortHandle>,
}

impl Received {
    pub(super) fn new(handle: Rc<Handle>, headers: &HeaderMap) -> Self {
        let length = headers.get(http::header::CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self { handle, left, beside: None }
    }
}

#[cfg(test)]
impl Received {
    /// All of it has come, read or not.
    pub(super) fn received_all(&self) -> bool {
        self.handle.shared.borrow_mut().stream(self.handle.id).is_some_and(|stream| stream.received_all)
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let id = this.handle.id;
        let mut shared = this.handle.shared.borrow_mut();
        let shared = &mut *shared;
        let ended = shared.ended;
        let Some(stream) = shared.stream(id) else { return Poll::Ready(Some(Err(Broken::Closed))) };
        if let Some(data) = stream.data.pop_front() {
            let length = data.len();
            this.left = this.left.map(|left| left.saturating_sub(length as u64));
            stream.uncredited += length;
            if stream.uncredited >= WINDOW / 4 && !stream.received_all && stream.broken.is_none() && ended.is_none() {
                let credit = std::mem::take(&mut stream.uncredited);
                stream.receive_window += credit;
                shared.put_credit(id, credit);
            }
            shared.credit(length);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = stream.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if stream.received_all {
            return Poll::Ready(None);
        }
        if let Some(broken) = stream.broken.or(ended) {
            return Poll::Ready(Some(Err(broken)));
        }
        stream.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let mut shared = self.handle.shared.borrow_mut();
        shared
            .stream(self.handle.id)
            .is_some_and(|stream| stream.received_all && stream.data.is_empty() && stream.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(task) = &self.beside
            && !self.is_end_stream()
        {
            task.abort();
        }
    }
}

/// Reads and writes for a connection.
#[derive(Debug)]
pub(super) struct Driver<S> {
    io: S,
    pub(super) shared: Rc<RefCell<Shared>>,
    read: BytesMut,
    decoder: Decoder,
    /// Takes requests; the other side takes answers.
    server: bool,
}

/// A request as it came in.
pub(super) type Request = (http::request::Parts, Rc<Handle>);

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(super) fn new(io: S, server: bool) -> Self {
        Self { io, shared: Shared::new(), read: BytesMut::new(), decoder: Decoder::default(), server }
    }

    /// Writes what is left and says goodbye; a peer that does not read does not hold it.
    pub(super) async fn close(&mut self) {
        let goodbye = async {
            let _ = std::future::poll_fn(|context| self.poll_write(context)).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.io).await;
        };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }

    /// Reads what there is. Ready only with the end.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>, requests: &mut Vec<Request>) -> Poll<Broken> {
        for _ in 0..READS {
            if self.read.capacity() - self.read.len() < READ / 4 {
                self.read.reserve(READ);
            }
            match poll_read_buf(Pin::new(&mut self.io), context, &mut self.read) {
                Poll::Pending => {
                    if self.read.is_empty() && self.shared.borrow().active == 0 {
                        // An idle connection holds nothing.
                        self.read = BytesMut::new();
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Broken::Closed),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(end_of(&error)),
            }
            while let Some(taken) = self.take_frame(requests).transpose() {
                if let Err(broken) = taken {
                    return Poll::Ready(broken);
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes a frame, if it has come as a whole.
    fn take_frame(&mut self, requests: &mut Vec<Request>) -> Result<Option<()>, Broken> {
        let Some(header) = self.read.first_chunk::<FRAME>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let (kind, id) = (header[3], u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
        let most = match kind & !END {
            REQUEST | RESPONSE | TRAILERS => head::LONGEST,
            DATA => MOST_DATA,
            RESET => 1,
            CREDIT | LEAVE => 4,
            _ => return Err(Broken::Protocol),
        };
        if length > most {
            return Err(Broken::Protocol);
        }
        if self.read.len() < FRAME + length {
            return Ok(None);
        }
        self.read.advance(FRAME);
        let bytes = self.read.split_to(length).freeze();
        self.take(kind & !END, kind & END != 0, id, bytes, requests)?;
        Ok(Some(()))
    }

    fn take(&mut self, kind: u8, ends: bool, id: u32, bytes: Bytes, requests: &mut Vec<Request>) -> Result<(), Broken> {
        let mut guard = self.shared.borrow_mut();
        let shared = &mut *guard;
        match kind {
            REQUEST if self.server => {
                let head = self.decoder.request(bytes)?;
                let (place, count) = (usize::from(id as u16), (id >> 16) as u16);
                // Places are taken one after the other: a peer cannot make us hold many for few requests.
                if place >= STREAMS || place > shared.streams.len() || shared.stream(id).is_some() {
                    return Err(Broken::Protocol);
                }
                if place == shared.streams.len() {
                    shared.streams.push(Stream::default());
                }
                // What is left here of the stream that was in this place before does not count any more.
                let unread = shared.streams[place].data.iter().map(Bytes::len).sum();
                shared.credit(unread);
                shared.begin(place as u16, count);
                shared.streams[place].received_all = ends;
                drop(guard);
                requests.push((head, Rc::new(Handle { shared: Rc::clone(&self.shared), id, chosen_here: false })));
            }
            RESPONSE if !self.server => {
                let head = self.decoder.response(bytes)?;
                let Some(stream) = shared.stream(id).filter(|stream| !stream.received_all) else { return Ok(()) };
                (stream.head, stream.received_all) = (Some(head), ends);
                stream.reader.take().into_iter().for_each(Waker::wake);
            }
            DATA => {
                let length = bytes.len();
                shared.receive_window = shared.receive_window.checked_sub(length).ok_or(Broken::Protocol)?;
                let Some(stream) = shared.stream(id).filter(|stream| !stream.received_all) else {
                    shared.credit(length);
                    return Ok(());
                };
                stream.receive_window = stream.receive_window.checked_sub(length).ok_or(Broken::Protocol)?;
                stream.received_all = ends;
                put_together(&mut stream.data, bytes);
                stream.reader.take().into_iter().for_each(Waker::wake);
            }
            TRAILERS => {
                let trailers = self.decoder.trailers(bytes)?;
                let Some(stream) = shared.stream(id).filter(|stream| !stream.received_all) else { return Ok(()) };
                (stream.trailers, stream.received_all) = (Some(trailers), true);
                stream.reader.take().into_iter().for_each(Waker::wake);
            }
            RESET => {
                let code = *bytes.first().ok_or(Broken::Protocol)?;
                let Some(stream) = shared.stream(id) else { return Ok(()) };
                stream.broken = Some(if code == REFUSED { Broken::Refused } else { Broken::Reset });
                stream.reader.take().into_iter().chain(stream.sender.take()).for_each(Waker::wake);
                if self.server {
                    shared.resets += 1;
                    if shared.resets > RESETS {
                        return Err(Broken::Protocol);
                    }
                }
            }
            CREDIT => {
                let credit = number(&bytes)? as usize;
                if id == ALL {
                    shared.window = shared.window.saturating_add(credit);
                    shared.wait_window.drain(..).for_each(Waker::wake);
                } else if let Some(stream) = shared.stream(id) {
                    stream.window = stream.window.saturating_add(credit);
                    stream.sender.take().into_iter().for_each(Waker::wake);
                }
            }
            LEAVE if !self.server => {
                let taken = number(&bytes)?;
                shared.leaves = true;
                shared.wait_place.drain(..).for_each(Waker::wake);
                // What the peer had not taken when it said so comes behind its word, or never does: it tells at its end.
                for stream in shared.streams.iter_mut().filter(|stream| stream.used && stream.head.is_none()) {
                    if ends && stream.order >= taken {
                        stream.broken = Some(Broken::Refused);
                        stream.reader.take().into_iter().chain(stream.sender.take()).for_each(Waker::wake);
                    }
                }
            }
            _ => return Err(Broken::Protocol),
        }
        Ok(())
    }

    /// Writes what there is. An error is the end.
    pub(super) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut guard = self.shared.borrow_mut();
        let shared = &mut *guard;
        let out = &mut shared.out;
        while out.queued > 0 {
            out.flush = true;
            let written = if out.queue.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(context, &out.tail))
            } else {
                let mut slices = [IoSlice::new(&[]); 16];
                let parts = out.queue.iter().map(|part| &part[..]).chain([&out.tail[..]]);
                let count = slices.iter_mut().zip(parts).map(|(slice, part)| *slice = IoSlice::new(part)).count();
                ready!(Pin::new(&mut self.io).poll_write_vectored(context, &slices[..count]))
            };
            match written {
                Ok(0) => return Poll::Ready(Err(Broken::Closed)),
                Ok(written) => out.advance(written),
                Err(error) => return Poll::Ready(Err(end_of(&error))),
            }
            if out.queued < ROOM {
                shared.wait_room.drain(..).for_each(Waker::wake);
            }
        }
        if shared.active == 0 || out.tail.capacity() > ROOM {
            out.tail = BytesMut::new();
        }
        if out.flush {
            ready!(Pin::new(&mut self.io).poll_flush(context)).map_err(|error| end_of(&error))?;
            out.flush = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl Shared {
    /// The last word of a server that ends: which requests it has not taken.
    pub(super) fn last_word(&mut self) {
        self.out.frame(4, LEAVE | END, ALL);
        self.out.tail.put_u32(self.requests);
        self.out.queued += 4;
    }
}

/// Small pieces that nobody has read yet become one: else a peer could make us hold many times what it sends.
fn put_together(data: &mut VecDeque<Bytes>, bytes: Bytes) {
    match data.back_mut() {
        _ if bytes.is_empty() => {}
        Some(last) if last.len() + bytes.len() <= SMALL => *last = [&last[..], &bytes].concat().into(),
        _ => data.push_back(bytes),
    }
}

fn number(bytes: &Bytes) -> Result<u32, Broken> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(Broken::Protocol)
}

/// In TLS 1.3 a client is done before the server has looked at its certificate: a refusal comes as an alert in the place of the
/// first answer.
fn end_of(error: &io::Error) -> Broken {
    let refused = error.to_string().starts_with("received fatal alert: ");
    if refused { Broken::Alert } else { Broken::Closed }
}
