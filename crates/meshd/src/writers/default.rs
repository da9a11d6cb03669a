//! Which revision is the default: the one that the tag `default` stands for, else the one without a name. It writes what there is to
//! write of objects that name no revision; several control planes would else write over each other for ever (Istio prefers the
//! default revision's replicas in its leader elections).

use std::collections::BTreeMap;
use std::pin::pin;

use anyhow::Result;
use futures_util::StreamExt;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use tokio::sync::watch;

use super::Writers;

/// Label of the injectors of all revisions and tags.
const INJECTORS: &str = "app=sidecar-injector";
/// Label with the name of a tag.
const TAG: &str = "istio.io/tag";
/// Label with a revision; on objects, for which revision or tag they are.
pub(super) const REVISION: &str = "istio.io/rev";
/// The revision without a name, and the tag of those that name no revision.
const DEFAULT: &str = "default";

/// Revisions and tags by the name of their injector: tag, revision.
type Injectors = BTreeMap<String, (Option<String>, String)>;

/// Follows it. `None` until it is known.
pub(super) async fn keep(writers: &Writers, tell: &watch::Sender<Option<bool>>) -> Result<()> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(writers.client.clone());
    let mut events = pin!(watcher(api, Config::default().labels(INJECTORS)).default_backoff());
    let (mut known, mut listed) = (Injectors::new(), false);
    while let Some(event) = events.next().await {
        let Ok(event) = event else { continue };
        listed |= take(event, &mut known);
        if listed {
            let writes = is_default(&known, &writers.revision);
            tell.send_if_modified(|told| {
                let changed = *told != Some(writes);
                if changed {
                    tracing::info!(writes, "whether this revision writes of objects that name none");
                    *told = Some(writes);
                }
                changed
            });
        }
    }
    Ok(())
}

/// Whether a revision is the default; where nobody is, each is.
fn is_default(known: &Injectors, revision: &str) -> bool {
    let tagged = known.values().find(|(tag, _)| tag.as_deref() == Some(DEFAULT)).map(|(_, of)| of.as_str());
    let unnamed = || known.values().find(|(tag, of)| tag.is_none() && of == DEFAULT).map(|(_, of)| of.as_str());
    tagged.or_else(unnamed).is_none_or(|default| default == revision)
}

/// Whether all have been told.
fn take(event: Event<MutatingWebhookConfiguration>, known: &mut Injectors) -> bool {
    match event {
        Event::Apply(webhook) | Event::InitApply(webhook) => {
            let label = |name: &str| webhook.labels().get(name).cloned();
            match label(REVISION) {
                Some(revision) => known.insert(webhook.name_any(), (label(TAG), revision)),
                None => known.remove(&webhook.name_any()),
            };
        }
        Event::Delete(webhook) => {
            known.remove(&webhook.name_any());
        }
        Event::Init => known.clear(),
        Event::InitDone => return true,
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides_then_the_name_then_nobody() {
        let mut known = Injectors::from([("canary".to_owned(), (None, "canary".to_owned()))]);
        assert!(is_default(&known, "canary") && is_default(&known, "other"), "nobody is the default: each writes");
        known.insert("own".to_owned(), (None, "default".to_owned()));
        assert!(is_default(&known, "default") && !is_default(&known, "canary"));
        known.insert("tag".to_owned(), (Some("default".to_owned()), "canary".to_owned()));
        assert!(!is_default(&known, "default") && is_default(&known, "canary"));
        known.insert("prod".to_owned(), (Some("prod".to_owned()), "default".to_owned()));
        known.remove("own");
        assert!(is_default(&known, "canary"), "the old revision is gone");
    }
}
