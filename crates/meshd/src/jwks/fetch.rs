//! One GET over HTTP or HTTPS, to addresses that may be asked: whoever may write objects of the mesh must not thereby reach
//! what only the control plane can (`BLOCKED_CIDRS_IN_JWKS_URIS`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longer answers are no key sets.
const LONGEST: usize = 1 << 20;
/// More redirections than this lead nowhere.
const REDIRECTIONS: usize = 5;

/// An answer with status 200 to 299.
#[derive(Debug)]
pub(super) struct Answer {
    /// The text.
    pub(super) body: String,
    /// How long it is good, if that is said.
    pub(super) fresh: Option<Duration>,
}

/// What asks.
pub(super) struct Client {
    blocked: Vec<IpNet>,
    tls: Result<TlsConnector, String>,
}

enum Heard {
    Answer(Answer),
    Elsewhere(String),
}

impl Client {
    pub(super) fn new(blocked: Vec<IpNet>) -> Client {
        Client { blocked, tls: connector() }
    }

    /// Asks an address.
    ///
    /// # Errors
    /// Half a sentence that says why there is no answer.
    pub(super) async fn get(&self, address: &str) -> Result<Answer, String> {
        let mut address = address.to_owned();
        for _ in 0..=REDIRECTIONS {
            match self.ask(&address).await? {
                Heard::Answer(answer) => return Ok(answer),
                Heard::Elsewhere(next) if address.starts_with("https://") && !next.starts_with("https://") => {
                    return Err(format!("{address} sends away from TLS, to {next}"));
                }
                Heard::Elsewhere(next) => address = next,
            }
        }
        Err(format!("there is no end of redirections at {address}"))
    }

    async fn ask(&self, address: &str) -> Result<Heard, String> {
        let uri: Uri = address.parse().map_err(|_| format!("{address:?} is no address"))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{address:?} begins neither with http:// nor with https://")),
        };
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = self.connect(host.trim_matches(['[', ']']), port).await?;
        if !secure {
            return exchange(stream, &uri).await;
        }
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|_| format!("{host:?} is no name that a certificate can have"))?;
        let tls = self.tls.as_ref().map_err(Clone::clone)?;
        let stream = tls.connect(name, stream).await;
        exchange(stream.map_err(|error| format!("the TLS handshake with {host} failed: {error}"))?, &uri).await
    }

    /// Connects to one of a name's addresses: to one that was looked at, not to what the name means a moment later.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let found = tokio::net::lookup_host((host, port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|error| format!("the name {host} cannot be looked up: {error}"))?.collect();
        let mut why = format!("the name {host} has no address");
        for address in found {
            let ip = address.ip().to_canonical();
            if let Some(range) = self.blocked.iter().find(|range| range.contains(&ip)) {
                return Err(format!("{host} is {ip}, which is among the blocked addresses {range}"));
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => why = format!("{address} cannot be reached: {error}"),
            }
        }
        Err(why)
    }
}

/// TLS with the roots of the system; where it has none, as in images without a system, those that browsers trust.
fn connector() -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be spoken: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, uri: &Uri) -> Result<Heard, String> {
    let broken = |error: hyper::Error| format!("{uri} did not answer as HTTP does: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(USER_AGENT, "meshd")
        .header(ACCEPT, "application/json, */*;q=0.5")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("{uri} cannot be asked: {error}"))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    if status.is_redirection() {
        let next = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = next.ok_or_else(|| format!("{uri} answers {status} and does not say where to"))?;
        driver.abort();
        return Ok(Heard::Elsewhere(absolute(uri, next)));
    }
    if !status.is_success() {
        driver.abort();
        return Err(format!("{uri} answers {status}"));
    }
    let fresh = freshness(answer.headers());
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    driver.abort();
    let body = body.map_err(|error| format!("the answer of {uri} could not be read: {error}"))?.to_bytes();
    let body = String::from_utf8(body.into()).map_err(|_| format!("the answer of {uri} is no text"))?;
    Ok(Heard::Answer(Answer { body, fresh }))
}

/// Where a redirection leads (RFC 9110 section 10.2.2), as far as servers use it: to an address, or to a path of the same server.
fn absolute(from: &Uri, to: &str) -> String {
    if !to.starts_with('/') {
        return to.to_owned();
    }
    let scheme = from.scheme_str().unwrap_or("http");
    if let Some(rest) = to.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    format!("{scheme}://{}{to}", from.authority().map_or("", |authority| authority.as_str()))
}

/// `max-age` of an answer (RFC 9111 section 5.2.2.1).
fn freshness(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut words = values.flat_map(|value| value.split(',')).map(str::trim);
    words.find_map(|word| word.strip_prefix("max-age=")?.parse().ok()).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_lead_to_addresses() {
        let from: Uri = "https://a.example:8443/keys?x".parse().unwrap();
        assert_eq!(absolute(&from, "http://b/c"), "http://b/c");
        assert_eq!(absolute(&from, "/other"), "https://a.example:8443/other");
        assert_eq!(absolute(&from, "//b/c"), "https://b/c");
    }

    #[test]
    fn freshness_is_read() {
        let of = |text: &str| freshness(&HeaderMap::from_iter([(CACHE_CONTROL, text.parse().unwrap())]));
        assert_eq!(of("public, max-age=300, must-revalidate"), Some(Duration::from_secs(300)));
        assert_eq!(of("no-cache"), None);
        assert_eq!(of("max-age=x"), None);
    }

    #[tokio::test]
    async fn addresses_that_are_blocked_are_not_asked() {
        let client = Client::new(vec!["127.0.0.0/8".parse().unwrap()]);
        for address in ["http://127.0.0.1:1/", "http://[::ffff:127.0.0.1]:1/"] {
            let error = client.get(address).await.unwrap_err();
            assert!(error.contains("127.0.0.0/8"), "{error}");
        }
        for (address, says) in [("ftp://x/", "http://"), ("nonsense", "http://")] {
            let error = client.get(address).await.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
