//! Pods in, pods out: `tests/inject/CASE.yaml` (settings, namespace, pod) to `CASE.json`. `UPDATE_GOLDEN=1` rewrites the expected files.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use api::mesh_config::MeshConfig;
use plan::inject::{ClusterFacts, Context, Outcome, Settings, inject, patch};
use serde_json::{Value, json};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new("tests/inject");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 20);
    cases
}

struct Case {
    pod: Value,
    context: Context,
    settings: Settings,
}

fn read(file: &Path) -> Case {
    let case: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (mesh, problems) = MeshConfig::parse(&case["mesh"].to_string().replace("null", ""), "mesh");
    assert!(problems.is_empty(), "{problems:?}");
    let facts = ClusterFacts {
        network: text(&case["cluster"]["network"]),
        revision: text(&case["cluster"]["revision"]),
        native_sidecars: case["cluster"]["nativeSidecars"].as_bool().unwrap_or(true),
        ..ClusterFacts::default()
    };
    let values = if case["values"].is_null() { String::new() } else { case["values"].to_string() };
    // The built-in tag is this program's version, which golden files must not know.
    let values = if values.is_empty() { r#"{"global": {"tag": "1"}}"#.to_owned() } else { values };
    Case {
        context: Context {
            namespace: case["context"]["namespace"].as_str().unwrap_or("shop").to_owned(),
            cluster: case["context"]["cluster"].as_str().map(str::to_owned),
            network: case["context"]["network"].as_str().map(str::to_owned),
            ..Context::default()
        },
        settings: Settings::new(&text(&case["config"]), &values, mesh, facts).unwrap(),
        pod: case["pod"].clone(),
    }
}

fn shown(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Injected { pod, warnings } => json!({"injected": pod, "warnings": warnings}),
        Outcome::Skipped { reason, .. } => json!({"skipped": reason}),
        Outcome::Refused { sentence } => json!({"refused": sentence}),
    }
}

#[test]
fn pods_are_as_expected() {
    let mut wrong = Vec::new();
    for file in cases() {
        let case = read(&file);
        let found =
            serde_json::to_string_pretty(&shown(&inject(&case.pod, &case.context, &case.settings))).unwrap() + "\n";
        let golden = file.with_extension("json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if expected != found {
            let place = expected.lines().zip(found.lines()).position(|(one, two)| one != two).unwrap_or(0);
            let line = |text: &str| text.lines().nth(place).unwrap_or_default().to_owned();
            wrong.push(format!("{}:{}: {} became {}", golden.display(), place + 1, line(&expected), line(&found)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn injecting_again_changes_nothing() {
    let mut injected = 0;
    for file in cases() {
        let case = read(&file);
        let Outcome::Injected { pod, .. } = inject(&case.pod, &case.context, &case.settings) else { continue };
        let Outcome::Injected { pod: again, .. } = inject(&pod, &case.context, &case.settings) else {
            panic!("{}: the injected pod is not injected", file.display());
        };
        assert_eq!(patch(&pod, &again), json!([]), "{}", file.display());
        injected += 1;
    }
    assert!(injected >= 15);
}

#[test]
fn the_patch_makes_the_pod() {
    for file in cases() {
        let case = read(&file);
        let Outcome::Injected { pod, .. } = inject(&case.pod, &case.context, &case.settings) else { continue };
        let operations: json_patch::Patch = serde_json::from_value(patch(&case.pod, &pod)).unwrap();
        let mut patched = case.pod.clone();
        json_patch::patch(&mut patched, &operations).unwrap();
        assert_eq!(&patched, pod.as_ref(), "{}", file.display());
    }
}

#[test]
fn refusals_and_reasons_are_sentences() {
    for file in cases() {
        let case = read(&file);
        let outcome = inject(&case.pod, &case.context, &case.settings);
        let sentences = match outcome {
            Outcome::Injected { warnings, .. } => warnings,
            Outcome::Skipped { reason: sentence, .. } | Outcome::Refused { sentence } => vec![sentence],
        };
        for sentence in sentences {
            let whole = sentence.starts_with(char::is_uppercase) && sentence.ends_with('.');
            assert!(whole && !sentence.contains('\n'), "{}: {sentence:?}", file.display());
        }
    }
}

#[test]
fn the_settings_say_what_they_do_not_do() {
    let config = "templates: {sidecar: 'a: b', waypoint: 'a: b', mine: '{{ if }}'}";
    let values = "global: {mountMtlsCerts: true}";
    let settings = Settings::new(config, values, MeshConfig::default(), ClusterFacts::default()).unwrap();
    assert_eq!(settings.problems().len(), 4, "{:?}", settings.problems());
    let wrong = Settings::new("policy: maybe", "", MeshConfig::default(), ClusterFacts::default());
    assert!(wrong.unwrap_err().contains("policy"));
    let wrong = Settings::new("policy: [", "", MeshConfig::default(), ClusterFacts::default());
    assert!(wrong.unwrap_err().contains("config"));
    assert!(Settings::new("", "", MeshConfig::default(), ClusterFacts::default()).unwrap().problems().is_empty());
}

#[test]
fn versions_tell_native_sidecars() {
    for (version, has) in [("v1.29.0", true), ("1.30+", true), ("v1.28.9", false), ("1.9", false), ("", false)] {
        assert_eq!(ClusterFacts::has_native_sidecars(version), has, "{version}");
    }
}

/// A template of the user's names the proxy below `containers`, as Istio's documentation does, wherever the proxy stands.
#[test]
fn a_template_of_the_user_changes_the_proxy_where_it_stands() {
    let config = "{defaultTemplates: [sidecar], templates: {mine: 'spec: {containers: [{name: istio-proxy, env: [{name: MINE, value: a}]}]}'}}";
    let context = Context { namespace: "shop".into(), ..Context::default() };
    for native_sidecars in [true, false] {
        let facts = ClusterFacts { native_sidecars, ..ClusterFacts::default() };
        let settings = Settings::new(config, "", MeshConfig::default(), facts).unwrap();
        for templates in ["sidecar,mine", "mine,sidecar"] {
            let pod = json!({"metadata": {"name": "web", "annotations": {"inject.istio.io/templates": templates}},
                "spec": {"containers": [{"name": "web", "image": "web"}]}});
            let Outcome::Injected { pod: made, warnings } = inject(&pod, &context, &settings) else {
                panic!("not injected")
            };
            assert!(warnings.is_empty(), "{warnings:?}");
            let proxies = |list: &str| {
                let all = made["spec"][list].as_array().into_iter().flatten();
                all.filter(|one| one["name"] == "istio-proxy").cloned().collect::<Vec<_>>()
            };
            let (own, other) =
                if native_sidecars { ("initContainers", "containers") } else { ("containers", "initContainers") };
            assert!(proxies(other).is_empty(), "{templates}: {made}");
            let [proxy] = &proxies(own)[..] else { panic!("{templates}: {made}") };
            let env = proxy["env"].as_array().unwrap();
            assert!(env.iter().any(|one| one["name"] == "MINE") && env.iter().any(|one| one["name"] == "POD_NAME"));
            assert!(proxy["image"].is_string());
            let again = inject(&made, &context, &settings);
            let Outcome::Injected { pod: again, .. } = again else { panic!("not injected again") };
            assert_eq!(again, made, "{templates}");
        }
    }
}
