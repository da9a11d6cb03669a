//! `meshctl install` and `meshctl manifest generate`.

mod wait;

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::tag::own;
use crate::chart;
use crate::cli::{GenerateArguments, InstallArguments, InstallWish};
use crate::cluster::{Applied, Cluster};
use crate::install::{self, Component, OWNED, OWNER, Plan, Wish};
use crate::print::Progress;

/// Kinds that an installation consists of, in the order in which they are taken away: what would stand in the way of others
/// first.
pub(super) const KINDS: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("v1", "Service"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
];

fn wish(namespace: &str, arguments: &InstallWish) -> Wish {
    Wish {
        files: arguments.filename.clone(),
        set: arguments.set.clone(),
        revision: arguments.revision.clone(),
        // The default leaves the word to files and settings.
        namespace: Some(namespace.to_owned()).filter(|namespace| namespace != "istio-system"),
    }
}

/// Prints what would be applied, or writes a file of it for each component.
///
/// # Errors
/// A setting cannot be used, or a file cannot be written.
pub(super) fn generate(namespace: &str, arguments: &GenerateArguments) -> Result<()> {
    let plan = install::plan(&wish(namespace, &arguments.wish), arguments.wish.force)?;
    plan.warnings.iter().for_each(|warning| eprintln!("{warning}"));
    let components = of_components(plan.components, &arguments.filter)?;
    let Some(folder) = &arguments.output else {
        let objects: Vec<Value> = components.into_iter().flat_map(|(_, objects)| objects).collect();
        print!("{}", chart::print(&objects)?);
        return Ok(());
    };
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    for (name, objects) in components {
        let file = folder.join(format!("{name}.yaml"));
        std::fs::write(&file, chart::print(&objects)?)
            .with_context(|| format!("{} cannot be written", file.display()))?;
        println!("{}", file.display());
    }
    Ok(())
}

/// The objects of each component, several gateways in one; only those that are named, if any are.
fn of_components(components: Vec<Component>, only: &[String]) -> Result<Vec<(&'static str, Vec<Value>)>> {
    let mut all: Vec<(&'static str, Vec<Value>)> = Vec::new();
    for component in components {
        match all.iter_mut().find(|(name, _)| *name == component.name) {
            Some((_, objects)) => objects.extend(component.objects),
            None => all.push((component.name, component.objects)),
        }
    }
    let known: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    if let Some(other) = only.iter().find(|only| !known.contains(&only.as_str())) {
        bail!("--filter {other}: this installation consists of {}", known.join(", "));
    }
    all.retain(|(name, _)| only.is_empty() || only.iter().any(|only| only == name));
    Ok(all)
}

/// Installs, or changes an installation to what is asked for.
pub(super) async fn run(cluster: &Cluster, namespace: &str, arguments: &InstallArguments) -> Result<ExitCode> {
    let mut plan = install::plan(&wish(namespace, &arguments.wish), arguments.wish.force)?;
    plan.warnings.iter().for_each(|warning| eprintln!("{warning}"));
    let version = cluster.version().await?;
    let question = format!(
        "This installs the mesh {} (profile {:?}, namespace {}) into the cluster {} ({version}).",
        env!("CARGO_PKG_VERSION"),
        plan.profile,
        plan.namespace,
        cluster.server
    );
    if !arguments.dry_run && !arguments.skip_confirmation && !confirm(&question)? {
        return Ok(ExitCode::FAILURE);
    }
    let default = own::default_tag(cluster).await?.filter(|_| plan.revision.is_empty());
    if let Some(revision) = &default {
        let objects = plan.components.iter_mut().flat_map(|component| &mut component.objects);
        objects.filter(|object| own::is_own(object)).for_each(|webhook| own::set(webhook, false));
        println!(
            "The tag default stands for the revision {revision}, which stays so: `meshctl tag remove default` gives pods and objects that name no revision back to the one installed here."
        );
    }
    let missing = namespaces(cluster, &plan, arguments.dry_run).await?;
    for component in &plan.components {
        apply(cluster, component, &plan, arguments, &missing).await?;
    }
    prune(cluster, &plan, arguments.dry_run).await?;
    if arguments.dry_run {
        println!("nothing was changed (--dry-run)");
    } else {
        println!("✔ installation complete");
        println!(
            "Label a namespace to have its pods join: kubectl label namespace NAME {}",
            if plan.revision.is_empty() {
                "istio-injection=enabled".to_owned()
            } else {
                format!("istio.io/rev={}", plan.revision)
            }
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for consent. Where nobody can answer, the flag is asked for.
pub(super) fn confirm(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{question} Say yes with --skip-confirmation (-y): there is nobody to ask");
    }
    print!("{question} Proceed? (y/N) ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    let agreed = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !agreed {
        println!("Nothing was changed.");
    }
    Ok(agreed)
}

/// Makes the namespaces that are missing. Nothing can be tried in those that are only to be made: they are returned.
async fn namespaces<'a>(cluster: &Cluster, plan: &'a Plan, dry_run: bool) -> Result<Vec<&'a str>> {
    let mut names: Vec<&str> = plan.components.iter().map(|component| component.namespace.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut missing = Vec::new();
    for name in names {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {OWNED: OWNER}}});
        // One that is there belongs to somebody else, and stays as it is.
        if cluster.get(&namespace).await?.is_some() {
            continue;
        }
        if dry_run {
            println!("+ Namespace {name}");
            missing.push(name);
        } else {
            cluster.apply(&namespace, false).await?;
        }
    }
    Ok(missing)
}

async fn apply(
    cluster: &Cluster,
    component: &Component,
    plan: &Plan,
    arguments: &InstallArguments,
    missing: &[&str],
) -> Result<()> {
    let mut progress = Progress::start(&component.title);
    let mut changed = 0;
    let mut others = Vec::new();
    for object in &component.objects {
        if object["kind"] == "CustomResourceDefinition" && is_somebody_elses(cluster, object).await? {
            others.push(chart::key(object).2);
            continue;
        }
        let (kind, namespace, name) = chart::key(object);
        let applied = if missing.contains(&namespace.as_str()) {
            Applied::Created
        } else {
            cluster.apply(&as_it_has_become(cluster, object).await?, arguments.dry_run).await?
        };
        changed += usize::from(applied != Applied::Unchanged);
        if arguments.dry_run && applied != Applied::Unchanged {
            let mark = if applied == Applied::Created { '+' } else { '~' };
            println!("{mark} {kind} {}", crate::cluster::place(&namespace, &name));
        }
    }
    if !arguments.dry_run {
        wait::ready(cluster, component, plan, Duration::from_secs(arguments.readiness_timeout), &mut progress)
            .await
            .with_context(|| format!("{} is not ready", component.title))?;
    }
    let detail = if changed == 0 { "unchanged".to_owned() } else { format!("{changed} objects") };
    progress.done(&detail);
    if !others.is_empty() {
        println!("  {} kinds were there before and stay as they are: {}", others.len(), others.join(", "));
    }
    Ok(())
}

/// Whether a kind is there that no installation of ours made: it stays as it is, unless it lacks the version that is read here.
async fn is_somebody_elses(cluster: &Cluster, definition: &Value) -> Result<bool> {
    let Some(now) = cluster.get(definition).await? else { return Ok(false) };
    if now["metadata"]["labels"][OWNED].is_string() {
        return Ok(false);
    }
    let versions = |definition: &Value| definition["spec"]["versions"].as_array().cloned().unwrap_or_default();
    let read = versions(definition).into_iter().find(|version| version["storage"] == true);
    let name = |version: &Value| version["name"].as_str().unwrap_or_default().to_owned();
    let read = read.as_ref().map(name).unwrap_or_default();
    let has = versions(&now).iter().any(|version| name(version) == read && version["served"] == true);
    if !has {
        println!(
            "  {} was there before without {read}: it is replaced, and from now on ours",
            chart::key(definition).2
        );
    }
    Ok(has)
}

/// The control plane has the validating webhook refuse objects once it can be reached; that is not undone here.
async fn as_it_has_become(cluster: &Cluster, object: &Value) -> Result<Value> {
    let mut object = object.clone();
    if object["kind"] == "ValidatingWebhookConfiguration"
        && let Some(now) = cluster.get(&object).await?
    {
        leave_policy(&mut object, &now);
    }
    Ok(object)
}

/// A policy that is no longer the one that is asked for has been set by the control plane, which owns that field since: whoever
/// asks for the field again becomes its second owner, and that is a change.
fn leave_policy(object: &mut Value, now: &Value) {
    for hook in object["webhooks"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        let same =
            now["webhooks"].as_array().into_iter().flatten().find(|other| Some(&other["name"]) == hook.get("name"));
        if same.is_some_and(|same| {
            same["failurePolicy"].is_string() && Some(&same["failurePolicy"]) != hook.get("failurePolicy")
        }) {
            hook.remove("failurePolicy");
        }
    }
}

/// Takes away what an earlier installation of this revision had and this one does not.
async fn prune(cluster: &Cluster, plan: &Plan, dry_run: bool) -> Result<()> {
    let wanted: Vec<_> = plan.components.iter().flat_map(|component| &component.objects).map(chart::key).collect();
    let shown = if plan.revision.is_empty() { "default" } else { &plan.revision };
    let selector = format!("{OWNED}={OWNER},{}={shown}", install::REVISION);
    for (version, kind) in KINDS {
        for object in cluster.list(version, kind, None, &selector, "").await? {
            let (kind, namespace, name) = chart::key(&object);
            // Tags are made beside an installation, and belong to it until it is taken away.
            let tag = object["metadata"]["labels"][install::TAG].is_string();
            if !tag && !wanted.contains(&(kind.clone(), namespace.clone(), name.clone())) {
                println!("- {kind} {} is no longer part of it", crate::cluster::place(&namespace, &name));
                if !dry_run {
                    cluster.delete(&object).await?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_the_control_plane_has_set_is_not_asked_for() {
        let wanted =
            json!({"webhooks": [{"name": "a", "failurePolicy": "Ignore"}, {"name": "b", "failurePolicy": "Ignore"}]});
        let now =
            json!({"webhooks": [{"name": "b", "failurePolicy": "Ignore"}, {"name": "a", "failurePolicy": "Fail"}]});
        let mut asked = wanted.clone();
        leave_policy(&mut asked, &now);
        assert_eq!(asked, json!({"webhooks": [{"name": "a"}, {"name": "b", "failurePolicy": "Ignore"}]}));
        let mut asked = wanted.clone();
        leave_policy(&mut asked, &json!({"webhooks": [{"name": "a"}]}));
        assert_eq!(asked, wanted);
    }

    #[test]
    fn each_component_is_a_file_of_its_own() {
        let wish = |filter: &[&str], output| GenerateArguments {
            wish: InstallWish {
                filename: Vec::new(),
                set: vec!["profile=demo".to_owned()],
                revision: None,
                force: false,
            },
            output,
            filter: filter.iter().map(|one| (*one).to_owned()).collect(),
        };
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("out");
        generate("istio-system", &wish(&[], Some(inside.clone()))).unwrap();
        let text = |name: &str| std::fs::read_to_string(inside.join(name)).unwrap();
        assert!(
            text("Base.yaml").contains("CustomResourceDefinition") && !text("Base.yaml").contains("kind: Deployment")
        );
        assert!(text("Pilot.yaml").contains("name: istiod"));
        assert!(text("IngressGateways.yaml").contains("istio-ingressgateway"));
        assert!(text("EgressGateways.yaml").contains("istio-egressgateway"));
        let other = folder.path().join("other");
        generate("istio-system", &wish(&["Pilot"], Some(other.clone()))).unwrap();
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
        assert!(
            generate("istio-system", &wish(&["Ztunnel"], Some(other))).unwrap_err().to_string().contains("Base, Pilot")
        );
    }
}
