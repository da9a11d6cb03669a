//! Services outside of the mesh's own programs that its settings name (`extensionProviders`): who decides about requests, who gets
//! traces and logs.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::value::Duration;

/// One of `extensionProviders`: a name, and exactly one of the other fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// By which policies name it.
    pub name: String,
    /// Decides about requests; Envoy's ext_authz over gRPC.
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    /// Decides about requests; Envoy's ext_authz over HTTP.
    pub envoy_ext_authz_http: Option<ExtAuthzHttp>,
    /// Traces in Zipkin's form.
    pub zipkin: Option<Value>,
    /// Traces (deprecated).
    pub lightstep: Option<Value>,
    /// Traces.
    pub datadog: Option<Value>,
    /// Traces, metrics and logs.
    pub stackdriver: Option<Value>,
    /// Traces (deprecated).
    pub opencensus: Option<Value>,
    /// Traces.
    pub skywalking: Option<Value>,
    /// Traces in OpenTelemetry's form.
    pub opentelemetry: Option<Value>,
    /// Metrics.
    pub prometheus: Option<Value>,
    /// Access log to a file.
    pub envoy_file_access_log: Option<Value>,
    /// Access log of requests to a service.
    pub envoy_http_als: Option<Value>,
    /// Access log of connections to a service.
    pub envoy_tcp_als: Option<Value>,
    /// Access log to a service in OpenTelemetry's form.
    pub envoy_otel_als: Option<Value>,
    /// Secrets.
    pub sds: Option<Value>,
}

impl ExtensionProvider {
    /// The kinds of which some are given, by the fields' names.
    pub fn kinds(&self) -> Vec<&'static str> {
        let rows = [
            ("envoyExtAuthzGrpc", self.envoy_ext_authz_grpc.is_some()),
            ("envoyExtAuthzHttp", self.envoy_ext_authz_http.is_some()),
            ("zipkin", self.zipkin.is_some()),
            ("lightstep", self.lightstep.is_some()),
            ("datadog", self.datadog.is_some()),
            ("stackdriver", self.stackdriver.is_some()),
            ("opencensus", self.opencensus.is_some()),
            ("skywalking", self.skywalking.is_some()),
            ("opentelemetry", self.opentelemetry.is_some()),
            ("prometheus", self.prometheus.is_some()),
            ("envoyFileAccessLog", self.envoy_file_access_log.is_some()),
            ("envoyHttpAls", self.envoy_http_als.is_some()),
            ("envoyTcpAls", self.envoy_tcp_als.is_some()),
            ("envoyOtelAls", self.envoy_otel_als.is_some()),
            ("sds", self.sds.is_some()),
        ];
        rows.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    /// Whether it decides about requests.
    pub fn is_ext_authz(&self) -> bool {
        self.envoy_ext_authz_grpc.is_some() || self.envoy_ext_authz_http.is_some()
    }
}

/// Who is asked over gRPC (`envoy.service.auth.v3.Authorization`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzGrpc {
    /// Host of the service, or `NAMESPACE/HOST` where several namespaces have one.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// Time for an answer; default 600 s.
    pub timeout: Option<Duration>,
    /// Whether requests pass when there is no answer.
    pub fail_open: bool,
    /// Whether a request that the answer changes is routed anew.
    pub clear_route_cache: bool,
    /// HTTP status when there is no answer; default 403.
    pub status_on_error: String,
    /// How much of a request's body is sent along; default nothing.
    pub include_request_body_in_check: Option<RequestBody>,
}

/// Who is asked by a request like the one that is asked about: an answer of 200 allows it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzHttp {
    /// Host of the service, or `NAMESPACE/HOST` where several namespaces have one.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// Time for an answer; default 600 s.
    pub timeout: Option<Duration>,
    /// Stands before the path that is asked about.
    pub path_prefix: String,
    /// Whether requests pass when there is no answer.
    pub fail_open: bool,
    /// Whether a request that the answer changes is routed anew.
    pub clear_route_cache: bool,
    /// HTTP status when there is no answer; default 403.
    pub status_on_error: String,
    /// Headers of the request that are sent along, besides `Host`, `Method`, `Path`, `Content-Length` and `Authorization`. Exact,
    /// `PREFIX*` or `*SUFFIX`, in any case.
    pub include_request_headers_in_check: Vec<String>,
    /// The same (deprecated).
    pub include_headers_in_check: Vec<String>,
    /// Headers that are added.
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// How much of a request's body is sent along; default nothing.
    pub include_request_body_in_check: Option<RequestBody>,
    /// Headers of the answer that go on to the application.
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Headers of the answer that go back to a caller who is refused; default all.
    pub headers_to_downstream_on_deny: Vec<String>,
    /// Headers of the answer that go back to a caller who is let in.
    pub headers_to_downstream_on_allow: Vec<String>,
}

/// How much of a request's body is sent along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestBody {
    /// Bytes at most.
    pub max_request_bytes: u32,
    /// Whether of a longer body its beginning is sent; else the request is refused (413).
    pub allow_partial_message: bool,
    /// Whether it is sent as bytes, else as text.
    pub pack_as_bytes: bool,
}
