//! The xDS server: one task a proxy, bytes in, bytes out.

pub mod offer;
pub mod session;
pub mod registry;
pub mod cache;
pub mod connection;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::spiffe::SpiffeId;
use api::xds::ResourceKind;
use api::xds::core::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::{Stream, StreamExt};
use plan::ProxyIdentity;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::authn::{Authenticator, PeerCertificate};
use crate::state::Published;
use crate::telemetry::Metrics;
use cache::Cache;
use registry::{Entry as Row, Registry};
use session::{Answer, Ask, Heard, Session, Variant};

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
    /// Ends all streams.
    pub shutdown: CancellationToken,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let take = |mut request: DiscoveryRequest| (request.node.take(), Ask::from(request));
        self.open(request, Variant::StateOfTheWorld, take, Answer::into_state_of_the_world)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let take = |mut request: DeltaDiscoveryRequest| (request.node.take(), Ask::from(request));
        self.open(request, Variant::Delta, take, Answer::into_delta)
    }
}

impl DiscoveryService {
    fn open<In, Out>(
        &self,
        request: Request<Streaming<In>>,
        variant: Variant,
        take: fn(In) -> (Option<Node>, Ask),
        into: fn(Answer) -> Out,
    ) -> Result<Response<Responses<Out>>, Status>
    where
        In: Send + 'static,
        Out: Message + Send + 'static,
    {
        let caller = self.authenticator.caller(&request)?;
        if caller.is_none() && self.proof_required {
            return Err(Status::unauthenticated(
                "this port serves only callers that prove who they are: send a client certificate or a token",
            ));
        }
        let encrypted = request.extensions().get::<PeerCertificate>().is_some() && self.proof_required;
        let asks = request.into_inner().map(move |message| message.map(take));
        // One response in the channel: what is not taken yet is not made yet, so a slow client gets the newest.
        let (send, responses) = mpsc::channel::<Result<Out, Status>>(1);
        let stream =
            ProxyStream { service: self.clone(), caller, encrypted, session: Session::new(variant), row: None };
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = stream.run(asks, &send, into) => outcome,
                () = shutdown.cancelled() => Err(Status::unavailable("the control plane is shutting down")),
            };
            if let Err(status) = outcome {
                let _ = tokio::time::timeout(Duration::from_millis(100), send.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// One open stream.
struct ProxyStream {
    service: DiscoveryService,
    caller: Option<SpiffeId>,
    encrypted: bool,
    session: Session,
    row: Option<Row>,
}

impl ProxyStream {
    async fn run<Out: Message>(
        mut self,
        asks: impl Stream<Item = Result<(Option<Node>, Ask), Status>>,
        send: &mpsc::Sender<Result<Out, Status>>,
        into: fn(Answer) -> Out,
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
            while let Some(answer) = tokio::task::block_in_place(|| self.session.next_answer()) {
                let kind = answer.kind;
                let message = into(answer);
                self.count(kind, message.encoded_len(), changed.take());
                self.show();
                if send.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
                if published.has_changed().unwrap_or(false) {
                    changed = self.plan(&mut published, &proxy, secrets);
                }
            }
            let patience = if self.session.is_waiting() { SUBSCRIPTION_WAIT } else { Duration::from_secs(3600) };
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
                () = tokio::time::sleep(patience) => self.session.stop_waiting(),
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
        let offer = tokio::task::block_in_place(|| self.service.cache.offer(&now.snapshot, proxy, secrets));
        self.session.set_offer(offer);
        Some(now.changed)
    }

    fn hear(&mut self, ask: Ask) {
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
