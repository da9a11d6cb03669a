//! What an installation consists of: a profile, files and `--set` over each other, turned into the values of the charts.

mod setting;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use api::mesh_config::MeshConfig;
use api::problem::Severity;
use plan::inject::check_proxy_settings;
use plan::{Snapshot, World};
use serde_json::{Value, json};

use crate::chart;

/// Marks what an installation owns (Istio's label).
pub const OWNED: &str = "install.operator.istio.io/owning-resource";
/// Its value.
pub const OWNER: &str = "installed-state";
/// Annotation of gateways' pods: the image that their proxy is to have.
const PROXY_IMAGE: &str = "install.operator.istio.io/proxy-image";
/// Which part of it.
pub const COMPONENT: &str = "operator.istio.io/component";
/// Which revision.
pub const REVISION: &str = "istio.io/rev";
/// Label of a tag's webhooks: the tag.
pub const TAG: &str = "istio.io/tag";
/// The revision without a name, and the tag of those that name no revision.
pub const DEFAULT: &str = "default";

/// What a user asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Files of IstioOperator documents, later over earlier.
    pub files: Vec<PathBuf>,
    /// `PATH=VALUE`.
    pub set: Vec<String>,
    /// Revision; overrides what files say.
    pub revision: Option<String>,
    /// Namespace of the control plane; overrides what files say.
    pub namespace: Option<String>,
}

/// A part that is installed as one: a chart with its release and values.
#[derive(Clone, Debug)]
pub struct Component {
    /// Istio's name of it: Base, Cni, Pilot, IngressGateways, EgressGateways.
    pub name: &'static str,
    /// What people read.
    pub title: String,
    /// Namespace.
    pub namespace: String,
    /// Objects.
    pub objects: Vec<Value>,
}

/// A whole installation.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the profile.
    pub profile: String,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Revision; empty for the default one.
    pub revision: String,
    /// Parts in the order in which they are applied.
    pub components: Vec<Component>,
    /// What is taken and has no effect yet, a line each.
    pub warnings: Vec<String>,
}

/// Names of the profiles.
pub fn profiles() -> Vec<String> {
    let names = chart::files("profiles/").into_iter();
    names.filter_map(|path| Some(path.strip_prefix("profiles/")?.strip_suffix(".yaml")?.to_owned())).collect()
}

/// Makes the plan. `force` takes settings that no chart knows.
///
/// # Errors
/// A file or setting cannot be used.
pub fn plan(wish: &Wish, force: bool) -> Result<Plan> {
    let mut given = json!({});
    for file in &wish.files {
        chart::overlay(&mut given, &read(file)?);
    }
    for assignment in &wish.set {
        chart::set(&mut given, assignment)?;
    }
    let profile = given["profile"].as_str().unwrap_or("default").to_owned();
    let text = chart::file(&format!("profiles/{profile}.yaml")).with_context(|| no_profile(&profile))?;
    let mut spec = chart::yaml(&text)?["spec"].take();
    overlay_gateways(&mut spec, &mut given);
    chart::overlay(&mut spec, &given);
    let known = json!({
        "profile": "", "namespace": "", "revision": "", "hub": "", "tag": "",
        "meshConfig": {}, "values": {}, "components": {
            "base": {"enabled": true}, "cni": {"enabled": true, "namespace": "", "k8s": {}},
            "pilot": {"enabled": true, "k8s": {}}, "ingressGateways": [], "egressGateways": [],
        },
    });
    let mut unknown = Vec::new();
    chart::unknown(&spec, &known, "", &mut unknown);
    refuse(&unknown, &paths(&known, ""), force)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let revision = wish.revision.clone().unwrap_or_else(|| match text(&spec["revision"]).as_str() {
        "" => text(&spec["values"]["revision"]),
        revision => revision.to_owned(),
    });
    let revision = if revision == "default" { String::new() } else { revision };
    let namespace = wish.namespace.clone().or_else(|| Some(text(&spec["namespace"])).filter(|name| !name.is_empty()));
    let namespace = namespace.unwrap_or_else(|| "istio-system".to_owned());
    let (mut components, mut warnings) = (Vec::new(), Vec::new());
    let enabled = |part: &Value| part["enabled"].as_bool().unwrap_or(true);
    if enabled(&spec["components"]["base"]) {
        let values = json!({"global": {"istioNamespace": namespace}});
        components.push(component("Base", "kinds of objects", "base", "base", &namespace, &values, &revision)?);
    }
    let plug_in = spec["components"]["cni"]["enabled"] == true;
    let of_plug_in = node_plug_in(&mut spec, &namespace, force)?;
    if plug_in {
        let own = Some(text(&spec["components"]["cni"]["namespace"])).filter(|own| !own.is_empty());
        let place = own.unwrap_or_else(|| namespace.clone());
        // Before the control plane, which has pods rely on it.
        components.push(component("Cni", "CNI plug-in", "cni", "istio-cni", &place, &of_plug_in, &revision)?);
        if spec["values"]["pilot"]["cni"]["enabled"].is_null() {
            chart::overlay(&mut spec, &json!({"values": {"pilot": {"cni": {"enabled": true}}}}));
        }
    }
    if enabled(&spec["components"]["pilot"]) {
        let values = control_plane(&spec, &namespace, &revision, force)?;
        warnings = without_effect(&values["meshConfig"]);
        components.push(component("Pilot", "control plane", "istiod", "istiod", &namespace, &values, &revision)?);
    }
    for (list, name, word) in [
        ("ingressGateways", "IngressGateways", "ingress gateway"),
        ("egressGateways", "EgressGateways", "egress gateway"),
    ] {
        for gateway in spec["components"][list].as_array().into_iter().flatten().filter(|gateway| enabled(gateway)) {
            let release = text(&gateway["name"]);
            if release.is_empty() {
                bail!("components.{list}: a gateway has no name");
            }
            let own = Some(text(&gateway["namespace"])).filter(|own| !own.is_empty());
            let place = own.unwrap_or_else(|| namespace.clone());
            let values = of_gateway(gateway, &revision, word, force)?;
            let title = format!("{word} {release}");
            components.push(component(name, &title, "gateway", &release, &place, &values, &revision)?);
        }
    }
    name_image(&mut components);
    Ok(Plan { profile, namespace, revision, components, warnings })
}

fn no_profile(profile: &str) -> String {
    let why = match profile {
        "ambient" | "openshift-ambient" => " Ambient is not built; pods have sidecars.",
        "remote" => " Several clusters in one mesh are not built.",
        "empty" => " `--set profile=minimal --set components.pilot.enabled=false` leaves the kinds only.",
        "openshift" | "preview" | "stable" => " Nothing differs from the profile default under that name.",
        _ => "",
    };
    format!("there is no profile {profile:?}: choose one of {}.{why}", profiles().join(", "))
}

/// Gateways say `image: auto`, so that nothing in them changes with the proxy's image: their pods note it, and are replaced with it.
fn name_image(components: &mut [Component]) {
    let texts = components.iter().flat_map(|component| &component.objects);
    let values = texts.filter_map(|object| object["data"]["values"].as_str()).next();
    let values: Value = values.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let part =
        |pointer: &str| values.pointer(pointer).map(|part| part.as_str().map_or(part.to_string(), str::to_owned));
    let (Some(hub), Some(image), Some(tag)) = (part("/global/hub"), part("/global/proxy/image"), part("/global/tag"))
    else {
        return;
    };
    // A whole name stands for itself.
    let image = if image.contains('/') { image } else { format!("{hub}/{image}:{tag}") };
    for object in components.iter_mut().flat_map(|component| &mut component.objects) {
        let annotations = object.pointer_mut("/spec/template/metadata/annotations");
        if let Some(annotations) = annotations.filter(|all| all["inject.istio.io/templates"] == "gateway") {
            annotations[PROXY_IMAGE] = json!(image);
        }
    }
}

/// Mesh-wide settings that are taken and not built yet, a line each.
fn without_effect(mesh_config: &Value) -> Vec<String> {
    let (mesh, _) = MeshConfig::parse(&mesh_config.to_string(), "meshConfig");
    let snapshot = Snapshot::build(&World::new(mesh, "cluster.local"), None);
    let told = snapshot.problems().iter().filter(|problem| problem.object.kind == "MeshConfig");
    told.map(|problem| format!("! meshConfig.{}: {}", problem.field, problem.message)).collect()
}

/// Refuses settings that no chart knows, unless they ask for what is so anyway.
fn refuse(unknown: &[(String, Value)], known: &[String], force: bool) -> Result<()> {
    let others: Vec<String> = unknown
        .iter()
        .filter(|(path, value)| !setting::is_so_anyway(path, value))
        .map(|(path, _)| setting::told(path, known))
        .collect();
    if others.is_empty() || force {
        return Ok(());
    }
    bail!("{}. Remove what has no effect here, or go on without it by --force", others.join(". "))
}

fn read(file: &PathBuf) -> Result<Value> {
    let wrong = || format!("the file {} cannot be used", file.display());
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).with_context(wrong)?
    } else {
        std::fs::read_to_string(file).with_context(wrong)?
    };
    let mut document = chart::yaml(&text).with_context(wrong)?;
    match document["kind"].as_str() {
        Some("IstioOperator") => Ok(document["spec"].take()),
        Some(kind) => bail!("{} holds the kind {kind}; an IstioOperator is needed", file.display()),
        None => bail!("{} is no IstioOperator: it has no kind", file.display()),
    }
}

/// Gateways are known by their names, not by their places: one that a user names is laid over the profile's of that name.
fn overlay_gateways(spec: &mut Value, given: &mut Value) {
    for list in ["ingressGateways", "egressGateways"] {
        let Some(own) = given["components"][list].as_array().cloned() else { continue };
        let mut all = spec["components"][list].as_array().cloned().unwrap_or_default();
        for (index, gateway) in own.into_iter().enumerate() {
            let place = match gateway["name"].as_str() {
                Some(name) => all.iter().position(|known| known["name"] == name),
                None => Some(index).filter(|index| *index < all.len()),
            };
            match place {
                Some(place) => chart::overlay(&mut all[place], &gateway),
                None => all.push(gateway),
            }
        }
        given["components"][list] = Value::Array(all);
    }
}

/// Values of the chart `cni`, taken out of the settings: `values.cni`, what it shares with the control plane, and what an
/// IstioOperator says of its pods.
fn node_plug_in(spec: &mut Value, namespace: &str, force: bool) -> Result<Value> {
    let known = chart::values("cni")?;
    let mut values = json!({"global": {"istioNamespace": namespace}});
    if let Some(given) = spec["values"].as_object_mut().and_then(|values| values.remove("cni")) {
        let mut unknown = Vec::new();
        chart::unknown(&given, &known["cni"], "values.cni", &mut unknown);
        refuse(&unknown, &paths(&known["cni"], "values.cni"), force)?;
        let idle = given.as_object().and_then(|given| given.keys().find(|field| known["cni"].get(field).is_some()));
        if let Some(field) = idle.filter(|_| spec["components"]["cni"]["enabled"] != true && !force) {
            bail!(
                "values.cni.{field}: it has no effect without components.cni.enabled=true; add that, or go on by --force"
            );
        }
        values["cni"] = given;
    }
    for (field, value) in spec["values"]["global"].as_object().into_iter().flatten() {
        if known["global"].get(field).is_some() {
            chart::overlay(&mut values, &json!({"global": {field: value}}));
        }
    }
    images(spec, &mut values);
    let mut unknown = Vec::new();
    for (field, value) in spec["components"]["cni"]["k8s"].as_object().into_iter().flatten() {
        match field.as_str() {
            "resources" | "nodeSelector" | "tolerations" | "affinity" | "podAnnotations" => {
                chart::overlay(&mut values, &json!({"cni": {field: value}}));
            }
            _ => unknown.push((format!("components.cni.k8s.{field}"), value.clone())),
        }
    }
    refuse(&unknown, &[], force)?;
    Ok(values)
}

/// Where images come from, as the whole installation has it.
fn images(spec: &Value, values: &mut Value) {
    for field in ["hub", "tag"] {
        if !spec[field].is_null() {
            // A tag that looks like a number is still text.
            let text = spec[field].as_str().map_or_else(|| spec[field].to_string(), str::to_owned);
            chart::overlay(values, &json!({"global": {field: text}}));
        }
    }
}

/// A setting of autoscaling where there is none: Istio scales by default, this mesh does not.
fn idle_autoscaling(pilot: &Value) -> Option<&'static str> {
    let fields = ["autoscaleMin", "autoscaleMax"];
    fields.into_iter().find(|field| pilot["autoscaleEnabled"] != true && !pilot[*field].is_null())
}

fn control_plane(spec: &Value, namespace: &str, revision: &str, force: bool) -> Result<Value> {
    let mut values = spec["values"].clone();
    if values.is_null() {
        values = json!({});
    }
    let mut unknown = Vec::new();
    let known = chart::values("istiod")?;
    chart::unknown(&values, &known, "values", &mut unknown);
    refuse(&unknown, &paths(&known, "values"), force)?;
    if let Some(field) = idle_autoscaling(&values["pilot"]).filter(|_| !force) {
        bail!(
            "values.pilot.{field}: it has no effect without values.pilot.autoscaleEnabled=true; add that, or go on by --force"
        );
    }
    images(spec, &mut values);
    if let Some(named) = values["global"]["istioNamespace"].as_str().filter(|named| *named != namespace && !force) {
        bail!(
            "values.global.istioNamespace={named}: the namespace of the mesh is {namespace}; name it by --istio-namespace"
        );
    }
    let own = json!({"revision": revision, "global": {"istioNamespace": namespace}, "meshConfig": spec["meshConfig"]});
    chart::overlay(&mut values, &own);
    if values["meshConfig"].is_null() {
        values["meshConfig"] = json!({});
    }
    let mut of_proxies = values["meshConfig"]["defaultConfig"].clone();
    if let Err(wrong) = check_proxy_settings(&mut of_proxies)
        && !force
    {
        bail!("meshConfig.defaultConfig {wrong}. Change it, or go on by --force");
    }
    for (field, port) in [("proxyListenPort", api::port::OUTBOUND), ("proxyInboundListenPort", api::port::INBOUND)] {
        let asked = &values["meshConfig"][field];
        if !asked.is_null() && *asked != port && !force {
            bail!(
                "meshConfig.{field}: the traffic of pods is always sent to {port}; leave it out, or go on by --force"
            );
        }
    }
    // The control plane would tell of them in its log only.
    let (_, problems) = MeshConfig::parse(&values["meshConfig"].to_string(), "meshConfig");
    let told: Vec<String> = problems
        .iter()
        .filter(|problem| problem.severity >= Severity::Warning)
        .map(|problem| format!("meshConfig.{}: {}", problem.field, problem.message))
        .collect();
    if !told.is_empty() && !force {
        bail!("{} Change it, or go on by --force", told.join(" "));
    }
    let kubernetes = &spec["components"]["pilot"]["k8s"];
    let mut unknown = Vec::new();
    for (field, value) in kubernetes.as_object().into_iter().flatten() {
        match field.as_str() {
            "resources" | "nodeSelector" | "tolerations" | "affinity" | "podAnnotations" | "replicaCount" => {
                chart::overlay(&mut values, &json!({"pilot": {field: value}}));
            }
            "env" => chart::overlay(&mut values, &json!({"pilot": {"env": variables(value)}})),
            "serviceAnnotations" => chart::overlay(&mut values, &json!({"pilot": {field: value}})),
            _ => unknown.push((format!("components.pilot.k8s.{field}"), value.clone())),
        }
    }
    refuse(&unknown, &[], force)?;
    Ok(values)
}

fn of_gateway(gateway: &Value, revision: &str, word: &str, force: bool) -> Result<Value> {
    let mut values = json!({"name": gateway["name"], "revision": revision});
    if !gateway["label"].is_null() {
        values["labels"] = gateway["label"].clone();
    }
    // Traffic leaves the mesh from inside: nobody outside needs an address of it.
    if word.starts_with("egress") {
        chart::overlay(&mut values, &json!({"service": {"type": "ClusterIP"}}));
    }
    let mut unknown = Vec::new();
    let named = |field: &str| format!("gateway {}: {field}", gateway["name"].as_str().unwrap_or_default());
    for (field, value) in gateway.as_object().into_iter().flatten() {
        if !["name", "namespace", "enabled", "label", "k8s"].contains(&field.as_str()) {
            unknown.push((named(field), value.clone()));
        }
    }
    for (field, value) in gateway["k8s"].as_object().into_iter().flatten() {
        match field.as_str() {
            "resources"
            | "nodeSelector"
            | "tolerations"
            | "affinity"
            | "podAnnotations"
            | "replicaCount"
            | "service"
            | "podDisruptionBudget" => {
                chart::overlay(&mut values, &json!({field: value}));
            }
            "serviceAnnotations" => chart::overlay(&mut values, &json!({"service": {"annotations": value}})),
            "env" => values["env"] = variables(value),
            "hpaSpec" => {
                chart::overlay(&mut values, &json!({"autoscaling": {"enabled": true}}));
                for (field, value) in value.as_object().into_iter().flatten() {
                    match field.as_str() {
                        "minReplicas" | "maxReplicas" => values["autoscaling"][field] = value.clone(),
                        // There is only one Deployment that can be meant.
                        "scaleTargetRef" => {}
                        _ => unknown.push((named(&format!("k8s.hpaSpec.{field}")), value.clone())),
                    }
                }
            }
            _ => unknown.push((named(&format!("k8s.{field}")), value.clone())),
        }
    }
    refuse(&unknown, &[], force)?;
    Ok(values)
}

/// All paths of a document.
fn paths(document: &Value, above: &str) -> Vec<String> {
    let Value::Object(fields) = document else { return Vec::new() };
    let mut all = Vec::new();
    for (field, value) in fields {
        let path = if above.is_empty() { field.clone() } else { format!("{above}.{field}") };
        all.extend(paths(value, &path));
        all.push(path);
    }
    all
}

/// A list of `name` and `value`, as containers have it, to a map.
fn variables(list: &Value) -> Value {
    let pairs = list.as_array().into_iter().flatten();
    Value::Object(pairs.filter_map(|pair| Some((pair["name"].as_str()?.to_owned(), pair["value"].clone()))).collect())
}

fn component(
    name: &'static str,
    title: &str,
    chart_name: &str,
    release: &str,
    namespace: &str,
    values: &Value,
    revision: &str,
) -> Result<Component> {
    let mut objects = chart::render(chart_name, release, namespace, values)?;
    let shown = if revision.is_empty() { "default" } else { revision };
    for object in &mut objects {
        chart::label(object, &[(OWNED, OWNER), (COMPONENT, name)].into());
        // What all revisions share belongs to none, else it would go with the one that was installed last.
        if name != "Base" {
            chart::label(object, &[(REVISION, shown)].into());
        }
    }
    Ok(Component { name, title: title.to_owned(), namespace: namespace.to_owned(), objects })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(set: &[&str]) -> Wish {
        Wish { set: set.iter().map(|text| (*text).to_owned()).collect(), ..Wish::default() }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.components.iter().map(|component| component.title.as_str()).collect()
    }

    #[test]
    fn profiles_differ_in_gateways() {
        assert_eq!(names(&plan(&wish(&["profile=minimal"]), false).unwrap()), ["kinds of objects", "control plane"]);
        assert_eq!(plan(&wish(&[]), false).unwrap().components.len(), 3);
        assert_eq!(plan(&wish(&["profile=demo"]), false).unwrap().components.len(), 4);
        let error = plan(&wish(&["profile=x"]), false).unwrap_err().to_string();
        assert!(error.contains("default, demo, minimal"), "{error}");
    }

    #[test]
    fn gateways_are_changed_by_name_and_by_place() {
        let one = plan(&wish(&["components.ingressGateways[0].enabled=false"]), false).unwrap();
        assert_eq!(names(&one), ["kinds of objects", "control plane"]);
        let other = plan(
            &wish(&["components.ingressGateways[0].name=own", "components.ingressGateways[0].namespace=edge"]),
            false,
        )
        .unwrap();
        assert_eq!(names(&other)[2..], ["ingress gateway istio-ingressgateway", "ingress gateway own"]);
    }

    #[test]
    fn settings_reach_the_objects() {
        let plan = plan(
            &wish(&[
                "hub=example.org/mesh",
                "tag=7",
                "revision=canary",
                "meshConfig.accessLogFile=/dev/stdout",
                "values.pilot.replicaCount=3",
            ]),
            false,
        )
        .unwrap();
        let find = |kind: &str, name: &str| {
            let all = plan.components.iter().flat_map(|component| &component.objects);
            all.clone().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).cloned()
        };
        let deployment = find("Deployment", "istiod-canary").unwrap();
        assert_eq!(deployment["spec"]["replicas"], 3);
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], "example.org/mesh/meshd:7");
        assert_eq!(deployment["metadata"]["labels"][OWNED], OWNER);
        let mesh = find("ConfigMap", "istio-canary").unwrap();
        let mesh = chart::yaml(mesh["data"]["mesh"].as_str().unwrap()).unwrap();
        assert_eq!(mesh["accessLogFile"], "/dev/stdout");
        assert_eq!(mesh["defaultConfig"]["discoveryAddress"], "istiod-canary.istio-system.svc:15012");
    }

    #[test]
    fn a_setting_that_nobody_knows_is_refused() {
        for wrong in [
            "values.gateways.x=1",
            "compatibilityVersion=1.25",
            "values.pilot.unheardOf=1",
            "components.ztunnel.enabled=true",
            "components.pilot.k8s.strategy=x",
        ] {
            let error = plan(&wish(&[wrong]), false).unwrap_err().to_string();
            let path = wrong.split('=').next().unwrap();
            assert!(error.contains(path) && error.contains("has no effect here"), "{error}");
            plan(&wish(&[wrong]), true).unwrap();
        }
        plan(&wish(&["components.cni.enabled=false", "values.telemetry.enabled=true"]), false).unwrap();
    }

    #[test]
    fn the_plug_in_comes_before_those_who_rely_on_it() {
        let with = |set: &[&str]| {
            let set: Vec<&str> =
                ["components.cni.enabled=true", "profile=minimal"].iter().chain(set).copied().collect();
            plan(&wish(&set), false)
        };
        let made =
            with(&["hub=example.org/mesh", "tag=7", "values.cni.excludeNamespaces[0]=a", "values.cni.cniBinDir=/b"]);
        let made = made.unwrap();
        assert_eq!(names(&made), ["kinds of objects", "CNI plug-in", "control plane"]);
        let all = made.components.iter().flat_map(|component| &component.objects);
        let find = |kind: &str, name: &str| {
            all.clone().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).cloned().unwrap()
        };
        let pod = &find("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], "example.org/mesh/proxy:7");
        let arguments = pod["containers"][0]["args"].to_string();
        assert!(arguments.contains("--exclude-namespaces=istio-system,a"), "{arguments}");
        assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/b");
        let injector = find("ConfigMap", "istio-sidecar-injector");
        let values = chart::yaml(injector["data"]["values"].as_str().unwrap()).unwrap();
        assert_eq!(values["pilot"]["cni"]["enabled"], true);
        let without = plan(&wish(&["profile=minimal"]), false).unwrap();
        assert!(!names(&without).contains(&"CNI plug-in"));
        for (wrong, why) in [
            ("values.cni.repair.repairPods=true", "values.cni.repair.deletePods is what there is"),
            ("values.cni.ambient.enabled=true", "ambient is not built"),
            ("values.cni.chained=false", "Multus is not built"),
            ("values.cni.cniBinDirs=/x", "did you mean values.cni.cniBinDir?"),
            ("components.cni.k8s.strategy=x", "are what there is to set"),
        ] {
            let error = with(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let error = plan(&wish(&["values.cni.cniBinDir=/b"]), false).unwrap_err().to_string();
        assert!(error.contains("values.cni.cniBinDir") && error.contains("components.cni.enabled=true"), "{error}");
        plan(&wish(&["values.cni.chained=true"]), false).unwrap();
        with(&["values.cni.chained=true", "values.cni.ambient.enabled=false", "components.cni.namespace=kube-system"])
            .unwrap();
    }

    #[test]
    fn bounds_of_autoscaling_need_autoscaling() {
        let error = plan(&wish(&["values.pilot.autoscaleMin=2"]), false).unwrap_err().to_string();
        assert!(error.contains("values.pilot.autoscaleMin") && error.contains("autoscaleEnabled=true"), "{error}");
        plan(&wish(&["values.pilot.autoscaleMin=2", "values.pilot.autoscaleEnabled=true"]), false).unwrap();
    }

    #[test]
    fn pods_would_be_captured_to_where_nobody_listens() {
        let error = plan(&wish(&["meshConfig.proxyListenPort=15091"]), false).unwrap_err().to_string();
        assert!(error.contains("proxyListenPort") && error.contains("15001"), "{error}");
        plan(&wish(&["meshConfig.proxyListenPort=15001"]), false).unwrap();
    }

    #[test]
    fn what_revisions_share_belongs_to_none_of_them() {
        let base = |set: &[&str]| plan(&wish(set), false).unwrap().components.remove(0).objects;
        let of_default = base(&[]);
        assert_eq!(of_default, base(&["revision=canary"]));
        assert!(of_default.iter().all(|object| object["metadata"]["labels"][REVISION].is_null()));
        assert!(of_default.iter().all(|object| object["metadata"]["labels"][OWNED] == OWNER));
    }

    #[test]
    fn gateways_are_scaled_as_istios_are() {
        let scaled = plan(
            &wish(&[
                "components.ingressGateways[0].k8s.hpaSpec.minReplicas=2",
                "components.ingressGateways[0].k8s.hpaSpec.maxReplicas=7",
            ]),
            false,
        )
        .unwrap();
        let mut all = scaled.components.iter().flat_map(|component| &component.objects);
        let scaler = all.find(|object| object["kind"] == "HorizontalPodAutoscaler").unwrap();
        assert_eq!((&scaler["spec"]["minReplicas"], &scaler["spec"]["maxReplicas"]), (&json!(2), &json!(7)));
        let error = plan(&wish(&["components.ingressGateways[0].k8s.hpaSpec.metrics[0]=x"]), false).unwrap_err();
        assert!(error.to_string().contains("k8s.hpaSpec.metrics"), "{error}");
    }

    #[test]
    fn gateways_are_replaced_with_the_proxys_image() {
        let image = |set: &[&str]| {
            let wish = Wish { set: set.iter().map(|one| (*one).to_owned()).collect(), ..Wish::default() };
            let plan = plan(&wish, false).unwrap();
            let all = plan.components.iter().flat_map(|component| &component.objects);
            let noted = all.filter_map(|object| {
                let noted = object.pointer("/spec/template/metadata/annotations")?.get(PROXY_IMAGE)?;
                Some(noted.as_str()?.to_owned())
            });
            noted.collect::<Vec<_>>()
        };
        assert_eq!(image(&["profile=minimal"]), [""; 0]);
        assert_eq!(image(&["tag=9", "hub=r/m"]), ["r/m/proxy:9"]);
        assert_eq!(image(&["values.global.proxy.image=x/y:1"]), ["x/y:1"]);
    }
}
