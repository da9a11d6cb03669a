//! AuthorizationPolicy (security.istio.io): who may do what.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::crd::target_reference::{PolicyTargetReference, one_scope};
use crate::selector::MatchLabels;

/// The spec of an AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = one_scope()))]
pub struct AuthorizationPolicy {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub selector: Option<MatchLabels>,
    /// One object that the policy is for, in place of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects that the policy is for, in place of workloads.
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Requests that the policy is for: any of the rules must match. None matches nothing, an empty one everything.
    #[schemars(extend("maxItems" = 512))]
    pub rules: Vec<Rule>,
    /// What happens to them.
    pub action: Action,
    /// Who decides, for CUSTOM.
    pub provider: Option<ExtensionProvider>,
    /// Not written by anybody: the text could not be read whole, and this is what stands for it.
    #[serde(skip)]
    pub is_unread: bool,
}

/// What happens to requests that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// They may pass; all others of the workload may not.
    #[default]
    Allow,
    /// They are refused, whatever else allows them.
    Deny,
    /// They are noted.
    Audit,
    /// A provider decides, before all others.
    Custom,
}

/// A provider of the mesh-wide settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// Its name among `extensionProviders`.
    pub name: String,
}

/// One rule: `from`, `to` and `when` must all match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Callers: any of these.
    #[schemars(extend("maxItems" = 512))]
    pub from: Vec<From>,
    /// Operations: any of these.
    pub to: Vec<To>,
    /// Conditions: all of these.
    pub when: Vec<Condition>,
}

/// A caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct From {
    /// What is known of it.
    pub source: Option<Source>,
}

/// What is known of a caller: all given fields must match. Texts are exact, `prefix*`, `*suffix`, or `*` for any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([{
    "rule": "!((has(self.serviceAccounts) || has(self.notServiceAccounts)) && (has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces)))",
    "message": "serviceAccounts cannot be given together with principals or namespaces",
}])))]
pub struct Source {
    /// Identities, `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub principals: Vec<String>,
    /// Identities that do not match.
    pub not_principals: Vec<String>,
    /// Identities by token, `ISSUER/SUBJECT`.
    pub request_principals: Vec<String>,
    /// Identities by token that do not match.
    pub not_request_principals: Vec<String>,
    /// Namespaces of the identity.
    pub namespaces: Vec<String>,
    /// Namespaces that do not match.
    pub not_namespaces: Vec<String>,
    /// Service accounts, `NAMESPACE/NAME` or a name in the policy's namespace.
    #[schemars(extend("maxItems" = 16))]
    pub service_accounts: Vec<String>,
    /// Service accounts that do not match.
    #[schemars(extend("maxItems" = 16))]
    pub not_service_accounts: Vec<String>,
    /// Addresses (or CIDR) of the connection.
    pub ip_blocks: Vec<String>,
    /// Addresses that do not match.
    pub not_ip_blocks: Vec<String>,
    /// Addresses (or CIDR) of the original client, by X-Forwarded-For or the PROXY protocol.
    pub remote_ip_blocks: Vec<String>,
    /// Addresses of the original client that do not match.
    pub not_remote_ip_blocks: Vec<String>,
    /// Trust domains of the identity.
    pub trust_domains: Vec<String>,
    /// Trust domains that do not match.
    pub not_trust_domains: Vec<String>,
}

/// An operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct To {
    /// What is known of it.
    pub operation: Option<Operation>,
}

/// What is known of a request: all given fields must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Hosts, in any case.
    pub hosts: Vec<String>,
    /// Hosts that do not match.
    pub not_hosts: Vec<String>,
    /// Ports.
    pub ports: Vec<String>,
    /// Ports that do not match.
    pub not_ports: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Methods that do not match.
    pub not_methods: Vec<String>,
    /// Paths; `{*}` is one segment, `{**}` at the end the rest.
    pub paths: Vec<String>,
    /// Paths that do not match.
    pub not_paths: Vec<String>,
}

/// A condition on an attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["key"]))]
pub struct Condition {
    /// Which attribute: `request.headers[x-name]`, `source.ip`, `request.auth.claims[role]` …
    pub key: String,
    /// Values, any of these.
    pub values: Vec<String>,
    /// Values that do not match.
    pub not_values: Vec<String>,
}
