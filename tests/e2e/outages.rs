//! Things that break while customers are served.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
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

const WRITTEN: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: written, namespace: default}
spec: {hosts: [written], http: [{name: round-ROUND, route: [{destination: {host: written}}]}]}
";
const CREATED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: created, namespace: ecommerce}
spec: {containers: [{name: workload, image: 'mesh/workload:TAG'}]}
";

/// The only replica of the control plane is replaced, twice in order and once by taking it away, while somebody writes objects
/// and makes pods: none is refused, and every pod gets its proxy.
pub(crate) fn replaced_while_written(cluster: &Cluster) -> Result<String> {
    let done = AtomicBool::new(false);
    let (rounds, replaced) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(cluster, &done));
        let replaced = (0..3).try_for_each(|round| {
            match round {
                2 => cluster.kubectl("delete pod -n istio-system -l app=istiod --wait=false")?,
                _ => cluster.kubectl("rollout restart -n istio-system deployment/istiod")?,
            };
            cluster.rolled_out("istio-system")
        });
        done.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), replaced)
    });
    replaced?;
    let rounds = rounds?;
    ensure!(rounds > 20, "only {rounds} rounds were written");
    cluster.kubectl("delete virtualservice -n default written")?;
    Ok(format!("{rounds} rounds of a VirtualService and a pod, 0 refused"))
}

/// Writes a VirtualService and has a pod made (which is thrown away) again and again; the first refusal ends it.
fn write_until(cluster: &Cluster, done: &AtomicBool) -> Result<usize> {
    let mut rounds = 0;
    while !done.load(Ordering::Relaxed) {
        rounds += 1;
        cluster.once(&["apply"], &WRITTEN.replace("ROUND", &rounds.to_string()))?;
        let pod = CREATED.replace("TAG", &cluster.tag);
        let made = cluster.once(&["create", "--dry-run=server", "-o", "yaml"], &pod)?;
        ensure!(made.contains("name: istio-proxy"), "a pod without its proxy: {made}");
    }
    Ok(rounds)
}

/// Two replicas: the same root, proxies at both, one of them writes; when that one dies the other writes in its place.
pub(crate) fn two_replicas(cluster: &Cluster) -> Result<String> {
    let root = || cluster.kubectl("get configmap -n ecommerce istio-ca-root-cert -o jsonpath={.data}");
    let (before, all) = (root()?, connected(cluster)?);
    let install = |replicas: usize| {
        cluster.meshctl(&format!("install --set profile=demo --set values.pilot.replicaCount={replicas} -y"))?;
        // Whoever was here stays where he is for long; all that begin now go to either.
        cluster.kubectl("rollout restart -n istio-system deployment/istiod")?;
        cluster.rolled_out("istio-system")
    };
    install(2)?;
    ensure!(root()? == before, "the root certificate is another one");
    let shares = cluster.until("all proxies are with two replicas", || {
        let shares = shares(cluster)?;
        ensure!(shares.len() == 2 && !shares.contains(&0), "proxies by replica: {shares:?}");
        ensure!(connected(cluster)? == all, "not all are shown");
        Ok(shares)
    })?;

    let holder = || {
        let holder = "get lease -n istio-system istio-leader -o jsonpath={.spec.holderIdentity}";
        let holder = cluster.kubectl(holder)?;
        let pods = cluster.kubectl("get pods -n istio-system -l app=istiod -o name")?;
        ensure!(pods.contains(&format!("pod/{holder}\n")), "{holder:?} holds the lease, of {pods}");
        Ok(holder)
    };
    let first = cluster.until("a leader", holder)?;
    let load = Load::start(&gateway(cluster)?, HOST, USERS, cluster.rate);
    let started = Instant::now();
    cluster.kubectl(&format!("delete pod -n istio-system {first} --force --grace-period=0"))?;
    cluster.until("another leader", || {
        let next = holder()?;
        ensure!(next != first, "still {first}");
        Ok(())
    })?;
    let vacant = started.elapsed();
    ensure!(vacant < Duration::from_secs(20), "the lease was vacant for {vacant:?}");
    // What only the leader does goes on.
    cluster.apply(&WRITTEN.replace("ROUND", "after"))?;
    cluster.until("the status of a new object", || {
        let written = cluster.get("virtualservice -n default written")?;
        ensure!(written["status"]["observedGeneration"] == written["metadata"]["generation"], "{}", written["status"]);
        Ok(())
    })?;
    followed(cluster, &load)?;
    let summary = load.stop()?.nothing_lost()?;
    cluster.kubectl("delete virtualservice -n default written")?;
    cluster.rolled_out("istio-system")?;
    install(1)?;
    cluster.until("all proxies are back", || {
        ensure!(connected(cluster)? == all, "not all are shown");
        Ok(())
    })?;
    Ok(format!("{shares:?} proxies by replica; another leader after {:.1} s; {summary}", vacant.as_secs_f64()))
}

/// Names of the proxies that `meshctl status` shows.
fn connected(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let table = cluster.meshctl("status")?;
    Ok(table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// How many proxies each replica of the control plane has.
fn shares(cluster: &Cluster) -> Result<Vec<u64>> {
    let pods = cluster.get("pods -n istio-system -l app=istiod")?;
    let names = items(&pods).filter_map(|pod| pod["metadata"]["name"].as_str());
    names
        .map(|pod| {
            let words = ["/usr/local/bin/pilot-discovery", "request", "GET", "/debug/connections"];
            let page: Value = serde_json::from_str(&cluster.exec("istio-system", pod, "discovery", &words)?)?;
            page["totalClients"].as_u64().with_context(|| format!("no list of proxies: {page}"))
        })
        .collect()
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

/// Nobody gets an answer from the API server for a while, and nobody is told: packets are lost, connections stay. What is changed
/// afterwards is followed. Not for long: Kubernetes takes nodes for dead that it has not heard of for 40 seconds, and its own
/// proxies then refuse whoever comes from outside.
pub(crate) fn api_server_out_of_reach(cluster: &Cluster) -> Result<String> {
    const AWAY: Duration = Duration::from_secs(15);
    let load = Load::start(&gateway(cluster)?, HOST, USERS, cluster.rate);
    load.go_on(cluster.rate as usize)?;
    let lost = |what: &str| cluster.on_node(1, &format!("iptables {what} INPUT -p tcp --dport 6443 -j DROP"));
    lost("-I")?;
    let begun = Instant::now();
    while begun.elapsed() < AWAY {
        load.go_on(cluster.rate as usize)?;
    }
    lost("-D")?;
    cluster.until("the API server is back", || cluster.kubectl("get --raw /readyz"))?;
    followed(cluster, &load)?;
    load.stop()?.nothing_lost()
}

/// The control plane alone loses the API server, for more than a minute and without a word. Meanwhile objects come, change and go,
/// and the API server starts anew, so that it no longer knows what the control plane has not seen: its watches are too old (410)
/// and begin with whole lists.
pub(crate) fn watches_too_old(cluster: &Cluster) -> Result<String> {
    const AWAY: Duration = Duration::from_secs(75);
    cluster.apply(&(entry("old-goes", 80) + &entry("old-changes", 80)))?;
    expect_entries(cluster, &[("old-goes", 80), ("old-changes", 80)])?;
    weigh(cluster, 10)?;
    let load = Load::start(&gateway(cluster)?, HOST, USERS, cluster.rate);
    share_of_second(&load, 10.0)?;

    let pod = cluster.get("pods -n istio-system -l app=istiod")?;
    let address = pod["items"][0]["status"]["podIP"].as_str().context("the control plane has no address")?.to_owned();
    // On its own node its address is still its own: to other nodes it shows that of the node.
    let node = pod["items"][0]["spec"]["nodeName"].as_str().and_then(|name| name.rsplit('-').next()?.parse().ok());
    let node: usize = node.context("the control plane's node has no number")?;
    let cut = |what: &str| -> Result<()> {
        for (chain, end) in [("INPUT", "-s"), ("FORWARD", "-s"), ("OUTPUT", "-d"), ("FORWARD", "-d")] {
            let port = if end == "-s" { "--dport" } else { "--sport" };
            cluster.on_node(node, &format!("iptables {what} {chain} -p tcp {end} {address} {port} 6443 -j DROP"))?;
        }
        Ok(())
    };
    cut("-I")?;
    let begun = Instant::now();
    // The API server asks the webhook all the while: that is another port.
    cluster.apply(&(entry("old-comes", 80) + &entry("old-changes", 81)))?;
    cluster.kubectl("delete serviceentry -n default old-goes")?;
    weigh(cluster, 60)?;
    cluster.restart_part("apiserver", 1)?;
    cluster.until("the API server is back", || cluster.kubectl("get --raw /readyz"))?;
    while begun.elapsed() < AWAY {
        load.go_on(cluster.rate as usize)?;
    }
    let before = BTreeSet::from([("old-goes".to_owned(), 80), ("old-changes".to_owned(), 80)]);
    ensure!(entries(cluster)? == before, "it was not cut off");
    cut("-D")?;
    let back = Instant::now();
    expect_entries(cluster, &[("old-comes", 80), ("old-changes", 81)])?;
    let after = back.elapsed();
    ensure!(after < Duration::from_secs(20), "it took {after:?}");
    share_of_second(&load, 60.0)?;
    let log = cluster.kubectl("logs -n istio-system deploy/istiod --since=5m")?;
    ensure!(log.contains("too old for the API server"), "no watch was too old");
    cluster.kubectl("delete serviceentry -n default old-comes old-changes")?;
    weigh(cluster, 10)?;
    let summary = load.stop()?.nothing_lost()?;
    Ok(format!("all is as it should be {:.1} s after the API server was found again; {summary}", after.as_secs_f64()))
}

fn entry(name: &str, port: u16) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec: {{hosts: [{name}.example.com], ports: [{{number: {port}, name: http, protocol: HTTP}}], resolution: DNS}}
"
    )
}

/// Names and ports of the entries of that scenario, as the control plane knows them.
fn entries(cluster: &Cluster) -> Result<BTreeSet<(String, u64)>> {
    let words = "exec -n istio-system deploy/istiod -- /usr/local/bin/pilot-discovery request GET /debug/configz?kind=serviceentry";
    let page: Value = serde_json::from_str(&cluster.kubectl(words)?)?;
    let one = |entry: &Value| {
        let name = entry["metadata"]["name"].as_str().filter(|name| name.starts_with("old-"))?;
        Some((name.to_owned(), entry["spec"]["ports"][0]["number"].as_u64()?))
    };
    Ok(page.as_array().into_iter().flatten().filter_map(one).collect())
}

fn expect_entries(cluster: &Cluster, wanted: &[(&str, u64)]) -> Result<()> {
    let wanted: BTreeSet<(String, u64)> = wanted.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
    cluster.until("the objects as they are", || {
        let found = entries(cluster)?;
        ensure!(found == wanted, "{found:?}");
        Ok(())
    })
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
