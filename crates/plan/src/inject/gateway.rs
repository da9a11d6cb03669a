//! The template `gateway`: a pod whose only work is the proxy. The pod names a container `istio-proxy` with `image: auto`, and gets
//! what that lacks.

use serde_json::{Value, json};

use super::build::Request;
use super::container::{self, Role};

/// What is merged onto the pod.
pub(super) fn overlay(request: &Request<'_>) -> Value {
    let mut overlay = json!({
        "metadata": {
            "labels": request.identity_labels(),
            "annotations": {"istio.io/rev": request.settings.revision()},
        },
        "spec": {
            "containers": [container::proxy(request, Role::Router)],
            "volumes": container::volumes(request),
        },
    });
    // The proxy has no privilege, and gateways listen on ports such as 80 (Istio's template). What the pod says counts more.
    if request.pod.pointer("/spec/securityContext/sysctls").is_none() {
        let low_ports = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
        overlay["spec"]["securityContext"] = json!({"sysctls": low_ports});
    }
    let secrets = container::pull_secrets(request);
    if !secrets.is_empty() {
        overlay["spec"]["imagePullSecrets"] = Value::Array(secrets);
    }
    overlay
}
