//! The authority's key and certificates: plugged in from files, or made once and kept in the state folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::state_folder::write_secret;

/// Certificate of the signing key, as in Istio's Secrets `istio-ca-secret` and `cacerts`.
pub const CERT_FILE: &str = "ca-cert.pem";
/// Signing key.
pub const KEY_FILE: &str = "ca-key.pem";
/// Intermediates from the signing certificate up, without the root (plug-in only).
pub const CHAIN_FILE: &str = "cert-chain.pem";
/// What workloads trust.
pub const ROOT_FILE: &str = "root-cert.pem";
/// Life of a root that we make (Istio: 10 years).
const ROOT_LIFE: Duration = Duration::days(3650);

/// A key that signs leaves, with all that clients need to believe it.
pub struct Root {
    /// Signs.
    pub issuer: Issuer<'static, KeyPair>,
    /// Certificates between the leaf and the root, PEM, one an element; empty when the root itself signs.
    pub intermediates: Vec<String>,
    /// The trust bundle, PEM.
    pub bundle: String,
    /// End of the signing certificate's life: no leaf outlives it.
    pub not_after: OffsetDateTime,
    /// Where it came from, for the log.
    pub origin: PathBuf,
}

impl Root {
    /// Takes the plug-in folder if one is given, else the state folder's root, else makes one there.
    ///
    /// # Errors
    /// A file is missing, unreadable or does not fit the others; the sentence names it.
    pub fn load(plug_in: Option<&Path>, state: &Path, trust_domain: &str) -> Result<Root> {
        if let Some(folder) = plug_in {
            return read(folder)
                .with_context(|| format!("the certificate authority in {} cannot be used", folder.display()));
        }
        let (key, certificate) = (state.join(KEY_FILE), state.join(CERT_FILE));
        match (key.exists(), certificate.exists()) {
            (true, true) => {}
            (false, false) => create(state, trust_domain)?,
            _ => bail!(
                "{} holds only one of {KEY_FILE} and {CERT_FILE}: put the other back, or remove both to start with a new root",
                state.display()
            ),
        }
        read(state).with_context(|| format!("the certificate authority in {} cannot be used", state.display()))
    }
}

fn read(folder: &Path) -> Result<Root> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| format!("{name} cannot be read"));
    let certificate = text(CERT_FILE)?;
    let key = KeyPair::from_pem(&text(KEY_FILE)?).with_context(|| format!("{KEY_FILE} is not a private key"))?;
    let der =
        CertificateDer::from_pem_slice(certificate.as_bytes()).with_context(|| format!("{CERT_FILE} is not PEM"))?;
    let (_, parsed) = X509Certificate::from_der(&der).with_context(|| format!("{CERT_FILE} is not a certificate"))?;
    if !parsed.is_ca() {
        bail!("{CERT_FILE} is not a certificate authority");
    }
    if parsed.public_key().raw != key_info(&key) {
        bail!("{KEY_FILE} is not the key of {CERT_FILE}");
    }
    let not_after = OffsetDateTime::from_unix_timestamp(parsed.validity().not_after.timestamp())?;
    let bundle = if folder.join(ROOT_FILE).exists() { text(ROOT_FILE)? } else { certificate.clone() };
    let chain = if folder.join(CHAIN_FILE).exists() { text(CHAIN_FILE)? } else { String::new() };
    let mut intermediates = split_pem(&chain);
    // The signing certificate belongs to the chain unless workloads trust it directly.
    if !bundle.contains(certificate.trim()) && !chain.contains(certificate.trim()) {
        intermediates.insert(0, certificate.clone());
    }
    let issuer =
        Issuer::from_ca_cert_pem(&certificate, key).with_context(|| format!("{CERT_FILE} cannot be used to sign"))?;
    Ok(Root { issuer, intermediates, bundle, not_after, origin: folder.to_owned() })
}

/// The key's SubjectPublicKeyInfo, DER.
fn key_info(key: &KeyPair) -> Vec<u8> {
    use rcgen::PublicKeyData;
    key.subject_public_key_info()
}

fn split_pem(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END).map(|part| format!("{}\n", part.trim())).filter(|part| part.contains(END)).collect()
}

fn create(folder: &Path, trust_domain: &str) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(2);
    params.not_after = params.not_before + ROOT_LIFE;
    let certificate = params.self_signed(&key)?;
    write_secret(&folder.join(KEY_FILE), key.serialize_pem().as_bytes())?;
    write_secret(&folder.join(CERT_FILE), certificate.pem().as_bytes())?;
    // What workloads trust is public: they, and curl, read this file.
    let public = folder.join(ROOT_FILE);
    fs::write(&public, certificate.pem()).with_context(|| format!("{} cannot be written", public.display()))?;
    tracing::info!(folder = %folder.display(), "made a new root certificate");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_root_survives_a_restart_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = Root::load(None, folder.path(), "cluster.local").unwrap();
        let again = Root::load(None, folder.path(), "cluster.local").unwrap();
        assert_eq!(first.bundle, again.bundle);
        let mode = fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(first.intermediates.is_empty());
    }

    #[test]
    fn half_a_root_and_a_foreign_key_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        Root::load(None, folder.path(), "cluster.local").unwrap();
        let other = KeyPair::generate().unwrap();
        fs::write(folder.path().join(KEY_FILE), other.serialize_pem()).unwrap();
        let error = format!("{:#}", Root::load(None, folder.path(), "cluster.local").err().unwrap());
        assert!(error.contains("is not the key of"), "{error}");
        fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
        let error = format!("{:#}", Root::load(None, folder.path(), "cluster.local").err().unwrap());
        assert!(error.contains("only one of"), "{error}");
    }

    #[test]
    fn a_plugged_in_intermediate_comes_with_its_chain() {
        let (state, plug_in) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = Root::load(None, state.path(), "example.org").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
        let intermediate = params.signed_by(&key, &root.issuer).unwrap();
        fs::write(plug_in.path().join(CERT_FILE), intermediate.pem()).unwrap();
        fs::write(plug_in.path().join(KEY_FILE), key.serialize_pem()).unwrap();
        fs::write(plug_in.path().join(ROOT_FILE), &root.bundle).unwrap();
        let loaded = Root::load(Some(plug_in.path()), state.path(), "example.org").unwrap();
        assert_eq!(loaded.intermediates.len(), 1);
        assert_eq!(loaded.bundle, root.bundle);
        assert!(loaded.not_after < root.not_after);
    }
}
