//! Ending in order: stop accepting, tell clients, let running work end, and leave as soon as nothing is left.

use std::time::{Duration, Instant};

/// How far the proxy is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is not.
    #[default]
    Serving,
    /// Its end is known: clients are told to go elsewhere, and all that still comes is served.
    Leaving,
    /// It ends when running work has.
    Ending,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing was left.
    Idle,
    /// The time was over and so many connections were cut.
    Cut(u64),
}

/// Waits until nothing is left or the time is over.
pub async fn until_idle(bound: Duration, left: impl Fn() -> u64) -> Drained {
    let end = Instant::now() + bound;
    loop {
        match left() {
            0 => return Drained::Idle,
            some if Instant::now() >= end => return Drained::Cut(some),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
