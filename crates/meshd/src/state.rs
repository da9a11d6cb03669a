//! The only writer: applies changes, closes the batch, builds the snapshot, publishes it.

pub mod debounce;

use std::sync::Arc;
use std::time::Instant;

use api::problem::{Problem, Severity};
use plan::{Snapshot, World};
use tokio::sync::{mpsc, watch};

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

/// Runs until the source is gone. Nothing is published before the source has told all it has.
pub async fn run(
    mut world: World,
    mut batches: mpsc::Receiver<Batch>,
    publish: watch::Sender<Option<Published>>,
    metrics: Arc<Metrics>,
) {
    let mut debounce = Debounce::default();
    let mut problems = Arc::new(Vec::new());
    let mut generation = 0;
    loop {
        let verdict = debounce.verdict(Instant::now());
        let batch = match verdict {
            Verdict::Idle => batches.recv().await,
            Verdict::Wait(pause) => match tokio::time::timeout(pause, batches.recv()).await {
                Ok(batch) => batch,
                Err(_) => continue,
            },
            Verdict::Build(changed) => {
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
        let Some(batch) = batch else { return };
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
