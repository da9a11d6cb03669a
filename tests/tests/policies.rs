//! AuthorizationPolicies, decided by our proxy and by a real Envoy under one control plane: the same requests by the same callers
//! under the same policies must be let in or refused by both, with the same words in their logs.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::time::Duration;

use mesh_tests::control_plane::ControlPlane;
use mesh_tests::server::{Client, ask, echo, get};
use mesh_tests::sidecar::{Process, workload};
use mesh_tests::twins::{KINDS, MESH, Twins};
use mesh_tests::wait::until;
use rand::RngExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Ports of the servers on which HTTP is spoken, each with rules of its own.
const HTTP: std::ops::RangeInclusive<u16> = 8080..=8091;
/// Ports on which bytes are spoken.
const BYTES: std::ops::RangeInclusive<u16> = 9000..=9003;

/// What binds each server; KIND is the end of its name.
const POLICIES: &str = r#"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allowed-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  rules:
  - to: [{operation: {ports: ["8080"]}}]
    from: [{source: {principals: [cluster.local/ns/shop/sa/caller-a]}}]
  - to: [{operation: {ports: ["8081"], paths: [/exact, /begin/*, "*.end", "/one/{*}/two", "/rest/{**}"], notPaths: [/begin/not]}}]
  - to: [{operation: {ports: ["8082"], hosts: [shop.example, "*.wild.example", "begin.*"]}}]
  - to: [{operation: {ports: ["8083"]}}]
    when:
    - {key: "request.headers[x-role]", values: [admin, "ops-*"]}
    - {key: "request.headers[X-Team]", notValues: [blue]}
  - to: [{operation: {ports: ["8084"], methods: [GET, "P*"], notMethods: [PATCH]}}]
  - to: [{operation: {ports: ["8085", "8086"]}}]
  - to: [{operation: {ports: ["8087"]}}]
    from: [{source: {remoteIpBlocks: [203.0.113.0/24], notRemoteIpBlocks: [203.0.113.9]}}]
  - to: [{operation: {ports: ["8088"]}}]
    from: [{source: {namespaces: [shop], notPrincipals: ["*/sa/caller-b"]}}]
  - to: [{operation: {ports: ["8089"]}}]
    from: [{source: {serviceAccounts: [caller-b]}}, {source: {serviceAccounts: [other/caller-a]}}]
  - to: [{operation: {ports: ["8090"]}}]
    from: [{source: {ipBlocks: [127.0.0.0/8], trustDomains: ["cluster.*"]}}]
  - to: [{operation: {ports: ["9000"]}}]
    from: [{source: {principals: ["*/ns/shop/sa/caller-a"]}}]
  - to: [{operation: {ports: ["9001"], methods: [GET]}}]
  - to: [{operation: {ports: ["9002", "9003"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: also-KIND, namespace: istio-system}
spec:
  selector: {matchLabels: {app: web-KIND}}
  rules:
  - to: [{operation: {ports: ["8091"]}}]
    when: [{key: source.principal, values: ["cluster.local/ns/shop/*"]}, {key: destination.port, notValues: ["8090"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  action: DENY
  rules:
  - to: [{operation: {ports: ["8085"], paths: [/admin, /admin/*, "/private/{*}"]}}]
  - to: [{operation: {ports: ["8085"]}}]
    when: [{key: "request.headers[x-bad]", values: ["bad*"]}]
  - to: [{operation: {ports: ["8086"]}}]
    from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/caller-a]}}]
  - to: [{operation: {ports: ["9002"], paths: [/never]}}]
    from: [{source: {principals: ["*/sa/caller-b"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial-KIND, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: web-KIND}}
  action: DENY
  rules:
  - to: [{operation: {ports: ["8084", "9003"]}}]
"#;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// A workload with a sidecar and this account.
    A,
    /// Another.
    B,
    /// Somebody without a certificate, who writes what he likes.
    Nobody,
}

/// A request. What is sent to a port comes there with this path.
#[derive(Debug)]
struct Row(Who, u16, &'static str, &'static str, &'static str, &'static str, u16);

/// The host that was asked for where it does not matter; callers with a sidecar ask for the server's own.
const ANY: &str = "web";

/// Who, port, method, path, host, headers, and the status that is right.
const ROWS: &[Row] = &[
    Row(Who::A, 8080, "GET", "/", ANY, "", 200),
    Row(Who::B, 8080, "GET", "/", ANY, "", 403),
    Row(Who::Nobody, 8080, "GET", "/", ANY, "", 403),
    Row(
        Who::Nobody,
        8080,
        "GET",
        "/",
        ANY,
        "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/caller-a",
        403,
    ),
    Row(Who::A, 8080, "POST", "/x?y=z", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/exact", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/exact?query=/no", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/exact/", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/Exact", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/begin/x/y", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/begin", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/begin/not", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/begin/./not", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/begin/../secret", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/begin/%2e%2e/secret", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/begin/..\\secret", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/any/where.end", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/other?x=.end", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/one/x/two", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/one/x=y;z:@/two", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/one/x*y/two", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/one//two", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/one/x/y/two", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/one/x/two/three", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/one/x/two?q", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/rest/", ANY, "", 200),
    Row(Who::Nobody, 8081, "GET", "/rest", ANY, "", 403),
    Row(Who::Nobody, 8081, "GET", "/rest/a/b%20c", ANY, "", 200),
    Row(Who::A, 8081, "GET", "/begin/../exact", ANY, "", 200),
    Row(Who::Nobody, 8082, "GET", "/", "shop.example", "", 200),
    Row(Who::Nobody, 8082, "GET", "/", "SHOP.Example", "", 200),
    Row(Who::Nobody, 8082, "GET", "/", "shop.example:8082", "", 403),
    Row(Who::Nobody, 8082, "GET", "/", "a.wild.example", "", 200),
    Row(Who::Nobody, 8082, "GET", "/", "wild.example", "", 403),
    Row(Who::Nobody, 8082, "GET", "/", "begin.example:80", "", 200),
    Row(Who::Nobody, 8082, "GET", "/", "other.example", "", 403),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: admin", 200),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: admin\r\nx-team: red", 200),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "X-ROLE: ops-1\r\nx-team: red", 200),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: admin\r\nx-team: blue", 403),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: Admin\r\nx-team: red", 403),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: admin\r\nx-role: admin", 200),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: guest\r\nx-role: admin", 200),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: guest,admin", 403),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "x-role: admin\r\nx-team: red\r\nx-team: blue", 403),
    Row(Who::Nobody, 8085, "GET", "/", ANY, "x-bad: good\r\nx-bad: bad", 403),
    Row(Who::Nobody, 8083, "GET", "/", ANY, "", 403),
    Row(Who::Nobody, 8084, "GET", "/", ANY, "", 200),
    Row(Who::Nobody, 8084, "PUT", "/", ANY, "", 200),
    Row(Who::Nobody, 8084, "PATCH", "/", ANY, "", 403),
    Row(Who::Nobody, 8084, "DELETE", "/", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "/", ANY, "", 200),
    Row(Who::Nobody, 8085, "GET", "/admin", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "/admin/x", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "/admin?x", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "/x/../admin", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "/%61dmin", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "/./admin", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "//admin", ANY, "", 200),
    Row(Who::Nobody, 8085, "GET", "/ADMIN", ANY, "", 200),
    Row(Who::Nobody, 8085, "GET", "/private/x", ANY, "", 403),
    Row(Who::Nobody, 8085, "GET", "/private/x/y", ANY, "", 200),
    Row(Who::Nobody, 8085, "GET", "/", ANY, "x-bad: bad", 403),
    Row(Who::Nobody, 8085, "GET", "/", ANY, "x-bad: bad\u{e9}", 403),
    Row(Who::A, 8086, "GET", "/", ANY, "", 200),
    Row(Who::B, 8086, "GET", "/", ANY, "", 403),
    Row(Who::Nobody, 8086, "GET", "/", ANY, "", 403),
    Row(Who::Nobody, 8087, "GET", "/", ANY, "", 403),
    Row(Who::Nobody, 8087, "GET", "/", ANY, "x-forwarded-for: 203.0.113.7", 200),
    Row(Who::Nobody, 8087, "GET", "/", ANY, "x-forwarded-for: 203.0.113.9", 403),
    Row(Who::Nobody, 8087, "GET", "/", ANY, "x-forwarded-for: 203.0.113.7, 192.0.2.1", 403),
    Row(Who::A, 8088, "GET", "/", ANY, "", 200),
    Row(Who::B, 8088, "GET", "/", ANY, "", 403),
    Row(Who::Nobody, 8088, "GET", "/", ANY, "", 403),
    Row(Who::A, 8089, "GET", "/", ANY, "", 403),
    Row(Who::B, 8089, "GET", "/", ANY, "", 200),
    Row(Who::A, 8090, "GET", "/", ANY, "", 200),
    Row(Who::Nobody, 8090, "GET", "/", ANY, "", 403),
    Row(Who::B, 8091, "GET", "/", ANY, "", 200),
    Row(Who::Nobody, 8091, "GET", "/", ANY, "", 403),
];

/// Who connects to which port with bytes, and whether he is let in.
const CONNECTIONS: &[(Who, u16, bool)] = &[
    (Who::A, 9000, true),
    (Who::B, 9000, false),
    (Who::Nobody, 9000, false),
    // A rule about methods lets no connection in, one about paths keeps more out.
    (Who::A, 9001, false),
    (Who::A, 9002, true),
    (Who::B, 9002, false),
    (Who::Nobody, 9002, true),
    (Who::B, 9003, true),
];

/// Addresses of one run.
struct Places(String);

impl Places {
    fn web(&self, kind: char) -> String {
        format!("{}{}", self.0, if kind == 'e' { 112 } else { 111 })
    }

    fn caller(&self, who: Who) -> String {
        format!("{}{}", self.0, if who == Who::A { 101 } else { 102 })
    }
}

/// The port under which a caller reaches a server's port for bytes: services of both servers are told apart by it.
fn outside(port: u16, kind: char) -> u16 {
    port + if kind == 'e' { 200 } else { 100 }
}

fn objects(places: &Places) -> String {
    let mut out = String::new();
    let mut egress = String::new();
    for kind in KINDS {
        let mut ports = String::new();
        let mut ingress = String::new();
        for port in HTTP {
            writeln!(ports, "  - {{name: http-{port}, port: {port}, targetPort: {port}}}").unwrap();
            writeln!(
                ingress,
                "  - {{port: {{number: {port}, protocol: HTTP, name: http-{port}}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}"
            )
            .unwrap();
        }
        for port in BYTES {
            let outside = outside(port, kind);
            writeln!(ports, "  - {{name: tcp-{port}, port: {outside}, targetPort: {port}}}").unwrap();
            writeln!(
                ingress,
                "  - {{port: {{number: {port}, protocol: TCP, name: tcp-{port}}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:19000'}}"
            )
            .unwrap();
            writeln!(
                egress,
                "  - {{port: {{number: {outside}, protocol: TCP, name: tcp-{outside}}}, bind: CALLER, captureMode: NONE, hosts: [./web-{kind}.shop.svc.cluster.local]}}"
            )
            .unwrap();
        }
        write!(
            out,
            "---
apiVersion: v1
kind: Service
metadata: {{name: web-{kind}, namespace: shop}}
spec:
  selector: {{app: web-{kind}}}
  ports:
{ports}---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: web-{kind}, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: web-{kind}}}}}
  ingress:
{ingress}{}{}",
            workload(&format!("web-{kind}"), "shop", &places.web(kind)),
            POLICIES.replace("KIND", &kind.to_string()).trim_start()
        )
        .unwrap();
    }
    for (who, name) in [(Who::A, "caller-a"), (Who::B, "caller-b")] {
        let address = places.caller(who);
        write!(
            out,
            "---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: {name}, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: {name}}}}}
  egress:
{}  - {{captureMode: NONE, hosts: [./*]}}
{}",
            egress.replace("CALLER", &address),
            workload(name, "shop", &address)
        )
        .unwrap();
    }
    out
}

/// Echoes bytes.
async fn echo_bytes(address: &str) {
    let socket = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
}

struct Stage {
    places: Places,
    twins: Twins,
    _callers: Vec<Process>,
}

impl Stage {
    async fn open() -> Stage {
        let mut dice = rand::rng();
        let places = Places(format!("127.{}.{}.", dice.random_range(100..250), dice.random_range(100..250)));
        let control_plane = ControlPlane::start_with(&[("shop.yaml", objects(&places).as_str())], MESH).await;
        assert!(control_plane.problems().is_empty(), "{:?}", control_plane.problems());
        for kind in KINDS {
            echo(&format!("{}:18080", places.web(kind))).await;
            echo_bytes(&format!("{}:19000", places.web(kind))).await;
        }
        let mut callers = Vec::new();
        for (who, name) in [(Who::A, "caller-a"), (Who::B, "caller-b")] {
            callers.push(Process::start(&control_plane, name, "shop", &places.caller(who)).await);
        }
        let addresses = KINDS.map(|kind| places.web(kind));
        Stage { twins: Twins::start(control_plane, addresses).await, places, _callers: callers }
    }

    /// The answer to a request, as it came.
    async fn send(&self, kind: char, row: &Row, id: &str) -> Result<String, std::io::Error> {
        let Row(who, port, method, path, host, headers, _) = row;
        let (to, host) = match who {
            Who::Nobody => (format!("{}:{port}", self.places.web(kind)), (*host).to_owned()),
            who => (format!("{}:15080", self.places.caller(*who)), format!("web-{kind}.shop.svc.cluster.local:{port}")),
        };
        let headers = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
        let mut stream = TcpStream::connect(to).await?;
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}x-request-id: {id}\r\nuser-agent: {id}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await??;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Whether bytes that are sent come back.
    async fn talk(&self, kind: char, who: Who, port: u16) -> bool {
        let to = match who {
            Who::Nobody => format!("{}:{port}", self.places.web(kind)),
            who => format!("{}:{}", self.places.caller(who), outside(port, kind)),
        };
        let talk = async {
            let mut stream = TcpStream::connect(to).await?;
            stream.write_all(b"hello").await?;
            let mut back = [0; 5];
            stream.read_exact(&mut back).await.map(|_| back == *b"hello")
        };
        tokio::time::timeout(Duration::from_secs(10), talk).await.is_ok_and(|said| said.unwrap_or(false))
    }

    /// The lines of a server's log that are about this.
    fn lines(&self, kind: char, about: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.twins.lines(usize::from(kind == 'e'), about)
    }

    /// What the log says of one of these, once it does.
    async fn told(&self, kind: char, about: impl Fn(&Value) -> bool) -> [String; 4] {
        let line = until("the log", async || self.lines(kind, &about).into_iter().next().ok_or("no line")).await;
        let keys = ["response_code", "response_flags", "response_code_details", "connection_termination_details"];
        let end = format!("-{kind}]");
        keys.map(|key| line[key].to_string().replace(&end, "]"))
    }

    async fn counted(&self, kind: char, end: &str) -> u64 {
        let admin = &self.twins.admins[usize::from(kind == 'e')];
        let (_, text) = Client::connect(admin).await.unwrap().ask(get(admin, "/stats")).await.unwrap();
        let values = text.lines().filter_map(|line| line.rsplit_once(": ")).filter(|(name, _)| name.ends_with(end));
        values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_let_in_and_refuse_the_same() {
    let stage = Stage::open().await;
    for kind in KINDS {
        let warm = Row(Who::A, 8080, "GET", "/", ANY, "", 200);
        until("the way", async || match stage.send(kind, &warm, "warm").await {
            Ok(answer) if status(&answer) == 200 => Ok(()),
            other => Err(other),
        })
        .await;
    }
    let mut wrong = Vec::new();
    for (index, row) in ROWS.iter().enumerate() {
        for kind in KINDS {
            let id = format!("row-{index}-{kind}");
            let answer = stage.send(kind, row, &id).await.unwrap_or_else(|error| error.to_string());
            if status(&answer) != row.6 {
                wrong.push(format!("{kind} {row:?}: {}", answer.lines().next().unwrap_or_default()));
            }
            let refused = answer.contains("RBAC: access denied");
            if refused != (row.6 == 403) {
                wrong.push(format!("{kind} {row:?}: {answer}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What they say of it.
    let mut details = Vec::new();
    for (index, row) in ROWS.iter().enumerate().filter(|(_, row)| row.6 == 403) {
        let of = async |kind| {
            let id = format!("row-{index}-{kind}");
            stage.told(kind, move |line: &Value| line["user_agent"] == id.as_str()).await
        };
        let (ours, theirs) = (of('m').await, of('e').await);
        assert_eq!(ours, theirs, "{row:?}");
        details.push(ours);
    }
    let said = |what: &str| details.iter().filter(|told| told[2].contains(what)).count();
    assert!(said("rbac_access_denied_matched_policy[none]") > 10, "{details:?}");
    assert!(said("rbac_access_denied_matched_policy[ns[shop]-policy[denied]-rule[0]]") > 5, "{details:?}");
    assert!(details.iter().all(|told| told[0] == "403" && told[1] == "\"-\""), "{details:?}");
    // gRPC has words of its own for it.
    let call = Row(Who::Nobody, 8080, "POST", "/a.B/C", ANY, "content-type: application/grpc", 200);
    for kind in KINDS {
        let answer = stage.send(kind, &call, "grpc").await.unwrap().to_ascii_lowercase();
        for said in ["http/1.1 200", "grpc-status: 7\r\n", "grpc-message: rbac: access denied\r\n"] {
            assert!(answer.contains(said), "{kind}: {said} is not in {answer}");
        }
    }
    // On trial, all requests of the port would have been refused.
    let trial = ROWS.iter().filter(|row| row.1 == 8084).count() as u64;
    assert_eq!(stage.counted('m', "http.rbac.shadow_denied").await, trial);
    assert_eq!(stage.counted('e', "shadow_denied").await, trial);
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_take_and_refuse_the_same_connections() {
    let stage = Stage::open().await;
    for kind in KINDS {
        until("the way", async || if stage.talk(kind, Who::A, 9000).await { Ok(()) } else { Err("refused") }).await;
    }
    for (who, port, right) in CONNECTIONS {
        for kind in KINDS {
            assert_eq!(stage.talk(kind, *who, *port).await, *right, "{kind} {who:?} {port}");
        }
    }
    let refused = |port: u16| {
        let end = format!(":{port}");
        move |line: &Value| {
            line["method"].is_null()
                && line["downstream_local_address"].as_str().is_some_and(|address| address.ends_with(&end))
                && line["connection_termination_details"].is_string()
        }
    };
    for port in [9000, 9001, 9002] {
        let (ours, theirs) = (stage.told('m', refused(port)).await, stage.told('e', refused(port)).await);
        assert_eq!(ours, theirs, "{port}");
        assert!(ours[3].contains("rbac_access_denied_matched_policy["), "{ours:?}");
    }
}

/// A policy counts for the next request of a connection that is there, and for the next connection of bytes.
#[tokio::test(flavor = "multi_thread")]
async fn an_edited_policy_counts_on_open_connections() {
    let stage = Stage::open().await;
    let host = "web-m.shop.svc.cluster.local:8080";
    let to = format!("{}:15080", stage.places.caller(Who::A));
    until("the way", async || match ask(&to, host, "/").await {
        Ok((200, _)) => Ok(()),
        other => Err(other),
    })
    .await;
    let mut client = Client::connect(&to).await.unwrap();
    assert_eq!(client.ask(get(host, "/")).await.unwrap().0, 200);
    stage.twins.control_plane.write(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: shop}\nspec: {action: DENY, rules: [{}]}\n",
    );
    until("the refusal", async || match client.ask(get(host, "/")).await {
        Ok((403, _)) => Ok(()),
        other => Err(other),
    })
    .await;
    assert!(!stage.talk('m', Who::A, 9000).await);
    std::fs::remove_file(stage.twins.control_plane.path("config/deny.yaml")).unwrap();
    until("the way again", async || match client.ask(get(host, "/")).await {
        Ok((200, _)) => Ok(()),
        other => Err(other),
    })
    .await;
    assert!(stage.talk('m', Who::A, 9000).await);
}
