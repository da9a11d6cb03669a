//! HTTP and network filters: which, in which order, with what settings.

use api::crd::gateway::ServerTlsMode;
use api::crd::sidecar::OutboundMode;
use api::mesh_config::{AccessLogEncoding, MeshConfig, NormalizationType};
use api::xds::core::http1_protocol_options::{HeaderKeyFormat, header_key_format::HeaderFormat};
use api::xds::core::{
    Http1ProtocolOptions, SubstitutionFormatString, TypedExtensionConfig, substitution_format_string::Format,
};
use api::xds::{Any, PEER_EXCHANGE, alpn, json_to_struct, metadata_exchange, pack, peer_metadata, stats};
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::listener::v3::{Filter, ListenerFilter, filter, listener_filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::{
    FilterConfig as GrpcStats, filter_config::PerMethodStatSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
    SetCurrentClientCertDetails, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use serde_json::{Value, json};

use super::wire::{ads, some_bool, some_duration};
use super::{jwt, rbac};
use crate::scope::Scope;

/// Whose traffic a chain carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// From the workload.
    Outbound,
    /// To the workload.
    Inbound,
    /// Through a gateway.
    Gateway,
}

/// Where an HTTP chain's routes come from.
pub(super) enum Routes {
    /// By name, over RDS.
    Named(String),
    /// Here.
    Inline(Box<RouteConfiguration>),
}

/// The HTTP connection manager.
pub(super) fn http(scope: &Scope, side: Side, stat_prefix: &str, routes: Routes) -> Filter {
    let mesh = &scope.snapshot.mesh;
    let specifier = match routes {
        Routes::Named(name) => RouteSpecifier::Rds(Rds { config_source: ads(), route_config_name: name }),
        Routes::Inline(routes) => RouteSpecifier::RouteConfig(*routes),
    };
    let client = match side {
        // A sidecar's own caller is its workload: nobody to speak of.
        Side::Outbound => ForwardClientCertDetails::Sanitize,
        Side::Inbound => ForwardClientCertDetails::AppendForward,
        Side::Gateway => ForwardClientCertDetails::SanitizeSet,
    };
    let details = SetCurrentClientCertDetails {
        subject: some_bool(true),
        dns: true,
        uri: true,
        cert: side == Side::Gateway && asks_clients(scope),
        ..SetCurrentClientCertDetails::default()
    };
    let mut manager = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(specifier),
        http_filters: http_filters(scope, side),
        access_log: access_log(mesh),
        // Callers that speak HTTP/1.0 are answered in kind; Istio refuses them unless told otherwise.
        http_protocol_options: Some(Http1ProtocolOptions { accept_http_10: true, ..http1(scope) }),
        stream_idle_timeout: some_duration(api::value::Duration::default()),
        use_remote_address: some_bool(side == Side::Gateway),
        generate_request_id: some_bool(true),
        forward_client_cert_details: client as i32,
        set_current_client_cert_details: (side != Side::Outbound).then_some(details),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".into(), ..UpgradeConfig::default() }],
        server_header_transformation: ServerHeaderTransformation::Overwrite as i32,
        ..HttpConnectionManager::default()
    };
    if side != Side::Outbound {
        manager.server_name = "istio-envoy".into();
    }
    normalize(mesh, &mut manager);
    Filter {
        name: "envoy.filters.network.http_connection_manager".into(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
    }
}

/// HTTP/1 as the proxy is to speak it: header names in lower case, or as they were spelled.
pub(super) fn http1(scope: &Scope) -> Http1ProtocolOptions {
    let kept = || HeaderKeyFormat {
        header_format: Some(HeaderFormat::StatefulFormatter(TypedExtensionConfig {
            name: "preserve_case".into(),
            typed_config: Some(pack(&PreserveCaseFormatterConfig::default())),
        })),
    };
    Http1ProtocolOptions {
        header_key_format: scope.proxy.preserves_header_case(&scope.snapshot.mesh).then(kept),
        ..Http1ProtocolOptions::default()
    }
}

/// Whether some server of the gateway asks its clients for certificates; without one there is none to pass on.
fn asks_clients(scope: &Scope) -> bool {
    let settings =
        scope.gateways.iter().flat_map(|gateway| &gateway.spec.servers).filter_map(|server| server.tls.as_ref());
    settings.into_iter().any(|tls| {
        matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual | ServerTlsMode::IstioMutual)
    })
}

fn normalize(mesh: &MeshConfig, manager: &mut HttpConnectionManager) {
    let kind = mesh.path_normalization.normalization;
    manager.normalize_path = some_bool(kind != NormalizationType::None);
    manager.merge_slashes = matches!(kind, NormalizationType::MergeSlashes | NormalizationType::DecodeAndMergeSlashes);
    let action = match kind {
        NormalizationType::DecodeAndMergeSlashes => PathWithEscapedSlashesAction::UnescapeAndForward,
        _ => PathWithEscapedSlashesAction::KeepUnchanged,
    };
    manager.path_with_escaped_slashes_action = action as i32;
}

/// The order of the HTTP filters. Peer data first, so that all others may use it; then policy; then what speaks of the
/// protocol; faults before CORS as in Istio; metrics behind all that may answer; the router last.
fn http_filters(scope: &Scope, side: Side) -> Vec<HttpFilter> {
    let extensions = scope.proxy.extensions;
    let mut filters = Vec::new();
    if extensions.metadata_exchange {
        filters.push(http_filter("istio.metadata_exchange", pack(&peer_data(side))));
    }
    if side != Side::Outbound {
        let written = |(name, config): rbac::Written| http_filter(name, config);
        filters.extend(rbac::asked_first(scope).into_iter().map(written));
        filters.extend(jwt::http(scope, side == Side::Gateway).map(|config| http_filter(jwt::NAME, config)));
        filters.extend(rbac::http(scope).into_iter().map(written));
    }
    let grpc = GrpcStats {
        emit_filter_state: true,
        per_method_stat_specifier: Some(PerMethodStatSpecifier::StatsForAllMethods(
            envoy_types::pb::google::protobuf::BoolValue { value: false },
        )),
        ..GrpcStats::default()
    };
    filters.push(http_filter("envoy.filters.http.grpc_stats", pack(&grpc)));
    if extensions.alpn && side != Side::Inbound {
        filters.push(http_filter("istio.alpn", pack(&alpn_override())));
    }
    filters.push(http_filter("envoy.filters.http.fault", pack(&HttpFault::default())));
    filters.push(http_filter("envoy.filters.http.cors", pack(&Cors {})));
    if extensions.stats {
        filters.push(http_filter("istio.stats", pack(&stats::PluginConfig::default())));
    }
    filters.push(http_filter("envoy.filters.http.router", pack(&Router::default())));
    filters
}

pub(super) fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

fn peer_data(side: Side) -> peer_metadata::Config {
    use peer_metadata::config::{
        DiscoveryMethod, IstioHeaders, PropagationMethod, discovery_method, propagation_method,
    };
    let find = DiscoveryMethod {
        method_specifier: Some(discovery_method::MethodSpecifier::IstioHeaders(IstioHeaders {
            skip_external_clusters: false,
        })),
    };
    let tell = PropagationMethod {
        method_specifier: Some(propagation_method::MethodSpecifier::IstioHeaders(IstioHeaders {
            skip_external_clusters: side != Side::Inbound,
        })),
    };
    match side {
        Side::Inbound => peer_metadata::Config {
            downstream_discovery: vec![find],
            downstream_propagation: vec![tell],
            ..Default::default()
        },
        _ => peer_metadata::Config {
            upstream_discovery: vec![find],
            upstream_propagation: vec![tell],
            ..Default::default()
        },
    }
}

/// What a client's sidecar offers in the handshake for each version of HTTP, so that the server's knows it for a peer.
fn alpn_override() -> alpn::FilterConfig {
    use alpn::filter_config::{AlpnOverride, Protocol};
    let row = |protocol: Protocol, own: &str, plain: &str| AlpnOverride {
        upstream_protocol: protocol as i32,
        alpn_override: vec![own.to_owned(), "istio".to_owned(), plain.to_owned()],
    };
    alpn::FilterConfig {
        alpn_override: vec![
            row(Protocol::Http10, "istio-http/1.0", "http/1.0"),
            row(Protocol::Http11, "istio-http/1.1", "http/1.1"),
            row(Protocol::Http2, "istio-h2", "h2"),
        ],
    }
}

/// Network filters that stand before a TCP proxy.
fn network_filters(scope: &Scope) -> Vec<Filter> {
    let mut filters = Vec::new();
    let network = |name: &str, config: Any| Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    };
    if scope.proxy.extensions.stats {
        filters.push(network("istio.stats", pack(&stats::PluginConfig::default())));
    }
    filters
}

/// A TCP proxy, with what stands before it.
pub(super) fn tcp(scope: &Scope, stat_prefix: &str, specifier: tcp_proxy::ClusterSpecifier) -> Vec<Filter> {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(specifier),
        access_log: access_log(&scope.snapshot.mesh),
        ..TcpProxy::default()
    };
    let mut filters = network_filters(scope);
    filters.push(Filter {
        name: "envoy.filters.network.tcp_proxy".into(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&proxy))),
    });
    filters
}

/// A TCP proxy behind the policies that bind the workload.
pub(super) fn tcp_guarded(scope: &Scope, stat_prefix: &str, specifier: tcp_proxy::ClusterSpecifier) -> Vec<Filter> {
    let guard = |(name, config): rbac::Written| Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    };
    rbac::network(scope).into_iter().map(guard).chain(tcp(scope, stat_prefix, specifier)).collect()
}

/// A TCP proxy for what a workload takes in: the peer's metadata stands before the bytes of those that speak the exchange.
pub(super) fn tcp_inbound(scope: &Scope, stat_prefix: &str, specifier: tcp_proxy::ClusterSpecifier) -> Vec<Filter> {
    let mut filters = tcp_guarded(scope, stat_prefix, specifier);
    if let Some((name, config)) = peer_exchange(scope) {
        filters.insert(0, Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) });
    }
    filters
}

/// Name and settings of the filter that exchanges metadata in front of a connection's bytes, for proxies that have it.
pub(super) fn peer_exchange(scope: &Scope) -> Option<(&'static str, Any)> {
    let config = metadata_exchange::MetadataExchange { protocol: PEER_EXCHANGE.into(), ..Default::default() };
    scope.proxy.extensions.peer_exchange.then(|| ("istio.metadata_exchange", pack(&config)))
}

/// The cluster for traffic whose destination is not known.
pub(super) fn unknown_destination(scope: &Scope) -> &'static str {
    match scope.view.outbound {
        OutboundMode::AllowAny => api::cluster_name::PASSTHROUGH,
        OutboundMode::RegistryOnly => api::cluster_name::BLACK_HOLE,
    }
}

/// Finds out whether a connection is TLS, and its server name and protocols.
pub(super) fn tls_inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", pack(&TlsInspector::default()))
}

/// Finds out whether a plaintext connection speaks HTTP.
pub(super) fn http_inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", pack(&HttpInspector {}))
}

/// Finds out where a redirected connection was meant to go.
pub(super) fn original_dst() -> ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", pack(&OriginalDst {}))
}

/// The application is called from its client's address, by connections whose answers the mark brings back.
pub(super) fn original_src() -> ListenerFilter {
    let source = OriginalSrc { mark: api::port::TPROXY_MARK, ..OriginalSrc::default() };
    listener_filter("envoy.filters.listener.original_src", pack(&source))
}

fn listener_filter(name: &str, config: Any) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    }
}

/// Istio's text format.
const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Istio's JSON keys.
const JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// The access log that the mesh's settings ask for.
pub(super) fn access_log(mesh: &MeshConfig) -> Vec<AccessLog> {
    if mesh.access_log_file.is_empty() {
        return Vec::new();
    }
    let format = match mesh.access_log_encoding {
        AccessLogEncoding::Text => {
            let mut text =
                if mesh.access_log_format.is_empty() { TEXT.to_owned() } else { mesh.access_log_format.clone() };
            if !text.ends_with('\n') {
                text.push('\n');
            }
            Format::TextFormatSource(api::xds::core::DataSource {
                specifier: Some(api::xds::core::data_source::Specifier::InlineString(text)),
                ..Default::default()
            })
        }
        AccessLogEncoding::Json => {
            let own: Option<Value> = serde_json::from_str(&mesh.access_log_format).ok().filter(Value::is_object);
            let default = || Value::Object(JSON.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect());
            Format::JsonFormat(json_to_struct(&own.unwrap_or_else(default)))
        }
    };
    let log = FileAccessLog {
        path: mesh.access_log_file.clone(),
        access_log_format: Some(AccessLogFormat::LogFormat(SubstitutionFormatString {
            format: Some(format),
            ..SubstitutionFormatString::default()
        })),
    };
    vec![AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(access_log::ConfigType::TypedConfig(pack(&log))),
        ..AccessLog::default()
    }]
}
