//! Debug pages whose shapes are Istio's (`pilot/pkg/xds/debug.go`) and that are made of what is published.

use std::collections::BTreeMap;

use api::object::{Body, KINDS, Kind, Object, ObjectKey};
use plan::Resources;
use serde_json::{Map, Value, json};

use crate::serve::registry::Connected;
use crate::state::Published;

/// Pages of Istio's that are not here, and why.
pub(super) const ABSENT: &[(&str, &str)] = &[
    ("ambientz", "Ambient is not built."),
    ("config_distribution", "/debug/syncz tells what each proxy has been sent and has taken."),
    ("ecdsz", "Proxies are sent no extensions."),
    ("endpointShardz", "There are no shards; /debug/endpointz has all endpoints."),
    ("force_disconnect", "A proxy is disconnected by restarting it."),
    ("krtz", "There are no collections of that kind; /debug/configz has all objects."),
    ("mcsz", "Several clusters in one mesh are not built."),
    ("networkz", "Several networks in one mesh are not built."),
    ("pushcontext", "/debug/registryz and /debug/configz hold what is planned from."),
    ("sidecarz", "/debug/config_dump?proxyID=NAME.NAMESPACE tells what a proxy may see."),
    ("telemetryz", "Telemetry objects have no effect yet; /debug/problems tells so of each."),
];

/// The endpoints that a proxy should hold, as Envoy has them.
pub(super) fn edsz(resources: &Resources) -> Value {
    all(resources)
}

/// The table of names that a proxy should hold; it asks for one only if it captures DNS.
pub(super) fn ndsz(resources: &Resources) -> Value {
    all(resources).as_array_mut().and_then(Vec::pop).unwrap_or_else(|| json!({"table": {}}))
}

fn all(resources: &Resources) -> Value {
    let shown = resources.iter().map(|entry| {
        api::json::to_json(&entry.body()).unwrap_or_else(|error| json!({"name": entry.name, "error": error}))
    });
    shown.collect()
}

/// The mesh-wide settings in effect. What they were given as counts where they are not plain values.
pub(super) fn mesh(now: &Published, namespace: &str, revision: &str) -> Value {
    let mesh = now.snapshot.mesh();
    let mut shown = given(now, namespace, &named("istio", revision), "mesh");
    let effective = json!({
        "proxyListenPort": mesh.proxy_listen_port,
        "proxyInboundListenPort": mesh.proxy_inbound_listen_port,
        "proxyHttpPort": mesh.proxy_http_port,
        "connectTimeout": mesh.connect_timeout.to_string(),
        "protocolDetectionTimeout": mesh.protocol_detection_timeout.to_string(),
        "accessLogFile": mesh.access_log_file,
        "accessLogFormat": mesh.access_log_format,
        "enableTracing": mesh.enable_tracing,
        "enableAutoMtls": mesh.enable_auto_mtls,
        "trustDomain": mesh.trust_domain,
        "trustDomainAliases": mesh.trust_domain_aliases,
        "rootNamespace": mesh.root_namespace,
        "defaultServiceExportTo": mesh.default_service_export_to,
        "defaultVirtualServiceExportTo": mesh.default_virtual_service_export_to,
        "defaultDestinationRuleExportTo": mesh.default_destination_rule_export_to,
        "dnsRefreshRate": mesh.dns_refresh_rate.to_string(),
        "enablePrometheusMerge": mesh.enable_prometheus_merge,
        "ingressClass": mesh.ingress_class,
        "ingressService": mesh.ingress_service,
        "ingressSelector": mesh.ingress_selector,
        "ingressControllerMode": mesh.ingress_controller_mode,
    });
    shown.extend(effective.as_object().cloned().unwrap_or_default());
    if let Some(config) = &mesh.default_config {
        shown.insert("defaultConfig".to_owned(), config.clone());
    }
    Value::Object(shown)
}

/// The injection templates by their names; those that are code are told as such.
pub(super) fn inject(now: &Published, namespace: &str, revision: &str) -> Value {
    let config = given(now, namespace, &named("istio-sidecar-injector", revision), "config");
    let mut templates = config.get("templates").and_then(Value::as_object).cloned().unwrap_or_default();
    for name in ["sidecar", "gateway"] {
        templates.insert(name.to_owned(), json!("built in"));
    }
    Value::Object(templates)
}

fn named(map: &str, revision: &str) -> String {
    if revision == "default" { map.to_owned() } else { format!("{map}-{revision}") }
}

/// A key of a ConfigMap, read as YAML; empty if there is none.
fn given(now: &Published, namespace: &str, name: &str, key: &str) -> Map<String, Value> {
    let place = ObjectKey { kind: Kind::ConfigMap, namespace: namespace.to_owned(), name: name.to_owned() };
    let text = now.world.object(&place).and_then(|object| match &object.body {
        Body::ConfigMap(map) => map.data.get(key),
        _ => None,
    });
    text.and_then(|text| serde_saphyr::from_str(text).ok()).unwrap_or_default()
}

/// What proxies refuse and which services have no endpoints, by the names of Istio's metrics.
pub(super) fn push_status(now: &Published, proxies: &[Connected]) -> Value {
    let mut status: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for row in proxies {
        for kind in row.status.types.iter().filter(|kind| !kind.nack.is_empty()) {
            let told = json!({"proxy": row.status.proxy, "message": format!("{}: {}", kind.kind, kind.nack)});
            status.entry("pilot_total_xds_rejects").or_default().insert(row.status.proxy.clone(), told);
        }
    }
    let registry = now.snapshot.registry();
    for service in registry["services"].as_array().into_iter().flatten() {
        let is_empty = service["endpoints"].as_array().is_none_or(Vec::is_empty);
        for port in service["ports"].as_array().into_iter().flatten().filter(|_| is_empty) {
            let cluster = format!("outbound|{}||{}", port["port"], service["hostname"].as_str().unwrap_or_default());
            status.entry("pilot_eds_no_instances").or_default().insert(cluster, json!({}));
        }
    }
    json!({"ProxyStatus": status, "Version": now.generation.to_string()})
}

/// The services that each proxy's workload serves.
pub(super) fn instancesz(now: &Published, proxies: &[Connected]) -> Value {
    let registry = now.snapshot.registry();
    let services: Vec<&Value> = registry["services"].as_array().into_iter().flatten().collect();
    let of = |address: &str| {
        let served = services.iter().flat_map(|service| {
            let own = service["endpoints"].as_array().into_iter().flatten();
            own.filter(|endpoint| endpoint["address"] == address).map(|endpoint| {
                json!({
                    "service": {"hostname": service["hostname"], "namespace": service["namespace"]},
                    "port": {"port": endpoint["servicePort"], "targetPort": endpoint["port"]},
                })
            })
        });
        served.collect::<Vec<Value>>()
    };
    let row = |row: &Connected| (row.status.proxy.clone(), json!(of(&row.status.address)));
    Value::Object(proxies.iter().map(row).collect())
}

/// The AuthorizationPolicies, by namespace.
pub(super) fn authorizationz(now: &Published) -> Value {
    let mut namespaces: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let policies = now.world.objects().filter(|object| object.key().kind == Kind::AuthorizationPolicy);
    for policy in policies {
        let shown = |policy: &Object| {
            json!({
                "name": policy.meta.name, "namespace": policy.meta.namespace,
                "annotations": policy.meta.annotations, "spec": policy.raw["spec"],
            })
        };
        namespaces.entry(&policy.meta.namespace).or_default().push(shown(policy));
    }
    json!({"authorization_policies": {
        "namespaceToPolicies": namespaces, "rootNamespace": now.snapshot.mesh().root_namespace,
    }})
}

/// The kinds of objects that are read.
pub(super) fn resourcesz() -> Value {
    let row = |row: &api::object::KindRow| json!({"group": row.group, "version": row.storage, "kind": row.name});
    KINDS.iter().map(row).collect()
}

/// The only cluster.
pub(super) fn clusterz(cluster: &str, is_read: bool) -> Value {
    json!([{"id": cluster, "secretName": "", "syncStatus": if is_read { "synced" } else { "syncing" }}])
}
