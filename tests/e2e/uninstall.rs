//! Taking the mesh away: nobody is hurt, and nothing is left; and coming back.

use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::kubectl::Cluster;
use crate::shop::{SHOP, configured, expect_column, joins, order};
use crate::{install, pods};

const USER: &str = "http://user-service.ecommerce:8080/api/v1/users/1";
/// The root certificate that the first installation made.
static ROOT: OnceLock<String> = OnceLock::new();

fn root(cluster: &Cluster) -> Result<String> {
    let map = cluster.get("configmap -n pods istio-ca-root-cert")?;
    map["data"]["root-cert.pem"].as_str().map(str::to_owned).context("there is no root certificate")
}

/// Without a control plane, pods serve each other as before.
pub(crate) fn kept(cluster: &Cluster) -> Result<String> {
    pods::start_caller(cluster)?;
    ROOT.get_or_init(|| root(cluster).unwrap_or_default());
    cluster.meshctl("uninstall -y")?;
    let left = cluster.kubectl("get deployments,services -n istio-system -o name")?;
    ensure!(left.trim().is_empty(), "this is left: {left}");
    for _ in 0..20 {
        let text = pods::call(cluster, USER)?;
        ensure!(text.contains("spiffe://cluster.local/ns/pods/sa/default"), "not by mutual TLS: {text}");
    }
    Ok(String::new())
}

/// Pods that are restarted come without a sidecar, and serve.
pub(crate) fn left(cluster: &Cluster) -> Result<String> {
    cluster.kubectl("rollout restart deployment -n ecommerce")?;
    cluster.rolled_out(SHOP)?;
    expect_column(cluster, SHOP, "1/1")?;
    crate::trust::start_outsider(cluster)?;
    cluster.until("the shop serves without a mesh", || crate::trust::outsider(cluster, USER))?;
    Ok(String::new())
}

/// A new installation goes on with the old root: pods that kept their sidecar, and pods that get a new one, trust each other.
pub(crate) fn returned(cluster: &Cluster) -> Result<String> {
    install::put(cluster)?;
    cluster.rolled_out("istio-system")?;
    ensure!(Some(&root(cluster)?) == ROOT.get(), "the root certificate is another");
    joins(cluster)?;
    configured(cluster)?;
    cluster.until("a pod that kept its sidecar", || pods::call(cluster, USER))?;
    order(cluster)?;
    Ok(String::new())
}

/// Nothing is left that was not there before, but what users made themselves.
pub(crate) fn purged(cluster: &Cluster) -> Result<String> {
    cluster.meshctl("uninstall --purge -y")?;
    cluster
        .kubectl("delete namespace ecommerce pods outside migration abrupt manual --ignore-not-found --timeout=120s")?;
    cluster.until("nothing is left", || {
        let remains = install::remains(cluster)?;
        ensure!(remains.is_empty(), "this is left: {remains:?}");
        Ok(())
    })?;
    Ok(String::new())
}
