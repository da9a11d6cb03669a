//! The xDS server: one task a proxy, bytes in, bytes out.

pub mod offer;
pub mod session;
pub mod registry;
pub mod cache;
pub mod connection;
pub mod requests;
pub mod wire;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::spiffe::SpiffeId;
use api::xds::ResourceKind;
use api::xds::core::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use plan::ProxyIdentity;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::server::NamedService;
use tonic::{Request, Status};
use tower::Service;

use crate::authn::{Authenticator, PeerCertificate};
use crate::departure::Departure;
use crate::state::Published;
use crate::telemetry::Metrics;
use cache::Cache;
use registry::{Entry as Row, Registry};
use session::{Ask, Heard, Session, Variant};
use wire::Push;

/// How long listeners and routes wait for a client to ask for the endpoints of clusters it was sent. Clients ask at once;
/// one that never does (it takes no endpoints) must still get its listeners.
const SUBSCRIPTION_WAIT: Duration = Duration::from_secs(2);

/// The service on one of the two ports.
#[derive(Clone)]
pub struct DiscoveryService {
    /// The configuration of now.
    pub published: watch::Receiver<Option<Published>>,
    /// Shared plans.
    pub cache: Arc<Cache>,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Who is calling.
    pub authenticator: Arc<Authenticator>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Callers must prove themselves: the TLS port.
    pub proof_required: bool,
    /// Ends all streams, in turn.
    pub departure: Departure,
    /// How many large pushes are under way at once: their bytes are in memory until the client has taken them.
    pub large_pushes: Arc<Semaphore>,
    /// Changes with each large push: what it took can be given back.
    pub work: watch::Sender<u64>,
}

/// The longest request: a proxy that reconnects tells all that it holds.
const MAX_MESSAGE: usize = 64 << 20;
/// Pushes of more bytes wait for each other.
const LARGE: usize = 128 * 1024;
/// How many do not.
pub const LARGE_AT_ONCE: usize = 4;
/// A client that does not answer a large push holds up others for so long.
const LARGE_WAIT: Duration = Duration::from_millis(250);

/// Where clients of the protocol knock.
impl NamedService for DiscoveryService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<tonic::body::Body>> for DiscoveryService {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let request = Request::from_http(request);
        let service = self.clone();
        Box::pin(async move {
            let answered = match method.as_str() {
                "StreamAggregatedResources" => {
                    let take = |mut request: DiscoveryRequest| (request.node.take(), Ask::from(request));
                    service.open(request, Variant::StateOfTheWorld, take).await
                }
                "DeltaAggregatedResources" => {
                    let take = |mut request: DeltaDiscoveryRequest| (request.node.take(), Ask::from(request));
                    service.open(request, Variant::Delta, take).await
                }
                _ => Err(Status::unimplemented(format!("there is no method {method:?} here"))),
            };
            Ok(answered.unwrap_or_else(Status::into_http))
        })
    }
}

impl DiscoveryService {
    async fn open<In>(
        self,
        request: Request<tonic::body::Body>,
        variant: Variant,
        take: fn(In) -> (Option<Node>, Ask),
    ) -> Result<http::Response<tonic::body::Body>, Status>
    where
        In: Message + Default + Send + 'static,
    {
        let (metadata, extensions, body) = request.into_parts();
        // Whoever may have to wait is shown the head only.
        let head = Request::from_parts(metadata, extensions, ());
        let caller = self.authenticator.caller(&head).await?;
        if caller.is_none() && self.proof_required {
            return Err(Status::unauthenticated(
                "this port serves only callers that prove who they are: send a client certificate or a token",
            ));
        }
        let encrypted = head.extensions().get::<PeerCertificate>().is_some() && self.proof_required;
        let asks = requests::of(body, MAX_MESSAGE).map(move |message| message.map(take));
        // One response in the channel: what is not taken yet is not made yet, so a slow client gets the newest.
        let (send, responses) = mpsc::channel::<Result<Push, Status>>(1);
        let stream =
            ProxyStream { service: self, caller, encrypted, session: Session::new(variant), row: None, large: None };
        let departure = stream.service.departure.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = stream.run(asks, &send) => outcome,
                reason = departure.turn() => Err(Status::unavailable(reason)),
            };
            if let Err(status) = outcome {
                let _ = tokio::time::timeout(Duration::from_millis(100), send.send(Err(status))).await;
            }
        });
        Ok(wire::respond(responses))
    }
}

/// One open stream.
struct ProxyStream {
    service: DiscoveryService,
    caller: Option<SpiffeId>,
    encrypted: bool,
    session: Session,
    row: Option<Row>,
    /// Held while a large push is under way.
    large: Option<OwnedSemaphorePermit>,
}

impl ProxyStream {
    async fn run(
        mut self,
        asks: impl Stream<Item = Result<(Option<Node>, Ask), Status>>,
        send: &mpsc::Sender<Result<Push, Status>>,
    ) -> Result<(), Status> {
        let mut asks = std::pin::pin!(asks);
        let Some(first) = asks.next().await else { return Ok(()) };
        let (node, ask) = first?;
        let node = node
            .ok_or_else(|| Status::invalid_argument("the first request of a stream must say which node is asking"))?;
        let proxy = ProxyIdentity::of(&node, self.caller.as_ref()).map_err(|reason| {
            tracing::warn!(node = node.id, reason, "a proxy was refused");
            if self.caller.is_some() { Status::permission_denied(reason) } else { Status::invalid_argument(reason) }
        })?;
        let secrets = self.encrypted && self.caller.is_some();
        let mut row = self.service.registry.connect(&node, &proxy);
        row.set_secrets(secrets);
        self.row = Some(row);
        let mut published = self.service.published.clone();
        let mut changed = self.plan(&mut published, &proxy, secrets);
        self.hear(ask);
        loop {
            while let Some(answer) = self.session.next_answer() {
                let kind = answer.kind;
                if answer.bytes() > LARGE && self.large.is_none() {
                    self.large = self.service.large_pushes.clone().acquire_owned().await.ok();
                }
                let push = Push::new(answer, self.session.variant());
                self.count(kind, push.encoded_len(), changed.take());
                self.show();
                if send.send(Ok(push)).await.is_err() {
                    return Ok(());
                }
                if published.has_changed().unwrap_or(false) {
                    changed = self.plan(&mut published, &proxy, secrets);
                }
            }
            let patience = match (&self.large, self.session.is_waiting()) {
                (Some(_), _) => LARGE_WAIT,
                (None, true) => SUBSCRIPTION_WAIT,
                (None, false) => Duration::from_secs(3600),
            };
            tokio::select! {
                ask = asks.next() => match ask {
                    Some(Ok((_, ask))) => self.hear(ask),
                    Some(Err(status)) if status.code() == tonic::Code::Cancelled => return Ok(()),
                    Some(Err(status)) => {
                        tracing::debug!(node = node.id, %status, "a stream broke");
                        return Ok(());
                    }
                    None => return Ok(()),
                },
                outcome = published.changed() => {
                    if outcome.is_err() {
                        return Ok(());
                    }
                    changed = self.plan(&mut published, &proxy, secrets);
                }
                () = tokio::time::sleep(patience) => match self.large.take() {
                    Some(_) => {}
                    None => self.session.stop_waiting(),
                },
            }
        }
    }

    /// Takes the newest configuration. Returns when its first change was seen.
    fn plan(
        &mut self,
        published: &mut watch::Receiver<Option<Published>>,
        proxy: &ProxyIdentity,
        secrets: bool,
    ) -> Option<Instant> {
        let now = published.borrow_and_update().clone()?;
        let offer = self.service.cache.offer(&now.snapshot, proxy, secrets);
        self.session.set_offer(offer);
        Some(now.changed)
    }

    fn hear(&mut self, ask: Ask) {
        if self.large.take().is_some() {
            self.service.work.send_modify(|pieces| *pieces += 1);
        }
        let metrics = &self.service.metrics;
        match self.session.request(ask) {
            Heard::Nack(kind, reason) => {
                metrics.rejects.with_label_values(&[&lower(kind)]).inc();
                let proxy = self.row.as_ref().map(Row::name).unwrap_or_default();
                tracing::error!(proxy, kind = kind.row().short, reason, "a proxy refused its configuration");
            }
            Heard::Stale(kind) => metrics.expired_nonces.with_label_values(&[&lower(kind)]).inc(),
            Heard::Subscription(_) | Heard::Ack(_) | Heard::UnknownKind => {}
        }
        self.show();
    }

    fn show(&self) {
        if let Some(row) = &self.row {
            row.update(|kind| self.session.status(kind));
        }
    }

    fn count(&self, kind: ResourceKind, bytes: usize, changed: Option<Instant>) {
        let (metrics, word) = (&self.service.metrics, lower(kind));
        metrics.pushes.with_label_values(&[&word]).inc();
        metrics.config_size.with_label_values(&[&word]).observe(bytes as f64);
        if let Some(changed) = changed {
            metrics.convergence.observe(changed.elapsed().as_secs_f64());
        }
    }
}

fn lower(kind: ResourceKind) -> String {
    kind.row().short.to_ascii_lowercase()
}
