//! What is done with a connection: a filter chain's match and its HTTP or TCP settings.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use ipnet::IpNet;

use super::rbac::Guard;
use super::route::RouteTable;
use super::tls_terms::ServerTerms;
use crate::filter::{ConnectionQuestion, HttpFilter};
use crate::telemetry::access_log::AccessLog;

/// One filter chain.
#[derive(Debug)]
pub struct Chain {
    /// Its name.
    pub name: Arc<str>,
    /// For which connections.
    pub matches: ChainMatch,
    /// TLS is ended under these terms.
    pub tls: Option<Arc<ServerTerms>>,
    /// What then.
    pub network: Network,
}

impl Chain {
    /// Whether this is the other one, perhaps in a newer form. Names alone do not tell: many servers give none, or one to all
    /// chains of a port.
    pub fn takes_over(&self, other: &Chain) -> bool {
        self.name == other.name && self.matches == other.matches
    }
}

/// Which connections a chain takes (Envoy `FilterChainMatch`); empty matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// Destination port.
    pub port: Option<u16>,
    /// Destination addresses.
    pub destinations: Vec<IpNet>,
    /// Server names: exact, `*.suffix`.
    pub server_names: Vec<String>,
    /// TLS, plaintext or either.
    pub transport: Option<Transport>,
    /// One of the protocols that the client offers (TLS) or that was detected.
    pub protocols: Vec<String>,
    /// The client's address is the proxy's own or loopback (`SAME_IP_OR_LOOPBACK`), or is not (`EXTERNAL`).
    pub local_source: Option<bool>,
    /// Client's addresses.
    pub sources: Vec<IpNet>,
    /// Client's ports.
    pub source_ports: Vec<u16>,
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Not TLS.
    Raw,
    /// A TLS client hello.
    Tls,
}

/// What is done.
#[derive(Clone, Debug)]
pub enum Network {
    /// HTTP.
    Http(Arc<HttpChain>),
    /// Bytes.
    Tcp(Arc<TcpChain>),
    /// The connection is closed at once (a chain without filters).
    Close,
}

/// Settings of an HTTP connection manager.
#[derive(Debug)]
pub struct HttpChain {
    /// Name in statistics.
    pub stat_prefix: Arc<str>,
    /// Only this version, or both.
    pub codec: Codec,
    /// Where routes are.
    pub routes: RouteSource,
    /// Filters in order, without the router.
    pub filters: Vec<(Arc<str>, Arc<dyn HttpFilter>)>,
    /// Some filter asks who the client is.
    pub asks_client: bool,
    /// The connection's peer is the client (edge); else `x-forwarded-for` is believed.
    pub use_remote_address: bool,
    /// Trusted proxies in front.
    pub xff_trusted_hops: u32,
    /// The peer's address is not appended to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// `server` header of answers.
    pub server_name: HeaderValue,
    /// What is done with it.
    pub server_header: ServerHeader,
    /// `x-forwarded-client-cert`.
    pub client_cert: ClientCert,
    /// RFC 3986 dot segments are removed and backslashes become slashes.
    pub normalize_path: bool,
    /// Neighbouring slashes become one.
    pub merge_slashes: bool,
    /// `%2F` and `%5C` in paths.
    pub escaped_slashes: EscapedSlashes,
    /// Requests without `x-request-id` get one.
    pub generate_request_id: bool,
    /// An edge keeps a caller's `x-request-id`.
    pub preserve_external_request_id: bool,
    /// Answers carry the request's id.
    pub request_id_in_response: bool,
    /// Time without a byte; zero: none.
    pub stream_idle_timeout: Duration,
    /// Time to receive a request's headers.
    pub request_headers_timeout: Duration,
    /// Connections without a request are closed after this; zero: never.
    pub idle_timeout: Duration,
    /// Requests on one connection; 0: no limit.
    pub max_requests_per_connection: u32,
    /// Concurrent HTTP/2 streams.
    pub max_concurrent_streams: u32,
    /// Upgrades allowed, lower case.
    pub upgrades: Vec<(String, bool)>,
    /// Keep the spelling of header names on HTTP/1.
    pub preserve_header_case: bool,
    /// Cut the port off the authority.
    pub strip_port: StripPort,
    /// `x-envoy-*` headers are not added.
    pub suppress_envoy_headers: bool,
    /// Istio's metrics are counted.
    pub stats: bool,
    /// Peer metadata is exchanged in headers.
    pub peer_metadata: PeerMetadata,
    /// Mesh connections offer Istio's protocol names.
    pub alpn_override: bool,
    /// Logs.
    pub access_logs: Vec<AccessLog>,
    /// Request headers that the logs ask for.
    pub logged_request_headers: Vec<http::HeaderName>,
    /// Answer headers that the logs ask for.
    pub logged_response_headers: Vec<http::HeaderName>,
}

/// Which HTTP versions are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN or the first bytes.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where an HTTP chain finds its routes.
#[derive(Debug)]
pub enum RouteSource {
    /// In the snapshot, under this name.
    Named(Arc<str>),
    /// Here.
    Inline(Arc<RouteTable>),
}

/// What is done with the `server` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    /// Ours replaces it.
    Overwrite,
    /// Ours if there is none.
    AppendIfAbsent,
    /// Nothing.
    PassThrough,
}

/// How `x-forwarded-client-cert` is treated and which parts of ours it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCert {
    /// Mode.
    pub mode: ClientCertMode,
    /// `Cert`.
    pub cert: bool,
    /// `Subject`.
    pub subject: bool,
    /// `URI`.
    pub uri: bool,
    /// `DNS`.
    pub dns: bool,
}

/// Envoy's `ForwardClientCertDetails`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertMode {
    /// Removed.
    #[default]
    Sanitize,
    /// Kept on mutual TLS.
    ForwardOnly,
    /// Ours is appended on mutual TLS.
    AppendForward,
    /// Replaced by ours on mutual TLS, else removed.
    SanitizeSet,
    /// Kept.
    AlwaysForwardOnly,
}

/// What happens to a path with `%2F` or `%5C`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Nothing.
    Keep,
    /// Status 400.
    Reject,
    /// Redirect to the path without escapes.
    Redirect,
    /// Forward without escapes.
    Unescape,
}

/// Which port is cut off the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripPort {
    /// None.
    None,
    /// The one that equals the destination's.
    Matching,
    /// Any.
    Any,
}

/// Where Istio's peer metadata headers are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerMetadata {
    /// Read from requests.
    pub from_client: bool,
    /// Read from answers.
    pub from_upstream: bool,
    /// Written to answers.
    pub to_client: bool,
    /// Written to requests.
    pub to_upstream: bool,
}

/// One step of the decision who may connect.
#[derive(Debug)]
pub enum Gate {
    /// Policies.
    Rules(Guard),
    /// Somebody else.
    Ask(Arc<dyn ConnectionQuestion>),
}

/// Settings of a TCP proxy.
#[derive(Debug)]
pub struct TcpChain {
    /// Name in statistics.
    pub stat_prefix: Arc<str>,
    /// Clusters with weights; one has the weight 1.
    pub clusters: Vec<(Arc<str>, u32)>,
    /// Time without a byte; zero: none.
    pub idle_timeout: Duration,
    /// Tries to connect.
    pub connect_attempts: u32,
    /// The client's metadata is read in front of its bytes and ours is told, if TLS negotiated that.
    pub exchange: bool,
    /// Istio's metrics are counted.
    pub stats: bool,
    /// Who may connect, in the order in which it is decided.
    pub gates: Vec<Gate>,
    /// Logs.
    pub access_logs: Vec<AccessLog>,
}

impl Chain {
    /// Whether HTTP is served here.
    pub fn is_http(&self) -> bool {
        matches!(self.network, Network::Http(_))
    }
}
