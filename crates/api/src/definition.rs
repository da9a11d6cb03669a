//! CustomResourceDefinitions of Istio's kinds, from the table of kinds.

use serde_json::{Value, json};

use crate::object::{KINDS, Kind, KindRow};

/// Columns that `kubectl get` shows besides the name: heading, type, path.
fn columns(kind: Kind) -> Vec<(&'static str, &'static str, &'static str)> {
    let age = ("Age", "date", ".metadata.creationTimestamp");
    match kind {
        Kind::VirtualService => {
            vec![("Gateways", "string", ".spec.gateways"), ("Hosts", "string", ".spec.hosts"), age]
        }
        Kind::DestinationRule => vec![("Host", "string", ".spec.host"), age],
        Kind::ServiceEntry => vec![
            ("Hosts", "string", ".spec.hosts"),
            ("Location", "string", ".spec.location"),
            ("Resolution", "string", ".spec.resolution"),
            age,
        ],
        Kind::WorkloadEntry => vec![age, ("Address", "string", ".spec.address")],
        Kind::AuthorizationPolicy => vec![("Action", "string", ".spec.action"), age],
        Kind::PeerAuthentication => vec![("Mode", "string", ".spec.mtls.mode"), age],
        Kind::WorkloadGroup | Kind::Telemetry | Kind::WasmPlugin | Kind::TrafficExtension => vec![age],
        _ => Vec::new(),
    }
}

/// All definitions, in the order of the table.
pub fn all() -> Vec<Value> {
    KINDS.iter().filter(|row| row.strict).map(definition).collect()
}

fn definition(row: &KindRow) -> Value {
    let columns: Vec<Value> = columns(row.kind)
        .into_iter()
        .map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}))
        .collect();
    let versions: Vec<Value> = row
        .versions
        .iter()
        .map(|version| {
            let mut version = json!({
                "name": version, "served": true, "storage": *version == row.storage,
                "schema": {"openAPIV3Schema": schema(row)}, "subresources": {"status": {}},
            });
            if !columns.is_empty() {
                version["additionalPrinterColumns"] = json!(columns);
            }
            version
        })
        .collect();
    let group = row.group.split('.').next().unwrap_or_default();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", row.plural, row.group),
            "annotations": {"helm.sh/resource-policy": "keep"},
            "labels": {"app": "istio-pilot", "chart": "istio", "release": "istio", "app.kubernetes.io/part-of": "istio"},
        },
        "spec": {
            "group": row.group,
            "names": {
                "kind": row.name, "listKind": format!("{}List", row.name), "plural": row.plural,
                "singular": row.name.to_ascii_lowercase(), "shortNames": row.short,
                "categories": ["istio-io", format!("{group}-istio-io")],
            },
            "scope": "Namespaced",
            "versions": versions,
        },
    })
}

fn schema(row: &KindRow) -> Value {
    json!({
        "type": "object",
        "description": row.name,
        "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_stored_version() {
        let all = all();
        assert_eq!(all.len(), 15);
        for definition in all {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            let stored = versions.iter().filter(|version| version["storage"] == true).count();
            assert_eq!(stored, 1, "{}", definition["metadata"]["name"]);
        }
    }
}
