//! Releases under load: weights that change, servers that are replaced. Nobody notices, without any setting of retries.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::kubectl::{Cluster, PATIENCE};
use crate::load::{Ask, Load, ask};
use crate::shop::{CUSTOMERS, HOST, SHOP, gateway};

/// What goes by weights.
const USERS: &[Ask] = &[Ask("GET", "/api/v1/users/1", "")];
/// So many answers tell a share within a few percent.
const ENOUGH: usize = 1000;

/// Weights change while customers come: each change is followed, and nothing is lost.
pub(crate) fn canary(cluster: &Cluster) -> Result<String> {
    let load = Load::start(&gateway(cluster)?, HOST, USERS, cluster.rate);
    let mut shares = Vec::new();
    for second in [10, 50, 100, 10] {
        weigh(cluster, second)?;
        shares.push(format!("{second}: {:.1} %", share_of_second(&load, f64::from(second))?));
    }
    Ok(format!("{}; {}", shares.join(", "), load.stop()?.nothing_lost()?))
}

/// Gives the user service's second version this share.
pub(crate) fn weigh(cluster: &Cluster, second: u32) -> Result<()> {
    let patch = format!(
        r#"[{{"op":"replace","path":"/spec/http/0/route/0/weight","value":{}}},{{"op":"replace","path":"/spec/http/0/route/1/weight","value":{second}}}]"#,
        100 - second
    );
    let words = ["patch", "virtualservice", "ecommerce-routing", "-n", SHOP, "--type=json", "-p", &patch];
    cluster.kubectl_words(&words).map(drop)
}

/// Waits until the share is near what is wanted, then measures it.
pub(crate) fn share_of_second(load: &Load, wanted: f64) -> Result<f64> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while (share(load, ENOUGH / 4)? - wanted).abs() > 10.0 {
        ensure!(std::time::Instant::now() < deadline, "weights of {wanted} % are not followed");
    }
    let share = share(load, ENOUGH)?;
    // Four standard deviations of a binomial; sure things are sure.
    let bound = 4.0 * (wanted * (100.0 - wanted) / ENOUGH as f64).sqrt();
    ensure!((share - wanted).abs() <= bound, "v2 has {share:.1} % of the answers instead of {wanted} ± {bound:.1}");
    Ok(share)
}

/// Of the next answers of the user service, those of v2, in percent.
fn share(load: &Load, answers: usize) -> Result<f64> {
    let count = |served: &BTreeMap<String, usize>, who: &str| served.get(who).copied().unwrap_or(0) as f64;
    let before = load.served();
    load.go_on(answers)?;
    let after = load.served();
    let more = |who| count(&after, who) - count(&before, who);
    Ok(100.0 * more("user v2") / (more("user v1") + more("user v2")).max(1.0))
}

/// `kubectl rollout restart` of the shop, of the gateway and of the control plane.
pub(crate) fn replaced(cluster: &Cluster) -> Result<String> {
    let load = Load::start(&gateway(cluster)?, HOST, CUSTOMERS, cluster.rate);
    let mut notes = Vec::new();
    for namespace in [SHOP, "istio-system"] {
        load.go_on(cluster.rate as usize)?;
        cluster.kubectl(&format!("rollout restart deployment -n {namespace}"))?;
        cluster.rolled_out(namespace)?;
        notes.push(format!("{namespace} replaced after {} answers", load.answered()));
    }
    load.go_on(cluster.rate as usize * 2)?;
    Ok(format!("{}; {}", notes.join(", "), load.stop()?.nothing_lost()?))
}

const ABRUPT: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: abrupt, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: abrupt, namespace: abrupt}
spec:
  selector: {app: abrupt}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: abrupt, namespace: abrupt}
spec:
  replicas: 3
  selector: {matchLabels: {app: abrupt}}
  template:
    metadata: {labels: {app: abrupt}}
    spec:
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: abrupt, namespace: abrupt}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [abrupt.example.com]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: abrupt, namespace: abrupt}
spec:
  hosts: [abrupt.example.com]
  gateways: [abrupt]
  http: [{route: [{destination: {host: abrupt}}]}]
"#;
const ABRUPT_HOST: &str = "abrupt.example.com";
const ROOT: &[Ask] = &[Ask("GET", "/", "")];

/// Servers that end at the first signal, whatever they were doing.
pub(crate) fn replaced_abruptly(cluster: &Cluster) -> Result<String> {
    cluster.apply(&ABRUPT.replace("TAG", &cluster.tag))?;
    cluster.rolled_out("abrupt")?;
    let address = gateway(cluster)?;
    cluster.until("the gateway serves the workload", || {
        let answer = ask(&address, ABRUPT_HOST, ROOT[0]).context("asking")?;
        ensure!(answer.status == 200, "status {}", answer.status);
        Ok(())
    })?;
    let load = Load::start(&address, ABRUPT_HOST, ROOT, cluster.rate);
    load.go_on(cluster.rate as usize)?;
    cluster.kubectl("rollout restart deployment -n abrupt")?;
    cluster.rolled_out("abrupt")?;
    load.go_on(cluster.rate as usize * 2)?;
    let summary = load.stop()?.nothing_lost()?;
    cluster.kubectl("delete namespace abrupt --wait=false")?;
    Ok(summary)
}
