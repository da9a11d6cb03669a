//! RequestAuthentications as a proxy gets them: which bind it, with which keys, at which place among the filters; and what is told
//! of them, and of policies that ask for tokens where nobody looks at them.
#![allow(clippy::unwrap_used)]

use api::mesh_config::MeshConfig;
use api::problem::{Code, Severity};
use api::xds::{ResourceKind, UNKNOWN_KEY, core};
use plan::keys::{KeySource, KnownKeys};
use plan::{Change, ProxyIdentity, Scope, Snapshot, World};
use serde_json::{Value, json};

const WORKLOADS: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.0.0.1, serviceAccount: web, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: edge, namespace: istio-system}
spec: {address: 10.0.0.9, serviceAccount: edge, labels: {istio: gateway}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-x, port: 90, targetPort: 9090}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec: {selector: {istio: gateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
";
const WEB: &str = "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local";
const EDGE: &str = "router~10.0.0.9~edge.istio-system~istio-system.svc.cluster.local";
const KEY: &str = r#"{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"}]}"#;

fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn tokens(namespace: &str, name: &str, spec: &str) -> String {
    object("RequestAuthentication", namespace, name, spec)
}

fn world(objects: &str) -> World {
    let mut world = World::new(MeshConfig::default(), "cluster.local");
    take(&mut world, &format!("{WORKLOADS}{objects}"));
    world
}

fn take(world: &mut World, text: &str) {
    let decoded = api::decode::documents(text.as_bytes(), "a.yaml", "shop");
    assert_eq!(decoded.problems, []);
    for object in decoded.objects {
        world.apply(Change::Upsert(Box::new(object)));
    }
}

/// Of each chain for HTTP, its filters by name.
fn filters(world: &World, node: &str) -> Vec<Vec<(String, Value)>> {
    let snapshot = Snapshot::build(world, None);
    let node = core::Node { id: node.to_owned(), ..core::Node::default() };
    let scope = Scope::of(&snapshot, &ProxyIdentity::of(&node, None).unwrap());
    let all = scope.generate(ResourceKind::Listener);
    let listeners = all.iter().map(|one| api::json::to_json(&one.body()).unwrap());
    let inbound = listeners.filter(|listener| listener["name"] == "virtualInbound" || node.id.starts_with("router"));
    let chains = inbound.flat_map(|listener| listener["filter_chains"].as_array().unwrap().clone());
    let of_http = chains
        .filter_map(|chain| chain["filters"].as_array()?.last()?["typed_config"]["http_filters"].as_array().cloned());
    let named = |filter: &Value| (filter["name"].as_str().unwrap().to_owned(), filter["typed_config"].clone());
    of_http.map(|filters| filters.iter().map(named).collect()).collect()
}

/// Issuer, object and keys of each provider, the same in all chains; nothing if the filter is not there.
fn providers(world: &World, node: &str) -> Vec<(String, String, String)> {
    let chains = filters(world, node);
    assert!(!chains.is_empty());
    let of = |chain: &Vec<(String, Value)>| -> Vec<(String, String, String)> {
        let Some((_, config)) = chain.iter().find(|(name, _)| name == "envoy.filters.http.jwt_authn") else {
            return Vec::new();
        };
        let providers = config["providers"].as_object().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut all: Vec<_> = providers.iter().collect();
        all.sort_by_key(|(name, _)| name.as_str());
        let row = |one: &Value| {
            let keys = text(&one["local_jwks"]["inline_string"]);
            let keys = if keys.contains(UNKNOWN_KEY) { "none".to_owned() } else { keys };
            (text(&one["issuer"]), text(&one["failed_status_in_metadata"]), keys)
        };
        all.into_iter().map(|(_, one)| row(one)).collect()
    };
    let found = of(&chains[0]);
    assert!(chains.iter().all(|chain| of(chain) == found));
    found
}

fn row(issuer: &str, object: &str, keys: &str) -> (String, String, String) {
    (issuer.to_owned(), format!("RequestAuthentication {object}"), keys.to_owned())
}

#[test]
fn a_proxy_gets_the_rules_that_bind_it() {
    let rule = |issuer: &str| format!("jwtRules: [{{issuer: '{issuer}', jwks: '{KEY}'}}]");
    let objects = [
        tokens("shop", "web", &format!("{{selector: {{matchLabels: {{app: web}}}}, {}}}", rule("b"))),
        tokens("istio-system", "all", &format!("{{{}}}", rule("c"))),
        tokens("shop", "others", &format!("{{selector: {{matchLabels: {{app: other}}}}, {}}}", rule("d"))),
        tokens("elsewhere", "far", &format!("{{{}}}", rule("e"))),
        tokens("istio-system", "edge", &format!("{{selector: {{matchLabels: {{istio: gateway}}}}, {}}}", rule("a"))),
        object("AuthorizationPolicy", "istio-system", "everywhere", "{rules: [{}]}"),
    ];
    let world = world(&objects.concat());
    assert_eq!(providers(&world, WEB), [row("b", "shop/web", KEY), row("c", "istio-system/all", KEY)]);
    assert_eq!(providers(&world, EDGE), [row("a", "istio-system/edge", KEY), row("c", "istio-system/all", KEY)]);
    for node in [WEB, EDGE] {
        for chain in filters(&world, node) {
            let place = |wanted: &str| chain.iter().position(|(name, _)| name == wanted).unwrap();
            assert!(place("envoy.filters.http.jwt_authn") < place("envoy.filters.http.rbac"), "{chain:?}");
        }
    }
    assert_eq!(providers(&self::world(""), WEB), []);
}

#[test]
fn keys_come_when_they_are_known_and_stay() {
    let rules = "{jwtRules: [{issuer: me, jwksUri: 'http://keys/x', timeout: 9s}, {issuer: 'https://you/'}, {issuer: they, jwks: '{\"keys\": []}'}]}";
    let mut world = world(&tokens("shop", "web", rules));
    let address = KeySource::Address("http://keys/x".into());
    let issuer = KeySource::Issuer("https://you/".into());
    let wanted: Vec<(KeySource, u128)> =
        world.wanted_keys().into_iter().map(|(source, time)| (source, time.0.as_millis())).collect();
    assert_eq!(wanted, [(address.clone(), 9000), (issuer.clone(), 5000)]);
    let keys = |world: &World| -> Vec<String> { providers(world, WEB).into_iter().map(|(.., keys)| keys).collect() };
    assert_eq!(keys(&world), ["none", "none", "none"]);
    let told = |world: &World| -> Vec<(Severity, String)> {
        let snapshot = Snapshot::build(world, None);
        let problems = snapshot.problems().iter().filter(|problem| problem.code == Code::KeysNotFetched);
        problems.map(|problem| (problem.severity, problem.field.clone())).collect()
    };
    assert_eq!(told(&world), [], "nobody has tried yet");
    let away = KnownKeys { jwks: None, failure: "it is away".into() };
    assert!(world.apply(Change::Keys(issuer.clone(), away.clone())));
    assert!(!world.apply(Change::Keys(issuer.clone(), away)), "nothing is new");
    assert_eq!(told(&world), [(Severity::Error, "spec.jwtRules[1].issuer".to_owned())]);
    world.apply(Change::Keys(issuer.clone(), KnownKeys { jwks: Some(KEY.into()), failure: String::new() }));
    assert_eq!((keys(&world), told(&world)), (vec![KEY.into(), "none".into(), "none".into()], vec![]));
    world.apply(Change::Keys(issuer, KnownKeys { jwks: Some(KEY.into()), failure: "it is away".into() }));
    assert_eq!(told(&world), [(Severity::Warning, "spec.jwtRules[1].issuer".to_owned())]);
    // A rule that is wrong changes nothing; one that goes away does.
    let good = keys(&world);
    take(&mut world, &tokens("shop", "web", "{jwtRules: [{issuer: me, jwksUri: 'nonsense'}]}"));
    assert_eq!(keys(&world), good);
    take(&mut world, &tokens("shop", "web", "{jwtRules: [{issuer: me, jwksUri: 'http://keys/x'}]}"));
    assert_eq!(keys(&world), ["none"]);
}

#[test]
fn what_is_wrong_is_told_on_its_field() {
    let rule = |rule: &str| format!("{{jwtRules: [{{issuer: a, jwks: '{KEY}', {rule}}}]}}");
    let rows = [
        (format!("{{jwtRules: [{{jwks: '{KEY}'}}]}}"), "spec.jwtRules[0].issuer", Severity::Error, "names no issuer"),
        ("{jwtRules: [{jwksUri: 'https://x/y'}]}".into(), "spec.jwtRules[0].issuer", Severity::Warning, "any issuer"),
        (rule("jwksUri: 'http://x'"), "spec.jwtRules[0]", Severity::Error, "Only one of jwks and jwksUri"),
        ("{jwtRules: [{issuer: a, jwks: 'x'}]}".into(), "spec.jwtRules[0].jwks", Severity::Error, "no key set"),
        (
            "{jwtRules: [{issuer: a, jwks: '{\"keys\": []}'}]}".into(),
            "spec.jwtRules[0].jwks",
            Severity::Warning,
            "no key that",
        ),
        (
            "{jwtRules: [{issuer: a, jwksUri: 'ftp://x'}]}".into(),
            "spec.jwtRules[0].jwksUri",
            Severity::Error,
            "http://HOST",
        ),
        (
            "{jwtRules: [{issuer: a, jwksUri: 'http://x:y/'}]}".into(),
            "spec.jwtRules[0].jwksUri",
            Severity::Error,
            "http://HOST",
        ),
        ("{jwtRules: [{issuer: a@b}]}".into(), "spec.jwtRules[0].issuer", Severity::Warning, "no address"),
        (rule("audiences: [x, '']"), "spec.jwtRules[0].audiences[1]", Severity::Error, "empty"),
        (
            rule("fromHeaders: [{name: 'a b'}]"),
            "spec.jwtRules[0].fromHeaders[0].name",
            Severity::Error,
            "name of a header",
        ),
        (
            rule("fromHeaders: [{name: ''}]"),
            "spec.jwtRules[0].fromHeaders[0].name",
            Severity::Error,
            "name of a header",
        ),
        (
            rule("fromHeaders: [{name: a, prefix: \"x\\n\"}]"),
            "spec.jwtRules[0].fromHeaders[0].prefix",
            Severity::Error,
            "cannot stand",
        ),
        (rule("fromParams: ['']"), "spec.jwtRules[0].fromParams[0]", Severity::Error, "empty"),
        (rule("fromCookies: ['']"), "spec.jwtRules[0].fromCookies[0]", Severity::Error, "empty"),
        (rule("spaceDelimitedClaims: ['']"), "spec.jwtRules[0].spaceDelimitedClaims[0]", Severity::Error, "empty"),
        (
            rule("outputPayloadToHeader: 'a:b'"),
            "spec.jwtRules[0].outputPayloadToHeader",
            Severity::Error,
            "name of a header",
        ),
        (
            rule("outputClaimToHeaders: [{header: '', claim: a}]"),
            "spec.jwtRules[0].outputClaimToHeaders[0].header",
            Severity::Error,
            "name of a header",
        ),
        (
            rule("outputClaimToHeaders: [{header: a, claim: ''}]"),
            "spec.jwtRules[0].outputClaimToHeaders[0].claim",
            Severity::Error,
            "missing",
        ),
        (
            rule("outputClaimToHeaders: [{header: A, claim: a}, {header: a, claim: b}]"),
            "spec.jwtRules[0].outputClaimToHeaders[1].header",
            Severity::Warning,
            "twice",
        ),
        (rule("timeout: 0s"), "spec.jwtRules[0].timeout", Severity::Error, "1ms"),
        (rule("presence: REQUIRED"), "spec.jwtRules[0].presence", Severity::Warning, "not built"),
        ("{jwtRules: []}".into(), "spec.jwtRules", Severity::Info, "all requests pass"),
        (
            format!("{{targetRefs: [{{kind: Gateway, name: x}}], jwtRules: [{{issuer: a, jwks: '{KEY}'}}]}}"),
            "spec.targetRefs",
            Severity::Error,
            "not built",
        ),
        (
            format!("{{jwtRules: [{{issuer: a, jwks: '{KEY}'}}, {{issuer: a, jwks: '{KEY}'}}]}}"),
            "spec.jwtRules[1].issuer",
            Severity::Info,
            "either",
        ),
    ];
    for (spec, field, severity, says) in rows {
        let snapshot = Snapshot::build(&world(&tokens("shop", "web", &spec)), None);
        let told: Vec<String> = snapshot.problems().iter().map(ToString::to_string).collect();
        let found = snapshot.problems().iter().find(|problem| problem.field == field);
        assert!(found.is_some_and(|one| one.severity == severity && one.message.contains(says)), "{spec}: {told:?}");
    }
    let good = rule(
        "audiences: [b], fromHeaders: [{name: x-a, prefix: 'JWT '}], fromParams: [t], fromCookies: [c], outputPayloadToHeader: x-p, forwardOriginalToken: true, outputClaimToHeaders: [{header: x-c, claim: c}], timeout: 1s, spaceDelimitedClaims: [d], presence: OPTIONAL",
    );
    assert_eq!(Snapshot::build(&world(&tokens("shop", "web", &good)), None).problems(), []);
    let addresses = ["http://keys.shop:8080/x", "https://[::1]:1/", "https://a/b?c=d"];
    for address in addresses {
        let spec = format!("{{jwtRules: [{{issuer: a, jwksUri: '{address}'}}]}}");
        assert_eq!(Snapshot::build(&world(&tokens("shop", "web", &spec)), None).problems(), [], "{address}");
    }
}

#[test]
fn policies_that_ask_for_tokens_need_somebody_who_reads_them() {
    let policy = |namespace: &str, spec: &str| object("AuthorizationPolicy", namespace, "policy", spec);
    let asks = "{rules: [{from: [{source: {requestPrincipals: ['*'], notRequestPrincipals: [x]}}], when: [{key: 'request.auth.claims[a]', values: [b]}, {key: 'request.headers[a]', values: [b]}]}]}";
    let rules = format!("jwtRules: [{{issuer: a, jwks: '{KEY}'}}]");
    let of_web = format!("{{selector: {{matchLabels: {{app: web}}}}, {rules}}}");
    let told = |objects: &str| -> Vec<(String, String)> {
        let snapshot = Snapshot::build(&world(objects), None);
        let problems =
            snapshot.problems().iter().filter(|problem| problem.message.contains("Tokens are not looked at"));
        problems.map(|problem| (problem.field.clone(), problem.message.clone())).collect()
    };
    let found = told(&policy("shop", asks));
    let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
    let right = [
        "spec.rules[0].from[0].source.notRequestPrincipals",
        "spec.rules[0].from[0].source.requestPrincipals",
        "spec.rules[0].when[0].key",
    ];
    assert_eq!(fields, right);
    assert!(found.iter().all(|(_, message)| message.contains("shop/web")), "{found:?}");
    assert_eq!(told(&format!("{}{}", policy("shop", asks), tokens("shop", "t", &of_web))), []);
    assert_eq!(told(&format!("{}{}", policy("shop", asks), tokens("istio-system", "t", &format!("{{{rules}}}")))), []);
    // Of the whole mesh, the gateway has nobody who reads them.
    let found = told(&format!("{}{}", policy("istio-system", asks), tokens("shop", "t", &of_web)));
    assert!(found.len() == 3 && found[0].1.contains("istio-system/edge"), "{found:?}");
    // Of workloads that are to come, it is their labels that count.
    let to_come = asks.replacen('{', "{selector: {matchLabels: {app: new}}, ", 1);
    assert_eq!(told(&policy("shop", &to_come)).len(), 3);
    assert_eq!(told(&format!("{}{}", policy("shop", &to_come), tokens("shop", "t", &format!("{{{rules}}}")))), []);
    assert_eq!(told(&policy("shop", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")), []);
    assert_eq!(
        json!(told(&policy("shop", &asks.replacen('{', "{action: DENY, ", 1)))[1].1.contains("matches nobody")),
        json!(true)
    );
}

#[test]
fn routes_by_claims_are_told_where_they_never_hold() {
    let told = |more: &str, name: &str| -> Vec<String> {
        let routing = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\nspec: {{{more}, http: [{{match: [{{headers: {{'{name}': {{exact: a}}}}}}], directResponse: {{status: 200}}}}]}}\n"
        );
        let snapshot = Snapshot::build(&world(&routing), None);
        snapshot.problems().iter().map(|problem| problem.message.clone()).collect()
    };
    let edge = "hosts: [a.example], gateways: [istio-system/edge]";
    for name in ["@request.auth.claims.role", "@request.auth.claims[a.b][c]", "@Request.Auth.Claims.role"] {
        assert_eq!(told(edge, name), [""; 0], "{name}");
        let found = told("hosts: [web]", name);
        assert!(found.len() == 1 && found[0].contains("at gateways only"), "{name}: {found:?}");
    }
    for name in
        ["@request.auth.principal", "@request.auth.claims", "@request.auth.claims[a][]", "@request.auth.claims..a"]
    {
        let found = told(edge, name);
        assert!(found.len() == 1 && found[0].contains("never holds"), "{name}: {found:?}");
    }
}
