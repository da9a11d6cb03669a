//! The contract of HTTP filters: two hooks, no way to open a socket. The table of filters is in `filters`.

use std::fmt::Debug;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts as RequestHead;
use http::response::Parts as ResponseHead;
use http::{HeaderMap, HeaderValue};
use rand::rngs::SmallRng;

use crate::facts::ConnFacts;
use crate::failure::{Failure, Refusal};
use crate::metadata::Metadata;
use crate::telemetry::metrics::Decided;

/// A request on its way through the filters.
pub struct Exchange<'a> {
    /// The request's head, to read and change.
    pub head: &'a mut RequestHead,
    /// The host that was asked for.
    pub authority: &'a str,
    /// Who asks, as far as the proxies in between are believed; told only if some filter of the chain wants to know.
    pub client: IpAddr,
    /// The connection it came on.
    pub connection: &'a ConnFacts,
    /// When it came.
    pub now: SystemTime,
    /// Dice.
    pub dice: &'a mut SmallRng,
    /// What filters keep for the answer.
    pub notes: &'a mut Notes,
}

/// What filters keep between request and answer.
#[derive(Debug, Default)]
pub struct Notes {
    /// The `origin` that CORS allowed.
    pub cors_origin: Option<HeaderValue>,
    /// A fault delayed the request (response flag DI).
    pub delayed: bool,
    /// The policy that refused the request.
    pub refusal: Option<Arc<Refusal>>,
    /// What policies decided.
    pub decided: Decided,
    /// What filters tell each other.
    pub metadata: Metadata,
    /// What filters told or changed may lead to another route.
    pub rerouted: bool,
}

/// A local answer.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers to set.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Why, if the answer is a failure.
    pub failure: Option<Failure>,
    /// gRPC status for callers that speak gRPC, in place of the one that the HTTP status maps to.
    pub grpc_status: Option<u32>,
}

impl Reply {
    /// An answer without headers and body that is not a failure.
    pub fn plain(status: u16) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), failure: None, grpc_status: None }
    }

    /// The answer to a failure.
    pub fn failure(failure: Failure) -> Self {
        Self {
            body: Bytes::from_static(failure.body().as_bytes()),
            failure: Some(failure),
            ..Self::plain(failure.status())
        }
    }
}

/// What a filter decided.
pub enum Step {
    /// On to the next.
    Continue,
    /// Answer now.
    Reply(Box<Reply>),
    /// Wait, then go on or answer.
    Wait(Pin<Box<dyn Future<Output = Option<Box<Reply>>>>>),
}

/// An HTTP filter with its configuration.
pub trait HttpFilter: Debug + Send + Sync {
    /// Looks at a request before it is sent on.
    fn on_request(&self, _exchange: &mut Exchange<'_>) -> Step {
        Step::Continue
    }

    /// Whether `Exchange::client` is wanted.
    fn asks_client(&self) -> bool {
        false
    }

    /// Looks at an answer; called in reverse order.
    fn on_response(&self, _head: &mut ResponseHead, _notes: &Notes) {}
}
