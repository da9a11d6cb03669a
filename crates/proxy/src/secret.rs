//! The keys, certificates and trust roots that TLS uses, by their SDS name (`default`, `ROOTCA`, `kubernetes://NAME`).
//! Written by `identity` (our own) and `xds` (served by the control plane); read by `tls`.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;

/// SDS name of the workload's own certificate.
pub const DEFAULT: &str = "default";
/// SDS name of the mesh's trust roots.
pub const ROOT_CA: &str = "ROOTCA";

/// One secret. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Secret {
    /// A certificate chain with its key.
    Certificate(Arc<CertifiedKey>),
    /// Trust roots.
    Roots(Arc<RootCertStore>),
}

/// All secrets at one moment.
#[derive(Debug, Default)]
pub struct Secrets {
    /// Grows by one with every change: whoever caches something made of secrets compares it.
    pub generation: u64,
    by_name: HashMap<String, Secret>,
}

impl Secrets {
    /// The certificate of this name, if it is there.
    pub fn certificate(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        match self.by_name.get(name) {
            Some(Secret::Certificate(key)) => Some(key),
            _ => None,
        }
    }

    /// The trust roots of this name, if they are there.
    pub fn roots(&self, name: &str) -> Option<&Arc<RootCertStore>> {
        match self.by_name.get(name) {
            Some(Secret::Roots(roots)) => Some(roots),
            _ => None,
        }
    }

    /// All names and secrets, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.by_name.iter().map(|(name, secret)| (name.as_str(), secret))
    }
}

/// Where secrets are published: one writer at a time, readers never wait.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwap<Secrets>,
}

impl Store {
    /// The secrets of now.
    pub fn load(&self) -> arc_swap::Guard<Arc<Secrets>> {
        self.current.load()
    }

    /// Changes some secrets at once (`None` removes).
    pub fn update(&self, changes: impl IntoIterator<Item = (String, Option<Secret>)>) {
        let changes: Vec<_> = changes.into_iter().collect();
        self.current.rcu(|now| {
            let mut by_name = now.by_name.clone();
            for (name, secret) in &changes {
                match secret {
                    Some(secret) => by_name.insert(name.clone(), secret.clone()),
                    None => by_name.remove(name),
                };
            }
            Secrets { generation: now.generation + 1, by_name }
        });
    }
}
