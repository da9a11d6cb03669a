//! Pods that started on a node before the plug-in was there (Istio `repair.deletePods`): their network has no rules and never gets any.
//! Whoever controls them makes them anew, once they are deleted.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::api::Api;
use crate::capture;

/// How often pods are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// A pod that is not captured.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Broken {
    namespace: String,
    name: String,
    uid: String,
}

/// Deletes pods of a node that are not captured, for ever.
pub(super) async fn run(api: Api, node: String) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = once(&api, &node).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        if now != told && !now.is_empty() {
            tracing::warn!(reason = now, "pods cannot be repaired");
        }
        told = now;
    }
}

async fn once(api: &Api, node: &str) -> Result<()> {
    // From the API server's memory, and only pods that injection has labelled.
    let path = format!(
        "/api/v1/pods?resourceVersion=0&fieldSelector=spec.nodeName%3D{node}&labelSelector=security.istio.io%2FtlsMode"
    );
    let answer = api.ask("GET", &path, "").await?;
    if answer.status != 200 {
        bail!("the pods of this node cannot be listed: the API server answers {}", answer.status);
    }
    let list: Value = serde_json::from_str(&answer.body).context("the API server answers something else")?;
    for pod in broken(&list) {
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        let how = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod.uid}});
        match api.ask("DELETE", &path, &how.to_string()).await?.status {
            200 | 202 => {
                tracing::warn!(
                    pod = pod.name,
                    namespace = pod.namespace,
                    "deleted: it started before the plug-in was in place"
                );
            }
            // Gone, or another of the same name.
            404 | 409 => {}
            other => bail!("pod {}/{} cannot be deleted: the API server answers {other}", pod.namespace, pod.name),
        }
    }
    Ok(())
}

/// Those whose proxy or `istio-validation` ended because nothing is captured, and that somebody makes anew.
fn broken(list: &Value) -> Vec<Broken> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let code = Value::from(capture::EXIT_CODE);
    let is_broken = |pod: &Value| {
        let metadata = &pod["metadata"];
        let controlled = all(&metadata["ownerReferences"]).iter().any(|owner| owner["controller"] == true);
        let lists = ["initContainerStatuses", "containerStatuses"].map(|list| all(&pod["status"][list]));
        let ended = lists.iter().flatten().any(|container| {
            let ours = ["istio-proxy", "istio-validation"].iter().any(|name| container["name"] == *name);
            let states = [&container["state"], &container["lastState"]];
            ours && container["ready"] != true && states.iter().any(|state| state["terminated"]["exitCode"] == code)
        });
        controlled && ended && metadata["deletionTimestamp"].is_null()
    };
    let items = all(&list["items"]).into_iter().filter(is_broken);
    let named = |pod: Value| Broken {
        namespace: text(&pod["metadata"]["namespace"]),
        name: text(&pod["metadata"]["name"]),
        uid: text(&pod["metadata"]["uid"]),
    };
    items.map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(container: &str, code: u8) -> Value {
        json!({
            "metadata": {"namespace": "a", "name": container, "uid": "u", "ownerReferences": [{"controller": true}]},
            "status": {"initContainerStatuses": [
                {"name": container, "ready": false, "lastState": {"terminated": {"exitCode": code}}}]},
        })
    }

    #[test]
    fn only_pods_that_ended_uncaptured_and_come_again_are_deleted() {
        let mut alone = pod("istio-proxy", 126);
        alone["metadata"]["ownerReferences"] = Value::Null;
        let mut going = pod("istio-proxy", 126);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut well = pod("istio-proxy", 126);
        well["status"]["initContainerStatuses"][0]["ready"] = json!(true);
        let items = [
            pod("istio-proxy", 126),
            pod("istio-validation", 126),
            pod("istio-proxy", 1),
            pod("own", 126),
            alone,
            going,
            well,
        ];
        let found = broken(&json!({"items": items}));
        let names: Vec<&str> = found.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, ["istio-proxy", "istio-validation"]);
        assert_eq!((found[0].namespace.as_str(), found[0].uid.as_str()), ("a", "u"));
        assert!(broken(&json!({})).is_empty());
    }
}
