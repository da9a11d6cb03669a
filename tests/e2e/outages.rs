//! Things that break while customers are served.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::kubectl::{Cluster, items};
use crate::load::{Ask, Load};
use crate::releases::{share_of_second, weigh};
use crate::shop::{HOST, SHOP, gateway};

const PRODUCTS: &[Ask] = &[Ask("GET", "/api/v1/products", ""), Ask("GET", "/api/v1/products/1", "")];
const USERS: &[Ask] = &[Ask("GET", "/api/v1/users/1", "")];

/// One of three pods dies without warning: what was on its connections is asked again elsewhere.
pub(crate) fn pod(cluster: &Cluster) -> Result<String> {
    cluster.kubectl("scale deployment -n ecommerce product-v1 --replicas=3")?;
    cluster.rolled_out(SHOP)?;
    let load = Load::start(&gateway(cluster)?, HOST, PRODUCTS, cluster.rate);
    for _ in 0..3 {
        load.go_on(cluster.rate as usize)?;
        let pods = cluster.get("pods -n ecommerce -l app=product-service --sort-by=.metadata.creationTimestamp")?;
        let oldest =
            items(&pods).next().and_then(|pod| pod["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
        cluster.kubectl(&format!("delete pod -n ecommerce {oldest} --force --grace-period=0"))?;
        cluster.rolled_out(SHOP)?;
    }
    load.go_on(cluster.rate as usize)?;
    let summary = load.stop()?.nothing_lost()?;
    cluster.kubectl("scale deployment -n ecommerce product-v1 --replicas=1")?;
    cluster.rolled_out(SHOP)?;
    Ok(summary)
}

/// The control plane dies; customers do not notice, and what is changed afterwards is followed.
pub(crate) fn control_plane(cluster: &Cluster) -> Result<String> {
    let load = Load::start(&gateway(cluster)?, HOST, USERS, cluster.rate);
    load.go_on(cluster.rate as usize)?;
    cluster.kubectl("delete pod -n istio-system -l app=istiod --force --grace-period=0")?;
    cluster.rolled_out("istio-system")?;
    followed(cluster, &load)?;
    load.stop()?.nothing_lost()
}

/// The API server dies and comes back; so do the control plane's watches.
pub(crate) fn api_server(cluster: &Cluster) -> Result<String> {
    let load = Load::start(&gateway(cluster)?, HOST, USERS, cluster.rate);
    load.go_on(cluster.rate as usize)?;
    cluster.restart_part("apiserver", 1)?;
    cluster.until("the API server is back", || cluster.kubectl("get --raw /readyz"))?;
    load.go_on(cluster.rate as usize * 3)?;
    followed(cluster, &load)?;
    load.stop()?.nothing_lost()
}

/// The kubelets die and come back, one node after the other. A kubelet calls its pods not ready until it has probed them again
/// (Kubernetes does so by itself), so whoever wants to be served has another pod on another node; no container starts anew.
pub(crate) fn kubelet(cluster: &Cluster) -> Result<String> {
    for (namespace, deployment) in SPREAD {
        cluster.kubectl(&format!("scale deployment -n {namespace} {deployment} --replicas=2"))?;
        cluster.rolled_out(namespace)?;
        on_two_nodes(cluster, namespace, deployment)?;
    }
    let before = restarts(cluster)?;
    let load = Load::start(&gateway(cluster)?, HOST, PRODUCTS, cluster.rate);
    for node in 1..=before.1 {
        load.go_on(cluster.rate as usize)?;
        cluster.restart_part("kubelet", node)?;
        load.go_on(cluster.rate as usize * 3)?;
        cluster.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
        for (namespace, _) in SPREAD {
            cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod --all --timeout=60s"))?;
        }
    }
    load.go_on(cluster.rate as usize)?;
    let summary = load.stop()?.nothing_lost()?;
    let after = restarts(cluster)?;
    ensure!(before.0 == after.0, "containers were restarted: {} became {}", before.0, after.0);
    for (namespace, deployment) in SPREAD {
        cluster.kubectl(&format!("scale deployment -n {namespace} {deployment} --replicas=1"))?;
    }
    Ok(summary)
}

const SPREAD: &[(&str, &str)] = &[("istio-system", "istio-ingressgateway"), ("ecommerce", "product-v1")];

/// The scheduler likes to spread; where it has not, the newer pod has another try.
fn on_two_nodes(cluster: &Cluster, namespace: &str, deployment: &str) -> Result<()> {
    cluster.until(&format!("{deployment} on two nodes"), || {
        let pods = cluster.get(&format!("pods -n {namespace}"))?;
        let own = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(deployment));
        let own: Vec<&Value> = items(&pods).filter(own).collect();
        let nodes: BTreeSet<&str> = own.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        if nodes.len() < 2 {
            let name = own.last().and_then(|pod| pod["metadata"]["name"].as_str()).unwrap_or_default();
            cluster.kubectl(&format!("delete pod -n {namespace} {name}"))?;
            cluster.rolled_out(namespace)?;
            bail!("{} pods on {nodes:?}", own.len());
        }
        Ok(())
    })
}

/// Restarts of all containers of the shop, and nodes.
fn restarts(cluster: &Cluster) -> Result<(u64, usize)> {
    let pods = cluster.get("pods -n ecommerce")?;
    let mut count = 0;
    for pod in items(&pods) {
        for list in ["initContainerStatuses", "containerStatuses"] {
            for status in pod["status"][list].as_array().into_iter().flatten() {
                count += status["restartCount"].as_u64().unwrap_or(0);
            }
        }
    }
    let nodes = items(&cluster.get("nodes")?).count();
    if nodes == 0 {
        bail!("there are no nodes");
    }
    Ok((count, nodes))
}

fn followed(cluster: &Cluster, load: &Load) -> Result<()> {
    for second in [50, 10] {
        weigh(cluster, second)?;
        share_of_second(load, f64::from(second))?;
    }
    Ok(())
}
