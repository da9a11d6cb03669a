//! Other ways to write objects than kubectl alone: Kubernetes' client for Python, and manifests with the sidecar written in.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::kubectl::{Cluster, printed};
use crate::pods;
use crate::shop::expect_column;

/// The Python client writes an object in each version that Istio serves, and reads it in each.
pub(crate) fn python(cluster: &Cluster) -> Result<String> {
    let python = cluster.python.as_ref().context("E2E_PYTHON names no Python with the package kubernetes")?;
    let script = cluster.repository.join("tests/e2e/versions.py");
    printed(Command::new(python).arg(script).stdin(Stdio::null()).output(), "versions.py")?;
    Ok(String::new())
}

const MANUAL: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: manual}
---
apiVersion: v1
kind: Service
metadata: {name: manual, namespace: manual}
spec:
  selector: {app: manual}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: manual, namespace: manual}
spec:
  selector: {matchLabels: {app: manual}}
  template:
    metadata: {labels: {app: manual}}
    spec:
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}}
";

/// `meshctl inject -f - | kubectl apply -f -` in a namespace without a label.
pub(crate) fn inject(cluster: &Cluster) -> Result<String> {
    pods::start_caller(cluster)?;
    let file = std::env::temp_dir().join(format!("e2e-manual-{}.yaml", std::process::id()));
    std::fs::write(&file, MANUAL.replace("TAG", &cluster.tag))?;
    let injected = cluster.meshctl(&format!("inject -f {}", file.display()));
    std::fs::remove_file(&file)?;
    cluster.apply(&injected?)?;
    cluster.rolled_out("manual")?;
    expect_column(cluster, "manual", "2/2")?;
    let text = cluster.until("the pod is called by mutual TLS", || {
        let text = pods::call(cluster, "http://manual.manual/")?;
        ensure!(text.contains("spiffe://cluster.local/ns/pods/sa/default"), "{text}");
        Ok(text)
    })?;
    ensure!(text.contains("pod: manual-"), "{text}");
    cluster.kubectl("delete namespace manual --wait=false")?;
    Ok(String::new())
}
