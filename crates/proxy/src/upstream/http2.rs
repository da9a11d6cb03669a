//! Requests on a shared HTTP/2 connection: straight to the `h2` crate, so that a request costs neither a channel nor a task of its
//! own as long as its body is at hand.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::body::RequestBody;
use super::gather::gather;
use super::io::Io;

/// A connection, for as many requests at once as its peer allows.
#[derive(Clone, Debug)]
pub struct Connection(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    sender: RefCell<SendRequest<Bytes>>,
    closed: Cell<bool>,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct NotSent {
    /// What the connection says.
    pub error: h2::Error,
    /// Nothing of the request has left.
    pub unsent: bool,
}

/// Speaks HTTP/2 on a new stream of bytes. `keep` is held for as long as the connection lives.
///
/// # Errors
/// The stream broke.
pub async fn start(io: Io, keep: impl Sized + 'static) -> Result<Connection, h2::Error> {
    let (stream, turns) = gather(io);
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_header_list_size(60 * 1024)
        .max_send_buffer_size(256 * 1024)
        .max_concurrent_reset_streams(1024)
        .handshake(stream)
        .await?;
    let inner = Rc::new(Inner { sender: RefCell::new(sender), closed: Cell::new(false) });
    // The connection ends when nobody can send on it any more: its task must not be one of those who can.
    let seen = Rc::downgrade(&inner);
    tokio::task::spawn_local(async move {
        let mut connection = std::pin::pin!(connection);
        match poll_fn(|context| turns.turn(connection.as_mut(), context)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an HTTP/2 connection to an upstream ended"),
            Err(error) => tracing::debug!(%error, "an HTTP/2 connection to an upstream broke"),
        }
        if let Some(inner) = seen.upgrade() {
            inner.closed.set(true);
        }
        drop(keep);
    });
    Ok(Connection(inner))
}

impl Connection {
    /// It takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.0.closed.get()
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// # Errors
    /// The stream or the connection broke.
    pub async fn send(&self, request: Request<RequestBody>) -> Result<Response<Received>, NotSent> {
        let unsent = |error| {
            self.0.closed.set(true);
            NotSent { error, unsent: true }
        };
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let ends = body.is_end_stream();
        let ready = poll_fn(|context| Poll::Ready(self.0.sender.borrow_mut().poll_ready(context))).await;
        let sent = match ready {
            Poll::Ready(Ok(())) => self.0.sender.borrow_mut().send_request(head, ends),
            Poll::Ready(Err(error)) => return Err(unsent(error)),
            // Others wait for the peer to allow more streams: each with a handle of its own.
            Poll::Pending => {
                let own = self.0.sender.borrow().clone();
                own.ready().await.map_err(unsent)?.send_request(head, ends)
            }
        };
        let (answer, stream) = sent.map_err(unsent)?;
        let mut beside = Beside(None);
        if !ends {
            let mut sending = Sending { stream, body, hand: None };
            let done = poll_fn(|context| Poll::Ready(sending.poll(context))).await;
            if done.is_pending() {
                let rest = tokio::task::spawn_local(async move { poll_fn(|context| sending.poll(context)).await });
                beside.0 = Some(rest.abort_handle());
            }
        }
        let answer = answer.await.map_err(|error| NotSent { error, unsent: false })?;
        let length = answer.headers().get(http::header::CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Ok(answer.map(|stream| Received { stream, left, data_ended: false, beside }))
    }
}

/// The task that sends the rest of a request. It ends with whoever wanted the answer, unless that is complete: the peer is then
/// told that nobody waits (the stream's last handle is gone).
#[derive(Debug)]
struct Beside(Option<AbortHandle>);

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A request's body on its way.
struct Sending {
    stream: SendStream<Bytes>,
    body: RequestBody,
    /// Data that waits for the peer's window.
    hand: Option<Bytes>,
}

impl Sending {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            // The peer does not want the rest.
            if self.stream.poll_reset(context).is_ready() {
                return Poll::Ready(());
            }
            if let Some(data) = &mut self.hand {
                self.stream.reserve_capacity(data.len());
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(context)) {
                        Some(Ok(_)) => {}
                        _ => return Poll::Ready(()),
                    }
                }
                let part = data.split_to(self.stream.capacity().min(data.len()));
                let last = data.is_empty();
                let ends = last && self.body.is_end_stream();
                if last {
                    self.hand = None;
                }
                if self.stream.send_data(part, ends).is_err() || ends {
                    return Poll::Ready(());
                }
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() && !self.body.is_end_stream() => {}
                    Ok(data) if data.is_empty() => {
                        let _ = self.stream.send_data(data, true);
                        return Poll::Ready(());
                    }
                    Ok(data) => self.hand = Some(data),
                    Err(frame) => {
                        let _ = self.stream.send_trailers(frame.into_trailers().unwrap_or_default());
                        return Poll::Ready(());
                    }
                },
            }
        }
    }
}

/// An answer's body.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    /// Bytes to come, if the head told.
    left: Option<u64>,
    data_ended: bool,
    beside: Beside,
}

impl Drop for Received {
    fn drop(&mut self) {
        if self.stream.is_end_stream() {
            // The peer has answered and may still want the rest.
            self.beside.0 = None;
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        if !this.data_ended {
            match ready!(this.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // The answer is complete, and the peer did not want the rest of the request (RFC 9113 section 8.1).
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => this.data_ended = true,
            }
        }
        match ready!(this.stream.poll_trailers(context)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use h2::server::SendResponse;
    use tokio::net::UnixStream;
    use tokio::task::LocalSet;

    use super::super::io::Prefixed;
    use super::*;

    /// Opens a stream with more than the peer's window takes; the peer never reads, and answers or not. Then nobody wants the answer
    /// any more. What the peer is told of the stream.
    async fn told_when_nobody_waits(answers: bool) -> Option<Reason> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (streams, mut taken) = tokio::sync::mpsc::unbounded_channel();
        tokio::task::spawn_local(async move {
            let mut peer = h2::server::handshake(theirs).await.unwrap();
            while let Some(Ok(stream)) = peer.accept().await {
                streams.send(stream).unwrap();
            }
        });
        let connection = start(Io::Unix(Prefixed { prefix: Bytes::new(), inner: ours }), ()).await.unwrap();
        let body = RequestBody::Full(Some(Bytes::from(vec![0; 4 << 20])));
        let request = Request::post("http://shop/").body(body).unwrap();
        let mut send = Box::pin(connection.send(request));
        let (_unread, mut respond): (_, SendResponse<Bytes>) = tokio::select! {
            stream = taken.recv() => stream.unwrap(),
            answer = &mut send => panic!("{answer:?}"),
        };
        let reset = if answers {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            drop(send.await.unwrap());
            tokio::time::timeout(Duration::from_secs(5), poll_fn(|context| body.poll_reset(context))).await
        } else {
            // What has to go on beside is under way.
            assert!(tokio::time::timeout(Duration::from_millis(50), &mut send).await.is_err());
            drop(send);
            tokio::time::timeout(Duration::from_secs(5), poll_fn(|context| respond.poll_reset(context))).await
        };
        assert!(!connection.is_closed(), "the connection is for others too");
        reset.ok()?.ok()
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_told_that_nobody_wants_its_answer() {
        LocalSet::new()
            .run_until(async {
                for answers in [false, true] {
                    assert_eq!(told_when_nobody_waits(answers).await, Some(Reason::CANCEL), "answers: {answers}");
                }
            })
            .await;
    }
}
