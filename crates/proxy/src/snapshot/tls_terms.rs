//! What a TLS handshake must use and prove, without any TLS library's types. Keys are named, not held: `tls` joins the
//! terms with the secrets of the moment.

use super::text_match::TextMatch;

/// Where a certificate or trust roots come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A secret of this SDS name.
    Named(String),
    /// PEM text in the configuration or read from the file it names. For a certificate: chain, then key.
    Pem(Vec<u8>),
    /// The trust roots of the operating system.
    System,
}

/// Names that the peer's certificate must have one of.
#[derive(Clone, Debug)]
pub struct SanMatch {
    /// Which kind of name.
    pub kind: SanKind,
    /// The text.
    pub text: TextMatch,
}

/// Kind of a subject alternative name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanKind {
    /// Any of them (`match_subject_alt_names`).
    Any,
    /// DNS name.
    Dns,
    /// URI.
    Uri,
}

/// Terms for the side that dials (Envoy `UpstreamTlsContext`).
#[derive(Clone, Debug)]
pub struct ClientTerms {
    /// Our certificate; none for plain HTTPS.
    pub certificate: Option<Source>,
    /// Whom to trust; without it nothing is verified, as in Envoy.
    pub roots: Option<Source>,
    /// Names, one of which the peer must have; empty: any.
    pub sans: Vec<SanMatch>,
    /// Server name to send; empty: none.
    pub sni: String,
    /// Take the request's host as server name.
    pub auto_host_sni: bool,
    /// The certificate must be for the server name that was sent (Envoy `auto_san_validation`, `auto_sni_san_validation`).
    pub name_must_match: bool,
    /// Application protocols to offer, most wanted first.
    pub alpn: Vec<String>,
    /// The peer is expected to be a sidecar (the protocols offered include `istio`).
    pub mesh: bool,
    /// TLS 1.3 only.
    pub only_tls13: bool,
}

/// Terms for the side that accepts (Envoy `DownstreamTlsContext`).
#[derive(Clone, Debug)]
pub struct ServerTerms {
    /// Our certificates, first is the default; others are chosen by server name.
    pub certificates: Vec<Source>,
    /// Whom to trust, if client certificates are looked at.
    pub roots: Option<Source>,
    /// The client must show a certificate.
    pub require_client_certificate: bool,
    /// Names, one of which the client must have; empty: any.
    pub sans: Vec<SanMatch>,
    /// Application protocols that we accept.
    pub alpn: Vec<String>,
    /// TLS 1.3 only.
    pub only_tls13: bool,
}

impl SanMatch {
    /// Whether one of the names is accepted.
    pub fn matches(&self, uris: &[String], dns: &[String]) -> bool {
        let uri = matches!(self.kind, SanKind::Any | SanKind::Uri) && uris.iter().any(|name| self.text.matches(name));
        uri || matches!(self.kind, SanKind::Any | SanKind::Dns) && dns.iter().any(|name| self.text.matches(name))
    }
}
