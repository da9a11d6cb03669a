//! `meshctl logs`: what proxies print, access logs among it, or the control plane, through the API server.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::chart::key;
use crate::cli::LogsArguments;
use crate::cluster::{Cluster, LogWish};

/// Container of a proxy.
const PROXY: &str = "istio-proxy";
/// Container of a control plane.
const CONTROL_PLANE: &str = "discovery";
/// Lines that may wait to be printed, of all pods.
const WAITING: usize = 1024;
/// What pods are made by, with the words that kubectl takes for them.
const KINDS: [(&str, &str, &[&str]); 6] = [
    ("apps/v1", "Deployment", &["deployment", "deployments", "deploy"]),
    ("apps/v1", "StatefulSet", &["statefulset", "statefulsets", "sts"]),
    ("apps/v1", "DaemonSet", &["daemonset", "daemonsets", "ds"]),
    ("apps/v1", "ReplicaSet", &["replicaset", "replicasets", "rs"]),
    ("batch/v1", "Job", &["job", "jobs"]),
    ("v1", "Service", &["service", "services", "svc"]),
];

/// Whose log.
#[derive(Debug, PartialEq, Eq)]
struct Whose {
    /// The kind, if it was said.
    kind: Option<String>,
    name: String,
    namespace: String,
}

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

impl Whose {
    /// `NAME`, `NAME.NAMESPACE`, `KIND/NAME`.
    fn parse(text: &str, namespace: &str) -> Result<Whose> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (Some(kind.to_ascii_lowercase()), name),
            None => (None, text),
        };
        let (name, namespace) = name.split_once('.').unwrap_or((name, namespace));
        let is_known = |kind: &str| is_pod(kind) || KINDS.iter().any(|(_, _, words)| words.contains(&kind));
        if let Some(kind) = kind.as_deref().filter(|kind| !is_known(kind)) {
            let known: Vec<&str> = KINDS.iter().map(|(_, _, words)| words[0]).collect();
            bail!("{kind} is not a kind that has pods: pod, {}", known.join(", "));
        }
        Ok(Whose { kind, name: name.to_owned(), namespace: namespace.to_owned() })
    }
}

fn is_pod(word: &str) -> bool {
    ["pod", "pods", "po"].contains(&word)
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

/// The pods of that name, or those that a workload or service of that name selects.
async fn pods(cluster: &Cluster, whose: &Whose) -> Result<Vec<Value>> {
    let namespace = Some(whose.namespace.as_str());
    let by_name = format!("metadata.name={}", whose.name);
    if whose.kind.as_deref().is_none_or(is_pod) {
        let found = cluster.list("v1", "Pod", namespace, "", &by_name).await?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    for (version, kind, words) in KINDS {
        if whose.kind.as_deref().is_some_and(|word| !words.contains(&word)) {
            continue;
        }
        let found = cluster.list(version, kind, namespace, "", &by_name).await?;
        let Some(labels) = found.first().map(selector) else { continue };
        let labels = labels.with_context(|| format!("{kind} {} selects no pods", whose.name))?;
        let pods = cluster.list("v1", "Pod", namespace, &labels, "").await?;
        if pods.is_empty() {
            bail!("{kind} {} in {} has no pods", whose.name, whose.namespace);
        }
        return Ok(pods);
    }
    bail!("there is no pod or workload {:?} in the namespace {}", whose.name, whose.namespace)
}

/// Labels of the pods that an object selects, as a query has them.
fn selector(object: &Value) -> Option<String> {
    let selector = &object["spec"]["selector"];
    let labels = if selector["matchLabels"].is_object() { &selector["matchLabels"] } else { selector };
    let labels: BTreeMap<&str, &str> =
        labels.as_object()?.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect();
    (!labels.is_empty())
        .then(|| labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
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
    fn names_are_read_as_kubectl_and_istioctl_write_them() {
        let of = |text: &str| Whose::parse(text, "default").map(|it| (it.kind, it.name, it.namespace));
        let is = |kind: Option<&str>, name: &str, namespace: &str| {
            (kind.map(str::to_owned), name.to_owned(), namespace.to_owned())
        };
        assert_eq!(of("user").unwrap(), is(None, "user", "default"));
        assert_eq!(of("user.shop").unwrap(), is(None, "user", "shop"));
        assert_eq!(of("Deploy/user.shop").unwrap(), is(Some("deploy"), "user", "shop"));
        assert!(of("secret/x").unwrap_err().to_string().contains("secret"));
    }

    #[test]
    fn selectors_of_workloads_and_services_are_one() {
        let deployment = json!({"spec": {"selector": {"matchLabels": {"b": "2", "a": "1"}}}});
        assert_eq!(selector(&deployment).unwrap(), "a=1,b=2");
        assert_eq!(selector(&json!({"spec": {"selector": {"a": "1"}}})).unwrap(), "a=1");
        assert_eq!(selector(&json!({"spec": {}})), None);
    }

    #[test]
    fn sidecars_are_found_among_init_containers() {
        let pod = json!({"spec": {"containers": [{"name": "web"}], "initContainers": [{"name": "istio-proxy"}]}});
        assert!(has_container(&pod, PROXY) && has_container(&pod, "web") && !has_container(&pod, "x"));
    }
}
