//! Filter chains: their match, their TLS, their HTTP or TCP settings.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, StripPortMode,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfigType;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use http::HeaderValue;
use ipnet::IpNet;

use super::{access_log, route, tls};
use crate::filters::{self, Compiled};
use crate::leaf::duration_or;
use crate::snapshot::chain::{
    Chain, ChainMatch, ClientCert, ClientCertMode, Codec, EscapedSlashes, Gate, HttpChain, Network, PeerMetadata,
    RouteSource, ServerHeader, StripPort, TcpChain, Transport,
};

/// Compiles one filter chain.
pub(crate) fn compile(chain: &FilterChain) -> Result<Chain, String> {
    if chain.use_proxy_proto.is_some_and(|used| used.value) {
        return Err(format!("filter chain {:?}: use_proxy_proto is not built", chain.name));
    }
    let network = network(chain)?;
    let mut tls = chain.transport_socket.as_ref().map(tls::server_terms).transpose()?.flatten();
    if !matches!(&network, Network::Tcp(tcp) if tcp.exchange)
        && let Some(terms) = &mut tls
    {
        tls::without_exchange(&mut terms.alpn);
    }
    Ok(Chain {
        name: chain.name.as_str().into(),
        matches: chain.filter_chain_match.as_ref().map_or_else(|| Ok(ChainMatch::default()), chain_match)?,
        tls: tls.map(Arc::new),
        network,
    })
}

fn chain_match(matcher: &FilterChainMatch) -> Result<ChainMatch, String> {
    if !matcher.address_suffix.is_empty() || !matcher.direct_source_prefix_ranges.is_empty() {
        return Err("matching by address suffix or direct source is not built".to_owned());
    }
    Ok(ChainMatch {
        port: matcher
            .destination_port
            .map(|port| u16::try_from(port.value).map_err(|_| format!("{} is not a port", port.value)))
            .transpose()?,
        destinations: matcher.prefix_ranges.iter().map(range).collect::<Result<_, _>>()?,
        server_names: matcher.server_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        transport: match matcher.transport_protocol.as_str() {
            "" => None,
            "tls" => Some(Transport::Tls),
            "raw_buffer" => Some(Transport::Raw),
            other => return Err(format!("the transport protocol {other:?} is not known")),
        },
        protocols: matcher.application_protocols.clone(),
        // ANY 0, SAME_IP_OR_LOOPBACK 1, EXTERNAL 2.
        local_source: match matcher.source_type {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        },
        sources: matcher.source_prefix_ranges.iter().map(range).collect::<Result<_, _>>()?,
        source_ports: matcher
            .source_ports
            .iter()
            .map(|port| u16::try_from(*port).map_err(|_| format!("{port} is not a port")))
            .collect::<Result<_, _>>()?,
    })
}

fn range(range: &CidrRange) -> Result<IpNet, String> {
    let address = range.address_prefix.parse().map_err(|_| format!("{:?} is not an address", range.address_prefix))?;
    let length = range.prefix_len.map_or(0, |length| length.value);
    let length = u8::try_from(length).map_err(|_| format!("{length} is not a prefix length"))?;
    IpNet::new(address, length).map(|range| range.trunc()).map_err(|_| format!("{length} is not a prefix length"))
}

fn network(chain: &FilterChain) -> Result<Network, String> {
    let (mut stats, mut exchange) = (false, false);
    let mut gates = Vec::new();
    let mut found = None;
    for filter in &chain.filters {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
            return Err(format!("the filter {:?} has no configuration", filter.name));
        };
        if found.is_some() {
            return Err(format!("the filter {:?} stands behind the one that ends the chain", filter.name));
        }
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
                let config = api::xds::unpack(any)?;
                found = Some(Network::Http(Arc::new(
                    http(&config).map_err(|error| format!("filter chain {:?}: {error}", chain.name))?,
                )));
            }
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
                let config = api::xds::unpack(any)?;
                found = Some(Network::Tcp(Arc::new(TcpChain {
                    stats,
                    exchange,
                    gates: std::mem::take(&mut gates),
                    ..tcp(&config)?
                })));
            }
            "envoy.extensions.filters.network.rbac.v3.RBAC" => {
                let guard =
                    filters::rbac::network(any).map_err(|error| format!("filter {:?}: {error}", filter.name))?;
                gates.extend(guard.map(Gate::Rules));
            }
            "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz" => {
                let asks = filters::ext_authz::network(any);
                gates.push(Gate::Ask(asks.map_err(|error| format!("filter {:?}: {error}", filter.name))?));
            }
            "stats.PluginConfig" => stats = true,
            _ if tls::is_exchange(any)? => exchange = true,
            other => return Err(format!("the network filter {other:?} is not known to this proxy")),
        }
    }
    // Requests have filters of their own; what is to be decided of a connection that carries them is not asked for anywhere else.
    if !gates.is_empty() {
        return Err(format!(
            "filter chain {:?}: network RBAC and ext_authz before an HTTP connection manager is not built",
            chain.name
        ));
    }
    match found {
        Some(network) => Ok(network),
        None if chain.filters.is_empty() => Ok(Network::Close),
        None => Err(format!("the filter chain {:?} has no filter that ends it", chain.name)),
    }
}

fn http(config: &HttpConnectionManager) -> Result<HttpChain, String> {
    if config.local_reply_config.is_some()
        || config.original_ip_detection_extensions.iter().any(|extension| !extension.name.ends_with("xff"))
    {
        return Err("local reply mappings and IP detection extensions are not built".to_owned());
    }
    if config.add_user_agent.is_some_and(|add| add.value)
        || !config.via.is_empty()
        || !config.early_header_mutation_extensions.is_empty()
    {
        return Err("add_user_agent, via and early header mutations are not built".to_owned());
    }
    if config.forward_client_cert_matcher.is_some() {
        return Err("forward_client_cert_matcher is not built".to_owned());
    }
    if config.request_timeout.is_some_and(|time| time.seconds != 0 || time.nanos != 0) {
        return Err("request_timeout is not built".to_owned());
    }
    let routes = match &config.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => RouteSource::Named(rds.route_config_name.as_str().into()),
        Some(RouteSpecifier::RouteConfig(routes)) => RouteSource::Inline(route::inline(routes)?),
        Some(RouteSpecifier::ScopedRoutes(_)) => return Err("scoped routes are not built".to_owned()),
        None => return Err("it has no routes".to_owned()),
    };
    let common = config.common_http_protocol_options.unwrap_or_default();
    let server_name = if config.server_name.is_empty() { "envoy" } else { &config.server_name };
    let access_logs = access_log::compile(&config.access_log)?;
    let headers_of = |request| {
        let mut names: Vec<_> = access_logs.iter().flat_map(|log| log.layout.headers(request)).collect();
        names.sort_by(|a: &http::HeaderName, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        names
    };
    let details = config.set_current_client_cert_details.unwrap_or_default();
    if details.chain {
        return Err("Chain in x-forwarded-client-cert is not built".to_owned());
    }
    let mut chain = HttpChain {
        stat_prefix: config.stat_prefix.as_str().into(),
        codec: match config.codec_type {
            0 => Codec::Auto,
            1 => Codec::Http1,
            2 => Codec::Http2,
            _ => return Err("HTTP/3 is not built".to_owned()),
        },
        routes,
        filters: Vec::new(),
        asks_client: false,
        use_remote_address: config.use_remote_address.is_some_and(|edge| edge.value),
        xff_trusted_hops: config.xff_num_trusted_hops,
        skip_xff_append: config.skip_xff_append,
        server_name: HeaderValue::from_str(server_name)
            .map_err(|_| format!("{server_name:?} cannot stand in a header"))?,
        server_header: match config.server_header_transformation {
            1 => ServerHeader::AppendIfAbsent,
            2 => ServerHeader::PassThrough,
            _ => ServerHeader::Overwrite,
        },
        client_cert: ClientCert {
            mode: match config.forward_client_cert_details {
                1 => ClientCertMode::ForwardOnly,
                2 => ClientCertMode::AppendForward,
                3 => ClientCertMode::SanitizeSet,
                4 => ClientCertMode::AlwaysForwardOnly,
                _ => ClientCertMode::Sanitize,
            },
            subject: details.subject.is_some_and(|subject| subject.value),
            cert: details.cert,
            uri: details.uri,
            dns: details.dns,
        },
        normalize_path: config.normalize_path.is_some_and(|normalize| normalize.value),
        merge_slashes: config.merge_slashes,
        escaped_slashes: match config.path_with_escaped_slashes_action {
            2 => EscapedSlashes::Reject,
            3 => EscapedSlashes::Redirect,
            4 => EscapedSlashes::Unescape,
            _ => EscapedSlashes::Keep,
        },
        generate_request_id: config.generate_request_id.is_none_or(|generate| generate.value),
        preserve_external_request_id: config.preserve_external_request_id,
        request_id_in_response: config.always_set_request_id_in_response,
        stream_idle_timeout: duration_or(&config.stream_idle_timeout, Duration::from_secs(300))?,
        request_headers_timeout: duration_or(&config.request_headers_timeout, Duration::ZERO)?,
        idle_timeout: duration_or(&common.idle_timeout, Duration::from_secs(3600))?,
        max_requests_per_connection: common.max_requests_per_connection.map_or(0, |most| most.value),
        max_concurrent_streams: config
            .http2_protocol_options
            .as_ref()
            .and_then(|options| options.max_concurrent_streams)
            .map_or(u32::MAX, |streams| streams.value.max(1)),
        upgrades: config
            .upgrade_configs
            .iter()
            .map(|upgrade| {
                (upgrade.upgrade_type.to_ascii_lowercase(), upgrade.enabled.is_none_or(|enabled| enabled.value))
            })
            .collect(),
        preserve_header_case: config.http_protocol_options.as_ref().is_some_and(super::cluster::preserves_case),
        strip_port: match (&config.strip_port_mode, config.strip_matching_host_port) {
            (Some(StripPortMode::StripAnyHostPort(true)), _) => StripPort::Any,
            (_, true) => StripPort::Matching,
            _ => StripPort::None,
        },
        suppress_envoy_headers: false,
        stats: false,
        peer_metadata: PeerMetadata::default(),
        alpn_override: false,
        logged_request_headers: headers_of(true),
        logged_response_headers: headers_of(false),
        access_logs,
    };
    filters_of(config, &mut chain)?;
    Ok(chain)
}

fn filters_of(config: &HttpConnectionManager, chain: &mut HttpChain) -> Result<(), String> {
    let mut ended = false;
    for filter in &config.http_filters {
        if filter.disabled {
            continue;
        }
        let Some(HttpConfigType::TypedConfig(any)) = &filter.config_type else {
            return Err(format!("the HTTP filter {:?} has no configuration", filter.name));
        };
        if ended {
            return Err(format!("the HTTP filter {:?} stands behind the router", filter.name));
        }
        let name: Arc<str> = filter.name.as_str().into();
        match filters::compile(any).map_err(|error| format!("HTTP filter {:?}: {error}", filter.name))? {
            Compiled::Filter(filter) => {
                chain.asks_client |= filter.asks_client();
                chain.filters.push((name, filter));
            }
            // It stays in its place: a route may override it.
            Compiled::Idle => chain.filters.push((name, Arc::new(Idle))),
            Compiled::Stats => chain.stats = true,
            Compiled::Alpn => chain.alpn_override = true,
            Compiled::PeerMetadata(peer_metadata) => chain.peer_metadata = peer_metadata,
            Compiled::GrpcStats => {}
            Compiled::Router => {
                ended = true;
                let router: envoy_types::pb::envoy::extensions::filters::http::router::v3::Router =
                    api::xds::unpack(any)?;
                chain.suppress_envoy_headers = router.suppress_envoy_headers;
            }
        }
    }
    if !ended {
        return Err("its HTTP filters do not end with the router".to_owned());
    }
    Ok(())
}

#[derive(Debug)]
struct Idle;

impl crate::filter::HttpFilter for Idle {}

fn tcp(config: &TcpProxy) -> Result<TcpChain, String> {
    if config.tunneling_config.is_some() || config.on_demand.is_some() {
        return Err("TCP tunnelling over HTTP and on-demand clusters are not built".to_owned());
    }
    if config.metadata_match.is_some() {
        return Err("metadata_match of a TCP proxy is not built".to_owned());
    }
    let clusters: Vec<(Arc<str>, u32)> = match &config.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![(name.as_str().into(), 1)],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            weighted.clusters.iter().map(|row| (row.name.as_str().into(), row.weight)).collect()
        }
        None => return Err("a TCP proxy names no cluster".to_owned()),
    };
    if clusters.iter().all(|(_, weight)| *weight == 0) {
        return Err("the weights of a TCP proxy's clusters add up to zero".to_owned());
    }
    Ok(TcpChain {
        stat_prefix: config.stat_prefix.as_str().into(),
        clusters,
        idle_timeout: duration_or(&config.idle_timeout, Duration::from_secs(3600))?,
        connect_attempts: config.max_connect_attempts.map_or(1, |attempts| attempts.value.max(1)),
        stats: false,
        gates: Vec::new(),
        exchange: false,
        access_logs: access_log::compile(&config.access_log)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::xds::metadata_exchange::MetadataExchange;
    use api::xds::{PEER_EXCHANGE, pack};
    use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
    use envoy_types::pb::envoy::config::listener::v3::Filter;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
        CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    };

    /// A chain for bytes behind TLS that knows the exchange, with the filter under these protocols.
    fn chain(exchanges: &[&str]) -> Result<Chain, String> {
        let common = CommonTlsContext {
            alpn_protocols: vec![PEER_EXCHANGE.into(), "h2".into()],
            tls_certificate_sds_secret_configs: vec![SdsSecretConfig::default()],
            ..CommonTlsContext::default()
        };
        let tls = DownstreamTlsContext { common_tls_context: Some(common), ..DownstreamTlsContext::default() };
        let filter = |config| Filter { config_type: Some(ConfigType::TypedConfig(config)), ..Filter::default() };
        let exchange = |protocol: &&str| {
            filter(pack(&MetadataExchange { protocol: (*protocol).to_owned(), ..MetadataExchange::default() }))
        };
        let tcp = TcpProxy { cluster_specifier: Some(ClusterSpecifier::Cluster("a".into())), ..TcpProxy::default() };
        compile(&FilterChain {
            filters: exchanges.iter().map(exchange).chain([filter(pack(&tcp))]).collect(),
            transport_socket: Some(TransportSocket {
                config_type: Some(transport_socket::ConfigType::TypedConfig(pack(&tls))),
                ..TransportSocket::default()
            }),
            ..FilterChain::default()
        })
    }

    #[test]
    fn the_exchange_is_negotiated_only_where_it_is_read() {
        for (exchanges, alpn) in [(&[PEER_EXCHANGE][..], &[PEER_EXCHANGE, "h2"][..]), (&[], &["h2"])] {
            let chain = chain(exchanges).unwrap();
            assert_eq!(chain.tls.unwrap().alpn, alpn);
            assert!(matches!(&chain.network, Network::Tcp(tcp) if tcp.exchange != exchanges.is_empty()));
        }
        assert!(chain(&["another"]).unwrap_err().contains("another"));
    }
}
