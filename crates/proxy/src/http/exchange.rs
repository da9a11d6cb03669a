//! The story of a request, top to bottom.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use http::header::HOST;
use http::request::Parts as RequestHead;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Body;

use super::body::ResponseBody;
use super::forwarded::Rare;
use super::path::{Canonical, canonical};
use super::story::Story;
use super::{attempt, check, forwarded, mirror, names, reply, upgrade};
use crate::facts::{ConnFacts, Direction};
use crate::failure::Failure;
use crate::filter::{Exchange, Notes, Reply, Step};
use crate::snapshot::Snapshot;
use crate::snapshot::chain::{HttpChain, RouteSource, ServerHeader, StripPort};
use crate::snapshot::route::action::{Action, Forward, HostRewrite};
use crate::snapshot::route::edit::HeaderEdits;
use crate::snapshot::route::matcher::is_grpc;
use crate::snapshot::route::{Decision, RouteTable, Target};
use crate::telemetry::format::Facts;
use crate::telemetry::peer::Peer;
use crate::upstream::body::{AnswerBody, ClientBody, Source};
use crate::worker::{self, Watch, Worker};

/// One client connection that speaks HTTP.
#[derive(Debug)]
pub struct HttpConnection {
    /// The worker.
    pub worker: Rc<Worker>,
    /// What is known of it.
    pub facts: Rc<ConnFacts>,
    /// Its chain.
    pub chain: Arc<HttpChain>,
    /// For the sweep.
    pub watch: Rc<Watch>,
    /// What is said of the client's certificate, once it was needed.
    pub certificate: OnceCell<HeaderValue>,
    /// The host that was asked for last: most often it is asked for again.
    pub authority: RefCell<HeaderValue>,
}

/// Larger heads are refused (Envoy `max_request_headers_kb`, by default 60).
const LARGEST_HEAD: usize = 60 * 1024;

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("nobody is left to answer")]
pub struct Hangup;

/// Serves one request.
///
/// # Errors
/// Only where no answer can be given.
pub async fn serve(
    connection: Rc<HttpConnection>,
    request: Request<ClientBody>,
) -> Result<Response<ResponseBody>, Hangup> {
    let watch = &connection.watch;
    watch.head_since.set(None);
    watch.beginning.store(false, Ordering::Relaxed);
    watch.active.set(watch.active.get() + 1);
    watch.requests.set(watch.requests.get() + 1);
    if connection.chain.max_requests_per_connection > 0
        && watch.requests.get() >= connection.chain.max_requests_per_connection
    {
        // Graceful: this request is still answered.
        watch.ask(worker::Ask::Leave);
    }
    if connection.worker.leaving.get() {
        watch.ask(worker::Ask::Leave);
    }
    let is_http1 = matches!(request.body(), ClientBody::Http(_)) && request.version() < Version::HTTP_2;
    let mut response = answer(&connection, request).await;
    response.body_mut().read_ahead().await;
    // As late as can be: after this answer the client may send again at once.
    if is_http1 && connection.watch.leaves.get() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn answer(connection: &Rc<HttpConnection>, mut request: Request<ClientBody>) -> Response<ResponseBody> {
    let chain = &connection.chain;
    let rare = Rare::of(request.headers());
    let (version, mut early) = (request.version(), None);
    let switch = (rare.upgrade || request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
    let (mut head, mut incoming) = request.into_parts();
    let authority = match take_authority(&mut head, version, rare, &connection.authority) {
        Ok(authority) => strip_port(authority, chain.strip_port, connection.facts.destination.port()),
        Err(failure) => {
            early = Some(failure);
            HeaderValue::from_static("")
        }
    };
    if rare.size > LARGEST_HEAD {
        early = Some(Failure::HeadersTooLarge);
    }
    let mut story = begin(connection, &head, &authority, version);
    if let Some(failure) = early {
        connection.worker.shard.process.bad_requests.add(1);
        return reply::respond(Reply::failure(failure), story);
    }
    let tls = connection.facts.tls;
    match canonical(head.uri.path(), chain) {
        Canonical::Same => {}
        Canonical::Changed(path) => {
            let path = with_query(path, head.uri.query());
            set_path(&mut head, &path);
        }
        Canonical::Refused => return reply::respond(Reply::failure(Failure::AmbiguousPath), story),
        Canonical::Redirect(path) => {
            let mut redirect = Reply::plain(307);
            if let Ok(location) = HeaderValue::try_from(with_query(path, head.uri.query())) {
                redirect.headers.insert(http::header::LOCATION, location);
            }
            return reply::respond(redirect, story);
        }
    }
    let mut upgrade = forwarded::strip_hop_by_hop(&mut head.headers, rare);
    if head.method == Method::CONNECT {
        upgrade = Some(HeaderValue::from_static("connect"));
    }
    if rare.peer_metadata {
        take_peer(&mut head, connection, &mut story);
    }
    forwarded::describe_client(
        &mut head.headers,
        &connection.facts,
        chain,
        &connection.certificate,
        &mut connection.worker.upstreams.env().dice.borrow_mut(),
    );
    story.request_id = head.headers.get(&names::REQUEST_ID).cloned();
    if !chain.access_logs.is_empty() {
        story.client = forwarded::client(&head.headers, chain);
    }
    keep_headers(&mut story, &head);

    let snapshot = connection.worker.snapshot();
    let mut notes = Notes::default();
    // Hosts that are no visible characters have been refused.
    let host = authority.to_str().unwrap_or("");
    let table = table_of(chain, &snapshot);
    let Some((table, virtual_host)) = table.and_then(|table| Some((table, table.host_of(host)?))) else {
        return unrouted(connection, &mut head, incoming, host, &mut notes, story).await;
    };
    if virtual_host.require_tls && !came_over_tls(&head) {
        return reply::respond(redirect_to_tls(host, &head), story);
    }
    let chosen = |head: &RequestHead, notes: &Notes| {
        let mut dice = connection.worker.upstreams.env().dice.borrow_mut();
        let decision = table.decide(virtual_host, head, host, tls, &notes.metadata, &mut dice)?;
        let target = match &decision.route.action {
            Action::Forward(forward) => forward.target(head, &mut dice),
            _ => None,
        };
        Some((decision, target))
    };
    let mut choice = chosen(&head, &notes);
    let route = choice.as_ref().map(|(decision, target)| (decision, target.as_ref().and_then(|one| one.weighted)));
    let replied = run_filters(connection, &mut head, &mut incoming, host, story.wall, &mut notes, route).await;
    note_policies(connection, &mut story, &mut notes);
    if notes.rerouted && replied.is_none() {
        choice = chosen(&head, &notes);
    }
    let Some((decision, target)) = choice else {
        // The host is known: whoever wrote its routes has none for this path.
        story.object = virtual_host.routes.iter().find_map(|route| route.object.clone());
        let reply = replied.map_or_else(|| Reply::failure(Failure::RouteNotFound), |reply| *reply);
        return reply::respond(reply, story);
    };
    story.route = Some(Arc::clone(&decision.route.name));
    story.object.clone_from(&decision.route.object);
    let weighted = target.as_ref().and_then(|target| target.weighted);
    let levels = Levels { decision, weighted: weighted.map(|weighted| &weighted.edits) };
    if let Some(reply) = replied {
        // Where it would have gone.
        let upstream = target.as_ref().and_then(|target| connection.worker.upstreams.get(&target.cluster, &snapshot));
        story.cluster = upstream.map(|upstream| Arc::clone(&upstream.settings));
        if notes.delayed {
            story.flags.push("DI");
        }
        let mut response = reply::respond(*reply, story);
        finish_response(connection, &levels, &notes, &mut response, None);
        return response;
    }
    if notes.delayed {
        story.flags.push("DI");
    }
    let mut response = match &decision.route.action {
        Action::Direct { status, body } => reply::respond(Reply { body: body.clone(), ..Reply::plain(*status) }, story),
        Action::Redirect(redirect) => {
            let mut reply = Reply::plain(redirect.status);
            if let Ok(location) = HeaderValue::try_from(redirect.location(tls, host, head.uri.path(), head.uri.query()))
            {
                reply.headers.insert(http::header::LOCATION, location);
            }
            reply::respond(reply, story)
        }
        Action::Forward(forward) => {
            let ask = Ask {
                connection,
                snapshot: &snapshot,
                levels: &levels,
                forward,
                target,
                version,
                upgrade,
                switch,
                rare,
            };
            let body = (!incoming.is_end_stream() && head.method != Method::CONNECT).then_some(incoming);
            let authority = notes.authority.take().unwrap_or(authority);
            return forward_request(ask, head, body, authority, story, &notes).await;
        }
    };
    finish_response(connection, &levels, &notes, &mut response, None);
    response
}

/// The answer to a request without a route, unless a filter has another one: who may not ask is not told what there is.
async fn unrouted(
    connection: &Rc<HttpConnection>,
    head: &mut RequestHead,
    mut incoming: ClientBody,
    host: &str,
    notes: &mut Notes,
    mut story: Box<Story>,
) -> Response<ResponseBody> {
    let replied = run_filters(connection, head, &mut incoming, host, story.wall, notes, None).await;
    note_policies(connection, &mut story, notes);
    reply::respond(replied.map_or_else(|| Reply::failure(Failure::RouteNotFound), |reply| *reply), story)
}

/// Writes down what policies decided.
fn note_policies(connection: &HttpConnection, story: &mut Story, notes: &mut Notes) {
    story.refusal = notes.refusal.take();
    connection.worker.shard.process.http_policies.add(notes.decided);
}

/// Whether the client, or the trusted proxy before us that it spoke to, used TLS: what `x-forwarded-proto` says is settled by
/// now.
fn came_over_tls(head: &RequestHead) -> bool {
    head.headers.get(&names::FORWARDED_PROTO).is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// The same address over HTTPS (Envoy `VirtualHost.require_tls`). The port of plain HTTP would lead nowhere.
fn redirect_to_tls(host: &str, head: &RequestHead) -> Reply {
    let mut redirect = Reply::plain(301);
    let location = format!("https://{}{}", host.strip_suffix(":80").unwrap_or(host), head.uri);
    if let Ok(location) = HeaderValue::try_from(location) {
        redirect.headers.insert(http::header::LOCATION, location);
    }
    redirect
}

/// Everything a forwarded request needs besides its head.
struct Ask<'a> {
    connection: &'a Rc<HttpConnection>,
    snapshot: &'a Snapshot,
    levels: &'a Levels<'a>,
    forward: &'a Forward,
    target: Option<Target<'a>>,
    version: Version,
    upgrade: Option<HeaderValue>,
    switch: Option<hyper::upgrade::OnUpgrade>,
    rare: Rare,
}

async fn forward_request(
    ask: Ask<'_>,
    mut head: RequestHead,
    incoming: Option<ClientBody>,
    authority: HeaderValue,
    mut story: Box<Story>,
    notes: &Notes,
) -> Response<ResponseBody> {
    let Ask { connection, snapshot, levels, forward, target, version, upgrade, switch, rare } = ask;
    let worker = &connection.worker;
    let chain = &connection.chain;
    let ours = is_ours(connection, &story);
    let local = |failure: Failure, story: Box<Story>| {
        let mut response = reply::respond(Reply::failure(failure), story);
        finish_response(connection, levels, notes, &mut response, None);
        if ours {
            tell_peer(failure, &mut response);
        }
        response
    };
    let Some(target) = target else { return local(Failure::ClusterNotFound, story) };
    let Some(upstream) = worker.upstreams.get(&target.cluster, snapshot) else {
        story.cluster_name = Some(target.cluster.as_ref().into());
        let mut reply = Reply::failure(Failure::ClusterNotFound);
        reply.status = forward.not_found_status;
        let mut response = reply::respond(reply, story);
        finish_response(connection, levels, notes, &mut response, None);
        if ours {
            tell_peer(Failure::ClusterNotFound, &mut response);
        }
        return response;
    };
    story.cluster = Some(Arc::clone(&upstream.settings));
    if let Some(kind) = &upgrade
        && !allows(kind, forward, chain)
    {
        return local(Failure::UpgradeRefused, story);
    }
    let deadlines = Deadlines::of(&mut head, forward, chain, story.start, rare);
    let mut authority = rewrite(&mut head, forward, &target, authority, chain);
    let edited = levels.edit_request(&mut head, &mut authority, &connection.facts, &target.cluster);
    if authority != story.authority {
        story.sent_authority = Some(authority.clone());
    }
    if chain.peer_metadata.to_upstream {
        head.headers.insert(names::PEER_METADATA.clone(), worker.own.header.clone());
        head.headers.insert(names::PEER_METADATA_ID.clone(), worker.own.id.clone());
    }
    if forward.ends_connect && head.method == Method::CONNECT {
        return connect_tcp(connection, &upstream, switch, story, levels, notes).await;
    }
    let may_repeat = forward.retry.is_some() || !forward.mirrors.is_empty();
    let source = incoming.map(|incoming| Source::new(incoming, may_repeat, story.grpc));
    story.source.clone_from(&source);
    let copies = mirror::copies(worker, &forward.mirrors, &head, &authority);
    let istio_alpn = chain.alpn_override;
    let out = attempt::Outgoing {
        head,
        authority,
        host_of_endpoint: matches!(forward.host, HostRewrite::Endpoint),
        source,
        version,
        upgrade: upgrade.clone(),
        steered: rare.steering || edited,
        forward,
        istio_alpn,
        count_attempts: levels.decision.host.count_attempts,
        destination: connection.facts.destination,
        caller: connection.facts.caller,
        deadline: deadlines.total,
        deadline_failure: deadlines.failure,
        idle: deadlines.idle,
        per_try: deadlines.per_try,
    };
    let sent = attempt::send(out, &upstream, &mut story).await;
    mirror::send(copies, story.source.as_ref(), version, connection.facts.destination);
    let answered = match sent {
        Ok(answered) => answered,
        Err(failure) => return local(failure, story),
    };
    let attempts = story.attempts;
    let head_time = story.start.elapsed();
    story.head_time = Some(head_time);
    let (mut head, body) = answered.response.into_parts();
    head.version = version;
    let told = Rare::of(&head.headers);
    story.upstream_peer = take_upstream_peer(&mut head, told, connection, &story);
    let switches = upgrade.is_some()
        && (head.status == http::StatusCode::SWITCHING_PROTOCOLS
            || (story.method == Method::CONNECT && head.status.is_success()));
    let kind = forwarded::strip_hop_by_hop(&mut head.headers, told);
    story.status = head.status.as_u16();
    if story.grpc
        && let Some(status) = head.headers.get(&names::GRPC_STATUS)
    {
        story.grpc_status = status.to_str().ok().and_then(|status| status.parse().ok());
    }
    // An answer that came before the request was whole says nothing of the service's time (Envoy router).
    let asked = upgrade.is_none() && story.source.as_ref().is_none_or(|source| source.tally.complete.get());
    if asked && !chain.suppress_envoy_headers {
        head.headers.insert(names::UPSTREAM_SERVICE_TIME.clone(), names::number(head_time.as_millis() as u64));
    }
    let mut lease = answered.lease;
    if switches && let Some(client) = switch {
        let mut response = Response::from_parts(head, ());
        let other_side = match body {
            AnswerBody::One(received) => {
                let link = Rc::clone(&lease.link);
                drop(lease);
                upgrade::OtherSide::Tcp(received.into_io(), link)
            }
            AnswerBody::Spelled(_) | AnswerBody::Two(_) | AnswerBody::Mux(_) => {
                upgrade::OtherSide::Http(hyper::upgrade::on(&mut response), lease)
            }
        };
        if let Some(kind) = kind {
            response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(http::header::UPGRADE, kind);
        }
        let mut response = response.map(|()| ResponseBody::empty());
        finish_response(connection, levels, notes, &mut response, Some(attempts));
        upgrade::tunnel(client, other_side, story, deadlines.idle, upstream);
        return response;
    }
    if upgrade.is_some() {
        lease.keep_out();
    }
    let deadline = deadlines.total;
    story.keep_response(&head.headers);
    let body = ResponseBody::upstream(body, story, Some((lease, upstream)), deadlines.idle, deadline);
    let mut response = Response::from_parts(head, body);
    finish_response(connection, levels, notes, &mut response, Some(attempts));
    response
}

/// CONNECT that ends here: the upstream gets the bytes.
async fn connect_tcp(
    connection: &Rc<HttpConnection>,
    upstream: &Rc<crate::upstream::Upstream>,
    switch: Option<hyper::upgrade::OnUpgrade>,
    mut story: Box<Story>,
    levels: &Levels<'_>,
    notes: &Notes,
) -> Response<ResponseBody> {
    let dialled = match upstream.pick(connection.facts.destination, &[], 1).await {
        Ok(host) => {
            story.host = Some(Rc::clone(&host));
            story.attempts += 1;
            story.busy = Some(upstream.begin(&host));
            upstream.connect_tcp(&host, connection.facts.caller).await
        }
        Err(failure) => Err(failure),
    };
    let mut response = match (dialled, switch) {
        (Ok((dialled, link)), Some(client)) => {
            story.link = Some(Rc::clone(&link));
            story.status = 200;
            upgrade::tunnel(
                client,
                upgrade::OtherSide::Tcp(dialled.io, link),
                story,
                Duration::ZERO,
                Rc::clone(upstream),
            );
            Response::new(ResponseBody::empty())
        }
        (Ok(_), None) => reply::respond(Reply::failure(Failure::UpgradeRefused), story),
        (Err(failure), _) => reply::respond(Reply::failure(failure), story),
    };
    finish_response(connection, levels, notes, &mut response, None);
    response
}

/// Whether the caller's proxy is one of ours: it has said so on a connection on which it has proven itself, in the handshake or
/// by its metadata.
fn is_ours(connection: &HttpConnection, story: &Story) -> bool {
    let facts = &connection.facts;
    facts.direction == Direction::Inbound
        && facts.peer.is_some()
        && (facts.alpn.as_deref() == Some(crate::tls::MUX) || story.source_peer.as_ref().is_some_and(|peer| peer.ours))
}

/// Tells the caller's proxy that the answer is not the application's. Nobody else is told, who would hand it on.
fn tell_peer(failure: Failure, response: &mut Response<ResponseBody>) {
    if let Some(word) = failure.of_application() {
        response.headers_mut().insert(names::MESH_APPLICATION.clone(), HeaderValue::from_static(word));
    }
}

/// The header changes that apply: weighted cluster, route, virtual host, table, in this order (Envoy evaluates the most specific
/// first).
struct Levels<'a> {
    decision: Decision<'a>,
    weighted: Option<&'a HeaderEdits>,
}

impl Levels<'_> {
    fn all(&self) -> impl Iterator<Item = &HeaderEdits> {
        let decision = &self.decision;
        self.weighted.into_iter().chain([&decision.route.edits, &decision.host.edits, &decision.table.edits])
    }

    /// Whether there was anything to change.
    fn edit_request(
        &self,
        head: &mut RequestHead,
        authority: &mut HeaderValue,
        connection: &ConnFacts,
        cluster: &str,
    ) -> bool {
        if self.all().all(|edits| edits.request.is_empty() && edits.request.authority.is_none()) {
            return false;
        }
        let path = head.uri.clone();
        let text = String::from_utf8_lossy(authority.as_bytes()).into_owned();
        let method = head.method.clone();
        let facts = || facts_of(connection, cluster, method.as_str(), path.path(), &text);
        for edits in self.all() {
            edits.request.apply(&mut head.headers, true, &facts);
            if let Some(host) = &edits.request.authority {
                *authority = host.clone();
            }
        }
        true
    }
}

fn facts_of<'a>(
    connection: &'a ConnFacts,
    cluster: &'a str,
    method: &'a str,
    path: &'a str,
    authority: &'a str,
) -> Facts<'a> {
    Facts {
        start: Some(SystemTime::now()),
        method,
        path,
        authority,
        scheme: if connection.tls { "https" } else { "http" },
        upstream_cluster: Some(cluster),
        downstream_local: Some(connection.destination),
        downstream_remote: Some(connection.remote),
        server_name: connection.server_name.as_deref(),
        peer_uri: connection.peer.as_deref().and_then(|peer| peer.uris.first()).map(String::as_str),
        peer_subject: connection.peer.as_deref().map(|peer| peer.subject.as_str()),
        local_uri: connection.own_uri.as_deref(),
        tls_version: connection.tls_version,
        ..Facts::default()
    }
}

/// What is done to every answer.
fn finish_response(
    connection: &Rc<HttpConnection>,
    levels: &Levels<'_>,
    notes: &Notes,
    response: &mut Response<ResponseBody>,
    attempts: Option<u32>,
) {
    let chain = &connection.chain;
    let (mut head, body) = std::mem::replace(response, Response::new(ResponseBody::empty())).into_parts();
    for (name, filter) in chain.filters.iter().rev() {
        override_of(&levels.decision, None, name).unwrap_or(filter).on_response(&mut head, notes);
    }
    for edit in &notes.answer_edits {
        edit.apply(&mut head.headers);
    }
    if levels.all().any(|edits| !edits.response.is_empty()) {
        let facts = || facts_of(&connection.facts, "", "", "", "");
        for edits in levels.all() {
            edits.response.apply(&mut head.headers, false, &facts);
        }
    }
    if levels.decision.host.count_attempts_in_response
        && let Some(attempts) = attempts
    {
        head.headers.insert(names::ATTEMPT_COUNT.clone(), names::number(attempts.into()));
    }
    match chain.server_header {
        ServerHeader::Overwrite => {
            head.headers.insert(http::header::SERVER, chain.server_name.clone());
        }
        ServerHeader::AppendIfAbsent if !head.headers.contains_key(http::header::SERVER) => {
            head.headers.insert(http::header::SERVER, chain.server_name.clone());
        }
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }
    if chain.peer_metadata.to_client {
        let own = &connection.worker.own;
        head.headers.insert(names::PEER_METADATA.clone(), own.header.clone());
        head.headers.insert(names::PEER_METADATA_ID.clone(), own.id.clone());
    }
    *response = Response::from_parts(head, body);
}

fn override_of<'a>(
    decision: &Decision<'a>,
    weighted: Option<&'a crate::snapshot::route::action::WeightedCluster>,
    name: &Arc<str>,
) -> Option<&'a Arc<dyn crate::filter::HttpFilter>> {
    let levels =
        [weighted.map(|weighted| &weighted.overrides), Some(&decision.route.overrides), Some(&decision.host.overrides)];
    levels.into_iter().flatten().flatten().find(|(known, _)| known == name).map(|(_, filter)| filter)
}

async fn run_filters(
    connection: &Rc<HttpConnection>,
    head: &mut RequestHead,
    incoming: &mut ClientBody,
    authority: &str,
    now: SystemTime,
    notes: &mut Notes,
    route: Option<(&Decision<'_>, Option<&crate::snapshot::route::action::WeightedCluster>)>,
) -> Option<Box<Reply>> {
    let (chain, facts) = (&connection.chain, &connection.facts);
    let told = chain.asks_client.then(|| forwarded::client(&head.headers, chain)).flatten();
    let client = told.unwrap_or(facts.remote).ip();
    for (name, filter) in &chain.filters {
        let filter = route.and_then(|(decision, weighted)| override_of(decision, weighted, name)).unwrap_or(filter);
        let step = {
            let env = connection.worker.upstreams.env();
            let mut dice = env.dice.borrow_mut();
            filter.on_request(&mut Exchange { head, authority, client, connection: facts, now, dice: &mut dice, notes })
        };
        match step {
            Step::Continue => {}
            Step::Reply(reply) => return Some(reply),
            Step::Wait(wait) => {
                if let Some(reply) = wait.await {
                    return Some(reply);
                }
            }
            // Nobody is asked about what leads nowhere (Envoy).
            Step::Ask(_) if route.is_none() => {}
            Step::Ask(question) => {
                let about = check::About { connection, head, incoming, authority, client, now, notes };
                if let Some(reply) = Box::pin(check::ask(&*question, about)).await {
                    return Some(reply);
                }
            }
        }
    }
    None
}

/// The host that is asked for. An absolute target beats the `host` header (RFC 9112 section 3.2.2); more than one `host`, or one
/// that cannot be a host, is refused.
fn take_authority(
    head: &mut RequestHead,
    version: Version,
    rare: Rare,
    last: &RefCell<HeaderValue>,
) -> Result<HeaderValue, Failure> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next().cloned(), hosts.next());
    if second.is_some() {
        return Err(Failure::BadRequest);
    }
    let authority = match head.uri.authority() {
        Some(authority) => {
            let mut last = last.borrow_mut();
            if last.as_bytes() != authority.as_str().as_bytes() {
                *last = HeaderValue::from_str(authority.as_str()).map_err(|_| Failure::BadRequest)?;
            }
            Some(last.clone())
        }
        None => host,
    };
    let authority = match authority {
        Some(authority) if !authority.is_empty() => authority,
        _ if version == Version::HTTP_10 => HeaderValue::from_static("localhost"),
        _ => return Err(Failure::BadRequest),
    };
    if !authority
        .as_bytes()
        .iter()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'\\' | b'@' | b'#' | b'?'))
    {
        return Err(Failure::BadRequest);
    }
    let path = head.uri.path();
    if head.method != Method::CONNECT && !(path.starts_with('/') || (head.method == Method::OPTIONS && path == "*")) {
        return Err(Failure::BadRequest);
    }
    // hyper takes the stricter side of conflicting lengths; both headers at once never pass (RFC 9112 section 6.1).
    if rare.transfer_encoding && head.headers.contains_key(http::header::CONTENT_LENGTH) {
        return Err(Failure::BadRequest);
    }
    head.headers.remove(HOST);
    if head.method != Method::CONNECT {
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from(path);
    }
    Ok(authority)
}

fn strip_port(authority: HeaderValue, mode: StripPort, port: u16) -> HeaderValue {
    if mode == StripPort::None {
        return authority;
    }
    let Ok(text) = authority.to_str() else { return authority };
    let bare = crate::snapshot::route::without_port(text);
    let cut = bare.len() < text.len() && (mode == StripPort::Any || text[bare.len() + 1..].parse() == Ok(port));
    if cut { HeaderValue::from_str(bare).unwrap_or(authority) } else { authority }
}

fn begin(connection: &Rc<HttpConnection>, head: &RequestHead, authority: &HeaderValue, version: Version) -> Box<Story> {
    let process = &connection.worker.shard.process;
    process.requests.add(1);
    process.requests_active.add(1);
    Box::new(Story {
        worker: Rc::clone(&connection.worker),
        connection: Rc::clone(&connection.facts),
        watch: Rc::clone(&connection.watch),
        chain: Arc::clone(&connection.chain),
        start: Instant::now(),
        wall: SystemTime::now(),
        method: head.method.clone(),
        version,
        uri: head.uri.clone(),
        authority: authority.clone(),
        sent_authority: None,
        client: None,
        request_id: None,
        grpc: is_grpc(head),
        kept_request: Vec::new(),
        kept_response: Vec::new(),
        source_peer: None,
        upstream_peer: None,
        route: None,
        object: None,
        cluster: None,
        cluster_name: None,
        host: None,
        link: None,
        source: None,
        busy: None,
        attempts: 0,
        status: 0,
        grpc_status: None,
        failure: None,
        refusal: None,
        flags: Vec::new(),
        head_time: None,
        sent: 0,
        tunnelled: 0,
        response_messages: 0,
        incomplete: false,
    })
}

fn keep_headers(story: &mut Story, head: &RequestHead) {
    let chain = Arc::clone(&story.chain);
    for name in &chain.logged_request_headers {
        if let Some(value) = head.headers.get(name) {
            story.kept_request.push((name.clone(), value.clone()));
        }
    }
}

/// Reads and removes the client's metadata: it is for proxies, not for applications.
fn take_peer(head: &mut RequestHead, connection: &HttpConnection, story: &mut Story) {
    let exchange = connection.chain.peer_metadata;
    if !exchange.from_client && !exchange.to_upstream {
        return;
    }
    head.headers.remove(&names::PEER_METADATA_ID);
    if let Some(header) = head.headers.remove(&names::PEER_METADATA)
        && exchange.from_client
    {
        story.source_peer = connection.worker.peer(&header);
    }
}

/// The endpoint's metadata: from its answer, else from discovery.
fn take_upstream_peer(
    head: &mut http::response::Parts,
    rare: Rare,
    connection: &HttpConnection,
    story: &Story,
) -> Option<Arc<Peer>> {
    let exchange = connection.chain.peer_metadata;
    let told = if rare.peer_metadata && (exchange.from_upstream || exchange.to_client) {
        head.headers.remove(&names::PEER_METADATA_ID);
        head.headers.remove(&names::PEER_METADATA)
    } else {
        None
    };
    match told {
        Some(header) if exchange.from_upstream => connection.worker.peer(&header),
        _ => story
            .host
            .as_ref()
            .and_then(|host| host.endpoint.workload.as_ref())
            .and_then(|workload| connection.worker.peer_of_endpoint(workload)),
    }
}

fn table_of<'a>(chain: &'a HttpChain, snapshot: &'a Snapshot) -> Option<&'a RouteTable> {
    match &chain.routes {
        RouteSource::Inline(table) => Some(table),
        RouteSource::Named(name) => snapshot.routes.get(name).map(|table| table.value.as_ref()),
    }
}

fn allows(kind: &HeaderValue, forward: &Forward, chain: &HttpChain) -> bool {
    let Ok(kind) = kind.to_str() else { return false };
    let said = |list: &[(String, bool)]| {
        list.iter().find(|(known, _)| known.eq_ignore_ascii_case(kind)).map(|(_, allowed)| *allowed)
    };
    said(&forward.upgrades).or_else(|| said(&chain.upgrades)).unwrap_or(false)
}

fn with_query(path: String, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

fn set_path(head: &mut RequestHead, path: &str) {
    if let Ok(path) = PathAndQuery::try_from(path) {
        head.uri = Uri::from(path);
    }
}

/// Path and host as the upstream shall see them.
fn rewrite(
    head: &mut RequestHead,
    forward: &Forward,
    target: &Target<'_>,
    authority: HeaderValue,
    chain: &HttpChain,
) -> HeaderValue {
    if let Some(path) = forward.path.apply(head.uri.path(), head.uri.query()) {
        if !chain.suppress_envoy_headers
            && let Ok(original) = HeaderValue::from_str(head.uri.path_and_query().map_or("/", PathAndQuery::as_str))
        {
            head.headers.insert(names::ORIGINAL_PATH.clone(), original);
        }
        set_path(head, &path);
    }
    let weighted = target.weighted.and_then(|weighted| attempt::rewritten_host(&weighted.host, head));
    let Some(new) = weighted.or_else(|| attempt::rewritten_host(&forward.host, head)) else { return authority };
    if new != authority {
        if forward.append_forwarded_host {
            head.headers.append(names::FORWARDED_HOST.clone(), authority.clone());
        }
        if !chain.suppress_envoy_headers {
            head.headers.insert(names::ORIGINAL_HOST.clone(), authority);
        }
    }
    new
}

struct Deadlines {
    total: Option<tokio::time::Instant>,
    failure: Failure,
    per_try: Duration,
    idle: Duration,
}

impl Deadlines {
    /// The route's timeouts with what the request's headers ask for (Envoy router: `x-envoy-upstream-rq-timeout-ms`,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`, `grpc-timeout` where the route honours it).
    fn of(head: &mut RequestHead, forward: &Forward, chain: &HttpChain, start: Instant, rare: Rare) -> Self {
        let millis = |value: Option<HeaderValue>| {
            value.and_then(|value| value.to_str().ok()?.parse::<u64>().ok()).map(Duration::from_millis)
        };
        let (asked, per_try) = match rare.steering {
            true => (
                millis(head.headers.remove(&names::UPSTREAM_TIMEOUT)),
                millis(head.headers.remove(&names::PER_TRY_TIMEOUT)),
            ),
            false => (None, None),
        };
        let timeout = asked.unwrap_or(forward.timeout);
        let grpc = forward.grpc_timeout_max.and_then(|most| {
            let asked = head.headers.get(&names::GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.to_str().ok()?))?;
            Some(if most.is_zero() { asked } else { asked.min(most) })
        });
        // A gRPC deadline that is honoured takes the place of the route's longest duration.
        let duration = grpc.or(forward.max_duration);
        let (bound, failure) = match (timeout.is_zero(), duration) {
            (true, None) => (None, Failure::UpstreamTimeout),
            (false, None) => (Some(timeout), Failure::UpstreamTimeout),
            (true, Some(duration)) => (Some(duration), Failure::MaxDuration),
            (false, Some(duration)) if duration < timeout => (Some(duration), Failure::MaxDuration),
            (false, Some(_)) => (Some(timeout), Failure::UpstreamTimeout),
        };
        if let (Some(bound), false) = (bound, chain.suppress_envoy_headers) {
            head.headers.insert(
                names::EXPECTED_TIMEOUT.clone(),
                HeaderValue::from(bound.as_millis().min(u128::from(u64::MAX)) as u64),
            );
        }
        Self {
            total: bound.map(|bound| tokio::time::Instant::from_std(start) + bound),
            failure,
            per_try: per_try.unwrap_or(Duration::ZERO),
            idle: forward.idle_timeout.unwrap_or(chain.stream_idle_timeout),
        }
    }
}

/// A gRPC timeout: up to eight digits and a unit (gRPC over HTTP/2).
fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last().filter(char::is_ascii)?;
    let digits = &text[..text.len() - 1];
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        'H' => Some(Duration::from_secs(number * 3600)),
        'M' => Some(Duration::from_secs(number * 60)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_authority_is_one_and_absolute_targets_win() {
        let of = |mut head: RequestHead, version| {
            {
                let rare = Rare::of(&head.headers);
                take_authority(&mut head, version, rare, &RefCell::new(HeaderValue::from_static("")))
            }
            .map(|host| (host, head.uri.to_string()))
        };
        assert_eq!(
            of(head("GET", "http://a.b:80/x?y", &[("host", "c")]), Version::HTTP_11).unwrap(),
            (HeaderValue::from_static("a.b:80"), "/x?y".to_owned())
        );
        assert_eq!(of(head("GET", "/x", &[("host", "c")]), Version::HTTP_11).unwrap().0, "c");
        assert_eq!(of(head("GET", "/x", &[]), Version::HTTP_11), Err(Failure::BadRequest));
        assert_eq!(of(head("GET", "/x", &[]), Version::HTTP_10).unwrap().0, "localhost");
        assert_eq!(of(head("GET", "/x", &[("host", "a"), ("host", "b")]), Version::HTTP_11), Err(Failure::BadRequest));
        assert_eq!(of(head("GET", "/x", &[("host", "a/b")]), Version::HTTP_11), Err(Failure::BadRequest));
        assert_eq!(
            of(
                head("POST", "/x", &[("host", "a"), ("content-length", "3"), ("transfer-encoding", "chunked")]),
                Version::HTTP_11
            ),
            Err(Failure::BadRequest)
        );
        assert_eq!(of(head("CONNECT", "a:80", &[]), Version::HTTP_11).unwrap().0, "a:80");
    }

    #[test]
    fn grpc_timeouts() {
        assert_eq!(grpc_timeout("20m"), Some(Duration::from_millis(20)));
        assert_eq!(grpc_timeout("1H"), Some(Duration::from_secs(3600)));
        for bad in ["", "m", "1x", "123456789S", "-1S"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn ports_are_stripped_as_asked() {
        let value = HeaderValue::from_static("a:80");
        assert_eq!(strip_port(value.clone(), StripPort::Matching, 81), "a:80");
        assert_eq!(strip_port(value.clone(), StripPort::Matching, 80), "a");
        assert_eq!(strip_port(value, StripPort::Any, 1), "a");
    }
}
