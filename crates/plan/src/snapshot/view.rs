//! What all proxies of a namespace see of the mesh that are told the same: made once for them all, since the mesh is large and
//! they are many.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use api::crd;
use api::crd::sidecar::{CaptureMode, OutboundMode};
use api::name::Hostname;
use api::node::Role;
use api::selector::selects;
use api::value::Labels;
use api::xds::ResourceKind;

use super::{DestinationRule, Plain, Snapshot, VirtualService};
use crate::model::{Digested, Named, Service, digest_of};
use crate::proxy::{Interception, ProxyIdentity};
use crate::resources::ordered;

/// Resources in the order of names.
type List = Arc<[Arc<Named>]>;
/// What has been made, or is being made: whoever else wants it waits instead of making it too.
type Once<T> = Arc<OnceLock<T>>;

/// The views of one snapshot, by what they are made of.
#[derive(Debug, Default)]
pub(crate) struct Views {
    views: Mutex<HashMap<u64, Once<Arc<View>>>>,
    /// Views of a snapshot that differs from this one only in the places of endpoints, and the services that differ.
    before: HashMap<u64, Arc<View>>,
    moved: Vec<Digested<Service>>,
}

impl Views {
    /// Of a snapshot that has the shape of the one before.
    pub(super) fn after(before: &Snapshot, now: &Snapshot) -> Self {
        let moved = before.services.iter().zip(&now.services).filter(|(old, new)| old.digest != new.digest);
        let mut views: HashMap<u64, Arc<View>> = before.views.before.clone();
        let mut moved: Vec<_> = moved.map(|(_, new)| new.clone()).collect();
        let made = made(&before.views.views);
        if !made.is_empty() {
            views = made;
        } else {
            // Nobody has looked at the one before: what moved for it has moved for this one too.
            moved.extend(
                before
                    .views
                    .moved
                    .iter()
                    .filter_map(|old| {
                        let known = moved.iter().any(|new| new.host == old.host && new.namespace == old.namespace);
                        (!known).then(|| old.clone())
                    })
                    .collect::<Vec<_>>(),
            );
        }
        Self { views: Mutex::default(), before: views, moved }
    }

    fn get(&self, key: u64, make: impl FnOnce() -> View) -> Arc<View> {
        once(&self.views, key, || Arc::new(make()))
    }
}

/// What is known by a key, or is made now, once however many ask at a time. The lock is not held meanwhile.
fn once<K: Hash + Eq, T: Clone>(known: &Mutex<HashMap<K, Once<T>>>, key: K, make: impl FnOnce() -> T) -> T {
    let place = known.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
    place.get_or_init(make).clone()
}

/// What has been made until now.
fn made<K: Clone + Hash + Eq, T: Clone>(known: &Mutex<HashMap<K, Once<T>>>) -> HashMap<K, T> {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().filter_map(|(key, place)| Some((key.clone(), place.get()?.clone()))).collect()
}

/// What proxies of one namespace see that are told the same.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) egress: Vec<Egress>,
    /// All services that some egress listener shows, by host.
    pub(crate) services: BTreeMap<Hostname, Digested<Service>>,
    /// The rule of each of them that has one.
    pub(crate) rules: BTreeMap<Hostname, Arc<DestinationRule>>,
    pub(crate) outbound: OutboundMode,
    /// Digest of all of it.
    pub(crate) digest: u64,
    /// The same without the places of endpoints.
    pub(crate) shape: u64,
    /// The same without VirtualServices too.
    pub(crate) unrouted: u64,
    /// Some rule asks for the labels of the workload that calls.
    pub(crate) asks_labels: bool,
    lists: Mutex<HashMap<(ResourceKind, u64), Once<List>>>,
    /// The endpoints of the view before, by kin, and the services whose endpoints have moved since.
    before: HashMap<u64, List>,
    moved: Vec<Digested<Service>>,
}

/// One group of hosts that a proxy may reach.
#[derive(Clone, Debug)]
pub(crate) struct Egress {
    /// Own port, or all ports of the services.
    pub(crate) port: Option<crd::gateway::Port>,
    pub(crate) bind: String,
    /// Applications connect to the listener; else traffic is redirected.
    pub(crate) bound: bool,
    /// By host, each once.
    pub(crate) services: Vec<Digested<Service>>,
    pub(crate) virtual_services: Vec<Arc<VirtualService>>,
}

impl View {
    /// The view of a proxy, as another of its kind may have made it already.
    pub(crate) fn shared(
        snapshot: &Snapshot,
        proxy: &ProxyIdentity,
        labels: &Labels,
        sidecar: Option<&Plain<crd::Sidecar>>,
    ) -> Arc<View> {
        let uncaptured = proxy.interception == Interception::None;
        let labels_count = snapshot.rules_select();
        let none = Labels::new();
        let key = digest_of(&(
            proxy.role,
            &proxy.namespace,
            uncaptured,
            sidecar.map_or(0, |sidecar| sidecar.digest),
            if labels_count { labels } else { &none },
        ));
        snapshot.views.get(key, || match snapshot.views.before.get(&key) {
            Some(before) => before.moved(snapshot),
            None => View::of(snapshot, proxy, labels, sidecar.map(|sidecar| &*sidecar.spec)),
        })
    }

    fn of(snapshot: &Snapshot, proxy: &ProxyIdentity, labels: &Labels, sidecar: Option<&crd::Sidecar>) -> View {
        let told = sidecar.and_then(|sidecar| sidecar.outbound_traffic_policy.as_ref()).and_then(|policy| policy.mode);
        let mut view = View {
            egress: Vec::new(),
            services: BTreeMap::new(),
            rules: BTreeMap::new(),
            outbound: told.or(snapshot.mesh.outbound_traffic_policy.mode).unwrap_or_default(),
            digest: 0,
            shape: 0,
            unrouted: 0,
            asks_labels: false,
            lists: Mutex::default(),
            before: HashMap::new(),
            moved: Vec::new(),
        };
        let uncaptured = proxy.interception == Interception::None;
        let listeners = sidecar.map(|sidecar| sidecar.egress.as_slice()).unwrap_or_default();
        let everything = crd::sidecar::IstioEgressListener { hosts: vec!["*/*".into()], ..Default::default() };
        let listeners = if listeners.is_empty() { std::slice::from_ref(&everything) } else { listeners };
        for listener in listeners {
            let (services, virtual_services) = visible(snapshot, proxy, &listener.hosts);
            for service in &services {
                view.services.entry(service.host.clone()).or_insert_with(|| service.clone());
            }
            let bound = match listener.capture_mode {
                CaptureMode::Default => uncaptured,
                CaptureMode::Iptables => false,
                CaptureMode::None => true,
            };
            view.egress.push(Egress {
                port: listener.port.clone(),
                bind: listener.bind.clone(),
                bound,
                services,
                virtual_services,
            });
        }
        for service in view.services.values() {
            if let Some(rule) = snapshot.destination_rule(&service.host, &service.namespace, &proxy.namespace, labels) {
                view.rules.insert(service.host.clone(), rule.clone());
            }
        }
        view.asks_labels = view.egress.iter().flat_map(|egress| &egress.virtual_services).any(|routing| asks(routing));
        view.unrouted = view.digest_unrouted(snapshot, |service| service.shape);
        view.shape = view.digest_with(view.unrouted);
        view.digest = view.digest_with(view.digest_unrouted(snapshot, |service| service.digest));
        view
    }

    /// The same view with the endpoints of some services elsewhere: all that is made of it stays, but for these.
    fn moved(&self, snapshot: &Snapshot) -> View {
        let moved = &snapshot.views.moved;
        let new = |service: &Digested<Service>| {
            moved.iter().find(|new| new.host == service.host && new.namespace == service.namespace)
        };
        let mut services = self.services.clone();
        for service in moved {
            if let Some(seen) = services.get_mut(&service.host).filter(|seen| seen.namespace == service.namespace) {
                *seen = service.clone();
            }
        }
        let egress = |egress: &Egress| Egress {
            services: egress.services.iter().map(|service| new(service).unwrap_or(service).clone()).collect(),
            ..egress.clone()
        };
        let mut lists = made(&self.lists);
        let before = lists.extract_if(|(kind, _), _| *kind == ResourceKind::Endpoint);
        let before = before.map(|((_, kin), list)| (kin, list)).collect();
        // Of headless services it holds the places of endpoints.
        lists.retain(|(kind, _), _| *kind != ResourceKind::NameTable);
        let seen = |service: &&Digested<Service>| {
            services.get(&service.host).is_some_and(|seen| seen.digest == service.digest)
        };
        let moved = moved.iter().filter(seen).cloned().collect();
        let mut view = View {
            egress: self.egress.iter().map(egress).collect(),
            services,
            rules: self.rules.clone(),
            outbound: self.outbound,
            digest: 0,
            shape: self.shape,
            unrouted: self.unrouted,
            asks_labels: self.asks_labels,
            lists: Mutex::new(lists.into_iter().map(|(key, list)| (key, Arc::new(list.into()))).collect()),
            before,
            moved,
        };
        view.digest = view.digest_with(view.digest_unrouted(snapshot, |service| service.digest));
        view
    }

    /// Digest of all but VirtualServices.
    fn digest_unrouted(&self, snapshot: &Snapshot, of: impl Fn(&Digested<Service>) -> u64) -> u64 {
        let mut parts = vec![digest_of(&(self.outbound == OutboundMode::AllowAny))];
        for egress in &self.egress {
            let port = egress.port.as_ref().map(|port| (port.number, port.protocol.as_str()));
            parts.push(digest_of(&(port, &egress.bind, egress.bound)));
            parts.extend(egress.services.iter().map(&of));
            parts.push(u64::MAX);
        }
        parts.extend(self.rules.values().map(|rule| rule.digest));
        let namespaces: BTreeSet<&str> = self.services.values().map(|service| service.namespace.as_str()).collect();
        parts.extend(namespaces.iter().map(|namespace| digest_of(&snapshot.expected_mutual_tls(namespace))));
        digest_of(&parts)
    }

    /// Digest of all, where this is the one of all but VirtualServices.
    fn digest_with(&self, unrouted: u64) -> u64 {
        let mut parts = vec![unrouted];
        for egress in &self.egress {
            parts.extend(egress.virtual_services.iter().map(|routing| routing.digest));
            parts.push(u64::MAX);
        }
        digest_of(&parts)
    }

    /// The endpoints of the view before, and the services whose endpoints are others now.
    pub(crate) fn endpoints_before(&self, kin: u64) -> Option<(&List, &[Digested<Service>])> {
        self.before.get(&kin).map(|before| (before, &*self.moved))
    }

    /// The resources of a kind that all proxies with this view and of this kin share.
    pub(crate) fn list(&self, kind: ResourceKind, kin: u64, make: impl FnOnce() -> Vec<Arc<Named>>) -> List {
        once(&self.lists, (kind, kin), || ordered(make()))
    }
}

/// Whether a rule asks for the labels of the workload that calls.
fn asks(routing: &VirtualService) -> bool {
    let spec = &routing.spec;
    let http = spec.http.iter().flat_map(|rule| &rule.matches).any(|one| !one.source_labels.is_empty());
    let tls = spec.tls.iter().flat_map(|rule| &rule.matches).any(|one| !one.source_labels.is_empty());
    http || tls || spec.tcp.iter().flat_map(|rule| &rule.matches).any(|one| !one.source_labels.is_empty())
}

/// The Sidecar object: by workload, else the namespace's, else the mesh's.
pub(crate) fn sidecar_of(snapshot: &Snapshot, namespace: &str, labels: &Labels) -> Option<Arc<Plain<crd::Sidecar>>> {
    let all = &snapshot.sidecars;
    let root = &snapshot.mesh.root_namespace;
    let selector = |sidecar: &Plain<crd::Sidecar>| {
        sidecar.spec.workload_selector.clone().filter(|selector| !selector.labels.is_empty())
    };
    let own = all.iter().find(|sidecar| {
        sidecar.namespace == namespace && selector(sidecar).is_some_and(|selector| selects(&selector.labels, labels))
    });
    let of = |namespace: &str| all.iter().find(|sidecar| sidecar.namespace == namespace && selector(sidecar).is_none());
    own.or_else(|| of(namespace)).or_else(|| of(root)).cloned()
}

/// Services and VirtualServices that some of `namespace/host` names; the destinations of the latter are visible too.
fn visible(
    snapshot: &Snapshot,
    proxy: &ProxyIdentity,
    hosts: &[String],
) -> (Vec<Digested<Service>>, Vec<Arc<VirtualService>>) {
    let own = proxy.namespace.as_str();
    let wanted: Vec<(&str, Hostname)> = hosts
        .iter()
        .filter_map(|text| text.split_once('/'))
        .filter(|(namespace, _)| *namespace != "~")
        .map(|(namespace, host)| (if namespace == "." { own } else { namespace }, Hostname::new(host)))
        .collect();
    let all = wanted.iter().any(|(namespace, host)| *namespace == "*" && host.as_str() == "*");
    let in_namespace = |wanted: &str, namespace: &str| wanted == "*" || wanted == namespace;
    let virtual_services: Vec<Arc<VirtualService>> = snapshot
        .virtual_services
        .iter()
        .filter(|routing| routing.exports.to(own))
        .filter(|routing| proxy.role == Role::Router || routing.is_for_mesh())
        .filter(|routing| {
            all || wanted.iter().any(|(namespace, host)| {
                in_namespace(namespace, &routing.namespace) && routing.hosts.iter().any(|have| have.overlaps(host))
            })
        })
        .cloned()
        .collect();
    let mut chosen: BTreeMap<&Hostname, &Digested<Service>> = BTreeMap::new();
    for service in snapshot.services.iter().filter(|service| service.exports.to(own)) {
        if !(all
            || wanted
                .iter()
                .any(|(namespace, host)| in_namespace(namespace, &service.namespace) && host.covers(&service.host)))
        {
            continue;
        }
        // The first counts, unless a later one is of the proxy's own namespace.
        let best = chosen.entry(&service.host).or_insert(service);
        if best.namespace != own && service.namespace == own {
            *best = service;
        }
    }
    if !all {
        for routing in &virtual_services {
            for host in
                destinations(&routing.spec).map(|host| Hostname::resolve(host, &routing.namespace, &snapshot.domain))
            {
                if let Some(service) = snapshot.service(&host, own) {
                    chosen.entry(&service.host).or_insert(service);
                }
            }
        }
    }
    (chosen.into_values().cloned().collect(), virtual_services)
}

/// All hosts that a VirtualService sends to.
pub(crate) fn destinations(spec: &crd::VirtualService) -> impl Iterator<Item = &str> {
    let http = spec.http.iter().flat_map(|rule| {
        let routes = rule.route.iter().map(|route| &route.destination);
        routes.chain(rule.mirror.iter()).chain(rule.mirrors.iter().map(|mirror| &mirror.destination))
    });
    let tls = spec.tls.iter().flat_map(|rule| rule.route.iter().map(|route| &route.destination));
    let tcp = spec.tcp.iter().flat_map(|rule| rule.route.iter().map(|route| &route.destination));
    http.chain(tls).chain(tcp).map(|destination| destination.host.as_str()).filter(|host| !host.is_empty())
}
