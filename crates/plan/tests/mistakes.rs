//! Mistakes in objects that are told by the field they stand in, and keep the object out.
#![allow(clippy::unwrap_used)]

use api::problem::Severity;
use plan::intrinsic;

/// A kind, its spec, and the field and a word of what is told; nothing for what is right.
type Row = (&'static str, &'static str, Option<(&'static str, &'static str)>);

const ROWS: &[Row] = &[
    (
        "ServiceEntry",
        "{hosts: [a.b], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: foo.bar}]}",
        Some(("spec.endpoints[0].address", "resolution: DNS")),
    ),
    (
        "ServiceEntry",
        "{hosts: [a.b], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: '2001:db8::1'}]}",
        None,
    ),
    (
        "VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], retries: {attempts: 2, retryOn: '5xx,unavailible'}}]}",
        Some(("spec.http[0].retries.retryOn", "did you mean unavailable?")),
    ),
    (
        "VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], retries: {attempts: 2, retryOn: '5xx, 503,reset'}}]}",
        None,
    ),
    (
        "VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 1us}]}",
        Some(("spec.http[0].timeout", "at least 1ms")),
    ),
    ("VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 0s}]}", None),
];

#[test]
fn each_is_told() {
    for (kind, spec, told) in ROWS {
        let text = format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
        let decoded = api::decode::documents(text.as_bytes(), "a.yaml", "shop");
        assert_eq!(decoded.problems, [], "{spec}");
        let mut problems = intrinsic(&decoded.objects[0]);
        problems.retain(|problem| problem.severity == Severity::Error);
        match told {
            None => assert_eq!(problems, [], "{spec}"),
            Some((field, word)) => {
                let [problem] = &problems[..] else { panic!("{spec}: {problems:?}") };
                assert!(problem.field == *field && problem.message.contains(word), "{spec}: {problem}");
            }
        }
    }
}
