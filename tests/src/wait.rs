//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// After so long a condition that has not come true is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until the answer is there. Panics with what was asked last if it does not come.
pub async fn until<T, E: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(reason) => assert!(Instant::now() < deadline, "{what} has not come after {PATIENCE:?}: {reason:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
