//! Istio's metrics of DNS (`pkg/dns/client/monitoring.go`).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of durations, in seconds.
const BUCKETS: [f64; 6] = [0.001, 0.005, 0.01, 0.1, 1.0, 5.0];

/// Counters.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Questions of the workload.
    pub(super) requests: AtomicU64,
    /// Questions sent to name servers.
    pub(super) upstream: AtomicU64,
    /// Of these, the ones without an answer.
    pub(super) failures: AtomicU64,
    /// Of the answered ones, those within each bucket and no smaller one; the last is for all others.
    took: [AtomicU64; BUCKETS.len() + 1],
    microseconds: AtomicU64,
}

impl Metrics {
    /// A name server has answered.
    pub(super) fn took(&self, time: Duration) {
        let place = BUCKETS.iter().position(|most| time.as_secs_f64() <= *most).unwrap_or(BUCKETS.len());
        self.took[place].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// As Prometheus reads them.
    pub(super) fn prometheus(&self) -> String {
        let mut text = String::new();
        for (name, count) in
            [("requests", &self.requests), ("upstream_requests", &self.upstream), ("upstream_failures", &self.failures)]
        {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "# TYPE istio_agent_dns_{name}_total counter\nistio_agent_dns_{name}_total {count}");
        }
        let name = "istio_agent_dns_upstream_request_duration_seconds";
        let _ = writeln!(text, "# TYPE {name} histogram");
        let mut sum = 0;
        for (place, count) in self.took.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            let bound = BUCKETS.get(place).map_or("+Inf".to_owned(), ToString::to_string);
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let seconds = Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(text, "{name}_sum {seconds}\n{name}_count {sum}");
        text
    }
}
