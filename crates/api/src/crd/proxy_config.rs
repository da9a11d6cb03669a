//! ProxyConfig (networking.istio.io): settings of the proxies of a namespace or of some workloads.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::selector::MatchLabels;
use crate::value::Labels;

/// The spec of a ProxyConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub selector: Option<MatchLabels>,
    /// Worker threads; 0 is one for each core, default as the container's CPU limit says.
    pub concurrency: Option<i32>,
    /// Environment variables; `ISTIO_META_*` become metadata of the proxy.
    #[schemars(extend("additionalProperties" = serde_json::json!({"type": "string", "maxLength": 2048})))]
    pub environment_variables: Labels,
    /// Which image.
    pub image: Option<ProxyImage>,
}

/// An image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyImage {
    /// default, debug or distroless.
    pub image_type: String,
}
