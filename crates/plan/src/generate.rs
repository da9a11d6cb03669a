//! The table of resource kinds: kind to generator. A generator writes down what the scope holds.

mod wire;
mod tls;
mod jwt;
mod ext_authz;
mod rbac;
mod filter;
mod route;
mod cluster;
mod endpoint;
mod secret;
mod name_table;
mod listener;
mod grpc;

use std::sync::Arc;

use api::json::canonical;
use api::xds::{ResourceKind, pack};
use prost::{Message, Name};

use crate::model::Named;
use crate::resources::Resources;
use crate::scope::Scope;

impl Scope {
    /// The resources of a kind.
    pub fn generate(&self, kind: ResourceKind) -> Resources {
        match kind {
            _ if self.proxy.proxyless => grpc::all(self, kind),
            ResourceKind::Cluster => cluster::all(self),
            ResourceKind::Endpoint => endpoint::all(self),
            ResourceKind::Listener => listener::all(self),
            ResourceKind::Route => route::all(self),
            ResourceKind::Secret => secret::all(self),
            ResourceKind::NameTable => name_table::all(self),
        }
    }
}

/// A resource with the version that its bytes give it.
fn named<M: Message + Name>(name: &str, message: &M) -> Arc<Named> {
    let body = canonical(pack(message));
    let version = xxhash_rust::xxh3::xxh3_64(&body.value);
    Arc::new(Named::new(name, version, body))
}
