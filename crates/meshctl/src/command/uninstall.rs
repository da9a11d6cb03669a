//! `meshctl uninstall`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::install::{KINDS, confirm};
use crate::cli::UninstallArguments;
use crate::cluster::{Cluster, place};
use crate::install::{OWNED, OWNER, REVISION};
use crate::print::Progress;

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
    if arguments.purge {
        found.extend(of_everybody(cluster, namespace).await?);
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
            let (kind, namespace, name) = crate::chart::key(object);
            println!("- {kind} {}", place(&namespace, &name));
        }
        println!("nothing was changed (--dry-run)");
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.skip_confirmation && !confirm(&question)? {
        return Ok(ExitCode::FAILURE);
    }
    let mut progress = Progress::start("uninstall");
    let mut gone = 0;
    for object in &found {
        let (kind, namespace, name) = crate::chart::key(object);
        progress.tell(&format!("{kind} {}", place(&namespace, &name)));
        gone += usize::from(cluster.delete(object).await?);
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
    println!("Pods that have a sidecar keep it until they are restarted.");
    Ok(ExitCode::SUCCESS)
}

fn of(arguments: &UninstallArguments, revision: &str) -> String {
    if arguments.purge { String::new() } else { format!(" of revision {revision}") }
}

/// What belongs to no revision: kinds, certificates, the lease, and namespaces that an installation made.
async fn of_everybody(cluster: &Cluster, namespace: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    let kinds = cluster.list("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, "", "").await?;
    found.extend(kinds.into_iter().filter(|kind| {
        let group = kind["spec"]["group"].as_str().unwrap_or_default();
        matches!(group.strip_suffix(".istio.io"), Some("networking" | "security" | "telemetry" | "extensions"))
    }));
    let named = format!("metadata.name={ROOT_CERTIFICATE}");
    found.extend(cluster.list("v1", "ConfigMap", None, "", &named).await?);
    let key =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "istio-ca-secret", "namespace": namespace}});
    found.extend(cluster.get(&key).await?.map(|_| key));
    // One for each revision, those that are gone too.
    let leases = cluster.list("coordination.k8s.io/v1", "Lease", Some(namespace), "", "").await?;
    let ours = |lease: &Value| {
        let name = lease["metadata"]["name"].as_str().and_then(|name| name.strip_prefix("istio-leader"));
        name.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    found.extend(leases.into_iter().filter(ours));
    found.extend(cluster.list("v1", "Namespace", None, &format!("{OWNED}={OWNER}"), "").await?);
    Ok(found)
}
