//! The stream to an xDS server: connects, backs off, feeds the session, survives the server's absence.

use std::path::PathBuf;
use std::time::Duration;

use api::xds::core::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::resources::{Reject, ResourceSet};
use super::session::Session;
use super::variant::{Delta, StateOfTheWorld, Variant};
use crate::go_value::parse_duration;

/// Longest pause between two attempts to connect.
const MAX_BACK_OFF: Duration = Duration::from_secs(10);
/// First pause after a lost stream.
const MIN_BACK_OFF: Duration = Duration::from_millis(100);
/// Messages larger than this are refused: a full state of thousands of services stays far below.
const MAX_MESSAGE: usize = 256 << 20;

/// How the control plane is reached. Names follow Istio's agent where it has them.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// xDS server, `host:port`. With --xds-plaintext no TLS is used (port 15010), else port 15012.
    #[arg(long, env = "XDS_ADDRESS", default_value = "127.0.0.1:15012", alias = "discoveryAddress")]
    pub xds_address: String,
    /// Speak to the xDS server without TLS. Secrets are not served this way.
    #[arg(long, env = "XDS_PLAINTEXT")]
    pub xds_plaintext: bool,
    /// Certificate service, `host:port`; the xDS server's address when it is not given and TLS is used there.
    #[arg(long, env = "CA_ADDR")]
    pub ca_address: Option<String>,
    /// PEM file with the root certificates of the control plane.
    #[arg(long, env = "XDS_ROOT_CA", alias = "root-cert-file")]
    pub root_cert: Option<PathBuf>,
    /// File with the token that proves who this workload is (join token, or service account token).
    #[arg(long, env = "TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Wished lifetime of the workload's certificate, `24h`.
    #[arg(long, env = "SECRET_TTL", default_value = "24h", value_parser = parse_duration)]
    pub secret_ttl: Duration,
}

/// What the control plane's stream is doing, for readiness and the admin pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// A stream is open.
    pub connected: bool,
    /// All that was asked for has been answered at least once.
    pub complete: bool,
    /// Why the last attempt failed; empty while connected.
    pub error: String,
}

/// Makes channels to the server; a new one for every attempt, so that certificates of now are used.
pub type Connect =
    Box<dyn Fn() -> futures_util::future::BoxFuture<'static, anyhow::Result<(Channel, Option<String>)>> + Send + Sync>;

/// Runs the client until the task is dropped. `apply` is called with all that is in effect whenever that changed, and
/// returns what it refuses. Each accepted or refused resource is acknowledged to the server.
pub async fn run(
    node: Node,
    connect: Connect,
    state: watch::Sender<State>,
    mut apply: impl FnMut(&ResourceSet) -> Vec<Reject> + Send,
) {
    let mut session = Session::new(node);
    let (mut back_off, mut speaks) = (MIN_BACK_OFF, Speaks::Delta);
    loop {
        let outcome = stream(&mut session, &connect, &state, &mut apply, &mut back_off, &mut speaks).await;
        let error = match outcome {
            Ok(()) => "the server closed the stream".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let was_connected = state.borrow().connected;
        if was_connected || state.borrow().error != error {
            tracing::warn!(%error, "no stream to the xDS server; serving with the configuration held");
        }
        state.send_modify(|state| {
            state.connected = false;
            state.error = error;
        });
        let jitter = rand::rng().random_range(0.5..1.5);
        tokio::time::sleep(back_off.mul_f64(jitter)).await;
        back_off = (back_off * 2).min(MAX_BACK_OFF);
    }
}

/// What the server is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Delta,
    StateOfTheWorld,
}

async fn stream(
    session: &mut Session,
    connect: &Connect,
    state: &watch::Sender<State>,
    apply: &mut (impl FnMut(&ResourceSet) -> Vec<Reject> + Send),
    back_off: &mut Duration,
    speaks: &mut Speaks,
) -> anyhow::Result<()> {
    let (channel, token) = connect().await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut exchange = Exchange { session, state, apply, back_off };
    let outcome = match *speaks {
        Speaks::Delta => {
            let mut wire = Delta;
            let (requests, call) = exchange.call(&mut wire, token).await?;
            match client.delta_aggregated_resources(call).await {
                Ok(responses) => exchange.run(&mut wire, requests, responses.into_inner()).await,
                Err(status) => Err(status),
            }
        }
        Speaks::StateOfTheWorld => {
            let mut wire = StateOfTheWorld::default();
            let (requests, call) = exchange.call(&mut wire, token).await?;
            match client.stream_aggregated_resources(call).await {
                Ok(responses) => exchange.run(&mut wire, requests, responses.into_inner()).await,
                Err(status) => Err(status),
            }
        }
    };
    // Delta is tried first: it is what scales. A server without it says so at once, with the code that gRPC has for it.
    match outcome {
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            let (said, next) = match *speaks {
                Speaks::Delta => ("delta; trying state of the world", Speaks::StateOfTheWorld),
                Speaks::StateOfTheWorld => ("state of the world; trying delta", Speaks::Delta),
            };
            *speaks = next;
            Err(anyhow::anyhow!("the server does not serve aggregated resources in {said}"))
        }
        other => other.map_err(explain),
    }
}

/// What one stream works on.
struct Exchange<'a, A> {
    session: &'a mut Session,
    state: &'a watch::Sender<State>,
    apply: &'a mut A,
    back_off: &'a mut Duration,
}

impl<A: FnMut(&ResourceSet) -> Vec<Reject> + Send> Exchange<'_, A> {
    /// The call with its first requests, and where to put more.
    async fn call<V: Variant>(
        &mut self,
        wire: &mut V,
        token: Option<String>,
    ) -> anyhow::Result<(mpsc::Sender<V::Request>, tonic::Request<ReceiverStream<V::Request>>)>
    where
        V::Request: Send + Sync + 'static,
    {
        // Requests never wait for the server: what can be outstanding is bounded by the kinds, not by time.
        let (requests, outgoing) = mpsc::channel(64);
        for request in self.session.connect() {
            requests.send(wire.request(request)).await?;
        }
        let mut call = tonic::Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = token {
            call.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        Ok((requests, call))
    }

    async fn run<V: Variant>(
        &mut self,
        wire: &mut V,
        requests: mpsc::Sender<V::Request>,
        mut responses: tonic::Streaming<V::Response>,
    ) -> Result<(), tonic::Status> {
        self.state.send_modify(|state| {
            state.connected = true;
            state.error.clear();
        });
        tracing::info!("connected to the xDS server");
        while let Some(response) = responses.message().await? {
            *self.back_off = MIN_BACK_OFF;
            let response = wire.response(response, self.session.received());
            let answers = self.session.respond(response, self.apply);
            let complete = self.session.is_complete();
            self.state.send_if_modified(|state| std::mem::replace(&mut state.complete, complete) != complete);
            for answer in answers {
                if requests.send(wire.request(answer)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// A gRPC status says in one line what an operator needs: the code's name and the server's sentence.
fn explain(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}
