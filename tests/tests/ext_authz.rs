//! Somebody else decides (AuthorizationPolicies with the action CUSTOM, and rules that ask for a decision): asked by our proxy and by
//! a real Envoy under one control plane, who must ask the same, make the same of the answers and say the same of it.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;

use api::node::Role;
use mesh_tests::authorizer::Authorizer;
use mesh_tests::control_plane::ControlPlane;
use mesh_tests::envoy::{Envoy, Workload};
use mesh_tests::server::{Client, echo, echo_bodies, get};
use mesh_tests::sidecar::{self, loopback, workload};
use mesh_tests::twins::{KINDS, MESH, Twins};
use mesh_tests::wait::until;
use rand::RngExt;
use serde_json::json;

/// Ports of the servers on which HTTP is spoken.
const HTTP: [u16; 2] = [8080, 8081];

/// A request: port, line, headers, body; and the status and a word of the answer that are right.
#[derive(Debug)]
struct Row(u16, &'static str, &'static str, &'static str, u16, &'static str);

/// A provider of the mesh's settings, of one kind.
fn provider(kind: &str, more: &str) -> String {
    format!("{MESH}extensionProviders:\n- name: asker\n  {kind}: {{service: asker.example, port: 9000{more}}}\n")
}

/// CUSTOM for all but open paths; DENY for one of the teams that the provider tells.
const CUSTOM: &str = r#"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asked-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  action: CUSTOM
  provider: {name: asker}
  rules:
  - to: [{operation: {ports: ["8080", "8082", "9001"], notPaths: [/open, /open/*]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  action: DENY
  rules:
  - when: [{key: "experimental.envoy.filters.http.ext_authz[team]", values: [blue]}]
"#;

struct Stage {
    twins: Twins,
    authorizer: Option<Authorizer>,
    address: String,
}

impl Stage {
    async fn open(mesh: &str, policies: &str, http: bool) -> Stage {
        let mut dice = rand::rng();
        let network = format!("127.{}.{}.", dice.random_range(100..250), dice.random_range(100..250));
        let addresses = [format!("{network}111"), format!("{network}112")];
        let asker = format!("{network}113");
        let mut objects = format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: asker, namespace: elsewhere}}
spec:
  hosts: [asker.example]
  resolution: STATIC
  ports: [{{number: 9000, name: {}, protocol: {}}}]
  endpoints: [{{address: {asker}}}]
",
            if http { "http" } else { "grpc" },
            if http { "HTTP" } else { "GRPC" },
        );
        for (kind, address) in KINDS.iter().zip(&addresses) {
            let mut ingress = String::new();
            for port in HTTP {
                writeln!(ingress, "  - {{port: {{number: {port}, protocol: HTTP, name: http-{port}}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}").unwrap();
            }
            writeln!(ingress, "  - {{port: {{number: 8082, protocol: HTTP, name: http-8082}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18081'}}").unwrap();
            writeln!(ingress, "  - {{port: {{number: 9001, protocol: TCP, name: tcp-9001}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}").unwrap();
            // What the workload may call does not have the provider.
            write!(
                objects,
                "---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: web-{kind}, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: web-{kind}}}}}
  egress: [{{hosts: [./*]}}]
  ingress:
{ingress}{}{}",
                workload(&format!("web-{kind}"), "shop", address),
                policies.replace("KIND", &kind.to_string()).trim_start()
            )
            .unwrap();
        }
        let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], mesh).await;
        let errors: Vec<_> =
            control_plane.problems().into_iter().filter(|one| one.severity > api::problem::Severity::Info).collect();
        assert!(errors.is_empty(), "{errors:?}");
        for address in &addresses {
            echo(&format!("{address}:18080")).await;
            echo_bodies(&format!("{address}:18081")).await;
        }
        let address = format!("{asker}:9000");
        let authorizer = Some(if http { Authorizer::http(&address).await } else { Authorizer::grpc(&address).await });
        Stage { twins: Twins::start(control_plane, addresses).await, authorizer, address }
    }

    /// The answer to a request, as it came.
    async fn send(&self, place: usize, row: &Row, id: &str) -> String {
        let Row(port, line, headers, body, ..) = row;
        let headers = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let text = format!(
            "{line} HTTP/1.1\r\nhost: web.example\r\n{headers}{length}user-agent: {id}\r\nconnection: close\r\n\r\n{body}"
        );
        self.twins.send(place, *port, text.as_bytes()).await
    }

    /// All rows, with both.
    async fn decide(&self, name: &str, rows: &[Row]) {
        let mut wrong = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let answers = [
                self.send(0, row, &format!("{name}-{index}-m")).await,
                self.send(1, row, &format!("{name}-{index}-e")).await,
            ];
            let said = answers.each_ref().map(|answer| said(answer));
            if said[0] != said[1] {
                wrong.push(format!("{row:?}: ours {:#?} Envoy {:#?}", said[0], said[1]));
            }
            if said[0].0 != row.4 || !answers[0].contains(row.5) {
                wrong.push(format!("{row:?}: {}", answers[0]));
            }
        }
        let keys = ["response_code", "response_flags", "response_code_details"];
        for (index, row) in rows.iter().enumerate() {
            let told = [
                self.twins.told(0, &format!("{name}-{index}-m"), keys).await,
                self.twins.told(1, &format!("{name}-{index}-e"), keys).await,
            ];
            let [ours, theirs] = told.map(|told| told.map(|text| text.replace("-m]", "]").replace("-e]", "]")));
            if ours != theirs {
                wrong.push(format!("{row:?}: the log says {ours:?}, Envoy's {theirs:?}"));
            }
        }
        assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    }

    /// Whether bytes come to the application behind a port for bytes.
    async fn talks(&self, place: usize) -> bool {
        let text = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        self.twins.send(place, 9001, text.as_bytes()).await.starts_with("HTTP/1.1 200")
    }
}

/// Of an answer: status, what of its headers is of interest, and its body; of the request that the application got, without what
/// passes.
fn said(answer: &str) -> (u16, Vec<String>, Vec<String>) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let passing = [
        "date:",
        "x-request-id:",
        "x-envoy-upstream-service-time:",
        "user-agent:",
        "x-forwarded-for:",
        "x-envoy-expected-rq-timeout-ms:",
        "connection:",
        "transfer-encoding:",
        "server:",
        "x-b3-",
        "x-envoy-attempt-count:",
        "traceparent:",
        "x-envoy-decorator-operation:",
        "x-envoy-peer-metadata",
        "content-length:",
    ];
    let kept = |line: &&str| !passing.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().filter(kept).map(str::to_owned).collect();
        lines.sort_by_key(|line| line.to_ascii_lowercase());
        lines
    };
    let headers = sorted(head).into_iter().map(|line| match line.split_once(':') {
        Some((name, value)) => format!("{}:{value}", name.to_ascii_lowercase()),
        None => line,
    });
    (status, headers.collect(), sorted(body))
}

const GRPC: &[Row] = &[
    Row(8080, "GET /", "x-case: allow", "", 200, ""),
    Row(8080, "GET /", "", "", 200, ""),
    Row(8080, "GET /", "x-case: bare", "", 200, ""),
    Row(8080, "GET /", "x-case: deny", "", 403, ""),
    Row(8080, "GET /open", "x-case: deny", "", 200, ""),
    Row(8080, "GET /open/x?y", "x-case: deny", "", 200, ""),
    Row(8081, "GET /", "x-case: deny", "", 200, ""),
    Row(
        8080,
        "GET /a/b?c=d&e",
        "x-case: seen\r\nx-one: 1\r\nx-two: a\r\nx-two: b\r\ncookie: a=b\r\nx-envoy-auth-partial-body: true",
        "",
        200,
        "x-seen",
    ),
    Row(8080, "POST /p", "x-case: seen\r\nx-envoy-downstream-service-cluster: me", "hello", 200, "x-seen"),
    Row(
        8080,
        "GET /",
        "x-case: headers\r\nx-here-add: old\r\nx-here-absent: old\r\nx-here-set: old\r\nx-here-exists: old\r\nx-here-append: old\r\nx-here-replace: old",
        "",
        200,
        "new",
    ),
    Row(8080, "GET /", "x-case: remove\r\nx-secret: 1\r\nx-other: 2\r\nx-third: 3", "", 200, "x-third"),
    Row(8080, "GET /", "x-case: answer", "", 200, ""),
    Row(8080, "GET /x?c=1&a=2&b=3&b=4", "x-case: query", "", 200, ""),
    Row(8080, "GET /x", "x-case: query", "", 200, ""),
    Row(8080, "GET /x?y=z", "x-case: path", "", 200, ""),
    Row(8080, "GET /", "x-case: host", "", 200, ""),
    Row(8080, "GET /", "x-case: red", "", 200, ""),
    Row(8080, "GET /", "x-case: blue", "", 403, "RBAC"),
    Row(8080, "GET /", "x-case: deny-words", "", 401, "<b>no</b>"),
    Row(8080, "GET /", "x-case: deny-headers", "", 403, "new"),
    Row(8080, "GET /", "x-case: deny-redirect", "", 302, "https://login.example/"),
    Row(8080, "GET /", "x-case: deny-ok", "", 403, ""),
    Row(8080, "GET /", "x-case: cannot", "", 403, ""),
    Row(8080, "GET /", "x-case: cannot-500", "", 500, ""),
    Row(8080, "GET /", "x-case: status", "", 403, ""),
    Row(8080, "GET /", "x-case: forbidden", "", 403, ""),
    Row(8080, "GET /", "x-case: slow", "", 403, ""),
    Row(8080, "POST /a.B/C", "content-type: application/grpc\r\nx-case: deny", "", 200, "grpc-status: 7"),
    Row(8080, "POST /a.B/C", "content-type: application/grpc\r\nx-case: deny-words", "", 200, "grpc-status: 16"),
];

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_ask_over_grpc_and_make_the_same_of_the_answers() {
    let stage = Stage::open(&provider("envoyExtAuthzGrpc", ", timeout: 500ms"), CUSTOM, false).await;
    stage.decide("grpc", GRPC).await;
    // Connections.
    let authorizer = stage.authorizer.as_ref().unwrap();
    let before = authorizer.asked();
    for place in [0, 1] {
        assert!(stage.talks(place).await, "{place}");
    }
    assert_eq!(authorizer.asked() - before, 2);
    let seen = authorizer.seen().unwrap();
    assert!(seen.request.is_none() && seen.source.unwrap().address.is_some());
    authorizer.denies(true);
    for place in [0, 1] {
        assert!(!stage.talks(place).await, "{place}");
    }
}

/// Of bodies: whole, or their beginning.
const PARTIAL: &[Row] = &[
    Row(8080, "POST /", "x-case: seen", "0123456789", 200, "x-seen"),
    Row(8080, "POST /", "x-case: seen", "0123456789abcdef", 200, "x-seen"),
    Row(8080, "POST /", "x-case: seen", "0123456789abcdefgh", 200, "x-seen"),
    Row(8080, "POST /", "x-case: seen\r\nx-envoy-auth-partial-body: mine", "é\u{1f600}", 200, "x-seen"),
    Row(8080, "GET /", "x-case: seen", "", 200, "x-seen"),
    Row(8080, "POST /", "x-case: deny", "0123456789abcdefgh", 403, ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_send_the_beginning_of_bodies_along() {
    let mesh =
        provider("envoyExtAuthzGrpc", ", includeRequestBodyInCheck: {maxRequestBytes: 16, allowPartialMessage: true}");
    let stage = Stage::open(&mesh, CUSTOM, false).await;
    stage.decide("partial", PARTIAL).await;
    // The application gets all of it, however it comes.
    let long: String = (0..60_000).map(|number| char::from(b'a' + (number % 26) as u8)).collect();
    for body in ["", "0123456789", "0123456789abcdef", "0123456789abcdefgh", &long] {
        let head = "POST / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n";
        let cut: String = body
            .as_bytes()
            .chunks(7)
            .map(|part| format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part)))
            .collect();
        let requests = [
            format!("{head}content-length: {}\r\n\r\n{body}", body.len()),
            format!("{head}transfer-encoding: chunked\r\n\r\n{cut}0\r\n\r\n"),
        ];
        for (place, request) in
            [0, 1].into_iter().flat_map(|place| requests.iter().map(move |request| (place, request)))
        {
            let answer = stage.twins.send(place, 8082, request.as_bytes()).await;
            let whole = answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n\r\n{body}"));
            assert!(whole, "{place}: {} of {}: {}", answer.len(), body.len(), &answer[..answer.len().min(500)]);
        }
    }
}

const WHOLE: &[Row] = &[
    Row(8080, "POST /", "x-case: seen", "0123456789", 200, "x-seen"),
    Row(8080, "POST /", "x-case: seen", "0123456789abcdef", 200, "x-seen"),
    Row(8080, "POST /", "x-case: seen", "0123456789abcdefgh", 413, "Payload Too Large"),
    Row(8080, "POST /open", "x-case: seen", "0123456789abcdefgh", 200, ""),
    Row(8080, "GET /", "x-case: status", "", 503, ""),
    Row(8080, "GET /", "x-case: deny", "", 403, ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_send_whole_bodies_as_bytes_and_refuse_larger_ones() {
    let mesh = provider(
        "envoyExtAuthzGrpc",
        ", statusOnError: '503', includeRequestBodyInCheck: {maxRequestBytes: 16, packAsBytes: true}",
    );
    let stage = Stage::open(&mesh, CUSTOM, false).await;
    stage.decide("whole", WHOLE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_requests_are_refused_or_pass_as_the_provider_says() {
    for (open, right) in [("", 403), (", failOpen: true", 200)] {
        let mesh = provider("envoyExtAuthzGrpc", &format!(", timeout: 500ms{open}"));
        let mut stage = Stage::open(&mesh, CUSTOM, false).await;
        let rows = [
            Row(8080, "GET /", "x-case: status", "", right, ""),
            Row(8080, "GET /", "x-case: slow", "", right, ""),
            Row(8080, "GET /", "x-case: deny", "", 403, ""),
        ];
        stage.decide("there", &rows).await;
        // Nobody is there; then somebody is again.
        stage.authorizer = None;
        until("nobody", async || match tokio::net::TcpStream::connect(&stage.address).await {
            Err(_) => Ok(()),
            Ok(_) => Err("somebody"),
        })
        .await;
        stage
            .decide(
                "away",
                &[Row(8080, "GET /", "x-case: allow", "", right, ""), Row(8080, "GET /open", "", "", 200, "")],
            )
            .await;
        stage.authorizer = Some(Authorizer::grpc(&stage.address).await);
        for place in [0, 1] {
            until("the provider", async || {
                let answer = stage.send(place, &Row(8080, "GET /", "x-case: red", "", 200, ""), "again").await;
                let denied = stage.send(place, &Row(8080, "GET /", "x-case: deny-words", "", 401, ""), "again").await;
                let right = answer.starts_with("HTTP/1.1 200") && denied.starts_with("HTTP/1.1 401");
                right.then_some(()).ok_or((answer, denied))
            })
            .await;
        }
    }
}

const OVER_HTTP: &[Row] = &[
    Row(8080, "GET /a/b?c=d", "x-case: allow\r\nx-one: 1\r\nx-more: 2\r\nauthorization: Basic eDp5", "", 200, "x-seen"),
    Row(8080, "POST /", "x-case: allow\r\nX-One: 1", "hello", 200, "hello"),
    Row(8080, "POST /", "x-case: allow", "0123456789abcdefgh", 200, "x-seen"),
    Row(8080, "GET /", "x-case: allow\r\nx-up: mine\r\nx-none: mine", "", 200, ""),
    Row(8080, "GET /", "x-case: deny", "", 403, "from the authorizer"),
    Row(8080, "GET /", "x-case: created", "", 201, "from the authorizer"),
    Row(8080, "GET /", "x-case: login", "", 401, "from the authorizer"),
    Row(8080, "GET /", "x-case: moved", "", 302, "https://login.example/"),
    Row(8080, "GET /", "x-case: broken", "", 403, ""),
    Row(8080, "GET /", "x-case: away", "", 403, ""),
    Row(8080, "GET /", "x-case: slow", "", 403, ""),
    Row(8080, "GET /", "x-case: remove\r\nx-secret: 1\r\nx-other: 2\r\nx-third: 3", "", 200, "x-third"),
    Row(8080, "GET /open", "x-case: deny", "", 200, ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_ask_over_http_and_make_the_same_of_the_answers() {
    let lists = ", includeRequestHeadersInCheck: [x-case, x-o*], includeAdditionalHeadersInCheck: {x-added: 'yes'}, headersToUpstreamOnAllow: [x-seen, x-up], headersToDownstreamOnAllow: [x-d*]";
    let body = ", includeRequestBodyInCheck: {maxRequestBytes: 16, allowPartialMessage: true}";
    let mesh = provider("envoyExtAuthzHttp", &format!(", timeout: 500ms, pathPrefix: /check{lists}{body}"));
    let stage = Stage::open(&mesh, CUSTOM, true).await;
    stage.decide("http", OVER_HTTP).await;
    // Connections are not asked about.
    for place in [0, 1] {
        assert!(stage.talks(place).await, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_tell_callers_what_is_listed_only() {
    let lists = ", includeRequestHeadersInCheck: [x-case], headersToDownstreamOnDeny: [x-down]";
    let stage = Stage::open(&provider("envoyExtAuthzHttp", lists), CUSTOM, true).await;
    let rows = [
        Row(8080, "GET /", "x-case: deny", "", 403, "x-down"),
        Row(8080, "GET /", "x-case: login", "", 401, "www-authenticate"),
        Row(8080, "GET /", "x-case: moved", "", 302, "location"),
        Row(8080, "GET /", "x-case: allow\r\nx-up: mine", "", 200, "x-up: mine"),
    ];
    stage.decide("listed", &rows).await;
}

/// Rules that ask for a decision, beside others that allow something by themselves.
const DECISIONS: &str = r#"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: decided-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  rules:
  - to: [{operation: {ports: ["8080"], methods: [POST]}}]
    when: [{key: custom.asker_decision, values: [allow]}]
  - to: [{operation: {ports: ["8080"], methods: [GET]}}]
  - to: [{operation: {ports: ["8081"]}}]
    when: [{key: custom.asker_decision, values: [allow]}, {key: "request.headers[x-role]", values: [admin]}]
  - to: [{operation: {ports: ["9001"]}}]
    when: [{key: custom.asker_decision, values: [allow]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: also-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  rules:
  - to: [{operation: {ports: ["8080"], paths: [/always]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  action: DENY
  rules:
  - to: [{operation: {paths: [/never]}}]
"#;

const DECIDED: &[Row] = &[
    Row(8080, "POST /", "x-case: allow", "", 200, ""),
    Row(8080, "POST /", "x-case: deny", "", 403, ""),
    Row(8080, "POST /", "x-case: deny-words", "", 401, "<b>no</b>"),
    Row(8080, "POST /", "x-case: status", "", 403, ""),
    Row(8080, "POST /", "x-case: seen", "hello", 200, "x-seen"),
    Row(8080, "GET /", "x-case: deny", "", 200, ""),
    Row(8080, "POST /always", "x-case: deny", "", 200, ""),
    Row(8080, "PUT /", "x-case: allow", "", 403, "RBAC"),
    Row(8080, "POST /never", "x-case: deny-words", "", 403, "RBAC"),
    Row(8081, "POST /", "x-case: allow", "", 403, "RBAC"),
    Row(8081, "POST /", "x-case: allow\r\nx-role: admin", "", 200, ""),
    Row(8081, "POST /", "x-case: deny\r\nx-role: admin", "", 403, ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_ask_for_decisions_only_where_they_are_of_matter() {
    let stage = Stage::open(&provider("envoyExtAuthzGrpc", ", timeout: 2s"), DECISIONS, false).await;
    stage.decide("decided", DECIDED).await;
    let asked = stage.authorizer.as_ref().unwrap().asked();
    let expected =
        DECIDED.iter().filter(|row| row.5 != "RBAC" && !row.1.starts_with("GET") && !row.1.ends_with("/always"));
    assert_eq!(asked, 2 * expected.count());
    // Decisions are not asked for about connections: the rule lets nobody in.
    for place in [0, 1] {
        assert!(!stage.talks(place).await, "{place}");
    }
}

/// The manifest as its users have it: closed until the mesh has the provider, which may come while all runs; then as the provider
/// decides.
#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_lets_in_what_the_provider_allows() {
    let manifest = "../examples/manifests/opa-decision.yaml";
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let manifest = manifest.replace("  name: opa-policy\n", "  name: opa-policy\n  namespace: shop\n");
    let [address, opa] = [loopback(), loopback()];
    let objects = format!(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: web, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: payment-service}}}}
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: opa, namespace: security}}
spec:
  hosts: [opa.example]
  resolution: STATIC
  ports: [{{number: 9191, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: {opa}}}]
{}",
        workload("payment-service", "shop", &address)
    );
    let files = [("manifest.yaml", manifest.as_str()), ("shop.yaml", objects.as_str())];
    let control_plane = ControlPlane::start_with(&files, MESH).await;
    let told = |says: &str| control_plane.problems().iter().any(|problem| problem.message.contains(says));
    assert!(told("no provider \"opa\""), "{:?}", control_plane.problems());
    echo(&format!("{address}:18080")).await;
    let authorizer = Authorizer::grpc(&format!("{opa}:9191")).await;
    let _proxy = sidecar::start(&control_plane, Role::Sidecar, "payment-service", "shop", &address, &[]).await;
    let to = format!("{address}:8080");
    let status = async |method: &str, case: &str| {
        let mut request = get("payment-service", "/pay");
        *request.method_mut() = method.parse().unwrap();
        request.headers_mut().insert("x-case", case.parse().unwrap());
        Client::connect(&to).await.unwrap().ask(request).await.unwrap().0
    };
    assert_eq!(status("POST", "allow").await, 403);
    assert_eq!(authorizer.asked(), 0);
    // The settings come as Istio's ConfigMap, in a folder as in a cluster.
    let provider = "extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.example, port: 9191}}]";
    let settings = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {}\n",
        format!("{MESH}{provider}").replace('\n', "\n    ")
    );
    control_plane.write("settings.yaml", &settings);
    until("the provider", async || match status("POST", "allow").await {
        200 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(status("POST", "deny").await, 403);
    assert_eq!(status("GET", "allow").await, 403);
    assert!(!told("no provider"), "{:?}", control_plane.problems());
    std::fs::remove_file(control_plane.path("config/settings.yaml")).unwrap();
    until("no provider", async || match status("POST", "allow").await {
        403 => Ok(()),
        other => Err(other),
    })
    .await;
}

/// At a gateway: what the provider changes leads to another route if so said.
#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_ask_at_a_gateway() {
    for clears in [true, false] {
        let (server, asker) = (loopback(), loopback());
        let addresses = [loopback(), loopback()];
        let mut objects = String::new();
        for (name, address, port) in [("server", &server, 18080), ("asker", &asker, 9000)] {
            let protocol = if name == "asker" { "GRPC" } else { "HTTP" };
            writeln!(objects, "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: [{name}.example], resolution: STATIC, ports: [{{number: 9000, name: p, protocol: {protocol}}}], endpoints: [{{address: {address}, ports: {{p: {port}}}}}]}}").unwrap();
        }
        for (kind, address) in KINDS.iter().zip(&addresses) {
            write!(
                objects,
                "---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge-{kind}, namespace: shop}}
spec:
  selector: {{app: edge-{kind}}}
  servers: [{{port: {{number: 8080, name: http, protocol: HTTP}}, bind: {address}, hosts: ['web.example']}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge-{kind}, namespace: shop}}
spec:
  hosts: [web.example]
  gateways: [edge-{kind}]
  http:
  - match: [{{uri: {{prefix: /known}}, headers: {{x-team: {{exact: red}}}}}}]
    route: [{{destination: {{host: server.example}}, headers: {{request: {{set: {{x-branch: red}}}}}}}}]
  - {{match: [{{uri: {{prefix: /known}}}}], route: [{{destination: {{host: server.example}}}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: edge-{kind}, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: edge-{kind}}}}}, action: CUSTOM, provider: {{name: asker}}, rules: [{{}}]}}
{}",
                workload(&format!("edge-{kind}"), "shop", address),
            )
            .unwrap();
        }
        let mesh = provider("envoyExtAuthzGrpc", &format!(", clearRouteCache: {clears}"));
        let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], &mesh).await;
        assert_eq!(control_plane.problems(), []);
        echo(&format!("{server}:18080")).await;
        let _authorizer = Authorizer::grpc(&format!("{asker}:9000")).await;
        let _ours = sidecar::start(&control_plane, Role::Router, "edge-m", "shop", &addresses[0], &[]).await;
        let identity = Workload {
            node_id: format!("router~{}~edge-e.shop~shop.svc.cluster.local", addresses[1]),
            namespace: "shop".into(),
            account: "edge-e".into(),
            labels: json!({"app": "edge-e"}),
        };
        let _envoy = Envoy::start(&control_plane, &identity, true);
        let rows = [
            ("/known", "allow", 200, false),
            ("/known", "team", 200, clears),
            ("/known", "deny", 403, false),
            // Nobody is asked about what leads nowhere.
            ("/unknown", "deny", 404, false),
            ("/unknown", "allow", 404, false),
        ];
        for address in &addresses {
            let to = format!("{address}:8080");
            let send = async |path: &str, case: &str| {
                let mut request = get("web.example", path);
                request.headers_mut().insert("x-case", case.parse().unwrap());
                Client::connect(&to).await.map_err(|error| error.to_string())?.ask(request).await
            };
            until("the gateway", async || match send("/known", "allow").await {
                Ok((200, _)) => Ok(()),
                other => Err(other),
            })
            .await;
            for (path, case, right, red) in rows {
                let (status, body) = send(path, case).await.unwrap();
                assert_eq!(
                    (status, body.contains("x-branch: red")),
                    (right, red),
                    "{to} {path} {case} {clears}: {body}"
                );
            }
        }
    }
}
