//! What one worker thread holds: the snapshot it goes by, its upstreams, its counters. No other thread touches any of it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::{Notify, watch};

use crate::drain::Stage;
use crate::snapshot::Snapshot;
use crate::snapshot::cluster::Cluster;
use crate::telemetry::access_log::Sink;
use crate::telemetry::metrics::{RequestSeries, Shard};
use crate::telemetry::peer::{Own, Peer};
use crate::telemetry::why::Failures;
use crate::tls;
use crate::upstream::{Env, Upstreams};

/// One worker.
#[derive(Debug)]
pub struct Worker {
    /// The configuration in effect here.
    pub snapshot: RefCell<Arc<Snapshot>>,
    /// Clusters.
    pub upstreams: Upstreams,
    /// TLS of accepted connections.
    pub tls: tls::server::Configs,
    /// Counters.
    pub shard: Arc<Shard>,
    /// Access logs.
    pub sink: Sink,
    /// Explanations.
    pub failures: Arc<Failures>,
    /// This proxy's workload.
    pub own: Arc<Own>,
    /// How far the proxy is on its way out.
    pub stage: watch::Receiver<Stage>,
    /// Connections that are served.
    pub connections: Cell<usize>,
    /// Handles of metrics met before.
    pub series: RefCell<HashMap<SeriesKey, Series>>,
    /// The one met last.
    pub last_series: RefCell<Option<(SeriesKey, Arc<RequestSeries>)>>,
    /// Peers read from headers lately.
    peers: RefCell<foldhash::HashMap<u64, (HeaderValue, Arc<Peer>)>>,
    /// Client connections, to find those that are too slow or idle.
    watched: RefCell<Vec<Weak<Watch>>>,
    /// The proxy ends: each answer on HTTP/1 is the last of its connection.
    pub leaving: Cell<bool>,
    /// Something happened since `rest` found nothing left to do.
    is_stirred: Cell<bool>,
    stirred: Notify,
}

/// By what a request's metrics are told apart: addresses of things that the value holds, so none is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeriesKey {
    /// The cluster.
    pub cluster: usize,
    /// The other side's metadata.
    pub peer: usize,
    /// The other side's certificate.
    pub certificate: usize,
    /// Status, gRPC status, and whether it is gRPC.
    pub answer: (u16, Option<u32>, bool),
    /// The first response flag.
    pub flag: &'static str,
    /// Inbound.
    pub inbound: bool,
    /// Host for services that only it names.
    pub host: u64,
}

/// A handle with what its key points at.
#[derive(Debug)]
pub struct Series {
    /// The counters.
    pub counters: Arc<RequestSeries>,
    /// Held.
    pub cluster: Option<Arc<Cluster>>,
    /// Held.
    pub peer: Option<Arc<Peer>>,
    /// Held.
    pub certificate: Option<Arc<crate::facts::PeerFacts>>,
}

/// The state of a client connection that the sweep looks at.
#[derive(Debug)]
pub struct Watch {
    /// Requests under way.
    pub active: Cell<u32>,
    /// Requests so far.
    pub requests: Cell<u32>,
    /// When the last one ended, or the connection began.
    pub idle_since: Cell<Instant>,
    /// When the first byte of a request's head came, until it is complete.
    pub head_since: Cell<Option<Instant>>,
    /// Bytes came since the last request's head or end. Set by the stream, which hyper wants to be able to send.
    pub beginning: Arc<AtomicBool>,
    /// Longest idle time; zero: no bound.
    pub idle_timeout: Duration,
    /// Longest time for a head; zero: no bound.
    pub head_timeout: Duration,
    /// It has given back what it does not need.
    pub rests: Cell<bool>,
    /// It was asked to leave: on HTTP/1 the next answer says so, and is the last.
    pub leaves: Cell<bool>,
    asked: Cell<Option<Ask>>,
    waker: RefCell<Option<Waker>>,
}

/// What a client's connection is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// To give back what it does not need while nothing comes.
    Rest,
    /// To tell the client, and to end after the requests that are under way.
    Leave,
    /// To end if a request's head is what it waits for, else to leave: it took too long.
    Hurry,
    /// To end.
    Close,
}

/// How long a request's head may take if the listener does not say.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection on which nothing comes for so long gives back its buffers.
const RESTS: Duration = Duration::from_millis(200);
/// How long a new connection of a proxy that ends may take to send something.
const FIRST_BYTES: Duration = Duration::from_millis(300);
/// An ending connection whose peer does not take leave is closed after this, if it carries nothing.
const LEAVE: Duration = Duration::from_secs(2);

impl Watch {
    /// Asks, once the connection's task looks.
    pub fn ask(&self, ask: Ask) {
        if ask == Ask::Leave {
            self.leaves.set(true);
        }
        self.asked.set(self.asked.get().max(Some(ask)));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// What is asked, once for each time.
    pub fn poll_asked(&self, context: &mut Context<'_>) -> Poll<Ask> {
        if let Some(ask) = self.asked.take() {
            return Poll::Ready(ask);
        }
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            waker => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until something is asked.
    pub async fn asked(&self) -> Ask {
        std::future::poll_fn(|context| self.poll_asked(context)).await
    }

    /// Nothing was asked for on this connection and nothing is on its way; or all was answered a while ago, and the peer does not
    /// take leave.
    pub fn is_abandoned(&self) -> bool {
        let nothing = self.active.get() == 0 && !self.beginning.load(Ordering::Relaxed);
        nothing && (self.requests.get() == 0 || self.idle_since.get().elapsed() >= LEAVE)
    }
}

impl Worker {
    /// A worker with these parts.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        env: Rc<Env>,
        tls: tls::server::Configs,
        shard: Arc<Shard>,
        sink: Sink,
        failures: Arc<Failures>,
        own: Arc<Own>,
        stage: watch::Receiver<Stage>,
    ) -> Rc<Self> {
        Rc::new(Self {
            snapshot: RefCell::default(),
            upstreams: Upstreams::new(env),
            tls,
            shard,
            sink,
            failures,
            own,
            stage,
            connections: Cell::new(0),
            series: RefCell::default(),
            last_series: RefCell::default(),
            peers: RefCell::default(),
            watched: RefCell::default(),
            leaving: Cell::default(),
            is_stirred: Cell::default(),
            stirred: Notify::default(),
        })
    }

    /// The snapshot of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Goes by a new snapshot from now on.
    pub fn follow(&self, snapshot: Arc<Snapshot>) {
        self.upstreams.reconcile(&snapshot);
        *self.snapshot.borrow_mut() = snapshot;
        // The handles hold clusters of before.
        self.last_series.take();
        self.series.borrow_mut().clear();
    }

    /// The peer that a metadata header names.
    pub fn peer(&self, header: &HeaderValue) -> Option<Arc<Peer>> {
        self.known_peer(header.as_bytes(), || Some((header.clone(), Peer::of_header(header)?)))
    }

    /// The peer that endpoint metadata names.
    pub fn peer_of_endpoint(&self, workload: &str) -> Option<Arc<Peer>> {
        self.known_peer(workload.as_bytes(), || {
            Some((HeaderValue::from_str(workload).ok()?, Peer::of_endpoint(workload)))
        })
    }

    /// By a fast digest of the text: it is long, and comes with every request.
    fn known_peer(&self, text: &[u8], read: impl FnOnce() -> Option<(HeaderValue, Peer)>) -> Option<Arc<Peer>> {
        let digest = xxhash_rust::xxh3::xxh3_64(text);
        let mut peers = self.peers.borrow_mut();
        if let Some((known, peer)) = peers.get(&digest)
            && known.as_bytes() == text
        {
            return Some(Arc::clone(peer));
        }
        let (text, peer) = read()?;
        let peer = Arc::new(peer);
        if peers.len() >= 1024 {
            peers.clear();
        }
        peers.insert(digest, (text, Arc::clone(&peer)));
        Some(peer)
    }

    /// Watches a client connection.
    pub fn watch(&self, idle_timeout: Duration, head_timeout: Duration) -> Rc<Watch> {
        let leaves = *self.stage.borrow() == Stage::Ending;
        let watch = Rc::new(Watch {
            active: Cell::new(0),
            requests: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            head_since: Cell::new(None),
            beginning: Arc::default(),
            idle_timeout,
            head_timeout: if head_timeout.is_zero() { HEAD_TIMEOUT } else { head_timeout },
            rests: Cell::new(false),
            leaves: Cell::new(leaves),
            asked: Cell::new(leaves.then_some(Ask::Leave)),
            waker: RefCell::default(),
        });
        self.watched.borrow_mut().push(Rc::downgrade(&watch));
        self.stir();
        watch
    }

    /// A connection began, or something ended: there may be lines to hand over, and connections that come to rest.
    pub fn stir(&self) {
        if !self.is_stirred.replace(true) {
            self.stirred.notify_one();
        }
    }

    /// Returns once something has happened after `rest` found nothing left to do.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// What is done every second or so: idle and slow connections end, logs are handed over.
    pub fn sweep(&self) {
        self.upstreams.sweep();
        self.sink.flush();
        let now = Instant::now();
        self.watched.borrow_mut().retain(|weak| {
            let Some(watch) = weak.upgrade() else { return false };
            let begun = watch.active.get() == 0 && watch.beginning.load(Ordering::Relaxed);
            if begun && watch.head_since.get().is_none() {
                watch.head_since.set(Some(now));
            }
            let slow = watch.head_since.get().is_some_and(|since| now.duration_since(since) >= watch.head_timeout);
            let idle = watch.active.get() == 0
                && !watch.idle_timeout.is_zero()
                && now.duration_since(watch.idle_since.get()) >= watch.idle_timeout;
            if slow || idle {
                watch.ask(Ask::Hurry);
            }
            true
        });
    }

    /// What is done several times a second while something happens: connections on which nothing comes rest. Returns whether some
    /// are still to; those with a request under way stir the worker when it ends. A proxy that nobody asks anything wakes up for
    /// nothing but the sweep.
    pub fn rest(&self) -> bool {
        let now = Instant::now();
        let mut waits = false;
        for watch in self.watched.borrow().iter().filter_map(Weak::upgrade) {
            let quiet = watch.active.get() == 0 && !watch.beginning.load(Ordering::Relaxed);
            if !quiet || watch.rests.get() {
                continue;
            }
            if now.duration_since(watch.idle_since.get()) >= RESTS {
                watch.ask(Ask::Rest);
            } else {
                waits = true;
            }
        }
        self.is_stirred.set(waits);
        waits
    }

    /// When the proxy ends, asks every connection to leave, and closes those that have no use any more, though their end was
    /// announced. Whoever keeps an HTTP/1 connection may be sending on it at this very moment, and the application of a pod that
    /// is told to end may still call others: an end is announced with an answer, and a connection without one is closed only
    /// when the proxy itself ends and nothing has come on it for a while.
    pub async fn take_leave(self: Rc<Self>) {
        let mut stage = self.stage.clone();
        if stage.wait_for(|stage| *stage >= Stage::Leaving).await.is_err() {
            return;
        }
        self.leaving.set(true);
        self.each_watch(|watch| {
            if watch.active.get() > 0 {
                watch.ask(Ask::Leave);
            }
        });
        if stage.wait_for(|stage| *stage == Stage::Ending).await.is_err() {
            return;
        }
        self.each_watch(|watch| watch.ask(Ask::Leave));
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.each_watch(|watch| {
                if watch.idle_since.get().elapsed() >= FIRST_BYTES && watch.is_abandoned() {
                    watch.ask(Ask::Close);
                }
            });
        }
    }

    fn each_watch(&self, mut call: impl FnMut(&Watch)) {
        let all: Vec<_> = self.watched.borrow().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|watch| call(watch));
    }

    /// Returns when the proxy ends and a connection that has been there since then, on which nothing was ever sent, is to be
    /// closed: at once, but for one so young that its first bytes may be on their way.
    pub async fn unused_ends(&self, since: Instant) {
        let mut stage = self.stage.clone();
        if stage.wait_for(|stage| *stage == Stage::Ending).await.is_err() {
            // The proxy is gone without draining: nothing more to wait for here.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until((since + FIRST_BYTES).into()).await;
    }

    /// Counts a connection for as long as the result lives.
    pub fn connected(self: &Rc<Self>) -> Connected {
        self.connections.set(self.connections.get() + 1);
        self.shard.process.connections.add(1);
        self.shard.process.connections_active.add(1);
        Connected(Rc::clone(self))
    }
}

/// A connection that is served.
#[derive(Debug)]
pub struct Connected(Rc<Worker>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        self.0.shard.process.connections_active.subtract(1);
    }
}
