//! CustomResourceDefinitions of Istio's kinds, from the table of kinds.

use serde_json::{Value, json};

use crate::crd;
use crate::object::{KINDS, Kind, KindRow};
use crate::schema::schema_of;

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
        "description": row.doc,
        "properties": {"spec": spec(row.kind), "status": status(row.kind)},
    })
}

/// The spec.
fn spec(kind: Kind) -> Value {
    match kind {
        Kind::VirtualService => schema_of::<crd::VirtualService>(),
        Kind::DestinationRule => schema_of::<crd::DestinationRule>(),
        Kind::Gateway => schema_of::<crd::Gateway>(),
        Kind::ServiceEntry => schema_of::<crd::ServiceEntry>(),
        Kind::WorkloadEntry => schema_of::<crd::WorkloadEntry>(),
        Kind::WorkloadGroup => schema_of::<crd::WorkloadGroup>(),
        Kind::Sidecar => schema_of::<crd::Sidecar>(),
        Kind::PeerAuthentication => schema_of::<crd::PeerAuthentication>(),
        Kind::ProxyConfig => schema_of::<crd::ProxyConfig>(),
        Kind::RequestAuthentication => schema_of::<crd::RequestAuthentication>(),
        Kind::AuthorizationPolicy => schema_of::<crd::AuthorizationPolicy>(),
        Kind::EnvoyFilter => schema_of::<crd::EnvoyFilter>(),
        Kind::Telemetry => schema_of::<crd::Telemetry>(),
        Kind::WasmPlugin => schema_of::<crd::WasmPlugin>(),
        Kind::TrafficExtension => schema_of::<crd::TrafficExtension>(),
        // Others have no definition.
        _ => json!({"type": "object"}),
    }
}

/// What the control plane says of the object. Other controllers may add to it.
fn status(kind: Kind) -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let mut status = json!({
        "type": "object",
        "description": "What the control plane says of the object.",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "conditions": {
                "type": "array",
                "description": "States the object is in.",
                "items": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "type": text("Which state."),
                        "status": text("Whether the object is in it: True, False or Unknown."),
                        "reason": text("Why, in one word."),
                        "message": text("Why, in a sentence."),
                        "lastTransitionTime": {
                            "type": "string", "format": "date-time", "description": "When status became what it is.",
                        },
                        "lastProbeTime": {
                            "type": "string", "format": "date-time", "description": "When it was last looked at.",
                        },
                        "observedGeneration": {
                            "x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}],
                            "description": "Generation of the object that this is about.",
                        },
                    },
                },
            },
            "observedGeneration": {
                "x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}],
                "description": "Generation of the object that the status is about.",
            },
            "validationMessages": {
                "type": "array",
                "description": "What is wrong with the object.",
                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        },
    });
    if kind == Kind::ServiceEntry {
        status["properties"]["addresses"] = json!({
            "type": "array",
            "description": "Addresses that the control plane chose for the hosts.",
            "items": {
                "type": "object",
                "required": ["value"],
                "properties": {"value": text("Address."), "host": text("Host that it is for.")},
            },
        });
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields of Kubernetes' own that stand in a schema's rules, where a type must not be said again.
    const JUNCTORS: [&str; 4] = ["oneOf", "anyOf", "allOf", "not"];

    /// Each schema of each version of each kind, with its kind's name.
    fn schemas() -> Vec<(String, Value)> {
        let mut schemas = Vec::new();
        for definition in all() {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
            for version in definition["spec"]["versions"].as_array().unwrap() {
                schemas.push((kind.clone(), version["schema"]["openAPIV3Schema"].clone()));
            }
        }
        schemas
    }

    /// Kubernetes' rules of structural schemas, at each node that is outside of junctors.
    fn walk(path: &str, node: &Value) {
        let map = node.as_object().unwrap_or_else(|| panic!("{path} is not an object: {node}"));
        for gone in ["$ref", "$schema", "$defs", "definitions", "title", "default", "nullable", "const"] {
            assert!(!map.contains_key(gone), "{path} has {gone}");
        }
        assert!(!map.keys().any(|key| key.starts_with("x-") && !key.starts_with("x-kubernetes-")), "{path}: {map:?}");
        let words = ["string", "integer", "number", "boolean", "array", "object"];
        if map.contains_key("x-kubernetes-int-or-string") {
            assert!(!map.contains_key("type"), "{path}");
        } else {
            let kind = node["type"].as_str().unwrap_or_else(|| panic!("{path} has no type: {node}"));
            assert!(words.contains(&kind), "{path}: {kind}");
            assert_eq!(kind == "array", map.contains_key("items"), "{path}");
        }
        assert!(!(map.contains_key("properties") && map.contains_key("additionalProperties")), "{path}");
        if let Some(format) = map.get("format") {
            assert!(["int32", "int64", "double", "date-time"].iter().any(|known| format == *known), "{path}: {format}");
        }
        for junctor in JUNCTORS {
            match map.get(junctor) {
                Some(Value::Array(choices)) if !map.contains_key("x-kubernetes-int-or-string") => {
                    choices.iter().for_each(|choice| logic(path, choice, node));
                }
                Some(choice @ Value::Object(_)) => logic(path, choice, node),
                _ => {}
            }
        }
        for required in map.get("required").and_then(Value::as_array).into_iter().flatten() {
            assert!(!node["properties"][required.as_str().unwrap()].is_null(), "{path} requires {required}");
        }
        for rule in map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            assert!(rule["rule"].is_string() && rule["message"].is_string(), "{path}: {rule}");
        }
        for (name, field) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            walk(&format!("{path}.{name}"), field);
        }
        for inner in ["items", "additionalProperties"] {
            map.get(inner).iter().for_each(|inner| walk(&format!("{path}[]"), inner));
        }
    }

    /// Inside a junctor nothing may be said but what is allowed of fields that are declared outside.
    fn logic(path: &str, choice: &Value, outside: &Value) {
        for (key, value) in choice.as_object().unwrap() {
            match key.as_str() {
                "required" => {
                    for field in value.as_array().unwrap() {
                        assert!(!outside["properties"][field.as_str().unwrap()].is_null(), "{path}: {field}");
                    }
                }
                "not" => logic(path, value, outside),
                "anyOf" | "oneOf" | "allOf" => {
                    value.as_array().unwrap().iter().for_each(|choice| logic(path, choice, outside));
                }
                _ => panic!("{path}: {key} inside of a choice"),
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        let schemas = schemas();
        assert_eq!(schemas.len(), KINDS.iter().filter(|row| row.strict).map(|row| row.versions.len()).sum::<usize>());
        for (kind, schema) in schemas {
            walk(&kind, &schema);
        }
    }

    #[test]
    fn every_field_of_a_typed_spec_is_described() {
        fn described(path: &str, node: &Value) {
            for (name, field) in node["properties"].as_object().into_iter().flatten() {
                assert!(field["description"].as_str().is_some_and(|text| !text.is_empty()), "{path}.{name}");
                described(&format!("{path}.{name}"), field);
            }
            for inner in ["items", "additionalProperties"].iter().map(|inner| &node[*inner]) {
                if !inner.is_null() {
                    described(&format!("{path}[]"), inner);
                }
            }
        }
        schemas().iter().for_each(|(kind, schema)| described(kind, &schema["properties"]["spec"]));
    }

    /// A value with every field that the schema declares. Where only one of several may be given, `choice` says which.
    fn full(node: &Value, choice: usize) -> Value {
        if !node["enum"].is_null() {
            return node["enum"][choice % node["enum"].as_array().unwrap().len()].clone();
        }
        let one_of = node["oneOf"].as_array().map(Vec::as_slice).unwrap_or_default();
        match node["type"].as_str() {
            Some("object") => {
                let mut map = serde_json::Map::new();
                let alternatives: Vec<&str> = one_of.iter().filter_map(|one| one["required"][0].as_str()).collect();
                for (name, field) in node["properties"].as_object().into_iter().flatten() {
                    let place = alternatives.iter().position(|one| one == name);
                    if place.is_none_or(|place| place == choice % alternatives.len()) {
                        map.insert(name.clone(), full(field, choice));
                    }
                }
                if !node["additionalProperties"].is_null() {
                    map.insert("80".to_owned(), full(&node["additionalProperties"], choice));
                }
                Value::Object(map)
            }
            Some("array") => json!([full(&node["items"], choice)]),
            Some("string") if !node["pattern"].is_null() => json!("1s"),
            Some("string") => json!("text"),
            Some("boolean") => json!(true),
            Some("number" | "integer") => json!(1),
            _ => json!("http"),
        }
    }

    /// Whether the type reads a value, of kinds whose objects are kept as they were written.
    fn typed(kind: Kind, value: &Value) -> bool {
        use serde::Deserialize;
        match kind {
            Kind::ProxyConfig => crd::ProxyConfig::deserialize(value).is_ok(),
            Kind::RequestAuthentication => crd::RequestAuthentication::deserialize(value).is_ok(),
            Kind::AuthorizationPolicy => crd::AuthorizationPolicy::deserialize(value).is_ok(),
            Kind::EnvoyFilter => crd::EnvoyFilter::deserialize(value).is_ok(),
            Kind::Telemetry => crd::Telemetry::deserialize(value).is_ok(),
            Kind::WasmPlugin => crd::WasmPlugin::deserialize(value).is_ok(),
            Kind::TrafficExtension => crd::TrafficExtension::deserialize(value).is_ok(),
            _ => true,
        }
    }

    #[test]
    fn what_the_schema_declares_is_read() {
        for row in KINDS.iter().filter(|row| row.strict) {
            let spec = spec(row.kind);
            for choice in 0..6 {
                let mut value = full(&spec, choice);
                // A field and its deprecated spelling are one field: only one of them can be given.
                for rule in value.get_mut("http").and_then(Value::as_array_mut).into_iter().flatten() {
                    let rule = rule.as_object_mut().unwrap();
                    let gone = if choice % 2 == 0 {
                        ["mirrorPercent", "mirrorPercentage"]
                    } else {
                        ["mirror_percent", "mirror_percentage"]
                    };
                    assert!(gone.iter().all(|gone| rule.remove(*gone).is_some()), "the spellings are in the schema");
                }
                let object = json!({
                    "apiVersion": format!("{}/{}", row.group, row.storage), "kind": row.name,
                    "metadata": {"name": "a", "namespace": "b"}, "spec": value,
                });
                let decoded = crate::decode::object(&object, "", "default");
                assert_eq!(decoded.objects.len(), 1, "{}: {:?}", row.name, decoded.problems);
                // What is in the schema only so that we can speak of it.
                let wrong: Vec<_> =
                    decoded.problems.iter().filter(|problem| !problem.field.ends_with(".keepAlive")).collect();
                assert!(wrong.is_empty(), "{}: {wrong:?}", row.name);
                assert!(typed(row.kind, &object["spec"]), "{}", row.name);
            }
        }
    }

    #[test]
    fn required_fields_and_words_are_istios() {
        let route = &spec(Kind::VirtualService)["properties"]["http"]["items"]["properties"];
        assert_eq!(route["route"]["items"]["required"], json!(["destination"]));
        assert_eq!(route["mirror"]["required"], json!(["host"]));
        assert_eq!(route["retries"]["description"], "When to try again.");
        let words = &route["corsPolicy"]["properties"]["unmatchedPreflights"];
        assert_eq!(words["enum"], json!(["UNSPECIFIED", "FORWARD", "IGNORE"]));
        assert!(words["description"].as_str().unwrap().ends_with("IGNORE: They are answered without CORS headers."));
        let rule = spec(Kind::DestinationRule);
        assert_eq!(rule["required"], json!(["host"]));
        let simple = &rule["properties"]["trafficPolicy"]["properties"]["loadBalancer"]["properties"]["simple"];
        assert!(simple["enum"].as_array().unwrap().contains(&json!("LEAST_CONN")));
        let server = spec(Kind::Gateway)["properties"]["servers"]["items"].clone();
        assert_eq!(server["required"], json!(["port", "hosts"]));
        assert_eq!(server["properties"]["port"]["required"], json!(["number", "protocol", "name"]));
        assert_eq!(server["properties"]["port"]["properties"]["number"]["maximum"], json!(65535));
        assert!(spec(Kind::ServiceEntry)["properties"]["ports"]["items"]["required"].is_null());
        assert_eq!(status(Kind::ServiceEntry)["properties"]["addresses"]["items"]["required"], json!(["value"]));
    }

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
