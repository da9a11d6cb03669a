//! `meshctl inject`: pods in manifests get their proxy, by the same code as in the control plane's webhook. All else passes as it
//! is written.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use api::decode;
use api::mesh_config::MeshConfig;
use api::problem::Severity;
use plan::inject::{ClusterFacts, Context, Outcome, Owner, Settings, inject};
use serde_json::{Map, Value, json};

use crate::cli::InjectArguments;

pub(super) fn run(arguments: &InjectArguments) -> Result<()> {
    let settings = settings(arguments)?;
    for problem in settings.problems() {
        eprintln!("{problem}");
    }
    let mut out = String::new();
    for file in &arguments.files {
        let text = read(file)?;
        manifests(&text, &name(file), &arguments.namespace, &settings, &mut out)?;
    }
    match &arguments.output {
        Some(file) => std::fs::write(file, out).with_context(|| format!("{} cannot be written", file.display())),
        None => std::io::stdout().write_all(out.as_bytes()).context("standard output cannot be written"),
    }
}

fn name(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).context("standard input cannot be read")?;
        return Ok(text);
    }
    std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))
}

fn settings(arguments: &InjectArguments) -> Result<Settings> {
    let text = |file: &Option<std::path::PathBuf>| match file {
        Some(file) => Ok(String::from_utf8_lossy(&read(file)?).into_owned()),
        None => Ok::<_, anyhow::Error>(String::new()),
    };
    let (mut config, mut values) = (text(&arguments.inject_config)?, text(&arguments.values)?);
    if let Some(file) = &arguments.inject_config {
        let documents =
            decode::plain_documents(config.as_bytes(), &name(file)).map_err(|problem| anyhow::anyhow!("{problem}"))?;
        let map = documents
            .iter()
            .find(|document| document.value["kind"] == "ConfigMap")
            .map(|map| map.value["data"].clone());
        if let Some(data) = map {
            let key = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
            if values.is_empty() {
                values = key("values");
            }
            config = key("config");
        }
    }
    let (mesh, problems) = match &arguments.mesh_config {
        Some(file) => MeshConfig::parse(&text(&arguments.mesh_config)?, &name(file)),
        None => (MeshConfig::default(), Vec::new()),
    };
    for problem in &problems {
        if problem.severity == Severity::Error {
            bail!("{problem}");
        }
        eprintln!("{problem}");
    }
    let facts = ClusterFacts {
        revision: arguments.revision.clone(),
        native_sidecars: arguments.native_sidecars,
        ..ClusterFacts::default()
    };
    Settings::new(&config, &values, mesh, facts).map_err(anyhow::Error::msg)
}

/// The documents of one file, in their order.
fn manifests(text: &[u8], file: &str, namespace: &str, settings: &Settings, out: &mut String) -> Result<()> {
    for document in decode::plain_documents(text, file).map_err(|problem| anyhow::anyhow!("{problem}"))? {
        if document.value.is_null() {
            continue;
        }
        let mut value = document.value.clone();
        let place = format!("{file}:{}", document.line + blank_lines(document.text));
        let changed = object(&mut value, namespace, settings, &place)?;
        out.push_str("---\n");
        if changed {
            out.push_str(serde_saphyr::to_string(&value)?.trim_end());
        } else {
            // With its comments.
            out.push_str(document.text.trim_matches(['\n', '\r']).trim_end());
        }
        out.push('\n');
    }
    Ok(())
}

/// Lines before a document's first word.
fn blank_lines(text: &str) -> u32 {
    let is_blank = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
    u32::try_from(text.lines().take_while(is_blank).count()).unwrap_or(0)
}

/// Injects what is a pod or makes pods; says whether anything changed.
fn object(value: &mut Value, namespace: &str, settings: &Settings, place: &str) -> Result<bool> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let own = text("/metadata/namespace");
    let namespace = if own.is_empty() { namespace } else { &own };
    if kind == "List" || (kind.ends_with("List") && value["items"].is_array()) {
        let mut changed = false;
        for item in value["items"].as_array_mut().into_iter().flatten() {
            changed |= object(item, namespace, settings, place)?;
        }
        return Ok(changed);
    }
    let Some(pointer) = pod_of(&kind) else { return Ok(false) };
    let Some(template) = value.pointer_mut(pointer) else {
        bail!("{place}: {kind} {name}: {} is missing", pointer.trim_start_matches('/').replace('/', "."));
    };
    // Of a pod by itself, its name and owners tell the workload.
    let owner = (kind != "Pod").then(|| Owner { api_version, kind: kind.clone(), name: name.clone() });
    let mut pod = json!({"metadata": template.get("metadata").filter(|one| !one.is_null()).cloned().unwrap_or_else(|| json!({}))});
    if let Some(spec) = template.get("spec") {
        pod["spec"] = spec.clone();
    }
    let context = Context { namespace: namespace.to_owned(), owner, ..Context::default() };
    match inject(&pod, &context, settings) {
        Outcome::Injected { pod, warnings } => {
            for warning in warnings {
                eprintln!("{place}: {kind} {name}: {warning}");
            }
            let template = as_map(template);
            for part in ["metadata", "spec"] {
                template.insert(part.to_owned(), pod[part].clone());
            }
            Ok(true)
        }
        Outcome::Skipped { reason } => {
            eprintln!("{place}: {kind} {name} is not injected: {reason}");
            Ok(false)
        }
        Outcome::Refused { sentence } => bail!("{place}: {kind} {name}: {sentence}"),
    }
}

/// Where the pod stands in objects of this kind.
fn pod_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "ReplicaSet"
        | "ReplicationController"
        | "DeploymentConfig" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new("", "", MeshConfig::default(), ClusterFacts::default()).unwrap()
    }

    fn injected(text: &str) -> Result<String, String> {
        let mut out = String::new();
        manifests(text.as_bytes(), "a.yaml", "shop", &settings(), &mut out).map_err(|error| error.to_string())?;
        Ok(out)
    }

    const POD: &str = "metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: web}]}";

    #[test]
    fn all_that_makes_pods_is_injected_and_the_rest_stays_as_written() {
        let mut text = "# first\napiVersion: v1\nkind: Service # kept\nmetadata: {name: s}\n".to_owned();
        for kind in ["Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet", "ReplicationController"] {
            text += &format!(
                "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: web}}\nspec: {{template: {{{POD}}}}}\n"
            );
        }
        text += &format!(
            "---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: web}}\nspec: {{jobTemplate: {{spec: {{template: {{{POD}}}}}}}}}\n"
        );
        text += &format!(
            "---\nkind: Pod\nmetadata: {{name: web}}\n{}\n",
            POD.rsplit_once(", spec").map(|(_, spec)| format!("spec{spec}")).unwrap()
        );
        text += &format!(
            "---\nkind: List\nitems:\n- {{kind: ConfigMap}}\n- {{kind: Deployment, apiVersion: apps/v1, metadata: {{name: inner}}, spec: {{template: {{{POD}}}}}}}\n"
        );
        let out = injected(&text).unwrap();
        let documents = decode::plain_documents(out.as_bytes(), "out").unwrap();
        let documents: Vec<&Value> =
            documents.iter().map(|document| &document.value).filter(|value| !value.is_null()).collect();
        assert_eq!(documents.len(), 10, "{out}");
        assert!(out.starts_with("---\n# first\napiVersion: v1\nkind: Service # kept\n"), "{out}");
        assert_eq!(out.matches("image: mesh/proxy").count(), 18, "{out}");
        assert!(out.contains("deployments/inner") && out.contains("namespaces/shop/cronjobs/web"), "{out}");
        // What is injected is injected again to the same.
        assert_eq!(injected(&out).unwrap(), out);
    }

    #[test]
    fn wrong_input_is_told_with_its_line() {
        assert!(injected("a: 1\n---\nb: [\n").unwrap_err().contains("a.yaml:"));
        let annotated = "\n---\nkind: Pod\nmetadata: {name: x, annotations: {sidecar.istio.io/interceptionMode: X}}\nspec: {containers: []}\n";
        let error = injected(annotated).unwrap_err();
        assert!(error.starts_with("a.yaml:3: Pod x: ") && error.contains("interceptionMode"), "{error}");
        assert!(injected("kind: Deployment\nmetadata: {name: d}\n").unwrap_err().contains("spec.template is missing"));
        assert!(injected("kind: Deployment\nspec: {template: {}}\n").unwrap_err().contains("no spec"));
    }

    #[test]
    fn who_is_not_injected_stays_as_written() {
        let text =
            "kind: Pod\nmetadata: {name: x, labels: {sidecar.istio.io/inject: 'false'}} # no\nspec: {containers: []}\n";
        assert_eq!(injected(text).unwrap(), format!("---\n{text}"));
        assert_eq!(injected("").unwrap(), "");
    }
}
