//! The workload's certificate for an Envoy beside it: Envoy's secret discovery service on a Unix socket, as Istio's agent
//! serves it (`security/pkg/nodeagent/sds`). Whoever can open the socket gets the workload's key: it is its owner's alone.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use api::xds::core::DataSource;
use api::xds::core::data_source::Specifier;
use api::xds::{Any, ResourceKind, pack};
use base64::Engine;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use futures_util::{Stream, StreamExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::identity::{self, Identity};
use crate::secret::{DEFAULT, ROOT_CA, Store};
use crate::xds::client;

/// Where Istio's proxies look for the socket (`/var/run/secrets/workload-spiffe-uds`).
const FOLDER: &str = "/var/run/secrets/workload-spiffe-uds";

/// Settings of `proxy sds`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The socket. A bare file name is below /var/run/secrets/workload-spiffe-uds, where Istio's proxies look for it.
    #[arg(long, env = "WORKLOAD_IDENTITY_SOCKET_FILE", default_value = "socket")]
    pub socket: PathBuf,
    /// What is logged.
    #[arg(long, env = "PROXY_LOG", default_value = "info")]
    pub log: String,
    /// Log as JSON.
    #[arg(long, env = "LOG_AS_JSON", visible_alias = "log_as_json")]
    pub log_as_json: bool,
    /// The control plane; of it only the certificate service is asked.
    #[command(flatten)]
    pub control_plane: client::Options,
}

/// Gets and renews the workload's certificate and serves it, until it is dropped.
///
/// # Errors
/// The socket cannot be had. An absent control plane is no error: it is waited for.
pub async fn run(arguments: &Arguments) -> Result<()> {
    let listener = bind(&Path::new(FOLDER).join(&arguments.socket)).await?;
    let (own, identity) = watch::channel(identity::State::default());
    let renewal = identity::run(arguments.control_plane.clone(), Arc::new(Store::default()), own);
    tokio::select! {
        served = serve(listener, identity) => served,
        () = renewal => Ok(()),
    }
}

/// Serves the identity of the moment on this socket.
///
/// # Errors
/// The socket fails.
pub async fn serve(listener: UnixListener, identity: watch::Receiver<identity::State>) -> Result<()> {
    let service = SecretDiscoveryServiceServer::new(Service { identity });
    let incoming = UnixListenerStream::new(listener);
    tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await?;
    Ok(())
}

/// Opens the socket for its owner alone; the socket of a process that has ended is replaced.
///
/// # Errors
/// Somebody serves there already, or the folder is not ours to write to.
pub async fn bind(path: &Path) -> Result<UnixListener> {
    let place = path.display();
    anyhow::ensure!(UnixStream::connect(path).await.is_err(), "another process serves on {place} already");
    let name = path.file_name().with_context(|| format!("{place} names no file"))?;
    // Made under another name, so that nobody finds it before its mode is set.
    let draft = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let _ = std::fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft).with_context(|| format!("the socket {place} cannot be made"))?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&draft, path))
        .with_context(|| format!("the socket {place} cannot be made"))?;
    tracing::info!(socket = %place, "serving the workload's certificate");
    Ok(listener)
}

/// The two secrets of one moment.
struct Secrets {
    /// Differs whenever one of them differs.
    version: String,
    certificate: Any,
    roots: Any,
}

impl Secrets {
    fn of(identity: &Identity) -> Secrets {
        let inline = |text: String| {
            Some(DataSource { specifier: Some(Specifier::InlineBytes(text.into())), watched_directory: None })
        };
        let all = |certificates: &[rustls::pki_types::CertificateDer<'_>]| {
            certificates.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect::<String>()
        };
        let certificate = pack(&Secret {
            name: DEFAULT.to_owned(),
            r#type: Some(Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(all(&identity.chain)),
                private_key: inline(pem("PRIVATE KEY", identity.private_key.secret_der())),
                ..TlsCertificate::default()
            })),
        });
        let roots = pack(&Secret {
            name: ROOT_CA.to_owned(),
            r#type: Some(Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(all(&identity.root_certificates)),
                ..CertificateValidationContext::default()
            })),
        });
        let digest = |any: &Any| xxhash_rust::xxh3::xxh3_64(&any.value);
        let version = format!("{:016x}{:016x}", digest(&certificate), digest(&roots));
        Secrets { version, certificate, roots }
    }

    /// Those of these names.
    fn named<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = (&'a str, &'a Any)> {
        [(DEFAULT, &self.certificate), (ROOT_CA, &self.roots)]
            .into_iter()
            .filter(|(name, _)| names.iter().any(|wanted| wanted == name))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out += line;
        out.push('\n');
        rest = more;
    }
    out + &format!("-----END {label}-----\n")
}

/// A request of either variant, as far as it matters here.
struct Ask {
    type_url: String,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
    nonce: String,
    error: Option<String>,
    /// `subscribe` is all that is wanted, not what is wanted besides.
    whole: bool,
}

impl From<DiscoveryRequest> for Ask {
    fn from(request: DiscoveryRequest) -> Self {
        Ask {
            type_url: request.type_url,
            subscribe: request.resource_names,
            unsubscribe: Vec::new(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
            whole: true,
        }
    }
}

impl From<DeltaDiscoveryRequest> for Ask {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        Ask {
            type_url: request.type_url,
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
            whole: false,
        }
    }
}

/// What is to be sent: these secrets, all that are wanted in the one variant, those that are new in the other.
struct Answer {
    version: String,
    nonce: String,
    secrets: Vec<(String, Any)>,
}

impl From<Answer> for DiscoveryResponse {
    fn from(answer: Answer) -> Self {
        DiscoveryResponse {
            version_info: answer.version,
            nonce: answer.nonce,
            type_url: ResourceKind::Secret.type_url().to_owned(),
            resources: answer.secrets.into_iter().map(|(_, body)| body).collect(),
            ..DiscoveryResponse::default()
        }
    }
}

impl From<Answer> for DeltaDiscoveryResponse {
    fn from(answer: Answer) -> Self {
        let version = answer.version;
        let resource =
            |(name, body)| Resource { name, version: version.clone(), resource: Some(body), ..Resource::default() };
        DeltaDiscoveryResponse {
            resources: answer.secrets.into_iter().map(resource).collect(),
            system_version_info: version.clone(),
            nonce: answer.nonce,
            type_url: ResourceKind::Secret.type_url().to_owned(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

/// One stream, without I/O: what is wanted, and what was sent.
#[derive(Default)]
struct Subscription {
    wanted: Vec<String>,
    /// Names that were asked for since the last answer.
    due: Vec<String>,
    /// Version and number of the last answer.
    sent: (String, u64),
}

impl Subscription {
    fn hear(&mut self, ask: Ask) -> Result<(), Status> {
        check(&ask.type_url, &ask.subscribe)?;
        if let Some(reason) = ask.error {
            tracing::warn!(reason, "the proxy refused the workload's certificate");
        }
        // An answer to an older response tells the names of then.
        if ask.whole && !ask.nonce.is_empty() && ask.nonce != self.sent.1.to_string() {
            return Ok(());
        }
        // Delta: a name that is asked for again is wanted again.
        let new = ask.subscribe.iter().filter(|name| !ask.whole || !self.wanted.contains(name));
        self.due.extend(new.cloned());
        if ask.whole {
            self.wanted = ask.subscribe;
        } else {
            self.wanted.retain(|name| !ask.unsubscribe.contains(name));
            self.wanted.extend(ask.subscribe);
        }
        Ok(())
    }

    /// The next answer, if one is due.
    fn answer(&mut self, now: &Secrets, whole: bool) -> Option<Answer> {
        let rotated = !self.sent.0.is_empty() && self.sent.0 != now.version;
        if self.wanted.is_empty() || (self.due.is_empty() && !rotated) {
            return None;
        }
        let due = std::mem::take(&mut self.due);
        let names = if whole || rotated { &self.wanted } else { &due };
        self.sent = (now.version.clone(), self.sent.1 + 1);
        Some(Answer {
            version: now.version.clone(),
            nonce: self.sent.1.to_string(),
            secrets: now.named(names).map(|(name, body)| (name.to_owned(), body.clone())).collect(),
        })
    }
}

/// What this socket does not serve is refused: Envoy would wait for it, and nobody would know why.
fn check(type_url: &str, names: &[String]) -> Result<(), Status> {
    let kind = ResourceKind::Secret.type_url();
    if !type_url.is_empty() && type_url != kind {
        return Err(Status::invalid_argument(format!("this socket serves {kind}, not {type_url}")));
    }
    match names.iter().find(|name| ![DEFAULT, ROOT_CA].contains(&name.as_str())) {
        Some(name) => Err(Status::not_found(format!(
            "there is no secret {name:?} here: this socket serves the workload's own, {DEFAULT:?} and {ROOT_CA:?}"
        ))),
        None => Ok(()),
    }
}

struct Service {
    identity: watch::Receiver<identity::State>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn open<In, Out>(&self, asks: Streaming<In>, whole: bool) -> Responses<Out>
    where
        In: Into<Ask> + Send + 'static,
        Out: From<Answer> + Send + 'static,
    {
        let (send, responses) = mpsc::channel(1);
        let identity = self.identity.clone();
        tokio::spawn(async move {
            if let Err(status) = follow(asks, identity, whole, &send).await {
                let _ = send.send(Err(status)).await;
            }
        });
        Box::pin(ReceiverStream::new(responses))
    }
}

/// Answers until the client ends the stream.
async fn follow<In: Into<Ask>, Out: From<Answer>>(
    mut asks: Streaming<In>,
    mut identity: watch::Receiver<identity::State>,
    whole: bool,
    send: &mpsc::Sender<Result<Out, Status>>,
) -> Result<(), Status> {
    let mut subscription = Subscription::default();
    loop {
        tokio::select! {
            ask = asks.next() => match ask {
                Some(ask) => subscription.hear(ask?.into())?,
                None => return Ok(()),
            },
            changed = identity.changed() => {
                changed.map_err(|_| Status::unavailable("this process is ending"))?;
            }
        }
        let now = identity.borrow_and_update().current.as_ref().map(Secrets::of);
        if let Some(answer) = now.and_then(|now| subscription.answer(&now, whole))
            && send.send(Ok(answer.into())).await.is_err()
        {
            return Ok(());
        }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Responses<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(self.open(request.into_inner(), false)))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(self.open(request.into_inner(), true)))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let asked = request.into_inner();
        check(&asked.type_url, &asked.resource_names)?;
        let state = self.identity.borrow().clone();
        let Some(current) = &state.current else {
            return Err(Status::unavailable(format!("there is no certificate yet: {}", state.error)));
        };
        let mut subscription = Subscription { wanted: asked.resource_names.clone(), ..Subscription::default() };
        subscription.due = asked.resource_names;
        let answer = subscription.answer(&Secrets::of(current), true);
        answer
            .map(|answer| Response::new(answer.into()))
            .ok_or_else(|| Status::invalid_argument("the request names no secret"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(version: &str) -> Secrets {
        let any = |text: &str| Any { type_url: ResourceKind::Secret.type_url().into(), value: text.into() };
        Secrets { version: version.into(), certificate: any("certificate"), roots: any("roots") }
    }

    fn ask(names: &[&str], nonce: &str, whole: bool) -> Ask {
        Ask {
            type_url: String::new(),
            subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            unsubscribe: Vec::new(),
            nonce: nonce.into(),
            error: None,
            whole,
        }
    }

    fn names(answer: Option<Answer>) -> Vec<String> {
        answer.map(|answer| answer.secrets.into_iter().map(|(name, _)| name).collect()).unwrap_or_default()
    }

    #[test]
    fn each_secret_is_sent_once_and_again_when_it_changed() {
        for whole in [true, false] {
            let mut stream = Subscription::default();
            stream.hear(ask(&["default"], "", whole)).unwrap();
            assert_eq!(names(stream.answer(&secrets("1"), whole)), ["default"]);
            stream.hear(ask(if whole { &["default"] } else { &[] }, "1", whole)).unwrap();
            assert!(stream.answer(&secrets("1"), whole).is_none(), "an acknowledgement asks for nothing");
            assert_eq!(names(stream.answer(&secrets("2"), whole)), ["default"]);
            // The names of an answer to an older response are not those of now.
            if whole {
                stream.hear(ask(&["ROOTCA"], "1", whole)).unwrap();
                assert!(stream.answer(&secrets("2"), whole).is_none());
            }
            stream.hear(ask(if whole { &["default", "ROOTCA"] } else { &["ROOTCA"] }, "2", whole)).unwrap();
            let expected = if whole { &["default", "ROOTCA"][..] } else { &["ROOTCA"] };
            assert_eq!(names(stream.answer(&secrets("2"), whole)), expected);
        }
    }

    #[test]
    fn other_secrets_and_kinds_are_refused_with_what_there_is() {
        let refusal = check("", &["kubernetes://edge".to_owned()]).unwrap_err();
        assert!(refusal.message().contains("kubernetes://edge") && refusal.message().contains("ROOTCA"), "{refusal}");
        assert!(check(ResourceKind::Cluster.type_url(), &[]).unwrap_err().message().contains("Secret"));
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_and_replaces_only_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/socket");
        let listener = bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind(&path).await.unwrap_err().to_string().contains("already"));
        drop(listener);
        bind(&path).await.unwrap();
    }
}
