//! What the tests are made of: resources, certificates, applications, clients.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::xds::core::{Address, SocketAddress, TransportSocket, address, socket_address, transport_socket};
use api::xds::{Any, ResourceKind, pack};
use bytes::Bytes;
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, CommonLbConfig, EdsClusterConfig};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, OutlierDetection, circuit_breakers};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, RequestMirrorPolicy};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy, Route as XdsRoute, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthz;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, SetCurrentClientCertDetails, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proxy::app::{Running, Settings};
use proxy::secret::{Secret, Store};
use proxy::xds::resources::{Resource, ResourceSet};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What varies between tests.
pub(crate) struct Route {
    pub expected: &'static str,
    pub retry_on: &'static str,
    pub timeout: Duration,
    pub abort: Option<u32>,
    pub weights: Option<(u32, u32)>,
    pub mirror: Option<SocketAddr>,
    pub max_requests: Option<u32>,
    pub eject_after: Option<u32>,
    /// The application is called in the clear, over so many connections at most.
    pub direct: Option<u32>,
    /// The client's cluster is STRICT_DNS: its endpoint is this name with the port of what it calls.
    pub named: Option<&'static str>,
    /// Plaintext is redirected, and only `/known` has a route.
    pub https_only: bool,
    /// File of the client's access log.
    pub log: Option<String>,
    /// Somebody is to see bodies first, and clients have so long for each part of one.
    pub seen: Option<Duration>,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            expected: "spiffe://cluster.local/ns/shop/sa/server",
            retry_on: "",
            timeout: Duration::ZERO,
            abort: None,
            weights: None,
            mirror: None,
            max_requests: None,
            eject_after: None,
            direct: None,
            https_only: false,
            named: None,
            log: None,
            seen: None,
        }
    }
}

/// Two proxies.
pub(crate) struct Mesh {
    /// Credentials of a workload of the mesh whose proxy is not ours.
    foreign: Arc<Store>,
    pub client: Running,
    pub server: Running,
    resources: Mutex<ResourceSet>,
    inbound: Mutex<ResourceSet>,
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn store(&self, account: &str) -> Arc<Store> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![SanType::URI(format!("spiffe://cluster.local/ns/shop/sa/{account}").try_into().unwrap())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = CertifiedKey::from_der(vec![certificate.der().clone()], private, &proxy::tls::provider()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let store = Arc::new(Store::default());
        store.update([
            ("default".to_owned(), Some(Secret::Certificate(Arc::new(key)))),
            ("ROOTCA".to_owned(), Some(Secret::Roots(Arc::new(roots)))),
        ]);
        store
    }
}

fn settings(name: &str) -> Settings {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let metadata = api::node::NodeMetadata {
        name: format!("{name}-1"),
        namespace: "shop".into(),
        workload_name: format!("{name}-v1"),
        labels: [("app".to_owned(), name.to_owned())].into(),
        ..Default::default()
    };
    Settings {
        node_id: format!("sidecar~127.0.0.1~{name}-1.shop~shop.svc.cluster.local"),
        metadata,
        admin: any,
        status: any,
        ready: any,
        prometheus: any,
        workers: 2,
        drain: Duration::from_secs(10),
        drain_delay: Duration::ZERO,
        dns: None,
        pod: Default::default(),
    }
}

fn address(to: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: to.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(to.port().into())),
            ..Default::default()
        })),
    }
}

fn endpoints(name: &str, to: SocketAddr) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address: Some(address(to)), ..Default::default() };
    let host =
        LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![host], ..Default::default() }],
        ..Default::default()
    }
}

fn common(expected: Option<&str>, alpn: &[&str]) -> CommonTlsContext {
    let sds = |name: &str| SdsSecretConfig { name: name.into(), ..Default::default() };
    let sans = expected.map(|name| SubjectAltNameMatcher {
        san_type: 3,
        matcher: Some(StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::Exact(name.into())),
            ..Default::default()
        }),
        ..Default::default()
    });
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![sds("default")],
        alpn_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: sans.into_iter().collect(),
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(sds("ROOTCA")),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn socket(any: Any) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any)),
    }
}

fn cluster(name: &str, to: Option<SocketAddr>, tls: Option<&str>) -> Cluster {
    let options = envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions {
        upstream_protocol_options: Some(
            envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(Default::default()),
        ),
        ..Default::default()
    };
    let context = |expected| UpstreamTlsContext {
        common_tls_context: Some(common(Some(expected), &["istio"])),
        sni: "outbound_.80_._.server.shop".into(),
        ..Default::default()
    };
    Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(if to.is_some() { 0 } else { 3 })),
        eds_cluster_config: to.is_none().then(|| EdsClusterConfig { service_name: name.into(), ..Default::default() }),
        load_assignment: to.map(|to| endpoints(name, to)),
        connect_timeout: Some(ProtoDuration { seconds: 5, nanos: 0 }),
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack(&options),
        )]
        .into(),
        transport_socket: tls.map(|expected| socket(pack(&context(expected)))),
        ..Default::default()
    }
}

fn http_filter(name: &str, any: Any) -> HttpFilter {
    HttpFilter { name: name.into(), config_type: Some(http_filter::ConfigType::TypedConfig(any)), ..Default::default() }
}

/// Asks a cluster that is not there, with the beginning of the body.
fn asking_about_bodies() -> ExtAuthz {
    use envoy_types::pb::envoy::config::core::v3::GrpcService;
    use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
    use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{BufferSettings, ext_authz::Services};
    let nobody = EnvoyGrpc { cluster_name: "nobody".into(), ..Default::default() };
    let service = GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(nobody)), ..Default::default() };
    ExtAuthz {
        transport_api_version: 2,
        services: Some(Services::GrpcService(service)),
        with_request_body: Some(BufferSettings { max_request_bytes: 1024, ..Default::default() }),
        ..Default::default()
    }
}

fn manager(routes: RouteSpecifier, inbound: bool) -> HttpConnectionManager {
    use api::xds::peer_metadata::config::{
        DiscoveryMethod, IstioHeaders, PropagationMethod, discovery_method, propagation_method,
    };
    let discovery = vec![DiscoveryMethod {
        method_specifier: Some(discovery_method::MethodSpecifier::IstioHeaders(IstioHeaders::default())),
    }];
    let propagation = vec![PropagationMethod {
        method_specifier: Some(propagation_method::MethodSpecifier::IstioHeaders(IstioHeaders::default())),
    }];
    let peer = match inbound {
        true => api::xds::peer_metadata::Config {
            downstream_discovery: discovery,
            downstream_propagation: propagation,
            ..Default::default()
        },
        false => api::xds::peer_metadata::Config {
            upstream_discovery: discovery,
            upstream_propagation: propagation,
            ..Default::default()
        },
    };
    let fault = HttpFault::default();
    HttpConnectionManager {
        stat_prefix: "test".into(),
        server_name: if inbound { "istio-envoy" } else { "envoy" }.into(),
        stream_idle_timeout: Some(ProtoDuration::default()),
        forward_client_cert_details: if inbound { 2 } else { 0 },
        set_current_client_cert_details: Some(SetCurrentClientCertDetails { uri: true, ..Default::default() }),
        upgrade_configs: ["websocket", "CONNECT"]
            .map(|kind| UpgradeConfig { upgrade_type: kind.into(), ..Default::default() })
            .to_vec(),
        http_filters: vec![
            http_filter("istio.metadata_exchange", pack(&peer)),
            http_filter("envoy.filters.http.fault", pack(&fault)),
            http_filter("istio.alpn", pack(&api::xds::alpn::FilterConfig::default())),
            http_filter("istio.stats", pack(&api::xds::stats::PluginConfig::default())),
            http_filter("envoy.filters.http.router", pack(&Router::default())),
        ],
        normalize_path: Some(BoolValue { value: true }),
        route_specifier: Some(routes),
        ..Default::default()
    }
}

fn network(any: Any) -> Filter {
    Filter { name: "network".into(), config_type: Some(filter::ConfigType::TypedConfig(any)) }
}

fn listener(name: &str, direction: i32, chains: Vec<FilterChain>, inspect: bool) -> Listener {
    use envoy_types::pb::envoy::config::listener::v3::{ListenerFilter, listener_filter};
    use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
    use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
    let filter = |name: &str, any| ListenerFilter {
        name: name.into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    };
    Listener {
        name: name.into(),
        address: Some(address(([127, 0, 0, 1], 0).into())),
        traffic_direction: direction,
        filter_chains: chains,
        listener_filters: if inspect {
            vec![filter("tls", pack(&TlsInspector::default())), filter("http", pack(&HttpInspector::default()))]
        } else {
            vec![]
        },
        listener_filters_timeout: Some(ProtoDuration::default()),
        ..Default::default()
    }
}

fn routes(route: &Route) -> RouteConfiguration {
    let retry = (!route.retry_on.is_empty()).then(|| RetryPolicy {
        retry_on: route.retry_on.into(),
        num_retries: Some(UInt32Value { value: 2 }),
        ..Default::default()
    });
    let weighted = |(real, ghost)| {
        let row = |name: &str, weight| ClusterWeight {
            name: name.into(),
            weight: Some(UInt32Value { value: weight }),
            ..Default::default()
        };
        ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: vec![row("outbound", real), row("ghost", ghost)],
            ..Default::default()
        })
    };
    let action = RouteAction {
        cluster_specifier: Some(route.weights.map_or_else(|| ClusterSpecifier::Cluster("outbound".into()), weighted)),
        timeout: Some(ProtoDuration {
            seconds: route.timeout.as_secs() as i64,
            nanos: route.timeout.subsec_nanos() as i32,
        }),
        retry_policy: retry,
        request_mirror_policies: route
            .mirror
            .iter()
            .map(|_| RequestMirrorPolicy { cluster: "mirror".into(), ..Default::default() })
            .collect(),
        ..Default::default()
    };
    let fault = route.abort.map(|status| HttpFault {
        abort: Some(FaultAbort {
            percentage: Some(FractionalPercent { numerator: 100, denominator: 0 }),
            error_type: Some(fault_abort::ErrorType::HttpStatus(status)),
            ..Default::default()
        }),
        ..Default::default()
    });
    let metadata = api::xds::json_to_struct(
        &serde_json::json!({"config": "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/route"}),
    );
    let xds = XdsRoute {
        name: "default".into(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(if route.https_only { "/known" } else { "/" }.into())),
            ..Default::default()
        }),
        metadata: Some(api::xds::core::Metadata {
            filter_metadata: [("istio".to_owned(), metadata)].into(),
            ..Default::default()
        }),
        typed_per_filter_config: fault
            .iter()
            .map(|fault| ("envoy.filters.http.fault".to_owned(), pack(fault)))
            .collect(),
        action: Some(Action::Route(action)),
        ..Default::default()
    };
    RouteConfiguration {
        name: "80".into(),
        virtual_hosts: vec![VirtualHost {
            name: "server.shop:80".into(),
            domains: vec!["*".into()],
            require_tls: if route.https_only { 2 } else { 0 },
            routes: vec![connect_route("outbound", false), xds],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn insert(set: &mut ResourceSet, kind: ResourceKind, name: &str, version: &str, body: Any) {
    set.of_mut(kind).insert(name.to_owned(), Resource { version: version.to_owned(), body: body.into() });
}

/// CONNECT requests: passed on, or ended here so that the cluster gets the bytes.
fn connect_route(cluster: &str, ends: bool) -> XdsRoute {
    use envoy_types::pb::envoy::config::route::v3::route_action::upgrade_config::ConnectConfig;
    use envoy_types::pb::envoy::config::route::v3::route_match::ConnectMatcher;
    let upgrade = envoy_types::pb::envoy::config::route::v3::route_action::UpgradeConfig {
        upgrade_type: "CONNECT".into(),
        connect_config: ends.then(ConnectConfig::default),
        ..Default::default()
    };
    XdsRoute {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher::default())),
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
            timeout: Some(ProtoDuration::default()),
            upgrade_configs: vec![upgrade],
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn inbound_routes(header: Option<&str>) -> RouteConfiguration {
    use api::xds::core::{HeaderValue as XdsHeader, HeaderValueOption};
    let added = |value: &str| HeaderValueOption {
        header: Some(XdsHeader { key: "x-inbound".into(), value: value.into(), ..Default::default() }),
        ..Default::default()
    };
    RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: "inbound".into(),
            domains: vec!["*".into()],
            response_headers_to_add: header.into_iter().map(added).collect(),
            routes: vec![
                connect_route("inbound|80||", true),
                XdsRoute {
                    r#match: Some(RouteMatch {
                        path_specifier: Some(PathSpecifier::Prefix("/".into())),
                        ..Default::default()
                    }),
                    action: Some(Action::Route(RouteAction {
                        cluster_specifier: Some(ClusterSpecifier::Cluster("inbound|80||".into())),
                        timeout: Some(ProtoDuration::default()),
                        ..Default::default()
                    })),
                    ..Default::default()
                },
            ],
            ..Default::default()
        }],
        ..Default::default()
    }
}

impl Mesh {
    /// As `virtualOutbound`: the socket's own listener leads nowhere, another without a socket has its address.
    pub(crate) fn hand_over(&self) {
        use envoy_types::pb::envoy::config::listener::v3::ListenerFilter;
        use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType;
        use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
        let mut set = self.resources.lock().unwrap();
        let old = set.of(ResourceKind::Listener)["outbound"].body.clone();
        let mut catch_all: Listener = api::xds::unpack(&old).unwrap();
        let mut handed = catch_all.clone();
        handed.name = "handed".into();
        handed.address = Some(address(self.outbound()));
        handed.bind_to_port = Some(BoolValue { value: false });
        catch_all.use_original_dst = Some(BoolValue { value: true });
        catch_all.listener_filters.push(ListenerFilter {
            name: "original_dst".into(),
            config_type: Some(ConfigType::TypedConfig(pack(&OriginalDst::default()))),
            ..Default::default()
        });
        let nowhere = TcpProxy {
            stat_prefix: "nowhere".into(),
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("BlackHoleCluster".into())),
            ..Default::default()
        };
        catch_all.filter_chains = vec![FilterChain { filters: vec![network(pack(&nowhere))], ..Default::default() }];
        insert(&mut set, ResourceKind::Listener, "outbound", "handing", pack(&catch_all));
        assert_eq!(self.client.apply(&set), []);
        insert(&mut set, ResourceKind::Listener, "handed", "1", pack(&handed));
    }

    /// The listener without a socket comes into effect.
    pub(crate) fn hand_over_to(&self) {
        assert_eq!(self.client.apply(&self.resources.lock().unwrap()), []);
    }

    /// The server takes plaintext beside mutual TLS, told apart by the first bytes.
    pub(crate) fn make_permissive(&self) {
        let mut set = self.inbound.lock().unwrap();
        let old = set.of(ResourceKind::Listener)["inbound"].body.clone();
        let mut listener: Listener = api::xds::unpack(&old).unwrap();
        let mut plain = listener.filter_chains[0].clone();
        plain.name = "inbound-plain".into();
        plain.transport_socket = None;
        plain.filter_chain_match = Some(FilterChainMatch {
            transport_protocol: "raw_buffer".into(),
            application_protocols: vec!["http/1.1".into(), "h2c".into()],
            ..Default::default()
        });
        listener.filter_chains.push(plain);
        insert(&mut set, ResourceKind::Listener, "inbound", "permissive", pack(&listener));
        assert_eq!(self.server.apply(&set), []);
    }

    /// Back to mutual TLS alone.
    pub(crate) fn make_strict(&self) {
        let mut set = self.inbound.lock().unwrap();
        let old = set.of(ResourceKind::Listener)["inbound"].body.clone();
        let mut listener: Listener = api::xds::unpack(&old).unwrap();
        listener.filter_chains.truncate(1);
        insert(&mut set, ResourceKind::Listener, "inbound", "strict", pack(&listener));
        assert_eq!(self.server.apply(&set), []);
    }

    /// Other routes in the chain of the server's listener.
    pub(crate) fn apply_inbound_header(&self, value: &str) {
        let mut set = self.inbound.lock().unwrap();
        let old = set.of(ResourceKind::Listener)["inbound"].body.clone();
        let mut listener: Listener = api::xds::unpack(&old).unwrap();
        let manager = manager(RouteSpecifier::RouteConfig(inbound_routes(Some(value))), true);
        listener.filter_chains[0].filters = vec![network(pack(&manager))];
        insert(&mut set, ResourceKind::Listener, "inbound", value, pack(&listener));
        assert_eq!(self.server.apply(&set), []);
    }

    /// HTTP from the client's listener through mutual TLS to the application.
    pub(crate) async fn start(app: &App, route: Route) -> Mesh {
        let inline = inbound_routes(None);
        let inbound = network(pack(&manager(RouteSpecifier::RouteConfig(inline), true)));
        let mut manager =
            manager(RouteSpecifier::Rds(Rds { route_config_name: "80".into(), ..Default::default() }), false);
        manager.access_log = route
            .log
            .iter()
            .map(|path| AccessLog {
                name: "file".into(),
                config_type: Some(access_log::ConfigType::TypedConfig(pack(&FileAccessLog {
                    path: path.clone(),
                    ..Default::default()
                }))),
                ..Default::default()
            })
            .collect();
        if let Some(idle) = route.seen {
            manager.stream_idle_timeout = Some(ProtoDuration { seconds: 0, nanos: idle.subsec_nanos() as i32 });
            manager.http_filters.insert(0, http_filter("envoy.filters.http.ext_authz", pack(&asking_about_bodies())));
        }
        let outbound = network(pack(&manager));
        Self::with(app, route, inbound, outbound, false).await
    }

    /// Bytes the same way.
    pub(crate) async fn start_tcp(app: &App) -> Mesh {
        let tcp = |cluster: &str| TcpProxy {
            stat_prefix: "tcp".into(),
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
            ..Default::default()
        };
        let inbound = network(pack(&tcp("inbound|80||")));
        let outbound = network(pack(&tcp("outbound")));
        Self::with(app, Route::default(), inbound, outbound, true).await
    }

    async fn with(app: &App, route: Route, inbound: Filter, outbound: Filter, inspect: bool) -> Mesh {
        let authority = Authority::new();
        let server = Running::start(settings("server"), authority.store("server")).await.unwrap();
        let stats = || network(pack(&api::xds::stats::PluginConfig::default()));
        let with_stats = |filter: Filter| if inspect { vec![stats(), filter] } else { vec![filter] };
        let tls = DownstreamTlsContext {
            common_tls_context: Some(common(None, if inspect { &["istio"] } else { &["h2", "http/1.1"] })),
            require_client_certificate: Some(BoolValue { value: true }),
            ..Default::default()
        };
        let chain = FilterChain {
            name: "inbound".into(),
            filter_chain_match: Some(FilterChainMatch { transport_protocol: "tls".into(), ..Default::default() }),
            filters: with_stats(inbound),
            transport_socket: Some(socket(pack(&tls))),
            ..Default::default()
        };
        let mut set = ResourceSet::default();
        insert(
            &mut set,
            ResourceKind::Cluster,
            "inbound|80||",
            "1",
            pack(&cluster("inbound|80||", Some(app.address), None)),
        );
        insert(&mut set, ResourceKind::Listener, "inbound", "1", pack(&listener("inbound", 1, vec![chain], true)));
        assert_eq!(server.apply(&set), []);
        let inbound_set = set;
        let to = server.listener_addr("inbound").unwrap();

        let client = Running::start(settings("client"), authority.store("client")).await.unwrap();
        let mut set = ResourceSet::default();
        let mut outbound_cluster = cluster("outbound", None, route.direct.is_none().then_some(route.expected));
        let value = |value| Some(UInt32Value { value });
        let to = if route.direct.is_some() { app.address } else { to };
        let limited = route.max_requests.is_some() || route.direct.is_some();
        outbound_cluster.circuit_breakers = limited.then(|| CircuitBreakers {
            thresholds: vec![circuit_breakers::Thresholds {
                max_requests: route.max_requests.map(|value| UInt32Value { value }),
                max_connections: route.direct.map(|value| UInt32Value { value }),
                ..Default::default()
            }],
            ..Default::default()
        });
        outbound_cluster.outlier_detection = route.eject_after.map(|failures| OutlierDetection {
            consecutive_5xx: value(failures),
            max_ejection_percent: value(100),
            ..Default::default()
        });
        if route.eject_after.is_some() {
            outbound_cluster.common_lb_config = Some(CommonLbConfig {
                healthy_panic_threshold: Some(envoy_types::pb::envoy::r#type::v3::Percent { value: 0.0 }),
                ..Default::default()
            });
        }
        if let Some(name) = route.named {
            let mut assignment = endpoints("outbound", to);
            for host in assignment.endpoints.iter_mut().flat_map(|group| &mut group.lb_endpoints) {
                let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &mut host.host_identifier else { continue };
                if let Some(address::Address::SocketAddress(socket)) = &mut endpoint.address.as_mut().unwrap().address {
                    socket.address = name.into();
                }
            }
            // STRICT_DNS, V4_ONLY.
            outbound_cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(1));
            outbound_cluster.dns_lookup_family = 1;
            outbound_cluster.eds_cluster_config = None;
            outbound_cluster.load_assignment = Some(assignment);
        }
        insert(&mut set, ResourceKind::Cluster, "outbound", "1", pack(&outbound_cluster));
        insert(&mut set, ResourceKind::Endpoint, "outbound", "1", pack(&endpoints("outbound", to)));
        if let Some(mirror) = route.mirror {
            insert(&mut set, ResourceKind::Cluster, "mirror", "1", pack(&cluster("mirror", Some(mirror), None)));
        }
        insert(&mut set, ResourceKind::Route, "80", "1", pack(&routes(&route)));
        let mut chains =
            vec![FilterChain { name: "outbound".into(), filters: with_stats(outbound), ..Default::default() }];
        if inspect {
            // A sniffed port: HTTP would take another chain, so the first bytes matter.
            let mut http = chains[0].clone();
            http.name = "outbound-http".into();
            http.filter_chain_match =
                Some(FilterChainMatch { application_protocols: vec!["http/1.1".into()], ..Default::default() });
            chains.push(http);
        }
        insert(&mut set, ResourceKind::Listener, "outbound", "1", pack(&listener("outbound", 2, chains, inspect)));
        assert_eq!(client.apply(&set), []);
        let foreign = authority.store("foreign");
        Mesh { foreign, client, server, resources: Mutex::new(set), inbound: Mutex::new(inbound_set) }
    }

    /// Another route under the same listener.
    pub(crate) fn apply_route(&self, route: Route) {
        static VERSION: AtomicUsize = AtomicUsize::new(2);
        let mut set = self.resources.lock().unwrap();
        insert(
            &mut set,
            ResourceKind::Route,
            "80",
            &VERSION.fetch_add(1, Ordering::Relaxed).to_string(),
            pack(&routes(&route)),
        );
        assert_eq!(self.client.apply(&set), []);
    }

    /// What another proxy than ours is answered on a connection of its own.
    pub(crate) async fn foreign_get(&self, path: &str) -> Response<Incoming> {
        let secrets = self.foreign.load();
        let key = secrets.certificate("default").expect("a certificate");
        let config = rustls::ClientConfig::builder_with_provider(proxy::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
        let mut config = config.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(self.inbound()).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("server").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(get(path)).await.unwrap()
    }

    pub(crate) fn outbound(&self) -> SocketAddr {
        self.client.listener_addr("outbound").unwrap()
    }

    pub(crate) fn inbound(&self) -> SocketAddr {
        self.server.listener_addr("inbound").unwrap()
    }
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// An application.
pub(crate) struct App {
    pub address: SocketAddr,
    hits: Arc<AtomicUsize>,
    host: Arc<Mutex<String>>,
}

fn full(text: impl Into<Bytes>) -> BoxBody<Bytes, hyper::Error> {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

async fn echo(request: Request<Incoming>) -> Answer {
    let mut response = Response::builder().header("x-version", format!("{:?}", request.version()));
    for (name, value) in request.headers() {
        response = response.header(format!("x-echo-{name}"), value);
    }
    let text = format!("{} {}", request.method(), request.uri().path_and_query().map_or("", |path| path.as_str()));
    if request.uri().path() != "/echo-stream" {
        return response.body(full(text)).unwrap();
    }
    let collected = request.into_body().collect().await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    if collected.trailers().is_some_and(|trailers| trailers.contains_key("x-client-trailer")) {
        trailers.insert("x-request-trailer", HeaderValue::from_static("seen"));
    }
    let frames = vec![Ok(Frame::data(collected.to_bytes())), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    response.header("content-type", "application/grpc").body(BodyExt::boxed(body)).unwrap()
}

impl App {
    async fn serve<F, R>(answer: F) -> App
    where
        F: Fn(Request<Incoming>, usize) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Option<Answer>> + Send + 'static,
    {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let app = App { address: socket.local_addr().unwrap(), hits: Arc::default(), host: Arc::default() };
        let (hits, host) = (Arc::clone(&app.hits), Arc::clone(&app.host));
        tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let (answer, hits, host) = (answer.clone(), Arc::clone(&hits), Arc::clone(&host));
                let service = service_fn(move |request: Request<Incoming>| {
                    let number = hits.fetch_add(1, Ordering::SeqCst) + 1;
                    let named = request
                        .headers()
                        .get("host")
                        .and_then(|host| host.to_str().ok())
                        .unwrap_or_default()
                        .to_owned();
                    *host.lock().unwrap() = named;
                    let answer = answer(request, number);
                    async move { answer.await.ok_or("closed") }
                });
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        app
    }

    /// Tells what it got.
    pub(crate) async fn echo() -> App {
        Self::serve(|request, _| async move { Some(echo(request).await) }).await
    }

    /// Reads the request, then closes without an answer.
    pub(crate) async fn closing() -> App {
        Self::serve(|request, _| async move {
            let _ = request.into_body().collect().await;
            None
        })
        .await
    }

    /// Answers 500 so many times, then the body.
    pub(crate) async fn failing_first(times: usize) -> App {
        Self::serve(move |request, number| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let status = if number <= times { 500 } else { 200 };
            Some(Response::builder().status(status).header("x-attempt", number.to_string()).body(full(body)).unwrap())
        })
        .await
    }

    /// Answers one request on each connection, keeps it open as if for more, and closes it soon after.
    pub(crate) async fn one_request_a_connection() -> App {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let app = App { address: socket.local_addr().unwrap(), hits: Arc::default(), host: Arc::default() };
        let hits = Arc::clone(&app.hits);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = socket.accept().await.unwrap();
                let hits = Arc::clone(&hits);
                tokio::spawn(async move {
                    if read_head(&mut stream).await.is_empty() {
                        return;
                    }
                    hits.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    tokio::time::sleep(Duration::from_micros(300)).await;
                });
            }
        });
        app
    }

    /// Never answers.
    pub(crate) async fn silent() -> App {
        Self::serve(|_, _| std::future::pending()).await
    }

    /// Answers after a while.
    pub(crate) async fn slow(time: Duration) -> App {
        Self::serve(move |request, _| async move {
            tokio::time::sleep(time).await;
            Some(echo(request).await)
        })
        .await
    }

    /// Reads everything and tells how much it was.
    pub(crate) async fn sink() -> App {
        Self::serve(|request, _| async move {
            let (mut body, mut read) = (request.into_body(), 0);
            while let Some(frame) = body.frame().await {
                read += frame.unwrap().data_ref().map_or(0, Bytes::len);
            }
            Some(Response::new(full(read.to_string())))
        })
        .await
    }

    /// Tells of each request's body when it begins (`None`) and how it ended: its length, or what broke it off. `early`: answers with
    /// a part of a body before that, and never ends it.
    pub(crate) async fn telling(early: bool) -> (App, mpsc::UnboundedReceiver<Option<Result<usize, String>>>) {
        let (tell, told) = mpsc::unbounded_channel();
        let app = Self::serve(move |request, _| {
            let tell = tell.clone();
            async move {
                let reading = tokio::spawn(async move {
                    let (mut body, mut read) = (request.into_body(), 0);
                    while let Some(frame) = body.frame().await {
                        if read == 0 {
                            tell.send(None).unwrap();
                        }
                        match frame {
                            Ok(frame) => read += frame.data_ref().map_or(0, Bytes::len),
                            Err(error) => return tell.send(Some(Err(error.to_string()))).unwrap(),
                        }
                    }
                    tell.send(Some(Ok(read))).unwrap();
                });
                if !early {
                    reading.await.unwrap();
                }
                let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"go on")))]);
                let never = futures_util::StreamExt::chain(first, futures_util::stream::pending());
                Some(Response::new(BodyExt::boxed(StreamBody::new(never))))
            }
        })
        .await;
        (app, told)
    }

    /// Switches protocols and echoes bytes.
    pub(crate) async fn upgrading() -> App {
        Self::serve(|mut request, _| async move {
            let switch = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(switch.await.unwrap());
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..count]).await.unwrap();
                }
            });
            Some(
                Response::builder()
                    .status(101)
                    .header("connection", "upgrade")
                    .header("upgrade", "websocket")
                    .body(full(""))
                    .unwrap(),
            )
        })
        .await
    }

    /// A server that speaks first, then echoes.
    pub(crate) async fn greeting() -> App {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let app = App { address: socket.local_addr().unwrap(), hits: Arc::default(), host: Arc::default() };
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = socket.accept().await.unwrap();
                tokio::spawn(async move {
                    let _ = stream.write_all(b"hello").await;
                    let mut buffer = [0; 64];
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        let _ = stream.write_all(&buffer[..count]).await;
                    }
                });
            }
        });
        app
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    pub(crate) fn last_host(&self) -> String {
        self.host.lock().unwrap().clone()
    }
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder().uri(path).header("host", "server.shop").body(Full::default()).unwrap()
}

pub(crate) async fn http1<B>(to: SocketAddr) -> SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn request_on(
    client: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Response<Incoming> {
    client.ready().await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), client.send_request(request)).await.expect("an answer").unwrap()
}

pub(crate) async fn http2(to: SocketAddr) -> hyper::client::conn::http2::SendRequest<BoxBody<Bytes, Infallible>> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) fn stream_with_trailers(parts: Vec<Bytes>) -> BoxBody<Bytes, Infallible> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-client-trailer", HeaderValue::from_static("1"));
    let mut frames: Vec<Result<Frame<Bytes>, Infallible>> =
        parts.into_iter().map(|part| Ok(Frame::data(part))).collect();
    frames.push(Ok(Frame::trailers(trailers)));
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

/// So many zero bytes, made while they are sent.
pub(crate) fn zeros(size: u64) -> BoxBody<Bytes, Infallible> {
    const PART: u64 = 64 * 1024;
    let part = Bytes::from(vec![0; PART as usize]);
    let frames = (0..size / PART).map(move |_| Ok(Frame::data(part.clone())));
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
    String::from_utf8_lossy(&head).into_owned()
}

pub(crate) async fn admin(to: SocketAddr, path: &str) -> String {
    let mut client = http1(to).await;
    let response = request_on(&mut client, get(path)).await;
    assert_eq!(response.version(), Version::HTTP_11);
    String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned()
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within ten seconds");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Resident memory of this process, bytes.
pub(crate) fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Takes every certificate: what is tested is the other side.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        proxy::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
