//! The pages of Envoy's admin interface that tools read.

use std::fmt::Write;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use rustls::pki_types::TrustAnchor;
use serde_json::{Value, json};

use super::Format;
use crate::control::Shared;
use crate::drain::Stage;
use crate::secret::Secret;
use crate::snapshot::Snapshot;
use crate::snapshot::cluster::{Cluster, Discovery};
use crate::snapshot::endpoint::{Endpoint, Endpoints, Place};
use crate::tls::verify::{facts_of, sha256_hex};

fn endpoints_of<'a>(snapshot: &'a Snapshot, cluster: &'a Cluster) -> Option<&'a Arc<Endpoints>> {
    match &cluster.discovery {
        Discovery::Static(endpoints) | Discovery::StrictDns(endpoints) | Discovery::LogicalDns(endpoints) => {
            Some(endpoints)
        }
        Discovery::Eds(name) => snapshot.endpoints.get(name).map(|endpoints| &endpoints.value),
        Discovery::OriginalDst { .. } => None,
    }
}

fn place_text(place: &Place) -> String {
    match place {
        Place::Socket(address) => address.to_string(),
        Place::Name(name, port) => format!("{name}:{port}"),
        Place::Unix(path) => path.clone(),
    }
}

fn health(shared: &Shared, cluster: &Cluster, endpoint: &Endpoint) -> (bool, bool) {
    (endpoint.healthy, shared.registry.is_ejected(&cluster.name, &endpoint.place))
}

/// `/clusters`, as text or JSON.
pub fn clusters(shared: &Shared, as_json: bool) -> Response {
    let snapshot = shared.holder.load();
    if as_json {
        let all: Vec<Value> =
            snapshot.clusters.values().map(|cluster| cluster_json(shared, &snapshot, &cluster.value)).collect();
        return Json(json!({"cluster_statuses": all})).into_response();
    }
    let mut out = String::new();
    for cluster in snapshot.clusters.values() {
        let (cluster, name) = (&cluster.value, &cluster.value.name);
        let limits = &cluster.limits;
        let _ = writeln!(
            out,
            "{name}::observability_name::{name}\n{name}::default_priority::max_connections::{}",
            limits.connections
        );
        let _ = writeln!(out, "{name}::default_priority::max_pending_requests::{}", limits.pending);
        let _ = writeln!(
            out,
            "{name}::default_priority::max_requests::{}\n{name}::default_priority::max_retries::{}",
            limits.requests, limits.retries
        );
        let _ = writeln!(out, "{name}::added_via_api::true");
        let Some(endpoints) = endpoints_of(&snapshot, cluster) else { continue };
        for (priority, endpoint) in endpoints
            .priorities
            .iter()
            .enumerate()
            .flat_map(|(priority, group)| group.iter().map(move |endpoint| (priority, endpoint)))
        {
            let at = place_text(&endpoint.place);
            let flags = match health(shared, cluster, endpoint) {
                (_, true) => "/failed_outlier_check",
                (false, _) => "/failed_eds_health",
                _ => "healthy",
            };
            let _ = writeln!(
                out,
                "{name}::{at}::health_flags::{flags}\n{name}::{at}::weight::{}\n{name}::{at}::priority::{priority}",
                endpoint.weight
            );
        }
    }
    out.into_response()
}

fn cluster_json(shared: &Shared, snapshot: &Snapshot, cluster: &Cluster) -> Value {
    let hosts: Vec<Value> = endpoints_of(snapshot, cluster)
        .map(|endpoints| {
            let all = endpoints
                .priorities
                .iter()
                .enumerate()
                .flat_map(|(priority, group)| group.iter().map(move |endpoint| (priority, endpoint)));
            all.map(|(priority, endpoint)| host_json(shared, cluster, priority, endpoint)).collect()
        })
        .unwrap_or_default();
    json!({"name": cluster.name.as_ref(), "added_via_api": true, "observability_name": cluster.name.as_ref(), "host_statuses": hosts})
}

fn host_json(shared: &Shared, cluster: &Cluster, priority: usize, endpoint: &Endpoint) -> Value {
    let address = match &endpoint.place {
        Place::Socket(address) => {
            json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
        }
        Place::Name(name, port) => json!({"socket_address": {"address": name, "port_value": port}}),
        Place::Unix(path) => json!({"pipe": {"path": path}}),
    };
    let (healthy, ejected) = health(shared, cluster, endpoint);
    let mut status = json!({"eds_health_status": if healthy { "HEALTHY" } else { "UNHEALTHY" }});
    if ejected {
        status["failed_outlier_check"] = Value::from(true);
    }
    json!({"address": address, "health_status": status, "weight": endpoint.weight, "priority": priority, "hostname": endpoint.hostname})
}

/// `/listeners`, as text or JSON.
pub fn listeners(shared: &Shared, as_json: bool) -> Response {
    let all = shared.listeners();
    if as_json {
        let rows: Vec<Value> = all
            .iter()
            .map(|(name, address)| json!({"name": name.as_ref(), "local_address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}}}))
            .collect();
        return Json(json!({"listener_statuses": rows})).into_response();
    }
    all.iter().fold(String::new(), |out, (name, address)| out + &format!("{name}::{address}\n")).into_response()
}

/// `/server_info`.
pub fn server_info(shared: &Shared) -> Value {
    let state = match shared.not_ready() {
        None => "LIVE",
        Some(_) if *shared.stage.borrow() != Stage::Serving => "DRAINING",
        Some(_) => "PRE_INITIALIZING",
    };
    let seconds = format!("{}s", shared.started.elapsed().as_secs());
    json!({
        "version": env!("CARGO_PKG_VERSION"), "state": state, "uptime_current_epoch": seconds, "uptime_all_epochs": seconds,
        "hot_restart_version": "disabled", "command_line_options": {"concurrency": shared.metrics.shards.len(), "drain_time": format!("{}s", shared.settings.drain.as_secs())},
        "node": {"id": shared.settings.node_id, "metadata": shared.settings.metadata},
    })
}

/// `/stats`: counters as `name: value`, as JSON, or as Prometheus text.
pub fn stats(shared: &Shared, query: &Format) -> Response {
    if query.format == "prometheus" {
        return shared.metrics.prometheus(env!("CARGO_PKG_VERSION")).into_response();
    }
    let filter = match regex::Regex::new(&query.filter) {
        Ok(filter) => filter,
        Err(error) => {
            return (StatusCode::BAD_REQUEST, format!("the filter cannot be compiled: {error}\n")).into_response();
        }
    };
    let mut rows = shared.metrics.plain();
    rows.push(("server.live".to_owned(), u64::from(shared.not_ready().is_none())));
    rows.push(("server.uptime".to_owned(), shared.started.elapsed().as_secs()));
    rows.push(("access_log.dropped_batches".to_owned(), shared.road.dropped()));
    for (cluster, columns) in shared.metrics.clusters() {
        rows.extend(columns.into_iter().map(|(name, value)| (format!("cluster.{cluster}.{name}"), value)));
    }
    rows.retain(|(name, _)| filter.is_match(name));
    rows.sort();
    if query.format == "json" {
        let rows: Vec<Value> = rows.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        return Json(json!({"stats": rows})).into_response();
    }
    rows.into_iter().fold(String::new(), |out, (name, value)| out + &format!("{name}: {value}\n")).into_response()
}

/// `/certs`.
pub fn certs(shared: &Shared) -> Value {
    let secrets = shared.secrets.load();
    let mut all = Vec::new();
    for (name, secret) in secrets.iter() {
        let key = match secret {
            Secret::Certificate(key) => key,
            // Of roots only what they prove is kept, not the certificates themselves.
            Secret::Roots(roots) => {
                let told = |root: &TrustAnchor<'_>| json!({"path": name, "public_key_sha256": sha256_hex(&root.subject_public_key_info)});
                let told: Vec<Value> = roots.roots.iter().map(told).collect();
                all.push(json!({"ca_cert": told, "cert_chain": []}));
                continue;
            }
        };
        let Some(leaf) = key.cert.first() else { continue };
        let names: Vec<Value> = facts_of(leaf)
            .map(|facts| facts.uris.into_iter().map(|uri| json!({"uri": uri})).collect())
            .unwrap_or_default();
        let (from, until, serial) = validity(leaf);
        all.push(json!({"ca_cert": [], "cert_chain": [{
            "path": name, "serial_number": serial, "subject_alt_names": names, "valid_from": from, "expiration_time": until,
        }]}));
    }
    json!({"certificates": all})
}

fn validity(leaf: &rustls::pki_types::CertificateDer<'_>) -> (String, String, String) {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return Default::default() };
    let text = |seconds: i64| {
        let mut out = String::new();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds.max(0) as u64);
        crate::telemetry::format::write_time(time, &mut out);
        out
    };
    let validity = parsed.validity();
    (
        text(validity.not_before.timestamp()),
        text(validity.not_after.timestamp()),
        parsed.raw_serial_as_string().replace(':', ""),
    )
}
