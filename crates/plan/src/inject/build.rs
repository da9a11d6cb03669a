//! One injection: everything that templates read, worked out once from the pod, its namespace and the settings.

use serde_json::{Value, json};

use super::access::{containers, is_named, list, list_mut, text, texts};
use super::annotations::{read_truth, read_volumes};
use super::proxy_settings;
use super::settings::{BUILT_IN, NOT_BUILT, Settings};
use super::undo::PROXY;
use super::{Context, Owner, Texts};

/// What templates read.
pub(super) struct Request<'a> {
    /// Where the pod will run.
    pub(super) context: &'a Context,
    /// The settings.
    pub(super) settings: &'a Settings,
    /// The pod as the user wrote it.
    pub(super) pod: Value,
    /// Its labels.
    pub(super) labels: Texts,
    /// Its annotations.
    pub(super) annotations: Texts,
    /// Its workload.
    pub(super) owner: Owner,
    /// The proxy's own settings: the mesh's, with the pod's over them.
    pub(super) config: Value,
    /// Whether the proxy is an init container that stays.
    pub(super) native: bool,
    /// Whether the application waits for the proxy.
    pub(super) hold: bool,
    /// The proxy's status port; 0 is no probes.
    pub(super) status_port: u16,
    /// REDIRECT, TPROXY or NONE.
    pub(super) interception: String,
    /// Whether the node's CNI plug-in captures, in place of an init container.
    pub(super) cni: bool,
}

impl<'a> Request<'a> {
    /// Works it out.
    ///
    /// # Errors
    /// One sentence on what cannot be done.
    pub(super) fn of(pod: &Value, context: &'a Context, settings: &'a Settings) -> Result<Request<'a>, String> {
        let annotations = texts(pod, "/metadata/annotations");
        let mut config = settings.mesh.default_config.clone().unwrap_or_else(|| json!({}));
        if let Some(own) = annotations.get("proxy.istio.io/config") {
            let own = proxy_settings::read(own)
                .map_err(|wrong| format!("The annotation proxy.istio.io/config is wrong: it {wrong}."))?;
            lay_over(&mut config, &own);
        }
        let truth = |name: &str| annotations.get(name).and_then(|value| read_truth(value));
        let hold = config.get("holdApplicationUntilProxyStarts") == Some(&Value::Bool(true))
            || settings.value_true("/global/proxy/holdApplicationUntilProxyStarts");
        let port = |value: String| value.parse::<u16>().ok();
        let status_port = annotations
            .get("status.sidecar.istio.io/port")
            .cloned()
            .and_then(port)
            .or_else(|| config.get("statusPort").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()))
            .or_else(|| port(settings.value_text("/global/proxy/statusPort")))
            .unwrap_or(api::port::STATUS);
        let interception = annotations
            .get("sidecar.istio.io/interceptionMode")
            .cloned()
            .or_else(|| config.get("interceptionMode").and_then(Value::as_str).map(str::to_owned))
            .unwrap_or_else(|| "REDIRECT".to_owned());
        if !["REDIRECT", "TPROXY", "NONE"].contains(&interception.as_str()) {
            return Err(format!("interceptionMode {interception} is none of REDIRECT, TPROXY and NONE."));
        }
        let mut request = Request {
            context,
            settings,
            labels: texts(pod, "/metadata/labels"),
            owner: context.owner.clone().unwrap_or_else(|| owner(pod)),
            native: truth("sidecar.istio.io/nativeSidecar").unwrap_or(settings.cluster.native_sidecars),
            annotations,
            config,
            hold,
            status_port,
            interception,
            cni: settings.value_true("/pilot/cni/enabled"),
            pod: pod.clone(),
        };
        // Gateways are the application itself; only sidecars stand beside one.
        request.native = request.native && request.templates()?.iter().any(|name| name == "sidecar");
        if request.native {
            move_own_proxy(&mut request.pod);
        }
        Ok(request)
    }

    /// Names of the templates, in order.
    ///
    /// # Errors
    /// A name that nobody knows, or that is not built.
    pub(super) fn templates(&self) -> Result<Vec<String>, String> {
        let settings = self.settings;
        let asked: Vec<String> = match self.annotations.get("inject.istio.io/templates") {
            Some(names) => super::annotations::words(names).map(str::to_owned).collect(),
            None if settings.default_templates.is_empty() => vec!["sidecar".to_owned()],
            None => settings.default_templates.clone(),
        };
        let names = asked.iter().flat_map(|name| match settings.aliases.get(name) {
            Some(names) => names.clone(),
            None => vec![name.clone()],
        });
        names
            .map(|name| {
                if BUILT_IN.contains(&name.as_str()) {
                    return Ok(name);
                }
                if NOT_BUILT.contains(&name.as_str()) {
                    return Err(format!("The injection template {name} is not built; sidecar and gateway are."));
                }
                if settings.templates.contains_key(&name) {
                    return Ok(name);
                }
                let known: Vec<&str> =
                    BUILT_IN.iter().copied().chain(settings.templates.keys().map(String::as_str)).collect();
                Err(format!("There is no injection template {name:?}; there are {}.", known.join(", ")))
            })
            .collect()
    }

    /// What the pod or the mesh asks for and does not get.
    pub(super) fn warnings(&self) -> Vec<String> {
        let own = self.annotations.get("proxy.istio.io/config");
        let own = own.and_then(|text| api::mesh_config::proxy_config(text).ok());
        let fields = own.map(|own| api::mesh_config::proxy_config_without_effect(&own)).unwrap_or_default();
        fields.iter().map(|field| format!("The setting {field} of proxy.istio.io/config has no effect.")).collect()
    }

    /// An annotation, or a value of the chart in its place.
    pub(super) fn annotation_or(&self, name: &str, value: &str) -> String {
        self.annotations.get(name).cloned().unwrap_or_else(|| self.settings.value_text(value))
    }

    /// Name of the workload.
    pub(super) fn workload(&self) -> &str {
        &self.owner.name
    }

    /// Namespace that the pod will be in.
    pub(super) fn namespace(&self) -> &str {
        match self.context.namespace.as_str() {
            "" => Some(text(&self.pod, "/metadata/namespace")).filter(|name| !name.is_empty()).unwrap_or("default"),
            namespace => namespace,
        }
    }

    /// Cluster that the pod will run in.
    pub(super) fn cluster_id(&self) -> String {
        let named = self.settings.value_text("/global/multiCluster/clusterName");
        match (&self.context.cluster, named.as_str()) {
            (Some(cluster), _) => cluster.clone(),
            (None, "") => self.settings.cluster.cluster_id.clone(),
            _ => named,
        }
    }

    /// Network that the pod will be on; empty if there is only one.
    pub(super) fn network(&self) -> String {
        let named = self.settings.value_text("/global/network");
        match (&self.context.network, named.as_str()) {
            (Some(network), _) => network.clone(),
            (None, "") => self.settings.cluster.network.clone(),
            _ => named,
        }
    }

    /// Whether the pod has a sidecar whose traffic the node's CNI plug-in captures.
    pub(super) fn is_captured_by_node(&self) -> bool {
        let sidecar = self.templates().is_ok_and(|names| names.iter().any(|name| name == "sidecar"));
        self.cni && sidecar && self.interception != "NONE"
    }

    /// The application's containers.
    pub(super) fn applications(&self) -> impl Iterator<Item = &Value> {
        list(&self.pod, "/spec/containers").iter().filter(|container| !is_named(container, PROXY))
    }

    /// `sidecar.istio.io/userVolume` and `…Mount`.
    pub(super) fn volumes_of_user(&self, name: &str) -> Vec<Value> {
        self.annotations.get(name).and_then(|text| read_volumes(text)).unwrap_or_default()
    }

    /// Image by an annotation's or the chart's name for it: a whole reference, or the last part of one.
    pub(super) fn image(&self, name: &str) -> String {
        if name.contains('/') {
            return name.to_owned();
        }
        let global = |key: &str| self.settings.value_text(&format!("/global/{key}"));
        let variant = global("variant");
        let tag = match (global("tag"), variant.as_str()) {
            (tag, "") => tag,
            (tag, variant) if tag.ends_with(&format!("-{variant}")) => tag,
            (tag, variant) => format!("{tag}-{variant}"),
        };
        if tag.is_empty() { format!("{}/{name}", global("hub")) } else { format!("{}/{name}:{tag}", global("hub")) }
    }

    /// The proxy's image.
    pub(super) fn proxy_image(&self) -> String {
        let own = self.annotations.get("sidecar.istio.io/proxyImage").cloned();
        self.image(&own.unwrap_or_else(|| self.settings.value_text("/global/proxy/image")))
    }

    /// Labels and annotations that metrics and tools go by.
    pub(super) fn identity_labels(&self) -> Value {
        let first = |names: &[&str]| {
            names.iter().find_map(|name| self.labels.get(*name)).filter(|value| !value.is_empty()).cloned()
        };
        let name = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let revision = first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        json!({
            "security.istio.io/tlsMode": first(&["security.istio.io/tlsMode"]).unwrap_or_else(|| "istio".to_owned()),
            "service.istio.io/canonical-name": label_value(&name.unwrap_or_else(|| self.workload().to_owned())),
            "service.istio.io/canonical-revision": revision.unwrap_or_else(|| "latest".to_owned()),
        })
    }
}

/// At most 63 characters, and a letter or digit at the end.
fn label_value(name: &str) -> &str {
    let end = name.char_indices().nth(63).map_or(name.len(), |(end, _)| end);
    name[..end].trim_end_matches(['-', '_', '.'])
}

/// Fields replace fields; `proxyMetadata` is joined by key.
fn lay_over(config: &mut Value, own: &Value) {
    let (Some(below), Some(above)) = (config.as_object_mut(), own.as_object()) else { return };
    for (name, value) in above {
        match (below.get_mut(name).and_then(Value::as_object_mut), value.as_object()) {
            (Some(old), Some(new)) if name == "proxyMetadata" => {
                old.extend(new.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            _ => {
                below.insert(name.clone(), value.clone());
            }
        }
    }
}

/// A proxy's container that the user wrote stands where the proxy will stand: among the init containers.
pub(super) fn move_own_proxy(pod: &mut Value) {
    move_proxy(pod, "containers", "initContainers");
}

/// The same where the proxy will stand among the containers. A container that stays has no other meaning there.
pub(super) fn move_own_proxy_back(pod: &mut Value) {
    move_proxy(pod, "initContainers", "containers");
    for proxy in list_mut_if_any(pod, "containers").filter(|container| is_named(container, PROXY)) {
        if let Some(fields) = proxy.as_object_mut() {
            fields.remove("restartPolicy");
        }
    }
}

fn move_proxy(pod: &mut Value, from: &str, to: &str) {
    if !list(pod, &format!("/spec/{from}")).iter().any(|container| is_named(container, PROXY)) {
        return;
    }
    let all = list_mut(pod, &["spec", from]);
    let (own, rest): (Vec<Value>, Vec<Value>) = std::mem::take(all).into_iter().partition(|one| is_named(one, PROXY));
    *all = rest;
    list_mut(pod, &["spec", to]).extend(own);
}

fn list_mut_if_any<'a>(pod: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The workload of a pod, by the object that controls it (Istio `GetDeployMetaFromPod`).
fn owner(pod: &Value) -> Owner {
    let by_name = || {
        let (name, generated) = (text(pod, "/metadata/name"), text(pod, "/metadata/generateName"));
        let name = if name.is_empty() { generated.trim_end_matches('-') } else { name };
        Owner { api_version: "v1".to_owned(), kind: "Pod".to_owned(), name: name.to_owned() }
    };
    let references = list(pod, "/metadata/ownerReferences");
    let Some(controller) = references.iter().find(|one| one.get("controller") == Some(&Value::Bool(true))) else {
        return by_name();
    };
    let of = |key: &str| text(controller, key).to_owned();
    let (api_version, kind, name) = (of("/apiVersion"), of("/kind"), of("/name"));
    let label = |key: &str| text(pod, &format!("/metadata/labels/{key}"));
    let owner = |api_version: String, kind: &str, name: &str| Owner {
        api_version,
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let without =
        |hash: &str| name.strip_suffix(hash).and_then(|name| name.strip_suffix('-')).filter(|_| !hash.is_empty());
    match kind.as_str() {
        "ReplicaSet" => match (without(label("pod-template-hash")), without(label("rollouts-pod-template-hash"))) {
            (Some(deployment), _) => owner(api_version, "Deployment", deployment),
            (None, Some(rollout)) => owner("argoproj.io/v1alpha1".to_owned(), "Rollout", rollout),
            _ => owner(api_version, "ReplicaSet", &name),
        },
        "Job" => match cron_job(&name) {
            Some(cron) => owner("batch/v1".to_owned(), "CronJob", cron),
            None => owner(api_version, "Job", &name),
        },
        kind => owner(api_version, kind, &name),
    }
}

/// A CronJob's jobs are named by it and the minute that they were due: eight to ten digits.
fn cron_job(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    let is_minute = (8..=10).contains(&minute.len()) && minute.bytes().all(|byte| byte.is_ascii_digit());
    (is_minute && !name.is_empty()).then_some(name)
}

/// Whether the pod has a container of this name.
pub(super) fn has_container(pod: &Value, name: &str) -> bool {
    containers(pod).any(|container| is_named(container, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_found_by_the_controller() {
        let pod = |kind: &str, name: &str, labels: Value| {
            json!({"metadata": {"generateName": format!("{name}-"), "labels": labels, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": true}]}})
        };
        for (pod, kind, name) in [
            (pod("ReplicaSet", "web-5d4f", json!({"pod-template-hash": "5d4f"})), "Deployment", "web"),
            (pod("ReplicaSet", "web", json!({})), "ReplicaSet", "web"),
            (pod("ReplicaSet", "r-77", json!({"rollouts-pod-template-hash": "77"})), "Rollout", "r"),
            (pod("StatefulSet", "db", json!({})), "StatefulSet", "db"),
            (pod("Job", "nightly-28123456", json!({})), "CronJob", "nightly"),
            (pod("Job", "once-1", json!({})), "Job", "once-1"),
            (json!({"metadata": {"name": "alone"}}), "Pod", "alone"),
        ] {
            let found = owner(&pod);
            assert_eq!((found.kind.as_str(), found.name.as_str()), (kind, name));
        }
    }

    #[test]
    fn labels_hold_63_characters_and_end_in_a_letter() {
        assert_eq!(label_value("a"), "a");
        assert_eq!(label_value(&("a".repeat(62) + "-bc")), "a".repeat(62));
    }

    #[test]
    fn metadata_of_proxies_is_joined_and_the_rest_replaced() {
        let mut config = json!({"concurrency": 1, "proxyMetadata": {"A": "1", "B": "2"}, "tracing": {"x": 1}});
        lay_over(&mut config, &json!({"proxyMetadata": {"B": "3"}, "tracing": {"y": 2}}));
        assert_eq!(config, json!({"concurrency": 1, "proxyMetadata": {"A": "1", "B": "3"}, "tracing": {"y": 2}}));
    }
}
