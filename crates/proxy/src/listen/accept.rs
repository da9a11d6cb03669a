//! One worker's accept loops, and the way of a connection from its first byte to its chain.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::original_dst::original_dst;
use super::sniff::{Hello, Sniffed, sniff};
use crate::facts::{Caller, ConnFacts};
use crate::failure::Failure;
use crate::http;
use crate::snapshot::chain::{Chain, Network, Transport};
use crate::snapshot::listener::{ChainQuery, Listener};
use crate::tcp::proxy::{self, Reached, TcpEnd};
use crate::tls::server::accepts;
use crate::tls::verify::names_allowed;
use crate::upstream::io::{Io, Prefixed};
use crate::worker::Worker;

/// How long a client may keep silent before the upstream is asked whether it speaks first.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Accepts until the token is cancelled. The listener's configuration is looked up by name for each connection.
pub async fn accept_all(worker: Rc<Worker>, name: Arc<str>, socket: TcpListener, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, remote)) => {
                tokio::task::spawn_local(handle(Rc::clone(&worker), Arc::clone(&name), stream, remote));
            }
            Err(error) => {
                // Out of descriptors or aborted by the peer: others may still succeed, but not in a hot loop.
                tracing::warn!(listener = %name, %error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn handle(worker: Rc<Worker>, name: Arc<str>, stream: TcpStream, remote: SocketAddr) {
    let _connected = worker.connected();
    let _ = stream.set_nodelay(true);
    let snapshot = worker.snapshot();
    let Some(first) = snapshot.listeners.get(&name) else { return };
    let Ok(local) = stream.local_addr() else { return };
    let mut destination = local;
    if first.value.original_dst
        && let Some(original) = original_dst(&stream)
    {
        destination = original;
    }
    // The listener of the original destination takes over, if there is one; else the one that accepted (Envoy
    // `use_original_dst`).
    let listener = match first.value.use_original_dst {
        true => listener_for(&snapshot, destination, &name).unwrap_or_else(|| Arc::clone(&first.value)),
        false => Arc::clone(&first.value),
    };
    drop(snapshot);
    let begin = Begin { worker, listener, remote, destination, start: Instant::now(), wall: SystemTime::now() };
    // What a handshake needs is given back when it is over: a connection lives much longer.
    let Some((worker, io, facts, chain, place)) = Box::pin(begin.serve(stream)).await else { return };
    let Network::Http(http) = &chain.network else { return };
    http::server::run(worker, io, facts, Arc::clone(http), place).await;
}

/// The listener with this address, else with its port on all addresses.
fn listener_for(snapshot: &crate::snapshot::Snapshot, destination: SocketAddr, except: &str) -> Option<Arc<Listener>> {
    let of = |wanted: &dyn Fn(&SocketAddr) -> bool| {
        let mut all =
            snapshot.listeners.iter().filter(|(name, listener)| name.as_ref() != except && !listener.value.binds);
        all.find(|(_, listener)| listener.value.addresses.iter().any(wanted))
            .map(|(_, listener)| Arc::clone(&listener.value))
    };
    of(&|address| *address == destination)
        .or_else(|| of(&|address| address.port() == destination.port() && address.ip().is_unspecified()))
}

struct Begin {
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    remote: SocketAddr,
    destination: SocketAddr,
    start: Instant,
    wall: SystemTime,
}

/// What is known after looking at the first bytes.
struct Seen {
    prefix: Bytes,
    hello: Option<Hello>,
    protocols: Vec<String>,
    /// An upstream that was dialled while the client was silent, and its chain.
    ahead: Option<(Arc<Chain>, Reached)>,
}

impl Begin {
    /// Serves what is not HTTP; returns what is.
    async fn serve(
        self,
        mut stream: TcpStream,
    ) -> Option<(Rc<Worker>, Io, Rc<ConnFacts>, Arc<Chain>, http::server::Place)> {
        let seen = tokio::select! {
            seen = self.look(&mut stream) => seen,
            () = self.worker.unused_ends(self.start) => None,
        };
        let mut seen = seen?;
        let transport = if seen.hello.is_some() { Transport::Tls } else { Transport::Raw };
        let name = seen.hello.as_ref().and_then(|hello| hello.server_name.clone());
        let chain = match &seen.ahead {
            Some((chain, _)) => Some(Arc::clone(chain)),
            None => self.chain(transport, name.as_deref(), &seen.protocols),
        };
        let mut facts = self.facts(name);
        let Some(chain) = chain else {
            self.refuse(&facts, Failure::NoFilterChain);
            return None;
        };
        let stream = Prefixed { prefix: std::mem::take(&mut seen.prefix), inner: stream };
        let io = match &chain.tls {
            None => Io::Tcp(stream),
            Some(terms) => {
                let accepts = accepts(terms, chain.is_http(), &seen.protocols);
                let config = match self.worker.tls.get(terms, accepts) {
                    Ok(config) => config,
                    Err(error) => {
                        tracing::warn!(listener = %self.listener.name, chain = %chain.name, %error, "TLS cannot be ended");
                        self.refuse(&facts, Failure::DownstreamTls);
                        return None;
                    }
                };
                let handshake = TlsAcceptor::from(config.tls).accept(stream);
                let handshake = tokio::select! {
                    handshake = tokio::time::timeout(HANDSHAKE, handshake) => handshake,
                    // Whoever has not said hello by then is not going to.
                    () = self.worker.unused_ends(self.start) => return None,
                };
                let Ok(Ok(accepted)) = handshake else {
                    self.refuse(&facts, Failure::DownstreamTls);
                    return None;
                };
                let session = accepted.get_ref().1;
                facts.tls = true;
                facts.own_uri = config.own_uri;
                facts.tls_version = session.protocol_version().map(version_name);
                facts.alpn = session.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into());
                let leaf = session.peer_certificates().and_then(|chain| chain.first());
                facts.peer = leaf.and_then(|leaf| self.worker.upstreams.env().peer_facts(leaf));
                if !terms.sans.is_empty() && !facts.peer.as_ref().is_some_and(|peer| names_allowed(peer, &terms.sans)) {
                    self.refuse(&facts, Failure::DownstreamTls);
                    return None;
                }
                Io::Server(Box::new(accepted), Bytes::new())
            }
        };
        let facts = Rc::new(facts);
        match &chain.network {
            Network::Http(_) => {
                let place =
                    http::server::Place { listener: Arc::clone(&self.listener.name), chain: Arc::clone(&chain) };
                return Some((self.worker, io, facts, chain, place));
            }
            Network::Tcp(tcp) => {
                proxy::run(self.worker, io, facts, Arc::clone(tcp), seen.ahead.map(|(_, reached)| reached)).await
            }
            Network::Close => {}
        }
        None
    }

    fn chain(&self, transport: Transport, server_name: Option<&str>, protocols: &[String]) -> Option<Arc<Chain>> {
        let query =
            ChainQuery { destination: self.destination, source: self.remote, server_name, transport, protocols };
        self.listener.chain_for(&query).cloned()
    }

    fn facts(&self, server_name: Option<String>) -> ConnFacts {
        ConnFacts {
            direction: self.listener.direction,
            remote: self.remote,
            destination: self.destination,
            caller: self.listener.original_src.map(|mark| Caller { address: self.remote.ip(), mark }),
            server_name: server_name.map(Into::into),
            alpn: None,
            tls: false,
            peer: None,
            own_uri: None,
            tls_version: None,
        }
    }

    fn refuse(&self, facts: &ConnFacts, failure: Failure) {
        let process = &self.worker.shard.process;
        if failure == Failure::NoFilterChain {
            process.no_filter_chain.add(1)
        } else {
            process.tls_errors.add(1)
        }
        let mut end = TcpEnd::new(&self.worker, facts, self.start, self.wall);
        end.failure = Some(failure);
        end.listener_object = self.listener.object.as_deref();
        end.write_down(&self.listener.access_logs);
    }

    /// Looks at the first bytes as far as the choice of a chain needs it. A silent client is not waited for in vain: if its
    /// bytes would go to a TCP upstream anyway, that one may speak first.
    async fn look(&self, stream: &mut TcpStream) -> Option<Seen> {
        let mut seen = Seen { prefix: Bytes::new(), hello: None, protocols: Vec::new(), ahead: None };
        // A port of which only TLS is accepted needs the hello too: it chooses the protocols.
        let any_tls = self.listener.all_chains().any(|chain| chain.tls.is_some());
        if !self.listener.must_look() && !any_tls {
            return Some(seen);
        }
        let mut bytes = BytesMut::with_capacity(2048);
        let bound = (!self.listener.inspect_timeout.is_zero())
            .then(|| tokio::time::Instant::now() + self.listener.inspect_timeout);
        let mut patient = self.silent_chain().is_some();
        loop {
            let read = async {
                match bound {
                    None => Some(stream.read_buf(&mut bytes).await),
                    Some(bound) => tokio::time::timeout_at(bound, stream.read_buf(&mut bytes)).await.ok(),
                }
            };
            let read = if patient {
                patient = false;
                match tokio::time::timeout(PATIENCE, read).await {
                    Ok(read) => read,
                    Err(_) => match self.first_speaker(stream, &mut bytes).await {
                        Speaker::Client(count) => Some(count),
                        Speaker::Upstream(chain, reached) => {
                            self.worker.shard.process.server_first.add(1);
                            seen.ahead = Some((chain, *reached));
                            return Some(seen);
                        }
                        Speaker::Nobody => continue,
                    },
                }
            } else {
                read.await
            };
            match read {
                Some(Ok(0)) if bytes.is_empty() => return None,
                Some(Ok(0)) | None => {
                    if read.is_none() && !self.listener.continue_on_timeout {
                        return None;
                    }
                    break;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) => return None,
            }
            match sniff(&bytes, true, self.listener.inspect_http) {
                Sniffed::More => continue,
                Sniffed::Tls(hello) => {
                    seen.protocols.clone_from(&hello.protocols);
                    seen.hello = Some(hello);
                }
                Sniffed::Http1 { old } => seen.protocols.push(if old { "http/1.0" } else { "http/1.1" }.to_owned()),
                Sniffed::Http2 => seen.protocols.push("h2c".to_owned()),
                Sniffed::Other => {}
            }
            break;
        }
        seen.prefix = bytes.freeze();
        Some(seen)
    }

    /// The chain of a client that says nothing that is known, if it leads to TCP in the clear.
    fn silent_chain(&self) -> Option<Arc<Chain>> {
        self.chain(Transport::Raw, None, &[])
            .filter(|chain| chain.tls.is_none() && matches!(chain.network, Network::Tcp(_)))
    }

    /// Dials the upstream of the silent client's chain and waits for whoever speaks first.
    async fn first_speaker(&self, stream: &mut TcpStream, bytes: &mut BytesMut) -> Speaker {
        let Some(chain) = self.silent_chain() else { return Speaker::Nobody };
        let Network::Tcp(tcp) = &chain.network else { return Speaker::Nobody };
        let facts = self.facts(None);
        // It is told so when it speaks: then it is known who it is.
        if !proxy::may_connect(&facts, tcp) {
            return Speaker::Nobody;
        }
        let mut reached = tokio::select! {
            read = stream.read_buf(bytes) => return Speaker::Client(read),
            reached = proxy::reach(&self.worker, &facts, tcp) => match reached {
                Ok(reached) => reached,
                // The client will be told when it speaks.
                Err(_) => return Speaker::Nobody,
            },
        };
        let mut first = BytesMut::with_capacity(2048);
        tokio::select! {
            read = stream.read_buf(bytes) => Speaker::Client(read),
            read = reached.io.read_buf(&mut first) => match read {
                Ok(count) if count > 0 => {
                    reached.io.put_back(first.freeze());
                    Speaker::Upstream(Arc::clone(&chain), Box::new(reached))
                }
                _ => Speaker::Nobody,
            },
        }
    }
}

enum Speaker {
    Client(std::io::Result<usize>),
    Upstream(Arc<Chain>, Box<Reached>),
    Nobody,
}

/// Envoy's spelling of a TLS version.
fn version_name(version: rustls::ProtocolVersion) -> &'static str {
    match version {
        rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "TLSv1.2",
    }
}
