//! The only writer: applies changes, closes the batch, builds the snapshot, publishes it.

pub mod debounce;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::problem::{Problem, Severity};
use plan::{Change, Snapshot, World};
use tokio::sync::{mpsc, watch};

use crate::jwks::Wanted;
use crate::source::Batch;
use crate::telemetry::Metrics;
use debounce::{Debounce, Verdict};

/// The configuration at one moment, as everybody reads it.
#[derive(Clone)]
pub struct Published {
    /// What is planned from.
    pub snapshot: Arc<Snapshot>,
    /// What the source could not read.
    pub source_problems: Arc<Vec<Problem>>,
    /// The objects it was built from.
    pub world: Arc<World>,
    /// Grows by one with each publication.
    pub generation: u64,
    /// When the first change that it carries was seen.
    pub changed: Instant,
}

impl Published {
    /// All problems: of reading first, then of meaning.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.source_problems.iter().chain(self.snapshot.problems())
    }
}

/// The first configuration waits so long for keys of tokens: without them it would refuse all who have one, while proxies that
/// are connected elsewhere, or were before, still let them in.
const PATIENCE_WITH_KEYS: Duration = Duration::from_secs(3);

/// The keys that tokens are checked with: what is wanted goes out, what is known comes in. Mesh-wide settings come the same way.
pub struct Keys {
    /// What is wanted.
    pub wanted: watch::Sender<Wanted>,
    /// What became known.
    pub known: mpsc::Receiver<Change>,
}

impl Keys {
    fn want(&self, world: &World) {
        let now: Wanted = world.wanted_keys().into_iter().map(|(source, time)| (source, time.0)).collect();
        self.wanted.send_if_modified(|before| {
            let other = *before != now;
            *before = now;
            other
        });
    }

    /// Waits until each source has been tried once, but not for long.
    async fn first(&mut self, world: &mut World) {
        self.want(world);
        let until = tokio::time::Instant::now() + PATIENCE_WITH_KEYS;
        while world.wanted_keys().keys().any(|source| !world.known_keys().contains_key(source)) {
            match tokio::time::timeout_at(until, self.known.recv()).await {
                Ok(Some(change)) => drop(world.apply(change)),
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// What changes the world.
enum Heard {
    Batch(Option<Batch>),
    Keys(Change),
}

/// Runs until the source is gone. Nothing is published before the source has told all it has.
pub async fn run(
    mut world: World,
    mut batches: mpsc::Receiver<Batch>,
    mut keys: Keys,
    publish: watch::Sender<Option<Published>>,
    metrics: Arc<Metrics>,
) {
    let mut debounce = Debounce::default();
    let mut problems = Arc::new(Vec::new());
    let mut generation = 0;
    loop {
        let verdict = debounce.verdict(Instant::now());
        let heard = match verdict {
            Verdict::Idle => hear(&mut batches, &mut keys).await,
            Verdict::Wait(pause) => match tokio::time::timeout(pause, hear(&mut batches, &mut keys)).await {
                Ok(heard) => heard,
                Err(_) => continue,
            },
            Verdict::Build(changed) => {
                match generation {
                    0 => keys.first(&mut world).await,
                    _ => keys.want(&world),
                }
                generation += 1;
                let previous = publish.borrow().as_ref().map(|published| published.snapshot.clone());
                let started = Instant::now();
                let snapshot = tokio::task::block_in_place(|| Snapshot::build(&world, previous.as_ref()));
                metrics.snapshot_build.observe(started.elapsed().as_secs_f64());
                let published = Published {
                    snapshot,
                    source_problems: problems.clone(),
                    world: Arc::new(world.clone()),
                    generation,
                    changed,
                };
                tell(&published, publish.borrow().as_ref(), &metrics);
                publish.send_replace(Some(published));
                debounce = Debounce::default();
                continue;
            }
        };
        let batch = match heard {
            Heard::Batch(Some(batch)) => batch,
            Heard::Batch(None) => return,
            Heard::Keys(change) => {
                let cause = if matches!(change, Change::MeshConfig { .. }) { "config" } else { "jwks" };
                if world.apply(change) {
                    metrics.triggers.with_label_values(&[cause]).inc();
                    debounce.arrived(Instant::now());
                }
                continue;
            }
        };
        metrics.triggers.with_label_values(&["config"]).inc();
        let mut altered = generation == 0;
        for change in batch.changes {
            altered |= world.apply(change);
        }
        if *problems != batch.problems {
            problems = Arc::new(batch.problems);
            altered = true;
        }
        if altered {
            debounce.arrived(Instant::now());
        }
    }
}

async fn hear(batches: &mut mpsc::Receiver<Batch>, keys: &mut Keys) -> Heard {
    tokio::select! {
        batch = batches.recv() => Heard::Batch(batch),
        Some(change) = keys.known.recv() => Heard::Keys(change),
    }
}

/// Logs each problem once, when it appears, and counts.
fn tell(now: &Published, before: Option<&Published>, metrics: &Metrics) {
    let known: std::collections::HashSet<&Problem> = before.into_iter().flat_map(Published::problems).collect();
    for problem in now.problems().filter(|problem| !known.contains(problem)) {
        match problem.severity {
            Severity::Info => tracing::debug!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
            Severity::Error => tracing::error!("{problem}"),
        }
    }
    for (severity, word) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
        let count = now.problems().filter(|problem| problem.severity == severity).count();
        metrics.rejected_configs.with_label_values(&[word]).set(count as i64);
    }
    let of_kind = |kind| now.world.objects().filter(|object| object.kind == kind).count() as i64;
    metrics.services.set(of_kind(api::object::Kind::Service) + of_kind(api::object::Kind::ServiceEntry));
    metrics.virtual_services.set(of_kind(api::object::Kind::VirtualService));
}
