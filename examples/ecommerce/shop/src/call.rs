//! Calling another service, through the sidecar.

use anyhow::{Context, Result};
use axum::http::{HeaderMap, Method, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Headers that an application passes on: they tie the calls of one request together and carry what routes look at.
const PASSED_ON: &[&str] = &[
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "version",
    "country",
    "user-group",
    "x-demo-fault",
    "x-demo-flaky",
];

/// Calls `http://host:8080path` and tells the status and the JSON answered.
pub(crate) async fn call(
    proxy: Option<&str>,
    method: Method,
    host: &str,
    path: &str,
    incoming: &HeaderMap,
    body: Option<Value>,
) -> Result<(u16, Value)> {
    let authority = format!("{host}:8080");
    let stream =
        TcpStream::connect(proxy.unwrap_or(&authority)).await.with_context(|| format!("{host} cannot be reached"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // A proxy wants the whole address, a server only the path (RFC 9112, 3.2).
    let target = if proxy.is_some() { format!("http://{authority}{path}") } else { path.to_owned() };
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", &authority)
        .header("content-type", "application/json");
    for name in PASSED_ON {
        if let Some(value) = incoming.get(*name) {
            request = request.header(*name, value);
        }
    }
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let response =
        sender.send_request(request.body(Full::new(body))?).await.with_context(|| format!("{host} did not answer"))?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    let answer = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({"text": String::from_utf8_lossy(&bytes)}));
    Ok((status, answer))
}
