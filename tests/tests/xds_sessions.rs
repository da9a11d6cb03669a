//! The two halves of the xDS protocol against each other, in memory: whatever is changed, lost or refused meanwhile, in the end the
//! proxy holds what the server offers, and at no moment does a route in effect point at a cluster that is not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use api::xds::core::Node;
use api::xds::{ResourceKind, pack, unpack};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, Rds};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use meshd::serve::offer::Offer;
use meshd::serve::session::{Heard, Session as Server, Variant};
use plan::{Named, Resources};
use proptest::prelude::*;
use proxy::xds::resources::{Reject, ResourceSet};
use proxy::xds::session::Session as Client;

/// A small world: services by number, and the listeners that lead to them.
#[derive(Clone, Debug, Default)]
struct World {
    /// Service to (version of its cluster, version of its endpoints).
    services: BTreeMap<u8, (u32, u32)>,
    /// Listener to the service that its route leads to.
    listeners: BTreeMap<u8, u8>,
}

fn entry<M: prost::Message + prost::Name>(name: String, message: &M) -> Arc<Named> {
    let body = pack(message);
    // Any digest does: equal bytes, equal number.
    let version = body
        .value
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    Arc::new(Named::new(&name, version, body))
}

/// Lists that were offered, by what is in them: as those of the planner, one that comes back is the very same.
type Lists = Arc<Mutex<BTreeMap<(ResourceKind, Vec<(String, u64)>), Resources>>>;

impl World {
    fn offer(&self, lists: &Lists) -> Arc<Offer> {
        let (world, lists) = (self.clone(), lists.clone());
        Arc::new(Offer::new(Box::new(move |kind| {
            let entries = world.entries(kind);
            let content = entries.iter().map(|entry| (entry.name.to_string(), entry.version)).collect();
            let make = || entries.into_iter().collect();
            lists.lock().unwrap().entry((kind, content)).or_insert_with(make).clone()
        })))
    }

    fn entries(&self, kind: ResourceKind) -> Vec<Arc<Named>> {
        match kind {
            ResourceKind::Cluster => {
                self.services.iter().map(|(service, (version, _))| cluster(*service, *version)).collect()
            }
            ResourceKind::Endpoint => {
                self.services.iter().map(|(service, (_, version))| endpoints(*service, *version)).collect()
            }
            ResourceKind::Listener => self.listeners.keys().map(|number| listener(*number)).collect(),
            ResourceKind::Route => self.listeners.iter().map(|(number, service)| route(*number, *service)).collect(),
            ResourceKind::Secret | ResourceKind::NameTable => Vec::new(),
        }
    }
}

fn cluster(service: u8, version: u32) -> Arc<Named> {
    let kind = ClusterDiscoveryType::Type(DiscoveryType::Eds as i32);
    entry(
        format!("c{service}"),
        &Cluster {
            name: format!("c{service}"),
            alt_stat_name: version.to_string(),
            cluster_discovery_type: Some(kind),
            ..Cluster::default()
        },
    )
}

fn endpoints(service: u8, version: u32) -> Arc<Named> {
    let mut assignment =
        ClusterLoadAssignment { cluster_name: format!("c{service}"), ..ClusterLoadAssignment::default() };
    assignment.endpoints = vec![Default::default(); version as usize % 3];
    entry(format!("c{service}"), &assignment)
}

fn listener(number: u8) -> Arc<Named> {
    let rds = RouteSpecifier::Rds(Rds { route_config_name: format!("r{number}"), ..Rds::default() });
    let manager = HttpConnectionManager { route_specifier: Some(rds), ..HttpConnectionManager::default() };
    let filter = Filter { name: "http".into(), config_type: Some(ConfigType::TypedConfig(pack(&manager))) };
    let chain = FilterChain { filters: vec![filter], ..FilterChain::default() };
    entry(
        format!("l{number}"),
        &Listener { name: format!("l{number}"), filter_chains: vec![chain], ..Listener::default() },
    )
}

fn route(number: u8, service: u8) -> Arc<Named> {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(format!("c{service}"))),
        ..RouteAction::default()
    };
    let route = Route { action: Some(Action::Route(action)), ..Route::default() };
    let host = VirtualHost { name: "all".into(), routes: vec![route], ..VirtualHost::default() };
    entry(
        format!("r{number}"),
        &RouteConfiguration { name: format!("r{number}"), virtual_hosts: vec![host], ..RouteConfiguration::default() },
    )
}

fn target(body: &api::xds::Any) -> String {
    let config: RouteConfiguration = unpack(body).unwrap();
    match config.virtual_hosts[0].routes[0].action.clone() {
        Some(Action::Route(RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster(name)), .. })) => name,
        other => panic!("{other:?}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A listener leads to a service from now on (the service comes into being if need be).
    Lead(u8, u8),
    /// A listener goes, and all services that no listener leads to.
    Drop(u8),
    /// A service's cluster changes.
    Change(u8),
    /// A service's endpoints change.
    Move(u8),
    /// The server hears the oldest request under way.
    ServerHears,
    /// The proxy hears the oldest response under way.
    ProxyHears,
    /// The connection breaks; all under way is lost.
    Break,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4u8, 0..6u8).prop_map(|(listener, service)| Step::Lead(listener, service)),
        1 => (0..4u8).prop_map(Step::Drop),
        1 => (0..6u8).prop_map(Step::Change),
        2 => (0..6u8).prop_map(Step::Move),
        8 => Just(Step::ServerHears),
        8 => Just(Step::ProxyHears),
        1 => Just(Step::Break),
    ]
}

struct Pair {
    world: World,
    client: Client,
    server: Server,
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
    sent: usize,
    lists: Lists,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            world: World::default(),
            client: Client::new(Node::default()),
            server: Server::new(Variant::Delta),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            sent: 0,
            lists: Lists::default(),
        };
        pair.reconnect();
        pair
    }

    fn reconnect(&mut self) {
        self.requests = self.client.connect().into();
        self.responses.clear();
        self.server = Server::new(Variant::Delta);
        self.pump();
    }

    /// The server sends all that it may.
    fn pump(&mut self) {
        self.server.set_offer(self.world.offer(&self.lists));
        while let Some(answer) = self.server.next_answer() {
            self.sent += 1;
            assert!(self.sent < 20_000, "the server does not stop sending");
            self.responses.push_back(answer.into_delta());
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Lead(listener, service) => {
                self.world.services.entry(*service).or_insert((0, 1));
                self.world.listeners.insert(*listener, *service);
                self.sweep();
            }
            Step::Drop(listener) => {
                self.world.listeners.remove(listener);
                self.sweep();
            }
            Step::Change(service) => {
                self.world.services.entry(*service).and_modify(|(cluster, _)| *cluster += 1).or_insert((0, 1)).0 += 0
            }
            Step::Move(service) => {
                if let Some((_, endpoints)) = self.world.services.get_mut(service) {
                    *endpoints += 1;
                }
            }
            Step::ServerHears => {
                if let Some(request) = self.requests.pop_front() {
                    let heard = self.server.request(request.into());
                    assert!(!matches!(heard, Heard::Nack(..) | Heard::UnknownKind), "{heard:?}");
                }
            }
            Step::ProxyHears => self.proxy_hears(),
            Step::Break => return self.reconnect(),
        }
        self.pump();
    }

    fn sweep(&mut self) {
        let listeners = &self.world.listeners;
        self.world.services.retain(|service, _| listeners.values().any(|led| led == service));
    }

    fn proxy_hears(&mut self) {
        let Some(response) = self.responses.pop_front() else { return };
        let mut check = |set: &ResourceSet| -> Vec<Reject> {
            for (name, resource) in set.of(ResourceKind::Route) {
                // Only routes that a listener in effect uses can be taken by a request.
                let used = set.of(ResourceKind::Listener).keys().any(|listener| listener[1..] == name[1..]);
                let cluster = target(&resource.body);
                assert!(
                    !used || set.of(ResourceKind::Cluster).contains_key(&cluster),
                    "{name} points at {cluster}, which is not there"
                );
                assert!(
                    !used || set.of(ResourceKind::Endpoint).contains_key(&cluster),
                    "{cluster} is used and has no endpoints yet"
                );
            }
            for listener in set.of(ResourceKind::Listener).keys() {
                assert!(
                    set.of(ResourceKind::Route).contains_key(&format!("r{}", &listener[1..])),
                    "{listener} has no routes"
                );
            }
            Vec::new()
        };
        self.requests.extend(self.client.respond(response, &mut check));
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.requests.is_empty() && self.responses.is_empty() {
                return;
            }
            self.take(&Step::ServerHears);
            self.take(&Step::ProxyHears);
        }
        panic!("the two never come to rest");
    }
}

fn held(set: &ResourceSet, kind: ResourceKind) -> BTreeMap<String, api::xds::Any> {
    set.of(kind).iter().map(|(name, resource)| (name.clone(), (*resource.body).clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_the_end_the_proxy_holds_what_is_offered(steps in proptest::collection::vec(step(), 1..120)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.take(step);
        }
        pair.settle();
        for kind in [ResourceKind::Cluster, ResourceKind::Endpoint, ResourceKind::Listener, ResourceKind::Route] {
            let offered: BTreeMap<_, _> = pair.world.entries(kind).into_iter().map(|entry| (entry.name.to_string(), entry.body())).collect();
            prop_assert_eq!(held(pair.client.effective(), kind), offered, "{:?}", kind);
        }
        prop_assert!(pair.client.is_complete());
    }

    #[test]
    fn a_reconnect_sends_nothing_that_is_held(steps in proptest::collection::vec(step(), 1..60)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.take(step);
        }
        pair.settle();
        pair.reconnect();
        let mut carried = 0;
        while !(pair.requests.is_empty() && pair.responses.is_empty()) {
            pair.take(&Step::ServerHears);
            carried += pair.responses.iter().map(|response| response.resources.len() + response.removed_resources.len()).sum::<usize>();
            pair.take(&Step::ProxyHears);
        }
        prop_assert_eq!(carried, 0);
    }
}

#[test]
fn a_refusal_is_told_for_its_own_kind_and_taken_back_when_its_cause_goes() {
    let mut pair = Pair::new();
    // The listener is refused for as long as its route leads to service 1: the verdict on it hangs on another kind.
    let mut picky = |set: &ResourceSet| -> Vec<Reject> {
        let unlucky = set.of(ResourceKind::Route).get("r0").is_some_and(|route| target(&route.body) == "c1");
        let refused = || Reject { kind: ResourceKind::Listener, name: "l0".into(), reason: "bad luck".into() };
        unlucky.then(refused).into_iter().collect()
    };
    let mut settle = |pair: &mut Pair| {
        while !(pair.requests.is_empty() && pair.responses.is_empty()) {
            if let Some(request) = pair.requests.pop_front() {
                pair.server.request(request.into());
                pair.pump();
            }
            if let Some(response) = pair.responses.pop_front() {
                pair.requests.extend(pair.client.respond(response, &mut picky));
            }
        }
    };
    pair.take(&Step::Lead(0, 1));
    settle(&mut pair);
    assert!(pair.server.status(ResourceKind::Listener).nack.contains("bad luck"));
    assert_eq!(pair.server.status(ResourceKind::Route).nack, "");
    pair.take(&Step::Lead(0, 2));
    settle(&mut pair);
    let status = pair.server.status(ResourceKind::Listener);
    assert_eq!((status.nack.as_str(), &status.sent), ("", &status.acked));
}
