//! The Secrets that a gateway names. Only for a router whose identity was proved, and only of its own namespace.

use std::collections::{BTreeMap, BTreeSet};

use api::node::Role;

use super::Scope;

/// Ending of the name under which a credential's certificate authorities are served.
pub(crate) const AUTHORITIES: &str = "-cacert";

/// Name of a Secret among the SDS resources.
pub(crate) fn secret_name(credential: &str) -> String {
    if credential.contains("://") { credential.to_owned() } else { format!("kubernetes://{credential}") }
}

impl Scope {
    /// Digests of the Secrets behind the names, in the order of the names.
    pub(super) fn credential_digests(&self) -> Vec<u64> {
        let found = self.credentials();
        found.values().map(|key| self.snapshot.secrets.get(key).map_or(0, |object| object.digest)).collect()
    }

    /// Names that the router's Gateways, and the DestinationRules of what it reaches, use, with the Secret's namespace and
    /// name.
    pub(crate) fn credentials(&self) -> BTreeMap<String, (String, String)> {
        let mut names = BTreeMap::new();
        if self.proxy.role != Role::Router || !self.proxy.verified {
            return names;
        }
        let servers =
            self.gateways.iter().flat_map(|gateway| &gateway.spec.servers).filter_map(|server| server.tls.as_ref());
        let of_servers = servers
            .flat_map(|tls| tls.credential_names.iter().chain([&tls.credential_name, &tls.ca_cert_credential_name]));
        let policies = self.view.rules.values().flat_map(|rule| {
            let own = rule.spec.traffic_policy.iter();
            own.chain(rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref()))
        });
        let clients = policies.flat_map(|policy| {
            policy.tls.iter().chain(policy.port_level_settings.iter().filter_map(|port| port.tls.as_ref()))
        });
        let of_clients = clients.map(|tls| &tls.credential_name);
        let credentials: BTreeSet<&String> = of_servers.chain(of_clients).filter(|name| !name.is_empty()).collect();
        for credential in credentials {
            let full = secret_name(credential);
            let Some(path) = full.strip_prefix("kubernetes://") else { continue };
            let (namespace, name) = path.split_once('/').unwrap_or((&self.proxy.namespace, path));
            if namespace != self.proxy.namespace {
                continue;
            }
            names.insert(full.clone(), (namespace.to_owned(), name.to_owned()));
            // The clients' authorities stand in a Secret of their own or beside the certificate.
            let separate = (namespace.to_owned(), format!("{name}{AUTHORITIES}"));
            let key = if self.snapshot.secrets.contains_key(&separate) {
                separate
            } else {
                (namespace.to_owned(), name.to_owned())
            };
            names.insert(format!("{full}{AUTHORITIES}"), key);
        }
        names
    }
}
