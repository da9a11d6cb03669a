//! The mesh in one process: a control plane, proxies on loopback addresses, applications behind them, clients before them.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::node::Role;
use http::Request;
use http_body_util::Full;
use mesh_tests::control_plane::ControlPlane;
use mesh_tests::misbehaving::{self, Conduct};
use mesh_tests::server::{Authority, Client, Load, Pair, ask, echo, echo_tls, get};
use mesh_tests::sidecar::{self, MESH_CONFIG, loopback, workload};
use mesh_tests::wait::until;
use proxy::agent::Agent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const USER: &str = "user.shop.svc.cluster.local:8080";

/// A caller and a callee with a sidecar each, under STRICT mutual TLS.
struct Shop {
    control_plane: ControlPlane,
    caller: Agent,
    user: Agent,
    /// Where the caller's application finds its sidecar.
    outbound: String,
    /// Where the callee's sidecar takes calls in.
    inbound: String,
}

/// What requests for the service get besides being forwarded.
fn virtual_service(header: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: user, namespace: shop}}\nspec:\n  hosts: [user]\n  http:\n  - match: [{{uri: {{prefix: /closed}}}}]\n    fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n    route: [{{destination: {{host: user}}}}]\n  - headers: {{request: {{set: {{x-edition: {header}}}}}}}\n    route: [{{destination: {{host: user}}}}]\n"
    )
}

impl Shop {
    async fn open(more_objects: &str, more_settings: &[&str]) -> Shop {
        let (user_address, caller_address) = (loopback(), loopback());
        let objects = sidecar::strict_pair("user", &user_address, &caller_address);
        let vs = virtual_service("first");
        let files = [("shop.yaml", objects.as_str()), ("vs.yaml", vs.as_str()), ("more.yaml", more_objects)];
        let control_plane = ControlPlane::start_with(&files, MESH_CONFIG).await;
        echo(&format!("{user_address}:18080")).await;
        let user = sidecar::start(&control_plane, Role::Sidecar, "user", "shop", &user_address, more_settings).await;
        let caller =
            sidecar::start(&control_plane, Role::Sidecar, "caller", "shop", &caller_address, more_settings).await;
        let (outbound, inbound) = (format!("{caller_address}:15080"), format!("{user_address}:8080"));
        until("the service answers", async || match ask(&outbound, USER, "/").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
        Shop { control_plane, caller, user, outbound, inbound }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_policy_hold_with_and_without_a_control_plane() {
    let shop = Shop::open("", &[]).await;
    let Shop { control_plane, mut caller, user, outbound, inbound } = shop;
    let mut held = Client::connect(&outbound).await.unwrap();
    let check = async |held: &mut Client, outbound: &str, inbound: &str| {
        for (status, text) in [held.ask(get(USER, "/a?b")).await.unwrap(), ask(outbound, USER, "/a?b").await.unwrap()] {
            assert_eq!(status, 200, "{text}");
            assert!(text.starts_with("GET /a?b\n") && text.contains("x-edition: first"), "{text}");
            assert!(
                text.contains("By=spiffe://cluster.local/ns/shop/sa/user;")
                    && text.contains("URI=spiffe://cluster.local/ns/shop/sa/caller"),
                "{text}"
            );
        }
        assert_eq!(ask(outbound, USER, "/closed").await.unwrap().0, 418);
        let plaintext = ask(inbound, USER, "/a").await;
        assert!(plaintext.is_err(), "STRICT took plaintext: {plaintext:?}");
    };
    check(&mut held, &outbound, &inbound).await;
    drop(control_plane);
    let gone = caller.stream.wait_for(|state| !state.connected);
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap().unwrap();
    check(&mut held, &outbound, &inbound).await;
    caller.end().await;
    user.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_under_load_and_no_request_notices() {
    // Connections are short, so that each certificate is soon in use.
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: user, namespace: shop}\nspec:\n  host: user\n  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 7}}}\n";
    let shop = Shop::open(rule, &["--secret-ttl", "2s"]).await;
    let load = Load::start(&shop.outbound, USER, 4);
    for agent in [&shop.caller, &shop.user] {
        let mut identity = agent.identity.clone();
        for _ in 0..5 {
            let serial = |state: &proxy::identity::State| state.current.as_ref().unwrap().chain[0].clone();
            let before = serial(&identity.borrow());
            let renewed = identity.wait_for(|state| serial(state) != before);
            tokio::time::timeout(Duration::from_secs(20), renewed).await.unwrap().unwrap();
        }
    }
    let (answered, failures) = (load.answered(), load.stop().await);
    assert!(failures.is_empty(), "of {answered} requests: {failures:?}");
    assert!(answered > 50, "{answered} requests are no load");
    let dialled = shop
        .caller
        .running
        .shared()
        .metrics
        .cluster_total("outbound|8080||user.shop.svc.cluster.local", |series| &series.connections);
    assert!(dialled >= 5, "{dialled} connections for all certificates");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_route_loses_nothing() {
    let shop = Shop::open("", &[]).await;
    let load = Load::start(&shop.outbound, USER, 4);
    for edition in ["second", "third", "fourth"] {
        shop.control_plane.write("vs.yaml", &virtual_service(edition));
        until("the edition", async || {
            let (_, text) = ask(&shop.outbound, USER, "/").await?;
            if text.contains(&format!("x-edition: {edition}")) { Ok(()) } else { Err(text) }
        })
        .await;
    }
    let answered = load.answered();
    until("more requests", async || if load.answered() > answered + 20 { Ok(()) } else { Err(load.answered()) }).await;
    let failures = load.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_of_a_host_loses_nothing_though_its_subset_comes_later() {
    let shop = Shop::open("", &[]).await;
    shop.control_plane.write("vs.yaml", "");
    until("the end of all rules", async || {
        let (_, text) = ask(&shop.outbound, USER, "/").await?;
        if text.contains("x-edition") { Err(text) } else { Ok(()) }
    })
    .await;
    let load = Load::start(&shop.outbound, USER, 4);
    let rule =
        virtual_service("early").replace("{destination: {host: user}}", "{destination: {host: user, subset: v1}}");
    shop.control_plane.write("vs.yaml", &rule);
    until("the rule", async || {
        let (_, text) = ask(&shop.outbound, USER, "/").await?;
        if text.contains("x-edition: early") { Ok(()) } else { Err(text) }
    })
    .await;
    let answered = load.answered();
    until("more requests", async || if load.answered() > answered + 20 { Ok(()) } else { Err(load.answered()) }).await;
    shop.control_plane.write(
        "subset.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: user, namespace: shop}\nspec: {host: user, subsets: [{name: v1, labels: {app: user}}]}\n",
    );
    let subset = "outbound|8080|v1|user.shop.svc.cluster.local";
    until("requests to the subset", async || {
        match shop.caller.running.shared().metrics.cluster_total(subset, |series| &series.requests) {
            0..20 => Err("too few"),
            _ => Ok(()),
        }
    })
    .await;
    let failures = load.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
}

const TWINS: &str = "outbound|8080||twins.example.com";

/// A caller's sidecar and a service with two endpoints; the sidecar, where its application finds it, and the endpoints.
async fn twins() -> (Agent, ControlPlane, String, [String; 2]) {
    let (address, first, second) = (loopback(), loopback(), loopback());
    let objects = format!(
        "{}---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: twins, namespace: shop}}\nspec:\n  hosts: [twins.example.com]\n  ports: [{{number: 8080, name: http, protocol: HTTP}}]\n  resolution: STATIC\n  endpoints: [{{address: {first}}}, {{address: {second}}}]\n",
        workload("caller", "shop", &address)
    );
    let control_plane = ControlPlane::start_with(&[("twins.yaml", objects.as_str())], MESH_CONFIG).await;
    let caller = sidecar::start(&control_plane, Role::Sidecar, "caller", "shop", &address, &[]).await;
    let outbound = format!("{address}:15080");
    until("the sidecar", async || TcpStream::connect(&outbound).await.map(drop).map_err(|error| error.to_string()))
        .await;
    (caller, control_plane, outbound, [first, second].map(|address| format!("{address}:8080")))
}

/// What a POST gets, and how often it was sent.
async fn post_to_twins(caller: &Agent, outbound: &str) -> (u16, u64) {
    let mut client = Client::connect(outbound).await.unwrap();
    let post = Request::post("http://twins.example.com:8080/").body(Full::from("abc")).unwrap();
    let (status, _) = client.ask(post).await.unwrap();
    (status, caller.running.shared().metrics.cluster_total(TWINS, |series| &series.requests))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_an_ending_application_has_not_read_goes_to_another() {
    for politely in [false, true] {
        let (caller, _control_plane, outbound, places) = twins().await;
        misbehaving::serve_while_one_ends(&places, politely).await;
        let (status, sent) = post_to_twins(&caller, &outbound).await;
        assert_eq!(status, 200, "politely: {politely}");
        assert!(sent > 1, "the instance that ended was not asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_an_application_gives_up_is_not_sent_again() {
    let (caller, _control_plane, outbound, places) = twins().await;
    for place in &places {
        misbehaving::serve(place, Conduct::Aborts).await;
    }
    assert_eq!(post_to_twins(&caller, &outbound).await, (503, 1));
    let (caller, _control_plane, outbound, places) = twins().await;
    for place in &places {
        misbehaving::serve(place, Conduct::Closes).await;
    }
    assert_eq!(post_to_twins(&caller, &outbound).await, (503, 1));
}

/// A pod is told that it will end before its application has ended: that one still calls others.
#[tokio::test(flavor = "multi_thread")]
async fn while_an_end_is_announced_no_connection_is_closed_under_its_client() {
    let shop = Shop::open("", &["--drain-delay=0s"]).await;
    let mut unused = Client::connect(&shop.outbound).await.unwrap();
    let mut used = Client::connect(&shop.outbound).await.unwrap();
    assert_eq!(used.ask(get(USER, "/first")).await.unwrap().0, 200);
    let start = Instant::now();
    shop.caller.running.shared().leave();
    // Long enough for what the proxy closes to be closed.
    let mut asked = 0;
    while start.elapsed() < Duration::from_secs(1) {
        let mut late = Client::connect(&shop.outbound).await.unwrap();
        // The proxy has seen the connection, and no request on it.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(late.ask(get(USER, "/late")).await.map(|(status, _)| status), Ok(200));
        asked += 1;
    }
    assert!(asked > 5, "{asked}");
    for client in [&mut unused, &mut used] {
        assert_eq!(client.ask(get(USER, "/last")).await.map(|(status, _)| status), Ok(200));
    }
}

/// Requests on one HTTP/1 connection until an answer says that it is the last.
async fn until_told(mut client: Client, path: &str, pause: Duration, answered: &AtomicUsize) -> Result<(), String> {
    loop {
        let (head, _) = client.exchange(get(USER, path)).await?;
        answered.fetch_add(1, Ordering::Relaxed);
        if head.headers.get("connection").is_some_and(|value| value == "close") {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
    }
}

/// A client may send its next request at any moment after an answer that promised nothing else: only what it is told beforehand
/// keeps that request from being lost.
#[tokio::test(flavor = "multi_thread")]
async fn who_uses_a_connection_is_told_before_it_closes() {
    // Answers of the application; of the proxy itself, which are there before anything else happens; and few of them.
    for (path, pause) in [("/", 0), ("/closed", 0), ("/", 300)] {
        let shop = Shop::open("", &["--drain-delay=1s"]).await;
        let (mut clients, answered) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..32 {
            let (client, answered) = (Client::connect(&shop.outbound).await.unwrap(), Arc::clone(&answered));
            clients.spawn(async move { until_told(client, path, Duration::from_millis(pause), &answered).await });
        }
        until("requests", async || match answered.load(Ordering::Relaxed) {
            few @ 0..100 => Err(few),
            _ => Ok(()),
        })
        .await;
        let drained = shop.caller.running.leave();
        let (_, told) = tokio::join!(drained, clients.join_all());
        let failed: Vec<_> = told.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{path}, a request each {pause} ms: {failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_status_is_retried_on_whatever_the_request_is() {
    let (caller, _control_plane, outbound, places) = twins().await;
    for place in &places {
        misbehaving::serve(place, Conduct::Unavailable).await;
    }
    // As often as Istio's own policy says: twice more.
    assert_eq!(post_to_twins(&caller, &outbound).await, (200, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_crosses_two_sidecars() {
    let shop = Shop::open("", &[]).await;
    let request = Request::get("/socket")
        .header("host", USER)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Full::default())
        .unwrap();
    let (status, mut stream) = Client::connect(&shop.outbound).await.unwrap().upgrade(request).await;
    assert_eq!(status, 101);
    for word in [&b"one"[..], b"two"] {
        stream.write_all(word).await.unwrap();
        let mut back = [0; 3];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word);
        // A new configuration in between does not cut it.
        shop.control_plane.write("vs.yaml", &virtual_service("later"));
        until("the edition", async || {
            let (_, text) = ask(&shop.outbound, USER, "/").await?;
            if text.contains("x-edition: later") { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

fn secret(name: &str, pair: &Pair) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: edge}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indent(&pair.certificate),
        indent(&pair.key)
    )
}

fn indent(pem: &str) -> String {
    pem.lines().map(|line| format!("    {line}\n")).collect()
}

/// A gateway with HTTPS for two hosts, mutual TLS for a third, and TLS passed through for a fourth.
fn edge_objects(gateway: &str, application: &str) -> String {
    let server = |name: &str, protocol: &str, tls: &str| {
        format!(
            "  - port: {{number: 8443, name: {name}, protocol: {protocol}}}\n    bind: {gateway}\n    hosts: [{name}.example]\n    tls: {tls}\n"
        )
    };
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: edge}}
spec:
  selector: {{app: edge}}
  servers:
{}{}{}{}  - port: {{number: 8080, name: plain, protocol: HTTP}}
    bind: {gateway}
    hosts: [one.example]
    tls: {{httpsRedirect: true}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge, namespace: edge}}
spec:
  hosts: [one.example, two.example, mutual.example]
  gateways: [edge]
  http:
  - match: [{{uri: {{prefix: /known}}}}]
    route: [{{destination: {{host: plain.example, port: {{number: 80}}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: through, namespace: edge}}
spec:
  hosts: [through.example]
  gateways: [edge]
  tls:
  - match: [{{sniHosts: [through.example], port: 8443}}]
    route: [{{destination: {{host: plain.example, port: {{number: 443}}}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: application, namespace: edge}}
spec:
  hosts: [plain.example]
  resolution: STATIC
  location: MESH_EXTERNAL
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: 8000}}
  - {{number: 443, name: tls, protocol: TLS, targetPort: 8001}}
  endpoints: [{{address: {application}}}]
{}",
        server("one", "HTTPS", "{mode: SIMPLE, credentialName: one-cert}"),
        server("two", "HTTPS", "{mode: SIMPLE, credentialName: two-cert}"),
        server("mutual", "HTTPS", "{mode: MUTUAL, credentialName: mutual-cert}"),
        server("through", "TLS", "{mode: PASSTHROUGH}"),
        workload("edge", "edge", gateway),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_tells_hosts_apart_and_clients_by_their_certificates() {
    let (gateway_address, application) = (loopback(), loopback());
    let (company, customers, strangers) = (Authority::default(), Authority::default(), Authority::default());
    let pair = |name: &str| company.pair(&format!("{name}.example"));
    let secrets = secret("one-cert", &pair("one"))
        + &secret("two-cert", &pair("two"))
        + &secret("mutual-cert", &pair("mutual"))
        + &format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: mutual-cert-cacert, namespace: edge}}\nstringData:\n  ca.crt: |\n{}",
            indent(&customers.pem())
        );
    echo(&format!("{application}:8000")).await;
    echo_tls(&format!("{application}:8001"), &pair("through")).await;
    let objects = edge_objects(&gateway_address, &application);
    let files = [("edge.yaml", objects.as_str()), ("secrets.yaml", secrets.as_str())];
    let control_plane = ControlPlane::start_with(&files, MESH_CONFIG).await;
    let gateway = sidecar::start(&control_plane, Role::Router, "edge", "edge", &gateway_address, &[]).await;
    let to = format!("{gateway_address}:8443");
    let call = async |name: &str, own: Option<&Pair>, path: &str| {
        let host = format!("{name}.example");
        let mut client =
            Client::connect_tls(&to, &host, company.client(own)).await.map_err(|error| error.to_string())?;
        client.ask(get(&host, path)).await
    };

    // The name decides the certificate: the client checks it against the host.
    for name in ["one", "two"] {
        let (status, text) = until(name, async || call(name, None, "/known").await).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.contains(&format!("host: {name}.example")) && text.contains("x-forwarded-proto: https"), "{text}");
        assert!(!text.contains("x-forwarded-client-cert"), "{text}");
    }
    assert_eq!(call("one", None, "/nowhere").await.unwrap().0, 404);
    assert!(call("other", None, "/known").await.is_err(), "a name that no server has");

    // Only customers with a certificate of the authority that was named.
    let customer = customers.pair("customer.example");
    let (status, text) = call("mutual", Some(&customer), "/known").await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("x-forwarded-client-cert") && text.contains("Hash="), "{text}");
    for own in [None, Some(&strangers.pair("customer.example"))] {
        assert!(call("mutual", own, "/known").await.is_err());
    }

    // The application's own certificate is seen.
    let (status, text) = call("through", None, "/untouched").await.unwrap();
    assert_eq!(status, 200);
    assert!(text.starts_with("GET /untouched\n") && !text.contains("x-forwarded"), "{text}");

    // Plaintext, with and without a route.
    for path in ["/known", "/nowhere"] {
        let (status, _) = ask(&format!("{gateway_address}:8080"), "one.example", path).await.unwrap();
        assert_eq!(status, 301, "{path}");
    }

    // A replaced Secret is in use for the next connection.
    let renewed = strangers.pair("one.example");
    control_plane.write(
        "secrets.yaml",
        &secrets.replacen(&secret("one-cert", &pair_of(&secrets)), &secret("one-cert", &renewed), 1),
    );
    until("the renewed certificate", async || {
        let host = "one.example";
        let mut client =
            Client::connect_tls(&to, host, strangers.client(None)).await.map_err(|error| error.to_string())?;
        client.ask(get(host, "/known")).await
    })
    .await;
    assert_eq!(call("two", None, "/known").await.unwrap().0, 200);
    gateway.end().await;
}

/// The first certificate and key of a file.
fn pair_of(secrets: &str) -> Pair {
    let block = |from: &str, to: &str| {
        let text = &secrets[secrets.find(from).unwrap()..];
        let end = text.find(to).unwrap() + to.len();
        text[..end].lines().map(|line| format!("{}\n", line.trim_start())).collect::<String>()
    };
    Pair {
        certificate: block("-----BEGIN CERTIFICATE", "-----END CERTIFICATE-----"),
        key: block("-----BEGIN PRIVATE", "-----END PRIVATE KEY-----"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_refuses_is_told_and_all_else_takes_effect() {
    let (gateway_address, application) = (loopback(), loopback());
    let company = Authority::default();
    let secrets = ["one", "two", "mutual"]
        .map(|name| secret(&format!("{name}-cert"), &company.pair(&format!("{name}.example"))))
        .concat();
    echo(&format!("{application}:8000")).await;
    // An address that this machine does not have: the planner cannot know.
    let elsewhere = "
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: elsewhere, namespace: edge}
spec:
  selector: {app: edge}
  servers:
  - {port: {number: 8081, name: tls, protocol: TLS}, bind: 192.0.2.1, hosts: [through.example], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: elsewhere, namespace: edge}
spec:
  hosts: [through.example]
  gateways: [elsewhere]
  tls:
  - match: [{sniHosts: [through.example], port: 8081}]
    route: [{destination: {host: plain.example, port: {number: 443}}}]
";
    let objects = edge_objects(&gateway_address, &application);
    let files = [("edge.yaml", objects.as_str()), ("secrets.yaml", secrets.as_str()), ("elsewhere.yaml", elsewhere)];
    let control_plane = ControlPlane::start_with(&files, MESH_CONFIG).await;
    let gateway = sidecar::start(&control_plane, Role::Router, "edge", "edge", &gateway_address, &[]).await;
    let state = async || {
        let proxies = control_plane.proxies().await;
        let kind = proxies[0].types.iter().find(|kind| kind.kind == "LDS").unwrap().clone();
        (kind.state, kind.nack)
    };
    until("the refusal", async || match state().await {
        (word, nack) if word == "NACKED" && nack.contains("192.0.2.1") => Ok(()),
        other => Err(other),
    })
    .await;
    let (to, host) = (format!("{gateway_address}:8443"), "one.example");
    let mut client = Client::connect_tls(&to, host, company.client(None)).await.unwrap();
    assert_eq!(client.ask(get(host, "/known")).await.unwrap().0, 200, "the other listeners serve");
    control_plane.write("elsewhere.yaml", "");
    until("the end of the refusal", async || match state().await {
        (word, _) if word == "SYNCED" => Ok(()),
        other => Err(other),
    })
    .await;
    gateway.end().await;
}
