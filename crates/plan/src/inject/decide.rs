//! Whether a pod is injected (Istio `injectRequired`): label, then annotation, then selectors, then the policy.

use serde_json::Value;

use super::access::texts;
use super::settings::Settings;
use super::{Context, Texts};

/// The label, and the annotation of the same name.
const INJECT: &str = "sidecar.istio.io/inject";
/// Namespaces whose pods are the cluster's own.
const NEVER: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// `Err`: why not, in one sentence.
pub(super) fn decide(pod: &Value, context: &Context, settings: &Settings) -> Result<(), String> {
    let namespace = context.namespace.as_str();
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Err("The pod uses the node's network: its traffic cannot be told from the node's.".to_owned());
    }
    if NEVER.contains(&namespace) {
        return Err(format!("Pods of the namespace {namespace} are never injected."));
    }
    let (labels, annotations) = (texts(pod, "/metadata/labels"), texts(pod, "/metadata/annotations"));
    if let Some((wanted, whose)) = asked(&labels, &annotations) {
        return match wanted.to_ascii_lowercase().as_str() {
            "true" | "y" | "yes" | "on" => Ok(()),
            _ => Err(format!("The pod's {whose} {INJECT} is {wanted:?}.")),
        };
    }
    if settings.never.iter().any(|selector| selector.selects(&labels)) {
        return Err("The pod's labels are among neverInjectSelector.".to_owned());
    }
    if settings.always.iter().any(|selector| selector.selects(&labels)) || settings.enabled {
        return Ok(());
    }
    Err(format!("The policy is disabled and the pod has no label {INJECT}=true."))
}

/// What the pod says of whether it is to be injected, if that is no word that means yes or no: it is taken for no.
pub(super) fn misread(pod: &Value) -> Option<String> {
    let (labels, annotations) = (texts(pod, "/metadata/labels"), texts(pod, "/metadata/annotations"));
    let (wanted, whose) = asked(&labels, &annotations)?;
    let known = ["true", "y", "yes", "on", "false", "n", "no", "off"];
    (!known.contains(&wanted.to_ascii_lowercase().as_str()))
        .then(|| format!("The {whose} {INJECT} is {wanted:?}, which is neither true nor false: the pod gets no proxy."))
}

fn asked<'a>(labels: &'a Texts, annotations: &'a Texts) -> Option<(&'a str, &'static str)> {
    let label = labels.get(INJECT).map(|value| (value.as_str(), "label"));
    label
        .or_else(|| annotations.get(INJECT).map(|value| (value.as_str(), "annotation")))
        .filter(|(value, _)| !value.is_empty())
}
