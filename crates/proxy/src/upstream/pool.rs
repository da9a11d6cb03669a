//! Connections kept for the next request, by host. HTTP/1 connections carry one request at a time; HTTP/2 and multiplexed ones
//! many. All of it belongs to one worker: there is no lock.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use http::uri::Authority;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::body::RequestBody;
use super::connect::Dialled;
use super::http1::Connection;
use super::http2;
use super::limits::Permit;
use crate::facts::PeerFacts;
use crate::failure::Failure;
use crate::mux;
use crate::telemetry::metrics::ClusterSeries;

/// Spawns on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// One HTTP/2 connection carries so many requests before another is opened beside it.
const STREAMS_BEFORE_ANOTHER: u32 = 256;
/// Multiplexed connections to one peer of one worker.
const MUX_CONNECTIONS: usize = 2;

/// What is known of one connection.
#[derive(Debug)]
pub struct Link {
    /// The verified endpoint.
    pub peer: Option<Arc<PeerFacts>>,
    /// Our end.
    pub local: Option<SocketAddr>,
    /// The name in the certificate that we offered.
    pub own_uri: Option<Arc<str>>,
    /// The connection speaks the private protocol between our proxies.
    pub mux: bool,
    /// Requests sent so far.
    pub requests: Cell<u32>,
    streams: Cell<u32>,
    made: Instant,
    last_used: Cell<Instant>,
    _permit: Permit,
    series: Arc<ClusterSeries>,
}

impl Link {
    /// Of a new connection.
    pub fn new(dialled: &Dialled, permit: Permit, series: Arc<ClusterSeries>) -> Rc<Self> {
        series.connections.add(1);
        series.connections_active.add(1);
        Rc::new(Self {
            peer: dialled.peer.clone(),
            local: dialled.local,
            own_uri: dialled.own_uri.clone(),
            mux: dialled.alpn.as_deref() == Some(crate::tls::MUX.as_bytes()),
            requests: Cell::new(0),
            streams: Cell::new(0),
            made: Instant::now(),
            last_used: Cell::new(Instant::now()),
            _permit: permit,
            series,
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.series.connections_active.subtract(1);
    }
}

/// A sender of requests.
#[derive(Debug)]
pub enum Sender {
    /// HTTP/1.1.
    One(Connection),
    /// HTTP/1.1 with the spelling of names kept.
    Spelled(http1::SendRequest<RequestBody>),
    /// HTTP/2.
    Two(http2::Connection),
    /// The protocol between our proxies.
    Mux(mux::client::Connection),
}

impl Sender {
    /// It takes no more requests.
    fn is_closed(&self) -> bool {
        match self {
            Sender::One(connection) => connection.is_closed(),
            Sender::Spelled(sender) => sender.is_closed(),
            Sender::Two(connection) => connection.is_closed(),
            Sender::Mux(connection) => connection.is_closed(),
        }
    }

    /// Another handle to the same connection, where it carries many requests at once.
    fn share(&self) -> Option<Sender> {
        match self {
            Sender::One(_) | Sender::Spelled(_) => None,
            Sender::Two(connection) => Some(Sender::Two(connection.clone())),
            Sender::Mux(connection) => Some(Sender::Mux(connection.clone())),
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self, Sender::Two(_) | Sender::Mux(_))
    }

    /// Its peer has closed it, as far as this host's kernel knows at this moment.
    fn has_ended(&self) -> bool {
        matches!(self, Sender::One(connection) if connection.has_ended())
    }
}

/// A connection lent for one request.
#[derive(Debug)]
pub struct Lease {
    /// To send with.
    pub sender: Option<Sender>,
    /// The connection.
    pub link: Rc<Link>,
    /// It carried requests before: its peer may be closing it at this moment.
    pub reused: bool,
    pool: Option<Rc<Pool>>,
}

#[derive(Debug)]
struct Shared {
    sender: Sender,
    link: Rc<Link>,
}

/// Bounds of a connection's life.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Closed when idle for this; zero: never.
    pub idle: Duration,
    /// Requests; 0: no bound.
    pub requests: u32,
    /// Age.
    pub age: Option<Duration>,
    /// Streams at once.
    pub streams: u32,
}

/// Connections to one host.
#[derive(Debug)]
pub struct Pool {
    life: Life,
    idle: RefCell<Vec<(Sender, Rc<Link>)>>,
    shared: RefCell<Vec<Shared>>,
    /// A shared connection is being made; these wait for it.
    dialling: Cell<bool>,
    waiting: RefCell<VecDeque<oneshot::Sender<Result<(), Failure>>>>,
    /// Whether the peer multiplexes, once it is known.
    pub muxes: Cell<Option<bool>>,
    /// What the peer negotiated where it was free to choose.
    pub speaks_http2: Cell<Option<bool>>,
    /// The authority of the request before: most often it is that of the next one.
    authority: RefCell<Option<Authority>>,
    retired: Cell<bool>,
}

impl Pool {
    /// The bounds of its connections' lives.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Empty.
    pub fn new(life: Life) -> Rc<Self> {
        Rc::new(Self {
            life,
            idle: RefCell::default(),
            shared: RefCell::default(),
            dialling: Cell::new(false),
            waiting: RefCell::default(),
            muxes: Cell::new(None),
            speaks_http2: Cell::new(None),
            authority: RefCell::default(),
            retired: Cell::new(false),
        })
    }

    /// The parsed form of a host.
    pub fn authority(&self, host: &HeaderValue) -> Option<Authority> {
        let mut last = self.authority.borrow_mut();
        if let Some(known) = last.as_ref()
            && known.as_str().as_bytes() == host.as_bytes()
        {
            return Some(known.clone());
        }
        *last = Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok();
        last.clone()
    }

    fn is_spent(&self, link: &Link) -> bool {
        (self.life.requests > 0 && link.requests.get() >= self.life.requests)
            || self.life.age.is_some_and(|age| link.made.elapsed() >= age)
    }

    /// An idle HTTP/1 connection; the one used last, so that the others may grow old. `once`: the kernel is asked whether its
    /// peer has closed it, which costs a call; the runtime learns of it only with its next look at the sockets.
    pub fn idle(self: &Rc<Self>, once: bool) -> Option<Lease> {
        loop {
            let (sender, link) = self.idle.borrow_mut().pop()?;
            if sender.is_closed() || self.is_spent(&link) || (once && sender.has_ended()) {
                continue;
            }
            link.requests.set(link.requests.get() + 1);
            return Some(Lease { sender: Some(sender), link, reused: true, pool: Some(Rc::clone(self)) });
        }
    }

    /// A shared connection with room.
    pub fn shared(self: &Rc<Self>, mux: bool) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|one| !one.sender.is_closed() && !self.is_spent(&one.link));
        let bound = self.life.streams.min(STREAMS_BEFORE_ANOTHER);
        let fitting = shared.iter().filter(|one| one.link.mux || !mux);
        let least = fitting.min_by_key(|one| one.link.streams.get())?;
        let full = least.link.streams.get() >= bound
            && !(mux && shared.len() >= MUX_CONNECTIONS && self.life.streams >= STREAMS_BEFORE_ANOTHER);
        if full {
            return None;
        }
        let link = Rc::clone(&least.link);
        let reused = link.requests.get() > 0;
        link.requests.set(link.requests.get() + 1);
        link.streams.set(link.streams.get() + 1);
        Some(Lease { sender: least.sender.share(), link, reused, pool: Some(Rc::clone(self)) })
    }

    /// Joins those that wait for a shared connection; `None`: nobody makes one, the caller shall.
    pub fn wait_for_shared(&self) -> Option<oneshot::Receiver<Result<(), Failure>>> {
        if !self.dialling.replace(true) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push_back(sender);
        Some(receiver)
    }

    /// Tells those that wait how it went.
    pub fn shared_done(&self, result: Result<(), Failure>) {
        self.dialling.set(false);
        for waiting in self.waiting.borrow_mut().drain(..) {
            let _ = waiting.send(result);
        }
    }

    /// Speaks HTTP/1.1 on a new connection; the lease may be given back.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn start_http1(
        self: &Rc<Self>,
        dialled: Dialled,
        link: Rc<Link>,
        preserve_case: bool,
    ) -> Result<Lease, Failure> {
        link.requests.set(1);
        let pool = Some(Rc::clone(self));
        if !preserve_case {
            let sender = Some(Sender::One(Connection::new(dialled.io)));
            return Ok(Lease { sender, link, reused: false, pool });
        }
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(dialled.io))
            .await
            .map_err(|_| Failure::ConnectFailed)?;
        let held = Rc::clone(&link);
        tokio::task::spawn_local(async move {
            let result = connection.with_upgrades().await;
            if let Err(error) = result {
                tracing::debug!(%error, "an HTTP/1 connection to an upstream ended");
            }
            drop(held);
        });
        Ok(Lease { sender: Some(Sender::Spelled(sender)), link, reused: false, pool })
    }

    /// Speaks HTTP/2, or the protocol between our proxies, on a new connection and shares it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn start_shared(self: &Rc<Self>, dialled: Dialled, link: Rc<Link>) -> Result<(), Failure> {
        let sender = if link.mux {
            Sender::Mux(mux::client::start(dialled.io, Rc::clone(&link)))
        } else {
            let http2 = http2::start(dialled.io, Rc::clone(&link)).await;
            Sender::Two(http2.map_err(|_| Failure::ConnectFailed)?)
        };
        self.shared.borrow_mut().push(Shared { sender, link });
        Ok(())
    }

    /// Closes what has been idle for long; says whether nothing is left.
    pub fn sweep(&self, now: Instant) -> bool {
        let idle = self.life.idle;
        let old = |link: &Link| !idle.is_zero() && now.duration_since(link.last_used.get()) >= idle;
        self.idle.borrow_mut().retain(|(sender, link)| {
            let keep = !sender.is_closed() && !old(link);
            if let (true, Sender::One(connection)) = (keep, sender) {
                connection.rest();
            }
            keep
        });
        self.shared
            .borrow_mut()
            .retain(|one| !one.sender.is_closed() && (one.link.streams.get() > 0 || !old(&one.link)));
        let mut connections = self.idle.borrow_mut();
        if connections.capacity() > 64 && connections.len() * 4 < connections.capacity() {
            connections.shrink_to_fit();
        }
        connections.is_empty() && self.shared.borrow().is_empty() && !self.dialling.get()
    }

    /// Closes one of the connections that nobody uses; says whether there was one.
    pub fn close_idle(&self) -> bool {
        self.idle.borrow_mut().pop().is_some()
    }

    /// The host is gone: nothing is kept any more; what is under way ends by itself.
    pub fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    /// Connections kept idle and shared.
    pub fn sizes(&self) -> (usize, usize) {
        (self.idle.borrow().len(), self.shared.borrow().len())
    }
}

impl Lease {
    /// Gives the connection back after a complete exchange.
    pub fn give_back(mut self) {
        let Some(pool) = self.pool.take() else { return };
        self.link.last_used.set(Instant::now());
        match self.sender.take() {
            Some(sender) if sender.is_shared() => self.end_stream(),
            Some(sender) if !sender.is_closed() && !pool.retired.get() && !pool.is_spent(&self.link) => {
                pool.idle.borrow_mut().push((sender, Rc::clone(&self.link)));
            }
            _ => {}
        }
    }

    /// The lease does not go back to the pool (upgrades, broken exchanges).
    pub fn keep_out(&mut self) {
        if !self.sender.as_ref().is_some_and(Sender::is_shared) {
            self.pool = None;
        }
    }

    fn end_stream(&self) {
        self.link.streams.set(self.link.streams.get().saturating_sub(1));
        self.link.last_used.set(Instant::now());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.sender.as_ref().is_some_and(Sender::is_shared) {
            self.end_stream();
        }
    }
}
