//! Istio's standard metrics and the proxy's own counters. Every worker has counters of its own, written by it alone; a scrape
//! adds them up. Handles are resolved when a combination of labels is first met.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Upper bounds of the histograms' buckets, Envoy's default (milliseconds or bytes).
pub const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Series that one worker keeps at most: beyond it, new combinations are counted under `overflow`.
const MOST_SERIES: usize = 20_000;

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. One writer only: a load and a store cost less than a locked addition.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Takes away, for gauges.
    pub fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
    }

    /// The value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram with Envoy's buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    /// Sum in thousandths.
    sum: Counter,
}

impl Histogram {
    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let place = BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[place].add(1);
        self.sum.add((value * 1000.0) as u64);
    }
}

/// Labels of one series, in the order of printing, as `name="value",…`.
pub type Labels = Arc<str>;

/// The series of one combination of request labels.
#[derive(Debug, Default)]
pub struct RequestSeries {
    /// `istio_requests_total`.
    pub requests: Counter,
    /// `istio_request_duration_milliseconds`.
    pub duration: Histogram,
    /// `istio_request_bytes`.
    pub request_bytes: Histogram,
    /// `istio_response_bytes`.
    pub response_bytes: Histogram,
    /// `istio_request_messages_total`, for gRPC.
    pub request_messages: Counter,
    /// `istio_response_messages_total`, for gRPC.
    pub response_messages: Counter,
}

/// The series of one combination of connection labels.
#[derive(Debug, Default)]
pub struct TcpSeries {
    /// `istio_tcp_connections_opened_total`.
    pub opened: Counter,
    /// `istio_tcp_connections_closed_total`.
    pub closed: Counter,
    /// `istio_tcp_sent_bytes_total`.
    pub sent: Counter,
    /// `istio_tcp_received_bytes_total`.
    pub received: Counter,
}

/// Counters of one upstream cluster, under Envoy's names.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ClusterSeries {
    pub requests: Counter,
    pub requests_active: Counter,
    pub retries: Counter,
    pub timeouts: Counter,
    pub connections: Counter,
    pub connections_active: Counter,
    pub connect_failures: Counter,
    pub pending_overflow: Counter,
    pub ejections: Counter,
    /// Answers by hundreds of their status: 1xx at 0.
    pub by_class: [Counter; 5],
}

/// Counters of one worker as a whole.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ProcessSeries {
    pub connections: Counter,
    pub connections_active: Counter,
    pub requests: Counter,
    pub requests_active: Counter,
    pub no_filter_chain: Counter,
    pub tls_errors: Counter,
    pub bad_requests: Counter,
    pub server_first: Counter,
    pub connections_resting: Counter,
    pub http_policies: PolicySeries,
    pub tcp_policies: PolicySeries,
}

/// How often policies let pass and refused, and would have if they were enforced (Envoy's RBAC counters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Passed.
    pub allowed: u64,
    /// Refused.
    pub denied: u64,
    /// Would have passed.
    pub shadow_allowed: u64,
    /// Would have been refused.
    pub shadow_denied: u64,
    /// Of what somebody else is asked about.
    pub asked: Asked,
}

/// What somebody else said who was asked (Envoy's `ext_authz` counters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// It passes.
    pub ok: u64,
    /// It is refused.
    pub denied: u64,
    /// There was no answer that can be used.
    pub error: u64,
    /// There was none, and it passes all the same.
    pub failure_mode_allowed: u64,
    /// Nobody was to be asked.
    pub disabled: u64,
}

/// What policies decided (Envoy's `rbac` counters).
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct PolicySeries {
    pub allowed: Counter,
    pub denied: Counter,
    pub shadow_allowed: Counter,
    pub shadow_denied: Counter,
    pub asked_ok: Counter,
    pub asked_denied: Counter,
    pub asked_error: Counter,
    pub asked_failure_mode_allowed: Counter,
    pub asked_disabled: Counter,
}

impl PolicySeries {
    /// Adds what was decided of one request or connection.
    pub fn add(&self, decided: Decided) {
        let rows = [
            (&self.allowed, decided.allowed),
            (&self.denied, decided.denied),
            (&self.shadow_allowed, decided.shadow_allowed),
            (&self.shadow_denied, decided.shadow_denied),
            (&self.asked_ok, decided.asked.ok),
            (&self.asked_denied, decided.asked.denied),
            (&self.asked_error, decided.asked.error),
            (&self.asked_failure_mode_allowed, decided.asked.failure_mode_allowed),
            (&self.asked_disabled, decided.asked.disabled),
        ];
        for (counter, count) in rows.into_iter().filter(|(_, count)| *count > 0) {
            counter.add(count);
        }
    }
}

/// One worker's part.
#[derive(Debug, Default)]
pub struct Shard {
    requests: Mutex<HashMap<Labels, Arc<RequestSeries>>>,
    connections: Mutex<HashMap<Labels, Arc<TcpSeries>>>,
    clusters: Mutex<HashMap<Arc<str>, Arc<ClusterSeries>>>,
    /// The worker's own counters.
    pub process: ProcessSeries,
}

impl Shard {
    /// The series of these labels.
    pub fn request(&self, labels: &str) -> Arc<RequestSeries> {
        entry(&self.requests, labels)
    }

    /// The series of these labels.
    pub fn tcp(&self, labels: &str) -> Arc<TcpSeries> {
        entry(&self.connections, labels)
    }

    /// The counters of a cluster.
    pub fn cluster(&self, name: &str) -> Arc<ClusterSeries> {
        entry(&self.clusters, name)
    }
}

fn entry<T: Default>(map: &Mutex<HashMap<Arc<str>, Arc<T>>>, labels: &str) -> Arc<T> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(series) = map.get(labels) {
        return Arc::clone(series);
    }
    let labels = if map.len() >= MOST_SERIES { "overflow=\"true\"" } else { labels };
    Arc::clone(map.entry(labels.into()).or_default())
}

/// All shards of one proxy.
#[derive(Debug)]
pub struct Metrics {
    /// One for each worker.
    pub shards: Vec<Arc<Shard>>,
}

impl Metrics {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers).map(|_| Arc::default()).collect() }
    }

    /// A sum over the workers' own counters.
    pub fn total(&self, of: impl Fn(&ProcessSeries) -> &Counter) -> u64 {
        self.shards.iter().map(|shard| of(&shard.process).value()).fold(0, u64::wrapping_add)
    }

    /// The counters of a cluster, added up.
    pub fn cluster_total(&self, name: &str, of: impl Fn(&ClusterSeries) -> &Counter) -> u64 {
        self.shards
            .iter()
            .filter_map(|shard| {
                shard.clusters.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(|series| of(series).value())
            })
            .fold(0, u64::wrapping_add)
    }

    /// Prometheus text of everything.
    pub fn prometheus(&self, version: &str) -> String {
        let mut out = String::new();
        let requests = self.gather(|shard| &shard.requests);
        family(&mut out, "istio_requests_total", "counter");
        each(&mut out, &requests, "istio_requests_total", |series| &series.requests);
        for (name, of) in [("istio_request_messages_total", true), ("istio_response_messages_total", false)] {
            family(&mut out, name, "counter");
            for (labels, parts) in &requests {
                let value: u64 = parts
                    .iter()
                    .map(|part| if of { part.request_messages.value() } else { part.response_messages.value() })
                    .sum();
                if value > 0 {
                    let _ = writeln!(out, "{name}{{{labels}}} {value}");
                }
            }
        }
        histograms(&mut out, &requests, "istio_request_duration_milliseconds", |series| &series.duration);
        histograms(&mut out, &requests, "istio_request_bytes", |series| &series.request_bytes);
        histograms(&mut out, &requests, "istio_response_bytes", |series| &series.response_bytes);
        let tcp = self.gather(|shard| &shard.connections);
        type Of = fn(&TcpSeries) -> &Counter;
        let counters: [(&str, Of); 4] = [
            ("istio_tcp_connections_opened_total", |series| &series.opened),
            ("istio_tcp_connections_closed_total", |series| &series.closed),
            ("istio_tcp_sent_bytes_total", |series| &series.sent),
            ("istio_tcp_received_bytes_total", |series| &series.received),
        ];
        for (name, of) in counters {
            family(&mut out, name, "counter");
            each(&mut out, &tcp, name, of);
        }
        let _ = writeln!(out, "# TYPE istio_build gauge\nistio_build{{component=\"proxy\",tag=\"{version}\"}} 1");
        for (name, value) in self.plain() {
            let _ = writeln!(out, "envoy_{} {value}", name.replace(['.', '|', '-', ':'], "_"));
        }
        for (cluster, counters) in self.clusters() {
            for (name, value) in counters {
                let _ = writeln!(out, "envoy_cluster_{name}{{cluster_name=\"{}\"}} {value}", escaped(&cluster));
            }
        }
        out
    }

    /// The counters that `/stats` shows, under Envoy's dotted names.
    pub fn plain(&self) -> Vec<(String, u64)> {
        let mut rows = vec![
            ("server.total_connections".to_owned(), self.total(|process| &process.connections_active)),
            ("listener.downstream_cx_total".to_owned(), self.total(|process| &process.connections)),
            ("listener.downstream_cx_active".to_owned(), self.total(|process| &process.connections_active)),
            ("listener.downstream_cx_resting".to_owned(), self.total(|process| &process.connections_resting)),
            ("listener.no_filter_chain_match".to_owned(), self.total(|process| &process.no_filter_chain)),
            ("listener.ssl.connection_error".to_owned(), self.total(|process| &process.tls_errors)),
            ("listener.server_first".to_owned(), self.total(|process| &process.server_first)),
            ("http.downstream_rq_total".to_owned(), self.total(|process| &process.requests)),
            ("http.downstream_rq_active".to_owned(), self.total(|process| &process.requests_active)),
            ("http.downstream_rq_4xx_codec".to_owned(), self.total(|process| &process.bad_requests)),
        ];
        type Of = fn(&ProcessSeries) -> &PolicySeries;
        let policies: [(&str, Of); 2] =
            [("http", |process| &process.http_policies), ("tcp", |process| &process.tcp_policies)];
        for (protocol, of) in policies {
            let row = |name: &str, total: u64| (format!("{protocol}.rbac.{name}"), total);
            rows.extend([
                row("allowed", self.total(|process| &of(process).allowed)),
                row("denied", self.total(|process| &of(process).denied)),
                row("shadow_allowed", self.total(|process| &of(process).shadow_allowed)),
                row("shadow_denied", self.total(|process| &of(process).shadow_denied)),
            ]);
            let row = |name: &str, total: u64| (format!("{protocol}.ext_authz.{name}"), total);
            rows.extend([
                row("ok", self.total(|process| &of(process).asked_ok)),
                row("denied", self.total(|process| &of(process).asked_denied)),
                row("error", self.total(|process| &of(process).asked_error)),
                row("failure_mode_allowed", self.total(|process| &of(process).asked_failure_mode_allowed)),
                row("disabled", self.total(|process| &of(process).asked_disabled)),
            ]);
        }
        rows.sort();
        rows
    }

    /// Counters of every cluster that was used.
    pub fn clusters(&self) -> BTreeMap<Arc<str>, Vec<(&'static str, u64)>> {
        type Of = fn(&ClusterSeries) -> &Counter;
        let columns: [(&'static str, Of); 14] = [
            ("upstream_rq_total", |series| &series.requests),
            ("upstream_rq_active", |series| &series.requests_active),
            ("upstream_rq_retry", |series| &series.retries),
            ("upstream_rq_timeout", |series| &series.timeouts),
            ("upstream_cx_total", |series| &series.connections),
            ("upstream_cx_active", |series| &series.connections_active),
            ("upstream_cx_connect_fail", |series| &series.connect_failures),
            ("upstream_rq_pending_overflow", |series| &series.pending_overflow),
            ("outlier_detection_ejections_enforced_total", |series| &series.ejections),
            ("upstream_rq_1xx", |series| &series.by_class[0]),
            ("upstream_rq_2xx", |series| &series.by_class[1]),
            ("upstream_rq_3xx", |series| &series.by_class[2]),
            ("upstream_rq_4xx", |series| &series.by_class[3]),
            ("upstream_rq_5xx", |series| &series.by_class[4]),
        ];
        self.gather(|shard| &shard.clusters)
            .into_iter()
            .map(|(name, parts)| {
                let row = columns
                    .iter()
                    .map(|(column, of)| (*column, parts.iter().map(|part| of(part).value()).fold(0, u64::wrapping_add)))
                    .collect();
                (name, row)
            })
            .collect()
    }

    fn gather<T>(&self, of: impl Fn(&Shard) -> &Mutex<HashMap<Arc<str>, Arc<T>>>) -> BTreeMap<Arc<str>, Vec<Arc<T>>> {
        let mut all: BTreeMap<Arc<str>, Vec<Arc<T>>> = BTreeMap::new();
        for shard in &self.shards {
            // Only handles are copied under the lock: a worker that meets new labels does not wait for the printing.
            let map = of(shard).lock().unwrap_or_else(PoisonError::into_inner);
            for (labels, series) in map.iter() {
                all.entry(Arc::clone(labels)).or_default().push(Arc::clone(series));
            }
        }
        all
    }
}

fn family(out: &mut String, name: &str, kind: &str) {
    let _ = writeln!(out, "# TYPE {name} {kind}");
}

fn each<T>(out: &mut String, all: &BTreeMap<Arc<str>, Vec<Arc<T>>>, name: &str, of: fn(&T) -> &Counter) {
    for (labels, parts) in all {
        let value: u64 = parts.iter().map(|part| of(part).value()).sum();
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
}

fn histograms<T>(out: &mut String, all: &BTreeMap<Arc<str>, Vec<Arc<T>>>, name: &str, of: fn(&T) -> &Histogram) {
    family(out, name, "histogram");
    for (labels, parts) in all {
        let mut count = 0_u64;
        for place in 0..=BOUNDS.len() {
            count += parts.iter().map(|part| of(part).buckets[place].value()).sum::<u64>();
            let _ = match BOUNDS.get(place) {
                Some(bound) => writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}"),
                None => writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}"),
            };
        }
        let sum: u64 = parts.iter().map(|part| of(part).sum.value()).sum();
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}", sum as f64 / 1000.0);
    }
}

/// A label's value with backslash, quote and line end escaped (Prometheus text format).
pub fn escaped(value: &str) -> std::borrow::Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
    } else {
        value.into()
    }
}

/// Prints labels in the form that series are kept under.
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(64 * pairs.len() / 2);
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push(',');
        }
        let _ = write!(out, "{name}=\"{}\"", escaped(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_added_up() {
        let metrics = Metrics::new(2);
        for shard in &metrics.shards {
            let series = shard.request(&labels(&[("a", "x\"y")]));
            series.requests.add(2);
            series.duration.observe(3.0);
            series.duration.observe(1e9);
            shard.cluster("outbound|80||a").by_class[1].add(1);
        }
        let text = metrics.prometheus("1");
        for line in [
            "istio_requests_total{a=\"x\\\"y\"} 4",
            "istio_request_duration_milliseconds_bucket{a=\"x\\\"y\",le=\"1\"} 0",
            "istio_request_duration_milliseconds_bucket{a=\"x\\\"y\",le=\"5\"} 2",
            "istio_request_duration_milliseconds_bucket{a=\"x\\\"y\",le=\"+Inf\"} 4",
            "istio_request_duration_milliseconds_count{a=\"x\\\"y\"} 4",
            "envoy_cluster_upstream_rq_2xx{cluster_name=\"outbound|80||a\"} 2",
        ] {
            assert!(text.lines().any(|printed| printed == line), "{line} is not in\n{text}");
        }
    }
}
