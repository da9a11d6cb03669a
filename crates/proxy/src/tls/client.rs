//! The dialling side. A configuration is built once for each terms, offer and generation of secrets, never for a connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use api::xds::PEER_EXCHANGE;
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::verify::{PeerVerifier, facts_of};
use crate::failure::Failure;
use crate::secret::Store;
use crate::snapshot::tls_terms::ClientTerms;

/// What the connection will carry: decides the protocols offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offer {
    /// HTTP/1.1; with `mux`, on a multiplexed connection if the peer can.
    Http1 {
        /// Offer it.
        mux: bool,
        /// Istio's names replace the terms'.
        istio: bool,
    },
    /// HTTP/2, the same.
    Http2 {
        /// Offer it.
        mux: bool,
        /// Istio's names replace the terms'.
        istio: bool,
    },
    /// Either version, whatever the peer prefers.
    Auto,
    /// Bytes.
    Tcp {
        /// With an exchange of metadata in front, if the peer can.
        exchange: bool,
    },
}

/// Configurations of one worker.
#[derive(Debug)]
pub struct Configs {
    secrets: Arc<Store>,
    provider: Arc<CryptoProvider>,
    built: RefCell<Built>,
}

#[derive(Debug, Default)]
struct Built {
    generation: u64,
    // The terms are held, so that their address cannot be used again by others.
    by_terms: HashMap<(usize, Offer), (Arc<ClientTerms>, Config)>,
}

/// A configuration with the URI of the certificate that it offers.
#[derive(Clone, Debug)]
pub struct Config {
    /// For the handshake.
    pub tls: Arc<ClientConfig>,
    /// Our own name.
    pub own_uri: Option<Arc<str>>,
}

#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Configs {
    /// Without any configuration yet.
    pub fn new(secrets: Arc<Store>, provider: Arc<CryptoProvider>) -> Self {
        Self { secrets, provider, built: RefCell::default() }
    }

    /// The configuration for terms and offer.
    ///
    /// # Errors
    /// A secret is missing or unusable.
    pub fn get(&self, terms: &Arc<ClientTerms>, offer: Offer) -> Result<Config, Failure> {
        let secrets = self.secrets.load();
        let mut built = self.built.borrow_mut();
        if built.generation != secrets.generation {
            built.generation = secrets.generation;
            built.by_terms.clear();
        }
        let key = (Arc::as_ptr(terms) as usize, offer);
        if let Some((_, config)) = built.by_terms.get(&key) {
            return Ok(config.clone());
        }
        let unusable = |error| {
            tracing::warn!(%error, "TLS to an upstream cannot be configured");
            Failure::NoCertificate
        };
        let roots = match &terms.roots {
            None => None,
            Some(source) => Some(super::roots(source, &secrets).map_err(unusable)?.ok_or(Failure::NoCertificate)?),
        };
        let versions: &[&rustls::SupportedProtocolVersion] =
            if terms.only_tls13 { &[&TLS13] } else { &[&TLS13, &TLS12] };
        let verifier = PeerVerifier {
            roots,
            sans: terms.sans.clone(),
            name_must_match: terms.name_must_match,
            provider: Arc::clone(&self.provider),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)
            .map_err(|error| unusable(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut own_uri = None;
        let mut config = match &terms.certificate {
            None => builder.with_no_client_auth(),
            Some(source) => {
                let key = super::certificate(source, &secrets, &self.provider)
                    .map_err(unusable)?
                    .ok_or(Failure::NoCertificate)?;
                let facts = key.cert.first().map(facts_of).transpose().map_err(unusable)?.unwrap_or_default();
                own_uri = facts.uris.first().map(|uri| uri.as_str().into());
                builder.with_client_cert_resolver(Arc::new(OneCertificate(key)))
            }
        };
        // A resumed session would not be checked against the roots and names of now.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = protocols(terms, offer).into_iter().map(String::into_bytes).collect();
        let config = Config { tls: Arc::new(config), own_uri };
        built.by_terms.insert(key, (Arc::clone(terms), config.clone()));
        Ok(config)
    }
}

/// The protocols offered, most wanted first (Istio's names: `istio.alpn`).
fn protocols(terms: &ClientTerms, offer: Offer) -> Vec<String> {
    let (mux, names): (bool, Vec<&str>) = match offer {
        Offer::Http1 { mux, istio: true } if terms.mesh => (mux, vec!["istio-http/1.1", "istio", "http/1.1"]),
        Offer::Http2 { mux, istio: true } if terms.mesh => (mux, vec!["istio-h2", "istio", "h2"]),
        Offer::Http1 { mux, .. } => {
            let mut names: Vec<&str> = terms.alpn.iter().map(String::as_str).filter(|name| *name != "h2").collect();
            names.push("http/1.1");
            (mux && terms.mesh, names)
        }
        Offer::Http2 { mux, .. } => {
            let mut names: Vec<&str> =
                terms.alpn.iter().map(String::as_str).filter(|name| *name != "http/1.1").collect();
            names.push("h2");
            (mux && terms.mesh, names)
        }
        Offer::Auto => (false, vec!["h2", "http/1.1"]),
        Offer::Tcp { .. } => {
            (false, terms.alpn.iter().map(String::as_str).filter(|name| *name != "h2" && *name != "http/1.1").collect())
        }
    };
    let exchange = offer == Offer::Tcp { exchange: true };
    let mut all: Vec<String> = Vec::new();
    for name in mux.then_some(super::MUX).into_iter().chain(names) {
        let spoken = name != PEER_EXCHANGE || exchange;
        if spoken && !all.iter().any(|known| known == name) {
            all.push(name.to_owned());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(mesh: bool, alpn: &[&str]) -> ClientTerms {
        ClientTerms {
            certificate: None,
            roots: None,
            sans: vec![],
            sni: String::new(),
            auto_host_sni: false,
            name_must_match: false,
            alpn: alpn.iter().map(|name| (*name).to_owned()).collect(),
            mesh,
            only_tls13: false,
        }
    }

    #[test]
    fn offers_are_istios_behind_ours() {
        let mesh = terms(true, &["istio-peer-exchange", "istio", "h2"]);
        assert_eq!(
            protocols(&mesh, Offer::Http1 { mux: true, istio: true }),
            ["istio-mux/2", "istio-http/1.1", "istio", "http/1.1"]
        );
        assert_eq!(protocols(&mesh, Offer::Http2 { mux: false, istio: true }), ["istio-h2", "istio", "h2"]);
        assert_eq!(protocols(&mesh, Offer::Http1 { mux: false, istio: false }), ["istio", "http/1.1"]);
        assert_eq!(protocols(&mesh, Offer::Tcp { exchange: false }), ["istio"]);
        assert_eq!(protocols(&mesh, Offer::Tcp { exchange: true }), ["istio-peer-exchange", "istio"]);
        let plain = terms(false, &[]);
        assert_eq!(
            protocols(&plain, Offer::Http1 { mux: true, istio: true }),
            ["http/1.1"],
            "only the mesh multiplexes"
        );
        assert!(protocols(&plain, Offer::Tcp { exchange: true }).is_empty());
    }
}
