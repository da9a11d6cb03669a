//! The composition root: worker threads, sockets, admin servers, and how a new configuration reaches them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::control::Command;
pub use crate::control::{LogControl, Settings, Shared};
use crate::drain::{self, Drained, Stage};
use crate::listen::accept::accept_all;
use crate::memory;
use crate::secret::Store;
use crate::tls;
use crate::upstream::Env;
use crate::worker::Worker;
use crate::xds::resources::{Reject, ResourceSet};

/// A running proxy.
pub struct Running {
    shared: Arc<Shared>,
    admin: [SocketAddr; 4],
    /// Ends the admin servers.
    admin_stop: CancellationToken,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
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
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let shared = Arc::new(Shared::new(settings, secrets, senders).context("the access log's thread")?);
        // Before anything else: an application that starts beside the proxy connects at once.
        shared.open_early(&shared.settings.pod.early).context("the sockets of captured connections")?;
        let mut threads = Vec::new();
        for (number, receiver) in receivers.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || work(&shared, number, receiver)).context("a worker thread")?);
        }
        let admin_stop = CancellationToken::new();
        let admin = admin::serve(Arc::new(Admin::new(Arc::clone(&shared))), &admin_stop).await;
        // From here on a failure ends what was started.
        let mut running =
            Running { shared, admin: [([0, 0, 0, 0], 0).into(); 4], admin_stop, threads: Mutex::new(threads) };
        running.admin = admin?;
        let seen = Arc::downgrade(&running.shared);
        tokio::spawn(memory::follow(move || seen.upgrade().map(|shared| shared.memory_in_use())));
        Ok(running)
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
        let drained = self.leave().await;
        drop(self);
        drained
    }

    /// The same, but for the very end: what is left is cut only when this is dropped.
    pub async fn leave(&self) -> Drained {
        let settings = &self.shared.settings;
        self.shared.leave();
        let count = || self.shared.metrics.total(|process| &process.connections_active);
        // A proxy that was never configured has nobody to wait for.
        if self.shared.is_configured() {
            tokio::time::sleep(settings.drain_delay).await;
        }
        self.shared.stage.send_replace(Stage::Ending);
        if settings.pod.exit_on_zero && drain::until_idle(settings.drain, count).await == Drained::Idle {
            return Drained::Idle;
        }
        if settings.pod.keep_outbound {
            self.shared.drain_listeners(true);
        } else {
            self.shared.stop_accepting();
        }
        drain::until_idle(settings.drain, count).await
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
        shared.stage.subscribe(),
    );
    tokio::task::spawn_local(Rc::clone(&worker).take_leave());
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    let mut logs = tokio::time::interval(Duration::from_millis(100));
    for timer in [&mut sweep, &mut logs] {
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    let mut stirred = false;
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
            _ = worker.stirred(), if !stirred => {
                stirred = true;
                logs.reset();
            }
            _ = logs.tick(), if stirred => {
                worker.sink.flush();
                stirred = worker.rest();
            }
        }
    }
}
