//! What must not be disturbed: so many requests a second whatever happens, WebSockets and gRPC streams that carry a message each
//! second, and the count of everything that failed or was cut.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::server::{Client, Open, get};

/// How much. A debug build bears all of it on two cores; `CHURN=small` is for less.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Requests a second.
    pub rate: u32,
    /// WebSockets, and as many gRPC streams.
    pub streams: usize,
}

impl Size {
    /// By the environment.
    pub fn of_environment() -> Size {
        match std::env::var("CHURN").as_deref() {
            Ok("small") => Size { rate: 200, streams: 40 },
            _ => Size { rate: 1000, streams: 200 },
        }
    }
}

/// Connections that carry the requests.
const CONNECTIONS: usize = 8;
/// gRPC streams on one connection.
const STREAMS_OF_A_CONNECTION: usize = 50;

#[derive(Default)]
struct Told {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: Mutex<Vec<String>>,
    closed: Mutex<Vec<String>>,
    messages: AtomicUsize,
}

/// Traffic under way.
pub struct Steady {
    told: Arc<Told>,
    tasks: JoinSet<()>,
    streams: usize,
    rate: u32,
    /// Since when all streams are there, and what was answered before.
    since: (Instant, usize),
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests answered with 200.
    pub answered: usize,
    /// Those that were not, and why.
    pub failed: Vec<String>,
    /// Streams that ended before they were told to, and why.
    pub closed: Vec<String>,
    /// Messages that came back on streams.
    pub messages: usize,
    /// Requests that should have been answered in that time.
    pub wanted: usize,
}

impl Steady {
    /// Starts it, through the HTTP proxy port `to`: requests and WebSockets for `web`, gRPC streams for `grpc`. Returns when
    /// every stream has carried a message.
    pub async fn start(to: &str, web: &str, grpc: &str, size: Size) -> Steady {
        let told = Arc::new(Told::default());
        let mut tasks = JoinSet::new();
        for number in 0..CONNECTIONS {
            tasks.spawn(ask_steadily(to.to_owned(), web.to_owned(), number, size.rate, told.clone()));
        }
        for _ in 0..size.streams {
            tasks.spawn(websocket(to.to_owned(), web.to_owned(), told.clone()));
        }
        for first in (0..size.streams).step_by(STREAMS_OF_A_CONNECTION) {
            let count = STREAMS_OF_A_CONNECTION.min(size.streams - first);
            tasks.spawn(grpc_streams(to.to_owned(), grpc.to_owned(), count, told.clone()));
        }
        let since = (Instant::now(), 0);
        let mut steady = Steady { told, tasks, streams: size.streams * 2, rate: size.rate, since };
        crate::wait::until("all streams", async || {
            let messages = steady.told.messages.load(Ordering::Relaxed);
            let closed = steady.told.closed.lock().unwrap().clone();
            if messages >= steady.streams { Ok(()) } else { Err((messages, closed)) }
        })
        .await;
        steady.since = (Instant::now(), steady.told.answered.load(Ordering::Relaxed));
        steady
    }

    /// Waits until so many more requests have been answered, and each stream has carried a message.
    pub async fn go_on(&self, requests: usize) {
        let answered = self.told.answered.load(Ordering::Relaxed) + requests;
        let messages = self.told.messages.load(Ordering::Relaxed) + self.streams;
        crate::wait::until("more requests and messages", async || {
            let now = (self.told.answered.load(Ordering::Relaxed), self.told.messages.load(Ordering::Relaxed));
            let open = self.streams - self.told.closed.lock().unwrap().len();
            if now.0 >= answered && now.1 + (self.streams - open) >= messages { Ok(()) } else { Err(now) }
        })
        .await;
    }

    /// Streams that have ended so far, though nobody told them to, and why.
    pub fn closed(&self) -> Vec<String> {
        self.told.closed.lock().unwrap().clone()
    }

    /// What has failed so far.
    pub fn failed(&self) -> Vec<String> {
        self.told.failed.lock().unwrap().clone()
    }

    /// Ends it.
    pub async fn stop(mut self) -> Outcome {
        self.told.stop.store(true, Ordering::Relaxed);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(crate::wait::PATIENCE, ended).await.expect("traffic that does not end");
        Outcome {
            answered: self.told.answered.load(Ordering::Relaxed),
            failed: self.told.failed.lock().unwrap().clone(),
            closed: self.told.closed.lock().unwrap().clone(),
            messages: self.told.messages.load(Ordering::Relaxed),
            wanted: self.since.1 + (self.since.0.elapsed().as_secs_f64() * f64::from(self.rate)) as usize,
        }
    }
}

impl Outcome {
    /// Nothing failed, nothing was cut, and there was something to fail.
    pub fn assert_undisturbed(&self, what: &str) {
        // How many a machine carries is for benchmarks to say: a busy one answers a part of what was wanted. Enough to notice a
        // loss must have been answered.
        let (answered, wanted) = (self.answered, self.wanted);
        assert!(answered > 100, "{what}: {answered} requests of {wanted} are no load");
        self.assert_all_well(what);
    }

    /// Nothing failed and nothing was cut, however much it was.
    pub fn assert_all_well(&self, what: &str) {
        eprintln!("{what}: {} requests of {}, {} messages", self.answered, self.wanted, self.messages);
        assert!(self.failed.is_empty(), "{what}: of {} requests failed {:?}", self.answered, self.failed);
        assert!(self.closed.is_empty(), "{what}: streams closed: {:?}", self.closed);
    }
}

/// Every request has its moment, however long the one before took.
async fn ask_steadily(to: String, host: String, number: usize, rate: u32, told: Arc<Told>) {
    let mut client: Option<Client> = None;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * CONNECTIONS as u32 / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !told.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let answer = match &mut client {
            Some(client) => client.ask(get(&host, &format!("/steady/{number}"))).await,
            None => match Client::connect(&to).await {
                Ok(made) => client.insert(made).ask(get(&host, "/steady/first")).await,
                Err(error) => Err(error.to_string()),
            },
        };
        match answer {
            Ok((200, _)) => {
                told.answered.fetch_add(1, Ordering::Relaxed);
            }
            other => {
                if other.is_err() {
                    client = None;
                }
                told.failed.lock().unwrap().push(format!("{other:?}"));
            }
        }
    }
}

/// One message a second, which has to come back.
async fn websocket(to: String, host: String, told: Arc<Told>) {
    let request = Request::get("/socket")
        .header("host", &host)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Full::default())
        .unwrap();
    let talk = async {
        let client = Client::connect(&to).await.map_err(|error| error.to_string())?;
        let (status, mut stream) = client.upgrade(request).await;
        if status != 101 {
            return Err(format!("status {status}"));
        }
        let mut next = Instant::now();
        while !told.stop.load(Ordering::Relaxed) {
            if Instant::now() < next {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            next += Duration::from_secs(1);
            let mut back = [0; 4];
            stream.write_all(b"ping").await.map_err(|error| error.to_string())?;
            stream.read_exact(&mut back).await.map_err(|error| error.to_string())?;
            told.messages.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    if let Err(error) = talk.await {
        told.closed.lock().unwrap().push(format!("WebSocket: {error}"));
    }
}

async fn grpc_streams(to: String, host: String, count: usize, told: Arc<Told>) {
    let stream = TcpStream::connect(&to).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut streams = JoinSet::new();
    for _ in 0..count {
        let (mut sender, host, told) = (sender.clone(), host.clone(), told.clone());
        streams.spawn(async move {
            if let Err(error) = grpc_stream(&mut sender, &host, &told).await {
                told.closed.lock().unwrap().push(format!("gRPC: {error}"));
            }
        });
    }
    while streams.join_next().await.is_some() {}
}

/// A gRPC message: not compressed, four bytes long.
const MESSAGE: &[u8] = b"\0\0\0\0\x04ping";

async fn grpc_stream(
    sender: &mut hyper::client::conn::http2::SendRequest<Channel<Bytes>>,
    host: &str,
    told: &Told,
) -> Result<(), String> {
    let (mut messages, body) = Channel::<Bytes>::new(1);
    let request = Request::post(format!("http://{host}/shop.Stream/Talk"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    sender.ready().await.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    messages.send_data(Bytes::from_static(MESSAGE)).await.map_err(|error| error.to_string())?;
    let answer = answer.await.map_err(|error| format!("{error:?}"))?;
    if answer.status() != 200 || answer.headers().contains_key("grpc-status") {
        return Err(format!("{:?}", answer.headers()));
    }
    let mut body = answer.into_body();
    let mut next = Instant::now();
    loop {
        let mut left = MESSAGE.len();
        while left > 0 {
            let frame = body.frame().await.ok_or("it ended")?.map_err(|error| format!("{error:?}"))?;
            left -= frame.into_data().map_err(|trailers| format!("{trailers:?}"))?.len();
        }
        told.messages.fetch_add(1, Ordering::Relaxed);
        next += Duration::from_secs(1);
        while Instant::now() < next {
            if told.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        messages.send_data(Bytes::from_static(MESSAGE)).await.map_err(|error| error.to_string())?;
    }
}

/// Serves gRPC streams that send back what they get. How many are open is counted.
pub async fn grpc_echo(address: &str) -> Open {
    let socket = TcpListener::bind(address).await.unwrap();
    let open = Open::default();
    let counted = open.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let open = counted.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let open = open.one();
                async move {
                    let (mut out, body) = Channel::<Bytes>::new(1);
                    tokio::spawn(async move {
                        let _open = open;
                        let mut incoming = request.into_body();
                        while let Some(Ok(frame)) = incoming.frame().await {
                            if let Ok(data) = frame.into_data()
                                && out.send(Frame::data(data)).await.is_err()
                            {
                                return;
                            }
                        }
                    });
                    let answer =
                        http::Response::builder().header("content-type", "application/grpc").body(body).unwrap();
                    Ok::<_, std::convert::Infallible>(answer)
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(1000)
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    open
}
