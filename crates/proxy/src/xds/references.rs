//! Which other resources a resource points at: what has to be subscribed by name, and what must be there before the resource
//! may take effect (Envoy calls the waiting in between warming).

use std::collections::BTreeSet;

use api::xds::{Any, ResourceKind, unpack};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{ConfigSource, TransportSocket, transport_socket};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, UpstreamTlsContext,
};

/// A resource pointed at.
pub type Reference = (ResourceKind, String);

/// What a resource points at. A message that cannot be read points at nothing: whoever compiles it says why it is bad.
pub fn of(kind: ResourceKind, body: &Any) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    match kind {
        ResourceKind::Cluster => unpack::<Cluster>(body).iter().for_each(|cluster| of_cluster(cluster, &mut found)),
        ResourceKind::Listener => {
            unpack::<Listener>(body).iter().for_each(|listener| of_listener(listener, &mut found))
        }
        ResourceKind::Endpoint | ResourceKind::Route | ResourceKind::Secret | ResourceKind::NameTable => {}
    }
    found
}

fn of_cluster(cluster: &Cluster, found: &mut BTreeSet<Reference>) {
    if cluster.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)) {
        let named =
            cluster.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str()).filter(|name| !name.is_empty());
        found.insert((ResourceKind::Endpoint, named.unwrap_or(&cluster.name).to_owned()));
    }
    let matches = cluster.transport_socket_matches.iter().filter_map(|choice| choice.transport_socket.as_ref());
    for socket in cluster.transport_socket.iter().chain(matches) {
        of_transport_socket(socket, found);
    }
}

fn of_listener(listener: &Listener, found: &mut BTreeSet<Reference>) {
    for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
        of_chain(chain, found);
    }
}

fn of_chain(chain: &FilterChain, found: &mut BTreeSet<Reference>) {
    for filter in &chain.filters {
        let Some(ConfigType::TypedConfig(config)) = &filter.config_type else { continue };
        if let Ok(HttpConnectionManager { route_specifier: Some(RouteSpecifier::Rds(rds)), .. }) = unpack(config) {
            found.insert((ResourceKind::Route, rds.route_config_name));
        }
    }
    if let Some(socket) = &chain.transport_socket {
        of_transport_socket(socket, found);
    }
}

fn of_transport_socket(socket: &TransportSocket, found: &mut BTreeSet<Reference>) {
    let Some(transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else { return };
    if let Ok(UpstreamTlsContext { common_tls_context: Some(tls), .. }) = unpack(config) {
        of_tls(&tls, found);
    }
    if let Ok(DownstreamTlsContext { common_tls_context: Some(tls), .. }) = unpack(config) {
        of_tls(&tls, found);
    }
}

fn of_tls(tls: &CommonTlsContext, found: &mut BTreeSet<Reference>) {
    let roots = match &tls.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(sds)) => Some(sds),
        Some(ValidationContextType::CombinedValidationContext(both)) => {
            both.validation_context_sds_secret_config.as_ref()
        }
        _ => None,
    };
    for sds in tls.tls_certificate_sds_secret_configs.iter().chain(roots).filter(|sds| from_this_server(sds)) {
        found.insert((ResourceKind::Secret, sds.name.clone()));
    }
}

/// Secrets that the xDS server serves itself; `default` and `ROOTCA` come from elsewhere (`sds-grpc`): from `identity`.
fn from_this_server(sds: &SdsSecretConfig) -> bool {
    matches!(&sds.sds_config, Some(ConfigSource { config_source_specifier: Some(ConfigSourceSpecifier::Ads(_)), .. }))
}
