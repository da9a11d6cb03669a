//! ServiceEntry (networking.istio.io): a service that the platform does not know.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::gateway::Port;
use crate::crd::workload_entry::WorkloadEntry;
use crate::selector::WorkloadSelector;

/// The spec of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["hosts"]))]
pub struct ServiceEntry {
    /// Hosts; wildcards allowed, bare `*` not.
    pub hosts: Vec<String>,
    /// Virtual addresses: IP addresses or CIDR.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Inside or outside of the mesh; default outside.
    pub location: Location,
    /// How endpoints are found; default NONE.
    pub resolution: Resolution,
    /// Endpoints given here.
    pub endpoints: Vec<WorkloadEntry>,
    /// Workloads of the namespace that are the endpoints.
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces that see the object.
    pub export_to: Vec<String>,
    /// Names, one of which the server must have.
    pub subject_alt_names: Vec<String>,
}

/// Inside or outside of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// How endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// They are not: the address that the caller asked for is taken.
    #[default]
    None,
    /// As given.
    Static,
    /// By DNS, all addresses.
    Dns,
    /// By DNS, one address at a time.
    DnsRoundRobin,
    /// By DNS for each request (wildcard hosts).
    DynamicDns,
}
