//! The end that answers.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream as _;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Broken;
use super::connection::{Driver, Handle, Received, Sending};

/// A connection whose requests are served by futures of this kind, in the connection's own task.
#[derive(Debug)]
pub struct Server<S, F, B> {
    driver: Driver<S>,
    answers: FuturesUnordered<Answering<F, B>>,
    requests: Vec<super::connection::Request>,
    /// Requests at once; more are refused.
    most: usize,
}

impl<S, F, B, E> Server<S, F, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes> + Unpin,
{
    /// On a new stream of bytes, for at most so many requests at once.
    pub fn new(io: S, most: usize) -> Self {
        Self { driver: Driver::new(io, true), answers: FuturesUnordered::new(), requests: Vec::new(), most }
    }

    /// Tells the client to send no more requests; those that come all the same are still answered.
    pub fn take_leave(&mut self) {
        self.driver.shared.borrow_mut().take_leave();
    }

    /// No request is under way.
    pub fn is_idle(&self) -> bool {
        self.answers.is_empty()
    }

    /// Serves. Ready when the connection has ended.
    pub fn poll(&mut self, context: &mut Context<'_>, mut serve: impl FnMut(Request<Received>) -> F) -> Poll<Broken> {
        let mut requests = std::mem::take(&mut self.requests);
        let read = self.driver.poll_read(context, &mut requests);
        for (head, handle) in requests.drain(..) {
            if self.answers.len() >= self.most {
                handle.refuse();
                continue;
            }
            let body = Received::new(Rc::clone(&handle), &head.headers);
            let request = Request::from_parts(head, body);
            self.answers.push(Answering { handle, state: State::Serving(Box::pin(serve(request))) });
        }
        self.requests = requests;
        if let Poll::Ready(why) = read {
            self.driver.shared.borrow_mut().end(why);
            return Poll::Ready(why);
        }
        while let Poll::Ready(Some(())) = Pin::new(&mut self.answers).poll_next(context) {}
        if let Poll::Ready(Err(why)) = self.driver.poll_write(context) {
            self.driver.shared.borrow_mut().end(why);
            return Poll::Ready(why);
        }
        self.driver.shared.borrow_mut().wait_as_task(context);
        Poll::Pending
    }

    /// Ends the connection, having said which requests were not taken.
    pub async fn close(mut self) {
        self.driver.shared.borrow_mut().last_word();
        self.driver.close().await;
    }
}

/// A request that is being answered.
#[derive(Debug)]
struct Answering<F, B> {
    handle: Rc<Handle>,
    state: State<F, B>,
}

#[derive(Debug)]
enum State<F, B> {
    Serving(Pin<Box<F>>),
    Sending(Sending<B>),
}

impl<F, B, E> Future for Answering<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes> + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Serving(served) => {
                    let Poll::Ready(response) = served.as_mut().poll(context) else {
                        // Nobody wants the answer any more: whoever works on it need not.
                        return this.handle.poll_broken(context);
                    };
                    let Ok(response) = response else {
                        this.handle.break_off();
                        return Poll::Ready(());
                    };
                    let (head, body) = response.into_parts();
                    let ends = body.is_end_stream();
                    this.handle.shared.borrow_mut().answer(this.handle.id, head.status, &head.headers, ends);
                    if ends {
                        return Poll::Ready(());
                    }
                    this.state = State::Sending(Sending { handle: Rc::clone(&this.handle), body, hand: None });
                }
                State::Sending(sending) => {
                    ready!(sending.poll(context));
                    return Poll::Ready(());
                }
            }
        }
    }
}
