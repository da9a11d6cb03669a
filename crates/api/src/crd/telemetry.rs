//! Telemetry (telemetry.istio.io): metrics, access logs and traces of workloads.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::crd::target_reference::{PolicyTargetReference, one_scope};
use crate::schema::{at_least_1ms, at_most_one};
use crate::selector::MatchLabels;
use crate::value::Duration;

/// The spec of a Telemetry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = one_scope()))]
pub struct Telemetry {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub selector: Option<MatchLabels>,
    /// One object that this is for, in place of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects that this is for, in place of workloads.
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Traces.
    pub tracing: Vec<Tracing>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Access logs.
    pub access_logging: Vec<AccessLogging>,
}

/// Traces.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// On which side; default both.
    #[serde(rename = "match")]
    pub matches: Option<Side>,
    /// Where they go; only the first is used.
    pub providers: Vec<Provider>,
    /// Of 100 requests that nobody has decided about yet, so many are traced.
    #[schemars(extend("minimum" = 0, "maximum" = 100))]
    pub random_sampling_percentage: Option<f64>,
    /// Whether nothing is reported.
    pub disable_span_reporting: Option<bool>,
    /// Tags of spans by name; they take the place of those of a wider object.
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// Whether a request's id tells if it is traced; default true.
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// Whether spans carry Istio's own tags; default true.
    pub enable_istio_tags: Option<bool>,
    /// Whether headers of traces are left as they are.
    pub disable_context_propagation: Option<bool>,
}

/// On which side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Side {
    /// Which.
    pub mode: Option<Mode>,
}

/// A side of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Both.
    ClientAndServer,
    /// The caller's.
    Client,
    /// The one who is called.
    Server,
}

/// Where something goes: an extension provider of the mesh-wide settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct Provider {
    /// Its name.
    #[schemars(extend("minLength" = 1))]
    pub name: String,
}

/// Where a tag's value comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("oneOf" = at_most_one(&["literal", "environment", "header", "formatter"])))]
pub struct CustomTag {
    /// Always the same.
    pub literal: Option<Text>,
    /// A variable of the proxy's environment.
    pub environment: Option<Source>,
    /// A header of the request.
    pub header: Option<Source>,
    /// A format as of access logs.
    pub formatter: Option<Text>,
}

/// A text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["value"]))]
pub struct Text {
    /// The text.
    #[schemars(extend("minLength" = 1))]
    pub value: String,
}

/// Something by name, that may not be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct Source {
    /// Name.
    #[schemars(extend("minLength" = 1))]
    pub name: String,
    /// Value if it is not there.
    pub default_value: String,
}

/// Metrics.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// Where they go.
    pub providers: Vec<Provider>,
    /// What is other than usual, in order; those of wider objects come first.
    pub overrides: Vec<MetricsOverride>,
    /// How often metrics of long TCP connections are reported; default 5 s.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub reporting_interval: Option<Duration>,
}

/// What is other than usual with some metrics.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsOverride {
    /// With which; default all.
    #[serde(rename = "match")]
    pub matches: Option<MetricMatch>,
    /// Whether they are not made.
    pub disabled: Option<bool>,
    /// Labels by name.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Some metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("oneOf" = at_most_one(&["metric", "customMetric"])))]
pub struct MetricMatch {
    /// One of Istio's.
    pub metric: Option<Metric>,
    /// Another, by name.
    #[schemars(extend("minLength" = 1))]
    pub custom_metric: String,
    /// On which side; default both.
    pub mode: Option<Mode>,
}

/// Istio's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Metric {
    /// All.
    AllMetrics,
    /// Requests.
    RequestCount,
    /// How long they took.
    RequestDuration,
    /// Bytes of requests.
    RequestSize,
    /// Bytes of answers.
    ResponseSize,
    /// TCP connections that began.
    TcpOpenedConnections,
    /// TCP connections that ended.
    TcpClosedConnections,
    /// Bytes sent over TCP.
    TcpSentBytes,
    /// Bytes received over TCP.
    TcpReceivedBytes,
    /// Messages in gRPC requests.
    GrpcRequestMessages,
    /// Messages in gRPC answers.
    GrpcResponseMessages,
}

/// What becomes of a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {
        "rule": "!(has(self.operation) && self.operation == 'UPSERT') || (has(self.value) && self.value != '')",
        "message": "value must be set when operation is UPSERT",
    },
    {
        "rule": "!(has(self.operation) && self.operation == 'REMOVE' && has(self.value))",
        "message": "value must not be set when operation is REMOVE",
    },
])))]
pub struct TagOverride {
    /// What; default it is set.
    pub operation: Option<TagOperation>,
    /// Its value, an expression over Envoy's attributes.
    pub value: String,
}

/// What is done with a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TagOperation {
    /// It is set.
    Upsert,
    /// It is taken away.
    Remove,
}

/// Access logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogging {
    /// On which side; default both.
    #[serde(rename = "match")]
    pub matches: Option<Side>,
    /// Where they go.
    pub providers: Vec<Provider>,
    /// Whether nothing is logged.
    pub disabled: Option<bool>,
    /// What is logged; default all.
    pub filter: Option<LogFilter>,
}

/// What is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFilter {
    /// An expression (CEL) over Envoy's attributes.
    pub expression: String,
}
