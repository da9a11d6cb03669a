//! Somebody else is asked about a request before it goes on: as much of its body is read as is asked about, and the answer is
//! waited for. What is asked and what the answer means is the filter's (`filter::Question`).

use std::net::IpAddr;
use std::rc::Rc;
use std::time::SystemTime;

use bytes::Bytes;
use http::Method;
use http::request::Parts as RequestHead;
use hyper::body::Body;

use super::exchange::HttpConnection;
use crate::call::call;
use crate::failure::Failure;
use crate::filter::{Beginning, BodyLimits, Exchange, Notes, Question, Reply};
use crate::upstream::body::ClientBody;

/// A request that somebody is asked about.
pub struct About<'a> {
    /// The connection it came on.
    pub connection: &'a Rc<HttpConnection>,
    /// Its head.
    pub head: &'a mut RequestHead,
    /// Its body.
    pub incoming: &'a mut ClientBody,
    /// The host that was asked for.
    pub authority: &'a str,
    /// Who asks, as far as the proxies in between are believed.
    pub client: IpAddr,
    /// When it came.
    pub now: SystemTime,
    /// What filters keep.
    pub notes: &'a mut Notes,
}

impl About<'_> {
    /// Decides something, without waiting.
    fn decide<T>(&mut self, decide: impl FnOnce(&mut Exchange<'_>) -> T) -> T {
        let mut dice = self.connection.worker.upstreams.env().dice.borrow_mut();
        decide(&mut Exchange {
            head: self.head,
            authority: self.authority,
            client: self.client,
            connection: &self.connection.facts,
            now: self.now,
            dice: &mut dice,
            notes: self.notes,
        })
    }

    /// The beginning of the body, if there is one and the client sends it: none is waited for of a tunnel.
    async fn beginning(&mut self, limits: BodyLimits) -> Result<Option<Beginning>, Failure> {
        if self.incoming.is_end_stream() || self.head.method == Method::CONNECT {
            return Ok(None);
        }
        // One more than is sent tells whether it is all.
        let wanted = if limits.partial { limits.most } else { limits.most + 1 };
        let incoming = std::mem::replace(self.incoming, ClientBody::Gone);
        let (again, bytes, ended) = incoming.begin(wanted, self.connection.chain.stream_idle_timeout).await?;
        *self.incoming = again;
        if bytes.len() > limits.most && !limits.partial {
            return Err(Failure::BodyTooLarge);
        }
        let partial = !ended || bytes.len() > limits.most;
        let read = bytes.len();
        let bytes: Bytes = bytes.slice(..read.min(limits.most));
        Ok(Some(Beginning { bytes, read, partial }))
    }
}

/// Asks: a reply, or the request goes on as it is now.
pub async fn ask(question: &dyn Question, mut about: About<'_>) -> Option<Box<Reply>> {
    let body = match question.body() {
        None => None,
        Some(limits) => match about.beginning(limits).await {
            Ok(body) => body,
            Err(Failure::BodyTooLarge) => return Some(about.decide(|exchange| question.too_large(exchange))),
            Err(failure) => return Some(Box::new(Reply::failure(failure))),
        },
    };
    let asked = about.decide(|exchange| question.ask(exchange, body.as_ref()));
    let worker = &about.connection.worker;
    let snapshot = worker.snapshot();
    let destination = about.connection.facts.destination;
    let answer = call(&worker.upstreams, &snapshot, question.addressee(), destination, &asked).await;
    about.decide(|exchange| question.take(answer, exchange))
}
