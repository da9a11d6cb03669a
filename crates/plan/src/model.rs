//! The domain in nouns: services, their endpoints, workloads. Relations are resolved here; leaves stay the types of `api`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use api::name::Hostname;
use api::object::{Object, ObjectKey};
use api::value::{Labels, NumberOrName};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use xxhash_rust::xxh3::Xxh3;

/// Order in which objects compete: the oldest first; one without a time comes after those with one; then by name and
/// namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Age {
    missing: bool,
    created: Option<jiff::Timestamp>,
    name: String,
    namespace: String,
}

impl Age {
    /// Of an object.
    pub fn of(object: &Object) -> Self {
        let created = object.meta.creation_timestamp;
        Self {
            missing: created.is_none(),
            created,
            name: object.meta.name.clone(),
            namespace: object.meta.namespace.clone(),
        }
    }
}

/// What a port speaks (Istio `pkg/config/kube/conversion.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC-Web.
    GrpcWeb,
    /// TLS that carries HTTP.
    Https,
    /// TLS.
    Tls,
    /// TCP, and all that is treated as such.
    Tcp,
    /// UDP: not carried by the mesh.
    Udp,
    /// Not told: found out from the first bytes.
    Sniffed,
}

impl Protocol {
    /// By its name, as in `appProtocol`, `port.protocol` or before the first dash of a port's name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" | "kubernetes.io/ws" => Self::Http,
            "http2" | "kubernetes.io/h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "https" | "kubernetes.io/wss" => Self::Https,
            "tls" => Self::Tls,
            "tcp" | "mongo" | "redis" | "mysql" => Self::Tcp,
            "udp" => Self::Udp,
            _ => return None,
        })
    }

    /// Of a Kubernetes Service's port.
    pub fn of_port(number: u16, name: &str, app_protocol: &str, transport: &str) -> Self {
        if transport.eq_ignore_ascii_case("udp") {
            return Self::Udp;
        }
        if !app_protocol.is_empty()
            && let Some(protocol) = Self::named(app_protocol)
        {
            return protocol;
        }
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("grpc-web") {
            return Self::GrpcWeb;
        }
        let word = lower.split('-').next().unwrap_or_default();
        match (Self::named(word), number) {
            (Some(protocol), _) => protocol,
            // Protocols in which the server speaks first cannot be found out.
            (None, 25 | 53 | 3306 | 27017) => Self::Tcp,
            (None, _) => Self::Sniffed,
        }
    }

    /// HTTP in the clear.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// HTTP/2 in the clear.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// TLS made by the application.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// Number.
    pub number: u16,
    /// Name.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Port of the workload.
    pub target: NumberOrName,
}

/// How a service's endpoints are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resolution {
    /// They are listed.
    Static,
    /// By DNS.
    Dns,
    /// By DNS, one address at a time.
    DnsRoundRobin,
    /// The address that the caller asked for.
    Passthrough,
}

/// Which endpoints a caller is sent to first; others only as far as those cannot take all (Istio `TrafficDistribution`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Distribution {
    /// All are equal.
    #[default]
    Any,
    /// Those of the caller's zone, then of its region.
    SameZone,
    /// Those of the caller's node, then of its sub-zone, zone and region.
    SameNode,
}

impl Distribution {
    /// By the name that users write.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "" => Self::Any,
            "preferclose" | "prefersamezone" => Self::SameZone,
            "prefersamenode" => Self::SameNode,
            _ => return None,
        })
    }
}

/// Who sees an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exports {
    /// All.
    All,
    /// These namespaces; none at all if empty.
    Namespaces(BTreeSet<String>),
}

impl Exports {
    /// Of `exportTo`, or of the mesh's default if it is empty.
    pub fn of<'a>(written: impl IntoIterator<Item = &'a str>, default: &[String], namespace: &str) -> Self {
        let mut words: Vec<&str> = written.into_iter().map(str::trim).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            words = default.iter().map(String::as_str).collect();
        }
        if words.contains(&"*") {
            return Self::All;
        }
        let named = words.into_iter().filter(|word| *word != "~");
        Self::Namespaces(named.map(|word| if word == "." { namespace.to_owned() } else { word.to_owned() }).collect())
    }

    /// Whether a namespace sees it.
    pub fn to(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// Something that runs: a pod, a WorkloadEntry, or an endpoint written in a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Which kind of thing it is; the first counts when several share an address.
    pub source: WorkloadSource,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Addresses: IP, or a DNS name.
    pub addresses: Vec<String>,
    /// Labels.
    pub labels: Labels,
    /// Service account.
    pub service_account: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Name of its node; empty if it is not known.
    pub node: String,
    /// Share among the endpoints; 0 is 1.
    pub weight: u32,
    /// Ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Whether it accepts mutual TLS.
    pub tls: bool,
    /// Whether it takes requests.
    pub ready: bool,
    /// It is a pod that its node calls ready: slices, which follow pods, may not say so yet.
    pub called_ready: bool,
    /// It is a pod whose containers are ready: if it is not, its node is no longer heard of.
    pub unheard: bool,
    /// It is a pod that has been told to go.
    pub leaves: bool,
    /// For ties.
    pub age: Age,
}

/// Where a workload is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// `region/zone/subzone`.
    pub(crate) locality: String,
    /// Name of the node; empty unless some service asks for it.
    pub(crate) node: String,
}

/// Which kind of thing a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkloadSource {
    /// Pod.
    Pod,
    /// WorkloadEntry.
    Entry,
    /// Endpoint written in a ServiceEntry or EndpointSlice.
    Inline,
}

/// Where a request to a service's port may go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// IP address or DNS name.
    pub address: String,
    /// Port there.
    pub port: u16,
    /// The service's port.
    pub service_port: u16,
    /// Labels of the workload.
    pub labels: Labels,
    /// Workload's name.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Name of its node; empty if it is not known.
    pub node: String,
    /// Share; 0 is 1.
    pub weight: u32,
    /// Whether it accepts mutual TLS.
    pub tls: bool,
    /// Whether it takes requests.
    pub ready: bool,
    /// Its own name below that of a headless service; empty if it has none.
    pub hostname: String,
    /// Not ready only because its node is not heard of, or because its slice was heard of before it was: better than nobody.
    pub unheard: bool,
}

/// A service of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Full name.
    pub host: Hostname,
    /// Name of the object.
    pub name: String,
    /// Namespace of the object.
    pub namespace: String,
    /// The object.
    pub object: ObjectKey,
    /// Whether it is a Kubernetes Service.
    pub kubernetes: bool,
    /// Whether it is outside of the mesh.
    pub external: bool,
    /// Whether it has no virtual address by intention.
    pub headless: bool,
    /// Virtual addresses: IP or CIDR.
    pub addresses: Vec<String>,
    /// IP addresses that the mesh has given it, as it has none of its own; only proxies that answer DNS use them. One of each
    /// family, the older family first.
    pub auto_addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<Port>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Who sees it.
    pub exports: Exports,
    /// Which endpoints are preferred.
    pub distribution: Distribution,
    /// Only endpoints of the caller's own node count (`internalTrafficPolicy: Local`).
    pub node_local: bool,
    /// Names the server must have, if the object says.
    pub subject_alt_names: Vec<String>,
    /// For ties.
    pub age: Age,
    /// Where requests go.
    pub endpoints: Vec<Endpoint>,
    /// Digest of all that routes, listeners and clusters are made from: where listed endpoints are is of no matter there, who
    /// they are is.
    pub shape: u64,
}

impl Service {
    /// Computes the digest of what does not change with the places of endpoints.
    pub(crate) fn with_shape(mut self) -> Self {
        let endpoints = std::mem::take(&mut self.endpoints);
        self.shape = 0;
        let accounts: BTreeSet<(&str, &str)> =
            endpoints.iter().map(|one| (one.namespace.as_str(), one.service_account.as_str())).collect();
        // Where names stand for them, they are part of the cluster.
        let listed = self.resolution == Resolution::Static || self.resolution == Resolution::Passthrough;
        let shape = digest_of(&(&self, accounts, (!listed).then_some(&endpoints)));
        Self { endpoints, shape, ..self }
    }

    /// Whether callers of different places are sent to different endpoints.
    pub fn depends_on_place(&self) -> bool {
        self.node_local || self.distribution != Distribution::Any
    }

    /// A port by its number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// SPIFFE identities of the endpoints.
    pub fn identities(&self, trust_domain: &str) -> BTreeSet<String> {
        let of = |endpoint: &Endpoint| {
            api::spiffe::SpiffeId::new(trust_domain, &endpoint.namespace, &endpoint.service_account).to_string()
        };
        self.endpoints.iter().filter(|endpoint| !endpoint.service_account.is_empty()).map(of).collect()
    }
}

/// A resource with its name.
#[derive(Debug)]
pub struct Named {
    /// Name.
    pub name: Arc<str>,
    /// Digest of the bytes: equal versions are equal resources.
    pub version: u64,
    type_url: String,
    /// The message, in pieces that resources may share with each other: routes of many namespaces differ in few virtual hosts.
    pieces: Box<[Arc<[u8]>]>,
    endpoints: OnceLock<Option<Arc<str>>>,
}

impl Named {
    /// A resource.
    pub fn new(name: &str, version: u64, body: api::xds::Any) -> Self {
        Self::of_pieces(name, version, body.type_url, vec![body.value.into()])
    }

    /// A resource whose bytes are these, one after the other.
    pub fn of_pieces(name: &str, version: u64, type_url: String, pieces: Vec<Arc<[u8]>>) -> Self {
        Self { name: name.into(), version, type_url, pieces: pieces.into(), endpoints: OnceLock::new() }
    }

    /// Type of the message, as in `Any`.
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// The bytes of the message, one piece after the other.
    pub fn pieces(&self) -> &[Arc<[u8]>] {
        &self.pieces
    }

    /// How many bytes the message has.
    pub fn length(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    /// The message, copied.
    pub fn body(&self) -> api::xds::Any {
        api::xds::Any { type_url: self.type_url.clone(), value: self.pieces.concat() }
    }

    /// The name under which a cluster will ask for its endpoints, if this is a cluster that does.
    pub fn endpoints(&self) -> Option<&Arc<str>> {
        let read = || {
            let cluster: Cluster = api::xds::unpack(&self.body()).ok()?;
            if cluster.cluster_discovery_type != Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)) {
                return None;
            }
            let named = cluster.eds_cluster_config.map(|eds| eds.service_name).filter(|name| !name.is_empty());
            Some(named.map_or_else(|| self.name.clone(), |name| name.as_str().into()))
        };
        self.endpoints.get_or_init(read).as_ref()
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.version, self.body()) == (&other.name, other.version, other.body())
    }
}

/// A thing with its digest, made once.
#[derive(Clone, Debug)]
pub struct Digested<T> {
    /// The thing.
    pub value: Arc<T>,
    /// Digest of it.
    pub digest: u64,
}

impl<T: Hash> Digested<T> {
    /// Computes the digest.
    pub fn new(value: T) -> Self {
        let digest = digest_of(&value);
        Self { value: Arc::new(value), digest }
    }
}

impl<T> std::ops::Deref for Digested<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Digest of anything that hashes, the same in every process.
pub fn digest_of(value: &impl Hash) -> u64 {
    let mut hasher = Xxh3::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Number of a gRPC status's name.
pub fn grpc_status(name: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.iter().position(|known| *known == name).and_then(|place| u32::try_from(place).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_chosen_as_istio_does() {
        let of = Protocol::of_port;
        assert_eq!(of(80, "http-web", "", "TCP"), Protocol::Http);
        assert_eq!(of(80, "http", "tcp", ""), Protocol::Tcp);
        assert_eq!(of(80, "grpc-web-x", "", ""), Protocol::GrpcWeb);
        assert_eq!(of(80, "grpc", "kubernetes.io/h2c", ""), Protocol::Http2);
        assert_eq!(of(80, "web", "", ""), Protocol::Sniffed);
        assert_eq!(of(3306, "db", "", ""), Protocol::Tcp);
        assert_eq!(of(53, "http", "", "UDP"), Protocol::Udp);
        assert_eq!(of(443, "HTTPS-x", "", ""), Protocol::Https);
    }

    #[test]
    fn exports_name_namespaces() {
        let all = ["*".to_owned()];
        assert_eq!(Exports::of([], &all, "a"), Exports::All);
        let own = Exports::of(["."], &all, "a");
        assert!(own.to("a") && !own.to("b"));
        assert!(!Exports::of(["~"], &all, "a").to("a"));
    }
}
