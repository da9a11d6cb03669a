//! What a certificate proves: the chain by webpki, the names by the terms.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::facts::PeerFacts;
use crate::snapshot::tls_terms::SanMatch;

/// Reads the names out of a certificate.
///
/// # Errors
/// It cannot be read.
pub fn facts_of(certificate: &CertificateDer<'_>) -> Result<PeerFacts, String> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("the peer's certificate cannot be read: {error}"))?;
    let mut facts = PeerFacts {
        subject: parsed.subject().to_string(),
        hash: sha256_hex(certificate),
        der: certificate.to_vec(),
        ..PeerFacts::default()
    };
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => facts.dns.push((*dns).to_owned()),
                _ => {}
            }
        }
    }
    // A SPIFFE certificate has exactly one URI (X509-SVID section 2).
    if let [uri] = facts.uris.as_slice() {
        facts.spiffe = uri.parse().ok();
    }
    Ok(facts)
}

/// SHA-256 as hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let Some(suite) = suite.tls13() else { return String::new() };
    suite.common.hash_provider.hash(bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the peer has one of the wanted names. More than one URI never counts: that is no SPIFFE certificate.
pub fn names_allowed(facts: &PeerFacts, wanted: &[SanMatch]) -> bool {
    wanted.is_empty() || (facts.uris.len() <= 1 && wanted.iter().any(|san| san.matches(&facts.uris, &facts.dns)))
}

/// Verifies a server by chain and names; by the host name that was dialled only where that is asked for.
#[derive(Debug)]
pub struct PeerVerifier {
    /// Whom to trust; `None`: the terms ask for no verification.
    pub roots: Option<Arc<RootCertStore>>,
    /// Names, one of which the server must have.
    pub sans: Vec<SanMatch>,
    /// The certificate must be for the name that was sent.
    pub name_must_match: bool,
    /// Cryptography.
    pub provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        if self.name_must_match {
            rustls::client::verify_server_name(&parsed, server_name)?;
        }
        if !self.sans.is_empty() {
            let facts = facts_of(end_entity).map_err(|_| CertificateError::BadEncoding)?;
            if !names_allowed(&facts, &self.sans) {
                return Err(CertificateError::ApplicationVerificationFailure.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_for_another_host_is_refused_where_the_name_must_match() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let mut verifier = PeerVerifier {
            roots: Some(Arc::new(roots)),
            sans: vec![],
            name_must_match: true,
            provider: crate::tls::provider(),
        };
        let verify = |verifier: &PeerVerifier, name: &'static str| {
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(made.cert.der(), &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(verify(&verifier, "a.example"));
        assert!(!verify(&verifier, "b.example"));
        verifier.name_must_match = false;
        assert!(verify(&verifier, "b.example"), "Envoy compares no names unless it is told to");
    }
}
