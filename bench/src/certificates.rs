//! Certificates for the peers, made at each run: an authority, and a leaf for either side of the hop (ECDSA P-256).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

/// Files in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them in this folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn make(folder: &Path) -> Result<Certificates> {
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority.distinguished_name = named("bench authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        fs::write(folder.join("ca.pem"), authority.pem())?;
        for side in ["client", "server"] {
            let mut leaf = CertificateParams::new(vec![format!("{side}.bench")])?;
            leaf.distinguished_name = named(side);
            let identity = format!("spiffe://cluster.local/ns/bench/sa/{side}");
            leaf.subject_alt_names.push(SanType::URI(Ia5String::try_from(identity)?));
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = leaf.signed_by(&key, &authority)?;
            fs::write(folder.join(format!("{side}.crt")), certificate.pem())?;
            fs::write(folder.join(format!("{side}.key")), key.serialize_pem())?;
            // HAProxy wants both in one file.
            fs::write(folder.join(format!("{side}.pem")), certificate.pem() + &key.serialize_pem())?;
        }
        Ok(Certificates { folder: folder.to_owned() })
    }

    /// The folder: `ca.pem`, and `crt`, `key`, and both as `pem` of `client` and `server`.
    pub(crate) fn folder(&self) -> String {
        self.folder.display().to_string()
    }
}

/// An authority and its leaves must differ in name: OpenSSL takes a leaf of its issuer's name for self-signed.
fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
