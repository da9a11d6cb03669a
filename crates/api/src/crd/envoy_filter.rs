//! EnvoyFilter (networking.istio.io): patches of the proxies' configuration.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::crd::target_reference::PolicyTargetReference;
use crate::schema::at_most_one;
use crate::selector::WorkloadSelector;

/// The spec of an EnvoyFilter.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([{
    "rule": "!(has(self.workloadSelector) && has(self.targetRefs))",
    "message": "only one of targetRefs or workloadSelector can be set",
}])))]
pub struct EnvoyFilter {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub workload_selector: Option<WorkloadSelector>,
    /// Objects that the patches are for, in place of workloads.
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Patches, in order.
    pub config_patches: Vec<ConfigPatch>,
    /// Lower ones come first, negative ones before those without.
    pub priority: i32,
}

/// One patch.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigPatch {
    /// What is patched.
    pub apply_to: Option<ApplyTo>,
    /// Where.
    #[serde(rename = "match")]
    pub matches: Option<PatchMatch>,
    /// How.
    pub patch: Option<Patch>,
}

/// What is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ApplyTo {
    /// Nothing.
    Invalid,
    /// A listener.
    Listener,
    /// A filter chain of a listener.
    FilterChain,
    /// A network filter of a filter chain.
    NetworkFilter,
    /// An HTTP filter.
    HttpFilter,
    /// A route table.
    RouteConfiguration,
    /// A virtual host of a route table.
    VirtualHost,
    /// A route of a virtual host.
    HttpRoute,
    /// A cluster.
    Cluster,
    /// A filter's settings that are delivered apart from it.
    ExtensionConfig,
    /// What the proxy starts with.
    Bootstrap,
    /// A listener filter.
    ListenerFilter,
}

/// Where a patch applies: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend(
    "oneOf" = at_most_one(&["listener", "routeConfiguration", "cluster", "waypoint"]),
    "x-kubernetes-validations" = json!([{
        "rule": "has(self.waypoint) == (has(self.context) && self.context == 'WAYPOINT')",
        "message": "only support waypointMatch when context is WAYPOINT",
    }]),
))]
pub struct PatchMatch {
    /// On which side of which proxies; default any.
    pub context: Option<PatchContext>,
    /// Which proxies.
    pub proxy: Option<ProxyMatch>,
    /// Which listener, or part of it.
    pub listener: Option<ListenerMatch>,
    /// Which route table, or part of it.
    pub route_configuration: Option<RouteConfigurationMatch>,
    /// Which cluster.
    pub cluster: Option<ClusterMatch>,
    /// Which part of a waypoint's configuration.
    pub waypoint: Option<WaypointMatch>,
}

/// On which side of which proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PatchContext {
    /// Any.
    Any,
    /// What sidecars take in.
    SidecarInbound,
    /// What sidecars send.
    SidecarOutbound,
    /// Gateways.
    Gateway,
    /// Waypoints.
    Waypoint,
}

/// Which proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyMatch {
    /// Regular expression of the proxy's version.
    pub proxy_version: String,
    /// Metadata of the proxy's node.
    pub metadata: BTreeMap<String, String>,
}

/// Which listener, or part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerMatch {
    /// Port of the service or gateway.
    pub port_number: u32,
    /// Not used.
    pub port_name: String,
    /// Filter chain of the listener.
    pub filter_chain: Option<FilterChainMatch>,
    /// Listener filter, by name.
    pub listener_filter: String,
    /// The listener's own name.
    pub name: String,
}

/// Which filter chain, or filter of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterChainMatch {
    /// Name.
    pub name: String,
    /// Server name that it matches.
    pub sni: String,
    /// `raw_buffer` or `tls`.
    pub transport_protocol: String,
    /// ALPN names that it matches, separated by commas.
    pub application_protocols: String,
    /// Network filter of the chain.
    pub filter: Option<FilterMatch>,
    /// Port that it matches.
    pub destination_port: u32,
}

/// Which filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterMatch {
    /// Name.
    pub name: String,
    /// Filter inside of it: of HTTP in the connection manager.
    pub sub_filter: Option<Named>,
}

/// Something with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Named {
    /// Name.
    pub name: String,
}

/// Which route table, or part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteConfigurationMatch {
    /// Port of the service or gateway.
    pub port_number: u32,
    /// Name of the gateway's port.
    pub port_name: String,
    /// Gateway, `namespace/name`.
    pub gateway: String,
    /// Virtual host.
    pub vhost: Option<VirtualHostMatch>,
    /// The table's own name.
    pub name: String,
}

/// Which virtual host, or route of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualHostMatch {
    /// Name, `host:port`.
    pub name: String,
    /// One of its domains.
    pub domain_name: String,
    /// Route.
    pub route: Option<RouteMatch>,
}

/// Which route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteMatch {
    /// Name.
    pub name: String,
    /// What it does.
    pub action: Option<RouteAction>,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RouteAction {
    /// Anything.
    Any,
    /// Forwards.
    Route,
    /// Redirects.
    Redirect,
    /// Answers.
    DirectResponse,
}

/// Which cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterMatch {
    /// Port of the service.
    pub port_number: u32,
    /// Host of the service.
    pub service: String,
    /// Subset.
    pub subset: String,
    /// The cluster's own name.
    pub name: String,
}

/// Which part of a waypoint's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WaypointMatch {
    /// Filter.
    pub filter: Option<FilterMatch>,
    /// Port of the service.
    #[schemars(extend("x-kubernetes-validations" = json!([
        {"rule": "self > 0 && self <= 65535", "message": "port must be between 1-65535"},
    ])))]
    pub port_number: Option<u32>,
    /// Route.
    pub route: Option<Named>,
}

/// How something is patched.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Patch {
    /// What is done.
    pub operation: Option<Operation>,
    /// The patch, in Envoy's JSON.
    pub value: Value,
    /// Among which of Istio's filters a new one stands.
    pub filter_class: Option<FilterClass>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Operation {
    /// Nothing.
    Invalid,
    /// Fields are merged.
    Merge,
    /// It is added at the end.
    Add,
    /// It is taken away.
    Remove,
    /// It is put before what matches.
    InsertBefore,
    /// It is put after what matches.
    InsertAfter,
    /// It is put before all.
    InsertFirst,
    /// It takes the place of what matches.
    Replace,
    /// Fields are merged, and lists take the place of lists.
    MergeAndReplaceList,
}

/// Among which of Istio's filters a new one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FilterClass {
    /// Not said.
    Unspecified,
    /// After authentication.
    Authn,
    /// After authorization.
    Authz,
    /// Before metrics.
    Stats,
}
