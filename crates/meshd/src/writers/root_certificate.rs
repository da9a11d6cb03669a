//! ConfigMap `istio-ca-root-cert` in every namespace: what its workloads trust. Put back if somebody changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};

use super::Writers;

/// Name of the ConfigMap (Istio `PILOT_CA_CERT_CONFIGMAP`).
pub(super) const NAME: &str = "istio-ca-root-cert";
/// Its key.
const KEY: &str = "root-cert.pem";
/// Namespaces without workloads of the mesh.
const LEFT_OUT: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Follows namespaces and the ConfigMaps in them, and writes those that are missing or wrong.
pub(super) async fn keep(writers: &Writers) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(writers.client.clone());
    let maps: Api<ConfigMap> = Api::all(writers.client.clone());
    let only = Config::default().fields(&format!("metadata.name={NAME}"));
    let mut namespaces = pin!(watcher(namespaces, Config::default()).default_backoff());
    let mut maps = pin!(watcher(maps, only).default_backoff());
    let (mut wanted, mut good) = (BTreeSet::new(), BTreeSet::new());
    let mut listed = false;
    loop {
        // An error is followed by another attempt; what failed to be written is tried again after a while.
        tokio::select! {
            Some(event) = namespaces.next() => if let Ok(event) = event { of_namespace(event, &mut wanted) },
            Some(event) = maps.next() => if let Ok(event) = event { listed |= of_map(event, &writers.bundle, &mut good) },
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
        if !listed {
            continue;
        }
        for namespace in wanted.difference(&good).cloned().collect::<Vec<_>>() {
            match write(writers, &namespace).await {
                Ok(()) => {
                    good.insert(namespace);
                }
                Err(error) => tracing::debug!(namespace, %error, "the root certificate could not be written"),
            }
        }
    }
}

fn of_namespace(event: Event<Namespace>, wanted: &mut BTreeSet<String>) {
    match event {
        Event::Apply(namespace) | Event::InitApply(namespace) => {
            let name = namespace.name_any();
            if namespace.metadata.deletion_timestamp.is_some() || LEFT_OUT.contains(&name.as_str()) {
                wanted.remove(&name);
            } else {
                wanted.insert(name);
            }
        }
        Event::Delete(namespace) => {
            wanted.remove(&namespace.name_any());
        }
        Event::Init => wanted.clear(),
        Event::InitDone => {}
    }
}

/// Whether all have been told.
fn of_map(event: Event<ConfigMap>, bundle: &str, good: &mut BTreeSet<String>) -> bool {
    match event {
        Event::Apply(map) | Event::InitApply(map) => {
            let namespace = map.namespace().unwrap_or_default();
            if map.data.as_ref().and_then(|data| data.get(KEY)).is_some_and(|text| text == bundle) {
                good.insert(namespace);
            } else {
                good.remove(&namespace);
            }
        }
        Event::Delete(map) => {
            good.remove(&map.namespace().unwrap_or_default());
        }
        Event::Init => good.clear(),
        Event::InitDone => return true,
    }
    false
}

async fn write(writers: &Writers, namespace: &str) -> Result<(), kube::Error> {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([("istio.io/config".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), writers.bundle.clone())])),
        ..ConfigMap::default()
    };
    let maps: Api<ConfigMap> = Api::namespaced(writers.client.clone(), namespace);
    maps.patch(NAME, &PatchParams::apply("istiod").force(), &Patch::Apply(&map)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(namespace: &str, text: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta { namespace: Some(namespace.into()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_changed_or_removed_certificate_is_wanted_again() {
        let mut good = BTreeSet::new();
        assert!(!of_map(Event::InitApply(map("a", "root")), "root", &mut good));
        assert!(of_map(Event::InitDone, "root", &mut good));
        assert!(good.contains("a"));
        of_map(Event::Apply(map("a", "another")), "root", &mut good);
        assert!(good.is_empty());
        of_map(Event::Apply(map("a", "root")), "root", &mut good);
        of_map(Event::Delete(map("a", "root")), "root", &mut good);
        assert!(good.is_empty());
    }

    #[test]
    fn namespaces_of_the_cluster_itself_and_those_that_end_are_left_out() {
        let namespace = |name: &str| Namespace {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        let mut wanted = BTreeSet::new();
        for name in ["shop", "kube-system"] {
            of_namespace(Event::Apply(namespace(name)), &mut wanted);
        }
        assert_eq!(wanted, BTreeSet::from(["shop".to_owned()]));
        of_namespace(Event::Delete(namespace("shop")), &mut wanted);
        assert!(wanted.is_empty());
    }
}
