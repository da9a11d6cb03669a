//! Pods by the names that users have for them: their own, or that of the workload or service that they belong to.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::Cluster;

/// What pods are made by, with the words that kubectl takes for them.
const KINDS: [(&str, &str, &[&str]); 6] = [
    ("apps/v1", "Deployment", &["deployment", "deployments", "deploy"]),
    ("apps/v1", "StatefulSet", &["statefulset", "statefulsets", "sts"]),
    ("apps/v1", "DaemonSet", &["daemonset", "daemonsets", "ds"]),
    ("apps/v1", "ReplicaSet", &["replicaset", "replicasets", "rs"]),
    ("batch/v1", "Job", &["job", "jobs"]),
    ("v1", "Service", &["service", "services", "svc"]),
];

/// A pod, or what makes pods, as users name it.
#[derive(Debug, PartialEq, Eq)]
pub struct Whose {
    /// The kind, if it was said.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl Whose {
    /// `NAME`, `NAME.NAMESPACE`, `KIND/NAME`.
    ///
    /// # Errors
    /// The kind has no pods.
    pub fn parse(text: &str, namespace: &str) -> Result<Whose> {
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

/// The pods of that name, or those that a workload or service of that name selects.
///
/// # Errors
/// There is nothing of that name, or it has no pods.
pub async fn pods(cluster: &Cluster, whose: &Whose) -> Result<Vec<Value>> {
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
}
