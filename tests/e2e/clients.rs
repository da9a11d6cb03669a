//! Kubernetes' own clients, besides kubectl.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::kubectl::{Cluster, printed};

/// The Python client writes an object in each version that Istio serves, and reads it in each.
pub(crate) fn python(cluster: &Cluster) -> Result<String> {
    let python = cluster.python.as_ref().context("E2E_PYTHON names no Python with the package kubernetes")?;
    let script = cluster.repository.join("tests/e2e/versions.py");
    printed(Command::new(python).arg(script).stdin(Stdio::null()).output(), "versions.py")?;
    Ok(String::new())
}
