//! The data of templates, under the names that Go gives it: `.Spec.Containers`, while labels and the chart's values keep theirs.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value as Data;
use serde_json::{Value, json};

use crate::go_template::{JSON, data as plain, leaf, map};
use crate::inject::build::Request;

/// Fields whose maps have keys of the user's.
const MAPS: &[&str] = &[
    "labels",
    "annotations",
    "nodeSelector",
    "limits",
    "requests",
    "matchLabels",
    "overhead",
    "proxyMetadata",
    "runtimeValues",
    "parameters",
    "volumeAttributes",
];
/// Words that Go writes in capitals.
const CAPITALS: &[(&str, &str)] = &[
    ("http", "HTTP"),
    ("tcp", "TCP"),
    ("dns", "DNS"),
    ("uid", "UID"),
    ("fs", "FS"),
    ("api", "API"),
    ("grpc", "GRPC"),
    ("nfs", "NFS"),
    ("csi", "CSI"),
    ("rbd", "RBD"),
    ("iscsi", "ISCSI"),
];

/// All of it.
pub(super) fn of(pod: &Value, request: &Request<'_>) -> Data {
    let settings = request.settings;
    let mut metadata = pod.get("metadata").cloned().unwrap_or_else(|| json!({}));
    metadata["namespace"] = Value::from(request.namespace());
    for key in ["labels", "annotations"] {
        if metadata.get(key).is_none() {
            metadata[key] = json!({});
        }
    }
    let native = request.settings.cluster.native_sidecars;
    let fields = [
        ("TypeMeta", strukt(&json!({"apiVersion": request.owner.api_version, "kind": request.owner.kind}))),
        ("DeploymentMeta", strukt(&json!({"name": request.owner.name, "namespace": request.namespace()}))),
        ("ObjectMeta", strukt(&metadata)),
        ("Spec", strukt(pod.get("spec").unwrap_or(&Value::Null))),
        ("ProxyConfig", proxy_config(request)),
        ("MeshConfig", mesh_config(request)),
        ("Values", plain(&values(request))),
        ("Revision", text(settings.revision())),
        ("ProxyImage", text(&request.proxy_image())),
        ("ProxyUID", Data::Int(i64::from(api::port::PROXY_UID))),
        ("ProxyGID", Data::Int(i64::from(api::port::PROXY_UID))),
        ("NativeSidecars", Data::Bool(native)),
        ("InboundTrafficPolicyMode", text("PASSTHROUGH")),
    ];
    map(fields.into_iter().map(|(key, value)| (key.to_owned(), value)))
}

/// The chart's values, with what the webhook's path says.
fn values(request: &Request<'_>) -> Value {
    let mut values = request.settings.values.clone();
    let global = crate::inject::access::map_mut(&mut values, &["global"]);
    global.insert("network".to_owned(), Value::from(request.network()));
    let global = crate::inject::access::map_mut(&mut values, &["global", "multiCluster"]);
    global.insert("clusterName".to_owned(), Value::from(request.cluster_id()));
    if values.get("revision").is_none() {
        values["revision"] = Value::from(request.settings.cluster.revision.as_str());
    }
    values
}

fn proxy_config(request: &Request<'_>) -> Data {
    let mut config = json!({
        "statusPort": request.status_port,
        "interceptionMode": request.interception,
        "discoveryAddress": "istiod.istio-system.svc:15012",
        "configPath": "./etc/istio/proxy",
        "proxyAdminPort": api::port::ADMIN,
        "proxyMetadata": {},
    });
    for (key, value) in request.config.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let given = request.config.clone();
    let Data::Map(fields) = strukt(&config) else { return Data::Nil };
    let mut fields = BTreeMap::clone(&fields);
    // Of protobuf's wrapped truths, templates ask the value.
    if let Some(Data::Bool(truth)) = fields.get("HoldApplicationUntilProxyStarts").cloned() {
        let wrapped = ["GetValue", "Value"].map(|name| (name.to_owned(), Data::Bool(truth)));
        fields.insert("HoldApplicationUntilProxyStarts".into(), map(wrapped.into_iter()));
    }
    fields.insert(JSON.into(), text(&given.to_string()));
    Data::Map(Arc::new(fields))
}

fn mesh_config(request: &Request<'_>) -> Data {
    let mesh = &request.settings.mesh;
    strukt(&json!({
        "trustDomain": mesh.trust_domain,
        "trustDomainAliases": mesh.trust_domain_aliases,
        "rootNamespace": mesh.root_namespace,
        "enablePrometheusMerge": mesh.enable_prometheus_merge,
        "enableTracing": mesh.enable_tracing,
        "accessLogFile": mesh.access_log_file,
        "accessLogFormat": mesh.access_log_format,
        "proxyListenPort": mesh.proxy_listen_port,
        "proxyInboundListenPort": mesh.proxy_inbound_listen_port,
        "proxyHttpPort": mesh.proxy_http_port,
        "enableAutoMtls": mesh.enable_auto_mtls,
        "ingressClass": mesh.ingress_class,
        "ingressService": mesh.ingress_service,
        "ingressSelector": mesh.ingress_selector,
        "defaultConfig": mesh.default_config,
    }))
}

fn text(value: &str) -> Data {
    Data::String(value.into())
}

/// A value with Go's names of fields.
fn strukt(value: &Value) -> Data {
    match value {
        Value::Object(fields) => {
            let named = fields.iter().map(|(key, value)| {
                let value = if MAPS.contains(&key.as_str()) { plain(value) } else { strukt(value) };
                (go_name(key), value)
            });
            let json = std::iter::once((JSON.to_owned(), text(&value.to_string())));
            map(named.chain(json))
        }
        Value::Array(items) => Data::List(items.iter().map(strukt).collect::<Vec<_>>().into()),
        other => leaf(other),
    }
}

/// `containerPort` is `ContainerPort`, `httpGet` is `HTTPGet`.
fn go_name(key: &str) -> String {
    for (word, capitals) in CAPITALS {
        let rest = key.strip_prefix(word);
        if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_uppercase())) {
            return format!("{capitals}{rest}");
        }
    }
    let mut letters = key.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_gos_names_and_json_has_the_apis() {
        let value = json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"port": 1}}, "resources": {"limits": {"cpu": "1"}}}]});
        let data = strukt(&value);
        let Data::List(containers) = data.field("Containers").unwrap() else { panic!("no list") };
        let probe = containers[0].field("LivenessProbe").unwrap().field("HTTPGet").unwrap();
        assert_eq!(probe.field("Port"), Some(&Data::Int(1)));
        assert!(containers[0].field("Resources").unwrap().field("Limits").unwrap().field("cpu").is_some());
        assert_eq!(crate::go_template::json(&data), value);
        assert_eq!(
            (go_name("dnsPolicy"), go_name("fsGroup"), go_name("hostIP")),
            ("DNSPolicy".into(), "FSGroup".into(), "HostIP".into())
        );
    }
}
