//! Every label and annotation that the mesh reads or writes, with what it means. Keys are Istio's and Kubernetes'.

/// One key that users may set or that the mesh writes.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The full key.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
}

macro_rules! keys {
    ($($constant:ident = $name:literal: $doc:literal;)*) => {
        $(#[doc = $doc] pub const $constant: &str = $name;)*
        /// All keys, in alphabetical order of their constants' families.
        pub const ALL: &[Key] = &[$(Key { name: $name, doc: $doc }),*];
    };
}

keys! {
    TLS_MODE = "security.istio.io/tlsMode": "`istio` on workloads that accept mutual TLS; endpoints carry it to the clients.";
    CANONICAL_NAME = "service.istio.io/canonical-name": "Name of the workload's service in metrics.";
    CANONICAL_REVISION = "service.istio.io/canonical-revision": "Revision of the workload in metrics; `latest` when unknown.";
    APP = "app": "Application name; fallback of the canonical name.";
    APP_NAME = "app.kubernetes.io/name": "Application name; preferred over `app`.";
    VERSION = "version": "Version; fallback of the canonical revision.";
    APP_VERSION = "app.kubernetes.io/version": "Version; preferred over `version`.";
    EXPORT_TO = "networking.istio.io/exportTo": "Namespaces that may see a Service.";
    REGION = "topology.kubernetes.io/region": "Region of a node.";
    ZONE = "topology.kubernetes.io/zone": "Zone of a node.";
    SUBZONE = "topology.istio.io/subzone": "Sub-zone of a node.";
    LOCALITY = "istio-locality": "Locality of a workload as `region.zone.subzone`.";
    SERVICE_NAME = "kubernetes.io/service-name": "Service that an EndpointSlice belongs to.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn keys_are_unique_and_documented() {
        let names: HashSet<_> = super::ALL.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), super::ALL.len());
        assert!(super::ALL.iter().all(|key| key.doc.ends_with('.')));
    }
}
