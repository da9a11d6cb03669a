//! The table of names over time: it follows the pods of headless services, and nothing else that moves.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use api::mesh_config::MeshConfig;
use api::xds::nds::NameTable;
use api::xds::{ResourceKind, core, unpack};
use plan::{Change, Named, ProxyIdentity, Scope, Snapshot, World};
use serde_json::json;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: tcp, port: 5432}]}
";

fn slice(service: &str, pods: &[(&str, &str)]) -> String {
    let endpoint = |(name, address): &(&str, &str)| format!("- {{addresses: [{address}], hostname: {name}}}\n");
    let endpoints: String = pods.iter().map(endpoint).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-1, namespace: shop, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: tcp, port: 5432}}, {{name: http, port: 80}}]\nendpoints:\n{endpoints}"
    )
}

fn apply(world: &mut World, text: &str) {
    let decoded = api::decode::documents(text.as_bytes(), "test.yaml", "shop");
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    for object in decoded.objects {
        world.apply(Change::Upsert(Box::new(object)));
    }
}

fn proxy(role: &str) -> ProxyIdentity {
    let node = core::Node {
        id: format!("{role}~10.1.0.9~caller.shop~shop.svc.cluster.local"),
        metadata: Some(api::xds::json_to_struct(&json!({"DNS_CAPTURE": "true"}))),
        ..core::Node::default()
    };
    ProxyIdentity::of(&node, None).unwrap()
}

fn table(snapshot: &Arc<Snapshot>) -> (Arc<Named>, Vec<(String, Vec<String>)>) {
    let resources = Scope::of(snapshot, &proxy("sidecar")).generate(ResourceKind::NameTable);
    assert_eq!(resources.len(), 1);
    let one = resources.iter().next().unwrap().clone();
    let table: NameTable = unpack(&one.body()).unwrap();
    let names = table.table.into_iter().map(|(name, info)| (name, info.ips)).collect();
    (one, names)
}

#[test]
fn pods_of_headless_services_are_followed_and_others_are_of_no_matter() {
    let mut world = World::new(MeshConfig::default(), "cluster.local");
    apply(&mut world, SERVICES);
    apply(&mut world, &slice("web", &[("web-0", "10.1.0.1")]));
    apply(&mut world, &slice("db", &[("db-0", "10.1.0.2")]));
    let first = Snapshot::build(&world, None);
    let (before, names) = table(&first);
    let at = |name: &str, address: &str| (format!("{name}.shop.svc.cluster.local"), vec![address.to_owned()]);
    assert_eq!(names, [at("db-0.db", "10.1.0.2"), at("db", "10.1.0.2"), at("web", "10.96.0.1")]);

    apply(&mut world, &slice("web", &[("web-0", "10.1.0.7")]));
    let second = Snapshot::build(&world, Some(&first));
    assert_eq!(table(&second).0.version, before.version, "where other endpoints are is of no matter");

    apply(&mut world, &slice("db", &[("db-0", "10.1.0.8")]));
    let third = Snapshot::build(&world, Some(&second));
    let (after, names) = table(&third);
    assert_ne!(after.version, before.version);
    assert_eq!(names, [at("db-0.db", "10.1.0.8"), at("db", "10.1.0.8"), at("web", "10.96.0.1")]);
}

#[test]
fn gateways_have_no_workload_that_asks() {
    let mut world = World::new(MeshConfig::default(), "cluster.local");
    apply(&mut world, SERVICES);
    let snapshot = Snapshot::build(&world, None);
    assert!(Scope::of(&snapshot, &proxy("router")).generate(ResourceKind::NameTable).is_empty());
}
