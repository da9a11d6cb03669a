//! A fresh key and the request to have it certified.

use anyhow::{Context, Result};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A signing request with its key.
pub struct Request {
    /// PKCS#10 as PEM. It names nobody: the authority decides by who is asking.
    pub pem: String,
    /// The key, which stays in this process.
    pub key: PrivateKeyDer<'static>,
}

/// Makes an ECDSA P-256 key and a request for it.
///
/// # Errors
/// The system has no randomness.
pub fn create() -> Result<Request> {
    let key = rcgen::KeyPair::generate().context("no key could be made")?;
    let params = rcgen::CertificateParams::default();
    let pem =
        params.serialize_request(&key).and_then(|request| request.pem()).context("no signing request could be made")?;
    Ok(Request { pem, key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) })
}
