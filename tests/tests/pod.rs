//! The proxy as a pod starts it: under the name of Istio's agent, with its command line and environment, in a network namespace of
//! its own, as the user 1337.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::join_token;
use mesh_tests::network::{Network, program};
use mesh_tests::wait::until;

const HUB: usize = 0;
const POD: usize = 1;
const SERVER: usize = 2;

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: user, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: user}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: user-1, namespace: shop}
spec: {address: 10.66.0.3, serviceAccount: user, labels: {app: user}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-1, namespace: shop}
spec: {address: 10.66.0.2, serviceAccount: web, labels: {app: web, security.istio.io/tlsMode: istio}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

const PROBES: &str = r#"{"/app-health/web/livez":{"httpGet":{"path":"/alive","port":8080,"httpHeaders":[{"name":"x-probe","value":"yes"}]},"timeoutSeconds":2},"/app-health/web/readyz":{"tcpSocket":{"port":8080}},"/app-health/web/startupz":{"tcpSocket":{"port":1}},"/app-lifecycle/web/prestopz":{"httpGet":{"path":"/stop","port":8080}}}"#;

fn application() -> PathBuf {
    env!("CARGO_BIN_EXE_application").into()
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn get(network: &Network, machine: usize, address: &str, path: &str) -> Result<String, String> {
    let output = network.output(machine, &application(), &["get", address, "user.shop", path]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

struct Pod {
    network: Network,
    agent: PathBuf,
}

impl Pod {
    /// The machines; the control plane has made its root, and runs if asked to.
    async fn new(control_plane: bool) -> Pod {
        let mut network = Network::new(2);
        let proxy = network.copy_of(&program("proxy"));
        let agent = proxy.with_file_name("pilot-agent");
        std::os::unix::fs::symlink(&proxy, &agent).unwrap();
        std::fs::create_dir(network.folder.path().join("config")).unwrap();
        std::fs::write(network.folder.path().join("config/objects.yaml"), OBJECTS).unwrap();
        network.start_program(SERVER, "user", &application(), &words("serve 10.66.0.3:8080"));
        network.start_program(POD, "web", &application(), &words("serve 0.0.0.0:8080"));
        let mut pod = Pod { network, agent };
        let line = pod.control_plane_line("127.0.0.1");
        pod.network.start_program(HUB, "first", &program("meshd"), &words(&line));
        let (root, key) = (pod.path("state/root-cert.pem"), pod.path(&format!("state/{}", join_token::KEY_FILE)));
        for file in [&root, &key] {
            until("the control plane's state", async || std::fs::metadata(file).map_err(|error| error.to_string()))
                .await;
        }
        if control_plane {
            pod.start_control_plane();
        }
        std::fs::copy(&root, pod.path("root.pem")).unwrap();
        let key = std::fs::read(&key).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        std::fs::write(pod.path("token"), join_token::create(&key, "shop", "web", now, 600).unwrap()).unwrap();
        pod
    }

    fn path(&self, below: &str) -> String {
        self.network.folder.path().join(below).display().to_string()
    }

    fn control_plane_line(&self, address: &str) -> String {
        let ports = if address == "127.0.0.1" {
            [1, 2, 3, 4, 5].map(|port| 20000 + port)
        } else {
            [15012, 8080, 15010, 15014, 15017]
        };
        format!(
            "--config-dir {} --state-dir {} --serving-names 10.66.0.1 --secure-grpc-addr {address}:{} --http-addr 127.0.0.1:{} \
             --grpc-addr 127.0.0.1:{} --monitoring-addr 127.0.0.1:{} --https-addr 127.0.0.1:{}",
            self.path("config"),
            self.path("state"),
            ports[0],
            ports[1],
            ports[2],
            ports[3],
            ports[4]
        )
    }

    fn start_control_plane(&mut self) {
        let line = self.control_plane_line("10.66.0.1");
        self.network.start_program(HUB, "meshd", &program("meshd"), &words(&line));
    }

    fn start_agent(&mut self) {
        self.start_agent_with(&[("MESH_NATIVE_SIDECAR", "true")]);
    }

    fn start_agent_with(&mut self, more: &[(&str, &str)]) {
        let mut all: Vec<String> = [
            ("POD_NAME", "web-1"),
            ("POD_NAMESPACE", "shop"),
            ("INSTANCE_IP", "10.66.0.2"),
            ("INSTANCE_IPS", "10.66.0.2"),
            ("SERVICE_ACCOUNT", "web"),
            ("PROXY_CONFIG", r#"{"discoveryAddress":"10.66.0.1:15012"}"#),
            ("CA_ADDR", "10.66.0.1:15012"),
            ("XDS_ROOT_CA", &self.path("root.pem")),
            ("TOKEN_FILE", &self.path("token")),
            ("ISTIO_CPU_LIMIT", "1"),
            ("ISTIO_META_WORKLOAD_NAME", "web"),
            ("ISTIO_META_POD_PORTS", r#"[{"containerPort":8080}]"#),
            ("ISTIO_KUBE_APP_PROBERS", PROBES),
            ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"scrape":"true","port":"8080","path":"/numbers"}"#),
        ]
        .iter()
        .chain(more)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
        all.push(self.agent.display().to_string());
        all.extend(words(
            "proxy sidecar --domain shop.svc.cluster.local --proxyLogLevel=warning --proxyComponentLogLevel=misc:error --log_output_level=default:info",
        ));
        self.network.start_proxy(POD, "pilot-agent", Path::new("/usr/bin/env"), &all);
    }

    fn agent(&self, line: &str) -> Result<String, String> {
        let output = self.network.output(POD, &self.agent, &words(line));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stdout) + &text(&output.stderr))
        }
    }

    fn capture(&self) {
        self.agent("istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020 --log_output_level=default:info").unwrap();
    }

    fn ready(&self) -> Result<String, String> {
        let text = get(&self.network, POD, "127.0.0.1:15021", "/healthz/ready")?;
        if text.starts_with("HTTP/1.1 200") { Ok(text) } else { Err(text) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_whose_traffic_is_not_captured_is_not_ready_and_says_so() {
    let mut pod = Pod::new(true).await;
    pod.start_agent();
    until("the reason", async || match pod.ready() {
        Err(text) if text.contains("not captured") && text.contains("1337") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let refused = pod.agent("wait --timeoutSeconds 0").unwrap_err();
    assert!(refused.contains("not captured"), "{refused}");
    pod.capture();
    until("a ready proxy", async || pod.ready()).await;
    assert_eq!(pod.agent("wait"), Ok(String::new()));
    let info = pod.agent("request GET server_info").unwrap();
    assert!(info.contains("\"LIVE\"") && info.contains("\"concurrency\":1"), "{info}");

    // Nobody outside gets through in plaintext, while the kubelet's probes are answered.
    assert!(get(&pod.network, SERVER, "10.66.0.2:8080", "/").is_err());
    let probe = |path: &str| get(&pod.network, SERVER, "10.66.0.2:15020", path).unwrap_or_else(|text| text);
    for (path, wanted) in [
        ("/app-health/web/livez", "HTTP/1.1 200"),
        ("/app-health/web/readyz", "HTTP/1.1 200"),
        ("/app-health/web/startupz", "HTTP/1.1 500"),
        ("/app-health/web/other", "HTTP/1.1 404"),
        ("/app-lifecycle/web/prestopz", "HTTP/1.1 200"),
    ] {
        let text = probe(path);
        assert!(text.starts_with(wanted), "{path}: {text}");
    }
    // The application's page says what it was asked.
    let page = probe("/stats/prometheus");
    for line in [
        "GET /numbers HTTP/1.1",
        "istio_agent_scrapes_total 1",
        "istio_agent_scrape_failures_total{type=\"application\"} 0",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
    // The end is announced, and what comes meanwhile is served.
    pod.agent("request --debug-port=15020 POST drain").unwrap();
    assert!(pod.ready().unwrap_err().contains("ending"));
    for _ in 0..10 {
        let served = get(&pod.network, POD, "10.96.0.10:80", "/during").unwrap();
        assert!(served.contains("GET /during"), "{served}");
    }
    pod.agent("request --debug-port=15020 POST quitquitquit").unwrap();
    let start = Instant::now();
    until("the end", async || pod.network.ended().ok_or("it still runs".to_owned())).await;
    // The usual drain is five.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_for_the_first_configuration() {
    let mut pod = Pod::new(false).await;
    pod.capture();
    pod.start_agent();
    until("a socket", async || get(&pod.network, POD, "127.0.0.1:15021", "/healthz/ready")).await;
    assert!(pod.ready().unwrap_err().contains("no configuration"));
    let address = "10.96.0.10:80";
    let mut command = std::process::Command::new("ip");
    let early = command.args(["netns", "exec", pod.network.name(POD)]).arg(application()).args([
        "get",
        address,
        "user.shop",
        "/early",
    ]);
    let early = early.stdout(std::process::Stdio::piped()).spawn().unwrap();
    pod.start_control_plane();
    let output = tokio::task::spawn_blocking(|| early.wait_with_output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("GET /early"), "{text}");
    until("a ready proxy", async || pod.ready()).await;
}

/// Who is told to end goes on for `terminationDrainDuration`, since others learn of it later; then it ends as soon as nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_takes_as_long_as_the_settings_say() {
    let mut pod = Pod::new(true).await;
    pod.capture();
    pod.start_agent_with(&[(
        "PROXY_CONFIG",
        r#"{"discoveryAddress":"10.66.0.1:15012","terminationDrainDuration":"2s"}"#,
    )]);
    until("a ready proxy", async || pod.ready()).await;
    let start = Instant::now();
    pod.network.terminate("pilot-agent");
    let mut served = 0;
    while start.elapsed() < Duration::from_millis(1500) {
        let text = get(&pod.network, POD, "10.96.0.10:80", "/during").unwrap();
        assert!(text.contains("GET /during"), "{text}");
        served += 1;
    }
    assert!(served > 10, "{served}");
    until("the end", async || pod.network.ended().ok_or("it still runs".to_owned())).await;
    assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_configuration_ends_at_once() {
    let mut pod = Pod::new(false).await;
    pod.capture();
    pod.start_agent_with(&[]);
    until("a socket", async || get(&pod.network, POD, "127.0.0.1:15021", "/healthz/ready")).await;
    let start = Instant::now();
    pod.network.terminate("pilot-agent");
    until("the end", async || pod.network.ended().ok_or("it still runs".to_owned())).await;
    // The usual drain is five.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}
