//! Who is connected and what it has taken: for the debug pages and for `meshctl status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::debug::{SyncStatus, TypeStatus};
use api::node::{NodeId, NodeMetadata};
use api::xds::core::Node;
use api::xds::{KINDS, ResourceKind};
use plan::ProxyIdentity;

use super::session::KindStatus;
use crate::telemetry::Metrics;

/// All open streams.
pub struct Registry {
    rows: Mutex<BTreeMap<u64, Connected>>,
    metrics: Arc<Metrics>,
}

/// One connected proxy.
#[derive(Clone)]
pub struct Connected {
    /// What `syncz` shows.
    pub status: SyncStatus,
    /// What is planned for.
    pub proxy: ProxyIdentity,
    /// Whether secrets are served to it.
    pub secrets: bool,
}

/// A stream's row; gone when the stream is.
pub struct Entry {
    number: u64,
    name: String,
    version: String,
    registry: Arc<Registry>,
}

impl Registry {
    /// An empty registry.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { rows: Mutex::default(), metrics })
    }

    /// A proxy has connected.
    pub fn connect(self: &Arc<Self>, node: &Node, proxy: &ProxyIdentity) -> Entry {
        let metadata = NodeMetadata::of(node);
        let id = node.id.parse::<NodeId>().ok();
        let name = id.as_ref().map_or_else(|| node.id.clone(), |id| format!("{}.{}", id.name, id.namespace));
        let status = SyncStatus {
            cluster_id: metadata.cluster_id,
            proxy: name.clone(),
            proxy_type: id.as_ref().map_or("", |id| id.role.as_str()).to_owned(),
            proxy_version: if metadata.mesh_version.is_empty() {
                node.user_agent_name.clone()
            } else {
                metadata.mesh_version
            },
            istio_version: metadata.istio_version,
            address: id.map(|id| id.address.to_string()).unwrap_or_default(),
            admin_address: metadata.mesh_admin_address,
            types: Vec::new(),
            control_plane: String::new(),
        };
        let version = status.istio_version.clone();
        let mut rows = self.lock();
        let number = rows.keys().next_back().map_or(0, |last| last + 1);
        rows.insert(number, Connected { status, proxy: proxy.clone(), secrets: false });
        self.metrics.connected.with_label_values(&[&version]).inc();
        tracing::info!(proxy = name, "connected");
        Entry { number, name, version, registry: self.clone() }
    }

    /// All connected proxies, by name.
    pub fn list(&self) -> Vec<Connected> {
        let mut rows: Vec<Connected> = self.lock().values().cloned().collect();
        rows.sort_by(|a, b| a.status.proxy.cmp(&b.status.proxy));
        rows
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Connected>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// `NAME.NAMESPACE`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether secrets are served on the stream.
    pub fn set_secrets(&mut self, secrets: bool) {
        if let Some(row) = self.registry.lock().get_mut(&self.number) {
            row.secrets = secrets;
        }
    }

    /// Shows what the stream's session says of each kind.
    pub fn update(&self, status: impl Fn(ResourceKind) -> KindStatus) {
        if let Some(row) = self.registry.lock().get_mut(&self.number) {
            row.status.types = KINDS.iter().map(|kind| shown(kind.short, status(kind.kind))).collect();
        }
    }
}

fn shown(kind: &str, status: KindStatus) -> TypeStatus {
    let state = match &status {
        KindStatus { sent, .. } if sent.is_empty() => "NOT SENT",
        KindStatus { nack, .. } if !nack.is_empty() => "NACKED",
        KindStatus { sent, acked, .. } if sent == acked => "SYNCED",
        _ => "STALE",
    };
    TypeStatus {
        kind: kind.to_owned(),
        sent: status.sent,
        acked: status.acked,
        nack: status.nack,
        state: state.to_owned(),
        resources: status.resources,
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.number);
        self.registry.metrics.connected.with_label_values(&[&self.version]).dec();
        tracing::info!(proxy = self.name, "disconnected");
    }
}
