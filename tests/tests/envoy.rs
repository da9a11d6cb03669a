//! A real Envoy under our control plane: it must take every resource of the sample without a refusal. And the workload's
//! certificate, which `proxy sds` serves to it.

use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use mesh_tests::control_plane::{ControlPlane, files_of};
use mesh_tests::envoy::{Agent, Envoy, Workload};
use mesh_tests::wait::{PATIENCE, until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;

async fn takes_everything(id: &str, namespace: &str, account: &str, labels: Value, delta: bool) {
    let sample = std::path::Path::new("../examples/ecommerce");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_pushed_and_other_secrets_are_refused() {
    let control_plane = ControlPlane::start(&[]).await;
    let agent = Agent::start(&control_plane, "shop", "user", &["--secret-ttl", "2s"]);
    let mut client = until("the socket", async || {
        let endpoint = Endpoint::from_shared(format!("unix://{}", agent.socket.display())).unwrap();
        endpoint.connect().await.map(SecretDiscoveryServiceClient::new)
    })
    .await;
    let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the key is for the owner alone");
    let ask = |name: &str| DiscoveryRequest { resource_names: vec![name.to_owned()], ..DiscoveryRequest::default() };
    let leaf = |response: &DiscoveryResponse| {
        let secret: Secret = api::xds::unpack(&response.resources[0]).unwrap();
        assert_eq!(secret.name, "default");
        let Some(Type::TlsCertificate(certificate)) = secret.r#type else { panic!("not a certificate") };
        let Some(Specifier::InlineBytes(pem)) = certificate.certificate_chain.unwrap().specifier else {
            panic!("not inline")
        };
        proxy::identity::rotate::read_leaf(&CertificateDer::from_pem_slice(&pem).unwrap()).unwrap()
    };

    let (send, requests) = tokio::sync::mpsc::channel(4);
    send.send(ask("default")).await.unwrap();
    let mut stream = client.stream_secrets(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut times = Vec::new();
    for _ in 0..3 {
        let response = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        let (valid, name) = leaf(&response);
        assert_eq!(name, "spiffe://cluster.local/ns/shop/sa/user");
        times.push((valid.not_after, response.version_info.clone()));
        let taken =
            DiscoveryRequest { response_nonce: response.nonce, version_info: response.version_info, ..ask("default") };
        send.send(taken).await.unwrap();
    }
    assert!(times.is_sorted_by(|one, two| one.0 <= two.0 && one.1 != two.1), "each is a new one: {times:?}");

    let roots = client.fetch_secrets(ask("ROOTCA")).await.unwrap().into_inner();
    let roots: Secret = api::xds::unpack(&roots.resources[0]).unwrap();
    assert!(matches!(roots.r#type, Some(Type::ValidationContext(_))), "{}", roots.name);
    let delta = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["default".into(), "ROOTCA".into()],
        ..DeltaDiscoveryRequest::default()
    };
    let mut both = client.delta_secrets(tokio_stream::iter([delta])).await.unwrap().into_inner();
    let both = tokio::time::timeout(PATIENCE, both.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(both.resources.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["default", "ROOTCA"]);
    let refusal = client.fetch_secrets(ask("kubernetes://edge")).await.unwrap_err();
    assert!(refusal.code() == Code::NotFound && refusal.message().contains("kubernetes://edge"), "{refusal}");
}
