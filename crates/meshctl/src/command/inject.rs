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
use crate::cluster::Cluster;
use crate::install::{self, Wish};

pub(super) async fn run(cluster: Option<&Cluster>, mesh: &str, arguments: &InjectArguments) -> Result<()> {
    let settings = settings(cluster, mesh, arguments).await?;
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

/// The texts that settings are made of.
#[derive(Default)]
struct Texts {
    config: String,
    values: String,
    mesh: String,
    /// Where the mesh-wide settings stand, for what is wrong with them.
    mesh_place: String,
}

impl Texts {
    /// Takes what a ConfigMap holds.
    fn take(&mut self, map: &Value) {
        let key = |key: &str| map["data"][key].as_str().map(str::to_owned);
        for (text, found) in
            [(&mut self.config, key("config")), (&mut self.values, key("values")), (&mut self.mesh, key("mesh"))]
        {
            if let Some(found) = found {
                *text = found;
            }
        }
    }
}

async fn settings(cluster: Option<&Cluster>, namespace: &str, arguments: &InjectArguments) -> Result<Settings> {
    let mut texts = match cluster {
        Some(cluster) => of_cluster(cluster, namespace, &arguments.revision).await?,
        None => of_install(namespace, &arguments.revision)?,
    };
    let given = |file: &Path| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&read(file)?).into_owned());
    if let Some(file) = &arguments.inject_config {
        let text = given(file)?;
        let documents =
            decode::plain_documents(text.as_bytes(), &name(file)).map_err(|problem| anyhow::anyhow!("{problem}"))?;
        match documents.iter().find(|document| document.value["kind"] == "ConfigMap") {
            Some(map) => texts.take(&map.value),
            None => texts.config = text,
        }
    }
    if let Some(file) = &arguments.values {
        texts.values = given(file)?;
    }
    if let Some(file) = &arguments.mesh_config {
        (texts.mesh, texts.mesh_place) = (given(file)?, name(file));
    }
    let (mesh, problems) = MeshConfig::parse(&texts.mesh, &texts.mesh_place);
    for problem in &problems {
        if problem.severity == Severity::Error {
            bail!("{problem}");
        }
        eprintln!("{problem}");
    }
    let native = match (arguments.native_sidecars, cluster) {
        (Some(native), _) => native,
        (None, Some(cluster)) => ClusterFacts::has_native_sidecars(&cluster.version().await?),
        (None, None) => true,
    };
    let revision = arguments.revision.clone();
    let facts = ClusterFacts { revision, native_sidecars: native, ..ClusterFacts::default() };
    Settings::new(&texts.config, &texts.values, mesh, facts).map_err(anyhow::Error::msg)
}

/// What a default install would have.
fn of_install(namespace: &str, revision: &str) -> Result<Texts> {
    let revision = Some(revision.to_owned()).filter(|revision| !revision.is_empty());
    let wish = Wish { revision, namespace: Some(namespace.to_owned()), ..Wish::default() };
    let mut texts = Texts { mesh_place: "the default install".to_owned(), ..Texts::default() };
    for component in install::plan(&wish, false)?.components {
        component.objects.iter().filter(|object| object["kind"] == "ConfigMap").for_each(|map| texts.take(map));
    }
    Ok(texts)
}

/// What the control plane of the cluster has.
async fn of_cluster(cluster: &Cluster, namespace: &str, revision: &str) -> Result<Texts> {
    let suffix = if revision.is_empty() || revision == "default" { String::new() } else { format!("-{revision}") };
    let mut texts = Texts { mesh_place: format!("ConfigMap {namespace}/istio{suffix}"), ..Texts::default() };
    for name in ["istio", "istio-sidecar-injector"] {
        let name = format!("{name}{suffix}");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}});
        let Some(map) = cluster.get(&map).await? else {
            bail!(
                "there is no ConfigMap {namespace}/{name}: is the mesh installed there? (-i names the namespace, -r the revision)"
            );
        };
        texts.take(&map);
    }
    Ok(texts)
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
        Outcome::Skipped { reason, .. } => {
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
    fn without_files_it_is_as_installed() {
        let texts = of_install("istio-system", "canary").unwrap();
        let (mesh, problems) = MeshConfig::parse(&texts.mesh, &texts.mesh_place);
        assert_eq!(problems, []);
        assert!(mesh.default_config.unwrap().to_string().contains("istiod-canary.istio-system.svc:15012"));
        let facts = ClusterFacts { revision: "canary".to_owned(), ..ClusterFacts::default() };
        let settings = Settings::new(&texts.config, &texts.values, MeshConfig::default(), facts).unwrap();
        assert_eq!((settings.problems(), settings.revision()), (&[][..], "canary"));
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
