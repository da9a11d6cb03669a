//! Looking up names of STRICT_DNS and LOGICAL_DNS clusters, again and again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Weak;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

use super::Upstream;
use crate::snapshot::cluster::Discovery;
use crate::snapshot::endpoint::{Endpoints, Place};

/// Looks names up; made when first needed.
#[derive(Default)]
pub struct Resolver {
    inner: RefCell<Option<TokioResolver>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Resolver")
    }
}

impl Resolver {
    fn get(&self) -> Result<TokioResolver, String> {
        let mut inner = self.inner.borrow_mut();
        if inner.is_none() {
            let resolver = TokioResolver::builder_tokio()
                .and_then(|mut builder| {
                    // Which family counts is the cluster's to say.
                    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
                    builder.build()
                })
                .map_err(|error| error.to_string())?;
            *inner = Some(resolver);
        }
        inner.clone().ok_or_else(|| "no resolver".to_owned())
    }

    /// All addresses of a name.
    ///
    /// # Errors
    /// The lookup failed; the sentence says how.
    pub async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        if name.eq_ignore_ascii_case("localhost") {
            return Ok(vec![IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()]);
        }
        let resolver = self.get()?;
        let lookup = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
        Ok(lookup.iter().collect())
    }
}

/// Keeps the hosts of a cluster up to date as long as it lives. A failed lookup keeps the addresses of before.
pub(super) async fn follow(upstream: Weak<Upstream>) {
    let mut addresses: HashMap<Place, Vec<SocketAddr>> = HashMap::new();
    loop {
        let Some(strong) = upstream.upgrade() else { return };
        let (endpoints, one_each) = match &strong.settings.discovery {
            Discovery::StrictDns(endpoints) => (endpoints.clone(), false),
            Discovery::LogicalDns(endpoints) => (endpoints.clone(), true),
            _ => return,
        };
        let before = addresses.clone();
        for place in names(&endpoints) {
            let Place::Name(name, port) = &place else { continue };
            match strong.env.resolver.lookup(name).await {
                Ok(found) => {
                    let mut found = strong.settings.dns_family.of(found);
                    found.sort();
                    found.dedup();
                    if one_each {
                        found.truncate(1);
                    }
                    addresses.insert(place.clone(), found.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect());
                }
                Err(error) => tracing::debug!(%name, %error, "a lookup failed"),
            }
        }
        if before != addresses || !strong.resolved.get() {
            strong.set_hosts(&endpoints, &addresses);
            *strong.source.borrow_mut() = Some(endpoints);
        }
        strong.resolved.set(true);
        strong.resolution.notify_waiters();
        let pause = strong.settings.dns_refresh.max(Duration::from_millis(100));
        drop(strong);
        tokio::time::sleep(pause).await;
    }
}

fn names(endpoints: &Endpoints) -> Vec<Place> {
    let all = endpoints.priorities.iter().flatten().map(|endpoint| endpoint.place.clone());
    all.filter(|place| matches!(place, Place::Name(..))).collect()
}
