//! What is wrong with tokens among objects: policies that ask for a token where none is looked at, and issuers whose keys could
//! not be fetched.

use api::crd::AuthorizationPolicy;
use api::crd::authorization_policy::Action;
use api::crd::request_authentication::RequestAuthentication;
use api::object::{Body, Object};
use api::problem::{Code, Problem, Severity};
use api::selector::selects;
use api::value::Labels;

use crate::intrinsic::problem;
use crate::keys::KeySource;
use crate::snapshot::Snapshot;
use crate::world::World;

pub(super) fn all(world: &World, snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    for object in world.objects.values() {
        match &object.body {
            Body::AuthorizationPolicy(spec) => problems.extend(unread(snapshot, object, spec)),
            Body::RequestAuthentication(spec) => problems.extend(unfetched(world, object, spec)),
            _ => {}
        }
    }
}

/// A policy that asks for tokens of a workload where no RequestAuthentication has them looked at.
fn unread(snapshot: &Snapshot, object: &Object, spec: &AuthorizationPolicy) -> Vec<Problem> {
    let asks = asked(spec);
    if asks.is_empty() || spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        return Vec::new();
    }
    let Some(place) = unguarded(snapshot, object, spec) else { return Vec::new() };
    let tell = |(field, not): (String, bool)| {
        let effect = match (spec.action, not) {
            (Action::Allow, false) => "nobody is let in there by this rule",
            (_, false) => "there the rule matches nobody",
            (_, true) => "there everybody counts as a caller without a token",
        };
        let message = format!("Tokens are not looked at for {place}, which no RequestAuthentication binds: {effect}.");
        problem(object, &field, Code::NeverMatches, Severity::Warning, message)
    };
    asks.into_iter().map(tell).collect()
}

/// The fields that ask for a token, and whether only for one that is not to be.
fn asked(spec: &AuthorizationPolicy) -> Vec<(String, bool)> {
    let mut fields = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        for (place, source) in
            rule.from.iter().enumerate().filter_map(|(place, from)| Some((place, from.source.as_ref()?)))
        {
            let field = |name: &str| format!("spec.rules[{index}].from[{place}].source.{name}");
            if !source.request_principals.is_empty() {
                fields.push((field("requestPrincipals"), false));
            }
            if !source.not_request_principals.is_empty() {
                fields.push((field("notRequestPrincipals"), true));
            }
        }
        let conditions = rule.when.iter().enumerate().filter(|(_, one)| one.key.starts_with("request.auth."));
        fields.extend(
            conditions.map(|(place, one)| (format!("spec.rules[{index}].when[{place}].key"), one.values.is_empty())),
        );
    }
    fields
}

/// A workload that the policy binds and no RequestAuthentication does. Of a policy that binds no workload yet, one such as it is
/// for.
fn unguarded(snapshot: &Snapshot, object: &Object, spec: &AuthorizationPolicy) -> Option<String> {
    let namespace = &object.meta.namespace;
    let anywhere = *namespace == snapshot.mesh.root_namespace;
    let wanted = spec.selector.as_ref().map(|selector| &selector.match_labels);
    let mut bound = snapshot.workloads.iter().filter(|workload| {
        (anywhere || workload.namespace == *namespace) && wanted.is_none_or(|wanted| selects(wanted, &workload.labels))
    });
    let guarded = |namespace: &str, labels: &Labels| !snapshot.authentications(namespace, labels).is_empty();
    let mut any = false;
    let found = bound.find(|workload| {
        any = true;
        !guarded(&workload.namespace, &workload.labels)
    });
    if any {
        return found.map(|workload| format!("the workload {}/{}", workload.namespace, workload.name));
    }
    let labels = wanted.cloned().unwrap_or_default();
    (!guarded(namespace, &labels)).then(|| "the workloads of the policy".to_owned())
}

/// Issuers whose keys could not be fetched. What nobody has tried to fetch yet is not told.
fn unfetched(world: &World, object: &Object, spec: &RequestAuthentication) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        let Some(source) = KeySource::of(rule) else { continue };
        let Some(known) = world.keys.get(&source).filter(|known| !known.failure.is_empty()) else { continue };
        let field = match &source {
            KeySource::Address(_) => format!("spec.jwtRules[{index}].jwksUri"),
            KeySource::Issuer(_) => format!("spec.jwtRules[{index}].issuer"),
        };
        let (severity, effect) = match known.jwks {
            None => {
                (Severity::Error, "until they are, every token of it is refused (401), while requests without one pass")
            }
            Some(_) => (Severity::Warning, "those that were fetched last stay in use"),
        };
        let message = format!(
            "The keys of the issuer {:?} could not be fetched: {}; {effect}. It is tried again.",
            rule.issuer, known.failure
        );
        problems.push(problem(object, &field, Code::KeysNotFetched, severity, message));
    }
    problems
}
