//! A real Envoy as a workload's proxy, with `proxy sds` beside it in the place of Istio's agent.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::network::program;

/// Who the proxy is.
#[derive(Clone, Debug)]
pub struct Workload {
    /// `TYPE~IP~NAME.NAMESPACE~DOMAIN`.
    pub node_id: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub account: String,
    /// Labels.
    pub labels: Value,
}

/// `proxy sds` for a workload; it ends with this value.
pub struct Agent {
    process: Child,
    /// Where it serves.
    pub socket: PathBuf,
}

impl Agent {
    /// Starts it. `more` are further settings.
    pub fn start(control_plane: &ControlPlane, namespace: &str, account: &str, more: &[&str]) -> Agent {
        let path = |what: &str| control_plane.path(&format!("{namespace}-{account}-{what}"));
        let (token, socket) = (path("token"), path("sds"));
        std::fs::write(&token, control_plane.token(namespace, account)).unwrap();
        let process = Command::new(program("proxy"))
            .args(["sds", "--log", "warn", "--xds-address", &control_plane.addresses.secure_grpc])
            .arg("--root-cert")
            .arg(control_plane.root_cert())
            .arg("--token-file")
            .arg(&token)
            .arg("--socket")
            .arg(&socket)
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Agent { process, socket }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An Envoy and its agent; they end with this value.
pub struct Envoy {
    envoy: Child,
    _agent: Agent,
    /// What it says of itself.
    pub log: PathBuf,
    /// What it writes to its standard output: access logs.
    pub output: PathBuf,
    admin: PathBuf,
}

impl Envoy {
    /// Starts both. The stream to the control plane has TLS and the workload's token.
    pub fn start(control_plane: &ControlPlane, workload: &Workload, delta: bool) -> Envoy {
        let program_file =
            std::env::var("ENVOY").expect("ENVOY names the program of a real Envoy; `cargo xtask test` installs it");
        let Workload { namespace, account, .. } = workload;
        let agent = Agent::start(control_plane, namespace, account, &[]);
        let path = |what: &str| control_plane.path(&format!("{namespace}-{account}-{what}"));
        let (log, output, admin, file) = (path("envoy.log"), path("envoy.out"), path("admin"), path("envoy.json"));
        std::fs::write(&file, bootstrap(control_plane, workload, &agent.socket, delta).to_string()).unwrap();
        let envoy = Command::new(program_file)
            .args(["--log-level", "warning", "--concurrency", "1", "--use-dynamic-base-id"])
            .args(["--file-flush-interval-msec", "20", "--drain-time-s", "1", "--admin-address-path"])
            .arg(&admin)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&output).unwrap())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Envoy { envoy, _agent: agent, log, output, admin }
    }

    /// Where its admin interface listens, once it does.
    pub fn admin(&self) -> Option<String> {
        std::fs::read_to_string(&self.admin).ok().filter(|address| !address.is_empty())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
    }
}

/// Envoy's own configuration, as Istio's agent writes it, as far as it matters here.
fn bootstrap(control_plane: &ControlPlane, workload: &Workload, socket: &std::path::Path, delta: bool) -> Value {
    let (host, port) = control_plane.addresses.secure_grpc.rsplit_once(':').unwrap();
    let cluster = |name: &str, address: Value| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
        })
    };
    let mut control =
        cluster("xds-grpc", json!({"socket_address": {"address": host, "port_value": port.parse::<u16>().unwrap()}}));
    control["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "istiod.istio-system.svc",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {"trusted_ca": {"filename": control_plane.root_cert()}}
        }
    }});
    let token = control_plane.token(&workload.namespace, &workload.account);
    let Workload { node_id, namespace, account, labels } = workload;
    json!({
        "node": {"id": node_id, "cluster": format!("{account}.{namespace}"), "metadata": {
            "NAMESPACE": namespace, "LABELS": labels, "INTERCEPTION_MODE": "NONE", "ISTIO_VERSION": "1.32.0",
            "SERVICE_ACCOUNT": account}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": if delta { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "grpc_services": [{
                    "envoy_grpc": {"cluster_name": "xds-grpc"},
                    "initial_metadata": [{"key": "authorization", "value": format!("Bearer {token}")}]
                }]
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"}
        },
        "static_resources": {"clusters": [control, cluster("sds-grpc", json!({"pipe": {"path": socket}}))]}
    })
}
