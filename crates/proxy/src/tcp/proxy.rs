//! A connection proxied as bytes: pick a cluster, a host, connect, relay, and write down what became of it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::xds::PEER_EXCHANGE;
use rand::RngExt;

use super::exchange::{Exchange, Introduced};
use super::relay::{self, Ended};
use crate::call::call;
use crate::facts::{ConnFacts, Direction, PeerFacts};
use crate::failure::{Failure, Objects, Refusal};
use crate::metadata::Metadata;
use crate::snapshot::chain::{Gate, TcpChain};
use crate::snapshot::cluster::Cluster;
use crate::snapshot::rbac::{Guard, Subject};
use crate::telemetry::format::Facts;
use crate::telemetry::metrics::{self, Decided, TcpSeries};
use crate::telemetry::peer::Peer;
use crate::telemetry::{access_log::AccessLog, labels};
use crate::upstream::io::Io;
use crate::upstream::outlier::Verdict;
use crate::upstream::pool::Link;
use crate::upstream::{Busy, Host, Upstream};
use crate::worker::Worker;

/// How long the other end of a connection may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// A connection to an upstream, made for a client's connection.
#[derive(Debug)]
pub struct Reached {
    /// The cluster.
    pub upstream: Rc<Upstream>,
    /// The host.
    pub host: Rc<Host>,
    /// The connection's bytes.
    pub io: Exchange<Io>,
    /// The verified endpoint.
    peer: Option<Arc<PeerFacts>>,
    link: Rc<Link>,
    _busy: Busy,
}

/// What is known when no upstream was reached.
#[derive(Debug)]
pub struct Unreached {
    /// Why.
    pub failure: Failure,
    /// The cluster.
    pub cluster: Option<Arc<Cluster>>,
    /// Its name.
    pub cluster_name: Arc<str>,
    /// The last host tried.
    pub host: Option<Rc<Host>>,
}

/// Connects to the chain's cluster.
///
/// # Errors
/// The last failure, with what it concerns.
pub async fn reach(worker: &Rc<Worker>, facts: &ConnFacts, chain: &TcpChain) -> Result<Reached, Box<Unreached>> {
    let name = cluster_of(worker, chain);
    let snapshot = worker.snapshot();
    let Some(upstream) = worker.upstreams.get(&name, &snapshot) else {
        return Err(Box::new(Unreached {
            failure: Failure::ClusterNotFound,
            cluster: None,
            cluster_name: name,
            host: None,
        }));
    };
    let mut tried: Vec<Rc<Host>> = Vec::new();
    let mut failure = Failure::NoHealthyUpstream;
    for _ in 0..chain.connect_attempts {
        let host = match upstream.pick(facts.destination, &tried, 1 + tried.len() as u32).await {
            Ok(host) => host,
            Err(none) => {
                failure = none;
                break;
            }
        };
        let busy = upstream.begin(&host);
        match upstream.connect_bytes(&host, upstream.settings.exchange, facts.caller).await {
            Ok((dialled, link)) => {
                let exchange = dialled.alpn.as_deref() == Some(PEER_EXCHANGE.as_bytes());
                let io = exchanging(worker, dialled.io, exchange);
                return Ok(Reached { upstream, host, io, peer: dialled.peer, link, _busy: busy });
            }
            Err(reason) => {
                upstream.report(&host, Verdict::Local);
                failure = reason;
                tried.push(host);
            }
        }
    }
    Err(Box::new(Unreached {
        failure,
        cluster: Some(Arc::clone(&upstream.settings)),
        cluster_name: name,
        host: tried.pop(),
    }))
}

/// What keeps a client from connecting. It is asked before anything is dialled, so that nobody hears a server that speaks first who
/// may not; Envoy asks only when the client has said something.
async fn refuses(worker: &Worker, facts: &ConnFacts, chain: &TcpChain) -> Option<Arc<Refusal>> {
    let (mut decided, mut metadata) = (Decided::default(), Metadata::default());
    let mut refusal = None;
    for gate in &chain.gates {
        refusal = match gate {
            Gate::Rules(guard) => decide(guard, facts, &mut decided, &mut metadata),
            Gate::Ask(question) if !question.is_enabled(&metadata) => {
                decided.asked.disabled += 1;
                None
            }
            Gate::Ask(question) => {
                let (asked, snapshot) = (question.ask(facts), worker.snapshot());
                let answer = call(&worker.upstreams, &snapshot, question.addressee(), facts.destination, &asked).await;
                question.take(answer, &mut metadata, &mut decided.asked).map(Arc::new)
            }
        };
        if refusal.is_some() {
            break;
        }
    }
    worker.shard.process.tcp_policies.add(decided);
    refusal
}

/// What policies say of a connection; what those find that only tell is told to those behind.
fn decide(guard: &Guard, facts: &ConnFacts, decided: &mut Decided, metadata: &mut Metadata) -> Option<Arc<Refusal>> {
    let subject = Subject { connection: facts, client: facts.remote.ip(), request: None, metadata: Some(metadata) };
    let found = guard.finds(&subject, decided);
    let refusal = guard.refuses(&subject, decided).cloned();
    if let Some(found) = found {
        guard.tell(found, metadata);
    }
    refusal
}

/// Whether a client that has said nothing yet may be heard by a server that speaks first. Of one about whom somebody is to be asked
/// that is not known yet.
pub fn may_connect(facts: &ConnFacts, chain: &TcpChain) -> bool {
    let (mut decided, mut metadata) = (Decided::default(), Metadata::default());
    chain.gates.iter().all(|gate| match gate {
        Gate::Rules(guard) => decide(guard, facts, &mut decided, &mut metadata).is_none(),
        Gate::Ask(question) => !question.is_enabled(&metadata),
    })
}

/// The bytes of a connection on which the exchange was negotiated, or was not.
fn exchanging(worker: &Worker, io: Io, negotiated: bool) -> Exchange<Io> {
    if negotiated { Exchange::with(io, worker.own.preface.clone()) } else { Exchange::without(io) }
}

fn cluster_of(worker: &Worker, chain: &TcpChain) -> Arc<str> {
    let total: u64 = chain.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut point = worker.upstreams.env().dice.borrow_mut().random_range(0..total.max(1));
    for (name, weight) in &chain.clusters {
        if point < u64::from(*weight) {
            return Arc::clone(name);
        }
        point -= u64::from(*weight);
    }
    chain.clusters.first().map(|(name, _)| Arc::clone(name)).unwrap_or_default()
}

/// Proxies a client's connection to its end. `reached` is an upstream's connection that was made ahead.
pub async fn run(worker: Rc<Worker>, io: Io, facts: Rc<ConnFacts>, chain: Arc<TcpChain>, reached: Option<Reached>) {
    let (start, wall) = (Instant::now(), SystemTime::now());
    if let Some(refusal) = refuses(&worker, &facts, &chain).await {
        let mut end = TcpEnd { failure: Some(refusal.failure), ..TcpEnd::new(&worker, &facts, start, wall) };
        let snapshot = worker.snapshot();
        let name = cluster_of(&worker, &chain);
        let upstream = worker.upstreams.get(&name, &snapshot);
        end.cluster = upstream.as_ref().map(|upstream| upstream.settings.as_ref());
        end.cluster_name = &name;
        end.refusal = Some(&refusal);
        end.count_at_once(&chain);
        end.write_down(&chain.access_logs);
        return;
    }
    let reached = match reached {
        Some(reached) => Ok(reached),
        None => reach(&worker, &facts, &chain).await,
    };
    let mut reached = match reached {
        Ok(reached) => reached,
        Err(unreached) => {
            let mut end =
                TcpEnd { start, wall, failure: Some(unreached.failure), ..TcpEnd::new(&worker, &facts, start, wall) };
            end.cluster = unreached.cluster.as_deref();
            end.cluster_name = &unreached.cluster_name;
            end.host = unreached.host.as_deref();
            end.count_at_once(&chain);
            end.write_down(&chain.access_logs);
            return;
        }
    };
    let negotiated = chain.exchange && facts.alpn.as_deref() == Some(PEER_EXCHANGE);
    let mut io = exchanging(&worker, io, negotiated);
    let cluster = Arc::clone(&reached.upstream.settings);
    let host = Rc::clone(&reached.host);
    let inbound = facts.direction == Direction::Inbound;
    let introduced = if inbound { io.introduced() } else { reached.io.introduced() };
    let (certificate, link) = (reached.peer.clone(), Rc::clone(&reached.link));
    let about = || TcpEnd {
        cluster: Some(&cluster),
        cluster_name: &cluster.name,
        host: Some(&host),
        certificate: certificate.as_deref(),
        link: Some(&link),
        ..TcpEnd::new(&worker, &facts, start, wall)
    };

    let relay = relay::both_ways(&mut io, &mut reached.io, chain.idle_timeout);
    tokio::pin!(relay);
    // Bytes flow while it is still to be told who is there. The control plane's word for an endpoint counts where the endpoint
    // itself tells nothing.
    let (told, early) = tokio::select! {
        biased;
        told = introduction(introduced.clone()) => (told, None),
        counted = &mut relay => (introduced.borrow().clone().flatten(), Some(counted)),
    };
    let workload = host.endpoint.workload.as_ref().filter(|_| !inbound);
    let peer = told.or_else(|| workload.and_then(|workload| worker.peer_of_endpoint(workload)));
    let series = chain.stats.then(|| TcpEnd { other: peer.as_deref(), ..about() }.series());
    if let Some(series) = &series {
        series.opened.add(1);
    }
    let counted = match early {
        Some(counted) => counted,
        None => relay.await,
    };
    let mut end = about();
    end.counted = (counted.to_upstream, counted.to_client);
    end.failure = match counted.ended {
        Ended::Closed => None,
        Ended::Idle => Some(Failure::StreamIdle),
        Ended::ClientBroke => Some(Failure::ClientGone),
        Ended::UpstreamBroke => Some(Failure::UpstreamBroken),
    };
    if let Some(series) = &series {
        series.closed.add(1);
        // Istio's names are seen from the side that answers (pain P42): "sent" is what the client sent … to keep Kiali right,
        // the names stay as Istio has them.
        series.sent.add(counted.to_client);
        series.received.add(counted.to_upstream);
    }
    end.write_down(&chain.access_logs);
}

/// Who the other end says it is. One that says nothing for long is not waited for: its connection is to be counted.
async fn introduction(mut introduced: Introduced) -> Option<Arc<Peer>> {
    if let Some(known) = &*introduced.borrow() {
        return known.clone();
    }
    let told = tokio::time::timeout(INTRODUCTION, introduced.wait_for(Option::is_some)).await.ok()?.ok()?;
    told.clone().flatten()
}

/// Somebody else decided, or could not: Envoy tells it as it does of requests.
fn is_external(failure: Failure) -> bool {
    matches!(failure, Failure::ExternalDenied | Failure::ExternalError)
}

/// What became of a TCP connection.
pub struct TcpEnd<'a> {
    worker: &'a Worker,
    facts: &'a ConnFacts,
    start: Instant,
    wall: SystemTime,
    /// The cluster.
    pub cluster: Option<&'a Cluster>,
    /// Its name.
    pub cluster_name: &'a str,
    /// The host.
    pub host: Option<&'a Host>,
    /// The workload at the other end: the client of what is taken in, the host of what is sent.
    pub other: Option<&'a Peer>,
    /// Its certificate.
    pub certificate: Option<&'a PeerFacts>,
    /// The connection to it.
    pub link: Option<&'a Link>,
    /// Bytes to the upstream, bytes to the client.
    pub counted: (u64, u64),
    /// Why it ended.
    pub failure: Option<Failure>,
    /// The object that says which connections are taken.
    pub listener_object: Option<&'a str>,
    /// The policy that refused it.
    pub refusal: Option<&'a Refusal>,
}

impl<'a> TcpEnd<'a> {
    /// Nothing happened yet.
    pub fn new(worker: &'a Worker, facts: &'a ConnFacts, start: Instant, wall: SystemTime) -> Self {
        Self {
            worker,
            facts,
            start,
            wall,
            cluster: None,
            cluster_name: "",
            host: None,
            other: None,
            certificate: None,
            link: None,
            counted: (0, 0),
            failure: None,
            listener_object: None,
            refusal: None,
        }
    }

    fn series(&self) -> Arc<TcpSeries> {
        let inbound = self.facts.direction == Direction::Inbound;
        let certificate = if inbound { self.facts.peer.as_deref() } else { self.certificate };
        let principal = certificate.map_or_else(|| "unknown".to_owned(), PeerFacts::principal);
        let own = match self.facts.direction {
            Direction::Inbound => self.facts.own_uri.as_deref(),
            Direction::Outbound => self.link.and_then(|link| link.own_uri.as_deref()),
        };
        let service = self.cluster.map(|cluster| cluster.service.clone()).unwrap_or_default();
        let mut pairs = labels::standard_labels(&labels::StandardLabels {
            inbound,
            own: &self.worker.own.peer,
            own_principal: own.unwrap_or("unknown"),
            peer: self.other,
            peer_principal: &principal,
            service: (&service.host, &service.name, &service.namespace),
            host: "unknown",
            mutual_tls: self.facts.peer.is_some(),
        });
        pairs.push(("request_protocol", "tcp"));
        pairs.push(("response_flags", self.failure.map_or("-", Failure::flag)));
        self.worker.shard.tcp(&metrics::labels(&pairs))
    }

    /// Of a connection that ends before it went anywhere.
    fn count_at_once(&self, chain: &TcpChain) {
        if chain.stats {
            let series = self.series();
            series.opened.add(1);
            series.closed.add(1);
        }
    }

    fn details_of(&self, failure: Failure) -> &str {
        self.refusal.map_or(failure.details(), |refusal| &refusal.details)
    }

    /// Log and explanation.
    pub fn write_down(&self, logs: &[AccessLog]) {
        let flag = self.failure.map_or("-", Failure::flag);
        let peer = self.facts.peer.as_deref();
        let facts = Facts {
            start: Some(self.wall),
            duration: Some(self.start.elapsed()),
            flags: flag,
            details: self
                .failure
                .filter(|failure| failure.status() == 0 || is_external(*failure))
                .map(Failure::details),
            termination_details: self
                .refusal
                .filter(|refusal| !is_external(refusal.failure))
                .map(|refusal| refusal.details.as_ref()),
            transport_failure: self.failure.and_then(Failure::transport_reason),
            bytes_received: self.counted.0,
            bytes_sent: self.counted.1,
            upstream_host: self.host.and_then(Host::address),
            upstream_local: self.link.and_then(|link| link.local),
            upstream_cluster: Some(self.cluster_name),
            downstream_local: Some(self.facts.destination),
            downstream_remote: Some(self.facts.remote),
            server_name: self.facts.server_name.as_deref(),
            peer_uri: peer.and_then(|peer| peer.uris.first()).map(String::as_str),
            peer_subject: peer.map(|peer| peer.subject.as_str()),
            local_uri: self.facts.own_uri.as_deref(),
            tls_version: self.facts.tls_version,
            hostname: Some(&self.worker.own.name),
            ..Facts::default()
        };
        self.worker.sink.record(logs, &facts);
        self.worker.stir();
        let Some(failure) = self.failure else { return };
        let mut time = String::new();
        crate::telemetry::format::write_time(self.wall, &mut time);
        self.worker.failures.add(api::debug::Why {
            time,
            proxy: self.worker.own.name.clone(),
            direction: self.facts.direction.as_str().to_owned(),
            request: format!("TCP {}", self.facts.destination),
            flag: flag.to_owned(),
            details: self.details_of(failure).to_owned(),
            failure: failure.name().to_owned(),
            side: failure.side().as_str().to_owned(),
            sentence: self.refusal.map_or_else(|| failure.sentence().to_owned(), Refusal::sentence),
            object: Objects {
                route: None,
                policy: self.cluster.and_then(|cluster| cluster.object.as_deref()),
                service: self.cluster.and_then(|cluster| cluster.origin.as_deref()),
                listener: self.listener_object,
                authorization: self.refusal.and_then(|refusal| refusal.object.as_deref()),
            }
            .to_blame(failure),
            cluster: self.cluster_name.to_owned(),
            endpoint: self.host.and_then(Host::address).map(|address| address.to_string()).unwrap_or_default(),
            ..api::debug::Why::default()
        });
    }
}
