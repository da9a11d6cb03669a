//! The control plane as its clients and users see it: through its ports.

use std::time::Duration;

use api::problem::Code;
use api::xds::ResourceKind;
use mesh_tests::ads::{AdsClient, options, sidecar};
use mesh_tests::control_plane::{ControlPlane, get};
use mesh_tests::wait::until;
use proxy::identity;
use proxy::secret::{DEFAULT, Store};
use proxy::xds::resources::Reject;
use std::sync::Arc;
use tokio::sync::watch;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: user, namespace: shop}
spec: {selector: {app: user}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: user-1, namespace: shop}
spec: {address: 10.9.0.1, serviceAccount: user, labels: {app: user, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: caller, namespace: shop}
spec: {address: 10.9.0.2, serviceAccount: caller, labels: {app: caller}}
";

fn virtual_service(version: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: user, namespace: shop}}\nspec:\n  hosts: [user]\n  http:\n  - timeout: {version}s\n    route: [{{destination: {{host: user}}}}]\n"
    )
}

fn plaintext_client(control_plane: &ControlPlane) -> AdsClient {
    AdsClient::connect(
        sidecar("10.9.0.2", "caller", "shop"),
        options(&control_plane.addresses.grpc, true, None, None),
        |_| Vec::new(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_what_its_workload_needs_and_each_change() {
    let control_plane = ControlPlane::start_with(&[("services.yaml", SERVICES)], "proxyHttpPort: 15080").await;
    let mut client = plaintext_client(&control_plane);
    client.complete().await;
    assert!(
        client.names(ResourceKind::Cluster).contains(&"outbound|80||user.shop.svc.cluster.local".to_owned()),
        "{:?}",
        client.names(ResourceKind::Cluster)
    );
    assert!(
        client.names(ResourceKind::Route).contains(&"http_proxy".to_owned()),
        "{:?}",
        client.names(ResourceKind::Route)
    );

    let version =
        |client: &AdsClient| client.held.lock().unwrap().of(ResourceKind::Route)["http_proxy"].version.clone();
    let before = version(&client);
    control_plane.write("vs.yaml", &virtual_service(7));
    until("the changed route", async || if version(&client) == before { Err("still the old one") } else { Ok(()) })
        .await;

    // The same content again is no change: nothing is sent.
    let pushes = control_plane.metric("pilot_xds_pushes{type=\"rds\"}").await;
    let generation = control_plane.published.borrow().as_ref().unwrap().generation;
    control_plane.write("vs.yaml", &format!("# a comment\n{}", virtual_service(7)));
    control_plane.write("other.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: elsewhere}\n");
    until("the next generation", async || {
        if control_plane.published.borrow().as_ref().unwrap().generation > generation {
            Ok(())
        } else {
            Err("none yet")
        }
    })
    .await;
    assert_eq!(control_plane.metric("pilot_xds_pushes{type=\"rds\"}").await, pushes);

    let rows = control_plane.proxies().await;
    assert_eq!(rows[0].proxy, "caller.shop");
    let endpoints = control_plane.page("/debug/edsz?proxyID=caller.shop").await;
    let of_user = endpoints
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["cluster_name"] == "outbound|80||user.shop.svc.cluster.local");
    assert!(of_user.is_some_and(|one| one.to_string().contains("10.9.0.1")), "{endpoints}");
    let client_row = &control_plane.page("/debug/adsz").await["clients"][0];
    assert_eq!(client_row["connectionId"], "caller.shop");
    assert!(client_row["watches"]["type.googleapis.com/envoy.config.cluster.v3.Cluster"].is_u64(), "{client_row}");
    assert_eq!(control_plane.page("/debug/instancesz").await["caller.shop"], serde_json::Value::Array(Vec::new()));
    until("SYNCED everywhere", async || {
        let row = control_plane.proxies().await.remove(0);
        let mut asked = row.types.iter().filter(|kind| kind.kind != "SDS" && kind.kind != "NDS");
        let behind = asked.any(|kind| kind.state != "SYNCED");
        if behind { Err(row) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_kept_with_its_reason_and_gone_with_the_next_good_change() {
    let control_plane = ControlPlane::start_with(
        &[("services.yaml", SERVICES), ("vs.yaml", &virtual_service(3))],
        "proxyHttpPort: 15080",
    )
    .await;
    // A picky client: routes with a timeout of 13 s are bad luck.
    let picky = |set: &proxy::xds::resources::ResourceSet| {
        let unlucky = set
            .of(ResourceKind::Route)
            .iter()
            .filter(|(_, route)| api::json::to_json(&route.body).unwrap().to_string().contains("\"13s\""));
        unlucky
            .map(|(name, _)| Reject { kind: ResourceKind::Route, name: name.clone(), reason: "bad luck".into() })
            .collect()
    };
    let mut client = AdsClient::connect(
        sidecar("10.9.0.2", "caller", "shop"),
        options(&control_plane.addresses.grpc, true, None, None),
        picky,
    );
    client.complete().await;
    control_plane.write("vs.yaml", &virtual_service(13));
    let routes =
        async || control_plane.proxies().await.remove(0).types.into_iter().find(|kind| kind.kind == "RDS").unwrap();
    let refused =
        until("the refusal", async || Some(routes().await).filter(|kind| kind.state == "NACKED").ok_or("none yet"))
            .await;
    assert!(refused.nack.contains("bad luck") && refused.nack.contains("http_proxy"), "{refused:?}");
    let status = control_plane.page("/debug/push_status").await;
    let told = &status["ProxyStatus"]["pilot_total_xds_rejects"]["caller.shop"];
    assert!(told["message"].as_str().unwrap().contains("bad luck"), "{status}");
    assert_eq!(control_plane.metric("pilot_total_xds_rejects{type=\"rds\"}").await, 1.0);
    control_plane.write("vs.yaml", &virtual_service(14));
    until("the end of the refusal", async || {
        Some(routes().await).filter(|kind| kind.state == "SYNCED").ok_or("still refused")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tls_port_serves_only_who_proves_to_be_whom_it_claims() {
    let control_plane = ControlPlane::start(&[("services.yaml", SERVICES)]).await;
    let (address, root) = (control_plane.addresses.secure_grpc.clone(), Some(control_plane.root_cert()));
    let token_file = control_plane.path("token");

    let nobody =
        AdsClient::connect(sidecar("10.9.0.2", "caller", "shop"), options(&address, false, root.clone(), None), |_| {
            Vec::new()
        });
    let error = until("a refusal", async || {
        Some(nobody.state.borrow().error.clone()).filter(|error| !error.is_empty()).ok_or("none yet")
    })
    .await;
    assert!(error.contains("Unauthenticated"), "{error}");

    std::fs::write(&token_file, control_plane.token("elsewhere", "caller")).unwrap();
    let liar = AdsClient::connect(
        sidecar("10.9.0.2", "caller", "shop"),
        options(&address, false, root.clone(), Some(token_file.clone())),
        |_| Vec::new(),
    );
    let error = until("a refusal", async || {
        Some(liar.state.borrow().error.clone()).filter(|error| !error.is_empty()).ok_or("none yet")
    })
    .await;
    assert!(error.contains("PermissionDenied") && error.contains("elsewhere"), "{error}");

    std::fs::write(&token_file, control_plane.token("shop", "caller")).unwrap();
    let mut honest = AdsClient::connect(
        sidecar("10.9.0.2", "caller", "shop"),
        options(&address, false, root, Some(token_file)),
        |_| Vec::new(),
    );
    honest.complete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_issued_renewed_by_themselves_and_survive_a_restart() {
    let control_plane = ControlPlane::start(&[]).await;
    let token_file = control_plane.path("token");
    std::fs::write(&token_file, control_plane.token("shop", "user")).unwrap();
    let mut wishes =
        options(&control_plane.addresses.secure_grpc, false, Some(control_plane.root_cert()), Some(token_file.clone()));
    // Half of a life of 2 s (and 2 min of back-dating, which is over already) is due at once: renewal is fast.
    wishes.secret_ttl = Duration::from_secs(2);
    let (store, (sender, mut state)) = (Arc::new(Store::default()), watch::channel(identity::State::default()));
    let task = tokio::spawn(identity::run(wishes, store.clone(), sender));
    let first = state.wait_for(|state| state.current.is_some()).await.unwrap().current.clone().unwrap();
    assert_eq!(first.name, "spiffe://cluster.local/ns/shop/sa/user");
    // The token is used once; renewals are proven by the certificate itself.
    std::fs::write(&token_file, "no longer a token").unwrap();
    let generation = store.load().generation;
    until("a renewed certificate", async || {
        if store.load().generation > generation { Ok(()) } else { Err(state.borrow().error.clone()) }
    })
    .await;
    assert!(store.load().certificate(DEFAULT).is_some());
    task.abort();

    let before = std::fs::read(control_plane.root_cert()).unwrap();
    let control_plane = control_plane.restart().await;
    assert_eq!(std::fs::read(control_plane.root_cert()).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_answer_and_wrong_questions_get_a_sentence() {
    let control_plane = ControlPlane::start(&[("services.yaml", SERVICES), ("broken.yaml", "a: [1\n")]).await;
    assert_eq!(get(&control_plane.addresses.http, "/ready").await, (200, "ready\n".to_owned()));
    for path in control_plane.page("/debug/list").await.as_array().unwrap() {
        let (status, body) = get(&control_plane.addresses.http, path.as_str().unwrap()).await;
        assert!(status == 200 || body.contains("proxyID"), "{path}: {status} {body}");
    }
    let (status, body) = get(&control_plane.addresses.http, "/debug/config_dump?proxyID=nobody.nowhere").await;
    assert_eq!(status, 404);
    assert!(body.contains("nobody.nowhere"), "{body}");
    assert_eq!(get(&control_plane.addresses.http, "/debug/nonsense").await.0, 404);
    let (status, body) = get(&control_plane.addresses.http, "/debug/telemetryz").await;
    assert!(status == 404 && body.contains("no effect yet"), "{body}");
    let mesh = control_plane.page("/debug/mesh").await;
    assert_eq!((&mesh["connectTimeout"], &mesh["trustDomain"]), (&"10s".into(), &"cluster.local".into()));
    let kinds = control_plane.page("/debug/resourcesz").await;
    assert!(kinds.as_array().unwrap().iter().any(|kind| kind["kind"] == "VirtualService"), "{kinds}");
    assert_eq!(control_plane.page("/debug/inject").await["sidecar"], "built in");
    let scopes = control_plane.page("/debug/logging").await;
    assert!(scopes.as_array().unwrap().iter().any(|scope| scope["name"] == "ads"), "{scopes}");
    let problems = control_plane.problems();
    assert!(
        problems.iter().any(|problem| problem.code == Code::NotYaml && problem.origin.file == "broken.yaml"),
        "{problems:?}"
    );
    let services = control_plane.page("/debug/registryz").await.to_string();
    assert!(services.contains("user.shop.svc.cluster.local"), "{services}");
    assert!(get(&control_plane.addresses.monitoring, "/metrics").await.1.contains("pilot_services 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_takes_the_place_of_the_settings_and_a_bad_one_changes_nothing() {
    let control_plane = ControlPlane::start_with(&[("services.yaml", SERVICES)], "proxyHttpPort: 15080").await;
    let map = |port: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    proxyHttpPort: {port}\n"
        )
    };
    let port = || control_plane.published.borrow().as_ref().unwrap().snapshot.mesh().proxy_http_port;
    assert_eq!(port(), 15080);
    control_plane.write("mesh.yaml", &map("15081"));
    until("the new port", async || if port() == 15081 { Ok(()) } else { Err(port()) }).await;
    control_plane.write("mesh.yaml", &map("none"));
    let told = || control_plane.problems().into_iter().find(|problem| problem.field == "data.mesh.proxyHttpPort");
    until("the problem", async || told().ok_or("none yet")).await;
    assert_eq!(port(), 15081);
    std::fs::remove_file(control_plane.path("config").join("mesh.yaml")).unwrap();
    until("the old port", async || if port() == 15080 { Ok(()) } else { Err(port()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_pages_are_for_callers_on_the_own_host_and_readiness_is_for_all() {
    // Any address of this machine that is not loopback plays the stranger.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let Ok(()) = probe.connect("192.0.2.1:9") else {
        // A machine without any route has no strangers either.
        return;
    };
    let stranger = probe.local_addr().unwrap().ip();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    let config = folder.path().display().to_string();
    let any = format!("{stranger}:0");
    let line = [
        "meshd",
        "--config-dir",
        &config,
        "--state-dir",
        &state,
        "--grpc-addr",
        "",
        "--secure-grpc-addr",
        "",
        "--https-addr",
        "",
        "--monitoring-addr",
        "",
        "--http-addr",
        &any,
    ];
    let mut running = meshd::app::Running::start(clap::Parser::parse_from(line)).await.unwrap();
    running.ready().await.unwrap();
    let address = running.addresses.http.clone();
    assert_eq!(get(&address, "/ready").await.0, 200);
    let (status, body) = get(&address, "/debug/configz").await;
    assert_eq!(status, 403);
    assert!(body.contains("own host"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_leaves_is_not_ready_and_serves_until_its_callers_have_gone() {
    let mut control_plane = ControlPlane::start_that_leaves(&[("services.yaml", SERVICES)], 6_000).await;
    let mut client = plaintext_client(&control_plane);
    client.complete().await;
    let address = control_plane.addresses.http.clone();
    assert_eq!(get(&address, "/ready").await.0, 200);
    control_plane.tell_to_end();
    until("that nobody new is sent here", async || match get(&address, "/ready").await {
        (503, text) if text.contains("leaving") => Ok(()),
        other => Err(other),
    })
    .await;

    // Whoever has not heard of it yet is served, and whoever is here gets what changes.
    let mut late = plaintext_client(&control_plane);
    late.complete().await;
    control_plane.write("services.yaml", &SERVICES.replace("port: 80,", "port: 81,"));
    until("a change", async || {
        let names = client.names(ResourceKind::Cluster);
        if names.iter().any(|name| name.starts_with("outbound|81|")) { Ok(()) } else { Err(names) }
    })
    .await;
    assert!(client.state.borrow().connected, "nobody is sent away before others are found");

    let gone = |client: &AdsClient| if client.state.borrow().connected { Err("connected") } else { Ok(()) };
    until("the end of the streams", async || gone(&client).and(gone(&late))).await;
    control_plane.end().await;
}
