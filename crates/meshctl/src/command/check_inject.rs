//! `meshctl experimental check-inject`: which injector's webhook takes a pod, and why, by the selectors that the API server goes by.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::chart::key;
use crate::cli::operator::CheckInjectArguments;
use crate::cluster::Cluster;
use crate::install::{REVISION, TAG};
use crate::print::{Format, structured, table};
use crate::workload::{Whose, pods};

const GROUP: &str = "admissionregistration.k8s.io/v1";

type Labels = BTreeMap<String, String>;

/// What there is to say of an injector.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    webhook: String,
    revision: String,
    injected: bool,
    reason: String,
}

pub(super) async fn run(cluster: &Cluster, arguments: &CheckInjectArguments) -> Result<String> {
    let (namespace, labels) = match (&arguments.labels, &arguments.of) {
        (Some(labels), _) => (arguments.namespace.clone(), written(labels)?),
        (None, of) => {
            let whose = Whose::parse(of.as_deref().unwrap_or_default(), &arguments.namespace)?;
            let found = pods(cluster, &whose).await?;
            let pod = found.first().context("it has no pod")?;
            (key(pod).1, labels_of(pod))
        }
    };
    let named = format!("metadata.name={namespace}");
    let found = cluster.list("v1", "Namespace", None, "", &named).await?;
    let of_namespace = labels_of(found.first().with_context(|| format!("there is no namespace {namespace:?}"))?);
    let webhooks = cluster.list(GROUP, "MutatingWebhookConfiguration", None, "app=sidecar-injector", "").await?;
    let rows: Vec<Row> = webhooks.iter().map(|webhook| row(webhook, &of_namespace, &labels)).collect();
    if arguments.output != Format::Table {
        return structured(arguments.output, &rows);
    }
    if rows.is_empty() {
        return Ok("There is no injector: no control plane is installed.\n".to_owned());
    }
    let cells = |row: &Row| {
        let mark = if row.injected { "✔" } else { "✘" };
        vec![row.webhook.clone(), row.revision.clone(), mark.to_owned(), row.reason.clone()]
    };
    Ok(table(&["WEBHOOK", "REVISION", "INJECTED", "REASON"], &rows.iter().map(cells).collect::<Vec<_>>()))
}

/// `a=b,c=d`
fn written(text: &str) -> Result<Labels> {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').with_context(|| format!("{word:?} is not KEY=VALUE"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    text.split(',').filter(|word| !word.trim().is_empty()).map(pair).collect()
}

fn labels_of(object: &Value) -> Labels {
    let all = object["metadata"]["labels"].as_object().into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn row(webhook: &Value, namespace: &Labels, pod: &Labels) -> Row {
    let hooks = || webhook["webhooks"].as_array().into_iter().flatten();
    let label = |name: &str| webhook["metadata"]["labels"][name].as_str().map(str::to_owned);
    let taken =
        hooks().find(|hook| selects(&hook["namespaceSelector"], namespace) && selects(&hook["objectSelector"], pod));
    let reason = match taken {
        Some(hook) => because(hook, namespace, pod),
        None if hooks().all(is_silenced) => "the tag default stands for another revision".to_owned(),
        None => against(namespace, pod, label(TAG).or_else(|| label(REVISION)).as_deref().unwrap_or("default")),
    };
    Row { webhook: key(webhook).2, revision: label(REVISION).unwrap_or_default(), injected: taken.is_some(), reason }
}

fn is_silenced(hook: &Value) -> bool {
    hook["objectSelector"]["matchLabels"]["istio.io/deactivated"].is_string()
}

/// The labels that the hook's selectors name and that are there.
fn because(hook: &Value, namespace: &Labels, pod: &Labels) -> String {
    let named = |selector: &str, labels: &Labels, whose: &str| {
        let expressions = hook[selector]["matchExpressions"].as_array().into_iter().flatten();
        let keys = expressions.filter(|one| one["operator"] == "In").filter_map(|one| one["key"].as_str());
        let present = keys.filter_map(|key| Some(format!("{whose} label {key}={}", labels.get(key)?)));
        present.collect::<Vec<_>>()
    };
    let told = [named("namespaceSelector", namespace, "namespace"), named("objectSelector", pod, "pod")].concat();
    if told.is_empty() { "pods that say nothing are injected".to_owned() } else { told.join(", ") }
}

/// Why no hook takes it: the first thing that stands against it.
fn against(namespace: &Labels, pod: &Labels, revision: &str) -> String {
    if let Some(value) = pod.get("sidecar.istio.io/inject").filter(|value| *value == "false") {
        return format!("the pod's label sidecar.istio.io/inject={value} says no");
    }
    if let Some(value) = namespace.get("istio-injection").filter(|value| *value != "enabled") {
        return format!("the namespace's label istio-injection={value} says no");
    }
    if namespace.contains_key("istio-injection") {
        return "the namespace's label istio-injection=enabled asks for the default revision".to_owned();
    }
    match namespace.get(REVISION).map(|value| ("namespace", value)).or(pod.get(REVISION).map(|value| ("pod", value))) {
        Some((whose, value)) => {
            format!("the {whose}'s label {REVISION}={value} asks for another revision than {revision}")
        }
        None => "neither the namespace nor the pod has a label that asks for it".to_owned(),
    }
}

/// Whether a label selector of Kubernetes takes these labels; an empty one takes all.
fn selects(selector: &Value, labels: &Labels) -> bool {
    let pairs = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    pairs.into_iter().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str())
        && expressions.all(|one| {
            let value = labels.get(one["key"].as_str().unwrap_or_default());
            let listed = || {
                let mut values = one["values"].as_array().into_iter().flatten();
                value.is_some_and(|value| values.any(|other| other == value))
            };
            match one["operator"].as_str() {
                Some("In") => listed(),
                Some("NotIn") => !listed(),
                Some("Exists") => value.is_some(),
                Some("DoesNotExist") => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart;

    /// The injector that the chart makes.
    fn injector(revision: &str) -> Value {
        let values = serde_json::json!({"revision": revision});
        let all = chart::render("istiod", "istiod", "istio-system", &values).unwrap();
        all.into_iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap()
    }

    #[test]
    fn the_hook_that_takes_a_pod_is_found_and_why() {
        let labels = |text: &str| written(text).unwrap();
        for (revision, namespace, pod, injected, reason) in [
            ("", "istio-injection=enabled", "", true, "namespace label istio-injection=enabled"),
            ("", "istio-injection=enabled", "sidecar.istio.io/inject=false", false, "inject=false says no"),
            ("", "istio-injection=disabled", "sidecar.istio.io/inject=true", false, "istio-injection=disabled says no"),
            ("", "", "sidecar.istio.io/inject=true", true, "pod label sidecar.istio.io/inject=true"),
            ("", "", "", false, "neither"),
            ("canary", "istio-injection=enabled", "", false, "asks for the default revision"),
            ("canary", "istio.io/rev=canary", "", true, "namespace label istio.io/rev=canary"),
            ("canary", "", "istio.io/rev=canary", true, "pod label istio.io/rev=canary"),
            ("canary", "istio.io/rev=other", "", false, "another revision than canary"),
        ] {
            let row = row(&injector(revision), &labels(namespace), &labels(pod));
            assert_eq!(row.injected, injected, "{revision} {namespace} {pod}: {row:?}");
            assert!(row.reason.contains(reason), "{row:?}");
        }
        assert!(written("a").is_err());
    }

    #[test]
    fn an_injector_that_is_silenced_is_told() {
        let mut silenced = injector("");
        crate::command::tag::own::set(&mut silenced, false);
        let row = row(&silenced, &written("istio-injection=enabled").unwrap(), &Labels::new());
        assert_eq!((row.injected, row.reason.as_str()), (false, "the tag default stands for another revision"));
    }
}
