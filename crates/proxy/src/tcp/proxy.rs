//! A connection proxied as bytes: pick a cluster, a host, connect, relay, and write down what became of it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rand::RngExt;

use super::relay::{self, Ended};
use crate::facts::{ConnFacts, Direction, PeerFacts};
use crate::failure::Failure;
use crate::snapshot::chain::TcpChain;
use crate::snapshot::cluster::Cluster;
use crate::telemetry::format::Facts;
use crate::telemetry::metrics::{self, TcpSeries};
use crate::telemetry::peer::Peer;
use crate::telemetry::{access_log::AccessLog, labels};
use crate::upstream::connect::Dialled;
use crate::upstream::io::Io;
use crate::upstream::outlier::Verdict;
use crate::upstream::pool::Link;
use crate::upstream::{Busy, Host, Upstream};
use crate::worker::Worker;

/// A connection to an upstream, made for a client's connection.
#[derive(Debug)]
pub struct Reached {
    /// The cluster.
    pub upstream: Rc<Upstream>,
    /// The host.
    pub host: Rc<Host>,
    /// The connection.
    pub dialled: Dialled,
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
        match upstream.connect_tcp(&host).await {
            Ok((dialled, link)) => return Ok(Reached { upstream, host, dialled, link, _busy: busy }),
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
pub async fn run(worker: Rc<Worker>, mut io: Io, facts: Rc<ConnFacts>, chain: Arc<TcpChain>, reached: Option<Reached>) {
    let (start, wall) = (Instant::now(), SystemTime::now());
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
            if chain.stats {
                let series = end.series();
                series.opened.add(1);
                series.closed.add(1);
            }
            end.write_down(&chain.access_logs);
            return;
        }
    };
    let cluster = Arc::clone(&reached.upstream.settings);
    let workload = reached.host.endpoint.workload.as_ref().and_then(|workload| worker.peer_of_endpoint(workload));
    let host = Rc::clone(&reached.host);
    let mut end = TcpEnd::new(&worker, &facts, start, wall);
    end.cluster = Some(&cluster);
    end.cluster_name = &cluster.name;
    end.host = Some(&host);
    end.upstream_peer = workload.as_deref();
    end.certificate = reached.dialled.peer.as_deref();
    end.link = Some(&reached.link);
    let series = chain.stats.then(|| end.series());
    if let Some(series) = &series {
        series.opened.add(1);
    }
    let certificate = reached.dialled.peer.clone();
    let counted = relay::both_ways(&mut io, &mut reached.dialled.io, chain.idle_timeout, worker.draining.clone()).await;
    let mut end = TcpEnd::new(&worker, &facts, start, wall);
    end.cluster = Some(&cluster);
    end.cluster_name = &cluster.name;
    end.host = Some(&host);
    end.certificate = certificate.as_deref();
    end.link = Some(&reached.link);
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
    /// Its metadata.
    pub upstream_peer: Option<&'a Peer>,
    /// Its certificate.
    pub certificate: Option<&'a PeerFacts>,
    /// The connection to it.
    pub link: Option<&'a Link>,
    /// Bytes to the upstream, bytes to the client.
    pub counted: (u64, u64),
    /// Why it ended.
    pub failure: Option<Failure>,
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
            upstream_peer: None,
            certificate: None,
            link: None,
            counted: (0, 0),
            failure: None,
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
            peer: if inbound { None } else { self.upstream_peer },
            peer_principal: &principal,
            service: (&service.host, &service.name, &service.namespace),
            host: "unknown",
            mutual_tls: self.facts.peer.is_some(),
        });
        pairs.push(("request_protocol", "tcp"));
        pairs.push(("response_flags", self.failure.map_or("-", Failure::flag)));
        self.worker.shard.tcp(&metrics::labels(&pairs))
    }

    /// Log and explanation.
    pub fn write_down(&self, logs: &[AccessLog]) {
        let flag = self.failure.map_or("-", Failure::flag);
        let peer = self.facts.peer.as_deref();
        let facts = Facts {
            start: Some(self.wall),
            duration: Some(self.start.elapsed()),
            flags: flag,
            details: self.failure.filter(|failure| failure.status() == 0).map(Failure::details),
            termination_details: self.failure.filter(|failure| *failure == Failure::Denied).map(Failure::details),
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
        let Some(failure) = self.failure else { return };
        let mut time = String::new();
        crate::telemetry::format::write_time(self.wall, &mut time);
        self.worker.failures.add(api::debug::Why {
            time,
            proxy: self.worker.own.name.clone(),
            direction: self.facts.direction.as_str().to_owned(),
            request: format!("TCP {}", self.facts.destination),
            flag: flag.to_owned(),
            details: failure.details().to_owned(),
            failure: failure.name().to_owned(),
            side: failure.side().as_str().to_owned(),
            sentence: failure.sentence().to_owned(),
            object: self.cluster.and_then(|cluster| cluster.object.as_deref()).unwrap_or_default().to_owned(),
            cluster: self.cluster_name.to_owned(),
            endpoint: self.host.and_then(Host::address).map(|address| address.to_string()).unwrap_or_default(),
            ..api::debug::Why::default()
        });
    }
}
