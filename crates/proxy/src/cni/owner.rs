//! Whether the agent's DaemonSet is being taken away, which only the API server knows: an agent that ends for another reason
//! leaves the plug-in where it is, since pods go on starting on its node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest wait for the API server: the kubelet gives the agent 30 seconds to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read, bytes.
const LONGEST: u64 = 1 << 20;

/// Whom to ask, as whom, about which DaemonSet.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// Host and port of the API server.
    pub(super) server: (String, u16),
    /// Folder with the pod's `token` and `ca.crt`.
    pub(super) account: PathBuf,
    /// Namespace of the DaemonSet.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

/// What became of the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is there.
    Stays,
    /// It is gone, or going.
    Gone,
    /// The agent may not ask.
    Refused,
}

impl Owner {
    /// Asks.
    ///
    /// # Errors
    /// The API server cannot be reached, or says something else.
    pub(super) async fn ask(&self) -> Result<Found> {
        let (host, port) = &self.server;
        let asked = tokio::time::timeout(PATIENCE, self.fetch());
        let answer = asked.await.context("it does not answer").flatten();
        let answer = answer.with_context(|| format!("the API server at {host}:{port}"))?;
        read(&answer)
    }

    async fn fetch(&self) -> Result<String> {
        let (host, port) = &self.server;
        let token = read_file(&self.account, "token")?;
        let path = format!("/apis/apps/v1/namespaces/{}/daemonsets/{}", self.namespace, self.name);
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let name = ServerName::try_from(host.clone())?;
        let mut stream = TlsConnector::from(Arc::new(self.trust()?)).connect(name, stream).await?;
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let request = format!(
            "GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\nAuthorization: Bearer {}\r\n\r\n",
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

/// What an answer says.
fn read(answer: &str) -> Result<Found> {
    let (head, body) = answer.split_once("\r\n\r\n").context("it does not speak HTTP")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    match status {
        "200" => {
            let object: Value = serde_json::from_str(body).context("it answers something else")?;
            let going = object["metadata"]["deletionTimestamp"].is_string();
            Ok(if going { Found::Gone } else { Found::Stays })
        }
        // Without its account there is nobody whom the agent could be running for.
        "401" | "404" => Ok(Found::Gone),
        "403" => Ok(Found::Refused),
        other => bail!("it answers {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let of = |status: &str, body: &str| read(&format!("HTTP/1.0 {status} X\r\nA: b\r\n\r\n{body}")).ok();
        assert_eq!(of("200", "{\"metadata\": {\"name\": \"a\"}}"), Some(Found::Stays));
        assert_eq!(of("200", "{\"metadata\": {\"deletionTimestamp\": \"2026-01-01T00:00:00Z\"}}"), Some(Found::Gone));
        assert_eq!((of("404", "{}"), of("401", "{}")), (Some(Found::Gone), Some(Found::Gone)));
        assert_eq!((of("403", "{}"), of("500", "{}"), of("200", "no")), (Some(Found::Refused), None, None));
        assert!(read("").is_err());
    }
}
