//! Sidecar injection: what becomes of a pod when it is made (Istio `pkg/kube/inject`). A pod, where it will run and the
//! settings go in; the pod with its proxy comes out, or one sentence on why it stays as it is or may not be made.

mod access;
mod proxy_settings;
mod settings;
mod decide;
mod annotations;
mod merge;
mod probes;
mod prometheus;
mod undo;
mod build;
mod container;
mod sidecar;
mod gateway;
mod template;
mod finish;

use std::collections::BTreeMap;

use serde_json::Value;

pub use proxy_settings::check as check_proxy_settings;
pub use settings::{ClusterFacts, Settings};

/// Labels or annotations.
pub type Texts = BTreeMap<String, String>;

/// Where the pod will run and who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Namespace that the pod will be in; it counts over what the pod says.
    pub namespace: String,
    /// Labels of that namespace.
    pub namespace_labels: Texts,
    /// `cluster` of the webhook's path (`/inject/cluster/C/net/N`).
    pub cluster: Option<String>,
    /// `net` of the webhook's path.
    pub network: Option<String>,
    /// Who made the pod, if it is known from elsewhere than the pod (manifests).
    pub owner: Option<Owner>,
}

/// The workload that a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The pod gets a proxy.
    Injected {
        /// The whole pod.
        pod: Box<Value>,
        /// What the pod asks for and does not get, one sentence each.
        warnings: Vec<String>,
    },
    /// The pod stays as it is.
    Skipped {
        /// Why, in one sentence.
        reason: String,
        /// What the pod may have meant otherwise, one sentence each.
        warnings: Vec<String>,
    },
    /// The pod must not be made: something it asks for is wrong.
    Refused {
        /// What, in one sentence.
        sentence: String,
    },
}

/// Injects a pod. Injecting the result again changes nothing.
pub fn inject(pod: &Value, context: &Context, settings: &Settings) -> Outcome {
    if !pod.is_object() || !pod.get("spec").is_some_and(Value::is_object) {
        return Outcome::Refused { sentence: "This is not a pod: it has no spec.".to_owned() };
    }
    if let Err(reason) = decide::decide(pod, context, settings) {
        return Outcome::Skipped { reason, warnings: decide::misread(pod).into_iter().collect() };
    }
    match injected(pod, context, settings) {
        Ok((pod, warnings)) => Outcome::Injected { pod: Box::new(pod), warnings },
        Err(sentence) => Outcome::Refused { sentence },
    }
}

fn injected(pod: &Value, context: &Context, settings: &Settings) -> Result<(Value, Vec<String>), String> {
    let mut warnings = annotations::check(&access::texts(pod, "/metadata/annotations"))?;
    let mut original = undo::undo(pod);
    let request = build::Request::of(&original, context, settings)?;
    let templates = request.templates()?;
    if request.native {
        build::move_own_proxy(&mut original);
    }
    // Templates of the user's name the proxy in either list, wherever it stands.
    let stands = templates.iter().any(|name| settings::BUILT_IN.contains(&name.as_str()));
    let (mut merged, mut added) = (original.clone(), Value::Object(serde_json::Map::new()));
    for name in templates {
        let mut overlay = match name.as_str() {
            "sidecar" => sidecar::overlay(&request),
            "gateway" => gateway::overlay(&request),
            name => template::overlay(name, &merged, &request)?,
        };
        match (stands, request.native) {
            (false, _) => {}
            (true, true) => build::move_own_proxy(&mut overlay),
            (true, false) => build::move_own_proxy_back(&mut overlay),
        }
        merge::merge(&mut merged, &overlay);
        merge::merge(&mut added, &overlay);
    }
    warnings.extend(request.warnings());
    finish::finish(&mut merged, &original, &added, &request)?;
    Ok((merged, warnings))
}

/// What turns the one pod into the other, as a JSON patch (RFC 6902).
pub fn patch(before: &Value, after: &Value) -> Value {
    serde_json::to_value(json_patch::diff(before, after)).unwrap_or_default()
}
