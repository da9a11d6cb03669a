//! A folder of broken YAML: each file gets its sentence, and nothing else is disturbed.

use api::problem::{Code, Severity};
use mesh_tests::control_plane::ControlPlane;

const GOOD: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: good, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n";

/// File, text, the code it must get, and words of the sentence.
fn broken() -> Vec<(&'static str, String, Code, &'static str)> {
    let object = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x, namespace: shop}}\nspec:\n{spec}"
        )
    };
    vec![
        ("unclosed.yaml", "a: [1, 2\n".into(), Code::NotYaml, ""),
        ("tabs.yaml", "a:\n\tb: 1\n".into(), Code::NotYaml, ""),
        ("duplicate-key.yaml", "kind: Service\nkind: Pod\n".into(), Code::NotYaml, "kind"),
        ("cycle.yaml", "a: &a\n  b: *a\n".into(), Code::NotYaml, ""),
        ("bomb.yaml", bomb(), Code::NotYaml, ""),
        ("deep.yaml", "[".repeat(10_000), Code::NotYaml, ""),
        ("list.yaml", "- just\n- a list\n".into(), Code::NotYaml, ""),
        ("no-kind.yaml", "apiVersion: v1\nmetadata: {name: x}\n".into(), Code::MissingField, "kind"),
        ("no-name.yaml", "apiVersion: v1\nkind: Service\nspec: {}\n".into(), Code::MissingField, "name"),
        (
            "kind.yaml",
            "apiVersion: networking.istio.io/v1\nkind: VirtualSerice\nmetadata: {name: x}\n".into(),
            Code::UnknownKind,
            "VirtualService",
        ),
        (
            "version.yaml",
            "apiVersion: networking.istio.io/v9\nkind: VirtualService\nmetadata: {name: x}\n".into(),
            Code::SchemaValidation,
            "v1beta1",
        ),
        ("type.yaml", object("  hosts: 7\n"), Code::SchemaValidation, "spec.hosts"),
        (
            "duration.yaml",
            object("  hosts: [a]\n  http:\n  - timeout: soon\n    route: [{destination: {host: good}}]\n"),
            Code::SchemaValidation,
            "timeout",
        ),
        (
            "field.yaml",
            object("  hosts: [good]\n  htttp: []\n  http:\n  - route: [{destination: {host: good}}]\n"),
            Code::UnknownField,
            "http",
        ),
        (
            "regex.yaml",
            object(
                "  hosts: [good]\n  http:\n  - match: [{uri: {regex: '('}}]\n    route: [{destination: {host: good}}]\n",
            ).replace("name: x", "name: y"),
            Code::InvalidRegex,
            "regex",
        ),
    ]
}

/// Aliases that would unfold to a billion nodes.
fn bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        text += &format!("a{level}: &a{level} [{}]\n", below.trim_end_matches(", "));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn each_file_gets_its_sentence_and_disturbs_nothing() {
    let broken = broken();
    let mut files: Vec<(&str, &str)> = broken.iter().map(|(name, text, ..)| (*name, text.as_str())).collect();
    files.push(("good.yaml", GOOD));
    files.push(("binary.yaml", "\u{0}\u{1}\u{2}"));
    let control_plane = ControlPlane::start(&files).await;
    let problems = control_plane.problems();
    for (file, _, code, words) in &broken {
        let mine: Vec<_> = problems.iter().filter(|problem| problem.origin.file == *file).collect();
        let told = mine.iter().any(|problem| {
            problem.code == *code && problem.severity >= Severity::Warning && problem.to_string().contains(words)
        });
        assert!(told, "{file}: expected {code:?} with {words:?}, got {mine:#?}");
    }
    assert!(problems.iter().any(|problem| problem.origin.file == "binary.yaml"), "{problems:?}");
    let world = &control_plane.published.borrow().as_ref().unwrap().world.clone();
    assert!(world.objects().any(|object| object.meta.name == "good"));
    assert!(problems.iter().all(|problem| problem.origin.file != "good.yaml"));
    // Each sentence is one for a person: not empty, not a Rust type.
    for problem in &problems {
        assert!(problem.message.len() > 10 && !problem.message.contains("::"), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_turns_bad_keeps_its_last_good_version() {
    let good = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, namespace: shop}\nspec:\n  hosts: [good]\n  http:\n  - name: keep-me\n    route: [{destination: {host: good}}]\n";
    let control_plane = ControlPlane::start(&[("good.yaml", GOOD), ("x.yaml", good)]).await;
    control_plane.write("x.yaml", &good.replace("hosts: [good]", "hosts: 7"));
    mesh_tests::wait::until("the problem", async || {
        let told = control_plane.problems().iter().any(|problem| problem.code == Code::SchemaValidation);
        if told { Ok(()) } else { Err("none yet") }
    })
    .await;
    let held = control_plane.page("/debug/configz?kind=VirtualService").await.to_string();
    assert!(held.contains("keep-me") && !held.contains('7'), "{held}");
}
