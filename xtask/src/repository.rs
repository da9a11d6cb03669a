//! Where things are, and running cargo there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The repository's top folder.
pub(crate) fn root() -> Result<PathBuf> {
    // As cargo says when it runs this program: clones that share a target folder also share the program, which must not work
    // on the clone that happened to build it.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").context("run this through cargo: `cargo xtask …`")?;
    Path::new(&here).parent().map(Path::to_owned).context("xtask is not below the repository")
}

/// Runs cargo and shows its output.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new(env!("CARGO")).args(arguments).current_dir(root).status()?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}

/// Where cargo puts what it builds.
pub(crate) fn target(root: &Path) -> Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("`cargo metadata` did not answer")?;
    metadata["target_directory"].as_str().map(PathBuf::from).context("`cargo metadata` does not name the target folder")
}

/// A program that the workspace builds, in the development profile.
pub(crate) fn program(root: &Path, name: &str) -> Result<PathBuf> {
    Ok(target(root)?.join("debug").join(name))
}
