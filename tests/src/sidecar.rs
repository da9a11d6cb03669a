//! Proxies in this process, each on a loopback address of its own, under a control plane in this process.

use std::process::{Child, Command, Stdio};

use api::node::Role;
use clap::Parser;
use proxy::agent::Agent;
use proxy::bootstrap::{Cli, Command as What};
use rand::RngExt;

use crate::control_plane::ControlPlane;
use crate::network::program;
use crate::server::ask;
use crate::wait::until;

/// Mesh-wide settings of a mesh without capture: each workload's calls go to port 15080 of its proxy.
pub const MESH_CONFIG: &str = "proxyHttpPort: 15080\ndefaultConfig: {interceptionMode: NONE}\n";

/// A loopback address that nobody else uses, most likely.
pub fn loopback() -> String {
    let mut dice = rand::rng();
    format!("127.{}.{}.{}", dice.random_range(180..250), dice.random_range(1..250), dice.random_range(2..250))
}

/// An object that places a workload with this service account and label `app` at an address.
pub fn workload(name: &str, namespace: &str, address: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  address: {address}\n  serviceAccount: {name}\n  labels: {{app: {name}, security.istio.io/tlsMode: istio}}\n"
    )
}

/// The objects of an HTTP service in namespace `shop` with one workload, and of its caller; strict mutual TLS, nothing captured:
/// the service's sidecar listens on port 8080 of the workload's address, the application on 18080.
pub fn strict_pair(service: &str, address: &str, caller: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: shop}}
spec: {{selector: {{app: {service}}}, ports: [{{name: http, port: 8080, targetPort: 8080}}]}}
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
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: STRICT}}}}
{}{}",
        workload(service, "shop", address),
        workload("caller", "shop", caller)
    )
}

fn ready_address(address: &str) -> String {
    format!("{address}:{}", api::port::READY)
}

/// The command line of a workload's proxy. `more` are further settings.
fn line(
    control_plane: &ControlPlane,
    role: Role,
    name: &str,
    namespace: &str,
    address: &str,
    more: &[&str],
) -> Vec<String> {
    let token = control_plane.path(&format!("token-{namespace}-{name}"));
    std::fs::write(&token, control_plane.token(namespace, name)).unwrap();
    let kind = if role == Role::Sidecar { "sidecar" } else { "router" };
    let mut line = vec![kind.to_owned()];
    for (flag, value) in [
        ("--name", name),
        ("--namespace", namespace),
        ("--ip", address),
        ("--service-account", name),
        ("--labels", &format!("app={name}")),
        ("--interception-mode", "NONE"),
        ("--workers", "1"),
        ("--admin-addr", &format!("{address}:{}", api::port::ADMIN)),
        ("--status-addr", "127.0.0.1:0"),
        ("--ready-addr", &ready_address(address)),
        ("--prometheus-addr", "127.0.0.1:0"),
        ("--xds-address", &control_plane.addresses.secure_grpc),
        ("--root-cert", &control_plane.root_cert().display().to_string()),
        ("--token-file", &token.display().to_string()),
    ] {
        line.extend([flag.to_owned(), value.to_owned()]);
    }
    line.extend(more.iter().map(|word| (*word).to_owned()));
    line
}

/// The proxy of a workload as a process of its own, which ends with this value.
pub struct Process(Child);

impl Process {
    /// Starts it and waits until it serves.
    pub async fn start(control_plane: &ControlPlane, name: &str, namespace: &str, address: &str) -> Process {
        Self::start_writing(control_plane, Role::Sidecar, name, namespace, address, Stdio::inherit()).await
    }

    /// The same of any role, with its standard output, to which access logs go, elsewhere.
    pub async fn start_writing(
        control_plane: &ControlPlane,
        role: Role,
        name: &str,
        namespace: &str,
        address: &str,
        output: Stdio,
    ) -> Process {
        let line = line(control_plane, role, name, namespace, address, &["--log", "warn"]);
        let mut command = Command::new(program("proxy"));
        let process = Process(command.args(line).stdin(Stdio::null()).stdout(output).spawn().unwrap());
        let ready = ready_address(address);
        until(&format!("the proxy of {name}"), async || match ask(&ready, "x", "/healthz/ready").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
        process
    }

    /// From now on, the peak is that of what follows (proc(5), `/proc/PID/clear_refs`).
    pub fn forget_peak_memory(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.0.id()), "5").unwrap();
    }

    /// The most memory that it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the proxy of a workload and waits until it serves. `more` are further settings, as on its command line.
pub async fn start(
    control_plane: &ControlPlane,
    role: Role,
    name: &str,
    namespace: &str,
    address: &str,
    more: &[&str],
) -> Agent {
    let mut words = vec!["proxy".to_owned()];
    words.extend(line(control_plane, role, name, namespace, address, more));
    let (What::Sidecar(arguments) | What::Router(arguments)) = Cli::parse_from(words).command else {
        panic!("not a proxy")
    };
    let agent = Agent::start(arguments.settings(role), arguments.control_plane.clone()).await.unwrap();
    until(&format!("the proxy of {name}"), async || {
        let shared = agent.running.shared();
        match (shared.not_ready(), agent.stream.borrow().complete) {
            (None, true) => Ok(()),
            (reason, _) => Err((reason, agent.stream.borrow().clone(), agent.identity.borrow().error.clone())),
        }
    })
    .await;
    agent
}
