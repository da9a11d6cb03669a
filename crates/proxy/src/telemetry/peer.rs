//! Who takes part in a request, as Istio's metrics name it, and how proxies tell each other (`x-envoy-peer-metadata`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::annotation;
use api::xds::{Struct, json_to_struct, struct_to_json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use prost::Message;

use super::exchange;

/// Names of one workload. Empty: unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Peer {
    pub workload: String,
    pub namespace: String,
    pub app: String,
    pub version: String,
    pub canonical_service: String,
    pub canonical_revision: String,
    pub cluster: String,
    /// Its proxy is one of ours.
    pub ours: bool,
}

/// What only our proxies tell of themselves: their version.
const OURS: &str = "MESH_VERSION";

impl Peer {
    /// Of a workload's names and labels; the canonical names fall back as Istio's do.
    pub fn of(workload: &str, namespace: &str, cluster: &str, labels: &BTreeMap<String, String>) -> Self {
        let label = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).cloned().unwrap_or_default();
        let canonical = label(&[annotation::CANONICAL_NAME, annotation::APP_NAME, annotation::APP]);
        let revision = label(&[annotation::CANONICAL_REVISION, annotation::APP_VERSION, annotation::VERSION]);
        Self {
            workload: workload.to_owned(),
            namespace: namespace.to_owned(),
            app: label(&[annotation::APP]),
            version: label(&[annotation::VERSION]),
            canonical_service: if canonical.is_empty() { workload.to_owned() } else { canonical },
            canonical_revision: if revision.is_empty() { "latest".to_owned() } else { revision },
            cluster: cluster.to_owned(),
            ours: false,
        }
    }

    /// Of the endpoint metadata `name;namespace;canonical-service;canonical-revision;cluster`.
    pub fn of_endpoint(text: &str) -> Self {
        let mut parts = text.split(';').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let (workload, namespace, canonical_service, canonical_revision, cluster) =
            (next(), next(), next(), next(), next());
        Self {
            workload,
            namespace,
            app: canonical_service.clone(),
            version: canonical_revision.clone(),
            canonical_service,
            canonical_revision,
            cluster,
            ours: false,
        }
    }

    /// Of the header; `None` if it cannot be read.
    pub fn of_header(value: &HeaderValue) -> Option<Self> {
        let bytes = STANDARD.decode(value.as_bytes()).ok()?;
        Some(Self::of_struct(&Struct::decode(bytes.as_slice()).ok()?))
    }

    /// Of the metadata that proxies tell each other.
    pub fn of_struct(metadata: &Struct) -> Self {
        let json = struct_to_json(metadata);
        let text = |key: &str| json.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let labels = json.get("LABELS").and_then(|labels| labels.as_object());
        let labels = labels
            .map(|labels| {
                labels.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
            })
            .unwrap_or_default();
        let peer = Self::of(&text("WORKLOAD_NAME"), &text("NAMESPACE"), &text("CLUSTER_ID"), &labels);
        Self { ours: json.get(OURS).is_some(), ..peer }
    }
}

/// This proxy's own workload.
#[derive(Clone, Debug)]
pub struct Own {
    /// Names for metrics.
    pub peer: Arc<Peer>,
    /// Value of `x-envoy-peer-metadata`.
    pub header: HeaderValue,
    /// Value of `x-envoy-peer-metadata-id`: the node id.
    pub id: HeaderValue,
    /// The same in front of the bytes of a TCP connection.
    pub preface: Bytes,
    /// `NAME.NAMESPACE`.
    pub name: String,
}

impl Own {
    /// Of the node's id and metadata.
    pub fn of(node_id: &str, metadata: &api::node::NodeMetadata) -> Self {
        let workload = if metadata.workload_name.is_empty() { &metadata.name } else { &metadata.workload_name };
        let json = serde_json::json!({
            OURS: metadata.mesh_version, "NAME": metadata.name, "NAMESPACE": metadata.namespace, "WORKLOAD_NAME": workload, "OWNER": metadata.owner,
            "CLUSTER_ID": metadata.cluster_id, "MESH_ID": metadata.mesh_id, "SERVICE_ACCOUNT": metadata.service_account,
            "INSTANCE_IPS": metadata.instance_ips, "LABELS": metadata.labels,
        });
        let told = json_to_struct(&json);
        let header = STANDARD.encode(told.encode_to_vec());
        Self {
            preface: exchange::preface(&told, node_id),
            peer: Arc::new(Peer::of_struct(&told)),
            header: HeaderValue::try_from(header).unwrap_or_else(|_| HeaderValue::from_static("")),
            id: HeaderValue::from_str(node_id).unwrap_or_else(|_| HeaderValue::from_static("")),
            name: format!("{}.{}", metadata.name, metadata.namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        let metadata = api::node::NodeMetadata {
            name: "a-1".into(),
            namespace: "shop".into(),
            workload_name: "a-v1".into(),
            cluster_id: "east".into(),
            labels: [("app".to_owned(), "a".to_owned()), ("version".to_owned(), "v1".to_owned())].into(),
            ..Default::default()
        };
        let own = Own::of("sidecar~1.1.1.1~a-1.shop~shop.svc.cluster.local", &metadata);
        let read = Peer::of_header(&own.header).unwrap();
        assert_eq!(read, *own.peer);
        assert!(read.ours);
        // What Istio's proxies tell.
        let theirs = json_to_struct(&serde_json::json!({"NAME": "a", "WORKLOAD_NAME": "a", "NAMESPACE": "shop"}));
        assert!(!Peer::of_struct(&theirs).ours);
        assert_eq!(
            (read.workload.as_str(), read.canonical_service.as_str(), read.canonical_revision.as_str()),
            ("a-v1", "a", "v1")
        );
        assert_eq!(Peer::of_header(&HeaderValue::from_static("!!")), None);
        assert_eq!(Peer::of_endpoint("w;ns;svc;v2;c").canonical_revision, "v2");
    }
}
