//! `cargo xtask e2e`: the tests of `tests/e2e` on a real Kubernetes.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{cluster, image, repository, tools};

/// Name of the cluster that is started here.
const NAME: &str = "e2e";
/// Nodes of it: two, so that traffic crosses the network.
const NODES: usize = 2;

/// `cargo xtask e2e …`
#[derive(Args)]
pub(crate) struct Options {
    /// Leave the cluster as it is afterwards.
    #[arg(long)]
    keep: bool,
    /// Make a cluster with kind, and the images with docker.
    #[arg(long)]
    kind: bool,
    /// Profile of cargo for the images.
    #[arg(long, default_value = PROFILE)]
    profile: String,
    /// Only scenarios whose name contains this, and those that prepare them.
    filter: Option<String>,
}

const PROFILE: &str = "quick-release";

impl Default for Options {
    fn default() -> Options {
        Options { keep: false, kind: false, profile: PROFILE.to_owned(), filter: None }
    }
}

/// A cluster with our images in it.
pub(crate) struct Prepared {
    root: PathBuf,
    kubeconfig: PathBuf,
    meshctl: PathBuf,
    python: PathBuf,
    filter: Option<String>,
    /// Its name, if it is one of `tests/cluster`.
    ours: Option<String>,
    /// Whose it is to end.
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    /// Somebody else's, or to be kept.
    Not,
    Ours,
    Kind,
}

/// Runs the tests; ends the cluster.
pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let prepared = prepare(root, options)?;
    let status = prepared.command().status().context("cargo cannot be run");
    prepared.end()?;
    Ok(if status?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts a cluster, or takes the one that is named, and brings our images there.
pub(crate) fn prepare(root: &Path, options: &Options) -> Result<Prepared> {
    let target = repository::target(root)?;
    let python = tools::kubernetes_python(&target)?;
    let given = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let (kubeconfig, ours, end) = match given {
        _ if options.kind => (kind(root, &target)?, None, End::Kind),
        Some(path) => {
            let name = name_of(&path);
            (path, name, End::Not)
        }
        None => (cluster::up(root, NAME, NODES)?.into(), Some(NAME.to_owned()), End::Ours),
    };
    let end = if options.keep { End::Not } else { end };
    let meshctl = match &ours {
        Some(name) => {
            cluster::load(root, name, &options.profile)?;
            image::built(root, &options.profile)?.join("meshctl")
        }
        None => {
            if !options.kind {
                let names: Vec<String> = image::names().map(|name| format!("mesh/{name}:{}", cluster::TAG)).collect();
                eprintln!("the nodes of that cluster must have the images {}", names.join(", "));
            }
            repository::cargo(root, &["build", "--workspace", "--bins", "--locked"])?;
            repository::program(root, "meshctl")?
        }
    };
    let filter = options.filter.clone();
    Ok(Prepared { root: root.to_owned(), kubeconfig, meshctl, python, filter, ours, end })
}

/// Clusters of `tests/cluster` have their kubeconfig in a folder of their own name.
fn name_of(kubeconfig: &Path) -> Option<String> {
    let folder = kubeconfig.parent()?;
    folder.join("index").is_file().then(|| folder.file_name()?.to_str().map(str::to_owned)).flatten()
}

fn kind(root: &Path, target: &Path) -> Result<PathBuf> {
    for program in ["docker", "kind", "kubectl"] {
        if tools::find(program).is_none() {
            bail!("--kind needs docker, kind and kubectl; {program} is not installed");
        }
    }
    let kubeconfig = target.join("e2e-kind.kubeconfig");
    run_shown(Command::new("kind").args(["create", "cluster", "--name", NAME, "--kubeconfig"]).arg(&kubeconfig))?;
    for name in image::names() {
        let tag = format!("mesh/{name}:{}", cluster::TAG);
        run_shown(Command::new("docker").args(["build", "--target", name, "--tag", &tag, "."]).current_dir(root))?;
        run_shown(Command::new("kind").args(["load", "docker-image", "--name", NAME, &tag]))?;
    }
    Ok(kubeconfig)
}

fn run_shown(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{command:?} cannot be run"))?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}

impl Prepared {
    /// What runs the tests. Its closing line is that of every test program.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO"));
        command.args(["test", "--workspace", "--locked", "--quiet", "--test", "e2e", "--"]).args(&self.filter);
        command.current_dir(&self.root).env("KUBECONFIG", &self.kubeconfig);
        command.env("MESHCTL", &self.meshctl).env("E2E_PYTHON", &self.python);
        command.env("E2E_CLUSTER", self.ours.as_deref().unwrap_or_default());
        command
    }

    /// Takes away what was started.
    pub(crate) fn end(&self) -> Result<()> {
        match self.end {
            End::Not => Ok(()),
            End::Ours => cluster::down(&self.root, NAME),
            End::Kind => run_shown(Command::new("kind").args(["delete", "cluster", "--name", NAME])),
        }
    }
}
