//! Addresses that the mesh gives to hosts of ServiceEntries, in `status.addresses` (Istio's IP auto-allocation): there they outlive
//! this process, and another control plane finds the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use api::object::ObjectKey;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use plan::Snapshot;
use serde_json::{Value, json};

use super::{Unnamed, Writers, resource};

/// Pause after a write that failed, and between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Follows the configuration, and writes what an object does not say yet.
pub(super) async fn keep(writers: &Writers, mut default: Unnamed) -> Result<()> {
    let mut published = writers.published.clone();
    loop {
        let now = published.borrow_and_update().clone();
        let mut again = false;
        if let Some(now) = now {
            let own = |key: &ObjectKey| now.world.object(key).filter(|object| default.writes(object));
            let due = due(&now.snapshot, |key| own(key).map(|object| object.raw["status"].clone()));
            for (key, addresses) in due {
                if let Err(error) = write(writers, &key, &addresses).await {
                    tracing::debug!(object = %key, "its addresses could not be written, is tried again: {error:#}");
                    again = true;
                }
            }
        }
        if !again {
            tokio::select! {
                changed = published.changed() => changed.context("nobody publishes")?,
                changed = default.changed() => changed?,
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Objects whose status says something else than is planned, with what it should say.
fn due(snapshot: &Snapshot, status: impl Fn(&ObjectKey) -> Option<Value>) -> BTreeMap<ObjectKey, Value> {
    let wanted = snapshot.allocated().filter(|(_, hosts)| !hosts.is_empty());
    wanted
        .filter_map(|(key, hosts)| {
            let addresses = addresses(hosts);
            (status(key)?["addresses"] != addresses).then(|| (key.clone(), addresses))
        })
        .collect()
}

fn addresses(hosts: &[(String, Vec<IpAddr>)]) -> Value {
    let one = |(host, addresses): &(String, Vec<IpAddr>)| {
        addresses.iter().map(|address| json!({"value": address.to_string(), "host": host})).collect::<Vec<_>>()
    };
    hosts.iter().flat_map(one).collect()
}

async fn write(writers: &Writers, key: &ObjectKey, addresses: &Value) -> Result<()> {
    let api: Api<DynamicObject> = Api::namespaced_with(writers.client.clone(), &key.namespace, &resource(key.kind));
    let Some(object) = api.get_opt(&key.name).await? else { return Ok(()) };
    if object.data["status"]["addresses"] == *addresses {
        return Ok(());
    }
    // The version makes it fail if somebody else wrote meanwhile: the list is replaced as a whole.
    let patch = json!({"metadata": {"resourceVersion": object.resource_version()}, "status": {"addresses": addresses}});
    let by = PatchParams { field_manager: Some("istiod".to_owned()), ..PatchParams::default() };
    match api.patch_status(&key.name, &by, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use api::mesh_config::MeshConfig;
    use plan::{Change, World};

    use super::*;

    #[test]
    fn an_address_is_written_once_and_put_back() {
        let object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"hosts": ["a.example.com"], "resolution": "DNS", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]},
        });
        let mut world = World::new(MeshConfig::default(), "cluster.local");
        for object in api::decode::object(&object, "", "shop").objects {
            world.apply(Change::Upsert(Box::new(object)));
        }
        let snapshot = Snapshot::build(&world, None);
        let told = due(&snapshot, |_| Some(Value::Null));
        let [(key, addresses)] = told.iter().collect::<Vec<_>>()[..] else { panic!("{told:?}") };
        assert_eq!((key.name.as_str(), addresses[0]["host"].as_str()), ("a", Some("a.example.com")));
        assert_eq!(addresses.as_array().map(Vec::len), Some(2));
        assert!(due(&snapshot, |_| Some(json!({"addresses": addresses}))).is_empty());
        assert!(!due(&snapshot, |_| Some(json!({"addresses": []}))).is_empty());
    }
}
