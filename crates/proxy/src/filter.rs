//! The contract of HTTP filters: two hooks, no way to open a socket. The table of filters is in `filters`.

use std::fmt::Debug;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts as RequestHead;
use http::response::Parts as ResponseHead;
use http::{HeaderMap, HeaderName, HeaderValue};
use rand::rngs::SmallRng;

use crate::facts::ConnFacts;
use crate::failure::{Failure, Refusal};
use crate::metadata::Metadata;
use crate::telemetry::metrics::{Asked, Decided};

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
    /// Another host for the request.
    pub authority: Option<HeaderValue>,
    /// What is done to the answer's headers, for the one who was asked about the request.
    pub answer_edits: Vec<HeaderChange>,
}

/// A change of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    /// Which.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
    /// What is done.
    pub how: How,
}

/// What is done to a header (Envoy `HeaderAppendAction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It takes the place of all of its name.
    Set,
    /// It stands beside those of its name.
    Add,
    /// Only if there is none.
    AddIfAbsent,
    /// Only if there is one, in its place.
    SetIfPresent,
    /// Only if there is one: it is joined to it.
    AppendIfPresent,
}

impl HeaderChange {
    /// Does it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let is_there = headers.contains_key(&self.name);
        match self.how {
            How::AddIfAbsent if is_there => {}
            How::SetIfPresent | How::AppendIfPresent if !is_there => {}
            How::Set | How::SetIfPresent => {
                headers.insert(self.name.clone(), self.value.clone());
            }
            How::Add | How::AddIfAbsent => {
                headers.append(self.name.clone(), self.value.clone());
            }
            How::AppendIfPresent => {
                let mut joined: Vec<u8> = Vec::new();
                for value in headers.get_all(&self.name) {
                    joined.extend_from_slice(value.as_bytes());
                    joined.push(b',');
                }
                joined.extend_from_slice(self.value.as_bytes());
                if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                    headers.insert(self.name.clone(), joined);
                }
            }
        }
    }
}

/// Whom a question goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressee {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The host that is asked for.
    pub authority: HeaderValue,
    /// It is asked in HTTP/2.
    pub http2: bool,
    /// Time for the whole answer; zero: no bound.
    pub timeout: Duration,
}

/// How much of a request's body somebody else is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Bytes at most.
    pub most: usize,
    /// Of a longer one the beginning is enough.
    pub partial: bool,
}

/// What was read of a request's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// Its bytes.
    pub bytes: Bytes,
    /// How many have come.
    pub read: usize,
    /// There is more.
    pub partial: bool,
}

/// A request of our own.
#[derive(Debug)]
pub struct Outgoing {
    /// Method, path and headers.
    pub head: RequestHead,
    /// The host, in place of the addressee's.
    pub authority: Option<HeaderValue>,
    /// Body.
    pub body: Bytes,
}

/// What was answered to it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// What came behind the body.
    pub trailers: HeaderMap,
}

/// A question about a request to somebody else, who may change or refuse it. What is asked and what an answer means is decided
/// here, without any socket.
pub trait Question: Debug + Send + Sync {
    /// To whom.
    fn addressee(&self) -> &Addressee;

    /// How much of the body is asked about; none: nothing.
    fn body(&self) -> Option<BodyLimits>;

    /// The question itself.
    fn ask(&self, exchange: &mut Exchange<'_>, body: Option<&Beginning>) -> Outgoing;

    /// What the answer means: changes, and perhaps a reply.
    fn take(&self, answer: Result<Answer, Failure>, exchange: &mut Exchange<'_>) -> Option<Box<Reply>>;

    /// What is said of a body that is larger than what is asked about.
    fn too_large(&self, exchange: &mut Exchange<'_>) -> Box<Reply>;
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

/// The same about a connection.
pub trait ConnectionQuestion: Debug + Send + Sync {
    /// Whether it is to be asked, by what filters in front have told.
    fn is_enabled(&self, metadata: &Metadata) -> bool;

    /// To whom.
    fn addressee(&self) -> &Addressee;

    /// The question itself.
    fn ask(&self, connection: &ConnFacts) -> Outgoing;

    /// Why the connection may not be, if it may not.
    fn take(&self, answer: Result<Answer, Failure>, metadata: &mut Metadata, asked: &mut Asked) -> Option<Refusal>;
}

/// What a filter decided.
pub enum Step {
    /// On to the next.
    Continue,
    /// Answer now.
    Reply(Box<Reply>),
    /// Wait, then go on or answer.
    Wait(Pin<Box<dyn Future<Output = Option<Box<Reply>>>>>),
    /// Ask somebody else first.
    Ask(Arc<dyn Question>),
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
