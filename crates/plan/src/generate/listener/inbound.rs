//! What a sidecar takes in: captured connections at one listener, or a listener for each port.

use api::cluster_name::{BLACK_HOLE, ClusterName, INBOUND_PASSTHROUGH};
use api::crd::peer_authentication::MutualTlsMode;
use api::xds::core::{TrafficDirection, TransportSocket};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;

use super::super::filter::{self, Routes, Side};
use super::super::{route, tls};
use super::{MESH_HTTP, MESH_TCP, PLAIN_HTTP, When, chain, inspect, listener, of_object};
use crate::model::Protocol;
use crate::proxy::Interception;
use crate::scope::{Inbound, Scope};

/// How one kind of connection is taken.
struct Taking {
    transport: &'static str,
    protocols: Vec<&'static str>,
    /// The mesh's mutual TLS is terminated.
    mutual: bool,
    http: bool,
}

pub(super) fn all(scope: &Scope) -> Vec<Listener> {
    let mut listeners: Vec<Listener> =
        scope.inbound.iter().filter(|inbound| inbound.bound).map(|inbound| own_listener(scope, inbound)).collect();
    if scope.proxy.interception.is_captured() {
        listeners.push(captured(scope));
    }
    listeners
}

fn own_listener(scope: &Scope, inbound: &Inbound) -> Listener {
    let name = format!("{}_{}", inbound.bind, inbound.listen);
    let mut listener = listener(scope, &name, &inbound.bind, inbound.listen, TrafficDirection::Inbound, true);
    listener.filter_chains = chains(scope, inbound, None);
    listener.metadata = inbound.policy.as_ref().and_then(of_object);
    inspect(&mut listener);
    listener
}

fn captured(scope: &Scope) -> Listener {
    let port = scope.snapshot.mesh.proxy_inbound_listen_port;
    let mut listener = super::capturing(scope, "virtualInbound", port, TrafficDirection::Inbound);
    // Connections to the capturing port itself would go round for ever.
    let black_hole = filter::tcp(scope, BLACK_HOLE, ClusterSpecifier::Cluster(BLACK_HOLE.into()));
    listener.filter_chains.push(chain(
        "virtualInbound-blackhole",
        &When { destination_port: Some(port), ..When::default() },
        None,
        black_hole,
    ));
    listener.filter_chains.extend(catch_all(scope));
    for inbound in scope.inbound.iter().filter(|inbound| !inbound.bound) {
        listener.filter_chains.extend(chains(scope, inbound, Some(inbound.listen)));
    }
    listener.listener_filters.push(filter::original_dst());
    if scope.proxy.interception == Interception::Transparent {
        listener.transparent = Some(envoy_types::pb::google::protobuf::BoolValue { value: true });
        listener.listener_filters.push(filter::original_src());
    }
    let (_, policy) = scope.snapshot.mutual_tls(&scope.proxy.namespace, &scope.labels, 0);
    listener.metadata = policy.as_ref().and_then(of_object);
    inspect(&mut listener);
    listener
}

/// Chains of one port.
fn chains(scope: &Scope, inbound: &Inbound, destination_port: Option<u16>) -> Vec<FilterChain> {
    let cluster = ClusterName::inbound(inbound.port).to_string();
    let name = format!("{}_{}", inbound.bind, inbound.listen);
    let make = |taking: Taking| {
        let filters = if taking.http {
            vec![filter::http(
                scope,
                Side::Inbound,
                &format!("inbound_{name}"),
                Routes::Inline(Box::new(route::inbound(inbound))),
            )]
        } else {
            filter::tcp_inbound(scope, &cluster, ClusterSpecifier::Cluster(cluster.clone()))
        };
        let when =
            When { destination_port, transport: taking.transport, protocols: &taking.protocols, ..When::default() };
        chain(&name, &when, mutual(scope, &taking), filters)
    };
    takings(inbound.protocol, inbound.mutual_tls).into_iter().map(make).collect()
}

/// Chains for ports that no service claims: they go where they were meant to.
fn catch_all(scope: &Scope) -> Vec<FilterChain> {
    let (mode, _) = scope.snapshot.mutual_tls(&scope.proxy.namespace, &scope.labels, 0);
    let make = |taking: Taking| {
        let (name, filters) = if taking.http {
            (
                "virtualInbound-catchall-http",
                vec![filter::http(
                    scope,
                    Side::Inbound,
                    INBOUND_PASSTHROUGH,
                    Routes::Inline(Box::new(route::inbound_passthrough())),
                )],
            )
        } else {
            (
                "virtualInbound",
                filter::tcp_inbound(scope, INBOUND_PASSTHROUGH, ClusterSpecifier::Cluster(INBOUND_PASSTHROUGH.into())),
            )
        };
        let when = When { transport: taking.transport, protocols: &taking.protocols, ..When::default() };
        chain(name, &when, mutual(scope, &taking), filters)
    };
    takings(Protocol::Sniffed, mode).into_iter().map(make).collect()
}

fn mutual(scope: &Scope, taking: &Taking) -> Option<TransportSocket> {
    let mesh = &scope.snapshot.mesh;
    let mut domains = vec![mesh.trust_domain.as_str()];
    domains.extend(mesh.trust_domain_aliases.iter().map(String::as_str));
    let exchange = !taking.http && scope.proxy.extensions.peer_exchange;
    taking.mutual.then(|| tls::mutual_server(&domains, exchange))
}

/// Which connections a port takes, by what it speaks and the mode of mutual TLS.
fn takings(protocol: Protocol, mode: MutualTlsMode) -> Vec<Taking> {
    const TLS: &str = "tls";
    const PLAIN: &str = "raw_buffer";
    let taking = |transport, protocols: &[&'static str], mutual, http| Taking {
        transport,
        protocols: protocols.to_vec(),
        mutual,
        http,
    };
    let mesh: Vec<&'static str> = MESH_TCP.iter().chain(&MESH_HTTP).copied().collect();
    match (protocol, mode) {
        (Protocol::Sniffed, MutualTlsMode::Strict) => {
            vec![taking(TLS, &MESH_HTTP, true, true), taking(TLS, &[], true, false)]
        }
        // The bytes' chain names the transport too: from a chain of the same transport there is no way back to one without.
        (Protocol::Sniffed, MutualTlsMode::Disable) => vec![
            taking(PLAIN, &PLAIN_HTTP, false, true),
            taking(PLAIN, &[], false, false),
            taking(TLS, &[], false, false),
        ],
        (Protocol::Sniffed, _) => vec![
            taking(TLS, &MESH_HTTP, true, true),
            taking(PLAIN, &PLAIN_HTTP, false, true),
            taking(TLS, &MESH_TCP, true, false),
            taking(PLAIN, &[], false, false),
            // TLS of the application's own.
            taking(TLS, &[], false, false),
        ],
        (protocol, MutualTlsMode::Strict) => vec![taking(TLS, &[], true, protocol.is_http())],
        (protocol, MutualTlsMode::Disable) if protocol.is_http() => vec![taking(PLAIN, &[], false, true)],
        (_, MutualTlsMode::Disable) => vec![taking("", &[], false, false)],
        (protocol, _) if protocol.is_http() => vec![taking(TLS, &mesh, true, true), taking(PLAIN, &[], false, true)],
        (_, _) => {
            vec![taking(TLS, &mesh, true, false), taking(PLAIN, &[], false, false), taking(TLS, &[], false, false)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_takes_no_plaintext_and_disable_no_mutual_tls() {
        for protocol in [Protocol::Http, Protocol::Grpc, Protocol::Tcp, Protocol::Tls, Protocol::Sniffed] {
            assert!(
                takings(protocol, MutualTlsMode::Strict)
                    .iter()
                    .all(|taking| taking.mutual && taking.transport == "tls")
            );
            assert!(takings(protocol, MutualTlsMode::Disable).iter().all(|taking| !taking.mutual));
            let permissive = takings(protocol, MutualTlsMode::Permissive);
            assert!(permissive.iter().any(|taking| taking.mutual) && permissive.iter().any(|taking| !taking.mutual));
        }
    }
}
