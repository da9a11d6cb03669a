//! Looking up names of STRICT_DNS and LOGICAL_DNS clusters, again and again.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use super::Upstream;
use crate::snapshot::cluster::Discovery;
use crate::snapshot::endpoint::{Endpoints, Place};

/// A name that could not be looked up is looked up again after this, then after twice as long, up to the cluster's refresh rate.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Nothing is looked up more often.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// How long names are valid that never are looked up.
const FOR_LONG: Duration = Duration::from_secs(3600);

/// Looks names up, with one resolver for each list of name servers; made when first needed.
#[derive(Default)]
pub struct Resolver {
    inner: RefCell<HashMap<Vec<SocketAddr>, TokioResolver>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Resolver")
    }
}

/// Addresses, and how long they are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// For so long from now.
    pub valid: Duration,
}

impl Resolver {
    fn get(&self, servers: &[SocketAddr]) -> Result<TokioResolver, String> {
        if let Some(known) = self.inner.borrow().get(servers) {
            return Ok(known.clone());
        }
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| error.to_string())?
        } else {
            let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        options(builder.options_mut());
        let resolver = builder.build().map_err(|error| error.to_string())?;
        self.inner.borrow_mut().insert(servers.to_vec(), resolver.clone());
        Ok(resolver)
    }

    /// All addresses of a name.
    ///
    /// # Errors
    /// The lookup failed; the sentence says how.
    pub async fn lookup(&self, name: &str, servers: &[SocketAddr]) -> Result<Found, String> {
        if name.eq_ignore_ascii_case("localhost") {
            let addresses = vec![IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()];
            return Ok(Found { addresses, valid: FOR_LONG });
        }
        let lookup = self.get(servers)?.lookup_ip(name).await.map_err(|error| error.to_string())?;
        let valid = lookup.valid_until().saturating_duration_since(Instant::now());
        Ok(Found { addresses: lookup.iter().collect(), valid })
    }
}

fn options(options: &mut ResolverOpts) {
    // Which family counts is the cluster's to say, and when to look again too: nothing is kept here.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = 0;
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let at = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    NameServerConfig::new(address.ip(), true, vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())])
}

/// What is known of a cluster's names.
struct Names {
    endpoints: Arc<Endpoints>,
    /// Each name stands for one of its addresses.
    one_each: bool,
    addresses: RefCell<HashMap<Place, Vec<SocketAddr>>>,
    /// Names that were not looked up yet.
    unknown: Cell<usize>,
}

/// Keeps the hosts of a cluster up to date as long as it lives. A failed lookup keeps the addresses of before, and no name waits
/// for another.
pub(super) async fn follow(upstream: Weak<Upstream>) {
    let Some(strong) = upstream.upgrade() else { return };
    let (endpoints, one_each) = match &strong.settings.discovery {
        Discovery::StrictDns(endpoints) => (Arc::clone(endpoints), false),
        Discovery::LogicalDns(endpoints) => (Arc::clone(endpoints), true),
        _ => return,
    };
    let places = names(&endpoints);
    let known = Names { endpoints, one_each, addresses: RefCell::default(), unknown: Cell::new(places.len()) };
    if places.is_empty() {
        put(&strong, &known);
    }
    drop(strong);
    join_all(places.iter().map(|place| follow_name(&upstream, &known, place))).await;
}

async fn follow_name(upstream: &Weak<Upstream>, known: &Names, place: &Place) {
    let Place::Name(name, port) = place else { return };
    let (mut failures, mut first) = (0u32, true);
    loop {
        let Some(strong) = upstream.upgrade() else { return };
        let settings = Arc::clone(&strong.settings);
        let env = Rc::clone(&strong.env);
        drop(strong);
        let found = env.resolver.lookup(name, &settings.name_servers).await;
        let Some(strong) = upstream.upgrade() else { return };
        if std::mem::take(&mut first) {
            known.unknown.set(known.unknown.get() - 1);
        }
        let pause = match found {
            Ok(found) => {
                failures = 0;
                let mut addresses = settings.dns_family.of(found.addresses);
                addresses.sort();
                addresses.dedup();
                if known.one_each {
                    addresses.truncate(1);
                }
                let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect();
                let before = known.addresses.borrow_mut().insert(place.clone(), addresses);
                if before.as_ref() != known.addresses.borrow().get(place) || !strong.resolved.get() {
                    put(&strong, known);
                }
                // What is never valid says nothing of when to look again.
                if settings.respect_dns_ttl && found.valid > Duration::ZERO {
                    found.valid
                } else {
                    settings.dns_refresh
                }
            }
            Err(error) => {
                tracing::debug!(%name, %error, "a lookup failed");
                failures = failures.saturating_add(1);
                if known.unknown.get() == 0 && !strong.resolved.get() {
                    put(&strong, known);
                }
                FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(settings.dns_refresh)
            }
        };
        drop(strong);
        tokio::time::sleep(pause.max(LEAST_PAUSE)).await;
    }
}

/// Puts what is known to use. Requests wait for it until there is an address, or nothing was found for any name.
fn put(upstream: &Upstream, known: &Names) {
    let addresses = known.addresses.borrow();
    upstream.set_hosts(&known.endpoints, &addresses);
    *upstream.source.borrow_mut() = Some(Arc::clone(&known.endpoints));
    if known.unknown.get() == 0 || addresses.values().any(|found| !found.is_empty()) {
        upstream.resolved.set(true);
        upstream.resolution.notify_waiters();
    }
}

fn names(endpoints: &Endpoints) -> Vec<Place> {
    let all = endpoints.priorities.iter().flatten().map(|endpoint| endpoint.place.clone());
    let mut names: Vec<Place> = Vec::new();
    for place in all.filter(|place| matches!(place, Place::Name(..))) {
        if !names.contains(&place) {
            names.push(place);
        }
    }
    names
}

#[cfg(test)]
mod tests;
