//! Status of Istio's objects: whether the control plane took them, and what is wrong with them (Istio's condition
//! `Reconciled`, `observedGeneration`, `validationMessages`). Written only where it differs, and never faster than the API
//! server likes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use api::object::{KINDS, ObjectKey};
use api::problem::{ObjectRef, Problem, Severity};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::default::REVISION;
use super::{Unnamed, Writers, resource};
use crate::state::Published;

/// Pause between two writes: at most 20 a second.
const PAUSE: Duration = Duration::from_millis(50);
/// Writes before what is wanted is looked at again.
const PASS: usize = 20;
/// Pause between two looks, and after a write that failed.
const LOOK: Duration = Duration::from_millis(500);
/// Istio's condition: the object is in effect as it is.
const CONDITION: &str = "Reconciled";

/// What there is to say of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Generation of the object that the snapshot holds; 0 if it holds none.
    generation: i64,
    problems: Vec<Problem>,
}

/// Follows the configuration, and says of each object what came of it.
pub(super) async fn keep(writers: &Writers, mut default: Unnamed) -> Result<()> {
    let mut published = writers.published.clone();
    // What was said already. The snapshot does not tell: a status changes nothing that is planned from.
    let mut said: BTreeMap<ObjectKey, Verdict> = BTreeMap::new();
    let mut pause = tokio::time::interval(PAUSE);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let looked = Instant::now();
        let now = published.borrow_and_update().clone();
        let due = now.as_ref().map(|now| due(now, &default, &mut said)).unwrap_or_default();
        let mut again = due.len() > PASS;
        for (key, verdict) in due.into_iter().take(PASS) {
            pause.tick().await;
            match say(&writers.client, &default, &key, &verdict).await {
                Ok(()) => {
                    said.insert(key, verdict);
                }
                Err(error) => {
                    tracing::debug!(object = %key, "the status could not be written, is tried again: {error:#}");
                    again = true;
                }
            }
        }
        drop(now);
        if !again {
            tokio::select! {
                changed = published.changed() => changed.context("nobody publishes")?,
                // What another revision has said meanwhile is not what this one says.
                changed = default.changed() => changed.map(|()| said.clear())?,
            }
        }
        tokio::time::sleep_until(looked + LOOK).await;
    }
}

/// Objects whose status does not say yet what it should; those gone are forgotten.
fn due(now: &Published, default: &Unnamed, said: &mut BTreeMap<ObjectKey, Verdict>) -> Vec<(ObjectKey, Verdict)> {
    let wanted = verdicts(now);
    said.retain(|key, _| wanted.contains_key(key));
    let mut due = Vec::new();
    for (key, verdict) in wanted {
        let others = now.world.object(&key).is_some_and(|object| !default.writes(object));
        if others || said.get(&key) == Some(&verdict) {
            continue;
        }
        let status = now.world.object(&key).map(|object| &object.raw["status"]);
        if status.is_some_and(|status| patch(status, &verdict, verdict.generation, "").is_none()) {
            said.insert(key, verdict);
        } else {
            due.push((key, verdict));
        }
    }
    due
}

/// What there is to say of each object of Istio's kinds, also of those that were refused.
fn verdicts(now: &Published) -> BTreeMap<ObjectKey, Verdict> {
    let ours = now.world.objects().filter(|object| object.kind.row().strict);
    let mut verdicts: BTreeMap<ObjectKey, Verdict> = ours
        .map(|object| (object.key(), Verdict { generation: object.meta.generation, problems: Vec::new() }))
        .collect();
    for problem in now.problems() {
        let Some(key) = key_of(&problem.object) else { continue };
        let problems = &mut verdicts.entry(key).or_default().problems;
        if !problems.contains(problem) {
            problems.push(problem.clone());
        }
    }
    for verdict in verdicts.values_mut() {
        // The worst first: the condition tells of it.
        verdict.problems.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    }
    verdicts
}

fn key_of(object: &ObjectRef) -> Option<ObjectKey> {
    let kind = KINDS.iter().find(|row| row.strict && row.name == object.kind)?.kind;
    let named = !object.name.is_empty();
    named.then(|| ObjectKey { kind, namespace: object.namespace.clone(), name: object.name.clone() })
}

/// Reads the object's status, and writes it if it says something else.
async fn say(client: &Client, default: &Unnamed, key: &ObjectKey, verdict: &Verdict) -> Result<()> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource(key.kind));
    let Some(object) = api.get_opt(&key.name).await? else { return Ok(()) };
    // Of one that was refused the labels are known only now.
    if !object.labels().contains_key(REVISION) && !default.is_ours() {
        return Ok(());
    }
    let newest = object.metadata.generation.unwrap_or_default();
    // A version that was refused is not in the snapshot; what is wrong is wrong with the newest one.
    let refused = verdict.problems.iter().any(|problem| problem.severity == Severity::Error);
    let generation = if refused || verdict.generation == 0 { newest } else { verdict.generation };
    let time = now();
    let Some(status) = patch(&object.data["status"], verdict, generation, &time) else { return Ok(()) };
    // The version makes it fail if somebody else wrote meanwhile: lists are replaced as a whole.
    let patch = json!({"metadata": {"resourceVersion": object.resource_version()}, "status": status});
    let by = PatchParams { field_manager: Some("istiod".to_owned()), ..PatchParams::default() };
    match api.patch_status(&key.name, &by, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The time now, as Kubernetes writes it.
fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let whole = now.replace_nanosecond(0).unwrap_or(now);
    whole.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// How a status must change to say this; `None` if it says it. What others wrote stays.
fn patch(status: &Value, verdict: &Verdict, generation: i64, time: &str) -> Option<Value> {
    let empty = Vec::new();
    let conditions = status["conditions"].as_array().unwrap_or(&empty);
    let before = conditions.iter().find(|condition| condition["type"] == CONDITION);
    let mut condition = condition(verdict);
    let same_state = before.filter(|before| before["status"] == condition["status"]);
    condition["lastTransitionTime"] = match same_state {
        Some(before) => before["lastTransitionTime"].clone(),
        None => json!(time),
    };
    let messages: Vec<Value> = verdict.problems.iter().map(message).collect();
    let told = status["validationMessages"].as_array().unwrap_or(&empty);
    let observed = match &status["observedGeneration"] {
        Value::String(text) => text.parse().ok(),
        number => number.as_i64(),
    };
    if before == Some(&condition) && *told == messages && observed == Some(generation) {
        return None;
    }
    let others = conditions.iter().filter(|condition| condition["type"] != CONDITION).cloned();
    Some(json!({
        "conditions": others.chain([condition]).collect::<Vec<_>>(),
        "observedGeneration": generation,
        // Null takes the field away.
        "validationMessages": if messages.is_empty() { Value::Null } else { json!(messages) },
    }))
}

fn condition(verdict: &Verdict) -> Value {
    let (status, reason) = match verdict.problems.first().map(|problem| problem.severity) {
        Some(Severity::Error) => ("False", "HasErrors"),
        Some(Severity::Warning) => ("True", "HasWarnings"),
        Some(Severity::Info) | None => ("True", "Accepted"),
    };
    let message = match verdict.problems.as_slice() {
        [] => "The object is in effect.".to_owned(),
        [one] => sentence(one),
        [first, rest @ ..] => format!("{} ({} more)", sentence(first), rest.len()),
    };
    json!({"type": CONDITION, "status": status, "reason": reason, "message": message})
}

fn sentence(problem: &Problem) -> String {
    match problem.field.as_str() {
        "" => problem.message.clone(),
        field => format!("{field}: {}", problem.message),
    }
}

/// A problem as Istio's `AnalysisMessageBase`, with the field and the sentence besides.
fn message(problem: &Problem) -> Value {
    let code = problem.code.id();
    let mut message = json!({
        "type": {"name": format!("{:?}", problem.code), "code": code},
        "level": format!("{:?}", problem.severity).to_uppercase(),
        "message": problem.message,
    });
    if !problem.field.is_empty() {
        message["field"] = json!(problem.field);
    }
    if code.starts_with("IST") {
        let page = code.to_ascii_lowercase();
        message["documentationUrl"] = json!(format!("https://istio.io/latest/docs/reference/config/analysis/{page}/"));
    }
    message
}

#[cfg(test)]
mod tests {
    use api::problem::{Code, Origin};

    use super::*;

    fn problem(severity: Severity, code: Code, field: &str) -> Problem {
        Problem {
            object: ObjectRef { kind: "VirtualService".into(), namespace: "shop".into(), name: "a".into() },
            origin: Origin::default(),
            field: field.into(),
            code,
            severity,
            message: "No such host.".into(),
        }
    }

    /// What the API server makes of a merge patch.
    fn merged(status: &Value, change: &Value) -> Value {
        let mut status = status.as_object().cloned().unwrap_or_default();
        for (field, value) in change.as_object().unwrap() {
            if value.is_null() {
                status.remove(field)
            } else {
                status.insert(field.clone(), value.clone())
            };
        }
        Value::Object(status)
    }

    #[test]
    fn a_status_is_written_once() {
        let good = Verdict { generation: 3, problems: Vec::new() };
        let status = merged(&Value::Null, &patch(&Value::Null, &good, 3, "2026-01-01T00:00:00Z").unwrap());
        assert_eq!(
            status,
            json!({
                "observedGeneration": 3,
                "conditions": [{
                    "type": "Reconciled", "status": "True", "reason": "Accepted", "message": "The object is in effect.",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            })
        );
        assert_eq!(patch(&status, &good, 3, "2026-01-02T00:00:00Z"), None);
        // Istio writes the number as text.
        let mut text = status.clone();
        text["observedGeneration"] = json!("3");
        assert_eq!(patch(&text, &good, 3, "2026-01-02T00:00:00Z"), None);
        let next = patch(&status, &good, 4, "2026-01-02T00:00:00Z").unwrap();
        assert_eq!(next["conditions"], status["conditions"], "the state did not change, so its time does not");
    }

    #[test]
    fn problems_are_told_and_taken_back_and_others_conditions_stay() {
        let bad = Verdict {
            generation: 1,
            problems: vec![
                problem(Severity::Error, Code::ReferencedResourceNotFound, "spec.hosts[0]"),
                problem(Severity::Warning, Code::SubsetNotFound, ""),
            ],
        };
        let start = json!({"conditions": [{"type": "Other", "status": "True"}]});
        let status = merged(&start, &patch(&start, &bad, 1, "2026-01-01T00:00:00Z").unwrap());
        assert_eq!(status["conditions"][0], json!({"type": "Other", "status": "True"}));
        assert_eq!(status["conditions"][1]["status"], "False");
        assert_eq!(status["conditions"][1]["message"], "spec.hosts[0]: No such host. (1 more)");
        assert_eq!(
            status["validationMessages"][0],
            json!({
                "type": {"name": "ReferencedResourceNotFound", "code": "IST0101"}, "level": "ERROR",
                "field": "spec.hosts[0]", "message": "No such host.",
                "documentationUrl": "https://istio.io/latest/docs/reference/config/analysis/ist0101/",
            })
        );
        assert!(status["validationMessages"][1]["documentationUrl"].is_null());
        let good = Verdict { generation: 2, problems: Vec::new() };
        let mended = merged(&status, &patch(&status, &good, 2, "2026-01-02T00:00:00Z").unwrap());
        assert!(mended["validationMessages"].is_null());
        assert_eq!(mended["conditions"][1]["lastTransitionTime"], "2026-01-02T00:00:00Z");
    }

    #[test]
    fn only_istios_objects_have_a_status_of_ours() {
        let object = |kind: &str, name: &str| ObjectRef { kind: kind.into(), namespace: "a".into(), name: name.into() };
        assert!(key_of(&object("VirtualService", "x")).is_some());
        assert!(key_of(&object("Service", "x")).is_none() && key_of(&object("VirtualService", "")).is_none());
    }
}
