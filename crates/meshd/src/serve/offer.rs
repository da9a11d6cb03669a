//! What one kind of proxy should hold now, by kind and name. Shared between all proxies for which it is the same.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use api::xds::{Any, KINDS, ResourceKind};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};

/// One resource, ready to send.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Digest of the bytes: equal versions are equal resources.
    pub version: u64,
    /// The packed message.
    pub body: Any,
}

/// The entries of one kind.
pub type Entries = BTreeMap<String, Arc<Entry>>;

/// Makes the entries of one kind when they are first asked for.
pub type Generate = Box<dyn Fn(ResourceKind) -> Entries + Send + Sync>;

/// What a proxy should hold.
pub struct Offer {
    generate: Generate,
    kinds: [OnceLock<Entries>; KINDS.len()],
    /// Names under which the offered clusters ask for endpoints, by cluster.
    endpoint_names: OnceLock<BTreeMap<String, String>>,
}

impl Offer {
    /// An offer whose kinds are made on demand.
    pub fn new(generate: Generate) -> Self {
        Self { generate, kinds: Default::default(), endpoint_names: OnceLock::new() }
    }

    /// All entries of a kind.
    pub fn of(&self, kind: ResourceKind) -> &Entries {
        self.kinds[kind as usize].get_or_init(|| (self.generate)(kind))
    }

    /// The name under which a cluster of the offer will ask for its endpoints, if it will.
    pub fn endpoints_of(&self, cluster: &str) -> Option<&str> {
        self.endpoint_names
            .get_or_init(|| {
                self.of(ResourceKind::Cluster)
                    .values()
                    .filter_map(|entry| Some((entry.name.clone(), eds_name(entry)?)))
                    .collect()
            })
            .get(cluster)
            .map(String::as_str)
    }
}

fn eds_name(entry: &Entry) -> Option<String> {
    let cluster: Cluster = api::xds::unpack(&entry.body).ok()?;
    if cluster.cluster_discovery_type != Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)) {
        return None;
    }
    let named = cluster.eds_cluster_config.map(|eds| eds.service_name).filter(|name| !name.is_empty());
    Some(named.unwrap_or(cluster.name))
}
