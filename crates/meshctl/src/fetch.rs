//! Small HTTP requests to addresses, with or without TLS.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// No answer takes longer: the ports asked are near.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `Null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An open connection that takes one request after another.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects without TLS.
    ///
    /// # Errors
    /// The address cannot be reached.
    pub async fn open(address: &str) -> Result<Connection> {
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(address))
            .await
            .with_context(|| format!("{address} does not answer"))?;
        Self::over(stream.with_context(|| format!("{address} cannot be reached"))?).await
    }

    /// Connects with TLS, trusting `roots` for `name`.
    ///
    /// # Errors
    /// The address cannot be reached, or its certificate is not good.
    pub async fn open_tls(address: &str, name: &str, roots: RootCertStore) -> Result<Connection> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.with_context(|| format!("{address} cannot be reached"))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned())?, stream);
        Self::over(stream.await.with_context(|| format!("{address} is not trusted as {name}"))?).await
    }

    /// Speaks over a stream that is there already.
    ///
    /// # Errors
    /// The other side does not speak HTTP.
    pub async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Connection> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender })
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// The connection broke, or the answer took too long.
    pub async fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).context("the request cannot be made")?;
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            anyhow::Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body: body.collect().await?.to_bytes(),
            })
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")?
    }
}

/// `GET http://address/path`; anything but 200 is an error that tells the body.
///
/// # Errors
/// See above.
pub async fn get(address: &str, path: &str) -> Result<Answer> {
    ask(address, Method::GET, path).await
}

/// The same with another method.
///
/// # Errors
/// See [`get`].
pub async fn ask(address: &str, method: Method, path: &str) -> Result<Answer> {
    let answer = Connection::open(address).await?.send(method, path, &[("host", address)], None).await?;
    // What was asked is wrong, and the answer says in what.
    if answer.status == 400 && !answer.body.is_empty() {
        bail!("{}", answer.text().trim());
    }
    if answer.status != 200 {
        bail!("{address} answered {}: {}", answer.status, answer.text().trim());
    }
    Ok(answer)
}

/// `GET http://address/path`, whatever the status.
///
/// # Errors
/// The address cannot be reached.
pub async fn try_get(address: &str, path: &str) -> Result<Answer> {
    Connection::open(address).await?.send(Method::GET, path, &[("host", address)], None).await
}
