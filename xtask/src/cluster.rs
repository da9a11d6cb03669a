//! `cargo xtask cluster`: the real, small Kubernetes of `tests/cluster`, and our images in it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::{image, tools};

/// `cargo xtask cluster …`
#[derive(Subcommand)]
pub(crate) enum Chore {
    /// Build Kubernetes if that has not been done (minutes), start a cluster, print the path of its kubeconfig.
    Up {
        /// Nodes.
        #[arg(long, default_value_t = 1)]
        nodes: usize,
    },
    /// End the cluster and remove every trace of it.
    Down,
    /// Build our images and load them into the cluster.
    Load {
        /// Profile of cargo.
        #[arg(long, default_value = "quick-release")]
        profile: String,
    },
}

/// Tag of the images that are built here: the version of the workspace.
pub(crate) const TAG: &str = env!("CARGO_PKG_VERSION");

/// Does one of them.
pub(crate) fn run(root: &Path, chore: &Chore) -> Result<()> {
    match chore {
        Chore::Up { nodes } => println!("{}", up(root, &name(), *nodes)?),
        Chore::Down => down(root, &name())?,
        Chore::Load { profile } => load(root, &name(), profile)?,
    }
    Ok(())
}

/// The cluster that the script takes if it is told none.
fn name() -> String {
    std::env::var("MESH_CLUSTER_NAME").unwrap_or_else(|_| "mesh".to_owned())
}

/// Starts the cluster; the path of its kubeconfig.
pub(crate) fn up(root: &Path, name: &str, nodes: usize) -> Result<String> {
    tools::cluster()?;
    output(root, &["build"])?;
    Ok(output(root, &["up", "--name", name, "--nodes", &nodes.to_string()])?.trim().to_owned())
}

/// Ends the cluster.
pub(crate) fn down(root: &Path, name: &str) -> Result<()> {
    output(root, &["down", "--name", name]).map(drop)
}

/// Builds our images and loads them.
pub(crate) fn load(root: &Path, name: &str, profile: &str) -> Result<()> {
    let archives = image::build(root, profile, TAG)?;
    let mut arguments = ["load", "--name", name].map(str::to_owned).to_vec();
    arguments.extend(archives.iter().map(|archive| archive.display().to_string()));
    output(root, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}

/// Runs the cluster's script; what it prints. What it says of its progress is shown.
pub(crate) fn output(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(root.join("tests/cluster/cluster"))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("tests/cluster/cluster cannot be run")?;
    if !output.status.success() {
        bail!("`tests/cluster/cluster {}` failed", arguments.join(" "));
    }
    String::from_utf8(output.stdout).context("the cluster's script printed something that is no text")
}
