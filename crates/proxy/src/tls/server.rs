//! The accepting side.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::verify::facts_of;
use crate::secret::Store;
use crate::snapshot::tls_terms::ServerTerms;

/// Which protocols we accept on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accepts {
    /// Those of the terms.
    Terms,
    /// The multiplexed one before those of the terms.
    Mux,
    /// None: the client offers nothing that we know, which must not fail the handshake.
    Nothing,
}

/// Configurations of one worker.
#[derive(Debug)]
pub struct Configs {
    secrets: Arc<Store>,
    provider: Arc<CryptoProvider>,
    built: RefCell<Built>,
}

/// A configuration with the URI of our own certificate.
#[derive(Clone, Debug)]
pub struct Config {
    /// For the handshake.
    pub tls: Arc<ServerConfig>,
    /// Our own name.
    pub own_uri: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Built {
    generation: u64,
    by_terms: HashMap<(usize, Accepts), (Arc<ServerTerms>, Config)>,
}

/// Certificates by server name; the first is the default.
#[derive(Debug)]
struct ByName(Vec<(Vec<String>, Arc<CertifiedKey>)>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or("").to_ascii_lowercase();
        let fits = |pattern: &String| match pattern.strip_prefix("*.") {
            Some(suffix) => name.split_once('.').is_some_and(|(_, rest)| rest == suffix),
            None => *pattern == name,
        };
        let named = self.0.iter().find(|(patterns, _)| patterns.iter().any(fits));
        named.or(self.0.first()).map(|(_, key)| Arc::clone(key))
    }
}

impl Configs {
    /// Without any configuration yet.
    pub fn new(secrets: Arc<Store>, provider: Arc<CryptoProvider>) -> Self {
        Self { secrets, provider, built: RefCell::default() }
    }

    /// The configuration for terms.
    ///
    /// # Errors
    /// A secret is missing or unusable; the sentence names it.
    pub fn get(&self, terms: &Arc<ServerTerms>, accepts: Accepts) -> Result<Config, String> {
        let secrets = self.secrets.load();
        let mut built = self.built.borrow_mut();
        if built.generation != secrets.generation {
            built.generation = secrets.generation;
            built.by_terms.clear();
        }
        let key = (Arc::as_ptr(terms) as usize, accepts);
        if let Some((_, config)) = built.by_terms.get(&key) {
            return Ok(config.clone());
        }
        let mut certificates = Vec::new();
        let mut own_uri = None;
        for source in &terms.certificates {
            let Some(key) = super::certificate(source, &secrets, &self.provider)? else { continue };
            let facts = key.cert.first().map(facts_of).transpose()?.unwrap_or_default();
            own_uri = own_uri.or_else(|| facts.uris.first().map(|uri| uri.as_str().into()));
            certificates.push((facts.dns.iter().map(|name| name.to_ascii_lowercase()).collect(), key));
        }
        if certificates.is_empty() {
            return Err(format!("no certificate is there yet for {:?}", terms.certificates));
        }
        let versions: &[&rustls::SupportedProtocolVersion] =
            if terms.only_tls13 { &[&TLS13] } else { &[&TLS13, &TLS12] };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = match &terms.roots {
            None => builder.with_no_client_auth(),
            Some(source) => {
                let roots = super::roots(source, &secrets)?
                    .ok_or_else(|| format!("no trust roots are there yet for {source:?}"))?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider));
                let verifier =
                    if terms.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName(certificates)));
        if terms.roots.is_some() {
            // A resumed session would not be checked against the roots of now.
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(NoServerSessionStorage {});
        }
        config.alpn_protocols = match accepts {
            Accepts::Nothing => Vec::new(),
            Accepts::Terms => terms.alpn.iter().map(|name| name.clone().into_bytes()).collect(),
            Accepts::Mux => std::iter::once(super::MUX.to_owned())
                .chain(terms.alpn.iter().cloned())
                .map(String::into_bytes)
                .collect(),
        };
        let config = Config { tls: Arc::new(config), own_uri };
        built.by_terms.insert(key, (Arc::clone(terms), config.clone()));
        Ok(config)
    }
}

/// What to accept from a client that offers these protocols. Multiplexing needs a verified peer: it carries claims about the
/// client's protocol that are believed.
pub fn accepts(terms: &ServerTerms, is_http: bool, offered: &[String]) -> Accepts {
    if is_http
        && terms.require_client_certificate
        && terms.roots.is_some()
        && offered.iter().any(|name| name == super::MUX)
    {
        return Accepts::Mux;
    }
    let known = offered.is_empty() || terms.alpn.iter().any(|name| offered.contains(name));
    if known { Accepts::Terms } else { Accepts::Nothing }
}
