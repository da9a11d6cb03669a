//! Objects that a policy can be for in place of workloads: gateways and services (Istio `PolicyTargetReference`).

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// One such object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["kind", "name"]))]
pub struct PolicyTargetReference {
    /// API group; empty for Service.
    #[schemars(extend("maxLength" = 253))]
    pub group: String,
    /// Kind: Gateway, GatewayClass, Service, ServiceEntry.
    #[schemars(extend("minLength" = 1, "maxLength" = 63))]
    pub kind: String,
    /// Name.
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: String,
    /// Must be empty: the object is in the policy's namespace.
    #[schemars(extend("x-kubernetes-validations" = json!([
        {"rule": "self.size() == 0", "message": "cross namespace referencing is not supported"},
    ])))]
    pub namespace: String,
}

/// Rule of kinds that have a selector and references: a policy has one of them at most.
pub(crate) fn one_scope() -> Value {
    json!([{
        "rule": "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
        "message": "only one of targetRefs or selector can be set",
    }])
}
