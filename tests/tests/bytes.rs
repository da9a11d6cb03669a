//! What goes through two sidecars comes out as it went in: bytes of TCP, with who is there known at both ends, the spelling of
//! header names where that is asked for, and bodies of any length without keeping them.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use api::node::Role;
use mesh_tests::control_plane::ControlPlane;
use mesh_tests::server::{Client, get};
use mesh_tests::sidecar::{self, MESH_CONFIG, Process, loopback, workload};
use mesh_tests::wait::until;
use proxy::agent::Agent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A store that speaks TCP, and its customer.
fn store_objects(store: &str, customer: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: store, namespace: bank}}
spec: {{selector: {{app: store}}, ports: [{{name: tcp, port: 9000, targetPort: 9000}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: store, namespace: bank}}
spec:
  workloadSelector: {{labels: {{app: store}}}}
  ingress:
  - {{port: {{number: 9000, protocol: TCP, name: tcp}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:19000'}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: customer, namespace: bank}}
spec:
  workloadSelector: {{labels: {{app: customer}}}}
  egress:
  - {{port: {{number: 9000, protocol: TCP, name: tcp}}, bind: {customer}, captureMode: NONE, hosts: [./store.bank.svc.cluster.local]}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: bank}}
spec: {{mtls: {{mode: STRICT}}}}
{}{}",
        workload("store", "bank", store),
        workload("customer", "bank", customer)
    )
}

/// The lines of a metric that a proxy counts.
async fn lines(agent: &Agent, metric: &str) -> Vec<String> {
    let address = agent.running.prometheus_addr().to_string();
    let (_, text) = Client::connect(&address).await.unwrap().ask(get(&address, "/stats/prometheus")).await.unwrap();
    text.lines().filter(|line| line.starts_with(&format!("{metric}{{"))).map(str::to_owned).collect()
}

/// Answers every connection with a greeting, then with what it is sent.
async fn greet(address: &str) {
    let socket = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"welcome").await.unwrap();
                let mut bytes = [0; 256];
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    stream.write_all(&bytes[..count]).await.unwrap();
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_a_tcp_connection_are_known_at_both_ends() {
    let (store, customer) = (loopback(), loopback());
    let objects = store_objects(&store, &customer);
    let control_plane = ControlPlane::start_with(&[("bank.yaml", objects.as_str())], MESH_CONFIG).await;
    greet(&format!("{store}:19000")).await;
    let at_store =
        sidecar::start(&control_plane, Role::Sidecar, "store", "bank", &store, &["--labels", "version=v7"]).await;
    let at_customer =
        sidecar::start(&control_plane, Role::Sidecar, "customer", "bank", &customer, &["--cluster-id", "east"]).await;
    let talk = async || {
        let mut stream = TcpStream::connect(format!("{customer}:9000")).await.map_err(|error| error.to_string())?;
        let mut bytes = [0; 7];
        stream.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
        assert_eq!(&bytes, b"welcome", "the side that speaks first is heard, and nothing else");
        stream.write_all(b"deposit").await.map_err(|error| error.to_string())?;
        stream.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
        assert_eq!(&bytes, b"deposit");
        Ok::<_, String>(())
    };
    until("the store answers", talk).await;
    for (agent, reporter) in [(&at_store, "destination"), (&at_customer, "source")] {
        let line = until("a connection is counted", async || {
            let lines = lines(agent, "istio_tcp_connections_opened_total").await;
            lines.last().cloned().ok_or(lines)
        })
        .await;
        for label in [
            format!("reporter=\"{reporter}\""),
            "source_workload=\"customer\"".to_owned(),
            "source_workload_namespace=\"bank\"".to_owned(),
            "source_cluster=\"east\"".to_owned(),
            "source_principal=\"spiffe://cluster.local/ns/bank/sa/customer\"".to_owned(),
            "destination_workload=\"store\"".to_owned(),
            // Nobody but the store itself says so.
            "destination_version=\"v7\"".to_owned(),
            "destination_canonical_service=\"store\"".to_owned(),
            "destination_service=\"store.bank.svc.cluster.local\"".to_owned(),
            "destination_service_name=\"store\"".to_owned(),
            "destination_principal=\"spiffe://cluster.local/ns/bank/sa/store\"".to_owned(),
        ] {
            assert!(line.contains(&label), "{reporter}: {label} is not in {line}");
        }
    }
}

const WEB: &str = "web.shop.svc.cluster.local:8080";

/// Reads up to the end of a head.
async fn head(stream: &mut TcpStream) -> Result<String, String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.map_err(|error| error.to_string())?);
    }
    Ok(String::from_utf8(bytes).unwrap())
}

/// Answers each request with a header of an odd spelling and with the head of the request.
async fn tell_heads(address: &str) {
    let socket = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                while let Ok(head) = head(&mut stream).await {
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nX-oDD-Answer: 1\r\nContent-Length: {}\r\n\r\n{head}", head.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
}

/// The heads of an answer and of the request as the application got it.
async fn heads(outbound: &str) -> Result<(String, String), String> {
    let mut stream = TcpStream::connect(outbound).await.map_err(|error| error.to_string())?;
    let mut told = Err("nothing".to_owned());
    // Connections are used again.
    for _ in 0..3 {
        let request = format!("GET / HTTP/1.1\r\nHost: {WEB}\r\nX-oDD-Request: 1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let answer = head(&mut stream).await?;
        if !answer.starts_with("HTTP/1.1 200") {
            return Err(answer);
        }
        told = Ok((answer, head(&mut stream).await?));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn header_names_keep_their_spelling_where_that_is_asked_for() {
    let kept = "{proxyHeaders: {preserveHttp1HeaderCase: true}}";
    let in_the_mesh =
        MESH_CONFIG.replace("interceptionMode", "proxyHeaders: {preserveHttp1HeaderCase: true}, interceptionMode");
    for (mesh, own, preserved) in [
        (MESH_CONFIG, vec![], false),
        (in_the_mesh.as_str(), vec![], true),
        (MESH_CONFIG, vec!["--proxy-config", kept], true),
        (&in_the_mesh, vec!["--proxy-config", "{proxyHeaders: {preserveHttp1HeaderCase: false}}"], false),
    ] {
        let (web, caller) = (loopback(), loopback());
        let objects = sidecar::strict_pair("web", &web, &caller);
        let control_plane = ControlPlane::start_with(&[("web.yaml", objects.as_str())], mesh).await;
        tell_heads(&format!("{web}:18080")).await;
        let at_web = sidecar::start(&control_plane, Role::Sidecar, "web", "shop", &web, &own).await;
        let at_caller = sidecar::start(&control_plane, Role::Sidecar, "caller", "shop", &caller, &own).await;
        let (answer, request) = until("an answer", async || heads(&format!("{caller}:15080")).await).await;
        for (text, name) in [(&answer, "X-oDD-Answer: 1"), (&request, "X-oDD-Request: 1")] {
            let expected = if preserved { name.to_owned() } else { name.to_lowercase() };
            assert!(text.lines().any(|line| line == expected), "{mesh} {own:?}: {text}");
        }
        at_caller.end().await;
        at_web.end().await;
    }
}

/// Takes and gives bodies of any length: `POST` tells how much came, `GET /LENGTH` gives so much.
async fn store_and_give(address: &str) {
    let socket = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                while let Ok(head) = head(&mut stream).await {
                    let path = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
                    if head.starts_with("GET") {
                        let length: u64 = path.parse().unwrap();
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        give(&mut stream, length).await.unwrap();
                        continue;
                    }
                    let taken = take(&mut stream, length(&head)).await;
                    let text = taken.to_string();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
}

fn length(head: &str) -> u64 {
    let line = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    line.parse().unwrap()
}

/// Byte number n is n modulo 251, so that nothing that is lost, doubled or moved stays unseen.
const PERIOD: usize = 251;

fn pattern() -> Vec<u8> {
    (0..PERIOD * 512).map(|place| (place % PERIOD) as u8).collect()
}

async fn give(stream: &mut TcpStream, length: u64) -> Result<(), String> {
    let (pattern, mut left) = (pattern(), length);
    while left > 0 {
        let part = left.min(pattern.len() as u64);
        stream.write_all(&pattern[..part as usize]).await.map_err(|error| error.to_string())?;
        left -= part;
    }
    Ok(())
}

/// Reads a body; how long it was up to its end or its first wrong byte.
async fn take(stream: &mut TcpStream, length: u64) -> u64 {
    let pattern = pattern();
    let (mut bytes, mut at) = (vec![0; PERIOD * 256], 0u64);
    while at < length {
        let most = (length - at).min(bytes.len() as u64) as usize;
        let count = stream.read(&mut bytes[..most]).await.unwrap();
        let phase = (at % PERIOD as u64) as usize;
        if count == 0 || bytes[..count] != pattern[phase..phase + count] {
            break;
        }
        at += count as u64;
    }
    at
}

/// Sends a body of this length and gets one back, one after the other on one connection.
async fn both_ways(outbound: &str, length_of_each: u64) -> Result<(), String> {
    let mut stream = TcpStream::connect(outbound).await.map_err(|error| error.to_string())?;
    let request = format!("POST / HTTP/1.1\r\nhost: {WEB}\r\ncontent-length: {length_of_each}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    give(&mut stream, length_of_each).await?;
    let answer = head(&mut stream).await?;
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(answer);
    }
    let mut taken = vec![0; length(&answer) as usize];
    stream.read_exact(&mut taken).await.map_err(|error| error.to_string())?;
    assert_eq!(String::from_utf8(taken).unwrap(), length_of_each.to_string(), "bytes that arrived");
    let request = format!("GET /{length_of_each} HTTP/1.1\r\nhost: {WEB}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let answer = head(&mut stream).await?;
    assert_eq!(length(&answer), length_of_each, "{answer}");
    assert_eq!(take(&mut stream, length_of_each).await, length_of_each);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_gibibyte_takes_no_more_memory_than_one_of_a_mebibyte() {
    const MEBIBYTE: u64 = 1 << 20;
    let (web, caller) = (loopback(), loopback());
    let objects = sidecar::strict_pair("web", &web, &caller);
    let control_plane = ControlPlane::start_with(&[("web.yaml", objects.as_str())], MESH_CONFIG).await;
    store_and_give(&format!("{web}:18080")).await;
    let at_web = Process::start(&control_plane, "web", "shop", &web).await;
    let at_caller = Process::start(&control_plane, "caller", "shop", &caller).await;
    let outbound = format!("{caller}:15080");
    until("an answer", async || both_ways(&outbound, MEBIBYTE).await).await;
    // What starting took is given back, and is not to hide what a body takes.
    let peaks = async |length: u64| {
        at_web.forget_peak_memory();
        at_caller.forget_peak_memory();
        both_ways(&outbound, length).await.unwrap();
        [&at_web, &at_caller].map(Process::peak_memory)
    };
    let (before, after) = (peaks(MEBIBYTE).await, peaks(1024 * MEBIBYTE).await);
    for (who, (before, after)) in ["web", "caller"].into_iter().zip(before.into_iter().zip(after)) {
        let more = after.saturating_sub(before);
        assert!(more < 4 * MEBIBYTE, "{who}: {before} bytes with a mebibyte, {more} more with a gibibyte");
    }
}
