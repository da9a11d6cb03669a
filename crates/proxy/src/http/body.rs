//! The body of an answer on its way to the client: it streams, counts, and ends the request's story.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant as TokioInstant, Sleep};

use super::names;
use super::story::Story;
use crate::failure::Failure;
use crate::upstream::Upstream;
use crate::upstream::body::{AnswerBody, Messages};
use crate::upstream::pool::Lease;

/// An answer's body.
#[derive(Debug)]
pub struct ResponseBody {
    content: Content,
    /// A frame that was read ahead, so that head and body leave in one write.
    ahead: Option<Frame<Bytes>>,
    end: Option<Box<End>>,
}

#[derive(Debug)]
enum Content {
    Empty,
    Full(Option<Bytes>),
    Incoming(AnswerBody),
    /// It broke: the client must see a break, not an end.
    Broken,
}

/// What is done when the body ends.
#[derive(Debug)]
struct End {
    story: Box<Story>,
    lease: Option<(Lease, Rc<Upstream>)>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    deadline: Option<Pin<Box<Sleep>>>,
    messages: Messages,
}

/// The upstream broke off in the middle of its answer.
#[derive(Debug, thiserror::Error)]
#[error("the answer ended early")]
pub struct Broken;

impl ResponseBody {
    /// Nothing, and no story either (internal answers).
    pub fn empty() -> Self {
        Self { content: Content::Empty, ahead: None, end: None }
    }

    /// A local answer.
    pub fn local(bytes: Bytes, story: Box<Story>) -> Self {
        let content = if bytes.is_empty() { Content::Empty } else { Content::Full(Some(bytes)) };
        Self {
            content,
            ahead: None,
            end: Some(Box::new(End { story, lease: None, idle: None, deadline: None, messages: Messages::default() })),
        }
    }

    /// An upstream's answer. The lease goes back when it is complete.
    pub fn upstream(
        incoming: AnswerBody,
        story: Box<Story>,
        lease: Option<(Lease, Rc<Upstream>)>,
        idle: Duration,
        deadline: Option<TokioInstant>,
    ) -> Self {
        let idle = (!idle.is_zero()).then(|| (idle, Box::pin(tokio::time::sleep(idle))));
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        Self {
            content: Content::Incoming(incoming),
            ahead: None,
            end: Some(Box::new(End { story, lease, idle, deadline, messages: Messages::default() })),
        }
    }

    /// Gives the first frame a chance to arrive with the head: a small answer is then one write. Waits for nothing but what the
    /// connection's task has at hand.
    pub async fn read_ahead(&mut self) {
        for turn in 0..2 {
            let Content::Incoming(incoming) = &mut self.content else { return };
            if incoming.is_end_stream() {
                return;
            }
            let frame = std::future::poll_fn(|context| match Pin::new(&mut *incoming).poll_frame(context) {
                Poll::Ready(frame) => Poll::Ready(Some(frame)),
                Poll::Pending => Poll::Ready(None),
            })
            .await;
            match frame {
                Some(Some(Ok(frame))) => {
                    self.ahead = Some(frame);
                    return;
                }
                Some(Some(Err(broken))) => {
                    self.fail(broken.0);
                    return;
                }
                Some(None) => return,
                None if turn == 0 => tokio::task::yield_now().await,
                None => return,
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        if let Some(mut end) = self.end.take() {
            end.story.failure = Some(failure);
        }
        self.content = Content::Broken;
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(end) = &mut self.end else { return };
        if let Some(data) = frame.data_ref() {
            end.story.sent += data.len() as u64;
            if end.story.grpc {
                end.story.response_messages += end.messages.count(data);
            }
        } else if let Some(trailers) = frame.trailers_ref()
            && let Some(status) = trailers.get(&names::GRPC_STATUS)
        {
            end.story.grpc_status = status.to_str().ok().and_then(|status| status.parse().ok());
        }
        if let Some((time, sleep)) = &mut end.idle {
            sleep.as_mut().reset(TokioInstant::now() + *time);
        }
    }

    fn complete(&mut self) {
        let Some(mut end) = self.end.take() else { return };
        if let Some((lease, upstream)) = end.lease.take() {
            // A connection whose request is still being sent cannot take another one.
            let sent = end.story.source.as_ref().is_none_or(|source| source.tally.complete.get());
            if sent {
                lease.give_back();
                upstream.wake_one();
            }
        }
    }

    fn overdue(&mut self, context: &mut Context<'_>) -> Option<Failure> {
        let end = self.end.as_mut()?;
        if let Some((_, sleep)) = &mut end.idle
            && sleep.as_mut().poll(context).is_ready()
        {
            return Some(Failure::StreamIdle);
        }
        let sleep = end.deadline.as_mut()?;
        sleep.as_mut().poll(context).is_ready().then_some(Failure::UpstreamTimeout)
    }
}

use std::future::Future;

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if let Some(frame) = this.ahead.take() {
            this.note(&frame);
            if this.is_end_stream() {
                this.complete();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = match &mut this.content {
            Content::Empty => {
                this.complete();
                return Poll::Ready(None);
            }
            Content::Broken => return Poll::Ready(Some(Err(Broken))),
            Content::Full(bytes) => match bytes.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Ready(None),
            },
            Content::Incoming(incoming) => Pin::new(incoming).poll_frame(context),
        };
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                this.note(&frame);
                if this.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(broken))) => {
                this.fail(broken.0);
                Poll::Ready(Some(Err(Broken)))
            }
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
            Poll::Pending => match this.overdue(context) {
                Some(failure) => {
                    this.fail(failure);
                    Poll::Ready(Some(Err(Broken)))
                }
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none()
            && match &self.content {
                Content::Empty | Content::Full(None) => true,
                Content::Full(Some(_)) | Content::Broken => false,
                Content::Incoming(incoming) => incoming.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        match &self.content {
            Content::Empty | Content::Full(None) => SizeHint::with_exact(ahead),
            Content::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64 + ahead),
            Content::Incoming(incoming) => match incoming.size_hint().exact() {
                Some(left) => SizeHint::with_exact(left + ahead),
                None => SizeHint::default(),
            },
            Content::Broken => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.end.is_none() {
            return;
        }
        if self.is_end_stream() {
            // The server had all it needed (a length was reached, or the answer has no body).
            self.complete();
        } else if let Some(end) = &mut self.end {
            end.story.incomplete = true;
        }
    }
}
