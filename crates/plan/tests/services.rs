//! Services of every kind, as proxies see them: where they are called and who answers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use api::mesh_config::MeshConfig;
use api::xds::{ResourceKind, core};
use plan::{Change, ProxyIdentity, Scope, Snapshot, World};
use serde_json::{Value, json};

fn world(text: &str) -> World {
    let mut world = World::new(MeshConfig::default(), "cluster.local");
    apply(&mut world, text);
    world
}

/// Says whether anything changed.
fn apply(world: &mut World, text: &str) -> bool {
    let decoded = api::decode::documents(text.as_bytes(), "test.yaml", "shop");
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    let mut changed = false;
    for object in decoded.objects {
        changed |= world.apply(Change::Upsert(Box::new(object)));
    }
    changed
}

fn snapshot(text: &str) -> Arc<Snapshot> {
    Snapshot::build(&world(text), None)
}

/// A proxy of namespace `shop` at these addresses, with this metadata.
fn proxy(addresses: &str, mut metadata: Value) -> ProxyIdentity {
    let first = addresses.split(',').next().unwrap();
    metadata["INSTANCE_IPS"] = json!(addresses);
    let node = core::Node {
        id: format!("sidecar~{first}~web.shop~shop.svc.cluster.local"),
        metadata: Some(api::xds::json_to_struct(&metadata)),
        ..core::Node::default()
    };
    ProxyIdentity::of(&node, None).unwrap()
}

fn resources(snapshot: &Arc<Snapshot>, proxy: &ProxyIdentity, kind: ResourceKind) -> Vec<Value> {
    Scope::of(snapshot, proxy).generate(kind).iter().map(|one| api::json::to_json(&one.body).unwrap()).collect()
}

fn listeners(snapshot: &Arc<Snapshot>, proxy: &ProxyIdentity) -> Vec<String> {
    let all = resources(snapshot, proxy, ResourceKind::Listener);
    let names = all.iter().map(|listener| listener["name"].as_str().unwrap().to_owned());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with("virtual")).collect();
    names.sort();
    names
}

/// What the mesh gave to hosts, as `host address`.
fn allocated(snapshot: &Snapshot) -> Vec<String> {
    let one = |(host, addresses): &(String, Vec<std::net::IpAddr>)| {
        addresses.iter().map(|address| format!("{host} {address}")).collect::<Vec<_>>()
    };
    snapshot.allocated().flat_map(|(_, hosts)| hosts.iter().flat_map(one)).collect()
}

fn entry(name: &str, extra: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}{extra}}}\nspec: {{{spec}, ports: [{{number: 5432, name: tcp, protocol: TCP}}]}}\n"
    )
}

#[test]
fn hosts_without_an_address_get_one_of_each_family() {
    let text = entry(
        "db",
        "",
        "hosts: [db.example.com, db2.example.com, '*.example.org'], resolution: DNS, endpoints: [{address: db.internal}]",
    );
    let snapshot = snapshot(&text);
    let given = allocated(&snapshot);
    assert_eq!(given.len(), 4, "one of each family for each host that is no wildcard: {given:?}");
    assert!(
        given[0].starts_with("db.example.com 240.240.") && given[1].starts_with("db.example.com 2001:2::"),
        "{given:?}"
    );
    assert!(given[2].starts_with("db2.example.com 240.240.") && given[0][15..] != given[2][16..], "{given:?}");
    assert_eq!(given, allocated(&Snapshot::build(&world(&text), None)), "the same in every replica");

    // Who answers DNS listens there, in the families that he has; for all others the names alone count.
    let capturing = json!({"DNS_CAPTURE": "true"});
    let address = |of: &str| of.split(' ').nth(1).unwrap().to_owned() + "_5432";
    let mut expected = [address(&given[0]), address(&given[2])];
    expected.sort();
    let mut heard = listeners(&snapshot, &proxy("10.1.0.9", capturing.clone()));
    heard.retain(|name| name != "0.0.0.0_5432");
    assert_eq!(heard, expected);
    let dual = listeners(&snapshot, &proxy("10.1.0.9,fd00::9", capturing));
    assert!(dual.contains(&address(&given[1])) && dual.contains(&address(&given[0])), "{dual:?}");
    assert_eq!(listeners(&snapshot, &proxy("10.1.0.9", json!({}))), ["0.0.0.0_5432"]);
}

#[test]
fn addresses_are_given_only_where_they_can_stand_for_the_host() {
    let entries = [
        entry("own", "", "hosts: [a.example.com], addresses: [10.9.0.1], resolution: DNS"),
        entry("none", "", "hosts: [b.example.com], resolution: NONE"),
        entry(
            "out",
            ", labels: {networking.istio.io/enable-autoallocate-ip: 'False'}",
            "hosts: [c.example.com], resolution: DNS",
        ),
        entry("wild", "", "hosts: ['*.example.com'], resolution: STATIC, endpoints: [{address: 10.2.0.1}]"),
    ];
    assert_eq!(allocated(&snapshot(&entries.concat())), [""; 0]);
}

#[test]
fn what_the_status_says_counts_and_of_two_the_older_keeps_it() {
    let status = |of: &str, host: &str| format!("status: {{addresses: [{{value: {of}, host: {host}}}]}}\n");
    let spec = |host: &str| format!("hosts: [{host}], resolution: DNS");
    let at = |year: &str| format!(", creationTimestamp: '{year}-01-01T00:00:00Z'");
    let young = entry("a", &at("2026"), &spec("a.example.com")) + &status("240.240.7.7", "a.example.com");
    let old = entry("b", &at("2025"), &spec("b.example.com")) + &status("240.240.7.7", "b.example.com");
    // An address that somebody wrote down is taken, too.
    let written = entry("c", "", "hosts: [c.example.com], addresses: [240.240.8.8], resolution: DNS");
    let theirs = entry("d", "", &spec("d.example.com")) + &status("240.240.8.8", "d.example.com");
    let found = allocated(&snapshot(&[young.clone(), old, written, theirs].concat()));
    assert!(found.contains(&"b.example.com 240.240.7.7".to_owned()), "{found:?}");
    let others = |host: &str| found.iter().filter(|one| one.starts_with(host)).count();
    assert_eq!((others("a."), others("b."), others("c."), others("d.")), (2, 1, 0, 2), "{found:?}");
    assert!(!found.iter().any(|one| *one == "a.example.com 240.240.7.7" || one.ends_with(" 240.240.8.8")), "{found:?}");

    // Written anew, it is a change; of the rest of the status nothing is.
    let mut world = world(&young);
    assert!(!apply(&mut world, &young.replace("status: {", "status: {observedGeneration: 7, ")));
    assert!(apply(&mut world, &young.replace("240.240.7.7", "240.240.7.9")));
    assert_eq!(allocated(&Snapshot::build(&world, None)), ["a.example.com 240.240.7.9"]);
}
