//! Requests of the demo: many of them, counted by what came back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper::Method;

use crate::fetch::{Answer, Connection};

/// What came back, counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Good answers, by the version that served them.
    pub(super) versions: BTreeMap<String, usize>,
    /// Other answers and broken connections, by what they were.
    pub(super) failures: BTreeMap<String, usize>,
}

impl Tally {
    /// All requests.
    pub(super) fn total(&self) -> usize {
        self.versions.values().sum::<usize>() + self.failed()
    }

    /// Requests without a good answer.
    pub(super) fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Good answers of one version.
    pub(super) fn of(&self, version: &str) -> usize {
        self.versions.get(version).copied().unwrap_or_default()
    }

    fn count(&mut self, outcome: &Result<Answer>) -> Option<String> {
        let failure = match outcome {
            Ok(answer) if answer.status == 200 => {
                let version = answer.json()["served"]["version"].as_str().unwrap_or("unknown").to_owned();
                *self.versions.entry(version.clone()).or_default() += 1;
                return Some(version);
            }
            Ok(answer) => format!("{} {}", answer.status, answer.text().trim()),
            Err(error) => format!("{error:#}"),
        };
        *self.failures.entry(failure).or_default() += 1;
        None
    }

    /// What came back, for people.
    pub(super) fn told(&self) -> String {
        let good = self.versions.iter().map(|(version, count)| format!("{version}: {count}"));
        let bad = self.failures.iter().map(|(failure, count)| format!("{count} failed ({failure})"));
        good.chain(bad).collect::<Vec<_>>().join(", ")
    }
}

/// Sends `GET target` so many times over one connection to `address`.
pub(super) async fn burst(address: &str, target: &str, headers: &[(&str, &str)], times: usize) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut connection = Connection::open(address).await?;
    for _ in 0..times {
        let outcome = connection.send(Method::GET, target, headers, None).await;
        tally.count(&outcome);
        if outcome.is_err() {
            connection = Connection::open(address).await?;
        }
    }
    Ok(tally)
}

/// Requests that run until they are stopped.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(Tally, Option<Instant>)>,
}

impl Stream {
    /// Starts sending `GET target` to `address`; notes when `awaited` served for the first time in a row of ten.
    pub(super) fn start(address: String, target: String, awaited: &'static str) -> Stream {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let task = tokio::spawn(async move {
            let (mut tally, mut row, mut since) = (Tally::default(), 0, None);
            let mut connection = None;
            while !flag.load(Ordering::Relaxed) {
                let outcome = match &mut connection {
                    Some(open) => Connection::send(open, Method::GET, &target, &[], None).await,
                    None => match Connection::open(&address).await {
                        Ok(open) => {
                            connection = Some(open);
                            continue;
                        }
                        Err(error) => Err(error),
                    },
                };
                if outcome.is_err() {
                    connection = None;
                }
                if tally.count(&outcome).as_deref() == Some(awaited) {
                    since = if row == 0 { Some(Instant::now()) } else { since };
                    row += 1;
                } else {
                    (row, since) = (0, None);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (tally, since.filter(|_| row >= 10))
        });
        Stream { stop, task }
    }

    /// Stops it. Answers what came back, and since when only the awaited version has served.
    pub(super) async fn stop(self) -> Result<(Tally, Option<Instant>)> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}
