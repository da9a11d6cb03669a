//! WorkloadGroup (networking.istio.io): what the WorkloadEntries of machines that register themselves look like.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::workload_entry::WorkloadEntry;
use crate::value::Labels;

/// The spec of a WorkloadGroup.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["template"]))]
pub struct WorkloadGroup {
    /// Labels and annotations of the entries.
    pub metadata: GroupMetadata,
    /// The entries.
    pub template: WorkloadEntry,
    /// How health is found out.
    pub probe: Option<ReadinessProbe>,
}

/// Labels and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupMetadata {
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
}

/// How health is found out: one of the four ways, and how often.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessProbe {
    /// A request.
    pub http_get: Option<serde_json::Value>,
    /// A connection.
    pub tcp_socket: Option<serde_json::Value>,
    /// A command.
    pub exec: Option<serde_json::Value>,
    /// gRPC's health service.
    pub grpc: Option<serde_json::Value>,
    /// Seconds before the first.
    pub initial_delay_seconds: Option<u32>,
    /// Seconds until one fails; default 1.
    pub timeout_seconds: Option<u32>,
    /// Seconds between two; default 10.
    pub period_seconds: Option<u32>,
    /// Successes to be healthy; default 1.
    pub success_threshold: Option<u32>,
    /// Failures to be unhealthy; default 3.
    pub failure_threshold: Option<u32>,
}
