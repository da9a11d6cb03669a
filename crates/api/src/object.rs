//! An object as it was read: what it is called, where it came from, and its typed body. The table of kinds is here.

use std::fmt;
use std::hash::Hasher;

use serde::Deserialize;
use serde_json::Value;

use crate::problem::{ObjectRef, Origin};
use crate::value::Labels;
use crate::{crd, kube};

/// One row of the table of kinds.
#[derive(Clone, Copy, Debug)]
pub struct KindRow {
    /// The kind.
    pub kind: Kind,
    /// Its name, `VirtualService`.
    pub name: &'static str,
    /// API group; empty for Kubernetes' core.
    pub group: &'static str,
    /// Versions that are read.
    pub versions: &'static [&'static str],
    /// Version that the API server stores.
    pub storage: &'static str,
    /// What it is for, a short sentence.
    pub doc: &'static str,
    /// Plural, as in URLs.
    pub plural: &'static str,
    /// Short names.
    pub short: &'static [&'static str],
    /// Whether objects are in a namespace.
    pub namespaced: bool,
    /// Whether unknown fields are reported: only of Istio's kinds.
    pub strict: bool,
}

macro_rules! kinds {
    ($($variant:ident $group:literal [$($version:literal),*] $storage:literal $plural:literal [$($short:literal),*] $namespaced:literal $strict:literal: $doc:literal;)*) => {
        /// A kind of object that the mesh reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum Kind { $(#[doc = $doc] $variant),* }

        /// All kinds.
        pub const KINDS: &[KindRow] = &[$(KindRow {
            kind: Kind::$variant, name: stringify!($variant), group: $group, versions: &[$($version),*], storage: $storage,
            doc: $doc, plural: $plural, short: &[$($short),*], namespaced: $namespaced, strict: $strict,
        }),*];
    };
}

kinds! {
    VirtualService "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] "v1" "virtualservices" ["vs"] true true: "How requests to a host are routed.";
    DestinationRule "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] "v1" "destinationrules" ["dr"] true true: "Policies towards a host.";
    Gateway "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] "v1" "gateways" ["gw"] true true: "Where traffic enters or leaves the mesh.";
    ServiceEntry "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] "v1" "serviceentries" ["se"] true true: "A service that the platform does not know.";
    WorkloadEntry "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] "v1" "workloadentries" ["we"] true true: "A workload that is not a pod.";
    WorkloadGroup "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] "v1" "workloadgroups" ["wg"] true true: "Template of WorkloadEntries.";
    Sidecar "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] "v1" "sidecars" [] true true: "What a workload's proxy takes in and may reach.";
    EnvoyFilter "networking.istio.io" ["v1alpha3", "v1beta1"] "v1alpha3" "envoyfilters" [] true true: "Patches of the proxies' configuration.";
    ProxyConfig "networking.istio.io" ["v1beta1"] "v1beta1" "proxyconfigs" [] true true: "Settings of the proxies themselves.";
    PeerAuthentication "security.istio.io" ["v1", "v1beta1"] "v1" "peerauthentications" ["pa"] true true: "Whether workloads take mutual TLS.";
    RequestAuthentication "security.istio.io" ["v1", "v1beta1"] "v1" "requestauthentications" ["ra"] true true: "Tokens that requests may carry.";
    AuthorizationPolicy "security.istio.io" ["v1", "v1beta1"] "v1" "authorizationpolicies" ["ap"] true true: "Who may do what.";
    Telemetry "telemetry.istio.io" ["v1", "v1alpha1"] "v1alpha1" "telemetries" ["telemetry"] true true: "Metrics, logs and traces.";
    WasmPlugin "extensions.istio.io" ["v1alpha1"] "v1alpha1" "wasmplugins" [] true true: "WebAssembly filters.";
    TrafficExtension "extensions.istio.io" ["v1alpha1"] "v1alpha1" "trafficextensions" [] true true: "WebAssembly or Lua filters.";
    Namespace "" ["v1"] "v1" "namespaces" ["ns"] false false: "A namespace.";
    Service "" ["v1"] "v1" "services" ["svc"] true false: "A Kubernetes service.";
    Endpoints "" ["v1"] "v1" "endpoints" ["ep"] true false: "Addresses of a service.";
    EndpointSlice "discovery.k8s.io" ["v1", "v1beta1"] "v1" "endpointslices" [] true false: "Addresses of a service, in parts.";
    Pod "" ["v1"] "v1" "pods" ["po"] true false: "A pod.";
    Node "" ["v1"] "v1" "nodes" ["no"] false false: "A node.";
    Secret "" ["v1"] "v1" "secrets" [] true false: "Certificates and keys.";
    ConfigMap "" ["v1"] "v1" "configmaps" ["cm"] true false: "Settings.";
    ServiceAccount "" ["v1"] "v1" "serviceaccounts" ["sa"] true false: "A workload's identity.";
}

impl Kind {
    /// The kind's row.
    pub fn row(self) -> &'static KindRow {
        &KINDS[self as usize]
    }

    /// The kind of a group and kind's name.
    pub fn of(group: &str, name: &str) -> Option<Kind> {
        KINDS.iter().find(|row| row.group == group && row.name == name).map(|row| row.kind)
    }

    /// The kind that a user means: kind, plural, singular or short name, in any case.
    pub fn named(word: &str) -> Option<Kind> {
        let word = word.to_ascii_lowercase();
        let is = |row: &&KindRow| {
            row.name.eq_ignore_ascii_case(&word) || row.plural == word || row.short.contains(&word.as_str())
        };
        KINDS.iter().find(is).map(|row| row.kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.row().name)
    }
}

/// What makes an object one and the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference().fmt(out)
    }
}

impl ObjectKey {
    /// The same for people.
    pub fn reference(&self) -> ObjectRef {
        ObjectRef { kind: self.kind.to_string(), namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// What all objects have. Objects as people write them lack most of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace; the default one if the text named none, empty for cluster-wide kinds.
    pub namespace: String,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// When the API server made it.
    pub creation_timestamp: Option<jiff::Timestamp>,
    /// It has been told to go (`deletionTimestamp`).
    pub leaves: bool,
    /// Count of changes of the spec.
    pub generation: i64,
    /// API server's version.
    pub resource_version: String,
    /// API server's identity of it.
    pub uid: String,
}

/// Metadata as it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WrittenMetadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) creation_timestamp: String,
    pub(crate) deletion_timestamp: String,
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    pub(crate) uid: String,
}

impl From<WrittenMetadata> for Metadata {
    fn from(written: WrittenMetadata) -> Self {
        Self {
            name: written.name,
            namespace: written.namespace,
            labels: written.labels,
            annotations: written.annotations,
            creation_timestamp: written.creation_timestamp.parse().ok(),
            leaves: !written.deletion_timestamp.is_empty(),
            generation: written.generation,
            resource_version: written.resource_version,
            uid: written.uid,
        }
    }
}

/// The typed content, one variant a kind. `Raw` kinds are stored and listed, nothing reads their content yet.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum Body {
    VirtualService(crd::VirtualService),
    DestinationRule(crd::DestinationRule),
    Gateway(crd::Gateway),
    ServiceEntry(crd::ServiceEntry),
    WorkloadEntry(crd::WorkloadEntry),
    WorkloadGroup(crd::WorkloadGroup),
    Sidecar(crd::Sidecar),
    PeerAuthentication(crd::PeerAuthentication),
    EnvoyFilter(Value),
    ProxyConfig(Value),
    RequestAuthentication(crd::RequestAuthentication),
    AuthorizationPolicy(crd::AuthorizationPolicy),
    Telemetry(Value),
    WasmPlugin(Value),
    TrafficExtension(Value),
    Namespace,
    Service(kube::Service),
    Endpoints(kube::Endpoints),
    EndpointSlice(kube::EndpointSlice),
    Pod(kube::Pod),
    Node,
    Secret(kube::Secret),
    ConfigMap(kube::ConfigMap),
    ServiceAccount,
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Kind.
    pub kind: Kind,
    /// Names, labels, times.
    pub meta: Metadata,
    /// Where it was read.
    pub origin: Origin,
    /// Typed content.
    pub body: Body,
    /// Of kind, labels, annotations and content: equal for equal objects, whatever their order of fields.
    pub digest: u64,
    /// The document as it was written, unknown fields and all.
    pub raw: Value,
}

impl Object {
    /// What makes it one and the same.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind, namespace: self.meta.namespace.clone(), name: self.meta.name.clone() }
    }

    /// The same for people.
    pub fn reference(&self) -> ObjectRef {
        self.key().reference()
    }
}

/// Digest of a document: everything but what changes without the content changing.
pub(crate) fn digest(kind: Kind, meta: &Metadata, raw: &Value) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.write(kind.row().name.as_bytes());
    for (key, value) in meta.labels.iter().chain(&meta.annotations) {
        hash_text(&mut hasher, key);
        hash_text(&mut hasher, value);
    }
    if let Value::Object(map) = raw {
        let mut keys: Vec<&String> = map.keys().collect();
        keys.sort();
        for key in keys {
            let status = key == "status" && kind != Kind::Pod;
            // The one thing in a status of ours that is planned from.
            if status && kind == Kind::ServiceEntry {
                hash_value(&mut hasher, &map[key]["addresses"]);
            }
            if !(status || key == "metadata" || key == "apiVersion" || key == "kind") {
                hash_text(&mut hasher, key);
                hash_value(&mut hasher, &map[key]);
            }
        }
    }
    hasher.finish()
}

fn hash_text(hasher: &mut xxhash_rust::xxh3::Xxh3, text: &str) {
    hasher.write(&(text.len() as u64).to_le_bytes());
    hasher.write(text.as_bytes());
}

fn hash_value(hasher: &mut xxhash_rust::xxh3::Xxh3, value: &Value) {
    match value {
        Value::Null => hasher.write(b"n"),
        Value::Bool(truth) => hasher.write(if *truth { b"t" } else { b"f" }),
        Value::Number(number) => {
            hasher.write(b"#");
            hash_text(hasher, &number.to_string());
        }
        Value::String(text) => {
            hasher.write(b"s");
            hash_text(hasher, text);
        }
        Value::Array(items) => {
            hasher.write(b"[");
            items.iter().for_each(|item| hash_value(hasher, item));
            hasher.write(b"]");
        }
        Value::Object(map) => {
            hasher.write(b"{");
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for key in keys {
                hash_text(hasher, key);
                hash_value(hasher, &map[key]);
            }
            hasher.write(b"}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_kinds_is_in_order_and_has_no_double() {
        for (place, row) in KINDS.iter().enumerate() {
            assert_eq!(row.kind as usize, place);
            assert_eq!(Kind::of(row.group, row.name), Some(row.kind));
            assert_eq!(Kind::named(row.plural), Some(row.kind));
            assert!(row.versions.contains(&row.storage), "{}", row.name);
        }
        assert_eq!(KINDS.iter().filter(|row| row.strict).count(), 15);
        assert_eq!(Kind::named("vs"), Some(Kind::VirtualService));
    }
}
