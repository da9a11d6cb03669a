//! Sending a request: pick a host, get a connection, send, judge, and perhaps try again.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use http::request::Parts as RequestHead;
use http::{HeaderValue, Method, Request, Response, Version};
use tokio::time::Instant;

use super::names;
use super::story::Story;
use crate::call::{head_of, request_http1, request_http2};
use crate::facts::Caller;
use crate::failure::Failure;
use crate::message::Head;
use crate::mux;
use crate::snapshot::route::action::{Forward, HostRewrite};
use crate::snapshot::route::retry::{Outcome, RetryOn, RetryPlan};
use crate::upstream::body::{AnswerBody, RequestBody, Source};
use crate::upstream::http1::{Broken, Connection, Seen};
use crate::upstream::http2::NotSent;
use crate::upstream::limits::Limited;
use crate::upstream::outlier::Verdict;
use crate::upstream::pool::{Lease, Sender};
use crate::upstream::{Host, Upstream, Wanted};
use crate::worker::Worker;

/// What is sent.
pub struct Outgoing<'a> {
    /// The head, after all changes.
    pub head: RequestHead,
    /// The host to send.
    pub authority: HeaderValue,
    /// The host is replaced by the endpoint's.
    pub host_of_endpoint: bool,
    /// The client's body; `None`: none.
    pub source: Option<Rc<Source>>,
    /// The client's protocol.
    pub version: Version,
    /// The connection leads to one of its own and becomes a tunnel.
    pub upgrade: Option<HeaderValue>,
    /// Headers may steer the retries.
    pub steered: bool,
    /// The route.
    pub forward: &'a Forward,
    /// Istio's protocol names are offered.
    pub istio_alpn: bool,
    /// `x-envoy-attempt-count` is sent.
    pub count_attempts: bool,
    /// Where the client's connection meant to go.
    pub destination: std::net::SocketAddr,
    /// In whose name the upstream is called.
    pub caller: Option<Caller>,
    /// The whole answer must be there.
    pub deadline: Option<Instant>,
    /// What passing the deadline means.
    pub deadline_failure: Failure,
    /// Time without an answer; zero: no bound.
    pub idle: Duration,
    /// Time for one try; zero: none.
    pub per_try: Duration,
}

/// An answer with the connection it comes on.
pub struct Answered {
    /// The answer.
    pub response: Response<AnswerBody>,
    /// The connection.
    pub lease: Lease,
}

struct Failed {
    failure: Failure,
    /// Not processed: the endpoint says so.
    refused: bool,
    /// Not a byte was sent, or none was read.
    unsent: bool,
    /// On a connection that had carried requests before.
    reused: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, refused: false, unsent: failure.is_before_sending(), reused: false }
    }
}

/// Silent repetitions on fresh connections of what cannot have been processed.
const SILENT: u32 = 4;

/// Sends, and repeats where the plan wants it and the request can be repeated. The story learns of host, tries and flags.
///
/// # Errors
/// The last failure.
pub async fn send(mut out: Outgoing<'_>, upstream: &Rc<Upstream>, story: &mut Story) -> Result<Answered, Failure> {
    let plan = plan_of(&mut out);
    let plan = plan.as_ref().filter(|_| out.upgrade.is_none());
    let _request = upstream.permit(Limited::Requests)?;
    let mut tried: Vec<Rc<Host>> = Vec::new();
    let (mut retries, mut silent) = (0, 0);
    let mut retry_permit = None;
    loop {
        let avoid = plan.is_some_and(|plan| plan.avoid_previous);
        let attempts = plan.filter(|plan| plan.avoid_previous).map_or(1, |plan| plan.host_attempts + 1);
        let picked = upstream.pick(out.destination, if avoid { &tried } else { &[] }, attempts).await;
        let mut result = match picked {
            Err(failure) => Err(Failed::from(failure)),
            Ok(host) => {
                story.attempts += 1;
                story.host = Some(Rc::clone(&host));
                story.busy = None;
                story.busy = Some(upstream.begin(&host));
                let result = try_once(&mut out, upstream, &host, story).await;
                judge(upstream, &host, &result, story.grpc);
                result
            }
        };
        drop(retry_permit.take());
        let mut told = None;
        let (outcome, failed) = match &mut result {
            Ok(answered) => {
                told = told_outcome(&mut answered.response);
                // Envoy's retry policies look at a gRPC status whatever the request is, its outlier detection does not.
                (outcome_of(&answered.response, story.grpc || plan.is_some()), None)
            }
            Err(failed) => (
                Outcome::Failed { failure: failed.failure, refused: failed.refused, unsent: failed.unsent },
                Some(&*failed),
            ),
        };
        let client_broke = out.source.as_ref().is_some_and(|source| source.broken());
        if client_broke {
            return Err(Failure::ClientGone);
        }
        let replayable = out.source.as_ref().is_none_or(|source| source.replayable());
        let in_time = out.deadline.is_none_or(|deadline| Instant::now() < deadline);
        // A connection that the endpoint had closed: nobody has seen the request, or it is harmless to send it again.
        let stale = failed.is_some_and(|failed| {
            matches!(failed.failure, Failure::UpstreamClosed | Failure::UpstreamReset)
                && (failed.unsent || (failed.reused && (failed.refused || is_idempotent(&out.head.method))))
        });
        if stale && replayable && in_time && silent < SILENT {
            silent += 1;
            tried.extend(story.host.clone());
            continue;
        }
        let wants = plan.is_some_and(|plan| {
            let told = told.unwrap_or(outcome);
            plan.wants(outcome) || plan.wants(told) || is_lost(plan, told, &out.head.method)
        });
        let left = plan.is_some_and(|plan| retries < plan.num_retries);
        if wants && left && replayable && in_time {
            match upstream.permit(Limited::Retries) {
                Ok(permit) => {
                    retries += 1;
                    retry_permit = Some(permit);
                    tried.extend(story.host.clone());
                    upstream.series.retries.add(1);
                    let pause = plan.map_or(Duration::ZERO, |plan| {
                        plan.pause(retries, &mut story.worker.upstreams.env().dice.borrow_mut())
                    });
                    // What is left of the answer goes with its connection.
                    drop(result);
                    tokio::time::sleep(pause).await;
                    continue;
                }
                Err(_) => story.flags.push("UO"),
            }
        } else if wants && !left && plan.is_some_and(|plan| plan.num_retries > 0) {
            story.flags.push("URX");
        }
        // What the client gets counts, not what was tried again; a gRPC status is a matter of its own (Envoy router).
        match &result {
            Ok(answered) => upstream.count_status(answered.response.status().as_u16()),
            Err(failed) => upstream.count_status(failed.failure.status()),
        }
        return result.map_err(|failed| failed.failure);
    }
}

/// The route's plan, with what the request's own headers ask for.
fn plan_of(out: &mut Outgoing<'_>) -> Option<RetryPlan> {
    let mut plan = out.forward.retry.clone();
    let steering: &[_] = if out.steered { &[&names::RETRY_ON, &names::RETRY_GRPC_ON] } else { &[] };
    for name in steering {
        let Some(value) = out.head.headers.remove(*name) else { continue };
        let (on, statuses, _unknown) = RetryOn::parse(value.to_str().unwrap_or(""));
        let plan = plan.get_or_insert_with(|| RetryPlan {
            on,
            num_retries: 1,
            per_try_timeout: Duration::ZERO,
            avoid_previous: false,
            host_attempts: 1,
            statuses: Vec::new(),
            back_off: (Duration::from_millis(25), Duration::from_millis(250)),
        });
        plan.on = on.or(plan.on);
        plan.statuses.extend(statuses);
    }
    if out.steered
        && let (Some(value), Some(plan)) = (out.head.headers.remove(&names::MAX_RETRIES), &mut plan)
        && let Some(retries) = value.to_str().ok().and_then(|text| text.parse().ok())
    {
        plan.num_retries = retries;
    }
    if let (Some(plan), true) = (&plan, out.per_try.is_zero()) {
        out.per_try = plan.per_try_timeout;
    }
    plan
}

fn is_idempotent(method: &Method) -> bool {
    method.is_idempotent() && *method != Method::CONNECT
}

/// The endpoint went away with the request, and asking again does no harm: a plan that hides endpoints that cannot be reached
/// hides this one too. Envoy leaves it to `reset`, which would repeat any method.
fn is_lost(plan: &RetryPlan, outcome: Outcome, method: &Method) -> bool {
    let lost = matches!(outcome, Outcome::Failed { failure: Failure::UpstreamClosed | Failure::UpstreamReset, .. });
    lost && plan.on.connect_failure && is_idempotent(method)
}

/// What came of a try, where the proxy in front of the application says that it is not the application that answers. Its word
/// ends here.
fn told_outcome(response: &mut Response<AnswerBody>) -> Option<Outcome> {
    let told = response.headers_mut().remove(&names::MESH_APPLICATION)?;
    let failure = Failure::told_of_application(told.to_str().ok()?)?;
    Some(Outcome::Failed { failure, refused: false, unsent: failure.is_before_sending() })
}

fn outcome_of(response: &Response<AnswerBody>, grpc: bool) -> Outcome {
    let grpc_status = grpc
        .then(|| response.headers().get(&names::GRPC_STATUS))
        .flatten()
        .and_then(|status| status.to_str().ok())
        .and_then(|status| status.parse().ok());
    Outcome::Answered { status: response.status().as_u16(), grpc_status }
}

fn judge(upstream: &Upstream, host: &Host, result: &Result<Answered, Failed>, grpc: bool) {
    let verdict = match result {
        Ok(answered) => match outcome_of(&answered.response, grpc) {
            Outcome::Answered { grpc_status: Some(status), .. } if status != 0 => Verdict::Status(grpc_as_http(status)),
            Outcome::Answered { status, .. } => Verdict::Status(status),
            Outcome::Failed { .. } => Verdict::Local,
        },
        Err(failed) => match failed.failure {
            Failure::Overflow | Failure::NoCertificate | Failure::ClientGone => return,
            Failure::UpstreamTimeout | Failure::PerTryTimeout => {
                upstream.series.timeouts.add(1);
                Verdict::Status(504)
            }
            _ if failed.reused && failed.unsent => return,
            _ => Verdict::Local,
        },
    };
    upstream.report(host, verdict);
}

/// Envoy's mapping for outlier detection.
fn grpc_as_http(status: u32) -> u16 {
    match status {
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Waits for the work until the earliest of the bounds; no timer where there is none.
async fn within<T>(out: &Outgoing<'_>, work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let now = Instant::now();
    let per_try = (!out.per_try.is_zero()).then(|| (now + out.per_try, Failure::PerTryTimeout));
    let idle = (!out.idle.is_zero()).then(|| (now + out.idle, Failure::StreamIdle));
    let deadline = out.deadline.map(|deadline| (deadline, out.deadline_failure));
    let Some((bound, failure)) = [per_try, idle, deadline].into_iter().flatten().min_by_key(|(bound, _)| *bound) else {
        return work.await;
    };
    tokio::time::timeout_at(bound, work)
        .await
        .unwrap_or_else(|_| Err(Failed { failure, refused: false, unsent: false, reused: false }))
}

async fn try_once(
    out: &mut Outgoing<'_>,
    upstream: &Rc<Upstream>,
    host: &Rc<Host>,
    story: &mut Story,
) -> Result<Answered, Failed> {
    let attempts = story.attempts;
    if out.count_attempts {
        out.head.headers.insert(names::ATTEMPT_COUNT.clone(), names::number(attempts.into()));
    }
    let out = &*out;
    let name = out.authority.to_str().unwrap_or("");
    let wanted = Wanted {
        downstream_http2: out.version == Version::HTTP_2,
        alone: out.upgrade.is_some(),
        once: !is_idempotent(&out.head.method),
        istio_alpn: out.istio_alpn,
        host: name,
        caller: out.caller,
    };
    story.link = None;
    within(out, async {
        let mut lease = upstream.checkout(host, wanted).await?;
        // Known from here on, also if the client goes away meanwhile.
        story.link = Some(Rc::clone(&lease.link));
        let body = match &out.source {
            None => RequestBody::Empty,
            Some(source) => source.tap().ok_or(Failed::from(Failure::ClientGone))?,
        };
        let reused = lease.reused;
        let endpoint_host = endpoint_host(out, host);
        let authority = endpoint_host.as_ref().unwrap_or(&out.authority);
        let Some(sender) = &mut lease.sender else { return Err(Failed::from(Failure::ConnectFailed)) };
        let failed = match sender {
            Sender::One(connection) => match connection.send(out.head_to(authority), body).await {
                Ok(response) => return Ok(Answered { response: response.map(AnswerBody::One), lease }),
                Err(error) => {
                    let doubted = wanted.once && error == Broken::Closed { seen: Seen::Closed };
                    let ends = doubted && ends_unread(connection, &story.worker, upstream, host).await;
                    classify_http1(error, reused, ends)
                }
            },
            Sender::Spelled(sender) => match sender.ready().await {
                Ok(()) => match sender.try_send_request(out.request_to(authority, body)).await {
                    Ok(response) => return Ok(Answered { response: response.map(AnswerBody::Spelled), lease }),
                    Err(mut error) => {
                        let unsent = error.take_message().is_some();
                        classify(error.error(), unsent, reused)
                    }
                },
                Err(_) => Failed { failure: Failure::UpstreamClosed, refused: false, unsent: true, reused },
            },
            Sender::Two(connection) => match connection.send(request_http2(&out.head, authority, host, body)).await {
                Ok(response) => return Ok(Answered { response: response.map(AnswerBody::Two), lease }),
                Err(error) => classify_http2(&error, reused),
            },
            Sender::Mux(connection) => match connection.send(out.head_to(authority), body).await {
                Ok(response) => return Ok(Answered { response: response.map(AnswerBody::Mux), lease }),
                Err(error) => classify_mux(error, reused),
            },
        };
        lease.keep_out();
        Err(failed)
    })
    .await
}

fn classify(error: &hyper::Error, unsent: bool, reused: bool) -> Failed {
    let failure = if error.is_parse() { Failure::UpstreamProtocol } else { Failure::UpstreamClosed };
    Failed { failure, refused: false, unsent, reused }
}

/// When it is looked again: the kubelet tells the proxy of the end some time after the application.
const ENDING: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(60), Duration::from_millis(120), Duration::from_millis(300)];
/// So often without a reset: it follows the end of a connection at once.
const RESET_FOLLOWS: usize = 2;

/// Whether the application at a local endpoint has closed a connection and left the request on it unread, since it ends: the
/// connection was reset, and it takes no others any more, or this pod has been told to end.
async fn ends_unread(connection: &Connection, worker: &Worker, upstream: &Upstream, host: &Host) -> bool {
    let mut reset = false;
    for (look, pause) in ENDING.into_iter().enumerate() {
        reset |= connection.was_reset();
        if !reset && look == RESET_FOLLOWS {
            return false;
        }
        if reset && (worker.leaving.get() || upstream.is_refused_by(host).await) {
            return true;
        }
        tokio::time::sleep(pause).await;
    }
    reset && worker.leaving.get()
}

/// `ends`: the application does, and has not read the request.
fn classify_http1(error: Broken, reused: bool, ends: bool) -> Failed {
    let (failure, unsent) = match error {
        Broken::Closed { seen: Seen::Unread } => (Failure::UpstreamClosed, true),
        Broken::Closed { seen: Seen::Closed } => (Failure::UpstreamClosed, ends),
        Broken::Closed { seen: Seen::Unknown } => (Failure::UpstreamClosed, false),
        Broken::Protocol => (Failure::UpstreamProtocol, false),
        Broken::Body => (Failure::ClientGone, false),
    };
    Failed { failure, refused: false, unsent, reused }
}

fn classify_http2(NotSent { error, unsent }: &NotSent, reused: bool) -> Failed {
    let reason = error.reason();
    // A graceful GOAWAY fails only the streams that were not processed (RFC 9113 section 6.8).
    let left_out = error.is_go_away() && error.is_remote() && reason == Some(h2::Reason::NO_ERROR);
    let refused = reason == Some(h2::Reason::REFUSED_STREAM) || left_out;
    let failure = if error.is_reset() && error.is_remote() {
        Failure::UpstreamReset
    } else if reason == Some(h2::Reason::PROTOCOL_ERROR) {
        Failure::UpstreamProtocol
    } else if error.get_io().is_some_and(is_alert) {
        Failure::CertificateRefused
    } else {
        Failure::UpstreamClosed
    };
    Failed { failure, refused, unsent: *unsent, reused }
}

fn classify_mux(mux::client::NotSent { why, unsent }: mux::client::NotSent, reused: bool) -> Failed {
    let failure = match why {
        mux::Broken::Closed | mux::Broken::Refused => Failure::UpstreamClosed,
        mux::Broken::Alert => Failure::CertificateRefused,
        mux::Broken::Protocol => Failure::UpstreamProtocol,
        mux::Broken::Reset => Failure::UpstreamReset,
    };
    Failed { failure, refused: why == mux::Broken::Refused, unsent, reused }
}

/// In TLS 1.3 a client is done before the server has looked at its certificate: a refusal comes as an alert in the place of the
/// first answer. `h2` keeps only the words of what ended a connection.
fn is_alert(error: &std::io::Error) -> bool {
    error.to_string().starts_with("received fatal alert: ")
}

/// The endpoint's own host, where the route wants it.
fn endpoint_host(out: &Outgoing<'_>, host: &Host) -> Option<HeaderValue> {
    let wanted = out.host_of_endpoint && !host.endpoint.hostname.is_empty();
    wanted.then(|| HeaderValue::from_str(&host.endpoint.hostname).ok()).flatten()
}

impl Outgoing<'_> {
    /// The head for connections that write it at once.
    fn head_to<'a>(&'a self, host: &'a HeaderValue) -> Head<'a> {
        Head {
            upgrade: self.upgrade.as_ref().filter(|_| self.head.method != Method::CONNECT),
            ..head_of(&self.head, host, self.version)
        }
    }

    /// The request for hyper's HTTP/1.
    fn request_to(&self, host: &HeaderValue, body: RequestBody) -> Request<RequestBody> {
        let mut request = request_http1(&self.head, host, body);
        if let Some(upgrade) = self.upgrade.as_ref().filter(|_| self.head.method != Method::CONNECT) {
            request.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(http::header::UPGRADE, upgrade.clone());
        }
        request
    }
}

/// The host that the request is sent with.
pub fn rewritten_host(rewrite: &HostRewrite, head: &RequestHead) -> Option<HeaderValue> {
    match rewrite {
        HostRewrite::None | HostRewrite::Endpoint => None,
        HostRewrite::Literal(host) => Some(host.clone()),
        HostRewrite::Header(name) => head.headers.get(name).cloned(),
    }
}
