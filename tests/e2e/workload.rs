//! A workload of the tests on Kubernetes that knows nothing of a mesh: it listens in every way that probes know, or calls once
//! and tells what came of it. One static program, so that its image holds nothing else.
//!
//! `workload serve` · `workload get URL [HEADER:VALUE]…` · `workload send METHOD URL [HEADER:VALUE]…`

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::rpc::Status;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Answers HTTP/1.1: `/metrics`, and everything else with who connected and the request's head.
const HTTP: u16 = 8080;
/// Speaks first, as databases do.
const TCP: u16 = 7070;
/// The same over TLS, with a certificate that nobody knows.
const HTTPS: u16 = 8443;
/// Answers every gRPC call as a server answers `grpc.health.v1.Health/Check`, but for questions about requests (Envoy ext_authz): those
/// with the header `x-decision: allow` are allowed.
const GRPC: u16 = 9090;
/// What is not well: the path of an HTTP request, or the service that a gRPC call asks about.
const UNWELL: &str = "unwell";
/// A call that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

static REQUESTS: AtomicUsize = AtomicUsize::new(0);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve"] => serve().await.map_err(|error| error.to_string()),
        ["get", url, headers @ ..] => send("GET", url, headers).await,
        ["send", method, url, headers @ ..] => send(method, url, headers).await,
        _ => Err("usage: workload serve | get URL [HEADER:VALUE]… | send METHOD URL [HEADER:VALUE]…".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until it is told to end, and ends at once: what is under way is cut, as by programs that heed no signal.
async fn serve() -> std::io::Result<()> {
    let http = TcpListener::bind(("::", HTTP)).await?;
    let tcp = TcpListener::bind(("::", TCP)).await?;
    let grpc = TcpListener::bind(("::", GRPC)).await?;
    let https = TcpListener::bind(("::", HTTPS)).await?;
    let acceptor = acceptor().map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        while let Ok((stream, peer)) = https.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = TokioIo::new(acceptor.accept(stream).await?);
                let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(echo(&request, peer))));
                let served = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
                served.map_err(std::io::Error::other)
            });
        }
    });
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        while let Ok((stream, peer)) = http.accept().await {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| std::future::ready(Ok::<_, Infallible>(echo(&request, peer)))),
            );
            tokio::spawn(connection);
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move { stream.write_all(b"welcome\n").await });
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = grpc.accept().await {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(health));
            tokio::spawn(connection);
        }
    });
    terminate.recv().await;
    Ok(())
}

fn echo(request: &Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
    if request.uri().path() == "/metrics" {
        return Response::new(Full::from(format!(
            "# TYPE workload_requests_total counter\nworkload_requests_total {number}\n"
        )));
    }
    // Those of an issuer of tokens, for pods that play one.
    if let ("/keys", Ok(keys)) = (request.uri().path(), std::env::var("KEYS")) {
        return Response::new(Full::from(keys));
    }
    if request.uri().path().trim_start_matches('/') == UNWELL {
        let mut response = Response::new(Full::from("not well\n"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    }
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let from = peer.ip().to_canonical();
    let mut text = format!("pod: {pod}\nfrom: {from}\n{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", value.to_str().unwrap_or("?"));
    }
    Response::new(Full::from(text))
}

/// A certificate for this run alone.
fn acceptor() -> Result<TlsAcceptor, Box<dyn std::error::Error + Send + Sync>> {
    let made = rcgen::generate_simple_self_signed(vec!["workload".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into())?;
    Ok(Arc::new(config).into())
}

/// `HealthCheckResponse {status: SERVING}`, or `NOT_SERVING`.
async fn health(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    let decides = request.uri().path() == "/envoy.service.auth.v3.Authorization/Check";
    let asked = request.into_body().collect().await?.to_bytes();
    // The name of the service stands in the message as it is.
    let well = !asked.windows(UNWELL.len()).any(|part| part == UNWELL.as_bytes());
    let message: Bytes = match decides {
        true => decision(&asked),
        false if well => Bytes::from_static(b"\0\0\0\0\x02\x08\x01"),
        false => Bytes::from_static(b"\0\0\0\0\x02\x08\x02"),
    };
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = [Ok(Frame::data(message)), Ok::<_, Infallible>(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// The answer to a question about a request, both in gRPC's frame.
fn decision(asked: &Bytes) -> Bytes {
    let question = CheckRequest::decode(asked.get(5..).unwrap_or_default()).unwrap_or_default();
    let http = question.attributes.and_then(|attributes| attributes.request).and_then(|request| request.http);
    let allowed = http.is_some_and(|http| http.headers.get("x-decision").is_some_and(|decision| decision == "allow"));
    let status = Status { code: if allowed { 0 } else { 7 }, ..Status::default() };
    let answer = CheckResponse { status: Some(status), ..CheckResponse::default() }.encode_to_vec();
    let length = u8::try_from(answer.len()).unwrap_or_default();
    Bytes::from([&[0, 0, 0, 0, length], answer.as_slice()].concat())
}

/// Prints the answer; anything but 2xx is an error.
async fn send(method: &str, url: &str, headers: &[&str]) -> Result<(), String> {
    tokio::time::timeout(PATIENCE, call(method, url, headers))
        .await
        .map_err(|_| format!("{url}: no answer in {PATIENCE:?}"))?
}

async fn call(method: &str, url: &str, headers: &[&str]) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    let (authority, path) = url
        .strip_prefix("http://")
        .map(|rest| rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash)))
        .ok_or_else(|| told(&"no http:// address"))?;
    let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let stream = TcpStream::connect(&address).await.map_err(|error| told(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", authority);
    for (name, value) in headers.iter().filter_map(|header| header.split_once(':')) {
        request = request.header(name, value.trim());
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|error| told(&error))?;
    let response = sender.send_request(request).await.map_err(|error| format!("{url}: {error:?}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| format!("{url}: {error:?}"))?.to_bytes();
    print!("{}", String::from_utf8_lossy(&body));
    if status.is_success() { Ok(()) } else { Err(format!("{url}: status {status}")) }
}
