//! The control plane's own TLS: a certificate of our authority that renews itself, callers' certificates checked if shown.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;

use super::issue;
use super::root::Root;

/// The certificate in use.
#[derive(Debug)]
pub struct Serving {
    current: RwLock<Arc<CertifiedKey>>,
}

impl Serving {
    /// Issues the first certificate.
    ///
    /// # Errors
    /// A name cannot stand in a certificate.
    pub fn new(root: &Root, names: &[String]) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { current: RwLock::new(Arc::new(certify(root, names)?)) }))
    }

    /// Issues a new certificate at half of the old one's life, for ever.
    pub async fn renew(self: Arc<Self>, root: Arc<Root>, names: Vec<String>) {
        loop {
            tokio::time::sleep(Duration::from_secs(issue::DEFAULT_LIFE.whole_seconds().unsigned_abs() / 2)).await;
            match certify(&root, &names) {
                Ok(key) => {
                    if let Ok(mut current) = self.current.write() {
                        *current = Arc::new(key);
                    }
                }
                Err(error) => tracing::error!("the control plane's own certificate could not be renewed: {error:#}"),
            }
        }
    }

    /// TLS for gRPC: a caller's certificate is checked if it shows one; whether it must is decided by the service.
    ///
    /// # Errors
    /// The trust bundle cannot be used.
    pub fn config(self: &Arc<Self>, root: &Root, alpn: &[&str]) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(root.bundle.as_bytes()) {
            roots
                .add(certificate.context("the trust bundle is not PEM")?)
                .context("the trust bundle holds no authority")?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

fn certify(root: &Root, names: &[String]) -> Result<CertifiedKey> {
    let (chain, key) = issue::serving(root, names, OffsetDateTime::now_utc())
        .context("the control plane's own certificate could not be made")?;
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    Ok(CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?))
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().ok().map(|current| current.clone())
    }
}
