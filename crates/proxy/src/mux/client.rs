//! The end that asks.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Broken;
use super::connection::{Driver, Handle, Received, Sending, Shared};
use crate::message::Head;

/// A connection, for many requests at once. It ends with the last of its clones and answers.
#[derive(Clone, Debug)]
pub struct Connection(Rc<Inner>);

#[derive(Debug)]
struct Inner(Rc<RefCell<Shared>>);

impl Drop for Inner {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.leaves = true;
        shared.wake_task();
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// What happened.
    pub why: Broken,
    /// Nothing of the request has left.
    pub unsent: bool,
}

/// Speaks the protocol on a new stream of bytes. `keep` is held for as long as the connection lives.
pub fn start<S>(io: S, keep: impl Sized + 'static) -> Connection
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut driver = Driver::new(io, false);
    let shared = Rc::clone(&driver.shared);
    tokio::task::spawn_local(async move {
        let why = poll_fn(|context| poll(&mut driver, context)).await;
        driver.shared.borrow_mut().end(why);
        driver.close().await;
        drop(keep);
    });
    Connection(Rc::new(Inner(shared)))
}

/// A turn of the connection's task.
fn poll<S: AsyncRead + AsyncWrite + Unpin>(driver: &mut Driver<S>, context: &mut Context<'_>) -> Poll<Broken> {
    if let Poll::Ready(why) = driver.poll_read(context, &mut Vec::new()) {
        return Poll::Ready(why);
    }
    if let Poll::Ready(Err(why)) = driver.poll_write(context) {
        return Poll::Ready(why);
    }
    let mut shared = driver.shared.borrow_mut();
    if shared.leaves && shared.active() == 0 && shared.is_written() {
        return Poll::Ready(Broken::Closed);
    }
    shared.wait_as_task(context);
    Poll::Pending
}

impl Connection {
    /// It takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.0.0.borrow().leaves
    }

    /// Sends a request and waits for the answer's head. A body that is longer than the wait for it is sent on beside.
    ///
    /// # Errors
    /// The stream or the connection broke.
    pub async fn send<B>(&self, head: Head<'_>, body: B) -> Result<Response<Received>, NotSent>
    where
        B: Body<Data = Bytes> + Unpin + 'static,
    {
        let ends = body.is_end_stream();
        let shared = &self.0.0;
        let opened = poll_fn(|context| {
            let mut state = shared.borrow_mut();
            if state.leaves {
                return Poll::Ready(Err(state.ended().unwrap_or(Broken::Closed)));
            }
            match state.open(&head, ends) {
                Some(id) => Poll::Ready(Ok(id)),
                None => {
                    state.wait_place.push_back(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        let id = opened.await.map_err(|why| NotSent { why, unsent: true })?;
        let handle = Rc::new(Handle { shared: Rc::clone(shared), id, chosen_here: true });
        let mut beside = Beside(None);
        if !ends {
            let mut sending = Sending { handle: Rc::clone(&handle), body, hand: None };
            if poll_fn(|context| Poll::Ready(sending.poll(context))).await.is_pending() {
                let rest = tokio::task::spawn_local(async move { poll_fn(|context| sending.poll(context)).await });
                beside.0 = Some(rest.abort_handle());
            }
        }
        let head = poll_fn(|context| handle.poll_head(context)).await.map_err(|why| NotSent { why, unsent: false })?;
        let mut body = Received::new(handle, &head.headers);
        body.beside = beside.0.take();
        Ok(Response::from_parts(head, body))
    }
}

/// The task that sends the rest of a request; it ends with whoever waits for the answer.
struct Beside(Option<tokio::task::AbortHandle>);

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
