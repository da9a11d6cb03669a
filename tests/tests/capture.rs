//! Transparent capture with the real programs: `proxy init` in network namespaces, applications that know nothing of the mesh.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use api::join_token;
use mesh_tests::network::{Network, program};
use mesh_tests::wait::until;
use serde_json::{Value, json};

const HUB: usize = 0;
const CALLER: usize = 1;
const SERVER: usize = 2;
/// A machine without a proxy.
const OUTSIDER: usize = 3;
/// Address of the service, which no machine has.
const SERVICE: &str = "10.96.0.10";
/// Its IPv6 address.
const SERVICE_SIX: &str = "[fd96::10]";

/// What the caller finds its name servers by.
const RESOLV_CONF: &str =
    "search shop.svc.cluster.local svc.cluster.local\nnameserver 10.66.0.1\nnameserver fd66::1\noptions ndots:5\n";
/// What its name server says of every name.
const OUTSIDE: &str = "192.0.2.53";

const OBJECTS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: invented, namespace: shop}
spec:
  hosts: [invented.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{address: 10.66.0.1}]
---
apiVersion: v1
kind: Service
metadata: {name: user, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd96::10']
  selector: {app: user}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp-greeting, port: 9000, targetPort: 9001}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: user-1, namespace: shop}
spec:
  address: 10.66.0.3
  serviceAccount: user
  labels: {app: user, security.istio.io/tlsMode: istio}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: user-1-six, namespace: shop}
spec:
  address: fd66::3
  serviceAccount: user
  labels: {app: user, security.istio.io/tlsMode: istio}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: caller-1, namespace: shop}
spec:
  address: 10.66.0.2
  serviceAccount: caller
  labels: {app: caller, security.istio.io/tlsMode: istio}
";

fn mode(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: shop}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn application() -> PathBuf {
    env!("CARGO_BIN_EXE_application").into()
}

/// What an application on a machine gets; an error is what it says when it fails.
fn ask(network: &Network, machine: usize, words: &[&str]) -> Result<String, String> {
    let output = network.output(machine, &application(), words);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

struct Mesh {
    network: Network,
}

impl Mesh {
    async fn start() -> Mesh {
        Self::start_with(&[], &[]).await
    }

    /// With further words for `proxy init` and `proxy sidecar` at the caller.
    async fn start_with(init: &'static [&'static str], sidecar: &'static [&'static str]) -> Mesh {
        Self::start_as(CALLER, init, sidecar).await
    }

    /// With further words for `proxy init` and `proxy sidecar` at one machine.
    async fn start_as(which: usize, init: &'static [&'static str], sidecar: &'static [&'static str]) -> Mesh {
        let mut network = Network::new(3);
        network.set_resolv_conf(CALLER, RESOLV_CONF);
        let path = |network: &Network, below: &str| network.folder.path().join(below).display().to_string();
        std::fs::create_dir(network.folder.path().join("config")).unwrap();
        std::fs::write(network.folder.path().join("config/objects.yaml"), OBJECTS).unwrap();
        std::fs::write(network.folder.path().join("config/mode.yaml"), mode("STRICT")).unwrap();
        std::fs::write(network.folder.path().join("mesh.yaml"), "accessLogFile: /dev/stdout\n").unwrap();
        let line = format!(
            "--config-dir {} --mesh-config {} --state-dir {} --serving-names 10.66.0.1 --secure-grpc-addr 10.66.0.1:15012 \
             --http-addr 127.0.0.1:8080 --grpc-addr 127.0.0.1:15010 --monitoring-addr 127.0.0.1:15014 --https-addr 127.0.0.1:15017",
            path(&network, "config"),
            path(&network, "mesh.yaml"),
            path(&network, "state")
        );
        network.start_program(HUB, "meshd", &program("meshd"), &words(&line));
        until("the control plane", async || ask(&network, HUB, &["get", "127.0.0.1:8080", "x", "/ready"])).await;
        let proxy = network.copy_of(&program("proxy"));
        std::fs::copy(path(&network, "state/root-cert.pem"), path(&network, "root.pem")).unwrap();
        let key = std::fs::read(network.folder.path().join("state").join(join_token::KEY_FILE)).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        for (machine, account) in [(CALLER, "caller"), (SERVER, "user")] {
            let token = path(&network, &format!("{account}.token"));
            std::fs::write(&token, join_token::create(&key, "shop", account, now, 600).unwrap()).unwrap();
            let of_it = |words: &'static [&'static str]| if machine == which { words } else { &[] };
            install_with(&network, machine, &proxy, of_it(init));
            let line = format!(
                "sidecar --name {account}-1 --namespace shop --ip {} --instance-ips {} --service-account {account} --workload-name {account} \
                 --xds-address 10.66.0.1:15012 --root-cert {} --token-file {token} --workers 1",
                Network::address(machine),
                Network::address_six(machine),
                path(&network, "root.pem")
            );
            let line = [words(&line), of_it(sidecar).iter().map(|word| (*word).to_owned()).collect()].concat();
            let name = format!("proxy-{account}");
            match of_it(init).contains(&"TPROXY") {
                true => network.start_transparent_proxy(machine, &name, &proxy, &line),
                false => network.start_proxy(machine, &name, &proxy, &line),
            }
        }
        network.start_program(SERVER, "user", &application(), &words("serve [::]:8080 [::]:9001 [::]:9999"));
        network.start_program(
            HUB,
            "names",
            &application(),
            &words(&format!("names {OUTSIDE} 10.66.0.1:53 [fd66::1]:53")),
        );
        network.start_program(HUB, "elsewhere", &application(), &words("serve 10.66.0.1:80 10.66.0.1:7000"));
        for machine in [CALLER, SERVER] {
            until("a ready proxy", async || {
                if let Some(how) = network.ended() {
                    panic!("{how}");
                }
                let text = ask(&network, machine, &["get", "127.0.0.1:15021", "x", "/healthz/ready"])?;
                if text.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(text) }
            })
            .await;
        }
        Mesh { network }
    }

    fn get(&self, machine: usize, address: &str, host: &str) -> Result<String, String> {
        ask(&self.network, machine, &["get", address, host, "/hello"])
    }

    fn set_mode(&self, to: &str) {
        let draft = self.network.folder.path().join("draft");
        std::fs::write(&draft, mode(to)).unwrap();
        std::fs::rename(draft, self.network.folder.path().join("config/mode.yaml")).unwrap();
    }

    /// A number on the proxy's Prometheus page, summed over the lines with all of these words.
    fn metric(&self, machine: usize, wanted: &[&str]) -> f64 {
        self.metric_of(machine, "15090", wanted)
    }

    /// The same of the page on another port.
    fn metric_of(&self, machine: usize, port: &str, wanted: &[&str]) -> f64 {
        let text =
            ask(&self.network, machine, &["get", &format!("127.0.0.1:{port}"), "x", "/stats/prometheus"]).unwrap();
        let lines = text.lines().filter(|line| wanted.iter().all(|word| line.contains(word)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_families_of_addresses_are_captured() {
    let mesh = Mesh::start().await;
    // By either address of the service, to either address of the workload.
    for service in [SERVICE, SERVICE_SIX] {
        for source in ["127.0.0.6", "::6"] {
            until("an answer over each family", async || {
                let text = mesh.get(CALLER, &format!("{service}:80"), "user.shop.svc.cluster.local")?;
                let secured = text.contains("URI=spiffe://cluster.local/ns/shop/sa/caller");
                if secured && text.contains(&format!("connected from {source}\n")) { Ok(()) } else { Err(text) }
            })
            .await;
            until("a greeting over each family", async || {
                let text = ask(&mesh.network, CALLER, &["greet", &format!("{service}:9000"), "word"])?;
                if text == format!("hello {source}\nWORD\n") { Ok(()) } else { Err(text) }
            })
            .await;
        }
    }
    // A machine without a proxy.
    let six = format!("[{}]", Network::address_six(SERVER));
    for port in [8080, 9001, 9999] {
        let refused = mesh.get(OUTSIDER, &format!("{six}:{port}"), "user");
        assert!(refused.is_err(), "{port} is open to plaintext: {refused:?}");
    }
    mesh.set_mode("PERMISSIVE");
    until("plaintext that is taken", async || {
        let text = mesh.get(OUTSIDER, &format!("{six}:8080"), "user")?;
        if text.contains("connected from ::6\n") { Ok(()) } else { Err(text) }
    })
    .await;
    let greeting = ask(&mesh.network, OUTSIDER, &["greet", &format!("{six}:9999"), "word"]);
    assert_eq!(greeting.unwrap(), "hello ::6\nWORD\n");
}

/// Programs that know nothing find names of the mesh and others, over either transport and from a name server of either family.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_mesh_are_found_by_programs_that_know_nothing() {
    let mesh = Mesh::start_with(&["--redirect-dns"], &["--dns-capture"]).await;
    let network = &mesh.network;
    let application = application();
    let find = |options: &str, name: &str| {
        let words =
            [format!("RES_OPTIONS={options}"), application.display().to_string(), "find".into(), name.to_owned()];
        let output = network.output(CALLER, Path::new("env"), &words);
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let proxy = network.folder.path().join("proxy");
    let forwarded = || mesh.metric_of(CALLER, "15020", &["istio_agent_dns_upstream_requests_total"]);
    for program in ["nft", "iptables", "iptables-legacy"] {
        if program != "nft" {
            let output = network.output(CALLER, &proxy, &["init", "--cleanup-only"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            network.set_resolv_conf(CALLER, RESOLV_CONF);
            install_with_iptables(network, CALLER, &proxy, program, &["--redirect-dns"]);
            install_with_iptables(network, CALLER, &proxy, program, &["--redirect-dns"]);
            let raw = network.output(CALLER, Path::new(program), &["-t", "raw", "-S"]);
            let raw = String::from_utf8_lossy(&raw.stdout).into_owned();
            assert_eq!(raw.matches("-A OUTPUT").count(), 1, "{raw}");
        }
        for servers in ["10.66.0.1", "fd66::1"] {
            network.set_resolv_conf(
                CALLER,
                &format!("search shop.svc.cluster.local svc.cluster.local\nnameserver {servers}\noptions ndots:5\n"),
            );
            for transport in ["attempts:1", "use-vc"] {
                let before = forwarded();
                for name in ["user", "user.shop", "user.shop.svc.cluster.local"] {
                    assert_eq!(
                        find(transport, name),
                        ["10.96.0.10", "fd96::10"],
                        "{program} {servers} {transport} {name}"
                    );
                }
                let invented = find(transport, "invented.example.com");
                assert!(
                    invented.len() == 2 && invented[1].starts_with("240.240."),
                    "{servers} {transport}: {invented:?}"
                );
                assert_eq!(forwarded(), before, "a name of the mesh was asked for elsewhere");
                assert_eq!(find(transport, "elsewhere.example.org."), [OUTSIDE], "{program} {servers} {transport}");
                assert!(forwarded() > before);
            }
        }
        // Whatever the name server, where that is asked for.
        let output = network.output(CALLER, &proxy, &["init", "--cleanup-only"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        network.set_resolv_conf(CALLER, "nameserver 10.99.99.99\n");
        let all = ["--redirect-dns", "--capture-all-dns"];
        match program {
            "nft" => install_with(network, CALLER, &proxy, &all),
            other => install_with_iptables(network, CALLER, &proxy, other, &all),
        }
        network.set_resolv_conf(CALLER, RESOLV_CONF);
        for transport in ["attempts:1", "use-vc"] {
            assert_eq!(find(transport, "user"), ["10.96.0.10", "fd96::10"], "{program} {transport}");
            assert_eq!(find(transport, "elsewhere.example.org."), [OUTSIDE], "{program} {transport}");
        }
        // The address that nobody has leads to the workload behind the name.
        let text = mesh.get(CALLER, "invented.example.com:80", "invented.example.com").unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("host: invented.example.com"), "{text}");
    }
}

/// With a system that has no nft, and one kind of iptables.
fn install_with_iptables(network: &Network, machine: usize, proxy: &Path, program: &str, words: &[&str]) {
    let folder = network.folder.path().join(format!("only-{program}"));
    let _ = std::fs::create_dir(&folder);
    let six = program.replace("ip", "ip6");
    for name in [program, &six, &format!("{program}-restore"), &format!("{six}-restore"), "ip"] {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().map(|folder| Path::new(folder).join(name));
        let _ = std::os::unix::fs::symlink(found.into_iter().find(|path| path.exists()).unwrap(), folder.join(name));
    }
    let path = format!("PATH={}", folder.display());
    let words = [&[path.as_str(), proxy.to_str().unwrap(), "init"], words].concat();
    let output = network.output(machine, Path::new("env"), &words);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains(&format!("with {program}-restore")), "{told}");
}

fn install_with(network: &Network, machine: usize, proxy: &Path, words: &[&str]) {
    let output = network.output(machine, proxy, &[&["init"], words].concat());
    assert!(output.status.success(), "proxy init: {}", String::from_utf8_lossy(&output.stderr));
}

/// The rules of a machine, as whatever program has them prints them, without counters.
fn rules(network: &Network, machine: usize) -> String {
    let print = |program: &str, arguments: &[&str]| {
        String::from_utf8_lossy(&network.output(machine, Path::new(program), arguments).stdout).into_owned()
    };
    print("nft", &["list", "ruleset"])
        + &print("iptables", &["-t", "nat", "-S"])
        + &print("ip6tables", &["-t", "nat", "-S"])
        + &print("ip", &["rule"])
        + &print("ip", &["-6", "rule"])
        + &print("ip", &["-4", "route", "show", "table", "133"])
        + &print("ip", &["-6", "route", "show", "table", "133"])
        + &print("ip", &["-6", "addr", "show", "dev", "lo"])
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_that_know_nothing_speak_mutual_tls() {
    let mesh = Mesh::start().await;
    let service = format!("{SERVICE}:80");
    let server = format!("{}:8080", Network::address(SERVER));

    // From application to application by the service's address: captured at both ends.
    let text = until("an answer of the service", async || {
        let text = mesh.get(CALLER, &service, "user.shop.svc.cluster.local")?;
        if text.starts_with("HTTP/1.1 200") { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(text.contains("GET /hello HTTP/1.1"), "{text}");
    let sources = ["connected from 127.0.0.6\n", "connected from ::6\n"];
    assert!(
        sources.iter().any(|source| text.contains(source)),
        "Istio's source address of inbound connections: {text}"
    );
    assert!(
        text.contains("By=spiffe://cluster.local/ns/shop/sa/user;")
            && text.contains("URI=spiffe://cluster.local/ns/shop/sa/caller"),
        "{text}"
    );
    let wanted = [
        "istio_requests_total{reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/caller\"",
        "destination_service=\"user.shop.svc.cluster.local\"",
        "destination_service_name=\"user\"",
        "destination_service_namespace=\"shop\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_code=\"200\"",
    ];
    assert!(mesh.metric(SERVER, &wanted) >= 1.0);
    // The host header is the caller's to choose; the service that was reached is not.
    mesh.get(CALLER, &service, "user").unwrap();
    assert!(mesh.metric(SERVER, &wanted) >= 2.0);

    // A protocol in which the server speaks first.
    let greeting = ask(&mesh.network, CALLER, &["greet", &format!("{SERVICE}:9000"), "word"]).unwrap();
    assert!(["hello 127.0.0.6\nWORD\n", "hello ::6\nWORD\n"].contains(&greeting.as_str()), "{greeting}");
    assert!(mesh.metric(SERVER, &["istio_tcp_connections_opened_total{reporter=\"destination\"", "mutual_tls"]) >= 1.0);

    // Addresses that no service has are left to the network: on a port that the mesh knows, and on one that it does not.
    let hub = Network::address(HUB);
    let text = mesh.get(CALLER, &format!("{hub}:80"), "elsewhere.example").unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("host: elsewhere.example"), "{text}");
    let greeting = ask(&mesh.network, CALLER, &["greet", &format!("{hub}:7000"), "word"]).unwrap();
    assert_eq!(greeting, format!("hello {}\nWORD\n", Network::address(CALLER)));
    let passed = |cluster: &str| mesh.metric(CALLER, &["istio_", &format!("destination_service_name=\"{cluster}\"")]);
    assert!(passed("PassthroughCluster") >= 1.0);

    // A machine without a proxy: refused in plaintext, served once the mode allows it.
    for address in
        [&server, &format!("{}:9001", Network::address(SERVER)), &format!("{}:9999", Network::address(SERVER))]
    {
        let refused = mesh.get(OUTSIDER, address, "user");
        assert!(refused.is_err(), "{address} is open to plaintext: {refused:?}");
    }
    mesh.set_mode("PERMISSIVE");
    let text = until("plaintext that is taken", async || {
        let text = mesh.get(OUTSIDER, &server, "user")?;
        if text.starts_with("HTTP/1.1 200") { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(!text.to_lowercase().contains("x-forwarded-client-cert"), "{text}");
    // A port of the application that no service names.
    let greeting = ask(&mesh.network, OUTSIDER, &["greet", &format!("{}:9999", Network::address(SERVER)), "word"]);
    assert_eq!(greeting.unwrap(), "hello 127.0.0.6\nWORD\n");
    // The mesh goes on with mutual TLS.
    let text = mesh.get(CALLER, &service, "user.shop").unwrap();
    assert!(text.contains("URI=spiffe://cluster.local/ns/shop/sa/caller"), "{text}");
    mesh.set_mode("STRICT");
    until("plaintext that is refused again", async || match mesh.get(OUTSIDER, &server, "user") {
        Err(_) => Ok(()),
        Ok(text) => Err(text),
    })
    .await;
}

const ONE_CONNECTION: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: user, namespace: shop}
spec:
  host: user.shop.svc.cluster.local
  workloadSelector: {matchLabels: {app: user}}
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}
";

const TRANSPARENT: [&str; 2] = ["-m", "TPROXY"];

/// With TPROXY an application sees who called it, whatever the protocol, over mutual TLS and in plaintext, over both families,
/// and whichever program took the rules.
#[tokio::test(flavor = "multi_thread")]
async fn with_tproxy_the_application_sees_its_caller() {
    let mesh = Mesh::start_as(SERVER, &TRANSPARENT, &["--interception-mode", "TPROXY"]).await;
    let (caller, caller_six) = (Network::address(CALLER), Network::address_six(CALLER));
    let (outsider, outsider_six) = (Network::address(OUTSIDER), Network::address_six(OUTSIDER));
    let (server, server_six) = (Network::address(SERVER), format!("[{}]", Network::address_six(SERVER)));
    let proxy = mesh.network.folder.path().join("proxy");
    // The service's endpoints are one of each family: both callers are seen, and over mutual TLS.
    let sees = async |seen: &str| {
        until(&format!("an answer to {seen}"), async || {
            let text = mesh.get(CALLER, &format!("{SERVICE}:80"), "user.shop.svc.cluster.local")?;
            let secured = text.contains("URI=spiffe://cluster.local/ns/shop/sa/caller");
            if secured && text.contains(&format!("connected from {seen}\n")) { Ok(()) } else { Err(text) }
        })
        .await;
        until(&format!("a greeting to {seen}"), async || {
            let text = ask(&mesh.network, CALLER, &["greet", &format!("{SERVICE}:9000"), "word"])?;
            if text == format!("hello {seen}\nWORD\n") { Ok(()) } else { Err(text) }
        })
        .await;
    };
    for program in ["nft", "iptables", "iptables-legacy"] {
        if program != "nft" {
            let output = mesh.network.output(SERVER, &proxy, &["init", "--cleanup-only"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            install_with_iptables(&mesh.network, SERVER, &proxy, program, &TRANSPARENT);
        }
        mesh.set_mode("STRICT");
        for seen in [&caller, &caller_six] {
            sees(seen).await;
        }
        until("plaintext that is refused", async || match mesh.get(OUTSIDER, &format!("{server}:8080"), "user") {
            Err(_) => Ok(()),
            Ok(text) => Err(text),
        })
        .await;
        mesh.set_mode("PERMISSIVE");
        for (address, seen) in [(&server, &outsider), (&server_six, &outsider_six)] {
            until("plaintext that is taken", async || {
                let text = mesh.get(OUTSIDER, &format!("{address}:8080"), "user")?;
                if text.contains(&format!("connected from {seen}\n")) { Ok(()) } else { Err(text) }
            })
            .await;
            // A port of the application that no service names, and on which the server speaks first.
            let greeting = ask(&mesh.network, OUTSIDER, &["greet", &format!("{address}:9999"), "word"]);
            assert_eq!(greeting.unwrap(), format!("hello {seen}\nWORD\n"), "{program}");
        }
        // Callers in turn: nobody is given a connection in another's name.
        for _ in 0..10 {
            let text = mesh.get(OUTSIDER, &format!("{server}:8080"), "user").unwrap();
            assert!(text.contains(&format!("connected from {outsider}\n")), "{program}: {text}");
            let text = mesh.get(CALLER, &format!("{SERVICE}:80"), "user").unwrap();
            let seen = |address: &str| text.contains(&format!("connected from {address}\n"));
            assert!(seen(&caller) || seen(&caller_six), "{program}: {text}");
        }
        // What the server's machine sends is captured as ever: to its own service, and elsewhere.
        let text = mesh.get(SERVER, &format!("{SERVICE}:80"), "user.shop.svc.cluster.local").unwrap();
        let own = [Network::address(SERVER), Network::address_six(SERVER)];
        assert!(own.iter().any(|own| text.contains(&format!("connected from {own}\n"))), "{program}: {text}");
        assert!(text.contains("URI=spiffe://cluster.local/ns/shop/sa/user"), "{program}: {text}");
        let greeting = ask(&mesh.network, SERVER, &["greet", &format!("{}:7000", Network::address(HUB)), "word"]);
        assert_eq!(greeting.unwrap(), format!("hello {}\nWORD\n", Network::address(SERVER)), "{program}");
        // Its own address, without the mesh.
        let greeting = ask(&mesh.network, SERVER, &["greet", &format!("{server}:9999"), "word"]);
        assert_eq!(greeting.unwrap(), format!("hello {server}\nWORD\n"), "{program}");
    }
    // Where the application takes one connection, one that rests in another's name makes room.
    std::fs::write(mesh.network.folder.path().join("config/one.yaml"), ONE_CONNECTION).unwrap();
    until("the limit", async || {
        let dump = ask(&mesh.network, SERVER, &["get", "127.0.0.1:15000", "x", "/config_dump"])?;
        let bare: String = dump.split_whitespace().collect();
        let is_there = [",", "}"].iter().any(|end| bare.contains(&format!("\"max_connections\":1{end}")));
        if is_there { Ok(()) } else { Err(format!("{} letters without it", dump.len())) }
    })
    .await;
    for _ in 0..3 {
        for (machine, address) in [(OUTSIDER, &outsider), (HUB, &Network::address(HUB))] {
            let text = mesh.get(machine, &format!("{server}:8080"), "user").unwrap();
            assert!(text.contains(&format!("connected from {address}\n")), "{text}");
        }
    }
    let captured =
        ["istio_requests_total{reporter=\"source\"", "source_workload=\"user\"", "destination_service_name=\"user\""];
    assert!(mesh.metric(SERVER, &captured) >= 3.0);
}

/// The rules are tried: outbound as anybody, inbound as the proxy's user; without them, the program says so.
#[test]
fn rules_are_tried_with_a_connection() {
    let network = Network::new(1);
    let proxy = network.copy_of(&program("proxy"));
    let validate = |user: &str, words: &[&str]| {
        let proxy = proxy.to_str().unwrap();
        let line = ["--reuid", user, "--regid", user, "--clear-groups", proxy, "init", "--run-validation"];
        let output = network.output(CALLER, Path::new("setpriv"), &[&line[..], words].concat());
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for user in ["0", "1337"] {
        let (code, told) = validate(user, &["--skip-rule-apply", "--probe-timeout", "300ms"]);
        assert!(code == 126 && told.contains("do not work"), "{user}: {code} {told}");
    }
    for mode in [&[][..], &TRANSPARENT] {
        let (code, told) = validate("0", mode);
        assert!(code == 0 && told.matches("comes to port 15001").count() == 2, "{code} {told}");
        let output = network.output(CALLER, &proxy, &["init", "--cleanup-only"]);
        assert!(output.status.success());
    }
    // Rules of REDIRECT are none of TPROXY.
    let (code, told) = validate("0", &[]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = validate("0", &["--skip-rule-apply", "-m", "TPROXY"]);
    assert!(code == 126 && told.contains("marked 1337 do not stay"), "{code} {told}");
    let (code, told) = validate("1337", &["--skip-rule-apply"]);
    assert!(code == 0 && told.matches("comes to port 15006").count() == 2, "{code} {told}");
}

#[test]
fn installing_twice_is_installing_once_and_cleaning_removes_everything() {
    let network = Network::new(1);
    let proxy = program("proxy");
    let before = rules(&network, CALLER);
    for mode in [&[][..], &TRANSPARENT] {
        install_with(&network, CALLER, &proxy, mode);
        let once = rules(&network, CALLER);
        assert!(once.contains("15001") && once.contains("15006"), "{once}");
        assert!(once.contains("::6/128") && once.matches("15006").count() >= 2, "both families: {once}");
        let marked = once.matches("fwmark 0x539 lookup 133").count();
        let routed = once.matches("local default dev lo").count();
        assert_eq!((marked, routed), if mode.is_empty() { (0, 0) } else { (2, 2) }, "{once}");
        install_with(&network, CALLER, &proxy, mode);
        assert_eq!(rules(&network, CALLER), once);
        let output = network.output(CALLER, &proxy, &["init", "--cleanup-only"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let after = rules(&network, CALLER);
        assert!(!after.to_lowercase().contains("istio") && !after.contains("1500"), "{after}");
        assert!(!after.contains("::6/") && !after.contains("fwmark") && !after.contains("local default"), "{after}");
    }
    assert!(!before.contains("fwmark"), "{before}");
}

/// Calls the plug-in as a container runtime does, from outside of the machine: whether it ended well, and what it said.
fn call_plug_in(network: &Network, machine: usize, command: &str, capture: &[&str]) -> (bool, Value) {
    let plug_in = network.folder.path().join("istio-cni");
    let _ = std::os::unix::fs::symlink(program("proxy"), &plug_in);
    let status = json!({"initContainers": ["istio-proxy"], "capture": capture}).to_string();
    let config = json!({
        "cniVersion": "0.4.0", "name": "net", "type": "istio-cni", "excludeNamespaces": ["kube-system"],
        "prevResult": {"cniVersion": "0.4.0", "ips": [{"address": "10.66.0.2/24"}]},
        "runtimeConfig": {
            "io.kubernetes.cri.pod-annotations": {"sidecar.istio.io/status": status},
            "dns": {"Servers": ["10.66.0.1", "fd66::1"]},
        },
    });
    let mut child = Command::new(&plug_in)
        .env("CNI_COMMAND", command)
        .env("CNI_NETNS", format!("/run/netns/{}", network.name(machine)))
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), if told.is_empty() { Value::Null } else { serde_json::from_str(&told).unwrap() })
}

/// From outside of a pod the plug-in makes what `proxy init` makes inside, and nothing anywhere else.
#[test]
fn the_plug_in_installs_the_rules_of_init() {
    let network = Network::new(2);
    let proxy = program("proxy");
    let (inside, outside) = (CALLER, SERVER);
    network.set_resolv_conf(inside, RESOLV_CONF);
    let hub = rules(&network, HUB);
    let usual =
        ["-p", "15001", "-z", "15006", "-u", "1337", "-i", "*", "-x", "10.9.0.0/16", "-b", "*", "-d", "15090,15021"];
    for more in
        [&["-m", "REDIRECT", "-o", "25", "-c", "net1"][..], &["-m", "TPROXY", "--drop-invalid"], &["--redirect-dns"]]
    {
        let words = [&usual[..], more].concat();
        install_with(&network, inside, &proxy, &words);
        let (well, told) = call_plug_in(&network, outside, "CHECK", &words);
        assert!(!well && told["code"] == 101 && told["msg"].as_str().unwrap().contains("pod shop/web"), "{told}");
        for command in ["ADD", "ADD"] {
            let (well, told) = call_plug_in(&network, outside, command, &words);
            assert!(well && told["ips"][0]["address"] == "10.66.0.2/24", "{told}");
        }
        assert_eq!(rules(&network, inside), rules(&network, outside), "{more:?}");
        assert_eq!(call_plug_in(&network, outside, "CHECK", &words), (true, Value::Null));
        assert_eq!(call_plug_in(&network, outside, "DEL", &words), (true, Value::Null));
        for machine in [inside, outside] {
            assert!(network.output(machine, &proxy, &["init", "--cleanup-only"]).status.success());
        }
    }
    assert_eq!(rules(&network, HUB), hub);
}
