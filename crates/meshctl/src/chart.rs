//! The charts in `charts/`, which are built into this program, rendered as Helm renders them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use gotmpl::{FuncMap, Template, TemplateError, Value as Data};
use plan::go_template;
use rust_embed::RustEmbed;
use serde_json::{Map, Value, json};

/// All files of all charts.
#[derive(RustEmbed)]
#[folder = "../../charts"]
struct Files;

/// A file of the charts.
///
/// # Errors
/// There is none of this name.
pub fn file(path: &str) -> Result<String> {
    let file = Files::get(path).with_context(|| format!("there is no {path} in the charts"))?;
    Ok(String::from_utf8_lossy(&file.data).into_owned())
}

/// Names of files below a folder.
pub fn files(folder: &str) -> Vec<String> {
    Files::iter().filter(|path| path.starts_with(folder)).map(|path| path.into_owned()).collect()
}

/// A chart's own values.
///
/// # Errors
/// There is no such chart.
pub fn values(chart: &str) -> Result<Value> {
    yaml(&file(&format!("{chart}/values.yaml"))?).with_context(|| format!("the values of the chart {chart}"))
}

/// Lays one document over another: maps are merged, all else is replaced.
pub fn overlay(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                overlay(below.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

/// Renders a chart to objects. `values` are laid over the chart's own.
///
/// # Errors
/// A template cannot be rendered, or does not give YAML.
pub fn render(chart: &str, release: &str, namespace: &str, values: &Value) -> Result<Vec<Value>> {
    let mut all = self::values(chart)?;
    overlay(&mut all, values);
    let about = yaml(&file(&format!("{chart}/Chart.yaml"))?)?;
    let data = json!({
        "Values": all,
        "Release": {"Name": release, "Namespace": namespace, "Service": "meshctl", "Revision": 1},
        "Chart": {"Name": chart, "Version": about["version"], "AppVersion": about["appVersion"]},
    });
    let names = files(&format!("{chart}/templates/"));
    let mut template = Template::new(chart).funcs(functions());
    let included = Arc::new(OnceLock::new());
    template = template.func("include", include(included.clone()));
    for name in &names {
        let text = file(name)?;
        let text = if name.ends_with(".tpl") { text } else { format!("{{{{define {name:?}}}}}{text}{{{{end}}}}") };
        template = template.parse(&text).map_err(|error| anyhow!("{name}: {error}"))?;
    }
    let _ = included.set(template.clone());
    let data = go_template::data(&data);
    let mut objects = Vec::new();
    for name in names.iter().filter(|name| !name.ends_with(".tpl")) {
        let text = template.execute_template_to_string(name, &data).map_err(|error| anyhow!("{name}: {error}"))?;
        for document in text.split("\n---") {
            let object = yaml(document).with_context(|| format!("{name} does not give YAML"))?;
            if !object.is_null() {
                objects.push(object);
            }
        }
    }
    // CustomResourceDefinitions stand beside the templates: they are taken as they are.
    for name in files(&format!("{chart}/crds/")) {
        for document in file(&name)?.split("\n---") {
            let object = yaml(document).with_context(|| name.clone())?;
            if !object.is_null() {
                objects.push(object);
            }
        }
    }
    Ok(objects)
}

/// One YAML document; empty text is null.
///
/// # Errors
/// It is not YAML.
pub fn yaml(text: &str) -> Result<Value> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#') || line == "---") {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str(text).map_err(|error| anyhow!("{}", error.without_snippet()))
}

/// What Helm has beyond what injection templates have.
fn functions() -> FuncMap {
    let mut all = go_template::functions();
    all.insert(
        "mergeOverwrite".to_owned(),
        Arc::new(|given: &[Data]| {
            let mut merged = Value::Object(Map::new());
            given.iter().for_each(|one| overlay(&mut merged, &go_template::json(one)));
            Ok(go_template::data(&merged))
        }),
    );
    all
}

/// `include NAME DATA`: what a named template gives, as text.
fn include(
    template: Arc<OnceLock<Template>>,
) -> impl Fn(&[Data]) -> std::result::Result<Data, TemplateError> + Send + Sync + 'static {
    move |given| {
        let name = given.first().and_then(Data::as_str).unwrap_or_default();
        let nothing = Data::Nil;
        let data = given.get(1).unwrap_or(&nothing);
        let all = template.get().ok_or_else(|| TemplateError::Exec("include comes too early".to_owned()))?;
        let text = all.execute_template_to_string(name, data)?;
        Ok(Data::String(text.into()))
    }
}

/// Paths in `given` that a chart does not know, with their values. A map that is empty in the chart takes any key.
pub fn unknown(given: &Value, known: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    let (Value::Object(given), Value::Object(known)) = (given, known) else { return };
    if known.is_empty() {
        return;
    }
    for (key, value) in given {
        let place = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            None => leaves(value, place, found),
            Some(below) => unknown(value, below, &place, found),
        }
    }
}

/// All that stands below a path.
fn leaves(value: &Value, path: String, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(field, value)| leaves(value, format!("{path}.{field}"), found));
        }
        _ => found.push((path, value.clone())),
    }
}

/// Sets `a.b[0].c=value` in a document, as `--set` does: `\.` is a dot in a key; true, false, null and numbers are themselves, and
/// `{a,b}` is a list.
///
/// # Errors
/// It is not PATH=VALUE.
pub fn set(document: &mut Value, assignment: &str) -> Result<()> {
    let (path, text) = assignment.split_once('=').with_context(|| format!("--set {assignment:?} is not PATH=VALUE"))?;
    let value = match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(items) if serde_json::from_str::<Value>(text).is_err() => {
            Value::Array(items.split(',').map(str::trim).map(scalar).collect())
        }
        _ => scalar(text),
    };
    let mut place = document;
    for step in steps(path)? {
        place = match step {
            Step::Key(key) => {
                if !place.is_object() {
                    *place = json!({});
                }
                match place {
                    Value::Object(map) => map.entry(key).or_insert(Value::Null),
                    _ => bail!("--set {assignment:?} cannot be set"),
                }
            }
            Step::Place(index) => {
                if !place.is_array() {
                    *place = json!([]);
                }
                match place {
                    Value::Array(items) => {
                        if index > items.len() {
                            bail!("--set {assignment:?}: there are only {} elements before [{index}]", items.len());
                        }
                        if index == items.len() {
                            items.push(Value::Null);
                        }
                        &mut items[index]
                    }
                    _ => bail!("--set {assignment:?} cannot be set"),
                }
            }
        };
    }
    *place = value;
    Ok(())
}

/// A value without a list of Helm's in it; JSON is what it says.
fn scalar(text: &str) -> Value {
    match text {
        "" => json!(""),
        _ => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
    }
}

enum Step {
    Key(String),
    Place(usize),
}

fn steps(path: &str) -> Result<Vec<Step>> {
    const DOT: char = '\u{0}';
    let mut steps = Vec::new();
    for part in path.replace("\\.", &DOT.to_string()).split('.') {
        let (key, places) = part.split_once('[').map_or((part, None), |(key, rest)| (key, Some(rest)));
        if key.is_empty() && places.is_none() {
            bail!("--set {path:?}: a name is empty");
        }
        if !key.is_empty() {
            steps.push(Step::Key(key.replace(DOT, ".")));
        }
        for place in places.into_iter().flat_map(|rest| rest.split('[')) {
            let number = place.strip_suffix(']').and_then(|number| number.parse().ok());
            steps.push(Step::Place(number.with_context(|| format!("--set {path:?}: [{place} is not [NUMBER]"))?));
        }
    }
    Ok(steps)
}

/// Objects by a key that names them, for comparisons.
pub fn key(object: &Value) -> (String, String, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// All objects as one stream of YAML documents.
///
/// # Errors
/// One cannot be written.
pub fn print(objects: &[Value]) -> Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(object).context("an object cannot be written as YAML")?);
    }
    Ok(text)
}

/// Labels an object, without touching what it has.
pub fn label(object: &mut Value, labels: &BTreeMap<&str, &str>) {
    if !object["metadata"]["labels"].is_object() {
        object["metadata"]["labels"] = json!({});
    }
    for (key, value) in labels {
        if object["metadata"]["labels"][*key].is_null() {
            object["metadata"]["labels"][*key] = json!(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chart_renders_with_its_own_values() {
        for (chart, release) in [("base", "base"), ("istiod", "istiod"), ("gateway", "istio-ingressgateway")] {
            let objects = render(chart, release, "istio-system", &json!({})).unwrap();
            assert!(!objects.is_empty(), "{chart}");
            for object in objects {
                let (kind, _, name) = key(&object);
                assert!(!kind.is_empty() && !name.is_empty(), "{object}");
            }
        }
    }

    /// What a chart makes with these values: its objects, without the texts that injection goes by; and, where there are such
    /// texts, what becomes of pods by it and what is told of it.
    fn made(chart: &str, values: &Value) -> String {
        let mut objects = render(chart, "a", "istio-system", values).unwrap();
        let mut made = String::new();
        let text = |object: &Value, key: &str| object["data"][key].as_str().unwrap_or_default().to_owned();
        let mesh = objects.iter().map(|object| text(object, "mesh")).find(|text| !text.is_empty()).unwrap_or_default();
        if let Some(config) = objects.iter_mut().find(|object| !object["data"]["values"].is_null()) {
            let (mesh, _) = api::mesh_config::MeshConfig::parse(&mesh, "mesh");
            for native_sidecars in [true, false] {
                let facts = plan::inject::ClusterFacts { native_sidecars, ..Default::default() };
                let settings =
                    plan::inject::Settings::new(&text(config, "config"), &text(config, "values"), mesh.clone(), facts);
                let settings = settings.unwrap();
                made += &format!("{:?}", settings.problems());
                for (labels, annotations) in [
                    (json!({}), json!({})),
                    (json!({"sidecar.istio.io/inject": "true"}), json!({"inject.istio.io/templates": "gateway"})),
                    (json!({}), json!({"inject.istio.io/templates": "sidecar,mine"})),
                ] {
                    let pod = json!({
                        "metadata": {"name": "web", "labels": labels, "annotations": annotations},
                        "spec": {"containers": [{
                            "name": "web", "image": "web", "readinessProbe": {"httpGet": {"path": "/", "port": 80}},
                        }]},
                    });
                    let labels = [("istio-injection".to_owned(), "enabled".to_owned())].into();
                    let context = plan::inject::Context {
                        namespace: "shop".to_owned(),
                        namespace_labels: labels,
                        ..Default::default()
                    };
                    made += &format!("{:?}", plan::inject::inject(&pod, &context, &settings));
                }
            }
            // Texts that injection reads count by what becomes of pods only.
            config["data"] = json!({});
        }
        made + &print(&objects).unwrap()
    }

    /// All values of a chart that are no group, with their paths.
    fn leaves(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    leaves(value, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), found);
                }
            }
            _ => found.push((path.to_owned(), value.clone())),
        }
    }

    /// Another value for a place.
    fn another(path: &str, value: &Value) -> Value {
        let name = path.rsplit('/').next().unwrap_or_default();
        match (name, value) {
            (_, Value::Bool(truth)) => json!(!truth),
            (_, Value::Number(number)) => json!(number.as_i64().unwrap_or(0) + 1),
            ("autoInject", _) => json!("disabled"),
            ("imagePullPolicy", _) => json!("Always"),
            ("kind", _) => json!("DaemonSet"),
            ("type", _) => json!("NodePort"),
            ("includeIPRanges" | "excludeIPRanges", _) => json!("10.1.0.0/16"),
            ("includeInboundPorts" | "excludeInboundPorts" | "includeOutboundPorts" | "excludeOutboundPorts", _) => {
                json!("4711")
            }
            ("cpu" | "memory", _) => json!("77"),
            ("prometheus.io~1port", _) => json!("4711"),
            ("imagePullSecrets", _) => json!(["registry"]),
            ("tolerations", _) => json!([{"key": "a", "operator": "Exists"}]),
            ("topologySpreadConstraints", _) => json!([{"maxSkew": 1, "topologyKey": "zone"}]),
            ("extraContainerArgs", _) => json!(["--verbose"]),
            ("loadBalancerSourceRanges", _) => json!(["10.0.0.0/8"]),
            ("ports", _) => json!([{"name": "x", "port": 4711, "protocol": "TCP", "targetPort": 4711}]),
            ("alwaysInjectSelector" | "neverInjectSelector", _) => {
                json!([{"matchExpressions": [{"key": "sidecar.istio.io/inject", "operator": "DoesNotExist"}]}])
            }
            ("defaultTemplates", _) => json!(["gateway"]),
            ("templates", _) => json!({"mine": "metadata: {annotations: {mine: 'yes'}}"}),
            ("podDisruptionBudget", _) => json!({"minAvailable": 1}),
            ("affinity", _) => json!({"nodeAffinity": {}}),
            (_, Value::Object(_)) => json!({"added": "value"}),
            (_, Value::String(_)) => json!("other"),
            _ => panic!("{path} is {value}: say here what else it may be"),
        }
    }

    /// Whoever sets a value gets something else than before, or is told that it has no effect.
    #[test]
    fn every_value_of_every_chart_makes_a_difference() {
        // Counts only where something else is on.
        let needs = [
            ("istiod", "/pilot/autoscaleMin", "pilot.autoscaleEnabled=true"),
            ("istiod", "/pilot/autoscaleMax", "pilot.autoscaleEnabled=true"),
            ("istiod", "/pilot/cpu/targetAverageUtilization", "pilot.autoscaleEnabled=true"),
            ("istiod", "/sidecarInjectorWebhook/alwaysInjectSelector", "global.proxy.autoInject=disabled"),
            ("gateway", "/autoscaling/minReplicas", "autoscaling.enabled=true"),
            ("gateway", "/autoscaling/maxReplicas", "autoscaling.enabled=true"),
            ("gateway", "/autoscaling/targetCPUUtilizationPercentage", "autoscaling.enabled=true"),
        ];
        let mut without = Vec::new();
        for chart in ["base", "istiod", "gateway"] {
            let mut found = Vec::new();
            leaves(&values(chart).unwrap(), "", &mut found);
            for (path, value) in found {
                let mut given = json!({});
                for (_, _, assignment) in needs.iter().filter(|(of, at, _)| *of == chart && *at == path) {
                    set(&mut given, assignment).unwrap();
                }
                let mut changed = given.clone();
                let mut place = &mut changed;
                for name in path.split('/').skip(1) {
                    let name = name.replace("~1", "/").replace("~0", "~");
                    if !place.is_object() {
                        *place = json!({});
                    }
                    place = &mut place[name.as_str()];
                }
                *place = another(&path, &value);
                if made(chart, &changed) == made(chart, &given) {
                    without.push(format!("{chart}{path}"));
                }
            }
        }
        assert_eq!(without, [""; 0], "values without an effect");
    }

    #[test]
    fn paths_of_set_are_helms() {
        let mut document = json!({"a": {"b": 1}});
        for assignment in ["a.c=true", "list[0].name=x", "list[1].name=7", r"m.x\.y/z=t", "empty="] {
            set(&mut document, assignment).unwrap();
        }
        assert_eq!(
            document,
            json!({"a": {"b": 1, "c": true}, "list": [{"name": "x"}, {"name": 7}], "m": {"x.y/z": "t"}, "empty": ""})
        );
        for (text, is) in [
            ("{a, b}", json!(["a", "b"])),
            ("{8080,true}", json!([8080, true])),
            ("{}", json!({})),
            (r#"{"a":1}"#, json!({"a": 1})),
        ] {
            set(&mut document, &format!("list={text}")).unwrap();
            assert_eq!(document["list"], is, "{text}");
        }
        for wrong in ["a", "a..b=1", "a[x]=1", "a[5]=1"] {
            assert!(set(&mut document, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_chart_does_not_know_is_found() {
        let mut found = Vec::new();
        unknown(
            &json!({"a": {"x": 1, "free": {"any": 1}}, "z": {"y": 1}}),
            &json!({"a": {"x": 0, "free": {}}}),
            "",
            &mut found,
        );
        assert_eq!(found, [("z.y".to_owned(), json!(1))]);
    }
}
