//! Revision tags: names that stand for a revision of the control plane. A tag is an injector's webhook configuration with the
//! labels `istio.io/tag` and `istio.io/rev` (Istio `pkg/revisions`, `istioctl tag`).

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

use super::server::Pauses;

/// Label with the name of the tag.
const TAG: &str = "istio.io/tag";
/// Label with the revision that it stands for; and on objects, for which revision or tag they are.
pub(super) const REVISION: &str = "istio.io/rev";

/// Follows the tags of one revision until nobody listens. `None` until all have been listed.
pub(super) async fn follow(client: Client, revision: String, tell: watch::Sender<Option<BTreeSet<String>>>) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    let mut events = pin!(watcher(api, Config::default().labels(TAG)).backoff(Pauses::default()));
    let mut known = BTreeMap::new();
    let mut listed = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => listed |= take(event, &mut known),
            // Who may not read them has no tags; all else goes on meanwhile.
            Err(error) if !listed => {
                tracing::warn!(%error, "revision tags cannot be read for now; objects that are labelled with one are not this revision's");
                listed = true;
            }
            Err(_) => continue,
        }
        if !listed {
            continue;
        }
        let own: BTreeSet<String> =
            known.values().filter(|(_, of): &&(String, String)| *of == revision).map(|(tag, _)| tag.clone()).collect();
        tell.send_if_modified(|told| {
            let changed = told.as_ref() != Some(&own);
            if changed {
                tracing::info!(tags = ?own, "tags of this revision");
                *told = Some(own);
            }
            changed
        });
        if tell.is_closed() {
            return;
        }
    }
}

/// Keeps tag and revision by the name of the webhook configuration; whether all have been told.
fn take(event: Event<MutatingWebhookConfiguration>, known: &mut BTreeMap<String, (String, String)>) -> bool {
    match event {
        Event::Apply(webhook) | Event::InitApply(webhook) => {
            let label = |name: &str| webhook.labels().get(name).cloned();
            match (label(TAG), label(REVISION)) {
                (Some(tag), Some(revision)) => known.insert(webhook.name_any(), (tag, revision)),
                _ => known.remove(&webhook.name_any()),
            };
            false
        }
        Event::Delete(webhook) => {
            known.remove(&webhook.name_any());
            false
        }
        Event::Init => {
            known.clear();
            false
        }
        Event::InitDone => true,
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

    #[test]
    fn a_tag_moves_with_its_webhook() {
        let webhook = |labels: &[(&str, &str)]| MutatingWebhookConfiguration {
            metadata: ObjectMeta {
                name: Some("istio-revision-tag-prod".into()),
                labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
                ..ObjectMeta::default()
            },
            ..MutatingWebhookConfiguration::default()
        };
        let mut known = BTreeMap::new();
        assert!(!take(Event::InitApply(webhook(&[(TAG, "prod"), (REVISION, "1-1")])), &mut known));
        assert!(take(Event::InitDone, &mut known));
        take(Event::Apply(webhook(&[(TAG, "prod"), (REVISION, "1-2")])), &mut known);
        assert_eq!(known["istio-revision-tag-prod"], ("prod".to_owned(), "1-2".to_owned()));
        take(Event::Apply(webhook(&[(TAG, "prod")])), &mut known);
        assert!(known.is_empty(), "a tag of no revision");
    }
}
