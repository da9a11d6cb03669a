//! What is wrong with those who are asked about requests: settings of the mesh that name nobody, and policies that ask somebody who
//! is not there.

use std::collections::BTreeSet;

use api::crd::AuthorizationPolicy;
use api::crd::authorization_policy::Action;
use api::object::{Body, Object};
use api::problem::{Code, ObjectRef, Origin, Problem, Severity};
use api::selector::selects;

use crate::intrinsic::{decision_of, dry_run, problem};
use crate::snapshot::{Snapshot, custom_providers, decision_providers};
use crate::world::World;

pub(super) fn all(world: &World, snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    let of_mesh = |field: String, code: Code, severity: Severity, message: String| Problem {
        object: ObjectRef { kind: "MeshConfig".into(), ..ObjectRef::default() },
        origin: Origin::default(),
        field,
        code,
        severity,
        message,
    };
    problems.extend(snapshot.providers.faults.iter().map(|(field, closes, message)| {
        let (code, severity) = match closes {
            true => (Code::SchemaValidation, Severity::Error),
            false => (Code::MeaningTaken, Severity::Warning),
        };
        of_mesh(field.clone(), code, severity, message.clone())
    }));
    for (index, one) in world.mesh().extension_providers.iter().enumerate() {
        if let ([kind], false) = (one.kinds().as_slice(), one.is_ext_authz()) {
            let message = format!("Providers of this kind are not built yet; {:?} has no effect.", one.name);
            let field = format!("extensionProviders[{index}].{kind}");
            problems.push(of_mesh(field, Code::NotBuilt, Severity::Warning, message));
        }
    }
    for object in world.objects.values() {
        if let Body::AuthorizationPolicy(spec) = &object.body
            && dry_run(object) != Some(true)
        {
            problems.extend(asks_nobody(snapshot, object, spec));
        }
    }
}

/// A policy whose provider cannot be asked.
fn asks_nobody(snapshot: &Snapshot, object: &Object, spec: &AuthorizationPolicy) -> Vec<Problem> {
    match spec.action {
        Action::Custom => custom(snapshot, object, spec),
        Action::Allow => decisions(snapshot, object, spec),
        Action::Deny | Action::Audit => Vec::new(),
    }
}

fn custom(snapshot: &Snapshot, object: &Object, spec: &AuthorizationPolicy) -> Vec<Problem> {
    let name = spec.provider.as_ref().map_or("", |provider| provider.name.as_str());
    if name.is_empty() {
        return Vec::new();
    }
    let tell = |code: Code, severity: Severity, message: String| {
        problem(object, "spec.provider.name", code, severity, message)
    };
    let effect = "all that the rules match is denied";
    let mut found = Vec::new();
    match unusable(snapshot, name) {
        Some(why) => {
            found.push(tell(Code::ReferencedResourceNotFound, Severity::Error, format!("{why}; {effect}.")));
        }
        None if snapshot.providers.get(name).is_some_and(|provider| provider.http.is_some()) => {
            let message = "Connections that carry no HTTP are not asked about: the provider is asked over HTTP.";
            found.push(tell(Code::MeaningTaken, Severity::Info, message.to_owned()));
        }
        None => {}
    }
    if let Some(message) = several(snapshot, object, spec) {
        found.push(tell(Code::MeaningTaken, Severity::Error, format!("{message}; {effect}.")));
    }
    found
}

fn decisions(snapshot: &Snapshot, object: &Object, spec: &AuthorizationPolicy) -> Vec<Problem> {
    let (mut found, mut asks) = (Vec::new(), false);
    for (index, rule) in spec.rules.iter().enumerate() {
        let Some(name) = decision_of(rule) else { continue };
        asks = true;
        let Some(why) = unusable(snapshot, name) else { continue };
        let place = rule.when.iter().position(|one| one.key.starts_with("custom.")).unwrap_or_default();
        let field = format!("spec.rules[{index}].when[{place}].key");
        let message = format!("{why}; the rule lets nobody in.");
        found.push(problem(object, &field, Code::ReferencedResourceNotFound, Severity::Error, message));
    }
    if let Some(message) = several(snapshot, object, spec).filter(|_| asks) {
        let message = format!("{message}; rules that ask for a decision let nobody in.");
        found.push(problem(object, "spec.rules", Code::MeaningTaken, Severity::Error, message));
    }
    found
}

/// Why a provider cannot be asked.
fn unusable(snapshot: &Snapshot, name: &str) -> Option<String> {
    let providers = &snapshot.providers;
    if providers.get(name).is_some() {
        return None;
    }
    if providers.has(name) {
        return Some(format!(
            "The provider {name:?} of the mesh's extensionProviders is wrong, as its own problem says"
        ));
    }
    let known = match (providers.nearest(name), providers.names().as_slice()) {
        (Some(near), _) => format!(" (is {near} meant?)"),
        (None, []) => String::new(),
        (None, names) => format!(" (there are {})", names.join(", ")),
    };
    Some(format!("The mesh's extensionProviders have no provider {name:?} that speaks Envoy's ext_authz{known}"))
}

/// A workload whose policies of the same action ask several providers.
fn several(snapshot: &Snapshot, object: &Object, spec: &AuthorizationPolicy) -> Option<String> {
    let anywhere = object.meta.namespace == snapshot.mesh.root_namespace;
    let wanted = spec.selector.as_ref().map(|selector| &selector.match_labels);
    let mut seen: BTreeSet<(&str, Vec<(&String, &String)>)> = BTreeSet::new();
    for workload in &snapshot.workloads {
        let bound = (anywhere || workload.namespace == object.meta.namespace)
            && wanted.is_none_or(|wanted| selects(wanted, &workload.labels));
        // Workloads that look the same are bound by the same policies.
        if !bound || !seen.insert((&workload.namespace, workload.labels.iter().collect())) {
            continue;
        }
        let policies = snapshot.authorizations(&workload.namespace, &workload.labels);
        let names =
            if spec.action == Action::Custom { custom_providers(&policies) } else { decision_providers(&policies) };
        if names.len() > 1 {
            let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
            return Some(format!(
                "The policies of the workload {}/{} ask several providers, {}, and only one can be asked",
                workload.namespace,
                workload.name,
                names.join(" and ")
            ));
        }
    }
    None
}
