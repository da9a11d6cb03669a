//! A simulated proxy: a delta ADS client that subscribes to everything, takes everything, and reads no more of it than it
//! must, since hundreds of them share a core.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::xds::core::Node;
use api::xds::{Any, ResourceKind, json_to_struct, unpack};
use bytes::Bytes;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

/// Method of the aggregated discovery service.
const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Larger messages are refused: five thousand services stay far below.
const MAX_MESSAGE: usize = 512 << 20;

/// A proxy that is not let in gives up after so many.
const ATTEMPTS: u64 = 50;

/// `DeltaDiscoveryResponse`, its resources undecoded: their bytes are shared with the message, not copied.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(string, repeated, tag = "6")]
    removed_resources: Vec<String>,
}

/// `Resource` of a delta response.
#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(message, optional, tag = "2")]
    resource: Option<Body>,
    #[prost(string, tag = "3")]
    name: String,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// A change that is waited for.
struct Awaited {
    type_url: &'static str,
    /// Bytes that only the changed resource holds.
    marker: Vec<u8>,
    since: Instant,
    /// Whether a resource holds the marker, by name and version: equal resources are searched once.
    searched: HashMap<(String, String), bool>,
    /// Which proxies have it, and how long it took.
    applied: HashMap<usize, Duration>,
}

#[derive(Default)]
struct Seen {
    bytes: u64,
    messages: u64,
    retries: u64,
    synced: HashSet<usize>,
    /// Names of the routes that a listener points at, by its name and version.
    routes: HashMap<(String, String), Arc<Vec<String>>>,
    awaited: Option<Awaited>,
    failure: Option<String>,
}

/// What all simulated proxies have seen together.
#[derive(Clone, Default)]
pub(crate) struct Fleet {
    seen: Arc<Mutex<Seen>>,
}

impl Fleet {
    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes of the messages so far, and their number.
    pub(crate) fn received(&self) -> (u64, u64) {
        self.with(|seen| (seen.bytes, seen.messages))
    }

    /// How often a connection was not taken and tried again.
    pub(crate) fn retries(&self) -> u64 {
        self.with(|seen| seen.retries)
    }

    /// How many have all they asked for.
    pub(crate) fn synced(&self) -> usize {
        self.with(|seen| seen.synced.len())
    }

    /// Why one of them ended, if one has.
    ///
    /// # Errors
    /// That one has.
    pub(crate) fn healthy(&self) -> Result<()> {
        self.with(|seen| seen.failure.clone()).map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
    }

    /// From now on, looks for these bytes in resources of the kind.
    pub(crate) fn await_change(&self, kind: ResourceKind, marker: &str) {
        let awaited = Awaited {
            type_url: kind.type_url(),
            marker: marker.as_bytes().to_vec(),
            since: Instant::now(),
            searched: HashMap::new(),
            applied: HashMap::new(),
        };
        self.with(|seen| seen.awaited = Some(awaited));
    }

    /// How many have the awaited change.
    pub(crate) fn applied(&self) -> usize {
        self.with(|seen| seen.awaited.as_ref().map_or(0, |awaited| awaited.applied.len()))
    }

    /// How long the awaited change took for each of them.
    pub(crate) fn take_applied(&self) -> Vec<Duration> {
        self.with(|seen| seen.awaited.take()).map_or_else(Vec::new, |awaited| awaited.applied.into_values().collect())
    }

    fn note(&self, proxy: usize, response: &Response) {
        let arrived = Instant::now();
        let size = response.encoded_len() as u64;
        self.with(|seen| {
            seen.bytes += size;
            seen.messages += 1;
            let Some(awaited) = &mut seen.awaited else { return };
            if awaited.type_url == response.type_url && response.resources.iter().any(|one| awaited.is_in(one)) {
                let took = arrived.saturating_duration_since(awaited.since);
                awaited.applied.entry(proxy).or_insert(took);
            }
        });
    }

    /// Routes that a listener points at; listeners that many proxies share are read once.
    fn routes(&self, listener: &Resource) -> Result<Arc<Vec<String>>> {
        let key = (listener.name.clone(), listener.version.clone());
        if let Some(known) = self.with(|seen| seen.routes.get(&key).cloned()) {
            return Ok(known);
        }
        let body = listener.resource.as_ref().context("a listener without a body")?;
        let any = Any { type_url: body.type_url.clone(), value: body.value.to_vec() };
        let found = Arc::new(routes_of(&unpack::<Listener>(&any).map_err(anyhow::Error::msg)?));
        self.with(|seen| seen.routes.insert(key, found.clone()));
        Ok(found)
    }
}

impl Awaited {
    fn is_in(&mut self, resource: &Resource) -> bool {
        let key = (resource.name.clone(), resource.version.clone());
        if let Some(known) = self.searched.get(&key) {
            return *known;
        }
        let value = resource.resource.as_ref().map(|body| body.value.clone()).unwrap_or_default();
        let found = value.windows(self.marker.len()).any(|window| window == self.marker);
        self.searched.insert(key, found);
        found
    }
}

fn routes_of(listener: &Listener) -> Vec<String> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let mut found = Vec::new();
    for filter in chains.flat_map(|chain| &chain.filters) {
        if let Some(ConfigType::TypedConfig(config)) = &filter.config_type
            && let Ok(HttpConnectionManager { route_specifier: Some(RouteSpecifier::Rds(rds)), .. }) = unpack(config)
        {
            found.push(rds.route_config_name);
        }
    }
    found
}

/// Connects one, and lives until the task is dropped. As real proxies do, it tries again if the server does not take its
/// connection; once it has been answered, a stream that ends is a failure.
pub(crate) async fn run(fleet: Fleet, number: usize, address: String, server: String) {
    for attempt in 1..=ATTEMPTS {
        let mut proxy = Proxy::new(fleet.clone(), number);
        let outcome = proxy.stream(&address, &server).await;
        let why = outcome.map_or_else(|error| format!("{error:#}"), |()| "the server closed the stream".to_owned());
        if proxy.answered || attempt == ATTEMPTS {
            fleet.with(|seen| seen.failure.get_or_insert(format!("simulated proxy {number}: {why}")).len());
            return;
        }
        fleet.with(|seen| seen.retries += 1);
        // Spread, so that those who were turned away together do not come back together.
        tokio::time::sleep(Duration::from_millis(200 * attempt + number as u64 % 200)).await;
    }
}

struct Proxy {
    fleet: Fleet,
    number: usize,
    /// Kinds and names that were asked for and have not come yet.
    missing: HashSet<(ResourceKind, String)>,
    subscribed: HashSet<(ResourceKind, String)>,
    /// Whether the server has sent anything.
    answered: bool,
    /// Wildcard kinds that have not come yet.
    unanswered: HashSet<ResourceKind>,
}

impl Proxy {
    fn new(fleet: Fleet, number: usize) -> Proxy {
        Proxy {
            fleet,
            number,
            missing: HashSet::new(),
            subscribed: HashSet::new(),
            answered: false,
            unanswered: HashSet::from([ResourceKind::Cluster, ResourceKind::Listener]),
        }
    }

    fn node(&self, address: &str) -> Node {
        let namespace = super::objects::namespace(self.number);
        let name = format!("proxy-{}", self.number);
        let metadata = serde_json::json!({
            "NAMESPACE": namespace, "NAME": name, "INTERCEPTION_MODE": "REDIRECT", "ISTIO_VERSION": "1.32.0",
            "SERVICE_ACCOUNT": "default", "CLUSTER_ID": "Kubernetes",
        });
        Node {
            id: format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(json_to_struct(&metadata)),
            ..Node::default()
        }
    }

    async fn stream(&mut self, address: &str, server: &str) -> Result<()> {
        let channel = Endpoint::from_shared(format!("http://{server}"))?
            .initial_connection_window_size(16 << 20)
            .initial_stream_window_size(4 << 20)
            .tcp_nodelay(true)
            .connect()
            .await?;
        let (requests, outgoing) = mpsc::unbounded_channel();
        for kind in [ResourceKind::Cluster, ResourceKind::Listener] {
            let node = Some(self.node(address));
            requests.send(DeltaDiscoveryRequest {
                node,
                type_url: kind.type_url().to_owned(),
                ..DeltaDiscoveryRequest::default()
            })?;
        }
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        grpc.ready().await?;
        let codec: ProstCodec<DeltaDiscoveryRequest, Response> = ProstCodec::default();
        let call = tonic::Request::new(UnboundedReceiverStream::new(outgoing));
        let mut responses = grpc.streaming(call, PathAndQuery::from_static(METHOD), codec).await?.into_inner();
        while let Some(response) = responses.message().await? {
            self.answered = true;
            self.fleet.note(self.number, &response);
            for request in self.respond(&response)? {
                requests.send(request)?;
            }
            if self.unanswered.is_empty() && self.missing.is_empty() {
                self.fleet.with(|seen| seen.synced.insert(self.number));
            }
        }
        Ok(())
    }

    /// Takes a response, and asks for what it points at.
    fn respond(&mut self, response: &Response) -> Result<Vec<DeltaDiscoveryRequest>> {
        let kind = ResourceKind::of(&response.type_url).context("the server sent a kind that was not asked for")?;
        self.unanswered.remove(&kind);
        let mut wanted = Vec::new();
        for resource in &response.resources {
            match kind {
                // Clusters of services take their endpoints from the server, under their own name.
                ResourceKind::Cluster if resource.name.starts_with("outbound|") => {
                    wanted.push((ResourceKind::Endpoint, resource.name.clone()));
                }
                ResourceKind::Listener => {
                    let routes = self.fleet.routes(resource)?;
                    wanted.extend(routes.iter().map(|name| (ResourceKind::Route, name.clone())));
                }
                ResourceKind::Endpoint | ResourceKind::Route => {
                    self.missing.remove(&(kind, resource.name.clone()));
                }
                _ => {}
            }
        }
        let mut requests = vec![DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        }];
        for kind in [ResourceKind::Endpoint, ResourceKind::Route] {
            let mut names = Vec::new();
            for wanted in wanted.iter().filter(|(of, _)| *of == kind) {
                if self.subscribed.insert(wanted.clone()) {
                    self.missing.insert(wanted.clone());
                    names.push(wanted.1.clone());
                }
            }
            if !names.is_empty() {
                requests.push(DeltaDiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    resource_names_subscribe: names,
                    ..DeltaDiscoveryRequest::default()
                });
            }
        }
        Ok(requests)
    }
}
