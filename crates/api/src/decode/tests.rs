//! What comes out of text, good and bad.

use super::*;

fn read(text: &str) -> Decoded {
    documents(text.as_bytes(), "a.yaml", "shop")
}

fn lines(decoded: &Decoded) -> Vec<String> {
    decoded.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn an_unknown_field_is_told_with_its_line_and_the_field_that_is_meant() {
    let decoded = read(
        "# first\napiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: b\n  trafficPolicy:\n    connectionPool:\n      tcp:\n        maxConnections: 1\n        keepAlive: {time: 1s}\n",
    );
    assert_eq!(decoded.objects.len(), 1);
    assert_eq!(decoded.objects[0].origin.line, 2);
    assert_eq!(
        lines(&decoded),
        [
            "Warning [MESH0001] (DestinationRule shop/a a.yaml:11) spec.trafficPolicy.connectionPool.tcp.keepAlive: The name keepAlive is not a field of DestinationRule; did you mean tcpKeepalive? It has no effect."
        ]
    );
}

#[test]
fn a_broken_document_does_not_cost_its_neighbours() {
    let good = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    let decoded = read(&format!("{good}---\n{{a: [}}\n---\nkind: x: y\n---\n- 1\n---\nkind: Service\n---\n{good}"));
    assert_eq!(decoded.objects.len(), 2, "{:?}", decoded.problems);
    assert_eq!(decoded.problems.len(), 4, "{:?}", decoded.problems);
    assert_eq!(decoded.objects[1].origin.line, 13);
}

#[test]
fn a_wrong_type_names_the_field_and_rejects_the_object_alone() {
    let decoded = read(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: a\nspec:\n  hosts: [b]\n  http:\n  - timeout: 5\n    route:\n    - destination: {host: b}\n",
    );
    assert_eq!(decoded.rejected.len(), 1);
    assert_eq!(
        lines(&decoded),
        [
            "Error [IST0106] (VirtualService shop/a a.yaml:8) spec.http[0].timeout: expected a duration such as 1.5s, found the number 5."
        ]
    );
}

#[test]
fn enums_list_what_is_allowed() {
    let decoded = read(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICTER}}\n",
    );
    assert_eq!(
        lines(&decoded),
        [
            r#"Error [IST0106] (PeerAuthentication shop/a a.yaml:4) spec.mtls.mode: "STRICTER" is not one of UNSET, DISABLE, PERMISSIVE, STRICT."#
        ]
    );
}

#[test]
fn a_policy_that_cannot_be_read_whole_lets_nobody_in() {
    let scoped = "selector: {matchLabels: {app: shop}}";
    for (version, spec, is_scoped, told) in [
        (
            "v1",
            format!("{{{scoped}, rules: [{{form: []}}]}}"),
            true,
            "spec.rules[0].form: The name form is not a field of AuthorizationPolicy; did you mean from? The last good",
        ),
        (
            "v1",
            format!("{{{scoped}, action: DNEY}}"),
            true,
            "spec.action: \"DNEY\" is not one of ALLOW, DENY, AUDIT, CUSTOM. The last good",
        ),
        (
            "v1",
            "{selector: {matchLabels: [app]}, rules: [{}]}".to_owned(),
            false,
            "spec.selector.matchLabels: expected",
        ),
        (
            "v1",
            "{selecter: {matchLabels: {app: shop}}, rules: [{}]}".to_owned(),
            false,
            "spec.selecter: The name selecter",
        ),
        (
            "v2",
            format!("{{{scoped}, rules: [{{}}]}}"),
            true,
            "apiVersion: Version \"v2\" of AuthorizationPolicy is not served",
        ),
    ] {
        let decoded = read(&format!(
            "apiVersion: security.istio.io/{version}\nkind: AuthorizationPolicy\nmetadata: {{name: a, annotations: {{b: c}}}}\nspec: {spec}\n"
        ));
        let [problem] = &decoded.problems[..] else { panic!("{spec}: {:?}", decoded.problems) };
        assert_eq!(problem.severity, Severity::Error, "{spec}");
        assert!(problem.to_string().contains(told), "{spec}: {problem}");
        let [object] = &decoded.objects[..] else { panic!("{spec}: {:?}", decoded.objects) };
        let Body::AuthorizationPolicy(policy) = &object.body else { panic!("{spec}") };
        assert!(
            policy.is_unread && policy.rules.is_empty() && policy.action == Default::default(),
            "{spec}: {policy:?}"
        );
        assert_eq!(policy.selector.is_some(), is_scoped, "{spec}");
        assert_eq!(object.meta.annotations["b"], "c");
        assert!(decoded.rejected.is_empty());
    }
}

#[test]
fn null_is_absent_and_lists_are_unfolded() {
    let decoded = read(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.istio.io/v1\n  kind: VirtualService\n  metadata: {name: a, labels: null, creationTimestamp: null}\n  spec: {hosts: [b], http: [{match: null, route: [{destination: {host: b, port: null}}], timeout: null}], tls: null}\n- apiVersion: flagger.app/v1beta1\n  kind: Canary\n  metadata: {name: c}\n",
    );
    assert_eq!(decoded.objects.len(), 1, "{:?}", decoded.problems);
    assert_eq!(decoded.problems.len(), 1);
    assert_eq!((decoded.problems[0].severity, decoded.problems[0].code), (Severity::Info, Code::UnknownKind));
}

#[test]
fn equal_content_has_an_equal_digest() {
    let one = read(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, uid: x}\nspec: {ports: [{port: 80, name: http}], selector: {a: b}}\n",
    );
    let two = read(
        "apiVersion: v1\nkind: Service\nmetadata: {uid: y, name: a}\nspec: {selector: {a: b}, ports: [{name: http, port: 80}]}\nstatus: {x: 1}\n",
    );
    assert_eq!(one.objects[0].digest, two.objects[0].digest);
    let three = read(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: c}, ports: [{name: http, port: 80}]}\n",
    );
    assert_ne!(one.objects[0].digest, three.objects[0].digest);
}

#[test]
fn duplicate_keys_and_cycles_are_refused() {
    assert_eq!(read("kind: a\nkind: b\n").problems[0].code, Code::NotYaml);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    assert_eq!(read(bomb).problems.len(), 1);
}

#[test]
fn a_field_is_found_again_in_the_text() {
    let text = b"# shop
apiVersion: v1
kind: Service
metadata: {name: a}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec:
  hosts: [a]
  http:
  - name: one
    route:
    - destination:
        host: a
        subset: v1
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: c}
- apiVersion: v1
  kind: Service
  metadata: {name: d}
  spec:
    ports: []
";
    let decoded = documents(text, "a.yaml", "shop");
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    let line = |name: &str, field: &str| {
        let object = decoded.objects.iter().find(|object| object.meta.name == name).unwrap();
        line_of(text, &object.origin, field)
    };
    assert_eq!(line("b", "spec.http[0].route[0].destination.subset"), 16);
    assert_eq!(line("b", "spec.http[0].timeout"), 12, "the nearest holder of a field that is not there");
    assert_eq!(line("a", ""), decoded.objects[0].origin.line);
    assert_eq!(line("d", "spec.ports"), 28);
    assert_eq!(line_of(b"", &decoded.objects[0].origin, "spec"), decoded.objects[0].origin.line);
}
