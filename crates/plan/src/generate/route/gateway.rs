//! Routes of gateways, and which servers share a port.

use std::collections::{BTreeMap, BTreeSet};

use api::crd::gateway::{Server, ServerTlsMode};
use api::name::Hostname;
use envoy_types::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};

use super::super::wire::some_bool;
use super::{answer, applies, http_routes, weighted_tcp};
use crate::model::Protocol;
use crate::scope::Scope;
use crate::snapshot::VirtualService;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy;

/// One server of one Gateway.
pub(in crate::generate) struct GatewayServer<'a> {
    /// `namespace/name` of the Gateway.
    pub(in crate::generate) gateway: String,
    pub(in crate::generate) namespace: &'a str,
    pub(in crate::generate) name: &'a str,
    pub(in crate::generate) server: &'a Server,
}

/// What happens to a server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::generate) enum Handling {
    /// HTTP in the clear.
    Http,
    /// TLS is terminated, HTTP inside.
    Https,
    /// TLS is passed through.
    TlsPassthrough,
    /// TLS is terminated, bytes inside.
    TlsTerminated,
    /// Bytes.
    Tcp,
}

impl GatewayServer<'_> {
    pub(in crate::generate) fn handling(&self) -> Handling {
        let protocol = Protocol::named(&self.server.port.protocol).unwrap_or(Protocol::Tcp);
        let mode = self
            .server
            .tls
            .as_ref()
            .filter(|tls| !(tls.https_redirect && tls.mode == ServerTlsMode::Passthrough))
            .map(|tls| tls.mode);
        match (protocol, mode) {
            (Protocol::Http, _) | (Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb, None) => Handling::Http,
            // Istio refuses TLS settings here; the obvious meaning is taken.
            (Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb, Some(_)) => Handling::Https,
            (
                Protocol::Https | Protocol::Tls,
                None | Some(ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough),
            ) => Handling::TlsPassthrough,
            (Protocol::Https, Some(_)) => Handling::Https,
            (Protocol::Tls, Some(_)) => Handling::TlsTerminated,
            (_, Some(mode)) if mode != ServerTlsMode::Passthrough => Handling::TlsTerminated,
            _ => Handling::Tcp,
        }
    }

    /// The server's hosts, each with the namespace whose VirtualServices may use it.
    pub(in crate::generate) fn hosts(&self) -> Vec<(String, Hostname)> {
        self.server
            .hosts
            .iter()
            .map(|text| match text.split_once('/') {
                Some((".", host)) => (self.namespace.to_owned(), Hostname::new(host)),
                Some((namespace, host)) => (namespace.to_owned(), Hostname::new(host)),
                None => ("*".to_owned(), Hostname::new(text)),
            })
            .collect()
    }
}

/// Servers by (bind, listening port). The number of a server is a port of the gateway's Service if that has one of this
/// number; then the gateway listens on the target port.
pub(in crate::generate) fn servers_by_port(scope: &Scope) -> BTreeMap<(String, u16), Vec<GatewayServer<'_>>> {
    let mut map: BTreeMap<(String, u16), Vec<GatewayServer<'_>>> = BTreeMap::new();
    let wildcard = scope.proxy.wildcard();
    for gateway in &scope.gateways {
        for server in &gateway.spec.servers {
            let bind = match server.bind.as_str() {
                "" | "0.0.0.0" => wildcard.clone(),
                bind => bind.to_owned(),
            };
            let own = BTreeSet::from([server.port.number]);
            for port in scope.target_ports.get(&server.port.number).unwrap_or(&own) {
                let entry = GatewayServer {
                    gateway: format!("{}/{}", gateway.namespace, gateway.name),
                    namespace: &gateway.namespace,
                    name: &gateway.name,
                    server,
                };
                map.entry((bind.clone(), *port)).or_default().push(entry);
            }
        }
    }
    map
}

/// Name of a server's routes.
pub(in crate::generate) fn route_name(server: &GatewayServer<'_>, port: u16) -> String {
    let bind = if server.server.bind.is_empty() { String::new() } else { format!(".{}", server.server.bind) };
    match server.handling() {
        Handling::Https => format!(
            "https.{}.{}.{}.{}{bind}",
            server.server.port.number, server.server.port.name, server.name, server.namespace
        ),
        _ => format!("http.{port}{bind}"),
    }
}

pub(super) fn all(scope: &Scope, configurations: &mut BTreeMap<String, RouteConfiguration>) {
    for ((_, port), servers) in servers_by_port(scope) {
        let mut by_name: BTreeMap<String, Vec<&GatewayServer<'_>>> = BTreeMap::new();
        for server in servers.iter().filter(|server| matches!(server.handling(), Handling::Http | Handling::Https)) {
            by_name.entry(route_name(server, port)).or_default().push(server);
        }
        for (name, servers) in by_name {
            configurations.insert(name.clone(), configuration(scope, &name, port, &servers));
        }
    }
}

/// The VirtualServices bound to a gateway server, with the hosts that both have.
pub(in crate::generate) fn bound<'a>(
    scope: &'a Scope,
    server: &GatewayServer<'_>,
) -> Vec<(&'a VirtualService, Vec<Hostname>)> {
    let hosts = server.hosts();
    let mut bound = Vec::new();
    for egress in &scope.view.egress {
        for rules in egress.virtual_services.iter().filter(|rules| rules.gateways.contains(&server.gateway)) {
            let mut both: Vec<Hostname> = Vec::new();
            for own in &rules.hosts {
                for (_, host) in hosts.iter().filter(|(namespace, _)| namespace == "*" || *namespace == rules.namespace)
                {
                    if host.covers(own) {
                        both.push(own.clone());
                    } else if own.covers(host) {
                        both.push(host.clone());
                    }
                }
            }
            both.sort();
            both.dedup();
            if !both.is_empty() {
                bound.push((&**rules, both));
            }
        }
    }
    bound
}

fn configuration(scope: &Scope, name: &str, port: u16, servers: &[&GatewayServer<'_>]) -> RouteConfiguration {
    let mut hosts: BTreeMap<Hostname, (Vec<Route>, bool, u16)> = BTreeMap::new();
    let mut redirects: BTreeMap<Hostname, u16> = BTreeMap::new();
    for server in servers {
        let redirect =
            server.server.tls.as_ref().is_some_and(|tls| tls.https_redirect) && server.handling() == Handling::Http;
        let number = server.server.port.number;
        for (rules, both) in bound(scope, server) {
            let routes = http_routes(scope, rules, number, &server.gateway);
            for host in both {
                // Several VirtualServices of one host at a gateway are one after the other, the oldest first.
                let entry = hosts.entry(host).or_insert_with(|| (Vec::new(), false, number));
                entry.1 |= redirect;
                for route in &routes {
                    if !entry.0.contains(route) {
                        entry.0.push(route.clone());
                    }
                }
            }
        }
        if redirect {
            redirects.extend(server.hosts().into_iter().map(|(_, host)| (host, number)));
        }
    }
    for (host, number) in redirects {
        hosts.entry(host).or_insert_with(|| (Vec::new(), true, number)).1 = true;
    }
    let mut virtual_hosts: Vec<VirtualHost> = hosts
        .into_iter()
        .map(|(host, (routes, redirect, number))| virtual_host(&host, routes, redirect, number))
        .collect();
    if virtual_hosts.is_empty() {
        virtual_hosts.push(VirtualHost {
            name: format!("blackhole:{port}"),
            domains: vec!["*".into()],
            routes: vec![answer("blackhole", 404)],
            ..VirtualHost::default()
        });
    }
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts,
        validate_clusters: some_bool(false),
        max_direct_response_body_size_bytes: super::super::wire::some_u32(1 << 20),
        ..RouteConfiguration::default()
    }
}

fn virtual_host(host: &Hostname, mut routes: Vec<Route>, redirect: bool, number: u16) -> VirtualHost {
    // A rule that takes everything ends the list.
    if let Some(last) = routes.iter().position(super::matcher::takes_all) {
        routes.truncate(last + 1);
    }
    let domains = match host.as_str() {
        "*" => vec!["*".to_owned()],
        // Envoy has no wildcard at both ends.
        name if host.is_wildcard() => vec![name.to_owned(), format!("{name}:{number}")],
        name => vec![name.to_owned(), format!("{name}:*")],
    };
    VirtualHost {
        name: format!("{host}:{number}"),
        domains,
        routes,
        require_tls: if redirect { TlsRequirementType::All as i32 } else { TlsRequirementType::None as i32 },
        include_request_attempt_count: true,
        ..VirtualHost::default()
    }
}

/// Server names (for TLS that is passed through) and destinations of a server's TLS and TCP rules, in order.
pub(in crate::generate) fn tcp_rules(
    scope: &Scope,
    server: &GatewayServer<'_>,
) -> Vec<(Vec<String>, tcp_proxy::ClusterSpecifier)> {
    let number = server.server.port.number;
    let hosts = server.hosts();
    let mut found = Vec::new();
    for (rules, both) in bound(scope, server) {
        if server.handling() == Handling::TlsPassthrough {
            for rule in &rules.spec.tls {
                for one in rule.matches.iter().filter(|one| {
                    applies(
                        scope,
                        rules,
                        one.port,
                        &one.source_labels,
                        &one.source_namespace,
                        &one.gateways,
                        number,
                        &server.gateway,
                    )
                }) {
                    let names: Vec<String> = one
                        .sni_hosts
                        .iter()
                        .filter(|name| hosts.iter().any(|(_, host)| host.covers(&Hostname::new(name))))
                        .cloned()
                        .collect();
                    if let Some(specifier) =
                        weighted_tcp(scope, rules, &rule.route, number).filter(|_| !names.is_empty())
                    {
                        found.push((names, specifier));
                    }
                }
            }
        }
        for rule in &rules.spec.tcp {
            let mine = rule.matches.is_empty()
                || rule.matches.iter().any(|one| {
                    applies(
                        scope,
                        rules,
                        one.port,
                        &one.source_labels,
                        &one.source_namespace,
                        &one.gateways,
                        number,
                        &server.gateway,
                    )
                });
            if let Some(specifier) = weighted_tcp(scope, rules, &rule.route, number).filter(|_| mine) {
                let names = if server.handling() == Handling::Tcp {
                    Vec::new()
                } else {
                    both.iter().map(ToString::to_string).filter(|name| name != "*").collect()
                };
                found.push((names, specifier));
                break;
            }
        }
    }
    found
}
