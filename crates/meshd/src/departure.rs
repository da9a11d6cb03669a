//! How the control plane leaves: nobody new is sent here first, then those who are here go elsewhere, then it ends. What is told
//! to leave is still called for a while, by whoever has not heard of it yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Streams end after about this long, so that replicas that were added get their share.
const STREAM_AGE: Duration = Duration::from_secs(30 * 60);
/// Connections take no new stream after this long: less than any stream's age, since who loses a stream may well open the next
/// on the connection that it has.
pub const CONNECTION_AGE: Duration = Duration::from_secs(20 * 60);

/// The steps of leaving, as all parts see them.
#[derive(Clone, Debug, Default)]
pub struct Departure {
    leaving: CancellationToken,
    moving: CancellationToken,
    /// In this time all streams are ended, one after the other.
    spread: Duration,
    turns: Arc<AtomicU64>,
}

impl Departure {
    /// Leaving takes this long. For the larger part of it nothing ends: the endpoint's removal has to get to all nodes. In the
    /// rest those who are connected are sent away. Without time all of it is at once.
    pub fn within(whole: Duration) -> Departure {
        Departure { spread: whole.mul_f64(0.4), ..Departure::default() }
    }

    /// Goes through all steps. What is to end last is ended when this is done.
    pub async fn run(&self, whole: Duration) {
        self.leaving.cancel();
        tokio::time::sleep(whole.saturating_sub(self.spread)).await;
        self.moving.cancel();
        tokio::time::sleep(self.spread).await;
    }

    /// Whether new callers should go elsewhere.
    pub fn has_begun(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Cancelled when new callers should go elsewhere: what only one replica does is left to the others.
    pub fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Cancelled when connections should take nothing new.
    pub fn moving(&self) -> &CancellationToken {
        &self.moving
    }

    /// Completes when it is one stream's turn to end, and says why. Turns are spread evenly, so that the other replicas do not
    /// get all at once.
    pub async fn turn(&self) -> &'static str {
        let place = place(self.turns.fetch_add(1, Ordering::Relaxed));
        tokio::select! {
            () = self.moving.cancelled() => {
                tokio::time::sleep(self.spread.mul_f64(place)).await;
                "this replica of the control plane is leaving"
            }
            () = tokio::time::sleep(STREAM_AGE.mul_f64(0.75 + place / 2.0)) => {
                "this stream is old: another replica of the control plane may have more time"
            }
        }
    }
}

/// Where in the whole a turn is: multiples of the golden ratio, without what is before the point, lie evenly however many there
/// are.
fn place(turn: u64) -> f64 {
    (turn as f64 * 0.618_033_988_75).fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spread_evenly() {
        for count in [10, 100, 1_000] {
            let mut tenths = [0; 10];
            (0..count).for_each(|turn| tenths[(place(turn) * 10.0) as usize] += 1);
            let even = count / 10;
            assert!(
                tenths.iter().all(|found| (even - even / 2 - 1..=even + even / 2 + 1).contains(found)),
                "{tenths:?}"
            );
        }
    }

    #[tokio::test]
    async fn streams_end_after_new_callers_are_sent_elsewhere() {
        let whole = Duration::from_millis(50);
        let departure = Departure::within(whole);
        let stream = tokio::spawn({
            let departure = departure.clone();
            async move {
                departure.turn().await;
                (departure.has_begun(), departure.moving().is_cancelled())
            }
        });
        assert!(!departure.has_begun() && !stream.is_finished());
        departure.run(whole).await;
        assert_eq!(stream.await.unwrap(), (true, true));
    }
}
