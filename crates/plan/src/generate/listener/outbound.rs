//! What a sidecar sends: the capturing listener, one for each port or virtual address, and the HTTP proxy's.

use std::collections::{BTreeMap, BTreeSet};

use api::cluster_name::{BLACK_HOLE, ClusterName};
use api::name::Hostname;
use api::xds::core::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;

use super::super::filter::{self, Routes, Side};
use super::super::route::{self, HTTP_PROXY, Routing};
use super::{PLAIN_HTTP, When, chain, distinct, inspect, listener};
use crate::model::{Digested, Port, Protocol, Service};
use crate::scope::Scope;
use crate::snapshot::VirtualService;
use crate::snapshot::view::Egress;

/// What is heard at one address and port.
#[derive(Default)]
struct Heard {
    /// Name of the routes, if HTTP is heard.
    routes: Option<String>,
    /// HTTP only if the first bytes say so.
    sniffed: bool,
    chains: Vec<FilterChain>,
    /// Without server name or subnet: for all other connections.
    default: Option<FilterChain>,
    bound: bool,
}

pub(super) fn all(scope: &Scope) -> Vec<Listener> {
    let mut listeners: Vec<Listener> =
        heard(scope).into_iter().map(|((address, port), heard)| write(scope, &address, port, heard)).collect();
    if scope.proxy.interception.is_captured() {
        listeners.push(capturing(scope));
    }
    let proxy_port = scope.snapshot.mesh.proxy_http_port;
    if proxy_port > 0 {
        let address = scope.proxy.local_host();
        let name = format!("{address}_{proxy_port}");
        listeners.retain(|listener| listener.name != name);
        let mut http = listener(scope, &name, &address, proxy_port, TrafficDirection::Outbound, true);
        let filters =
            vec![filter::http(scope, Side::Outbound, &format!("outbound_{name}"), Routes::Named(HTTP_PROXY.into()))];
        http.filter_chains.push(chain("", &When::default(), None, filters));
        listeners.push(http);
    }
    listeners
}

pub(super) fn route_names(scope: &Scope) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = heard(scope).into_values().filter_map(|heard| heard.routes).collect();
    if scope.snapshot.mesh.proxy_http_port > 0 {
        names.insert(HTTP_PROXY.into());
    }
    names
}

fn capturing(scope: &Scope) -> Listener {
    let port = scope.snapshot.mesh.proxy_listen_port;
    let mut listener = super::capturing(scope, "virtualOutbound", port, TrafficDirection::Outbound);
    listener.use_original_dst = Some(envoy_types::pb::google::protobuf::BoolValue { value: true });
    // Connections to the capturing port itself would go round for ever.
    let black_hole = filter::tcp(scope, BLACK_HOLE, ClusterSpecifier::Cluster(BLACK_HOLE.into()));
    listener.filter_chains.push(chain(
        "virtualOutbound-blackhole",
        &When { destination_port: Some(port), ..When::default() },
        None,
        black_hole,
    ));
    listener.default_filter_chain = Some(unknown(scope, "virtualOutbound-catchall-tcp"));
    listener
}

/// To where it was sent, or nowhere, as the mesh says.
fn unknown(scope: &Scope, name: &str) -> FilterChain {
    let cluster = filter::unknown_destination(scope);
    chain(name, &When::default(), None, filter::tcp(scope, cluster, ClusterSpecifier::Cluster(cluster.into())))
}

fn heard(scope: &Scope) -> BTreeMap<(String, u16), Heard> {
    let mut map = BTreeMap::new();
    // Listeners of a port of their own come first: they are what the user wrote down.
    for egress in scope.view.egress.iter().filter(|egress| egress.port.is_some()) {
        own_port(scope, egress, &mut map);
    }
    let own: BTreeSet<u16> =
        scope.view.egress.iter().filter_map(|egress| egress.port.as_ref()).map(|port| port.number).collect();
    for egress in scope.view.egress.iter().filter(|egress| egress.port.is_none()) {
        // Without capture nobody would get to a service's address: applications use the HTTP proxy or an own port.
        if egress.bound {
            continue;
        }
        let routing = Routing::of(&egress.virtual_services);
        for service in &egress.services {
            for port in
                service.ports.iter().filter(|port| port.protocol != Protocol::Udp && !own.contains(&port.number))
            {
                hear(scope, &routing, service, port, &mut map);
            }
        }
    }
    map
}

fn own_port(scope: &Scope, egress: &Egress, map: &mut BTreeMap<(String, u16), Heard>) {
    let Some(port) = &egress.port else { return };
    let address = match (egress.bind.as_str(), egress.bound) {
        ("" | "127.0.0.1", true) => scope.proxy.local_host(),
        ("0.0.0.0", true) => scope.proxy.wildcard(),
        ("", false) => "0.0.0.0".to_owned(),
        (bind, _) => bind.to_owned(),
    };
    let protocol = Protocol::named(&port.protocol).unwrap_or(Protocol::Sniffed);
    let mut heard = Heard { bound: egress.bound, ..Heard::default() };
    if protocol.is_http() || protocol == Protocol::Sniffed {
        heard.routes = Some(port.number.to_string());
        heard.sniffed = protocol == Protocol::Sniffed;
    } else {
        let routing = Routing::of(&egress.virtual_services);
        for service in &egress.services {
            for one in service.ports.iter().filter(|one| one.number == port.number && !one.protocol.is_http()) {
                let (chains, default) = tcp_chains(scope, &routing, service, one, protocol.is_tls());
                heard.chains.extend(chains);
                heard.default = heard.default.or(default);
            }
        }
        // A port that no service has: the only service meant by it, at its own port.
        if heard.chains.is_empty()
            && heard.default.is_none()
            && let [service] = egress.services.as_slice()
            && let [one] = service.ports.as_slice()
        {
            (heard.chains, heard.default) = tcp_chains(scope, &routing, service, one, false);
        }
    }
    if heard.routes.is_some() || !heard.chains.is_empty() || heard.default.is_some() {
        map.entry((address, port.number)).or_insert(heard);
    }
}

fn hear(
    scope: &Scope,
    routing: &Routing<'_>,
    service: &Digested<Service>,
    port: &Port,
    map: &mut BTreeMap<(String, u16), Heard>,
) {
    const ANY: &str = "0.0.0.0";
    if route::is_shared_http(scope, service, port) {
        let heard = map.entry((ANY.into(), port.number)).or_default();
        heard.routes = Some(port.number.to_string());
        // Other connections to this port go where they were sent.
        heard.sniffed = true;
        return;
    }
    let all = scope.addresses(service);
    let addresses: Vec<&str> =
        all.iter().copied().filter(|address| address.parse::<std::net::IpAddr>().is_ok()).collect();
    let subnets: Vec<&str> = all.into_iter().filter(|address| address.contains('/')).collect();
    for address in &addresses {
        let heard = map.entry(((*address).to_owned(), port.number)).or_default();
        if port.protocol == Protocol::Sniffed {
            heard.routes = Some(format!("{}:{}", service.host, port.number));
            heard.sniffed = true;
        }
        let (chains, default) = tcp_chains(scope, routing, service, port, false);
        heard.chains.extend(chains);
        heard.default = heard.default.take().or(default);
    }
    if !subnets.is_empty() {
        let heard = map.entry((ANY.into(), port.number)).or_default();
        let (chains, default) = tcp_chains(scope, routing, service, port, false);
        for mut one in chains.into_iter().chain(default) {
            let ranges = subnets.iter().filter_map(|text| super::super::wire::cidr(text)).collect();
            one.filter_chain_match.get_or_insert_default().prefix_ranges = ranges;
            heard.chains.push(one);
        }
    } else if addresses.is_empty() {
        let heard = map.entry((ANY.into(), port.number)).or_default();
        let (chains, default) = tcp_chains(scope, routing, service, port, true);
        heard.chains.extend(chains);
        heard.default = heard.default.take().or(default);
    }
}

/// Chains for the connections to a TCP or TLS port: as its VirtualService says, else to the service. Several services may
/// share the address: then only the server name tells them apart.
fn tcp_chains(
    scope: &Scope,
    routing: &Routing<'_>,
    service: &Service,
    port: &Port,
    shared: bool,
) -> (Vec<FilterChain>, Option<FilterChain>) {
    let rules = routing.find(&service.host);
    let mut chains = Vec::new();
    if let Some(rules) = rules.filter(|rules| port.protocol.is_tls() && !rules.spec.tls.is_empty()) {
        chains = tls_chains(scope, rules, port.number);
    }
    let mut default = None;
    if let Some(rules) = rules.filter(|rules| !rules.spec.tcp.is_empty()) {
        for rule in &rules.spec.tcp {
            let mine: Vec<_> = rule
                .matches
                .iter()
                .filter(|one| {
                    route::applies(
                        scope,
                        rules,
                        one.port,
                        &one.source_labels,
                        &one.source_namespace,
                        &one.gateways,
                        port.number,
                        "mesh",
                    )
                })
                .collect();
            let Some(specifier) = route::weighted_tcp(scope, rules, &rule.route, port.number)
                .filter(|_| rule.matches.is_empty() || !mine.is_empty())
            else {
                continue;
            };
            let filters = filter::tcp(scope, &stat_prefix(&specifier), specifier);
            let all = rule.matches.is_empty() || mine.iter().any(|one| one.destination_subnets.is_empty());
            if all {
                default = Some(chain("", &When::default(), None, filters));
                break;
            }
            let subnets = mine.iter().flat_map(|one| one.destination_subnets.clone()).collect();
            chains.push(chain("", &When { subnets, ..When::default() }, None, filters));
        }
    }
    if default.is_none() {
        let cluster = ClusterName::outbound(port.number, "", service.host.as_str()).to_string();
        let filters = filter::tcp(scope, &cluster, ClusterSpecifier::Cluster(cluster.clone()));
        let name = Some(&service.host).filter(|_| shared && port.protocol.is_tls()).filter(|host| host.as_str() != "*");
        match name.map(Hostname::to_string) {
            // A rule for this name already says where it goes.
            Some(name)
                if chains.iter().any(|one| {
                    one.filter_chain_match.as_ref().is_some_and(|matcher| matcher.server_names.contains(&name))
                }) => {}
            Some(name) => chains.push(chain(
                "",
                &When { server_names: vec![name], transport: "tls", ..When::default() },
                None,
                filters,
            )),
            None => default = Some(chain("", &When::default(), None, filters)),
        }
    }
    (chains, default)
}

fn tls_chains(scope: &Scope, rules: &VirtualService, port: u16) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    for rule in &rules.spec.tls {
        for one in rule.matches.iter().filter(|one| {
            route::applies(
                scope,
                rules,
                one.port,
                &one.source_labels,
                &one.source_namespace,
                &one.gateways,
                port,
                "mesh",
            )
        }) {
            let Some(specifier) = route::weighted_tcp(scope, rules, &rule.route, port) else { continue };
            let filters = filter::tcp(scope, &stat_prefix(&specifier), specifier);
            let when = When {
                server_names: one.sni_hosts.clone(),
                subnets: one.destination_subnets.clone(),
                transport: "tls",
                ..When::default()
            };
            chains.push(chain("", &when, None, filters));
        }
    }
    chains
}

fn stat_prefix(specifier: &ClusterSpecifier) -> String {
    match specifier {
        ClusterSpecifier::Cluster(cluster) => cluster.clone(),
        ClusterSpecifier::WeightedClusters(weighted) => {
            weighted.clusters.first().map(|first| first.name.clone()).unwrap_or_default()
        }
    }
}

fn write(scope: &Scope, address: &str, port: u16, heard: Heard) -> Listener {
    let name = format!("{address}_{port}");
    let mut listener = listener(scope, &name, address, port, TrafficDirection::Outbound, heard.bound);
    listener.filter_chains = heard.chains;
    if let Some(routes) = heard.routes {
        let filters = vec![filter::http(scope, Side::Outbound, &format!("outbound_{name}"), Routes::Named(routes))];
        let when = if heard.sniffed {
            When { transport: "raw_buffer", protocols: &PLAIN_HTTP, ..When::default() }
        } else {
            When::default()
        };
        listener.filter_chains.push(chain("", &when, None, filters));
    }
    distinct(&mut listener);
    inspect(&mut listener);
    let http_only = !heard.sniffed
        && heard.default.is_none()
        && listener.filter_chains.iter().any(|chain| chain.filter_chain_match.is_none());
    if !http_only {
        listener.default_filter_chain = heard.default.or_else(|| Some(unknown(scope, "PassthroughFilterChain")));
    }
    // One chain for all connections needs no exception.
    if listener.filter_chains.is_empty() {
        listener.filter_chains.extend(listener.default_filter_chain.take());
    }
    listener
}
