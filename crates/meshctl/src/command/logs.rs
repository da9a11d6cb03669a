//! `meshctl logs`: what proxies print, access logs among it, or the control plane, through the API server.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::chart::key;
use crate::cli::LogsArguments;
use crate::cluster::refusal;
use crate::cluster::{Cluster, Log, LogWish};
use crate::workload::{Whose, pods};

/// Container of a proxy.
const PROXY: &str = "istio-proxy";
/// Container of a control plane.
const CONTROL_PLANE: &str = "discovery";
/// Lines that may wait to be printed, of all pods.
const WAITING: usize = 1024;
/// How often somebody who follows a workload looks for pods that have joined it.
const LOOKS: Duration = Duration::from_secs(1);

/// A pod and the container of it that is asked for.
struct Source {
    namespace: String,
    pod: String,
    container: String,
    /// Which start of the container it is; none before the first.
    run: Option<String>,
}

/// Prints lines until there are no more. Who follows a workload also gets the lines of pods that join it and of containers that
/// are started again, until it is stopped or there is no such workload any more.
pub(super) async fn run(cluster: &Cluster, mesh_namespace: &str, arguments: &LogsArguments) -> Result<()> {
    let whose = arguments.of.as_ref().map(|text| Whose::parse(text, &arguments.namespace)).transpose()?;
    let mut sources = sources(cluster, mesh_namespace, whose.as_ref(), arguments).await?;
    let is_pod = whose.as_ref().is_some_and(|whose| sources.iter().all(|source| source.pod == whose.name));
    let joins = arguments.follow && !arguments.previous && !is_pod;
    let several = joins || sources.len() > 1;
    let (lines, mut waiting) = mpsc::channel::<Result<String>>(WAITING);
    let (mut seen, mut looked_before) = (BTreeSet::new(), false);
    let mut wish = LogWish {
        container: String::new(),
        follow: arguments.follow,
        tail: arguments.tail,
        since: arguments.since,
        previous: arguments.previous,
    };
    loop {
        for source in sources {
            // One that was asked too early is asked again when its container runs.
            if (joins && source.run.is_none()) || !seen.insert((source.pod.clone(), source.run)) {
                continue;
            }
            wish.container = source.container;
            match cluster.log(&source.namespace, &source.pod, &wish).await {
                Ok(log) => drop(tokio::spawn(pass_on(log, source.pod, several, lines.clone()))),
                // One that joined may be gone again; the others are still followed.
                Err(error) if looked_before => eprintln!("{}", refusal::told(&error)),
                Err(error) => return Err(error),
            }
        }
        if !joins {
            break;
        }
        // All that a newcomer has printed is new.
        (wish.tail, wish.since, looked_before) = (-1, None, true);
        print_until(&mut waiting, LOOKS).await;
        sources = match self::sources(cluster, mesh_namespace, whose.as_ref(), arguments).await {
            Ok(sources) => sources,
            // Nobody reads a log any more, so that nothing is lost by ending.
            Err(error) if lines.strong_count() == 1 => return Err(error),
            Err(_) => Vec::new(),
        };
    }
    drop(lines);
    while let Some(line) = waiting.recv().await {
        print(line);
    }
    Ok(())
}

/// Prints what comes in that time.
async fn print_until(waiting: &mut mpsc::Receiver<Result<String>>, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while let Ok(Some(line)) = tokio::time::timeout_at(end, waiting.recv()).await {
        print(line);
    }
}

fn print(line: Result<String>) {
    match line {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("{}", refusal::told(&error)),
    }
}

/// Hands on lines, with the name of their pod where there are several, until the log ends.
async fn pass_on(mut log: Log, pod: String, several: bool, lines: mpsc::Sender<Result<String>>) {
    let mark = if several { format!("[{pod}] ") } else { String::new() };
    loop {
        let line = match log.next().await {
            Ok(Some(line)) => Ok(format!("{mark}{line}")),
            Ok(None) => return,
            Err(error) => Err(error.context(format!("the log of {pod} broke off"))),
        };
        let ends = line.is_err();
        if lines.send(line).await.is_err() || ends {
            return;
        }
    }
}

async fn sources(
    cluster: &Cluster,
    mesh_namespace: &str,
    whose: Option<&Whose>,
    arguments: &LogsArguments,
) -> Result<Vec<Source>> {
    match whose {
        Some(whose) => of_workload(cluster, whose, arguments).await,
        None => of_control_plane(cluster, mesh_namespace, arguments).await,
    }
}

async fn of_workload(cluster: &Cluster, whose: &Whose, arguments: &LogsArguments) -> Result<Vec<Source>> {
    let pods = pods(cluster, whose).await?;
    let wanted = arguments.container.as_deref().unwrap_or(PROXY);
    let of = |pod: &Value| {
        let (_, namespace, name) = key(pod);
        Source { namespace, pod: name, container: wanted.to_owned(), run: run_of(pod, wanted) }
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
    let source = |pod: &Value| Source {
        namespace: namespace.to_owned(),
        pod: key(pod).2,
        container: container.clone(),
        run: run_of(pod, &container),
    };
    Ok(pods.iter().map(source).collect())
}

fn has_container(pod: &Value, name: &str) -> bool {
    // A native sidecar is an init container that stays.
    let all = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
    all.iter().flatten().any(|container| container["name"] == name)
}

/// The identity of a container that runs.
fn run_of(pod: &Value, name: &str) -> Option<String> {
    let all = ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].as_array());
    let mut all = all.into_iter().flatten().flatten();
    let status = all.find(|status| status["name"] == name && status["state"]["running"].is_object())?;
    status["containerID"].as_str().map(str::to_owned)
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

    #[test]
    fn only_containers_that_run_can_be_followed() {
        let status =
            |state| json!({"status": {"initContainerStatuses": [{"name": PROXY, "containerID": "c", "state": state}]}});
        assert_eq!(run_of(&status(json!({"running": {}})), PROXY).as_deref(), Some("c"));
        assert_eq!(run_of(&status(json!({"waiting": {}})), PROXY), None);
        assert_eq!(run_of(&json!({}), PROXY), None);
    }
}
