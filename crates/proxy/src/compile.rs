//! From xDS resources to a snapshot. Total: a resource that cannot be compiled is rejected alone, and its last good form stays.
//! A resource whose version did not change keeps its compiled form.

#![deny(clippy::disallowed_methods)]
// Servers still send the older spelling of many fields; all of them are read.
#![allow(deprecated)]

pub mod edits;
pub mod tls;
pub mod endpoint;
pub mod cluster;
pub mod route;
pub mod access_log;
pub mod chain;
pub mod listener;
pub mod unheeded;

use std::sync::Arc;

use api::xds::{Any, ResourceKind};

use crate::snapshot::{Section, Snapshot, Versioned};
use crate::xds::resources::{Reject, ResourceSet};

/// Compiles all resources.
pub fn compile(resources: &ResourceSet, previous: &Snapshot) -> (Snapshot, Vec<Reject>) {
    let mut rejects = Vec::new();
    let snapshot = Snapshot {
        generation: previous.generation + 1,
        clusters: section(resources, ResourceKind::Cluster, &previous.clusters, cluster::compile, &mut rejects),
        endpoints: section(resources, ResourceKind::Endpoint, &previous.endpoints, endpoint::compile_any, &mut rejects),
        routes: section(resources, ResourceKind::Route, &previous.routes, route::compile_any, &mut rejects),
        listeners: section(resources, ResourceKind::Listener, &previous.listeners, listener::compile, &mut rejects),
    };
    (snapshot, rejects)
}

fn section<T>(
    resources: &ResourceSet,
    kind: ResourceKind,
    previous: &Section<T>,
    compile: fn(&Any) -> Result<T, String>,
    rejects: &mut Vec<Reject>,
) -> Section<T> {
    let mut section = Section::new();
    for (name, resource) in resources.of(kind) {
        let old = previous.get(name.as_str());
        if let Some(old) = old.filter(|old| old.version == resource.version) {
            section.insert(name.as_str().into(), old.clone());
            continue;
        }
        match compile(&resource.body) {
            Ok(value) => {
                section.insert(
                    name.as_str().into(),
                    Versioned { version: resource.version.clone(), value: Arc::new(value) },
                );
            }
            Err(reason) => {
                let reason = with_object(&reason, object_in(kind, &resource.body).as_deref());
                rejects.push(Reject { kind, name: name.clone(), reason });
                if let Some(old) = old {
                    section.insert(name.as_str().into(), old.clone());
                }
            }
        }
    }
    section
}

/// A reason of refusal with the object that has to be changed.
pub(crate) fn with_object(reason: &str, object: Option<&str>) -> String {
    object.map_or_else(|| reason.to_owned(), |object| format!("{reason} (it comes from {object})"))
}

/// The object that a resource comes from, if it can be read that far.
fn object_in(kind: ResourceKind, body: &Any) -> Option<Arc<str>> {
    use envoy_types::pb::envoy::config;
    match kind {
        ResourceKind::Cluster => {
            let cluster: config::cluster::v3::Cluster = api::xds::unpack(body).ok()?;
            object_of(cluster.metadata.as_ref()).or_else(|| origin_of(cluster.metadata.as_ref()))
        }
        ResourceKind::Listener => {
            let listener: config::listener::v3::Listener = api::xds::unpack(body).ok()?;
            object_of(listener.metadata.as_ref())
        }
        ResourceKind::Route => {
            let table: config::route::v3::RouteConfiguration = api::xds::unpack(body).ok()?;
            let mut routes = table.virtual_hosts.iter().flat_map(|host| &host.routes);
            routes.find_map(|route| object_of(route.metadata.as_ref()))
        }
        _ => None,
    }
}

/// The object that Istio's metadata names: `filter_metadata.istio.config`
/// `/apis/networking.istio.io/v1/namespaces/NS/virtual-service/NAME` is `VirtualService NS/NAME`.
pub(crate) fn object_of(metadata: Option<&api::xds::core::Metadata>) -> Option<Arc<str>> {
    named_by(metadata, "config")
}

/// The Service, ServiceEntry or Sidecar that our control plane says a cluster stands for.
pub(crate) fn origin_of(metadata: Option<&api::xds::core::Metadata>) -> Option<Arc<str>> {
    named_by(metadata, "origin")
}

fn named_by(metadata: Option<&api::xds::core::Metadata>, key: &str) -> Option<Arc<str>> {
    let path = istio_text(metadata, key)?;
    let mut parts = path.split('/').skip_while(|part| *part != "namespaces").skip(1);
    let (namespace, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
    let kind: String = kind
        .split('-')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
        })
        .collect();
    Some(format!("{kind} {namespace}/{name}").into())
}

/// A text under `filter_metadata.istio`.
pub(crate) fn istio_text(metadata: Option<&api::xds::core::Metadata>, key: &str) -> Option<String> {
    use envoy_types::pb::google::protobuf::value::Kind;
    match metadata?.filter_metadata.get("istio")?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// An address for tests of this chapter.
#[cfg(test)]
pub(crate) fn tests_address(ip: &str, port: u32) -> api::xds::core::Address {
    use api::xds::core::{SocketAddress, address, socket_address};
    api::xds::core::Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: ip.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::resources::Resource;
    use api::xds::core::Metadata;
    use api::xds::json_to_struct;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;

    fn set(rows: &[(&str, &str, Any)]) -> ResourceSet {
        let mut set = ResourceSet::default();
        for (name, version, body) in rows {
            set.of_mut(ResourceKind::Cluster)
                .insert((*name).to_owned(), Resource { version: (*version).to_owned(), body: body.clone().into() });
        }
        set
    }

    #[test]
    fn a_bad_resource_is_rejected_alone_and_its_last_good_form_stays() {
        let good = |name: &str| api::xds::pack(&Cluster { name: name.into(), ..Cluster::default() });
        let bad = Any { value: vec![0xff], ..good("a") };
        let (first, rejects) = compile(&set(&[("a", "1", good("a")), ("b", "1", good("b"))]), &Snapshot::default());
        assert!(rejects.is_empty(), "{rejects:?}");
        let (second, rejects) =
            compile(&set(&[("a", "2", bad.clone()), ("b", "1", good("b")), ("c", "1", bad)]), &first);
        assert_eq!(rejects.iter().map(|reject| reject.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert!(Arc::ptr_eq(&first.clusters["a"].value, &second.clusters["a"].value));
        assert!(
            Arc::ptr_eq(&first.clusters["b"].value, &second.clusters["b"].value),
            "an equal version keeps its form"
        );
        assert!(!second.clusters.contains_key("c"));
        let (third, _) = compile(&set(&[]), &second);
        assert!(third.clusters.is_empty());
    }

    #[test]
    fn objects_are_named_as_users_write_them() {
        let config = "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/reviews";
        let metadata = Metadata {
            filter_metadata: [("istio".to_owned(), json_to_struct(&serde_json::json!({"config": config})))].into(),
            ..Metadata::default()
        };
        assert_eq!(object_of(Some(&metadata)).unwrap().as_ref(), "VirtualService shop/reviews");
        assert_eq!(object_of(None), None);
    }
}
