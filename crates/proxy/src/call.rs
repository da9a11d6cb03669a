//! Requests of the proxy's own to a cluster: balanced, encrypted and counted as all others, but nobody waits for their bodies to
//! stream.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::request::Parts as RequestHead;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use http_body_util::BodyExt;

use crate::failure::Failure;
use crate::filter::{Addressee, Answer, Outgoing};
use crate::message::Head;
use crate::snapshot::Snapshot;
use crate::upstream::body::{AnswerBody, RequestBody};
use crate::upstream::http1::{Broken, Seen};
use crate::upstream::limits::Limited;
use crate::upstream::outlier::Verdict;
use crate::upstream::pool::{Lease, Sender};
use crate::upstream::{Host, Upstream, Upstreams, Wanted};

/// Silent repetitions on other connections of what was sent on one that closed.
const SILENT: u32 = 4;
/// A larger answer is none.
const LARGEST_ANSWER: usize = 1024 * 1024;

/// Asks, and waits for the whole answer. `destination` is where the connection meant to go that it is about.
///
/// # Errors
/// There is no whole answer in time.
pub async fn call(
    upstreams: &Upstreams,
    snapshot: &Snapshot,
    to: &Addressee,
    destination: SocketAddr,
    asked: &Outgoing,
) -> Result<Answer, Failure> {
    let upstream = upstreams.get(&to.cluster, snapshot).ok_or(Failure::ClusterNotFound)?;
    let answered = ask(&upstream, to, destination, asked);
    if to.timeout.is_zero() {
        return answered.await;
    }
    match tokio::time::timeout(to.timeout, answered).await {
        Ok(answered) => answered,
        Err(_) => {
            upstream.series.timeouts.add(1);
            Err(Failure::UpstreamTimeout)
        }
    }
}

async fn ask(
    upstream: &Rc<Upstream>,
    to: &Addressee,
    destination: SocketAddr,
    asked: &Outgoing,
) -> Result<Answer, Failure> {
    let _permit = upstream.permit(Limited::Requests)?;
    let mut silent = 0;
    loop {
        let host = upstream.pick(destination, &[], 1).await?;
        let _busy = upstream.begin(&host);
        let sent = Sent { upstream, host: &host, version: if to.http2 { Version::HTTP_2 } else { Version::HTTP_11 } };
        let body = if asked.body.is_empty() { RequestBody::Empty } else { RequestBody::Full(Some(asked.body.clone())) };
        let answered = match sent.send(&asked.head, asked.authority.as_ref().unwrap_or(&to.authority), body).await {
            Ok((response, lease)) => whole(response, lease).await,
            // Asking twice does no harm.
            Err(not) if not.reused && (not.unsent || not.failure == Failure::UpstreamClosed) && silent < SILENT => {
                silent += 1;
                continue;
            }
            Err(not) => Err(not.failure),
        };
        let verdict = answered.as_ref().map_or(Verdict::Local, |answer| Verdict::Status(answer.status));
        upstream.report(&host, verdict);
        upstream.count_status(answered.as_ref().map_or_else(|failure| failure.status(), |answer| answer.status));
        upstream.wake_one();
        return answered;
    }
}

/// The whole answer, and the connection for the next.
async fn whole(response: Response<AnswerBody>, lease: Lease) -> Result<Answer, Failure> {
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|broken| broken.0)?;
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
            if bytes.len() > LARGEST_ANSWER {
                return Err(Failure::UpstreamProtocol);
            }
        } else if let Ok(last) = frame.into_trailers() {
            trailers = last;
        }
    }
    lease.give_back();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: Bytes::from(bytes), trailers })
}

/// Why a request did not get its answer.
#[derive(Clone, Copy, Debug)]
pub struct NotSent {
    /// What happened.
    pub failure: Failure,
    /// Nobody has read it.
    pub unsent: bool,
    /// On a connection that had carried requests before.
    pub reused: bool,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// The cluster.
    pub upstream: &'a Rc<Upstream>,
    /// The host.
    pub host: &'a Rc<Host>,
    /// The protocol where the cluster leaves it open.
    pub version: Version,
}

impl Sent<'_> {
    /// Sends a request in the proxy's own name.
    ///
    /// # Errors
    /// No connection, or it ended before the answer began.
    pub async fn send(
        self,
        head: &RequestHead,
        authority: &HeaderValue,
        body: RequestBody,
    ) -> Result<(Response<AnswerBody>, Lease), NotSent> {
        let wanted = Wanted {
            downstream_http2: self.version == Version::HTTP_2,
            alone: false,
            once: true,
            istio_alpn: true,
            host: authority.to_str().unwrap_or(""),
            caller: None,
        };
        let failed = |failure| NotSent { failure, unsent: true, reused: false };
        let mut lease = self.upstream.checkout(self.host, wanted).await.map_err(failed)?;
        let reused = lease.reused;
        let not = |failure, unsent| NotSent { failure, unsent, reused };
        let sender = lease.sender.as_mut().ok_or(failed(Failure::ConnectFailed))?;
        let sent = match sender {
            Sender::One(connection) => match connection.send(head_of(head, authority, self.version), body).await {
                Ok(response) => Ok(response.map(AnswerBody::One)),
                Err(Broken::Protocol) => Err(not(Failure::UpstreamProtocol, false)),
                Err(Broken::Closed { seen: Seen::Unread }) => Err(not(Failure::UpstreamClosed, true)),
                Err(Broken::Closed { .. } | Broken::Body) => Err(not(Failure::UpstreamClosed, false)),
            },
            Sender::Spelled(sender) => match sender.ready().await {
                Ok(()) => match sender.try_send_request(request_http1(head, authority, body)).await {
                    Ok(response) => Ok(response.map(AnswerBody::Spelled)),
                    Err(mut error) => Err(not(Failure::UpstreamClosed, error.take_message().is_some())),
                },
                Err(_) => Err(not(Failure::UpstreamClosed, true)),
            },
            Sender::Two(connection) => match connection.send(request_http2(head, authority, self.host, body)).await {
                Ok(response) => Ok(response.map(AnswerBody::Two)),
                Err(error) => {
                    let reset = error.error.is_reset() && error.error.is_remote();
                    let failure = if reset { Failure::UpstreamReset } else { Failure::UpstreamClosed };
                    let refused = error.error.reason() == Some(h2::Reason::REFUSED_STREAM);
                    Err(not(failure, error.unsent || refused))
                }
            },
            Sender::Mux(connection) => match connection.send(head_of(head, authority, self.version), body).await {
                Ok(response) => Ok(response.map(AnswerBody::Mux)),
                Err(error) => Err(not(Failure::UpstreamClosed, error.unsent)),
            },
        };
        match sent {
            Ok(response) => Ok((response, lease)),
            Err(not) => {
                lease.keep_out();
                Err(not)
            }
        }
    }
}

/// A head, for connections that write it at once.
pub fn head_of<'a>(head: &'a RequestHead, host: &'a HeaderValue, version: Version) -> Head<'a> {
    Head {
        method: &head.method,
        target: head.uri.path_and_query(),
        host,
        version,
        headers: &head.headers,
        upgrade: None,
    }
}

fn copied(head: &RequestHead, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = head.headers.clone();
    // Holds the spelling of HTTP/1 header names.
    *request.extensions_mut() = head.extensions.clone();
    request
}

/// A request with the host among its headers.
pub fn request_http1(head: &RequestHead, host: &HeaderValue, body: RequestBody) -> Request<RequestBody> {
    let mut request = copied(head, body);
    request.headers_mut().insert(HOST, host.clone());
    *request.uri_mut() = match head.method == Method::CONNECT {
        true => host.to_str().ok().and_then(|host| host.parse().ok()).unwrap_or_default(),
        false => Uri::from(target(head)),
    };
    request
}

/// A request with the host in its target.
pub fn request_http2(
    head: &RequestHead,
    authority: &HeaderValue,
    host: &Host,
    body: RequestBody,
) -> Request<RequestBody> {
    let mut request = copied(head, body);
    *request.version_mut() = Version::HTTP_2;
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if host.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = host.pool.authority(authority);
    parts.path_and_query = Some(target(head));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

fn target(head: &RequestHead) -> PathAndQuery {
    head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}
