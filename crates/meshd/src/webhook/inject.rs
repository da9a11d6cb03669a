//! `/inject`: pods get their proxy while they are made. The answer comes from memory: settings and namespaces are at hand.

use std::sync::Arc;
use std::time::Instant;

use api::annotation;
use api::object::{Kind, ObjectKey};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plan::bypassing;
use plan::inject::{Context, Outcome, Settings, inject, patch};
use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::state::Published;

/// What answers are made of.
#[derive(Clone)]
pub struct Injector {
    /// How to inject; `None` until the settings have been read.
    pub settings: watch::Receiver<Option<Arc<Settings>>>,
    /// The namespaces, among all else; a namespace that is not there yet has no labels.
    pub published: watch::Receiver<Option<Published>>,
    /// Counters.
    pub counters: Counters,
}

/// Istio's counters of injection.
#[derive(Clone)]
pub struct Counters {
    requests: IntCounter,
    success: IntCounter,
    failure: IntCounter,
    skip: IntCounter,
    time: Histogram,
}

impl Counters {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let buckets = vec![0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];
        let time = Histogram::with_opts(
            HistogramOpts::new("sidecar_injection_time_seconds", "Time of an injection, seconds.").buckets(buckets),
        )?;
        registry.register(Box::new(time.clone()))?;
        Ok(Self {
            requests: counter("sidecar_injection_requests_total", "Pods that were asked about.")?,
            success: counter("sidecar_injection_success_total", "Pods that got a proxy.")?,
            failure: counter(
                "sidecar_injection_failure_total",
                "Pods that were refused, and questions that made no sense.",
            )?,
            skip: counter("sidecar_injection_skip_total", "Pods that stayed as they were.")?,
            time,
        })
    }
}

/// The routes, to be merged into the webhooks' own.
pub fn router(injector: Injector) -> Router {
    Router::new()
        .route("/inject", post(|state, review| answer(state, String::new(), review)))
        .route("/inject/{*rest}", post(|state, Path(rest): Path<String>, review| answer(state, rest, review)))
        .with_state(injector)
}

async fn answer(State(injector): State<Injector>, path: String, Json(review): Json<Value>) -> Response {
    let (counters, started) = (&injector.counters, Instant::now());
    counters.requests.inc();
    let response = respond(&injector, &path, &review);
    counters.time.observe(started.elapsed().as_secs_f64());
    match response {
        Ok(response) => Json(json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
        }))
        .into_response(),
        Err((status, sentence)) => {
            counters.failure.inc();
            tracing::warn!(sentence, "a question about a pod could not be answered");
            (status, format!("{sentence}\n")).into_response()
        }
    }
}

fn respond(injector: &Injector, path: &str, review: &Value) -> Result<Value, (StatusCode, String)> {
    let bad = |sentence: &str| (StatusCode::BAD_REQUEST, sentence.to_owned());
    let text = |pointer: &str| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let uid = text("/request/uid");
    if uid.is_empty() || text("/apiVersion") != "admission.k8s.io/v1" {
        return Err(bad("This is not an AdmissionReview of admission.k8s.io/v1 with a request."));
    }
    let (cluster, network) = parameters(path).map_err(|sentence| bad(&sentence))?;
    let Some(settings) = injector.settings.borrow().clone() else {
        let sentence = "The settings of injection have not been read yet.".to_owned();
        return Err((StatusCode::SERVICE_UNAVAILABLE, sentence));
    };
    let pod = review.pointer("/request/object").cloned().unwrap_or(Value::Null);
    // Something else than a pod, or a deletion: the configuration of the webhook is not as we wrote it.
    if text("/request/kind/kind") != "Pod" || pod.is_null() {
        return Ok(json!({"uid": uid, "allowed": true}));
    }
    let namespace = match text("/request/namespace") {
        "" => pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default"),
        namespace => namespace,
    };
    let context = Context {
        namespace: namespace.to_owned(),
        namespace_labels: labels_of(injector, namespace),
        cluster,
        network,
        owner: None,
    };
    let name = ["name", "generateName"]
        .iter()
        .find_map(|key| pod.pointer(&format!("/metadata/{key}"))?.as_str())
        .unwrap_or_default();
    Ok(match inject(&pod, &context, &settings) {
        Outcome::Injected { pod: injected, mut warnings } => {
            warnings.extend(gone_around(&injected));
            injector.counters.success.inc();
            tracing::debug!(namespace, name, "injected");
            let mut response = json!({"uid": uid, "allowed": true});
            let operations = patch(&pod, &injected);
            if operations.as_array().is_some_and(|operations| !operations.is_empty()) {
                response["patchType"] = Value::from("JSONPatch");
                response["patch"] = Value::from(STANDARD.encode(operations.to_string()));
            }
            if !warnings.is_empty() {
                response["warnings"] = json!(warnings);
            }
            response
        }
        Outcome::Skipped { reason, warnings } => {
            injector.counters.skip.inc();
            tracing::debug!(namespace, name, reason, "not injected");
            let mut response = json!({"uid": uid, "allowed": true});
            if !warnings.is_empty() {
                response["warnings"] = json!(warnings);
            }
            response
        }
        Outcome::Refused { sentence } => {
            injector.counters.failure.inc();
            tracing::warn!(namespace, name, sentence, "a pod was refused");
            json!({"uid": uid, "allowed": false, "status": {"code": 422, "reason": "Invalid", "message": sentence}})
        }
    })
}

/// Containers that go around the proxy that the pod has got, one sentence each.
fn gone_around(injected: &Value) -> Vec<String> {
    let mode = injected["metadata"]["annotations"][annotation::INTERCEPTION_MODE].as_str();
    match serde_json::from_value(injected["spec"].clone()) {
        Ok(spec) if mode != Some("NONE") => bypassing(&spec).into_iter().map(|(_, sentence)| sentence).collect(),
        _ => Vec::new(),
    }
}

fn labels_of(injector: &Injector, namespace: &str) -> plan::inject::Texts {
    let key = ObjectKey { kind: Kind::Namespace, namespace: String::new(), name: namespace.to_owned() };
    let published = injector.published.borrow();
    let labels = published.as_ref().and_then(|now| Some(&now.world.object(&key)?.meta.labels));
    labels.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// `cluster/C/net/N`, in any order; `--slash--` stands for a slash inside of a value.
fn parameters(path: &str) -> Result<(Option<String>, Option<String>), String> {
    let (mut cluster, mut network) = (None, None);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    for pair in parts.chunks(2) {
        let [name, value] = pair else { return Err(format!("The path ends in {:?} without a value.", pair.concat())) };
        let value = Some(value.replace("--slash--", "/"));
        match *name {
            "cluster" => cluster = value,
            "net" => network = value,
            other => return Err(format!("The path's {other:?} is neither cluster nor net.")),
        }
    }
    Ok((cluster, network))
}

#[cfg(test)]
mod tests {
    use api::mesh_config::MeshConfig;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use plan::inject::ClusterFacts;
    use tower::ServiceExt;

    use super::*;

    /// Answers over the router, as the API server gets them.
    async fn ask(settings: Option<Settings>, path: &str, review: Value) -> (StatusCode, Value, String) {
        let registry = Registry::new();
        let (_keep, settings) = watch::channel(settings.map(Arc::new));
        let (_published, published) = watch::channel(None);
        let injector = Injector { settings, published, counters: Counters::new(&registry).unwrap() };
        let request = Request::post(path)
            .header("content-type", "application/json")
            .body(Body::from(review.to_string()))
            .unwrap();
        let response = router(injector).oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let metrics = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default(), metrics)
    }

    fn settings() -> Settings {
        Settings::new("", "", MeshConfig::default(), ClusterFacts::default()).unwrap()
    }

    fn review(pod: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "shop", "object": pod}})
    }

    fn pod(annotations: Value) -> Value {
        json!({"metadata": {"generateName": "web-", "annotations": annotations}, "spec": {"containers": [{"name": "web", "image": "web"}]}})
    }

    #[tokio::test]
    async fn a_pod_gets_a_patch_that_makes_it_whole() {
        let before = pod(json!({"sidecar.istio.io/bootstrapOverride": "x"}));
        let path = "/inject/cluster/east--slash--1/net/n1";
        let (status, answer, metrics) = ask(Some(settings()), path, review(before.clone())).await;
        assert_eq!(status, StatusCode::OK);
        let response = &answer["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"], &response["patchType"]),
            (&json!("u1"), &json!(true), &json!("JSONPatch"))
        );
        assert_eq!(response["warnings"].as_array().unwrap().len(), 1);
        let operations: Value =
            serde_json::from_slice(&STANDARD.decode(response["patch"].as_str().unwrap()).unwrap()).unwrap();
        let context = Context {
            namespace: "shop".to_owned(),
            cluster: Some("east/1".to_owned()),
            network: Some("n1".to_owned()),
            ..Context::default()
        };
        let Outcome::Injected { pod: after, .. } = inject(&before, &context, &settings()) else {
            panic!("not injected")
        };
        assert_eq!(operations, patch(&before, &after));
        assert!(after.to_string().contains("east/1"));
        for line in [
            "sidecar_injection_requests_total 1",
            "sidecar_injection_success_total 1",
            "sidecar_injection_time_seconds_count 1",
        ] {
            assert!(metrics.contains(line), "{line} is not in {metrics}");
        }
    }

    #[tokio::test]
    async fn who_would_go_around_his_proxy_is_warned() {
        let mut bypassing = pod(json!({}));
        bypassing["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1337});
        let (_, answer, _) = ask(Some(settings()), "/inject", review(bypassing.clone())).await;
        let warnings = answer["response"]["warnings"].as_array().unwrap();
        assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains("1337"), "{warnings:?}");
        bypassing["metadata"]["annotations"] = json!({"sidecar.istio.io/interceptionMode": "NONE"});
        let (_, answer, _) = ask(Some(settings()), "/inject", review(bypassing)).await;
        assert!(answer["response"]["warnings"].is_null(), "{answer}");
    }

    #[tokio::test]
    async fn who_asks_for_what_is_wrong_is_refused_with_the_sentence() {
        let wrong = pod(json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "x"}));
        let (status, answer, metrics) = ask(Some(settings()), "/inject", review(wrong)).await;
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)));
        assert!(answer["response"]["status"]["message"].as_str().unwrap().contains("excludeOutboundPorts"));
        assert!(metrics.contains("sidecar_injection_failure_total 1"));
    }

    #[tokio::test]
    async fn who_does_not_want_a_proxy_gets_none() {
        let unwilling = pod(json!({"sidecar.istio.io/inject": "false"}));
        let (_, answer, metrics) = ask(Some(settings()), "/inject", review(unwilling)).await;
        assert_eq!(answer["response"], json!({"uid": "u1", "allowed": true}));
        let misspelt = pod(json!({"sidecar.istio.io/inject": "ture"}));
        let (_, told, _) = ask(Some(settings()), "/inject", review(misspelt)).await;
        assert!(told["response"]["warnings"][0].as_str().unwrap().contains("neither true nor false"), "{told}");
        assert!(metrics.contains("sidecar_injection_skip_total 1"));
    }

    #[tokio::test]
    async fn questions_without_sense_or_before_the_settings_are_errors() {
        let (status, _, metrics) = ask(Some(settings()), "/inject", json!({"request": {}})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(metrics.contains("sidecar_injection_failure_total 1"));
        assert_eq!(ask(Some(settings()), "/inject/cluster", review(pod(json!({})))).await.0, StatusCode::BAD_REQUEST);
        assert_eq!(ask(Some(settings()), "/inject/a/b", review(pod(json!({})))).await.0, StatusCode::BAD_REQUEST);
        assert_eq!(ask(None, "/inject", review(pod(json!({})))).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
