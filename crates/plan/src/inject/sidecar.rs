//! The template `sidecar`: the proxy beside an application, and the init container that sends it the traffic. The fields are those
//! that Istio's chart gives a pod (compatibility inventory, 3.7).

use serde_json::{Value, json};

use super::access::text;
use super::annotations::{read_truth, words};
use super::build::Request;
use super::container::{self, Role};
use super::undo::{INIT, VALIDATION};

/// What is merged onto the pod.
pub(super) fn overlay(request: &Request<'_>) -> Value {
    let mut overlay = json!({
        "metadata": {"labels": request.identity_labels(), "annotations": annotations(request)},
        "spec": {"volumes": container::volumes(request)},
    });
    let mut init: Vec<Value> = Vec::new();
    match request.interception.as_str() {
        "NONE" => {}
        // A proxy that starts before the application asks by itself, and the application waits for it.
        _ if request.cni && request.native => {}
        _ => init.push(capture(request)),
    }
    let proxy = proxy(request);
    let spec = &mut overlay["spec"];
    if request.native {
        init.push(proxy);
    } else {
        spec["containers"] = json!([proxy]);
    }
    if !init.is_empty() {
        spec["initContainers"] = Value::Array(init);
    }
    let secrets = container::pull_secrets(request);
    if !secrets.is_empty() {
        spec["imagePullSecrets"] = Value::Array(secrets);
    }
    overlay
}

fn annotations(request: &Request<'_>) -> Value {
    let mut annotations = json!({"istio.io/rev": request.settings.revision()});
    if let Some(first) = request.applications().next() {
        for key in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
            if !request.annotations.contains_key(key) {
                annotations[key] = Value::from(text(first, "/name"));
            }
        }
    }
    annotations
}

fn proxy(request: &Request<'_>) -> Value {
    let mut proxy = container::proxy(request, Role::Sidecar);
    let given = request.settings.value("/global/proxy/lifecycle").filter(|given| *given != &json!({}));
    if request.native {
        proxy["restartPolicy"] = Value::from("Always");
        let drain = ["pilot-agent", "request", "--debug-port=15020", "POST", "drain"];
        proxy["lifecycle"] = given.cloned().unwrap_or_else(|| json!({"preStop": {"exec": {"command": drain}}}));
    } else if let Some(given) = given {
        proxy["lifecycle"] = given.clone();
    } else if request.hold {
        proxy["lifecycle"] = json!({"postStart": {"exec": {"command": ["pilot-agent", "wait"]}}});
    }
    proxy
}

/// The init container that installs the rules of capture; or, where the node's CNI plug-in does, that ends only if they are there.
fn capture(request: &Request<'_>) -> Value {
    let settings = request.settings;
    let named = settings.value_text("/global/proxy_init/image");
    let image = if named.is_empty() { request.proxy_image() } else { request.image(&named) };
    let resources =
        settings.value("/global/proxy_init/resources").or_else(|| settings.value("/global/proxy/resources"));
    let mut capture = json!({
        "name": if request.cni { VALIDATION } else { INIT },
        "image": image,
        "args": capture_arguments(request),
        "resources": resources.cloned().unwrap_or_else(|| json!({})),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": false,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    if request.cni {
        let security = &mut capture["securityContext"];
        security["capabilities"] = json!({"drop": ["ALL"]});
        security["readOnlyRootFilesystem"] = json!(true);
        for field in ["runAsUser", "runAsGroup"] {
            security[field] = json!(api::port::PROXY_UID);
        }
        security["runAsNonRoot"] = json!(true);
    }
    let metadata = container::metadata(request);
    if !metadata.is_empty() {
        capture["env"] = Value::Array(metadata);
    }
    let policy = settings.value_text("/global/imagePullPolicy");
    if !policy.is_empty() {
        capture["imagePullPolicy"] = Value::from(policy);
    }
    capture
}

fn capture_arguments(request: &Request<'_>) -> Vec<String> {
    let mut arguments = vec!["istio-iptables".to_owned()];
    arguments.extend(rules(request));
    arguments.push(format!(
        "--log_output_level={}",
        request.annotation_or("sidecar.istio.io/agentLogLevel", "/global/logging/level")
    ));
    if request.cni {
        arguments.extend(["--run-validation".to_owned(), "--skip-rule-apply".to_owned()]);
    }
    arguments
}

/// What the node's CNI plug-in is told: the same words, with what an init container has from its variables.
pub(super) fn told_to_node(request: &Request<'_>) -> Vec<String> {
    let mut words = rules(request);
    let metadata = container::metadata(request);
    for (variable, flag) in [("ISTIO_META_DNS_CAPTURE", "--redirect-dns"), ("INVALID_DROP", "--drop-invalid")] {
        let asked = metadata.iter().find(|one| text(one, "/name") == variable);
        if asked.and_then(|one| read_truth(text(one, "/value"))) == Some(true) {
            words.push(flag.to_owned());
        }
    }
    words
}

/// What is captured, as `proxy init` takes it.
fn rules(request: &Request<'_>) -> Vec<String> {
    let asked = |name: &str, value: &str| {
        request.annotation_or(&format!("traffic.sidecar.istio.io/{name}"), &format!("/global/proxy/{value}"))
    };
    let uid = api::port::PROXY_UID.to_string();
    let mut excluded = vec![api::port::PROMETHEUS.to_string(), api::port::READY.to_string()];
    if request.status_port != 0 {
        excluded.push(request.status_port.to_string());
    }
    excluded.extend(words(&asked("excludeInboundPorts", "excludeInboundPorts")).map(str::to_owned));
    let (outbound, inbound) = (api::port::OUTBOUND.to_string(), api::port::INBOUND.to_string());
    let mut arguments: Vec<String> = [
        ("-p", outbound.as_str()),
        ("-z", &inbound),
        ("-u", &uid),
        ("-m", &request.interception),
        ("-i", &asked("includeOutboundIPRanges", "includeIPRanges")),
        ("-x", &asked("excludeOutboundIPRanges", "excludeIPRanges")),
        ("-b", &asked("includeInboundPorts", "includeInboundPorts")),
        ("-d", &excluded.join(",")),
    ]
    .iter()
    .flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()])
    .collect();
    for (flag, value) in [
        ("-q", asked("includeOutboundPorts", "includeOutboundPorts")),
        ("-o", asked("excludeOutboundPorts", "excludeOutboundPorts")),
        ("-k", virtual_interfaces(request)),
        ("-c", asked("excludeInterfaces", "excludeInterfaces")),
    ] {
        if !value.is_empty() {
            arguments.extend([flag.to_owned(), value]);
        }
    }
    arguments
}

/// The old annotation's name counts if the new one is not given.
fn virtual_interfaces(request: &Request<'_>) -> String {
    let names = ["istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces"];
    names.iter().find_map(|name| request.annotations.get(*name)).cloned().unwrap_or_default()
}
