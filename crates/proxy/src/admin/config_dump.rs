//! `/config_dump` in Envoy's shape.

use std::sync::PoisonError;

use api::xds::{Any, ResourceKind};
use serde_json::{Value, json};

use crate::control::Shared;

/// The whole dump.
pub fn config_dump(shared: &Shared) -> Value {
    let resources = shared.resources.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let dump = |kind: ResourceKind, wrap: &dyn Fn(&str, &str, Value) -> Value| -> Vec<Value> {
        resources
            .of(kind)
            .iter()
            .map(|(name, resource)| wrap(name, &resource.version, resource_json(&resource.body)))
            .collect()
    };
    let keyed =
        |key: &'static str| move |_: &str, version: &str, body: Value| json!({"version_info": version, key: body});
    let listeners = dump(
        ResourceKind::Listener,
        &|name, version, body| json!({"name": name, "active_state": {"version_info": version, "listener": body}}),
    );
    let type_of = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}");
    json!({"configs": [
        {"@type": type_of("BootstrapConfigDump"), "bootstrap": {"node": {"id": shared.settings.node_id, "metadata": shared.settings.metadata}}},
        {"@type": type_of("ClustersConfigDump"), "dynamic_active_clusters": dump(ResourceKind::Cluster, &keyed("cluster"))},
        {"@type": type_of("EndpointsConfigDump"), "dynamic_endpoint_configs": dump(ResourceKind::Endpoint, &keyed("endpoint_config"))},
        {"@type": type_of("ListenersConfigDump"), "dynamic_listeners": listeners},
        {"@type": type_of("RoutesConfigDump"), "dynamic_route_configs": dump(ResourceKind::Route, &keyed("route_config"))},
        {"@type": type_of("SecretsConfigDump"), "dynamic_active_secrets": secrets(shared)},
    ]})
}

/// Names only: keys are never shown.
fn secrets(shared: &Shared) -> Vec<Value> {
    let secrets = shared.secrets.load();
    let mut names: Vec<&str> = secrets.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.into_iter().map(|name| json!({"name": name, "version_info": secrets.generation.to_string()})).collect()
}

/// One resource as JSON; one that cannot be shown says why in its place.
fn resource_json(body: &Any) -> Value {
    api::json::to_json(body).unwrap_or_else(|error| json!({"@type": body.type_url, "error": error}))
}
