//! What happens to the pod after its templates: the user's own words for injected containers count, probes and metrics go through
//! the proxy, containers stand in their order, and the pod says what was added.

use serde_json::{Map, Value, json};

use super::access::{drop_empty, is_named, list, list_mut, text, texts};
use super::annotations::read_truth;
use super::build::{Request, has_container};
use super::merge::merge;
use super::undo::{INIT, OVERRIDES, PROXY, STATUS, VALIDATION, set_annotations};
use super::{probes, prometheus, sidecar};

/// Finishes the merged pod. `added` is what the templates gave.
///
/// # Errors
/// One sentence on what the pod asks for and cannot have.
pub(super) fn finish(pod: &mut Value, original: &Value, added: &Value, request: &Request<'_>) -> Result<(), String> {
    let overrides = own_words(pod, original, added);
    let mut annotations = texts(pod, "/metadata/annotations");
    if request.status_port != 0 && has_container(added, PROXY) {
        let asked =
            request.annotations.get("sidecar.istio.io/rewriteAppHTTPProbers").and_then(|value| read_truth(value));
        if asked.unwrap_or_else(|| request.settings.value_true("/sidecarInjectorWebhook/rewriteAppHTTPProbe")) {
            let is_own = |name: &str| [PROXY, INIT, VALIDATION].contains(&name);
            if let Some(originals) = probes::rewrite(pod, request.status_port, is_own) {
                tell(pod, probes::ORIGINALS, &originals);
            }
        }
        let enabled = request.settings.mesh.enable_prometheus_merge;
        if let Some(original) = prometheus::merge(&mut annotations, enabled, request.status_port)? {
            tell(pod, prometheus::ORIGINAL, &original);
        }
    }
    annotations.extend(request.settings.injected_annotations.clone());
    annotations.insert(STATUS.to_owned(), status(original, added, &overrides, request).to_string());
    if !overrides.is_empty() {
        annotations.insert(OVERRIDES.to_owned(), Value::Object(overrides).to_string());
    }
    set_annotations(pod, annotations);
    order(pod, request.hold);
    for field in ["initContainers", "containers"] {
        drop_empty(pod, &["spec", field]);
    }
    Ok(())
}

/// What the user wrote about a container that a template gives counts over the template. Returns what was written of the
/// mesh's own containers, so that injecting again starts from it.
fn own_words(pod: &mut Value, original: &Value, added: &Value) -> Map<String, Value> {
    let mut overrides = Map::new();
    for field in ["initContainers", "containers"] {
        let pointer = format!("/spec/{field}");
        for given in list(added, &pointer) {
            let name = text(given, "/name");
            let Some(own) = list(original, &pointer).iter().find(|one| is_named(one, name)) else { continue };
            let mut words = own.clone();
            let auto = text(&words, "/image") == "auto";
            if auto && let Some(map) = words.as_object_mut() {
                map.remove("image");
                map.remove("imagePullPolicy");
            }
            if let Some(merged) = list_mut(pod, &["spec", field]).iter_mut().find(|one| is_named(one, name)) {
                // The API server made the policy up from an image without a tag: ours has one.
                if auto && let Some(map) = merged.as_object_mut() {
                    match given.get("imagePullPolicy") {
                        Some(policy) => map.insert("imagePullPolicy".to_owned(), policy.clone()),
                        None => map.remove("imagePullPolicy"),
                    };
                }
                merge(merged, &words);
            }
            if [PROXY, INIT, VALIDATION].contains(&name) {
                let list = overrides.entry(field.to_owned()).or_insert_with(|| json!([]));
                list.as_array_mut().into_iter().for_each(|list| list.push(own.clone()));
            }
        }
    }
    overrides
}

/// Gives the proxy a variable.
fn tell(pod: &mut Value, name: &str, value: &str) {
    let Some(proxy) = super::access::containers_mut(pod).find(|container| is_named(container, PROXY)) else { return };
    let env = list_mut(proxy, &["env"]);
    env.retain(|one| !is_named(one, name));
    env.push(json!({"name": name, "value": value}));
}

fn status(original: &Value, added: &Value, overrides: &Map<String, Value>, request: &Request<'_>) -> Value {
    let names = |field: &str| {
        let pointer = format!("/spec/{field}");
        let own = list(original, &pointer);
        let own_words = overrides.get(field).and_then(Value::as_array);
        let names = list(added, &pointer).iter().map(|one| text(one, "/name")).filter(|name| {
            !own.iter().any(|one| is_named(one, name)) || own_words.into_iter().flatten().any(|one| is_named(one, name))
        });
        let names: Vec<Value> = names.map(Value::from).collect();
        if names.is_empty() { Value::Null } else { Value::Array(names) }
    };
    let mut status = json!({
        "initContainers": names("initContainers"),
        "containers": names("containers"),
        "volumes": names("volumes"),
        "imagePullSecrets": names("imagePullSecrets"),
        "revision": request.settings.revision(),
    });
    if request.is_captured_by_node() {
        status["capture"] = json!(sidecar::told_to_node(request));
    }
    status
}

/// A proxy that stays as an init container stands first, after the capture, so that other init containers use the mesh. Else the
/// capture comes last, since nothing could use the network between it and the proxy; and the proxy stands last, so that tools
/// that take the first container take the application, or first if the application waits for it.
fn order(pod: &mut Value, hold: bool) {
    let native = list(pod, "/spec/initContainers").iter().any(|one| is_named(one, PROXY));
    let init = list_mut(pod, &["spec", "initContainers"]);
    if native {
        to_front(init, PROXY);
        to_front(init, INIT);
    } else {
        to_back(init, INIT);
    }
    // Where nothing is captured, nobody else is to begin.
    to_front(init, VALIDATION);
    let containers = list_mut(pod, &["spec", "containers"]);
    if hold {
        to_front(containers, PROXY);
    } else {
        to_back(containers, PROXY);
    }
}

fn to_front(list: &mut Vec<Value>, name: &str) {
    if let Some(place) = list.iter().position(|one| is_named(one, name)) {
        let one = list.remove(place);
        list.insert(0, one);
    }
}

fn to_back(list: &mut Vec<Value>, name: &str) {
    if let Some(place) = list.iter().position(|one| is_named(one, name)) {
        let one = list.remove(place);
        list.push(one);
    }
}
