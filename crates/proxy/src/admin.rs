//! What operators and tools ask the proxy: Envoy's admin paths, the agent's status paths, readiness, metrics, and `/why`.

pub mod config_dump;
pub mod pages;
pub mod probe;
pub mod scrape;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::control::Shared;

/// How long the kubelet waits for a proxy that starts: less than the second that a probe may take if nobody says otherwise.
const HOLD: Duration = Duration::from_millis(900);
/// How often it is looked at whether the proxy is ready by then.
const LOOK: Duration = Duration::from_millis(10);

/// What the pages are made of.
pub struct Admin {
    /// The proxy.
    pub shared: Arc<Shared>,
    /// Counters of scrapes of the merged metrics.
    scrapes: scrape::Scrapes,
}

impl Admin {
    /// Pages of this proxy.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, scrapes: scrape::Scrapes::default() }
    }
}

type Of = State<Arc<Admin>>;

/// Starts the four servers: admin, status, readiness, Prometheus. Returns their addresses.
///
/// # Errors
/// A port cannot be had.
pub async fn serve(admin: Arc<Admin>, stop: &CancellationToken) -> anyhow::Result<[SocketAddr; 4]> {
    let settings = &admin.shared.settings;
    let addresses = [settings.admin, settings.status, settings.ready, settings.prometheus];
    let routers = [admin_routes(), status_routes(), ready_routes(), prometheus_routes()];
    let mut actual = addresses;
    for ((place, address), router) in addresses.into_iter().enumerate().zip(routers) {
        let socket = TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"))?;
        actual[place] = socket.local_addr()?;
        let (router, stop) = (router.with_state(Arc::clone(&admin)), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                result = std::future::IntoFuture::into_future(axum::serve(socket, router.into_make_service_with_connect_info::<SocketAddr>())) => if let Err(error) = result {
                    tracing::error!(%address, %error, "an admin server ended");
                },
                () = stop.cancelled() => {}
            }
        });
    }
    Ok(actual)
}

fn admin_routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/", get(|| async { "config_dump clusters listeners server_info stats stats/prometheus certs logging ready why\n" }))
        .route("/config_dump", get(|State(admin): Of| async move { Json(config_dump::config_dump(&admin.shared)) }))
        .route("/clusters", get(|State(admin): Of, Query(query): Query<Format>| async move { pages::clusters(&admin.shared, query.json()) }))
        .route("/listeners", get(|State(admin): Of, Query(query): Query<Format>| async move { pages::listeners(&admin.shared, query.json()) }))
        .route("/server_info", get(|State(admin): Of| async move { Json(pages::server_info(&admin.shared)) }))
        .route("/stats", get(|State(admin): Of, Query(query): Query<Format>| async move { pages::stats(&admin.shared, &query) }))
        .route("/stats/prometheus", get(prometheus))
        .route("/certs", get(|State(admin): Of| async move { Json(pages::certs(&admin.shared)) }))
        .route("/logging", post(logging))
        .route("/ready", get(live))
        .route("/why", get(why))
        .route("/drain_listeners", post(drain_listeners))
        .route("/quitquitquit", post(quit))
}

fn status_routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/healthz/ready", get(ready))
        .route("/stats/prometheus", get(scrape::merged))
        .route("/metrics", get(scrape::merged))
        .route("/quitquitquit", post(quit))
        .route("/drain", post(leave))
        .route("/app-health/{container}/{probe}", get(probe::answer))
        .route("/app-lifecycle/{container}/{hook}", get(probe::answer))
}

fn ready_routes() -> Router<Arc<Admin>> {
    Router::new().route("/healthz/ready", get(ready))
}

fn prometheus_routes() -> Router<Arc<Admin>> {
    Router::new().route("/stats/prometheus", get(prometheus))
}

/// `?format=json`, `?usedonly`, `?filter=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Format {
    /// `json`, `text`, `prometheus`.
    pub format: String,
    /// Regular expression on names.
    pub filter: String,
}

impl Format {
    fn json(&self) -> bool {
        self.format == "json"
    }
}

/// The kubelet asks a container that starts once a second, and the application waits for the answer: its question is answered
/// when the proxy becomes ready, and before the next one is due. Everybody else is told at once how things stand.
async fn ready(State(admin): Of, headers: HeaderMap) -> Response {
    let kubelet = headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/"));
    let end = tokio::time::Instant::now() + HOLD;
    while kubelet && admin.shared.is_starting() && tokio::time::Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
    match admin.shared.not_ready() {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// Envoy's own page says `LIVE`.
async fn live(State(admin): Of) -> Response {
    match admin.shared.not_ready() {
        None => (StatusCode::OK, "LIVE\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("PRE_INITIALIZING: {why}\n")).into_response(),
    }
}

async fn prometheus(State(admin): Of) -> Response {
    let text = admin.shared.metrics.prometheus(env!("CARGO_PKG_VERSION"));
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    request_id: Option<String>,
    last: Option<usize>,
}

async fn why(State(admin): Of, Query(asked): Query<Asked>) -> Json<Vec<api::debug::Why>> {
    Json(match asked.request_id {
        Some(id) => admin.shared.failures.of(&id),
        None => admin.shared.failures.last(asked.last.unwrap_or(20)),
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Logging {
    level: Option<String>,
}

async fn logging(State(admin): Of, Query(logging): Query<Logging>) -> Response {
    match admin.shared.set_log_level(logging.level.as_deref()) {
        Ok(level) => format!("active loggers:\n  all: {level}\n").into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

/// Ending a proxy is for its own host only: the status port is open to the network (Istio's agent does the same).
fn is_own_host(caller: SocketAddr, admin: &Admin) -> bool {
    let own = &admin.shared.settings.metadata.instance_ips;
    let caller = caller.ip().to_canonical();
    caller.is_loopback() || own.split(',').any(|address| address.trim().parse() == Ok(caller))
}

fn only_own_host() -> Response {
    (StatusCode::FORBIDDEN, "this is only for callers on the proxy's own host\n").into_response()
}

async fn drain_listeners(
    State(admin): Of,
    ConnectInfo(caller): ConnectInfo<SocketAddr>,
    uri: axum::http::Uri,
) -> Response {
    if !is_own_host(caller, &admin) {
        return only_own_host();
    }
    let inbound_only = uri.query().is_some_and(|query| query.split('&').any(|word| word.starts_with("inboundonly")));
    admin.shared.drain_listeners(inbound_only);
    "OK\n".into_response()
}

/// Before the end that the kubelet announced: clients are told to go elsewhere while all that still comes is served, since the
/// mesh learns of the end a little later than the pod.
async fn leave(State(admin): Of, ConnectInfo(caller): ConnectInfo<SocketAddr>) -> Response {
    if !is_own_host(caller, &admin) {
        return only_own_host();
    }
    admin.shared.leave();
    "OK\n".into_response()
}

async fn quit(State(admin): Of, ConnectInfo(caller): ConnectInfo<SocketAddr>) -> Response {
    if !is_own_host(caller, &admin) {
        return only_own_host();
    }
    admin.shared.quit.cancel();
    "OK\n".into_response()
}
