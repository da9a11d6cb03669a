//! Latencies, counted in buckets whose width is below one percent of their value.

use std::time::Duration;

/// Buckets for each power of two.
const STEPS: u64 = 128;

/// Counts of latencies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn add(&mut self, latency: Duration) {
        let bucket = bucket(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.total += 1;
    }

    /// How many were counted.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The latency, in microseconds, that this share of all (0 to 1) does not exceed. 0 if none was counted.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(bucket as u64) / 1e3;
            }
        }
        0.0
    }
}

/// Values below STEPS have a bucket each; from there on each power of two has STEPS buckets.
fn bucket(nanoseconds: u64) -> usize {
    let shift = (64 - nanoseconds.leading_zeros() as u64).saturating_sub(8);
    (shift * STEPS + (nanoseconds >> shift)) as usize
}

fn middle(bucket: u64) -> f64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    let low = (bucket - shift * STEPS) << shift;
    low as f64 + ((1_u64 << shift) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_within_a_percent() {
        for value in (0..5_000).chain([1 << 20, 123_456_789, 1 << 40]) {
            let back = middle(bucket(value) as u64);
            assert!((back - value as f64).abs() <= value as f64 / 100.0, "{value} comes back as {back}");
        }
    }

    #[test]
    fn buckets_grow_with_values() {
        let buckets: Vec<usize> = (0..100_000).map(bucket).collect();
        assert!(buckets.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1));
    }

    #[test]
    fn quantiles_are_ranks() {
        let mut all = Histogram::default();
        (1..=1000).rev().for_each(|value| all.add(Duration::from_micros(value)));
        assert_eq!(all.total(), 1000);
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = all.quantile(share);
            assert!((found - expected).abs() < expected / 100.0, "{share}: {found}");
        }
    }
}
