//! A real Envoy under our control plane: it must take every resource of the sample without a refusal.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_tests::control_plane::{ControlPlane, files_of};
use mesh_tests::sds;
use mesh_tests::wait::until;
use serde_json::{Value, json};
use tokio::process::Command;

/// Envoy's own configuration, as Istio's agent writes it, as far as it matters here.
fn bootstrap(
    control_plane: &ControlPlane,
    agent: SocketAddr,
    id: &str,
    namespace: &str,
    labels: Value,
    delta: bool,
) -> Value {
    let (host, port) = control_plane.addresses.grpc.rsplit_once(':').unwrap();
    let endpoint = |host: &str, port: u16| json!({"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}});
    let cluster = |name: &str, host: &str, port: u16| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint(host, port)]}]}
        })
    };
    json!({
        "node": {"id": id, "cluster": namespace, "metadata": {"NAMESPACE": namespace, "LABELS": labels, "INTERCEPTION_MODE": "NONE", "ISTIO_VERSION": "1.32.0"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {"api_type": if delta { "DELTA_GRPC" } else { "GRPC" }, "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"}
        },
        "static_resources": {"clusters": [cluster("xds-grpc", host, port.parse().unwrap()), cluster("sds-grpc", &agent.ip().to_string(), agent.port())]}
    })
}

async fn takes_everything(id: &str, namespace: &str, account: &str, labels: Value, delta: bool) {
    let envoy =
        std::env::var("ENVOY").expect("ENVOY names the program of a real Envoy; `cargo xtask test` installs it");
    let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/ecommerce");
    // Addresses of this run alone.
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let prefix = format!("127.{}.{}.", 80 + moment % 100, moment / 100 % 250);
    let files: Vec<(String, String)> = files_of(&sample.join("config"))
        .into_iter()
        .map(|(name, text)| (name, text.replace("127.77.0.", &prefix)))
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mesh_config = std::fs::read_to_string(sample.join("mesh-config.yaml")).unwrap();
    let control_plane = ControlPlane::start_with(&files, &mesh_config).await;

    let agent = sds::serve(&control_plane, namespace, account).await;
    let config = bootstrap(&control_plane, agent, &id.replace("127.77.0.", &prefix), namespace, labels, delta);
    let (file, log) = (control_plane.path("envoy.json"), control_plane.path("envoy.log"));
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(envoy);
    command.args(["--log-level", "warning", "--concurrency", "1", "--use-dynamic-base-id", "-c"]).arg(&file);
    let _child =
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).kill_on_drop(true).spawn().unwrap();

    let status = until("Envoy has taken everything", async || {
        let rows = control_plane.proxies().await;
        let Some(row) = rows.into_iter().next() else { return Err(std::fs::read_to_string(&log).unwrap()) };
        let nacked = row.types.iter().find(|kind| !kind.nack.is_empty());
        assert!(nacked.is_none(), "Envoy refused: {nacked:?}");
        let needed = ["CDS", "EDS", "LDS", "RDS"];
        let synced =
            row.types.iter().filter(|kind| needed.contains(&kind.kind.as_str()) && kind.state == "SYNCED").count();
        if synced == needed.len() { Ok(row) } else { Err(format!("{row:?}")) }
    })
    .await;
    let clusters = status.types.iter().find(|kind| kind.kind == "CDS").unwrap().resources;
    assert!(clusters > 5, "{status:?}");
    for refused in [
        "pilot_total_xds_rejects{type=\"cds\"}",
        "pilot_total_xds_rejects{type=\"lds\"}",
        "pilot_total_xds_rejects{type=\"rds\"}",
        "pilot_total_xds_rejects{type=\"eds\"}",
    ] {
        assert_eq!(control_plane.metric(refused).await, 0.0);
    }
}

const SIDECAR: &str = "sidecar~127.77.0.31~order-v1.ecommerce~ecommerce.svc.cluster.local";
const GATEWAY: &str = "router~127.77.0.10~ingressgateway.istio-system~istio-system.svc.cluster.local";

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_over_delta() {
    takes_everything(SIDECAR, "ecommerce", "order-service", json!({"app": "order-service"}), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_over_state_of_the_world() {
    takes_everything(SIDECAR, "ecommerce", "order-service", json!({"app": "order-service"}), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_over_delta() {
    takes_everything(GATEWAY, "istio-system", "gateway", json!({"istio": "ingressgateway"}), true).await;
}
