//! TrafficExtension (extensions.istio.io): WebAssembly or Lua filters.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::crd::target_reference::PolicyTargetReference;
use crate::crd::wasm_plugin::{Program, TrafficSelector};
use crate::schema::at_most_one;
use crate::selector::MatchLabels;

/// The spec of a TrafficExtension.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("oneOf" = at_most_one(&["wasm", "lua"]), "x-kubernetes-validations" = json!([
    {
        "rule": "!(has(self.selector) && has(self.targetRefs))",
        "message": "only one of targetRefs or selector can be set",
    },
    {"rule": "has(self.wasm) != has(self.lua)", "message": "exactly one of wasm or lua must be set"},
])))]
pub struct TrafficExtension {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub selector: Option<MatchLabels>,
    /// Objects that this is for, in place of workloads.
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Where among Istio's own filters; default at the end.
    pub phase: Option<ExtensionPhase>,
    /// Among those of the phase, higher ones come first.
    pub priority: Option<i32>,
    /// Which traffic, one of these; default all.
    #[serde(rename = "match")]
    pub matches: Vec<TrafficSelector>,
    /// A WebAssembly program.
    pub wasm: Option<Program>,
    /// A Lua program.
    pub lua: Option<Lua>,
}

/// Where a filter stands among Istio's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ExtensionPhase {
    /// At the end.
    Unspecified,
    /// Before authentication.
    Authn,
    /// Before authorization.
    Authz,
    /// Before metrics.
    Stats,
}

/// A Lua program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["inlineCode"]))]
pub struct Lua {
    /// Its text, with the functions `envoy_on_request` and `envoy_on_response`.
    #[schemars(extend("minLength" = 1, "maxLength" = 65536))]
    pub inline_code: String,
}
