//! What pods do that meshes are known to get in the way of: jobs that end, init containers, StatefulSets, probes, scrapes.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kubectl::{Cluster, items};

/// A namespace that is in the mesh, STRICT.
pub(crate) const NAMESPACE: &str = "pods";
const USER: &str = "http://user-service.ecommerce:8080/api/v1/users/1";

const CALLER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: pods, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: pods}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: caller, namespace: pods}
spec:
  selector: {app: caller}
  ports: [{name: http, port: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller, namespace: pods}
spec:
  selector: {matchLabels: {app: caller}}
  template:
    metadata:
      labels: {app: caller}
      annotations: {prometheus.io/scrape: 'true', prometheus.io/port: '8080', prometheus.io/path: /metrics}
    spec:
      containers: [{name: workload, image: 'mesh/workload:TAG', args: [serve]}]
";

/// A pod of the mesh that calls others.
pub(crate) fn start_caller(cluster: &Cluster) -> Result<()> {
    cluster.apply(&CALLER.replace("TAG", &cluster.tag))?;
    cluster.kubectl("rollout status -n pods deployment/caller --timeout=90s").map(drop)
}

/// What the pod of the mesh is answered.
pub(crate) fn call(cluster: &Cluster, url: &str) -> Result<String> {
    cluster.exec(NAMESPACE, "deploy/caller", "workload", &["/usr/local/bin/workload", "get", url])
}

const JOBS: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: well, namespace: pods}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: workload, image: 'mesh/workload:TAG', args: [get, URL]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: unwell, namespace: pods}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: workload, image: 'mesh/workload:TAG', args: [get, URL/nothing/here]}]
";

/// A Job's first call works, and the Job ends as its program does.
pub(crate) fn job(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    cluster.kubectl("delete job -n pods well unwell --ignore-not-found")?;
    cluster.apply(&JOBS.replace("TAG", &cluster.tag).replace("URL", USER))?;
    cluster.kubectl("wait -n pods --for=condition=Complete job/well --timeout=60s")?;
    cluster.kubectl("wait -n pods --for=condition=Failed job/unwell --timeout=60s")?;
    let pods = cluster.get("pods -n pods -l job-name=well")?;
    let pod = &pods["items"][0];
    let names = containers(pod);
    ensure!(names.iter().any(|name| name == "istio-proxy"), "the Job has no sidecar: {names:?}");
    let log = cluster.kubectl("logs -n pods job/well -c workload")?;
    ensure!(
        log.contains("Customer 1") && log.contains("ns/ecommerce") | log.contains("ns/pods/sa/default"),
        "it was told {log}"
    );
    Ok(String::new())
}

fn containers(pod: &Value) -> Vec<String> {
    let all = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
    all.concat().iter().filter_map(|container| Some(container["name"].as_str()?.to_owned())).collect()
}

const INIT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: prepared, namespace: pods}
spec:
  initContainers: [{name: prepare, image: 'mesh/workload:TAG', args: [get, URL]}]
  containers: [{name: workload, image: 'mesh/workload:TAG', args: [serve]}]
";

/// An init container calls a service that takes only mutual TLS.
pub(crate) fn init_container(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    cluster.kubectl("delete pod -n pods prepared --ignore-not-found")?;
    cluster.apply(&INIT.replace("TAG", &cluster.tag).replace("URL", USER))?;
    cluster.kubectl("wait -n pods --for=condition=Ready pod/prepared --timeout=60s")?;
    let log = cluster.kubectl("logs -n pods prepared -c prepare")?;
    ensure!(log.contains("ns/pods/sa/default"), "it was told {log}");
    let pod = cluster.get("pod -n pods prepared")?;
    let statuses = pod["status"]["initContainerStatuses"].as_array().context("there are no init containers")?;
    let prepare = statuses.iter().find(|status| status["name"] == "prepare").context("prepare is gone")?;
    ensure!(prepare["restartCount"] == 0, "it took {} more attempts", prepare["restartCount"]);
    Ok(String::new())
}

const SEEING: &str = "
apiVersion: v1
kind: Service
metadata: {name: seeing, namespace: pods}
spec:
  selector: {app: seeing}
  ports: [{name: http, port: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: seeing, namespace: pods}
spec:
  selector: {matchLabels: {app: seeing}}
  template:
    metadata:
      labels: {app: seeing}
      annotations: {sidecar.istio.io/interceptionMode: TPROXY}
    spec:
      containers:
      - {name: workload, image: 'mesh/workload:TAG', args: [serve], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
";

/// With TPROXY an application sees its caller's address, over mutual TLS; what it sends goes through the mesh as ever.
pub(crate) fn transparent(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    cluster.apply(&SEEING.replace("TAG", &cluster.tag))?;
    cluster.kubectl("rollout status -n pods deployment/seeing --timeout=90s")?;
    let caller = cluster.get("pods -n pods -l app=caller")?;
    let address = caller["items"][0]["status"]["podIP"].as_str().context("the caller has no address")?.to_owned();
    cluster.until("the caller is seen", || {
        let text = call(cluster, "http://seeing.pods:8080/")?;
        ensure!(text.contains(&format!("from: {address}\n")), "it sees another than {address}: {text}");
        ensure!(text.contains("spiffe://cluster.local/ns/pods/sa/default"), "not by mutual TLS: {text}");
        Ok(())
    })?;
    // The other way: the caller's own proxy redirects, and is not privileged.
    let words = ["/usr/local/bin/workload", "get", "http://caller.pods:8080/"];
    let text = cluster.exec(NAMESPACE, "deploy/seeing", "workload", &words)?;
    ensure!(text.contains("from: 127.0.0.6\n") && text.contains("spiffe://"), "{text}");
    let user = &proxy_of(&caller["items"][0])?["securityContext"]["runAsUser"];
    ensure!(user == 1337, "a proxy without TPROXY runs as {user}");
    cluster.kubectl("delete -n pods deployment/seeing service/seeing")?;
    Ok(String::new())
}

/// The proxy's container, among those that stay or that come first.
fn proxy_of(pod: &Value) -> Result<&Value> {
    let mut all =
        ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array()).flatten();
    all.find(|container| container["name"] == "istio-proxy").context("there is no sidecar")
}

const RING: &str = "
apiVersion: v1
kind: Service
metadata: {name: ring, namespace: pods}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {app: ring}
  ports: [{name: http, port: 8080}, {name: tcp, port: 7070}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ring, namespace: pods}
spec:
  serviceName: ring
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: ring}}
  template:
    metadata: {labels: {app: ring}}
    spec:
      containers: [{name: workload, image: 'mesh/workload:TAG', args: [serve]}]
";

/// Each pod of a StatefulSet calls the next by its own name, and itself; a pod calls itself through its service.
pub(crate) fn ring(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    cluster.apply(&RING.replace("TAG", &cluster.tag))?;
    cluster.kubectl("rollout status -n pods statefulset/ring --timeout=90s")?;
    for from in 0..3 {
        for to in [(from + 1) % 3, from] {
            let url = format!("http://ring-{to}.ring.pods.svc.cluster.local:8080/");
            cluster.until(&format!("ring-{from} reaches ring-{to}"), || {
                let pod = format!("ring-{from}");
                let text = cluster.exec(NAMESPACE, &pod, "workload", &["/usr/local/bin/workload", "get", &url])?;
                ensure!(text.contains(&format!("pod: ring-{to}\n")), "{text}");
                if from != to {
                    ensure!(text.contains("spiffe://cluster.local/ns/pods/sa/default"), "not by mutual TLS: {text}");
                }
                Ok(())
            })?;
        }
    }
    let text = cluster.until("a pod reaches itself through its service", || call(cluster, "http://caller:8080/"))?;
    ensure!(text.contains("pod: caller-"), "{text}");
    Ok(String::new())
}

const PROBES: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: probed, namespace: pods}
spec:
  selector: {matchLabels: {app: probed}}
  template:
    metadata: {labels: {app: probed}}
    spec:
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        startupProbe: {tcpSocket: {port: 7070}, periodSeconds: 1}
        livenessProbe: {grpc: {port: 9090}, periodSeconds: 1, failureThreshold: 2}
        readinessProbe: {httpGet: {path: /healthz, port: 8443, scheme: HTTPS}, periodSeconds: 1}
";
/// A pod that is up, with a probe of something that is not.
const REFUSED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: pods}
spec:
  containers:
  - name: workload
    image: mesh/workload:TAG
    args: [serve]
    readinessProbe: {PROBE, periodSeconds: 1}
---";
/// Nobody listens there, or whoever listens says that it is not well.
const UNWELL: [(&str, &str); 7] = [
    ("refused-http", "httpGet: {path: /healthz, port: 8081}"),
    ("refused-https", "httpGet: {path: /healthz, port: 8444, scheme: HTTPS}"),
    ("refused-tcp", "tcpSocket: {port: 7071}"),
    ("refused-grpc", "grpc: {port: 9091}"),
    ("unwell-http", "httpGet: {path: /unwell, port: 8080}"),
    ("unwell-https", "httpGet: {path: /unwell, port: 8443, scheme: HTTPS}"),
    ("unwell-grpc", "grpc: {port: 9090, service: unwell}"),
];

/// Probes of all kinds reach the application behind STRICT, and those of what is not well fail.
pub(crate) fn probes(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    let unwell = UNWELL.map(|(name, _)| name).join(" ");
    cluster.kubectl(&format!("delete pod -n pods {unwell} --ignore-not-found"))?;
    let refused = UNWELL.map(|(name, probe)| REFUSED.replace("NAME", name).replace("PROBE", probe)).concat();
    cluster.apply(&(refused + PROBES).replace("TAG", &cluster.tag))?;
    cluster.kubectl("rollout status -n pods deployment/probed --timeout=60s")?;
    // Each readiness probe is a request: after so many the liveness probes, which come as often, have had their say.
    cluster.until("the application has been probed", || {
        let text = cluster.exec(
            NAMESPACE,
            "deploy/probed",
            "workload",
            &["/usr/local/bin/workload", "get", "http://127.0.0.1:8080/metrics"],
        )?;
        let probes = text.lines().find_map(|line| line.strip_prefix("workload_requests_total ")?.parse::<u32>().ok());
        ensure!(probes > Some(8), "probes: {probes:?}");
        Ok(())
    })?;
    let pods = cluster.get("pods -n pods -l app=probed")?;
    let status = &pods["items"][0]["status"];
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "the liveness probe failed: {status}");
    for (name, _) in UNWELL {
        cluster.until(&format!("the probe of {name} fails"), || {
            let events = cluster.kubectl(&format!("events -n pods --for=pod/{name} --types=Warning"))?;
            ensure!(events.contains("Readiness probe failed"), "{events}");
            Ok(())
        })?;
        let pod = cluster.get(&format!("pod -n pods {name}"))?;
        let app = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        if app.clone().any(|status| status["name"] == "workload" && status["ready"] == true) {
            bail!("{name} is ready though it is not well");
        }
    }
    cluster.kubectl(&format!("delete pod -n pods {unwell} --wait=false"))?;
    Ok(String::new())
}

const NAMES: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: asker, namespace: pods}
spec:
  selector: {matchLabels: {app: asker}}
  template:
    metadata:
      labels: {app: asker}
      annotations: {proxy.istio.io/config: '{\"proxyMetadata\": {\"ISTIO_META_DNS_CAPTURE\": \"true\"}}'}
    spec:
      containers: [{name: workload, image: 'mesh/workload:TAG', args: [serve]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: invented, namespace: pods}
spec:
  hosts: [invented.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, targetPort: 8080, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: caller}}
";

/// A pod whose proxy captures DNS reaches a host that no name server knows; other names are found as before.
pub(crate) fn names(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    cluster.apply(&NAMES.replace("TAG", &cluster.tag))?;
    cluster.kubectl("rollout status -n pods deployment/asker --timeout=90s")?;
    let ask = |url: &str| {
        let words = ["/usr/local/bin/workload", "get", url];
        cluster.exec(NAMESPACE, "deploy/asker", "workload", &words)
    };
    cluster.until("a host that no name server knows", || {
        let text = ask("http://invented.example.com/")?;
        ensure!(text.contains("pod: caller-") && text.contains("ns/pods/sa/default"), "{text}");
        Ok(())
    })?;
    for url in ["http://caller:8080/", "http://caller.pods.svc:8080/"] {
        let text = ask(url)?;
        ensure!(text.contains("pod: caller-"), "{url}: {text}");
    }
    // What the mesh does not know is for the cluster's name server to say.
    let unknown = ask("http://nowhere.example.com/").err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(unknown.contains("lookup"), "a name that nobody has: {unknown}");
    let words = ["pilot-agent", "request", "--debug-port=15020", "GET", "stats/prometheus"];
    let metrics = cluster.exec(NAMESPACE, "deploy/asker", "istio-proxy", &words)?;
    let counted = metrics.lines().find_map(|line| line.strip_prefix("istio_agent_dns_upstream_requests_total "));
    ensure!(counted.is_some_and(|count| count != "0"), "nobody was asked: {counted:?}");
    Ok(String::new())
}

const CRON_JOB: &str = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: pods}
spec:
  schedule: '0 3 1 1 *'
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          containers: [{name: workload, image: 'mesh/workload:TAG', args: [get, 'http://caller:8080/']}]
";

/// What a CronJob starts has a sidecar, calls, and ends.
pub(crate) fn cron_job(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    cluster.kubectl("delete job -n pods nightly-now --ignore-not-found")?;
    cluster.apply(&CRON_JOB.replace("TAG", &cluster.tag))?;
    cluster.kubectl("create job -n pods --from=cronjob/nightly nightly-now")?;
    cluster.kubectl("wait -n pods --for=condition=Complete job/nightly-now --timeout=60s")?;
    let pods = cluster.get("pods -n pods -l job-name=nightly-now")?;
    let pod = &pods["items"][0];
    ensure!(containers(pod).iter().any(|name| name == "istio-proxy"), "it has no sidecar");
    let log = cluster.kubectl("logs -n pods job/nightly-now -c workload")?;
    ensure!(log.contains("ns/pods/sa/default"), "it was told {log}");
    Ok(String::new())
}

/// Prometheus finds the application's metrics and the proxy's at one place, by the pod's annotations.
pub(crate) fn metrics(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    call(cluster, USER)?;
    let pods = cluster.get("pods -n pods -l app=caller")?;
    let pod = pods["items"].as_array().into_iter().flatten().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let pod = pod.context("there is no caller")?;
    let told = |key: &str| pod["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned();
    let (port, path) = (told("prometheus.io/port"), told("prometheus.io/path"));
    ensure!((port.as_str(), path.as_str()) == ("15020", "/stats/prometheus"), "the pod says {port} {path}");
    let url = format!("http://{}:{port}{path}", pod["status"]["podIP"].as_str().context("no address")?);
    crate::trust::start_outsider(cluster)?;
    cluster.until("both are in one answer", || {
        let text = crate::trust::outsider(cluster, &url)?;
        ensure!(text.contains("workload_requests_total "), "the application's are missing");
        let line = text.lines().find(|line| line.starts_with("istio_requests_total{") && line.contains("user-service"));
        ensure!(line.is_some_and(|line| line.contains("mutual_tls") || line.contains("reporter=\"source\"")), "{text}");
        Ok(())
    })?;
    Ok(String::new())
}

/// What proxies and the control plane print is had without knowing their pods.
/// What a proxy has, through the API server, by the words of istioctl.
pub(crate) fn config(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    let pods = cluster.get(&format!("pods -n {NAMESPACE} -l app=caller --field-selector=status.phase=Running"))?;
    let pod = items(&pods).filter_map(|pod| pod["metadata"]["name"].as_str()).next().context("no caller runs")?;
    for (what, holds) in [
        ("clusters", "PassthroughCluster"),
        ("listeners", "15006"),
        ("routes", "istiod.istio-system.svc.cluster.local"),
        ("endpoints", "istiod.istio-system.svc.cluster.local"),
        ("secrets", "ROOTCA"),
        ("bootstrap", "istiod.istio-system.svc:15012"),
        ("ecds", "ECDS NAME"),
        ("all", "bootstrap"),
    ] {
        let text = cluster.meshctl(&format!("proxy-config {what} {pod}.{NAMESPACE}"))?;
        ensure!(text.contains(holds), "proxy-config {what}: {text}");
        let by_flag = cluster.meshctl(&format!("config {what} {pod} -n {NAMESPACE}"))?;
        ensure!(by_flag.contains(holds), "config {what} -n: {by_flag}");
    }
    let row = cluster.meshctl(&format!("status {pod} -n {NAMESPACE}"))?;
    ensure!(row.lines().count() == 2 && row.contains(&format!("{pod}.{NAMESPACE}")), "status -n: {row}");
    for (words, holds, holds_not) in [
        ("eds", "istiod.istio-system.svc.cluster.local", "BlackHoleCluster"),
        ("endpoint --port 15012 --status healthy", "outbound|15012||istiod", "outbound|15010||istiod"),
        ("listener --port 15006", "15006", "15001"),
        ("listener --verbose=false", "TYPE", "MATCH"),
        ("cluster --fqdn istiod --port 15012 --direction outbound", "15012", "15010"),
        ("route --name 15014 -o short", "15014", "15010"),
    ] {
        let text = cluster.meshctl(&format!("pc {words} {pod}.{NAMESPACE}"))?;
        ensure!(text.contains(holds) && !text.contains(holds_not), "pc {words}: {text}");
    }
    Ok(String::new())
}

pub(crate) fn logs(cluster: &Cluster) -> Result<String> {
    start_caller(cluster)?;
    for of in ["deployment/caller", "service/caller", "caller"] {
        let text = cluster.meshctl(&format!("logs {of} -n {NAMESPACE} --tail -1"))?;
        ensure!(text.contains("connected to the xDS server"), "{of}: {text}");
    }
    let text = cluster.meshctl("logs --tail -1")?;
    ensure!(text.contains("caller-"), "the control plane: {text}");
    let unknown = cluster.meshctl("logs deployment/nobody -n pods").err().map(|error| format!("{error:#}"));
    ensure!(unknown.as_ref().is_some_and(|told| told.contains("there is no pod or workload")), "{unknown:?}");
    followed(cluster)?;
    Ok(String::new())
}

/// Who follows a workload is told what pods say that come later.
fn followed(cluster: &Cluster) -> Result<()> {
    let file = std::env::temp_dir().join(format!("followed-{}", std::process::id()));
    let mut follower = cluster
        .meshctl_into(&format!("logs deployment/caller -n {NAMESPACE} -f --tail -1"), std::fs::File::create(&file)?)?;
    let outcome = told_of_newcomers(cluster, &file);
    follower.kill()?;
    follower.wait()?;
    std::fs::remove_file(&file)?;
    outcome
}

fn told_of_newcomers(cluster: &Cluster, file: &std::path::Path) -> Result<()> {
    let text = || Ok::<_, anyhow::Error>(std::fs::read_to_string(file)?);
    let names = || {
        let pods = cluster.get(&format!("pods -n {NAMESPACE} -l app=caller --field-selector=status.phase=Running"))?;
        Ok::<_, anyhow::Error>(
            items(&pods).filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect::<Vec<_>>(),
        )
    };
    let before = names()?;
    let first = before.first().context("no caller runs")?;
    cluster.until("the pod that is there is followed", || {
        ensure!(text()?.contains(&format!("[{first}] ")), "not yet");
        Ok(())
    })?;
    cluster.kubectl(&format!("rollout restart deployment/caller -n {NAMESPACE}"))?;
    cluster.rolled_out(NAMESPACE)?;
    let newcomer = names()?.into_iter().find(|name| !before.contains(name)).context("no pod has come")?;
    cluster.until("the newcomer is followed from its first line", || {
        let text = text()?;
        let own = text
            .lines()
            .any(|line| line.starts_with(&format!("[{newcomer}] ")) && line.contains("connected to the xDS server"));
        ensure!(own, "not yet");
        Ok(())
    })
}
