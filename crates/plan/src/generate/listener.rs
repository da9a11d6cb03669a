//! LDS: what a proxy listens on.

mod outbound;
mod inbound;
mod gateway;

use std::collections::BTreeSet;

use api::node::Role;
use api::object::ObjectKey;
use api::xds::core::{Metadata, TrafficDirection, TransportSocket};
use envoy_types::pb::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener,
};

use super::wire::{metadata, object_path, socket, some_duration};
use super::{filter, named};
use crate::model::digest_of;
use crate::resources::{Resources, ordered};
use crate::scope::Scope;

/// ALPN of HTTP between sidecars.
const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// ALPN of TCP between sidecars, and of HTTP from an Envoy without Istio's filters.
const MESH_TCP: [&str; 2] = [api::xds::PEER_EXCHANGE, "istio"];
/// What the inspector of plaintext calls HTTP.
const PLAIN_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

pub(super) fn all(scope: &Scope) -> Resources {
    let write = |listeners: Vec<Listener>| listeners.iter().map(|listener| named(&listener.name, listener)).collect();
    match scope.proxy.role {
        // Where a workload takes in and sends on one address and port, what it takes in counts.
        Role::Sidecar => {
            let digest = digest_of(&("listeners", scope.routes_digest()));
            let shared = scope.snapshot.made.get(digest, || ordered(write(outbound::all(scope))).to_vec());
            Resources::new(shared, scope.own("listeners", || write(inbound::all(scope))))
        }
        Role::Router => Resources::new(Default::default(), scope.own("listeners", || write(gateway::all(scope)))),
    }
}

/// Names of all routes that a sidecar's listeners ask for.
pub(super) fn route_names(scope: &Scope) -> BTreeSet<String> {
    outbound::route_names(scope)
}

/// What a connection must look like for a chain.
#[derive(Default)]
struct When<'a> {
    destination_port: Option<u16>,
    transport: &'a str,
    protocols: &'a [&'a str],
    server_names: Vec<String>,
    subnets: Vec<String>,
}

impl When<'_> {
    fn write(&self) -> Option<FilterChainMatch> {
        let matcher = FilterChainMatch {
            destination_port: self.destination_port.and_then(|port| super::wire::some_u32(u32::from(port))),
            transport_protocol: self.transport.to_owned(),
            application_protocols: self.protocols.iter().map(|name| (*name).to_owned()).collect(),
            // Any name: Envoy has no word for it but none.
            server_names: if self.server_names.iter().any(|name| name == "*") {
                Vec::new()
            } else {
                self.server_names.clone()
            },
            prefix_ranges: self.subnets.iter().filter_map(|text| super::wire::cidr(text)).collect(),
            ..FilterChainMatch::default()
        };
        (matcher != FilterChainMatch::default()).then_some(matcher)
    }
}

fn chain(name: &str, when: &When<'_>, socket: Option<TransportSocket>, filters: Vec<Filter>) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filter_chain_match: when.write(),
        filters,
        transport_socket: socket,
        ..FilterChain::default()
    }
}

/// Metadata that names the object for whose sake a listener takes no other connections: explanations of failures show it.
fn of_object(object: &ObjectKey) -> Option<Metadata> {
    metadata([("istio", serde_json::json!({"config": object_path(object)}))])
}

/// A listener without chains. `bound`: it has a socket; else connections are handed over by the capturing one.
fn listener(scope: &Scope, name: &str, address: &str, port: u16, direction: TrafficDirection, bound: bool) -> Listener {
    let timeout = scope.snapshot.mesh.protocol_detection_timeout;
    Listener {
        name: name.to_owned(),
        address: socket(address, port),
        traffic_direction: direction as i32,
        bind_to_port: (!bound).then_some(envoy_types::pb::google::protobuf::BoolValue { value: false }),
        // 0 waits for ever: a server that speaks first must be declared.
        listener_filters_timeout: some_duration(timeout),
        continue_on_listener_filters_timeout: !timeout.is_zero(),
        ..Listener::default()
    }
}

/// A listener for captured connections, of each family of addresses that the workload has.
fn capturing(scope: &Scope, name: &str, port: u16, direction: TrafficDirection) -> Listener {
    let addresses = scope.proxy.any_addresses();
    let first = addresses.first().copied().unwrap_or("0.0.0.0");
    let others = addresses.iter().skip(1);
    Listener {
        additional_addresses: others
            .map(|address| AdditionalAddress { address: socket(address, port), ..AdditionalAddress::default() })
            .collect(),
        ..listener(scope, name, first, port, direction, true)
    }
}

/// Adds the inspectors that the chains' matches need.
fn inspect(listener: &mut Listener) {
    let matches = || listener.filter_chains.iter().filter_map(|chain| chain.filter_chain_match.as_ref());
    let tls = matches().any(|matcher| {
        !matcher.transport_protocol.is_empty()
            || !matcher.server_names.is_empty()
            || !matcher.application_protocols.is_empty()
    });
    let http =
        matches().any(|matcher| matcher.application_protocols.iter().any(|name| PLAIN_HTTP.contains(&name.as_str())));
    if tls {
        listener.listener_filters.push(filter::tls_inspector());
    }
    if http {
        listener.listener_filters.push(filter::http_inspector());
    }
}

/// Drops chains whose match stands before already: Envoy refuses the whole listener for one.
fn distinct(listener: &mut Listener) {
    let mut seen: Vec<Option<FilterChainMatch>> = Vec::new();
    listener.filter_chains.retain(|chain| {
        let new = !seen.contains(&chain.filter_chain_match);
        if new {
            seen.push(chain.filter_chain_match.clone());
        }
        new
    });
}
