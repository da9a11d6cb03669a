//! Readiness, version, metrics and Istio's debug pages, over HTTP.

mod istio;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use api::debug::{Addresses, SyncStatus};
use api::xds::{KINDS, ResourceKind};
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::departure::Departure;
use crate::serve::cache::Cache;
use crate::serve::offer::Offer;
use crate::serve::registry::{Connected, Registry};
use crate::state::Published;
use crate::telemetry::{ISTIO_VERSION, Metrics, log_scopes};

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// The configuration of now.
    pub published: watch::Receiver<Option<Published>>,
    /// Whether this replica is leaving.
    pub departure: Departure,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Shared plans.
    pub cache: Arc<Cache>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Where the control plane listens.
    pub addresses: Addresses,
    /// Where the control plane lives.
    pub namespace: String,
    /// Its revision.
    pub revision: String,
    /// Its cluster.
    pub cluster: String,
}

/// A page of `/debug`.
struct Page {
    path: &'static str,
    doc: &'static str,
    show: fn(&Pages, &Arguments) -> Shown,
}

type Arguments = BTreeMap<String, String>;

/// A page's content, or a status with one sentence.
type Shown = Result<Value, (StatusCode, String)>;

/// The table of debug pages: names and shapes are Istio's (`pilot/pkg/xds/debug.go`), the last rows are ours.
const PAGES: &[Page] = &[
    Page {
        path: "syncz",
        doc: "What each connected proxy has been sent and has taken.",
        show: |pages, _| Ok(syncz(pages)),
    },
    Page {
        path: "adsz",
        doc: "The connected proxies; the same as connections.",
        show: |pages, _| Ok(connections(pages)),
    },
    Page { path: "connections", doc: "The connected proxies.", show: |pages, _| Ok(connections(pages)) },
    Page { path: "config_dump", doc: "What a proxy should hold: ?proxyID=NAME.NAMESPACE.", show: config_dump },
    Page { path: "configz", doc: "All objects as last read.", show: configz },
    Page { path: "origins", doc: "Where each object was read: file and line by kind and name.", show: origins },
    Page { path: "registryz", doc: "All services.", show: registry },
    Page { path: "endpointz", doc: "All endpoints.", show: endpoints },
    Page {
        path: "cachez",
        doc: "How many different plans are in use.",
        show: |pages, _| Ok(json!({"plans": pages.cache.len()})),
    },
    Page {
        path: "edsz",
        doc: "The endpoints that a proxy should hold: ?proxyID=NAME.NAMESPACE.",
        show: |pages, arguments| Ok(istio::edsz(offer(pages, arguments)?.1.of(ResourceKind::Endpoint))),
    },
    Page {
        path: "ndsz",
        doc: "The table of names that a proxy should hold: ?proxyID=NAME.NAMESPACE.",
        show: |pages, arguments| Ok(istio::ndsz(offer(pages, arguments)?.1.of(ResourceKind::NameTable))),
    },
    Page {
        path: "mesh",
        doc: "The mesh-wide settings in effect.",
        show: |pages, _| Ok(istio::mesh(&published(pages)?, &pages.namespace, &pages.revision)),
    },
    Page {
        path: "inject",
        doc: "The injection templates.",
        show: |pages, _| Ok(istio::inject(&published(pages)?, &pages.namespace, &pages.revision)),
    },
    Page {
        path: "push_status",
        doc: "What proxies refuse, and which services have no endpoints.",
        show: |pages, _| Ok(istio::push_status(&published(pages)?, &pages.registry.list())),
    },
    Page {
        path: "instancesz",
        doc: "The services that each connected proxy's workload serves.",
        show: |pages, _| Ok(istio::instancesz(&published(pages)?, &pages.registry.list())),
    },
    Page {
        path: "authorizationz",
        doc: "The AuthorizationPolicies, by namespace.",
        show: |pages, _| Ok(istio::authorizationz(&published(pages)?)),
    },
    Page { path: "resourcesz", doc: "The kinds of objects that are read.", show: |_, _| Ok(istio::resourcesz()) },
    Page {
        path: "clusterz",
        doc: "The cluster whose objects are read.",
        show: |pages, _| Ok(istio::clusterz(&pages.cluster, pages.published.borrow().is_some())),
    },
    Page {
        path: "logging",
        doc: "How much is logged, part by part; POST ?level=SCOPE:LEVEL,… or ?reset=true changes it.",
        show: |_, _| Ok(log_scopes().list()),
    },
    Page { path: "problems", doc: "All that is wrong with the configuration.", show: problems },
    Page { path: "addresses", doc: "Where the control plane listens.", show: |pages, _| Ok(json!(pages.addresses)) },
];

/// All routes.
pub fn router(pages: Pages) -> Router {
    let open =
        Router::new().route("/ready", get(ready)).route("/version", get(version)).route("/metrics", get(metrics));
    let mut debug = Router::new().route("/debug", get(index)).route("/debug/list", get(list));
    for page in PAGES {
        let show = page.show;
        let handler = move |State(pages): State<Pages>, Query(arguments): Query<Arguments>| async move {
            match show(&pages, &arguments) {
                Ok(value) => Json(value).into_response(),
                Err((status, sentence)) => (status, format!("{sentence}\n")).into_response(),
            }
        };
        debug = debug.route(&format!("/debug/{}", page.path), get(handler));
    }
    debug = debug.route("/debug/logging", post(set_logging));
    for (path, why) in istio::ABSENT {
        let refuse = move || async move { (StatusCode::NOT_FOUND, format!("There is no page /debug/{path}: {why}\n")) };
        debug = debug.route(&format!("/debug/{path}"), get(refuse));
    }
    open.merge(debug.layer(middleware::from_fn(only_own_host)))
        .fallback(|| async { (StatusCode::NOT_FOUND, "There is no such page; /debug lists them.\n") })
        .with_state(pages)
}

/// Debug pages tell everything but secrets: they are for callers on this host (in Kubernetes: through a port-forward).
async fn only_own_host(ConnectInfo(caller): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    if caller.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "Debug pages are only for callers on the control plane's own host.\n").into_response()
}

async fn ready(State(pages): State<Pages>) -> Response {
    if pages.departure.has_begun() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: this replica is leaving\n").into_response();
    }
    if pages.published.borrow().is_some() {
        return (StatusCode::OK, "ready\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: the configuration has not been loaded and planned yet\n")
        .into_response()
}

async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION"), "istio_version": ISTIO_VERSION, "component": "meshd"}))
}

async fn metrics(State(pages): State<Pages>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], pages.metrics.encode()).into_response()
}

async fn list() -> Json<Vec<String>> {
    Json(PAGES.iter().map(|page| format!("/debug/{}", page.path)).collect())
}

async fn index() -> Response {
    let row = |page: &Page| {
        format!("<tr><td><a href=\"/debug/{0}\">/debug/{0}</a></td><td>{1}</td></tr>\n", page.path, page.doc)
    };
    let rows: String = PAGES.iter().map(row).collect();
    let page =
        format!("<!doctype html><meta charset=\"utf-8\"><title>meshd</title><h1>meshd</h1><table>\n{rows}</table>\n");
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

async fn set_logging(Query(arguments): Query<Arguments>) -> Response {
    let scopes = log_scopes();
    let done = match (arguments.get("level"), arguments.contains_key("reset")) {
        (Some(level), _) => scopes.set(level),
        (None, true) => scopes.reset(),
        (None, false) => Err("say ?level=SCOPE:LEVEL,… or ?reset=true".to_owned()),
    };
    match done {
        Ok(()) => Json(scopes.list()).into_response(),
        Err(sentence) => (StatusCode::BAD_REQUEST, format!("{sentence}\n")).into_response(),
    }
}

/// One object a proxy, with Istio's flat keys besides our list of kinds.
fn syncz(pages: &Pages) -> Value {
    let shown = |row: Connected| {
        let mut value = json!(row.status);
        for (status, kind) in row.status.types.iter().zip(KINDS) {
            value[format!("{}_sent", kind.name)] = json!(status.sent);
            value[format!("{}_acked", kind.name)] = json!(status.acked);
        }
        value
    };
    pages.registry.list().into_iter().map(shown).collect()
}

/// Istio's keys, with ours beside them.
fn connections(pages: &Pages) -> Value {
    let row = |row: SyncStatus| {
        let watches: serde_json::Map<String, Value> = row
            .types
            .iter()
            .zip(KINDS)
            .filter(|(status, _)| !status.sent.is_empty())
            .map(|(status, kind)| (kind.type_url.to_owned(), json!(status.resources)))
            .collect();
        let mut value = json!(row);
        value["connectionId"] = json!(row.proxy);
        value["watches"] = Value::Object(watches);
        value
    };
    let rows: Vec<Value> = pages.registry.list().into_iter().map(|connected| row(connected.status)).collect();
    json!({"totalClients": rows.len(), "clients": rows})
}

fn published(pages: &Pages) -> Result<Published, (StatusCode, String)> {
    let not_yet = || (StatusCode::SERVICE_UNAVAILABLE, "The configuration has not been loaded yet.".to_owned());
    pages.published.borrow().clone().ok_or_else(not_yet)
}

/// The proxy that the arguments name, and what it should hold.
fn offer(pages: &Pages, arguments: &Arguments) -> Result<(String, Arc<Offer>), (StatusCode, String)> {
    let wanted = arguments
        .get("proxyID")
        .ok_or_else(|| (StatusCode::BAD_REQUEST, "Say which proxy: ?proxyID=NAME.NAMESPACE.".to_owned()))?;
    let rows = pages.registry.list();
    let row = rows.iter().find(|row| row.status.proxy == *wanted).ok_or_else(|| {
        let known: Vec<&str> = rows.iter().map(|row| row.status.proxy.as_str()).collect();
        (StatusCode::NOT_FOUND, format!("No proxy {wanted:?} is connected. Connected: {}.", known.join(", ")))
    })?;
    Ok((wanted.clone(), pages.cache.offer(&published(pages)?.snapshot, &row.proxy, false)))
}

fn config_dump(pages: &Pages, arguments: &Arguments) -> Shown {
    let (wanted, offer) = offer(pages, arguments)?;
    let mut configs = serde_json::Map::new();
    for kind in KINDS {
        let entries = offer.of(kind.kind).iter();
        let shown = entries.map(|entry| {
            api::json::to_json(&entry.body()).unwrap_or_else(|error| json!({"name": entry.name, "error": error}))
        });
        configs.insert(kind.name.to_owned(), shown.collect());
    }
    Ok(json!({"proxy": wanted, "configs": configs}))
}

fn configz(pages: &Pages, arguments: &Arguments) -> Shown {
    let published = published(pages)?;
    let wanted = arguments.get("kind").map(|word| word.to_ascii_lowercase());
    let is_wanted = |object: &&Arc<api::object::Object>| {
        wanted.as_ref().is_none_or(|word| object.key().kind.row().name.eq_ignore_ascii_case(word))
    };
    // Secrets are never shown.
    let shown =
        published.world.objects().filter(|object| object.key().kind != api::object::Kind::Secret).filter(is_wanted);
    Ok(shown.map(|object| object.raw.clone()).collect())
}

/// Objects that come from a cluster have no file; they are left out.
fn origins(pages: &Pages, _: &Arguments) -> Shown {
    let published = published(pages)?;
    let read = published.world.objects().filter(|object| !object.origin.file.is_empty());
    Ok(read.map(|object| (object.reference().to_string(), json!(object.origin.to_string()))).collect())
}

fn registry(pages: &Pages, _: &Arguments) -> Shown {
    Ok(published(pages)?.snapshot.registry()["services"].take())
}

/// Each service with its endpoints only.
fn endpoints(pages: &Pages, _: &Arguments) -> Shown {
    let services = registry(pages, &Arguments::default())?;
    let one = |service: &Value| json!({"svc": service["hostname"], "endpoints": service["endpoints"]});
    Ok(services.as_array().into_iter().flatten().map(one).collect())
}

fn problems(pages: &Pages, _: &Arguments) -> Shown {
    Ok(json!(published(pages)?.problems().collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_are_unique_and_documented() {
        let paths: std::collections::BTreeSet<_> = super::PAGES.iter().map(|page| page.path).collect();
        assert_eq!(paths.len(), super::PAGES.len());
        assert!(super::PAGES.iter().all(|page| page.doc.ends_with('.')));
        let absent = super::istio::ABSENT;
        assert!(absent.iter().all(|(path, why)| !paths.contains(path) && why.ends_with('.')));
    }
}
