//! Pods without an init container: the CNI plug-in captures their traffic, and a namespace that forbids all privileges takes them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::kubectl::{Cluster, items};

const LOCKED: &str = "
apiVersion: v1
kind: Namespace
metadata:
  name: locked
  labels: {istio-injection: enabled, pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: locked}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: locked}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

const WORKLOAD: &str = "
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: locked}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: workload
          image: 'mesh/workload:TAG'
          args: [serve]
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
";

const TRUST_DOMAIN: &str = "mesh.example";
/// The node's configuration as it was.
const COPY: &str = "/var/lib/cni/before";
const PLUG_IN: &str = "/opt/cni/bin/istio-cni";

/// Identities are of the trust domain that the settings name: who certifies others keeps all callers out under STRICT.
fn install(cluster: &Cluster, more: &str) -> Result<String> {
    let set = format!("--set components.cni.enabled=true --set meshConfig.trustDomain={TRUST_DOMAIN}");
    let told = cluster.meshctl(format!("install --set profile=minimal {set} {more} -y").trim())?;
    ensure!(told.contains("installation complete"), "{told}");
    Ok(told)
}

/// From an empty cluster to one that is as it was.
pub(crate) fn restricted(cluster: &Cluster) -> Result<String> {
    let before = folders(cluster)?;
    on_nodes(cluster, &format!("rm -rf {COPY}"))?;
    on_nodes(cluster, &format!("cp -r /etc/cni/net.d {COPY}"))?;
    let told = install(cluster, "")?;
    ensure!(told.contains("CNI plug-in"), "{told}");
    // One that was there before certifies for its own trust domain until it starts anew.
    cluster.kubectl("rollout restart deployment -n istio-system istiod")?;
    cluster.kubectl("rollout status deployment -n istio-system istiod --timeout=60s")?;
    ensure!(folders(cluster)?.contains("istio-cni"), "nothing is in the node's folders");
    // Scenarios before this one may have left pods whose proxies are of another trust domain: that is told, too.
    let told = cluster.meshctl("check").unwrap_or_else(|error| format!("{error:#}"));
    ensure!(told.lines().any(|line| line.contains("✔ CNI plug-in: ready on")), "{told}");
    start(cluster)?;
    captured(cluster).context("the first pods")?;
    replaced(cluster)?;
    // Somebody tidies up the node.
    cluster.on_node(1, &format!("rm {PLUG_IN}"))?;
    cluster.until("the plug-in is put back", || cluster.on_node(1, &format!("stat {PLUG_IN}")))?;
    install(cluster, "--set values.cni.logging.level=debug")?;
    cluster.kubectl("rollout restart deployment -n locked")?;
    cluster.rolled_out("locked")?;
    captured(cluster).context("after the installation was changed")?;
    early(cluster)?;
    cluster.meshctl("uninstall --purge -y")?;
    ensure!(folders(cluster)? == before, "the node's folders are not as before: {}", folders(cluster)?);
    cluster.kubectl("delete namespace locked --timeout=60s")?;
    Ok(String::new())
}

/// Has each node run it; what they print, one after the other.
fn on_nodes(cluster: &Cluster, command: &str) -> Result<String> {
    let nodes = items(&cluster.get("nodes")?).count();
    (1..=nodes).map(|node| cluster.on_node(node, command)).collect()
}

/// What is in the folders of the nodes: their files, and the lines of their network configurations.
fn folders(cluster: &Cluster) -> Result<String> {
    let names = on_nodes(cluster, "ls -A /opt/cni/bin")?;
    let texts = on_nodes(cluster, "grep -r . /etc/cni/net.d")?;
    let mut lines: Vec<&str> = names.lines().chain(texts.lines()).collect();
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

fn start(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        &format!("{LOCKED}{}{}", WORKLOAD.replace("NAME", "server"), WORKLOAD.replace("NAME", "client"))
            .replace("TAG", &cluster.tag),
    )?;
    let refused = cluster.kubectl("run loose -n locked --image=nothing:1 --dry-run=server").err();
    let refused = refused.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("violates PodSecurity"), "the namespace takes any pod: {refused:?}");
    cluster.rolled_out("locked")
}

/// Pods have no container for it, and what one sends to the other comes with its identity.
fn captured(cluster: &Cluster) -> Result<()> {
    let pods = cluster.get("pods -n locked")?;
    for pod in items(&pods) {
        let lists =
            ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
        let names: Vec<&str> = lists.iter().flatten().filter_map(|one| one["name"].as_str()).collect();
        ensure!(names == ["istio-proxy", "workload"], "containers {names:?}");
        let adds = |one: &Value| one["securityContext"]["capabilities"]["add"].is_array();
        ensure!(!lists.iter().flatten().any(adds), "a container has a capability");
    }
    for (_, ready) in cluster.ready_column("locked")? {
        ensure!(ready == "2/2", "a pod is ready {ready}");
    }
    let words = ["/usr/local/bin/workload", "get", "http://server.locked/"];
    let text = cluster.until("the server answers", || cluster.exec("locked", "deploy/client", "workload", &words))?;
    ensure!(text.contains(&format!("spiffe://{TRUST_DOMAIN}/ns/locked/sa/default")), "not by mutual TLS: {text}");
    Ok(())
}

/// Pods are replaced while the plug-in's agent is, again and again: each is captured.
fn replaced(cluster: &Cluster) -> Result<()> {
    for round in 0..3 {
        let agent = "-n istio-system -l k8s-app=istio-cni-node";
        cluster.kubectl(&format!("delete pod {agent} --wait=false"))?;
        cluster.kubectl("rollout restart deployment -n locked")?;
        cluster.rolled_out("locked")?;
        captured(cluster).with_context(|| format!("round {round}, while the agent is replaced"))?;
    }
    cluster.kubectl("rollout status -n istio-system daemonset/istio-cni-node --timeout=60s").map(drop)
}

/// A pod that starts on a node before the plug-in says so, and is made anew once the plug-in is there.
fn early(cluster: &Cluster) -> Result<()> {
    install(cluster, "--set values.cni.repair.deletePods=true")?;
    let patch = |patch: &str| {
        let words = ["patch", "daemonset", "-n", "istio-system", "istio-cni-node", "--type=json", "-p", patch];
        cluster.kubectl_words(&words)
    };
    patch(r#"[{"op": "add", "path": "/spec/template/spec/nodeSelector/nowhere", "value": "such"}]"#)?;
    cluster.kubectl("wait --for=delete pod -n istio-system -l k8s-app=istio-cni-node --timeout=60s")?;
    ensure!(folders(cluster)?.contains("istio-cni"), "the plug-in went with its agent");
    on_nodes(cluster, &format!("cp -r {COPY}/. /etc/cni/net.d/"))?;
    cluster.kubectl("delete pod -n locked -l app=server")?;
    cluster.until("the pod says why it does not start", || {
        let pods = cluster.get("pods -n locked -l app=server")?;
        let text = pods["items"][0]["status"]["initContainerStatuses"].to_string();
        ensure!(text.contains("\"exitCode\":126") && text.contains("CNI plug-in istio-cni was not in place"), "{text}");
        Ok(())
    })?;
    let told = cluster.meshctl("check").err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(told.contains("✘ CNI plug-in: not ready on"), "{told}");
    patch(r#"[{"op": "remove", "path": "/spec/template/spec/nodeSelector/nowhere"}]"#)?;
    cluster.until("the pod is made anew", || captured(cluster))
}
