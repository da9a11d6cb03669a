//! Settings that a resource may carry and that this proxy does not heed, though it takes the resource: what they would tune is
//! told, so that nobody waits for an effect. What would change where a request goes, or who is trusted, is refused instead.

use api::xds::metadata_exchange::MetadataExchange;
use api::xds::{Any, ResourceKind};
use envoy_types::pb::envoy::config::cluster::v3::cluster::LbConfig;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, OutlierDetection};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action as Verdict;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::{RetryPolicy, Route, RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfigType;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::google::protobuf::UInt32Value;
use prost::Name;

use crate::snapshot::{Section, Snapshot};
use crate::xds::resources::ResourceSet;

/// One resource with its settings that have no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unheeded {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its name.
    pub name: String,
    /// The fields, each once.
    pub fields: Vec<&'static str>,
}

/// What is not heeded in the resources that came into effect with `now`: each version of a resource is told of once.
pub fn unheeded(resources: &ResourceSet, previous: &Snapshot, now: &Snapshot) -> Vec<Unheeded> {
    let mut all = Vec::new();
    section(resources, ResourceKind::Cluster, &previous.clusters, &now.clusters, cluster, &mut all);
    section(resources, ResourceKind::Route, &previous.routes, &now.routes, routes, &mut all);
    section(resources, ResourceKind::Listener, &previous.listeners, &now.listeners, listener, &mut all);
    all
}

fn section<T, M: prost::Message + Name + Default>(
    resources: &ResourceSet,
    kind: ResourceKind,
    previous: &Section<T>,
    now: &Section<T>,
    fields: fn(&M, &mut Vec<&'static str>),
    all: &mut Vec<Unheeded>,
) {
    for (name, resource) in resources.of(kind) {
        let has =
            |section: &Section<T>| section.get(name.as_str()).is_some_and(|held| held.version == resource.version);
        if !has(now) || has(previous) {
            continue;
        }
        let Ok(message) = api::xds::unpack(&resource.body) else { continue };
        let mut found = Vec::new();
        fields(&message, &mut found);
        found.sort_unstable();
        found.dedup();
        if !found.is_empty() {
            all.push(Unheeded { kind, name: name.clone(), fields: found });
        }
    }
}

/// Notes the names of those that are set.
fn note<const N: usize>(found: &mut Vec<&'static str>, rows: [(&'static str, bool); N]) {
    found.extend(rows.into_iter().filter(|(_, set)| *set).map(|(name, _)| name));
}

fn cluster(cluster: &Cluster, found: &mut Vec<&'static str>) {
    let common = cluster.common_lb_config.clone().unwrap_or_default();
    let (bias, slow_start) = match &cluster.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => {
            (config.active_request_bias.is_some(), config.slow_start_config.is_some())
        }
        Some(LbConfig::RoundRobinLbConfig(config)) => (false, config.slow_start_config.is_some()),
        _ => (false, false),
    };
    note(
        found,
        [
            ("least_request_lb_config.active_request_bias", bias),
            ("slow_start_config", slow_start),
            ("common_lb_config.close_connections_on_host_set_change", common.close_connections_on_host_set_change),
            ("common_lb_config.override_host_status", common.override_host_status.is_some()),
            ("common_lb_config.consistent_hashing_lb_config", common.consistent_hashing_lb_config.is_some()),
            ("dns_failure_refresh_rate", cluster.dns_failure_refresh_rate.is_some()),
            ("typed_dns_resolver_config", cluster.typed_dns_resolver_config.is_some()),
            ("use_tcp_for_dns_lookups", cluster.use_tcp_for_dns_lookups),
            (
                "dns_resolution_config.dns_resolver_options",
                cluster.dns_resolution_config.as_ref().is_some_and(|config| config.dns_resolver_options.is_some()),
            ),
            ("preconnect_policy", cluster.preconnect_policy.is_some()),
            ("queuing_policies", cluster.queuing_policies.is_some()),
            ("connection_pool_per_downstream_connection", cluster.connection_pool_per_downstream_connection),
            ("close_connections_on_host_health_failure", cluster.close_connections_on_host_health_failure),
            (
                "circuit_breakers.per_host_thresholds",
                cluster.circuit_breakers.as_ref().is_some_and(|breakers| !breakers.per_host_thresholds.is_empty()),
            ),
        ],
    );
    cluster.filters.iter().filter_map(|filter| filter.typed_config.as_ref()).for_each(|any| exchange(any, found));
    if let Some(config) = &cluster.outlier_detection {
        outlier(config, found);
    }
}

/// Success rates are on in Envoy unless they are switched off; failure percentages are off unless they are switched on.
fn outlier(config: &OutlierDetection, found: &mut Vec<&'static str>) {
    let enforced = |share: Option<UInt32Value>, default: u32| share.map_or(default, |share| share.value) > 0;
    let split = config.split_external_local_origin_errors;
    note(
        found,
        [
            ("outlier_detection.enforcing_success_rate", enforced(config.enforcing_success_rate, 100)),
            (
                "outlier_detection.enforcing_local_origin_success_rate",
                split && enforced(config.enforcing_local_origin_success_rate, 0),
            ),
            ("outlier_detection.enforcing_failure_percentage", enforced(config.enforcing_failure_percentage, 0)),
            (
                "outlier_detection.enforcing_failure_percentage_local_origin",
                split && enforced(config.enforcing_failure_percentage_local_origin, 0),
            ),
            ("outlier_detection.max_ejection_time_jitter", config.max_ejection_time_jitter.is_some()),
            ("outlier_detection.monitors", !config.monitors.is_empty()),
        ],
    );
}

fn routes(config: &RouteConfiguration, found: &mut Vec<&'static str>) {
    note(
        found,
        [
            ("internal_only_headers", !config.internal_only_headers.is_empty()),
            ("most_specific_header_mutations_wins", config.most_specific_header_mutations_wins),
            ("ignore_path_parameters_in_path_matching", config.ignore_path_parameters_in_path_matching),
        ],
    );
    config.virtual_hosts.iter().for_each(|host| virtual_host(host, found));
}

fn virtual_host(host: &VirtualHost, found: &mut Vec<&'static str>) {
    note(
        found,
        [
            ("virtual_clusters", !host.virtual_clusters.is_empty()),
            ("include_is_timeout_retry_header", host.include_is_timeout_retry_header),
            ("retry_policy_typed_config", host.retry_policy_typed_config.is_some()),
            ("request_body_buffer_limit", host.request_body_buffer_limit.is_some()),
        ],
    );
    if let Some(policy) = &host.retry_policy {
        retry(policy, found);
    }
    host.routes.iter().for_each(|one| route(one, found));
}

fn route(route: &Route, found: &mut Vec<&'static str>) {
    note(
        found,
        [
            ("route.tracing", route.tracing.is_some()),
            ("route.request_body_buffer_limit", route.request_body_buffer_limit.is_some()),
        ],
    );
    let Some(Action::Route(action)) = &route.action else { return };
    note(
        found,
        [
            ("route.hash_policy", !action.hash_policy.is_empty()),
            ("route.priority", action.priority != 0),
            ("route.retry_policy_typed_config", action.retry_policy_typed_config.is_some()),
            ("route.grpc_timeout_offset", action.grpc_timeout_offset.is_some()),
            ("route.flush_timeout", action.flush_timeout.is_some()),
            ("route.early_data_policy", action.early_data_policy.is_some()),
        ],
    );
    if let Some(policy) = &action.retry_policy {
        retry(policy, found);
    }
}

fn retry(policy: &RetryPolicy, found: &mut Vec<&'static str>) {
    let unknown = policy.retry_host_predicate.iter().any(|predicate| !predicate.name.ends_with("previous_hosts"));
    note(
        found,
        [
            ("retry_policy.per_try_idle_timeout", policy.per_try_idle_timeout.is_some()),
            ("retry_policy.retry_priority", policy.retry_priority.is_some()),
            ("retry_policy.retry_host_predicate", unknown),
            ("retry_policy.retry_options_predicates", !policy.retry_options_predicates.is_empty()),
            ("retry_policy.rate_limited_retry_back_off", policy.rate_limited_retry_back_off.is_some()),
        ],
    );
}

fn listener(listener: &Listener, found: &mut Vec<&'static str>) {
    note(
        found,
        [
            ("socket_options", !listener.socket_options.is_empty()),
            ("freebind", listener.freebind.is_some_and(|free| free.value)),
            ("tcp_fast_open_queue_length", listener.tcp_fast_open_queue_length.is_some()),
            ("tcp_keepalive", listener.tcp_keepalive.is_some()),
        ],
    );
    listener.filter_chains.iter().chain(&listener.default_filter_chain).for_each(|one| chain(one, found));
}

fn chain(chain: &FilterChain, found: &mut Vec<&'static str>) {
    note(found, [("transport_socket_connect_timeout", chain.transport_socket_connect_timeout.is_some())]);
    for filter in &chain.filters {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        network_filter(any, found);
    }
}

/// Peers that tell nothing are not asked for elsewhere, and what we tell has all labels already.
fn exchange(any: &Any, found: &mut Vec<&'static str>) {
    if let Ok(config) = api::xds::unpack::<MetadataExchange>(any) {
        note(found, [("metadata_exchange.enable_discovery", config.enable_discovery)]);
    }
}

fn network_filter(any: &Any, found: &mut Vec<&'static str>) {
    exchange(any, found);
    if let Ok(manager) = api::xds::unpack::<HttpConnectionManager>(any) {
        http(&manager, found);
    } else if let Ok(tcp) = api::xds::unpack::<TcpProxy>(any) {
        note(
            found,
            [
                ("tcp_proxy.hash_policy", !tcp.hash_policy.is_empty()),
                ("tcp_proxy.backoff_options", tcp.backoff_options.is_some()),
                ("tcp_proxy.downstream_idle_timeout", tcp.downstream_idle_timeout.is_some()),
                ("tcp_proxy.upstream_idle_timeout", tcp.upstream_idle_timeout.is_some()),
                ("tcp_proxy.max_downstream_connection_duration", tcp.max_downstream_connection_duration.is_some()),
                ("tcp_proxy.access_log_options", tcp.access_log_options.is_some()),
            ],
        );
    }
}

fn http(manager: &HttpConnectionManager, found: &mut Vec<&'static str>) {
    let common = manager.common_http_protocol_options.unwrap_or_default();
    note(
        found,
        [
            ("tracing", manager.tracing.is_some()),
            ("request_id_extension", manager.request_id_extension.is_some()),
            ("scheme_header_transformation", manager.scheme_header_transformation.is_some()),
            ("max_request_headers_kb", manager.max_request_headers_kb.is_some()),
            ("stream_flush_timeout", manager.stream_flush_timeout.is_some()),
            ("access_log_options", manager.access_log_options.is_some()),
            ("internal_address_config", manager.internal_address_config.is_some()),
            ("proxy_100_continue", manager.proxy_100_continue),
            ("path_normalization_options", manager.path_normalization_options.is_some()),
            ("strip_trailing_host_dot", manager.strip_trailing_host_dot),
            ("proxy_status_config", manager.proxy_status_config.is_some()),
            ("typed_header_validation_config", manager.typed_header_validation_config.is_some()),
            ("append_x_forwarded_port", manager.append_x_forwarded_port),
            ("forward_proto_config", manager.forward_proto_config.is_some()),
            ("common_http_protocol_options.max_connection_duration", common.max_connection_duration.is_some()),
            ("common_http_protocol_options.max_stream_duration", common.max_stream_duration.is_some()),
            ("common_http_protocol_options.max_headers_count", common.max_headers_count.is_some()),
            (
                "common_http_protocol_options.headers_with_underscores_action",
                common.headers_with_underscores_action != 0,
            ),
        ],
    );
    for filter in &manager.http_filters {
        if let Some(HttpConfigType::TypedConfig(any)) = &filter.config_type
            && let Ok(policies) = api::xds::unpack::<Rbac>(any)
        {
            note(found, [("rbac.track_per_rule_stats", policies.track_per_rule_stats)]);
            note(
                found,
                [("rbac.rules.action", policies.rules.is_some_and(|rules| rules.action == Verdict::Log as i32))],
            );
        }
    }
    if let Some(RouteSpecifier::RouteConfig(config)) = &manager.route_specifier {
        routes(config, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;
    use crate::xds::resources::Resource;
    use api::xds::pack;
    use envoy_types::pb::envoy::config::cluster::v3::cluster::LeastRequestLbConfig;

    #[test]
    fn each_version_is_told_of_once_and_silence_means_heeded() {
        let mut message = Cluster { name: "a".into(), ..Cluster::default() };
        message.lb_config = Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
            slow_start_config: Some(Default::default()),
            ..LeastRequestLbConfig::default()
        }));
        message.outlier_detection = Some(OutlierDetection::default());
        let set = |version: &str, message: &Cluster| {
            let mut set = ResourceSet::default();
            let resource = Resource { version: version.into(), body: pack(message).into() };
            set.of_mut(ResourceKind::Cluster).insert("a".into(), resource);
            set
        };
        let first = set("1", &message);
        let (now, _) = compile(&first, &Snapshot::default());
        let told = unheeded(&first, &Snapshot::default(), &now);
        assert_eq!(told[0].fields, ["outlier_detection.enforcing_success_rate", "slow_start_config"]);
        assert_eq!(unheeded(&first, &now, &now), []);
        message.lb_config = None;
        message.outlier_detection = Some(OutlierDetection {
            enforcing_success_rate: Some(UInt32Value { value: 0 }),
            ..OutlierDetection::default()
        });
        let second = set("2", &message);
        let (next, _) = compile(&second, &now);
        assert_eq!(unheeded(&second, &now, &next), []);
        // What is refused is told of elsewhere.
        message.lb_policy = 5;
        let third = set("3", &message);
        let (kept, rejects) = compile(&third, &next);
        assert_eq!((rejects.len(), unheeded(&third, &next, &kept)), (1, vec![]));
    }
}
