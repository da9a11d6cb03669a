//! AuthorizationPolicies as a proxy gets them: which bind it, in which order, and what is left out; and what is told of them.
#![allow(clippy::unwrap_used)]

use api::mesh_config::MeshConfig;
use api::problem::{Code, Severity};
use api::xds::{ResourceKind, core};
use plan::{Change, ProxyIdentity, Scope, Snapshot, World};
use serde_json::{Value, json};

const ADDRESS: &str = "10.0.0.1";
const WORKLOAD: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.0.0.1, serviceAccount: web, labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-x, port: 90, targetPort: 9090}]}
";

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn world(mesh: &str, policies: &str) -> World {
    let (mesh, problems) = MeshConfig::parse(mesh, "mesh.yaml");
    assert_eq!(problems, []);
    let mut world = World::new(mesh, "cluster.local");
    let text = format!("{WORKLOAD}{policies}");
    let decoded = api::decode::documents(text.as_bytes(), "a.yaml", "shop");
    assert_eq!(decoded.problems, []);
    for object in decoded.objects {
        world.apply(Change::Upsert(Box::new(object)));
    }
    world
}

fn listeners(world: &World, node: &str) -> Vec<Value> {
    let snapshot = Snapshot::build(world, None);
    let node = core::Node { id: node.to_owned(), ..core::Node::default() };
    let scope = Scope::of(&snapshot, &ProxyIdentity::of(&node, None).unwrap());
    scope.generate(ResourceKind::Listener).iter().map(|one| api::json::to_json(&one.body()).unwrap()).collect()
}

/// All RBAC configurations of the chains for a port, in their order.
fn rbac(world: &World, port: u16) -> Vec<Value> {
    let all = listeners(world, &format!("sidecar~{ADDRESS}~web.shop~shop.svc.cluster.local"));
    let inbound = all.iter().find(|listener| listener["name"] == "virtualInbound").unwrap();
    let chain = inbound["filter_chains"].as_array().unwrap().iter();
    let chain = chain.into_iter().find(|chain| chain["filter_chain_match"]["destination_port"] == port).unwrap();
    let filters = chain["filters"].as_array().unwrap();
    let of_http =
        filters.iter().flat_map(|filter| filter["typed_config"]["http_filters"].as_array().into_iter().flatten());
    let all = filters.iter().chain(of_http).map(|filter| filter["typed_config"].clone());
    all.filter(|config| config["@type"].as_str().unwrap().ends_with("rbac.v3.RBAC")).collect()
}

/// The names of a filter's rules, with its action.
fn names(config: &Value) -> (String, Vec<String>) {
    let rules = if config["rules"].is_null() { &config["shadow_rules"] } else { &config["rules"] };
    let action = rules["action"].as_str().unwrap_or("ALLOW").to_owned();
    (action, rules["policies"].as_object().unwrap().keys().cloned().collect())
}

#[test]
fn a_proxy_gets_the_policies_that_bind_it_and_denials_first() {
    let policies = [
        policy("shop", "allow", "{selector: {matchLabels: {app: web}}, rules: [{}, {}]}"),
        policy("shop", "deny", "{action: DENY, rules: [{}]}"),
        policy("istio-system", "everywhere", "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}"),
        policy("shop", "others", "{selector: {matchLabels: {app: other}}, rules: [{}]}"),
        policy("elsewhere", "far", "{rules: [{}]}"),
        policy("shop", "noted", "{action: AUDIT, rules: [{}]}"),
    ];
    let world = world("{}", &policies.concat());
    let expected = [
        ("DENY", vec!["ns[istio-system]-policy[everywhere]-rule[0]", "ns[shop]-policy[deny]-rule[0]"]),
        ("ALLOW", vec!["ns[shop]-policy[allow]-rule[0]", "ns[shop]-policy[allow]-rule[1]"]),
    ];
    for port in [8080, 9090] {
        let found: Vec<(String, Vec<String>)> = rbac(&world, port).iter().map(names).collect();
        let expected =
            expected.clone().map(|(action, names)| (action.to_owned(), names.into_iter().map(str::to_owned).collect()));
        assert_eq!(found, expected, "{port}");
    }
    // What it sends is its own business.
    let all = listeners(&world, &format!("sidecar~{ADDRESS}~web.shop~shop.svc.cluster.local"));
    let outbound = all.iter().filter(|listener| listener["name"] != "virtualInbound");
    assert!(outbound.into_iter().all(|listener| !listener.to_string().contains("rbac")));
}

#[test]
fn rules_become_permissions_and_principals() {
    let spec = "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/a], notNamespaces: [b]}}], to: [{operation: {methods: [GET], paths: ['/x/{*}', '/y*']}}], when: [{key: 'request.headers[x-a]', notValues: ['*']}]}]}";
    let found =
        rbac(&world("{trustDomain: new.example, trustDomainAliases: [old.example]}", &policy("shop", "a", spec)), 8080);
    let policy = &found[0]["rules"]["policies"]["ns[shop]-policy[a]-rule[0]"];
    let name = |text: &str| json!({"authenticated": {"principal_name": {"exact": text}}});
    assert_eq!(
        policy["principals"],
        json!([{"and_ids": {"ids": [
            {"or_ids": {"ids": [name("spiffe://new.example/ns/shop/sa/a"), name("spiffe://old.example/ns/shop/sa/a")]}},
            {"not_id": {"or_ids": {"ids": [{"authenticated": {"principal_name": {"safe_regex": {"regex": ".*/ns/b/.*"}}}}]}}},
            {"not_id": {"or_ids": {"ids": [{"header": {"name": "x-a", "present_match": true}}]}}}
        ]}}])
    );
    assert_eq!(
        policy["permissions"],
        json!([{"and_rules": {"rules": [
            {"or_rules": {"rules": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}]}},
            {"or_rules": {"rules": [
                {"uri_template": {"name": "envoy.path.match.uri_template.uri_template_matcher", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                    "path_template": "/x/*"}}},
                {"url_path": {"path": {"prefix": "/y"}}}
            ]}}
        ]}}])
    );
}

/// What only requests have lets no connection of bytes in, and keeps more of them out.
#[test]
fn what_cannot_be_said_of_bytes_closes() {
    let of = |action: &str| {
        let spec = format!("{{action: {action}, rules: [{{to: [{{operation: {{paths: [/x], ports: ['9090']}}}}]}}]}}");
        let found = rbac(&world("{}", &policy("shop", "a", &spec)), 9090);
        found[0]["rules"]["policies"]["ns[shop]-policy[a]-rule[0]"].clone()
    };
    let never = json!([{"not_rule": {"any": true}}]);
    assert_eq!(of("ALLOW")["permissions"], never);
    let port = json!([{"and_rules": {"rules": [{"or_rules": {"rules": [{"destination_port": 9090}]}}]}}]);
    assert_eq!(of("DENY")["permissions"], port);
}

#[test]
fn policies_on_trial_are_only_told() {
    let text = policy("shop", "a", "{action: DENY, rules: [{}]}")
        .replace("namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: 'true'}}");
    let found = rbac(&world("{}", &text), 8080);
    assert!(found[0]["rules"].is_null() && found[0]["shadow_rules"]["policies"].is_object(), "{found:?}");
    assert_eq!(found[0]["shadow_rules_stat_prefix"], "istio_dry_run_deny_");
}

/// A policy that nobody can decide, and one that asks somebody who is not asked, deny.
#[test]
fn what_is_wrong_or_not_built_denies() {
    let unknown = world("{}", &policy("shop", "a", "{rules: [{when: [{key: custom.decision, values: [x]}]}]}"));
    let found = rbac(&unknown, 8080);
    assert_eq!(
        found[0]["rules"]["policies"]["ns[shop]-policy[a]-rule[0]"]["permissions"],
        json!([{"not_rule": {"any": true}}])
    );
    let asks = "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/x]}}]}]}";
    let found = rbac(&world("{}", &policy("shop", "a", asks)), 8080);
    let name = "istio-ext-authz-opa-ns[shop]-policy[a]-rule[0]-deny-due-to-bad-CUSTOM-action";
    assert_eq!(names(&found[0]), ("DENY".to_owned(), vec![name.to_owned()]));
}

/// The last good version stays; where there is none, a wrong one is better than nothing.
#[test]
fn a_wrong_policy_changes_nothing_or_closes() {
    let mut world = world("{}", &policy("shop", "a", "{rules: [{}]}"));
    let put = |world: &mut World, spec: &str| {
        let decoded = api::decode::documents(policy("shop", "a", spec).as_bytes(), "a.yaml", "shop");
        for object in decoded.objects {
            world.apply(Change::Upsert(Box::new(object)));
        }
        rbac(world, 8080)[0]["rules"]["policies"]["ns[shop]-policy[a]-rule[0]"]["permissions"].clone()
    };
    let all = json!([{"and_rules": {"rules": [{"any": true}]}}]);
    let never = json!([{"not_rule": {"any": true}}]);
    assert_eq!(put(&mut world, "{rules: [{from: [{source: {}}]}]}"), all);
    let key = world.objects().find(|one| one.meta.name == "a").unwrap().key();
    world.apply(Change::Delete(key));
    assert_eq!(put(&mut world, "{rules: [{from: [{source: {}}]}]}"), never);
    assert_eq!(put(&mut world, "{rules: [{from: [{source: {ipBlocks: [x]}}]}]}"), never);
    assert_eq!(put(&mut world, "{rules: [{}]}"), all);
    // Nor does one that cannot be read whole: without the misspelt field it would let everybody in.
    let unread =
        ["{rules: [{form: [{source: {principals: [a]}}]}]}", "{action: DNEY, rules: [{}]}", "{rule: []}", "[]"];
    for spec in unread {
        assert_eq!(put(&mut world, spec), all, "{spec}");
    }
    for spec in unread {
        let key = world.objects().find(|one| one.meta.name == "a").unwrap().key();
        world.apply(Change::Delete(key));
        assert_eq!(put(&mut world, spec), never, "{spec}");
    }
    assert_eq!(put(&mut world, "{rules: [{}]}"), all);
}

/// A spec, the field that is named, how bad it is, and a word of the sentence.
const TOLD: &[(&str, &str, Severity, &str)] = &[
    ("{action: DENY}", "spec.rules", Severity::Error, "matches nothing"),
    ("{}", "spec.rules", Severity::Info, "lets nobody in"),
    ("{action: CUSTOM, rules: [{}]}", "spec.provider", Severity::Error, "provider"),
    ("{action: CUSTOM, provider: {name: a}, rules: [{}]}", "spec.provider.name", Severity::Error, "denied"),
    ("{action: AUDIT, rules: [{}]}", "spec.action", Severity::Warning, "noted"),
    ("{provider: {name: a}, rules: [{}]}", "spec.provider", Severity::Error, "Only CUSTOM"),
    ("{targetRefs: [{kind: Gateway, name: a}], rules: [{}]}", "spec.targetRefs", Severity::Error, "Gateway API"),
    ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source", Severity::Error, "nothing of the caller"),
    ("{rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0].operation", Severity::Error, "nothing of the request"),
    (
        "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
        "spec.rules[0].from[0].source.ipBlocks[0]",
        Severity::Error,
        "10.0.0.0/33",
    ),
    (
        "{rules: [{from: [{source: {namespaces: ['']}}]}]}",
        "spec.rules[0].from[0].source.namespaces[0]",
        Severity::Error,
        "empty",
    ),
    (
        "{rules: [{from: [{source: {principals: ['spiffe://a/ns/b/sa/c']}}]}]}",
        "spec.rules[0].from[0].source.principals[0]",
        Severity::Warning,
        "without spiffe://",
    ),
    (
        "{rules: [{from: [{source: {principals: [order-service]}}]}]}",
        "spec.rules[0].from[0].source.principals[0]",
        Severity::Warning,
        "no identity",
    ),
    (
        "{rules: [{from: [{source: {serviceAccounts: ['a*']}}]}]}",
        "spec.rules[0].from[0].source.serviceAccounts[0]",
        Severity::Error,
        "service account",
    ),
    (
        "{rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}",
        "spec.rules[0].from[0].source",
        Severity::Error,
        "together",
    ),
    (
        "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
        "spec.rules[0].from[0].source.requestPrincipals",
        Severity::Warning,
        "nobody is let in",
    ),
    (
        "{rules: [{to: [{operation: {ports: ['x']}}]}]}",
        "spec.rules[0].to[0].operation.ports[0]",
        Severity::Error,
        "number of a port",
    ),
    (
        "{rules: [{to: [{operation: {methods: [get]}}]}]}",
        "spec.rules[0].to[0].operation.methods[0]",
        Severity::Warning,
        "\"GET\"",
    ),
    (
        "{rules: [{to: [{operation: {paths: [admin]}}]}]}",
        "spec.rules[0].to[0].operation.paths[0]",
        Severity::Warning,
        "slash",
    ),
    (
        "{rules: [{to: [{operation: {paths: ['/a/*/b']}}]}]}",
        "spec.rules[0].to[0].operation.paths[0]",
        Severity::Warning,
        "another one is a star",
    ),
    (
        "{rules: [{to: [{operation: {paths: ['/a?b']}}]}]}",
        "spec.rules[0].to[0].operation.paths[0]",
        Severity::Warning,
        "query",
    ),
    (
        "{rules: [{to: [{operation: {paths: ['/{**}/{*}']}}]}]}",
        "spec.rules[0].to[0].operation.paths[0]",
        Severity::Error,
        "template",
    ),
    (
        "{rules: [{to: [{operation: {paths: ['/a{*}']}}]}]}",
        "spec.rules[0].to[0].operation.paths[0]",
        Severity::Error,
        "template",
    ),
    ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]", Severity::Error, "neither"),
    (
        "{rules: [{when: [{key: source.ip, values: [a]}]}]}",
        "spec.rules[0].when[0].values[0]",
        Severity::Error,
        "IP address",
    ),
    ("{rules: [{when: [{key: what, values: [a]}]}]}", "spec.rules[0].when[0].key", Severity::Error, "no attribute"),
    (
        "{rules: [{when: [{key: request.headers, values: [a]}]}]}",
        "spec.rules[0].when[0].key",
        Severity::Error,
        "names no part",
    ),
    (
        "{rules: [{when: [{key: 'request.auth.claims[a]', values: [a]}]}]}",
        "spec.rules[0].when[0].key",
        Severity::Warning,
        "Tokens",
    ),
];

#[test]
fn each_mistake_has_its_sentence() {
    for (spec, field, severity, says) in TOLD {
        let snapshot = Snapshot::build(&world("{}", &policy("shop", "a", spec)), None);
        let found = snapshot.problems();
        let hit = |one: &&api::problem::Problem| {
            one.field == *field && one.severity == *severity && one.message.contains(says)
        };
        assert!(found.iter().find(hit).is_some(), "{spec}: {found:?}");
        for problem in found {
            let text = &problem.message;
            assert!(text.starts_with(char::is_uppercase) && text.ends_with('.'), "{text:?} is not a sentence");
        }
    }
    let good = "{rules: [{from: [{source: {principals: ['*/ns/a/sa/b'], namespaces: [a], ipBlocks: [10.0.0.1, '2001:db8::/32']}}], to: [{operation: {hosts: [a.example], ports: ['8080'], methods: ['*'], paths: ['/a/{*}/b/{**}', '*']}}], when: [{key: 'request.headers[a]', values: [b]}]}]}";
    assert_eq!(Snapshot::build(&world("{}", &policy("shop", "a", good)), None).problems(), []);
}

/// Who has no certificate has no name.
#[test]
fn names_are_not_known_where_there_is_no_mutual_tls() {
    let disabled = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: DISABLE}}\n";
    let named = policy("shop", "a", "{rules: [{from: [{source: {namespaces: [shop]}}]}]}");
    let told = |text: &str| {
        let snapshot = Snapshot::build(&world("{}", text), None);
        let found = snapshot.problems().iter().filter(|one| one.code == Code::NeverMatches);
        found.map(|one| one.message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(told(&named), Vec::<String>::new());
    let told = told(&format!("{named}{disabled}"));
    assert!(matches!(&told[..], [one] if one.contains("mutual TLS")), "{told:?}");
}

/// Gateways of a namespace are workloads of it: for their requests and for the bytes that they pass on.
#[test]
fn gateways_are_bound_too() {
    let gateway = "---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  selector: {app: web}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}
  - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: shop}
spec:
  hosts: ['*']
  gateways: [edge]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: web, port: {number: 90}}}]}]
";
    let told = |policies: &str| -> Vec<(String, bool)> {
        let node = format!("router~{ADDRESS}~web.shop~shop.svc.cluster.local");
        let all = listeners(&world("{}", &format!("{gateway}{policies}")), &node);
        all.iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one.to_string().contains("rbac.v3"))).collect()
    };
    let named = |bound| vec![("0.0.0.0_8080".to_owned(), bound), ("0.0.0.0_9000".to_owned(), bound)];
    assert_eq!(told(""), named(false));
    let spec = "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {remoteIpBlocks: [192.0.2.1]}}]}]}";
    assert_eq!(told(&policy("shop", "edge", spec)), named(true));
}

/// Who has no proxy is not protected, and is told so.
#[test]
fn a_server_without_a_proxy_is_told_that_nothing_protects_it() {
    let snapshot = Snapshot::build(&world("{}", &policy("shop", "a", "{rules: [{}]}")), None);
    let problems = |metadata: Value| {
        let node = core::Node {
            id: format!("sidecar~{ADDRESS}~web.shop~shop.svc.cluster.local"),
            metadata: Some(api::xds::json_to_struct(&metadata)),
            ..core::Node::default()
        };
        let scope = Scope::of(&snapshot, &ProxyIdentity::of(&node, None).unwrap());
        scope.problems().iter().map(|problem| problem.message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(problems(json!({})), Vec::<String>::new());
    let told = problems(json!({"GENERATOR": "grpc"}));
    assert!(matches!(&told[..], [one] if one.contains("AuthorizationPolicy shop/a does not protect")), "{told:?}");
}
