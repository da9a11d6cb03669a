//! A real Envoy under our control plane: it must take every resource of the sample without a refusal.

use std::time::{SystemTime, UNIX_EPOCH};

use mesh_tests::control_plane::{ControlPlane, files_of};
use mesh_tests::envoy::{Envoy, Workload};
use mesh_tests::wait::until;
use serde_json::{Value, json};

async fn takes_everything(id: &str, namespace: &str, account: &str, labels: Value, delta: bool) {
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

    let workload = Workload {
        node_id: id.replace("127.77.0.", &prefix),
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        labels,
    };
    let envoy = Envoy::start(&control_plane, &workload, delta);

    let status = until("Envoy has taken everything", async || {
        let rows = control_plane.proxies().await;
        let Some(row) = rows.into_iter().next() else { return Err(std::fs::read_to_string(&envoy.log).unwrap()) };
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
