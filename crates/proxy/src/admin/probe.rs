//! Probes and lifecycle hooks of the application, asked in the kubelet's place (Istio's agent, `/app-health/…`, `/app-lifecycle/…`):
//! the kubelet has no certificate, while calls from 127.0.0.6 are taken for the proxy's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response as HttpResponse, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::Admin;
use crate::pod::{Grpc, HttpGet, Probe};

/// Most redirects that are followed.
const REDIRECTS: usize = 10;
/// Most bytes of an answer that are read.
const MOST: usize = 64 << 10;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Answers as the application does.
pub(super) async fn answer(State(admin): State<Arc<Admin>>, uri: Uri, headers: HeaderMap) -> Response {
    let settings = &admin.shared.settings;
    let Some(probe) = settings.pod.probes.get(uri.path()) else {
        return (StatusCode::NOT_FOUND, format!("there is no probe {}\n", uri.path())).into_response();
    };
    let own = settings.metadata.instance_ips.split(',').next().and_then(|address| address.trim().parse().ok());
    let own = own.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    match tokio::time::timeout(probe.timeout(), run(probe, own, &headers)).await {
        Ok(Ok(status)) => status.into_response(),
        Ok(Err(error)) => failed(uri.path(), &error.to_string()),
        Err(_) => failed(uri.path(), &format!("no answer within {} s", probe.timeout().as_secs())),
    }
}

fn failed(path: &str, why: &str) -> Response {
    tracing::warn!(path, why, "a probe of the application failed");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response()
}

async fn run(probe: &Probe, own: IpAddr, headers: &HeaderMap) -> Result<StatusCode, Failed> {
    if let Some(get) = &probe.http_get {
        return http(get, own, headers).await;
    }
    if let Some(grpc) = &probe.grpc {
        return health(grpc, own).await;
    }
    let port = probe.tcp_socket.as_ref().map(|socket| socket.port).unwrap_or_default();
    dial(own, port).await?;
    Ok(StatusCode::OK)
}

/// From the address whose connections are not captured. Where the pod lacks it (IPv6 without rules), from any.
async fn dial(own: IpAddr, port: u16) -> std::io::Result<TcpStream> {
    let (socket, source) = match own {
        IpAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))),
        IpAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))),
    };
    let _ = socket.bind(SocketAddr::new(source, 0));
    socket.connect(SocketAddr::new(own, port)).await
}

/// As the kubelet does: redirects on the same host are followed, others are success.
async fn http(get: &HttpGet, own: IpAddr, headers: &HeaderMap) -> Result<StatusCode, Failed> {
    let mut path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    let own_host = SocketAddr::new(own, get.port).to_string();
    for _ in 0..=REDIRECTS {
        let mut request = Request::get(path.as_str()).body(Full::<Bytes>::default())?;
        fill(request.headers_mut(), get, headers, &own_host)?;
        let stream = dial(own, get.port).await?;
        let response = if get.scheme.eq_ignore_ascii_case("https") {
            let name = ServerName::from(own);
            send(tokio_rustls::TlsConnector::from(Arc::new(tls()?)).connect(name, stream).await?, request).await?
        } else {
            send(stream, request).await?
        };
        let (status, next) = (response.status(), location(&response));
        match next {
            Some(next) if status.is_redirection() => match next.host() {
                Some(_) if next.authority().map(|authority| authority.as_str()) != Some(own_host.as_str()) => {
                    return Ok(StatusCode::OK);
                }
                _ => path = next.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            },
            _ => return Ok(status),
        }
    }
    Err(format!("more than {REDIRECTS} redirects").into())
}

/// What the kubelet would send: who it is, and the probe's headers.
fn fill(headers: &mut HeaderMap, get: &HttpGet, asked: &HeaderMap, own_host: &str) -> Result<(), Failed> {
    headers.insert(header::HOST, HeaderValue::from_str(own_host)?);
    for name in [header::USER_AGENT, header::ACCEPT] {
        if let Some(value) = asked.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    for given in &get.http_headers {
        let (name, value) = (given.name.parse::<HeaderName>()?, HeaderValue::from_str(&given.value)?);
        // A host takes the place of ours; others may come twice.
        if name == header::HOST {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
    Ok(())
}

fn location(response: &HttpResponse<Incoming>) -> Option<Uri> {
    response.headers().get(header::LOCATION)?.to_str().ok()?.parse().ok()
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<HttpResponse<Incoming>, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// `grpc.health.v1.Health/Check`: one field in, one field out, so that no generated code is needed.
async fn health(grpc: &Grpc, own: IpAddr) -> Result<StatusCode, Failed> {
    let stream = dial(own, grpc.port).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let uri = format!("http://{}/grpc.health.v1.Health/Check", SocketAddr::new(own, grpc.port));
    let request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(question(&grpc.service)))?;
    let response = sender.send_request(request).await?;
    let early = grpc_status(response.headers());
    let body = http_body_util::Limited::new(response.into_body(), MOST).collect().await?;
    let status = body.trailers().and_then(grpc_status).or(early);
    let bytes = body.to_bytes();
    match status.as_deref() {
        Some("0") if is_serving(&bytes) => Ok(StatusCode::OK),
        Some("0") => Err("the service is not serving".into()),
        Some(code) => Err(format!("gRPC status {code}").into()),
        None => Err("the answer has no gRPC status".into()),
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<String> {
    headers.get("grpc-status")?.to_str().ok().map(str::to_owned)
}

/// A frame with `HealthCheckRequest{service = 1}`.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        prost::encoding::string::encode(1, &service.to_owned(), &mut message);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), &message].concat().into()
}

/// A frame with `HealthCheckResponse{status = 1}`, where SERVING is 1.
fn is_serving(frame: &[u8]) -> bool {
    frame.get(5..) == Some(&[8, 1][..])
}

fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = crate::tls::provider();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The kubelet does not check certificates of probes either: it asks an address of its own pod, and learns one status.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crate::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
