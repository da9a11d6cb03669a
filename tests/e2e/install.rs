//! Installing.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use anyhow::{Result, ensure};

use crate::kubectl::Cluster;

/// What the cluster held before anything was installed.
static BEFORE: OnceLock<BTreeSet<String>> = OnceLock::new();
/// What marks objects of an installation.
const OWNED: &str = "install.operator.istio.io/owning-resource";
/// Kinds that come and go by themselves.
const FLEETING: &[&str] = &["events", "events.events.k8s.io", "pods", "endpoints", "endpointslices.discovery.k8s.io"];

/// Installs the profile demo.
pub(crate) fn demo(cluster: &Cluster) -> Result<String> {
    BEFORE.set(inventory(cluster, "")?).map_err(|_| anyhow::anyhow!("this scenario runs once"))?;
    put(cluster)?;
    cluster.rolled_out("istio-system")?;
    Ok(String::new())
}

/// Installs; what meshctl says of it.
pub(crate) fn put(cluster: &Cluster) -> Result<String> {
    let told = cluster.meshctl("install --set profile=demo -y")?;
    ensure!(told.contains("installation complete"), "meshctl says: {told}");
    Ok(told)
}

/// The same again writes nothing.
pub(crate) fn again(cluster: &Cluster) -> Result<String> {
    let held = || inventory(cluster, &format!("-l {OWNED}"));
    let before = held()?;
    let told = put(cluster)?;
    // `(3 objects, 0.2 s)` is what a change looks like.
    ensure!(!told.contains(" objects,"), "something was changed: {told}");
    let after = held()?;
    ensure!(before == after, "changed: {:?}", before.symmetric_difference(&after).collect::<Vec<_>>());
    ensure!(before.len() > 30, "only {} objects are marked as an installation's", before.len());
    Ok(String::new())
}

const TAGGED: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: tagged, namespace: default, labels: {istio.io/rev: prod}}
spec: {hosts: [tagged.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
";

/// An object that is labelled with a tag belongs to the revision that the tag stands for, as long as it does.
pub(crate) fn tagged(cluster: &Cluster) -> Result<String> {
    let words = "exec -n istio-system deploy/istiod -- /usr/local/bin/pilot-discovery request GET /debug/configz?kind=serviceentry";
    let known = || Ok::<_, anyhow::Error>(cluster.kubectl(words)?.contains("tagged.example.com"));
    cluster.apply(TAGGED)?;
    cluster.meshctl("tag set prod --revision default")?;
    cluster.until("the object is this revision's", || {
        ensure!(known()?, "it is not");
        let entry = cluster.get("serviceentry -n default tagged")?;
        ensure!(entry["status"]["observedGeneration"] == 1, "status {}", entry["status"]);
        Ok(())
    })?;
    cluster.meshctl("tag remove prod -y")?;
    cluster.until("the object is another's", || {
        ensure!(!known()?, "it is not");
        Ok(())
    })?;
    cluster.kubectl("delete serviceentry -n default tagged")?;
    Ok(String::new())
}

/// What has been added since before the installation, and what is still named after the mesh.
pub(crate) fn remains(cluster: &Cluster) -> Result<Vec<String>> {
    let empty = BTreeSet::new();
    let names = |all: &BTreeSet<String>| -> BTreeSet<String> {
        all.iter().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect()
    };
    let before = names(BEFORE.get().unwrap_or(&empty));
    let now = names(&inventory(cluster, "")?);
    // Nodes renew leases of their own, the first of them perhaps after the first look.
    let ours = |line: &String| !line.starts_with("Lease kube-node-lease ");
    Ok(now.into_iter().filter(ours).filter(|line| !before.contains(line) || line.contains("istio")).collect())
}

/// Kind, namespace, name and version of all objects.
fn inventory(cluster: &Cluster, selector: &str) -> Result<BTreeSet<String>> {
    let kinds = cluster.kubectl("api-resources --verbs=list -o name")?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !FLEETING.contains(kind)).collect();
    let columns =
        "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name,VERSION:.metadata.resourceVersion";
    let list = cluster.kubectl(&format!("get {} -A --no-headers -o {columns} {selector}", kinds.join(",")))?;
    Ok(list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}
