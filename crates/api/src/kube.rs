//! The fields of Kubernetes' own objects that the mesh reads. Everything else in them is accepted in silence: they are
//! Kubernetes' objects, not ours.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::value::{Labels, NumberOrName};

/// Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Spec.
    pub spec: ServiceSpec,
}

/// Spec of a Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Virtual address; `None` for headless.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All virtual addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Pods.
    pub selector: Labels,
    /// ClusterIP, NodePort, LoadBalancer, ExternalName.
    #[serde(rename = "type")]
    pub kind: String,
    /// DNS name behind an ExternalName service.
    pub external_name: String,
    /// Endpoints count before they are ready.
    pub publish_not_ready_addresses: bool,
    /// PreferSameZone (or its older name PreferClose), PreferSameNode.
    pub traffic_distribution: String,
    /// Cluster, or Local: only endpoints of the caller's node.
    pub internal_traffic_policy: String,
}

/// Port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Port of the pod; default the number.
    pub target_port: Option<NumberOrName>,
    /// TCP or UDP.
    pub protocol: String,
    /// Protocol of the application.
    pub app_protocol: String,
}

/// Endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// Groups of addresses that share ports.
    pub subsets: Vec<EndpointSubset>,
}

/// Addresses that share ports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSubset {
    /// Ready addresses.
    pub addresses: Vec<EndpointAddress>,
    /// Ports.
    pub ports: Vec<EndpointPort>,
}

/// One address.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointAddress {
    /// IP address.
    pub ip: String,
    /// Pod.
    pub target_ref: Option<TargetRef>,
}

/// Port of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Name of the service's port.
    pub name: String,
    /// Number at the endpoint.
    pub port: u16,
}

/// The object behind an address.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// IPv4, IPv6, FQDN.
    pub address_type: String,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports of all endpoints.
    pub ports: Vec<EndpointPort>,
}

/// Endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Addresses that are one and the same endpoint; the first counts.
    pub addresses: Vec<String>,
    /// State; absent means ready.
    pub conditions: Option<SliceConditions>,
    /// Pod.
    pub target_ref: Option<TargetRef>,
    /// Zone.
    pub zone: String,
    /// Node.
    pub node_name: String,
    /// The pod's own name below that of a headless service.
    pub hostname: String,
}

/// State of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceConditions {
    /// Takes new requests; absent means yes.
    pub ready: Option<bool>,
    /// Still serves.
    pub serving: Option<bool>,
    /// Going away.
    pub terminating: Option<bool>,
}

/// Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Spec.
    pub spec: PodSpec,
    /// Status.
    pub status: PodStatus,
}

/// Spec of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Service account; `default` if none is given.
    pub service_account_name: String,
    /// Node.
    pub node_name: String,
    /// Whether it uses the node's address.
    pub host_network: bool,
    /// Containers.
    pub containers: Vec<Container>,
    /// Further conditions that others decide before the pod is ready.
    pub readiness_gates: Vec<serde_json::Value>,
    /// As whom they run, if they do not say themselves.
    pub security_context: Option<SecurityContext>,
}

/// As whom a container runs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityContext {
    /// User's number; the image's if it is not said.
    pub run_as_user: Option<i64>,
    /// Group's number.
    pub run_as_group: Option<i64>,
}

/// Container of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Ports.
    pub ports: Vec<ContainerPort>,
    /// As whom it runs.
    pub security_context: Option<SecurityContext>,
}

/// Port of a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Name.
    pub name: String,
    /// Number.
    pub container_port: u16,
}

/// Status of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Pending, Running, Succeeded, Failed.
    pub phase: String,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// IP address.
    pub ip: String,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False, Unknown.
    pub status: String,
}

/// Secret.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Secret {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Values, base64.
    pub data: BTreeMap<String, String>,
    /// Values as text; they win over `data`.
    pub string_data: BTreeMap<String, String>,
}

impl Secret {
    /// The bytes of a value. Base64 that is none is no value.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        use base64::Engine;
        if let Some(text) = self.string_data.get(key) {
            return Some(text.clone().into_bytes());
        }
        let text: String = self.data.get(key)?.split_ascii_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(text).ok()
    }
}

/// ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigMap {
    /// Values.
    pub data: BTreeMap<String, String>,
}
