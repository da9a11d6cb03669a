//! What holds for all worlds: the order of objects never matters, what a proxy cannot see changes nothing for it, a bad
//! version never replaces a good one, and a large mesh is planned in seconds.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::sync::Arc;

use api::mesh_config::MeshConfig;
use api::object::Object;
use api::problem::{Code, Severity};
use api::xds::{KINDS, ResourceKind, core};
use plan::{Change, Named, ProxyIdentity, Scope, Snapshot, World};
use proptest::prelude::*;

/// Objects that compete with each other in as many ways as fit.
const COMPETING: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec: {clusterIP: 10.0.0.1, selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}, {name: tcp, port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: a-too, namespace: shop}
spec: {clusterIP: 10.0.0.2, selector: {app: a}, ports: [{name: grpc, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a-1, namespace: shop, labels: {app: a, version: v1, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: a, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a-2, namespace: shop}
spec: {address: 10.1.0.2, labels: {app: a, version: v2}, ports: {web: 8080}, serviceAccount: a2}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one, namespace: shop}
spec: {hosts: [x.example.com, y.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.2.0.1}, {address: 10.2.0.2}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: two, namespace: other}
spec: {hosts: [x.example.com], ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: one, namespace: shop}
spec: {hosts: [a, '*.example.com'], http: [{route: [{destination: {host: a, port: {number: 80}}, weight: 1}, {destination: {host: x.example.com}, weight: 3}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: two, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {hosts: [a, x.example.com], http: [{match: [{headers: {p: {exact: q}, r: {prefix: s}}}], fault: {abort: {httpStatus: 500, percentage: {value: 1}}}, corsPolicy: {allowOrigins: [{exact: b}]}, route: [{destination: {host: a, subset: v2}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: one, namespace: shop}
spec: {host: a, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: two, namespace: shop}
spec: {host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v2, labels: {version: v2}}, {name: v1, labels: {version: v9}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: wide, namespace: istio-system}
spec: {host: '*.example.com', trafficPolicy: {tls: {mode: SIMPLE}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: one, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: two, namespace: shop}
spec: {mtls: {mode: DISABLE}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: one, namespace: shop}
spec: {selector: {app: a}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}, {port: {number: 443, name: s, protocol: HTTPS}, hosts: [x.example.com], tls: {mode: SIMPLE, credentialName: s}}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: two, namespace: other}
spec: {selector: {app: a}, servers: [{port: {number: 443, name: s, protocol: HTTPS}, hosts: [x.example.com], tls: {mode: SIMPLE, credentialName: t}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: gateway, namespace: shop}
spec: {hosts: [x.example.com], gateways: [one, other/two], http: [{route: [{destination: {host: a, port: {number: 80}}}]}]}
";

fn objects(text: &str) -> Vec<Object> {
    let decoded = api::decode::documents(text.as_bytes(), "test.yaml", "shop");
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    decoded.objects
}

fn world(objects: impl IntoIterator<Item = Object>) -> World {
    let mut world = World::new(MeshConfig { proxy_http_port: 15080, ..MeshConfig::default() }, "cluster.local");
    for object in objects {
        world.apply(Change::Upsert(Box::new(object)));
    }
    world
}

fn proxy(role: &str, address: &str, name: &str) -> ProxyIdentity {
    let node =
        core::Node { id: format!("{role}~{address}~{name}.shop~shop.svc.cluster.local"), ..core::Node::default() };
    ProxyIdentity::of(&node, None).unwrap()
}

fn proxies() -> [ProxyIdentity; 3] {
    [proxy("sidecar", "10.1.0.1", "a-1"), proxy("sidecar", "10.9.9.9", "unknown"), proxy("router", "10.1.0.2", "a-2")]
}

fn all(snapshot: &Arc<Snapshot>) -> Vec<(u64, Vec<Arc<Named>>)> {
    let one = |proxy: ProxyIdentity| {
        let scope = Scope::of(snapshot, &proxy);
        (
            scope.key(),
            KINDS.iter().flat_map(|row| scope.generate(row.kind).iter().cloned().collect::<Vec<_>>()).collect(),
        )
    };
    proxies().into_iter().map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_objects_never_matters(shuffled in Just(objects(COMPETING)).prop_shuffle()) {
        let expected = Snapshot::build(&world(objects(COMPETING)), None);
        let found = Snapshot::build(&world(shuffled), Some(&expected));
        prop_assert_eq!(expected.problems(), found.problems());
        prop_assert_eq!(expected.registry(), found.registry());
        prop_assert_eq!(all(&expected), all(&found));
    }

    #[test]
    fn a_world_without_some_objects_is_planned_too(kept in proptest::sample::subsequence(objects(COMPETING), 0..16)) {
        let snapshot = Snapshot::build(&world(kept), None);
        for (_, resources) in all(&snapshot) {
            let mut names: Vec<_> = resources.iter().map(|one| (one.type_url(), &one.name)).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), count);
        }
    }
}

/// More objects that services are made from. Those that share a name are versions of one object.
const VERSIONS: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-x, namespace: shop, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: tcp, port: 90}]
endpoints: [{addresses: [10.1.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: a-1}}, {addresses: [10.1.0.7]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-x, namespace: shop, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 8081}]
endpoints: [{addresses: [10.9.9.9]}, {addresses: [10.1.0.8]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-x, namespace: shop, labels: {kubernetes.io/service-name: a-too}}
addressType: IPv4
ports: [{name: grpc, port: 8080}]
endpoints: [{addresses: [10.1.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-y, namespace: shop, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: tcp, port: 90}]
endpoints: [{addresses: [10.9.9.9]}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: a-too, namespace: shop}
subsets: [{addresses: [{ip: 10.1.0.9}], ports: [{name: grpc, port: 8080}]}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: a-too, namespace: shop}
subsets: [{addresses: [{ip: 10.1.0.10}], ports: [{name: grpc, port: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: a-1, namespace: shop, labels: {app: a, version: v2}}
spec: {serviceAccountName: b, containers: [{name: c, ports: [{name: web, containerPort: 8090}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: PreferSameZone}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: other-name, namespace: shop}
spec: {type: ExternalName, externalName: a.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: other-name, namespace: shop}
spec: {clusterIP: None, selector: {app: a}, ports: [{name: x, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec: {clusterIP: None, selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: names, namespace: shop}
spec: {hosts: [a.shop.svc.cluster.local], subjectAltNames: [spiffe://cluster.local/ns/x/sa/y], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
spec: {clusterIP: 10.0.0.9, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b, namespace: shop}
spec: {hosts: [b], http: [{route: [{destination: {host: b}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b, namespace: shop}
spec: {hosts: [b], http: [{match: [{sourceLabels: {version: v2}}], route: [{destination: {host: a}}]}, {timeout: 3s, route: [{destination: {host: b}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: one, namespace: shop}
spec: {hosts: [a, '*.example.com'], http: [{timeout: 1s, route: [{destination: {host: a, port: {number: 80}}}]}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a-2, namespace: shop}
spec: {address: 10.9.9.9, labels: {app: a, version: v1}, ports: {web: 8080}, serviceAccount: a3}
";

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// What a snapshot takes over from the one before is what it would have made.
    #[test]
    fn whatever_came_before_the_same_objects_give_the_same_plan(edits in proptest::collection::vec((0..1000_usize, 0..3_u8, any::<bool>()), 1..40)) {
        let mut world = world(objects(COMPETING));
        let mut snapshot = Snapshot::build(&world, None);
        // Rules keep routes for as long as a subset is missing, whatever is planned anew: subsets stay.
        let subsets = |object: &Object| object.kind == api::object::Kind::DestinationRule;
        let pool: Vec<Object> = objects(COMPETING).into_iter().chain(objects(VERSIONS)).filter(|object| !subsets(object)).collect();
        for (index, delete, looked_at) in edits {
            let object = pool[index % pool.len()].clone();
            world.apply(if delete == 0 { Change::Delete(object.key()) } else { Change::Upsert(Box::new(object)) });
            snapshot = Snapshot::build(&world, Some(&snapshot));
            if !looked_at {
                continue;
            }
            let anew = Snapshot::build(&world, None);
            prop_assert_eq!(anew.problems(), snapshot.problems());
            prop_assert_eq!(anew.registry(), snapshot.registry());
            prop_assert_eq!(all(&anew), all(&snapshot));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the text, reading and planning end without a panic.
    #[test]
    fn any_text_is_read_and_planned(cuts in proptest::collection::vec((0..COMPETING.len(), "[ -~\n]{0,6}"), 0..6), noise in "[ -~\n]{0,40}") {
        let mut text = COMPETING.as_bytes().to_vec();
        for (place, insert) in cuts {
            let end = (place + insert.len()).min(text.len());
            text.splice(place.min(end)..end, insert.into_bytes());
        }
        text.extend_from_slice(noise.as_bytes());
        let decoded = api::decode::documents(&text, "a.yaml", "shop");
        all(&Snapshot::build(&world(decoded.objects), None));
    }
}

#[test]
fn what_would_cost_the_neighbours_is_refused() {
    let rule = |part: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: bad}}\nspec: {{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}], {part}}}]}}\n"
        )
    };
    let cases = [
        ("headers: {request: {set: {'a b': c}}}", "spec.http[0].headers.request.set[\"a b\"]"),
        ("headers: {response: {add: {a: 100%}}}", "spec.http[0].headers.response.add[\"a\"]"),
        ("fault: {delay: {fixedDelay: 0s, percentage: {value: 1}}}", "spec.http[0].fault.delay.fixedDelay"),
        ("match: [{headers: {'': {exact: a}}}]", "spec.http[0].match[0].headers[\"\"]"),
        ("redirect: {uri: /a}", "spec.http[0]"),
    ];
    for (part, field) in cases {
        let mut world = world(objects(&rule(part)));
        assert_eq!(world.objects().count(), 0, "{part}");
        let problems = Snapshot::build(&world, None).problems().to_vec();
        assert!(
            problems.iter().any(|problem| problem.severity == Severity::Error && problem.field == field),
            "{part}: {problems:?}"
        );
        assert!(world.apply(Change::Upsert(Box::new(objects(&rule("name: good")).remove(0)))));
        assert!(Snapshot::build(&world, None).problems().iter().all(|problem| problem.field != field));
    }
}

#[test]
fn what_a_proxy_cannot_see_changes_nothing_for_it() {
    let before = Snapshot::build(&world(objects(COMPETING)), None);
    let hidden = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: far}
spec: {hosts: [hidden.example.org], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS, exportTo: [.]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hidden, namespace: far}
spec: {hosts: [a.shop.svc.cluster.local], exportTo: [.], http: [{route: [{destination: {host: hidden.example.org}}]}]}
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: far}
";
    let after = Snapshot::build(&world(objects(COMPETING).into_iter().chain(objects(hidden))), Some(&before));
    assert_eq!(all(&before), all(&after));
}

#[test]
fn what_a_proxy_sees_changes_its_key() {
    let before = Snapshot::build(&world(objects(COMPETING)), None);
    let changed = COMPETING.replace("address: 10.1.0.2", "address: 10.1.0.3");
    let after = Snapshot::build(&world(objects(&changed)), Some(&before));
    let (before, after) = (Scope::of(&before, &proxies()[0]), Scope::of(&after, &proxies()[0]));
    assert_ne!(before.key(), after.key());
    let count = |scope: &Scope, kind| scope.generate(kind);
    assert_eq!(count(&before, ResourceKind::Cluster).len(), count(&after, ResourceKind::Cluster).len());
    assert_ne!(count(&before, ResourceKind::Endpoint), count(&after, ResourceKind::Endpoint));
}

#[test]
fn a_bad_version_never_replaces_a_good_one() {
    let mut world = world(objects(COMPETING));
    let good = all(&Snapshot::build(&world, None));
    let bad = objects(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: one}\nspec: {hosts: [a], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: a}}]}]}\n",
    );
    let key = bad[0].key();
    assert!(world.apply(Change::Upsert(Box::new(bad[0].clone()))));
    assert!(!world.apply(Change::Upsert(Box::new(bad[0].clone()))), "the same mistake twice is no news");
    let snapshot = Snapshot::build(&world, None);
    assert!(snapshot.problems().iter().any(|problem| problem.code == Code::InvalidRegex
        && problem.severity == Severity::Error
        && problem.field == "spec.http[0].match[0].uri.regex"));
    assert_eq!(all(&snapshot), good);
    assert!(!world.apply(Change::Reject(key.clone())));
    assert!(world.apply(Change::Delete(key)));
    let snapshot = Snapshot::build(&world, None);
    assert!(snapshot.problems().iter().all(|problem| problem.code != Code::InvalidRegex));
}

/// A VirtualService with these hosts and rules.
fn rules_of(hosts: &str, rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: one}}\nspec: {{hosts: [{hosts}], http: [{rules}]}}\n"
    )
}

/// A DestinationRule of service `a` with these subsets.
fn subsets_of_a(names: &[&str]) -> String {
    let one = |name: &&str| format!("{{name: {name}, labels: {{version: {name}}}}}");
    let list: Vec<String> = names.iter().map(one).collect();
    let list = list.join(", ");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{host: a, subsets: [{list}]}}\n"
    )
}

fn to_subset(subset: &str) -> String {
    format!("route: [{{destination: {{host: a, subset: {subset}, port: {{number: 80}}}}}}]")
}

fn apply(world: &mut World, text: &str) {
    for object in objects(text) {
        world.apply(Change::Upsert(Box::new(object)));
    }
}

/// Where requests to a service go, route by route.
fn routed(snapshot: &Arc<Snapshot>, service: &str) -> Vec<String> {
    let all = Scope::of(snapshot, &proxies()[0]).generate(ResourceKind::Route);
    let table = all.iter().find(|one| &*one.name == "80").unwrap();
    let table = api::json::to_json(&table.body()).unwrap();
    let hosts = table["virtual_hosts"].as_array().unwrap();
    let host =
        hosts.iter().find(|host| host["name"].as_str().unwrap().starts_with(&format!("{service}.shop"))).unwrap();
    let cluster = |route: &serde_json::Value| route["route"]["cluster"].as_str().unwrap().to_owned();
    host["routes"].as_array().unwrap().iter().map(cluster).collect()
}

/// What is told of subsets that are missing.
fn missing_subsets(snapshot: &Snapshot) -> Vec<String> {
    let mine = |problem: &&api::problem::Problem| problem.code == Code::SubsetNotFound;
    snapshot.problems().iter().filter(mine).map(|problem| problem.message.clone()).collect()
}

#[test]
fn the_first_rules_of_a_host_wait_for_their_subset() {
    let service = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n"
        )
    };
    let mut world = world(objects(&(service("a") + &service("b"))));
    let before = Snapshot::build(&world, None);
    let (to_a, to_b) = ("outbound|80||a.shop.svc.cluster.local", "outbound|80||b.shop.svc.cluster.local");
    assert_eq!((routed(&before, "a"), routed(&before, "b")), (vec![to_a.to_owned()], vec![to_b.to_owned()]));

    // Each host stays with its own service, until the subset is there.
    let rules = format!("{{match: [{{uri: {{prefix: /new}}}}], {}}}, {{{}}}", to_subset("v1"), to_subset("v2"));
    apply(&mut world, &rules_of("a, b", &rules));
    let mut waiting = Snapshot::build(&world, Some(&before));
    for _ in 0..2 {
        assert_eq!(
            (routed(&waiting, "a"), routed(&waiting, "b")),
            (vec![to_a.to_owned(); 2], vec![to_b.to_owned(); 2])
        );
        let messages = missing_subsets(&waiting);
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages.iter().all(|message| message.contains("keep the destinations")), "{messages:?}");
        waiting = Snapshot::build(&world, Some(&waiting));
    }
    apply(&mut world, &subsets_of_a(&["v1"]));
    let half = Snapshot::build(&world, Some(&waiting));
    let (v1, v2) = ("outbound|80|v1|a.shop.svc.cluster.local", "outbound|80|v2|a.shop.svc.cluster.local");
    assert_eq!(
        (routed(&half, "a"), routed(&half, "b")),
        (vec![v1.to_owned(), to_a.to_owned()], vec![v1.to_owned(), to_b.to_owned()])
    );
    apply(&mut world, &subsets_of_a(&["v1", "v2"]));
    let whole = Snapshot::build(&world, Some(&half));
    assert_eq!(routed(&whole, "b"), [v1, v2]);
    assert_eq!(all(&whole), all(&Snapshot::build(&world, None)), "nothing of what was kept is left");
    assert_eq!(missing_subsets(&whole), [""; 0]);
}

#[test]
fn a_rule_keeps_its_route_until_its_new_subset_is_there() {
    let (v1, v2) = ("outbound|80|v1|a.shop.svc.cluster.local", "outbound|80|v2|a.shop.svc.cluster.local");
    let mut world = world(objects(COMPETING.split("---").next().unwrap()));
    apply(&mut world, &subsets_of_a(&["v1"]));
    apply(&mut world, &rules_of("a", &format!("{{{}}}", to_subset("v1"))));
    let first = Snapshot::build(&world, None);
    assert_eq!(routed(&first, "a"), [v1]);
    assert_eq!(missing_subsets(&first), [""; 0]);

    // The rule's new subset is not there yet; a rule that is new takes requests away from the one that had them.
    let new = format!("{{match: [{{uri: {{prefix: /new}}}}], {}}}", to_subset("v3"));
    apply(&mut world, &rules_of("a", &format!("{new}, {{{}, timeout: 7s}}", to_subset("v2"))));
    let second = Snapshot::build(&world, Some(&first));
    assert_eq!(routed(&second, "a"), [v1, v1]);
    let messages = missing_subsets(&second);
    assert_eq!(messages.len(), 2, "{messages:?}");
    for subset in ["v2", "v3"] {
        let about = |message: &&String| message.contains(&format!("{subset:?}"));
        assert!(messages.iter().find(about).unwrap().contains("keep the destinations"), "{messages:?}");
    }
    assert_ne!(all(&first), all(&second), "the rest of the rule is the new one");

    // It stays for as long as it takes, and goes when the subset comes.
    let third = Snapshot::build(&world, Some(&second));
    assert_eq!(all(&second), all(&third));
    apply(&mut world, &subsets_of_a(&["v1", "v2", "v3"]));
    let fourth = Snapshot::build(&world, Some(&third));
    assert_eq!(routed(&fourth, "a"), [v2.replace("v2", "v3"), v2.to_owned()]);
    assert_eq!(missing_subsets(&fourth), [""; 0]);
    assert_eq!(all(&fourth), all(&Snapshot::build(&world, None)), "nothing of what was kept is left");
}

#[test]
fn what_is_taken_in_follows_the_slice_that_names_the_port() {
    // A service whose two ports have limits of their own, and a slice that says which of the two is the workload's.
    let slice = |port: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: b-1, labels: {{kubernetes.io/service-name: b}}}}\naddressType: IPv4\nports: [{{name: {port}, port: 8000}}]\nendpoints: [{{addresses: [10.1.0.1]}}]\n"
        )
    };
    let mut world = world(objects(
        "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {ports: [{name: http-one, port: 81}, {name: http-two, port: 82}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: b}\nspec: {host: b, trafficPolicy: {portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 101}}}, {port: {number: 82}, connectionPool: {tcp: {maxConnections: 102}}}]}}\n",
    ));
    let limit = |snapshot: &Arc<Snapshot>| {
        let all = Scope::of(snapshot, &proxies()[0]).generate(ResourceKind::Cluster);
        let taken_in = all.iter().find(|one| &*one.name == "inbound|8000||").unwrap();
        let cluster = api::json::to_json(&taken_in.body()).unwrap();
        cluster["circuit_breakers"]["thresholds"][0]["max_connections"].as_u64()
    };
    apply(&mut world, &slice("http-one"));
    let first = Snapshot::build(&world, None);
    assert_eq!(limit(&first), Some(101));
    apply(&mut world, &slice("http-two"));
    assert_eq!(limit(&Snapshot::build(&world, Some(&first))), Some(102));
}

#[test]
fn scopes_may_go_to_any_task() {
    fn goes<T: Send + Sync + 'static>() {}
    goes::<Scope>();
    goes::<Snapshot>();
}

#[test]
fn secrets_are_only_for_proved_gateways_of_their_namespace() {
    let secret = |namespace: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: {namespace}}}\nstringData: {{tls.crt: a, tls.key: b}}\n"
        )
    };
    let named = |world: World, proxy: &ProxyIdentity| {
        let scope = Scope::of(&Snapshot::build(&world, None), proxy);
        scope.generate(ResourceKind::Secret).iter().map(|one| one.name.to_string()).collect::<Vec<_>>()
    };
    let mut gateway = proxy("router", "10.1.0.2", "a-2");
    let mesh = |namespace| world(objects(&format!("{COMPETING}{}", secret(namespace))));
    assert_eq!(named(mesh("shop"), &gateway), [""; 0], "not proved");
    gateway.verified = true;
    assert_eq!(named(mesh("shop"), &gateway), ["kubernetes://s"]);
    assert_eq!(named(mesh("far"), &gateway), [""; 0], "another namespace");
    let mut sidecar = proxy("sidecar", "10.1.0.2", "a-2");
    sidecar.verified = true;
    assert_eq!(named(mesh("shop"), &sidecar), [""; 0], "not a gateway");
}

#[test]
fn an_equal_object_is_no_change() {
    let mut world = world(objects(COMPETING));
    for object in objects(COMPETING) {
        assert!(!world.apply(Change::Upsert(Box::new(object))));
    }
}

#[test]
fn a_large_mesh_is_planned() {
    let mut text = String::new();
    let services = 200;
    for number in 0..services {
        write!(text, "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop}}\nspec: {{clusterIP: 10.0.{}.{}, selector: {{app: s{number}}}, ports: [{{name: http, port: 80}}]}}\n---\n", number / 250, number % 250 + 1).unwrap();
        write!(text, "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: w{number}, namespace: shop}}\nspec: {{address: 10.3.{}.{}, labels: {{app: s{number}}}}}\n---\n", number / 250, number % 250 + 1).unwrap();
        write!(text, "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{number}, namespace: shop}}\nspec: {{hosts: [s{number}], http: [{{route: [{{destination: {{host: s{number}}}}}]}}]}}\n---\n").unwrap();
    }
    let snapshot = Snapshot::build(&world(objects(&text)), None);
    assert_eq!(snapshot.problems(), []);
    let scope = Scope::of(&snapshot, &proxy("sidecar", "10.3.0.1", "w0"));
    assert!(scope.generate(ResourceKind::Cluster).len() > services);
    assert_eq!(scope.generate(ResourceKind::Endpoint).len(), services);
}
