//! Secrets that gateways name, as SDS resources. Only for a router whose identity was proved, and only of its own namespace.

use api::kube;
use api::object::Body;
use api::xds::core::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};

use super::named;
use crate::resources::Resources;
use crate::scope::{AUTHORITIES, Scope};

pub(super) fn all(scope: &Scope) -> Resources {
    let of = |(name, key): (String, _)| resource(scope, &name, &key).map(|secret| named(&name, &secret));
    scope.credentials().into_iter().filter_map(of).collect()
}

fn resource(scope: &Scope, name: &str, key: &(String, String)) -> Option<Secret> {
    let object = scope.snapshot.secrets.get(key)?;
    let Body::Secret(body) = &object.body else { return None };
    let kind = if name.ends_with(AUTHORITIES) || certificate(body).is_none() {
        let authorities = ["ca.crt", "cacert"].iter().find_map(|key| body.value(key))?;
        let crl = ["ca.crl", "crl"].iter().find_map(|key| body.value(key));
        secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(authorities),
            crl: crl.and_then(inline),
            ..CertificateValidationContext::default()
        })
    } else {
        let (chain, key) = certificate(body)?;
        secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(chain),
            private_key: inline(key),
            ocsp_staple: body.value("tls.ocsp-staple").and_then(inline),
            ..TlsCertificate::default()
        })
    };
    Some(Secret { name: name.to_owned(), r#type: Some(kind) })
}

/// Certificate chain and key, under the names of either kind of Secret.
pub(crate) fn certificate(secret: &kube::Secret) -> Option<(Vec<u8>, Vec<u8>)> {
    [("tls.crt", "tls.key"), ("cert", "key")]
        .iter()
        .find_map(|(chain, key)| Some((secret.value(chain)?, secret.value(key)?)))
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() })
}
