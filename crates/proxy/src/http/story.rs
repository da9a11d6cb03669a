//! What becomes of one request, written down when it ends, however it ends: metrics, access log, explanation.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

use crate::facts::{ConnFacts, Direction, PeerFacts};
use crate::failure::{Failure, Objects, Refusal};
use crate::snapshot::chain::HttpChain;
use crate::snapshot::cluster::Cluster;
use crate::telemetry::format::Facts;
use crate::telemetry::labels::{StandardLabels, standard_labels};
use crate::telemetry::metrics;
use crate::telemetry::peer::Peer;
use crate::upstream::body::Source;
use crate::upstream::pool::Link;
use crate::upstream::{Busy, Host};
use crate::worker::{Series, SeriesKey, Watch, Worker};

/// One request's story. Dropping it writes it down.
#[derive(Debug)]
pub struct Story {
    /// The worker.
    pub worker: Rc<Worker>,
    /// The client's connection.
    pub connection: Rc<ConnFacts>,
    /// Its watch.
    pub watch: Rc<Watch>,
    /// The chain.
    pub chain: Arc<HttpChain>,
    /// When the request came.
    pub start: Instant,
    /// The same on the wall.
    pub wall: SystemTime,
    /// Method.
    pub method: Method,
    /// The client's protocol.
    pub version: Version,
    /// What was asked for, before rewrites.
    pub uri: Uri,
    /// The host that was asked for.
    pub authority: HeaderValue,
    /// The host that the upstream was asked for, if it is another.
    pub sent_authority: Option<HeaderValue>,
    /// The client as the proxy in front of us knows it, if that is to be believed.
    pub client: Option<std::net::SocketAddr>,
    /// `x-request-id`.
    pub request_id: Option<HeaderValue>,
    /// It is gRPC.
    pub grpc: bool,
    /// Request headers for the log.
    pub kept_request: Vec<(HeaderName, HeaderValue)>,
    /// Answer headers for the log.
    pub kept_response: Vec<(HeaderName, HeaderValue)>,
    /// The client's metadata.
    pub source_peer: Option<Arc<Peer>>,
    /// The endpoint's metadata.
    pub upstream_peer: Option<Arc<Peer>>,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// The object that the route comes from.
    pub object: Option<Arc<str>>,
    /// The cluster.
    pub cluster: Option<Arc<Cluster>>,
    /// The name that was looked for, if there is no cluster of it.
    pub cluster_name: Option<Arc<str>>,
    /// The last host tried.
    pub host: Option<Rc<Host>>,
    /// The connection to it.
    pub link: Option<Rc<Link>>,
    /// The request's body, if it has one.
    pub source: Option<Rc<Source>>,
    /// A request that counts as under way.
    pub busy: Option<Busy>,
    /// Tries.
    pub attempts: u32,
    /// Status answered; 0: none.
    pub status: u16,
    /// gRPC status.
    pub grpc_status: Option<u32>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The policy that refused it.
    pub refusal: Option<Arc<Refusal>>,
    /// More flags (`URX`, `DI`).
    pub flags: Vec<&'static str>,
    /// Time until the answer's head.
    pub head_time: Option<std::time::Duration>,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// Bytes from the client after it switched protocols.
    pub tunnelled: u64,
    /// gRPC messages of the answer.
    pub response_messages: u64,
    /// The answer was not complete when its reader went away.
    pub incomplete: bool,
}

impl Story {
    /// Bytes of the request's body.
    fn received(&self) -> u64 {
        self.tunnelled + self.source.as_ref().map_or(0, |source| source.tally.bytes.get())
    }

    /// The failure, also the one that shows only at the end.
    fn ending(&self) -> Option<Failure> {
        if self.failure.is_none() && (self.status == 0 || self.incomplete) {
            Some(Failure::ClientGone)
        } else {
            self.failure
        }
    }

    fn count(&self, failure: Option<Failure>, duration: std::time::Duration) {
        let process = &self.worker.shard.process;
        process.requests_active.subtract(1);
        if !self.chain.stats {
            return;
        }
        let inbound = self.connection.direction == Direction::Inbound;
        let peer = if inbound { &self.source_peer } else { &self.upstream_peer };
        let certificate = if inbound {
            self.connection.peer.as_ref()
        } else {
            self.link.as_ref().and_then(|link| link.peer.as_ref())
        };
        let address = |known: Option<*const ()>| known.map_or(0, |pointer| pointer as usize);
        let named_by_host = self.cluster.as_ref().is_none_or(|cluster| cluster.service.host.is_empty());
        let flag = failure.map(Failure::flag).or(self.flags.first().copied()).unwrap_or("-");
        let status = if self.status == 0 { failure.map_or(0, Failure::status) } else { self.status };
        let key = SeriesKey {
            cluster: address(self.cluster.as_ref().map(|cluster| Arc::as_ptr(cluster).cast())),
            peer: address(peer.as_ref().map(|peer| Arc::as_ptr(peer).cast())),
            certificate: address(certificate.map(|certificate| Arc::as_ptr(certificate).cast())),
            answer: (status, self.grpc_status, self.grpc),
            flag,
            inbound,
            host: if named_by_host { xxhash_rust::xxh3::xxh3_64(self.authority.as_bytes()) } else { 0 },
        };
        let mut last = self.worker.last_series.borrow_mut();
        let counters = match &mut *last {
            Some((known, counters)) if *known == key => counters,
            last => &mut last.insert((key, self.series(key, peer, certificate, status, flag))).1,
        };
        counters.requests.add(1);
        counters.duration.observe(duration.as_secs_f64() * 1000.0);
        counters.request_bytes.observe(self.received() as f64);
        counters.response_bytes.observe(self.sent as f64);
        if self.grpc {
            counters.request_messages.add(self.source.as_ref().map_or(0, |source| source.tally.messages.get()));
            counters.response_messages.add(self.response_messages);
        }
    }

    fn series(
        &self,
        key: SeriesKey,
        peer: &Option<Arc<Peer>>,
        certificate: Option<&Arc<PeerFacts>>,
        status: u16,
        flag: &str,
    ) -> Arc<metrics::RequestSeries> {
        let mut known = self.worker.series.borrow_mut();
        let series = known.entry(key).or_insert_with(|| Series {
            counters: self.worker.shard.request(&self.labels(
                key.inbound,
                peer.as_deref(),
                certificate.map(AsRef::as_ref),
                status,
                flag,
            )),
            cluster: self.cluster.clone(),
            peer: peer.clone(),
            certificate: certificate.cloned(),
        });
        Arc::clone(&series.counters)
    }

    fn labels(
        &self,
        inbound: bool,
        peer: Option<&Peer>,
        certificate: Option<&PeerFacts>,
        status: u16,
        flag: &str,
    ) -> String {
        let other_principal = certificate.map_or_else(|| "unknown".to_owned(), PeerFacts::principal);
        let own_principal = self.own_principal();
        let service = self.cluster.as_ref().map(|cluster| cluster.service.clone()).unwrap_or_default();
        let host = crate::snapshot::route::without_port(self.authority.to_str().unwrap_or("unknown"));
        let answer = (status.to_string(), self.grpc_status.map(|status| status.to_string()).unwrap_or_default());
        let mut pairs = standard_labels(&StandardLabels {
            inbound,
            own: &self.worker.own.peer,
            own_principal: &own_principal,
            peer,
            peer_principal: &other_principal,
            service: (&service.host, &service.name, &service.namespace),
            host,
            mutual_tls: self.connection.peer.is_some(),
        });
        pairs.push(("request_protocol", if self.grpc { "grpc" } else { "http" }));
        pairs.push(("response_code", &answer.0));
        pairs.push(("grpc_response_status", &answer.1));
        pairs.push(("response_flags", flag));
        metrics::labels(&pairs)
    }

    /// At the source it is the name that the upstream's connection was made with; the application's own is plaintext.
    fn own_principal(&self) -> String {
        let own = match self.connection.direction {
            Direction::Inbound => self.connection.own_uri.as_deref(),
            _ => self.link.as_ref().and_then(|link| link.own_uri.as_deref()),
        };
        own.unwrap_or("unknown").to_owned()
    }

    fn log(&self, failure: Option<Failure>, duration: std::time::Duration) {
        if self.chain.access_logs.is_empty() {
            return;
        }
        let flags = self.flag_text(failure);
        let details = match failure {
            Some(failure) => self.details_of(failure),
            None if self.attempts == 0 => "direct_response",
            None => "via_upstream",
        };
        let peer = self.connection.peer.as_deref();
        let facts = Facts {
            start: Some(self.wall),
            duration: Some(duration),
            response_duration: self.head_time,
            method: self.method.as_str(),
            path: self.uri.path_and_query().map_or("/", |path| path.as_str()),
            authority: self.sent_authority.as_ref().unwrap_or(&self.authority).to_str().unwrap_or(""),
            scheme: if self.connection.tls { "https" } else { "http" },
            protocol: Some(protocol(self.version)),
            request: &self.kept_request,
            response: &self.kept_response,
            status: self.status,
            grpc_status: self.grpc_status,
            flags: &flags,
            details: Some(details),
            termination_details: None,
            transport_failure: failure.and_then(Failure::transport_reason),
            bytes_received: self.received(),
            bytes_sent: self.sent,
            upstream_host: self.host.as_ref().and_then(|host| host.address()),
            upstream_local: self.link.as_ref().and_then(|link| link.local),
            upstream_cluster: self
                .cluster
                .as_ref()
                .map(|cluster| cluster.name.as_ref())
                .or(self.cluster_name.as_deref()),
            downstream_local: Some(self.connection.destination),
            downstream_remote: self.client.or(Some(self.connection.remote)),
            downstream_direct: Some(self.connection.remote),
            server_name: self.connection.server_name.as_deref(),
            route: self.route.as_deref(),
            attempts: self.attempts,
            peer_uri: peer.and_then(|peer| peer.uris.first()).map(String::as_str),
            peer_subject: peer.map(|peer| peer.subject.as_str()),
            local_uri: self.connection.own_uri.as_deref(),
            tls_version: self.connection.tls_version,
            hostname: Some(&self.worker.own.name),
        };
        self.worker.sink.record(&self.chain.access_logs, &facts);
    }

    /// Envoy's details, with the policy's name where one refused.
    fn details_of(&self, failure: Failure) -> &str {
        match &self.refusal {
            Some(refusal) if refusal.failure == failure => &refusal.details,
            _ => failure.details(),
        }
    }

    fn flag_text(&self, failure: Option<Failure>) -> String {
        let all: Vec<&str> = failure
            .map(Failure::flag)
            .into_iter()
            .chain(self.flags.iter().copied())
            .filter(|flag| *flag != "-")
            .collect();
        if all.is_empty() { "-".to_owned() } else { all.join(",") }
    }

    fn explain(&self, failure: Failure) {
        let mut time = String::new();
        crate::telemetry::format::write_time(self.wall, &mut time);
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let cluster = self.cluster.as_ref();
        self.worker.failures.add(api::debug::Why {
            request_id: self.request_id.as_ref().map(text).unwrap_or_default(),
            time,
            proxy: self.worker.own.name.clone(),
            direction: self.connection.direction.as_str().to_owned(),
            request: format!("{} {}{}", self.method, text(&self.authority), self.uri.path()),
            status: self.status,
            flag: self.flag_text(Some(failure)),
            details: self.details_of(failure).to_owned(),
            failure: failure.name().to_owned(),
            side: failure.side().as_str().to_owned(),
            sentence: match &self.refusal {
                Some(refusal) if refusal.failure == failure => refusal.sentence(),
                _ => failure.sentence().to_owned(),
            },
            object: Objects {
                route: self.object.as_deref(),
                policy: cluster.and_then(|cluster| cluster.object.as_deref()),
                service: cluster.and_then(|cluster| cluster.origin.as_deref()),
                listener: None,
                authorization: self.refusal.as_ref().and_then(|refusal| refusal.object.as_deref()),
            }
            .to_blame(failure),
            place: String::new(),
            route: self.route.as_deref().unwrap_or_default().to_owned(),
            cluster: cluster
                .map(|cluster| cluster.name.to_string())
                .or(self.cluster_name.as_deref().map(str::to_owned))
                .unwrap_or_default(),
            endpoint: self
                .host
                .as_ref()
                .and_then(|host| host.address())
                .map(|address| address.to_string())
                .unwrap_or_default(),
        });
    }

    /// Keeps the answer headers that the log asks for.
    pub fn keep_response(&mut self, headers: &HeaderMap) {
        for name in &self.chain.logged_response_headers {
            if let Some(value) = headers.get(name) {
                self.kept_response.push((name.clone(), value.clone()));
            }
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        self.busy = None;
        self.watch.active.set(self.watch.active.get().saturating_sub(1));
        // What came while the request was under way was its body.
        self.watch.beginning.store(false, Ordering::Relaxed);
        let now = Instant::now();
        self.watch.idle_since.set(now);
        self.watch.rests.set(false);
        let duration = now.duration_since(self.start);
        let failure = self.ending();
        self.count(failure, duration);
        self.log(failure, duration);
        self.worker.stir();
        // That a client ends its WebSocket is how they end.
        let tunnel = self.status == 101 && failure == Some(Failure::ClientGone);
        if let Some(failure) = failure.filter(|_| !tunnel) {
            self.explain(failure);
        }
    }
}

/// The protocol as logs write it.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
