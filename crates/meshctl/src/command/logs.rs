//! `meshctl logs`: what proxies print, access logs among it, or the control plane, through the API server.

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::chart::key;
use crate::cli::LogsArguments;
use crate::cluster::{Cluster, LogWish};
use crate::workload::{Whose, pods};

/// Container of a proxy.
const PROXY: &str = "istio-proxy";
/// Container of a control plane.
const CONTROL_PLANE: &str = "discovery";
/// Lines that may wait to be printed, of all pods.
const WAITING: usize = 1024;
/// A pod and the container of it that is asked for.
struct Source {
    namespace: String,
    pod: String,
    container: String,
}

/// Prints lines until there are no more; with `--follow`, until it is stopped or the pods have gone.
pub(super) async fn run(cluster: &Cluster, mesh_namespace: &str, arguments: &LogsArguments) -> Result<()> {
    let sources = match &arguments.of {
        Some(text) => of_workload(cluster, &Whose::parse(text, &arguments.namespace)?, arguments).await?,
        None => of_control_plane(cluster, mesh_namespace, arguments).await?,
    };
    let several = sources.len() > 1;
    let (lines, mut waiting) = mpsc::channel::<Result<String>>(WAITING);
    for source in sources {
        let wish = LogWish {
            container: source.container,
            follow: arguments.follow,
            tail: arguments.tail,
            since: arguments.since,
            previous: arguments.previous,
        };
        let mut log = cluster.log(&source.namespace, &source.pod, &wish).await?;
        let (lines, mark) = (lines.clone(), if several { format!("[{}] ", source.pod) } else { String::new() });
        tokio::spawn(async move {
            loop {
                let line = match log.next().await {
                    Ok(Some(line)) => Ok(format!("{mark}{line}")),
                    Ok(None) => return,
                    Err(error) => Err(error.context(format!("the log of {} broke off", source.pod))),
                };
                let ends = line.is_err();
                if lines.send(line).await.is_err() || ends {
                    return;
                }
            }
        });
    }
    drop(lines);
    while let Some(line) = waiting.recv().await {
        match line {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
    Ok(())
}

async fn of_workload(cluster: &Cluster, whose: &Whose, arguments: &LogsArguments) -> Result<Vec<Source>> {
    let pods = pods(cluster, whose).await?;
    let wanted = arguments.container.as_deref().unwrap_or(PROXY);
    let of = |pod: &Value| {
        let (_, namespace, name) = key(pod);
        Source { namespace, pod: name, container: wanted.to_owned() }
    };
    let with: Vec<Source> = pods.iter().filter(|pod| has_container(pod, wanted)).map(of).collect();
    if with.is_empty() {
        bail!("{} in {}: none of its {} pods has a container {wanted}", whose.name, whose.namespace, pods.len());
    }
    Ok(with)
}

async fn of_control_plane(cluster: &Cluster, namespace: &str, arguments: &LogsArguments) -> Result<Vec<Source>> {
    let pods = cluster.list("v1", "Pod", Some(namespace), "app=istiod", "").await?;
    if pods.is_empty() {
        bail!("there is no control plane in {namespace}; name a workload for the log of its proxies");
    }
    let container = arguments.container.clone().unwrap_or_else(|| CONTROL_PLANE.to_owned());
    let source =
        |pod: &Value| Source { namespace: namespace.to_owned(), pod: key(pod).2, container: container.clone() };
    Ok(pods.iter().map(source).collect())
}

fn has_container(pod: &Value, name: &str) -> bool {
    // A native sidecar is an init container that stays.
    let all = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
    all.iter().flatten().any(|container| container["name"] == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sidecars_are_found_among_init_containers() {
        let pod = json!({"spec": {"containers": [{"name": "web"}], "initContainers": [{"name": "istio-proxy"}]}});
        assert!(has_container(&pod, PROXY) && has_container(&pod, "web") && !has_container(&pod, "x"));
    }
}
