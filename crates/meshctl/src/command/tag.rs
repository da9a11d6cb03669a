//! `meshctl tag`: names for revisions. A tag is an injector's webhook more, which takes pods whose namespace (or who
//! themselves) name the tag, to the control plane of the revision; moving it moves all of them at their next restart.

pub(super) mod own;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::install::confirm;
use crate::chart;
use crate::cli::{TagArguments, TagCommand};
use crate::cluster::Cluster;
use crate::install::{DEFAULT, REVISION, TAG};
use crate::print::{Format, structured, table};

const GROUP: &str = "admissionregistration.k8s.io/v1";
/// Validates objects that name no revision, where the tag `default` says which control plane does.
const DEFAULT_VALIDATOR: &str = "istiod-default-validator";
/// Namespaces of the cluster itself.
const LEFT_OUT: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// A row of the list.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    tag: String,
    revision: String,
    namespaces: Vec<String>,
}

/// Runs a command.
pub(super) async fn run(cluster: &Cluster, command: TagCommand) -> Result<ExitCode> {
    match command {
        TagCommand::List { output } => {
            let rows = rows(&webhooks(cluster).await?, &cluster.list("v1", "Namespace", None, "", "").await?);
            print!("{}", shown(output, &rows)?);
        }
        TagCommand::Generate(wish) => print!("{}", chart::print(&objects(cluster, &wish).await?)?),
        TagCommand::Set(wish) => {
            for object in objects(cluster, &wish).await? {
                cluster.apply(&object, false).await?;
            }
            // Only now, so that at no moment nobody takes the pods.
            if wish.name == DEFAULT {
                own::switch(cluster, false).await?;
            }
            println!("✔ the tag {} stands for the revision {}", wish.name, wish.revision);
            println!("Label a namespace to use it: kubectl label namespace NAME {}", label(&wish.name));
        }
        TagCommand::Remove { name, skip_confirmation } => return remove(cluster, &name, skip_confirmation).await,
    }
    Ok(ExitCode::SUCCESS)
}

fn label(tag: &str) -> String {
    if tag == DEFAULT { "istio-injection=enabled".to_owned() } else { format!("{REVISION}={tag}") }
}

async fn webhooks(cluster: &Cluster) -> Result<Vec<Value>> {
    cluster.list(GROUP, "MutatingWebhookConfiguration", None, "app=sidecar-injector", "").await
}

async fn objects(cluster: &Cluster, wish: &TagArguments) -> Result<Vec<Value>> {
    let injectors = webhooks(cluster).await?;
    let mut objects = vec![injector(wish, &injectors)?];
    if wish.name == DEFAULT {
        let selector = format!("{REVISION}={}", wish.revision);
        let validators = cluster.list(GROUP, "ValidatingWebhookConfiguration", None, &selector, "").await?;
        objects.extend(validators.iter().find(|one| labelled(one, TAG).is_none()).map(validator));
    }
    Ok(objects)
}

async fn remove(cluster: &Cluster, name: &str, skip_confirmation: bool) -> Result<ExitCode> {
    let webhooks = webhooks(cluster).await?;
    let rows = rows(&webhooks, &cluster.list("v1", "Namespace", None, "", "").await?);
    let row = rows.iter().find(|row| row.tag == name).with_context(|| format!("there is no tag {name:?}"))?;
    if !row.namespaces.is_empty() && !skip_confirmation {
        let question = format!(
            "Namespaces use the tag {name}: {}. Their new pods will not join the mesh any more.",
            row.namespaces.join(", ")
        );
        if !confirm(&question)? {
            return Ok(ExitCode::FAILURE);
        }
    }
    // First, so that at no moment nobody takes the pods.
    if name == DEFAULT {
        own::switch(cluster, true).await?;
    }
    for webhook in webhooks.iter().filter(|webhook| labelled(webhook, TAG) == Some(name)) {
        cluster.delete(webhook).await?;
    }
    if name == DEFAULT {
        let validator = json!({
            "apiVersion": GROUP, "kind": "ValidatingWebhookConfiguration", "metadata": {"name": DEFAULT_VALIDATOR},
        });
        cluster.delete(&validator).await?;
    }
    println!("✔ the tag {name} is gone");
    Ok(ExitCode::SUCCESS)
}

fn labelled<'a>(object: &'a Value, label: &str) -> Option<&'a str> {
    object["metadata"]["labels"][label].as_str()
}

/// Tags by name, each with the namespaces that use it.
fn rows(webhooks: &[Value], namespaces: &[Value]) -> Vec<Row> {
    let uses = |namespace: &&Value, tag: &str| {
        labelled(namespace, REVISION) == Some(tag)
            || tag == DEFAULT && labelled(namespace, "istio-injection") == Some("enabled")
    };
    let mut rows: Vec<Row> = webhooks
        .iter()
        .filter_map(|webhook| {
            let tag = labelled(webhook, TAG)?;
            let used = namespaces.iter().filter(|namespace| uses(namespace, tag));
            Some(Row {
                tag: tag.to_owned(),
                revision: labelled(webhook, REVISION).unwrap_or_default().to_owned(),
                namespaces: used.map(|namespace| chart::key(namespace).2).collect(),
            })
        })
        .collect();
    rows.sort_by(|a, b| a.tag.cmp(&b.tag));
    rows
}

fn shown(output: Format, rows: &[Row]) -> Result<String> {
    if output != Format::Table {
        return structured(output, &rows);
    }
    if rows.is_empty() {
        return Ok("There is no tag. Make one with `meshctl tag set NAME --revision REVISION`.\n".to_owned());
    }
    let cells = |row: &Row| vec![row.tag.clone(), row.revision.clone(), row.namespaces.join(",")];
    Ok(table(&["TAG", "REVISION", "NAMESPACES"], &rows.iter().map(cells).collect::<Vec<_>>()))
}

/// The webhook of a tag, made from the revision's own.
///
/// # Errors
/// The revision is not there, or the name is taken.
fn injector(wish: &TagArguments, injectors: &[Value]) -> Result<Value> {
    let (tag, revision) = (wish.name.as_str(), wish.revision.as_str());
    let good = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
    if tag.is_empty() || !tag.chars().all(good) || tag.starts_with('-') || tag.ends_with('-') {
        bail!("{tag:?} cannot be a tag: it is part of a name; use small letters, digits and dashes");
    }
    let of_revision = |wanted: &str| {
        let mut own = injectors.iter().filter(|one| labelled(one, TAG).is_none());
        own.find(|one| labelled(one, REVISION) == Some(wanted))
    };
    let Some(own) = of_revision(revision) else {
        let own = injectors.iter().filter(|one| labelled(one, TAG).is_none());
        let known: Vec<&str> = own.filter_map(|one| labelled(one, REVISION)).collect();
        bail!("no control plane of the revision {revision:?} is installed; there are: {}", known.join(", "));
    };
    // The tag `default` takes the place of the revision's own webhooks, which take nothing meanwhile.
    if tag != DEFAULT && of_revision(tag).is_some() {
        bail!("{tag:?} is the name of a revision already: whoever names it would be injected twice");
    }
    let before = injectors.iter().find(|one| labelled(one, TAG) == Some(tag)).and_then(|one| labelled(one, REVISION));
    if let Some(before) = before.filter(|before| *before != revision && !wish.overwrite) {
        bail!("the tag {tag} stands for the revision {before}; move it with --overwrite");
    }
    let mut labels = own["metadata"]["labels"].clone();
    labels[TAG] = json!(tag);
    let hooks = hooks(own, tag, wish.auto_inject_namespaces)?;
    Ok(json!({
        "apiVersion": GROUP,
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": format!("istio-revision-tag-{tag}"), "labels": labels},
        "webhooks": hooks,
    }))
}

fn hooks(own: &Value, tag: &str, everywhere: bool) -> Result<Vec<Value>> {
    let listed = |key: &str, operator: &str, values: &[&str]| match values {
        [] => json!({"key": key, "operator": operator}),
        values => json!({"key": key, "operator": operator, "values": values}),
    };
    let absent = |key: &str| listed(key, "DoesNotExist", &[]);
    let wanted = listed("sidecar.istio.io/inject", "NotIn", &["false"]);
    let mut kinds = vec![
        ("rev.namespace", vec![listed(REVISION, "In", &[tag]), absent("istio-injection")], vec![wanted.clone()]),
        (
            "rev.object",
            vec![absent(REVISION), absent("istio-injection")],
            vec![wanted.clone(), listed(REVISION, "In", &[tag])],
        ),
    ];
    if tag == DEFAULT {
        kinds.push(("namespace", vec![listed("istio-injection", "In", &["enabled"])], vec![wanted]));
        let asked = listed("sidecar.istio.io/inject", "In", &["true"]);
        kinds.push(("object", vec![absent("istio-injection"), absent(REVISION)], vec![asked, absent(REVISION)]));
    }
    if everywhere {
        let others = listed("kubernetes.io/metadata.name", "NotIn", &LEFT_OUT);
        let silent = vec![absent("sidecar.istio.io/inject"), absent(REVISION)];
        kinds.push(("auto", vec![absent("istio-injection"), absent(REVISION), others], silent));
    }
    let first = own["webhooks"][0].as_object().context("the revision's webhook has no hook to take after")?;
    let hook = |(name, namespaces, objects): (&str, Vec<Value>, Vec<Value>)| {
        let mut hook = first.clone();
        hook.insert("name".to_owned(), json!(format!("{name}.sidecar-injector.istio.io")));
        hook.insert("namespaceSelector".to_owned(), json!({"matchExpressions": namespaces}));
        hook.insert("objectSelector".to_owned(), json!({"matchExpressions": objects}));
        Value::Object(hook)
    };
    Ok(kinds.into_iter().map(hook).collect())
}

/// The validator of objects that name no revision, made from the revision's own.
fn validator(own: &Value) -> Value {
    let mut labels = own["metadata"]["labels"].clone();
    labels[TAG] = json!(DEFAULT);
    let hooks = own["webhooks"].as_array().into_iter().flatten().map(|hook| {
        let mut hook = hook.clone();
        hook["name"] = json!("validation.istio.io");
        hook["objectSelector"] = json!({"matchExpressions": [{"key": REVISION, "operator": "DoesNotExist"}]});
        hook["namespaceSelector"] = json!({});
        hook
    });
    json!({
        "apiVersion": GROUP,
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": DEFAULT_VALIDATOR, "labels": labels},
        "webhooks": hooks.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(revision: &str) -> Value {
        json!({
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "istio-sidecar-injector", "labels": {"app": "sidecar-injector", REVISION: revision}},
            "webhooks": [{
                "name": "rev.namespace.sidecar-injector.istio.io", "failurePolicy": "Fail",
                "clientConfig": {"service": {"name": format!("istiod-{revision}")}, "caBundle": "AA=="},
            }],
        })
    }

    fn wish(name: &str, revision: &str) -> TagArguments {
        TagArguments { name: name.into(), revision: revision.into(), overwrite: false, auto_inject_namespaces: false }
    }

    #[test]
    fn a_tag_is_the_revisions_webhook_for_those_that_name_the_tag() {
        let made = injector(&wish("prod", "1-2"), &[own("1-2")]).unwrap();
        assert_eq!(made["metadata"]["name"], "istio-revision-tag-prod");
        assert_eq!((labelled(&made, TAG), labelled(&made, REVISION)), (Some("prod"), Some("1-2")));
        let hooks = made["webhooks"].as_array().unwrap();
        assert_eq!(hooks.len(), 2);
        assert!(hooks.iter().all(|hook| hook["clientConfig"]["service"]["name"] == "istiod-1-2"));
        assert_eq!(hooks[0]["namespaceSelector"]["matchExpressions"][0]["values"], json!(["prod"]));
        assert_eq!(hooks[1]["objectSelector"]["matchExpressions"][1]["values"], json!(["prod"]));
        let default = injector(&wish("default", "1-2"), &[own("1-2")]).unwrap();
        let names: Vec<&str> =
            default["webhooks"].as_array().unwrap().iter().filter_map(|hook| hook["name"].as_str()).collect();
        assert_eq!(names[2..], ["namespace.sidecar-injector.istio.io", "object.sidecar-injector.istio.io"]);
    }

    #[test]
    fn a_tag_is_not_taken_from_another_by_accident() {
        let tagged = injector(&wish("prod", "1-2"), &[own("1-2")]).unwrap();
        let all = [own("1-2"), own("1-3"), tagged];
        let refused = |wish: &TagArguments| injector(wish, &all).unwrap_err().to_string();
        assert!(refused(&wish("prod", "1-3")).contains("--overwrite"));
        assert!(injector(&TagArguments { overwrite: true, ..wish("prod", "1-3") }, &all).is_ok());
        assert!(injector(&wish("prod", "1-2"), &all).is_ok(), "the same again changes nothing");
        assert!(refused(&wish("1-3", "1-2")).contains("revision already"));
        // The end of a canary upgrade: the new revision becomes the default beside the old one.
        let beside = [own("default"), own("1-2")];
        assert!(injector(&wish("default", "1-2"), &beside).is_ok());
        assert!(injector(&wish("default", "default"), &beside).is_ok());
        assert!(refused(&wish("prod", "1-4")).contains("1-2, 1-3"));
        assert!(refused(&wish("Prod", "1-2")).contains("small letters"));
    }

    #[test]
    fn tags_are_listed_with_their_namespaces() {
        let namespace = |name: &str, key: &str, value: &str| json!({"kind": "Namespace", "metadata": {"name": name, "labels": {key: value}}});
        let webhooks = [
            own("1-2"),
            injector(&wish("prod", "1-2"), &[own("1-2")]).unwrap(),
            injector(&wish("default", "1-2"), &[own("1-2")]).unwrap(),
        ];
        let namespaces = [
            namespace("a", REVISION, "prod"),
            namespace("b", REVISION, "1-2"),
            namespace("c", "istio-injection", "enabled"),
            namespace("d", REVISION, "prod"),
        ];
        let rows = rows(&webhooks, &namespaces);
        assert_eq!(
            shown(Format::Table, &rows).unwrap(),
            "TAG       REVISION   NAMESPACES\ndefault   1-2        c\nprod      1-2        a,d\n"
        );
    }

    #[test]
    fn the_default_tag_validates_objects_that_name_no_revision() {
        let own = json!({
            "metadata": {"name": "istio-validator-1-2-istio-system", "labels": {REVISION: "1-2"}},
            "webhooks": [{"name": "rev.validation.istio.io", "objectSelector": {"matchExpressions": [{"key": REVISION}]}}],
        });
        let made = validator(&own);
        assert_eq!(made["metadata"]["name"], DEFAULT_VALIDATOR);
        assert_eq!(
            made["webhooks"][0]["objectSelector"]["matchExpressions"],
            json!([{"key": REVISION, "operator": "DoesNotExist"}])
        );
    }
}
