//! What gRPC clients without a proxy get (node metadata `GENERATOR: grpc`; Istio `pilot/pkg/networking/grpcgen`): a listener for
//! each name that `xds:///NAME` may be, with the routes and clusters behind it, in the subset of Envoy's types that gRPC reads
//! (gRFC A27, A28, A29, A33). As in Istio, mutual TLS is only where a DestinationRule says ISTIO_MUTUAL: the client has no
//! proxy that could tell endpoints apart. Parts of a route that gRPC has no word for (rewrites, mirrors, header changes, CORS)
//! are left out or ignored by it.

use std::sync::Arc;

use api::cluster_name::ClusterName;
use api::crd::destination_rule::ClientTlsMode;
use api::xds::{ResourceKind, pack};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, Rds};

use super::route::{self, Routing};
use super::wire::ads;
use super::{cluster, endpoint, filter, named, tls};
use crate::model::{Digested, Named, Port, Protocol, Service};
use crate::resources::Resources;
use crate::scope::Scope;

/// The name of gRPC's fault filter, which is Envoy's.
const FAULT: &str = "envoy.filters.http.fault";

/// The resources of a kind.
pub(super) fn all(scope: &Scope, kind: ResourceKind) -> Resources {
    let own = match kind {
        ResourceKind::Endpoint => return endpoint::all(scope),
        // Certificates come from the client's own bootstrap.
        ResourceKind::Secret => return Resources::default(),
        // Nobody captures their DNS.
        ResourceKind::NameTable => return Resources::default(),
        ResourceKind::Listener => scope.own("grpc listeners", || each_port(scope, listeners)),
        ResourceKind::Route => {
            scope.own("grpc routes", || each_port(scope, |scope, of, port| vec![routes(scope, of, port)]))
        }
        ResourceKind::Cluster => scope.own("grpc clusters", || each_port(scope, clusters)),
    };
    Resources::new(Arc::default(), own)
}

/// Services that gRPC can reach: those whose endpoints are told.
fn each_port(scope: &Scope, make: impl Fn(&Scope, &Digested<Service>, &Port) -> Vec<Arc<Named>>) -> Vec<Arc<Named>> {
    let services = scope.view.services.values().filter(|service| cluster::takes_eds(scope, service));
    services
        .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
        .filter(|(_, port)| port.protocol != Protocol::Udp)
        .flat_map(|(service, port)| make(scope, service, port))
        .collect()
}

/// One for each name of the service, as they all may stand in a target.
fn listeners(scope: &Scope, service: &Digested<Service>, port: &Port) -> Vec<Arc<Named>> {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: ads(),
            route_config_name: cluster_name(service, port, "").to_string(),
        })),
        http_filters: vec![
            filter::http_filter(FAULT, pack(&HttpFault::default())),
            filter::http_filter("envoy.filters.http.router", pack(&Router::default())),
        ],
        ..HttpConnectionManager::default()
    };
    let listener = |name: String| {
        let api_listener = Some(ApiListener { api_listener: Some(pack(&manager)) });
        named(&name, &Listener { name: name.clone(), api_listener, ..Listener::default() })
    };
    route::domains(scope, service, port.number, true).into_iter().map(listener).collect()
}

fn routes(scope: &Scope, service: &Digested<Service>, port: &Port) -> Arc<Named> {
    let name = cluster_name(service, port, "").to_string();
    let mut routes = Vec::new();
    for egress in &scope.view.egress {
        let routing = Routing::of(&egress.virtual_services);
        if let Some(rules) = routing.find(&service.host).filter(|rules| !rules.spec.http.is_empty()) {
            routes = route::http_routes(scope, rules, port.number, "mesh");
            break;
        }
    }
    if routes.is_empty() {
        routes.push(route::default_route(scope, service, port));
    }
    for route in &mut routes {
        // A client refuses settings of filters that it does not have.
        route.typed_per_filter_config.retain(|filter, _| filter == FAULT);
    }
    let host = VirtualHost {
        name: format!("{}:{}", service.host, port.number),
        domains: route::domains(scope, service, port.number, false),
        routes,
        ..VirtualHost::default()
    };
    named(&name, &RouteConfiguration { name: name.clone(), virtual_hosts: vec![host], ..RouteConfiguration::default() })
}

fn clusters(scope: &Scope, service: &Digested<Service>, port: &Port) -> Vec<Arc<Named>> {
    let rule = scope.view.rules.get(&service.host);
    let one = |subset: &str| {
        let name = cluster_name(service, port, subset);
        let mut cluster = Cluster {
            name: name.to_string(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), service_name: name.to_string() }),
            ..Cluster::default()
        };
        let policy = cluster::policy(rule.map(|rule| &**rule), port.number, subset);
        if policy.tls.as_ref().is_some_and(|tls| tls.mode == ClientTlsMode::IstioMutual) {
            let names = service.identities(&scope.snapshot.mesh.trust_domain);
            cluster.transport_socket = Some(tls::from_provider(&name.sni(), &names));
        }
        named(&cluster.name, &cluster)
    };
    cluster::subsets(scope, service).into_iter().map(one).collect()
}

fn cluster_name(service: &Service, port: &Port, subset: &str) -> ClusterName {
    ClusterName::outbound(port.number, subset, service.host.as_str())
}
