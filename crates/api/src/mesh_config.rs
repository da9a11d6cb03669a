//! Mesh-wide settings (Istio `mesh/v1alpha1/config.proto`). `Default` is what Istio does without any.

use serde::Deserialize;
use serde_json::Value;

use crate::crd::destination_rule::{H2UpgradePolicy, LocalityLbSetting, TcpKeepalive};
use crate::crd::sidecar::OutboundTrafficPolicy;
use crate::crd::virtual_service::HttpRetry;
use crate::decode;
use crate::extension_provider::ExtensionProvider;
use crate::problem::{Code, Problem};
use crate::value::Duration;

/// Fields that Istio has and [`MeshConfig`] lacks: not misspelt, but without effect.
const NOT_BUILT: &[&str] = &[
    "ca",
    "certificates",
    "configSources",
    "defaultTrafficPolicy",
    "disableEnvoyListenerLog",
    "enableEnvoyAccessLogService",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "outboundClusterStatName",
    "serviceEntryVisibility",
    "serviceScopeConfigs",
    "tlsDefaults",
    "verifyCertificateAtClient",
    "zoneAwareLbSetting",
];

/// The settings. Fields that Istio has and this struct lacks are in [`NOT_BUILT`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Port for captured outbound connections.
    pub proxy_listen_port: u16,
    /// Port for captured inbound connections.
    pub proxy_inbound_listen_port: u16,
    /// Port on which sidecars serve as an HTTP proxy; 0 is off.
    pub proxy_http_port: u16,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Keep-alive of sockets to endpoints.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// How long to wait for bytes that tell the protocol; 0 is for ever.
    pub protocol_detection_timeout: Duration,
    /// File of the access log; empty is none.
    pub access_log_file: String,
    /// Format of the access log.
    pub access_log_format: String,
    /// Text or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// Whether traces are made.
    pub enable_tracing: bool,
    /// What happens to traffic whose destination is not known.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Whether mutual TLS is used by itself where the endpoint can.
    pub enable_auto_mtls: bool,
    /// Trust domain of the identities.
    pub trust_domain: String,
    /// Others that count as it.
    pub trust_domain_aliases: Vec<String>,
    /// Namespace whose objects are for the whole mesh.
    pub root_namespace: String,
    /// Who sees services that do not say.
    pub default_service_export_to: Vec<String>,
    /// Who sees VirtualServices that do not say.
    pub default_virtual_service_export_to: Vec<String>,
    /// Who sees DestinationRules that do not say.
    pub default_destination_rule_export_to: Vec<String>,
    /// Preference of near endpoints.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// How often DNS is asked.
    pub dns_refresh_rate: Duration,
    /// Whether HTTP/1 becomes HTTP/2 on the way.
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// Retries of routes that do not say.
    pub default_http_retry_policy: Option<HttpRetry>,
    /// How paths are normalised.
    pub path_normalization: PathNormalization,
    /// Whether metrics of application and proxy are merged.
    pub enable_prometheus_merge: bool,
    /// External services for policy, traces and logs.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Settings of the proxies.
    pub default_config: Option<Value>,
    /// Providers used without being asked for.
    pub default_providers: Option<Value>,
    /// Label selectors of namespaces that are read.
    pub discovery_selectors: Vec<Value>,
    /// Settings of services.
    pub service_settings: Vec<Value>,
    /// Certificates trusted besides the mesh's.
    pub ca_certificates: Vec<Value>,
    /// TLS inside the mesh.
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<Value>,
    /// Class of Ingress objects.
    pub ingress_class: String,
    /// Service of the ingress gateway.
    pub ingress_service: String,
    /// Label of the ingress gateway.
    pub ingress_selector: String,
    /// Which Ingress objects are read.
    pub ingress_controller_mode: String,
}

impl Default for MeshConfig {
    fn default() -> Self {
        let all = || vec!["*".to_owned()];
        Self {
            proxy_listen_port: crate::port::OUTBOUND,
            proxy_inbound_listen_port: crate::port::INBOUND,
            proxy_http_port: 0,
            connect_timeout: Duration::seconds(10),
            tcp_keepalive: None,
            protocol_detection_timeout: Duration::default(),
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            enable_tracing: true,
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
            enable_auto_mtls: true,
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".into(),
            default_service_export_to: all(),
            default_virtual_service_export_to: all(),
            default_destination_rule_export_to: all(),
            locality_lb_setting: None,
            dns_refresh_rate: Duration::seconds(60),
            h2_upgrade_policy: H2UpgradePolicy::DoNotUpgrade,
            default_http_retry_policy: None,
            path_normalization: PathNormalization::default(),
            enable_prometheus_merge: true,
            extension_providers: Vec::new(),
            default_config: None,
            default_providers: None,
            discovery_selectors: Vec::new(),
            service_settings: Vec::new(),
            ca_certificates: Vec::new(),
            mesh_mtls: None,
            ingress_class: "istio".into(),
            ingress_service: "istio-ingressgateway".into(),
            ingress_selector: "ingressgateway".into(),
            ingress_controller_mode: "STRICT".into(),
        }
    }
}

/// How the access log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// Lines of text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How paths are normalised before they are matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    /// Which way.
    pub normalization: NormalizationType,
}

/// The ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NormalizationType {
    /// As BASE.
    #[default]
    Default,
    /// Not at all.
    None,
    /// RFC 3986, and backslashes become slashes.
    Base,
    /// And several slashes become one.
    MergeSlashes,
    /// And escaped slashes are decoded first.
    DecodeAndMergeSlashes,
}

/// Reads a proxy's own settings (`PROXY_CONFIG`): YAML of a map.
///
/// # Errors
/// It is no such text, or a value of another type than what is read of it.
pub fn proxy_config(text: &str) -> Result<Value, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if !value.is_object() {
        return Err("expected a map of settings".to_owned());
    }
    let kept = value.get("proxyHeaders").and_then(|headers| headers.get("preserveHttp1HeaderCase"));
    match kept {
        Some(other) if !other.is_boolean() => {
            Err(format!("proxyHeaders.preserveHttp1HeaderCase: expected true or false, found {other}"))
        }
        _ => Ok(value),
    }
}

impl MeshConfig {
    /// Reads the text of the key `mesh` of Istio's ConfigMap. A field that cannot be read is reported; then the defaults
    /// are returned.
    pub fn parse(text: &str, file: &str) -> (MeshConfig, Vec<Problem>) {
        let (settings, mut problems) = decode::settings(text, file, "MeshConfig");
        for problem in problems.iter_mut().filter(|problem| NOT_BUILT.contains(&problem.field.as_str())) {
            problem.code = Code::NotBuilt;
            problem.message = format!("The setting {} is not built yet; it has no effect.", problem.field);
        }
        (settings, problems)
    }
}

/// The settings that injection or the proxy itself go by.
const PROXY_CONFIG_WITH_EFFECT: &[&str] = &[
    "interceptionMode",
    "discoveryAddress",
    "concurrency",
    "proxyMetadata",
    "holdApplicationUntilProxyStarts",
    "terminationDrainDuration",
    "drainDuration",
    "statusPort",
];

/// The settings in proxies' own settings (`defaultConfig`, `PROXY_CONFIG`) that have no effect on what proxies are told.
pub fn proxy_config_without_effect(proxy_config: &Value) -> Vec<String> {
    let mut fields = Vec::new();
    for (name, value) in proxy_config.as_object().into_iter().flatten() {
        match (name.as_str(), value.as_object()) {
            (name, _) if PROXY_CONFIG_WITH_EFFECT.contains(&name) => {}
            ("proxyHeaders", Some(headers)) => {
                let others = headers.keys().filter(|name| *name != "preserveHttp1HeaderCase");
                fields.extend(others.map(|name| format!("proxyHeaders.{name}")));
            }
            _ => fields.push(name.clone()),
        }
    }
    fields
}

/// What settings of proxies (`defaultConfig`, the annotation `proxy.istio.io/config`, a node's `PROXY_CONFIG`) say about the
/// spelling of HTTP/1 header names: kept (true), lower case (false), or nothing.
pub fn preserve_http1_header_case(proxy_config: &Value) -> Option<bool> {
    proxy_config.get("proxyHeaders")?.get("preserveHttp1HeaderCase")?.as_bool()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::sidecar::OutboundMode;

    #[test]
    fn a_field_of_istios_is_not_called_unknown() {
        let (_, problems) =
            MeshConfig::parse("ca: {address: a}\nfoo: 1\ninboundTrafficPolicy: {mode: LOCALHOST}\n", "m");
        let codes: Vec<_> = problems.iter().map(|problem| (problem.field.as_str(), problem.code)).collect();
        assert_eq!(
            codes,
            [("ca", Code::NotBuilt), ("foo", Code::UnknownField), ("inboundTrafficPolicy", Code::NotBuilt)]
        );
        assert!(problems[0].message.contains("not built"), "{}", problems[0]);
    }

    #[test]
    fn fields_override_the_defaults() {
        let (mesh, problems) = MeshConfig::parse(
            "accessLogFile: /dev/stdout\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\nproxyHttpPort: 15080\nfoo: 1\n",
            "m",
        );
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].field, "foo");
        assert_eq!(mesh.outbound_traffic_policy.mode, Some(OutboundMode::RegistryOnly));
        assert_eq!(
            (mesh.proxy_http_port, mesh.connect_timeout, mesh.access_log_file.as_str()),
            (15080, Duration::seconds(10), "/dev/stdout")
        );
        assert_eq!(MeshConfig::parse("", "m"), (MeshConfig::default(), vec![]));
        assert_eq!(MeshConfig::parse("connectTimeout: 5", "m").1.len(), 1);
    }
}
