//! Rules that point at a subset which does not exist (yet): the route that the rule had in the snapshot before stays, so that
//! the order in which VirtualService and DestinationRule are applied loses no request.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::crd;
use api::crd::virtual_service::Destination;
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
        let held: Vec<Arc<VirtualService>> = self
            .virtual_services
            .iter()
            .map(|rules| {
                if !self.waits(rules) {
                    return rules.clone();
                }
                let same = |old: &&Arc<VirtualService>| old.namespace == rules.namespace && old.name == rules.name;
                let old = previous.virtual_services.iter().find(same);
                old.and_then(|old| self.held(rules, old, &mut awaited)).unwrap_or_else(|| rules.clone())
            })
            .collect();
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
