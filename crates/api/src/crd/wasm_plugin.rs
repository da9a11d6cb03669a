//! WasmPlugin (extensions.istio.io): WebAssembly filters; and what describes such a program in other kinds.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::crd::target_reference::{PolicyTargetReference, one_scope};
use crate::selector::MatchLabels;

/// The spec of a WasmPlugin.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["url"], "x-kubernetes-validations" = one_scope()))]
pub struct WasmPlugin {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub selector: Option<MatchLabels>,
    /// One object that this is for, in place of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects that this is for, in place of workloads.
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Where the program is: `oci://` (also without a scheme), `http://`, `https://` or `file://`.
    #[schemars(extend("minLength" = 1, "x-kubernetes-validations" = program_url()))]
    pub url: String,
    /// SHA-256 of the program, or of the image's manifest.
    #[schemars(extend("pattern" = "^([a-f0-9]{64})?$"))]
    pub sha256: String,
    /// When an image is loaded again; default if it is not there, for the tag `latest` always.
    pub image_pull_policy: Option<PullPolicy>,
    /// Secret of the namespace with which images are loaded.
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub image_pull_secret: String,
    /// Not used.
    pub verification_key: String,
    /// What the program is told at its start.
    pub plugin_config: Value,
    /// Name that the program knows itself by.
    #[schemars(extend("minLength" = 1, "maxLength" = 256))]
    pub plugin_name: String,
    /// What happens to requests if the program cannot run; default they are refused.
    pub fail_strategy: Option<FailStrategy>,
    /// The program's surroundings.
    pub vm_config: Option<VmConfig>,
    /// Of HTTP (default) or of connections.
    #[serde(rename = "type")]
    pub kind: Option<PluginType>,
    /// Where among Istio's own filters; default at the end.
    pub phase: Option<PluginPhase>,
    /// Among those of the phase, higher ones come first.
    pub priority: Option<i32>,
    /// Which traffic, one of these; default all.
    #[serde(rename = "match")]
    pub matches: Vec<TrafficSelector>,
}

/// Where a filter stands among Istio's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginPhase {
    /// At the end.
    UnspecifiedPhase,
    /// Before authentication.
    Authn,
    /// Before authorization.
    Authz,
    /// Before metrics.
    Stats,
}

/// A WebAssembly program, as TrafficExtension has it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["url"]))]
pub struct Program {
    /// Where the program is: `oci://` (also without a scheme), `http://`, `https://` or `file://`.
    #[schemars(extend("minLength" = 1, "x-kubernetes-validations" = program_url()))]
    pub url: String,
    /// SHA-256 of the program, or of the image's manifest.
    #[schemars(extend("pattern" = "^([a-f0-9]{64})?$"))]
    pub sha256: String,
    /// When an image is loaded again; default if it is not there, for the tag `latest` always.
    pub image_pull_policy: Option<PullPolicy>,
    /// Secret of the namespace with which images are loaded.
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub image_pull_secret: String,
    /// Not used.
    pub verification_key: String,
    /// What the program is told at its start.
    pub plugin_config: Value,
    /// Name that the program knows itself by.
    #[schemars(extend("minLength" = 1, "maxLength" = 256))]
    pub plugin_name: String,
    /// What happens to requests if the program cannot run; default they are refused.
    pub fail_strategy: Option<FailStrategy>,
    /// The program's surroundings.
    pub vm_config: Option<VmConfig>,
    /// Of HTTP (default) or of connections.
    #[serde(rename = "type")]
    pub kind: Option<PluginType>,
}

/// Rule of a program's place. Without a scheme it is an image.
fn program_url() -> Value {
    json!([{
        "rule": "isURL(self) ? url(self).getScheme() in ['', 'http', 'https', 'oci', 'file'] : isURL('http://' + self)",
        "message": "url must have schema one of [http, https, file, oci]",
    }])
}

/// When an image is loaded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Not said.
    #[serde(rename = "UNSPECIFIED_POLICY")]
    Unspecified,
    /// If it is not there.
    IfNotPresent,
    /// Always.
    Always,
}

/// What happens to requests if a program cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailStrategy {
    /// They are refused.
    FailClose,
    /// They pass.
    FailOpen,
    /// The program is loaded anew.
    FailReload,
}

/// Of what a program is a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginType {
    /// Not said.
    UnspecifiedPluginType,
    /// HTTP requests.
    Http,
    /// Connections.
    Network,
}

/// A program's surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VmConfig {
    /// Environment variables.
    #[schemars(extend("maxItems" = 256, "x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
}

/// An environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"], "x-kubernetes-validations" = json!([{
    "rule": "!(has(self.valueFrom) && self.valueFrom == 'HOST' && has(self.value))",
    "message": "value may only be set when valueFrom is INLINE",
}])))]
pub struct EnvVar {
    /// Name.
    #[schemars(extend("minLength" = 1, "maxLength" = 256))]
    pub name: String,
    /// Where the value comes from; default from here.
    pub value_from: Option<ValueFrom>,
    /// Value.
    #[schemars(extend("maxLength" = 2048))]
    pub value: String,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ValueFrom {
    /// From the object.
    Inline,
    /// From the proxy's environment.
    Host,
}

/// Which traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficSelector {
    /// On which side; default both.
    pub mode: Option<TrafficMode>,
    /// On which ports; default all.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
    pub ports: Vec<PortSelector>,
}

/// A side of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TrafficMode {
    /// Not said.
    Undefined,
    /// The caller's.
    Client,
    /// The one who is called.
    Server,
    /// Both.
    ClientAndServer,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["number"]))]
pub struct PortSelector {
    /// Number.
    #[schemars(extend("minimum" = 1))]
    pub number: u16,
}
