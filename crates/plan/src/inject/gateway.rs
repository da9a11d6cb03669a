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
    let secrets = container::pull_secrets(request);
    if !secrets.is_empty() {
        overlay["spec"]["imagePullSecrets"] = Value::Array(secrets);
    }
    overlay
}
