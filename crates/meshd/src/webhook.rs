//! The webhooks' port: `/validate` judges objects as the API server would have them stored, with the same rules as all else.

pub mod inject;
pub mod settings;

use std::sync::Arc;

use anyhow::Result;
use api::problem::{Problem, Severity};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use plan::{Change, Snapshot, World};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::serve::connection;
use crate::state::Published;
use inject::Injector;

/// Serves until told to stop.
///
/// # Errors
/// None at the moment: broken connections end alone.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    injector: Injector,
    shutdown: CancellationToken,
) -> Result<()> {
    let router = Router::new()
        .route("/ready", get(|| async { "ready\n" }))
        .route("/validate", post(validate))
        .route("/validate/{*rest}", post(validate))
        .fallback(|| async { (StatusCode::NOT_FOUND, "There are /inject, /validate and /ready.\n") })
        .with_state(injector.published.clone())
        .merge(inject::router(injector));
    let mut connections = connection::accept(listener, Some(tls));
    loop {
        let connection = tokio::select! {
            connection = connections.next() => connection,
            () = shutdown.cancelled() => return Ok(()),
        };
        let Some(Ok(connection)) = connection else { return Ok(()) };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let served = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(connection), service).await;
            if let Err(error) = served {
                tracing::debug!(error, "a webhook connection ended");
            }
        });
    }
}

/// `admission.k8s.io/v1 AdmissionReview`: refuses objects with errors of their own, warns of the rest.
async fn validate(State(published): State<watch::Receiver<Option<Published>>>, Json(review): Json<Value>) -> Response {
    let Some(uid) = review.pointer("/request/uid").and_then(Value::as_str) else {
        return (StatusCode::BAD_REQUEST, "This is not an AdmissionReview with a request.\n").into_response();
    };
    let object = review.pointer("/request/object").cloned().unwrap_or(Value::Null);
    let namespace = review.pointer("/request/namespace").and_then(Value::as_str).unwrap_or("default");
    let Some(now) = published.borrow().clone() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "The configuration has not been loaded yet.\n").into_response();
    };
    let problems = tokio::task::block_in_place(|| judge(&object, namespace, &now));
    let errors: Vec<String> =
        problems.iter().filter(|problem| problem.severity == Severity::Error).map(ToString::to_string).collect();
    let warnings: Vec<String> =
        problems.iter().filter(|problem| problem.severity == Severity::Warning).map(ToString::to_string).collect();
    let mut response = json!({"uid": uid, "allowed": errors.is_empty()});
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    if !errors.is_empty() {
        response["status"] = json!({"code": 422, "reason": "Invalid", "message": errors.join("; ")});
    }
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})).into_response()
}

/// What would be wrong with the object if it were stored now.
fn judge(object: &Value, namespace: &str, now: &Published) -> Vec<Problem> {
    // A deletion has no object.
    if object.is_null() {
        return Vec::new();
    }
    let decoded = api::decode::object(object, "", namespace);
    let mut problems = decoded.problems;
    let mut world = World::clone(&now.world);
    for object in decoded.objects {
        let reference = object.reference();
        world.apply(Change::Upsert(Box::new(object)));
        let snapshot = Snapshot::build(&world, Some(&now.snapshot));
        problems.extend(snapshot.problems().iter().filter(|problem| problem.object == reference).cloned());
    }
    problems
}
