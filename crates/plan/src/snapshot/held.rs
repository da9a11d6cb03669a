//! Rules that point at a subset which does not exist (yet): the route that the rule's requests had in the snapshot before stays,
//! so that the order in which VirtualService and DestinationRule are applied loses no request. That route is the one that the
//! rule had; for a new rule, the one of the rule for all other requests; for the first rules of a host, the way to its service.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::crd;
use api::crd::virtual_service::{Destination, HttpRoute, HttpRouteDestination, RouteDestination, TcpRoute, TlsRoute};
use api::name::Hostname;
use api::value::Labels;

use super::{Snapshot, VirtualService};
use crate::model::digest_of;

/// A subset that a VirtualService waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Awaited {
    /// Namespace and name of the VirtualService; of the root if a delegate's rule waits.
    pub(crate) rules: (String, String),
    pub(crate) host: Hostname,
    pub(crate) subset: String,
}

/// What becomes of a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Service,
    SubsetOnlyIsMissing,
    Nothing,
}

impl Snapshot {
    /// Puts the routes of before in the place of those that would lead to a missing subset.
    pub(super) fn hold_routes(&mut self, previous: &Snapshot) {
        let mut awaited = BTreeSet::new();
        let mut held = Vec::with_capacity(self.virtual_services.len());
        for rules in &self.virtual_services {
            if !self.waits(rules) {
                held.push(rules.clone());
                continue;
            }
            for part in parts(rules, previous) {
                let of_host = |old: &&Arc<VirtualService>| {
                    is_same(old, &part) && part.hosts.iter().all(|host| old.hosts.contains(host))
                };
                let old = previous.virtual_services.iter().find(of_host).cloned();
                let old = old.or_else(|| previous.without_rules(&part).map(Arc::new));
                held.push(old.and_then(|old| self.held(&part, &old, &mut awaited)).unwrap_or(part));
            }
        }
        self.virtual_services = held;
        self.awaited = awaited;
    }

    fn waits(&self, rules: &VirtualService) -> bool {
        let http = rules.spec.http.iter().flat_map(|rule| rule.route.iter().map(|route| &route.destination));
        let tls = rules.spec.tls.iter().flat_map(|rule| rule.route.iter().map(|route| &route.destination));
        let tcp = rules.spec.tcp.iter().flat_map(|rule| rule.route.iter().map(|route| &route.destination));
        http.chain(tls).chain(tcp).any(|destination| self.found(rules, destination) == Found::SubsetOnlyIsMissing)
    }

    fn held(
        &self,
        rules: &VirtualService,
        old: &VirtualService,
        awaited: &mut BTreeSet<Awaited>,
    ) -> Option<Arc<VirtualService>> {
        let mut spec: crd::VirtualService = (*rules.spec).clone();
        let mut waits = false;
        macro_rules! hold {
            ($list:ident, $same:expr) => {
                for rule in &mut spec.$list {
                    let missing = self.missing(rules, rule.route.iter().map(|route| &route.destination));
                    if missing.is_empty() {
                        continue;
                    }
                    let before = old.spec.$list.iter().find(|before| $same(rule, before));
                    // New rules take requests away from the one for all others.
                    let before = before.or_else(|| old.spec.$list.iter().find(|before| before.matches.is_empty()));
                    let Some(before) = before.filter(|before| {
                        !before.route.is_empty()
                            && before.route.iter().all(|route| self.found(rules, &route.destination) == Found::Service)
                    }) else {
                        continue;
                    };
                    rule.route.clone_from(&before.route);
                    awaited.extend(missing);
                    waits = true;
                }
            };
        }
        hold!(http, |one: &crd::virtual_service::HttpRoute, two: &crd::virtual_service::HttpRoute| {
            (!one.name.is_empty() && one.name == two.name) || one.matches == two.matches
        });
        hold!(tls, |one: &crd::virtual_service::TlsRoute, two: &crd::virtual_service::TlsRoute| {
            one.matches == two.matches
        });
        hold!(tcp, |one: &crd::virtual_service::TcpRoute, two: &crd::virtual_service::TcpRoute| {
            one.matches == two.matches
        });
        waits.then(|| {
            let digest = digest_of(&(rules.digest, format!("{spec:?}")));
            Arc::new(VirtualService { spec: Arc::new(spec), digest, ..rules.clone() })
        })
    }

    /// The way that requests to a host took without any rules: to its service.
    fn without_rules(&self, rules: &VirtualService) -> Option<VirtualService> {
        let [host] = rules.hosts.as_slice() else { return None };
        let ruled = |other: &Arc<VirtualService>| other.hosts.contains(host) && !is_same(other, rules);
        if !rules.is_for_mesh()
            || self.service(host, &rules.namespace).is_none()
            || self.virtual_services.iter().any(ruled)
        {
            return None;
        }
        let destination = Destination { host: host.to_string(), ..Destination::default() };
        let all = || vec![RouteDestination { destination: destination.clone(), ..RouteDestination::default() }];
        let http = vec![HttpRouteDestination { destination: destination.clone(), ..HttpRouteDestination::default() }];
        let spec = crd::VirtualService {
            http: vec![HttpRoute { route: http, ..HttpRoute::default() }],
            tls: vec![TlsRoute { route: all(), ..TlsRoute::default() }],
            tcp: vec![TcpRoute { route: all(), ..TcpRoute::default() }],
            ..crd::VirtualService::default()
        };
        Some(VirtualService { spec: Arc::new(spec), ..rules.clone() })
    }

    fn missing<'a>(&self, rules: &VirtualService, destinations: impl Iterator<Item = &'a Destination>) -> Vec<Awaited> {
        destinations
            .filter(|destination| self.found(rules, destination) == Found::SubsetOnlyIsMissing)
            .map(|destination| Awaited {
                rules: (rules.namespace.clone(), rules.name.clone()),
                host: Hostname::resolve(&destination.host, &rules.namespace, &self.domain),
                subset: destination.subset.clone(),
            })
            .collect()
    }

    fn found(&self, rules: &VirtualService, destination: &Destination) -> Found {
        let host = Hostname::resolve(&destination.host, &rules.namespace, &self.domain);
        let Some(service) = self.service(&host, &rules.namespace) else { return Found::Nothing };
        if destination.subset.is_empty() {
            return Found::Service;
        }
        let rule = self.destination_rule(&host, &service.namespace, &rules.namespace, &Labels::new());
        match rule.is_some_and(|rule| rule.spec.subsets.iter().any(|subset| subset.name == destination.subset)) {
            true => Found::Service,
            false => Found::SubsetOnlyIsMissing,
        }
    }
}

fn is_same(one: &VirtualService, other: &VirtualService) -> bool {
    one.namespace == other.namespace && one.name == other.name
}

/// The rules, for each host apart if the hosts did not have the same rules before: what is kept may differ between them.
fn parts(rules: &Arc<VirtualService>, previous: &Snapshot) -> Vec<Arc<VirtualService>> {
    let mut before = previous.virtual_services.iter().filter(|old| is_same(old, rules));
    if rules.hosts.len() == 1 || before.any(|old| old.hosts == rules.hosts) {
        return vec![rules.clone()];
    }
    let hosts = rules.hosts.iter().zip(&rules.spec.hosts);
    let of_host = |(host, text): (&Hostname, &String)| {
        let spec = crd::VirtualService { hosts: vec![text.clone()], ..(*rules.spec).clone() };
        let digest = digest_of(&(rules.digest, host.as_str()));
        Arc::new(VirtualService { hosts: vec![host.clone()], spec: Arc::new(spec), digest, ..(**rules).clone() })
    };
    hosts.map(of_host).collect()
}
