//! Somebody who decides about requests (Envoy ext_authz), over gRPC and over HTTP: the request itself says what it is to answer, by
//! its header `x-case`; connections are allowed or not as the value says.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::BoolValue;
use envoy_types::pb::google::rpc;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// One of them, until this value ends.
pub struct Authorizer {
    asked: Arc<AtomicUsize>,
    denies: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<AttributeContext>>>,
    /// All of its connections end with it.
    runtime: Option<Runtime>,
}

impl Drop for Authorizer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn bind(runtime: &Runtime, address: &str) -> TcpListener {
    let address = address.to_owned();
    runtime.spawn(async move { TcpListener::bind(address).await.unwrap() }).await.unwrap()
}

#[derive(Clone, Default)]
struct Service {
    asked: Arc<AtomicUsize>,
    denies: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<AttributeContext>>>,
}

impl Authorizer {
    /// Over gRPC.
    pub async fn grpc(address: &str) -> Authorizer {
        let runtime = runtime();
        let socket = bind(&runtime, address).await;
        let service = Service::default();
        let Service { asked, denies, seen } = service.clone();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(socket);
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(service));
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Authorizer { asked, denies, seen, runtime: Some(runtime) }
    }

    /// Over HTTP.
    pub async fn http(address: &str) -> Authorizer {
        let runtime = runtime();
        let socket = bind(&runtime, address).await;
        let service = Service::default();
        let Service { asked, denies, seen } = service.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let answers = service_fn(|request| {
                        let service = service.clone();
                        async move { Ok::<_, Infallible>(service.answer(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answers)
                        .await;
                });
            }
        });
        Authorizer { asked, denies, seen, runtime: Some(runtime) }
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Connections are refused from now on, or not any more.
    pub fn denies(&self, denies: bool) {
        self.denies.store(denies, Ordering::SeqCst);
    }

    /// What it was asked about last.
    pub fn seen(&self) -> Option<AttributeContext> {
        self.seen.lock().unwrap().last().cloned()
    }
}

/// Headers of requests that differ from one to the next.
const PASSING: [&str; 8] = [
    "x-request-id",
    "user-agent",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-internal",
    "x-forwarded-for",
    "x-b3-sampled",
    "x-b3-traceid",
    "x-b3-spanid",
];

/// What it was told of a request, without what passes.
fn said(attributes: &AttributeContext) -> Value {
    let request = attributes.request.clone().unwrap_or_default();
    let http = request.http.unwrap_or_default();
    let headers: std::collections::BTreeMap<_, _> =
        http.headers.iter().filter(|(name, _)| !PASSING.contains(&name.as_str())).collect();
    let of = |peer: &Option<envoy_types::pb::envoy::service::auth::v3::attribute_context::Peer>| {
        let peer = peer.clone().unwrap_or_default();
        json!([peer.principal.replace("-m", "").replace("-e", ""), peer.service, peer.address.is_some()])
    };
    json!({"method": http.method, "path": http.path, "host": http.host, "scheme": http.scheme, "protocol": http.protocol,
        "body": http.body, "raw": http.raw_body, "query": http.query, "fragment": http.fragment, "headers": headers, "size": http.size,
        "id": !http.id.is_empty(), "time": request.time.is_some(),
        "source": of(&attributes.source), "destination": of(&attributes.destination)})
}

fn header(name: &str, value: &str) -> Option<HeaderValue> {
    Some(HeaderValue { key: name.into(), value: value.into(), ..HeaderValue::default() })
}

/// With the newer word for what is done.
fn option(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption { header: header(name, value), append_action: action as i32, ..HeaderValueOption::default() }
}

/// With the older one.
#[allow(deprecated)]
fn older(name: &str, value: &str, append: bool) -> HeaderValueOption {
    let append = Some(BoolValue { value: append });
    HeaderValueOption { header: header(name, value), append, ..HeaderValueOption::default() }
}

/// All that can be done to headers, to one that is there (`x-here`…) and to one that is not.
fn all_options() -> Vec<HeaderValueOption> {
    let mut all = Vec::new();
    let actions = [
        ("add", HeaderAppendAction::AppendIfExistsOrAdd),
        ("absent", HeaderAppendAction::AddIfAbsent),
        ("set", HeaderAppendAction::OverwriteIfExistsOrAdd),
        ("exists", HeaderAppendAction::OverwriteIfExists),
    ];
    for (name, action) in actions {
        all.push(option(&format!("x-here-{name}"), "new", action));
        all.push(option(&format!("x-not-{name}"), "new", action));
    }
    for (name, append) in [("append", true), ("replace", false)] {
        all.push(older(&format!("x-here-{name}"), "new", append));
        all.push(older(&format!("x-not-{name}"), "new", append));
    }
    all
}

fn ok(response: OkHttpResponse) -> CheckResponse {
    let status = Some(rpc::Status { code: 0, ..rpc::Status::default() });
    CheckResponse { status, http_response: Some(HttpResponse::OkResponse(response)), ..CheckResponse::default() }
}

fn denied(status: i32, headers: Vec<HeaderValueOption>, body: &str) -> DeniedHttpResponse {
    DeniedHttpResponse { status: Some(HttpStatus { code: status }), headers, body: body.into() }
}

fn refusing(response: HttpResponse) -> CheckResponse {
    let status = Some(rpc::Status { code: 7, ..rpc::Status::default() });
    CheckResponse { status, http_response: Some(response), ..CheckResponse::default() }
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let attributes = request.into_inner().attributes.unwrap_or_default();
        self.seen.lock().unwrap().push(attributes.clone());
        let http = attributes.request.as_ref().and_then(|request| request.http.as_ref());
        let case = http.and_then(|http| http.headers.get("x-case")).map_or("", String::as_str);
        let response = match case {
            _ if http.is_none() && self.denies.load(Ordering::SeqCst) => {
                refusing(HttpResponse::DeniedResponse(Default::default()))
            }
            "" | "allow" => CheckResponse { status: Some(rpc::Status::default()), ..CheckResponse::default() },
            "bare" => CheckResponse::default(),
            "seen" => ok(OkHttpResponse {
                headers: vec![older("x-seen", &said(&attributes).to_string(), false)],
                ..OkHttpResponse::default()
            }),
            "headers" => ok(OkHttpResponse { headers: all_options(), ..OkHttpResponse::default() }),
            "remove" => ok(OkHttpResponse {
                headers_to_remove: vec!["x-secret".into(), "host".into(), ":path".into(), "X-Other".into()],
                ..OkHttpResponse::default()
            }),
            "answer" => ok(OkHttpResponse { response_headers_to_add: all_options(), ..OkHttpResponse::default() }),
            "query" => ok(OkHttpResponse {
                query_parameters_to_set: vec![
                    QueryParameter { key: "b".into(), value: "new".into() },
                    QueryParameter { key: "z".into(), value: "1".into() },
                ],
                query_parameters_to_remove: vec!["c".into(), "none".into()],
                ..OkHttpResponse::default()
            }),
            "team" => ok(OkHttpResponse { headers: vec![older("x-team", "red", false)], ..OkHttpResponse::default() }),
            "path" => ok(OkHttpResponse {
                headers: vec![older(":path", "/other", false), older(":method", "PUT", false)],
                ..OkHttpResponse::default()
            }),
            "host" => ok(OkHttpResponse {
                headers: vec![older(":authority", "other.example", false)],
                ..OkHttpResponse::default()
            }),
            "red" | "blue" => {
                let fields = api::xds::json_to_struct(&json!({"team": case, "list": [case, "x"]}));
                CheckResponse { dynamic_metadata: Some(fields), ..ok(OkHttpResponse::default()) }
            }
            "deny" => CheckResponse {
                status: Some(rpc::Status { code: 7, ..rpc::Status::default() }),
                ..CheckResponse::default()
            },
            "deny-words" => {
                let headers = vec![
                    older("x-why", "because", false),
                    option("www-authenticate", "Basic", HeaderAppendAction::AppendIfExistsOrAdd),
                    older("content-type", "text/html", false),
                ];
                refusing(HttpResponse::DeniedResponse(denied(401, headers, "<b>no</b>")))
            }
            "deny-headers" => refusing(HttpResponse::DeniedResponse(denied(403, all_options(), ""))),
            "deny-redirect" => {
                let headers = vec![older("location", "https://login.example/", false)];
                refusing(HttpResponse::DeniedResponse(denied(302, headers, "")))
            }
            "deny-ok" => refusing(HttpResponse::OkResponse(OkHttpResponse::default())),
            "cannot" => {
                refusing(HttpResponse::ErrorResponse(denied(0, vec![older("x-why", "broken", false)], "sorry")))
            }
            "cannot-500" => refusing(HttpResponse::ErrorResponse(denied(500, Vec::new(), ""))),
            "status" => return Err(tonic::Status::internal("broken")),
            "forbidden" => return Err(tonic::Status::permission_denied("no")),
            // Whoever asks has to give up by itself.
            "slow" => std::future::pending().await,
            other => return Err(tonic::Status::invalid_argument(other)),
        };
        Ok(tonic::Response::new(response))
    }
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let mut headers: Vec<String> = head
            .headers
            .iter()
            .filter(|(name, _)| !PASSING.contains(&name.as_str()))
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")))
            .collect();
        headers.sort();
        let seen = json!({"method": head.method.as_str(), "path": head.uri.to_string(), "headers": headers,
            "body": String::from_utf8_lossy(&body)});
        let answer = Response::builder()
            .header("x-seen", seen.to_string())
            .header("x-up", "up")
            .header("x-upper", "upper")
            .header("x-down", "down")
            .header("x-none", "none");
        let answer = match text("x-case").as_str() {
            "deny" => answer.status(403),
            "created" => answer.status(201),
            "login" => answer.status(401).header("www-authenticate", "Basic").header("location", "/login"),
            "moved" => answer.status(302).header("location", "https://login.example/").header("set-cookie", "a=b"),
            "broken" => answer.status(500),
            "away" => answer.status(503),
            "remove" => answer.header("x-envoy-auth-headers-to-remove", "x-secret, x-other"),
            "slow" => std::future::pending().await,
            _ => answer,
        };
        answer.body(Full::from("from the authorizer")).unwrap()
    }
}
