//! The control side of one proxy: the configuration in effect, the sockets, and what the admin pages are made of. It tells the
//! workers by commands and never touches what is theirs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use api::xds::ResourceKind;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::compile;
use crate::dns::{self, Dns};
use crate::drain::Stage;
use crate::memory::InUse;
use crate::pod::Pod;
use crate::secret::Store;
use crate::snapshot::{Holder, Snapshot};
use crate::telemetry::access_log::Road;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::peer::Own;
use crate::telemetry::why::Failures;
use crate::upstream::Registry;
use crate::xds::resources::{Reject, ResourceSet};

/// Everything that a proxy is told when it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `TYPE~IP~NAME.NAMESPACE~DOMAIN`.
    pub node_id: String,
    /// The node's metadata.
    pub metadata: api::node::NodeMetadata,
    /// Envoy's admin port (15000).
    pub admin: SocketAddr,
    /// The agent's status port (15020).
    pub status: SocketAddr,
    /// Readiness (15021).
    pub ready: SocketAddr,
    /// Prometheus (15090).
    pub prometheus: SocketAddr,
    /// Worker threads; 0: one for each core.
    pub workers: usize,
    /// Longest drain.
    pub drain: Duration,
    /// How long the proxy goes on accepting after it was told to end.
    pub drain_delay: Duration,
    /// The workload's DNS, if it is captured.
    pub dns: Option<dns::Settings>,
    /// What only a proxy in a pod has.
    pub pod: Pod,
}

/// What the control side of one proxy shares.
pub struct Shared {
    /// The configuration in effect.
    pub holder: Holder,
    /// The resources it was compiled from, for `config_dump`.
    pub resources: Mutex<ResourceSet>,
    /// What was refused last.
    pub rejects: Mutex<Vec<Reject>>,
    /// Secrets.
    pub secrets: Arc<Store>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Explanations.
    pub failures: Arc<Failures>,
    /// Limits and health.
    pub registry: Arc<Registry>,
    /// This workload.
    pub own: Arc<Own>,
    /// As it was started.
    pub settings: Settings,
    /// When.
    pub started: Instant,
    /// How far the proxy is on its way out.
    pub stage: watch::Sender<Stage>,
    /// Somebody asked for the end over the admin port.
    pub quit: CancellationToken,
    /// Access logs.
    pub road: Road,
    /// Who answers the workload's DNS queries, if they are captured.
    pub dns: OnceLock<Arc<Dns>>,
    /// Why the proxy is not ready for a reason that lies outside of its configuration.
    held: Mutex<Option<String>>,
    /// Sockets that were opened before there was a configuration; connections wait in them.
    early: Mutex<BTreeMap<SocketAddr, std::net::TcpListener>>,
    /// What workers are told once the first configuration is whole: to accept on sockets that were opened early. `None` from then
    /// on.
    deferred: Mutex<Option<Vec<(usize, Command)>>>,
    log_level: Mutex<Option<LogControl>>,
    /// How many configurations were taken in.
    applied: AtomicU64,
    /// The proxy was ready once.
    was_ready: AtomicBool,
    pub(crate) workers: Vec<mpsc::UnboundedSender<Command>>,
    sockets: Mutex<BTreeMap<(Arc<str>, SocketAddr), Bound>>,
}

/// Changes the log level; set by the program.
pub type LogControl = Box<dyn Fn(Option<&str>) -> Result<String, String> + Send>;

struct Bound {
    actual: SocketAddr,
    stop: CancellationToken,
}

/// What a worker is told.
pub(crate) enum Command {
    /// Go by this from now on, and say so.
    Follow(Arc<Snapshot>, std::sync::mpsc::SyncSender<()>),
    /// Accept on this socket until the token is cancelled.
    Accept { name: Arc<str>, socket: std::net::TcpListener, stop: CancellationToken },
    /// End.
    End,
}

impl Shared {
    /// Without any configuration yet; the workers listen at these senders.
    pub(crate) fn new(
        settings: Settings,
        secrets: Arc<Store>,
        workers: Vec<mpsc::UnboundedSender<Command>>,
    ) -> std::io::Result<Self> {
        let waits = !settings.pod.early.is_empty();
        Ok(Self {
            holder: Holder::default(),
            resources: Mutex::default(),
            rejects: Mutex::default(),
            secrets,
            metrics: Arc::new(Metrics::new(workers.len())),
            failures: Arc::default(),
            registry: Arc::default(),
            own: Arc::new(Own::of(&settings.node_id, &settings.metadata)),
            settings,
            started: Instant::now(),
            stage: watch::Sender::default(),
            quit: CancellationToken::new(),
            road: Road::start()?,
            dns: OnceLock::new(),
            held: Mutex::default(),
            early: Mutex::default(),
            deferred: Mutex::new(waits.then(Vec::new)),
            log_level: Mutex::default(),
            applied: AtomicU64::new(0),
            was_ready: AtomicBool::new(false),
            workers,
            sockets: Mutex::default(),
        })
    }

    /// What `memory::follow` looks at.
    pub(crate) fn memory_in_use(&self) -> InUse {
        InUse {
            connections: self.metrics.total(|process| &process.connections_active),
            resting: self.metrics.total(|process| &process.connections_resting),
            generation: self.applied.load(Ordering::Acquire),
        }
    }

    /// See `Running::apply`.
    pub(crate) fn apply(&self, resources: &ResourceSet) -> Vec<Reject> {
        let previous = self.holder.load();
        let (mut snapshot, mut rejects) = compile::compile(resources, &previous);
        for told in compile::unheeded::unheeded(resources, &previous, &snapshot) {
            tracing::warn!(
                kind = told.kind.row().short,
                name = told.name,
                fields = told.fields.join(", "),
                "taken, but these settings have no effect in this proxy"
            );
        }
        self.bind(&mut snapshot, &previous, &mut rejects);
        let snapshot = Arc::new(snapshot);
        self.registry.retain(&snapshot);
        self.holder.publish(Arc::clone(&snapshot));
        let (done, all_done) = std::sync::mpsc::sync_channel(self.workers.len());
        for worker in &self.workers {
            let _ = worker.send(Command::Follow(Arc::clone(&snapshot), done.clone()));
        }
        drop(done);
        let until = Instant::now() + Duration::from_secs(1);
        for _ in &self.workers {
            if all_done.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
                break;
            }
        }
        // Nothing to listen on is an answer too: a gateway without a Gateway is ready for one.
        if resources.is_told(ResourceKind::Listener) && resources.is_told(ResourceKind::Cluster) {
            self.applied.fetch_add(1, Ordering::Release);
        }
        *self.resources.lock().unwrap_or_else(PoisonError::into_inner) = resources.clone();
        self.rejects.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&rejects);
        rejects
    }

    /// Opens the sockets of new addresses and closes those that nobody wants. A listener whose address cannot be had is
    /// refused, and its last form stays.
    fn bind(&self, snapshot: &mut Snapshot, previous: &Snapshot, rejects: &mut Vec<Reject>) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.stage.borrow() == Stage::Ending {
            return;
        }
        let mut failed: Vec<(Arc<str>, String)> = Vec::new();
        for (name, listener) in snapshot.listeners.iter().filter(|(_, listener)| listener.value.binds) {
            for address in &listener.value.addresses {
                let key = (Arc::clone(name), *address);
                if sockets.contains_key(&key) {
                    continue;
                }
                match self.open(name, *address, listener.value.transparent) {
                    Ok(bound) => {
                        sockets.insert(key, bound);
                    }
                    Err(error) => failed.push((Arc::clone(name), format!("{address}: {error}"))),
                }
            }
        }
        for (name, reason) in failed {
            let object = snapshot.listeners.get(&name).and_then(|listener| listener.value.object.clone());
            let reason = crate::compile::with_object(&reason, object.as_deref());
            match previous.listeners.get(&name) {
                Some(old) => snapshot.listeners.insert(Arc::clone(&name), old.clone()),
                None => snapshot.listeners.remove(&name),
            };
            rejects.push(Reject { kind: ResourceKind::Listener, name: name.to_string(), reason });
        }
        sockets.retain(|(name, address), bound| {
            let wanted = snapshot
                .listeners
                .get(name)
                .is_some_and(|listener| listener.value.binds && listener.value.addresses.contains(address));
            if !wanted {
                bound.stop.cancel();
            }
            wanted
        });
    }

    /// One socket for each worker on the same address.
    fn open(&self, name: &Arc<str>, address: SocketAddr, transparent: bool) -> std::io::Result<Bound> {
        let stop = CancellationToken::new();
        let mut opened = Vec::new();
        let mut actual = address;
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        let was_early = early.is_some();
        for _ in &self.workers {
            let socket = match early.take() {
                // With the connections that wait in it.
                Some(socket) => {
                    if transparent {
                        make_transparent(SockRef::from(&socket), address.is_ipv4())?;
                    }
                    socket
                }
                None => listen(actual, transparent)?,
            };
            actual = socket.local_addr()?;
            opened.push(socket);
        }
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, (worker, socket)) in self.workers.iter().zip(opened).enumerate() {
            let command = Command::Accept { name: Arc::clone(name), socket, stop: stop.clone() };
            match deferred.as_mut().filter(|_| was_early) {
                // Parts of a configuration would send who waits here astray.
                Some(deferred) => deferred.push((place, command)),
                None => {
                    let _ = worker.send(command);
                }
            }
        }
        Ok(Bound { actual, stop })
    }

    /// Opens sockets of which it is known that there will be listeners, transparent or not: connections wait in them instead of
    /// being refused.
    ///
    /// # Errors
    /// An address cannot be had.
    pub(crate) fn open_early(&self, addresses: &[(SocketAddr, bool)]) -> std::io::Result<()> {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        for (address, transparent) in addresses {
            early.insert(*address, listen(*address, *transparent)?);
        }
        Ok(())
    }

    /// Ends the wait of connections that came early: they are served where there is a listener for them by now, and reset
    /// where there is none. Says whether there was one.
    pub(crate) fn end_early(&self) -> bool {
        let deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let served = !deferred.is_empty();
        for (place, command) in deferred {
            let _ = self.workers[place].send(command);
        }
        self.early.lock().unwrap_or_else(PoisonError::into_inner).clear();
        served
    }

    /// Whether somebody listens on this port, on whatever address.
    pub(crate) fn listens_on(&self, port: u16) -> bool {
        let early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        early.keys().any(|address| address.port() == port)
            || self.listeners().iter().any(|(_, address)| address.port() == port)
    }

    /// Whether there is a configuration in effect.
    pub(crate) fn is_configured(&self) -> bool {
        self.applied.load(Ordering::Acquire) > 0
    }

    /// Keeps the proxy from being ready, or no longer.
    pub(crate) fn hold_ready(&self, reason: Option<String>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Closes all listening sockets.
    pub(crate) fn stop_accepting(&self) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        for bound in sockets.values() {
            bound.stop.cancel();
        }
        sockets.clear();
    }

    /// Stops accepting on the inbound listeners, or on all (`/drain_listeners`); connections go on.
    pub fn drain_listeners(&self, inbound_only: bool) {
        let snapshot = self.holder.load();
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|(name, _), bound| {
            let inbound = snapshot
                .listeners
                .get(name)
                .is_none_or(|listener| listener.value.direction == crate::facts::Direction::Inbound);
            let keep = inbound_only && !inbound;
            if !keep {
                bound.stop.cancel();
            }
            keep
        });
    }

    /// Names and addresses of the sockets that accept.
    pub fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().map(|((name, _), bound)| (Arc::clone(name), bound.actual)).collect()
    }

    /// Announces the end to clients, if nobody has before.
    pub fn leave(&self) {
        self.stage.send_if_modified(|stage| {
            let first = *stage == Stage::Serving;
            *stage = (*stage).max(Stage::Leaving);
            first
        });
    }

    /// Whether the proxy has never been ready, and may yet be.
    pub fn is_starting(&self) -> bool {
        if self.was_ready.load(Ordering::Relaxed) || *self.stage.borrow() != Stage::Serving {
            return false;
        }
        let is_ready = self.not_ready().is_none();
        self.was_ready.store(is_ready, Ordering::Relaxed);
        !is_ready
    }

    /// What keeps the proxy from being ready; `None`: nothing.
    pub fn not_ready(&self) -> Option<String> {
        if *self.stage.borrow() != Stage::Serving {
            return Some("the proxy is ending".to_owned());
        }
        if self.applied.load(Ordering::Acquire) == 0 {
            return Some("no configuration with listeners and clusters has been received yet".to_owned());
        }
        if self.deferred.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Some("the first configuration is not whole yet".to_owned());
        }
        if let Some(reason) = &*self.held.lock().unwrap_or_else(PoisonError::into_inner) {
            return Some(reason.clone());
        }
        let secrets = self.secrets.load();
        let snapshot = self.holder.load();
        for listener in snapshot.listeners.values() {
            for terms in listener.value.all_chains().filter_map(|chain| chain.tls.as_ref()) {
                for source in &terms.certificates {
                    if let crate::snapshot::tls_terms::Source::Named(name) = source
                        && name == crate::secret::DEFAULT
                        && secrets.certificate(name).is_none()
                    {
                        return Some(format!(
                            "listener {} needs the workload's certificate, which has not been issued yet",
                            listener.value.name
                        ));
                    }
                }
            }
        }
        None
    }

    /// Sets how the log level is changed.
    pub fn set_log_control(&self, control: LogControl) {
        *self.log_level.lock().unwrap_or_else(PoisonError::into_inner) = Some(control);
    }

    /// Changes the log level if one is given (`reset` is the one of the start), and tells which is in effect.
    ///
    /// # Errors
    /// The level is not one, or this process does not let it be changed.
    pub fn set_log_level(&self, level: Option<&str>) -> Result<String, String> {
        match &*self.log_level.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(control) => control(level),
            None => Err("the log level of this process cannot be changed".to_owned()),
        }
    }

    /// When the proxy started, on the wall.
    pub fn started_at(&self) -> SystemTime {
        SystemTime::now() - self.started.elapsed()
    }
}

fn listen(address: SocketAddr, transparent: bool) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // Both families have listeners of their own.
        socket.set_only_v6(true)?;
    }
    if transparent {
        make_transparent(SockRef::from(&socket), address.is_ipv4())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Lets a socket take connections to addresses that are not this host's (ip(7) `IP_TRANSPARENT`).
fn make_transparent(socket: SockRef<'_>, four: bool) -> std::io::Result<()> {
    let made = if four { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) };
    made.map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => std::io::Error::new(
            error.kind(),
            "taking connections with their addresses as they are (interceptionMode TPROXY) takes the capability NET_ADMIN, \
             which this proxy does not have",
        ),
        _ => error,
    })
}
