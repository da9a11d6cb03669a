//! The metrics of proxy and application as one page (Istio's agent, `/stats/prometheus` on the status port).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Request, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Admin;
use crate::pod::Target;

/// Longest wait for the application, unless the scraper says how long it waits itself.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of the application's page.
const MOST: usize = 64 << 20;
/// What Prometheus says of its patience.
const PATIENCE: &str = "x-prometheus-scrape-timeout-seconds";

/// Istio's counters of scrapes.
#[derive(Debug, Default)]
pub struct Scrapes {
    all: AtomicU64,
    failed: AtomicU64,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The page.
pub(super) async fn merged(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    admin.scrapes.all.fetch_add(1, Ordering::Relaxed);
    let mut text = admin.shared.metrics.prometheus(env!("CARGO_PKG_VERSION"));
    let patience = headers.get(PATIENCE).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    // The scraper is told what there is before it gives up.
    let bound =
        patience.filter(|seconds| *seconds > 0.0).map_or(TIMEOUT, |seconds| Duration::from_secs_f64(seconds * 0.9));
    for target in &admin.shared.settings.pod.metrics {
        let page = match tokio::time::timeout(bound, page(target)).await {
            Ok(page) => page,
            Err(_) => Err(format!("no answer within {bound:?}").into()),
        };
        match page {
            Ok(page) => append(&mut text, &page),
            Err(error) => {
                admin.scrapes.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(port = target.port, path = target.path, %error, "the application's metrics cannot be had");
            }
        }
    }
    append(&mut text, &counters(&admin.scrapes));
    if let Some(dns) = admin.shared.dns.get() {
        append(&mut text, &dns.prometheus());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn counters(scrapes: &Scrapes) -> String {
    let (all, failed) = (scrapes.all.load(Ordering::Relaxed), scrapes.failed.load(Ordering::Relaxed));
    format!(
        "# TYPE istio_agent_scrapes_total counter\nistio_agent_scrapes_total {all}\n\
         # TYPE istio_agent_scrape_failures_total counter\nistio_agent_scrape_failures_total{{type=\"application\"}} {failed}\n"
    )
}

/// Pages are joined at line ends; the mark of an end (OpenMetrics) would hide what follows.
fn append(text: &mut String, page: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in page.lines().filter(|line| *line != "# EOF") {
        text.push_str(line);
        text.push('\n');
    }
}

/// The application's page, over this host's own address as Istio's agent asks.
async fn page(target: &Target) -> Result<String, Failed> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, target.port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = if target.path.starts_with('/') { target.path.clone() } else { format!("/{}", target.path) };
    let request = Request::get(path)
        .header(header::HOST, format!("localhost:{}", target.port))
        .header(header::ACCEPT, "text/plain;version=0.0.4")
        .header(header::USER_AGENT, "mesh-proxy")
        .body(Full::<Bytes>::default())?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(format!("the answer is {}", response.status()).into());
    }
    let body = Limited::new(response.into_body(), MOST).collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_joined_at_line_ends() {
        let mut text = "a 1".to_owned();
        append(&mut text, "b 2\n# EOF\n");
        append(&mut text, "c 3");
        assert_eq!(text, "a 1\nb 2\nc 3\n");
    }
}
