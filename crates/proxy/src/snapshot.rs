//! The compiled configuration: immutable, replaced as a whole, read without waiting.

#![deny(clippy::disallowed_methods)]

pub mod text_match;
pub mod metadata_match;
pub mod tls_terms;
pub mod endpoint;
pub mod cluster;
pub mod route;
pub mod rbac;
pub mod chain;
pub mod listener;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use cluster::Cluster;
use endpoint::Endpoints;
use listener::Listener;
use route::RouteTable;

/// A compiled resource with the version it was compiled from.
#[derive(Debug)]
pub struct Versioned<T> {
    /// The server's version.
    pub version: String,
    /// The compiled form.
    pub value: Arc<T>,
}

impl<T> Clone for Versioned<T> {
    fn clone(&self) -> Self {
        Self { version: self.version.clone(), value: Arc::clone(&self.value) }
    }
}

/// Compiled resources of one kind by name.
pub type Section<T> = BTreeMap<Arc<str>, Versioned<T>>;

/// All compiled configuration at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows by one with every compilation.
    pub generation: u64,
    /// Listeners.
    pub listeners: Section<Listener>,
    /// Route tables that listeners name.
    pub routes: Section<RouteTable>,
    /// Clusters.
    pub clusters: Section<Cluster>,
    /// Endpoints by the name under which clusters ask for them.
    pub endpoints: Section<Endpoints>,
}

/// The snapshot in effect.
#[derive(Debug, Default)]
pub struct Holder {
    current: ArcSwap<Snapshot>,
}

impl Holder {
    /// Puts a snapshot into effect.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.current.store(snapshot);
    }

    /// The snapshot of now.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
}
