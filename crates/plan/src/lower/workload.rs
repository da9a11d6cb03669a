//! Pods and WorkloadEntries become workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::annotation;
use api::crd::WorkloadEntry;
use api::kube::Pod;
use api::object::{Body, Kind, Object};
use api::value::Labels;

use super::ByKind;
use crate::model::{Age, Workload, WorkloadSource};

pub(super) fn all(by_kind: &ByKind<'_>) -> Vec<Arc<Workload>> {
    let nodes: BTreeMap<&str, &Labels> =
        by_kind.all(Kind::Node).map(|node| (node.meta.name.as_str(), &node.meta.labels)).collect();
    let pods = by_kind.all(Kind::Pod).filter_map(|object| match &object.body {
        Body::Pod(pod) => Some(of_pod(object, pod, &nodes)),
        _ => None,
    });
    let entries = by_kind.all(Kind::WorkloadEntry).filter_map(|object| match &object.body {
        Body::WorkloadEntry(entry) => Some(of_entry(object, entry)),
        _ => None,
    });
    pods.chain(entries).filter(|workload| !workload.addresses.is_empty()).map(Arc::new).collect()
}

fn of_pod(object: &Object, pod: &Pod, nodes: &BTreeMap<&str, &Labels>) -> Workload {
    let mut addresses: Vec<String> = pod.status.pod_ips.iter().map(|pod_ip| pod_ip.ip.clone()).collect();
    if !pod.status.pod_ip.is_empty() && !addresses.contains(&pod.status.pod_ip) {
        addresses.insert(0, pod.status.pod_ip.clone());
    }
    let ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
    if ended {
        addresses.clear();
    }
    // Pods as people write them have no status; then they count as ready.
    let said = pod.status.conditions.iter().find(|condition| condition.kind == "Ready");
    let said = said.map(|condition| condition.status == "True");
    let stays = !object.meta.leaves;
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    let labels = object.meta.labels.clone();
    // What the pod says of itself, else where its node is.
    let locality = Some(locality_of(&labels)).filter(|own| !own.is_empty());
    let of_node = || nodes.get(pod.spec.node_name.as_str()).map(|labels| locality_of(labels)).unwrap_or_default();
    Workload {
        source: WorkloadSource::Pod,
        name: object.meta.name.clone(),
        namespace: object.meta.namespace.clone(),
        addresses,
        service_account: or_default(&pod.spec.service_account_name),
        locality: locality.unwrap_or_else(of_node),
        node: pod.spec.node_name.clone(),
        weight: 0,
        ports: ports
            .filter(|port| !port.name.is_empty())
            .map(|port| (port.name.clone(), port.container_port))
            .collect(),
        tls: accepts_tls(&labels),
        ready: stays && said.unwrap_or(true),
        called_ready: stays && said.unwrap_or(false),
        unheard: stays && is_unheard(pod),
        leaves: object.meta.leaves,
        age: Age::of(object),
        labels,
    }
}

/// A node that is silent for a while is taken for dead, and its pods with it; but it may be the API server that nobody can reach.
/// The kubelet's own last word, that the containers are ready, still stands in the pod. Whether the pod is ready is not asked:
/// what slices say may be known before it.
fn is_unheard(pod: &Pod) -> bool {
    let says = |kind: &str| pod.status.conditions.iter().any(|one| one.kind == kind && one.status == "True");
    says("ContainersReady") && pod.spec.readiness_gates.is_empty()
}

fn of_entry(object: &Object, entry: &WorkloadEntry) -> Workload {
    let mut labels = object.meta.labels.clone();
    labels.extend(entry.labels.clone());
    Workload {
        source: WorkloadSource::Entry,
        name: object.meta.name.clone(),
        namespace: object.meta.namespace.clone(),
        addresses: Some(entry.address.clone()).filter(|address| !address.is_empty()).into_iter().collect(),
        service_account: or_default(&entry.service_account),
        locality: if entry.locality.is_empty() { locality_of(&labels) } else { entry.locality.clone() },
        node: labels.get(annotation::HOSTNAME).cloned().unwrap_or_default(),
        weight: entry.weight,
        ports: entry.ports.clone(),
        tls: accepts_tls(&labels),
        ready: true,
        called_ready: false,
        unheard: false,
        leaves: false,
        age: Age::of(object),
        labels,
    }
}

/// An endpoint that is written in a ServiceEntry.
pub(super) fn of_inline(object: &Object, index: usize, entry: &WorkloadEntry) -> Workload {
    Workload {
        source: WorkloadSource::Inline,
        name: format!("{}-{index}", object.meta.name),
        labels: entry.labels.clone(),
        service_account: entry.service_account.clone(),
        locality: entry.locality.clone(),
        node: entry.labels.get(annotation::HOSTNAME).cloned().unwrap_or_default(),
        tls: accepts_tls(&entry.labels),
        ..of_entry(object, entry)
    }
}

fn or_default(service_account: &str) -> String {
    if service_account.is_empty() { "default".into() } else { service_account.into() }
}

fn accepts_tls(labels: &Labels) -> bool {
    labels.get(annotation::TLS_MODE).is_some_and(|mode| mode == "istio")
}

/// Label `istio-locality` (`region.zone.subzone`), else those of the topology.
fn locality_of(labels: &Labels) -> String {
    if let Some(text) = labels.get(annotation::LOCALITY) {
        return text.replace('.', "/");
    }
    let part = |key: &str| labels.get(key).map_or("", String::as_str);
    let text = format!("{}/{}/{}", part(annotation::REGION), part(annotation::ZONE), part(annotation::SUBZONE));
    text.trim_end_matches('/').to_owned()
}

/// Region, zone and sub-zone of `region/zone/subzone`.
pub(crate) fn locality_parts(text: &str) -> [&str; 3] {
    let mut parts = text.splitn(3, '/');
    [parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default()]
}
