//! CDS: a cluster for each port and subset of each visible service, one for each port taken in, and the fixed ones.

use std::sync::Arc;

use api::cluster_name::{BLACK_HOLE, ClusterName, INBOUND_PASSTHROUGH, PASSTHROUGH};
use api::crd::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, H2UpgradePolicy, LoadBalancerSettings,
    OutlierDetection as Ejection, SimpleLb, TcpKeepalive, TrafficPolicy,
};
use api::crd::peer_authentication::MutualTlsMode;
use api::node::Role;
use api::value::{Duration, Labels};
use api::xds::core::{
    BindConfig, ExtraSourceAddress, Http2ProtocolOptions, HttpProtocolOptions as Common, KeepaliveSettings,
    SocketAddress, TcpKeepalive as Keepalive, TransportSocket,
};
use api::xds::{ResourceKind, json_to_struct, pack};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbConfig, LbPolicy,
    LeastRequestLbConfig, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, Filter, OutlierDetection, UpstreamConnectionOptions, circuit_breakers::Thresholds,
};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use serde_json::json;

use super::wire::{ads, config_path, metadata, object_path, some_duration, some_u32, transport_socket};
use super::{endpoint, filter, named, tls};
use crate::model::Named;
use crate::model::{Digested, Port, Protocol, Resolution, Service, digest_of};
use crate::resources::Resources;
use crate::scope::{Inbound, Scope};
use crate::snapshot::DestinationRule;

/// Istio's "no limit".
const UNLIMITED: u32 = u32::MAX;

pub(super) fn all(scope: &Scope) -> Resources {
    let own = scope.own("clusters", || {
        let mut fixed = vec![black_hole(), passthrough(scope, PASSTHROUGH, false)];
        if scope.proxy.role == Role::Sidecar {
            fixed.push(passthrough(scope, INBOUND_PASSTHROUGH, true));
            fixed.extend(scope.inbound.iter().map(|inbound| inbound_cluster(scope, inbound)));
        }
        let fixed = fixed.iter().map(|cluster| named(&cluster.name, cluster));
        fixed.chain(scope.asked.iter().flat_map(|(service, _)| of_service(scope, service))).collect()
    });
    let shared = scope.view.list(ResourceKind::Cluster, scope.kin(), || {
        let of = |service| scope.snapshot.made.get(inputs(scope, service, "clusters"), || of_service(scope, service));
        scope.view.services.values().flat_map(|service| of(service).to_vec()).collect()
    });
    Resources::new(shared, own)
}

/// The clusters of one service.
fn of_service(scope: &Scope, service: &Service) -> Vec<Arc<Named>> {
    let mut made = Vec::new();
    for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
        for subset in subsets(scope, service) {
            let cluster =
                outbound(scope, service, port, &ClusterName::outbound(port.number, subset, service.host.as_str()));
            made.push(named(&cluster.name, &cluster));
        }
    }
    made
}

/// Digest of all that a service's clusters are made from, and with `endpoints` its endpoints too.
pub(super) fn inputs(scope: &Scope, service: &Digested<Service>, what: &str) -> u64 {
    let rule = scope.rule(&service.host).map_or(0, |rule| rule.digest);
    let expected = scope.snapshot.expected_mutual_tls(&service.namespace);
    // Whether clusters that ask for an address speak mutual TLS depends on what is there.
    let own =
        if what == "endpoints" || is_original_destination(scope, service) { service.digest } else { service.shape };
    digest_of(&(what, scope.kin(), own, rule, expected))
}

/// The empty subset, then those of the service's rule.
pub(super) fn subsets<'a>(scope: &'a Scope, service: &Service) -> Vec<&'a str> {
    let rule = scope.rule(&service.host);
    let mut names: Vec<&str> = rule
        .into_iter()
        .flat_map(|rule| &rule.spec.subsets)
        .map(|subset| subset.name.as_str())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.insert(0, "");
    names
}

/// Whether the endpoints come over EDS.
pub(super) fn takes_eds(scope: &Scope, service: &Service) -> bool {
    service.resolution == Resolution::Static && !is_original_destination(scope, service)
}

/// Headless services and those without resolution keep the address that the caller asked for, where that is known.
fn is_original_destination(scope: &Scope, service: &Service) -> bool {
    let captured = scope.proxy.role == Role::Sidecar && scope.proxy.interception.is_captured();
    service.resolution == Resolution::Passthrough || (service.headless && captured)
}

fn outbound(scope: &Scope, service: &Service, port: &Port, name: &ClusterName) -> Cluster {
    let rule = scope.rule(&service.host);
    let policy = policy(rule.map(|rule| &**rule), port.number, &name.subset);
    let mut cluster = Cluster {
        name: name.to_string(),
        connect_timeout: some_duration(scope.snapshot.mesh.connect_timeout),
        common_lb_config: Some(CommonLbConfig::default()),
        circuit_breakers: Some(breakers(policy.connection_pool.as_ref())),
        metadata: Some(cluster_metadata(service, rule.map(|rule| &**rule), &name.subset)),
        ..Cluster::default()
    };
    discover(scope, service, port, name, &mut cluster);
    balance(policy.load_balancer.as_ref(), &mut cluster);
    connect(scope, policy.connection_pool.as_ref(), port.protocol, &mut cluster);
    if let Some(ejection) = &policy.outlier_detection {
        eject(ejection, &mut cluster);
    }
    let http2 = is_http2(scope, policy.connection_pool.as_ref(), port.protocol);
    secure(scope, service, name, policy.tls.as_ref(), http2, &mut cluster);
    exchange(scope, &mut cluster);
    cluster
}

/// The two ends of a TCP connection tell each other who they are, where TLS negotiates it.
fn exchange(scope: &Scope, cluster: &mut Cluster) {
    cluster.filters.extend(filter::peer_exchange(scope).map(|(name, config)| Filter {
        name: name.to_owned(),
        typed_config: Some(config),
        ..Filter::default()
    }));
}

/// The policy for a port and subset: the port's entry, which inherits nothing, else block by block the subset's over the
/// rule's.
pub(super) fn policy(rule: Option<&DestinationRule>, port: u16, subset: &str) -> TrafficPolicy {
    let Some(rule) = rule else { return TrafficPolicy::default() };
    let at_port = |policy: &TrafficPolicy| {
        let found = policy
            .port_level_settings
            .iter()
            .find(|entry| entry.port.as_ref().is_some_and(|selector| selector.number == port));
        match found {
            Some(entry) => TrafficPolicy {
                load_balancer: entry.load_balancer.clone(),
                connection_pool: entry.connection_pool.clone(),
                outlier_detection: entry.outlier_detection.clone(),
                tls: entry.tls.clone(),
                ..TrafficPolicy::default()
            },
            None => policy.clone(),
        }
    };
    let mut merged = rule.spec.traffic_policy.as_ref().map(at_port).unwrap_or_default();
    let own = rule
        .spec
        .subsets
        .iter()
        .find(|one| one.name == subset && !subset.is_empty())
        .and_then(|subset| subset.traffic_policy.as_ref())
        .map(at_port);
    if let Some(own) = own {
        macro_rules! over {
            ($($block:ident),*) => { $( if own.$block.is_some() { merged.$block = own.$block; } )* };
        }
        over!(load_balancer, connection_pool, outlier_detection, tls, tunnel, proxy_protocol, retry_budget);
    }
    merged
}

fn cluster_metadata(service: &Service, rule: Option<&DestinationRule>, subset: &str) -> api::xds::core::Metadata {
    let mut fields =
        json!({"services": [{"host": service.host.as_str(), "name": service.name, "namespace": service.namespace}]});
    // Ours: what explanations of failures name if no rule is to blame.
    fields["origin"] = json!(object_path(&service.object));
    if let Some(rule) = rule {
        fields["config"] = json!(config_path("destination-rule", &rule.namespace, &rule.name));
        if !subset.is_empty() {
            fields["subset"] = json!(subset);
        }
    }
    api::xds::core::Metadata {
        filter_metadata: [("istio".to_owned(), json_to_struct(&fields))].into_iter().collect(),
        ..Default::default()
    }
}

// Istio and all Envoys in use know these fields; the typed DNS cluster that replaces them is newer.
#[allow(deprecated)]
fn discover(scope: &Scope, service: &Service, port: &Port, name: &ClusterName, cluster: &mut Cluster) {
    let none = Labels::new();
    let labels = scope
        .view
        .rules
        .get(&service.host)
        .and_then(|rule| rule.spec.subsets.iter().find(|subset| subset.name == name.subset))
        .map_or(&none, |subset| &subset.labels);
    let kind = match service.resolution {
        _ if is_original_destination(scope, service) => DiscoveryType::OriginalDst,
        Resolution::Static | Resolution::Passthrough => DiscoveryType::Eds,
        Resolution::Dns => DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
    };
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
    match kind {
        DiscoveryType::Eds => {
            cluster.eds_cluster_config = Some(EdsClusterConfig { eds_config: ads(), service_name: name.to_string() });
        }
        DiscoveryType::OriginalDst => cluster.lb_policy = LbPolicy::ClusterProvided as i32,
        _ => {
            let mut assignment = endpoint::assignment(scope, service, &cluster.name, port.number, labels);
            // Envoy takes exactly one name here.
            if kind == DiscoveryType::LogicalDns {
                assignment.endpoints.truncate(1);
                assignment.endpoints.iter_mut().for_each(|group| group.lb_endpoints.truncate(1));
            }
            cluster.load_assignment = Some(assignment);
            cluster.dns_refresh_rate = some_duration(scope.snapshot.mesh.dns_refresh_rate);
            cluster.respect_dns_ttl = true;
            cluster.dns_lookup_family = DnsLookupFamily::V4Preferred as i32;
        }
    }
}

fn balance(settings: Option<&LoadBalancerSettings>, cluster: &mut Cluster) {
    if cluster.lb_policy == LbPolicy::ClusterProvided as i32 {
        return;
    }
    let simple = settings.and_then(|settings| settings.simple).unwrap_or(SimpleLb::LeastRequest);
    let policy = match simple {
        SimpleLb::Random => LbPolicy::Random,
        SimpleLb::RoundRobin => LbPolicy::RoundRobin,
        SimpleLb::Passthrough => {
            cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
            cluster.eds_cluster_config = None;
            cluster.load_assignment = None;
            LbPolicy::ClusterProvided
        }
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => {
            cluster.lb_config = Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                choice_count: some_u32(2),
                ..LeastRequestLbConfig::default()
            }));
            LbPolicy::LeastRequest
        }
    };
    cluster.lb_policy = policy as i32;
}

/// Limits. `track_remaining` lets tools see how far a limit is.
fn breakers(pool: Option<&ConnectionPoolSettings>) -> CircuitBreakers {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    let limit = |written: Option<u32>| some_u32(written.filter(|limit| *limit > 0).unwrap_or(UNLIMITED));
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)),
            max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)),
            max_requests: limit(http.and_then(|http| http.http2_max_requests)),
            max_retries: limit(http.and_then(|http| http.max_retries)),
            track_remaining: true,
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

fn is_http2(scope: &Scope, pool: Option<&ConnectionPoolSettings>, protocol: Protocol) -> bool {
    let upgrade = match pool.and_then(|pool| pool.http.as_ref()).and_then(|http| http.h2_upgrade_policy) {
        None | Some(H2UpgradePolicy::Default) => scope.snapshot.mesh.h2_upgrade_policy == H2UpgradePolicy::Upgrade,
        Some(policy) => policy == H2UpgradePolicy::Upgrade,
    };
    protocol.is_http2() || (protocol == Protocol::Http && upgrade)
}

/// Timeouts, keep-alive and the HTTP version.
fn connect(scope: &Scope, pool: Option<&ConnectionPoolSettings>, protocol: Protocol, cluster: &mut Cluster) {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    if let Some(timeout) = tcp.and_then(|tcp| tcp.connect_timeout) {
        cluster.connect_timeout = some_duration(timeout);
    }
    if let Some(keepalive) =
        tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()).or(scope.snapshot.mesh.tcp_keepalive.as_ref())
    {
        cluster.upstream_connection_options = Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(probes(keepalive)),
            ..UpstreamConnectionOptions::default()
        });
    }
    let mut common = Common {
        idle_timeout: http.and_then(|http| http.idle_timeout).and_then(some_duration),
        max_requests_per_connection: http
            .and_then(|http| http.max_requests_per_connection)
            .filter(|limit| *limit > 0)
            .and_then(some_u32),
        ..Common::default()
    };
    if let Some(longest) = tcp.and_then(|tcp| tcp.max_connection_duration) {
        common.max_connection_duration = some_duration(longest);
    }
    let http2 = || {
        let ping = http.and_then(|http| http.http2_keep_alive.as_ref());
        Http2ProtocolOptions {
            max_concurrent_streams: some_u32(
                http.and_then(|http| http.max_concurrent_streams).unwrap_or(2_147_483_647),
            ),
            connection_keepalive: ping.map(|ping| KeepaliveSettings {
                interval: ping.interval.and_then(some_duration),
                timeout: ping.timeout.and_then(some_duration),
                ..KeepaliveSettings::default()
            }),
            ..Http2ProtocolOptions::default()
        }
    };
    let client_decides = protocol == Protocol::Sniffed || http.is_some_and(|http| http.use_client_protocol);
    let version = if is_http2(scope, pool, protocol) && !client_decides {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2())),
        })
    } else if client_decides {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(filter::http1(scope)),
            http2_protocol_options: Some(http2()),
            ..UseDownstreamHttpConfig::default()
        })
    } else if protocol.is_http() || common != Common::default() {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(filter::http1(scope))),
        })
    } else {
        return;
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: (common != Common::default()).then_some(common),
        upstream_protocol_options: Some(version),
        ..HttpProtocolOptions::default()
    };
    cluster.typed_extension_protocol_options =
        [("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), pack(&options))].into_iter().collect();
}

fn probes(keepalive: &TcpKeepalive) -> Keepalive {
    let seconds = |duration: Option<Duration>| {
        duration.and_then(|duration| some_u32(u32::try_from(duration.0.as_secs()).unwrap_or(u32::MAX)))
    };
    Keepalive {
        keepalive_probes: keepalive.probes.and_then(some_u32),
        keepalive_time: seconds(keepalive.time),
        keepalive_interval: seconds(keepalive.interval),
    }
}

fn eject(settings: &Ejection, cluster: &mut Cluster) {
    let five_hundreds = settings.consecutive_5xx_errors.or(settings.consecutive_errors);
    let mut ejection = OutlierDetection {
        interval: settings.interval.and_then(some_duration),
        base_ejection_time: settings.base_ejection_time.and_then(some_duration),
        max_ejection_percent: settings.max_ejection_percent.and_then(some_u32),
        // Istio never uses success rates.
        enforcing_success_rate: some_u32(0),
        ..OutlierDetection::default()
    };
    if let Some(count) = five_hundreds {
        ejection.consecutive_5xx = some_u32(count);
        ejection.enforcing_consecutive_5xx = some_u32(if count > 0 { 100 } else { 0 });
    }
    if let Some(count) = settings.consecutive_gateway_errors {
        ejection.consecutive_gateway_failure = some_u32(count);
        ejection.enforcing_consecutive_gateway_failure = some_u32(if count > 0 { 100 } else { 0 });
    }
    if settings.split_external_local_origin_errors {
        ejection.split_external_local_origin_errors = true;
        if let Some(count) = settings.consecutive_local_origin_failures {
            ejection.consecutive_local_origin_failure = some_u32(count);
            ejection.enforcing_consecutive_local_origin_failure = some_u32(if count > 0 { 100 } else { 0 });
        }
    }
    cluster.outlier_detection = Some(ejection);
    let percent = f64::from(settings.min_health_percent.unwrap_or(0));
    cluster.common_lb_config.get_or_insert_default().healthy_panic_threshold = Some(Percent { value: percent });
}

fn secure(
    scope: &Scope,
    service: &Service,
    name: &ClusterName,
    settings: Option<&ClientTlsSettings>,
    http2: bool,
    cluster: &mut Cluster,
) {
    let mesh = &scope.snapshot.mesh;
    let identities = || {
        let mut names = service.identities(&mesh.trust_domain);
        names.extend(service.subject_alt_names.iter().cloned());
        names
    };
    let mutual = |settings: Option<&ClientTlsSettings>| {
        let sni =
            settings.map(|settings| settings.sni.clone()).filter(|sni| !sni.is_empty()).unwrap_or_else(|| name.sni());
        let names = settings.map(|settings| settings.subject_alt_names.clone()).filter(|names| !names.is_empty());
        let exchange = scope.proxy.extensions.peer_exchange;
        tls::mutual_client(&sni, &names.map_or_else(identities, |names| names.into_iter().collect()), http2, exchange)
    };
    match settings.map(|settings| settings.mode) {
        Some(ClientTlsMode::Disable) => {}
        Some(ClientTlsMode::IstioMutual) => cluster.transport_socket = Some(mutual(settings)),
        Some(ClientTlsMode::Simple | ClientTlsMode::Mutual) => {
            let mut settings = settings.cloned().unwrap_or_default();
            if settings.subject_alt_names.is_empty() {
                settings.subject_alt_names.clone_from(&service.subject_alt_names);
            }
            cluster.transport_socket = tls::client(&settings, service.host.as_str(), http2);
        }
        None => {
            let expected = scope.snapshot.expected_mutual_tls(&service.namespace);
            let automatic = mesh.enable_auto_mtls && !service.external && expected != MutualTlsMode::Disable;
            // An address that the caller chose has no metadata that would tell: it is all of them or none.
            let all = || service.endpoints.iter().all(|endpoint| endpoint.tls) && !service.endpoints.is_empty();
            if automatic && is_original_destination(scope, service) && all() {
                cluster.transport_socket = Some(mutual(None));
            } else if automatic {
                cluster.transport_socket_matches = by_endpoint(mutual(None));
            }
        }
    }
}

/// Mutual TLS for the endpoints that accept it, plaintext for the others.
fn by_endpoint(mutual: TransportSocket) -> Vec<TransportSocketMatch> {
    vec![
        TransportSocketMatch {
            name: "tlsMode-istio".into(),
            r#match: Some(json_to_struct(&json!({"tlsMode": "istio"}))),
            transport_socket: Some(mutual),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".into(),
            r#match: Some(json_to_struct(&json!({}))),
            transport_socket: Some(transport_socket("envoy.transport_sockets.raw_buffer", &RawBuffer {})),
        },
    ]
}

fn black_hole() -> Cluster {
    Cluster {
        name: BLACK_HOLE.into(),
        connect_timeout: some_duration(Duration::seconds(10)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        ..Cluster::default()
    }
}

/// To the address that the caller asked for.
fn passthrough(scope: &Scope, name: &str, inbound: bool) -> Cluster {
    let mut cluster = Cluster {
        name: name.into(),
        connect_timeout: some_duration(scope.snapshot.mesh.connect_timeout),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
        lb_policy: LbPolicy::ClusterProvided as i32,
        circuit_breakers: Some(breakers(None)),
        upstream_bind_config: inbound.then(|| loop_breaker(scope)),
        ..Cluster::default()
    };
    connect(scope, None, Protocol::Sniffed, &mut cluster);
    if !inbound {
        exchange(scope, &mut cluster);
    }
    cluster
}

/// Connections from 127.0.0.6 and ::6 are not captured again.
fn loop_breaker(scope: &Scope) -> BindConfig {
    let source = |any: &&str| SocketAddress {
        address: if *any == "::" { "::6" } else { "127.0.0.6" }.into(),
        port_specifier: Some(api::xds::core::socket_address::PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    let mut sources: Vec<SocketAddress> = scope.proxy.any_addresses().iter().map(source).collect();
    let others = sources.split_off(1.min(sources.len()));
    BindConfig {
        source_address: sources.pop(),
        extra_source_addresses: others
            .into_iter()
            .map(|address| ExtraSourceAddress { address: Some(address), ..ExtraSourceAddress::default() })
            .collect(),
        ..BindConfig::default()
    }
}

fn inbound_cluster(scope: &Scope, inbound: &Inbound) -> Cluster {
    let name = ClusterName::inbound(inbound.port).to_string();
    let mut cluster = Cluster {
        connect_timeout: some_duration(scope.snapshot.mesh.connect_timeout),
        circuit_breakers: Some(breakers(None)),
        name: name.clone(),
        ..Cluster::default()
    };
    let mut fields = json!({"origin": object_path(&inbound.object)});
    if !inbound.service.is_empty() {
        fields["services"] = json!([{"host": inbound.host, "name": inbound.service, "namespace": inbound.namespace}]);
    }
    cluster.metadata = metadata([("istio", fields)]);
    match &inbound.forward {
        None => {
            cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
            cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            cluster.upstream_bind_config = Some(loop_breaker(scope));
        }
        Some((address, port)) => {
            use envoy_types::pb::envoy::config::endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            };
            cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
            let host = HostIdentifier::Endpoint(Endpoint {
                address: super::wire::socket(address, *port),
                ..Endpoint::default()
            });
            cluster.load_assignment = Some(ClusterLoadAssignment {
                cluster_name: name,
                endpoints: vec![LocalityLbEndpoints {
                    lb_endpoints: vec![LbEndpoint { host_identifier: Some(host), ..LbEndpoint::default() }],
                    ..LocalityLbEndpoints::default()
                }],
                ..ClusterLoadAssignment::default()
            });
        }
    }
    // The rule of the workload's own service limits what is taken in, too.
    let pool = inbound.service_port.and_then(|port| {
        let host = api::name::Hostname::new(&inbound.host);
        let rule = scope.snapshot.destination_rule(&host, &inbound.namespace, &scope.proxy.namespace, &scope.labels)?;
        policy(Some(rule), port, "").connection_pool
    });
    if let Some(pool) = &pool {
        cluster.circuit_breakers = Some(breakers(Some(pool)));
    }
    // An upgrade is between the sidecars; the application gets what its port is declared to speak.
    let mut pool = pool.unwrap_or_default();
    pool.http.get_or_insert_default().h2_upgrade_policy = Some(H2UpgradePolicy::DoNotUpgrade);
    connect(scope, Some(&pool), inbound.protocol, &mut cluster);
    cluster
}
