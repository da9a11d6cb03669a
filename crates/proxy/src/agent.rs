//! What Istio's agent does, in the same process: gets the identity, follows the xDS server, hands both to the proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use api::xds::{Any, ResourceKind, unpack};
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SdsSecret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::Running;
use crate::bootstrap;
use crate::capture::EXIT_CODE;
use crate::capture::check::{Found, check};
use crate::control::{Settings, Shared};
use crate::dns::{Dns, Serving};
use crate::drain::Drained;
use crate::identity::{self, channel};
use crate::secret::{Secret, Store};
use crate::xds::client::{self, Connect, Options, State};
use crate::xds::resources::{Reject, ResourceSet};

/// A proxy under a control plane.
pub struct Agent {
    /// The proxy proper.
    pub running: Arc<Running>,
    /// What the xDS stream is doing.
    pub stream: watch::Receiver<State>,
    /// The workload's identity.
    pub identity: watch::Receiver<identity::State>,
    tasks: JoinSet<()>,
    /// Where the workload's DNS queries are answered, for as long as this lives.
    dns: Option<Serving>,
}

impl Agent {
    /// Starts the proxy, and what feeds it.
    ///
    /// # Errors
    /// The proxy cannot start. An absent control plane is no error: it is waited for.
    pub async fn start(settings: Settings, options: Options) -> Result<Agent> {
        let store = Arc::new(Store::default());
        let running = Arc::new(Running::start(settings.clone(), store.clone()).await?);
        let names = match settings.dns.clone() {
            Some(dns) => {
                let (dns, serving) = Dns::start(dns).await?;
                let _ = running.shared().dns.set(Arc::clone(&dns));
                Some((dns, serving))
            }
            None => None,
        };
        let node = bootstrap::node(&settings, running.admin_addr());
        let mut tasks = JoinSet::new();
        let (own, identity) = watch::channel(identity::State::default());
        // Over a plaintext port nobody is certified, unless a certificate service is named.
        if !options.xds_plaintext || options.ca_address.is_some() {
            tasks.spawn(identity::run(options.clone(), store.clone(), own));
        }
        let (state, stream) = watch::channel(State::default());
        let (names, dns) = names.unzip();
        let mut names = Names { dns: names, held: None };
        let applied = running.clone();
        let mut told = Told::default();
        let apply = move |resources: &ResourceSet| {
            tokio::task::block_in_place(|| {
                let mut rejects = take_secrets(resources, &store);
                rejects.extend(names.take(resources));
                rejects.extend(applied.apply(resources));
                for reject in told.news(resources, &rejects) {
                    tracing::error!(
                        kind = reject.kind.row().short,
                        name = reject.name,
                        reason = reject.reason,
                        "refused; the last good one stays"
                    );
                }
                rejects
            })
        };
        tasks.spawn(client::run(node, connect(options, identity.clone()), state, apply));
        if !settings.pod.early.is_empty() {
            tasks.spawn(end_early(Arc::clone(running.shared()), stream.clone()));
        }
        if settings.pod.check_capture {
            tasks.spawn(watch_capture(Arc::clone(running.shared()), settings.pod.captured_by_node));
        }
        Ok(Agent { running, stream, identity, tasks, dns })
    }

    /// Where DNS is answered; empty if it is not captured.
    pub fn dns_addresses(&self) -> &[SocketAddr] {
        self.dns.as_ref().map(Serving::addresses).unwrap_or_default()
    }

    /// Drains the proxy, then ends what feeds it.
    pub async fn end(self) {
        let Agent { running, mut tasks, dns, .. } = self;
        // What still runs goes by the configuration of now: endpoints that end meanwhile are not asked.
        let drained = running.leave().await;
        if let Drained::Cut(left) = drained {
            tracing::warn!(left, "connections are cut: the time to end is over");
        }
        tasks.shutdown().await;
        drop((dns, running));
    }
}

/// How long a captured connection waits for the first configuration: as long as Istio's users know connecting to take
/// (`connectTimeout`).
const FIRST_CONFIGURATION: Duration = Duration::from_secs(10);
/// How often it is asked whether traffic is captured, until it is.
const CAPTURE_PAUSE: Duration = Duration::from_secs(1);

/// Bounds the wait of connections that came before the configuration.
async fn end_early(shared: Arc<Shared>, mut stream: watch::Receiver<State>) {
    let whole = tokio::time::timeout(FIRST_CONFIGURATION, stream.wait_for(|state| state.complete)).await.is_ok();
    if !shared.end_early() && !whole {
        tracing::warn!("there is still no configuration: captured connections are refused until it comes");
    }
}

/// How long a pod may be seen uncaptured that its node was to capture before it started.
const NODE_PATIENCE: Duration = Duration::from_secs(10);
/// Where the kubelet reads why a container ended.
const TERMINATION_MESSAGE: &str = "/dev/termination-log";
/// Why nothing is captured, by who was to do it.
const BY_POD: &str = "The init container istio-init (proxy init) has not run in this network namespace, its rules were removed, or they are for another user";
const BY_NODE: &str = "The CNI plug-in istio-cni was not in place on this node when the pod started, or its rules were removed: see that the pod of the DaemonSet istio-cni-node on this node is ready (`meshctl check`), then delete this pod, so that it starts anew";

/// Keeps the proxy from being ready until the pod's traffic is seen to be captured. Where the node was to capture and has not, nobody
/// ever will in this pod: then the proxy ends, so that whoever looks at the pod sees why.
async fn watch_capture(shared: Arc<Shared>, by_node: bool) {
    let otherwise = if by_node { BY_NODE } else { BY_POD };
    let mut since = None;
    let own = shared.settings.metadata.instance_ips.split(',').next().and_then(|address| address.trim().parse().ok());
    let Some(own) = own else { return };
    shared.hold_ready(Some("it has not been seen yet whether the pod's traffic is captured".to_owned()));
    let mut told = String::new();
    loop {
        // Where nobody listens, a refusal says nothing.
        let found = match shared.listens_on(api::port::INBOUND) {
            true => check(own).await,
            false => Found::Unknown("nobody listens on the inbound port yet".to_owned()),
        };
        let missing = found == Found::NotCaptured;
        let reason = match found {
            Found::Captured => break,
            Found::NotCaptured => format!(
                "the pod's traffic is not captured: a connection of this user ({}) to {own} did not come to port {}. {otherwise}",
                nix::unistd::geteuid(),
                api::port::INBOUND
            ),
            Found::Unknown(why) => format!("it cannot be seen whether the pod's traffic is captured: {why}"),
        };
        if reason != told && shared.is_configured() {
            tracing::error!(reason, "not ready");
            told.clone_from(&reason);
        }
        if by_node && missing && since.get_or_insert_with(Instant::now).elapsed() > NODE_PATIENCE {
            // `kubectl describe pod` shows it. Nobody is served who could be cut.
            tracing::error!(reason, "ending: this pod cannot be repaired from inside");
            let _ = std::fs::write(TERMINATION_MESSAGE, &reason);
            std::process::exit(i32::from(EXIT_CODE));
        }
        shared.hold_ready(Some(reason));
        tokio::time::sleep(CAPTURE_PAUSE).await;
    }
    shared.hold_ready(None);
    tracing::info!("the pod's traffic is captured");
}

/// The refusals that the log has: it gets each once, until the resource or the reason is another.
#[derive(Debug, Default)]
struct Told(Vec<(Reject, Option<String>)>);

impl Told {
    /// Those that the log does not have yet.
    fn news<'a>(&mut self, resources: &ResourceSet, rejects: &'a [Reject]) -> Vec<&'a Reject> {
        let version = |reject: &Reject| resources.of(reject.kind).get(&reject.name).map(|held| held.version.clone());
        let now: Vec<_> = rejects.iter().map(|reject| (reject.clone(), version(reject))).collect();
        let news =
            rejects.iter().zip(&now).filter(|(_, one)| !self.0.contains(one)).map(|(reject, _)| reject).collect();
        self.0 = now;
        news
    }
}

/// Channels to the xDS server, with the certificate of now once there is one.
fn connect(options: Options, identity: watch::Receiver<identity::State>) -> Connect {
    Box::new(move || {
        let (options, current) = (options.clone(), identity.borrow().current.clone());
        Box::pin(async move {
            channel::connect(&options, &options.xds_address, options.xds_plaintext, current.as_ref()).await
        })
    })
}

/// The names that DNS is answered from.
struct Names {
    dns: Option<Arc<Dns>>,
    /// The last table that was taken or refused, and why.
    held: Option<(Arc<Any>, Option<Reject>)>,
}

impl Names {
    /// Takes the table, if it is another than the one before.
    fn take(&mut self, resources: &ResourceSet) -> Option<Reject> {
        let dns = self.dns.as_ref()?;
        let (name, resource) = resources.of(ResourceKind::NameTable).first_key_value()?;
        if let Some((_, reject)) = self.held.as_ref().filter(|(held, _)| Arc::ptr_eq(held, &resource.body)) {
            return reject.clone();
        }
        let refused = dns.set_names(&resource.body).err();
        let reject = refused.map(|reason| Reject { kind: ResourceKind::NameTable, name: name.clone(), reason });
        self.held = Some((Arc::clone(&resource.body), reject.clone()));
        reject
    }
}

/// Publishes the secrets that the xDS server serves; those that are gone are taken back.
fn take_secrets(resources: &ResourceSet, store: &Store) -> Vec<Reject> {
    let served = resources.of(ResourceKind::Secret);
    let now = store.load();
    let is_served = |name: &str| name.starts_with("kubernetes://");
    let gone = now.iter().map(|(name, _)| name).filter(|name| is_served(name) && !served.contains_key(*name));
    let mut changes: Vec<(String, Option<Secret>)> = gone.map(|name| (name.to_owned(), None)).collect();
    let mut rejects = Vec::new();
    for (name, resource) in served {
        match unpack(&resource.body).and_then(|secret| read(secret).map_err(|error| format!("{error:#}"))) {
            Ok(secret) => changes.push((name.clone(), Some(secret))),
            Err(reason) => rejects.push(Reject { kind: ResourceKind::Secret, name: name.clone(), reason }),
        }
    }
    if !changes.is_empty() {
        store.update(changes);
    }
    rejects
}

fn read(secret: SdsSecret) -> Result<Secret> {
    match secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            let chain = CertificateDer::pem_slice_iter(bytes(certificate.certificate_chain.as_ref())?)
                .collect::<Result<Vec<_>, _>>()?;
            anyhow::ensure!(!chain.is_empty(), "the certificate chain is empty");
            let key = PrivateKeyDer::from_pem_slice(bytes(certificate.private_key.as_ref())?)?;
            let mut certified = CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?);
            certified.keys_match()?;
            certified.ocsp =
                certificate.ocsp_staple.as_ref().map(|staple| bytes(Some(staple))).transpose()?.map(<[u8]>::to_vec);
            Ok(Secret::Certificate(Arc::new(certified)))
        }
        Some(Type::ValidationContext(context)) => {
            // Ignored, they would widen trust.
            anyhow::ensure!(context.crl.is_none(), "crl: revocation lists are not built");
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(bytes(context.trusted_ca.as_ref())?) {
                roots.add(certificate?)?;
            }
            Ok(Secret::Roots(Arc::new(roots)))
        }
        _ => anyhow::bail!("neither a certificate nor trust roots"),
    }
}

fn bytes(source: Option<&DataSource>) -> Result<&[u8]> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes()),
        _ => anyhow::bail!("a part of the secret is missing or not inline"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::resources::Resource;

    #[test]
    fn a_refusal_is_told_once_until_something_changes() {
        let set = |version: &str| {
            let mut set = ResourceSet::default();
            let held = Resource { version: version.to_owned(), body: Arc::default() };
            set.of_mut(ResourceKind::Cluster).insert("a".to_owned(), held);
            set
        };
        let reject = |reason: &str| Reject { kind: ResourceKind::Cluster, name: "a".into(), reason: reason.to_owned() };
        let mut told = Told::default();
        let mut count = |version: &str, rejects: &[Reject]| told.news(&set(version), rejects).len();
        assert_eq!(count("1", &[reject("x")]), 1);
        assert_eq!(count("1", &[reject("x")]), 0, "nothing changed");
        assert_eq!(count("1", &[reject("y")]), 1, "another reason");
        assert_eq!(count("2", &[reject("y")]), 1, "another version");
        assert_eq!(count("3", &[]), 0);
        assert_eq!(count("2", &[reject("y")]), 1, "it was good in between");
    }
}
