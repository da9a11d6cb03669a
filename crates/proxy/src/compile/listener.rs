//! Listeners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::xds::Any;
use envoy_types::pb::envoy::config::listener::v3::Listener as XdsListener;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;

use super::{access_log, chain, endpoint};
use crate::facts::Direction;
use crate::leaf::duration_or;
use crate::snapshot::endpoint::Place;
use crate::snapshot::listener::Listener;

/// Compiles an LDS resource.
///
/// # Errors
/// What is unknown or not built; the sentence names it.
pub fn compile(any: &Any) -> Result<Listener, String> {
    let listener: XdsListener = api::xds::unpack(any)?;
    if listener.udp_listener_config.is_some()
        || listener.api_listener.is_some()
        || listener.listener_specifier.is_some()
    {
        return Err("UDP, API and internal listeners are not built".to_owned());
    }
    if listener.filter_chain_matcher.is_some() || listener.fcds_config.is_some() {
        return Err("filter chain matcher trees and discovery are not built".to_owned());
    }
    let mut addresses = vec![address(listener.address.as_ref())?];
    for additional in &listener.additional_addresses {
        addresses.push(address(additional.address.as_ref())?);
    }
    let mut compiled = Listener {
        name: listener.name.as_str().into(),
        addresses,
        binds: listener.bind_to_port.is_none_or(|binds| binds.value),
        use_original_dst: listener.use_original_dst.is_some_and(|original| original.value),
        original_dst: false,
        transparent: listener.transparent.is_some_and(|transparent| transparent.value),
        original_src: None,
        inspect_tls: false,
        inspect_http: false,
        inspect_timeout: duration_or(&listener.listener_filters_timeout, Duration::from_secs(15))?,
        continue_on_timeout: listener.continue_on_listener_filters_timeout,
        // UNSPECIFIED 0, INBOUND 1, OUTBOUND 2.
        direction: if listener.traffic_direction == 1 { Direction::Inbound } else { Direction::Outbound },
        chains: listener
            .filter_chains
            .iter()
            .map(|chain| chain::compile(chain).map(Arc::new))
            .collect::<Result<_, _>>()?,
        default_chain: listener
            .default_filter_chain
            .as_ref()
            .map(|chain| chain::compile(chain).map(Arc::new))
            .transpose()?,
        access_logs: access_log::compile(&listener.access_log)?,
        object: super::object_of(listener.metadata.as_ref()),
    };
    compiled.original_dst = compiled.use_original_dst;
    for filter in &listener.listener_filters {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
            return Err(format!("the listener filter {:?} has no configuration", filter.name));
        };
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => compiled.original_dst = true,
            "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
                let source: OriginalSrc = api::xds::unpack(any)?;
                if source.bind_port {
                    return Err(
                        "original_src with bind_port: calling upstreams from the client's port is not built".into()
                    );
                }
                compiled.original_src = Some(source.mark);
            }
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => compiled.inspect_tls = true,
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => compiled.inspect_http = true,
            other => return Err(format!("the listener filter {other:?} is not known to this proxy")),
        }
    }
    // Envoy adds the TLS inspector by itself where chains need it.
    compiled.inspect_tls |=
        compiled.chains.iter().any(|chain| !chain.matches.server_names.is_empty() || chain.matches.transport.is_some());
    Ok(compiled)
}

fn address(address: Option<&api::xds::core::Address>) -> Result<SocketAddr, String> {
    match address.map(endpoint::place_of).transpose()? {
        Some(Place::Socket(address)) => Ok(address),
        Some(Place::Name(name, _)) => Err(format!("a listener's address must be an IP address, not {name:?}")),
        Some(Place::Unix(path)) => Err(format!("listening on the Unix socket {path:?} is not built")),
        None => Err("it has no address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, filter};

    #[test]
    fn an_unknown_filter_is_refused_by_name() {
        let any = Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy".into(),
            value: vec![],
        };
        let listener = XdsListener {
            address: Some(crate::compile::tests_address("127.0.0.1", 0)),
            filter_chains: vec![FilterChain {
                filters: vec![Filter { name: "mongo".into(), config_type: Some(filter::ConfigType::TypedConfig(any)) }],
                ..FilterChain::default()
            }],
            ..XdsListener::default()
        };
        assert!(compile(&api::xds::pack(&listener)).unwrap_err().contains("MongoProxy"));
    }

    #[test]
    fn calling_upstreams_from_the_clients_address_is_read_with_its_mark() {
        use envoy_types::pb::envoy::config::listener::v3::ListenerFilter;
        let listener = |source: OriginalSrc| XdsListener {
            address: Some(crate::compile::tests_address("127.0.0.1", 0)),
            transparent: Some(envoy_types::pb::google::protobuf::BoolValue { value: true }),
            listener_filters: vec![ListenerFilter {
                name: "source".into(),
                config_type: Some(ConfigType::TypedConfig(api::xds::pack(&source))),
                ..ListenerFilter::default()
            }],
            ..XdsListener::default()
        };
        let read = compile(&api::xds::pack(&listener(OriginalSrc { mark: 1337, bind_port: false }))).unwrap();
        assert_eq!((read.transparent, read.original_src), (true, Some(1337)));
        let refused = compile(&api::xds::pack(&listener(OriginalSrc { mark: 1337, bind_port: true })));
        assert!(refused.unwrap_err().contains("bind_port"));
    }
}
