//! PeerAuthentication (security.istio.io): whether workloads take mutual TLS, plaintext or both.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::selector::MatchLabels;

/// The spec of a PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([{
    "rule": "!has(self.portLevelMtls) || size(self.portLevelMtls) == 0 || (has(self.selector) && has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0)",
    "message": "portLevelMtls needs a selector",
}])))]
pub struct PeerAuthentication {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub selector: Option<MatchLabels>,
    /// For all ports.
    pub mtls: Option<MutualTls>,
    /// For single ports of the workload.
    #[schemars(extend("maxProperties" = 256, "x-kubernetes-validations" = json!([{
        "rule": "self.all(port, 0 < int(port) && int(port) <= 65535)",
        "message": "each port must be a number from 1 to 65535",
    }])))]
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// A mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// Which.
    pub mode: MutualTlsMode,
}

/// The modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// As the next wider policy says; PERMISSIVE if none does.
    #[default]
    Unset,
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
