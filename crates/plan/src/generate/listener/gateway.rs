//! What a gateway listens on.

use api::object::{Kind, ObjectKey};
use api::xds::core::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;

use super::super::filter::{self, Routes, Side};
use super::super::route::{GatewayServer, Handling, gateway_route_name, servers_by_port, tcp_rules};
use super::super::tls;
use super::{When, chain, distinct, inspect, listener, of_object};
use crate::scope::Scope;

pub(super) fn all(scope: &Scope) -> Vec<Listener> {
    let mut listeners = Vec::new();
    for ((address, port), servers) in servers_by_port(scope) {
        let name = format!("{address}_{port}");
        let mut listener = listener(scope, &name, &address, port, TrafficDirection::Outbound, true);
        let mut has_http = false;
        for server in &servers {
            // All plaintext HTTP servers of a port are one: their routes are merged.
            if server.handling() == Handling::Http && std::mem::replace(&mut has_http, true) {
                continue;
            }
            listener.filter_chains.extend(chains(scope, server, port, &name));
        }
        // A port without anything to do is still open in Istio only if it has a chain; Envoy refuses one without.
        if listener.filter_chains.is_empty() {
            continue;
        }
        listener.metadata = servers.first().and_then(|server| {
            let (namespace, name) = (server.namespace.to_owned(), server.name.to_owned());
            of_object(&ObjectKey { kind: Kind::Gateway, namespace, name })
        });
        distinct(&mut listener);
        inspect(&mut listener);
        listeners.push(listener);
    }
    listeners
}

fn chains(scope: &Scope, server: &GatewayServer<'_>, port: u16, name: &str) -> Vec<FilterChain> {
    let mesh = &scope.snapshot.mesh;
    let mut domains = vec![mesh.trust_domain.as_str()];
    domains.extend(mesh.trust_domain_aliases.iter().map(String::as_str));
    let stat_prefix = |host: &str| format!("outbound_{host}_{port}");
    let bind = name.rsplit_once('_').map_or(name, |(bind, _)| bind);
    let socket = |http: bool| server.server.tls.as_ref().and_then(|settings| tls::server(settings, &domains, http));
    match server.handling() {
        Handling::Http => {
            let filters = vec![filter::http(
                scope,
                Side::Gateway,
                &stat_prefix(bind),
                Routes::Named(gateway_route_name(server, port)),
            )];
            vec![chain("", &When::default(), None, filters)]
        }
        Handling::Https => {
            let filters = vec![filter::http(
                scope,
                Side::Gateway,
                &stat_prefix(bind),
                Routes::Named(gateway_route_name(server, port)),
            )];
            vec![chain("", &When { server_names: server_names(server), ..When::default() }, socket(true), filters)]
        }
        Handling::TlsPassthrough => tcp_rules(scope, server)
            .into_iter()
            .map(|(names, specifier)| {
                let when = When {
                    server_names: names.into_iter().filter(|name| name != "*").collect(),
                    transport: "tls",
                    ..When::default()
                };
                chain("", &when, None, tcp(scope, specifier))
            })
            .collect(),
        Handling::TlsTerminated => tcp_rules(scope, server)
            .into_iter()
            .take(1)
            .map(|(_, specifier)| {
                chain(
                    "",
                    &When { server_names: server_names(server), ..When::default() },
                    socket(false),
                    tcp(scope, specifier),
                )
            })
            .collect(),
        Handling::Tcp => tcp_rules(scope, server)
            .into_iter()
            .take(1)
            .map(|(_, specifier)| chain("", &When::default(), None, tcp(scope, specifier)))
            .collect(),
    }
}

fn tcp(scope: &Scope, specifier: ClusterSpecifier) -> Vec<envoy_types::pb::envoy::config::listener::v3::Filter> {
    let prefix = match &specifier {
        ClusterSpecifier::Cluster(cluster) => cluster.clone(),
        ClusterSpecifier::WeightedClusters(weighted) => {
            weighted.clusters.first().map(|first| first.name.clone()).unwrap_or_default()
        }
    };
    filter::tcp_guarded(scope, &prefix, specifier)
}

/// Names that the handshake must ask for; none for `*`.
fn server_names(server: &GatewayServer<'_>) -> Vec<String> {
    let mut names: Vec<String> = server.hosts().into_iter().map(|(_, host)| host.to_string()).collect();
    if names.iter().any(|name| name == "*") {
        return Vec::new();
    }
    names.sort();
    names.dedup();
    names
}
