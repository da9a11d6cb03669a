//! Waiting for an installation, and saying what keeps it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::install::{Component, Plan};
use crate::print::Progress;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Waits until the objects of a component work.
///
/// # Errors
/// They did not in time; the sentence says what is missing, and why if the cluster tells.
pub(super) async fn ready(
    cluster: &Cluster,
    component: &Component,
    plan: &Plan,
    patience: Duration,
    progress: &mut Progress,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let mut missing = None;
        for object in &component.objects {
            if let Some(reason) = lacks(cluster, object, plan).await? {
                missing = Some(reason);
                break;
            }
        }
        let Some(reason) = missing else { return Ok(()) };
        if Instant::now() > deadline {
            bail!(
                "{reason}, after {} s; see `kubectl get pods,events -n {}`",
                patience.as_secs(),
                if component.namespace.is_empty() { &plan.namespace } else { &component.namespace }
            );
        }
        progress.tell(&reason);
        tokio::time::sleep(LOOK).await;
    }
}

/// What an object still lacks.
async fn lacks(cluster: &Cluster, object: &Value, plan: &Plan) -> Result<Option<String>> {
    let kind = object["kind"].as_str().unwrap_or_default();
    match kind {
        "Deployment" | "DaemonSet" | "CustomResourceDefinition" | "MutatingWebhookConfiguration" => {}
        // The Service of a control plane that is ready leads there a moment later: whoever applies objects next would be refused.
        "ValidatingWebhookConfiguration" => return cluster.unanswered(&sample(plan)).await,
        _ => return Ok(None),
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let Some(now) = cluster.get(object).await? else { return Ok(Some(format!("{kind} {name} is not there yet"))) };
    match kind {
        "Deployment" => deployment(cluster, name, &now).await,
        "DaemonSet" => Ok(daemon_set(name, &now)),
        "CustomResourceDefinition" => {
            let established = now["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
            Ok((!established).then(|| format!("the kind {name} is not established yet")))
        }
        // Pods that the injector is asked about would be refused until the API server trusts it.
        _ => {
            let hooks = now["webhooks"].as_array().cloned().unwrap_or_default();
            let bare = hooks.iter().any(|hook| hook["clientConfig"]["caBundle"].as_str().is_none_or(str::is_empty));
            Ok(bare.then(|| format!("the webhook {name} has no CA bundle yet")))
        }
    }
}

/// An object that the control plane of this revision is asked about.
fn sample(plan: &Plan) -> Value {
    let mut sample = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "meshctl-install-asks", "namespace": plan.namespace}, "spec": {},
    });
    if !plan.revision.is_empty() {
        sample["metadata"]["labels"] = json!({"istio.io/rev": plan.revision});
    }
    sample
}

/// Each node that is to have a pod has one of the new template, ready.
fn daemon_set(name: &str, now: &Value) -> Option<String> {
    let number = |pointer: &str| now.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let seen = number("/status/observedGeneration") >= number("/metadata/generation");
    let wanted = number("/status/desiredNumberScheduled");
    let there = number("/status/numberReady").min(number("/status/updatedNumberScheduled"));
    (!seen || there < wanted).then(|| format!("DaemonSet {name} is ready on {there} of {wanted} nodes"))
}

async fn deployment(cluster: &Cluster, name: &str, now: &Value) -> Result<Option<String>> {
    let number = |pointer: &str| now.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let wanted = now["spec"]["replicas"].as_i64().unwrap_or(1);
    let seen = number("/status/observedGeneration") >= number("/metadata/generation");
    let (updated, available, all) =
        (number("/status/updatedReplicas"), number("/status/availableReplicas"), number("/status/replicas"));
    // Webhooks that have no bundle yet stand in another object; pods of the old template must be gone.
    if seen && updated >= wanted && available >= wanted && all == updated {
        return Ok(None);
    }
    let namespace = now["metadata"]["namespace"].as_str().unwrap_or_default();
    let why = reason(cluster, now, namespace).await.map(|why| format!(": {why}")).unwrap_or_default();
    Ok(Some(format!("{name} has {available} of {wanted} pods ready{why}")))
}

/// Why pods of a Deployment are not ready, as far as the cluster says.
async fn reason(cluster: &Cluster, deployment: &Value, namespace: &str) -> Option<String> {
    for condition in deployment["status"]["conditions"].as_array()? {
        if condition["type"] == "ReplicaFailure" && condition["status"] == "True" {
            return condition["message"].as_str().map(str::to_owned);
        }
    }
    let labels = deployment["spec"]["selector"]["matchLabels"].as_object()?;
    let selector: Vec<String> =
        labels.iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let pods = cluster.list("v1", "Pod", Some(namespace), &selector.join(","), "").await.ok()?;
    pods.iter().find_map(of_pod)
}

fn of_pod(pod: &Value) -> Option<String> {
    let name = pod["metadata"]["name"].as_str()?;
    for condition in pod["status"]["conditions"].as_array().into_iter().flatten() {
        if condition["type"] == "PodScheduled" && condition["status"] == "False" {
            return Some(format!("{name} cannot be scheduled, {}", condition["message"].as_str().unwrap_or_default()));
        }
    }
    let containers = ["initContainerStatuses", "containerStatuses"];
    for status in containers.iter().flat_map(|field| pod["status"][*field].as_array().into_iter().flatten()) {
        let container = status["name"].as_str().unwrap_or_default();
        if let Some(waiting) = status["state"]["waiting"].as_object() {
            let text = |field: &str| waiting.get(field).and_then(Value::as_str).unwrap_or_default();
            let mut last = String::new();
            if let Some(code) = status["lastState"]["terminated"]["exitCode"].as_i64() {
                last = format!(", it ended with code {code} before");
            }
            let message = text("message");
            let message = if message.is_empty() { String::new() } else { format!(" ({message})") };
            if text("reason") != "PodInitializing" {
                return Some(format!("{name}, container {container}: {}{message}{last}", text("reason")));
            }
        }
        if status["ready"] == false && status["state"]["running"].is_object() {
            return Some(format!("{name}, container {container}: running, not ready yet"));
        }
    }
    None
}
