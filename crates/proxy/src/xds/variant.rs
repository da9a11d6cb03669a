//! The two variants of the protocol towards a server. The session speaks delta; for a server that knows only state of the
//! world its requests and the server's responses are translated (xDS protocol, "Variants of the xDS Transport Protocol").

use std::collections::BTreeSet;

use api::xds::{Any, KINDS, ResourceKind};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use prost::{Message, Name};

use super::resources::ResourceSet;

/// How the session's words are put on a stream.
pub trait Variant {
    /// What the stream takes.
    type Request;
    /// What the stream gives.
    type Response;

    /// A request as this variant says it.
    fn request(&mut self, request: DeltaDiscoveryRequest) -> Self::Request;

    /// A response as the session takes it, which holds all this.
    fn response(&mut self, response: Self::Response, held: &ResourceSet) -> DeltaDiscoveryResponse;
}

/// `DeltaAggregatedResources`: as it is.
#[derive(Debug, Default)]
pub struct Delta;

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn request(&mut self, request: DeltaDiscoveryRequest) -> DeltaDiscoveryRequest {
        request
    }

    fn response(&mut self, response: DeltaDiscoveryResponse, _: &ResourceSet) -> DeltaDiscoveryResponse {
        response
    }
}

/// `StreamAggregatedResources`: every request names all that is wanted, every response of clusters or listeners is all that
/// there is. One value a stream: a new one is told everything again.
#[derive(Debug, Default)]
pub struct StateOfTheWorld {
    kinds: [Kind; KINDS.len()],
}

#[derive(Debug, Default)]
struct Kind {
    /// All names that are wanted.
    names: BTreeSet<String>,
    /// Version of the last response that was taken.
    taken: String,
    /// Version and nonce of the last response.
    version: String,
    nonce: String,
}

impl Variant for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn request(&mut self, request: DeltaDiscoveryRequest) -> DiscoveryRequest {
        let mut translated = DiscoveryRequest {
            node: request.node,
            type_url: request.type_url,
            response_nonce: request.response_nonce,
            error_detail: request.error_detail,
            ..DiscoveryRequest::default()
        };
        let Some(kind) = ResourceKind::of(&translated.type_url) else { return translated };
        let state = &mut self.kinds[kind as usize];
        state.names.retain(|name| !request.resource_names_unsubscribe.contains(name));
        state.names.extend(request.resource_names_subscribe);
        let answers = !state.nonce.is_empty() && translated.response_nonce == state.nonce;
        if answers && translated.error_detail.is_none() {
            state.taken.clone_from(&state.version);
        }
        translated.version_info.clone_from(&state.taken);
        translated.response_nonce.clone_from(&state.nonce);
        translated.resource_names = state.names.iter().cloned().collect();
        translated
    }

    fn response(&mut self, response: DiscoveryResponse, held: &ResourceSet) -> DeltaDiscoveryResponse {
        let mut translated = DeltaDiscoveryResponse {
            system_version_info: response.version_info.clone(),
            nonce: response.nonce.clone(),
            type_url: response.type_url,
            ..DeltaDiscoveryResponse::default()
        };
        translated.resources = response.resources.into_iter().map(named).collect();
        if let Some(kind) = ResourceKind::of(&translated.type_url) {
            let state = &mut self.kinds[kind as usize];
            (state.version, state.nonce) = (response.version_info, response.nonce);
            // Of clusters and listeners a response is all there is; of other kinds it may be a part of what is wanted.
            if kind.row().wildcard {
                let there: BTreeSet<&str> = translated.resources.iter().map(|one| one.name.as_str()).collect();
                let gone = held.of(kind).keys().filter(|name| !there.contains(name.as_str()));
                translated.removed_resources = gone.cloned().collect();
            }
        }
        translated
    }
}

/// The name is the first field of every kind but that of names; the version is that of the bytes, as a response has one version for all.
fn named(body: Any) -> Resource {
    /// What all kinds begin with.
    #[derive(Clone, PartialEq, Message)]
    struct Head {
        #[prost(string, tag = "1")]
        name: String,
    }
    // A server may send each in an envelope of its own.
    let body = match Resource::decode(body.value.as_slice()) {
        Ok(Resource { resource: Some(inner), .. }) if body.type_url == Resource::type_url() => inner,
        _ => body,
    };
    let version = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&body.value));
    // There is one table of names, and it has no name itself.
    if ResourceKind::of(&body.type_url) == Some(ResourceKind::NameTable) {
        return Resource { name: "nametable".to_owned(), version, resource: Some(body), ..Resource::default() };
    }
    // What cannot be read has no name: it is refused, by this name, like any other that cannot be read.
    let name = Head::decode(body.value.as_slice()).map(|head| head.name).unwrap_or_default();
    Resource { name, version, resource: Some(body), ..Resource::default() }
}

#[cfg(test)]
mod tests {
    use api::xds::pack;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::google::rpc::Status;

    use super::*;
    use crate::xds::resources::Resource as Held;

    const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

    fn response(version: &str, names: &[&str]) -> DiscoveryResponse {
        let cluster = |name: &&str| pack(&Cluster { name: (*name).to_owned(), ..Cluster::default() });
        DiscoveryResponse {
            version_info: version.into(),
            nonce: format!("n{version}"),
            type_url: CLUSTERS.into(),
            resources: names.iter().map(cluster).collect(),
            ..DiscoveryResponse::default()
        }
    }

    fn answer(nonce: &str, error: Option<&str>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: CLUSTERS.into(),
            response_nonce: nonce.into(),
            error_detail: error.map(|message| Status { message: message.into(), ..Status::default() }),
            ..DeltaDiscoveryRequest::default()
        }
    }

    #[test]
    fn a_refusal_names_the_version_that_was_taken_last() {
        let mut stream = StateOfTheWorld::default();
        let first = stream.response(response("1", &["a", "b"]), &ResourceSet::default());
        assert_eq!(first.resources.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(stream.request(answer("n1", None)).version_info, "1");
        let mut held = ResourceSet::default();
        for one in first.resources {
            let body = std::sync::Arc::new(one.resource.unwrap());
            held.of_mut(ResourceKind::Cluster).insert(one.name, Held { version: one.version, body });
        }
        assert_eq!(stream.response(response("2", &["a"]), &held).removed_resources, ["b"]);
        let refusal = stream.request(answer("n2", Some("no")));
        assert_eq!((refusal.version_info.as_str(), refusal.response_nonce.as_str()), ("1", "n2"));
        assert_eq!(refusal.error_detail.unwrap().message, "no");
    }

    #[test]
    fn a_request_names_all_that_is_wanted() {
        let mut stream = StateOfTheWorld::default();
        let names = |stream: &mut StateOfTheWorld, more: &[&str], fewer: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let request = DeltaDiscoveryRequest {
                type_url: ENDPOINTS.into(),
                resource_names_subscribe: list(more),
                resource_names_unsubscribe: list(fewer),
                ..DeltaDiscoveryRequest::default()
            };
            stream.request(request).resource_names
        };
        assert_eq!(names(&mut stream, &["b"], &[]), ["b"]);
        assert_eq!(names(&mut stream, &["a"], &[]), ["a", "b"]);
        assert_eq!(names(&mut stream, &[], &["b"]), ["a"]);
    }

    #[test]
    fn equal_bytes_are_equal_versions_and_envelopes_are_opened() {
        let mut stream = StateOfTheWorld::default();
        let plain = stream.response(response("1", &["a"]), &ResourceSet::default()).resources;
        let mut wrapped = response("2", &["a"]);
        wrapped.resources = vec![pack(&Resource {
            name: "other".into(),
            resource: Some(wrapped.resources.remove(0)),
            ..Resource::default()
        })];
        assert_eq!(stream.response(wrapped, &ResourceSet::default()).resources, plain);
    }
}
