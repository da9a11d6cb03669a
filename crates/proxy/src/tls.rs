//! TLS: terms of the snapshot joined with the secrets of the moment, handshakes, and what they prove.

pub mod verify;
pub mod server;
pub mod client;

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::secret::Secrets;
use crate::snapshot::tls_terms::Source;

/// The name of the protocol between our proxies (`mux.rs`), with its version.
pub const MUX: &str = "istio-mux/2";

/// SDS names that Istio's agent answers from files (`pkg/security/security.go`): `file-cert:CHAIN~KEY`.
const FILE_CERTIFICATE: &str = "file-cert:";
/// `file-root:FILE`, and `file-root:system` for what the operating system trusts.
const FILE_ROOTS: &str = "file-root:";

/// The cryptography in use.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The certificate of a source; `None` if it is not there (yet).
fn certificate(
    source: &Source,
    secrets: &Secrets,
    provider: &CryptoProvider,
) -> Result<Option<Arc<CertifiedKey>>, String> {
    match source {
        Source::Named(name) => match name.strip_prefix(FILE_CERTIFICATE).and_then(|files| files.split_once('~')) {
            None => Ok(secrets.certificate(name).cloned()),
            Some((chain, key)) => {
                let pem = [read(chain)?, b"\n".to_vec(), read(key)?].concat();
                certificate(&Source::Pem(pem), secrets, provider)
            }
        },
        Source::Pem(pem) => {
            let chain = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("a certificate cannot be read: {error:?}"))?;
            let key = PrivateKeyDer::from_pem_slice(pem)
                .map_err(|error| format!("a private key cannot be read: {error:?}"))?;
            let key = CertifiedKey::from_der(chain, key, provider)
                .map_err(|error| format!("a certificate cannot be used: {error}"))?;
            Ok(Some(Arc::new(key)))
        }
        Source::System => Err("the operating system has no certificate of ours".to_owned()),
    }
}

/// The trust roots of a source; `None` if they are not there (yet).
fn roots(source: &Source, secrets: &Secrets) -> Result<Option<Arc<RootCertStore>>, String> {
    let (pem, what) = match source {
        Source::Named(name) => match name.strip_prefix(FILE_ROOTS) {
            None => return Ok(secrets.roots(name).cloned()),
            Some("system") => return roots(&Source::System, secrets),
            Some(file) => (read(file)?, file),
        },
        Source::Pem(pem) => (pem.clone(), "the given roots"),
        Source::System => (system_roots()?, "the operating system's roots"),
    };
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
        // One root that cannot be used does not spoil the others.
        let _ = store.add(certificate);
    }
    if store.is_empty() {
        return Err(format!("{what} hold no usable certificate"));
    }
    Ok(Some(Arc::new(store)))
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("{file} cannot be read: {error}"))
}

fn system_roots() -> Result<Vec<u8>, String> {
    const PLACES: [&str; 3] =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    PLACES
        .iter()
        .find_map(|place| std::fs::read(place).ok())
        .ok_or_else(|| "the operating system's trust roots were not found".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_istios_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        std::fs::write(path("chain"), made.cert.pem()).unwrap();
        std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
        let (secrets, provider) = (Secrets::default(), provider());
        let named = |name: String| Source::Named(name);
        let both = named(format!("file-cert:{}~{}", path("chain"), path("key")));
        assert!(certificate(&both, &secrets, &provider).unwrap().is_some());
        assert_eq!(roots(&named(format!("file-root:{}", path("chain"))), &secrets).unwrap().unwrap().len(), 1);
        assert!(roots(&named(format!("file-root:{}", path("gone"))), &secrets).unwrap_err().contains("cannot be read"));
        // A secret that is served is not a file.
        assert!(roots(&named("ROOTCA".to_owned()), &secrets).unwrap().is_none());
    }
}
