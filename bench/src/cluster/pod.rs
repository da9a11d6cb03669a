//! What runs in the pods of the benchmark: a server, a load that counts failures in place of ending with the first, and a
//! watcher that notes when answers change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::histogram::Histogram;
use crate::report::rounded;

/// `bench pod …`
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Answers `GET /N` with N bytes.
    Serve(ServeArguments),
    /// Sends so many requests a second and tells of latencies and failures in one line of JSON.
    Call(CallArguments),
    /// Asks again and again, and tells each change of a header of the answer with its time.
    Follow(FollowArguments),
}

#[derive(Args)]
pub(crate) struct ServeArguments {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// End at once when told to, with connections open; else what is running is answered first.
    #[arg(long)]
    at_once: bool,
    /// Close connections that are idle for so long, in seconds.
    #[arg(long)]
    idle: Option<f64>,
}

#[derive(Args)]
pub(crate) struct CallArguments {
    /// `host:port`.
    #[arg(long)]
    to: String,
    /// Bytes of an answer.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Requests a second, over all connections.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Not counted in latencies.
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
}

#[derive(Args)]
pub(crate) struct FollowArguments {
    #[arg(long)]
    to: String,
    #[arg(long)]
    header: String,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

/// Plays a role until it is over.
pub(crate) fn run(role: &Role) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::Serve(arguments) => serve(arguments).await,
            Role::Call(arguments) => call(arguments).await,
            Role::Follow(arguments) => follow(arguments).await,
        }
    })
}

async fn serve(arguments: &ServeArguments) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", arguments.port)).await.context("the port cannot be listened on")?;
    let mut terminated = signal(SignalKind::terminate())?;
    let idle = arguments.idle.map(Duration::from_secs_f64);
    let (ending, end) = tokio::sync::watch::channel(false);
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                open.spawn(answer(stream, idle, end.clone()));
            }
            Some(_) = open.join_next() => {}
            _ = terminated.recv() => break,
        }
    }
    if !arguments.at_once {
        drop(listener);
        let _ = ending.send(true);
        let _ =
            tokio::time::timeout(Duration::from_secs(10), async { while open.join_next().await.is_some() {} }).await;
    }
    Ok(())
}

async fn answer(mut stream: TcpStream, idle: Option<Duration>, mut end: tokio::sync::watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let Some(length) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            let patience = idle.unwrap_or(Duration::from_secs(3600));
            let read = tokio::select! {
                read = tokio::time::timeout(patience, stream.read_buf(&mut buffer)) => read,
                // A connection on which nothing runs ends when the server does.
                _ = end.wait_for(|ending| *ending), if buffer.is_empty() => return,
            };
            match read {
                Ok(Ok(1..)) => continue,
                _ => return,
            }
        };
        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let size: usize =
            line.split(' ').nth(1).and_then(|path| path.rsplit('/').next()?.parse().ok()).unwrap_or_default();
        buffer.drain(..length + 4);
        let ending = *end.borrow();
        let close = if ending { "connection: close\r\n" } else { "" };
        let mut answer = format!("HTTP/1.1 200 OK\r\n{close}content-length: {size}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + size, b'x');
        if stream.write_all(&answer).await.is_err() || ending {
            return;
        }
    }
}

#[derive(Default)]
struct Counted {
    latencies: Histogram,
    sent: u64,
    failures: BTreeMap<String, u64>,
}

async fn call(arguments: &CallArguments) -> Result<()> {
    ensure!(arguments.connections > 0 && arguments.rate > 0.0, "there must be connections and a rate");
    let counted = Arc::new(Mutex::new(Counted::default()));
    let mut tasks = JoinSet::new();
    let mut senders = Vec::new();
    let start = Instant::now() + Duration::from_millis(100);
    let counts_from = start + Duration::from_secs_f64(arguments.warm_up);
    for _ in 0..arguments.connections {
        let (sender, mut due) = mpsc::unbounded_channel::<Instant>();
        senders.push(sender);
        let (to, size, counted) = (arguments.to.clone(), arguments.size, counted.clone());
        tasks.spawn(async move {
            let mut connection = None;
            while let Some(due) = due.recv().await {
                let outcome = ask(&mut connection, &to, size, "").await;
                if let Ok(mut counted) = counted.lock() {
                    counted.sent += 1;
                    match outcome {
                        Ok(_) if due >= counts_from => counted.latencies.add(due.elapsed()),
                        Ok(_) => {}
                        Err(error) => *counted.failures.entry(error.to_string()).or_default() += 1,
                    }
                }
            }
        });
    }
    let total = (arguments.rate * (arguments.seconds + arguments.warm_up)) as u64;
    let rate = arguments.rate;
    let pace = std::thread::spawn(move || {
        let _ = nix::sys::prctl::set_timerslack(1);
        for (number, sender) in (0..total).zip(senders.iter().cycle()) {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send(due).is_err() {
                return;
            }
        }
    });
    while tasks.join_next().await.is_some() {}
    let _ = pace.join();
    let counted = counted.lock().map_err(|_| anyhow::anyhow!("a connection panicked"))?;
    let quantile = |share| rounded(counted.latencies.quantile(share) / 1e3);
    println!(
        "{}",
        json!({
            "requests": counted.sent,
            "failed": counted.failures.values().sum::<u64>(),
            "failures": counted.failures,
            "p50_ms": quantile(0.5), "p90_ms": quantile(0.9), "p99_ms": quantile(0.99),
        })
    );
    Ok(())
}

/// Sends one request, on the connection kept if there is one. Answers with a header of the answer. No request is sent twice:
/// what fails has failed.
async fn ask(connection: &mut Option<TcpStream>, to: &str, size: usize, header: &str) -> Result<String> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(to).await.map_err(|error| anyhow::anyhow!("connect: {error}"))?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    let request = format!("GET /{size} HTTP/1.1\r\nhost: {to}\r\nuser-agent: bench\r\n\r\n");
    let exchange = async {
        stream.write_all(request.as_bytes()).await.map_err(|error| anyhow::anyhow!("send: {error}"))?;
        let mut buffer = Vec::with_capacity(size + 2048);
        loop {
            let count = stream.read_buf(&mut buffer).await.map_err(|error| anyhow::anyhow!("read: {error}"))?;
            ensure!(count > 0, "closed in place of an answer");
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = response.parse(&buffer)? else { continue };
            let find = |name: &str| {
                let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
                found.map(|header| String::from_utf8_lossy(header.value).into_owned())
            };
            let length: usize = find("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
            if buffer.len() < head + length {
                continue;
            }
            let status = response.code.unwrap_or_default();
            ensure!(status == 200, "{status}");
            return Ok((find(header).unwrap_or_default(), find("connection").is_some_and(|word| word == "close")));
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(10), exchange).await;
    let (seen, closes) = outcome.map_err(|_| anyhow::anyhow!("no answer in 10 s"))??;
    if !closes {
        *connection = Some(stream);
    }
    Ok(seen)
}

async fn follow(arguments: &FollowArguments) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    let (mut connection, mut last) = (None, String::new());
    while Instant::now() < end {
        if let Ok(seen) = ask(&mut connection, &arguments.to, 1, &arguments.header).await
            && seen != last
        {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
            println!("{}", json!({"value": seen, "time": now}));
            last = seen;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
