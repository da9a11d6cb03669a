//! EDS: the endpoints of each cluster that takes them from here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::annotation;
use api::cluster_name::ClusterName;
use api::selector::selects;
use api::value::Labels;
use api::xds::ResourceKind;
use api::xds::core::{HealthStatus, Locality};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as ProtoEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use serde_json::json;

use super::{cluster, named, wire};
use crate::lower::locality_parts;
use crate::model::Named;
use crate::model::{Distribution, Endpoint, Protocol, Service};
use crate::resources::{Resources, ordered};
use crate::scope::Scope;

pub(super) fn all(scope: &Scope) -> Resources {
    let of =
        |service| scope.snapshot.made.get(cluster::inputs(scope, service, "endpoints"), || of_service(scope, service));
    let own: Vec<Arc<Named>> = scope.asked.iter().flat_map(|(service, _)| of(service).to_vec()).collect();
    let shared = scope.view.list(ResourceKind::Endpoint, scope.kin(), || {
        let Some((before, moved)) = scope.view.endpoints_before(scope.kin()) else {
            return scope.view.services.values().flat_map(|service| of(service).to_vec()).collect();
        };
        let mut all = before.to_vec();
        for one in moved.iter().flat_map(|service| of(service).to_vec()) {
            match all.binary_search_by(|known| known.name.cmp(&one.name)) {
                Ok(place) => all[place] = one,
                Err(place) => all.insert(place, one),
            }
        }
        all
    });
    Resources::new(shared, ordered(own))
}

/// The endpoints of one service, of each port and subset.
fn of_service(scope: &Scope, service: &Service) -> Vec<Arc<Named>> {
    let mut made = Vec::new();
    if !cluster::takes_eds(scope, service) {
        return made;
    }
    let none = Labels::new();
    let rule = scope.rule(&service.host);
    for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
        for subset in cluster::subsets(scope, service) {
            let found = rule.and_then(|rule| rule.spec.subsets.iter().find(|one| one.name == subset));
            let labels = found.filter(|_| !subset.is_empty()).map_or(&none, |subset| &subset.labels);
            let name = ClusterName::outbound(port.number, subset, service.host.as_str()).to_string();
            made.push(named(&name, &assignment(scope, service, &name, port.number, labels)));
        }
    }
    made
}

/// The endpoints of one cluster, grouped by locality.
pub(super) fn assignment(
    scope: &Scope,
    service: &Service,
    name: &str,
    port: u16,
    labels: &Labels,
) -> ClusterLoadAssignment {
    let own = |endpoint: &&Endpoint| endpoint.service_port == port && selects(labels, &endpoint.labels);
    let mut chosen: Vec<&Endpoint> = service.endpoints.iter().filter(own).filter(|endpoint| endpoint.ready).collect();
    if chosen.is_empty() {
        chosen = service.endpoints.iter().filter(own).filter(|endpoint| endpoint.unheard).collect();
    }
    let mut localities: BTreeMap<(u32, &str), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in reached(scope, service, chosen) {
        localities.entry((distance(scope, service, endpoint), &endpoint.locality)).or_default().push(endpoint);
    }
    // Priorities follow each other without gaps.
    let distances: BTreeSet<u32> = localities.keys().map(|(distance, _)| *distance).collect();
    let group = |((distance, locality), endpoints): ((u32, &str), Vec<&Endpoint>)| {
        let weight: u32 = endpoints.iter().map(|endpoint| endpoint.weight.max(1)).sum();
        let [region, zone, sub_zone] = locality_parts(locality).map(str::to_owned);
        LocalityLbEndpoints {
            locality: Some(Locality { region, zone, sub_zone }),
            lb_endpoints: endpoints.iter().map(|endpoint| lb_endpoint(scope, endpoint)).collect(),
            load_balancing_weight: wire::some_u32(weight),
            priority: distances.range(..distance).count() as u32,
            ..LocalityLbEndpoints::default()
        }
    };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities.into_iter().map(group).collect(),
        ..ClusterLoadAssignment::default()
    }
}

/// The endpoints that this proxy may be sent to: of a workload that is listed with an address of each family, one that the proxy
/// can reach, and only those of its own node where the service says so.
fn reached<'a>(scope: &Scope, service: &Service, mut endpoints: Vec<&'a Endpoint>) -> Vec<&'a Endpoint> {
    if let Some(place) = scope.place.as_ref().filter(|place| service.node_local && !place.node.is_empty()) {
        endpoints.retain(|endpoint| endpoint.node == place.node);
    }
    let is_v6 = |endpoint: &Endpoint| endpoint.address.contains(':');
    if endpoints.iter().all(|endpoint| is_v6(endpoint) == is_v6(endpoints[0])) {
        return endpoints;
    }
    let families = scope.proxy.any_addresses();
    // The proxy's first family comes first.
    let order = |endpoint: &Endpoint| families.iter().position(|family| family.contains(':') == is_v6(endpoint));
    let mut best: BTreeMap<(&str, &str, u16), usize> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| !endpoint.workload.is_empty()) {
        if let Some(order) = order(endpoint) {
            let known = best.entry((&endpoint.namespace, &endpoint.workload, endpoint.port)).or_insert(order);
            *known = order.min(*known);
        }
    }
    endpoints.retain(|endpoint| {
        let best = best.get(&(endpoint.namespace.as_str(), endpoint.workload.as_str(), endpoint.port));
        order(endpoint).is_some_and(|order| best.is_none_or(|best| *best == order))
    });
    endpoints
}

/// How far an endpoint is: the number of parts in which its place differs, from the first that differs on (Istio's
/// `failoverPriority` over region, zone, and for nodes sub-zone and node).
fn distance(scope: &Scope, service: &Service, endpoint: &Endpoint) -> u32 {
    let Some(place) = &scope.place else { return 0 };
    let parts = match service.distribution {
        Distribution::Any => return 0,
        Distribution::SameZone => 2,
        Distribution::SameNode => 4,
    };
    let [region, zone, sub_zone] = locality_parts(&endpoint.locality);
    let [own_region, own_zone, own_sub_zone] = locality_parts(&place.locality);
    let pairs = [(region, own_region), (zone, own_zone), (sub_zone, own_sub_zone), (&*endpoint.node, &*place.node)];
    let same = pairs.iter().take(parts).take_while(|(one, other)| one == other).count();
    (parts - same) as u32
}

fn lb_endpoint(scope: &Scope, endpoint: &Endpoint) -> LbEndpoint {
    let mut metadata = Vec::new();
    if endpoint.tls {
        metadata.push(("envoy.transport_socket_match", json!({"tlsMode": "istio"})));
    }
    if !endpoint.workload.is_empty() {
        metadata.push(("istio", json!({"workload": workload(scope, endpoint)})));
    }
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(ProtoEndpoint {
            address: wire::socket(&endpoint.address, endpoint.port),
            ..ProtoEndpoint::default()
        })),
        health_status: HealthStatus::Healthy as i32,
        metadata: if metadata.is_empty() { None } else { wire::metadata(metadata) },
        load_balancing_weight: wire::some_u32(endpoint.weight.max(1)),
    }
}

/// `name;namespace;canonical-service;canonical-revision;cluster`, which the metrics filter reads.
fn workload(scope: &Scope, endpoint: &Endpoint) -> String {
    let (name, revision) = canonical(&endpoint.labels, &endpoint.workload);
    format!("{};{};{name};{revision};{}", endpoint.workload, endpoint.namespace, scope.proxy.cluster_id)
}

/// Canonical service and revision of a workload.
pub(super) fn canonical<'a>(labels: &'a Labels, workload: &'a str) -> (&'a str, &'a str) {
    let first = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key)).map(String::as_str);
    let name = first([annotation::CANONICAL_NAME, annotation::APP_NAME, annotation::APP]).unwrap_or(workload);
    let revision =
        first([annotation::CANONICAL_REVISION, annotation::APP_VERSION, annotation::VERSION]).unwrap_or("latest");
    (name, revision)
}
