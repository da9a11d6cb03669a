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
    Scope::of(snapshot, proxy).generate(kind).iter().map(|one| api::json::to_json(&one.body()).unwrap()).collect()
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

/// Who answers for a port of a service, as `address:port` with the priority in front where it is not the first.
fn endpoints(snapshot: &Arc<Snapshot>, proxy: &ProxyIdentity, port: u16, host: &str) -> Vec<String> {
    let all = resources(snapshot, proxy, ResourceKind::Endpoint);
    let name = format!("outbound|{port}||{host}");
    let Some(assignment) = all.iter().find(|one| one["cluster_name"] == name.as_str()) else { return Vec::new() };
    let mut found = Vec::new();
    for group in assignment["endpoints"].as_array().into_iter().flatten() {
        for endpoint in group["lb_endpoints"].as_array().into_iter().flatten() {
            let socket = &endpoint["endpoint"]["address"]["socket_address"];
            let place = format!("{}:{}", socket["address"].as_str().unwrap(), socket["port_value"]);
            found.push(match group["priority"].as_u64() {
                None | Some(0) => place,
                Some(priority) => format!("{priority} {place}"),
            });
        }
    }
    found.sort();
    found
}

fn web() -> ProxyIdentity {
    proxy("10.1.0.9", json!({}))
}

const USER: &str = "user.shop.svc.cluster.local";

fn service(spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: user}}\nspec: {{{spec}}}\n")
}

fn pod(name: &str, address: &str, node: &str, ready: bool) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec: {{nodeName: {node}, containers: [{{name: c}}]}}\nstatus: {{podIP: {address}, conditions: [{{type: Ready, status: '{}'}}]}}\n",
        if ready { "True" } else { "False" }
    )
}

fn node(name: &str, region: &str, zone: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}}}\n"
    )
}

/// A slice of the service with these endpoints, and one port.
fn slice(name: &str, family: &str, port: u16, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: user}}}}\naddressType: {family}\nports: [{{name: http, port: {port}}}]\nendpoints: [{endpoints}]\n"
    )
}

const PORTS: &str = "ports: [{name: http, port: 80, targetPort: web}]";

#[test]
fn conditions_of_endpoints_decide_who_answers() {
    let endpoints_of = "{addresses: [10.1.0.1]}, {addresses: [10.1.0.2], conditions: {ready: true, serving: true}}, \
        {addresses: [10.1.0.3], conditions: {ready: false, serving: true, terminating: true}}, \
        {addresses: [10.1.0.4], conditions: {ready: true, serving: true, terminating: true}}, \
        {addresses: [10.1.0.5], conditions: {ready: false, serving: false}}";
    let text = service(&format!("clusterIP: 10.0.0.1, {PORTS}")) + &slice("user-1", "IPv4", 8080, endpoints_of);
    assert_eq!(endpoints(&snapshot(&text), &web(), 80, USER), ["10.1.0.1:8080", "10.1.0.2:8080"]);
}

#[test]
fn a_pod_that_is_not_ready_counts_where_its_service_wants_it() {
    let of = |spec: &str, ready: bool| {
        let listed = format!(
            "{{addresses: [10.1.0.1], targetRef: {{kind: Pod, name: user-1}}, conditions: {{ready: {ready}}}}}"
        );
        let rest = pod("user-1", "10.1.0.1", "n", false) + &slice("user-1", "IPv4", 8080, &listed);
        endpoints(&snapshot(&(service(spec) + &rest)), &web(), 80, USER)
    };
    assert_eq!(of(&format!("clusterIP: 10.0.0.1, {PORTS}"), false), [""; 0]);
    // Slices of such services call all pods ready.
    assert_eq!(of(&format!("clusterIP: 10.0.0.1, publishNotReadyAddresses: true, {PORTS}"), true), ["10.1.0.1:8080"]);
    // From files, where there are no slices.
    let text = service(
        "clusterIP: 10.0.0.1, publishNotReadyAddresses: true, selector: {app: user-1}, ports: [{name: http, port: 80, targetPort: 8080}]",
    );
    assert_eq!(
        endpoints(&snapshot(&(text + &pod("user-1", "10.1.0.1", "n", false))), &web(), 80, USER),
        ["10.1.0.1:8080"]
    );
}

/// A caller on node `near` (region r, zone a), and four endpoints: there, in its zone, in its region, and elsewhere.
fn spread(spec: &str) -> String {
    let nodes = [("near", "r", "a"), ("zone", "r", "a"), ("region", "r", "b"), ("far", "s", "a")];
    let mut text = service(&format!("clusterIP: 10.0.0.1, {spec} {PORTS}"));
    text += &pod("web", "10.1.0.9", "near", true);
    let mut listed = Vec::new();
    for (number, (name, region, zone)) in nodes.into_iter().enumerate() {
        text += &node(name, region, zone);
        text += &pod(&format!("user-{number}"), &format!("10.1.1.{number}"), name, true);
        listed.push(format!("{{addresses: [10.1.1.{number}], nodeName: {name}}}"));
    }
    text + &slice("user-1", "IPv4", 8080, &listed.join(", "))
}

#[test]
fn nearer_endpoints_come_first_where_the_service_prefers_them() {
    let all = ["10.1.1.0:8080", "10.1.1.1:8080", "10.1.1.2:8080", "10.1.1.3:8080"];
    let of = |text: &str| endpoints(&snapshot(text), &web(), 80, USER);
    assert_eq!(of(&spread("")), all);
    let zone = ["1 10.1.1.2:8080", "10.1.1.0:8080", "10.1.1.1:8080", "2 10.1.1.3:8080"];
    assert_eq!(of(&spread("trafficDistribution: PreferSameZone,")), zone);
    assert_eq!(of(&spread("trafficDistribution: PreferClose,")), zone);
    let near = ["1 10.1.1.1:8080", "10.1.1.0:8080", "2 10.1.1.2:8080", "3 10.1.1.3:8080"];
    assert_eq!(of(&spread("trafficDistribution: PreferSameNode,")), near);
    assert_eq!(of(&spread("internalTrafficPolicy: Local,")), all[..1]);

    // The annotations of the object, and of its namespace; the field counts over both.
    let annotated = |kind: &str, name: &str, value: &str| {
        format!(
            "metadata: {{name: {name}, annotations: {{networking.istio.io/traffic-distribution: {value}}}}}\n{kind}"
        )
    };
    let own = spread("").replacen("metadata: {name: user}\n", &annotated("", "user", "PreferClose"), 1);
    assert_eq!(of(&own), zone);
    let namespace = |of: &str| "---\napiVersion: v1\nkind: Namespace\n".to_owned() + &annotated("", "shop", of);
    assert_eq!(of(&(spread("") + &namespace("PreferSameNode"))), near);
    assert_eq!(of(&(own + &namespace("PreferSameNode"))), zone);
    assert_eq!(of(&(spread("trafficDistribution: PreferClose,") + &namespace("PreferSameNode"))), zone);

    // A caller whose place nobody knows prefers nobody.
    let stranger = proxy("10.1.0.8", json!({}));
    assert_eq!(endpoints(&snapshot(&spread("trafficDistribution: PreferClose,")), &stranger, 80, USER), all);
    let unknown = snapshot(&spread("trafficDistribution: PreferMine,"));
    let problem = unknown.problems().iter().find(|problem| problem.field == "spec.trafficDistribution").unwrap();
    assert!(problem.message.contains("PreferMine"), "{problem}");
}

#[test]
fn callers_of_one_place_share_what_they_are_told_and_those_of_others_are_told_something_else() {
    let text = spread("trafficDistribution: PreferClose,")
        + &pod("other", "10.1.0.10", "zone", true)
        + &pod("away", "10.1.0.11", "far", true);
    let snapshot = snapshot(&text);
    let told = |address: &str| Scope::of(&snapshot, &proxy(address, json!({}))).generate(ResourceKind::Endpoint);
    let of = |address: &str| endpoints(&snapshot, &proxy(address, json!({})), 80, USER);
    assert_eq!(of("10.1.0.9"), of("10.1.0.10"));
    assert!(Arc::ptr_eq(told("10.1.0.9").iter().next().unwrap(), told("10.1.0.10").iter().next().unwrap()));
    assert_eq!(of("10.1.0.11"), ["1 10.1.1.0:8080", "1 10.1.1.1:8080", "1 10.1.1.2:8080", "10.1.1.3:8080"]);
}

#[test]
fn another_name_for_a_service_leads_to_its_endpoints_and_one_for_the_outside_to_dns() {
    let alias = |name: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: alias}}\nspec: {{type: ExternalName, externalName: {name}{ports}}}\n"
        )
    };
    let rest =
        service(&format!("clusterIP: 10.0.0.1, {PORTS}")) + &slice("user-1", "IPv4", 8080, "{addresses: [10.1.0.1]}");
    let host = "alias.shop.svc.cluster.local";
    for ports in ["", ", ports: [{name: http, port: 80}]"] {
        let found = snapshot(&(alias(&format!("{USER}."), ports) + &rest));
        assert_eq!(endpoints(&found, &web(), 80, host), ["10.1.0.1:8080"], "{ports}");
        let routes = resources(&found, &web(), ResourceKind::Route);
        assert!(json!(routes).to_string().contains("\"alias.shop:80\""), "{routes:?}");
    }
    let outside = snapshot(&(alias("db.example.com", ", ports: [{name: http, port: 80}]") + &rest));
    let clusters = resources(&outside, &web(), ResourceKind::Cluster);
    let cluster = clusters.iter().find(|one| one["name"] == format!("outbound|80||{host}").as_str()).unwrap();
    assert_eq!(cluster["type"], "STRICT_DNS");
    assert!(cluster["load_assignment"].to_string().contains("db.example.com"), "{cluster}");
}

#[test]
fn services_of_nodes_and_balancers_are_called_at_their_virtual_address() {
    for kind in ["NodePort", "LoadBalancer"] {
        let text = service(&format!(
            "type: {kind}, clusterIP: 10.0.0.1, ports: [{{name: tcp, port: 5432, targetPort: 5432, nodePort: 30001}}]"
        ))
        .replace("\nspec:", "\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.7}]}}\nspec:")
            + &slice("user-1", "IPv4", 5432, "{addresses: [10.1.0.1]}").replace("name: http", "name: tcp");
        let found = snapshot(&text);
        assert_eq!(listeners(&found, &web()), ["10.0.0.1_5432"], "{kind}");
        assert_eq!(endpoints(&found, &web(), 5432, USER), ["10.1.0.1:5432"], "{kind}");
    }
}

#[test]
fn a_service_without_selector_has_the_endpoints_that_somebody_wrote() {
    let spec = format!("clusterIP: 10.0.0.1, {PORTS}");
    let written = slice("by-hand", "IPv4", 9000, "{addresses: [192.0.2.1]}");
    // Pods of the namespace have nothing to do with it.
    let pods = pod("user-1", "10.1.0.1", "n", true);
    assert_eq!(endpoints(&snapshot(&(service(&spec) + &written + &pods)), &web(), 80, USER), ["192.0.2.1:9000"]);
    let older = "---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: user}\nsubsets: [{addresses: [{ip: 192.0.2.2}], ports: [{name: http, port: 9001}]}]\n";
    assert_eq!(endpoints(&snapshot(&(service(&spec) + older + &pods)), &web(), 80, USER), ["192.0.2.2:9001"]);
}

#[test]
fn a_named_port_may_be_another_number_in_each_pod() {
    let slices = slice("user-1", "IPv4", 8080, "{addresses: [10.1.0.1]}")
        + &slice("user-2", "IPv4", 9090, "{addresses: [10.1.0.2]}");
    let spec = format!("clusterIP: 10.0.0.1, {PORTS}");
    assert_eq!(endpoints(&snapshot(&(service(&spec) + &slices)), &web(), 80, USER), ["10.1.0.1:8080", "10.1.0.2:9090"]);
    let pods = |number: u16| {
        pod(&format!("user-{number}"), &format!("10.1.0.{}", number % 10), "n", true)
            .replace(&format!("app: user-{number}"), "app: user")
            .replace("{name: c}", &format!("{{name: c, ports: [{{name: web, containerPort: {number}}}]}}"))
    };
    let text = service(&format!("{spec}, selector: {{app: user}}")) + &pods(8081) + &pods(9092);
    let found = snapshot(&text);
    assert_eq!(endpoints(&found, &web(), 80, USER), ["10.1.0.1:8081", "10.1.0.2:9092"]);
    // Each takes in its own.
    for (address, port) in [("10.1.0.1", 8081), ("10.1.0.2", 9092)] {
        let clusters = resources(&found, &proxy(address, json!({})), ResourceKind::Cluster);
        let inbound: Vec<&str> = clusters
            .iter()
            .filter_map(|one| one["name"].as_str())
            .filter(|name| name.starts_with("inbound|"))
            .collect();
        assert_eq!(inbound, [format!("inbound|{port}||")]);
    }
}

#[test]
fn a_workload_with_two_addresses_answers_once_in_a_family_that_the_caller_has() {
    let two = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: user-1}\nspec: {containers: [{name: c}]}\nstatus: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}\n";
    let text = service("clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd01::1'], ports: [{name: tcp, port: 80}]")
        + two
        + &slice("user-4", "IPv4", 8080, "{addresses: [10.1.0.1], targetRef: {kind: Pod, name: user-1}}").replace("name: http", "name: tcp")
        + &slice("user-6", "IPv6", 8080, "{addresses: ['fd00::1'], targetRef: {kind: Pod, name: user-1}}, {addresses: ['fd00::2'], targetRef: {kind: Pod, name: user-2}}")
            .replace("name: http", "name: tcp");
    let found = snapshot(&text);
    let of = |addresses: &str| {
        let proxy = proxy(addresses, json!({}));
        (endpoints(&found, &proxy, 80, USER), listeners(&found, &proxy))
    };
    let expected = |endpoints: &[&str], listeners: &[&str]| {
        (endpoints.iter().map(ToString::to_string).collect(), listeners.iter().map(ToString::to_string).collect())
    };
    assert_eq!(of("10.1.0.9"), expected(&["10.1.0.1:8080"], &["10.0.0.1_80"]));
    assert_eq!(of("fd00::9"), expected(&["fd00::1:8080", "fd00::2:8080"], &["fd01::1_80"]));
    assert_eq!(of("10.1.0.9,fd00::9"), expected(&["10.1.0.1:8080", "fd00::2:8080"], &["10.0.0.1_80", "fd01::1_80"]));
    assert_eq!(of("fd00::9,10.1.0.9"), expected(&["fd00::1:8080", "fd00::2:8080"], &["10.0.0.1_80", "fd01::1_80"]));
}

#[test]
fn a_container_that_goes_around_its_sidecar_is_told() {
    let pod = |annotations: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, annotations: {{{annotations}}}}}\nspec: {{containers: [{{name: app, securityContext: {{runAsUser: 1337}}}}]}}\n"
        )
    };
    let told = |text: &str| snapshot(text).problems().iter().map(ToString::to_string).collect::<Vec<_>>();
    let problems = told(&pod("sidecar.istio.io/status: '{}'"));
    assert!(problems.len() == 1 && problems[0].contains("Warning [MESH0009] (Pod shop/web"), "{problems:?}");
    assert_eq!(told(&pod("")), [""; 0], "no sidecar");
    assert_eq!(told(&pod("sidecar.istio.io/status: '{}', sidecar.istio.io/interceptionMode: NONE")), [""; 0]);
}

#[test]
fn pods_whose_nodes_are_not_heard_of_are_better_than_nobody() {
    // As the node controller leaves them: the kubelet's last word was that the containers are ready.
    let unheard = |name: &str, address: &str| {
        pod(name, address, "n", false)
            .replace("conditions: [", "conditions: [{type: ContainersReady, status: 'True'}, ")
    };
    let listed = |conditions: &str| {
        let one = |address: &str, name: &str, conditions: &str| {
            format!("{{addresses: [{address}], targetRef: {{kind: Pod, name: {name}}}, conditions: {{{conditions}}}}}")
        };
        slice(
            "user-1",
            "IPv4",
            8080,
            &[one("10.1.0.1", "user-1", conditions), one("10.1.0.2", "user-2", "ready: false")].join(", "),
        )
    };
    let spec = service(&format!("clusterIP: 10.0.0.1, {PORTS}"));
    let of = |text: &str| endpoints(&snapshot(&(spec.clone() + text)), &web(), 80, USER);
    let both = unheard("user-1", "10.1.0.1") + &unheard("user-2", "10.1.0.2");
    assert_eq!(of(&(both.clone() + &listed("ready: false, serving: false"))), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    // One that is ready is enough; one that ends is nobody; one whose own probe fails is not ready.
    let ready = pod("user-1", "10.1.0.1", "n", true) + &unheard("user-2", "10.1.0.2");
    assert_eq!(of(&(ready + &listed("ready: true"))), ["10.1.0.1:8080"]);
    assert_eq!(of(&(both.clone() + &listed("ready: false, serving: false, terminating: true"))), ["10.1.0.2:8080"]);
    // The slice may be known before the pod.
    let early = both.replace("type: Ready, status: 'False'", "type: Ready, status: 'True'") + &listed("ready: false");
    assert_eq!(of(&early), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    let failing = pod("user-1", "10.1.0.1", "n", false) + &pod("user-2", "10.1.0.2", "n", false);
    assert_eq!(of(&(failing + &listed("ready: false"))), [""; 0]);
}

/// The watch of pods may be behind that of slices: then all old pods are gone, and the new ones not ready by what they say.
#[test]
fn a_slice_that_is_heard_of_before_its_pods_leaves_nobody_without_any() {
    let listed = |address: &str, name: &str, conditions: &str| {
        format!("{{addresses: [{address}], targetRef: {{kind: Pod, name: {name}}}, conditions: {{{conditions}}}}}")
    };
    let old = listed("10.1.0.1", "user-1", "ready: false, serving: true, terminating: true");
    let new = listed("10.1.0.2", "user-2", "ready: true");
    let slices = slice("user-1", "IPv4", 8080, &[old, new].join(", "));
    let spec = service(&format!("clusterIP: 10.0.0.1, {PORTS}"));
    let of = |pods: &str| endpoints(&snapshot(&(spec.clone() + pods + &slices)), &web(), 80, USER);
    let (first, second) = (pod("user-1", "10.1.0.1", "n", true), pod("user-2", "10.1.0.2", "n", false));
    assert_eq!(of(&(first.clone() + &second)), ["10.1.0.2:8080"]);
    // One that was told to go is nobody.
    let leaving = second.replace("metadata: {", "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', ");
    assert_ne!(leaving, second);
    assert_eq!(of(&(first + &leaving)), [""; 0]);
}

#[test]
fn pods_are_believed_before_the_slices_that_follow_them() {
    let pod = |name: &str, address: &str, more: &str, ready: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: user}}{more}}}\nspec: {{containers: [{{name: app}}]}}\nstatus: {{podIP: {address}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
        )
    };
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: user}\nspec: {selector: {app: user}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    let slice = |ready: bool| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: user-1, labels: {{kubernetes.io/service-name: user}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.1.0.1], conditions: {{ready: {ready}}}, targetRef: {{kind: Pod, name: old}}}}]\n"
        )
    };
    let leaves = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let called = |text: &str| {
        let all = resources(&snapshot(text), &proxy("10.1.0.9", json!({})), ResourceKind::Endpoint);
        let user = all.iter().find(|one| one["cluster_name"].as_str().unwrap().contains("user")).unwrap();
        let localities = user["endpoints"].as_array().cloned().unwrap_or_default();
        let endpoints = localities.iter().flat_map(|locality| locality["lb_endpoints"].as_array().unwrap());
        let address =
            |one: &Value| one["endpoint"]["address"]["socket_address"]["address"].as_str().unwrap().to_owned();
        endpoints.map(address).collect::<Vec<_>>()
    };
    let world = |old: &str, new: &str, listed: bool| [service, &slice(listed), old, new].concat();
    let (old, going) = (pod("old", "10.1.0.1", "", "True"), pod("old", "10.1.0.1", leaves, "True"));
    let (early, new) = (pod("new", "10.1.0.2", "", "False"), pod("new", "10.1.0.2", "", "True"));
    assert_eq!(called(&world(&old, &early, true)), ["10.1.0.1"]);
    assert_eq!(called(&world(&old, &new, true)), ["10.1.0.1", "10.1.0.2"], "no slice has the new one yet");
    assert_eq!(called(&world(&going, &new, true)), ["10.1.0.2"], "the slice does not know that the old one goes");
    assert_eq!(called(&world(&old, &early, false)), ["10.1.0.1"], "the slice does not know that it is ready");
}
