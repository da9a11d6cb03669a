//! Each kind of failure, forced: what the caller gets, what the proxy's metrics and logs call it (as Envoy does), and what
//! `meshctl why` says: a sentence, the object that has to be changed, and its file and line.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::process::Stdio;
use std::time::Duration;

use api::debug::Why;
use api::node::Role;
use futures_util::FutureExt;
use mesh_tests::authorizer::Authorizer;
use mesh_tests::control_plane::ControlPlane;
use mesh_tests::misbehaving::{self, Conduct, Full, Reset};
use mesh_tests::network::program;
use mesh_tests::server::{Authority, Client, Pair, ask, echo, echo_tls, get};
use mesh_tests::sidecar::{self, MESH_CONFIG, loopback, workload};
use mesh_tests::tokens::{Key, key_set, seconds};
use mesh_tests::wait::until;
use proxy::agent::Agent;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One forced failure.
struct Row {
    /// Name of the host, of its objects, and of the request.
    name: &'static str,
    /// Status that the caller gets; 0: no complete answer.
    status: u16,
    /// Envoy's flags.
    flags: &'static [&'static str],
    /// Envoy's details.
    details: &'static str,
    /// Kind of the object to blame; it is named as the row is.
    blames: &'static str,
    /// A word of the sentence.
    says: &'static str,
}

/// Flags and details are those that an Envoy 1.40 wrote for the same failures; of a certificate for another name, without the
/// names that it is for.
const ROWS: &[Row] = &[
    Row {
        name: "no-route",
        status: 404,
        flags: &["NR"],
        details: "route_not_found",
        blames: "VirtualService",
        says: "No route",
    },
    Row {
        name: "no-cluster",
        status: 503,
        flags: &["NC"],
        details: "cluster_not_found",
        blames: "VirtualService",
        says: "cluster",
    },
    Row {
        name: "no-endpoint",
        status: 503,
        flags: &["UH"],
        details: "no_healthy_upstream",
        blames: "Service",
        says: "no endpoint",
    },
    Row {
        name: "no-address",
        status: 503,
        flags: &["UH"],
        details: "no_healthy_upstream",
        blames: "ServiceEntry",
        says: "could be looked up",
    },
    Row {
        name: "refused",
        status: 503,
        flags: &["UF", "URX"],
        details: "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
        blames: "ServiceEntry",
        says: "refused the connection",
    },
    Row {
        name: "connect-timeout",
        status: 503,
        flags: &["UF"],
        details: "upstream_reset_before_response_started{connection_timeout}",
        blames: "DestinationRule",
        says: "connectTimeout",
    },
    Row {
        name: "untrusted",
        status: 503,
        flags: &["UF"],
        details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_0:_unable_to_get_local_issuer_certificate:TLS_error_end}",
        blames: "DestinationRule",
        says: "authority that we trust",
    },
    Row {
        name: "expired",
        status: 503,
        flags: &["UF"],
        details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_0:_certificate_has_expired:TLS_error_end}",
        blames: "DestinationRule",
        says: "expired",
    },
    Row {
        name: "wrong-name",
        status: 503,
        flags: &["UF"],
        details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_matcher:TLS_error_end}",
        blames: "DestinationRule",
        says: "another name",
    },
    Row {
        name: "no-tls",
        status: 503,
        flags: &["UF"],
        details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end}",
        blames: "DestinationRule",
        says: "does not speak TLS",
    },
    Row {
        name: "overflow",
        status: 503,
        flags: &["UO"],
        details: "upstream_reset_before_response_started{overflow}",
        blames: "DestinationRule",
        says: "limit",
    },
    Row {
        name: "timeout",
        status: 504,
        flags: &["UT"],
        details: "response_timeout",
        blames: "VirtualService",
        says: "timeout",
    },
    Row {
        name: "per-try-timeout",
        status: 504,
        flags: &["UT", "URX"],
        details: "upstream_per_try_timeout",
        blames: "VirtualService",
        says: "perTryTimeout",
    },
    Row {
        name: "closed",
        status: 503,
        // Envoy's default would not have asked again; ours does where that does no harm, as it does for GET.
        flags: &["UC", "URX"],
        details: "upstream_reset_before_response_started{connection_termination}",
        blames: "ServiceEntry",
        says: "before it answered",
    },
    Row {
        name: "broken-off",
        status: 0,
        flags: &["UPE"],
        details: "upstream_reset_after_response_started{protocol_error}",
        blames: "ServiceEntry",
        says: "middle of its answer",
    },
    Row {
        name: "reset",
        status: 0,
        flags: &["UPE"],
        details: "upstream_reset_after_response_started{protocol_error}",
        blames: "ServiceEntry",
        says: "middle of its answer",
    },
    Row {
        name: "stream-reset-early",
        status: 503,
        flags: &["UR", "URX"],
        details: "upstream_reset_before_response_started{remote_reset}",
        blames: "ServiceEntry",
        says: "reset the stream before",
    },
    Row {
        name: "stream-reset",
        status: 0,
        flags: &["UR"],
        details: "upstream_reset_after_response_started{remote_reset}",
        blames: "ServiceEntry",
        says: "reset the stream in the middle",
    },
    Row {
        name: "babble",
        status: 502,
        flags: &["UPE"],
        details: "upstream_reset_before_response_started{protocol_error}",
        blames: "ServiceEntry",
        says: "not valid HTTP",
    },
    Row {
        name: "fault",
        status: 418,
        flags: &["FI"],
        details: "fault_filter_abort",
        blames: "VirtualService",
        says: "on purpose",
    },
    Row {
        name: "ejected",
        status: 503,
        flags: &["UH"],
        details: "no_healthy_upstream",
        blames: "DestinationRule",
        says: "ejected",
    },
];

/// A ServiceEntry of one endpoint for the host `NAME.example`.
fn entry(name: &str, endpoint: &str) -> String {
    entry_of("HTTP", name, endpoint)
}

/// The same of another protocol.
fn entry_of(protocol: &str, name: &str, endpoint: &str) -> String {
    let (address, port) = endpoint.rsplit_once(':').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  hosts: [{name}.example]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: {protocol}, targetPort: {port}}}]\n  endpoints: [{{address: {address}}}]\n"
    )
}

fn rule(name: &str, policy: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{host: {name}.example, trafficPolicy: {policy}}}\n"
    )
}

/// A VirtualService with one route; `more` are the route's further settings.
fn routes(name: &str, destination: &str, more: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: [{name}.example], http: [{{route: [{{destination: {{host: {destination}}}}}]{more}}}]}}\n"
    )
}

/// The mesh in which everything fails.
struct Broken {
    control_plane: ControlPlane,
    objects: String,
    outbound: String,
    inbound: String,
    edge: String,
    agents: Vec<Agent>,
    _full: Full,
    _authorities: tempfile::TempDir,
}

const FILE: &str = "broken.yaml";

async fn broken() -> Broken {
    let [at_caller, at_user, at_edge, application] = [(); 4].map(|()| loopback());
    let any = format!("{application}:0");
    let serve = async |conduct| misbehaving::serve(&any, conduct).await.to_string();
    let reset = async |reset| misbehaving::serve_resets(&any, reset).await.to_string();
    let (company, strangers) = (Authority::default(), Authority::default());
    let authorities = tempfile::tempdir().unwrap();
    let pem = |name: &str, authority: &Authority| {
        let path = authorities.path().join(name);
        std::fs::write(&path, authority.pem()).unwrap();
        path.display().to_string()
    };
    let (trusted, stranger) = (pem("company.pem", &company), pem("strangers.pem", &strangers));
    let tls = async |port: u16, pair: &Pair| {
        let address = format!("{application}:{port}");
        echo_tls(&address, pair).await;
        address
    };
    let good = tls(9443, &company.pair("right.example")).await;
    let expired = tls(9444, &company.expired_pair("right.example")).await;
    let plain = format!("{application}:9080");
    echo(&plain).await;
    let full = Full::open(&application).await;
    let simple = |roots: &str, name: &str| {
        format!("{{tls: {{mode: SIMPLE, caCertificates: '{roots}', subjectAltNames: [{name}]}}}}")
    };
    let once = ", retries: {attempts: 0}";
    let objects = [
        // A line that only this file has: lines count from the file's first one, not from the document's.
        "# Everything here fails.\n".to_owned(),
        entry("no-route", &good),
        routes("no-route", "no-route.example", ", match: [{uri: {prefix: /known}}]"),
        routes("no-cluster", "nowhere.example", ""),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: no-endpoint, namespace: shop}\nspec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}\n".to_owned(),
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: no-address, namespace: shop}\nspec: {hosts: [no-address.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: no-such-name.invalid}]}\n".to_owned(),
        // Nobody listens on port 1.
        entry("refused", &format!("{application}:1")),
        entry("connect-timeout", &full.address.to_string()),
        rule("connect-timeout", "{connectionPool: {tcp: {connectTimeout: 150ms}}}"),
        routes("connect-timeout", "connect-timeout.example", once),
        entry("untrusted", &good),
        rule("untrusted", &simple(&stranger, "right.example")),
        routes("untrusted", "untrusted.example", once),
        entry("expired", &expired),
        rule("expired", &simple(&trusted, "right.example")),
        routes("expired", "expired.example", once),
        entry("wrong-name", &good),
        rule("wrong-name", &simple(&trusted, "other.example")),
        routes("wrong-name", "wrong-name.example", once),
        entry("no-tls", &plain),
        rule("no-tls", &simple(&trusted, "right.example")),
        routes("no-tls", "no-tls.example", once),
        entry("overflow", &serve(Conduct::Silent).await),
        rule("overflow", "{connectionPool: {http: {http2MaxRequests: 1}}}"),
        entry("timeout", &serve(Conduct::Silent).await),
        routes("timeout", "timeout.example", ", timeout: 150ms"),
        entry("per-try-timeout", &serve(Conduct::Silent).await),
        routes(
            "per-try-timeout",
            "per-try-timeout.example",
            ", retries: {attempts: 1, perTryTimeout: 100ms, retryOn: 5xx}",
        ),
        entry("closed", &serve(Conduct::Closes).await),
        entry("broken-off", &serve(Conduct::BreaksOff).await),
        entry("reset", &serve(Conduct::ResetsInMidBody).await),
        entry_of("HTTP2", "stream-reset-early", &reset(Reset::BeforeHeaders).await),
        entry_of("HTTP2", "stream-reset", &reset(Reset::InMidBody).await),
        entry("babble", &serve(Conduct::Babbles).await),
        entry("fault", &good),
        routes("fault", "fault.example", ", fault: {abort: {httpStatus: 418, percentage: {value: 100}}}"),
        entry("ejected", &serve(Conduct::Answers(500)).await),
        rule(
            "ejected",
            "{outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 60s, maxEjectionPercent: 100}}",
        ),
        // What the sidecar of `user` takes in, and the gateway that knows one name.
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: user, namespace: shop}}
spec: {{selector: {{app: user}}, ports: [{{name: http, port: 8080, targetPort: 8080}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec:
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}
  egress:
  - {{captureMode: NONE, hosts: [./*]}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: strict, namespace: shop}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: no-listener, namespace: shop}}
spec:
  selector: {{app: edge}}
  servers:
  - {{port: {{number: 8443, name: tls, protocol: TLS}}, bind: {at_edge}, hosts: [known.example], tls: {{mode: PASSTHROUGH}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: through, namespace: shop}}
spec:
  hosts: [known.example]
  gateways: [no-listener]
  tls: [{{match: [{{sniHosts: [known.example]}}], route: [{{destination: {{host: fault.example, port: {{number: 80}}}}}}]}}]
"
        ),
        workload("user", "shop", &at_user),
        workload("caller", "shop", &at_caller),
        workload("edge", "shop", &at_edge),
    ]
    .concat();
    let control_plane = ControlPlane::start_with(&[(FILE, objects.as_str())], MESH_CONFIG).await;
    echo(&format!("{at_user}:18080")).await;
    let agents = vec![
        sidecar::start(&control_plane, Role::Sidecar, "caller", "shop", &at_caller, &[]).await,
        sidecar::start(&control_plane, Role::Sidecar, "user", "shop", &at_user, &[]).await,
        sidecar::start(&control_plane, Role::Router, "edge", "shop", &at_edge, &[]).await,
    ];
    Broken {
        control_plane,
        objects,
        outbound: format!("{at_caller}:15080"),
        inbound: format!("{at_user}:8080"),
        edge: format!("{at_edge}:8443"),
        agents,
        _full: full,
        _authorities: authorities,
    }
}

impl Broken {
    /// What `meshctl` prints.
    async fn meshctl(&self, words: &[&str]) -> String {
        let output = tokio::process::Command::new(program("meshctl"))
            .args(["--meshd", &self.control_plane.addresses.http])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    async fn explained(&self, words: &[&str]) -> Result<Why, String> {
        let words: Vec<&str> = ["why"].into_iter().chain(words.iter().copied()).chain(["-o", "json"]).collect();
        let text = self.meshctl(&words).await;
        let all: Vec<Why> = serde_json::from_str(&text).map_err(|_| text.clone())?;
        all.into_iter().next().ok_or(text)
    }

    /// File and line of an object, read from the file's text as a person would.
    fn place(&self, kind: &str, name: &str) -> String {
        let lines: Vec<&str> = self.objects.lines().collect();
        let named = format!("metadata: {{name: {name}, namespace: shop}}");
        let at = (0..lines.len())
            .find(|line| lines[*line] == named && lines[line - 1] == format!("kind: {kind}"))
            .unwrap_or_else(|| panic!("{kind} {name} is in no line"));
        // A document starts two lines above its name, with `apiVersion`.
        format!("{FILE}:{}", at - 2 + 1)
    }
}

/// Forces one failure, and looks at all that is said of it.
async fn force(mesh: &Broken, row: &Row) {
    let name = row.name;
    let host = if name == "no-endpoint" { "no-endpoint.shop".to_owned() } else { format!("{name}.example") };
    let request = || {
        let mut request = get(&host, "/unknown");
        request.headers_mut().insert("x-request-id", name.parse().unwrap());
        request
    };
    // The server that keeps failing, and the one that is busy, have to be so first.
    let status = until(name, async || {
        // Whichever of the two comes first is held, so the other is tried until it comes second.
        if name == "overflow" {
            let to = mesh.outbound.clone();
            let held = async move { ask(&to, "overflow.example", "/held").await };
            tokio::spawn(tokio::time::timeout(Duration::from_secs(3), held));
        }
        let answered =
            tokio::time::timeout(Duration::from_secs(2), Client::connect(&mesh.outbound).await.unwrap().ask(request()))
                .await;
        match answered {
            Err(_) if name == "overflow" => Err("the other request is not under way".to_owned()),
            Err(_) => Ok(None),
            Ok(Ok((500, _))) if name == "ejected" => Err("not ejected yet".to_owned()),
            Ok(Ok((status, _))) => Ok(Some(status)),
            Ok(Err(_)) => Ok(Some(0)),
        }
    })
    .await;
    assert_eq!(status, Some(row.status), "{name}");
    let why = until(name, async || match mesh.explained(&["--last", "caller"]).await {
        Ok(why) if why.request_id == name => Ok(why),
        other => Err(other),
    })
    .await;
    let flags: BTreeSet<&str> = why.flag.split(',').collect();
    assert_eq!(flags, row.flags.iter().copied().collect(), "{name}: {why:?}");
    assert_eq!(why.details, row.details, "{name}");
    assert_eq!(why.object, format!("{} shop/{name}", row.blames), "{name}: {why:?}");
    assert_eq!(why.place, mesh.place(row.blames, name), "{name}");
    assert!(why.sentence.contains(row.says), "{name}: {}", why.sentence);
    let told = mesh.meshctl(&["why", name]).await;
    for said in [&why.sentence, &format!("{}, {}", why.object, why.place), &why.details] {
        assert!(told.contains(said.as_str()), "{name}: {said} is not in\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_is_told_with_the_object_that_explains_it() {
    let mesh = broken().await;
    // All rows are tried, so that one run tells all that is wrong.
    let mut wrong = Vec::new();
    for row in ROWS {
        if AssertUnwindSafe(force(&mesh, row)).catch_unwind().await.is_err() {
            wrong.push(row.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");

    // The last of them, newest first, and equal ones once: those of the last row but one, again and again.
    let newest: Vec<&str> = ROWS.iter().rev().map(|row| row.name).take(10).collect();
    for _ in 0..3 {
        ask(&mesh.outbound, "fault.example", "/again").await.unwrap();
    }
    let told = mesh.meshctl(&["why", "--last", "caller"]).await;
    let heads: Vec<&str> = told.lines().filter(|line| line.contains("caller.shop")).collect();
    assert_eq!(heads.len(), 10, "{told}");
    assert!(heads[0].contains("fault.example/again") && heads[0].contains("4 times since"), "{told}");
    assert!(heads[1].contains(&format!("{}.example", newest[0])), "{told}");
    assert!(told.contains(&mesh.place("VirtualService", "fault")) && told.contains("request id"), "{told}");

    // Connections that no listener takes have no request: they are found with the proxy that was called.
    let mut plaintext = TcpStream::connect(&mesh.inbound).await.unwrap();
    plaintext.write_all(b"GET / HTTP/1.1\r\nhost: user\r\n\r\n").await.unwrap();
    assert!(plaintext.read_u8().await.is_err(), "STRICT took plaintext");
    let unknown = Client::connect_tls(&mesh.edge, "unknown.example", Authority::default().client(None)).await;
    assert!(unknown.is_err(), "the gateway took a name that it does not have");
    for (proxy, blames, name) in [("user", "PeerAuthentication", "strict"), ("edge", "Gateway", "no-listener")] {
        let why = until(proxy, async || mesh.explained(&["--last", proxy]).await).await;
        assert_eq!((why.flag.as_str(), why.details.as_str()), ("NR", "filter_chain_not_found"), "{why:?}");
        assert_eq!(why.object, format!("{blames} shop/{name}"), "{why:?}");
        assert_eq!(why.place, mesh.place(blames, name), "{why:?}");
        let told = mesh.meshctl(&["why", "--last", proxy]).await;
        assert!(told.contains("matches no filter chain") && told.contains(&why.place), "{told}");
    }

    for agent in mesh.agents {
        agent.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_configuration_is_told_with_the_object_that_it_comes_from() {
    let mesh = broken().await;
    // An address that this machine does not have: the planner cannot know.
    mesh.control_plane.write(
        "elsewhere.yaml",
        "\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: elsewhere, namespace: shop}\nspec:\n  selector: {app: edge}\n  servers:\n  - {port: {number: 8081, name: tls, protocol: TLS}, bind: 192.0.2.1, hosts: [known.example], tls: {mode: PASSTHROUGH}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: elsewhere, namespace: shop}\nspec:\n  hosts: [known.example]\n  gateways: [elsewhere]\n  tls: [{match: [{sniHosts: [known.example]}], route: [{destination: {host: fault.example, port: {number: 80}}}]}]\n",
    );
    let said = "Gateway shop/elsewhere, elsewhere.yaml:2";
    for words in [&["status"][..], &["status", "edge"], &["why", "--last", "edge"], &["why", "--last"]] {
        let told = until("the refusal", async || {
            let told = mesh.meshctl(words).await;
            if told.contains("edge.shop refused LDS") { Ok(told) } else { Err(told) }
        })
        .await;
        assert!(told.contains(said) && told.contains("192.0.2.1"), "{words:?}: {said} is not in\n{told}");
    }
    // Everything else of the gateway is as before: the refused listener is the only one.
    assert!(TcpStream::connect(&mesh.edge).await.is_ok());
    for agent in mesh.agents {
        agent.end().await;
    }
}

/// What the policies of one workload say, and to whom.
const POLICIES: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-admin, namespace: shop}
spec:
  selector: {matchLabels: {app: user}}
  action: DENY
  rules:
  - to: [{operation: {ports: ['8080'], paths: [/never]}}]
  - to: [{operation: {ports: ['8080'], paths: [/admin/*]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-known, namespace: shop}
spec:
  selector: {matchLabels: {app: user}}
  rules:
  - to: [{operation: {ports: ['8080'], paths: [/known, /admin/*]}}]
  - to: [{operation: {ports: ['9001']}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-bytes, namespace: shop}
spec:
  selector: {matchLabels: {app: user}}
  action: DENY
  rules:
  - from: [{source: {principals: ['*/sa/caller']}}]
    to: [{operation: {ports: ['9001']}}]
";

/// What is refused: path or port, the policy that says so, what the details name, a word of the sentence.
const REFUSALS: [(&str, &str, &str, &str); 4] = [
    ("/admin/x", "deny-admin", "[ns[shop]-policy[deny-admin]-rule[1]]", "with the action DENY"),
    ("/unknown", "allow-known", "[none]", "No AuthorizationPolicy allows"),
    ("9000", "allow-known", "[none]", "No AuthorizationPolicy allows"),
    ("9001", "deny-bytes", "[ns[shop]-policy[deny-bytes]-rule[0]]", "with the action DENY"),
];

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_with_the_policy_that_explains_them() {
    let [at_user, at_caller] = [(); 2].map(|()| loopback());
    let objects = format!(
        "# Not all is allowed.
---
apiVersion: v1
kind: Service
metadata: {{name: user, namespace: shop}}
spec:
  selector: {{app: user}}
  ports:
  - {{name: http, port: 8080, targetPort: 8080}}
  - {{name: tcp-one, port: 9000, targetPort: 9000}}
  - {{name: tcp-two, port: 9001, targetPort: 9001}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: user, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: user}}}}
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}
  - {{port: {{number: 9000, protocol: TCP, name: one}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}
  - {{port: {{number: 9001, protocol: TCP, name: two}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: caller, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: caller}}}}
  egress:
  - {{port: {{number: 9000, protocol: TCP, name: one}}, bind: {at_caller}, captureMode: NONE, hosts: [./*]}}
  - {{port: {{number: 9001, protocol: TCP, name: two}}, bind: {at_caller}, captureMode: NONE, hosts: [./*]}}
  - {{captureMode: NONE, hosts: [./*]}}
{POLICIES}{}{}",
        workload("user", "shop", &at_user),
        workload("caller", "shop", &at_caller),
    );
    let control_plane = ControlPlane::start_with(&[(FILE, objects.as_str())], MESH_CONFIG).await;
    assert_eq!(control_plane.problems(), []);
    echo(&format!("{at_user}:18080")).await;
    let agents = vec![
        sidecar::start(&control_plane, Role::Sidecar, "user", "shop", &at_user, &[]).await,
        sidecar::start(&control_plane, Role::Sidecar, "caller", "shop", &at_caller, &[]).await,
    ];
    let outbound = format!("{at_caller}:15080");
    until("the way", async || match ask(&outbound, "user.shop:8080", "/known").await {
        Ok((200, _)) => Ok(()),
        other => Err(other),
    })
    .await;
    let mesh = Broken {
        control_plane,
        objects,
        outbound,
        inbound: String::new(),
        edge: String::new(),
        agents,
        _full: Full::open(&at_user).await,
        _authorities: tempfile::tempdir().unwrap(),
    };
    for (what, policy, names, says) in REFUSALS {
        if what.starts_with('/') {
            let mut request = get("user.shop:8080", what);
            request.headers_mut().insert("x-request-id", what.parse().unwrap());
            let answered = Client::connect(&mesh.outbound).await.unwrap().ask(request).await.unwrap();
            assert_eq!(answered, (403, "RBAC: access denied".to_owned()), "{what}");
        } else {
            let mut stream = TcpStream::connect(format!("{at_caller}:{what}")).await.unwrap();
            let _ = stream.write_all(b"GET /known HTTP/1.1\r\nhost: user\r\n\r\n").await;
            assert!(stream.read_u8().await.is_err(), "{what} was let in");
        }
        let why = until(what, async || match mesh.explained(&["--last", "user"]).await {
            Ok(why) if why.request_id == what || why.request.ends_with(&format!(":{what}")) => Ok(why),
            other => Err(other),
        })
        .await;
        assert_eq!(why.object, format!("AuthorizationPolicy shop/{policy}"), "{why:?}");
        assert_eq!(why.place, mesh.place("AuthorizationPolicy", policy), "{why:?}");
        assert_eq!(why.details, format!("rbac_access_denied_matched_policy{names}"), "{why:?}");
        assert_eq!((why.flag.as_str(), why.side.as_str()), ("-", "policy"), "{why:?}");
        assert!(why.sentence.contains(says), "{why:?}");
        let words = if what.starts_with('/') { vec!["why", what] } else { vec!["why", "--last", "user"] };
        let told = mesh.meshctl(&words).await;
        for said in [&why.sentence, &format!("{}, {}", why.object, why.place), &why.details] {
            assert!(told.contains(said.as_str()), "{what}: {said} is not in\n{told}");
        }
    }
    for agent in mesh.agents {
        agent.end().await;
    }
}

/// Why tokens are refused: the failure, and a word of the sentence.
const TOKENS: [(&str, &str, &str); 8] = [
    ("TokenExpired", "jwt_authn_access_denied{Jwt_is_expired}", "has expired"),
    ("TokenNotYetValid", "jwt_authn_access_denied{Jwt_not_yet_valid}", "not valid yet"),
    ("TokenWrongAudience", "jwt_authn_access_denied{Audiences_in_Jwt_are_not_allowed}", "other audiences"),
    ("TokenUnknownIssuer", "jwt_authn_access_denied{Jwt_issuer_is_not_configured}", "claim iss"),
    ("TokenUnknownKey", "jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}", "new keys"),
    ("TokenForged", "jwt_authn_access_denied{Jwt_verification_fails}", "The signature"),
    ("TokenUnreadable", "jwt_authn_access_denied{Jwt_header_is_an_invalid_Base64url_encoded}", "cannot be read"),
    (
        "TokenNoKeys",
        "jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}",
        "could not be fetched",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn refused_tokens_are_told_with_the_rule_that_explains_them() {
    let [at_user, nobody] = [(); 2].map(|()| loopback());
    let (key, other) = (Key::elliptic("one"), Key::elliptic("one"));
    let objects = format!(
        "# Not all tokens are good.
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: user, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: user}}}}
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: staff, namespace: shop}}
spec: {{jwtRules: [{{issuer: staff, jwksUri: 'http://{nobody}:9000/', timeout: 100ms}}]}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: customers, namespace: shop}}
spec: {{jwtRules: [{{issuer: customers, audiences: [shop], jwks: '{}'}}]}}
{}",
        key_set(&[&key]),
        workload("user", "shop", &at_user),
    );
    let control_plane = ControlPlane::start_with(&[(FILE, objects.as_str())], MESH_CONFIG).await;
    echo(&format!("{at_user}:18080")).await;
    let agents = vec![sidecar::start(&control_plane, Role::Sidecar, "user", "shop", &at_user, &[]).await];
    let mesh = Broken {
        control_plane,
        objects,
        outbound: format!("{at_user}:8080"),
        inbound: String::new(),
        edge: String::new(),
        agents,
        _full: Full::open(&at_user).await,
        _authorities: tempfile::tempdir().unwrap(),
    };
    let good = json!({"iss": "customers", "aud": "shop", "exp": seconds(600)});
    let but = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    for (failure, details, says) in TOKENS {
        let token = match failure {
            "TokenExpired" => key.token(&but("exp", json!(seconds(-600)))),
            "TokenNotYetValid" => key.token(&but("nbf", json!(seconds(600)))),
            "TokenWrongAudience" => key.token(&but("aud", json!("other"))),
            "TokenUnknownIssuer" => key.token(&but("iss", json!("nobody"))),
            "TokenUnknownKey" => key.token_with(&json!({"alg": "ES256", "kid": "two"}), &good),
            "TokenForged" => other.token(&good),
            "TokenNoKeys" => key.token(&but("iss", json!("staff"))),
            _ => "a.b.c".to_owned(),
        };
        let mut request = get("user.shop:8080", "/");
        request.headers_mut().insert("x-request-id", failure.parse().unwrap());
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answered = Client::connect(&mesh.outbound).await.unwrap().ask(request).await.unwrap();
        assert_eq!(answered.0, if failure == "TokenWrongAudience" { 403 } else { 401 }, "{failure}: {answered:?}");
        let why = until(failure, async || match mesh.explained(&["--last", "user"]).await {
            Ok(why) if why.request_id == failure => Ok(why),
            other => Err(other),
        })
        .await;
        let object = if failure == "TokenNoKeys" { "staff" } else { "customers" };
        assert_eq!(why.object, format!("RequestAuthentication shop/{object}"), "{why:?}");
        assert_eq!(why.place, mesh.place("RequestAuthentication", object), "{why:?}");
        assert_eq!((why.failure.as_str(), why.details.as_str(), why.flag.as_str()), (failure, details, "-"), "{why:?}");
        assert!(why.sentence.contains(says), "{why:?}");
        let told = mesh.meshctl(&["why", failure]).await;
        for said in [&why.sentence, &format!("{}, {}", why.object, why.place), &why.details] {
            assert!(told.contains(said.as_str()), "{failure}: {said} is not in\n{told}");
        }
    }
    for agent in mesh.agents {
        agent.end().await;
    }
}

/// What somebody said who was asked, or why nobody could be: the case that asks for it, the status, the failure, words of the sentence.
const ASKED: &[(&str, u16, &str, &str)] = &[
    (
        "deny",
        403,
        "ExternalDenied",
        "The provider asker (outbound|9000||asker.example) does not allow it: it answered 403.",
    ),
    ("deny-words", 401, "ExternalDenied", "it answered 401"),
    ("status", 403, "ExternalError", "answered with the gRPC status 13 (broken)"),
    ("slow", 403, "ExternalError", "gave no answer: The answer did not come within"),
    ("gone", 403, "ExternalError", "gave no answer: The endpoint refused the connection"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_said_is_told_with_the_policy_that_asked() {
    let [at_user, at_asker] = [(); 2].map(|()| loopback());
    let objects = format!(
        "# Not all may pass.
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: user, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: user}}}}
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: asker, namespace: shop}}
spec:
  hosts: [asker.example]
  resolution: STATIC
  ports: [{{number: 9000, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: {at_asker}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: asked, namespace: shop}}
spec: {{action: CUSTOM, provider: {{name: asker}}, rules: [{{to: [{{operation: {{paths: [/custom]}}}}]}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: decided, namespace: shop}}
spec: {{rules: [{{when: [{{key: custom.asker_decision, values: [allow]}}]}}]}}
{}",
        workload("user", "shop", &at_user),
    );
    let provider = "extensionProviders: [{name: asker, envoyExtAuthzGrpc: {service: asker.example, port: 9000, timeout: 300ms}}]\n";
    let settings = format!("{MESH_CONFIG}{provider}");
    let control_plane = ControlPlane::start_with(&[(FILE, objects.as_str())], &settings).await;
    echo(&format!("{at_user}:18080")).await;
    let mut asker = Some(Authorizer::grpc(&format!("{at_asker}:9000")).await);
    let agents = vec![sidecar::start(&control_plane, Role::Sidecar, "user", "shop", &at_user, &[]).await];
    let mesh = Broken {
        control_plane,
        objects,
        outbound: format!("{at_user}:8080"),
        inbound: String::new(),
        edge: String::new(),
        agents,
        _full: Full::open(&at_user).await,
        _authorities: tempfile::tempdir().unwrap(),
    };
    for (case, status, failure, says) in ASKED {
        if *case == "gone" {
            asker = None;
            until("nobody", async || match TcpStream::connect(format!("{at_asker}:9000")).await {
                Err(_) => Ok(()),
                Ok(_) => Err("somebody"),
            })
            .await;
        }
        for (path, object) in [("/custom", "asked"), ("/", "decided")] {
            let id = format!("{case}-{object}");
            let mut request = get("user.shop:8080", path);
            request.headers_mut().insert("x-request-id", id.parse().unwrap());
            request.headers_mut().insert("x-case", case.parse().unwrap());
            let answered = Client::connect(&mesh.outbound).await.unwrap().ask(request).await.unwrap();
            assert_eq!(answered.0, *status, "{id}: {answered:?}");
            let why = until(&id, async || match mesh.explained(&["--last", "user"]).await {
                Ok(why) if why.request_id == id => Ok(why),
                other => Err(other),
            })
            .await;
            assert_eq!(why.object, format!("AuthorizationPolicy shop/{object}"), "{why:?}");
            assert_eq!(why.place, mesh.place("AuthorizationPolicy", object), "{why:?}");
            let details = if *failure == "ExternalDenied" { "ext_authz_denied" } else { "ext_authz_error" };
            assert_eq!(
                (why.failure.as_str(), why.details.as_str(), why.flag.as_str()),
                (*failure, details, "UAEX"),
                "{why:?}"
            );
            assert!(why.sentence.contains(says), "{why:?}");
            let told = mesh.meshctl(&["why", &id]).await;
            assert!(told.contains(why.sentence.as_str()), "{} is not in\n{told}", why.sentence);
        }
    }
    drop(asker);
    for agent in mesh.agents {
        agent.end().await;
    }
}
