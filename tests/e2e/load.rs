//! Load on an address: so many requests a second whatever becomes of those before, over connections that are kept, as customers
//! bring it; and the account of everything that was not answered well.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// So many under way at once are more than this machine carries: the test cannot tell anything.
const MOST: usize = 4000;

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// What to ask for: `GET /path`, or `POST /path` with a JSON body behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask(pub(crate) &'static str, pub(crate) &'static str, pub(crate) &'static str);

type Sender = SendRequest<Full<Bytes>>;

async fn connect(address: &str) -> Result<Sender> {
    let stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn send(sender: &mut Sender, host: &str, Ask(method, path, body): Ask) -> Result<Answer, hyper::Error> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
        .header("content-type", "application/json")
        .body(Full::from(body))
        .expect("requests of these tests are well-formed");
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
}

/// One request on a connection of its own.
pub(crate) fn ask(address: &str, host: &str, what: Ask) -> Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, async { Ok(send(&mut connect(address).await?, host, what).await?) })
            .await
            .context("no answer in time")?
    })
}

/// What was not answered as it should be.
#[derive(Clone, Debug)]
struct Failure {
    /// Since the load began.
    at: Duration,
    what: String,
}

#[derive(Default)]
struct Told {
    stop: AtomicBool,
    sent: AtomicUsize,
    answered: AtomicUsize,
    under_way: AtomicUsize,
    connections: AtomicUsize,
    /// Kept connections that turned out to be closed.
    stale: AtomicUsize,
    failed: Mutex<Vec<Failure>>,
    /// Answers by the service and version that gave them.
    served: Mutex<BTreeMap<String, usize>>,
    /// Microseconds.
    times: Mutex<Vec<u32>>,
    idle: Mutex<Vec<Sender>>,
}

/// Load under way.
pub(crate) struct Load {
    told: Arc<Told>,
    thread: Option<std::thread::JoinHandle<()>>,
    started: Instant,
    rate: u32,
}

/// What became of it.
pub(crate) struct Outcome {
    failed: Vec<Failure>,
    /// One line.
    pub(crate) summary: String,
}

impl Load {
    /// Starts it: `asks` in turn.
    pub(crate) fn start(address: &str, host: &'static str, asks: &'static [Ask], rate: u32) -> Load {
        let told = Arc::new(Told::default());
        let (of_thread, address, started) = (told.clone(), address.to_owned(), Instant::now());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(run(&of_thread, &address, host, asks, rate, started));
        });
        Load { told, thread: Some(thread), started, rate }
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> usize {
        self.told.answered.load(Ordering::Relaxed)
    }

    /// Answers so far by the service and version that gave them.
    pub(crate) fn served(&self) -> BTreeMap<String, usize> {
        self.told.served.lock().expect("a lock").clone()
    }

    /// Waits until so many more requests have been answered well, or failed.
    pub(crate) fn go_on(&self, requests: usize) -> Result<()> {
        let done = || self.answered() + self.told.failed.lock().expect("a lock").len();
        let (wanted, deadline) = (done() + requests, Instant::now() + Duration::from_secs(120));
        while done() < wanted {
            ensure!(Instant::now() < deadline, "the load does not go on: {} of {wanted} requests", done());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it when all that was asked is answered.
    pub(crate) fn stop(mut self) -> Result<Outcome> {
        let lasted = self.started.elapsed();
        self.told.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join).transpose().ok().context("the load's thread broke")?;
        let failed = self.told.failed.lock().expect("a lock").clone();
        let mut times = self.told.times.lock().expect("a lock").clone();
        times.sort_unstable();
        let at =
            |share: usize| f64::from(*times.get(times.len().saturating_sub(1) * share / 1000).unwrap_or(&0)) / 1000.0;
        let summary = format!(
            "{} requests in {:.0} s, {} failed, {} connections ({} closed under a GET), p50 {:.1} p99 {:.1} longest {:.0} ms",
            self.told.sent.load(Ordering::Relaxed),
            lasted.as_secs_f64(),
            failed.len(),
            self.told.connections.load(Ordering::Relaxed),
            self.told.stale.load(Ordering::Relaxed),
            at(500),
            at(990),
            at(1000),
        );
        // What a slow client did not send cannot fail.
        let (sent, wanted) = (self.told.sent.load(Ordering::Relaxed), lasted.as_secs_f64() * f64::from(self.rate));
        ensure!(sent as f64 > wanted * 0.9, "{sent} requests of {wanted:.0} are not that load ({summary})");
        Ok(Outcome { failed, summary })
    }
}

impl Outcome {
    /// Everything was answered; the summary.
    pub(crate) fn nothing_lost(self) -> Result<String> {
        if self.failed.is_empty() {
            return Ok(self.summary);
        }
        let mut kinds: BTreeMap<&str, (usize, Duration, Duration)> = BTreeMap::new();
        for failure in &self.failed {
            let kind = kinds.entry(&failure.what).or_insert((0, failure.at, failure.at));
            *kind = (kind.0 + 1, kind.1, failure.at);
        }
        let mut text = self.summary;
        for (what, (count, first, last)) in kinds.iter().take(12) {
            text +=
                &format!("\n  {count} × between {:.2} and {:.2} s: {what}", first.as_secs_f64(), last.as_secs_f64());
        }
        bail!("{text}")
    }
}

async fn run(told: &Arc<Told>, address: &str, host: &'static str, asks: &'static [Ask], rate: u32, started: Instant) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut tasks = JoinSet::new();
    let address: Arc<str> = address.into();
    for ask in asks.iter().cycle() {
        ticks.tick().await;
        if told.stop.load(Ordering::Relaxed) {
            break;
        }
        while tasks.try_join_next().is_some() {}
        told.sent.fetch_add(1, Ordering::Relaxed);
        if told.under_way.load(Ordering::Relaxed) >= MOST {
            told.fail(started, format!("{MOST} requests are under way: not sent"));
            continue;
        }
        let (told, address) = (told.clone(), address.clone());
        tasks.spawn(async move {
            told.under_way.fetch_add(1, Ordering::Relaxed);
            told.one(&address, host, *ask, started).await;
            told.under_way.fetch_sub(1, Ordering::Relaxed);
        });
    }
    while tasks.join_next().await.is_some() {}
}

impl Told {
    fn fail(&self, started: Instant, what: String) {
        self.failed.lock().expect("a lock").push(Failure { at: started.elapsed(), what });
    }

    async fn one(&self, address: &str, host: &str, ask: Ask, started: Instant) {
        let begun = Instant::now();
        let Ask(method, path, _) = ask;
        match tokio::time::timeout(PATIENCE, self.exchange(address, host, ask)).await {
            Err(_) => self.fail(started, format!("{method} {path}: no answer in {PATIENCE:?}")),
            Ok(Err(error)) => self.fail(started, format!("{method} {path}: {error:#}")),
            Ok(Ok(answer)) if answer.status >= 300 => {
                let mut why = String::new();
                for (name, value) in answer.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-")) {
                    // Names of requests differ each time.
                    if name != "x-request-id" && !name.as_str().ends_with("time") {
                        why += &format!(" {name}: {}", value.to_str().unwrap_or("?"));
                    }
                }
                self.fail(started, format!("{method} {path}: status {}{why}: {}", answer.status, answer.body.trim()));
            }
            Ok(Ok(answer)) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                let took = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
                self.times.lock().expect("a lock").push(took);
                let served = &answer.json()["served"];
                let who = format!("{} {}", word(&served["service"]), word(&served["version"]));
                *self.served.lock().expect("a lock").entry(who).or_default() += 1;
            }
        }
    }

    /// On a connection that is open, or on a new one. As every HTTP client does (RFC 9110, 9.2.2), sends again what was certainly
    /// never sent, and a GET on whose kept connection not a byte came back: the server may have closed it meanwhile. Nothing else
    /// is asked twice.
    async fn exchange(&self, address: &str, host: &str, ask: Ask) -> Result<Answer> {
        loop {
            let kept = self.idle.lock().expect("a lock").pop();
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(sender) if sender.is_closed() => continue,
                Some(sender) => sender,
                None => {
                    self.connections.fetch_add(1, Ordering::Relaxed);
                    connect(address).await?
                }
            };
            if sender.ready().await.is_err() && !fresh {
                continue;
            }
            match send(&mut sender, host, ask).await {
                Ok(answer) => {
                    self.idle.lock().expect("a lock").push(sender);
                    return Ok(answer);
                }
                Err(error) if error.is_canceled() && !fresh => {}
                Err(_) if ask.0 == "GET" && !fresh => {
                    self.stale.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    return Err(error).context(if fresh { "on a new connection" } else { "on a kept connection" });
                }
            }
        }
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
