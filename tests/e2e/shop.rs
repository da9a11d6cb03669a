//! The e-commerce sample: without a mesh, taken in by a label and a restart, and a customer's steps through the gateway.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kubectl::{Cluster, items};
use crate::load::{Answer, Ask, ask};

/// Namespace.
pub(crate) const SHOP: &str = "ecommerce";
/// What customers ask for.
pub(crate) const HOST: &str = "api.ecommerce.com";
/// One of each of the shop's services; the order calls three others.
pub(crate) const CUSTOMERS: &[Ask] = &[
    Ask("GET", "/api/v1/users/1", ""),
    Ask("GET", "/api/v1/products", ""),
    Ask("GET", "/api/v1/recommendations/1", ""),
    Ask("GET", "/api/v1/users/2", ""),
    Ask("GET", "/api/v1/products/1", ""),
    Ask("GET", "/api/v1/recommendations/2", ""),
    Ask("GET", "/api/v1/users/3", ""),
    Ask("GET", "/api/v1/products/2", ""),
    Ask("GET", "/api/v1/recommendations/3", ""),
    Ask("POST", "/api/v1/orders", ORDER),
];
const ORDER: &str = r#"{"user": 7, "product": 2, "quantity": 3}"#;

/// Where customers reach the gateway: the address of its load balancer, or a node's port where there is none.
pub(crate) fn gateway(cluster: &Cluster) -> Result<String> {
    let service = cluster.get("service -n istio-system istio-ingressgateway")?;
    let balancer = &service["status"]["loadBalancer"]["ingress"][0];
    if let Some(address) = balancer["ip"].as_str().or(balancer["hostname"].as_str()) {
        return Ok(format!("{address}:80"));
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let port = ports.filter(|port| port["port"] == 80).find_map(|port| port["nodePort"].as_u64());
    let nodes = cluster.get("nodes")?;
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().into_iter().flatten();
    let address = addresses.filter(|address| address["type"] == "InternalIP").find_map(|one| one["address"].as_str());
    Ok(format!("{}:{}", address.context("the node has no address")?, port.context("the gateway has no port")?))
}

/// The shop as it is without a mesh.
pub(crate) fn without_mesh(cluster: &Cluster) -> Result<String> {
    // What an earlier run on this cluster has left.
    cluster.kubectl(
        "delete namespace ecommerce pods outside migration policies abrupt manual --ignore-not-found --timeout=120s",
    )?;
    cluster.apply_file("examples/ecommerce/kubernetes/shop.yaml")?;
    cluster.rolled_out(SHOP)?;
    expect_column(cluster, SHOP, "1/1")?;
    Ok(String::new())
}

/// Every pod of a namespace shows this.
pub(crate) fn expect_column(cluster: &Cluster, namespace: &str, ready: &str) -> Result<()> {
    let pods = cluster.ready_column(namespace)?;
    ensure!(!pods.is_empty() && pods.iter().all(|(_, column)| column == ready), "not all are {ready}: {pods:?}");
    Ok(())
}

/// Label and restart, and nothing else.
pub(crate) fn joins(cluster: &Cluster) -> Result<String> {
    cluster.kubectl("label namespace ecommerce istio-injection=enabled --overwrite")?;
    cluster.kubectl("rollout restart deployment -n ecommerce")?;
    cluster.rolled_out(SHOP)?;
    expect_column(cluster, SHOP, "2/2")?;
    Ok(String::new())
}

/// The mesh's part of the sample is in effect: routes, subsets, STRICT.
pub(crate) fn configured(cluster: &Cluster) -> Result<String> {
    cluster.apply_file("examples/ecommerce/kubernetes/mesh.yaml")?;
    let address = gateway(cluster)?;
    cluster.until("the gateway serves the shop", || {
        let answer = ask(&address, HOST, Ask("GET", "/api/v1/users/1", ""))?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.body);
        Ok(())
    })?;
    Ok(address)
}

/// A customer's six steps; each service tells whom its sidecar has seen.
pub(crate) fn order(cluster: &Cluster) -> Result<String> {
    let address = gateway(cluster)?;
    let customer = |method, path, body, status| -> Result<Answer> {
        let answer = ask(&address, HOST, Ask(method, path, body))?;
        ensure!(answer.status == status, "{method} {path}: status {}: {}", answer.status, answer.body);
        Ok(answer)
    };
    // The gateway's account, as it was installed.
    let pods = cluster.get("pods -n istio-system -l istio=ingressgateway")?;
    let account = items(&pods).find_map(|pod| pod["spec"]["serviceAccountName"].as_str()).context("no gateway")?;
    let gateway = format!("spiffe://cluster.local/ns/istio-system/sa/{account}");
    let caller = |step: &str, served: &Value, wanted: &str| -> Result<()> {
        ensure!(served["caller"] == wanted, "{step}: the caller is {}, not {wanted}", served["caller"]);
        Ok(())
    };
    caller("browsing", &customer("GET", "/api/v1/products", "", 200)?.json()["served"], &gateway)?;
    caller("signing in", &customer("GET", "/api/v1/users/7", "", 200)?.json()["served"], &gateway)?;
    caller("advice", &customer("GET", "/api/v1/recommendations/7", "", 200)?.json()["served"], &gateway)?;
    let placed = customer("POST", "/api/v1/orders", ORDER, 201)?.json();
    caller("ordering", &placed["served"], &gateway)?;
    ensure!(placed["order"]["state"] == "paid", "the order is not paid: {placed}");
    let calls = placed["calls"].as_array().context("the order names no calls")?;
    ensure!(calls.len() == 3, "the order took {} calls", calls.len());
    for call in calls {
        caller("the order's calls", call, "spiffe://cluster.local/ns/ecommerce/sa/order-service")?;
        ensure!(call["request_id"] == placed["served"]["request_id"], "the request's name is lost: {placed}");
    }
    let id = placed["order"]["id"].as_u64().context("the order has no number")?;
    let path: &'static str = format!("/api/v1/orders/{id}").leak();
    let read = customer("GET", path, "", 200)?.json();
    ensure!(read["order"]["state"] == "paid", "the order reads {read}");
    // Payment has no way in from outside.
    customer("GET", "/api/v1/payments/history/7", "", 404)?;
    let elsewhere = ask(&address, "other.example.com", Ask("GET", "/api/v1/products", ""))?;
    if elsewhere.status != 404 {
        bail!("a host that nobody serves gets status {}", elsewhere.status);
    }
    Ok(String::new())
}
