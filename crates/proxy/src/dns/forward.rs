//! Questions that the table does not answer go to the name servers. Each has a socket of its own, with a port that the system
//! chooses and a server that it is connected to: who wants to slip in an answer has to guess port, number and question.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::message::{Question, is_failure, is_truncated};
use super::metrics::Metrics;
use super::unspecified;

/// Most questions that wait for name servers; those beyond fail at once.
const MOST: usize = 10_000;
/// After this time a question is sent again: one datagram of the two may have been lost.
const AGAIN: Duration = Duration::from_secs(1);
/// Most bytes of a message over UDP.
const MOST_BYTES: usize = 65_535;

/// Asks name servers.
pub(super) struct Forwarder {
    servers: Vec<SocketAddr>,
    parallel: bool,
    timeout: Duration,
    /// The server that answered last is asked first: a dead one costs its timeout once.
    first: AtomicUsize,
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Forwarder {
    pub(super) fn new(servers: Vec<SocketAddr>, parallel: bool, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        // Connections of the workload need descriptors too.
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let most = usize::try_from(descriptors / 4).unwrap_or(MOST).clamp(1, MOST);
        let places = Arc::new(Semaphore::new(most));
        Self { servers, parallel, timeout, first: AtomicUsize::new(0), places, metrics }
    }

    /// How many more may wait.
    #[cfg(test)]
    pub(super) fn places_left(&self) -> usize {
        self.places.available_permits()
    }

    /// A place among the questions that wait; none if there are too many.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// The answer of a name server under a number of ours, or none.
    pub(super) async fn ask(&self, question: &Question, bytes: &[u8], over_udp: bool) -> Option<Vec<u8>> {
        let begin = Instant::now();
        self.metrics.upstream.fetch_add(1, Ordering::Relaxed);
        let answer = match self.parallel {
            true => self.all_at_once(question, bytes, over_udp).await,
            false => self.one_by_one(question, bytes, over_udp).await,
        };
        match &answer {
            Some(_) => self.metrics.took(begin.elapsed()),
            None => {
                self.metrics.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        answer
    }

    async fn one_by_one(&self, question: &Question, bytes: &[u8], over_udp: bool) -> Option<Vec<u8>> {
        let first = self.first.load(Ordering::Relaxed);
        let mut refused = None;
        for place in (0..self.servers.len()).map(|place| (first + place) % self.servers.len()) {
            match self.one(self.servers[place], question, bytes, over_udp).await {
                Some(answer) if is_failure(&answer) => refused = Some(answer),
                Some(answer) => {
                    self.first.store(place, Ordering::Relaxed);
                    return Some(answer);
                }
                None => {}
            }
        }
        refused
    }

    async fn all_at_once(&self, question: &Question, bytes: &[u8], over_udp: bool) -> Option<Vec<u8>> {
        let mut asked: FuturesUnordered<_> =
            self.servers.iter().map(|server| self.one(*server, question, bytes, over_udp)).collect();
        let mut refused = None;
        while let Some(answer) = asked.next().await {
            match answer {
                Some(answer) if is_failure(&answer) => refused = Some(answer),
                Some(answer) => return Some(answer),
                None => {}
            }
        }
        refused
    }

    async fn one(&self, server: SocketAddr, question: &Question, bytes: &[u8], over_udp: bool) -> Option<Vec<u8>> {
        let sent = question.sent_on(bytes, rand::random());
        let until = Instant::now() + self.timeout;
        let asked = async {
            if over_udp {
                let answer = self.over_udp(server, question, &sent).await?;
                if !is_truncated(&answer) {
                    return Ok(answer);
                }
            }
            over_tcp(server, question, &sent).await
        };
        match timeout_at(until, asked).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(%server, name = question.name, %error, "a name server cannot be asked");
                None
            }
            Err(_) => {
                tracing::debug!(%server, name = question.name, "a name server does not answer");
                None
            }
        }
    }

    async fn over_udp(&self, server: SocketAddr, question: &Question, sent: &[u8]) -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind(unspecified(server)).await?;
        socket.connect(server).await?;
        socket.send(sent).await?;
        match timeout_at(Instant::now() + AGAIN, receive(&socket, question, sent)).await {
            Ok(answer) => answer,
            Err(_) => {
                socket.send(sent).await?;
                receive(&socket, question, sent).await
            }
        }
    }
}

/// Waits for the answer; all else that comes is thrown away.
async fn receive(socket: &UdpSocket, question: &Question, sent: &[u8]) -> std::io::Result<Vec<u8>> {
    loop {
        socket.readable().await?;
        // On the stack, and only here: what waits holds no buffer.
        let mut buffer = [0; MOST_BYTES];
        match socket.try_recv(&mut buffer) {
            Ok(length) if question.is_answered_by(sent, &buffer[..length]) => return Ok(buffer[..length].to_vec()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question, sent: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, sent).await?;
    let answer = read_message(&mut stream).await?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    if !question.is_answered_by(sent, &answer) {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the answer is to another question"));
    }
    Ok(answer)
}

/// A message over TCP: its length, then itself. None at the end of the stream.
pub(super) async fn read_message(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    // Memory follows what has come, not what was announced.
    let mut message = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut message).await?;
    if message.len() < usize::from(length) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(message))
}

/// Writes a message over TCP.
pub(super) async fn write_message(stream: &mut (impl AsyncWriteExt + Unpin), message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    stream.write_all(&framed).await
}
