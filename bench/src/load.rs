//! Load: as many requests as there can be over n connections (closed loop), or so many a second whatever happens (open
//! loop). Any failed or wrong-sized answer ends it with a sentence.

mod grpc;
mod http1;
mod idle;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::histogram::Histogram;

pub(crate) use idle::hold;

/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Where requests are sent.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Address of the client's proxy, or of the server itself.
    pub(crate) address: SocketAddr,
    /// What the requests say whom they are for (`Host`, `:authority`).
    pub(crate) authority: String,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// HTTP/1.1 requests on connections that stay, answered with so many bytes.
    Http1 { size: usize },
    /// gRPC calls with a message of so many bytes, which comes back; so many at once on each connection.
    Grpc { size: usize, calls: usize },
    /// Bytes from the server without end.
    Download,
    /// Connections that carry one small message each way and are closed.
    Churn,
}

/// What has been done on one connection.
#[derive(Debug, Default)]
struct Done {
    requests: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Done {
    /// Whether no further request is to be sent.
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn add(&self, requests: u64, bytes: usize) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Requests and bytes of all connections.
fn sum(all: &[Arc<Done>]) -> (u64, u64) {
    let of = |count: fn(&Done) -> &AtomicU64| all.iter().map(|done| count(done).load(Ordering::Relaxed)).sum();
    (of(|done| &done.requests), of(|done| &done.bytes))
}

/// What a measured window saw.
#[derive(Debug)]
pub(crate) struct Window<T> {
    /// Answered requests; connections, of `Churn`.
    pub(crate) requests: u64,
    /// Bytes of the answers.
    pub(crate) bytes: u64,
    /// Its length.
    pub(crate) seconds: f64,
    /// What was sampled as it began.
    pub(crate) before: T,
    /// What was sampled as it ended.
    pub(crate) after: T,
}

/// Sends as much as is answered: warms up, then samples, measures and samples again.
///
/// # Errors
/// The first failed or wrong-sized answer, or a sample that could not be taken.
pub(crate) fn closed<T>(
    target: &Target,
    kind: Kind,
    connections: usize,
    warm_up: Duration,
    measure: Duration,
    mut sample: impl FnMut() -> Result<T>,
) -> Result<Window<T>> {
    runtime()?.block_on(async {
        let all: Vec<Arc<Done>> = (0..connections).map(|_| Arc::default()).collect();
        let mut tasks = JoinSet::new();
        for done in &all {
            let (target, done) = (target.clone(), done.clone());
            match kind {
                Kind::Http1 { size } => tasks.spawn(http1::repeat(target, size, done)),
                Kind::Grpc { size, calls } => tasks.spawn(grpc::repeat(target, size, calls, done)),
                Kind::Download => tasks.spawn(tcp::download(target, done)),
                Kind::Churn => tasks.spawn(tcp::churn(target, done)),
            };
        }
        // Connections are made, and handshakes with them, before anything is counted.
        let deadline = Instant::now() + PATIENCE;
        while all.iter().any(|done| done.bytes.load(Ordering::Relaxed) == 0) {
            ensure!(Instant::now() < deadline, "not every connection was answered within {PATIENCE:?}");
            run_for(&mut tasks, Duration::from_millis(5)).await?;
        }
        run_for(&mut tasks, warm_up).await?;
        let (before, started, first) = (sample()?, Instant::now(), sum(&all));
        run_for(&mut tasks, measure).await?;
        // A busy machine may have served nobody in a short window.
        while sum(&all) == first && started.elapsed() < measure + PATIENCE {
            run_for(&mut tasks, Duration::from_millis(5)).await?;
        }
        let (last, seconds, after) = (sum(&all), started.elapsed().as_secs_f64(), sample()?);
        // What is on its way must still be answered: a lost request would otherwise only look like a slow one.
        all.iter().for_each(|done| done.stop.store(true, Ordering::Relaxed));
        all_end(&mut tasks).await?;
        Ok(Window { requests: last.0 - first.0, bytes: last.1 - first.1, seconds, before, after })
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Lets the connections work for a while. None may end meanwhile.
async fn run_for(tasks: &mut JoinSet<Result<()>>, time: Duration) -> Result<()> {
    match tokio::time::timeout(time, tasks.join_next()).await {
        Err(_) => Ok(()),
        Ok(Some(ended)) => ended?.and_then(|()| bail!("a connection ended")),
        Ok(None) => bail!("there are no connections"),
    }
}

/// Waits until all connections are done.
async fn all_end(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    let ended = async {
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, ended)
        .await
        .with_context(|| format!("an answer did not come within {PATIENCE:?}"))?
}

/// Sends `rate` requests a second over the connections in turn, and tells how long each took, from the moment at which it
/// was to be sent: a stall is seen by all that were due meanwhile.
///
/// # Errors
/// The first failed or wrong-sized answer.
pub(crate) fn open(
    target: &Target,
    kind: Kind,
    connections: usize,
    rate: u32,
    warm_up: Duration,
    measure: Duration,
) -> Result<Histogram> {
    runtime()?.block_on(async {
        let counted = Arc::new(std::sync::Mutex::new(Histogram::default()));
        let mut tasks = JoinSet::new();
        let mut senders = Vec::new();
        let start = Instant::now() + Duration::from_millis(50);
        let counts_from = start + warm_up;
        for _ in 0..connections {
            let (sender, due) = mpsc::unbounded_channel();
            senders.push(sender);
            let meter = Meter { due, counts_from, counted: counted.clone() };
            let target = target.clone();
            match kind {
                Kind::Http1 { size } => tasks.spawn(http1::paced(target, size, meter)),
                Kind::Grpc { size, .. } => tasks.spawn(grpc::paced(target, size, meter)),
                Kind::Download | Kind::Churn => bail!("no open loop is made of {kind:?}"),
            };
        }
        let stop = Arc::new(AtomicBool::new(false));
        let pace = pacer(senders, start, rate, stop.clone())?;
        let outcome = run_for(&mut tasks, start - Instant::now() + warm_up + measure).await;
        stop.store(true, Ordering::Relaxed);
        outcome?;
        // The channels close with the pacer; what was sent is still answered and counted.
        let _ = pace.join();
        all_end(&mut tasks).await?;
        let counted = counted.lock().map_err(|_| anyhow::anyhow!("a connection panicked"))?;
        Ok(counted.clone())
    })
}

/// Tells connections when a request is due. A thread of its own: the runtime's timers are no finer than a millisecond.
fn pacer(
    senders: Vec<mpsc::UnboundedSender<Instant>>,
    start: Instant,
    rate: u32,
    stop: Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<()>> {
    let pace = move || {
        // Without it the kernel may wake this thread 50 µs late.
        let _ = nix::sys::prctl::set_timerslack(1);
        for (number, sender) in (0_u64..).zip(senders.iter().cycle()) {
            let due = start + Duration::from_secs_f64(number as f64 / f64::from(rate));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if stop.load(Ordering::Relaxed) || sender.send(due).is_err() {
                return;
            }
        }
    };
    Ok(std::thread::Builder::new().name("pacer".to_owned()).spawn(pace)?)
}

/// What a connection of an open loop goes by.
struct Meter {
    due: mpsc::UnboundedReceiver<Instant>,
    counts_from: Instant,
    counted: Arc<std::sync::Mutex<Histogram>>,
}

impl Meter {
    /// When the next request was to be sent; none after the last.
    async fn next(&mut self) -> Option<Instant> {
        self.due.recv().await
    }

    fn answered(&self, due: Instant) {
        // One thread runs all connections: nobody waits here.
        if due >= self.counts_from
            && let Ok(mut counted) = self.counted.lock()
        {
            counted.add(due.elapsed());
        }
    }
}

/// Sends one request on a connection of its own: does the target answer as it should?
///
/// # Errors
/// It does not.
pub(crate) fn probe(target: &Target, kind: Kind) -> Result<()> {
    runtime()?.block_on(async {
        let once = async {
            match kind {
                Kind::Http1 { size } => http1::once(target, size).await,
                Kind::Grpc { size, .. } => grpc::once(target, size).await,
                Kind::Download | Kind::Churn => tcp::once(target).await,
            }
        };
        tokio::time::timeout(PATIENCE, once).await.context("no answer came")?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;

    const MOMENT: Duration = Duration::from_millis(50);

    fn at(address: SocketAddr) -> Target {
        Target { address, authority: "server.bench".to_owned() }
    }

    #[test]
    fn the_server_answers_every_kind_of_load() {
        let server = backend::start(None).unwrap();
        for (address, kind) in [
            (server.http, Kind::Http1 { size: 1024 }),
            (server.http, Kind::Http1 { size: 1 << 20 }),
            (server.grpc, Kind::Grpc { size: 1024, calls: 3 }),
            (server.tcp, Kind::Churn),
            (server.tcp, Kind::Download),
        ] {
            let mut samples = 0;
            let window = closed(&at(address), kind, 4, MOMENT, MOMENT, || {
                samples += 1;
                Ok(samples)
            });
            let window = window.unwrap();
            assert!(window.bytes > 0, "{kind:?}: {window:?}");
            assert_eq!((window.before, window.after), (1, 2));
            assert!(window.seconds >= MOMENT.as_secs_f64());
        }
    }

    #[test]
    fn an_open_loop_sends_as_many_as_are_due() {
        let server = backend::start(None).unwrap();
        for (address, kind) in
            [(server.http, Kind::Http1 { size: 64 }), (server.grpc, Kind::Grpc { size: 64, calls: 1 })]
        {
            let counted = open(&at(address), kind, 4, 1_000, MOMENT, 4 * MOMENT).unwrap();
            // A request that is due as the window closes may or may not be in it.
            assert!((100..=202).contains(&counted.total()), "{}", counted.total());
            assert!(counted.quantile(0.5) > 0.0 && counted.quantile(0.5) <= counted.quantile(0.999));
        }
    }

    #[test]
    fn what_is_not_the_answer_ends_the_load_with_a_sentence() {
        let server = backend::start(None).unwrap();
        let said = |address, kind| {
            let window = closed(&at(address), kind, 1, MOMENT, MOMENT, || Ok(()));
            window.map_err(|error| format!("{error:#}")).unwrap_err()
        };
        // The byte server closes on what is neither of its commands.
        assert!(said(server.tcp, Kind::Http1 { size: 64 }).contains("closed in place of an answer"));
        assert!(!said(server.http, Kind::Grpc { size: 64, calls: 1 }).is_empty());
        assert!(said(server.http, Kind::Churn).contains("not every connection was answered"));
    }

    #[test]
    fn waiting_connections_are_all_open_when_they_are_looked_at() {
        let server = backend::start(None).unwrap();
        let seen = hold(&at(server.http), 64, 100, || Ok(7)).unwrap();
        assert_eq!(seen, 7);
    }
}
