//! The CA bundle in the webhooks that point at this control plane, so that the API server believes its certificate; put back if
//! somebody changes it. Each revision does so for its own; tags' point at the revision's. A validating webhook begins to refuse objects when a control plane runs that answers it; `meshctl install`
//! waits until the API server has heard it.

use std::pin::pin;

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, watcher};
use serde_json::{Value, json};

use super::Writers;

/// Follows both kinds of webhooks.
pub(super) async fn keep(writers: &Writers) -> Result<()> {
    tokio::try_join!(injection(writers), validation(writers)).map(drop)
}

async fn injection(writers: &Writers) -> Result<()> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(writers.client.clone());
    let changes = watcher(api.clone(), Config::default()).default_backoff().applied_objects();
    let mut changes = pin!(changes.map_err(|error| tracing::debug!(%error, "webhooks cannot be followed for now")));
    while let Some(change) = changes.next().await {
        let Ok(configuration) = change else { continue };
        let hooks = configuration.webhooks.iter().flatten().map(|hook| (&hook.client_config, None));
        let patch = patch(hooks, writers);
        if !patch.is_empty() {
            api.patch(&configuration.name_any(), &PatchParams::default(), &json_patch(patch)?).await?;
            tracing::info!(webhook = configuration.name_any(), "wrote the CA bundle");
        }
    }
    Ok(())
}

async fn validation(writers: &Writers) -> Result<()> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(writers.client.clone());
    let changes = watcher(api.clone(), Config::default()).default_backoff().applied_objects();
    let mut changes = pin!(changes.map_err(|error| tracing::debug!(%error, "webhooks cannot be followed for now")));
    while let Some(change) = changes.next().await {
        let Ok(configuration) = change else { continue };
        let hooks =
            configuration.webhooks.iter().flatten().map(|hook| (&hook.client_config, hook.failure_policy.as_deref()));
        let patch = patch(hooks, writers);
        if !patch.is_empty() {
            api.patch(&configuration.name_any(), &PatchParams::default(), &json_patch(patch)?).await?;
            tracing::info!(webhook = configuration.name_any(), "wrote the CA bundle");
        }
    }
    Ok(())
}

fn json_patch(operations: Vec<Value>) -> Result<Patch<()>> {
    Ok(Patch::Json(serde_json::from_value(Value::Array(operations))?))
}

/// What to change: the bundle of each webhook that points at our Service, and the policy of those that ask for it.
fn patch<'a>(hooks: impl Iterator<Item = (&'a WebhookClientConfig, Option<&'a str>)>, writers: &Writers) -> Vec<Value> {
    let bundle = ByteString(writers.bundle.clone().into_bytes());
    let own = own_service(&writers.revision);
    let mut operations = Vec::new();
    for (index, (client, policy)) in hooks.enumerate() {
        let ours = client
            .service
            .as_ref()
            .is_some_and(|service| service.namespace == writers.namespace && service.name == own);
        if !ours {
            continue;
        }
        if client.ca_bundle.as_ref() != Some(&bundle) {
            operations.push(
                json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle}),
            );
        }
        if policy == Some("Ignore") {
            operations
                .push(json!({"op": "replace", "path": format!("/webhooks/{index}/failurePolicy"), "value": "Fail"}));
        }
    }
    operations
}

/// The Service of a revision. Another revision's may have nobody behind it yet, who then must not be asked for consent.
fn own_service(revision: &str) -> String {
    match revision {
        "default" => "istiod".to_owned(),
        revision => format!("istiod-{revision}"),
    }
}
