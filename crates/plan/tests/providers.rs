//! Who is asked about requests: what a proxy gets of it, what is told of it, and that nobody is let in where nobody can be asked.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use api::mesh_config::MeshConfig;
use api::problem::Severity;
use api::xds::{ResourceKind, core};
use plan::{Change, ProxyIdentity, Scope, Snapshot, World};
use serde_json::{Value, json};

const SHOP: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.0.0.1, serviceAccount: web, labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-x, port: 90, targetPort: 9090}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec: {egress: [{hosts: [./*]}]}
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: security}
spec: {selector: {app: opa}, ports: [{name: grpc, port: 9191}, {name: http, port: 8181}, {name: odd, port: 99}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: opa, namespace: security}
spec: {address: 10.0.0.2, labels: {app: opa}}
";
const OPA: &str =
    "extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.security.svc.cluster.local, port: 9191}}]";
const DECISION: &str =
    "rules: [{to: [{operation: {methods: [POST]}}], when: [{key: custom.opa_decision, values: [allow]}]}]";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

fn world(mesh: &str, policies: &str) -> World {
    let (mesh, problems) = MeshConfig::parse(mesh, "mesh.yaml");
    assert_eq!(problems, []);
    let mut world = World::new(mesh, "cluster.local");
    take(&mut world, &format!("{SHOP}{policies}"));
    world
}

fn take(world: &mut World, text: &str) {
    let decoded = api::decode::documents(text.as_bytes(), "a.yaml", "shop");
    assert_eq!(decoded.problems, []);
    for object in decoded.objects {
        world.apply(Change::Upsert(Box::new(object)));
    }
}

fn scope(world: &World) -> Scope {
    of(&Snapshot::build(world, None))
}

fn of(snapshot: &Arc<Snapshot>) -> Scope {
    let node =
        core::Node { id: "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local".to_owned(), ..core::Node::default() };
    Scope::of(snapshot, &ProxyIdentity::of(&node, None).unwrap())
}

fn names(scope: &Scope, kind: ResourceKind) -> Vec<String> {
    scope.generate(kind).iter().map(|one| one.name.to_string()).collect()
}

/// The filters of the chain for a port, by the last part of their names, with their settings.
fn filters(scope: &Scope, port: u16) -> Vec<(String, Value)> {
    let listeners = scope.generate(ResourceKind::Listener);
    let inbound = api::json::to_json(&listeners.get("virtualInbound").unwrap().body()).unwrap();
    let chains = inbound["filter_chains"].as_array().unwrap().clone();
    let chain = chains.into_iter().find(|chain| chain["filter_chain_match"]["destination_port"] == port).unwrap();
    let outer = chain["filters"].as_array().unwrap().clone();
    let inner = outer.iter().flat_map(|filter| filter["typed_config"]["http_filters"].as_array().into_iter().flatten());
    let all: Vec<Value> = outer.iter().chain(inner).cloned().collect();
    let of_interest = ["rbac", "ext_authz", "jwt_authn"];
    let named = all.into_iter().map(|filter| {
        let name = filter["name"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        (name, filter["typed_config"].clone())
    });
    named.filter(|(name, _)| of_interest.contains(&name.as_str())).collect()
}

fn said(world: &World, severity: Severity) -> Vec<String> {
    let snapshot = Snapshot::build(world, None);
    let found = snapshot.problems().iter().filter(|problem| problem.severity == severity);
    found.map(|problem| format!("{} {}: {}", problem.object.kind, problem.field, problem.message)).collect()
}

#[test]
fn a_provider_is_asked_before_all_else_about_what_its_policy_matches() {
    let custom = policy("ask", "action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/x]}}]}]");
    let tokens = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: t, namespace: shop}\nspec: {jwtRules: [{issuer: me, jwks: '{\"keys\": []}'}]}\n";
    let denied = policy("deny", "action: DENY, rules: [{to: [{operation: {paths: [/y]}}]}]");
    let world = world(OPA, &format!("{custom}{tokens}{denied}"));
    let scope = scope(&world);
    let filters = filters(&scope, 8080);
    let order: Vec<&str> = filters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, ["rbac", "ext_authz", "jwt_authn", "rbac"]);
    let noting = &filters[0].1;
    assert_eq!(noting["shadow_rules_stat_prefix"], "istio_ext_authz_");
    assert!(noting["rules"].is_null());
    let policies = noting["shadow_rules"]["policies"].as_object().unwrap();
    assert_eq!(policies.keys().collect::<Vec<_>>(), ["istio-ext-authz-opa-ns[shop]-policy[ask]-rule[0]"]);
    let asks = &filters[1].1;
    let grpc = &asks["grpc_service"];
    assert_eq!(
        grpc["envoy_grpc"],
        json!({"cluster_name": "outbound|9191||opa.security.svc.cluster.local", "authority": "opa.security.svc.cluster.local"})
    );
    assert_eq!((&grpc["timeout"], &asks["transport_api_version"]), (&json!("600s"), &json!("V3")));
    let enabled = &asks["filter_enabled_metadata"];
    assert_eq!(enabled["filter"], "envoy.filters.http.rbac");
    assert_eq!(enabled["path"], json!([{"key": "istio_ext_authz_shadow_effective_policy_id"}]));
    assert_eq!(enabled["value"], json!({"string_match": {"prefix": "istio-ext-authz-"}}));
    // Connections: what can only be said of requests counts as said.
    let bytes = self::filters(&scope, 9090);
    let order: Vec<&str> = bytes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, ["rbac", "ext_authz", "rbac"]);
    assert_eq!(bytes[1].1["filter_enabled_metadata"]["filter"], "envoy.filters.network.rbac");
    // The Sidecar object leaves the provider out; its cluster and endpoints are there all the same.
    for kind in [ResourceKind::Cluster, ResourceKind::Endpoint] {
        let names = names(&scope, kind);
        assert!(names.iter().any(|name| name == "outbound|9191||opa.security.svc.cluster.local"), "{names:?}");
    }
    assert_eq!(said(&world, Severity::Error), Vec::<String>::new());
}

#[test]
fn whoever_is_asked_over_http_is_not_asked_about_connections() {
    let mesh = "extensionProviders: [{name: opa, envoyExtAuthzHttp: {service: security/opa.security.svc.cluster.local, port: 8181, timeout: 1s, pathPrefix: /x, failOpen: true, clearRouteCache: true, statusOnError: '503', includeRequestHeadersInCheck: [a, B*, '*c'], includeAdditionalHeadersInCheck: {x: y}, headersToUpstreamOnAllow: [u], headersToDownstreamOnDeny: [d], headersToDownstreamOnAllow: [s], includeRequestBodyInCheck: {maxRequestBytes: 7, allowPartialMessage: true, packAsBytes: true}}}]";
    let world = world(mesh, &policy("ask", "action: CUSTOM, provider: {name: opa}, rules: [{}]"));
    let scope = scope(&world);
    assert_eq!(filters(&scope, 9090), []);
    let asks = filters(&scope, 8080).remove(1).1;
    let one = |name: &str| json!({"patterns": [{"exact": name, "ignore_case": true}]});
    assert_eq!(
        asks["http_service"],
        json!({"server_uri": {"uri": "http://opa.security.svc.cluster.local", "timeout": "1s", "cluster": "outbound|8181||opa.security.svc.cluster.local"},
            "path_prefix": "/x", "authorization_request": {"headers_to_add": [{"key": "x", "value": "y"}]},
            "authorization_response": {"allowed_upstream_headers": one("u"), "allowed_client_headers": one("d"), "allowed_client_headers_on_success": one("s")}})
    );
    assert_eq!(
        asks["allowed_headers"]["patterns"],
        json!([{"exact": "a", "ignore_case": true}, {"prefix": "B", "ignore_case": true}, {"suffix": "c", "ignore_case": true}])
    );
    assert_eq!(
        asks["with_request_body"],
        json!({"max_request_bytes": 7, "allow_partial_message": true, "pack_as_bytes": true})
    );
    assert_eq!((&asks["failure_mode_allow"], &asks["clear_route_cache"]), (&json!(true), &json!(true)));
    assert_eq!(asks["status_on_error"]["code"], "ServiceUnavailable");
    assert!(said(&world, Severity::Info)[0].contains("Connections that carry no HTTP"));
}

#[test]
fn where_nobody_can_be_asked_what_the_rules_match_is_denied() {
    let ask = |name: &str, provider: &str| {
        policy(
            name,
            &format!(
                "action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{paths: [/x]}}}}]}}]"
            ),
        )
    };
    let two = OPA
        .replace("}]", "}, {name: other, envoyExtAuthzGrpc: {service: opa.security.svc.cluster.local, port: 9191}}]");
    let rows = [
        ("{}", ask("a", "opa"), "have no provider \"opa\""),
        (OPA, ask("a", "Opa"), "is opa meant?"),
        (&*OPA.replace("9191", "9192"), ask("a", "opa"), "is wrong"),
        (&*two, format!("{}{}", ask("a", "opa"), ask("b", "other")), "several providers"),
    ];
    for (mesh, policies, says) in rows {
        let world = world(mesh, &policies);
        let told = said(&world, Severity::Error);
        let told = told.iter().find(|told| told.contains("AuthorizationPolicy"));
        assert!(told.is_some_and(|told| told.contains(says) && told.contains("is denied")), "{says}: {told:?}");
        let scope = scope(&world);
        for port in [8080, 9090] {
            let filters = filters(&scope, port);
            assert_eq!(filters.len(), 1, "{says}");
            let rules = &filters[0].1["rules"];
            assert_eq!(rules["action"], "DENY");
            let names: Vec<&String> = rules["policies"].as_object().unwrap().keys().collect();
            assert!(names.iter().all(|name| name.ends_with("-deny-due-to-bad-CUSTOM-action")), "{names:?}");
        }
    }
}

#[test]
fn decisions_are_asked_for_where_nothing_else_allows() {
    let plain = policy("plain", "rules: [{to: [{operation: {methods: [GET]}}]}]");
    let world = world(OPA, &format!("{}{plain}", policy("decided", DECISION)));
    let scope = scope(&world);
    let filters = filters(&scope, 8080);
    let order: Vec<&str> = filters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, ["rbac", "ext_authz", "rbac"]);
    let noted = filters[0].1["shadow_rules"]["policies"].as_object().unwrap();
    let names: Vec<&String> = noted.keys().collect();
    // The first that matches counts: what is allowed by itself.
    assert_eq!(names, ["allowed-ns[shop]-policy[plain]-rule[0]", "mesh-decision-opa-ns[shop]-policy[decided]-rule[0]"]);
    assert_eq!(filters[1].1["filter_enabled_metadata"]["value"], json!({"string_match": {"prefix": "mesh-decision-"}}));
    let allowed = filters[2].1["rules"]["policies"].as_object().unwrap();
    assert_eq!(allowed.len(), 2);
    // About connections nobody is asked: the rule lets nobody in.
    let bytes = self::filters(&scope, 9090);
    assert_eq!(bytes.len(), 1);
    let never = &bytes[0].1["rules"]["policies"]["ns[shop]-policy[decided]-rule[0]"];
    assert_eq!(never["permissions"], json!([{"not_rule": {"any": true}}]));
}

#[test]
fn a_decision_that_nobody_makes_lets_nobody_in() {
    let with = |condition: &str| policy("decided", &format!("rules: [{{when: [{condition}]}}]"));
    let good = "{key: custom.opa_decision, values: [allow]}";
    let rows = [
        ("{}", with(good), "no provider \"opa\""),
        (OPA, with("{key: custom.opa_decision, values: [deny]}"), "give values: [allow]"),
        (OPA, with("{key: custom.opa_decision, notValues: [deny]}"), "no notValues"),
        (OPA, with("{key: custom._decision, values: [allow]}"), "names no provider"),
        (OPA, with(&format!("{good}, {{key: custom.other_decision, values: [allow]}}")), "one provider only"),
        (OPA, with("{key: custom.decision, values: [allow]}"), "no attribute"),
    ];
    for (mesh, policies, says) in rows {
        let world = world(mesh, &policies);
        let told = said(&world, Severity::Error);
        assert!(told.iter().any(|told| told.contains(says)), "{says}: {told:?}");
        let filters = filters(&scope(&world), 8080);
        assert_eq!(filters.len(), 1, "{says}");
        let never = &filters[0].1["rules"]["policies"]["ns[shop]-policy[decided]-rule[0]"];
        assert_eq!(never["permissions"], json!([{"not_rule": {"any": true}}]), "{says}");
    }
    let denying = world(OPA, &policy("x", &format!("action: DENY, rules: [{{when: [{good}]}}]")));
    assert!(said(&denying, Severity::Error)[0].contains("by rules that allow something only"));
}

#[test]
fn wrong_providers_are_told() {
    let grpc = |fields: &str| format!("extensionProviders: [{{name: opa, envoyExtAuthzGrpc: {{{fields}}}}}]");
    let http = |fields: &str| {
        format!(
            "extensionProviders: [{{name: opa, envoyExtAuthzHttp: {{service: opa.security.svc.cluster.local, port: 8181, {fields}}}}}]"
        )
    };
    let to = "service: opa.security.svc.cluster.local, port: 9191";
    let rows = [
        (grpc("service: opa.security, port: 9191"), "envoyExtAuthzGrpc.service", "no service"),
        (grpc("port: 9191"), "envoyExtAuthzGrpc.service", "names no service"),
        (grpc("service: shop/opa.security.svc.cluster.local, port: 9191"), "service", "no service"),
        (grpc("service: opa.security.svc.cluster.local"), "port", "not that of a port"),
        (grpc("service: opa.security.svc.cluster.local, port: 70000"), "port", "not that of a port"),
        (grpc("service: opa.security.svc.cluster.local, port: 9192"), "port", "it has 9191, 8181, 99"),
        (grpc(&format!("{to}, timeout: 100us")), "timeout", "1ms or more"),
        (grpc(&format!("{to}, statusOnError: '999'")), "statusOnError", "not an HTTP status"),
        (grpc(&format!("{to}, statusOnError: no")), "statusOnError", "not an HTTP status"),
        (grpc(&format!("{to}, includeRequestBodyInCheck: {{}}")), "maxRequestBytes", "1 byte or more"),
        (http("pathPrefix: x"), "pathPrefix", "begin with a slash"),
        (http("headersToUpstreamOnAllow: ['*']"), "headersToUpstreamOnAllow[0]", "* alone"),
        (http("includeRequestHeadersInCheck: [a, 'b*c']"), "includeRequestHeadersInCheck[1]", "names no headers"),
        (http("includeAdditionalHeadersInCheck: {'a b': c}"), "includeAdditionalHeadersInCheck", "not the name"),
        (format!("extensionProviders: [{{envoyExtAuthzGrpc: {{{to}}}}}]"), "extensionProviders[0].name", "has no name"),
        ("extensionProviders: [{name: opa}]".to_owned(), "extensionProviders[0]", "here are none"),
        (OPA.replace("}]", "}, {name: opa, zipkin: {}}]"), "extensionProviders[1].name", "several providers"),
        (
            format!("extensionProviders: [{{name: opa, zipkin: {{}}, envoyExtAuthzGrpc: {{{to}}}}}]"),
            "extensionProviders[0]",
            "zipkin",
        ),
    ];
    for (mesh, field, says) in rows {
        let told = said(&world(&mesh, ""), Severity::Error);
        let found = told.iter().find(|told| told.starts_with("MeshConfig extensionProviders"));
        assert!(found.is_some_and(|told| told.contains(field) && told.contains(says)), "{mesh}: {told:?}");
    }
    let warned = said(&world(&grpc("service: opa.security.svc.cluster.local, port: 99"), ""), Severity::Warning);
    assert!(warned.iter().any(|told| told.contains("not declared to speak gRPC")), "{warned:?}");
    let unused = said(&world("extensionProviders: [{name: z, zipkin: {}}]", ""), Severity::Warning);
    assert!(
        unused.iter().any(|told| told.contains("extensionProviders[0].zipkin") && told.contains("not built")),
        "{unused:?}"
    );
}

/// The provider's endpoints move, its settings change, it goes: each is another configuration for whoever asks it, and for nobody else.
#[test]
fn changes_of_a_provider_reach_those_who_ask() {
    let mut world = world(OPA, &policy("ask", "action: CUSTOM, provider: {name: opa}, rules: [{}]"));
    let first = Snapshot::build(&world, None);
    let before = of(&first);
    take(
        &mut world,
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: opa, namespace: security}\nspec: {address: 10.0.0.3, labels: {app: opa}}\n",
    );
    let second = Snapshot::build(&world, Some(&first));
    let moved = of(&second);
    assert_ne!(before.key(), moved.key());
    let endpoints = |scope: &Scope| {
        let all = scope.generate(ResourceKind::Endpoint);
        api::json::to_json(&all.get("outbound|9191||opa.security.svc.cluster.local").unwrap().body())
            .unwrap()
            .to_string()
    };
    assert!(endpoints(&before).contains("10.0.0.2") && endpoints(&moved).contains("10.0.0.3"));
    // As the ConfigMap of the settings.
    let settings = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: \"{text}\"}}\n"
        )
    };
    take(&mut world, &settings(&OPA.replace("9191", "99")));
    let third = Snapshot::build(&world, Some(&second));
    let asks = filters(&of(&third), 8080).remove(1).1;
    assert_eq!(asks["grpc_service"]["envoy_grpc"]["cluster_name"], "outbound|99||opa.security.svc.cluster.local");
    take(&mut world, &settings("trustDomain: cluster.local"));
    let fourth = Snapshot::build(&world, Some(&third));
    assert_eq!(filters(&of(&fourth), 8080).len(), 1);
}
