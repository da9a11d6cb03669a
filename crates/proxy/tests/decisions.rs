//! The control plane's golden resources in, decisions out: what `plan` writes for `tests/golden/CASE` is compiled, and each
//! `request` of `CASE/decisions.yaml` is decided as the proxy would. This keeps the two halves from reading a field
//! differently. `UPDATE_GOLDEN=1` rewrites the `decision` lines; they are to be judged by eye against Istio's behaviour.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::xds::ResourceKind;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri};
use proxy::facts::{ConnFacts, PeerFacts};
use proxy::filter::{Exchange, Notes, Reply, Step};
use proxy::http::path::{Canonical, canonical};
use proxy::snapshot::Snapshot;
use proxy::snapshot::chain::{Chain, Gate, HttpChain, Network, RouteSource, StripPort, TcpChain, Transport};
use proxy::snapshot::listener::{ChainQuery, Listener};
use proxy::snapshot::rbac::Subject;
use proxy::snapshot::route::action::{Action, ClusterChoice, Forward, HostRewrite};
use proxy::snapshot::route::{Decision as Routed, Target, without_port};
use proxy::telemetry::format::Facts;
use proxy::telemetry::metrics::Decided;
use proxy::xds::resources::{Resource, ResourceSet};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How often weighted choices are drawn to see that the shares are those of the weights.
const DRAWS: u32 = 4000;

/// A connection, and what is asked on it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// Where the connection wants to go.
    to: SocketAddr,
    /// The listener it was redirected to; without it the connection is to the listener's own address.
    via: Option<String>,
    from: Option<SocketAddr>,
    /// The client speaks TLS, with this server name and these protocols.
    #[serde(default)]
    tls: bool,
    sni: Option<String>,
    #[serde(default)]
    alpn: Vec<String>,
    /// The name that its certificate has.
    peer: Option<String>,
    /// The client does not speak HTTP.
    #[serde(default)]
    tcp: bool,
    /// `http/1.1` if not told.
    protocol: Option<String>,
    method: Option<String>,
    authority: Option<String>,
    path: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Seed of the dice.
    #[serde(default)]
    dice: u64,
}

/// What becomes of it.
#[derive(Serialize, Default)]
struct Decision {
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    /// `ended`, or `mutual` if the client must show a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<&'static str>,
    /// The connection is closed, or the request refused, with this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    /// How the cluster picks a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weights: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_duration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mirrors: Vec<String>,
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new("../../tests/golden");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("resources.json").exists())
        // What is for gRPC clients without a proxy is not for us.
        .filter(|path| !std::fs::read_to_string(path.join("proxy.yaml")).unwrap().contains("GENERATOR: grpc"))
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

/// What the proxy holds when it has been told all resources of a case.
fn snapshot(case: &Path) -> Snapshot {
    let text = std::fs::read_to_string(case.join("resources.json")).unwrap();
    let written: Value = serde_json::from_str(&text).unwrap();
    let mut resources = ResourceSet::default();
    for (list, kind, name) in [
        ("clusters", ResourceKind::Cluster, "name"),
        ("endpoints", ResourceKind::Endpoint, "cluster_name"),
        ("listeners", ResourceKind::Listener, "name"),
        ("routes", ResourceKind::Route, "name"),
    ] {
        for value in written[list].as_array().unwrap() {
            let body = Arc::new(api::json::from_json(value).unwrap());
            let name = value[name].as_str().unwrap().to_owned();
            resources.of_mut(kind).insert(name, Resource { version: "1".into(), body });
        }
    }
    let (snapshot, rejects) = proxy::compile::compile(&resources, &Snapshot::default());
    assert!(rejects.is_empty(), "{}: {rejects:?}", case.display());
    snapshot
}

/// The listener that serves the connection; the choices are those of `listen::accept`.
fn listener<'a>(snapshot: &'a Snapshot, request: &Request) -> Option<&'a Arc<Listener>> {
    let mut all = snapshot.listeners.values().map(|listener| &listener.value);
    let at = |address: &SocketAddr| {
        *address == request.to || (address.ip().is_unspecified() && address.port() == request.to.port())
    };
    let Some(via) = &request.via else {
        return all.find(|listener| listener.binds && listener.addresses.iter().any(at));
    };
    let first = &snapshot.listeners[via.as_str()].value;
    assert!(first.binds && first.original_dst, "{via} does not take redirected connections");
    if !first.use_original_dst {
        return Some(first);
    }
    let others = || all.clone().filter(|listener| !listener.binds);
    others()
        .find(|listener| listener.addresses.contains(&request.to))
        .or_else(|| others().find(|listener| listener.addresses.iter().any(at)))
        .or(Some(first))
}

fn decide(snapshot: &Snapshot, request: &Request) -> Decision {
    let mut decision = Decision::default();
    let Some(listener) = listener(snapshot, request) else {
        decision.refused = Some("no listener".into());
        return decision;
    };
    decision.listener = Some(listener.name.to_string());
    let source = request.from.unwrap_or_else(|| ([10, 77, 0, 1], 40000).into());
    let protocols = match (request.tls, request.tcp) {
        (true, _) => request.alpn.clone(),
        (false, false) if listener.inspect_http => vec![request.protocol.clone().unwrap_or_else(|| "http/1.1".into())],
        (false, _) => Vec::new(),
    };
    let query = ChainQuery {
        destination: request.to,
        source,
        server_name: request.sni.as_deref(),
        transport: if request.tls { Transport::Tls } else { Transport::Raw },
        protocols: &protocols,
    };
    let Some(chain) = listener.chain_for(&query) else {
        decision.refused = Some("no filter chain".into());
        return decision;
    };
    decision.chain = Some(chain.name.to_string()).filter(|name| !name.is_empty());
    let facts = ConnFacts {
        caller: None,
        direction: listener.direction,
        remote: source,
        destination: request.to,
        server_name: request.sni.as_deref().map(Into::into),
        alpn: None,
        tls: chain.tls.is_some(),
        peer: request.peer.clone().map(|uri| Arc::new(PeerFacts { uris: vec![uri], ..PeerFacts::default() })),
        own_uri: None,
        tls_version: None,
    };
    connection(snapshot, request, chain, &facts, &mut decision);
    decision
}

fn connection(snapshot: &Snapshot, request: &Request, chain: &Chain, facts: &ConnFacts, decision: &mut Decision) {
    match &chain.tls {
        Some(_) if !request.tls => {
            decision.refused = Some("the chain wants TLS".into());
            return;
        }
        Some(terms) => decision.tls = Some(if terms.require_client_certificate { "mutual" } else { "ended" }),
        None => {}
    }
    match &chain.network {
        Network::Close => decision.refused = Some("closed".into()),
        Network::Tcp(tcp) => bytes(snapshot, request, tcp, facts, decision),
        Network::Http(_) if request.tcp || (request.tls && chain.tls.is_none()) => {
            decision.refused = Some("the chain wants HTTP".into());
        }
        Network::Http(http) => exchange(snapshot, request, http, facts, decision),
    }
}

fn bytes(snapshot: &Snapshot, request: &Request, chain: &TcpChain, facts: &ConnFacts, decision: &mut Decision) {
    let subject = Subject { connection: facts, client: facts.remote.ip(), request: None, metadata: None };
    let mut refusals = chain.gates.iter().filter_map(|gate| match gate {
        Gate::Rules(guard) => guard.refuses(&subject, &mut Decided::default()),
        Gate::Ask(_) => None,
    });
    if let Some(refusal) = refusals.next() {
        decision.refused = Some(refusal.details.to_string());
        return;
    }
    let rows: Vec<(&str, u64)> =
        chain.clusters.iter().map(|(name, weight)| (name.as_ref(), u64::from(*weight))).collect();
    let total: u64 = rows.iter().map(|(_, weight)| weight).sum();
    let mut point = SmallRng::seed_from_u64(request.dice).random_range(0..total);
    for (name, weight) in &rows {
        if point < *weight {
            decision.cluster = Some(known(snapshot, name));
            break;
        }
        point -= weight;
    }
    if rows.len() > 1 {
        decision.weights = rows.iter().map(|(name, weight)| format!("{weight} {name}")).collect();
    }
}

/// The cluster's name, with a word if there is no such cluster.
fn known(snapshot: &Snapshot, name: &str) -> String {
    match snapshot.clusters.contains_key(name) {
        true => name.to_owned(),
        false => format!("{name} (not there)"),
    }
}

fn head(request: &Request) -> Parts {
    let mut head = http::Request::new(()).into_parts().0;
    head.method = request.method.as_deref().unwrap_or("GET").parse::<Method>().unwrap();
    head.uri = request.path.as_deref().unwrap_or("/").parse::<Uri>().unwrap();
    for (name, value) in &request.headers {
        head.headers
            .insert(name.parse::<http::HeaderName>().expect("a header's name"), HeaderValue::from_str(value).unwrap());
    }
    head
}

fn exchange(snapshot: &Snapshot, request: &Request, chain: &HttpChain, facts: &ConnFacts, decision: &mut Decision) {
    let mut head = head(request);
    let mut authority = request.authority.clone().expect("an HTTP request has an authority");
    let bare = without_port(&authority);
    let port = authority[bare.len()..].strip_prefix(':').and_then(|port| port.parse().ok());
    if chain.strip_port == StripPort::Any
        || (chain.strip_port == StripPort::Matching && port == Some(facts.destination.port()))
    {
        authority = bare.to_owned();
    }
    match canonical(head.uri.path(), chain) {
        Canonical::Same => {}
        Canonical::Changed(path) => {
            let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            head.uri = format!("{path}{query}").parse().unwrap();
        }
        Canonical::Redirect(path) => {
            (decision.status, decision.location) = (Some(307), Some(path));
            return;
        }
        Canonical::Refused => {
            decision.status = Some(400);
            return;
        }
    }
    let table = match &chain.routes {
        RouteSource::Inline(table) => table,
        RouteSource::Named(name) => match snapshot.routes.get(name) {
            Some(table) => &table.value,
            None => {
                decision.refused = Some(format!("there is no route table {name}"));
                return;
            }
        },
    };
    decision.table = Some(table.name.to_string());
    let mut dice = SmallRng::seed_from_u64(request.dice);
    let Some(host) = table.host_of(&authority) else {
        decision.status = Some(404);
        return;
    };
    decision.host = Some(host.name.to_string());
    // Before any route is looked for: the whole virtual host is for TLS only.
    if host.require_tls && !facts.tls {
        decision.status = Some(301);
        decision.location = Some(format!("https://{}{}", without_port(&authority), head.uri));
        return;
    }
    let Some(routed) =
        table.decide(host, &head, &authority, facts.tls, &proxy::metadata::Metadata::default(), &mut dice)
    else {
        decision.status = Some(404);
        return;
    };
    decision.route = Some(routed.route.name.to_string());
    decision.object = routed.route.object.as_ref().map(ToString::to_string);
    let target = match &routed.route.action {
        Action::Forward(forward) => {
            shares(forward, &head, decision);
            forward.target(&head, &mut dice)
        }
        _ => None,
    };
    if let Some(reply) = filters(chain, &routed, target.as_ref(), (&mut head, &authority), facts, &mut dice, decision) {
        decision.status = Some(reply.status);
        return;
    }
    match &routed.route.action {
        Action::Direct { status, body } => {
            decision.status = Some(*status);
            decision.answer = Some(String::from_utf8_lossy(body).into_owned());
        }
        Action::Redirect(redirect) => {
            decision.status = Some(redirect.status);
            decision.location = Some(redirect.location(facts.tls, &authority, head.uri.path(), head.uri.query()));
        }
        Action::Forward(forward) => {
            forwarded(snapshot, &routed, forward, &target.unwrap(), &head, &authority, decision);
        }
    }
}

/// Writes the weights down and draws often enough to see that they are kept.
fn shares(forward: &Forward, head: &Parts, decision: &mut Decision) {
    let ClusterChoice::Weighted { clusters, total } = &forward.cluster else { return };
    let mut dice = SmallRng::seed_from_u64(1);
    let mut drawn: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..DRAWS {
        *drawn.entry(forward.target(head, &mut dice).unwrap().cluster.into_owned()).or_default() += 1;
    }
    for cluster in clusters {
        let expected = f64::from(cluster.weight) / *total as f64;
        let found = f64::from(drawn.get(cluster.name.as_ref()).copied().unwrap_or(0)) / f64::from(DRAWS);
        assert!((expected - found).abs() < 0.03, "{}: {found} in place of {expected}", cluster.name);
        decision.weights.push(format!("{} {}", cluster.weight, cluster.name));
    }
}

/// Asks the filters, each in the form that weighted cluster, route or virtual host give it.
fn filters(
    chain: &HttpChain,
    routed: &Routed<'_>,
    target: Option<&Target<'_>>,
    (head, authority): (&mut Parts, &str),
    facts: &ConnFacts,
    dice: &mut SmallRng,
    decision: &mut Decision,
) -> Option<Box<Reply>> {
    let weighted = target.and_then(|target| target.weighted).map(|weighted| &weighted.overrides);
    let levels = [weighted, Some(&routed.route.overrides), Some(&routed.host.overrides)];
    let mut notes = Notes::default();
    for (name, filter) in &chain.filters {
        let own = levels.into_iter().flatten().flatten().find(|(known, _)| known == name).map(|(_, filter)| filter);
        if let (Some(own), "envoy.filters.http.fault") = (own, name.as_ref()) {
            decision.fault = Some(format!("{own:?}"));
        }
        let filter = own.unwrap_or(filter);
        match filter.on_request(&mut Exchange {
            head,
            authority,
            client: facts.remote.ip(),
            connection: facts,
            now: std::time::UNIX_EPOCH,
            dice,
            notes: &mut notes,
        }) {
            Step::Continue => {}
            Step::Reply(reply) => {
                decision.refused = notes.refusal.as_ref().map(|refusal| refusal.details.to_string());
                return Some(reply);
            }
            Step::Wait(_) => decision.answer = Some("delayed".into()),
            Step::Ask(question) => decision.answer = Some(format!("asks {}", question.addressee().cluster)),
        }
    }
    None
}

fn forwarded(
    snapshot: &Snapshot,
    routed: &Routed<'_>,
    forward: &Forward,
    target: &Target<'_>,
    head: &Parts,
    authority: &str,
    decision: &mut Decision,
) {
    decision.cluster = Some(known(snapshot, &target.cluster));
    if !snapshot.clusters.contains_key(target.cluster.as_ref()) {
        decision.status = Some(forward.not_found_status);
        return;
    }
    decision.balance = Some(format!("{:?}", snapshot.clusters[target.cluster.as_ref()].value.balance));
    decision.path = forward.path.apply(head.uri.path(), head.uri.query());
    let host = match target.weighted.map_or(&forward.host, |weighted| match &weighted.host {
        HostRewrite::None => &forward.host,
        own => own,
    }) {
        HostRewrite::None => None,
        HostRewrite::Literal(host) => Some(host.clone()),
        HostRewrite::Endpoint => Some(HeaderValue::from_static("(the endpoint's)")),
        HostRewrite::Header(name) => head.headers.get(name).cloned(),
    };
    let mut host = host.unwrap_or_else(|| HeaderValue::from_str(authority).unwrap());
    let mut after = head.headers.clone();
    let weighted = target.weighted.map(|weighted| &weighted.edits);
    for edits in weighted.into_iter().chain([&routed.route.edits, &routed.host.edits, &routed.table.edits]) {
        edits.request.apply(&mut after, true, &|| Facts::default());
        host = edits.request.authority.clone().unwrap_or(host);
    }
    decision.authority = Some(String::from_utf8_lossy(host.as_bytes()).into_owned()).filter(|host| host != authority);
    decision.headers = changes(&head.headers, &after);
    decision.timeout = Some(format!("{:?}", forward.timeout)).filter(|_| !forward.timeout.is_zero());
    decision.max_duration = forward.max_duration.map(|time| format!("{time:?}"));
    decision.retry = forward.retry.as_ref().map(|plan| {
        let mut text = format!("{} times", plan.num_retries);
        if !plan.per_try_timeout.is_zero() {
            write!(text, " of {:?}", plan.per_try_timeout).unwrap();
        }
        let on = format!("{:?}", plan.on);
        let on: Vec<&str> =
            on.trim_matches(|c| c != '{' && c != '}').split([',', '{', '}']).filter(|w| w.contains("true")).collect();
        let on: Vec<&str> = on.iter().map(|word| word.trim().trim_end_matches(": true")).collect();
        write!(text, " on {}", on.join(" ")).unwrap();
        if !plan.statuses.is_empty() {
            write!(text, " {:?}", plan.statuses).unwrap();
        }
        text
    });
    let mirror = |one: &proxy::snapshot::route::action::Mirror| {
        format!("{}/1000000 {}", one.fraction, known(snapshot, &one.cluster))
    };
    decision.mirrors = forward.mirrors.iter().map(mirror).collect();
}

fn changes(before: &HeaderMap, after: &HeaderMap) -> Vec<String> {
    let all = |headers: &HeaderMap| -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    };
    let (before, after) = (all(before), all(after));
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("-{line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+{line}"));
    let mut changes: Vec<String> = gone.chain(new).collect();
    changes.sort();
    changes
}

/// The file with its `decision` lines made anew, and the number of requests.
fn decided(case: &Path, text: &str) -> (String, usize) {
    let snapshot = snapshot(case);
    let (mut out, mut count) = (String::new(), 0);
    for line in text.lines() {
        if line.starts_with("  decision: ") {
            continue;
        }
        writeln!(out, "{line}").unwrap();
        let Some(request) = line.strip_prefix("- request: ") else {
            assert!(line.is_empty() || line.starts_with('#'), "{}: {line}", case.display());
            continue;
        };
        let request: Request =
            serde_saphyr::from_str(request).unwrap_or_else(|error| panic!("{}: {line}: {error}", case.display()));
        writeln!(out, "  decision: {}", serde_json::to_string(&decide(&snapshot, &request)).unwrap()).unwrap();
        count += 1;
    }
    (out, count)
}

#[test]
fn requests_are_decided_as_expected() {
    let (mut wrong, mut all) = (Vec::new(), 0);
    for case in cases() {
        let file = case.join("decisions.yaml");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let (found, count) = decided(&case, &text);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        for (expected, found) in expected.lines().zip(found.lines()).filter(|(expected, found)| expected != found) {
            wrong.push(format!("{}\nexpected {expected}\n   found {found}", file.display()));
        }
        assert!(count >= 5, "{} has {count} requests only", file.display());
        assert_eq!(expected.lines().count(), found.lines().count(), "{}", file.display());
        all += count;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(all >= 60, "only {all} requests");
}
