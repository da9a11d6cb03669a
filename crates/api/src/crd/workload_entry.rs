//! WorkloadEntry (networking.istio.io): one workload that is not a pod; also the shape of a ServiceEntry's endpoint.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::value::Labels;

/// The spec of a WorkloadEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntry {
    /// IP address, DNS name (with DNS resolution) or `unix:///path`.
    pub address: String,
    /// Port by the service port's name, where it differs from the target port.
    pub ports: BTreeMap<String, u16>,
    /// Labels; in a WorkloadEntry the object's own labels count too.
    pub labels: Labels,
    /// Network.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Share among the endpoints.
    pub weight: u32,
    /// Service account, in the object's namespace.
    pub service_account: String,
}
