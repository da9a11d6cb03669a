//! The composition root: worker threads, sockets, admin servers, and how a new configuration reaches them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::drain::{self, Drained};
use crate::listen::accept::accept_all;
use crate::secret::Store;
use crate::snapshot::{Holder, Snapshot};
use crate::telemetry::access_log::Road;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::peer::Own;
use crate::telemetry::why::Failures;
use crate::upstream::{Env, Registry};
use crate::worker::Worker;
use crate::xds::resources::{Reject, ResourceSet};
use crate::{compile, tls};
use api::xds::ResourceKind;

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
}

/// A running proxy.
pub struct Running {
    shared: Arc<Shared>,
    admin: [SocketAddr; 4],
    /// Ends the admin servers.
    admin_stop: CancellationToken,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
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
    /// Becomes true when the proxy ends.
    pub draining: watch::Sender<bool>,
    /// Somebody asked for the end over the admin port.
    pub quit: CancellationToken,
    /// Access logs.
    pub road: Road,
    log_level: Mutex<Option<LogControl>>,
    applied: AtomicBool,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    sockets: Mutex<BTreeMap<(Arc<str>, SocketAddr), Bound>>,
    stopped: AtomicUsize,
}

/// Changes the log level; set by the program.
pub type LogControl = Box<dyn Fn(&str) -> Result<(), String> + Send>;

struct Bound {
    actual: SocketAddr,
    stop: CancellationToken,
}

enum Command {
    Follow(Arc<Snapshot>, std::sync::mpsc::SyncSender<()>),
    Accept { name: Arc<str>, socket: std::net::TcpListener, stop: CancellationToken },
    End,
}

impl Running {
    /// Starts workers and admin servers. There is no configuration yet.
    ///
    /// # Errors
    /// A port cannot be had, or no thread be started.
    pub async fn start(settings: Settings, secrets: Arc<Store>) -> anyhow::Result<Running> {
        let count = match settings.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let (draining, _) = watch::channel(false);
        let metrics = Arc::new(Metrics::new(count));
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (sender, receiver) = mpsc::unbounded_channel();
            senders.push(sender);
            receivers.push(receiver);
        }
        let shared = Arc::new(Shared {
            holder: Holder::default(),
            resources: Mutex::default(),
            rejects: Mutex::default(),
            secrets,
            metrics,
            failures: Arc::default(),
            registry: Arc::default(),
            own: Arc::new(Own::of(&settings.node_id, &settings.metadata)),
            settings,
            started: Instant::now(),
            draining,
            quit: CancellationToken::new(),
            road: Road::start().context("the access log's thread")?,
            log_level: Mutex::default(),
            applied: AtomicBool::new(false),
            workers: senders,
            sockets: Mutex::default(),
            stopped: AtomicUsize::new(0),
        });
        let mut threads = Vec::new();
        for (number, receiver) in receivers.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || work(&shared, number, receiver)).context("a worker thread")?);
        }
        let admin_stop = CancellationToken::new();
        let admin = admin::serve(Arc::new(Admin { shared: Arc::clone(&shared) }), &admin_stop).await?;
        Ok(Running { shared, admin, admin_stop, threads: Mutex::new(threads) })
    }

    /// Compiles, publishes, opens and closes sockets. Returns when every worker goes by the new configuration (or a second has
    /// passed). What is refused stays as it was.
    pub fn apply(&self, resources: &ResourceSet) -> Vec<Reject> {
        self.shared.apply(resources)
    }

    /// Where the admin interface listens.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin[0]
    }

    /// Where the status port listens.
    pub fn status_addr(&self) -> SocketAddr {
        self.admin[1]
    }

    /// Where readiness is served.
    pub fn ready_addr(&self) -> SocketAddr {
        self.admin[2]
    }

    /// Where Prometheus scrapes.
    pub fn prometheus_addr(&self) -> SocketAddr {
        self.admin[3]
    }

    /// Where a listener of the configuration listens, with the port that the system chose for port 0.
    pub fn listener_addr(&self, name: &str) -> Option<SocketAddr> {
        self.shared.listeners().into_iter().find(|(known, _)| known.as_ref() == name).map(|(_, address)| address)
    }

    /// The control side, for the parts that are added beside it.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits until somebody asks for the end over the admin port.
    pub async fn quit(&self) {
        self.shared.quit.cancelled().await;
    }

    /// Ends in order: tells clients, stops accepting, waits for running work, at most as long as the settings say.
    pub async fn drain(self) -> Drained {
        let settings = &self.shared.settings;
        let _ = self.shared.draining.send(true);
        tokio::time::sleep(settings.drain_delay).await;
        self.shared.stop_accepting();
        let metrics = Arc::clone(&self.shared.metrics);
        let drained = drain::until_idle(settings.drain, || metrics.total(|process| &process.connections_active)).await;
        drop(self);
        drained
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop_accepting();
        for worker in &self.shared.workers {
            let _ = worker.send(Command::End);
        }
        self.admin_stop.cancel();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn apply(&self, resources: &ResourceSet) -> Vec<Reject> {
        let previous = self.holder.load();
        let (mut snapshot, mut rejects) = compile::compile(resources, &previous);
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
        if !resources.of(ResourceKind::Listener).is_empty() && !resources.of(ResourceKind::Cluster).is_empty() {
            self.applied.store(true, Ordering::Release);
        }
        *self.resources.lock().unwrap_or_else(PoisonError::into_inner) = resources.clone();
        self.rejects.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&rejects);
        rejects
    }

    /// Opens the sockets of new addresses and closes those that nobody wants. A listener whose address cannot be had is
    /// refused, and its last form stays.
    fn bind(&self, snapshot: &mut Snapshot, previous: &Snapshot, rejects: &mut Vec<Reject>) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.draining.borrow() {
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
        for _ in &self.workers {
            let socket = listen(actual, transparent)?;
            actual = socket.local_addr()?;
            opened.push(socket);
        }
        for (worker, socket) in self.workers.iter().zip(opened) {
            let _ = worker.send(Command::Accept { name: Arc::clone(name), socket, stop: stop.clone() });
        }
        Ok(Bound { actual, stop })
    }

    fn stop_accepting(&self) {
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

    /// What keeps the proxy from being ready; `None`: nothing.
    pub fn not_ready(&self) -> Option<String> {
        if *self.draining.borrow() {
            return Some("the proxy is ending".to_owned());
        }
        if !self.applied.load(Ordering::Acquire) {
            return Some("no configuration with listeners and clusters has been received yet".to_owned());
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

    /// Changes the log level.
    ///
    /// # Errors
    /// The level is not one, or this process does not let it be changed.
    pub fn set_log_level(&self, level: &str) -> Result<(), String> {
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
        match address.is_ipv4() {
            true => socket.set_ip_transparent_v4(true)?,
            false => socket.set_ip_transparent_v6(true)?,
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// One worker thread: a runtime of its own, and nothing shared but what the arguments hold.
fn work(shared: &Arc<Shared>, number: usize, commands: mpsc::UnboundedReceiver<Command>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker's runtime cannot be built");
            return;
        }
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(shared, number, commands));
    // Connections that are left are dropped here, with everything they hold.
    drop(local);
    shared.stopped.fetch_add(1, Ordering::AcqRel);
}

async fn serve(shared: &Arc<Shared>, number: usize, mut commands: mpsc::UnboundedReceiver<Command>) {
    let provider = tls::provider();
    let shard = Arc::clone(&shared.metrics.shards[number]);
    let env = Rc::new(Env {
        tls: tls::client::Configs::new(Arc::clone(&shared.secrets), Arc::clone(&provider)),
        dice: std::cell::RefCell::new(rand::make_rng()),
        shard: Arc::clone(&shard),
        registry: Arc::clone(&shared.registry),
        resolver: Default::default(),
        peers: std::cell::RefCell::new(HashMap::new()),
    });
    let worker = Worker::new(
        env,
        tls::server::Configs::new(Arc::clone(&shared.secrets), provider),
        shard,
        shared.road.sink(),
        Arc::clone(&shared.failures),
        Arc::clone(&shared.own),
        shared.draining.subscribe(),
    );
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    let mut logs = tokio::time::interval(Duration::from_millis(100));
    for timer in [&mut sweep, &mut logs] {
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Follow(snapshot, done)) => {
                    worker.follow(snapshot);
                    let _ = done.try_send(());
                }
                Some(Command::Accept { name, socket, stop }) => match tokio::net::TcpListener::from_std(socket) {
                    Ok(socket) => {
                        tokio::task::spawn_local(accept_all(Rc::clone(&worker), name, socket, stop));
                    }
                    Err(error) => tracing::error!(listener = %name, %error, "a listener's socket cannot be used"),
                },
                Some(Command::End) | None => return,
            },
            _ = sweep.tick() => worker.sweep(),
            _ = logs.tick() => worker.sink.flush(),
        }
    }
}
