//! Gateway (networking.istio.io): where traffic enters or leaves the mesh.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::value::Labels;

/// The spec of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// Ports with hosts.
    pub servers: Vec<Server>,
    /// Labels of the proxies that this is for.
    pub selector: Labels,
}

/// One port with its hosts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["port", "hosts"]))]
pub struct Server {
    /// Port.
    #[schemars(extend("required" = ["number", "protocol", "name"]))]
    pub port: Port,
    /// Address to listen on; default all.
    pub bind: String,
    /// Hosts, each perhaps after `namespace/` of the VirtualServices that may use it.
    pub hosts: Vec<String>,
    /// TLS from the clients.
    pub tls: Option<ServerTlsSettings>,
    /// Not used by Istio's control plane.
    pub default_endpoint: String,
    /// Name, unique among the servers.
    pub name: String,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Number.
    pub number: u16,
    /// HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP, TLS.
    pub protocol: String,
    /// Name.
    pub name: String,
    /// Not used by Istio's control plane for gateways.
    pub target_port: Option<u16>,
}

/// TLS from the clients.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTlsSettings {
    /// Whether all requests are answered 301 to https.
    pub https_redirect: bool,
    /// How.
    pub mode: ServerTlsMode,
    /// File of the certificate.
    pub server_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the clients' authorities.
    pub ca_certificates: String,
    /// File of revoked certificates.
    pub ca_crl: String,
    /// Secret with certificate and key.
    pub credential_name: String,
    /// Secrets with certificates and keys of several kinds.
    pub credential_names: Vec<String>,
    /// Files of certificates of several kinds.
    pub tls_certificates: Vec<TlsCertificate>,
    /// Secret with the clients' authorities.
    pub ca_cert_credential_name: String,
    /// Names, one of which the client must have.
    pub subject_alt_names: Vec<String>,
    /// Hashes of keys, one of which the client must have.
    pub verify_certificate_spki: Vec<String>,
    /// Hashes of certificates, one of which the client must have.
    pub verify_certificate_hash: Vec<String>,
    /// Lowest version; default 1.2.
    pub min_protocol_version: Option<TlsProtocol>,
    /// Highest version.
    pub max_protocol_version: Option<TlsProtocol>,
    /// Cipher suites.
    pub cipher_suites: Vec<String>,
    /// Curves.
    pub ecdh_curves: Vec<String>,
    /// Whether the clients' certificates are not verified.
    pub insecure_skip_verify: Option<bool>,
}

/// Files of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsCertificate {
    /// File of the certificate.
    pub server_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the authorities.
    pub ca_certificates: String,
}

/// How TLS from the clients is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// Passed through; the server name chooses the route.
    #[default]
    Passthrough,
    /// Terminated.
    Simple,
    /// Terminated; the client must have a certificate.
    Mutual,
    /// Passed through to the cluster that the server name spells.
    AutoPassthrough,
    /// Terminated with the mesh's certificates.
    IstioMutual,
    /// Terminated; the client may have a certificate.
    OptionalMutual,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum TlsProtocol {
    /// As the proxy does by itself.
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// 1.0.
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// 1.1.
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// 1.2.
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// 1.3.
    #[serde(rename = "TLSV1_3")]
    V1_3,
}
