//! A bare ADS client: the proxy's session with a stream, without a proxy.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use api::xds::core::Node;
use api::xds::{ResourceKind, json_to_struct};
use proxy::identity::channel;
use proxy::xds::client::{self, Options, State};
use proxy::xds::resources::{Reject, ResourceSet};
use tokio::sync::watch;

/// A connected client; disconnects with this value.
pub struct AdsClient {
    /// What is in effect.
    pub held: Arc<Mutex<ResourceSet>>,
    /// What the stream is doing.
    pub state: watch::Receiver<State>,
    task: tokio::task::JoinHandle<()>,
}

/// How to reach the control plane.
pub fn options(address: &str, plaintext: bool, root: Option<PathBuf>, token_file: Option<PathBuf>) -> Options {
    Options {
        xds_address: address.to_owned(),
        xds_plaintext: plaintext,
        ca_address: None,
        root_cert: root,
        token_file,
        secret_ttl: std::time::Duration::from_secs(3600),
    }
}

/// A node as a sidecar of ours tells it.
pub fn sidecar(address: &str, name: &str, namespace: &str) -> Node {
    let metadata = serde_json::json!({"NAMESPACE": namespace, "NAME": name, "INTERCEPTION_MODE": "NONE", "ISTIO_VERSION": "1.32.0"});
    Node {
        id: format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(json_to_struct(&metadata)),
        ..Node::default()
    }
}

impl AdsClient {
    /// Connects, and answers each change with what `verdict` refuses.
    pub fn connect(
        node: Node,
        options: Options,
        mut verdict: impl FnMut(&ResourceSet) -> Vec<Reject> + Send + 'static,
    ) -> AdsClient {
        let (sender, state) = watch::channel(State::default());
        let held = Arc::new(Mutex::new(ResourceSet::default()));
        let connect: client::Connect = Box::new(move || {
            let options = options.clone();
            Box::pin(async move { channel::connect(&options, &options.xds_address, options.xds_plaintext, None).await })
        });
        let seen = held.clone();
        let apply = move |resources: &ResourceSet| {
            seen.lock().unwrap().clone_from(resources);
            verdict(resources)
        };
        let task = tokio::spawn(client::run(node, connect, sender, apply));
        AdsClient { held, state, task }
    }

    /// Waits until everything asked for has been answered.
    pub async fn complete(&mut self) {
        let waited = tokio::time::timeout(crate::wait::PATIENCE, self.state.wait_for(|state| state.complete))
            .await
            .map(|seen| seen.is_ok());
        assert_eq!(waited, Ok(true), "the client is not complete: {:?}", *self.state.borrow());
    }

    /// Names held of a kind.
    pub fn names(&self, kind: ResourceKind) -> Vec<String> {
        self.held.lock().unwrap().of(kind).keys().cloned().collect()
    }
}

impl Drop for AdsClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}
