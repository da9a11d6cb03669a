//! What injection goes by, read anew whenever the ConfigMap `istio-sidecar-injector` or the mesh-wide settings change. Settings
//! that cannot be read leave the last good ones in effect.

use std::sync::Arc;

use api::mesh_config::MeshConfig;
use api::object::{Body, Kind, ObjectKey};
use plan::inject::{ClusterFacts, Settings};
use tokio::sync::watch;

use crate::state::Published;

/// Follows the configuration for ever.
pub async fn follow(
    mut published: watch::Receiver<Option<Published>>,
    root_namespace: String,
    cluster: ClusterFacts,
    settings: watch::Sender<Option<Arc<Settings>>>,
) {
    let suffix = if cluster.revision.is_empty() { String::new() } else { format!("-{}", cluster.revision) };
    let key =
        ObjectKey { kind: Kind::ConfigMap, namespace: root_namespace, name: format!("istio-sidecar-injector{suffix}") };
    let mut taken: Option<(String, String, MeshConfig)> = None;
    while published.changed().await.is_ok() {
        let Some(now) = published.borrow_and_update().clone() else { continue };
        let map = now.world.object(&key).and_then(|object| match &object.body {
            Body::ConfigMap(map) => Some(map.data.clone()),
            _ => None,
        });
        let mut map = map.unwrap_or_default();
        let mut text = |key: &str| map.remove(key).unwrap_or_default();
        let given = (text("config"), text("values"), now.world.mesh().clone());
        if taken.as_ref() == Some(&given) {
            continue;
        }
        match Settings::new(&given.0, &given.1, given.2.clone(), cluster.clone()) {
            Ok(read) => {
                for problem in read.problems() {
                    tracing::warn!("{problem}");
                }
                settings.send_replace(Some(Arc::new(read)));
            }
            Err(sentence) => tracing::error!("{sentence} The last good settings stay in effect."),
        }
        taken = Some(given);
    }
}
