//! NDS: the names that a sidecar which captures DNS answers by itself (Istio `pkg/dns/server/name_table.go`): each visible
//! service with its addresses; of a headless one those of its endpoints, and each endpoint by its own name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::node::Role;
use api::xds::ResourceKind;
use api::xds::nds::NameTable;
use api::xds::nds::name_table::NameInfo;

use super::named;
use crate::model::{Endpoint, Service, digest_of};
use crate::resources::Resources;
use crate::scope::Scope;

/// The one resource of this kind.
const NAME: &str = "nametable";
/// What Istio calls the source of a Kubernetes Service, of which proxies know shorter names.
const KUBERNETES: &str = "Kubernetes";
/// What Istio calls the source of a ServiceEntry.
const EXTERNAL: &str = "External";

pub(super) fn all(scope: &Scope) -> Resources {
    if scope.proxy.role != Role::Sidecar {
        return Resources::default();
    }
    let families = Families::of(&scope.proxy.addresses);
    let shared = scope.view.list(ResourceKind::NameTable, digest_of(&(&families, scope.proxy.dns_capture)), || {
        let services = || scope.view.services.values();
        // Where the endpoints of others are is of no matter.
        let inputs: Vec<u64> =
            services().map(|service| if service.headless { service.digest } else { service.shape }).collect();
        let key = digest_of(&(NAME, &families, scope.proxy.dns_capture, inputs));
        let made = scope.snapshot.made.get(key, || {
            let names = services().flat_map(|service| of_service(scope, service, &families));
            vec![named(NAME, &NameTable { table: names.collect() })]
        });
        made.to_vec()
    });
    Resources::new(shared, Arc::default())
}

/// The families of addresses that a workload can reach.
#[derive(Hash)]
struct Families {
    four: bool,
    six: bool,
}

impl Families {
    fn of(addresses: &[IpAddr]) -> Self {
        let (four, six) = (addresses.iter().any(IpAddr::is_ipv4), addresses.iter().any(|address| !address.is_ipv4()));
        Self { four, six }
    }

    /// Whether this is an address, and one of these families. A network is none.
    fn have(&self, text: &str) -> bool {
        text.parse::<IpAddr>().is_ok_and(|address| if address.is_ipv4() { self.four } else { self.six })
    }
}

/// The names of one service. Without an address there is none: then other name servers are asked, as without a mesh.
fn of_service(scope: &Scope, service: &Service, families: &Families) -> BTreeMap<String, NameInfo> {
    let mut names = BTreeMap::new();
    let addresses: Vec<&str> = match service.headless {
        true => endpoints(service).into_iter().map(|endpoint| endpoint.address.as_str()).collect(),
        false => scope.addresses(service),
    };
    if let Some(info) = info(service, &service.name, addresses, families) {
        names.insert(service.host.to_string(), info);
    }
    if service.headless {
        let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for endpoint in endpoints(service).into_iter().filter(|endpoint| !endpoint.hostname.is_empty()) {
            by_name.entry(&endpoint.hostname).or_default().push(&endpoint.address);
        }
        for (name, addresses) in by_name {
            let short = format!("{name}.{}", service.name);
            if let Some(info) = info(service, &short, addresses, families) {
                names.insert(format!("{name}.{}", service.host), info);
            }
        }
    }
    names
}

/// Those that requests are sent to: where nobody is ready, those whose node is not heard of.
fn endpoints(service: &Service) -> Vec<&Endpoint> {
    let ready: Vec<_> = service.endpoints.iter().filter(|endpoint| endpoint.ready).collect();
    match ready.is_empty() {
        true => service.endpoints.iter().filter(|endpoint| endpoint.unheard).collect(),
        false => ready,
    }
}

fn info(service: &Service, short: &str, addresses: Vec<&str>, families: &Families) -> Option<NameInfo> {
    // An endpoint is there for each port.
    let once: BTreeSet<&str> = addresses.into_iter().filter(|address| families.have(address)).collect();
    if once.is_empty() {
        return None;
    }
    let ips = once.into_iter().map(str::to_owned).collect();
    if !service.kubernetes {
        return Some(NameInfo { ips, registry: EXTERNAL.to_owned(), ..NameInfo::default() });
    }
    Some(NameInfo {
        ips,
        registry: KUBERNETES.to_owned(),
        shortname: short.to_owned(),
        namespace: service.namespace.clone(),
        ..NameInfo::default()
    })
}
