//! Keys of those who issue tokens (JWKS), for RequestAuthentications that do not hold them: each source is fetched on its own,
//! tried again with longer and longer pauses while it fails, and refreshed while it does not. What was fetched last stays,
//! also over a restart.

mod fetch;
mod kept;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use plan::Change;
use plan::keys::{KeySource, Known, KnownKeys, usable_keys};
use prometheus::IntCounter;
use rand::RngExt;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::telemetry::Metrics;
use fetch::{Answer, Client};

/// The sources that are wanted, each with the time that an attempt may take.
pub type Wanted = BTreeMap<KeySource, Duration>;

/// Pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Pause after many.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An issuer that says how long its keys are good is asked again after that time, but not more often than this.
const SHORTEST_REFRESH: Duration = Duration::from_secs(60);
/// Where keys are kept, in the state folder.
const FILE: &str = "jwks.json";

/// How keys are fetched.
pub struct Settings {
    /// Longest time between two looks at a source that answers.
    pub refresh: Duration,
    /// Addresses that are not asked.
    pub blocked: Vec<IpNet>,
    /// The state folder.
    pub state: PathBuf,
}

/// Fetches what is wanted.
pub struct Fetcher {
    refresh: Duration,
    client: Arc<Client>,
    file: PathBuf,
    succeeded: IntCounter,
    failed: IntCounter,
}

impl Fetcher {
    /// With what was kept from before, so that tokens are good before the first answer has come.
    pub fn new(settings: Settings, metrics: &Metrics) -> (Fetcher, Known) {
        let file = settings.state.join(FILE);
        let known = kept::read(&file);
        let fetcher = Fetcher {
            refresh: settings.refresh,
            client: Arc::new(Client::new(settings.blocked)),
            file,
            succeeded: metrics.keys_fetched.clone(),
            failed: metrics.keys_not_fetched.clone(),
        };
        (fetcher, known)
    }

    /// Follows what is wanted, for as long as somebody listens.
    pub async fn run(self, mut known: Known, mut wanted: watch::Receiver<Wanted>, changes: mpsc::Sender<Change>) {
        let (tell, mut told) = mpsc::channel(16);
        let mut tasks: BTreeMap<KeySource, (Duration, Task)> = BTreeMap::new();
        loop {
            let now = wanted.borrow_and_update().clone();
            tasks.retain(|source, (time, _)| now.get(source) == Some(time));
            for (source, time) in now {
                tasks.entry(source.clone()).or_insert_with(|| {
                    let before = known.get(&source).cloned().unwrap_or_default();
                    let following = self.of_source(source, time, before, tell.clone());
                    (time, Task(tokio::spawn(following)))
                });
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                Some((source, keys)) = told.recv() => {
                    let others: KnownKeys = known.insert(source.clone(), keys.clone()).unwrap_or_default();
                    if others.jwks != keys.jwks {
                        let sources: BTreeSet<&KeySource> = tasks.keys().collect();
                        if let Err(error) = kept::write(&self.file, &known, &sources) {
                            tracing::warn!("keys of issuers are not kept for the next start: {error:#}");
                        }
                    }
                    if changes.send(Change::Keys(source, keys)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// One source, for ever.
    fn of_source(
        &self,
        source: KeySource,
        time: Duration,
        before: KnownKeys,
        tell: mpsc::Sender<(KeySource, KnownKeys)>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (client, refresh) = (self.client.clone(), self.refresh);
        let (succeeded, failed) = (self.succeeded.clone(), self.failed.clone());
        async move {
            let mut keys = before;
            let mut failures = 0;
            loop {
                let pause = match attempt(&client, &source, time).await {
                    Ok(Answer { body, fresh }) => {
                        succeeded.inc();
                        failures = 0;
                        keys = KnownKeys { jwks: Some(body.into()), failure: String::new() };
                        fresh.map_or(refresh, |fresh| fresh.max(SHORTEST_REFRESH).min(refresh))
                    }
                    Err(error) => {
                        failed.inc();
                        failures += 1;
                        keys.failure = error;
                        let dice = rand::rng().random_range(0.8..1.0);
                        pause_after(failures).mul_f64(dice)
                    }
                };
                if tell.send((source.clone(), keys.clone())).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// A task that ends with this value.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Two attempts with each pause, then it doubles: who is away for a few seconds is not waited for much longer.
fn pause_after(failures: u32) -> Duration {
    let doubled = (failures.saturating_sub(1) / 2).min(10);
    (FIRST_PAUSE * 2_u32.pow(doubled)).min(LONGEST_PAUSE)
}

/// Fetches the keys once.
async fn attempt(client: &Client, source: &KeySource, time: Duration) -> Result<Answer, String> {
    let whole = async {
        let address = match source {
            KeySource::Address(address) => address.clone(),
            KeySource::Issuer(_) => {
                let address = source.address();
                let answer = client.get(&address).await?;
                let settings: Option<Value> = serde_json::from_str(&answer.body).ok();
                let named = settings.as_ref().and_then(|settings| settings["jwks_uri"].as_str());
                named.ok_or_else(|| format!("the answer of {address} names no jwks_uri"))?.to_owned()
            }
        };
        let answer = client.get(&address).await?;
        match usable_keys(&answer.body) {
            None => Err(format!("the answer of {address} is no key set")),
            Some(0) => Err(format!("the key set of {address} has no key that tokens can be checked with")),
            Some(_) => Ok(answer),
        }
    };
    let late = |_| Err(format!("{} did not answer within {}s", source.address(), time.as_secs_f64()));
    tokio::time::timeout(time, whole).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses: Vec<u64> = (1..=12).map(|failures| pause_after(failures).as_secs()).collect();
        assert_eq!(pauses, [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 30, 30]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }
}
