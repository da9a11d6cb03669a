//! `meshctl check`: before an installation, whether the cluster is fit for it and nothing stands in its way; after it, whether
//! all of it is there and works.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::Result;
use api::debug::SyncStatus;
use api::object::KINDS;
use api::problem::Severity;
use plan::inject::ClusterFacts;
use serde::Serialize;
use serde_json::{Value, json};

use crate::chart;
use crate::cli::CheckArguments;
use crate::cluster::refusal;
use crate::cluster::{Cluster, place};
use crate::install::{self, DEFAULT, OWNED, REVISION, TAG, Wish};
use crate::mesh::Mesh;
use crate::print::{Format, structured};

const ADMISSION: &str = "admissionregistration.k8s.io/v1";
/// Oldest Kubernetes whose API server takes rules in the schemas of our kinds.
const OLDEST: (u32, u32) = (1, 25);
/// What an installation writes: group and plural. Kinds that `meshctl install` has charts for.
const WRITES: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("", "configmaps"),
    ("apps", "deployments"),
    ("apps", "daemonsets"),
    ("autoscaling", "horizontalpodautoscalers"),
    ("policy", "poddisruptionbudgets"),
    ("networking.k8s.io", "networkpolicies"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
];

/// One thing that was looked at. `Info` is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    level: Severity,
    about: &'static str,
    message: String,
}

fn finding(level: Severity, about: &'static str, message: impl Into<String>) -> Finding {
    Finding { level, about, message: message.into() }
}

/// Looks, prints, and ends with an error if something does not work.
pub(super) async fn run(
    cluster: Cluster,
    mesh: &Mesh,
    namespace: &str,
    arguments: &CheckArguments,
    must_be: bool,
) -> Result<ExitCode> {
    // Whoever names a revision means one that is there.
    let must_be = must_be || arguments.revision.is_some();
    let mut findings = vec![kubernetes(&cluster.version().await?)];
    findings.extend(rights(&cluster, namespace).await?);
    match look(&cluster, mesh, namespace, arguments.revision.as_deref(), must_be).await {
        Ok(found) => findings.extend(found),
        // Those that may not even look have been told what they may not do.
        Err(error) => findings.push(finding(Severity::Error, "cluster", format!("{error}, so the rest is not known"))),
    }
    print!("{}", told(arguments.output, &findings)?);
    let bad = findings.iter().any(|finding| finding.level == Severity::Error);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is in the cluster.
async fn look(
    cluster: &Cluster,
    mesh: &Mesh,
    namespace: &str,
    revision: Option<&str>,
    must_be: bool,
) -> Result<Vec<Finding>> {
    let revision = revision.filter(|revision| *revision != "default").unwrap_or_default();
    let shown = if revision.is_empty() { "default" } else { revision };
    let planes = cluster.list("apps/v1", "Deployment", None, "app=istiod", "").await?;
    let injectors = cluster.list(ADMISSION, "MutatingWebhookConfiguration", None, "", "").await?;
    let services = cluster.list("v1", "Service", None, "", "").await?;
    let mut findings = foreign(&planes, &injectors, &services);
    if planes.iter().any(|plane| is_ours(plane) && label(plane, REVISION) == shown) {
        findings.extend(installed(cluster, namespace, revision).await?);
        findings.extend(running(cluster, mesh, shown).await?);
    } else {
        let others: Vec<&str> =
            planes.iter().filter(|plane| is_ours(plane)).map(|plane| label(plane, REVISION)).collect();
        let missing = if others.is_empty() {
            format!("no control plane of the revision {shown} is installed; `meshctl install` makes one")
        } else {
            let others = others.join(", ");
            format!("no control plane of the revision {shown} is installed, but of {others}: name it with --revision")
        };
        let level = match (must_be, others.is_empty()) {
            (true, _) => Severity::Error,
            (false, true) => Severity::Info,
            (false, false) => Severity::Warning,
        };
        findings.push(finding(level, "installation", missing));
    }
    Ok(findings)
}

fn told(output: Format, findings: &[Finding]) -> Result<String> {
    if output != Format::Table {
        return structured(output, &findings);
    }
    let mut text = String::new();
    for Finding { level, about, message } in findings {
        let mark = match level {
            Severity::Info => '✔',
            Severity::Warning => '!',
            Severity::Error => '✘',
        };
        text += &format!("{mark} {about}: {message}\n");
    }
    let count = |wanted| findings.iter().filter(|finding| finding.level == wanted).count();
    text += &match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => "Everything is as it should be.\n".to_owned(),
        (errors, warnings) => format!("{errors} errors and {warnings} warnings.\n"),
    };
    Ok(text)
}

fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"]["labels"][key].as_str().unwrap_or_default()
}

fn is_ours(object: &Value) -> bool {
    !label(object, OWNED).is_empty() && label(object, "app.kubernetes.io/managed-by") == "meshctl"
}

fn kubernetes(version: &str) -> Finding {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or(0)
    });
    let about = "Kubernetes";
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        let (major, minor) = OLDEST;
        return finding(Severity::Error, about, format!("{version} is too old; {major}.{minor} or newer is needed"));
    }
    if !ClusterFacts::has_native_sidecars(version) {
        let message = format!(
            "{version} has no native sidecars (1.29 has): proxies start beside the application and jobs do not end by themselves"
        );
        return finding(Severity::Warning, about, message);
    }
    finding(Severity::Info, about, version)
}

/// Control planes and injectors that are not ours, and webhooks whose control plane is gone.
fn foreign(planes: &[Value], injectors: &[Value], services: &[Value]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for plane in planes.iter().filter(|plane| !is_ours(plane)) {
        let (_, namespace, name) = chart::key(plane);
        let image = plane.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str).unwrap_or_default();
        let message = format!(
            "the Deployment {namespace}/{name} ({image}) is another mesh's control plane; with the revision {:?} it and this mesh take the same pods and objects, so install with another --revision",
            label(plane, REVISION)
        );
        findings.push(finding(Severity::Warning, "other meshes", message));
    }
    let there: BTreeSet<(String, String)> =
        services.iter().map(chart::key).map(|(_, namespace, name)| (namespace, name)).collect();
    for injector in injectors {
        let name = chart::key(injector).2;
        let mut gone = BTreeSet::new();
        for hook in injector["webhooks"].as_array().into_iter().flatten() {
            let service = &hook["clientConfig"]["service"];
            let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
            let at = (text("namespace"), text("name"));
            if hook["failurePolicy"] == "Fail" && !service.is_null() && !there.contains(&at) {
                gone.insert(at);
            }
        }
        findings.extend(gone.into_iter().map(|(namespace, service)| {
            let message = format!(
                "the webhook {name} asks the service {namespace}/{service}, which is not there: pods and objects that it is for are refused; delete it, or install what it belongs to"
            );
            finding(Severity::Error, "webhooks", message)
        }));
    }
    if findings.is_empty() {
        findings.push(finding(Severity::Info, "other meshes", "none is in the way"));
    }
    findings
}

/// Whether the caller may do what an installation does.
async fn rights(cluster: &Cluster, namespace: &str) -> Result<Vec<Finding>> {
    let mut lacks = Vec::new();
    for (group, resource) in WRITES {
        for verb in ["get", "create", "patch", "delete"] {
            if !cluster.may(verb, group, resource, namespace).await? {
                lacks.push((verb, *resource));
            }
        }
    }
    Ok(vec![allowed(&lacks)])
}

fn allowed(lacks: &[(&str, &str)]) -> Finding {
    if lacks.is_empty() {
        return finding(Severity::Info, "rights", "you may do all that an installation does");
    }
    let list: Vec<String> = lacks.iter().map(|(verb, resource)| format!("{verb} {resource}")).collect();
    finding(Severity::Error, "rights", format!("an installation needs what you may not do: {}", list.join(", ")))
}

/// Whether the objects of an installation are there and work.
async fn installed(cluster: &Cluster, namespace: &str, revision: &str) -> Result<Vec<Finding>> {
    // What every profile has; parts that some leave out are looked at if they are there.
    let wish = Wish {
        files: Vec::new(),
        set: vec!["profile=minimal".to_owned()],
        revision: Some(revision.to_owned()).filter(|revision| !revision.is_empty()),
        namespace: Some(namespace.to_owned()),
    };
    let mut objects = Vec::new();
    for wanted in install::plan(&wish, true)?.components.into_iter().flat_map(|component| component.objects) {
        let kind = wanted["kind"].as_str().unwrap_or_default();
        if !matches!(kind, "HorizontalPodAutoscaler" | "PodDisruptionBudget" | "NetworkPolicy") {
            let now = cluster.get(&wanted).await?;
            objects.push((wanted, now));
        }
    }
    let mut findings = vec![present(&objects)];
    let kinds: Vec<&Value> = found(&objects, "CustomResourceDefinition").collect();
    findings.push(established(&kinds));
    let webhooks = found(&objects, "MutatingWebhookConfiguration")
        .chain(found(&objects, "ValidatingWebhookConfiguration"))
        .collect::<Vec<_>>();
    findings.push(trusted(&webhooks));
    let shown = if revision.is_empty() { "default" } else { revision };
    let selector = format!("{OWNED},{REVISION}={shown}");
    findings.extend(cluster.list("apps/v1", "Deployment", None, &selector, "").await?.iter().map(ready));
    findings.extend(plug_in(cluster, namespace, revision).await?);
    Ok(findings)
}

/// Whether the CNI plug-in is on every node, if pods rely on it.
async fn plug_in(cluster: &Cluster, namespace: &str, revision: &str) -> Result<Option<Finding>> {
    let suffix = if revision.is_empty() { String::new() } else { format!("-{revision}") };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": format!("istio-sidecar-injector{suffix}")}});
    let map = cluster.get(&map).await?.unwrap_or_default();
    let values = chart::yaml(map["data"]["values"].as_str().unwrap_or_default()).unwrap_or_default();
    let relied = values["pilot"]["cni"]["enabled"] == true;
    let sets = cluster.list("apps/v1", "DaemonSet", None, "k8s-app=istio-cni-node", "").await?;
    if sets.is_empty() && !relied {
        return Ok(None);
    }
    let nodes = cluster.list("v1", "Node", None, "kubernetes.io/os=linux", "").await?;
    let pods = cluster.list("v1", "Pod", None, "k8s-app=istio-cni-node", "").await?;
    Ok(Some(on_nodes(relied, !sets.is_empty(), &nodes, &pods)))
}

/// What is to be said of nodes and the pods of the plug-in's DaemonSet.
fn on_nodes(relied: bool, installed: bool, nodes: &[Value], pods: &[Value]) -> Finding {
    const ABOUT: &str = "CNI plug-in";
    if !installed {
        let message = "pods rely on it (pilot.cni.enabled), and there is no DaemonSet istio-cni-node: no pod that is made now gets ready; `meshctl install --set components.cni.enabled=true` puts it there";
        return finding(Severity::Error, ABOUT, message);
    }
    let is_ready = |pod: &&Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let with: BTreeSet<&str> =
        pods.iter().filter(is_ready).filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    let names = nodes.iter().filter_map(|node| node["metadata"]["name"].as_str());
    let without: Vec<&str> = names.filter(|name| !with.contains(name)).collect();
    if !without.is_empty() {
        let message = format!(
            "not ready on {}: see `kubectl describe pods -A -l k8s-app=istio-cni-node`; pods that start there before it is have to be deleted once it is",
            without.join(", ")
        );
        return finding(if relied { Severity::Error } else { Severity::Warning }, ABOUT, message);
    }
    let used = if relied { "" } else { "; pods have an init container all the same (pilot.cni.enabled is not set)" };
    finding(Severity::Info, ABOUT, format!("ready on {} nodes{used}", nodes.len()))
}

fn found<'a>(objects: &'a [(Value, Option<Value>)], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |(wanted, _)| wanted["kind"] == kind).filter_map(|(_, now)| now.as_ref())
}

fn present(objects: &[(Value, Option<Value>)]) -> Finding {
    let missing: Vec<String> = objects
        .iter()
        .filter(|(_, now)| now.is_none())
        .map(|(wanted, _)| {
            let (kind, namespace, name) = chart::key(wanted);
            format!("{kind} {}", place(&namespace, &name))
        })
        .collect();
    match missing.as_slice() {
        [] => finding(Severity::Info, "objects", format!("all {} are there", objects.len())),
        missing => {
            let list = missing.join(", ");
            finding(Severity::Error, "objects", format!("not there: {list}; `meshctl install` puts them back"))
        }
    }
}

/// Whether the API server serves each kind in each version.
fn established(kinds: &[&Value]) -> Finding {
    let mut wrong = Vec::new();
    for row in KINDS.iter().filter(|row| row.strict) {
        let name = format!("{}.{}", row.plural, row.group);
        let Some(kind) = kinds.iter().find(|kind| kind["metadata"]["name"] == name.as_str()) else {
            wrong.push(format!("{name} is not there"));
            continue;
        };
        let conditions = kind["status"]["conditions"].as_array().into_iter().flatten();
        let mut conditions = conditions.filter(|condition| condition["status"] == "True");
        if !conditions.any(|condition| condition["type"] == "Established") {
            wrong.push(format!("{name} is not established"));
        }
        let served: Vec<&str> = kind["spec"]["versions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|version| version["served"] == true)
            .filter_map(|version| version["name"].as_str())
            .collect();
        let lacking: Vec<&str> = row.versions.iter().copied().filter(|version| !served.contains(version)).collect();
        if !lacking.is_empty() {
            wrong.push(format!("{name} lacks {}", lacking.join(", ")));
        }
    }
    match wrong.as_slice() {
        [] => finding(Severity::Info, "kinds", "all are served"),
        wrong => finding(Severity::Error, "kinds", wrong.join("; ")),
    }
}

/// Whether the API server can believe the control plane whom the webhooks ask.
fn trusted(webhooks: &[&Value]) -> Finding {
    let bare = |webhook: &&&Value| {
        let mut hooks = webhook["webhooks"].as_array().into_iter().flatten();
        hooks.any(|hook| hook["clientConfig"]["caBundle"].as_str().is_none_or(str::is_empty))
    };
    let bare: Vec<String> = webhooks.iter().filter(bare).map(|webhook| chart::key(webhook).2).collect();
    match bare.as_slice() {
        [] => finding(Severity::Info, "webhooks", "they have a CA bundle"),
        bare => {
            let message = format!("without a CA bundle, which the control plane should write: {}", bare.join(", "));
            finding(Severity::Error, "webhooks", message)
        }
    }
}

fn ready(deployment: &Value) -> Finding {
    let (_, namespace, name) = chart::key(deployment);
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let ready = deployment["status"]["readyReplicas"].as_i64().unwrap_or(0);
    let message = format!("{namespace}/{name} has {ready} of {wanted} pods ready");
    let level = match ready {
        0 if wanted > 0 => Severity::Error,
        _ if ready < wanted => Severity::Warning,
        _ => Severity::Info,
    };
    finding(level, "deployments", message)
}

/// Whether pods of the mesh are connected, and those of its namespaces are in it.
async fn running(cluster: &Cluster, mesh: &Mesh, revision: &str) -> Result<Vec<Finding>> {
    let proxies = match mesh.proxies().await {
        Ok(proxies) => proxies,
        Err(error) => {
            return Ok(vec![finding(
                Severity::Error,
                "proxies",
                format!("the control plane does not tell: {}", refusal::told(&error)),
            )]);
        }
    };
    let pods = cluster.list("v1", "Pod", None, "", "status.phase=Running").await?;
    let namespaces = cluster.list("v1", "Namespace", None, "", "").await?;
    let injectors = cluster.list(ADMISSION, "MutatingWebhookConfiguration", None, "app=sidecar-injector", "").await?;
    // A namespace may name the revision itself, or a tag of it.
    let of_revision = injectors.iter().filter(|injector| label(injector, REVISION) == revision);
    let mut names: BTreeSet<&str> = of_revision.map(|injector| label(injector, TAG)).collect();
    names.insert(revision);
    if injectors.iter().any(|injector| label(injector, TAG) == DEFAULT && label(injector, REVISION) != revision) {
        names.remove(DEFAULT);
    }
    let taken = |namespace: &&Value| {
        let rev = label(namespace, REVISION);
        (!rev.is_empty() && names.contains(rev))
            || (names.contains("default") && label(namespace, "istio-injection") == "enabled")
    };
    let meshed: BTreeSet<String> = namespaces.iter().filter(taken).map(|namespace| chart::key(namespace).2).collect();
    Ok(connected(&pods, &proxies, &meshed))
}

/// Whether a pod has a proxy.
pub(super) fn has_proxy(pod: &Value) -> bool {
    let lists = ["containers", "initContainers"];
    let mut containers = lists.iter().flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten());
    containers.any(|container| container["name"] == "istio-proxy")
}

fn connected(pods: &[Value], proxies: &[SyncStatus], meshed: &BTreeSet<String>) -> Vec<Finding> {
    let name = |pod: &Value| {
        let (_, namespace, name) = chart::key(pod);
        format!("{name}.{namespace}")
    };
    let known: BTreeSet<&str> = proxies.iter().map(|proxy| proxy.proxy.as_str()).collect();
    let mut findings = Vec::new();
    let silent: Vec<String> =
        pods.iter().filter(|pod| has_proxy(pod)).map(name).filter(|name| !known.contains(name.as_str())).collect();
    if !silent.is_empty() {
        let message = format!("with a proxy that is not connected: {}", silent.join(", "));
        findings.push(finding(Severity::Error, "pods", message));
    }
    let outside: Vec<String> = pods
        .iter()
        .filter(|pod| !has_proxy(pod) && pod["spec"]["hostNetwork"] != true)
        .filter(|pod| meshed.contains(pod["metadata"]["namespace"].as_str().unwrap_or_default()))
        .filter(|pod| {
            let asked = label(pod, "sidecar.istio.io/inject");
            asked != "false" && pod["metadata"]["annotations"]["sidecar.istio.io/inject"] != "false"
        })
        .map(name)
        .collect();
    if !outside.is_empty() {
        let message = format!(
            "without a proxy in namespaces of the mesh, from before the namespace joined it; restart them: {}",
            outside.join(", ")
        );
        findings.push(finding(Severity::Warning, "pods", message));
    }
    let refusing: Vec<&str> = proxies
        .iter()
        .filter(|proxy| proxy.types.iter().any(|kind| !kind.nack.is_empty()))
        .map(|proxy| proxy.proxy.as_str())
        .collect();
    if !refusing.is_empty() {
        let message = format!("that refuse configuration (see `meshctl status`): {}", refusing.join(", "));
        findings.push(finding(Severity::Error, "proxies", message));
    }
    findings.push(finding(Severity::Info, "proxies", format!("{} are connected", proxies.len())));
    findings
}

#[cfg(test)]
mod tests {
    use api::debug::TypeStatus;

    use super::*;

    #[test]
    fn versions_of_kubernetes() {
        assert_eq!(kubernetes("v1.24.9").level, Severity::Error);
        assert_eq!(kubernetes("v1.28.3+k3s1").level, Severity::Warning);
        assert_eq!(kubernetes("v1.34.4").level, Severity::Info);
    }

    #[test]
    fn other_meshes_and_dead_webhooks_are_told() {
        let plane = |managed: &str| {
            json!({
                "kind": "Deployment",
                "metadata": {"namespace": "istio-system", "name": "istiod", "labels": {
                    "app": "istiod", OWNED: "x", "app.kubernetes.io/managed-by": managed, REVISION: "default",
                }},
                "spec": {"template": {"spec": {"containers": [{"image": "docker.io/istio/pilot:1.30.0"}]}}},
            })
        };
        let injector = json!({
            "kind": "MutatingWebhookConfiguration", "metadata": {"name": "injector"},
            "webhooks": [{
                "failurePolicy": "Fail", "clientConfig": {"service": {"namespace": "istio-system", "name": "istiod"}},
            }],
        });
        let service = json!({"kind": "Service", "metadata": {"namespace": "istio-system", "name": "istiod"}});
        let fine = foreign(&[plane("meshctl")], std::slice::from_ref(&injector), std::slice::from_ref(&service));
        assert!(fine.iter().all(|finding| finding.level == Severity::Info), "{fine:?}");
        let other = foreign(&[plane("Helm")], std::slice::from_ref(&injector), &[service]);
        assert!(other[0].level == Severity::Warning && other[0].message.contains("istio/pilot:1.30.0"));
        let dead = foreign(&[], &[injector], &[]);
        assert!(dead[0].level == Severity::Error && dead[0].message.contains("istio-system/istiod"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let object = json!({"kind": "Service", "metadata": {"namespace": "a", "name": "b"}});
        assert_eq!(present(&[(object.clone(), Some(object.clone()))]).level, Severity::Info);
        assert!(present(&[(object, None)]).message.contains("Service a/b"));
        assert!(allowed(&[("create", "services")]).message.contains("create services"));
        assert_eq!(allowed(&[]).level, Severity::Info);
    }

    #[test]
    fn kinds_must_be_served_in_all_versions() {
        let mut kinds = api::definition::all();
        for kind in &mut kinds {
            kind["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
        }
        assert_eq!(established(&kinds.iter().collect::<Vec<_>>()).level, Severity::Info);
        kinds[0]["spec"]["versions"][1]["served"] = json!(false);
        kinds[1]["status"] = Value::Null;
        let wrong = established(&kinds.iter().take(14).collect::<Vec<_>>());
        assert_eq!(wrong.level, Severity::Error);
        for part in ["virtualservices.networking.istio.io lacks v1beta1", "is not established", "is not there"] {
            assert!(wrong.message.contains(part), "{part}: {}", wrong.message);
        }
    }

    #[test]
    fn webhooks_and_deployments_must_work() {
        let hook =
            |bundle: Value| json!({"metadata": {"name": "w"}, "webhooks": [{"clientConfig": {"caBundle": bundle}}]});
        assert_eq!(trusted(&[&hook(json!("AA=="))]).level, Severity::Info);
        assert_eq!(trusted(&[&hook(Value::Null)]).level, Severity::Error);
        let deployment = |ready: i64| json!({"spec": {"replicas": 2}, "status": {"readyReplicas": ready}});
        let levels = [0, 1, 2].map(|count| ready(&deployment(count)).level);
        assert_eq!(levels, [Severity::Error, Severity::Warning, Severity::Info]);
    }

    #[test]
    fn nodes_without_the_plug_in_are_named() {
        let node = |name: &str| json!({"metadata": {"name": name}});
        let pod = |node: &str, ready: &str| json!({"spec": {"nodeName": node}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let nodes = [node("a"), node("b")];
        let fine = on_nodes(true, true, &nodes, &[pod("a", "True"), pod("b", "True")]);
        assert!(fine.level == Severity::Info && fine.message.ends_with("ready on 2 nodes"), "{fine:?}");
        let lacks = on_nodes(true, true, &nodes, &[pod("a", "True"), pod("b", "False")]);
        assert!(lacks.level == Severity::Error && lacks.message.starts_with("not ready on b:"), "{lacks:?}");
        assert_eq!(on_nodes(false, true, &nodes, &[]).level, Severity::Warning);
        assert!(on_nodes(true, false, &nodes, &[]).message.contains("there is no DaemonSet"));
    }

    #[test]
    fn pods_that_are_not_connected_or_outside_are_named() {
        let pod = |name: &str, container: &str, labels: Value| {
            json!({
                "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": labels},
                "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": container}]},
            })
        };
        let pods = [
            pod("in", "istio-proxy", json!({})),
            pod("silent", "istio-proxy", json!({})),
            pod("outside", "wait", json!({})),
            pod("not-wanted", "wait", json!({"sidecar.istio.io/inject": "false"})),
        ];
        let refusing = TypeStatus { nack: "no".into(), ..TypeStatus::default() };
        let proxies = [SyncStatus { proxy: "in.shop".into(), types: vec![refusing], ..SyncStatus::default() }];
        let findings = connected(&pods, &proxies, &BTreeSet::from(["shop".to_owned()]));
        let texts: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
        assert!(texts[0].ends_with(": silent.shop"), "{texts:?}");
        assert!(texts[1].ends_with(": outside.shop"), "{texts:?}");
        assert!(texts[2].ends_with(": in.shop"), "{texts:?}");
        assert!(told(Format::Table, &findings).unwrap().ends_with("2 errors and 1 warnings.\n"));
    }
}
