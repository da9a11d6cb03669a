//! The composition root: builds each part, starts it, ends it.

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::debug::Addresses;
use api::mesh_config::MeshConfig;
use api::problem::Severity;
use api::xds::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use plan::inject::ClusterFacts;
use plan::{Change, World};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::admin::{self, Pages};
use crate::authn::{Authenticator, Reviewer};
use crate::ca;
use crate::ca::grpc::CertificateService;
use crate::ca::root::Root;
use crate::ca::serving::Serving;
use crate::config::Config;
use crate::departure::{CONNECTION_AGE, Departure};
use crate::jwks::{self, Fetcher};
use crate::serve::cache::Cache;
use crate::serve::registry::Registry;
use crate::serve::{DiscoveryService, connection};
use crate::source::files::{self, Folder};
use crate::source::{self, Batch, mesh_file};
use crate::state::{self, Keys, Published};
use crate::telemetry::Metrics;
use crate::webhook::inject::{Counters, Injector};
use crate::writers::Writers;
use crate::{memory, state_folder, webhook};

/// A running control plane.
pub struct Running {
    /// Where it listens, with the ports that the system chose.
    pub addresses: Addresses,
    /// The configuration of now; `None` until the first has been planned.
    pub published: watch::Receiver<Option<Published>>,
    departure: Departure,
    leave: Duration,
    shutdown: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Running {
    /// Starts all parts. Ready when `published` holds something.
    ///
    /// # Errors
    /// A file, a folder, an address or the mesh-wide settings cannot be used; the sentence says which.
    pub async fn start(config: Config) -> Result<Running> {
        let (mut mesh, text) = read_mesh_config(&config)?;
        if config.config_dir.is_none() && config.mesh_config.is_none() {
            // In a cluster the namespace of the control plane is the mesh's, until the ConfigMap `istio` says otherwise.
            mesh.root_namespace.clone_from(&config.root_namespace);
        }
        state_folder::prepare(&config.state_dir)?;
        let metrics = Arc::new(Metrics::new()?);
        let objects = Objects::open(&config).await?;
        let cluster = objects.facts(&config).await?;
        if let Some(found) = objects.trust_domains(&config).await? {
            (mesh.trust_domain, mesh.trust_domain_aliases) = (found.trust_domain, found.trust_domain_aliases);
        }
        let injections = metrics.registry().clone();
        let root = match (&objects, &config.ca_dir) {
            (Objects::Cluster(client), None) => {
                ca::secret::load(client, &config.root_namespace, &config.state_dir, &mesh.trust_domain).await?
            }
            (_, plug_in) => Root::load(plug_in.as_deref(), &config.state_dir, &mesh.trust_domain)?,
        };
        let root = Arc::new(root);
        metrics.root_expiry.set(root.not_after.unix_timestamp() as f64);
        let reviewer = objects.client().map(Reviewer::new);
        let authenticator = Authenticator::load(&config.state_dir, &mesh.trust_domain)?;
        let authenticator =
            Arc::new(authenticator.with_aliases(mesh.trust_domain_aliases.clone()).with_reviewer(reviewer));
        let names = serving_names(&config);
        let serving = Serving::new(&root, &names)?;

        let leave = config.leave();
        let departure = Departure::within(leave);
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (publish, published) = watch::channel(None);
        let (batches, batch) = mpsc::channel(16);
        if let Some(client) = objects.client() {
            let writers = Writers {
                client,
                namespace: config.root_namespace.clone(),
                revision: config.revision.clone(),
                replica: config.replica.clone(),
                bundle: root.bundle.clone(),
                published: published.clone(),
            };
            tasks.spawn(writers.run(departure.leaving().clone()));
        }
        tasks.spawn(objects.follow(config.root_namespace.clone(), config.revision.clone(), batches));
        let mut world = World::new(mesh, &config.domain).of_revision(&config.revision).certified();
        let settings = jwks::Settings {
            refresh: config.jwks_refresh,
            blocked: config.blocked_jwks_cidrs.0.clone(),
            state: config.state_dir.clone(),
        };
        let (fetcher, kept) = Fetcher::new(settings, &metrics);
        for (source, keys) in kept.clone() {
            world.apply(Change::Keys(source, keys));
        }
        let (want, wanted) = watch::channel(jwks::Wanted::new());
        let (tell, known) = mpsc::channel(16);
        if let Some(file) = config.mesh_config.clone() {
            world.apply(Change::MeshConfig { text: text.clone(), file: file.display().to_string() });
            let follow = mesh_file::follow(file, text, tell.clone());
            tasks.spawn(async move {
                follow.await;
                Ok(())
            });
        }
        tasks.spawn(async move {
            fetcher.run(kept, wanted, tell).await;
            Ok(())
        });
        let of_state = metrics.clone();
        tasks.spawn(async move {
            state::run(world, batch, Keys { wanted: want, known }, publish, of_state).await;
            Ok(())
        });
        let renewal = serving.clone().renew(root.clone(), names);
        tasks.spawn(async move {
            renewal.await;
            Ok(())
        });

        let (work, worked) = watch::channel(0);
        tasks.spawn(async move {
            memory::follow(worked).await;
            Ok(())
        });
        let registry = Registry::new(metrics.clone());
        let cache = Arc::new(Cache::default());
        let discovery = DiscoveryService {
            published: published.clone(),
            cache: cache.clone(),
            large_pushes: Arc::new(tokio::sync::Semaphore::new(crate::serve::LARGE_AT_ONCE)),
            registry: registry.clone(),
            authenticator: authenticator.clone(),
            metrics: metrics.clone(),
            work,
            proof_required: false,
            departure: departure.clone(),
        };
        let mut addresses = Addresses::default();
        if let Some((listener, address)) = bind(config.grpc_addr, "plaintext xDS").await? {
            addresses.grpc = address;
            tasks.spawn(grpc(listener, None, discovery.clone(), None, departure.moving().clone()));
        }
        if let Some((listener, address)) = bind(config.secure_grpc_addr, "xDS over TLS").await? {
            addresses.secure_grpc = address;
            let certificates = CertificateService { root: root.clone(), authenticator, metrics: metrics.clone() };
            let discovery = DiscoveryService { proof_required: true, ..discovery };
            let tls = serving.config(&root, &["h2"])?;
            tasks.spawn(grpc(listener, Some(tls), discovery, Some(certificates), departure.moving().clone()));
        }
        let http = bind(config.http_addr, "readiness and debug pages").await?;
        let monitoring = bind(config.monitoring_addr, "metrics").await?;
        let webhooks = bind(config.https_addr, "webhooks").await?;
        let shown = |bound: &Option<(TcpListener, String)>| {
            bound.as_ref().map(|(_, address)| address.clone()).unwrap_or_default()
        };
        (addresses.http, addresses.monitoring, addresses.webhook) =
            (shown(&http), shown(&monitoring), shown(&webhooks));
        let pages = Pages {
            published: published.clone(),
            departure: departure.clone(),
            registry,
            cache,
            metrics,
            addresses: addresses.clone(),
            namespace: config.root_namespace.clone(),
            revision: config.revision.clone(),
            cluster: config.cluster_id.clone(),
        };
        for (listener, _) in http.into_iter().chain(monitoring) {
            let served =
                axum::serve(listener, admin::router(pages.clone()).into_make_service_with_connect_info::<SocketAddr>())
                    .with_graceful_shutdown(shutdown.clone().cancelled_owned());
            tasks.spawn(async move { served.await.context("the debug pages ended") });
        }
        if let Some((listener, _)) = webhooks {
            let tls = serving.config(&root, &["h2", "http/1.1"])?;
            let (settings, read) = watch::channel(None);
            let follow = webhook::settings::follow(published.clone(), config.root_namespace.clone(), cluster, settings);
            tasks.spawn(async move {
                follow.await;
                Ok(())
            });
            let counters = Counters::new(&injections)?;
            let injector = Injector { settings: read, published: published.clone(), counters };
            tasks.spawn(webhook::serve(listener, tls, injector, departure.clone(), shutdown.clone()));
        }
        Ok(Running { addresses, published, departure, leave, shutdown, tasks })
    }

    /// Waits until the first configuration has been planned.
    ///
    /// # Errors
    /// A part has ended instead.
    pub async fn ready(&mut self) -> Result<()> {
        self.published.wait_for(Option::is_some).await.map(drop).context("the configuration could not be loaded")
    }

    /// Runs until `end` completes or a part fails. In the first case it leaves as [`Departure`] says; then all ends within the
    /// given time.
    ///
    /// # Errors
    /// The part's.
    pub async fn run_until(mut self, end: impl Future<Output = ()>, patience: Duration) -> Result<()> {
        let outcome = tokio::select! {
            () = end => Ok(()),
            outcome = failed(&mut self.tasks) => outcome,
        };
        if outcome.is_ok() {
            tracing::info!(milliseconds = self.leave.as_millis() as u64, "leaving: not ready any more, still serving");
            self.departure.run(self.leave).await;
        }
        self.shutdown.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, drained).await;
        self.tasks.abort_all();
        outcome
    }
}

/// Where objects come from.
enum Objects {
    Folder(Folder),
    Cluster(Client),
}

impl Objects {
    async fn open(config: &Config) -> Result<Objects> {
        if let Some(folder) = &config.config_dir {
            return Ok(Objects::Folder(Folder::new(folder, &config.namespace)?));
        }
        let read = match &config.kubeconfig {
            Some(file) => {
                let wrong = || format!("the kubeconfig {} cannot be used", file.display());
                let text = Kubeconfig::read_from(file).with_context(wrong)?;
                kube::Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await.with_context(wrong)?
            }
            None => kube::Config::incluster().context(
                "there is neither a folder of objects (--config-dir) nor a cluster (--kubeconfig, or a pod's service account)",
            )?,
        };
        Ok(Objects::Cluster(
            source::kube::server::client(read).context("the cluster cannot be reached with these settings")?,
        ))
    }

    /// What injection must know of the cluster.
    async fn facts(&self, config: &Config) -> Result<ClusterFacts> {
        let revision = Some(config.revision.clone()).filter(|revision| revision != "default").unwrap_or_default();
        let facts = ClusterFacts { cluster_id: config.cluster_id.clone(), revision, ..ClusterFacts::default() };
        let Objects::Cluster(client) = self else { return Ok(facts) };
        let version = client.apiserver_version().await.context("the API server does not answer")?;
        tracing::info!(version = version.git_version, "the API server answers");
        Ok(ClusterFacts { native_sidecars: ClusterFacts::has_native_sidecars(&version.git_version), ..facts })
    }

    /// The settings of the cluster (ConfigMap `istio`, or `istio-REVISION`), for the trust domains that they name: what the authority
    /// and the checks of callers start with must be what proxies are told.
    async fn trust_domains(&self, config: &Config) -> Result<Option<MeshConfig>> {
        let Objects::Cluster(client) = self else { return Ok(None) };
        let name = match config.revision.as_str() {
            "default" => "istio".to_owned(),
            revision => format!("istio-{revision}"),
        };
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.root_namespace);
        // Listed, since that is what the control plane may do with ConfigMaps.
        let found = maps.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await;
        let found = found.context("the mesh-wide settings of the cluster cannot be read")?;
        let text = found.items.into_iter().next().and_then(|map| map.data?.remove("mesh"));
        let Some(text) = text else { return Ok(None) };
        let (mesh, problems) = MeshConfig::parse(&text, &name);
        // What cannot be read is told when it is read with all else; then the settings of the start stay.
        Ok((!problems.iter().any(|problem| problem.severity == Severity::Error)).then_some(mesh))
    }

    fn client(&self) -> Option<Client> {
        match self {
            Objects::Folder(_) => None,
            Objects::Cluster(client) => Some(client.clone()),
        }
    }

    async fn follow(self, root_namespace: String, revision: String, batches: mpsc::Sender<Batch>) -> Result<()> {
        match self {
            Objects::Folder(folder) => files::run(folder, batches).await,
            Objects::Cluster(client) => source::kube::run(client, root_namespace, revision, batches).await,
        }
        Ok(())
    }
}

/// Parts run for ever: the first that ends is the reason to stop.
async fn failed(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    match tasks.join_next().await {
        Some(Ok(Ok(()))) | None => anyhow::bail!("a part of the control plane ended by itself"),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context("a part of the control plane broke"),
    }
}

async fn grpc(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    discovery: DiscoveryService,
    certificates: Option<CertificateService>,
    moving: CancellationToken,
) -> Result<()> {
    Server::builder()
        // Many small messages on one connection must not look like an attack to HTTP/2's guards.
        .initial_connection_window_size(16 << 20)
        .initial_stream_window_size(4 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_connection_age(CONNECTION_AGE)
        .add_service(discovery)
        .add_optional_service(certificates.map(IstioCertificateServiceServer::new))
        .serve_with_incoming_shutdown(connection::accept(listener, tls), moving.cancelled_owned())
        .await
        .context("the xDS server ended")
}

async fn bind(address: Option<SocketAddr>, purpose: &str) -> Result<Option<(TcpListener, String)>> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("{address} ({purpose}) cannot be listened on; choose another address, or port 0 for any")
    })?;
    let bound = listener.local_addr()?.to_string();
    Ok(Some((listener, bound)))
}

/// The settings to start with, and the text that they stand in.
fn read_mesh_config(config: &Config) -> Result<(MeshConfig, String)> {
    let Some(file) = &config.mesh_config else { return Ok((MeshConfig::default(), String::new())) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("the mesh-wide settings {} cannot be read", file.display()))?;
    let (mesh, problems) = MeshConfig::parse(&text, &file.display().to_string());
    // At the start there is no last good version to keep.
    if let Some(problem) = problems.iter().find(|problem| problem.severity == Severity::Error) {
        anyhow::bail!("{problem}");
    }
    Ok((mesh, text))
}

fn serving_names(config: &Config) -> Vec<String> {
    // Istio's names of the control plane's Service; ours for one machine.
    let namespace = &config.root_namespace;
    let mut services = vec!["istiod".to_owned(), "istiod-remote".to_owned(), "istio-pilot".to_owned()];
    if config.revision != "default" {
        services.push(format!("istiod-{}", config.revision));
    }
    let mut names: Vec<String> = services.iter().map(|service| format!("{service}.{namespace}.svc")).collect();
    names.extend(services.iter().map(|service| format!("{service}.{namespace}.svc.{}", config.domain)));
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names.extend(config.serving_names.iter().cloned());
    names
}

/// Says on standard output where the control plane listens: one `name=address` a line, for people and scripts.
///
/// # Errors
/// Standard output is closed.
pub fn announce(addresses: &Addresses) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let rows = [
        ("grpc", &addresses.grpc),
        ("secure-grpc", &addresses.secure_grpc),
        ("http", &addresses.http),
        ("monitoring", &addresses.monitoring),
        ("https", &addresses.webhook),
    ];
    for (name, address) in rows.into_iter().filter(|(_, address)| !address.is_empty()) {
        writeln!(out, "{name}={address}")?;
    }
    writeln!(out, "ready")?;
    out.flush()
}
