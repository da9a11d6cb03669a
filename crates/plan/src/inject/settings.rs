//! What injection goes by: the ConfigMap `istio-sidecar-injector` (keys `config` and `values`), the mesh-wide settings, and facts
//! about the cluster.

use std::collections::BTreeMap;

use api::mesh_config::MeshConfig;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Texts, template};

/// What the control plane knows of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Its name in metrics and localities.
    pub cluster_id: String,
    /// Its network; empty if there is only one.
    pub network: String,
    /// Revision of the control plane; empty is `default`.
    pub revision: String,
    /// Whether it runs init containers that stay (Kubernetes 1.29 and newer).
    pub native_sidecars: bool,
}

impl Default for ClusterFacts {
    fn default() -> Self {
        let (cluster_id, network, revision) = ("Kubernetes".to_owned(), String::new(), String::new());
        Self { cluster_id, network, revision, native_sidecars: true }
    }
}

impl ClusterFacts {
    /// Whether a version as Kubernetes tells it (`v1.29.3`, or major and minor as `1.29+`) has native sidecars.
    pub fn has_native_sidecars(version: &str) -> bool {
        let mut numbers = version.trim_start_matches('v').split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().unwrap_or(0)
        });
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 29)
    }
}

/// The settings, read and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) enabled: bool,
    pub(super) never: Vec<Selector>,
    pub(super) always: Vec<Selector>,
    pub(super) injected_annotations: Texts,
    pub(super) default_templates: Vec<String>,
    pub(super) aliases: BTreeMap<String, Vec<String>>,
    /// Text of the users' own templates.
    pub(super) templates: BTreeMap<String, String>,
    pub(super) values: Value,
    pub(super) mesh: MeshConfig,
    pub(super) cluster: ClusterFacts,
    problems: Vec<String>,
}

/// The key `config`, as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    policy: String,
    always_inject_selector: Vec<Selector>,
    never_inject_selector: Vec<Selector>,
    injected_annotations: Texts,
    default_templates: Vec<String>,
    aliases: BTreeMap<String, Vec<String>>,
    templates: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: "enabled".to_owned(),
            always_inject_selector: Vec::new(),
            never_inject_selector: Vec::new(),
            injected_annotations: Texts::new(),
            default_templates: Vec::new(),
            aliases: BTreeMap::new(),
            templates: BTreeMap::new(),
        }
    }
}

/// A label selector of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Selector {
    match_labels: Texts,
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// An empty selector takes nothing here: Istio does not let one empty entry switch injection for all.
    pub(super) fn selects(&self, labels: &Texts) -> bool {
        let is_empty = self.match_labels.is_empty() && self.match_expressions.is_empty();
        let one = |wanted: &Expression| {
            let value = labels.get(&wanted.key);
            match wanted.operator {
                Operator::In => value.is_some_and(|value| wanted.values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !wanted.values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        !is_empty
            && self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(one)
    }
}

/// Templates that are code, not text.
pub(super) const BUILT_IN: &[&str] = &["sidecar", "gateway"];
/// Istio's templates that are not built.
pub(super) const NOT_BUILT: &[&str] =
    &["grpc-simple", "grpc-agent", "waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"];

impl Settings {
    /// Reads the texts of the ConfigMap's two keys; either may be empty.
    ///
    /// # Errors
    /// One sentence: which text cannot be read, and why.
    pub fn new(config: &str, values: &str, mesh: MeshConfig, cluster: ClusterFacts) -> Result<Settings, String> {
        let config: Config = read(config, "config")?.unwrap_or_default();
        let enabled = match config.policy.as_str() {
            "enabled" => true,
            "disabled" => false,
            other => {
                return Err(format!(
                    "The key config of istio-sidecar-injector: policy {other:?} is neither enabled nor disabled."
                ));
            }
        };
        let values: Value = read(values, "values")?.unwrap_or(Value::Null);
        let mut settings = Settings {
            enabled,
            never: config.never_inject_selector,
            always: config.always_inject_selector,
            injected_annotations: config.injected_annotations,
            default_templates: config.default_templates,
            aliases: config.aliases,
            templates: config.templates,
            values: with_defaults(values),
            mesh,
            cluster,
            problems: Vec::new(),
        };
        settings.problems = settings.judge();
        Ok(settings)
    }

    /// What in the settings has no effect or cannot work, one sentence each.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Revision of the control plane; `default` if it has no name.
    pub fn revision(&self) -> &str {
        if self.cluster.revision.is_empty() { "default" } else { &self.cluster.revision }
    }

    fn judge(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, text) in &self.templates {
            if BUILT_IN.contains(&name.as_str()) {
                problems.push(format!(
                    "The template {name} of istio-sidecar-injector is not used: it is built in. Give changes a name of their own and add it to defaultTemplates."
                ));
            } else if NOT_BUILT.contains(&name.as_str()) {
                problems.push(format!(
                    "The template {name} of istio-sidecar-injector is not used: pods that ask for it are refused."
                ));
            } else if let Err(error) = template::check(name, text) {
                problems.push(format!("The template {name} of istio-sidecar-injector cannot be used: {error}."));
            }
        }
        let unheeded = [
            ("/global/proxy/privileged", "the proxy needs no privilege"),
            ("/global/proxy/enableCoreDump", "no core dumps are written"),
            ("/global/mountMtlsCerts", "certificates are not read from a Secret"),
        ];
        for (pointer, why) in unheeded {
            if self.values.pointer(pointer) == Some(&Value::Bool(true)) {
                let name = pointer.trim_start_matches('/').replace('/', ".");
                problems.push(format!("The value {name} has no effect: {why}."));
            }
        }
        let searched = self.values.pointer("/global/podDNSSearchNamespaces").and_then(Value::as_array);
        if searched.is_some_and(|list| !list.is_empty()) {
            problems.push("The value global.podDNSSearchNamespaces has no effect: it is not built.".to_owned());
        }
        problems
    }

    /// A value of the chart; null is no value.
    pub(super) fn value(&self, pointer: &str) -> Option<&Value> {
        self.values.pointer(pointer).filter(|value| !value.is_null())
    }

    /// A value of the chart as text: numbers and truths are written out.
    pub(super) fn value_text(&self, pointer: &str) -> String {
        match self.value(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        }
    }

    /// Whether a value of the chart is true.
    pub(super) fn value_true(&self, pointer: &str) -> bool {
        self.value(pointer).is_some_and(|value| value == &Value::Bool(true) || value.as_str() == Some("true"))
    }
}

fn read<T: for<'a> Deserialize<'a>>(text: &str, key: &str) -> Result<Option<T>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    // JSON is YAML too.
    serde_saphyr::from_str(text).map(Some).map_err(|error| {
        let error = error.to_string();
        let line = error.lines().next().unwrap_or_default().to_owned();
        format!("The key {key} of istio-sidecar-injector cannot be read: {line}.")
    })
}

/// The values of a default install, below those that are given.
fn with_defaults(given: Value) -> Value {
    let mut values = json!({
        "global": {
            "istioNamespace": "istio-system",
            "hub": "mesh",
            "tag": env!("CARGO_PKG_VERSION"),
            "imagePullPolicy": "",
            "logging": {"level": "default:info"},
            "proxy": {
                "image": "proxy",
                "clusterDomain": "cluster.local",
                "logLevel": "warning",
                "componentLogLevel": "misc:error",
                "includeIPRanges": "*",
                "excludeIPRanges": "",
                "includeInboundPorts": "*",
                "excludeInboundPorts": "",
                "includeOutboundPorts": "",
                "excludeOutboundPorts": "",
                "readinessInitialDelaySeconds": 0,
                "readinessPeriodSeconds": 15,
                "readinessFailureThreshold": 4,
                "startupProbe": {"enabled": true, "failureThreshold": 600},
                "statusPort": 15020,
                "resources": {
                    "requests": {"cpu": "10m", "memory": "24Mi"},
                    "limits": {"cpu": "2000m", "memory": "256Mi"},
                },
            },
            "proxy_init": {},
        },
        "sidecarInjectorWebhook": {"rewriteAppHTTPProbe": true},
    });
    overlay(&mut values, given);
    values
}

/// Maps are joined; all else replaces. Resources are one value: a limit that is left out is none.
fn overlay(below: &mut Value, above: Value) {
    match (below, above) {
        (_, Value::Null) => {}
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                match below.get_mut(&key) {
                    Some(old) if key != "resources" => overlay(old, value),
                    _ if value.is_null() => {}
                    _ => {
                        below.insert(key, value);
                    }
                }
            }
        }
        (below, above) => *below = above,
    }
}
