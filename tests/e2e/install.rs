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
    dry_into_nothing(cluster)?;
    put(cluster)?;
    cluster.rolled_out("istio-system")?;
    Ok(String::new())
}

/// What would be made is told, and nothing is made.
fn dry_into_nothing(cluster: &Cluster) -> Result<()> {
    let told = cluster.meshctl("install --set profile=demo --dry-run")?;
    for line in
        ["+ Namespace istio-system", "+ Deployment istio-system/istiod", "+ Service istio-system/istio-ingressgateway"]
    {
        ensure!(told.lines().any(|one| one == line), "{line} is not in {told}");
    }
    let made = cluster.kubectl("get namespace istio-system --ignore-not-found -o name")?
        + &cluster.kubectl("get customresourcedefinitions,mutatingwebhookconfigurations -o name")?;
    ensure!(!made.contains("istio"), "this was made: {made}");
    Ok(())
}

/// What would be changed is told, and nothing is changed.
pub(crate) fn dry_over(cluster: &Cluster) -> Result<String> {
    let held = || inventory(cluster, &format!("-l {OWNED}"));
    let marked = |told: &str| {
        told.lines().filter(|line| line.starts_with(['+', '~', '-'])).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = held()?;
    let same = cluster.meshctl("install --set profile=demo --dry-run")?;
    ensure!(marked(&same).is_empty(), "the same again would change something: {same}");
    let other = cluster.meshctl("install --set profile=demo --set values.pilot.podAnnotations.a=b --dry-run")?;
    ensure!(marked(&other) == ["~ Deployment istio-system/istiod"], "{other}");
    ensure!(before == held()?, "something was changed");
    Ok(String::new())
}

/// The end of a canary upgrade: the default goes to the new revision beside the old one, and stays there when that goes.
pub(crate) fn upgraded(cluster: &Cluster) -> Result<String> {
    let told = cluster.meshctl("install --set profile=minimal --revision canary -y")?;
    ensure!(told.contains("kinds of objects (unchanged"), "what revisions share is changed: {told}");
    cluster.kubectl("create namespace upgraded")?;
    cluster.kubectl("label namespace upgraded istio-injection=enabled")?;
    // Webhooks are asked about pods that are only tried.
    let injected_by = |wanted: &str| {
        cluster.until(&format!("pods go to {wanted}"), || {
            let pod = cluster.kubectl("run probe -n upgraded --image=nothing --dry-run=server -o json")?;
            let pod: serde_json::Value = serde_json::from_str(&pod)?;
            let by = &pod["metadata"]["annotations"]["istio.io/rev"];
            ensure!(by == wanted, "by {by}");
            Ok(())
        })
    };
    injected_by("default")?;
    cluster.meshctl("tag set default --revision canary")?;
    injected_by("canary")?;
    let told = cluster.meshctl("x check-inject -l app=probe -n upgraded")?;
    ensure!(told.lines().filter(|line| line.contains('✔')).count() == 1, "{told}");
    put(cluster)?;
    injected_by("canary")?;
    cluster.meshctl("tag remove default -y")?;
    injected_by("default")?;
    cluster.meshctl("tag set default --revision canary")?;
    cluster.meshctl("uninstall --revision default -y")?;
    injected_by("canary")?;
    // The new revision judges objects that name none, and tells of them.
    let refused = cluster.once(&["apply"], BROKEN).err().map(|error| format!("{error:#}"));
    ensure!(refused.as_ref().is_some_and(|told| told.contains("denied the request")), "{refused:?}");
    cluster.apply(&TAGGED.replace("istio.io/rev: prod", "a: b"))?;
    cluster.until("the new revision tells of objects that name none", || {
        let entry = cluster.get("serviceentry -n default tagged")?;
        ensure!(entry["status"]["observedGeneration"] == 1, "status {}", entry["status"]);
        Ok(())
    })?;
    cluster.kubectl("delete serviceentry -n default tagged")?;
    cluster.kubectl("delete namespace upgraded")?;
    Ok(String::new())
}

/// Its kind takes it; the control plane does not.
const BROKEN: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: broken, namespace: default}
spec: {hosts: [broken], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: broken}}]}]}
";

const LOST: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: NAME}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: lost, namespace: NAME}
spec: {hosts: [lost.NAME.svc.cluster.local], http: [{route: [{destination: {host: nowhere}}]}]}
";

/// `analyze` without files looks at the cluster: everywhere, or in a namespace.
pub(crate) fn analyzed(cluster: &Cluster) -> Result<String> {
    for name in ["lost-a", "lost-b"] {
        cluster.apply(&LOST.replace("NAME", name))?;
    }
    for (words, in_a, in_b) in [
        ("analyze", true, true),
        ("analyze -A", true, true),
        ("analyze -n lost-a", true, false),
        ("analyze --namespace lost-b", false, true),
    ] {
        // Other scenarios' objects may be in error, which is an exit code of its own.
        let told = cluster.meshctl(&format!("{words} --failure-threshold error -S IST0106"));
        let told = told.unwrap_or_else(|error| format!("{error:#}"));
        for (name, wanted) in [("lost-a/lost", in_a), ("lost-b/lost", in_b)] {
            ensure!(told.contains(name) == wanted, "{words}: {told}");
        }
    }
    cluster.kubectl("delete namespace lost-a lost-b")?;
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
