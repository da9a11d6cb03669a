//! Addresses for hosts of ServiceEntries that have none, so that a proxy that answers DNS has one to give (Istio
//! `pilot/pkg/controllers/ipallocate`). What the object's status says counts; what it does not say yet is chosen here, in every
//! replica alike, and written there by the one that leads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::annotation;
use api::crd::ServiceEntry;
use api::crd::service_entry::Resolution;
use api::name::Hostname;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::{Code, Problem, Severity};

use super::ByKind;
use crate::intrinsic::problem;
use crate::model::{Age, digest_of};

/// Addresses by object, and in it by host, in the order of its hosts.
pub(crate) type Allocated = BTreeMap<ObjectKey, Vec<(String, Vec<IpAddr>)>>;

/// 240.240.0.0/16, as Istio.
const V4: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 0);
/// 2001:2::/48, as Istio.
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0);
/// Places in the smaller of the two: without its first and last address.
const PLACES: u64 = (1 << 16) - 2;

/// Gives each host that needs one an address of each family.
pub(super) fn all(by_kind: &ByKind<'_>, problems: &mut Vec<Problem>) -> Allocated {
    let mut entries: Vec<(&Object, &ServiceEntry)> = by_kind
        .all(Kind::ServiceEntry)
        .filter_map(|object| match &object.body {
            Body::ServiceEntry(entry) => Some((&**object, entry)),
            _ => None,
        })
        .collect();
    // Of two objects whose status has the same address, the older one keeps it.
    entries.sort_by_key(|(object, _)| Age::of(object));
    let written = entries.iter().flat_map(|(_, entry)| &entry.addresses);
    let mut used: BTreeSet<IpAddr> = written.filter_map(|address| address.parse().ok()).collect();
    entries.retain(|(object, entry)| wants(object, entry));
    let mut allocated = Allocated::new();
    for (object, entry) in &entries {
        let told = told(object);
        let hosts = hosts(entry).map(|host| {
            let own = told.get(host).into_iter().flatten().copied();
            (host.clone(), own.filter(|address| used.insert(*address)).collect())
        });
        allocated.insert(object.key(), hosts.collect());
    }
    for (object, _) in &entries {
        let mut exhausted = false;
        for (host, addresses) in allocated.get_mut(&object.key()).into_iter().flatten() {
            if !addresses.is_empty() {
                continue;
            }
            match free(object, host, &used) {
                Some(pair) => {
                    used.extend(pair);
                    addresses.extend(pair);
                }
                None => exhausted = true,
            }
        }
        if exhausted {
            let message = format!(
                "All {PLACES} addresses for hosts without one are taken; proxies that answer DNS know no address of this host. \
                 Give it one in spec.addresses."
            );
            problems.push(problem(object, "spec.addresses", Code::MeaningTaken, Severity::Warning, message));
        }
    }
    allocated
}

/// Whether an address of the mesh's choice can stand for the hosts of this object (Istio `ShouldV2AutoAllocateIP`).
fn wants(object: &Object, entry: &ServiceEntry) -> bool {
    let refused =
        object.meta.labels.get(annotation::AUTO_ALLOCATE).is_some_and(|word| word.eq_ignore_ascii_case("false"));
    // Without resolution a connection goes to the address that it asked for, which must then be a true one.
    !refused && entry.addresses.is_empty() && entry.resolution != Resolution::None
}

/// Hosts that one address can stand for.
fn hosts(entry: &ServiceEntry) -> impl Iterator<Item = &String> {
    let mut seen = BTreeSet::new();
    entry.hosts.iter().filter(move |host| !Hostname::new(host).is_wildcard() && seen.insert(host.as_str()))
}

/// What the status says, by host.
fn told(object: &Object) -> BTreeMap<String, Vec<IpAddr>> {
    let mut told: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for one in object.raw["status"]["addresses"].as_array().into_iter().flatten() {
        if let (Some(host), Some(Ok(address))) = (one["host"].as_str(), one["value"].as_str().map(str::parse)) {
            told.entry(host.to_owned()).or_default().push(address);
        }
    }
    told
}

/// An address of each family that nobody has. Where the search begins depends on the name alone, so that who comes and goes
/// among others moves nobody but where they meet.
fn free(object: &Object, host: &str, used: &BTreeSet<IpAddr>) -> Option<[IpAddr; 2]> {
    let start = digest_of(&(&object.meta.namespace, &object.meta.name, host)) % PLACES;
    (0..PLACES).map(|step| pair((start + step) % PLACES + 1)).find(|pair| pair.iter().all(|one| !used.contains(one)))
}

fn pair(place: u64) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::from(u32::from(V4) + place as u32);
    let v6 = Ipv6Addr::from(u128::from(V6) + u128::from(place));
    [v4.into(), v6.into()]
}
