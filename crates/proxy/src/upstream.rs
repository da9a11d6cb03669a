//! Clusters as one worker sees them: hosts, their health, their connections. Picks a host and gets a connection.

pub mod io;
pub mod gather;
pub mod body;
pub mod limits;
pub mod outlier;
pub mod balance;
pub mod priority;
pub mod connect;
pub mod http1;
pub mod http2;
pub mod pool;
pub mod resolve;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rand::RngExt;
use rand::rngs::SmallRng;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, oneshot};

use crate::facts::{Caller, PeerFacts};
use crate::failure::Failure;
use crate::snapshot::Snapshot;
use crate::snapshot::cluster::{Cluster, Discovery, Protocol};
use crate::snapshot::endpoint::{Endpoint, Endpoints, Place};
use crate::snapshot::tls_terms::ClientTerms;
use crate::telemetry::metrics::{ClusterSeries, Shard};
use crate::tls::client::{Configs, Offer};
use balance::{Candidate, Memory};
use limits::{Limited, Permit, Usage};
use outlier::{Health, Verdict};
use pool::{Lease, Life, Link, Pool};
use priority::Level;

/// By cluster and place.
type HealthByHost = HashMap<(Arc<str>, Place), Arc<Health>>;

/// What all workers of one proxy share: only what limits and ejections need.
#[derive(Debug)]
pub struct Registry {
    usage: Mutex<HashMap<Arc<str>, Arc<Usage>>>,
    health: Mutex<HealthByHost>,
    started: Instant,
}

impl Default for Registry {
    fn default() -> Self {
        Self { usage: Mutex::default(), health: Mutex::default(), started: Instant::now() }
    }
}

impl Registry {
    fn usage(&self, cluster: &Arc<str>) -> Arc<Usage> {
        Arc::clone(self.usage.lock().unwrap_or_else(PoisonError::into_inner).entry(Arc::clone(cluster)).or_default())
    }

    fn health(&self, cluster: &Arc<str>, place: &Place) -> Arc<Health> {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(health.entry((Arc::clone(cluster), place.clone())).or_default())
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Forgets clusters that are gone.
    pub fn retain(&self, snapshot: &Snapshot) {
        self.usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|name, usage| snapshot.clusters.contains_key(name) || Arc::strong_count(usage) > 1);
        self.health.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, health| Arc::strong_count(health) > 1);
    }

    /// Whether a host is ejected, for `/clusters`.
    pub fn is_ejected(&self, cluster: &Arc<str>, place: &Place) -> bool {
        let health = self
            .health
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(Arc::clone(cluster), place.clone()))
            .cloned();
        health.is_some_and(|health| health.is_ejected(self.now(), &self.usage(cluster)))
    }
}

/// What upstreams of one worker work with.
#[derive(Debug)]
pub struct Env {
    /// TLS configurations.
    pub tls: Configs,
    /// Dice.
    pub dice: RefCell<SmallRng>,
    /// Counters.
    pub shard: Arc<Shard>,
    /// Shared between workers.
    pub registry: Arc<Registry>,
    /// Name lookups.
    pub resolver: resolve::Resolver,
    /// Facts of certificates seen lately, by their bytes.
    pub peers: RefCell<HashMap<Vec<u8>, Arc<PeerFacts>>>,
}

impl Env {
    /// The facts of a verified certificate.
    pub fn peer_facts(&self, leaf: &CertificateDer<'_>) -> Option<Arc<PeerFacts>> {
        let mut peers = self.peers.borrow_mut();
        if let Some(known) = peers.get(leaf.as_ref()) {
            return Some(Arc::clone(known));
        }
        let facts = Arc::new(crate::tls::verify::facts_of(leaf).ok()?);
        if peers.len() >= 256 {
            peers.clear();
        }
        peers.insert(leaf.as_ref().to_vec(), Arc::clone(&facts));
        Some(facts)
    }
}

/// All clusters of one worker; made when first used.
#[derive(Debug)]
pub struct Upstreams {
    env: Rc<Env>,
    /// Looked up for every request; the names are the control plane's.
    by_name: RefCell<foldhash::HashMap<Arc<str>, Rc<Upstream>>>,
}

/// One cluster.
#[derive(Debug)]
pub struct Upstream {
    /// Its settings.
    pub settings: Arc<Cluster>,
    /// Its counters.
    pub series: Arc<ClusterSeries>,
    env: Rc<Env>,
    usage: Arc<Usage>,
    source: RefCell<Option<Arc<Endpoints>>>,
    hosts: RefCell<Hosts>,
    memory: RefCell<Memory>,
    /// Requests that wait for an HTTP/1 connection to become free.
    waiting: RefCell<std::collections::VecDeque<oneshot::Sender<()>>>,
    resolved: Cell<bool>,
    resolving: Cell<bool>,
    resolution: Notify,
}

#[derive(Debug, Default)]
struct Hosts {
    /// All, by priority.
    priorities: Vec<Vec<Rc<Host>>>,
    /// Those that discovery calls healthy, by priority.
    healthy: Vec<Vec<Rc<Host>>>,
    count: usize,
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// What discovery says.
    pub endpoint: Arc<Endpoint>,
    /// Where, after lookups.
    pub place: Place,
    /// TLS, none for plaintext.
    pub tls: Option<Arc<ClientTerms>>,
    /// Connections.
    pub pool: Rc<Pool>,
    /// Those in clients' names, by the clients' addresses: nobody is given another's.
    named: Rc<RefCell<HashMap<IpAddr, Rc<Pool>>>>,
    /// Shared with the record that a changed endpoint replaced: requests under way still count.
    active: Rc<Cell<u32>>,
    health: Arc<Health>,
}

impl Host {
    /// Its address, unless it is a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.place {
            Place::Socket(address) => Some(address),
            _ => None,
        }
    }

    /// The connections for requests of this caller.
    fn pool_of(&self, caller: Option<Caller>) -> Rc<Pool> {
        let Some(caller) = caller else { return Rc::clone(&self.pool) };
        let mut named = self.named.borrow_mut();
        Rc::clone(named.entry(caller.address).or_insert_with(|| Pool::new(self.pool.life())))
    }

    /// Closes a connection that rests for another caller, to make room for this one's; says whether there was one.
    fn makes_room(&self, caller: Option<Caller>) -> bool {
        let named = self.named.borrow();
        let mut others = named.iter().filter(|(address, _)| Some(**address) != caller.map(|caller| caller.address));
        others.any(|(_, pool)| pool.close_idle())
    }

    fn retire(&self) {
        self.pool.retire();
        self.named.borrow_mut().drain().for_each(|(_, pool)| pool.retire());
    }

    /// Closes what has been idle for long; says whether nothing is left.
    fn sweep(&self, now: Instant) -> bool {
        let mut named = self.named.borrow_mut();
        named.retain(|_, pool| !pool.sweep(now) || Rc::strong_count(pool) > 1);
        self.pool.sweep(now) && named.is_empty()
    }
}

impl Candidate for Rc<Host> {
    fn weight(&self) -> u32 {
        self.endpoint.weight
    }

    fn active(&self) -> u32 {
        self.active.get()
    }
}

/// A request under way to a host; dropping ends it.
#[derive(Debug)]
pub struct Busy {
    host: Rc<Host>,
    series: Arc<ClusterSeries>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.host.active.set(self.host.active.get().saturating_sub(1));
        self.series.requests_active.subtract(1);
    }
}

/// What a request wants of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The client speaks HTTP/2.
    pub downstream_http2: bool,
    /// A connection of its own, HTTP/1.1 (upgrades).
    pub alone: bool,
    /// Istio's protocol names are offered.
    pub istio_alpn: bool,
    /// The request is sent once only: a connection that its peer has closed by now is none for it.
    pub once: bool,
    /// The request's host.
    pub host: &'a str,
    /// In whose name the upstream is called; none: in the proxy's.
    pub caller: Option<Caller>,
}

impl Upstreams {
    /// Without any cluster yet.
    pub fn new(env: Rc<Env>) -> Self {
        Self { env, by_name: RefCell::default() }
    }

    /// What they work with.
    pub fn env(&self) -> &Rc<Env> {
        &self.env
    }

    /// The cluster of this name as the snapshot has it.
    pub fn get(&self, name: &str, snapshot: &Snapshot) -> Option<Rc<Upstream>> {
        if let Some(upstream) = self.by_name.borrow().get(name) {
            // Reconciling has put aside what the snapshot no longer has.
            return Some(Rc::clone(upstream));
        }
        let (name, settings) = snapshot.clusters.get_key_value(name)?;
        let upstream = Upstream::new(Rc::clone(&self.env), Arc::clone(&settings.value));
        upstream.follow(snapshot);
        self.by_name.borrow_mut().insert(Arc::clone(name), Rc::clone(&upstream));
        Some(upstream)
    }

    /// Follows a new snapshot: changed clusters start anew, changed endpoints keep the hosts that stay.
    pub fn reconcile(&self, snapshot: &Snapshot) {
        let mut gone = Vec::new();
        self.by_name.borrow_mut().retain(|name, upstream| {
            let keep = snapshot.clusters.get(name).is_some_and(|now| Arc::ptr_eq(&now.value, &upstream.settings));
            if !keep {
                gone.push(Rc::clone(upstream));
            }
            keep
        });
        for upstream in gone {
            upstream.set_hosts(&Endpoints::default(), &HashMap::new());
        }
        for upstream in self.by_name.borrow().values() {
            upstream.follow(snapshot);
        }
    }

    /// Closes connections that have been idle for long.
    pub fn sweep(&self) {
        let now = Instant::now();
        for upstream in self.by_name.borrow().values() {
            upstream.sweep(now);
        }
    }

    /// Calls with each cluster that was used.
    pub fn each(&self, mut call: impl FnMut(&Upstream)) {
        self.by_name.borrow().values().for_each(|upstream| call(upstream));
    }
}

impl Upstream {
    fn new(env: Rc<Env>, settings: Arc<Cluster>) -> Rc<Self> {
        let memory = Memory::new(&mut env.dice.borrow_mut());
        Rc::new(Self {
            series: env.shard.cluster(&settings.name),
            usage: env.registry.usage(&settings.name),
            settings,
            env,
            source: RefCell::default(),
            hosts: RefCell::default(),
            memory: RefCell::new(memory),
            waiting: RefCell::default(),
            resolved: Cell::new(false),
            resolving: Cell::new(false),
            resolution: Notify::new(),
        })
    }

    fn follow(self: &Rc<Self>, snapshot: &Snapshot) {
        let now = match &self.settings.discovery {
            Discovery::Static(endpoints) => Arc::clone(endpoints),
            Discovery::Eds(name) => {
                snapshot.endpoints.get(name).map(|endpoints| Arc::clone(&endpoints.value)).unwrap_or_default()
            }
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {
                if !self.resolving.replace(true) {
                    tokio::task::spawn_local(resolve::follow(Rc::downgrade(self)));
                }
                return;
            }
            Discovery::OriginalDst { .. } => return,
        };
        if self.source.borrow().as_ref().is_some_and(|source| Arc::ptr_eq(source, &now)) {
            return;
        }
        self.set_hosts(&now, &HashMap::new());
        *self.source.borrow_mut() = Some(now);
    }

    /// Takes a new set of endpoints. `addresses` has the places that names stand for.
    fn set_hosts(&self, endpoints: &Endpoints, addresses: &HashMap<Place, Vec<SocketAddr>>) {
        let mut old: HashMap<Place, Rc<Host>> =
            self.hosts.borrow_mut().priorities.drain(..).flatten().map(|host| (host.place.clone(), host)).collect();
        let mut hosts = Hosts::default();
        for group in &endpoints.priorities {
            let mut all = Vec::with_capacity(group.len());
            for endpoint in group {
                let places = match addresses.get(&endpoint.place) {
                    Some(addresses) => addresses.iter().map(|address| Place::Socket(*address)).collect(),
                    None => vec![endpoint.place.clone()],
                };
                for place in places.into_iter().filter(|place| !matches!(place, Place::Name(..))) {
                    let kept = old.remove(&place);
                    all.push(self.host(place, endpoint, kept.as_deref()));
                }
            }
            hosts.count += all.len();
            hosts.healthy.push(all.iter().filter(|host| host.endpoint.healthy).cloned().collect());
            hosts.priorities.push(all);
        }
        for host in old.values() {
            host.retire();
        }
        *self.hosts.borrow_mut() = hosts;
    }

    fn host(&self, place: Place, endpoint: &Arc<Endpoint>, kept: Option<&Host>) -> Rc<Host> {
        let tls = self.settings.socket_for(&endpoint.socket_match).cloned();
        let same_tls = |host: &&Host| match (&host.tls, &tls) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        let life = Life {
            idle: self.settings.idle_timeout,
            requests: self.settings.max_requests_per_connection,
            age: self.settings.max_connection_duration,
            streams: self.settings.max_concurrent_streams,
        };
        let kept = kept.filter(same_tls);
        Rc::new(Host {
            health: self.env.registry.health(&self.settings.name, &place),
            endpoint: Arc::clone(endpoint),
            place,
            tls,
            pool: kept.map_or_else(|| Pool::new(life), |host| Rc::clone(&host.pool)),
            named: kept.map_or_else(Rc::default, |host| Rc::clone(&host.named)),
            active: kept.map_or_else(Rc::default, |host| Rc::clone(&host.active)),
        })
    }

    fn sweep(&self, now: Instant) {
        let original_dst = matches!(self.settings.discovery, Discovery::OriginalDst { .. });
        let mut hosts = self.hosts.borrow_mut();
        for group in &mut hosts.priorities {
            group.retain(|host| !host.sweep(now) || !original_dst || host.active.get() > 0);
        }
        if original_dst {
            hosts.healthy = hosts.priorities.clone();
        }
        // A connection that closed may have been the one that somebody waits for.
        self.wake_one();
    }

    /// Picks a host. `tried` are those to avoid if there are others; `destination` is where the connection meant to go.
    ///
    /// # Errors
    /// There is none.
    pub async fn pick(
        self: &Rc<Self>,
        destination: SocketAddr,
        tried: &[Rc<Host>],
        attempts: u32,
    ) -> Result<Rc<Host>, Failure> {
        match &self.settings.discovery {
            Discovery::OriginalDst { port } => {
                let mut address = destination;
                if let Some(port) = port {
                    address.set_port(*port);
                }
                return Ok(self.original(address));
            }
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) if !self.resolved.get() => {
                let _ = tokio::time::timeout(self.settings.connect_timeout, self.resolution.notified()).await;
            }
            _ => {}
        }
        let mut last = None;
        for _ in 0..attempts.max(1) {
            let host = self.pick_once()?;
            if !tried.iter().any(|known| known.place == host.place) {
                return Ok(host);
            }
            last = Some(host);
        }
        // The least busy of some is, more often than not, the one that just failed: nothing is under way there.
        self.untried(tried).or(last).ok_or(Failure::NoHealthyUpstream)
    }

    /// A healthy host that has not been tried, whatever the balance would be.
    fn untried(&self, tried: &[Rc<Host>]) -> Option<Rc<Host>> {
        let hosts = self.hosts.borrow();
        let now = self.env.registry.now();
        let is_new = |host: &&Rc<Host>| {
            !tried.iter().any(|known| known.place == host.place) && !host.health.is_ejected(now, &self.usage)
        };
        let of = |group: &Vec<Rc<Host>>| -> Vec<Rc<Host>> { group.iter().filter(is_new).cloned().collect() };
        let left = hosts.healthy.iter().map(of).find(|group| !group.is_empty())?;
        let place = self.env.dice.borrow_mut().random_range(0..left.len());
        left.into_iter().nth(place)
    }

    fn original(&self, address: SocketAddr) -> Rc<Host> {
        let place = Place::Socket(address);
        let mut hosts = self.hosts.borrow_mut();
        if hosts.priorities.is_empty() {
            hosts.priorities.push(Vec::new());
        }
        if let Some(known) = hosts.priorities[0].iter().find(|host| host.place == place) {
            return Rc::clone(known);
        }
        let endpoint = Endpoint {
            place: place.clone(),
            hostname: String::new(),
            weight: 1,
            healthy: true,
            socket_match: Default::default(),
            workload: None,
            locality: "".into(),
        };
        let host = self.host(place, &Arc::new(endpoint), None);
        hosts.priorities[0].push(Rc::clone(&host));
        hosts.count += 1;
        host
    }

    fn pick_once(&self) -> Result<Rc<Host>, Failure> {
        let hosts = self.hosts.borrow();
        let mut dice = self.env.dice.borrow_mut();
        if let Some(source) = self.source.borrow().as_ref()
            && source.drop_millionths > 0
            && dice.random_range(0..1_000_000) < source.drop_millionths
        {
            return Err(Failure::Overflow);
        }
        let any_ejected = self.usage.ejected.load(std::sync::atomic::Ordering::Relaxed) > 0;
        let left;
        let healthy = if any_ejected {
            let now = self.env.registry.now();
            let keep = |group: &Vec<Rc<Host>>| -> Vec<Rc<Host>> {
                group.iter().filter(|host| !host.health.is_ejected(now, &self.usage)).cloned().collect()
            };
            left = hosts.healthy.iter().map(keep).collect::<Vec<_>>();
            &left
        } else {
            &hosts.healthy
        };
        let (priority, panics) =
            self.priority(&hosts.priorities, healthy, &mut dice).ok_or_else(|| self.nobody(&hosts))?;
        let candidates = if panics { &hosts.priorities[priority] } else { &healthy[priority] };
        let place = balance::pick(self.settings.balance, candidates, &mut self.memory.borrow_mut(), &mut dice);
        place.map(|place| Rc::clone(&candidates[place])).ok_or_else(|| self.nobody(&hosts))
    }

    /// Why no host can be picked: there would be healthy ones if they were not ejected, or names were looked up in vain, or there
    /// are none.
    fn nobody(&self, hosts: &Hosts) -> Failure {
        let now = self.env.registry.now();
        let ejected = |host: &Rc<Host>| host.health.is_ejected(now, &self.usage);
        if hosts.healthy.iter().flatten().any(ejected) {
            return Failure::AllEjected;
        }
        let (Discovery::StrictDns(named) | Discovery::LogicalDns(named)) = &self.settings.discovery else {
            return Failure::NoHealthyUpstream;
        };
        let mut known = named.priorities.iter().flatten();
        let names = hosts.count == 0 && known.any(|endpoint| matches!(endpoint.place, Place::Name(..)));
        if names { Failure::NamesUnknown } else { Failure::NoHealthyUpstream }
    }

    /// The priority to take, and whether all of its hosts are used, healthy or not.
    fn priority(&self, all: &[Vec<Rc<Host>>], healthy: &[Vec<Rc<Host>>], dice: &mut SmallRng) -> Option<(usize, bool)> {
        let factor = self.source.borrow().as_ref().map_or(140, |source| source.overprovisioning);
        let levels = all.iter().zip(healthy).map(|(all, healthy)| Level { hosts: all.len(), healthy: healthy.len() });
        let parts = || priority::parts(levels.clone(), factor, self.settings.panic_threshold);
        if let [_] = all {
            return parts().next().map(|part| (0, part.panics));
        }
        let total: u64 = parts().map(|part| part.weight).sum();
        let point = if total > 0 { dice.random_range(0..total) } else { 0 };
        priority::at(parts(), point).map(|(place, part)| (place, part.panics))
    }

    /// Counts a request to a host.
    pub fn begin(&self, host: &Rc<Host>) -> Busy {
        host.active.set(host.active.get() + 1);
        self.series.requests.add(1);
        self.series.requests_active.add(1);
        Busy { host: Rc::clone(host), series: Arc::clone(&self.series) }
    }

    /// A unit of a limit.
    ///
    /// # Errors
    /// The limit is reached.
    pub fn permit(&self, limited: Limited) -> Result<Permit, Failure> {
        self.usage.take(limited, &self.settings.limits).ok_or_else(|| {
            self.series.pending_overflow.add(1);
            Failure::Overflow
        })
    }

    /// Counts what a request came to.
    pub fn count_status(&self, status: u16) {
        self.series.by_class[(usize::from(status) / 100).clamp(1, 5) - 1].add(1);
    }

    /// Takes into account how a host did.
    pub fn report(&self, host: &Host, verdict: Verdict) {
        let Some(settings) = &self.settings.outlier else { return };
        if host.health.report(verdict, settings, self.env.registry.now(), self.hosts.borrow().count, &self.usage) {
            self.series.ejections.add(1);
            tracing::info!(cluster = %self.settings.name, host = ?host.place, "ejected: it kept failing");
        }
    }

    /// A connection for one request.
    ///
    /// # Errors
    /// None can be had.
    pub async fn checkout(self: &Rc<Self>, host: &Rc<Host>, wanted: Wanted<'_>) -> Result<Lease, Failure> {
        let pool = host.pool_of(wanted.caller);
        let http2 = match self.settings.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Downstream => wanted.downstream_http2,
            Protocol::Auto => host.tls.is_some() && pool.speaks_http2.get() != Some(false),
        };
        let mesh = host.tls.as_ref().is_some_and(|terms| terms.mesh);
        let mux = mesh && !wanted.alone && !self.settings.preserve_header_case && pool.muxes.get() != Some(false);
        let offer = match self.settings.protocol {
            _ if wanted.alone => Offer::Http1 { mux: false, istio: wanted.istio_alpn },
            Protocol::Auto => Offer::Auto,
            _ if http2 => Offer::Http2 { mux, istio: wanted.istio_alpn },
            _ => Offer::Http1 { mux, istio: wanted.istio_alpn },
        };
        let mut pending: Option<Permit> = None;
        loop {
            if !wanted.alone {
                let may_share = http2 || mux || pool.speaks_http2.get() == Some(true);
                if may_share && let Some(lease) = pool.shared(!http2) {
                    return Ok(lease);
                }
                if !http2 && let Some(lease) = pool.idle(wanted.once) {
                    return Ok(lease);
                }
            }
            if pending.is_none() {
                pending = Some(self.permit(Limited::Pending)?);
            }
            let shares = !wanted.alone && (http2 || (mux && pool.muxes.get() != Some(false)));
            if shares && let Some(waiting) = pool.wait_for_shared() {
                match waiting.await {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => return Err(failure),
                    // Whoever dialled was cancelled: somebody else does it.
                    Err(_) => pool.shared_done(Ok(())),
                }
                if http2 || pool.muxes.get() == Some(true) {
                    continue;
                }
                // The peer turned out to speak HTTP/1 only: everyone dials.
            } else if shares {
                return self.dial_shared(host, pool, offer, wanted, http2).await;
            }
            let Some(permit) = self.usage.take(Limited::Connections, &self.settings.limits) else {
                if host.makes_room(wanted.caller) {
                    continue;
                }
                let (sender, receiver) = oneshot::channel();
                self.waiting.borrow_mut().push_back(sender);
                let _ = receiver.await;
                continue;
            };
            let dialled = self.dial(host, offer, wanted.host, wanted.caller).await?;
            let link = Link::new(&dialled, permit, Arc::clone(&self.series));
            if dialled.alpn.as_deref() == Some(b"h2") || link.mux {
                pool.speaks_http2.set(Some(true));
                pool.start_shared(dialled, link).await?;
                continue;
            }
            if self.settings.protocol == Protocol::Auto {
                pool.speaks_http2.set(Some(false));
            }
            return pool.start_http1(dialled, link, self.settings.preserve_header_case).await;
        }
    }

    /// Makes the connection that others wait for. It goes on if this request is given up.
    async fn dial_shared(
        self: &Rc<Self>,
        host: &Rc<Host>,
        pool: Rc<Pool>,
        offer: Offer,
        wanted: Wanted<'_>,
        http2: bool,
    ) -> Result<Lease, Failure> {
        let (result, receiver) = oneshot::channel();
        let (upstream, host, name) = (Rc::clone(self), Rc::clone(host), wanted.host.to_owned());
        let caller = wanted.caller;
        tokio::task::spawn_local(async move {
            let made = upstream.make_shared(&host, &pool, offer, (&name, caller), http2).await;
            pool.shared_done(made.as_ref().map(|_| ()).map_err(|failure| *failure));
            // Nobody may be left to take it: a lease of HTTP/1 then goes to the pool.
            if let Err(Ok(lease)) = result.send(made) {
                lease.give_back();
            }
        });
        receiver.await.unwrap_or(Err(Failure::ConnectFailed))
    }

    async fn make_shared(
        self: &Rc<Self>,
        host: &Rc<Host>,
        pool: &Rc<Pool>,
        offer: Offer,
        (name, caller): (&str, Option<Caller>),
        http2: bool,
    ) -> Result<Lease, Failure> {
        let permit = self.permit(Limited::Connections)?;
        let dialled = self.dial(host, offer, name, caller).await?;
        let link = Link::new(&dialled, permit, Arc::clone(&self.series));
        let negotiated_http2 = dialled.alpn.as_deref() == Some(b"h2");
        let shares = link.mux
            || negotiated_http2
            || (http2
                && !matches!(dialled.alpn.as_deref(), Some(b"http/1.1" | b"istio-http/1.1"))
                && self.settings.protocol != Protocol::Auto);
        if matches!(offer, Offer::Http1 { mux: true, .. } | Offer::Http2 { mux: true, .. }) {
            pool.muxes.set(Some(link.mux));
        }
        if !shares {
            if self.settings.protocol == Protocol::Auto {
                pool.speaks_http2.set(Some(false));
            }
            return pool.start_http1(dialled, link, self.settings.preserve_header_case).await;
        }
        pool.start_shared(dialled, link).await?;
        pool.shared(!http2 && !negotiated_http2).ok_or(Failure::ConnectFailed)
    }

    async fn dial(
        &self,
        host: &Host,
        offer: Offer,
        name: &str,
        caller: Option<Caller>,
    ) -> Result<connect::Dialled, Failure> {
        let terms = host.tls.as_ref();
        let result = connect::dial(&self.env, &self.settings, &host.place, terms, offer, name, caller).await;
        if result.is_err() {
            self.series.connect_failures.add(1);
        }
        result
    }

    /// Nobody takes connections at an endpoint without TLS any more.
    pub async fn is_refused_by(&self, host: &Host) -> bool {
        let dialled =
            connect::dial(&self.env, &self.settings, &host.place, None, Offer::Tcp { exchange: false }, "", None);
        matches!(dialled.await, Err(Failure::ConnectRefused))
    }

    /// A connection for bytes. The permit and counters live as long as the link.
    ///
    /// # Errors
    /// None can be had.
    pub async fn connect_tcp(
        &self,
        host: &Host,
        caller: Option<Caller>,
    ) -> Result<(connect::Dialled, Rc<Link>), Failure> {
        self.connect_bytes(host, false, caller).await
    }

    /// The same, with an exchange of metadata in front if `exchange` and the endpoint can: the negotiated protocol tells.
    ///
    /// # Errors
    /// A circuit breaker, or the connection fails.
    pub async fn connect_bytes(
        &self,
        host: &Host,
        exchange: bool,
        caller: Option<Caller>,
    ) -> Result<(connect::Dialled, Rc<Link>), Failure> {
        let permit = self.usage.take(Limited::Connections, &self.settings.limits).ok_or(Failure::TcpOverflow)?;
        let dialled = self.dial(host, Offer::Tcp { exchange }, "", caller).await?;
        let link = Link::new(&dialled, permit, Arc::clone(&self.series));
        Ok((dialled, link))
    }

    /// A connection may have become free: one that waits looks again.
    pub fn wake_one(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(next) = waiting.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
    }

    /// Calls with each host.
    pub fn each_host(&self, mut call: impl FnMut(&Host, usize)) {
        for (priority, group) in self.hosts.borrow().priorities.iter().enumerate() {
            group.iter().for_each(|host| call(host, priority));
        }
    }
}
