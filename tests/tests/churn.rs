//! What happens to a mesh, with the real programs under steady traffic: requests at a fixed rate, WebSockets and gRPC streams.
//! Nothing fails and nothing is cut but what the event itself must end, and afterwards the proxies' memory and descriptors are
//! back where they were: 1,000 requests a second, 200 streams of each kind; `CHURN=small` is for slow machines.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use mesh_tests::misbehaving::{self, Conduct};
use mesh_tests::programs::{Meshd, Running};
use mesh_tests::server::{ask, echo};
use mesh_tests::sidecar::{MESH_CONFIG, loopback};
use mesh_tests::steady::{Size, Steady, grpc_echo};
use mesh_tests::wait::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Speed counts here: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

const WEB: &str = "user.shop.svc.cluster.local:8080";
const GRPC: &str = "user.shop.svc.cluster.local:8090";

/// What a proxy's memory may be above what it was, in bytes: allocators keep some.
const MEMORY: u64 = 12 << 20;
/// Descriptors above what they were: connections between the proxies come and go.
const DESCRIPTORS: usize = 6;

fn entry(name: &str, app: &str, address: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  address: {address}\n  serviceAccount: {app}\n  labels: {{app: {app}, security.istio.io/tlsMode: istio}}\n"
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: user, namespace: shop}
spec:
  selector: {app: user}
  ports: [{name: http, port: 8080, targetPort: 8080}, {name: grpc, port: 8090, targetPort: 8090}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  ingress:
  - {port: {number: 8080, protocol: HTTP, name: http}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}
  - {port: {number: 8090, protocol: GRPC, name: grpc}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18090'}
  egress:
  - {captureMode: NONE, hosts: [./*]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// A caller, and one or more instances of the service `user`, each with its sidecar.
struct Mesh {
    meshd: Meshd,
    caller: Running,
    users: Vec<Running>,
    outbound: String,
    addresses: Vec<String>,
    size: Size,
}

impl Mesh {
    async fn open(users: usize, settings: &[&str]) -> Mesh {
        let at_caller = loopback();
        let addresses: Vec<String> = (0..users).map(|_| loopback()).collect();
        let mut objects = SERVICE.to_owned() + &entry("caller", "caller", &at_caller);
        for (number, address) in addresses.iter().enumerate() {
            objects += &entry(&format!("user-{number}"), "user", address);
            echo(&format!("{address}:18080")).await;
            grpc_echo(&format!("{address}:18090")).await;
        }
        let meshd = Meshd::start(&[("shop.yaml", objects.as_str())], MESH_CONFIG).await;
        let mut running = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            running.push(meshd.proxy(&format!("user-{number}"), address, settings, None).await);
        }
        let caller = meshd.proxy("caller", &at_caller, settings, None).await;
        let mesh = Mesh {
            meshd,
            caller,
            users: running,
            outbound: format!("{at_caller}:15080"),
            addresses,
            size: Size::of_environment(),
        };
        mesh.answers().await;
        mesh
    }

    async fn answers(&self) {
        until("the service answers", async || match ask(&self.outbound, WEB, "/").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
    }

    async fn traffic(&self) -> Steady {
        Steady::start(&self.outbound, WEB, GRPC, self.size).await
    }

    /// Memory and descriptors of each proxy after traffic of the same kind.
    async fn level(&self) -> Vec<(u64, usize)> {
        let steady = self.traffic().await;
        steady.go_on(200).await;
        steady.stop().await.assert_undisturbed("before anything happened");
        // Connections of clients that are gone are closed soon.
        let mut last = usize::MAX;
        until("rest", async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now: usize = self.processes().map(Running::descriptors).sum();
            if std::mem::replace(&mut last, now) == now { Ok(()) } else { Err(now) }
        })
        .await;
        self.processes().map(|process| (process.memory(), process.descriptors())).collect()
    }

    fn processes(&self) -> impl Iterator<Item = &Running> {
        std::iter::once(&self.caller).chain(&self.users)
    }

    /// Waits until memory and descriptors are back at that level.
    async fn back_at(&self, level: &[(u64, usize)]) {
        until("memory and descriptors back where they were", async || {
            let now: Vec<(u64, usize)> =
                self.processes().map(|process| (process.memory(), process.descriptors())).collect();
            let back = now
                .iter()
                .zip(level)
                .all(|(now, before)| now.0 <= before.0 + MEMORY && now.1 <= before.1 + DESCRIPTORS);
            if back { Ok(()) } else { Err(format!("{level:?} then, {now:?} now")) }
        })
        .await;
    }
}

/// The header that the route of this number sets.
fn virtual_service(number: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: user, namespace: shop}}\nspec:\n  hosts: [user]\n  http:\n  - headers: {{request: {{set: {{x-edition: n{number}n}}}}}}\n    route: [{{destination: {{host: user}}}}]\n"
    )
}

async fn edition_is(mesh: &Mesh, number: usize) {
    until(&format!("edition {number}"), async || match ask(&mesh.outbound, WEB, "/edition").await {
        Ok((200, text)) if text.contains(&format!("n{number}n")) => Ok(()),
        other => Err(other),
    })
    .await;
}

/// The edit of this number: kinds in turn, in a file each, never twice the same content.
fn edit(number: usize) -> (&'static str, String) {
    let object = |kind: &str, group: &str, spec: &str| {
        format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: churn, namespace: shop}}\n{spec}\n")
    };
    let networking = "networking.istio.io/v1";
    match number % 11 {
        0 => ("vs.yaml", virtual_service(number)),
        1 => (
            "dr.yaml",
            object(
                "DestinationRule",
                networking,
                &format!(
                    "spec: {{host: user, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {}ms}}}}}}}}",
                    5000 + number
                ),
            ),
        ),
        2 => (
            "se.yaml",
            object(
                "ServiceEntry",
                networking,
                &format!(
                    "spec: {{hosts: [churn-{}.example], resolution: STATIC, ports: [{{number: {}, name: http, protocol: HTTP}}], endpoints: [{{address: 127.0.0.1}}]}}",
                    number % 3,
                    1000 + number
                ),
            ),
        ),
        3 => (
            "gw.yaml",
            object(
                "Gateway",
                networking,
                &format!(
                    "spec: {{selector: {{app: nobody}}, servers: [{{port: {{number: {}, name: http, protocol: HTTP}}, hosts: ['*']}}]}}",
                    2000 + number
                ),
            ),
        ),
        4 => (
            "we.yaml",
            object(
                "WorkloadEntry",
                networking,
                &format!(
                    "spec: {{address: 127.9.9.9, serviceAccount: churn, labels: {{app: churn, edition: e{number}}}}}"
                ),
            ),
        ),
        5 => (
            "sidecar.yaml",
            object(
                "Sidecar",
                networking,
                &format!("spec: {{workloadSelector: {{labels: {{app: churn-{number}}}}}, egress: [{{hosts: [./*]}}]}}"),
            ),
        ),
        6 => (
            "pa.yaml",
            // The callee takes plaintext too, and then no more.
            format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: own, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: user}}}}, mtls: {{mode: {}}}}}\n",
                if (number / 11).is_multiple_of(2) { "PERMISSIVE" } else { "STRICT" }
            ),
        ),
        7 => (
            "svc.yaml",
            object(
                "Service",
                "v1",
                &format!("spec: {{selector: {{app: churn}}, ports: [{{name: http, port: {}}}]}}", 3000 + number),
            ),
        ),
        8 => ("secret.yaml", object("Secret", "v1", &format!("stringData: {{note: e{number}}}"))),
        9 => (
            "wg.yaml",
            object(
                "WorkloadGroup",
                networking,
                &format!("spec: {{metadata: {{labels: {{edition: e{number}}}}}, template: {{serviceAccount: churn}}}}"),
            ),
        ),
        _ => (
            "slice.yaml",
            object(
                "EndpointSlice",
                "discovery.k8s.io/v1",
                &format!(
                    "addressType: IPv4\nports: [{{name: http, port: {}}}]\nendpoints: [{{addresses: [127.9.9.8]}}]",
                    4000 + number
                ),
            ),
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_edits_of_all_kinds_disturb_nothing() {
    let _alone = ALONE.lock().await;
    let mesh = Mesh::open(1, &[]).await;
    mesh.meshd.write("vs.yaml", &virtual_service(1000));
    edition_is(&mesh, 1000).await;
    let level = mesh.level().await;
    let steady = mesh.traffic().await;
    for number in 0..209 {
        let (file, text) = edit(number);
        mesh.meshd.write(file, &text);
        // As fast as a person or a pipeline saves files; every time round, all that was written so far is in effect.
        tokio::time::sleep(Duration::from_millis(10)).await;
        if number % 11 == 0 {
            edition_is(&mesh, number).await;
        }
    }
    steady.go_on(100).await;
    steady.stop().await.assert_undisturbed("200 edits");
    mesh.back_at(&level).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_written_again_with_equal_content_is_not_pushed() {
    let _alone = ALONE.lock().await;
    let mesh = Mesh::open(1, &[]).await;
    mesh.meshd.write("vs.yaml", &virtual_service(1));
    edition_is(&mesh, 1).await;
    for proxy in ["caller", "user-0"] {
        mesh.meshd.in_sync(proxy).await;
    }
    let nonces = async || {
        let rows: Vec<api::debug::SyncStatus> = serde_json::from_value(mesh.meshd.page("/debug/syncz").await).unwrap();
        let mut all: Vec<(String, String, String)> = rows
            .into_iter()
            .flat_map(|row| row.types.into_iter().map(move |kind| (row.proxy.clone(), kind.kind, kind.sent)))
            .filter(|(_, kind, _)| kind != "RDS")
            .collect();
        all.sort();
        all
    };
    let before = nonces().await;
    let shop = std::fs::read_to_string(mesh.meshd.path("config").join("shop.yaml")).unwrap();
    for number in 0..20 {
        // Some programs write comments anew, and some all of the file.
        mesh.meshd.write("shop.yaml", &format!("{shop}# written for the {number}. time\n"));
        mesh.meshd.write("vs.yaml", &virtual_service(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What is seen after them has been read after them: then nothing of theirs was sent.
    mesh.meshd.write("vs.yaml", &virtual_service(2));
    edition_is(&mesh, 2).await;
    assert_eq!(nonces().await, before, "only the route was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_may_be_killed_be_away_and_come_back() {
    let _alone = ALONE.lock().await;
    let mut mesh = Mesh::open(1, &[]).await;
    let level = mesh.level().await;
    let steady = mesh.traffic().await;
    // Killed and back at once, and again after having been away for a while, with other objects.
    for number in [3, 4] {
        mesh.meshd.go();
        steady.go_on(if number == 4 { 4 * mesh.size.rate as usize } else { 1 }).await;
        mesh.meshd.write("vs.yaml", &virtual_service(number));
        mesh.meshd.come().await;
        edition_is(&mesh, number).await;
        for proxy in ["caller", "user-0"] {
            mesh.meshd.in_sync(proxy).await;
        }
    }
    // Back without its state: it is another authority, and whoever does not trust it must not listen to it.
    mesh.meshd.go();
    std::fs::remove_dir_all(mesh.meshd.path("state")).unwrap();
    mesh.meshd.write("vs.yaml", &virtual_service(5));
    mesh.meshd.come().await;
    steady.go_on(200).await;
    let ready = format!("{}:{}", mesh.outbound.split(':').next().unwrap(), api::port::READY);
    assert_eq!(ask(&ready, "x", "/healthz/ready").await.unwrap().0, 200, "a proxy that has a configuration serves");
    let (_, text) = ask(&mesh.outbound, WEB, "/edition").await.unwrap();
    assert!(text.contains("n4n"), "a stranger's configuration is in effect: {text}");
    assert_eq!(mesh.meshd.meshctl(&["status"]).await, "No proxy is connected.\n");
    for proxy in ["caller", "user-0"] {
        let log = mesh.meshd.path(&format!("{proxy}.log"));
        until("the reason", async || {
            let text = std::fs::read_to_string(&log).unwrap();
            let reason = format!("not from an authority in {}", mesh.meshd.path("trusted.pem").display());
            if text.contains(&reason) { Ok(()) } else { Err(text) }
        })
        .await;
    }
    steady.stop().await.assert_undisturbed("a control plane that comes and goes");
    // Told: the new root and new tokens.
    mesh.meshd.trust();
    edition_is(&mesh, 5).await;
    for proxy in ["caller", "user-0"] {
        mesh.meshd.in_sync(proxy).await;
    }
    mesh.back_at(&level).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_every_second_and_the_authority_may_be_away_meanwhile() {
    let _alone = ALONE.lock().await;
    let mut mesh = Mesh::open(1, &["--secret-ttl", "6s"]).await;
    let level = mesh.level().await;
    let steady = mesh.traffic().await;
    let issued = async |mesh: &Mesh| -> f64 {
        let lines = mesh.meshd.metric("citadel_server_csr_count").await;
        lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let before = issued(&mesh).await;
    until("renewals", async || {
        let now = issued(&mesh).await;
        if now >= before + 4.0 { Ok(()) } else { Err((before, now)) }
    })
    .await;
    // Away over a renewal (due at half of the life), back before the certificates' end.
    mesh.meshd.go();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    mesh.meshd.come().await;
    until("renewals after it came back", async || {
        let now = issued(&mesh).await;
        if now >= 4.0 { Ok(()) } else { Err(now) }
    })
    .await;
    steady.go_on(100).await;
    steady.stop().await.assert_undisturbed("rotation");
    mesh.back_at(&level).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_told_to_end_ends_its_own_streams_only() {
    let _alone = ALONE.lock().await;
    let mut mesh = Mesh::open(2, &["--drain", "2s"]).await;
    let steady = mesh.traffic().await;
    steady.go_on(100).await;
    mesh.users[0].signal("TERM");
    let first = &mut mesh.users[0];
    until("the end of the first instance", async || if first.runs() { Err("it runs") } else { Ok(()) }).await;
    let outcome = steady.stop().await;
    let why = mesh.meshd.meshctl(&["why", "--last", "caller"]).await;
    assert!(outcome.failed.is_empty(), "of {} requests failed {:?}\n{why}", outcome.answered, outcome.failed);
    assert!(
        outcome.closed.len() < mesh.size.streams * 2,
        "streams of the other instance were cut: {:?}",
        outcome.closed
    );
    assert!(outcome.answered > 100);
}

/// A route on which a try that gets no answer is made again at another instance.
const PATIENT: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: user, namespace: shop}\nspec:\n  hosts: [user]\n  http:\n  - retries: {attempts: 4, perTryTimeout: 400ms, retryOn: 'connect-failure,refused-stream,reset,5xx'}\n    headers: {request: {set: {x-edition: n7n}}}\n    route: [{destination: {host: user}}]\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_may_be_killed_or_frozen_and_requests_go_to_the_other() {
    let _alone = ALONE.lock().await;
    let mut mesh = Mesh::open(2, &[]).await;
    mesh.meshd.write("vs.yaml", PATIENT);
    // One that fails is left alone for a while.
    mesh.meshd.write(
        "dr.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: user, namespace: shop}\nspec: {host: user, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 100}}}\n",
    );
    edition_is(&mesh, 7).await;
    // Streams of an instance that is killed end, and those of a frozen one stand still: here it is about requests.
    mesh.size.streams = 0;
    let steady = mesh.traffic().await;
    mesh.users[0].signal("STOP");
    steady.go_on(mesh.size.rate as usize).await;
    mesh.users[0].signal("CONT");
    steady.go_on(mesh.size.rate as usize).await;
    mesh.users[0].kill();
    steady.go_on(mesh.size.rate as usize).await;
    let address = mesh.addresses[0].clone();
    mesh.users[0] = mesh.meshd.proxy("user-0", &address, &[], None).await;
    steady.go_on(mesh.size.rate as usize).await;
    let outcome = steady.stop().await;
    let why = mesh.meshd.meshctl(&["why", "--last", "caller"]).await;
    assert!(outcome.failed.is_empty(), "of {} requests failed {:?}\n{why}", outcome.answered, outcome.failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn destinations_that_fail_in_every_way_disturb_no_other() {
    let _alone = ALONE.lock().await;
    let mesh = Mesh::open(1, &[]).await;
    let application = loopback();
    let mut objects = String::new();
    let mut hosts = Vec::new();
    for (name, conduct) in [
        ("silent", Conduct::Silent),
        ("closes", Conduct::Closes),
        ("breaks", Conduct::BreaksOff),
        ("resets", Conduct::ResetsInMidBody),
        ("babbles", Conduct::Babbles),
        ("refuses", Conduct::Answers(503)),
    ] {
        // Nobody listens on port 1.
        let port = match name {
            "refuses" => 1,
            _ => misbehaving::serve(&format!("{application}:0"), conduct).await.port(),
        };
        objects += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: [{name}.example], location: MESH_EXTERNAL, resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}], endpoints: [{{address: {application}}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: [{name}.example], http: [{{timeout: 300ms, route: [{{destination: {{host: {name}.example}}}}]}}]}}\n"
        );
        hosts.push(format!("{name}.example"));
    }
    // A name that no server knows.
    objects += "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: nameless, namespace: shop}\nspec: {hosts: [nameless.example], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: no-such-name.invalid}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: nameless, namespace: shop}\nspec: {hosts: [nameless.example], http: [{timeout: 300ms, route: [{destination: {host: nameless.example}}]}]}\n";
    hosts.push("nameless.example".to_owned());
    mesh.meshd.write("bad.yaml", &objects);
    until("the routes", async || match ask(&mesh.outbound, "silent.example", "/").await {
        Ok((504, _)) => Ok(()),
        other => Err(other),
    })
    .await;
    let level = mesh.level().await;
    let steady = mesh.traffic().await;
    let mut asked = tokio::task::JoinSet::new();
    for round in 0..20 {
        for host in &hosts {
            let (to, host) = (mesh.outbound.clone(), host.clone());
            asked.spawn(async move { (host.clone(), ask(&to, &host, "/").await) });
        }
        steady.go_on(20 + round).await;
    }
    while let Some(answer) = asked.join_next().await {
        let (host, answer) = answer.unwrap();
        assert!(!matches!(answer, Ok((200, _))), "{host}: {answer:?}");
    }
    steady.stop().await.assert_undisturbed("failing destinations");
    mesh.back_at(&level).await;
}

/// A thousand clients that say nothing, and a thousand that say a byte at a time, while others are served.
async fn crowd(mesh: &Mesh) {
    let mut held = Vec::new();
    for _ in 0..1000 {
        held.push(TcpStream::connect(&mesh.outbound).await.unwrap());
    }
    let mut slow = Vec::new();
    for _ in 0..1000 {
        let mut stream = TcpStream::connect(&mesh.outbound).await.unwrap();
        stream.write_all(b"G").await.unwrap();
        slow.push(stream);
    }
    let steady = mesh.traffic().await;
    for byte in b"ET /" {
        for stream in &mut slow {
            stream.write_all(&[*byte]).await.unwrap();
        }
        steady.go_on(mesh.size.rate as usize / 2).await;
    }
    // Slow, but right: who ends a request after all is answered.
    let mut one = slow.pop().unwrap();
    one.write_all(format!(" HTTP/1.1\r\nhost: {WEB}\r\n\r\n").as_bytes()).await.unwrap();
    let mut status = [0; 12];
    one.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    steady.stop().await.assert_undisturbed("2,000 clients that do not ask");
    assert!(mesh.caller.descriptors() > 1900, "the clients are not there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_and_a_thousand_slow_clients_keep_nobody_waiting() {
    let _alone = ALONE.lock().await;
    let mesh = Mesh::open(1, &[]).await;
    // The allocator keeps what a crowd needed once, and settles with the second: what counts is that the next needs no more.
    for _ in 0..2 {
        crowd(&mesh).await;
    }
    let level = mesh.level().await;
    crowd(&mesh).await;
    mesh.back_at(&level).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_descriptors_it_waits_and_then_accepts_again() {
    let _alone = ALONE.lock().await;
    let mesh = Mesh::open(1, &[]).await;
    let address = loopback();
    mesh.meshd.write("starved.yaml", &entry("starved", "starved", &address));
    let mut starved = mesh.meshd.proxy("starved", &address, &[], Some(120)).await;
    let outbound = format!("{address}:15080");
    let serves = async || {
        until("the starved proxy serves", async || match ask(&outbound, WEB, "/").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
    };
    serves().await;
    let before = starved.descriptors();
    let mut held = Vec::new();
    // The system takes connections that the proxy cannot accept.
    for _ in 0..200 {
        held.push(TcpStream::connect(&outbound).await.unwrap());
    }
    until("no descriptor is left", async || match starved.descriptors() {
        116.. => Ok(()),
        few => Err(few),
    })
    .await;
    drop(held);
    serves().await;
    assert!(starved.runs());
    until("descriptors back", async || {
        let now = starved.descriptors();
        if now <= before + DESCRIPTORS { Ok(()) } else { Err((before, now)) }
    })
    .await;
}
