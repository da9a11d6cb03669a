//! RequestAuthentications: tokens decided by our proxy and by a real Envoy under one control plane, which must let in and refuse
//! the same, say the same of it and hand the same on; and keys that the control plane fetches from somebody who is away, comes
//! back, talks nonsense and changes them.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use api::node::Role;
use api::problem::{Code, Severity};
use mesh_tests::control_plane::ControlPlane;
use mesh_tests::envoy::{Envoy, Workload};
use mesh_tests::server::{Client, ask, echo, get};
use mesh_tests::sidecar::{self, loopback, workload};
use mesh_tests::tokens::{Key, Page, Pages, key_set, seconds, unsigned};
use mesh_tests::twins::{KINDS, MESH, Twins};
use mesh_tests::wait::until;
use rand::RngExt;
use serde_json::{Value, json};

/// Ports of the servers, each with a rule of its own.
const PORTS: std::ops::RangeInclusive<u16> = 8080..=8093;

/// What each port asks for besides a token that is good; KIND is the end of the server's name.
const POLICIES: &str = r#"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allowed-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  rules:
  - to: [{operation: {ports: ["8080", "8091"]}}]
  - {to: [{operation: {ports: ["8081"]}}], from: [{source: {requestPrincipals: ["https://one.example/alice"]}}]}
  - {to: [{operation: {ports: ["8082"]}}], when: [{key: "request.auth.claims[role]", values: [admin, "ops-*"]}]}
  - {to: [{operation: {ports: ["8083"]}}], when: [{key: "request.auth.claims[verified]", values: ["true"]}]}
  - {to: [{operation: {ports: ["8084"]}}], when: [{key: "request.auth.claims[groups][inner]", values: [x]}]}
  - {to: [{operation: {ports: ["8085"]}}], when: [{key: request.auth.audiences, values: [shop]}]}
  - {to: [{operation: {ports: ["8086"]}}], when: [{key: request.auth.presenter, values: [app-1]}]}
  - {to: [{operation: {ports: ["8087"]}}], when: [{key: "request.auth.claims[scope]", values: [write]}]}
  - {to: [{operation: {ports: ["8088"]}}], from: [{source: {requestPrincipals: ["*"]}}]}
  - {to: [{operation: {ports: ["8089"]}}], when: [{key: "request.auth.claims[role]", notValues: [guest]}]}
  - {to: [{operation: {ports: ["8090"]}}], when: [{key: "request.auth.claims[level]", values: ["7"]}]}
  - {to: [{operation: {ports: ["8093"]}}], when: [{key: "request.auth.claims[nested][words]", values: [two]}]}
  - {to: [{operation: {ports: ["8092"]}}], when: [{key: request.auth.principal, values: ["https://two.example/*"]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied-KIND, namespace: shop}
spec:
  selector: {matchLabels: {app: web-KIND}}
  action: DENY
  rules:
  - {to: [{operation: {ports: ["8091"]}}], from: [{source: {notRequestPrincipals: ["*"]}}]}
"#;

/// A request: port, path, headers; and the status and a word of the body that are right. `{NAME}` is a token.
#[derive(Debug)]
struct Row(u16, &'static str, &'static str, u16, &'static str);

/// For a server that takes tokens of one issuer, in the usual places.
const ONE: &[Row] = &[
    Row(8080, "/", "", 200, ""),
    Row(8080, "/", "authorization: Bearer {good}", 200, ""),
    Row(8080, "/", "authorization: Bearer {elliptic}", 200, ""),
    Row(8080, "/", "authorization: Bearer {nameless}", 200, ""),
    Row(8080, "/", "authorization: Bearer  {good}", 200, ""),
    Row(8080, "/", "authorization: bearer {good}", 200, ""),
    Row(8080, "/", "authorization: Basic eDp5", 200, ""),
    Row(8080, "/", "authorization: Bearer ", 200, ""),
    Row(8080, "/", "authorization: Bearer x", 401, "two dots"),
    Row(8080, "/", "authorization: Bearer a.b.c", 401, "Jwt header is an invalid"),
    Row(8080, "/x?y=z", "authorization: Bearer {changed}", 401, "Jwt verification fails"),
    Row(8080, "/", "authorization: Bearer {foreign}", 401, "Jwt verification fails"),
    Row(8080, "/", "authorization: Bearer {expired}", 401, "Jwt is expired"),
    Row(8080, "/", "authorization: Bearer {late}", 200, ""),
    Row(8080, "/", "authorization: Bearer {early}", 401, "Jwt not yet valid"),
    Row(8080, "/", "authorization: Bearer {soon}", 200, ""),
    Row(8080, "/", "authorization: Bearer {endless}", 200, ""),
    Row(8080, "/", "authorization: Bearer {elsewhere}", 403, "Audiences in Jwt are not allowed"),
    Row(8080, "/", "authorization: Bearer {everywhere}", 403, "Audiences in Jwt are not allowed"),
    Row(8080, "/", "authorization: Bearer {other}", 401, "Jwt issuer is not configured"),
    Row(8080, "/", "authorization: Bearer {unsigned}", 401, "Jwt"),
    Row(8080, "/", "authorization: Bearer {none}", 401, "Jwt header [alg] is not supported"),
    Row(8080, "/", "authorization: Bearer {confused}", 401, "Jwt verification fails"),
    Row(8080, "/", "authorization: Bearer {unknown}", 401, "Jwks doesn't have key"),
    Row(8080, "/", "authorization: Bearer {odd}", 401, "[sub] field is not a string"),
    Row(8080, "/?access_token={good}", "", 200, ""),
    Row(8080, "/?a=b&access_token={good}&c=d", "", 200, ""),
    Row(8080, "/?access_token={expired}", "", 401, "Jwt is expired"),
    Row(8080, "/?access_token={good}", "authorization: Bearer {expired}", 401, "Jwt is expired"),
    Row(8080, "/?access_token={expired}", "authorization: Bearer {good}", 401, "Jwt is expired"),
    Row(8080, "/", "x-token: {expired}", 200, ""),
    Row(8080, "/", "authorization: Bearer {good}\r\nauthorization: Bearer {good}", 401, "two dots"),
    Row(8081, "/", "authorization: Bearer {good}", 200, ""),
    Row(8081, "/", "authorization: Bearer {bob}", 403, "RBAC"),
    Row(8081, "/", "", 403, "RBAC"),
    Row(8081, "/", "authorization: Bearer {expired}", 401, "Jwt is expired"),
    Row(8082, "/", "authorization: Bearer {good}", 200, ""),
    Row(8082, "/", "authorization: Bearer {roles}", 200, ""),
    Row(8082, "/", "authorization: Bearer {bob}", 403, "RBAC"),
    Row(8082, "/", "", 403, "RBAC"),
    Row(8083, "/", "authorization: Bearer {good}", 200, ""),
    Row(8083, "/", "authorization: Bearer {bob}", 200, ""),
    Row(8083, "/", "authorization: Bearer {roles}", 403, "RBAC"),
    Row(8084, "/", "authorization: Bearer {good}", 200, ""),
    Row(8084, "/", "authorization: Bearer {bob}", 403, "RBAC"),
    Row(8085, "/", "authorization: Bearer {good}", 200, ""),
    Row(8085, "/", "authorization: Bearer {roles}", 403, "RBAC"),
    Row(8086, "/", "authorization: Bearer {good}", 200, ""),
    Row(8086, "/", "authorization: Bearer {bob}", 403, "RBAC"),
    Row(8087, "/", "authorization: Bearer {good}", 200, ""),
    Row(8087, "/", "authorization: Bearer {bob}", 403, "RBAC"),
    Row(8088, "/", "authorization: Bearer {bob}", 200, ""),
    Row(8088, "/", "", 403, "RBAC"),
    Row(8089, "/", "authorization: Bearer {good}", 200, ""),
    Row(8089, "/", "authorization: Bearer {bob}", 403, "RBAC"),
    Row(8089, "/", "", 200, ""),
    Row(8090, "/", "authorization: Bearer {good}", 403, "RBAC"),
    Row(8091, "/", "authorization: Bearer {bob}", 200, ""),
    Row(8091, "/", "", 403, "RBAC"),
    Row(8092, "/", "authorization: Bearer {good}", 403, "RBAC"),
];

/// For one that takes those of three, each in places of its own, and hands on what they say.
const MANY: &[Row] = &[
    Row(8080, "/", "", 200, ""),
    Row(8080, "/", "authorization: Bearer {good}\r\nx-alice: root\r\nx-claims: root\r\nx-none: root", 200, ""),
    Row(8080, "/", "x-alice: root\r\nx-claims: root\r\nx-none: root", 200, ""),
    Row(8080, "/", "authorization: Bearer {expired}", 401, "Jwt is expired"),
    Row(8080, "/", "authorization: Bearer {other}", 401, "Jwt issuer is not configured"),
    Row(8080, "/", "x-token: JWT {other}", 200, ""),
    Row(8080, "/", "x-token: {other}", 200, ""),
    Row(8080, "/", "x-token: JWT {good}", 401, "Jwt issuer is not configured"),
    Row(8080, "/", "x-token: JWT {strange}", 401, "Jwt issuer is not configured"),
    Row(8080, "/?t={other}", "", 200, ""),
    Row(8080, "/?t={foreign}", "", 401, "Jwt issuer is not configured"),
    Row(8080, "/", "cookie: a=b; c={other}", 200, ""),
    Row(8080, "/", "cookie: a=b; c=x.y.z", 401, "Jwt header"),
    Row(8080, "/", "x-third: {third}", 200, ""),
    Row(8080, "/", "x-third: Bearer {third}", 401, "Jwt header"),
    Row(8080, "/", "authorization: Bearer {good}\r\nx-token: JWT {other}", 200, ""),
    Row(8080, "/", "authorization: Bearer {expired}\r\nx-token: JWT {other}", 200, ""),
    Row(8081, "/", "authorization: Bearer {good}", 200, ""),
    Row(8081, "/", "x-token: JWT {other}", 403, "RBAC"),
    Row(8093, "/", "authorization: Bearer {good}", 403, "RBAC"),
    Row(8092, "/", "x-token: JWT {other}", 200, ""),
    Row(8092, "/", "authorization: Bearer {good}", 403, "RBAC"),
];

struct Keys {
    one: Key,
    elliptic: Key,
    two: Key,
    stranger: Key,
}

impl Keys {
    fn new() -> Keys {
        Keys {
            one: Key::rsa("one"),
            elliptic: Key::elliptic("two"),
            two: Key::elliptic("other"),
            stranger: Key::rsa("one"),
        }
    }

    /// All tokens by name.
    fn tokens(&self) -> BTreeMap<&'static str, String> {
        let good = json!({"iss": "https://one.example", "sub": "alice", "aud": ["shop", "x"], "azp": "app-1",
            "exp": seconds(600), "nbf": seconds(-5), "iat": seconds(-5), "role": "admin", "verified": true, "level": 7,
            "groups": {"inner": ["w", "x"]}, "scope": "read write",
            "nested": {"words": "one two"}, "https://x.y/z": "U", "real": 1.5});
        let but = |more: Value| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            claims
        };
        let without = |name: &str| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(name);
            claims
        };
        let token = |more: Value| self.one.token(&but(more));
        let whole = self.one.token(&good);
        let (front, end) = whole.rsplit_once('.').unwrap();
        let signature = if end.starts_with('A') { end.replacen('A', "B", 1) } else { format!("A{}", &end[1..]) };
        BTreeMap::from([
            ("good", whole.clone()),
            ("elliptic", self.elliptic.token(&good)),
            ("nameless", self.one.token_with(&json!({"alg": "RS256"}), &good)),
            ("changed", format!("{front}.{signature}")),
            ("foreign", self.stranger.token(&good)),
            ("expired", token(json!({"exp": seconds(-90)}))),
            ("late", token(json!({"exp": seconds(-20)}))),
            ("early", token(json!({"nbf": seconds(120)}))),
            ("soon", token(json!({"nbf": seconds(30)}))),
            ("endless", self.one.token(&without("exp"))),
            ("elsewhere", token(json!({"aud": "other"}))),
            ("everywhere", self.one.token(&without("aud"))),
            ("other", self.two.token(&json!({"iss": "https://two.example", "sub": "carol", "name": "Carol"}))),
            ("third", self.two.token(&json!({"iss": "third", "sub": "dave"}))),
            ("strange", self.two.token(&json!({"iss": "https://nowhere.example", "sub": "x"}))),
            ("unsigned", unsigned(&good)),
            ("none", self.one.token_with(&json!({"alg": "none"}), &good)),
            ("confused", self.one.confused(&good)),
            ("unknown", self.one.token_with(&json!({"alg": "RS256", "kid": "three"}), &good)),
            ("odd", token(json!({"sub": 7}))),
            (
                "bob",
                token(json!({"sub": "bob", "role": "guest", "verified": "true", "groups": {"inner": "y"},
                "azp": "app-2", "scope": "read"})),
            ),
            ("roles", token(json!({"role": ["x", "ops-1"], "verified": false, "aud": "x"}))),
        ])
    }
}

/// Rules for one issuer.
fn one(keys: &Keys) -> String {
    format!(
        "  - {{issuer: 'https://one.example', audiences: [shop, 'https://x/'], jwks: '{}'}}\n",
        key_set(&[&keys.one, &keys.elliptic])
    )
}

/// Rules for three.
fn many(keys: &Keys) -> String {
    format!(
        "  - issuer: 'https://one.example'
    jwks: '{}'
    outputPayloadToHeader: x-claims
    outputClaimToHeaders:
    - {{header: x-alice, claim: sub}}
    - {{header: X-Inner, claim: groups.inner}}
    - {{header: x-verified, claim: verified}}
    - {{header: x-level, claim: level}}
    - {{header: x-none, claim: none}}
    - {{header: x-list, claim: aud}}
    - {{header: x-url, claim: 'https://x.y/z'}}
    - {{header: x-real, claim: real}}
    spaceDelimitedClaims: [nested.words]
  - issuer: 'https://two.example'
    jwks: '{other}'
    forwardOriginalToken: true
    fromHeaders: [{{name: X-Token, prefix: 'JWT '}}]
    fromParams: [t]
    fromCookies: [c]
  - {{issuer: third, jwks: '{other}', fromHeaders: [{{name: x-third}}]}}
",
        key_set(&[&keys.one]),
        other = key_set(&[&keys.two]),
    )
}

struct Stage {
    twins: Twins,
    tokens: BTreeMap<&'static str, String>,
}

impl Stage {
    async fn open(rules: impl Fn(&Keys) -> String) -> Stage {
        let keys = Keys::new();
        let mut dice = rand::rng();
        let network = format!("127.{}.{}.", dice.random_range(100..250), dice.random_range(100..250));
        let addresses = [format!("{network}111"), format!("{network}112")];
        let mut objects = String::new();
        for (kind, address) in KINDS.iter().zip(&addresses) {
            let mut ingress = String::new();
            for port in PORTS {
                writeln!(ingress, "  - {{port: {{number: {port}, protocol: HTTP, name: http-{port}}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}").unwrap();
            }
            write!(
                objects,
                "---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: web-{kind}, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: web-{kind}}}}}
  ingress:
{ingress}---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens-{kind}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: web-{kind}}}}}
  jwtRules:
{}{}{}",
                rules(&keys),
                workload(&format!("web-{kind}"), "shop", address),
                POLICIES.replace("KIND", &kind.to_string()).trim_start()
            )
            .unwrap();
        }
        let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], MESH).await;
        assert!(control_plane.problems().is_empty(), "{:?}", control_plane.problems());
        for address in &addresses {
            echo(&format!("{address}:18080")).await;
        }
        Stage { twins: Twins::start(control_plane, addresses).await, tokens: keys.tokens() }
    }

    fn filled(&self, text: &str) -> String {
        self.tokens.iter().fold(text.to_owned(), |text, (name, token)| text.replace(&format!("{{{name}}}"), token))
    }

    /// The answer to a request, as it came.
    async fn send(&self, place: usize, row: &Row, id: &str) -> String {
        let Row(port, path, headers, ..) = row;
        let headers = if headers.is_empty() { String::new() } else { format!("{}\r\n", self.filled(headers)) };
        let text = format!(
            "GET {} HTTP/1.1\r\nhost: web.example\r\n{headers}user-agent: {id}\r\nconnection: close\r\n\r\n",
            self.filled(path)
        );
        self.twins.send(place, *port, text.as_bytes()).await
    }

    /// What the log says of a request, once it does.
    async fn told(&self, place: usize, id: &str) -> [String; 3] {
        self.twins.told(place, id, ["response_code", "response_flags", "response_code_details"]).await
    }

    /// All rows, with both.
    async fn decide(&self, rows: &[Row]) {
        let mut wrong = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let answers = [
                self.send(0, row, &format!("row-{index}-m")).await,
                self.send(1, row, &format!("row-{index}-e")).await,
            ];
            let said = answers.each_ref().map(|answer| said(answer));
            if said[0] != said[1] {
                wrong.push(format!("{row:?}: ours {:#?} Envoy {:#?}", said[0], said[1]));
            }
            if said[0].0 != row.3 || !answers[0].contains(row.4) {
                wrong.push(format!("{row:?}: {}", answers[0]));
            }
        }
        assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), rows.len(), wrong.join("\n"));
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.3 != 200) {
            let told = [self.told(0, &format!("row-{index}-m")).await, self.told(1, &format!("row-{index}-e")).await];
            let [ours, theirs] = told.map(|told| told.map(|text| text.replace("-m]", "]").replace("-e]", "]")));
            assert_eq!(ours, theirs, "{row:?}");
        }
    }
}

/// Of an answer: status, why, and what the application got of the request, or the body of the refusal.
fn said(answer: &str) -> (u16, String, Vec<String>) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let why = head.lines().find(|line| line.to_ascii_lowercase().starts_with("www-authenticate:")).unwrap_or_default();
    if status != 200 {
        return (status, why.to_ascii_lowercase(), vec![body.to_owned()]);
    }
    let of_interest = [
        "authorization",
        "cookie",
        "x-token",
        "x-third",
        "x-claims",
        "x-alice",
        "x-inner",
        "x-verified",
        "x-level",
        "x-none",
        "x-list",
        "x-url",
        "x-real",
    ];
    let interesting = |line: &&str| line.split_once(": ").is_some_and(|(name, _)| of_interest.contains(&name));
    let first = body.lines().find(|line| line.starts_with("GET ")).unwrap_or_default().to_owned();
    let mut lines: Vec<String> = body.lines().filter(interesting).map(str::to_owned).collect();
    lines.sort();
    lines.insert(0, first);
    (status, why.to_ascii_lowercase(), lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_decide_tokens_of_one_issuer_the_same() {
    let stage = Stage::open(one).await;
    stage.decide(ONE).await;
    // gRPC has words of its own for it.
    let headers = "content-type: application/grpc\r\nauthorization: Bearer {expired}";
    for place in [0, 1] {
        let answer = stage.send(place, &Row(8080, "/a.B/C", headers, 200, ""), "grpc").await.to_ascii_lowercase();
        for said in ["http/1.1 200", "grpc-status: 16\r\n", "grpc-message: jwt is expired\r\n"] {
            assert!(answer.contains(said), "{place}: {said} is not in {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_decide_tokens_of_several_issuers_the_same() {
    Stage::open(many).await.decide(MANY).await;
}

/// A workload with a rule whose keys are at an address, and a policy that asks for a token.
fn fetched(address: &str, keys: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: web, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: web}}}}
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  jwtRules:
  - {keys}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: somebody, namespace: shop}}
spec: {{rules: [{{from: [{{source: {{requestPrincipals: ['*']}}}}]}}, {{to: [{{operation: {{paths: [/open]}}}}]}}]}}
{}",
        workload("web", "shop", address)
    )
}

/// Status of a request with a token, and without one where that is allowed.
async fn statuses(address: &str, token: &str) -> Result<(u16, u16), String> {
    let to = format!("{address}:8080");
    let mut request = get("web", "/");
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let mut client = Client::connect(&to).await.map_err(|error| error.to_string())?;
    let with = client.ask(request).await?.0;
    Ok((with, ask(&to, "web", "/open").await?.0))
}

async fn becomes(what: &str, address: &str, token: &str, right: (u16, u16)) {
    until(what, async || match statuses(address, token).await {
        Ok(found) if found == right => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_from_an_issuer_that_comes_later_and_stay_when_it_goes() {
    let (web, issuer) = (loopback(), loopback());
    let issuer = format!("{issuer}:9000");
    let (first, second) = (Key::rsa("first"), Key::elliptic("second"));
    let claims = json!({"iss": "me", "sub": "x", "exp": seconds(600)});
    let objects = fetched(&web, &format!("{{issuer: me, jwksUri: 'http://{issuer}/keys', timeout: 500ms}}"));
    let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], MESH).await;
    echo(&format!("{web}:18080")).await;
    let proxy = sidecar::start(&control_plane, Role::Sidecar, "web", "shop", &web, &[]).await;
    // Nobody is there: tokens are refused, requests without one pass, and the object says why.
    becomes("the refusal", &web, &first.token(&claims), (401, 200)).await;
    let problem = |control_plane: &ControlPlane| {
        let problems = control_plane.problems().into_iter();
        problems.filter(|problem| problem.code == Code::KeysNotFetched).collect::<Vec<_>>()
    };
    let told = problem(&control_plane);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].severity, told[0].field.as_str()), (Severity::Error, "spec.jwtRules[0].jwksUri"));
    assert!(told[0].message.contains("cannot be reached"), "{told:?}");
    // It comes.
    let server = Pages::of_keys(&issuer, &[&first]).await;
    let since = Instant::now();
    becomes("the keys", &web, &first.token(&claims), (200, 200)).await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    until("no problem", async || match problem(&control_plane) {
        told if told.is_empty() => Ok(()),
        told => Err(told),
    })
    .await;
    assert!(control_plane.metric("pilot_jwks_resolver_network_fetch_success_total").await >= 1.0);
    assert!(control_plane.metric("pilot_jwks_resolver_network_fetch_fail_total").await >= 1.0);
    assert_eq!(statuses(&web, &second.token(&claims)).await, Ok((401, 200)));
    // It goes, control plane and proxy begin anew: the keys are still there.
    drop(server);
    proxy.end().await;
    let control_plane = control_plane.restart().await;
    let _proxy = sidecar::start(&control_plane, Role::Sidecar, "web", "shop", &web, &[]).await;
    until("the sentence", async || match problem(&control_plane).as_slice() {
        [one] if one.severity == Severity::Warning && one.message.contains("stay in use") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(statuses(&web, &first.token(&claims)).await, Ok((200, 200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_does_not_take_good_keys_away_and_new_keys_come() {
    let (web, issuer) = (loopback(), loopback());
    let (first, second) = (Key::rsa("first"), Key::elliptic("second"));
    let server = Pages::serve(&format!("{issuer}:0"), Vec::new()).await;
    let root = format!("http://{}", server.address);
    let page = |path: &str, status: u16, headers: &str, body: String| Page {
        path: path.into(),
        status,
        headers: headers.into(),
        body,
    };
    let settings = || {
        page(
            "/.well-known/openid-configuration",
            200,
            "",
            json!({"issuer": root, "jwks_uri": format!("{root}/moved")}).to_string(),
        )
    };
    let moved = || page("/moved", 302, "location: /keys\r\n", String::new());
    let claims = json!({"iss": root, "sub": "x", "exp": seconds(600)});
    let with = |keys: String| vec![settings(), moved(), page("/keys", 200, "", keys)];
    server.change(with(key_set(&[&first])));
    // The keys are where the issuer's own configuration says.
    let objects = fetched(&web, &format!("{{issuer: '{root}', timeout: 1s}}"));
    let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], MESH).await;
    echo(&format!("{web}:18080")).await;
    let _proxy = sidecar::start(&control_plane, Role::Sidecar, "web", "shop", &web, &[]).await;
    assert_eq!(control_plane.problems(), [], "the first configuration waits for the keys");
    becomes("the keys", &web, &first.token(&claims), (200, 200)).await;
    assert_eq!(server.asked(), ["/.well-known/openid-configuration", "/moved", "/keys"]);
    // Each of these is looked at when the rule changes, since nobody waits for the next look.
    let nonsense = [
        (with("<html>".into()), "no key set"),
        (with(r#"{"keys": []}"#.into()), "has no key"),
        (vec![settings(), moved(), page("/keys", 500, "", String::new())], "answers 500"),
        (vec![settings(), moved(), page("/keys", 0, "", String::new())], "did not answer within"),
        (vec![page("/.well-known/openid-configuration", 200, "", "{}".into())], "names no jwks_uri"),
        (vec![settings(), page("/moved", 302, "location: /moved\r\n", String::new())], "redirections"),
        (vec![settings(), page("/moved", 200, "", "x".repeat(2 << 20))], "could not be read"),
    ];
    for (index, (pages, says)) in nonsense.into_iter().enumerate() {
        server.change(pages);
        let timeout = format!("timeout: {}ms", 1001 + index);
        control_plane.write("shop.yaml", &objects.replace("timeout: 1s", &timeout));
        until(says, async || {
            let problems = control_plane.problems();
            let told = problems.iter().find(|problem| problem.message.contains(says));
            told.filter(|told| told.severity == Severity::Warning).map(drop).ok_or(problems.clone())
        })
        .await;
        assert_eq!(statuses(&web, &first.token(&claims)).await, Ok((200, 200)), "{says}");
    }
    server.change(with(key_set(&[&first, &second])));
    becomes("the new key", &web, &second.token(&claims), (200, 200)).await;
    assert_eq!(statuses(&web, &first.token(&claims)).await, Ok((200, 200)));
    assert_eq!(control_plane.problems(), []);
}

/// The manifest as its users have it: who has the token that it asks for is let in.
#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_lets_in_whom_it_means() {
    let manifest = "../examples/manifests/ecommerce-payment-authz-and-jwt.yaml";
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let manifest = manifest.replace("  name: jwt-authz\n", "  name: jwt-authz\n  namespace: ecommerce\n");
    let address = loopback();
    let objects = format!(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: web, namespace: ecommerce}}
spec:
  workloadSelector: {{labels: {{app: user-service}}}}
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}]
{}",
        workload("user-service", "ecommerce", &address)
    );
    let files = [("manifest.yaml", manifest.as_str()), ("shop.yaml", objects.as_str())];
    let control_plane = ControlPlane::start_with(&files, MESH).await;
    // The issuer's keys, as if they had been fetched once: nobody has that name here.
    let key = Key::rsa("one");
    let kept = json!([{"address": "https://auth.ecommerce.com/.well-known/jwks.json", "jwks": key_set(&[&key])}]);
    std::fs::write(control_plane.path("state/jwks.json"), kept.to_string()).unwrap();
    let control_plane = control_plane.restart().await;
    echo(&format!("{address}:18080")).await;
    let _proxy = sidecar::start(&control_plane, Role::Sidecar, "user-service", "ecommerce", &address, &[]).await;
    let good = json!({"iss": "https://auth.ecommerce.com", "sub": "user-12345", "aud": "ecommerce-api",
        "exp": seconds(600), "role": "admin", "verified": true});
    let but = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        key.token(&claims)
    };
    let rows = [
        (key.token(&good), 200),
        (but("verified", json!("true")), 200),
        (but("verified", json!(false)), 403),
        (but("verified", json!(null)), 403),
        (but("role", json!("user")), 200),
        (but("role", json!(["guest", "user"])), 200),
        (but("role", json!("guest")), 403),
        (but("sub", json!("user-1")), 403),
        (but("aud", json!("other")), 403),
        (but("exp", json!(seconds(-600))), 401),
        (Key::rsa("one").token(&good), 401),
    ];
    let to = format!("{address}:8080");
    for (token, right) in rows {
        let mut request = get("user-service", "/api/v1/users/1");
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let (status, body) = Client::connect(&to).await.unwrap().ask(request).await.unwrap();
        assert_eq!(status, right, "{body}");
        // `forwardOriginalToken: true`.
        assert_eq!(body.contains("authorization: Bearer"), right == 200, "{body}");
    }
    assert_eq!(ask(&to, "user-service", "/").await.unwrap().0, 403);
}

/// At a gateway: tokens are looked at before anything else is asked or told, also of paths that lead nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn ours_and_envoy_look_at_tokens_at_a_gateway() {
    let key = Key::elliptic("one");
    let (server, addresses) = (loopback(), [loopback(), loopback()]);
    let mut objects = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: server, namespace: shop}}
spec:
  hosts: [server.example]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {server}, ports: {{http: 18080}}}}]
"
    );
    for (kind, address) in KINDS.iter().zip(&addresses) {
        write!(
            objects,
            "---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge-{kind}, namespace: shop}}
spec:
  selector: {{app: edge-{kind}}}
  servers: [{{port: {{number: 8080, name: http, protocol: HTTP}}, bind: {address}, hosts: ['web.example']}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge-{kind}, namespace: shop}}
spec:
  hosts: [web.example]
  gateways: [edge-{kind}]
  http:
  - match: [{{uri: {{prefix: /known}}, headers: {{'@request.auth.claims.role': {{exact: admin}}}}}}]
    route: [{{destination: {{host: server.example}}, headers: {{request: {{set: {{x-branch: admin}}}}}}}}]
  - match: [{{uri: {{prefix: /known}}, headers: {{'@request.auth.claims[groups][inner]': {{prefix: x}}}}}}]
    route: [{{destination: {{host: server.example}}, headers: {{request: {{set: {{x-branch: group}}}}}}}}]
  - match: [{{uri: {{prefix: /only}}, withoutHeaders: {{'@request.auth.claims.sub': {{exact: bob}}}}, headers: {{'@request.auth.claims.iss': {{}}}}}}]
    route: [{{destination: {{host: server.example}}}}]
  - {{match: [{{uri: {{prefix: /known}}}}], route: [{{destination: {{host: server.example}}}}]}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: edge-{kind}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: edge-{kind}}}}}
  jwtRules: [{{issuer: me, jwks: '{}', outputClaimToHeaders: [{{header: x-who, claim: sub}}]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: edge-{kind}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: edge-{kind}}}}}
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/known/staff]}}}}], from: [{{source: {{notRequestPrincipals: ['me/alice']}}}}]}}]
{}",
            key_set(&[&key]),
            workload(&format!("edge-{kind}"), "shop", address),
        )
        .unwrap();
    }
    let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], MESH).await;
    assert_eq!(control_plane.problems(), []);
    echo(&format!("{server}:18080")).await;
    let _ours = sidecar::start(&control_plane, Role::Router, "edge-m", "shop", &addresses[0], &[]).await;
    let identity = Workload {
        node_id: format!("router~{}~edge-e.shop~shop.svc.cluster.local", addresses[1]),
        namespace: "shop".into(),
        account: "edge-e".into(),
        labels: json!({"app": "edge-e"}),
    };
    let _envoy = Envoy::start(&control_plane, &identity, true);
    let bearing = |claims: Value| format!("Bearer {}", key.token(&claims));
    let token = |sub: &str| bearing(json!({"iss": "me", "sub": sub, "exp": seconds(600)}));
    let old = format!("Bearer {}", key.token(&json!({"iss": "me", "exp": seconds(-600)})));
    let rows = [
        ("/known", String::new(), 200, ""),
        ("/known", token("bob"), 200, "x-who: bob"),
        ("/known", old.clone(), 401, "Jwt is expired"),
        ("/unknown", old, 401, "Jwt is expired"),
        ("/unknown", token("bob"), 404, ""),
        ("/known", bearing(json!({"iss": "me", "role": "admin"})), 200, "x-branch: admin"),
        ("/known", bearing(json!({"iss": "me", "role": ["x", "admin"]})), 200, "x-branch: admin"),
        ("/known", bearing(json!({"iss": "me", "role": "other", "groups": {"inner": "xy"}})), 200, "x-branch: group"),
        ("/known", bearing(json!({"iss": "me", "role": "other", "groups": "xy"})), 200, ""),
        ("/only", token("alice"), 200, ""),
        ("/only", token("bob"), 404, ""),
        ("/only", String::new(), 404, ""),
        ("/known/staff", String::new(), 403, "RBAC"),
        ("/known/staff", token("bob"), 403, "RBAC"),
        ("/known/staff", token("alice"), 200, "x-who: alice"),
    ];
    for address in &addresses {
        let to = format!("{address}:8080");
        until("the gateway", async || match ask(&to, "web.example", "/known").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
        for (path, token, right, says) in &rows {
            let mut request = get("web.example", path);
            request.headers_mut().insert("x-who", "root".parse().unwrap());
            if !token.is_empty() {
                request.headers_mut().insert("authorization", token.parse().unwrap());
            }
            let (status, body) = Client::connect(&to).await.unwrap().ask(request).await.unwrap();
            assert_eq!(status, *right, "{to} {path}: {body}");
            assert!(body.contains(says) && !body.contains("root"), "{to} {path}: {body}");
            assert_eq!(body.contains("x-branch"), says.contains("x-branch"), "{to} {path}: {body}");
        }
    }
}
