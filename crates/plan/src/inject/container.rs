//! The proxy's container and its volumes, which sidecars and gateways share.

use serde_json::{Map, Value, json};

use super::access::{list, text};
use super::annotations::read_truth;
use super::build::Request;
use super::undo::PROXY;

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Beside an application.
    Sidecar,
    /// At the edge of the mesh.
    Router,
}

/// The container without what only sidecars have.
pub(super) fn proxy(request: &Request<'_>, role: Role) -> Value {
    let mut container = json!({
        "name": PROXY,
        "image": request.proxy_image(),
        "args": arguments(request, role),
        "ports": [{"containerPort": api::port::PROMETHEUS, "name": "http-envoy-prom", "protocol": "TCP"}],
        "env": env(request, role),
        "resources": resources(request),
        "securityContext": security(request, role),
        "volumeMounts": mounts(request),
    });
    let policy = request.settings.value_text("/global/imagePullPolicy");
    if !policy.is_empty() {
        container["imagePullPolicy"] = Value::from(policy);
    }
    if request.status_port != 0 {
        container["readinessProbe"] = readiness(request);
        if request.settings.value_true("/global/proxy/startupProbe/enabled") {
            let failures = number(request, "/global/proxy/startupProbe/failureThreshold", 600);
            container["startupProbe"] = json!({
                "httpGet": {"path": "/healthz/ready", "port": api::port::READY},
                "initialDelaySeconds": 0, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": failures,
            });
        }
    }
    container
}

fn arguments(request: &Request<'_>, role: Role) -> Vec<String> {
    let settings = request.settings;
    let role = if role == Role::Sidecar { "sidecar" } else { "router" };
    let domain = settings.value_text("/global/proxy/clusterDomain");
    let mut arguments = vec![
        "proxy".to_owned(),
        role.to_owned(),
        "--domain".to_owned(),
        format!("$(POD_NAMESPACE).svc.{domain}"),
        format!("--proxyLogLevel={}", request.annotation_or("sidecar.istio.io/logLevel", "/global/proxy/logLevel")),
        format!(
            "--proxyComponentLogLevel={}",
            request.annotation_or("sidecar.istio.io/componentLogLevel", "/global/proxy/componentLogLevel")
        ),
        format!(
            "--log_output_level={}",
            request.annotation_or("sidecar.istio.io/agentLogLevel", "/global/logging/level")
        ),
    ];
    if settings.value_true("/global/logAsJson") {
        arguments.push("--log_as_json".to_owned());
    }
    arguments
}

fn number(request: &Request<'_>, pointer: &str, default: u64) -> u64 {
    request.settings.value_text(pointer).parse().unwrap_or(default)
}

fn readiness(request: &Request<'_>) -> Value {
    let asked = |name: &str, value: &str, default: u64| {
        let own = request.annotations.get(&format!("readiness.status.sidecar.istio.io/{name}"));
        own.and_then(|text| text.parse().ok()).unwrap_or_else(|| number(request, value, default))
    };
    json!({
        "httpGet": {"path": "/healthz/ready", "port": api::port::READY},
        "initialDelaySeconds": asked("initialDelaySeconds", "/global/proxy/readinessInitialDelaySeconds", 0),
        "periodSeconds": asked("periodSeconds", "/global/proxy/readinessPeriodSeconds", 15),
        "timeoutSeconds": 3,
        "failureThreshold": asked("failureThreshold", "/global/proxy/readinessFailureThreshold", 4),
    })
}

/// The four annotations count together; without any, the chart's value does.
fn resources(request: &Request<'_>) -> Value {
    let asked = |name: &str| request.annotations.get(&format!("sidecar.istio.io/{name}")).cloned();
    let pair = |cpu: Option<String>, memory: Option<String>| {
        let fields = [("cpu", cpu), ("memory", memory)];
        fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?)))).collect::<Map<_, _>>()
    };
    let requests = pair(asked("proxyCPU"), asked("proxyMemory"));
    let limits = pair(asked("proxyCPULimit"), asked("proxyMemoryLimit"));
    if requests.is_empty() && limits.is_empty() {
        return request.settings.value("/global/proxy/resources").cloned().unwrap_or_else(|| json!({}));
    }
    let mut resources = Map::new();
    for (key, map) in [("requests", requests), ("limits", limits)] {
        if !map.is_empty() {
            resources.insert(key.to_owned(), Value::Object(map));
        }
    }
    Value::Object(resources)
}

fn security(request: &Request<'_>, role: Role) -> Value {
    let mut capabilities = json!({"drop": ["ALL"]});
    // Foreign addresses take a capability, which only root keeps; the group tells the proxy's connections.
    let transparent = role == Role::Sidecar && request.interception == "TPROXY";
    let asked = request.annotations.get("sidecar.istio.io/capNetBindService");
    let low_ports = role == Role::Sidecar && asked.and_then(|value| read_truth(value)) == Some(true);
    let wanted = [(transparent, "NET_ADMIN"), (low_ports, "NET_BIND_SERVICE")];
    let added: Vec<&str> = wanted.iter().filter(|(wanted, _)| *wanted).map(|(_, name)| *name).collect();
    if !added.is_empty() {
        capabilities["add"] = json!(added);
    }
    let seccomp = request.settings.value("/global/proxy/seccompProfile").filter(|profile| profile != &&json!({}));
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": capabilities,
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": api::port::PROXY_UID,
        "runAsNonRoot": !transparent,
        "runAsUser": if transparent { 0 } else { api::port::PROXY_UID },
        "seccompProfile": seccomp.cloned().unwrap_or_else(|| json!({"type": "RuntimeDefault"})),
    })
}

fn plain(name: &str, value: impl Into<String>) -> Value {
    json!({"name": name, "value": value.into()})
}

fn of_field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn env(request: &Request<'_>, role: Role) -> Vec<Value> {
    let settings = request.settings;
    let global = |key: &str| settings.value_text(&format!("/global/{key}"));
    let or = |value: String, other: String| if value.is_empty() { other } else { value };
    let mut env = vec![
        plain("PILOT_CERT_PROVIDER", or(global("pilotCertProvider"), "istiod".to_owned())),
        plain("CA_ADDR", ca_address(request)),
        of_field("POD_NAME", "metadata.name"),
        of_field("POD_NAMESPACE", "metadata.namespace"),
        of_field("INSTANCE_IP", "status.podIP"),
        of_field("INSTANCE_IPS", "status.podIPs"),
        of_field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        of_field("HOST_IP", "status.hostIP"),
    ];
    // Without a limit this would be the node's count of CPUs.
    if resources(request).pointer("/limits/cpu").is_some() {
        env.push(json!({"name": "ISTIO_CPU_LIMIT", "valueFrom": {"resourceFieldRef": {"divisor": "0", "resource": "limits.cpu"}}}));
    }
    if role == Role::Sidecar && request.native {
        // Its end comes after the application's: then there is nobody left to wait for.
        env.push(plain("MESH_NATIVE_SIDECAR", "true"));
    }
    env.push(plain("PROXY_CONFIG", request.config.to_string()));
    if role == Role::Sidecar {
        env.push(plain("ISTIO_META_POD_PORTS", Value::Array(pod_ports(request)).to_string()));
        let names: Vec<&str> = request.applications().map(|container| text(container, "/name")).collect();
        env.push(plain("ISTIO_META_APP_CONTAINERS", names.join(",")));
    }
    env.push(plain("ISTIO_META_CLUSTER_ID", request.cluster_id()));
    env.push(of_field("ISTIO_META_NODE_NAME", "spec.nodeName"));
    if role == Role::Sidecar {
        env.push(plain("ISTIO_META_INTERCEPTION_MODE", request.interception.as_str()));
        if request.is_captured_by_node() {
            // Who is to be named where nothing is captured.
            env.push(plain("MESH_CAPTURED_BY_CNI", "true"));
        }
    }
    let network = request.network();
    if !network.is_empty() {
        env.push(plain("ISTIO_META_NETWORK", network));
    }
    let owner = &request.owner;
    if !owner.name.is_empty() {
        env.push(plain("ISTIO_META_WORKLOAD_NAME", owner.name.as_str()));
        env.push(plain(
            "ISTIO_META_OWNER",
            format!(
                "kubernetes://apis/{}/namespaces/{}/{}s/{}",
                owner.api_version,
                request.namespace(),
                owner.kind.to_ascii_lowercase(),
                owner.name
            ),
        ));
    }
    env.push(plain("ISTIO_META_MESH_ID", or(global("meshID"), settings.mesh.trust_domain.clone())));
    env.push(plain("TRUST_DOMAIN", settings.mesh.trust_domain.as_str()));
    for one in metadata(request) {
        env.retain(|other| other["name"] != one["name"]);
        env.push(one);
    }
    env
}

/// `proxyMetadata`, which are variables of the proxy and of the container that installs the rules.
pub(super) fn metadata(request: &Request<'_>) -> Vec<Value> {
    let metadata = request.config.get("proxyMetadata").and_then(Value::as_object);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    metadata.into_iter().flatten().map(|(name, value)| plain(name, text(value))).collect()
}

fn ca_address(request: &Request<'_>) -> String {
    let settings = request.settings;
    let given = settings.value_text("/global/caAddress");
    if !given.is_empty() {
        return given;
    }
    if let Some(address) = request.config.get("discoveryAddress").and_then(Value::as_str) {
        return address.to_owned();
    }
    let revision = match settings.cluster.revision.as_str() {
        "" | "default" => String::new(),
        revision => format!("-{revision}"),
    };
    format!("istiod{revision}.{}.svc:15012", settings.value_text("/global/istioNamespace"))
}

fn pod_ports(request: &Request<'_>) -> Vec<Value> {
    let ports = request.applications().flat_map(|container| list(container, "/ports"));
    ports
        .map(|port| {
            let mut told = Map::new();
            for key in ["name", "containerPort", "protocol"] {
                told.extend(port.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            Value::Object(told)
        })
        .collect()
}

/// Where each volume is mounted, for reading only or not.
const MOUNTS: &[(&str, &str)] = &[
    ("workload-socket", "/var/run/secrets/workload-spiffe-uds"),
    ("credential-socket", "/var/run/secrets/credential-uds"),
    ("workload-certs", "/var/run/secrets/workload-spiffe-credentials"),
    ("istiod-ca-cert", "/var/run/secrets/istio"),
    ("istio-data", "/var/lib/istio/data"),
    ("istio-envoy", "/etc/istio/proxy"),
    ("istio-token", "/var/run/secrets/tokens"),
    ("istio-podinfo", "/etc/istio/pod"),
];

fn mounts(request: &Request<'_>) -> Vec<Value> {
    let mounts = MOUNTS.iter().map(|(name, path)| json!({"name": name, "mountPath": path}));
    mounts.chain(request.volumes_of_user("sidecar.istio.io/userVolumeMount")).collect()
}

/// The volumes that the mounts name.
pub(super) fn volumes(request: &Request<'_>) -> Vec<Value> {
    let volumes = [
        json!({"name": "workload-socket", "emptyDir": {}}),
        json!({"name": "credential-socket", "emptyDir": {}}),
        json!({"name": "workload-certs", "emptyDir": {}}),
        json!({"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}),
        json!({"name": "istio-data", "emptyDir": {}}),
        json!({"name": "istio-podinfo", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
        ]}}),
        json!({"name": "istio-token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca"}},
        ]}}),
        json!({"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}}),
    ];
    volumes.into_iter().chain(request.volumes_of_user("sidecar.istio.io/userVolume")).collect()
}

/// Secrets with which images are pulled.
pub(super) fn pull_secrets(request: &Request<'_>) -> Vec<Value> {
    let names = request.settings.value("/global/imagePullSecrets").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str).map(|name| json!({"name": name})).collect()
}
