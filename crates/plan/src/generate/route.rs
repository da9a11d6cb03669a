//! RDS: the routes that listeners name, and those that stand in inbound listeners.

mod matcher;
mod action;
mod gateway;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::cluster_name::{ClusterName, PASSTHROUGH};
use api::crd::sidecar::OutboundMode;
use api::crd::virtual_service::HttpRoute;
use api::json::canonical;
use api::name::Hostname;
use api::node::Role;
use api::value::Labels;
use api::xds::pack;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Decorator, DirectResponseAction, Route, RouteAction, RouteConfiguration, VirtualHost,
};
use prost::Name;
use prost::encoding::{WireType, encode_key, encode_varint};
use xxhash_rust::xxh3::Xxh3;

use super::named;
use super::wire::{config_path, metadata, some_bool, some_duration};
use crate::model::{Digested, Named, Port, Protocol, Service, digest_of};
use crate::resources::Resources;
use crate::scope::{Inbound, Scope};
use crate::snapshot::VirtualService;
use crate::snapshot::view::Egress;

/// Name of the routes of the port on which a sidecar serves as an HTTP proxy.
pub(super) const HTTP_PROXY: &str = "http_proxy";
/// Number of the field `virtual_hosts` of `RouteConfiguration`.
const VIRTUAL_HOSTS: u32 = 2;

pub(super) fn all(scope: &Scope) -> Resources {
    let made = scope.snapshot.made.get(digest_of(&("routes", scope.routes_digest())), || {
        let mut configurations: BTreeMap<String, RouteConfiguration> = BTreeMap::new();
        if scope.proxy.role == Role::Router {
            gateway::all(scope, &mut configurations);
        } else {
            return sidecar(scope);
        }
        configurations.iter().map(|(name, routes)| named(name, routes)).collect()
    });
    Resources::new(made, Arc::default())
}

/// Which services a sidecar's outbound routes hold.
enum Which {
    /// HTTP services with this port.
    Port(u16),
    /// One port of one service.
    One(Hostname, u16),
    /// HTTP services with any port.
    Any,
}

fn sidecar(scope: &Scope) -> Vec<Arc<Named>> {
    let mut made = Vec::new();
    let unrouted = scope.unrouted_digest();
    for name in super::listener::route_names(scope) {
        let which = match (name.as_str(), name.parse::<u16>(), name.rsplit_once(':')) {
            (HTTP_PROXY, ..) if scope.snapshot.mesh.proxy_http_port > 0 => Which::Any,
            (_, Ok(port), _) => Which::Port(port),
            (_, _, Some((host, port))) => match port.parse() {
                Ok(port) => Which::One(Hostname::new(host), port),
                Err(_) => continue,
            },
            _ => continue,
        };
        made.push(outbound(scope, unrouted, &name, &which));
    }
    made
}

/// The egress listener that a port's routes are of: the one of that port, else those without one.
fn egress_of<'a>(scope: &'a Scope, which: &Which) -> Option<&'a Egress> {
    let own =
        |port: u16| scope.view.egress.iter().find(|egress| egress.port.as_ref().is_some_and(|own| own.number == port));
    let general = || scope.view.egress.iter().find(|egress| egress.port.is_none());
    match which {
        Which::Port(port) | Which::One(_, port) => own(*port).or_else(general),
        Which::Any => general(),
    }
}

/// The routes of a name. Most changes of a VirtualService are of matter for the routes of one port alone.
fn outbound(scope: &Scope, unrouted: u64, name: &str, which: &Which) -> Arc<Named> {
    let egress = egress_of(scope, which);
    let wanted = egress.map(|egress| wanted_ports(scope, egress, which)).unwrap_or_default();
    let routing = egress.map(|egress| Routing::of(&egress.virtual_services)).unwrap_or_default();
    let rules = wanted.iter().map(|(service, _)| routing.find(&service.host).map_or(0, |rules| rules.digest));
    let only_ruled = egress.filter(|_| takes_only_ruled(which)).into_iter().flat_map(|egress| &egress.virtual_services);
    let inputs: Vec<u64> = rules.chain([u64::MAX]).chain(only_ruled.map(|rules| rules.digest)).collect();
    let made = scope.snapshot.made.get(digest_of(&("routes of", name, unrouted, inputs)), || {
        let mut hosts = egress.map(|egress| virtual_hosts(scope, egress, which, &routing, &wanted)).unwrap_or_default();
        hosts.push(written(scope, &unknown(scope)));
        let first = RouteConfiguration { name: name.to_owned(), ..RouteConfiguration::default() };
        let last = RouteConfiguration {
            validate_clusters: some_bool(false),
            max_direct_response_body_size_bytes: super::wire::some_u32(1 << 20),
            ..RouteConfiguration::default()
        };
        vec![in_pieces(&first, hosts, &last)]
    });
    made[0].clone()
}

/// Routes whose virtual hosts are written already; other namespaces' routes share most of them. `first` has the fields before
/// the hosts, `last` those after them.
fn in_pieces(first: &RouteConfiguration, hosts: Vec<Arc<[u8]>>, last: &RouteConfiguration) -> Arc<Named> {
    let [begin, end] = [first, last].map(|part| canonical(pack(part)).value.into());
    let pieces: Vec<Arc<[u8]>> = std::iter::once(begin).chain(hosts).chain([end]).collect();
    let mut digest = Xxh3::new();
    pieces.iter().for_each(|piece| digest.update(piece));
    Arc::new(Named::of_pieces(&first.name, digest.digest(), RouteConfiguration::type_url(), pieces))
}

/// A virtual host as a field of its routes, the same bytes in one place for all that have it.
fn written(scope: &Scope, host: &VirtualHost) -> Arc<[u8]> {
    scope.snapshot.made.same(field(host))
}

/// A virtual host as a field of its routes.
fn field(host: &VirtualHost) -> Vec<u8> {
    let body = canonical(pack(host)).value;
    let mut field = Vec::with_capacity(body.len() + 6);
    encode_key(VIRTUAL_HOSTS, WireType::LengthDelimited, &mut field);
    encode_varint(body.len() as u64, &mut field);
    field.extend(body);
    field
}

/// The services, and their ports, that have a virtual host in some routes.
fn wanted_ports<'a>(scope: &Scope, egress: &'a Egress, which: &Which) -> Vec<(&'a Digested<Service>, &'a Port)> {
    let listed_port = matches!(which, Which::Port(_)) && egress.port.is_some();
    let all = egress.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    all.filter(|(service, port)| wanted(scope, which, listed_port, service, port)).collect()
}

/// Whether hosts that only a VirtualService knows are among some routes: on port 80, as Istio does.
fn takes_only_ruled(which: &Which) -> bool {
    matches!(which, Which::Port(80) | Which::Any)
}

/// The virtual hosts of some egress, written, in the order of their names.
fn virtual_hosts(
    scope: &Scope,
    egress: &Egress,
    which: &Which,
    routing: &Routing<'_>,
    wanted: &[(&Digested<Service>, &Port)],
) -> Vec<Arc<[u8]>> {
    let mut used = HashSet::new();
    let mut hosts: Vec<(String, Arc<[u8]>)> = Vec::new();
    for (service, port) in wanted {
        let rules = routing.find(&service.host);
        let routes = match rules {
            Some(rules) if !rules.spec.http.is_empty() => http_routes(scope, rules, port.number, "mesh"),
            _ => Vec::new(),
        };
        let domains = free(&mut used, domains(scope, service, port.number, matches!(which, Which::Any)));
        if domains.is_empty() {
            continue;
        }
        let name = format!("{}:{}", service.host, port.number);
        // A VirtualService whose rules are all for others leaves its hosts as they are without it.
        let host = match routes.is_empty() {
            false => written(scope, &virtual_host(name.clone(), domains, routes)),
            true => by_default(scope, &name, domains, service, port),
        };
        hosts.push((name, host));
    }
    // Services are in the order of their hosts.
    let known = |host: &Hostname| match host.is_wildcard() {
        true => egress.services.iter().any(|service| host.covers(&service.host)),
        false => egress.services.binary_search_by(|service| service.host.cmp(host)).is_ok(),
    };
    if takes_only_ruled(which) {
        for rules in egress.virtual_services.iter().filter(|rules| !rules.spec.http.is_empty() && rules.is_for_mesh()) {
            for host in rules.hosts.iter().filter(|host| !known(host)) {
                let routes = http_routes(scope, rules, 80, "mesh");
                if routes.is_empty() || host.as_str() == "*" {
                    continue;
                }
                let name = format!("{host}:80");
                let domains = free(&mut used, vec![host.to_string(), name.clone()]);
                if !domains.is_empty() {
                    hosts.push((name.clone(), written(scope, &virtual_host(name, domains, routes))));
                }
            }
        }
    }
    hosts.sort_by(|one, two| one.0.cmp(&two.0));
    hosts.into_iter().map(|(_, host)| host).collect()
}

/// The virtual host of a service that no VirtualService routes. It is made of these arguments and the mesh's settings alone.
fn by_default(scope: &Scope, name: &str, domains: Vec<String>, service: &Digested<Service>, port: &Port) -> Arc<[u8]> {
    let inputs = digest_of(&("virtual host", scope.snapshot.mesh_digest, name, &domains, &service.host, port.number));
    scope.snapshot.made.piece(inputs, || {
        let routes = vec![default_route(scope, service, port)];
        field(&virtual_host(name.to_owned(), domains, routes))
    })
}

/// Envoy refuses a domain that stands twice; the first owner keeps it.
fn free(used: &mut HashSet<String>, mut domains: Vec<String>) -> Vec<String> {
    domains.retain(|domain| used.insert(domain.clone()));
    domains
}

fn virtual_host(name: String, domains: Vec<String>, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name, domains, routes, include_request_attempt_count: true, ..VirtualHost::default() }
}

fn wanted(scope: &Scope, which: &Which, listed_port: bool, service: &Service, port: &Port) -> bool {
    let speaks_http = port.protocol.is_http() || port.protocol == Protocol::Sniffed;
    match which {
        // A Sidecar's own egress port shows the services with that port.
        Which::Port(number) => {
            port.number == *number && (listed_port && speaks_http || is_shared_http(scope, service, port))
        }
        Which::One(host, number) => service.host == *host && port.number == *number,
        Which::Any => speaks_http,
    }
}

/// Whether a port's routes are among those that all HTTP services of that number share.
pub(super) fn is_shared_http(scope: &Scope, service: &Service, port: &Port) -> bool {
    port.protocol.is_http() || (port.protocol == Protocol::Sniffed && scope.addresses(service).is_empty())
}

/// The VirtualService of each host: the oldest with that very host, else the one with the most specific wildcard.
#[derive(Default)]
pub(super) struct Routing<'a> {
    exact: BTreeMap<&'a Hostname, &'a Arc<VirtualService>>,
    wild: Vec<(&'a Hostname, &'a Arc<VirtualService>)>,
}

impl<'a> Routing<'a> {
    pub(super) fn of(rules: &'a [Arc<VirtualService>]) -> Self {
        let (mut exact, mut wild) = (BTreeMap::new(), Vec::new());
        for rules in rules.iter().filter(|rules| rules.is_for_mesh()) {
            for host in &rules.hosts {
                if host.is_wildcard() {
                    wild.push((host, rules));
                } else {
                    exact.entry(host).or_insert(rules);
                }
            }
        }
        // Stable: of equal hosts, the oldest stays first.
        wild.sort_by(|one, two| one.0.by_specificity(two.0));
        Self { exact, wild }
    }

    pub(super) fn find(&self, host: &Hostname) -> Option<&'a Arc<VirtualService>> {
        self.exact
            .get(host)
            .copied()
            .or_else(|| self.wild.iter().find(|(wild, _)| wild.covers(host)).map(|(_, rules)| *rules))
    }
}

/// All names under which callers know a service: short names, the full one, virtual addresses; each with and without port.
pub(super) fn domains(scope: &Scope, service: &Service, port: u16, with_port_only: bool) -> Vec<String> {
    let host = service.host.as_str();
    let mut names = vec![host.to_owned()];
    if !service.host.is_wildcard() {
        names.push(format!("{host}."));
    }
    if service.kubernetes {
        let (name, namespace) = (&service.name, &service.namespace);
        if *namespace == scope.proxy.namespace {
            names.push(name.clone());
        }
        names.extend([format!("{name}.{namespace}"), format!("{name}.{namespace}.svc")]);
    }
    names.extend(
        scope
            .addresses(service)
            .into_iter()
            .filter(|address| address.parse::<std::net::IpAddr>().is_ok())
            .map(|address| if address.contains(':') { format!("[{address}]") } else { address.to_owned() }),
    );
    // The pods of a StatefulSet have names of their own below that of their service, which has no address.
    if service.kubernetes && service.headless {
        let pods: Vec<String> =
            names.iter().filter(|name| !name.ends_with('.')).map(|name| format!("*.{name}")).collect();
        names.extend(pods);
    }
    let mut domains = Vec::new();
    for name in names {
        // A name without port means port 80 where all ports are together. `*.a.com:80` is no domain that Envoy knows.
        let is_suffix = name.starts_with('*');
        if !with_port_only || port == 80 || is_suffix {
            domains.push(name.clone());
        }
        domains.push(format!("{name}:{port}"));
    }
    domains
}

/// What happens to hosts that nobody knows.
fn unknown(scope: &Scope) -> VirtualHost {
    // Without capture, "where it was sent" would be the proxy itself.
    let allow = scope.view.outbound == OutboundMode::AllowAny && scope.proxy.interception.is_captured();
    let (name, route) = if allow {
        ("allow_any", to_cluster("allow_any", PASSTHROUGH))
    } else {
        ("block_all", answer("block_all", 502))
    };
    VirtualHost {
        name: name.into(),
        domains: vec!["*".into()],
        routes: vec![route],
        include_request_attempt_count: true,
        ..VirtualHost::default()
    }
}

/// All requests to one cluster, without retries.
fn to_cluster(name: &str, cluster: &str) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: some_duration(api::value::Duration::default()),
        ..RouteAction::default()
    };
    Route {
        name: name.to_owned(),
        r#match: Some(matcher::all()),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

/// A fixed status.
fn answer(name: &str, status: u32) -> Route {
    Route {
        name: name.to_owned(),
        r#match: Some(matcher::all()),
        action: Some(Action::DirectResponse(DirectResponseAction { status, ..DirectResponseAction::default() })),
        ..Route::default()
    }
}

/// The route of a service that no VirtualService routes.
pub(super) fn default_route(scope: &Scope, service: &Digested<Service>, port: &Port) -> Route {
    let cluster = ClusterName::outbound(port.number, "", service.host.as_str()).to_string();
    let mut route = to_cluster("default", &cluster);
    if let Some(Action::Route(action)) = &mut route.action {
        action.retry_policy = action::default_retries(scope);
    }
    route.decorator =
        Some(Decorator { operation: format!("{}:{}/*", service.host, port.number), ..Decorator::default() });
    route
}

/// The routes of a VirtualService, for callers at a gateway (or `mesh`) and port.
pub(super) fn http_routes(scope: &Scope, rules: &VirtualService, port: u16, gateway: &str) -> Vec<Route> {
    let mut routes = Vec::new();
    for rule in &rules.spec.http {
        if rule.matches.is_empty() {
            routes.push(http_route(scope, rules, rule, None, port));
            // Nothing after it can be reached.
            break;
        }
        let mine = rule.matches.iter().filter(|one| {
            applies(scope, rules, one.port, &one.source_labels, &one.source_namespace, &one.gateways, port, gateway)
        });
        let before = routes.len();
        routes.extend(mine.map(|one| http_route(scope, rules, rule, Some(one), port)));
        if routes[before..].iter().any(matcher::takes_all) {
            break;
        }
    }
    routes
}

/// Whether a match is for these callers: what is known before any request.
#[allow(clippy::too_many_arguments)]
pub(super) fn applies(
    scope: &Scope,
    rules: &VirtualService,
    wanted_port: Option<u32>,
    source: &Labels,
    namespace: &str,
    gateways: &[String],
    port: u16,
    gateway: &str,
) -> bool {
    let here = gateways.is_empty()
        || gateways.iter().any(|name| {
            if name == "mesh" || name.contains('/') {
                name == gateway
            } else {
                format!("{}/{name}", rules.namespace) == gateway
            }
        });
    let right_port = wanted_port.is_none_or(|wanted| wanted == u32::from(port));
    // Sources are sidecars; a gateway has none.
    let mine = gateway != "mesh"
        || (api::selector::selects(source, &scope.labels)
            && (namespace.is_empty() || namespace == scope.proxy.namespace));
    here && right_port && mine
}

fn http_route(
    scope: &Scope,
    rules: &VirtualService,
    rule: &HttpRoute,
    one: Option<&api::crd::virtual_service::HttpMatchRequest>,
    port: u16,
) -> Route {
    let name = match (rule.name.as_str(), one.map_or("", |one| one.name.as_str())) {
        ("", "") => "default".to_owned(),
        (rule, "") => rule.to_owned(),
        ("", one) => one.to_owned(),
        (rule, one) => format!("{rule}.{one}"),
    };
    let mut route = Route {
        name,
        r#match: Some(one.map_or_else(matcher::all, matcher::of)),
        metadata: metadata([(
            "istio",
            serde_json::json!({"config": config_path("virtual-service", &rules.namespace, &rules.name)}),
        )]),
        stat_prefix: one.map(|one| one.stat_prefix.clone()).unwrap_or_default(),
        ..Route::default()
    };
    action::write(scope, rules, rule, one, port, &mut route);
    route
}

/// Routes of a port that is taken in: all requests to the application.
pub(super) fn inbound(inbound: &Inbound) -> RouteConfiguration {
    let cluster = ClusterName::inbound(inbound.port).to_string();
    let mut route = to_cluster("default", &cluster);
    if let Some(Action::Route(action)) = &mut route.action {
        action.retry_policy = Some(action::inbound_retries());
    }
    if !inbound.host.is_empty() {
        route.decorator =
            Some(Decorator { operation: format!("{}:{}/*", inbound.host, inbound.port), ..Decorator::default() });
    }
    RouteConfiguration {
        name: cluster,
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{}", inbound.port),
            domains: vec!["*".into()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        validate_clusters: some_bool(false),
        ..RouteConfiguration::default()
    }
}

/// Routes of captured connections to ports that no service claims.
pub(super) fn inbound_passthrough() -> RouteConfiguration {
    let name = api::cluster_name::INBOUND_PASSTHROUGH;
    let mut route = to_cluster("default", name);
    route.decorator = Some(Decorator { operation: ":0/*".into(), ..Decorator::default() });
    RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![VirtualHost {
            name: "inbound|http|0".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        validate_clusters: some_bool(false),
        ..RouteConfiguration::default()
    }
}

pub(super) use action::weighted_tcp;
pub(super) use gateway::{GatewayServer, Handling, route_name as gateway_route_name, servers_by_port, tcp_rules};

#[cfg(test)]
mod tests {
    use api::xds::Any;

    use super::*;

    #[test]
    fn routes_in_pieces_are_the_message() {
        let host = |name: &str| {
            let mut route = to_cluster("default", name);
            route.metadata =
                metadata([("z", serde_json::json!({"b": 1, "a": 2})), ("a", serde_json::json!({"c": "d"}))]);
            virtual_host(name.into(), vec![format!("{name}.shop"), name.into()], vec![route])
        };
        let hosts = [host("a"), host(&"long".repeat(99)), VirtualHost::default()];
        let first = RouteConfiguration { name: "80".into(), ..RouteConfiguration::default() };
        let last = RouteConfiguration { validate_clusters: some_bool(false), ..RouteConfiguration::default() };
        let made = in_pieces(&first, hosts.iter().map(|host| field(host).into()).collect(), &last);
        let whole = RouteConfiguration { name: first.name, virtual_hosts: hosts.to_vec(), ..last };
        let whole = named("80", &whole);
        let Any { type_url, value } = made.body();
        assert_eq!((type_url, value), (whole.body().type_url, whole.body().value));
        assert_eq!((&made.name, made.version, made.length()), (&whole.name, whole.version, whole.length()));
    }
}
