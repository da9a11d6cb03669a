//! The table of resource kinds: kind to generator. A generator writes down what the scope holds.

mod wire;
mod tls;
mod filter;
mod route;
mod cluster;
mod endpoint;
mod secret;
mod listener;
mod grpc;

use api::json::canonical;
use api::xds::{ResourceKind, pack};
use prost::{Message, Name};

use crate::model::Named;
use crate::scope::{Scope, Want};

impl Scope {
    /// The resources of a kind, by name.
    pub fn generate(&self, kind: ResourceKind, want: &Want<'_>) -> Vec<Named> {
        resources(self, kind, want)
    }
}

fn resources(scope: &Scope, kind: ResourceKind, want: &Want<'_>) -> Vec<Named> {
    let mut resources = match kind {
        _ if scope.proxy.proxyless => grpc::all(scope, kind, want),
        ResourceKind::Cluster => cluster::all(scope, want),
        ResourceKind::Endpoint => endpoint::all(scope, want),
        ResourceKind::Listener => listener::all(scope, want),
        ResourceKind::Route => route::all(scope, want),
        ResourceKind::Secret => secret::all(scope, want),
    };
    resources.sort_by(|one, two| one.name.cmp(&two.name));
    resources.dedup_by(|one, two| one.name == two.name);
    resources
}

/// A resource with the version that its bytes give it.
fn named<M: Message + Name>(name: &str, message: &M) -> Named {
    let body = canonical(pack(message));
    Named { name: name.to_owned(), version: xxhash_rust::xxh3::xxh3_64(&body.value), body }
}
