//! The API server, asked once in a while by the agent: one connection a question, as the pod's service account.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest wait for the API server: the kubelet gives the agent 30 seconds to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read, bytes: the pods of a node.
const LONGEST: u64 = 32 << 20;

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Api {
    /// Host and port of the API server.
    pub(super) server: (String, u16),
    /// Folder with the pod's `token` and `ca.crt`.
    pub(super) account: PathBuf,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Status of HTTP.
    pub(super) status: u16,
    /// The body.
    pub(super) body: String,
}

impl Api {
    /// Asks.
    ///
    /// # Errors
    /// The API server cannot be reached, or does not speak HTTP.
    pub(super) async fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let (host, port) = &self.server;
        let asked = tokio::time::timeout(PATIENCE, self.fetch(method, path, body));
        let answer = asked.await.context("it does not answer").flatten();
        answer.and_then(|text| read(&text)).with_context(|| format!("the API server at {host}:{port}"))
    }

    async fn fetch(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let (host, port) = &self.server;
        let token = read_file(&self.account, "token")?;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let name = ServerName::try_from(host.clone())?;
        let mut stream = TlsConnector::from(Arc::new(self.trust()?)).connect(name, stream).await?;
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\nContent-Type: application/json\r\nContent-Length: {}\r\nAuthorization: Bearer {}\r\n\r\n{body}",
            body.len(),
            token.trim()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // Servers end without a closing alert; what came is judged by itself.
        let ended = stream.take(LONGEST).read_to_end(&mut answer).await;
        if answer.is_empty() {
            ended?;
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn trust(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(read_file(&self.account, "ca.crt")?.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }
}

fn read_file(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
}

fn read(answer: &str) -> Result<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n").context("it does not speak HTTP")?;
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Ok(Answer { status: status.context("it does not speak HTTP")?, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_a_status_and_a_body() {
        let answer = read("HTTP/1.0 404 Not Found\r\nA: b\r\n\r\n{}").unwrap();
        assert_eq!(answer, Answer { status: 404, body: "{}".into() });
        assert!(read("").is_err() && read("HTTP/1.0 x\r\n\r\n").is_err());
    }
}
