//! Which endpoints have an address. Where only some services differ from those of the snapshot before, its table is taken over
//! and these services are looked through, so that a change costs as much as itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{Digested, Service};

/// With so many services that differ from the table, a new one is made.
const MANY: usize = 32;

/// Places of (service, endpoint) by the endpoint's address.
#[derive(Clone, Debug)]
pub(super) struct ByAddress {
    table: Arc<BTreeMap<String, Vec<(usize, usize)>>>,
    /// Places of services whose endpoints are not as in the table.
    others: BTreeSet<usize>,
}

impl ByAddress {
    /// Of all services.
    pub(super) fn of(services: &[Digested<Service>]) -> Self {
        let mut table: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
        for (place, service) in services.iter().enumerate() {
            for (index, endpoint) in service.endpoints.iter().enumerate() {
                table.entry(endpoint.address.clone()).or_default().push((place, index));
            }
        }
        Self { table: Arc::new(table), others: BTreeSet::new() }
    }

    /// Of the services `now`, where this one is of those `before`.
    pub(super) fn after(&self, before: &[Digested<Service>], now: &[Digested<Service>]) -> Self {
        if before.len() != now.len() {
            return Self::of(now);
        }
        let mut others = self.others.clone();
        let pairs = before.iter().zip(now).enumerate();
        others.extend(pairs.filter(|(_, (old, new))| old.digest != new.digest).map(|(place, _)| place));
        match others.len() < MANY {
            true => Self { table: self.table.clone(), others },
            false => Self::of(now),
        }
    }

    /// In the order of services. `services` are those that this is of.
    pub(super) fn get(&self, services: &[Digested<Service>], address: &str) -> Vec<(usize, usize)> {
        let in_table = self.table.get(address).into_iter().flatten().copied();
        let mut found: Vec<_> = in_table.filter(|(place, _)| !self.others.contains(place)).collect();
        for place in &self.others {
            let endpoints = services[*place].endpoints.iter().enumerate();
            let here = endpoints.filter(|(_, endpoint)| endpoint.address == address);
            found.extend(here.map(|(index, _)| (*place, index)));
        }
        found.sort_unstable();
        found
    }
}
