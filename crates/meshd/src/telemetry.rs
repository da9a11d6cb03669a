//! The control plane's metrics, under Istio's names, and its log.

pub mod scopes;

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Instant;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use scopes::Scopes;

/// The release of Istio whose API and names we keep to.
pub const ISTIO_VERSION: &str = "1.32.0";

/// Handles of all metrics. Label sets have one free label at most.
pub struct Metrics {
    registry: Registry,
    started: Instant,
    uptime: prometheus::Gauge,
    /// Connected proxies.
    pub connected: IntGaugeVec,
    /// Responses sent, by kind.
    pub pushes: IntCounterVec,
    /// Time from a change to the response that carries it, seconds.
    pub convergence: Histogram,
    /// Time to build a snapshot, seconds.
    pub snapshot_build: Histogram,
    /// Bytes of a response, by kind.
    pub config_size: HistogramVec,
    /// Refused resources, by kind.
    pub rejects: IntCounterVec,
    /// Acknowledgements of old responses.
    pub expired_nonces: IntCounterVec,
    /// What made snapshots be built.
    pub triggers: IntCounterVec,
    /// Services known.
    pub services: IntGauge,
    /// VirtualServices known.
    pub virtual_services: IntGauge,
    /// Objects, or parts of them, that are not in effect.
    pub rejected_configs: IntGaugeVec,
    /// Signing requests.
    pub csr_count: IntCounter,
    /// Signing requests of callers who did not prove themselves.
    pub authentication_failures: IntCounter,
    /// Signing requests that could not be signed.
    pub sign_errors: IntCounter,
    /// Key sets of issuers of tokens that were fetched.
    pub keys_fetched: IntCounter,
    /// Key sets of issuers of tokens that could not be fetched.
    pub keys_not_fetched: IntCounter,
    /// Certificates signed.
    pub issued: IntCounter,
    /// End of the root's life, seconds since 1970.
    pub root_expiry: prometheus::Gauge,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// Two have one name: a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        macro_rules! register {
            ($metric:expr) => {{
                let metric = $metric?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        let seconds = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let info = register!(IntGaugeVec::new(Opts::new("pilot_info", "Version of the control plane."), &["version"]));
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let build =
            register!(GaugeVec::new(Opts::new("istio_build", "Component and its version."), &["component", "tag"]));
        build.with_label_values(&["pilot", env!("CARGO_PKG_VERSION")]).set(1.0);
        Ok(Self {
            started: Instant::now(),
            uptime: register!(prometheus::Gauge::new("istiod_uptime_seconds", "Time since the start.")),
            connected: register!(IntGaugeVec::new(Opts::new("pilot_xds", "Connected xDS clients."), &["version"])),
            pushes: register!(IntCounterVec::new(Opts::new("pilot_xds_pushes", "Responses sent."), &["type"])),
            convergence: register!(seconds(
                "pilot_proxy_convergence_time",
                "Delay from a change to the response that carries it.",
                &[0.001, 0.003, 0.01, 0.03, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0]
            )),
            snapshot_build: register!(seconds(
                "pilot_pushcontext_init_seconds",
                "Time to build a snapshot of the configuration.",
                &[0.001, 0.003, 0.01, 0.03, 0.1, 0.5, 1.0, 3.0, 5.0]
            )),
            config_size: register!(HistogramVec::new(
                HistogramOpts::new("pilot_xds_config_size_bytes", "Bytes of a response.")
                    .buckets(vec![1.0, 1e4, 1e6, 4e6, 1e7, 4e7]),
                &["type"]
            )),
            rejects: register!(IntCounterVec::new(
                Opts::new("pilot_total_xds_rejects", "Responses refused by proxies."),
                &["type"]
            )),
            expired_nonces: register!(IntCounterVec::new(
                Opts::new("pilot_xds_expired_nonce", "Acknowledgements of old responses."),
                &["type"]
            )),
            triggers: register!(IntCounterVec::new(
                Opts::new("pilot_push_triggers", "What made a push necessary."),
                &["type"]
            )),
            services: register!(IntGauge::new("pilot_services", "Services known.")),
            virtual_services: register!(IntGauge::new("pilot_virt_services", "VirtualServices known.")),
            rejected_configs: register!(IntGaugeVec::new(
                Opts::new(
                    "pilot_total_rejected_configs",
                    "Objects of which something is not in effect, by severity of the problem."
                ),
                &["type"]
            )),
            csr_count: register!(IntCounter::new("citadel_server_csr_count", "Signing requests.")),
            authentication_failures: register!(IntCounter::new(
                "citadel_server_authentication_failure_count",
                "Signing requests of callers who did not prove themselves."
            )),
            sign_errors: register!(IntCounter::new(
                "citadel_server_csr_sign_err_count",
                "Signing requests that could not be signed."
            )),
            keys_fetched: register!(IntCounter::new(
                "pilot_jwks_resolver_network_fetch_success_total",
                "Key sets of issuers of tokens that were fetched."
            )),
            keys_not_fetched: register!(IntCounter::new(
                "pilot_jwks_resolver_network_fetch_fail_total",
                "Key sets of issuers of tokens that could not be fetched."
            )),
            issued: register!(IntCounter::new("citadel_server_success_cert_issuance_count", "Certificates signed.")),
            root_expiry: register!(prometheus::Gauge::new(
                "citadel_server_root_cert_expiry_timestamp",
                "End of the root's life, seconds since 1970."
            )),
            registry,
        })
    }

    /// Where parts with metrics of their own register them.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        self.uptime.set(self.started.elapsed().as_secs_f64());
        let mut text = Vec::new();
        // Writing to memory does not fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// The log's levels: a process has one log, whoever asks.
static LOG: OnceLock<Scopes> = OnceLock::new();

/// The log's levels.
pub fn log_scopes() -> &'static Scopes {
    LOG.get_or_init(|| Scopes::new("info", None))
}

/// Starts the log on standard error: `RUST_LOG` syntax, text or JSON.
///
/// # Errors
/// The filter cannot be read.
pub fn start_log(start: &str, json: bool) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(start)
        .map_err(|error| anyhow::anyhow!("the log filter {start:?} is wrong: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(lines.json()).init()
    } else {
        registry.with(lines).init()
    }
    let _ = LOG.set(Scopes::new(start, Some(handle)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_istios() {
        let metrics = Metrics::new().unwrap();
        metrics.pushes.with_label_values(&["cds"]).inc();
        let text = metrics.encode();
        for name in [
            "pilot_xds_pushes{type=\"cds\"} 1",
            "istio_build{component=\"pilot\"",
            "istiod_uptime_seconds",
            "citadel_server_csr_count 0",
        ] {
            assert!(text.contains(name), "{name} is not in {text}");
        }
    }
}
