//! The sockets on which questions come.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Dns;
use super::forward::{read_message, write_message};
use super::message::{Question, Unfit};

/// Most connections at a time; others wait until one ends.
const CONNECTIONS: usize = 1_000;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// Most bytes of a question over UDP.
const MOST_BYTES: usize = 4_096;
/// How many ports are tried where any will do.
const PORTS: usize = 16;
/// What is waited after a socket has failed, so that it cannot take the whole thread.
const PAUSE: Duration = Duration::from_millis(100);

/// The open sockets; closed when this is dropped.
#[derive(Default)]
pub struct Serving {
    tasks: JoinSet<()>,
    addresses: Vec<SocketAddr>,
}

impl Serving {
    /// Where it listens, with the ports that the system chose for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(super) async fn add(&mut self, dns: &Arc<Dns>, address: SocketAddr) -> std::io::Result<()> {
        let (datagrams, connections) = open(address).await?;
        self.addresses.push(datagrams.local_addr()?);
        self.tasks.spawn(serve_datagrams(Arc::clone(dns), Arc::new(datagrams)));
        self.tasks.spawn(serve_connections(Arc::clone(dns), connections));
        Ok(())
    }
}

/// One port for both transports. One that the system chooses for the first may be taken for the second.
pub(super) async fn open(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut left = if address.port() == 0 { PORTS } else { 1 };
    loop {
        left -= 1;
        let datagrams = UdpSocket::bind(address).await?;
        match TcpListener::bind(datagrams.local_addr()?).await {
            Ok(connections) => return Ok((datagrams, connections)),
            Err(error) if left == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

/// What comes of a question.
enum Outcome {
    /// This.
    Answer(Vec<u8>),
    /// Nothing.
    Silence,
    /// What a name server says.
    Forward(Box<Question>),
}

impl Dns {
    /// What can be said without asking anybody.
    fn decide(&self, bytes: &[u8], over_udp: bool) -> Outcome {
        let question = match Question::read(bytes) {
            Ok(question) => question,
            Err(Unfit::Silent) => return Outcome::Silence,
            Err(Unfit::Answer(answer)) => return Outcome::Answer(answer),
        };
        self.metrics.requests.fetch_add(1, Ordering::Relaxed);
        // Without the table nobody knows whether a name is one of the mesh.
        let Some(table) = self.table.load_full() else { return Outcome::Answer(question.failure()) };
        let found = table.find(&question.name, &self.own).filter(|_| question.is_for_addresses());
        match found {
            Some(found) => {
                Outcome::Answer(question.answer(&found, over_udp, |records| records.shuffle(&mut rand::rng())))
            }
            None => Outcome::Forward(Box::new(question)),
        }
    }

    /// What a name server says, as whoever asked may be told it.
    async fn forward(&self, question: &Question, bytes: &[u8], over_udp: bool) -> Vec<u8> {
        match self.forwarder.ask(question, bytes, over_udp).await {
            Some(answer) => question.relayed(answer, over_udp),
            None => question.failure(),
        }
    }
}

async fn serve_datagrams(dns: Arc<Dns>, socket: Arc<UdpSocket>) {
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; MOST_BYTES];
    loop {
        // What has been answered is let go.
        while waiting.try_join_next().is_some() {}
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "questions over UDP cannot be read");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let bytes = &buffer[..length];
        let question = match dns.decide(bytes, true) {
            Outcome::Silence => continue,
            Outcome::Answer(answer) => {
                // A buffer that is full is as a network that loses: the question comes again.
                let _ = socket.try_send_to(&answer, peer);
                continue;
            }
            Outcome::Forward(question) => question,
        };
        let Some(place) = dns.forwarder.place() else {
            let _ = socket.try_send_to(&question.failure(), peer);
            continue;
        };
        let (dns, socket, bytes) = (Arc::clone(&dns), Arc::clone(&socket), bytes.to_vec());
        waiting.spawn(async move {
            let answer = dns.forward(&question, &bytes, true).await;
            let _ = socket.send_to(&answer, peer).await;
            drop(place);
        });
    }
}

async fn serve_connections(dns: Arc<Dns>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let dns = Arc::clone(&dns);
                connections.spawn(async move {
                    // Whoever breaks off is not told.
                    let _ = converse(&dns, stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connections for DNS cannot be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One connection: question after question.
async fn converse(dns: &Dns, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let Some(bytes) = tokio::time::timeout(IDLE, read_message(&mut stream)).await?? else { return Ok(()) };
        let answer = match dns.decide(&bytes, false) {
            Outcome::Silence => return Ok(()),
            Outcome::Answer(answer) => answer,
            Outcome::Forward(question) => match dns.forwarder.place() {
                Some(_place) => dns.forward(&question, &bytes, false).await,
                None => question.failure(),
            },
        };
        tokio::time::timeout(IDLE, write_message(&mut stream, &answer)).await??;
    }
}
