//! The webhooks that the default revision brings for whoever names no revision. While the tag `default` stands for a revision they
//! take nothing, else a pod would be asked about twice and the control plane that is left would have the last word (Istio
//! `pkg/revisions`, `DeactivateIstioInjectionWebhook`). Their selectors stay as they are, so that they can be put back.

use anyhow::Result;
use serde_json::{Value, json};

use crate::chart;
use crate::cluster::Cluster;
use crate::install::{DEFAULT, REVISION, TAG};

const GROUP: &str = "admissionregistration.k8s.io/v1";
/// A label that nothing has (Istio's), which selectors ask for that are to select nothing.
const NOBODY: (&str, &str) = ("istio.io/deactivated", "never-match");

/// Has the default revision's own webhooks take those that name no revision, or not.
///
/// # Errors
/// The API server refuses.
pub(in crate::command) async fn switch(cluster: &Cluster, on: bool) -> Result<()> {
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let selector = format!("{REVISION}={DEFAULT},!{TAG}");
        for webhook in cluster.list(GROUP, kind, None, &selector, "").await? {
            let mut wanted = webhook.clone();
            set(&mut wanted, on);
            cluster.change(&webhook, &wanted).await?;
        }
    }
    Ok(())
}

/// The revision that the tag `default` stands for, if there is such a tag.
///
/// # Errors
/// The API server refuses.
pub(in crate::command) async fn default_tag(cluster: &Cluster) -> Result<Option<String>> {
    let tags = cluster.list(GROUP, "MutatingWebhookConfiguration", None, &format!("{TAG}={DEFAULT}"), "").await?;
    Ok(tags.first().and_then(|tag| tag["metadata"]["labels"][REVISION].as_str()).map(str::to_owned))
}

/// Whether an object is a webhook configuration of the default revision's own.
pub(in crate::command) fn is_own(object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    chart::key(object).0.ends_with("WebhookConfiguration") && labels[REVISION] == DEFAULT && labels[TAG].is_null()
}

/// Writes into all selectors of a webhook configuration whether they select.
pub(in crate::command) fn set(webhook: &mut Value, on: bool) {
    for hook in webhook["webhooks"].as_array_mut().into_iter().flatten() {
        for selector in ["namespaceSelector", "objectSelector"] {
            if !on {
                hook[selector]["matchLabels"][NOBODY.0] = json!(NOBODY.1);
                continue;
            }
            let Some(labels) = hook[selector]["matchLabels"].as_object_mut() else { continue };
            labels.remove(NOBODY.0);
            if labels.is_empty()
                && let Some(selector) = hook[selector].as_object_mut()
            {
                selector.remove("matchLabels");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_that_take_nothing_are_put_back_as_they_were() {
        let before = json!({"webhooks": [{
            "namespaceSelector": {"matchExpressions": [{"key": REVISION}]},
            "objectSelector": {"matchLabels": {"a": "b"}},
        }]});
        let mut webhook = before.clone();
        set(&mut webhook, false);
        for selector in ["namespaceSelector", "objectSelector"] {
            assert_eq!(webhook["webhooks"][0][selector]["matchLabels"]["istio.io/deactivated"], "never-match");
        }
        let once = webhook.clone();
        set(&mut webhook, false);
        assert_eq!(webhook, once);
        set(&mut webhook, true);
        assert_eq!(webhook, before);
    }

    #[test]
    fn only_the_default_revisions_own_webhooks_are_meant() {
        let of = |labels: Value| json!({"kind": "MutatingWebhookConfiguration", "metadata": {"labels": labels}});
        assert!(is_own(&of(json!({REVISION: "default"}))));
        assert!(!is_own(&of(json!({REVISION: "canary"}))) && !is_own(&of(json!({REVISION: "default", TAG: "prod"}))));
        assert!(!is_own(&json!({"kind": "Deployment", "metadata": {"labels": {REVISION: "default"}}})));
    }
}
