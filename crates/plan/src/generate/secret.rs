//! Secrets that gateways name, as SDS resources. Only for a router whose identity was proved, and only of its own namespace.

use std::collections::{BTreeMap, BTreeSet};

use api::kube;
use api::node::Role;
use api::object::Body;
use api::xds::core::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};

use super::{named, tls};
use crate::model::Named;
use crate::scope::{Scope, Want};

const AUTHORITIES: &str = "-cacert";

pub(super) fn all(scope: &Scope, want: &Want<'_>) -> Vec<Named> {
    let mut resources = Vec::new();
    for (name, key) in referenced(scope) {
        if !want.takes(&name) {
            continue;
        }
        if let Some(secret) = resource(scope, &name, &key) {
            resources.push(named(&name, &secret));
        }
    }
    resources
}

/// Digests of the Secrets behind the names, in the order of the names.
pub(crate) fn digests(scope: &Scope) -> Vec<u64> {
    let found = referenced(scope);
    found.values().map(|key| scope.snapshot.secrets.get(key).map_or(0, |object| object.digest)).collect()
}

/// Names that the router's Gateways, and the DestinationRules of what it reaches, use, with the Secret's namespace and name.
fn referenced(scope: &Scope) -> BTreeMap<String, (String, String)> {
    let mut names = BTreeMap::new();
    if scope.proxy.role != Role::Router || !scope.proxy.verified {
        return names;
    }
    let servers =
        scope.gateways.iter().flat_map(|gateway| &gateway.spec.servers).filter_map(|server| server.tls.as_ref());
    let of_servers =
        servers.flat_map(|tls| tls.credential_names.iter().chain([&tls.credential_name, &tls.ca_cert_credential_name]));
    let policies = scope.rules.values().flat_map(|rule| {
        let own = rule.spec.traffic_policy.iter();
        own.chain(rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref()))
    });
    let clients = policies.flat_map(|policy| {
        policy.tls.iter().chain(policy.port_level_settings.iter().filter_map(|port| port.tls.as_ref()))
    });
    let of_clients = clients.map(|tls| &tls.credential_name);
    let credentials: BTreeSet<&String> = of_servers.chain(of_clients).filter(|name| !name.is_empty()).collect();
    for credential in credentials {
        let full = tls::secret_name(credential);
        let Some(path) = full.strip_prefix("kubernetes://") else { continue };
        let (namespace, name) = path.split_once('/').unwrap_or((&scope.proxy.namespace, path));
        if namespace != scope.proxy.namespace {
            continue;
        }
        names.insert(full.clone(), (namespace.to_owned(), name.to_owned()));
        // The clients' authorities stand in a Secret of their own or beside the certificate.
        let separate = (namespace.to_owned(), format!("{name}{AUTHORITIES}"));
        let key = if scope.snapshot.secrets.contains_key(&separate) {
            separate
        } else {
            (namespace.to_owned(), name.to_owned())
        };
        names.insert(format!("{full}{AUTHORITIES}"), key);
    }
    names
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
