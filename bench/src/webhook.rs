//! `bench webhook`: how fast the control plane answers the API server's questions about pods that are to be made.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::histogram::Histogram;
use crate::peer::ControlPlane;
use crate::report::{cores, machine, number, rounded, table};
use crate::{Output, beside, process};

/// An answer that takes longer has failed: the API server waits for ten seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Not counted, so that nothing is measured that happens once.
const WARM_UP: Duration = Duration::from_secs(3);

/// What is measured.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Reviews a second: one or several numbers.
    #[arg(long, value_delimiter = ',', default_value = "500")]
    rates: Vec<u32>,
    /// Measured seconds for each rate.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// One measured second, without what comes before. Says only that the benchmark works.
    #[arg(long)]
    short: bool,
    /// Connections; an API server has one.
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Folder with the release build of `meshd`; the one that this program is in if not given.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// How the results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Measures and prints.
///
/// # Errors
/// The control plane fails, or a pod is not injected.
pub(crate) fn run(arguments: &Arguments, folder: &Path) -> Result<()> {
    ensure!(arguments.rates.iter().all(|rate| (1..=50_000).contains(rate)), "a rate is not between 1 and 50,000");
    ensure!(arguments.connections > 0 && arguments.seconds > 0, "connections and seconds must be 1 at least");
    let (load_core, control_core) = if cores() >= 2 { (Some(0), Some(1)) } else { (None, None) };
    load_core.map_or(Ok(()), process::pin)?;
    let binaries = arguments.binaries.clone().map_or_else(beside, Ok)?;
    std::fs::create_dir_all(folder.join("config"))?;
    std::fs::write(folder.join("mesh-config.yaml"), "")?;
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n";
    std::fs::write(folder.join("config/namespace.yaml"), namespace)?;
    let control_plane = ControlPlane::start(&binaries, folder, control_core)?;
    let root = folder.join("state/root-cert.pem");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for rate in &arguments.rates {
        eprintln!("{rate} reviews a second");
        rows.push(runtime.block_on(one(arguments, *rate, &control_plane, &root))?);
    }
    let results = json!({"bench": "webhook", "machine": machine(), "pinned": control_core.is_some(), "rows": rows});
    match arguments.output {
        Output::Json => println!("{results:#}"),
        Output::Table => println!("{}", told(&results)),
    }
    Ok(())
}

async fn one(arguments: &Arguments, rate: u32, control_plane: &ControlPlane, root: &Path) -> Result<Value> {
    let address: SocketAddr = control_plane.webhook.parse().context("meshd has no port for webhooks")?;
    let mut connections = Vec::new();
    for _ in 0..arguments.connections {
        connections.push(connect(address, root).await?);
    }
    let counted = Arc::new(Mutex::new(Histogram::default()));
    let mut asked = JoinSet::new();
    let (warm_up, seconds) = if arguments.short { (Duration::ZERO, 1) } else { (WARM_UP, arguments.seconds) };
    let total = (warm_up.as_secs() as u32 + seconds) * rate;
    let started = Instant::now();
    let from = started + warm_up;
    let mut cpu = None;
    for number in 0..total {
        // An open loop: what is due is sent, whatever has not been answered yet; and it counts from when it was due.
        let due = started + Duration::from_secs(1) * number / rate;
        tokio::time::sleep_until(due.into()).await;
        if due >= from && cpu.is_none() {
            cpu = Some(control_plane.process.cpu_seconds()?);
        }
        let connection = connections[number as usize % connections.len()].clone();
        let counted = counted.clone();
        asked.spawn(async move {
            tokio::time::timeout(PATIENCE, review(connection, number)).await.context("no answer came")??;
            if due >= from
                && let Ok(mut counted) = counted.lock()
            {
                counted.add(due.elapsed());
            }
            Ok::<_, anyhow::Error>(())
        });
        while let Some(ended) = asked.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = asked.join_next().await {
        ended??;
    }
    let cpu = control_plane.process.cpu_seconds()? - cpu.unwrap_or_default();
    let counted = counted.lock().map_err(|_| anyhow::anyhow!("the counts are lost"))?;
    let milliseconds = |share| rounded(counted.quantile(share) / 1e3);
    Ok(json!({
        "rate": rate,
        "reviews": counted.total(),
        "ms_p50": milliseconds(0.5),
        "ms_p90": milliseconds(0.9),
        "ms_p99": milliseconds(0.99),
        "ms_longest": milliseconds(1.0),
        "cpu_ms_per_review": rounded(cpu * 1e3 / counted.total().max(1) as f64),
        "rss_mb": rounded(control_plane.process.resident()? as f64 / 1e6),
    }))
}

/// HTTP/2 over TLS, as the API server speaks with webhooks.
async fn connect(address: SocketAddr, root: &Path) -> Result<SendRequest<Bytes>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root).context("the root certificate cannot be read")?)?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("istiod.istio-system.svc")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (send, connection) = h2::client::Builder::new().initial_window_size(1 << 20).handshake(stream).await?;
    // What breaks the connection is told by the calls on it.
    tokio::spawn(connection);
    Ok(send)
}

/// Asks about one pod; it must be allowed, and get its proxy.
async fn review(connection: SendRequest<Bytes>, number: u32) -> Result<()> {
    let mut connection = connection.ready().await?;
    let request = http::Request::post("https://istiod.istio-system.svc/inject?timeout=10s")
        .header("content-type", "application/json")
        .body(())?;
    let (answer, mut body) = connection.send_request(request, false)?;
    body.send_data(question(number).to_string().into(), true)?;
    let answer = answer.await?;
    ensure!(answer.status() == 200, "a review was answered with status {}", answer.status());
    let mut stream = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        bytes.extend_from_slice(&part);
    }
    // Looking for the words costs the load less than reading all of it.
    let text = std::str::from_utf8(&bytes)?;
    ensure!(text.contains("\"allowed\":true") && text.contains("\"patch\":\""), "a pod was not injected: {text:.300}");
    Ok(())
}

/// A review as an API server sends it: a pod of a Deployment, with probes, resources, a volume and what Kubernetes adds by itself.
fn question(number: u32) -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3});
    let mount = json!({"name": "kube-api-access-abcde", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": format!("705ab4f5-6393-11e8-b7cc-{number:012}"),
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"}, "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop", "operation": "CREATE", "dryRun": false, "oldObject": null,
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:serviceaccounts", "system:authenticated"]},
            "object": {
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {
                    "generateName": "product-v1-866698d7f-", "namespace": "shop",
                    "labels": {"app": "product", "version": "v1", "pod-template-hash": "866698d7f"},
                    "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "product-v1-866698d7f", "uid": "1f0c4c33", "controller": true, "blockOwnerDeletion": true}],
                },
                "spec": {
                    "containers": [{
                        "name": "product", "image": "registry.example.com/shop/product:1.4.2", "imagePullPolicy": "IfNotPresent",
                        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                        "env": [{"name": "DATABASE", "value": "products"}, {"name": "POD", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                        "livenessProbe": probe, "readinessProbe": probe, "volumeMounts": [mount],
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    }],
                    "volumes": [{"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    ]}}],
                    "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                    "serviceAccountName": "product", "serviceAccount": "product", "securityContext": {}, "schedulerName": "default-scheduler",
                    "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
                    "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
                },
                "status": {},
            },
        },
    })
}

fn told(results: &Value) -> String {
    let head = ["reviews a second", "p50, ms", "p90, ms", "p99, ms", "longest, ms", "CPU of a review, ms", "RSS, MB"];
    let fields = ["rate", "ms_p50", "ms_p90", "ms_p99", "ms_longest", "cpu_ms_per_review", "rss_mb"];
    let row = |row: &Value| fields.iter().map(|field| number(row[*field].as_f64().unwrap_or_default())).collect();
    table(&head, &results["rows"].as_array().into_iter().flatten().map(row).collect::<Vec<Vec<String>>>())
}
