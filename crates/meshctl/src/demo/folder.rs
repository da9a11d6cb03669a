//! The demo's own copy of the sample: with addresses that are free, and certificates made for the occasion.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use api::decode;
use api::object::{Body, Object};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

/// The sample's addresses start so.
const PREFIX: &str = "127.77.0.";
/// Host that the gateway serves.
pub(super) const HOST: &str = "api.ecommerce.com";

/// A workload of the sample.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// Name of its WorkloadEntry.
    pub(super) name: String,
    /// Namespace.
    pub(super) namespace: String,
    /// Its loopback address.
    pub(super) address: String,
    /// Label `app`.
    pub(super) app: String,
    /// Label `version`.
    pub(super) version: String,
    /// Service account.
    pub(super) account: String,
}

impl Workload {
    /// Whether it is the gateway, which has no application.
    pub(super) fn is_gateway(&self) -> bool {
        self.namespace == "istio-system"
    }

    /// The role of the shop's program (`user` of `user-service`).
    pub(super) fn role(&self) -> &str {
        self.app.strip_suffix("-service").unwrap_or(&self.app)
    }
}

/// The copied sample.
pub(super) struct Folder {
    /// Everything of this run: configuration, state, logs.
    pub(super) root: PathBuf,
    /// The workloads, gateway last.
    pub(super) workloads: Vec<Workload>,
    /// Trusts the gateway's certificate.
    pub(super) roots: RootCertStore,
}

impl Folder {
    /// Copies the sample into a fresh folder.
    pub(super) fn copy(sample: &Path) -> Result<Folder> {
        if !sample.join("config").is_dir() {
            bail!("{} is not the sample's folder (it has no folder config); name it with --sample", sample.display());
        }
        let root = fresh_folder()?;
        let prefix = free_prefix()?;
        for name in ["config", "logs", "tokens"] {
            fs::create_dir(root.join(name))?;
        }
        let mut workloads = Vec::new();
        let mut copied = vec![(sample.join("mesh-config.yaml"), root.join("mesh-config.yaml"))];
        for entry in fs::read_dir(sample.join("config"))? {
            let entry = entry?;
            copied.push((entry.path(), root.join("config").join(entry.file_name())));
        }
        for (from, to) in copied {
            let text = fs::read_to_string(&from)
                .with_context(|| format!("{} cannot be read", from.display()))?
                .replace(PREFIX, &prefix);
            fs::write(&to, &text).with_context(|| format!("{} cannot be written", to.display()))?;
            let decoded = decode::documents(text.as_bytes(), &from.display().to_string(), "default");
            workloads.extend(decoded.objects.iter().filter_map(workload));
        }
        workloads.sort_by_key(|workload| (workload.is_gateway(), workload.name.clone()));
        let roots = write_secret(&root.join("config"))?;
        Ok(Folder { root, workloads, roots })
    }

    /// A path below the folder.
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// The workload of a name.
    pub(super) fn workload(&self, name: &str) -> Result<&Workload> {
        self.workloads
            .iter()
            .find(|workload| workload.name == name)
            .with_context(|| format!("the sample has no workload {name}"))
    }
}

fn workload(object: &Object) -> Option<Workload> {
    let Body::WorkloadEntry(entry) = &object.body else { return None };
    let label = |key: &str| entry.labels.get(key).cloned().unwrap_or_default();
    Some(Workload {
        name: object.meta.name.clone(),
        namespace: object.meta.namespace.clone(),
        address: entry.address.clone(),
        app: label("app"),
        version: label("version"),
        account: entry.service_account.clone(),
    })
}

fn fresh_folder() -> Result<PathBuf> {
    let base = std::env::temp_dir();
    for number in 0..1_000 {
        let folder = base.join(format!("mesh-demo-{}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("{} cannot be made", folder.display())),
        }
    }
    bail!("{} is full of old demo folders", base.display())
}

/// The first of 127.77.0., 127.77.1., … whose ports are free: another demo may be running.
fn free_prefix() -> Result<String> {
    let is_free = |prefix: &String| {
        [("10", 8443), ("10", 15021), ("11", 8080), ("53", 18080)]
            .iter()
            .all(|(host, port)| TcpListener::bind(format!("{prefix}{host}:{port}")).is_ok())
    };
    (0..200)
        .map(|third| format!("127.77.{third}."))
        .find(is_free)
        .context("no loopback addresses 127.77.x.y are free; end other demos first")
}

/// A certificate for the gateway, as a Secret the way a user would make it.
fn write_secret(config: &Path) -> Result<RootCertStore> {
    let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned(), "admin.ecommerce.com".to_owned()])?;
    let indent = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let text = format!(
        "# Made for this run.\napiVersion: v1\nkind: Secret\nmetadata:\n  name: ecommerce-tls-secret\n  namespace: istio-system\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indent(made.cert.pem()),
        indent(made.signing_key.serialize_pem()),
    );
    fs::write(config.join("gateway-secret.yaml"), text)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(made.cert.der().to_vec()))?;
    Ok(roots)
}
