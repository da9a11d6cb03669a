//! VirtualService (networking.istio.io): how requests to a host are routed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::schema::{at_least_1ms, at_most_one};
use crate::value::{Duration, Labels, Percent, StringMatch};

/// The spec of a VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualService {
    /// Hosts whose traffic is routed: DNS names, wildcards, IP addresses; short names are of the object's namespace.
    pub hosts: Vec<String>,
    /// Gateways (`name` or `namespace/name`) and `mesh` for all sidecars; default `mesh`.
    pub gateways: Vec<String>,
    /// Rules for HTTP, first match wins.
    pub http: Vec<HttpRoute>,
    /// Rules for TLS that is passed through, by server name.
    pub tls: Vec<TlsRoute>,
    /// Rules for TCP.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see the object: `.`, `*` or names; default the mesh's.
    pub export_to: Vec<String>,
}

/// One HTTP rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// Name of the route, seen in the access log.
    pub name: String,
    /// Any of these must match; none matches all.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatchRequest>,
    /// Weighted destinations.
    pub route: Vec<HttpRouteDestination>,
    /// Answer with a redirect.
    pub redirect: Option<HttpRedirect>,
    /// Answer with a fixed response.
    pub direct_response: Option<HttpDirectResponse>,
    /// Take the rules of another VirtualService in place of this one.
    pub delegate: Option<Delegate>,
    /// Change path and authority before forwarding.
    pub rewrite: Option<HttpRewrite>,
    /// Time for the whole request; none by default.
    pub timeout: Option<Duration>,
    /// When to try again.
    pub retries: Option<HttpRetry>,
    /// Delays and errors to inject.
    pub fault: Option<HttpFaultInjection>,
    /// One destination that gets a copy of the requests.
    pub mirror: Option<Destination>,
    /// Share of requests copied to `mirror`; default 100.
    #[serde(alias = "mirror_percentage")]
    #[schemars(extend("x-aliases" = ["mirror_percentage"]))]
    pub mirror_percentage: Option<Percent>,
    /// Deprecated: whole percent of requests copied to `mirror`.
    #[serde(alias = "mirror_percent")]
    #[schemars(extend("x-aliases" = ["mirror_percent"]))]
    pub mirror_percent: Option<u32>,
    /// Destinations that get a copy of the requests, each with its share.
    pub mirrors: Vec<HttpMirrorPolicy>,
    /// Cross-origin requests.
    pub cors_policy: Option<CorsPolicy>,
    /// Header changes for all destinations.
    pub headers: Option<Headers>,
}

/// What a request must look like: all given fields must match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatchRequest {
    /// Name of the match, appended to the route's name.
    pub name: String,
    /// Path.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Authority (`Host`).
    pub authority: Option<StringMatch>,
    /// Headers that must match; an empty match means "is there".
    pub headers: BTreeMap<String, StringMatch>,
    /// Port the request was sent to; for a gateway, the server's port.
    pub port: Option<u32>,
    /// Labels of the calling workload (sidecars only).
    pub source_labels: Labels,
    /// Gateways that this match is for; overrides those of the object.
    pub gateways: Vec<String>,
    /// Query parameters that must match.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Compare exact and prefix paths without regard to case.
    pub ignore_uri_case: bool,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Namespace of the calling workload (sidecars only).
    pub source_namespace: String,
    /// Prefix of per-route statistics.
    pub stat_prefix: String,
}

/// A weighted destination.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["destination"]))]
pub struct HttpRouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Share among the destinations of the rule.
    pub weight: u32,
    /// Header changes for this destination.
    pub headers: Option<Headers>,
}

/// A service, perhaps a subset and port of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["host"]))]
pub struct Destination {
    /// Host in the registry; short names are of the object's namespace.
    pub host: String,
    /// Subset that a DestinationRule defines.
    pub subset: String,
    /// Port of the service; may be left out if it has one.
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    /// Number.
    pub number: u16,
}

/// Another VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; default that of the root.
    pub namespace: String,
}

/// Header changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// On the request.
    pub request: Option<HeaderOperations>,
    /// On the response.
    pub response: Option<HeaderOperations>,
}

/// One set of header changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderOperations {
    /// Overwrite.
    pub set: Labels,
    /// Append.
    pub add: Labels,
    /// Remove.
    pub remove: Vec<String>,
}

/// A redirect.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRedirect {
    /// New path, the whole of it.
    pub uri: String,
    /// New beginning of the path, in place of the matched prefix.
    pub prefix_rewrite: String,
    /// New authority.
    pub authority: String,
    /// New port.
    pub port: Option<u32>,
    /// Where the port comes from if not given.
    pub derive_port: Option<DerivePort>,
    /// New scheme.
    pub scheme: String,
    /// Status; default 301.
    pub redirect_code: Option<u32>,
}

/// Source of a redirect's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// 80 or 443 by the scheme.
    FromProtocolDefault,
    /// The port of the request.
    FromRequestPort,
}

/// A fixed response.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["status"]))]
pub struct HttpDirectResponse {
    /// Status.
    pub status: u32,
    /// Body.
    pub body: Option<HttpBody>,
}

/// The body of a fixed response.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("oneOf" = at_most_one(&["string", "bytes"])))]
pub struct HttpBody {
    /// As text.
    pub string: Option<String>,
    /// As base64.
    pub bytes: Option<String>,
}

/// Changes of path and authority.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRewrite {
    /// New path, or new beginning where a prefix was matched.
    pub uri: String,
    /// New authority.
    pub authority: String,
    /// New path by regular expression.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A regular expression and what replaces its match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RegexRewrite {
    /// RE2 expression.
    #[serde(rename = "match")]
    pub matches: String,
    /// Replacement, with `\1` for groups.
    pub rewrite: String,
}

/// When to try again.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRetry {
    /// How many more tries; 0 switches retries off.
    pub attempts: i32,
    /// Time for each try; default the timeout of the route.
    pub per_try_timeout: Option<Duration>,
    /// Conditions, Envoy's and gRPC's names and status codes, separated by commas.
    pub retry_on: String,
    /// Whether other localities may be tried.
    pub retry_remote_localities: Option<bool>,
    /// Whether hosts already tried are avoided; default yes.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base of the pause between tries; default 25 ms.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub backoff: Option<Duration>,
}

/// Delays and errors to inject.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpFaultInjection {
    /// Delay.
    pub delay: Option<FaultDelay>,
    /// Error.
    pub abort: Option<FaultAbort>,
}

/// A delay.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultDelay {
    /// How long.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub fixed_delay: Option<Duration>,
    /// Not used by Istio's control plane.
    pub exponential_delay: Option<Duration>,
    /// Share of requests; absent is none.
    pub percentage: Option<Percent>,
    /// Deprecated: whole percent of requests.
    pub percent: Option<u32>,
}

/// An error.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultAbort {
    /// HTTP status.
    pub http_status: Option<u32>,
    /// gRPC status by name.
    pub grpc_status: String,
    /// Not used by Istio's control plane.
    pub http2_error: String,
    /// Share of requests; absent is none.
    pub percentage: Option<Percent>,
}

/// A mirror.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["destination"]))]
pub struct HttpMirrorPolicy {
    /// Where to.
    pub destination: Destination,
    /// Share of requests; default 100.
    pub percentage: Option<Percent>,
}

/// Cross-origin resource sharing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Deprecated: exact origins.
    pub allow_origin: Vec<String>,
    /// Origins.
    pub allow_origins: Vec<StringMatch>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Headers.
    pub allow_headers: Vec<String>,
    /// Headers that the browser may read.
    pub expose_headers: Vec<String>,
    /// How long a preflight's answer may be kept.
    pub max_age: Option<Duration>,
    /// Whether credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// What happens to preflights of other origins.
    pub unmatched_preflights: Option<UnmatchedPreflights>,
}

/// What happens to preflights of other origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnmatchedPreflights {
    /// As `FORWARD`.
    Unspecified,
    /// They are forwarded.
    Forward,
    /// They are answered without CORS headers.
    Ignore,
}

/// One TLS rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["match"]))]
pub struct TlsRoute {
    /// Any of these must match.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatchAttributes>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// What a TLS connection must look like.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["sniHosts"]))]
pub struct TlsMatchAttributes {
    /// Server names.
    pub sni_hosts: Vec<String>,
    /// Addresses the connection was meant for.
    pub destination_subnets: Vec<String>,
    /// Port.
    pub port: Option<u32>,
    /// Labels of the calling workload.
    pub source_labels: Labels,
    /// Gateways this match is for.
    pub gateways: Vec<String>,
    /// Namespace of the calling workload.
    pub source_namespace: String,
}

/// One TCP rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// Any of these must match; none matches all.
    #[serde(rename = "match")]
    pub matches: Vec<L4MatchAttributes>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// What a TCP connection must look like.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct L4MatchAttributes {
    /// Addresses the connection was meant for.
    pub destination_subnets: Vec<String>,
    /// Port.
    pub port: Option<u32>,
    /// Not used by Istio's control plane.
    pub source_subnet: String,
    /// Labels of the calling workload.
    pub source_labels: Labels,
    /// Gateways this match is for.
    pub gateways: Vec<String>,
    /// Namespace of the calling workload.
    pub source_namespace: String,
}

/// A weighted destination of TLS or TCP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["destination"]))]
pub struct RouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Share among the destinations of the rule.
    pub weight: u32,
}
