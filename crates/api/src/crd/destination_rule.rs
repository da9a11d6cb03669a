//! DestinationRule (networking.istio.io): what happens to traffic once its destination is chosen.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::virtual_service::PortSelector;
use crate::schema::{at_least_1ms, at_most_one};
use crate::selector::MatchLabels;
use crate::value::{Duration, Labels};

/// The spec of a DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["host"]))]
pub struct DestinationRule {
    /// Host whose traffic this is about; may be a wildcard.
    pub host: String,
    /// Policy for all subsets.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of the host's endpoints.
    pub subsets: Vec<Subset>,
    /// Namespaces that see the object.
    pub export_to: Vec<String>,
    /// Clients that the object is for; default all.
    pub workload_selector: Option<MatchLabels>,
}

/// A named group of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct Subset {
    /// Name.
    pub name: String,
    /// Labels of the endpoints in it.
    pub labels: Labels,
    /// Policy that replaces, block by block, the one of the object.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Policies, each block on its own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Choice of the endpoint.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits and timeouts.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTlsSettings>,
    /// Policies of single ports; they inherit nothing.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Tunnel through a proxy.
    pub tunnel: Option<TunnelSettings>,
    /// PROXY protocol towards the endpoints.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limit on retries as a share of requests.
    pub retry_budget: Option<RetryBudget>,
}

/// The policy of one port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The service's port.
    pub port: Option<PortSelector>,
    /// Choice of the endpoint.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits and timeouts.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTlsSettings>,
}

/// Choice of the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("oneOf" = at_most_one(&["simple", "consistentHash"])))]
pub struct LoadBalancerSettings {
    /// One of the simple ways.
    pub simple: Option<SimpleLb>,
    /// Same key, same endpoint.
    pub consistent_hash: Option<ConsistentHashLb>,
    /// Preference of near endpoints.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// Preference of the own zone.
    pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
    /// Deprecated: duration of `warmup`.
    pub warmup_duration_secs: Option<Duration>,
    /// Not used by Istio's control plane.
    pub backend_utilization: Option<serde_json::Value>,
}

/// The simple ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The default, LEAST_REQUEST.
    Unspecified,
    /// Deprecated name of LEAST_REQUEST.
    LeastConn,
    /// Any.
    Random,
    /// To the address that the caller asked for.
    Passthrough,
    /// In turn.
    RoundRobin,
    /// The one of two with fewer requests.
    LeastRequest,
}

/// Same key, same endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHashLb {
    /// Key: a header's value.
    pub http_header_name: String,
    /// Key: a cookie's value.
    pub http_cookie: Option<HttpCookie>,
    /// Key: the caller's address.
    pub use_source_ip: bool,
    /// Key: a query parameter's value.
    pub http_query_parameter_name: String,
    /// Deprecated: minimum size of the ring.
    pub minimum_ring_size: Option<u64>,
    /// Algorithm: ring.
    pub ring_hash: Option<RingHash>,
    /// Algorithm: Maglev.
    pub maglev: Option<Maglev>,
}

/// A cookie to hash; made when it is missing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct HttpCookie {
    /// Name.
    pub name: String,
    /// Path.
    pub path: String,
    /// Lifetime; 0 is a session cookie.
    pub ttl: Option<Duration>,
    /// Further attributes.
    pub attributes: Vec<CookieAttribute>,
}

/// Attribute of a cookie.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieAttribute {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Ring hash.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Minimum size of the ring; default 1024.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// Size of the table, a prime; default 65537.
    pub table_size: Option<u64>,
}

/// Preference of near endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityLbSetting {
    /// Whether it is on; default the mesh's.
    pub enabled: Option<bool>,
    /// Shares by locality.
    pub distribute: Vec<Distribute>,
    /// Where a region fails over to.
    pub failover: Vec<Failover>,
    /// Labels in order of importance.
    pub failover_priority: Vec<String>,
}

/// Shares of one locality's traffic.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Distribute {
    /// Callers' locality.
    pub from: String,
    /// Endpoints' localities and percent.
    pub to: std::collections::BTreeMap<String, u32>,
}

/// A region and its substitute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Failover {
    /// Region.
    pub from: String,
    /// Substitute.
    pub to: String,
}

/// Preference of the own zone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneAwareLbSetting {
    /// Whether it is on.
    pub enabled: Option<bool>,
    /// Where a region fails over to.
    pub failover: Vec<Failover>,
    /// Labels in order of importance.
    pub failover_priority: Vec<String>,
    /// Fewest endpoints; default 6.
    pub min_cluster_size: Option<u32>,
}

/// Slow start of new endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["duration"]))]
pub struct Warmup {
    /// How long.
    pub duration: Option<Duration>,
    /// Percent of the weight at the start; default 10.
    pub minimum_percent: Option<f64>,
    /// Steepness; default 1.
    pub aggression: Option<f64>,
}

/// Limits and timeouts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPoolSettings {
    /// For TCP and HTTP.
    pub tcp: Option<TcpSettings>,
    /// For HTTP.
    pub http: Option<HttpSettings>,
}

/// Limits of connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-mistaken" = ["keepAlive"]))]
pub struct TcpSettings {
    /// Most connections; default no limit.
    pub max_connections: Option<u32>,
    /// Time to connect; default 10 s.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub connect_timeout: Option<Duration>,
    /// Keep-alive of the socket.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Longest life of a connection.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub max_connection_duration: Option<Duration>,
    /// Time without bytes after which a connection ends; default 1 h, 0s for never.
    pub idle_timeout: Option<Duration>,
}

/// Keep-alive of a socket.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// Limits of HTTP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Most requests that wait for a connection; default no limit.
    pub http1_max_pending_requests: Option<u32>,
    /// Most active requests; default no limit.
    pub http2_max_requests: Option<u32>,
    /// Most requests on one connection; 0 is no limit, 1 switches keep-alive off.
    pub max_requests_per_connection: Option<u32>,
    /// Most retries at a time; default no limit.
    pub max_retries: Option<u32>,
    /// Time without requests after which a connection is closed; default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1 becomes HTTP/2 on the way.
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Whether the caller's protocol is kept.
    pub use_client_protocol: bool,
    /// Most streams on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Pings on HTTP/2 connections.
    pub http2_keep_alive: Option<Http2KeepAlive>,
}

/// Pings on HTTP/2 connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Http2KeepAlive {
    /// How often.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub interval: Option<Duration>,
    /// How long to wait for the answer.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub timeout: Option<Duration>,
}

/// Whether HTTP/1 becomes HTTP/2 on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// As the mesh says.
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// Ejection of failing endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Errors in a row of the server or the connection; default 5.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Gateway errors (502, 503, 504) in a row; default off.
    pub consecutive_gateway_errors: Option<u32>,
    /// Removed from Istio long ago; here it still means `consecutive5xxErrors`.
    pub consecutive_errors: Option<u32>,
    /// Whether connection errors are counted apart.
    pub split_external_local_origin_errors: bool,
    /// Connection errors in a row; default 5.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Time between sweeps; default 10 s.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub interval: Option<Duration>,
    /// Time out of rotation, times the count of ejections; default 30 s.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub base_ejection_time: Option<Duration>,
    /// Most endpoints ejected, percent; default 10.
    pub max_ejection_percent: Option<u32>,
    /// Below this percent of healthy endpoints all are used; default 0.
    pub min_health_percent: Option<u32>,
    /// Status codes that count as errors; default 500 to 599.
    pub outlier_detection_http_error_codes: Vec<u32>,
}

/// TLS towards the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTlsSettings {
    /// How.
    pub mode: ClientTlsMode,
    /// File of the own certificate.
    pub client_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the authorities.
    pub ca_certificates: String,
    /// File of revoked certificates.
    pub ca_crl: String,
    /// Secret with certificate, key and authorities.
    pub credential_name: String,
    /// Names, one of which the server must have.
    pub subject_alt_names: Vec<String>,
    /// Server name to send; default from the host.
    pub sni: String,
    /// Whether the server's certificate is not verified.
    pub insecure_skip_verify: Option<bool>,
}

/// How TLS is used towards the endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// Not.
    #[default]
    Disable,
    /// With the server's certificate only.
    Simple,
    /// With both sides' certificates, given here.
    Mutual,
    /// With the mesh's certificates.
    IstioMutual,
}

/// Tunnel through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["targetHost", "targetPort"]))]
pub struct TunnelSettings {
    /// CONNECT or POST.
    pub protocol: String,
    /// Where the tunnel ends.
    pub target_host: String,
    /// Port of it.
    pub target_port: u32,
}

/// PROXY protocol.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyProtocol {
    /// V1 or V2.
    pub version: String,
}

/// Limit on retries as a share of requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Percent of the active requests; default 20.
    pub percent: Option<f64>,
    /// Retries always allowed; default 3.
    pub min_retry_concurrency: Option<u32>,
    /// Window; not used by Envoy.
    pub budget_interval: Option<Duration>,
}
