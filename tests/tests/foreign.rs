//! Our proxy under an xDS server of others, in both variants of the protocol; and gRPC clients of others under our control plane.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;

use api::node::Role;
use bytes::Bytes;
use clap::Parser;
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::control_plane::ControlPlane;
use mesh_tests::envoy::Agent as SdsAgent;
use mesh_tests::foreign::Foreign;
use mesh_tests::server::{ask, echo};
use mesh_tests::sidecar::{self, MESH_CONFIG, loopback, workload};
use mesh_tests::wait::until;
use proxy::agent::Agent;
use proxy::bootstrap::{Cli, Command};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Configuration as somebody writes it who has Envoy in mind and no mesh. `backend` is where requests go.
fn resources(version: &str, front: &str, backend: &str, regex: &str, with_listener: bool) -> String {
    let socket = |host: &str, port: u16| json!({"socket_address": {"address": host, "port_value": port}});
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "rds": {"route_config_name": "ways", "config_source": ads},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]
    });
    let mut all = vec![
        json!({"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "backend", "type": "EDS",
            "connect_timeout": "1s", "eds_cluster_config": {"eds_config": ads, "service_name": "instances"}}),
        json!({"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "instances",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(backend, 9090)}}]}]}),
        json!({"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "ways",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"safe_regex": {"regex": regex}}, "direct_response": {"status": 404}},
                {"match": {"prefix": "/"}, "route": {"cluster": "backend"}}]}]}),
    ];
    if with_listener {
        all.push(json!({"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "front",
            "address": socket(front, 8080),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}));
    }
    json!({"version": version, "resources": all}).to_string()
}

async fn under_a_foreign_server(variant: &str) {
    let (front, one, two) = (loopback(), loopback(), loopback());
    echo(&format!("{one}:9090")).await;
    let mut server = Foreign::start("ads.py", &[variant], &[]);
    let port = server.hear().await["port"].as_u64().unwrap();
    server.tell(&resources("1", &front, &one, "/closed.*", true)).await;
    let line = format!(
        "proxy router --name front --ip {front} --interception-mode NONE --workers 1 --admin-addr 127.0.0.1:0 --status-addr 127.0.0.1:0 --ready-addr 127.0.0.1:0 --prometheus-addr 127.0.0.1:0 --xds-plaintext --xds-address 127.0.0.1:{port}"
    );
    let Command::Router(arguments) = Cli::parse_from(line.split(' ')).command else { panic!("not a router") };
    let agent = Agent::start(arguments.settings(Role::Router), arguments.control_plane.clone()).await.unwrap();
    let to = format!("{front}:8080");
    let status = async |path: &str| ask(&to, "any.example", path).await.map(|(status, _)| status);
    until("the first answer", async || match status("/open").await {
        Ok(200) => Ok(()),
        other => Err((other, agent.stream.borrow().clone())),
    })
    .await;
    assert_eq!(status("/closed/1").await, Ok(404));

    // Another endpoint: nobody listens there yet.
    server.tell(&resources("2", &front, &two, "/closed.*", true)).await;
    until("the update", async || match status("/open").await {
        Ok(503) => Ok(()),
        other => Err(other),
    })
    .await;
    echo(&format!("{two}:9090")).await;
    until("the other endpoint", async || match status("/open").await {
        Ok(200) => Ok(()),
        other => Err(other),
    })
    .await;

    // What cannot be is refused with its reason, and what was stays.
    server.tell(&resources("3", &front, &two, "/closed(", true)).await;
    let refusal = loop {
        let heard = server.hear().await;
        if heard["refused"] != "" {
            break heard;
        }
    };
    assert_eq!(refusal["type"], "RouteConfiguration");
    let reason = refusal["refused"].as_str().unwrap();
    assert!(reason.contains("\"ways\"") && reason.contains("regex"), "{reason}");
    assert_eq!((status("/open").await, status("/closed/1").await), (Ok(200), Ok(404)));

    // A better one heals it.
    server.tell(&resources("4", &front, &two, "/shut.*", true)).await;
    until("the better one", async || match status("/shut").await {
        Ok(404) => Ok(()),
        other => Err(other),
    })
    .await;
    server.tell(&resources("5", &front, &two, "/shut.*", false)).await;
    until("the listener's end", async || match status("/open").await {
        Err(_) => Ok(()),
        other => Err(other),
    })
    .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_delta() {
    under_a_foreign_server("delta").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_only_state_of_the_world() {
    under_a_foreign_server("whole").await;
}

/// A gRPC server that answers with its name.
async fn named_server(address: String, name: &'static str) {
    let socket = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                let _ = request.into_body().collect().await;
                let mut message = vec![0];
                message.extend((name.len() as u32).to_be_bytes());
                message.extend(name.as_bytes());
                let mut end = HeaderMap::new();
                end.insert("grpc-status", "0".parse().unwrap());
                let frames = [Frame::data(Bytes::from(message)), Frame::trailers(end)].map(Ok::<_, Infallible>);
                let body = StreamBody::new(futures_util::stream::iter(frames));
                Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
}

const TARGET: &str = "user.shop.svc.cluster.local:8080";

/// Two versions of a service, and how many of ten requests the second gets.
fn shop(one: &str, two: &str, to_the_second: u32) -> String {
    let entry = |version: &str, address: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: user-{version}, namespace: shop}}\nspec: {{address: {address}, labels: {{app: user, version: {version}}}}}\n"
        )
    };
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: user, namespace: shop}}
spec: {{selector: {{app: user}}, ports: [{{name: grpc, port: 8080, targetPort: 8080}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: user, namespace: shop}}
spec:
  host: user
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: user, namespace: shop}}
spec:
  hosts: [user]
  http:
  - route:
    - {{destination: {{host: user, subset: v1}}, weight: {}}}
    - {{destination: {{host: user, subset: v2}}, weight: {}}}
{}{}",
        100 - to_the_second * 10,
        to_the_second * 10,
        entry("v1", one),
        entry("v2", two)
    )
}

/// The bootstrap of a client without a proxy, as Istio's agent writes it.
fn bootstrap(control_plane: &ControlPlane, certificates: Value) -> [(&'static str, String); 1] {
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": control_plane.addresses.grpc,
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"]
        }],
        "node": {
            "id": "sidecar~127.0.0.9~caller.shop~shop.svc.cluster.local",
            "locality": {},
            "metadata": {"GENERATOR": "grpc", "NAMESPACE": "shop", "INSTANCE_IPS": "127.0.0.9"}
        },
        "certificate_providers": certificates
    });
    let file = control_plane.path("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    [("GRPC_XDS_BOOTSTRAP", file.display().to_string())]
}

async fn a_client_without_a_proxy(script: &str) {
    let (one, two, three) = (loopback(), loopback(), loopback());
    for (address, name) in [(&one, "one"), (&two, "two"), (&three, "three")] {
        named_server(format!("{address}:8080"), name).await;
    }
    let control_plane = ControlPlane::start(&[("shop.yaml", &shop(&one, &two, 3))]).await;
    let environment = bootstrap(&control_plane, json!({}));
    let mut client = Foreign::start(script, &[TARGET], &environment);
    let mut calls = async |number: u64| -> Value {
        client.tell(&number.to_string()).await;
        client.hear().await
    };
    let counts = calls(200).await;
    let count = |counts: &Value, name: &str| counts[name].as_u64().unwrap_or_default();
    assert_eq!(count(&counts, "one") + count(&counts, "two"), 200, "{counts}");
    assert!((30..=95).contains(&count(&counts, "two")), "three of ten: {counts}");

    // Other weights and another endpoint are followed.
    control_plane.write("shop.yaml", &shop(&one, &three, 10));
    until("the change", async || {
        let counts = calls(10).await;
        if count(&counts, "three") == 10 { Ok(()) } else { Err(counts) }
    })
    .await;
    let rows = control_plane.proxies().await;
    let refused: Vec<_> = rows[0].types.iter().filter(|kind| !kind.nack.is_empty()).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_for_python_without_a_proxy() {
    a_client_without_a_proxy("client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_for_node_without_a_proxy() {
    a_client_without_a_proxy("client.js").await;
}

/// What `proxy sds` serves under a name, as PEM.
async fn secret(client: &mut SecretDiscoveryServiceClient<Channel>, name: &str) -> Result<Secret, Status> {
    let ask = DiscoveryRequest { resource_names: vec![name.to_owned()], ..DiscoveryRequest::default() };
    let answer = client.fetch_secrets(ask).await?.into_inner();
    Ok(api::xds::unpack(&answer.resources[0]).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_without_a_proxy_speaks_mutual_tls_to_a_sidecar() {
    let user = loopback();
    let objects = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: user, namespace: shop}}
spec: {{selector: {{app: user}}, ports: [{{name: grpc, port: 8080, targetPort: 8080}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: user, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: user}}}}
  ingress:
  - {{port: {{number: 8080, protocol: GRPC, name: grpc}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: user, namespace: shop}}
spec: {{host: user, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}}}
{}",
        workload("user", "shop", &user)
    );
    let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], MESH_CONFIG).await;
    named_server(format!("{user}:18080"), "behind a sidecar").await;
    let sidecar = sidecar::start(&control_plane, Role::Sidecar, "user", "shop", &user, &[]).await;

    // The client's certificate comes from the workload socket, as to any workload that has no proxy of ours.
    let caller = SdsAgent::start(&control_plane, "shop", "caller", &[]);
    let path = format!("unix://{}", caller.socket.display());
    let (own, roots) = until("the certificate", async || {
        let channel =
            Endpoint::from_shared(path.clone()).unwrap().connect().await.map_err(|error| error.to_string())?;
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let own = secret(&mut client, "default").await.map_err(|status| status.to_string())?;
        Ok::<_, String>((own, secret(&mut client, "ROOTCA").await.map_err(|status| status.to_string())?))
    })
    .await;
    let (Some(Type::TlsCertificate(own)), Some(Type::ValidationContext(roots))) = (own.r#type, roots.r#type) else {
        panic!("other secrets")
    };
    let write = |name: &str, source: Option<DataSource>| {
        let Some(Specifier::InlineBytes(pem)) = source.unwrap().specifier else { panic!("{name} is not inline") };
        let file = control_plane.path(name);
        std::fs::write(&file, pem).unwrap();
        file
    };
    let provider = json!({"default": {"plugin_name": "file_watcher", "config": {
        "certificate_file": write("caller.pem", own.certificate_chain),
        "private_key_file": write("caller.key", own.private_key),
        "ca_certificate_file": write("roots.pem", roots.trusted_ca),
        "refresh_interval": "1s"
    }}});
    let mut client = Foreign::start("client.py", &[TARGET, "tls"], &bootstrap(&control_plane, provider));
    client.tell("20").await;
    let counts = client.hear().await;
    assert_eq!(counts["behind a sidecar"], 20, "{counts}");
    // Who called is known to the sidecar; without a certificate nobody gets through.
    let mut plain = Foreign::start("client.py", &[TARGET], &bootstrap(&control_plane, json!({})));
    plain.tell("1").await;
    let refused = plain.hear().await;
    assert!(refused["behind a sidecar"].is_null(), "{refused}");
    let address = sidecar.running.prometheus_addr().to_string();
    let (_, metrics) = ask(&address, &address, "/stats/prometheus").await.unwrap();
    let principal = "source_principal=\"spiffe://cluster.local/ns/shop/sa/caller\"";
    assert!(
        metrics.lines().any(|line| line.starts_with("istio_requests_total{") && line.contains(principal)),
        "{metrics}"
    );
    sidecar.end().await;
}
