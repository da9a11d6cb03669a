//! Workload identities as Istio writes them: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT` (SPIFFE-ID section 2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A workload's verified or expected identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SpiffeId {
    /// Name of the authority, `cluster.local` by default.
    pub trust_domain: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes service account.
    pub service_account: String,
}

/// The text is not an identity of Istio's shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
pub struct NotSpiffe(pub String);

impl SpiffeId {
    /// The identity of a service account.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        }
    }

    /// The principal of Istio's policies and metrics: the URI without its scheme.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = NotSpiffe;

    fn from_str(text: &str) -> Result<Self, NotSpiffe> {
        let wrong = || NotSpiffe(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let word = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(is_path_byte);
        match parts.as_slice() {
            [trust_domain, "ns", namespace, "sa", account]
                if word(trust_domain) && word(namespace) && word(account) =>
            {
                Ok(Self::new(trust_domain, namespace, account))
            }
            _ => Err(wrong()),
        }
    }
}

/// SPIFFE-ID 2.2: letters, digits, dot, dash, underscore.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = NotSpiffe;

    fn try_from(text: String) -> Result<Self, NotSpiffe> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        let text = "spiffe://cluster.local/ns/shop/sa/order-service";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(id, SpiffeId::new("cluster.local", "shop", "order-service"));
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/order-service");
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "",
            "spiffe://a",
            "https://a/ns/b/sa/c",
            "spiffe://a/ns//sa/c",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/ns/b?x/sa/c",
            "spiffe://a/ns/../sa/c",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
