//! Takes an earlier injection back, so that injecting again starts from what the user wrote.

use serde_json::Value;

use super::access::{drop_empty, list, list_mut, map_mut, text, texts};
use super::{Texts, probes, prometheus};

/// What was added, as JSON.
pub(super) const STATUS: &str = "sidecar.istio.io/status";
/// Containers that the user wrote and that injection completed, as JSON.
pub(super) const OVERRIDES: &str = "proxy.istio.io/overrides";
/// The proxy's container.
pub(super) const PROXY: &str = "istio-proxy";
/// The container that installs the capture.
pub(super) const INIT: &str = "istio-init";
/// The container that asks whether somebody else has.
pub(super) const VALIDATION: &str = "istio-validation";

/// The pod without what an earlier injection put in.
pub(super) fn undo(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let mut annotations = texts(&pod, "/metadata/annotations");
    let Some(status) = annotations.remove(STATUS).and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
        return pod;
    };
    let originals = probes::variable(&pod, PROXY, probes::ORIGINALS).map(str::to_owned);
    let scrape = probes::variable(&pod, PROXY, prometheus::ORIGINAL).map(str::to_owned);
    prometheus::restore(&mut annotations, scrape.as_deref());
    if let Some(originals) = originals {
        probes::restore(&mut pod, &originals);
    }
    for field in ["initContainers", "containers", "volumes", "imagePullSecrets"] {
        let added: Vec<&str> = list(&status, &format!("/{field}")).iter().filter_map(Value::as_str).collect();
        list_mut(&mut pod, &["spec", field]).retain(|one| !added.contains(&text(one, "/name")));
    }
    let overrides = annotations.remove(OVERRIDES).and_then(|text| serde_json::from_str::<Value>(&text).ok());
    for field in ["initContainers", "containers"] {
        let own = overrides.as_ref().map(|overrides| list(overrides, &format!("/{field}")).to_vec());
        list_mut(&mut pod, &["spec", field]).extend(own.into_iter().flatten());
    }
    for field in ["initContainers", "containers", "volumes", "imagePullSecrets"] {
        drop_empty(&mut pod, &["spec", field]);
    }
    set_annotations(&mut pod, annotations);
    pod
}

/// Replaces all annotations.
pub(super) fn set_annotations(pod: &mut Value, annotations: Texts) {
    let metadata = map_mut(pod, &["metadata"]);
    let map = annotations.into_iter().map(|(key, value)| (key, Value::String(value)));
    metadata.insert("annotations".to_owned(), Value::Object(map.collect()));
    drop_empty(pod, &["metadata", "annotations"]);
}
