//! The webhooks' port: `/validate` judges objects as the API server would have them stored, with the same rules as all else.

pub mod inject;
pub mod settings;

use std::sync::{Arc, Mutex};

use anyhow::Result;
use api::problem::{Code, Problem, Severity};
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
use tokio_util::task::TaskTracker;

use crate::departure::Departure;
use crate::serve::connection;
use crate::state::Published;
use inject::Injector;

/// Serves until told to stop. Whoever is connected when this replica moves its callers away is told to connect anew, which leads
/// elsewhere by then; the API server keeps its connections for long.
///
/// # Errors
/// None at the moment: broken connections end alone.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    injector: Injector,
    departure: Departure,
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
    let served = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            connection = connections.next() => connection,
            () = shutdown.cancelled() => break,
        };
        let Some(Ok(connection)) = connection else { break };
        let service = TowerToHyperService::new(router.clone());
        // Who comes later has not heard of the others yet, and is served to the end.
        let late = departure.moving().is_cancelled();
        let end = if late { shutdown.clone() } else { departure.moving().clone() };
        served.spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(connection), service));
            let outcome = tokio::select! {
                outcome = serving.as_mut() => outcome,
                () = end.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(error, "a webhook connection ended");
            }
        });
    }
    served.close();
    served.wait().await;
    Ok(())
}

/// `admission.k8s.io/v1 AdmissionReview`: refuses objects that are wrong in themselves, warns of the rest. What an object
/// refers to may come later: order of creation is nobody's fault.
async fn validate(State(published): State<watch::Receiver<Option<Published>>>, Json(review): Json<Value>) -> Response {
    let Some(uid) = review.pointer("/request/uid").and_then(Value::as_str) else {
        return (StatusCode::BAD_REQUEST, "This is not an AdmissionReview with a request.\n").into_response();
    };
    let object = review.pointer("/request/object").cloned().unwrap_or(Value::Null);
    let namespace = review.pointer("/request/namespace").and_then(Value::as_str).unwrap_or("default");
    let Some(now) = published.borrow().clone() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "The configuration has not been loaded yet.\n").into_response();
    };
    let judged = tokio::task::block_in_place(|| judge(&object, namespace, &now));
    let text = |problems: &[Problem], is_refusal: bool| -> Vec<String> {
        problems.iter().map(|problem| problem.admission_text(is_refusal)).collect()
    };
    let (errors, warnings) = (text(&judged.errors, true), text(&judged.warnings, false));
    let mut response = json!({"uid": uid, "allowed": errors.is_empty()});
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    if !errors.is_empty() {
        response["status"] = json!({"code": 422, "reason": "Invalid", "message": errors.join("; ")});
    }
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})).into_response()
}

/// What is said of an object.
#[derive(Default)]
struct Judged {
    /// It is wrong in itself.
    errors: Vec<Problem>,
    /// All else.
    warnings: Vec<Problem>,
}

/// One review at a time looks at how the object fits the others: that takes a whole snapshot. Where many are made at once the
/// rest go without these warnings; the object's status and `meshctl analyze` tell them all the same.
static FITTING: Mutex<()> = Mutex::new(());

/// What would be wrong with the object if it were stored now.
fn judge(object: &Value, namespace: &str, now: &Published) -> Judged {
    // A deletion has no object.
    if object.is_null() {
        return Judged::default();
    }
    let decoded = api::decode::object(object, "", namespace);
    let alone = decoded.problems.into_iter().chain(decoded.objects.iter().flat_map(plan::intrinsic));
    let (errors, mut warnings): (Vec<_>, Vec<_>) = alone.partition(|problem| problem.severity == Severity::Error);
    if errors.is_empty()
        && let Ok(_turn) = FITTING.try_lock()
    {
        for object in decoded.objects {
            let reference = object.reference();
            let mut world = World::clone(&now.world);
            world.apply(Change::Upsert(Box::new(object)));
            let snapshot = Snapshot::build(&world, Some(&now.snapshot));
            let fitting = snapshot.problems().iter().filter(|problem| problem.object == reference);
            let new: Vec<Problem> = fitting.filter(|problem| !warnings.contains(problem)).cloned().collect();
            warnings.extend(new);
        }
    }
    warnings.retain(|problem| problem.severity != Severity::Info);
    for missing in warnings.iter_mut().filter(|problem| may_come(problem.code)) {
        missing.message += " It may still come: then all is well.";
    }
    Judged { errors, warnings }
}

/// Whether the problem is that something else is not there, which the next object of the same `kubectl apply` may bring: nearly
/// every file has its VirtualService before its DestinationRule.
fn may_come(code: Code) -> bool {
    matches!(
        code,
        Code::ReferencedResourceNotFound
            | Code::SubsetNotFound
            | Code::NoMatchingWorkloadsFound
            | Code::HostNotFoundInGateway
            | Code::KeysNotFetched
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use api::mesh_config::MeshConfig;

    use super::*;

    fn now(before: &[Value]) -> Published {
        let mut world = World::new(MeshConfig::default(), "cluster.local");
        for object in before.iter().flat_map(|object| api::decode::object(object, "", "shop").objects) {
            world.apply(Change::Upsert(Box::new(object)));
        }
        Published {
            snapshot: Snapshot::build(&world, None),
            source_problems: Arc::default(),
            world: Arc::new(world),
            generation: 1,
            changed: Instant::now(),
        }
    }

    fn named(name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
        })
    }

    #[test]
    fn what_is_wrong_in_itself_is_an_error() {
        let spec = json!({"hosts": ["a"], "http": [{"timeout": "soon", "route": [{"destination": {"host": "b"}}]}]});
        let wrong = judge(&named("a", spec), "shop", &now(&[]));
        assert!(wrong.errors.iter().any(|problem| problem.field.contains("timeout")), "{:?}", wrong.errors);
        assert!(judge(&Value::Null, "shop", &now(&[])).errors.is_empty());
    }

    /// Every page of Istio's applies a VirtualService before its DestinationRule: whoever does is told that this order is fine.
    #[test]
    fn what_the_next_object_may_bring_is_told_as_such_and_what_stands_against_the_object_is_not() {
        let route = json!({"hosts": ["a.shop.svc.cluster.local"], "http": [{"route": [{"destination": {"host": "a", "subset": "v1"}}]}]});
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]},
        });
        let before = now(std::slice::from_ref(&service));
        for (spec, missing) in [
            (route.clone(), "v1"),
            (
                json!({"hosts": ["b"], "gateways": ["later"], "http": [{"route": [{"destination": {"host": "a"}}]}]}),
                "later",
            ),
        ] {
            let judged = judge(&named("a", spec), "shop", &before);
            assert!(judged.errors.is_empty(), "{:?}", judged.errors);
            let [warning] = &judged.warnings[..] else { panic!("{:?}", judged.warnings) };
            assert!(warning.message.contains(missing), "{warning}");
            assert!(warning.message.ends_with("It may still come: then all is well."), "{warning}");
        }
        let taken = judge(&named("b", route.clone()), "shop", &now(&[service, named("a", route)]));
        let said: Vec<_> =
            taken.warnings.iter().map(|one| (one.code, one.message.contains("may still come"))).collect();
        assert_eq!(said, [(Code::ConflictingMeshGatewayVirtualServiceHosts, false), (Code::SubsetNotFound, true)]);
    }
}
