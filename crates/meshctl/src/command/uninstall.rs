//! `meshctl uninstall`.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::install::{KINDS, confirm};
use super::tag::own;
use crate::chart::key;
use crate::cli::UninstallArguments;
use crate::cluster::{Cluster, place};
use crate::install::{DEFAULT, OWNED, OWNER, REVISION, TAG};
use crate::print::Progress;

/// How long nodes may take to be cleaned.
const NODES: Duration = Duration::from_secs(60);
/// Root certificate in every namespace, and what the control plane keeps of its own.
const ROOT_CERTIFICATE: &str = "istio-ca-root-cert";

/// Takes an installation away.
pub(super) async fn run(cluster: &Cluster, namespace: &str, arguments: &UninstallArguments) -> Result<ExitCode> {
    cluster.version().await?;
    let revision = arguments.revision.clone().unwrap_or_else(|| "default".to_owned());
    let selector =
        if arguments.purge { format!("{OWNED}={OWNER}") } else { format!("{OWNED}={OWNER},{REVISION}={revision}") };
    let mut found = Vec::new();
    for (version, kind) in KINDS {
        found.extend(cluster.list(version, kind, None, &selector, "").await?);
    }
    let mut kept = Vec::new();
    if arguments.purge {
        found.extend(of_everybody(cluster, namespace).await?);
        for place in cluster.list("v1", "Namespace", None, &format!("{OWNED}={OWNER}"), "").await? {
            let (_, _, name) = key(&place);
            match foreign(cluster, &name, &found).await? {
                others if others.is_empty() => found.push(place),
                others => kept.push(format!(
                    "The namespace {name} stays: it has {}, which no installation made.",
                    others.join(", ")
                )),
            }
        }
    }
    if found.is_empty() {
        println!("There is nothing to take away: no installation{} was found.", of(arguments, &revision));
        return Ok(ExitCode::SUCCESS);
    }
    let question = if arguments.purge {
        format!(
            "This takes away every control plane and gateway of {}, the kinds of objects with all objects of them, and the root certificate ({} objects).",
            cluster.server,
            found.len()
        )
    } else {
        format!(
            "This takes away the control plane and the gateways of revision {revision} ({} objects). Kinds, your objects and the root's Secret stay; --purge takes them too.",
            found.len()
        )
    };
    if arguments.dry_run {
        for object in &found {
            let (kind, namespace, name) = key(object);
            println!("- {kind} {}", place(&namespace, &name));
        }
        kept.iter().for_each(|kept| println!("{kept}"));
        println!("nothing was changed (--dry-run)");
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.skip_confirmation && !confirm(&question)? {
        return Ok(ExitCode::FAILURE);
    }
    let mut progress = Progress::start("uninstall");
    let mut gone = 0;
    // Who names no revision goes back to the revision without a name, if that stays.
    let is_default = |object: &Value| object["metadata"]["labels"][TAG] == DEFAULT;
    if !arguments.purge && revision != DEFAULT && found.iter().any(is_default) {
        own::switch(cluster, true).await?;
    }
    for object in &found {
        let (kind, namespace, name) = key(object);
        progress.tell(&format!("{kind} {}", place(&namespace, &name)));
        gone += usize::from(cluster.delete(object).await?);
        // What its pods clean up takes the rights that go next.
        let deadline = Instant::now() + NODES;
        while kind == "DaemonSet" && cluster.get(object).await?.is_some() {
            if Instant::now() > deadline {
                kept.push(format!(
                    "DaemonSet {} still ends on some node, which is cleaned when its pod there ends.",
                    place(&namespace, &name)
                ));
                break;
            }
            progress.tell(&format!("{name} ends on each node"));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    for object in &found {
        while matches!(object["kind"].as_str(), Some("Deployment" | "Namespace"))
            && cluster.get(object).await?.is_some()
        {
            progress.tell(&format!("{} ends", object["metadata"]["name"].as_str().unwrap_or_default()));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    progress.done(&format!("{gone} objects are gone"));
    kept.iter().for_each(|kept| println!("{kept}"));
    println!("Pods that have a sidecar keep it until they are restarted.");
    Ok(ExitCode::SUCCESS)
}

fn of(arguments: &UninstallArguments, revision: &str) -> String {
    if arguments.purge { String::new() } else { format!(" of revision {revision}") }
}

/// What is in a namespace beside what is taken away, and beside what Kubernetes puts there by itself.
async fn foreign(cluster: &Cluster, namespace: &str, taken: &[Value]) -> Result<Vec<String>> {
    let keys: BTreeSet<_> = taken.iter().map(key).collect();
    let stays = |object: &&Value| !keys.contains(&key(object)) && !goes_with_its_kind(object, taken);
    let all = cluster.contents(namespace).await?;
    let others = all.iter().filter(stays).filter(|object| !comes_by_itself(object));
    Ok(others.map(|object| format!("{} {}", object["kind"].as_str().unwrap_or_default(), key(object).2)).collect())
}

/// Whether the kind of the object is taken away, and the object with it.
fn goes_with_its_kind(object: &Value, taken: &[Value]) -> bool {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let mut kinds = taken.iter().filter(|object| object["kind"] == "CustomResourceDefinition");
    kinds.any(|kind| kind["spec"]["group"] == group && kind["spec"]["names"]["kind"] == object["kind"])
}

/// Pods of Deployments and the like go with them; some objects are made for each namespace, service or event.
fn comes_by_itself(object: &Value) -> bool {
    let is_owned = object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    let of_each_namespace = match object["kind"].as_str().unwrap_or_default() {
        "ConfigMap" => object["metadata"]["name"] == "kube-root-ca.crt",
        "ServiceAccount" => object["metadata"]["name"] == "default",
        "Secret" => object["type"] == "kubernetes.io/service-account-token",
        "Event" | "Endpoints" | "PodMetrics" => true,
        _ => false,
    };
    is_owned || of_each_namespace
}

/// What belongs to no revision: kinds, certificates and the lease.
async fn of_everybody(cluster: &Cluster, namespace: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    // Kinds that were there before belong to whoever brought them.
    let selector = format!("{OWNED}={OWNER}");
    found.extend(cluster.list("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, &selector, "").await?);
    let named = format!("metadata.name={ROOT_CERTIFICATE}");
    found.extend(cluster.list("v1", "ConfigMap", None, "", &named).await?);
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "istio-ca-secret", "namespace": namespace}});
    found.extend(cluster.get(&secret).await?.map(|_| secret));
    // One for each revision, those that are gone too.
    let leases = cluster.list("coordination.k8s.io/v1", "Lease", Some(namespace), "", "").await?;
    let ours = |lease: &Value| {
        let name = lease["metadata"]["name"].as_str().and_then(|name| name.strip_prefix("istio-leader"));
        name.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    found.extend(leases.into_iter().filter(ours));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_made_is_told_from_what_comes_by_itself() {
        let object = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name}});
        for (kind, name) in
            [("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default"), ("Event", "a"), ("Endpoints", "istiod")]
        {
            assert!(comes_by_itself(&object(kind, name)), "{kind} {name}");
        }
        for (kind, name) in [("ConfigMap", "a"), ("ServiceAccount", "kiali"), ("Secret", "cacerts"), ("Ingress", "a")] {
            assert!(!comes_by_itself(&object(kind, name)), "{kind} {name}");
        }
        let mut pod = object("Pod", "a");
        assert!(!comes_by_itself(&pod));
        pod["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet"}]);
        assert!(comes_by_itself(&pod));
    }

    #[test]
    fn only_objects_of_that_very_kind_go_with_it() {
        let kind = json!({
            "kind": "CustomResourceDefinition",
            "spec": {"group": "networking.istio.io", "names": {"kind": "Gateway"}},
        });
        let gateway = |version: &str| json!({"apiVersion": version, "kind": "Gateway"});
        let taken = [kind];
        assert!(goes_with_its_kind(&gateway("networking.istio.io/v1"), &taken));
        assert!(!goes_with_its_kind(&gateway("gateway.networking.k8s.io/v1"), &taken));
        assert!(!goes_with_its_kind(&json!({"apiVersion": "v1", "kind": "Secret"}), &taken));
        assert!(!goes_with_its_kind(&gateway("networking.istio.io/v1"), &[]));
    }
}
