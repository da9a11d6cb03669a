//! From a signing request and a proven identity to a certificate. Time is an argument.

use anyhow::{Context, Result, bail};
use api::spiffe::SpiffeId;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::root::Root;

/// Life of a leaf when the caller wishes nothing (Istio: 24 h).
pub const DEFAULT_LIFE: Duration = Duration::hours(24);
/// Longest life of a leaf (Istio: 90 days).
pub const MAX_LIFE: Duration = Duration::days(90);
/// Leaves are valid from a little before now, for clocks that are behind (Istio: 2 min).
const BACK_DATED: Duration = Duration::minutes(2);

/// Signs `csr` (PEM) for `caller`, whatever names it asks for. Answers the chain as the certificate service sends it: leaf,
/// intermediates, trust bundle last. A `wished` life of zero takes the default; none outlives the authority.
///
/// # Errors
/// The request is not one, or its signature is not by its own key, or the authority has expired.
pub fn sign(root: &Root, csr: &str, caller: &SpiffeId, wished: Duration, now: OffsetDateTime) -> Result<Vec<String>> {
    let mut request = CertificateSigningRequestParams::from_pem(csr).context("the signing request cannot be read")?;
    let life = match wished {
        wished if wished <= Duration::ZERO => DEFAULT_LIFE,
        wished => wished.min(MAX_LIFE),
    };
    if root.not_after <= now {
        bail!("the authority's own certificate has expired");
    }
    request.params = leaf(now, (now + life).min(root.not_after));
    request.params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(caller.to_string())?)];
    let pem = request.signed_by(&root.issuer).context("the certificate could not be signed")?.pem();
    Ok([pem].into_iter().chain(root.intermediates.iter().cloned()).chain([root.bundle.clone()]).collect())
}

/// A key and certificate for the control plane's own TLS ports. Answers (chain PEM, key PEM).
///
/// # Errors
/// A name is not one, or signing failed.
pub fn serving(root: &Root, names: &[String], now: OffsetDateTime) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = leaf(now, (now + DEFAULT_LIFE).min(root.not_after));
    for name in names {
        params.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(Ia5String::try_from(name.as_str())?),
        });
    }
    let certificate = params.signed_by(&key, &root.issuer)?;
    let chain = [certificate.pem()].into_iter().chain(root.intermediates.iter().cloned()).collect();
    Ok((chain, key.serialize_pem()))
}

fn leaf(now: OffsetDateTime, not_after: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - BACK_DATED;
    params.not_after = not_after;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use x509_parser::prelude::{FromDer, X509Certificate};

    fn request(params: CertificateParams) -> String {
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn names_and_life(pem: &str) -> (Vec<String>, i64) {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let names = parsed
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
            .iter()
            .map(|name| name.to_string())
            .collect();
        (names, parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp())
    }

    #[test]
    fn the_caller_decides_the_name_and_the_request_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::load(None, folder.path(), "cluster.local").unwrap();
        let mut asks = CertificateParams::new(vec!["evil.example.com".to_owned()]).unwrap();
        asks.subject_alt_names
            .push(SanType::URI(Ia5String::try_from("spiffe://cluster.local/ns/admin/sa/root").unwrap()));
        let caller = SpiffeId::new("cluster.local", "shop", "user");
        let chain = sign(&root, &request(asks), &caller, Duration::ZERO, OffsetDateTime::now_utc()).unwrap();
        let (names, life) = names_and_life(&chain[0]);
        assert_eq!(names, ["URI(spiffe://cluster.local/ns/shop/sa/user)"]);
        assert_eq!(life, (DEFAULT_LIFE + BACK_DATED).whole_seconds());
        assert_eq!(chain.last(), Some(&root.bundle));
    }

    #[test]
    fn no_leaf_outlives_its_issuer_or_the_maximum() {
        let folder = tempfile::tempdir().unwrap();
        let mut root = Root::load(None, folder.path(), "cluster.local").unwrap();
        let caller = SpiffeId::new("cluster.local", "shop", "user");
        let now = OffsetDateTime::now_utc();
        let csr = request(CertificateParams::default());
        let life = |root: &Root, wished| names_and_life(&sign(root, &csr, &caller, wished, now).unwrap()[0]).1;
        assert_eq!(life(&root, Duration::days(1000)), (MAX_LIFE + BACK_DATED).whole_seconds());
        root.not_after = now + Duration::hours(1);
        assert_eq!(life(&root, Duration::hours(24)), (Duration::hours(1) + BACK_DATED).whole_seconds());
        root.not_after = now - Duration::hours(1);
        assert!(sign(&root, &csr, &caller, Duration::ZERO, now).is_err());
        assert!(sign(&root, "no request", &caller, Duration::ZERO, now).is_err());
    }
}
