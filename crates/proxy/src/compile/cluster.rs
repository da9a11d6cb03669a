//! Clusters.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::cluster_name::ClusterName;
use api::xds::Any;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, LbConfig};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster as XdsCluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use envoy_types::pb::envoy::config::core::v3::{
    BindConfig, Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as Common, UpstreamHttpProtocolOptions,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::google::protobuf::UInt32Value;
use envoy_types::pb::google::protobuf::value::Kind;

use super::{endpoint, tls};
use crate::leaf::duration_or;
use crate::snapshot::cluster::{
    Balance, Budget, Cluster, Discovery, Family, Limits, Outlier, Protocol, Service, SocketChoice,
};
use crate::snapshot::endpoint::Place;
use crate::snapshot::tls_terms::ClientTerms;

/// Compiles a CDS resource.
///
/// # Errors
/// What is unknown or not built; the sentence names it.
pub fn compile(any: &Any) -> Result<Cluster, String> {
    let cluster: XdsCluster = api::xds::unpack(any)?;
    if !cluster.health_checks.is_empty() || cluster.lb_subset_config.is_some() {
        return Err("active health checks and subset load balancing are not built".to_owned());
    }
    let exchange = exchange(&cluster)?;
    let http = http_options(&cluster)?;
    Ok(Cluster {
        name: cluster.name.as_str().into(),
        discovery: discovery(&cluster)?,
        balance: balance(&cluster)?,
        connect_timeout: duration_or(&cluster.connect_timeout, Duration::from_secs(5))?,
        protocol: http.protocol,
        preserve_header_case: http.preserve_header_case,
        idle_timeout: duration_or(&http.common.idle_timeout, Duration::from_secs(3600))?,
        max_requests_per_connection: first_number(
            &http.common.max_requests_per_connection,
            &cluster.max_requests_per_connection,
        ),
        max_connection_duration: http
            .common
            .max_connection_duration
            .as_ref()
            .map(crate::leaf::duration)
            .transpose()?
            .filter(|time| !time.is_zero()),
        max_concurrent_streams: http.http2.max_concurrent_streams.map_or(u32::MAX, |streams| streams.value.max(1)),
        limits: limits(cluster.circuit_breakers.as_ref()),
        outlier: cluster.outlier_detection.as_ref().map(outlier).transpose()?,
        panic_threshold: cluster
            .common_lb_config
            .as_ref()
            .and_then(|config| config.healthy_panic_threshold)
            .map_or(50, |percent| percent.value.clamp(0.0, 100.0) as u8),
        sockets: sockets(&cluster, http.names, exchange)?,
        exchange,
        bind: cluster.upstream_bind_config.as_ref().map(sources).transpose()?.unwrap_or_default(),
        tcp_keepalive: cluster.upstream_connection_options.as_ref().and_then(|options| options.tcp_keepalive).map(
            |keepalive| {
                let number = |value: Option<UInt32Value>, default| value.map_or(default, |value| value.value.max(1));
                (
                    number(keepalive.keepalive_time, 7200),
                    number(keepalive.keepalive_interval, 75),
                    number(keepalive.keepalive_probes, 9),
                )
            },
        ),
        dns_refresh: duration_or(&cluster.dns_refresh_rate, Duration::from_secs(5))?.max(Duration::from_millis(1)),
        respect_dns_ttl: cluster.respect_dns_ttl,
        name_servers: name_servers(&cluster)?,
        dns_family: match cluster.dns_lookup_family {
            0 => Family::V6Preferred,
            1 => Family::V4Only,
            2 => Family::V6Only,
            3 => Family::V4Preferred,
            4 => Family::All,
            other => return Err(format!("dns_lookup_family {other} is not known")),
        },
        service: service(&cluster),
        object: super::object_of(cluster.metadata.as_ref()),
        origin: super::origin_of(cluster.metadata.as_ref()),
    })
}

/// Whether metadata is exchanged in front of the bytes of TCP connections, the only upstream network filter there is.
fn exchange(cluster: &XdsCluster) -> Result<bool, String> {
    for filter in &cluster.filters {
        let known = filter.typed_config.as_ref().map(tls::is_exchange).transpose()?;
        if known != Some(true) {
            return Err(format!("the upstream network filter {:?} is not known to this proxy", filter.name));
        }
    }
    Ok(!cluster.filters.is_empty())
}

/// The older field, else the newer one.
fn name_servers(cluster: &XdsCluster) -> Result<Vec<SocketAddr>, String> {
    let newer = cluster.dns_resolution_config.as_ref().map(|config| &config.resolvers).filter(|all| !all.is_empty());
    newer
        .unwrap_or(&cluster.dns_resolvers)
        .iter()
        .map(|address| match endpoint::place_of(address)? {
            Place::Socket(address) => Ok(address),
            other => Err(format!("a name server must be an IP address with a port, not {other:?}")),
        })
        .collect()
}

/// Source addresses; of each family, the first counts.
fn sources(bind: &BindConfig) -> Result<Vec<IpAddr>, String> {
    let more = bind.extra_source_addresses.iter().filter_map(|more| more.address.as_ref());
    bind.source_address
        .iter()
        .chain(more)
        .map(|source| source.address.parse().map_err(|_| format!("{:?} is not an address to bind", source.address)))
        .collect()
}

fn first_number(first: &Option<UInt32Value>, second: &Option<UInt32Value>) -> u32 {
    first.or(*second).map_or(0, |number| number.value)
}

fn discovery(cluster: &XdsCluster) -> Result<Discovery, String> {
    let here = || {
        cluster
            .load_assignment
            .as_ref()
            .map_or_else(|| Ok(Arc::default()), |assignment| endpoint::compile(assignment).map(Arc::new))
    };
    let kind = match &cluster.cluster_discovery_type {
        None => 0,
        Some(ClusterDiscoveryType::Type(kind)) => *kind,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Err(format!("the cluster type {:?} is not known", custom.name));
        }
    };
    match kind {
        0 => Ok(Discovery::Static(here()?)),
        1 => Ok(Discovery::StrictDns(here()?)),
        2 => Ok(Discovery::LogicalDns(here()?)),
        3 => {
            let name = cluster
                .eds_cluster_config
                .as_ref()
                .map(|config| config.service_name.as_str())
                .filter(|name| !name.is_empty());
            Ok(Discovery::Eds(name.unwrap_or(&cluster.name).into()))
        }
        4 => {
            let port = match &cluster.lb_config {
                Some(LbConfig::OriginalDstLbConfig(config)) => {
                    if config.use_http_header || config.metadata_key.is_some() {
                        return Err("a destination taken from a header or metadata is not built".to_owned());
                    }
                    config
                        .upstream_port_override
                        .map(|port| u16::try_from(port.value).map_err(|_| format!("{} is not a port", port.value)))
                        .transpose()?
                }
                _ => None,
            };
            Ok(Discovery::OriginalDst { port })
        }
        other => Err(format!("the cluster type {other} is not known")),
    }
}

fn balance(cluster: &XdsCluster) -> Result<Balance, String> {
    if cluster.load_balancing_policy.is_some() {
        return Err("load_balancing_policy is not built; lb_policy is".to_owned());
    }
    match cluster.lb_policy {
        0 => Ok(Balance::RoundRobin),
        1 => {
            let choices = match &cluster.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => {
                    config.choice_count.map_or(2, |count| count.value.max(2))
                }
                _ => 2,
            };
            Ok(Balance::LeastRequest { choices })
        }
        3 => Ok(Balance::Random),
        // The cluster itself knows: only original destination does.
        6 => Ok(Balance::RoundRobin),
        2 | 5 => Err("consistent hashing (RING_HASH, MAGLEV) is not built".to_owned()),
        other => Err(format!("the load balancing policy {other} is not known")),
    }
}

#[derive(Default)]
struct Http {
    protocol: Protocol,
    preserve_header_case: bool,
    common: Common,
    http2: Http2ProtocolOptions,
    names: UpstreamHttpProtocolOptions,
}

fn http_options(cluster: &XdsCluster) -> Result<Http, String> {
    let mut http = Http::default();
    if let Some(options) =
        cluster.typed_extension_protocol_options.get("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
    {
        let options: HttpProtocolOptions = api::xds::unpack(options)?;
        if options.http_filters.iter().any(|filter| !filter.name.ends_with("upstream_codec")) {
            return Err("upstream HTTP filters are not built".to_owned());
        }
        http.common = options.common_http_protocol_options.unwrap_or_default();
        http.names = options.upstream_http_protocol_options.unwrap_or_default();
        match options.upstream_protocol_options {
            None => {}
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    http.protocol = Protocol::Http2;
                    http.http2 = options;
                }
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    http.preserve_header_case = preserves_case(&options)
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => return Err("HTTP/3 is not built".to_owned()),
                None => {}
            },
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(both)) => {
                http.protocol = Protocol::Downstream;
                http.preserve_header_case = both.http_protocol_options.as_ref().is_some_and(preserves_case);
                http.http2 = both.http2_protocol_options.unwrap_or_default();
            }
            Some(UpstreamProtocolOptions::AutoConfig(both)) => {
                http.protocol = Protocol::Auto;
                http.preserve_header_case = both.http_protocol_options.as_ref().is_some_and(preserves_case);
                http.http2 = both.http2_protocol_options.unwrap_or_default();
            }
        }
        return Ok(http);
    }
    // The older fields.
    http.common = cluster.common_http_protocol_options.unwrap_or_default();
    http.names = cluster.upstream_http_protocol_options.clone().unwrap_or_default();
    if let Some(options) = &cluster.http2_protocol_options {
        http.protocol = if cluster.protocol_selection == 1 { Protocol::Downstream } else { Protocol::Http2 };
        http.http2 = options.clone();
    }
    http.preserve_header_case = cluster.http_protocol_options.as_ref().is_some_and(preserves_case);
    Ok(http)
}

/// Whether HTTP/1 header names keep their spelling.
pub(crate) fn preserves_case(options: &Http1ProtocolOptions) -> bool {
    let format = options.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    matches!(format, Some(HeaderFormat::StatefulFormatter(formatter)) if formatter.name == "preserve_case" || formatter.name.ends_with("preserve_case"))
}

fn limits(breakers: Option<&CircuitBreakers>) -> Limits {
    let thresholds = breakers
        .and_then(|breakers| breakers.thresholds.iter().find(|row| row.priority == 0))
        .cloned()
        .unwrap_or_default();
    let number = |value: Option<UInt32Value>, default| value.map_or(default, |value| value.value);
    Limits {
        connections: number(thresholds.max_connections, 1024),
        pending: number(thresholds.max_pending_requests, 1024),
        requests: number(thresholds.max_requests, 1024),
        retries: number(thresholds.max_retries, 3),
        budget: thresholds.retry_budget.map(|budget| Budget {
            percent: budget.budget_percent.map_or(20.0, |percent| percent.value),
            min_concurrency: number(budget.min_retry_concurrency, 3),
        }),
    }
}

fn outlier(config: &OutlierDetection) -> Result<Outlier, String> {
    // An enforcing percentage of 0 switches a detector off; between 0 and 100 is not built.
    let detector =
        |threshold: Option<UInt32Value>, default: u32, enforcing: Option<UInt32Value>, enforced: u32| match enforcing
            .map_or(enforced, |value| value.value)
        {
            0 => Ok(0),
            100.. => Ok(threshold.map_or(default, |value| value.value)),
            share => Err(format!("an outlier detector enforced for {share}% is not built")),
        };
    Ok(Outlier {
        consecutive_5xx: detector(config.consecutive_5xx, 5, config.enforcing_consecutive_5xx, 100)?,
        consecutive_gateway: detector(
            config.consecutive_gateway_failure,
            5,
            config.enforcing_consecutive_gateway_failure,
            0,
        )?,
        consecutive_local: match config.split_external_local_origin_errors {
            true => detector(
                config.consecutive_local_origin_failure,
                5,
                config.enforcing_consecutive_local_origin_failure,
                100,
            )?,
            false => 0,
        },
        interval: duration_or(&config.interval, Duration::from_secs(10))?.max(Duration::from_millis(1)),
        base_ejection: duration_or(&config.base_ejection_time, Duration::from_secs(30))?,
        max_ejection: duration_or(&config.max_ejection_time, Duration::from_secs(300))?
            .max(duration_or(&config.base_ejection_time, Duration::from_secs(30))?),
        max_percent: config.max_ejection_percent.map_or(10, |percent| percent.value.min(100)),
    })
}

/// `names` says that server names come from requests, and that certificates must be for them.
fn sockets(
    cluster: &XdsCluster,
    names: UpstreamHttpProtocolOptions,
    exchange: bool,
) -> Result<Vec<SocketChoice>, String> {
    if !names.override_auto_sni_header.is_empty() {
        return Err("override_auto_sni_header is not built".to_owned());
    }
    let terms = |socket| {
        let terms = tls::client_terms(socket)?.map(|mut terms| {
            if !exchange {
                tls::without_exchange(&mut terms.alpn);
            }
            ClientTerms {
                auto_host_sni: terms.auto_host_sni || (names.auto_sni && terms.sni.is_empty()),
                name_must_match: terms.name_must_match || names.auto_san_validation,
                ..terms
            }
        });
        Ok::<_, String>(terms.map(Arc::new))
    };
    let mut choices = Vec::new();
    for choice in &cluster.transport_socket_matches {
        let labels = choice.r#match.as_ref().map(endpoint::texts_of).unwrap_or_default();
        let tls = choice.transport_socket.as_ref().map(terms).transpose()?.flatten();
        choices.push(SocketChoice { labels, tls });
    }
    if let Some(socket) = &cluster.transport_socket {
        choices.push(SocketChoice { labels: BTreeMap::new(), tls: terms(socket)? });
    }
    Ok(choices)
}

/// The service in Istio's metadata (`istio.services`), else read from the cluster's name.
fn service(cluster: &XdsCluster) -> Service {
    if let Some(service) = declared_service(cluster) {
        return service;
    }
    match cluster.name.parse::<ClusterName>() {
        Ok(name) if !name.host.is_empty() => {
            let mut parts = name.host.split('.');
            let (short, namespace) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let in_cluster = parts.next() == Some("svc");
            Service {
                host: name.host.as_str().into(),
                name: if in_cluster { short.into() } else { name.host.as_str().into() },
                namespace: if in_cluster { namespace.into() } else { "unknown".into() },
            }
        }
        Ok(_) => Service::default(),
        // BlackHoleCluster, PassthroughCluster and other names stand for themselves.
        Err(_) => Service { host: "unknown".into(), name: cluster.name.as_str().into(), namespace: "unknown".into() },
    }
}

fn declared_service(cluster: &XdsCluster) -> Option<Service> {
    let istio = cluster.metadata.as_ref()?.filter_metadata.get("istio")?;
    let Some(Kind::ListValue(list)) = &istio.fields.get("services")?.kind else { return None };
    let Some(Kind::StructValue(first)) = &list.values.first()?.kind else { return None };
    let texts = endpoint::texts_of(first);
    let text = |key: &str| texts.get(key).map(String::as_str).unwrap_or_default().into();
    Some(Service { host: text("host"), name: text("name"), namespace: text("namespace") })
}

#[cfg(test)]
mod tests {
    use api::xds::metadata_exchange::MetadataExchange;
    use api::xds::{PEER_EXCHANGE, pack};
    use envoy_types::pb::envoy::config::cluster::v3::Filter;
    use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{CommonTlsContext, UpstreamTlsContext};

    use super::*;

    fn compiled(change: impl FnOnce(&mut XdsCluster)) -> Result<Cluster, String> {
        let mut cluster =
            XdsCluster { name: "outbound|80|v1|reviews.shop.svc.cluster.local".into(), ..XdsCluster::default() };
        change(&mut cluster);
        compile(&api::xds::pack(&cluster))
    }

    #[test]
    fn defaults_are_envoys() {
        let cluster = compiled(|_| {}).unwrap();
        assert_eq!((cluster.limits.connections, cluster.limits.retries, cluster.panic_threshold), (1024, 3, 50));
        assert_eq!(cluster.balance, Balance::RoundRobin);
        assert_eq!((cluster.service.name.as_ref(), cluster.service.namespace.as_ref()), ("reviews", "shop"));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (change, word) in [
            ((|cluster| cluster.lb_policy = 5) as fn(&mut XdsCluster), "MAGLEV"),
            (|cluster| cluster.lb_policy = 99, "99"),
            (
                |cluster| cluster.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(Default::default())),
                "cluster type",
            ),
        ] {
            assert!(compiled(change).unwrap_err().contains(word), "{word}");
        }
    }

    #[test]
    fn the_exchange_is_offered_only_where_it_is_read() {
        let tls = UpstreamTlsContext {
            common_tls_context: Some(CommonTlsContext {
                alpn_protocols: vec![PEER_EXCHANGE.into(), "istio".into()],
                ..CommonTlsContext::default()
            }),
            ..UpstreamTlsContext::default()
        };
        let socket = TransportSocket {
            config_type: Some(transport_socket::ConfigType::TypedConfig(pack(&tls))),
            ..TransportSocket::default()
        };
        let exchange = MetadataExchange { protocol: PEER_EXCHANGE.into(), ..MetadataExchange::default() };
        let filter = |any| Filter { name: "exchange".into(), typed_config: Some(any), ..Filter::default() };
        for (filters, alpn) in [(vec![filter(pack(&exchange))], &[PEER_EXCHANGE, "istio"][..]), (vec![], &["istio"])] {
            let with = !filters.is_empty();
            let cluster = compiled(|cluster| {
                cluster.filters = filters;
                cluster.transport_socket = Some(socket.clone());
            });
            let cluster = cluster.unwrap();
            assert_eq!(cluster.socket_for(&BTreeMap::new()).unwrap().alpn, alpn);
            assert_eq!(cluster.exchange, with);
        }
        let other = filter(Any { type_url: "type.googleapis.com/x.Y".into(), value: vec![] });
        assert!(compiled(|cluster| cluster.filters = vec![other]).unwrap_err().contains("exchange"));
    }
}
