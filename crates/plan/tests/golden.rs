//! Objects and a proxy in, resources out: `tests/golden/CASE/{input.yaml, proxy.yaml}` to `resources.json`.
//! `include.txt` names further files, from the repository's root; objects without a namespace are of `ecommerce` there.
//! `UPDATE_GOLDEN=1` rewrites the expected files. One test shows them to a real Envoy, which `ENVOY=path` names.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use api::mesh_config::MeshConfig;
use api::problem::Severity;
use api::xds::{ResourceKind, core};
use plan::{Change, ProxyIdentity, Scope, Snapshot, World};
use serde_json::{Map, Value, json};

/// The kinds that every proxy asks for.
const KINDS: [(&str, ResourceKind); 5] = [
    ("clusters", ResourceKind::Cluster),
    ("endpoints", ResourceKind::Endpoint),
    ("listeners", ResourceKind::Listener),
    ("routes", ResourceKind::Route),
    ("secrets", ResourceKind::Secret),
];

fn folder() -> PathBuf {
    // Tests run in their package's folder (`cargo test`); what the compiler was told may be another clone.
    PathBuf::from("../../tests/golden")
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("input.yaml").exists())
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

/// A world of these files, with objects in this order.
fn world(case: &Path, order: impl Fn(&mut Vec<api::object::Object>)) -> World {
    let mesh = std::fs::read_to_string(case.join("mesh.yaml")).unwrap_or_default();
    let (mesh, problems) = MeshConfig::parse(&mesh, "mesh.yaml");
    assert!(problems.is_empty(), "{problems:?}");
    let text = std::fs::read(case.join("input.yaml")).unwrap();
    let decoded = api::decode::documents(&text, "input.yaml", "default");
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    let mut objects = decoded.objects;
    for file in std::fs::read_to_string(case.join("include.txt")).unwrap_or_default().lines() {
        let text = std::fs::read(folder().join("../..").join(file)).unwrap();
        let decoded = api::decode::documents(&text, file, "ecommerce");
        assert!(decoded.problems.iter().all(|one| one.severity < Severity::Error), "{:?}", decoded.problems);
        objects.extend(decoded.objects);
    }
    order(&mut objects);
    let mut world = World::new(mesh, "cluster.local");
    for object in objects {
        assert!(world.apply(Change::Upsert(Box::new(object))));
    }
    world
}

fn proxy(case: &Path) -> ProxyIdentity {
    let text = std::fs::read_to_string(case.join("proxy.yaml")).unwrap();
    let written: Value = serde_saphyr::from_str(&text).unwrap();
    let extension = |name: &Value| core::Extension { name: name.as_str().unwrap().to_owned(), ..Default::default() };
    let node = core::Node {
        id: written["id"].as_str().unwrap().to_owned(),
        metadata: Some(api::xds::json_to_struct(&written["metadata"])),
        extensions: written["extensions"].as_array().into_iter().flatten().map(extension).collect(),
        ..core::Node::default()
    };
    let verified = written["verified"].as_str().map(|text| text.parse().unwrap());
    ProxyIdentity::of(&node, verified.as_ref()).unwrap()
}

/// All resources as JSON, and the problems that the plan tells.
fn resources(case: &Path, scope: &Scope, snapshot: &Snapshot) -> Value {
    let mut all = Map::new();
    for (name, kind) in KINDS {
        let list: Vec<Value> =
            scope.generate(kind).iter().map(|one| api::json::to_json(&one.body()).unwrap()).collect();
        all.insert(name.into(), Value::Array(list));
    }
    // Nobody else asks for them.
    if proxy(case).dns_capture {
        let of = |one: &std::sync::Arc<plan::Named>| api::json::to_json(&one.body()).unwrap();
        all.insert("names".into(), scope.generate(ResourceKind::NameTable).iter().map(of).collect());
    }
    for text in snapshot.problems().iter().chain(scope.problems()).map(|problem| problem.message.as_str()) {
        assert!(text.starts_with(char::is_uppercase) && text.ends_with(['.', '?']), "{text:?} is not a sentence");
    }
    let problems: Vec<String> = snapshot.problems().iter().chain(scope.problems()).map(ToString::to_string).collect();
    all.insert("problems".into(), json!(problems));
    Value::Object(all)
}

fn check(case: &Path) -> Result<(), String> {
    let snapshot = Snapshot::build(&world(case, |_| {}), None);
    let scope = Scope::of(&snapshot, &proxy(case));
    let text = serde_json::to_string_pretty(&resources(case, &scope, &snapshot)).unwrap() + "\n";
    let file = case.join("resources.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    if expected == text {
        return Ok(());
    }
    let place = expected.lines().zip(text.lines()).position(|(one, two)| one != two).unwrap_or(0);
    let excerpt = |text: &str| text.lines().skip(place.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n");
    Err(format!(
        "{} differs at line {}:\nexpected\n{}\nfound\n{}",
        file.display(),
        place + 1,
        excerpt(&expected),
        excerpt(&text)
    ))
}

#[test]
fn resources_are_as_expected() {
    let wrong: Vec<String> = cases().iter().filter_map(|case| check(case).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn the_order_of_objects_does_not_matter() {
    for case in cases() {
        let one = Snapshot::build(&world(&case, |_| {}), None);
        let two = Snapshot::build(&world(&case, |objects| objects.reverse()), Some(&one));
        let (one, two) = (Scope::of(&one, &proxy(&case)), Scope::of(&two, &proxy(&case)));
        assert_eq!(one.key(), two.key(), "{}", case.display());
        for (_, kind) in KINDS {
            assert_eq!(one.generate(kind), two.generate(kind), "{}", case.display());
        }
    }
}

#[test]
fn what_is_asked_by_name_is_what_all_has() {
    for case in cases() {
        let snapshot = Snapshot::build(&world(&case, |_| {}), None);
        let scope = Scope::of(&snapshot, &proxy(&case));
        for (_, kind) in KINDS {
            let all = scope.generate(kind);
            for one in all.iter() {
                assert_eq!(all.get(&one.name), Some(one), "{}", case.display());
            }
        }
    }
}

/// Everything in one static bootstrap; routes stand in listeners of their own.
fn bootstrap(resources: &Value) -> Value {
    let mut listeners: Vec<Value> = resources["listeners"].as_array().unwrap().clone();
    for (index, routes) in resources["routes"].as_array().unwrap().iter().enumerate() {
        let mut routes = routes.clone();
        routes.as_object_mut().unwrap().remove("@type");
        listeners.push(json!({
            "name": format!("routes-{index}"),
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 20000 + index}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "x", "route_config": routes,
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
            }}]}],
        }));
    }
    let mut clusters: Vec<Value> = resources["clusters"].as_array().unwrap().clone();
    for name in ["sds-grpc", "xds-grpc"] {
        clusters.push(json!({"name": name, "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}}]}]}}));
    }
    for one in listeners.iter_mut().chain(&mut clusters) {
        one.as_object_mut().unwrap().remove("@type");
    }
    json!({
        "node": {"id": "a", "cluster": "a"},
        "dynamic_resources": {"ads_config": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

#[test]
#[allow(clippy::disallowed_methods)]
fn envoy_accepts_all_resources() {
    let envoy = std::env::var("ENVOY").unwrap();
    let mut wrong = Vec::new();
    for case in cases() {
        let snapshot = Snapshot::build(&world(&case, |_| {}), None);
        let mut proxy = proxy(&case);
        if proxy.proxyless {
            // Not for Envoy: gRPC itself takes these in `tests/tests/foreign.rs`.
            continue;
        }
        // Filters of Istio's Envoy are not in a stock one.
        proxy.extensions = Default::default();
        let scope = Scope::of(&snapshot, &proxy);
        let file = std::env::temp_dir().join(format!("golden-{}.json", case.file_name().unwrap().to_str().unwrap()));
        std::fs::write(&file, bootstrap(&resources(&case, &scope, &snapshot)).to_string()).unwrap();
        let output = std::process::Command::new(&envoy)
            .args(["--mode", "validate", "-l", "error", "-c"])
            .arg(&file)
            .output()
            .unwrap();
        if !output.status.success() {
            wrong.push(format!(
                "{}: {}{}",
                case.display(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
