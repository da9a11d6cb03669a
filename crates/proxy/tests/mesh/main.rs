//! Two proxies in one process, a certificate authority, and applications at both ends: client -> outbound proxy -> mutual TLS ->
//! inbound proxy -> application. Configured by xDS resources built here.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use support::{App, Mesh, Route, get, http1, request_on};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_rides_the_multiplexed_hop_and_reaches_the_application_as_http1() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut client = http1(mesh.outbound()).await;
    for _ in 0..3 {
        let response = request_on(&mut client, get("/hello?x=1")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-version"], "HTTP/1.1");
        assert_eq!(response.headers()["server"], "envoy");
        assert!(response.headers().contains_key("x-envoy-upstream-service-time"));
        assert!(!response.headers().contains_key("x-echo-x-mesh-protocol"), "the private header stays between proxies");
        assert!(response.headers().contains_key("x-echo-x-request-id"));
        let certificate = response.headers()["x-echo-x-forwarded-client-cert"].to_str().unwrap();
        assert!(
            certificate.contains("By=spiffe://cluster.local/ns/shop/sa/server;Hash=")
                && certificate.contains("URI=spiffe://cluster.local/ns/shop/sa/client"),
            "{certificate}"
        );
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "GET /hello?x=1");
    }
    let connections = mesh.client.shared().metrics.cluster_total("outbound", |series| &series.connections);
    assert_eq!(connections, 1, "three requests of one connection share one connection");
    let metrics = mesh.server.shared().metrics.prometheus("test");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("istio_requests_total{reporter=\"destination\""))
        .expect("inbound requests are counted");
    assert!(
        line.contains("source_workload=\"client-v1\"")
            && line.contains("connection_security_policy=\"mutual_tls\"")
            && line.ends_with(" 3"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_knows_the_destination_and_writes_its_log() {
    let app = App::echo().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mesh = Mesh::start(&app, Route { log: Some(path.to_str().unwrap().to_owned()), ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let response = request_on(&mut client, get("/logged")).await;
    response.into_body().collect().await.unwrap();
    let metrics = mesh.client.shared().metrics.prometheus("test");
    let line = metrics.lines().find(|line| line.starts_with("istio_requests_total{reporter=\"source\"")).unwrap();
    for label in [
        "source_workload=\"client-v1\"",
        "destination_workload=\"server-v1\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
        "connection_security_policy=\"unknown\"",
        "response_code=\"200\"",
        "request_protocol=\"http\"",
    ] {
        assert!(line.contains(label), "{label} is not in {line}");
    }
    support::until("the line is written", || std::fs::read_to_string(&path).unwrap_or_default().ends_with('\n')).await;
    let line = std::fs::read_to_string(&path).unwrap();
    assert!(
        line.contains("\"GET /logged HTTP/1.1\" 200 - via_upstream - \"-\" 0 11 ")
            && line.contains("\"server.shop\"")
            && line.ends_with(" default\n"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_streams_with_trailers_both_ways() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut client = support::http2(mesh.outbound()).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://server.shop/echo-stream")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(support::stream_with_trailers(vec![
            Bytes::from_static(&[0, 0, 0, 0, 1, 7]),
            Bytes::from_static(&[0, 0, 0, 0, 0]),
        ]))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["x-version"], "HTTP/2.0");
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.trailers().unwrap()["x-request-trailer"], "seen");
    assert_eq!(collected.to_bytes().len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_switch_and_carry_bytes() {
    let app = App::upgrading().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nhost: server.shop\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let head = support::read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_name_is_refused_and_explained() {
    let app = App::echo().await;
    let mesh =
        Mesh::start(&app, Route { expected: "spiffe://cluster.local/ns/shop/sa/other", ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let response = request_on(&mut client, get("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(app.hits(), 0);
    response.into_body().collect().await.unwrap();
    support::until("the failure is explained", || {
        mesh.client.shared().failures.last(1).first().is_some_and(|why| {
            why.flag == "UF" && why.failure == "TlsWrongName" && why.object == "VirtualService shop/route"
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_is_refused_where_mutual_tls_is_strict() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut stream = tokio::net::TcpStream::connect(mesh.inbound()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    assert_eq!(app.hits(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_may_have_been_processed_is_never_repeated() {
    let app = App::closing().await;
    let mesh = Mesh::start(
        &app,
        Route { retry_on: "connect-failure,refused-stream,unavailable,cancelled,503", ..Route::default() },
    )
    .await;
    let mut client = http1(mesh.outbound()).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/")
        .header("host", "server.shop")
        .body(Full::from("order"))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    // The inbound proxy answers 503 for the application that closed; the policy names 503, but the inbound try is one.
    assert!(app.hits() <= 3);
    let direct = App::closing().await;
    let mesh = Mesh::start(
        &direct,
        Route { retry_on: "connect-failure,refused-stream,unavailable,cancelled", ..Route::default() },
    )
    .await;
    let mut client = http1(mesh.outbound()).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/")
        .header("host", "server.shop")
        .body(Full::from("order"))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(direct.hits(), 1, "exactly one arrival");
}

/// The proxy in front of the application says which of its 503s mean that the application has not answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_that_the_application_dropped_is_repeated() {
    let app = App::closing().await;
    let default = "connect-failure,refused-stream,unavailable,cancelled";
    let mesh = Mesh::start(&app, Route { retry_on: default, ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let response = request_on(&mut client, get("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!response.headers().contains_key("x-mesh-application"), "{:?}", response.headers());
    assert!(app.hits() > 1, "one arrival only");
}

/// Other proxies would hand that word on to their applications.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_of_others_are_told_nothing_of_the_application() {
    let app = App::closing().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let response = mesh.foreign_get("/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(app.hits() >= 1, "the application was never asked");
    assert!(!response.headers().contains_key("x-mesh-application"), "{:?}", response.headers());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_the_policy_names_is_retried_with_its_body() {
    let app = App::failing_first(2).await;
    let mesh = Mesh::start(&app, Route { retry_on: "5xx", ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let request =
        Request::builder().method(Method::PUT).uri("/").header("host", "server.shop").body(Full::from("body")).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-attempt"], "3");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_times_out() {
    let app = App::silent().await;
    let mesh = Mesh::start(&app, Route { timeout: Duration::from_millis(100), ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let response = request_on(&mut client, get("/")).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    let page = support::admin(mesh.client.admin_addr(), "/why?last=1").await;
    assert!(page.contains("UpstreamTimeout"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_somebody_is_to_see_is_not_waited_for_longer_than_a_stream_may_idle() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route { seen: Some(Duration::from_millis(100)), ..Route::default() }).await;
    let mut client = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: server.shop\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
    let mut head = [0; 12];
    tokio::time::timeout(Duration::from_secs(10), client.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(&head, b"HTTP/1.1 408");
    let page = support::admin(mesh.client.admin_addr(), "/why?last=1").await;
    assert!(page.contains("StreamIdle"), "{page}");
    assert_eq!(app.hits(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_faults_and_direct_answers() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route { abort: Some(418), ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let response = request_on(&mut client, get("/")).await;
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    response.into_body().collect().await.unwrap();
    mesh.apply_route(Route { weights: Some((1, 0)), ..Route::default() });
    for _ in 0..20 {
        let response = request_on(&mut client, get("/")).await;
        assert_eq!(response.status(), StatusCode::OK, "the same connection goes by the new route");
        response.into_body().collect().await.unwrap();
    }
    mesh.apply_route(Route { weights: Some((1, 1)), ..Route::default() });
    let mut answers = [0, 0];
    for _ in 0..200 {
        let response = request_on(&mut client, get("/")).await;
        answers[usize::from(response.status() != StatusCode::OK)] += 1;
        response.into_body().collect().await.unwrap();
    }
    assert!(answers.iter().all(|count| *count > 50), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_sees_the_request_and_never_the_caller() {
    let (app, shadow) = (App::echo().await, App::echo().await);
    let mesh = Mesh::start(&app, Route { mirror: Some(shadow.address), ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/copy")
        .header("host", "server.shop")
        .body(Full::from("body"))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    support::until("the copy arrives", || shadow.hits() == 1).await;
    assert_eq!(shadow.last_host(), "server.shop-shadow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_relayed_over_mutual_tls_and_servers_may_speak_first() {
    let greeting = App::greeting().await;
    let mesh = Mesh::start_tcp(&greeting).await;
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    let mut hello = [0; 5];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut hello))
        .await
        .expect("the server speaks first")
        .unwrap();
    assert_eq!(&hello, b"hello");
    stream.write_all(b"echo").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"echo");
    drop(stream);
    support::until("both ends are counted", || {
        let text = mesh.server.shared().metrics.prometheus("test");
        text.lines().any(|line| {
            line.starts_with("istio_tcp_connections_closed_total{reporter=\"destination\"") && line.ends_with(" 1")
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_body_passes_in_little_memory() {
    const SIZE: u64 = 256 << 20;
    let app = App::sink().await;
    let mesh = Mesh::start(&app, Route { retry_on: "5xx", ..Route::default() }).await;
    let before = support::resident();
    let mut client = http1(mesh.outbound()).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/")
        .header("host", "server.shop")
        .body(support::zeros(SIZE))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), SIZE.to_string());
    let grown = support::resident().saturating_sub(before);
    assert!(grown < 96 << 20, "memory grew by {} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_caller_goes_away_breaks_off_and_its_connection_stays() {
    // Before the answer, and in the middle of it.
    for early in [false, true] {
        let (app, mut told) = App::telling(early).await;
        let mesh = Mesh::start(&app, Route::default()).await;
        let soon = async |told: &mut tokio::sync::mpsc::UnboundedReceiver<_>| {
            tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("the application hears nothing")
        };
        for _ in 0..6 {
            let mut client = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
            client.write_all(b"POST / HTTP/1.1\r\nhost: server.shop\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
            client.write_all(&[b'x'; 100_000]).await.unwrap();
            assert_eq!(soon(&mut told).await, Some(None), "the upload begins");
            if early {
                let mut status = [0; 12];
                client.read_exact(&mut status).await.unwrap();
                assert_eq!(&status, b"HTTP/1.1 200");
            }
            drop(client);
            let ended = soon(&mut told).await;
            assert!(matches!(ended, Some(Some(Err(_)))), "early: {early}; the upload goes on or is whole: {ended:?}");
        }
        let connections = mesh.client.shared().metrics.cluster_total("outbound", |series| &series.connections);
        // One for each of the two workers, whichever of them a caller meets.
        assert!(connections <= 2, "only the stream is reset: {connections} connections for six requests");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_refused() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    for bad in ["GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "BROKEN\r\n\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
        stream.write_all(bad.as_bytes()).await.unwrap();
        let head = support::read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 400"), "{bad:?} was answered by {head:?}");
    }
    assert_eq!(app.hits(), 0);
    // Two lengths that disagree: the chunked one counts, the other is not passed on, and the connection is not used again
    // (RFC 9112 section 6.1), so nothing can be smuggled behind it.
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("connection: close")
            && !answer.contains("x-echo-content-length: 3")
            && !answer.contains("/smuggled"),
        "{answer}"
    );
    assert_eq!(app.hits(), 1);
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    stream.write_all(b"GET /old HTTP/1.0\r\nhost: server.shop\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_lets_a_running_request_end() {
    let app = App::slow(Duration::from_millis(400)).await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut client = http1(mesh.outbound()).await;
    let (address, Mesh { client: proxy, server, .. }) = (mesh.outbound(), mesh);
    let running = tokio::spawn(async move { request_on(&mut client, get("/")).await.status() });
    support::until("the request is under way", || app.hits() == 1).await;
    let start = Instant::now();
    let drained = proxy.drain().await;
    assert_eq!(running.await.unwrap(), StatusCode::OK);
    assert_eq!(drained, proxy::drain::Drained::Idle);
    assert!(start.elapsed() < Duration::from_secs(5), "it ends as soon as it is idle");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody accepts any more");
    drop(server);
}

/// None of these has a request under way: a client before its first request, after one, over HTTP/2, one that said nothing on
/// a port where the first bytes decide, one in the middle of a handshake, and the connection between the proxies. The second
/// was not told of the end with its answer and may be sending again: it is waited for, but not for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_hold_up_the_end() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    mesh.make_permissive();
    let fresh = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    let silent = tokio::net::TcpStream::connect(mesh.inbound()).await.unwrap();
    let mut half = tokio::net::TcpStream::connect(mesh.inbound()).await.unwrap();
    half.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    let mut used = http1(mesh.outbound()).await;
    request_on(&mut used, get("/")).await.into_body().collect().await.unwrap();
    let mut multiplexed = support::http2(mesh.outbound()).await;
    let request =
        Request::builder().uri("http://server.shop/").body(support::stream_with_trailers(Vec::new())).unwrap();
    multiplexed.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    let count = |proxy: &proxy::app::Running| proxy.shared().metrics.total(|process| &process.connections_active);
    support::until("all are accepted", || count(&mesh.client) == 3 && count(&mesh.server) >= 3).await;
    let Mesh { client, server, .. } = mesh;
    for proxy in [server, client] {
        let start = Instant::now();
        assert_eq!(proxy.drain().await, proxy::drain::Drained::Idle);
        assert!(start.elapsed() < Duration::from_secs(8), "the end took {:?}", start.elapsed());
    }
    drop((fresh, silent, half, used, multiplexed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_is_redirected_before_any_route_is_looked_for() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route { https_only: true, ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    for (host, path, location) in [
        ("shop.example", "/nowhere?x=1", "https://shop.example/nowhere?x=1"),
        ("shop.example:80", "/known", "https://shop.example/known"),
        ("shop.example:8080", "/", "https://shop.example:8080/"),
    ] {
        let request = Request::builder().uri(path).header("host", host).body(Full::default()).unwrap();
        let response = request_on(&mut client, request).await;
        assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY, "{host}{path}");
        assert_eq!(response.headers()["location"], location);
    }
    // A proxy in front of us has ended TLS.
    let request = |path| {
        Request::builder().uri(path).header("host", "a").header("x-forwarded-proto", "https").body(Full::default())
    };
    assert_eq!(request_on(&mut client, request("/known").unwrap()).await.status(), StatusCode::OK);
    assert_eq!(request_on(&mut client, request("/nowhere").unwrap()).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(app.hits(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_pages_answer() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let admin = mesh.client.admin_addr();
    let checks = [
        ("/config_dump", "ClustersConfigDump"),
        ("/clusters", "outbound::"),
        ("/clusters?format=json", "cluster_statuses"),
        ("/listeners", "outbound::"),
        ("/server_info", "LIVE"),
        ("/stats", "server.live: 1"),
        ("/stats/prometheus", "istio_build"),
        ("/certs", "spiffe://cluster.local/ns/shop/sa/client"),
        ("/ready", "LIVE"),
    ];
    for (path, word) in checks {
        let page = support::admin(admin, path).await;
        assert!(page.contains(word), "{path}: {page}");
    }
    assert!(support::admin(mesh.client.ready_addr(), "/healthz/ready").await.contains("ready"));
    let _ = Arc::clone(mesh.client.shared());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_survives_changes_of_configuration() {
    let app = App::upgrading().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nhost: server.shop\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    assert!(support::read_head(&mut stream).await.starts_with("HTTP/1.1 101"));
    for turn in 0..5 {
        mesh.apply_route(Route { abort: (turn % 2 == 0).then_some(500), ..Route::default() });
        stream.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_application_closed_while_idle_costs_no_request() {
    let app = App::one_request_a_connection().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut client = http1(mesh.outbound()).await;
    for number in 1..=30 {
        let response = request_on(&mut client, get("/")).await;
        assert_eq!(response.status(), StatusCode::OK, "request {number}");
        response.into_body().collect().await.unwrap();
        if number % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    assert_eq!(app.hits(), 30, "nothing arrived twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_the_limit_overflow() {
    let app = App::slow(Duration::from_millis(300)).await;
    let mesh = Mesh::start(&app, Route { max_requests: Some(2), ..Route::default() }).await;
    let running: Vec<_> = (0..2)
        .map(|_| {
            let to = mesh.outbound();
            tokio::spawn(async move { request_on(&mut http1(to).await, get("/")).await.status() })
        })
        .collect();
    support::until("two are under way", || app.hits() == 2).await;
    let response = request_on(&mut http1(mesh.outbound()).await, get("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    for running in running {
        assert_eq!(running.await.unwrap(), StatusCode::OK);
    }
    support::until("the limit is explained", || {
        mesh.client.shared().failures.last(1).first().is_some_and(|why| why.flag == "UO")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_host_is_ejected_and_no_request_is_sent_to_it() {
    let app = App::failing_first(usize::MAX).await;
    let mesh = Mesh::start(&app, Route { eject_after: Some(3), ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        let response = request_on(&mut client, get("/")).await;
        statuses.push(response.status().as_u16());
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(statuses, [500, 500, 500, 503, 503, 503]);
    assert_eq!(app.hits(), 3);
    let page = support::admin(mesh.client.admin_addr(), "/clusters").await;
    assert!(page.contains("/failed_outlier_check"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_to_nowhere_names_its_object() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route { weights: Some((0, 1)), ..Route::default() }).await;
    let mut client = http1(mesh.outbound()).await;
    let mut request = get("/");
    request.headers_mut().insert("x-request-id", http::HeaderValue::from_static("find-me"));
    let response = request_on(&mut client, request).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    response.into_body().collect().await.unwrap();
    let page = support::admin(mesh.client.admin_addr(), "/why?request_id=find-me").await;
    assert!(page.contains("VirtualService shop/route") && page.contains("\"NC\"") && page.contains("ghost"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_chain_keeps_its_socket_and_counts_for_open_connections() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let before = mesh.inbound();
    let mut client = http1(mesh.outbound()).await;
    for value in ["one", "two"] {
        mesh.apply_inbound_header(value);
        let response = request_on(&mut client, get("/")).await;
        assert_eq!(response.headers()["x-inbound"], value);
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(mesh.inbound(), before);
    assert_eq!(mesh.client.shared().metrics.cluster_total("outbound", |series| &series.connections), 1);
    assert_eq!(mesh.server.shared().metrics.total(|process| &process.connections), 1, "no connection was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_the_only_connection_that_is_allowed() {
    let app = App::slow(Duration::from_millis(10)).await;
    let mesh = Mesh::start(&app, Route { direct: Some(1), ..Route::default() }).await;
    // One client connection each: both workers want the one upstream connection.
    let mut client = support::http2(mesh.outbound()).await;
    let running: Vec<_> = (0..8)
        .map(|_| {
            let request =
                Request::builder().uri("http://server.shop/").version(Version::HTTP_2).body(support::zeros(0)).unwrap();
            client.send_request(request)
        })
        .collect();
    for running in running {
        let response = running.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(mesh.client.shared().metrics.cluster_total("outbound", |series| &series.connections), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once_are_all_answered() {
    let app = App::echo().await;
    for direct in [None, Some(1000)] {
        let mesh = Mesh::start(&app, Route { direct, ..Route::default() }).await;
        let clients: Vec<_> = (0..64)
            .map(|number| {
                let to = mesh.outbound();
                tokio::spawn(async move {
                    let mut client = http1(to).await;
                    for turn in 0..25 {
                        let path = format!("/{number}/{turn}");
                        let response = request_on(&mut client, get(&path)).await;
                        assert_eq!(response.status(), StatusCode::OK);
                        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), format!("GET {path}"));
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        let connections = mesh.client.shared().metrics.cluster_total("outbound", |series| &series.connections);
        assert!(direct.is_some() || connections <= 4, "at most two connections a worker, not {connections}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listener_of_the_original_destination_takes_over() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    mesh.hand_over();
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server.shop\r\n\r\n").await.unwrap();
    assert_eq!(support::read_head(&mut stream).await, "", "the catch-all leads nowhere");
    mesh.hand_over_to();
    let response = request_on(&mut http1(mesh.outbound()).await, get("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_as_large_as_with_envoy_and_no_larger() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut client = http1(mesh.outbound()).await;
    for (length, status) in [(55 << 10, 200), (61 << 10, 431)] {
        let mut request = get("/");
        for number in 0..2 {
            let name = http::HeaderName::try_from(format!("x-large-{number}")).unwrap();
            request.headers_mut().insert(name, http::HeaderValue::try_from("x".repeat(length / 2)).unwrap());
        }
        let response = request_on(&mut client, request).await;
        assert_eq!(response.status().as_u16(), status, "{length}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permissive_port_takes_both() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    mesh.make_permissive();
    let response = request_on(&mut http1(mesh.outbound()).await, get("/")).await;
    assert!(response.headers().contains_key("x-echo-x-forwarded-client-cert"));
    let response = request_on(&mut http1(mesh.inbound()).await, get("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("x-echo-x-forwarded-client-cert"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_connections_end_when_mutual_tls_becomes_strict() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    mesh.make_permissive();
    let mut client = http1(mesh.inbound()).await;
    for _ in 0..2 {
        let response = request_on(&mut client, get("/")).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.unwrap();
    }
    mesh.make_strict();
    // What may have been on its way is answered.
    let last = request_on(&mut client, get("/")).await;
    assert_eq!(last.status(), StatusCode::OK);
    last.into_body().collect().await.unwrap();
    support::until("the connection ends", || client.is_closed()).await;
    assert_eq!(app.hits(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_crosses_both_proxies_and_ends_in_bytes() {
    let app = App::greeting().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    stream.write_all(b"CONNECT server.shop:80 HTTP/1.1\r\nhost: server.shop:80\r\n\r\n").await.unwrap();
    let head = support::read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_looked_up_before_the_first_request_is_sent() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route { named: Some("localhost"), ..Route::default() }).await;
    let response = request_on(&mut http1(mesh.outbound()).await, get("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("x-echo-x-forwarded-client-cert"));
    let nowhere = Mesh::start(&app, Route { named: Some("nowhere.invalid"), ..Route::default() }).await;
    let response = request_on(&mut http1(nowhere.outbound()).await, get("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(app.hits(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_rested_goes_on_where_it_was() {
    let app = App::echo().await;
    let mesh = Mesh::start(&app, Route::default()).await;
    let mut client = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    let resting = || mesh.client.shared().metrics.total(|process| &process.connections_resting);
    let rests = async |wanted: u64| {
        let started = Instant::now();
        while resting() != wanted {
            let now = resting();
            assert!(started.elapsed() < Duration::from_secs(10), "{now} connections rest, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n");
    async fn answer(client: &mut tokio::net::TcpStream, wanted: &str) {
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        while !seen.ends_with(wanted) {
            let read = client.read(&mut buffer).await.unwrap();
            assert!(read > 0, "closed after {seen:?}");
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    }
    for path in ["/one", "/two"] {
        client.write_all(request(path).as_bytes()).await.unwrap();
        answer(&mut client, &format!("GET {path}")).await;
        rests(1).await;
    }
    // What follows a request in the same packet is not lost, however late the rest of it comes.
    let (begin, end) = ("GET /four HTTP/1.1\r\nho", "st: web\r\n\r\n");
    client.write_all(format!("{}{begin}", request("/three")).as_bytes()).await.unwrap();
    answer(&mut client, "GET /three").await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(resting(), 0, "a connection with half a head must not rest");
    client.write_all(end.as_bytes()).await.unwrap();
    answer(&mut client, "GET /four").await;
    rests(1).await;
    drop(client);
    rests(0).await;
}
