//! Proxies in this process, each on a loopback address of its own, under a control plane in this process.

use api::node::Role;
use clap::Parser;
use proxy::agent::Agent;
use proxy::bootstrap::{Cli, Command};
use rand::RngExt;

use crate::control_plane::ControlPlane;
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

/// Starts the proxy of a workload and waits until it serves. `more` are further settings, as on its command line.
pub async fn start(
    control_plane: &ControlPlane,
    role: Role,
    name: &str,
    namespace: &str,
    address: &str,
    more: &[&str],
) -> Agent {
    let token = control_plane.path(&format!("token-{namespace}-{name}"));
    std::fs::write(&token, control_plane.token(namespace, name)).unwrap();
    let kind = if role == Role::Sidecar { "sidecar" } else { "router" };
    let mut line = vec!["proxy".to_owned(), kind.to_owned()];
    for (flag, value) in [
        ("--name", name),
        ("--namespace", namespace),
        ("--ip", address),
        ("--service-account", name),
        ("--labels", &format!("app={name}")),
        ("--interception-mode", "NONE"),
        ("--workers", "1"),
        ("--admin-addr", "127.0.0.1:0"),
        ("--status-addr", "127.0.0.1:0"),
        ("--ready-addr", "127.0.0.1:0"),
        ("--prometheus-addr", "127.0.0.1:0"),
        ("--xds-address", &control_plane.addresses.secure_grpc),
        ("--root-cert", &control_plane.root_cert().display().to_string()),
        ("--token-file", &token.display().to_string()),
    ] {
        line.extend([flag.to_owned(), value.to_owned()]);
    }
    line.extend(more.iter().map(|word| (*word).to_owned()));
    let (Command::Sidecar(arguments) | Command::Router(arguments)) = Cli::parse_from(line).command else {
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
