//! What is wrong with an AuthorizationPolicy in itself (Istio `ValidateAuthorizationPolicy`), and what in it can never match.

use std::net::IpAddr;

use api::crd;
use api::crd::authorization_policy::{Action, Condition, Operation, Rule, Source};
use api::object::Body;
use api::problem::Code;

use super::{Told, dry_run};

/// Conditions whose name stands alone.
const KEYS: [&str; 12] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "source.principal",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];
/// Conditions that name a part in brackets.
const PARTS: [&str; 3] = ["request.headers", "request.auth.claims", "experimental.envoy.filters."];

/// HTTP filters that tell those behind something.
const TELLING: [&str; 3] = ["jwt_authn[", "ext_authz[", "rbac["];

pub(super) fn check(told: &mut Told<'_>, spec: &crd::AuthorizationPolicy) {
    // What stands for a text that could not be read; whoever read it has told.
    if spec.is_unread {
        return;
    }
    whole(told, spec);
    if dry_run(told.object).is_none() {
        told.error(
            "metadata.annotations[\"istio.io/dry-run\"]",
            Code::SchemaValidation,
            "The annotation says neither true nor false; the policy is enforced.",
        );
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        one_rule(told, &format!("spec.rules[{index}]"), rule);
    }
}

fn whole(told: &mut Told<'_>, spec: &crd::AuthorizationPolicy) {
    let by_object = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    if by_object && spec.selector.is_some() {
        told.error("spec", Code::SchemaValidation, "Only one of selector and targetRefs may be given.");
    }
    if by_object {
        told.error(
            "spec.targetRefs",
            Code::NotBuilt,
            "Policies for single objects (the Gateway API) are not built yet; this one protects nothing. Give a selector.",
        );
    }
    let asks = spec.provider.as_ref().is_some_and(|provider| !provider.name.is_empty());
    match spec.action {
        Action::Custom => {
            if !asks {
                told.error("spec.provider", Code::MissingField, "CUSTOM needs the name of the provider that decides.");
            }
            if dry_run(told.object) == Some(true) {
                told.warn(
                    "metadata.annotations[\"istio.io/dry-run\"]",
                    Code::NotBuilt,
                    "Nobody is asked on trial: a CUSTOM policy with this annotation has no effect.",
                );
            }
        }
        _ if spec.provider.is_some() => {
            told.error("spec.provider", Code::SchemaValidation, "Only CUSTOM has a provider.");
        }
        Action::Audit => {
            told.warn("spec.action", Code::NotBuilt, "AUDIT is not built yet: nothing is noted.");
        }
        Action::Allow | Action::Deny => {}
    }
    if !spec.rules.is_empty() {
        return;
    }
    match spec.action {
        Action::Allow => {
            told.info("spec.rules", Code::MeaningTaken, "ALLOW without rules lets nobody in: all requests are denied.");
        }
        Action::Deny | Action::Custom => {
            told.error(
                "spec.rules",
                Code::MissingField,
                "Without rules the policy matches nothing; write one empty rule ({}) to match everything.",
            );
        }
        Action::Audit => {}
    }
}

fn one_rule(told: &mut Told<'_>, field: &str, rule: &Rule) {
    for (index, from) in rule.from.iter().enumerate() {
        let field = format!("{field}.from[{index}].source");
        match from.source.as_ref().filter(|source| **source != Source::default()) {
            Some(of) => source(told, &field, of),
            None => told.error(
                &field,
                Code::MissingField,
                "The entry says nothing of the caller; leave out from for any caller.",
            ),
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        let field = format!("{field}.to[{index}].operation");
        match to.operation.as_ref().filter(|operation| **operation != Operation::default()) {
            Some(of) => operation(told, &field, of),
            None => told.error(
                &field,
                Code::MissingField,
                "The entry says nothing of the request; leave out to for any request.",
            ),
        }
    }
    for (index, one) in rule.when.iter().enumerate() {
        let field = format!("{field}.when[{index}]");
        match asked_decision(one) {
            Some(asked) => decision(told, &field, asked, rule),
            None => condition(told, &field, one),
        }
    }
}

/// A field's values, with its name.
type Field<'a> = (&'a str, &'a Vec<String>);
/// What is to be said of one value of a field.
type Check = fn(&mut Told<'_>, &str, &str);

fn source(told: &mut Told<'_>, field: &str, of: &Source) {
    let each = |told: &mut Told<'_>, fields: [Field<'_>; 2], check: Check| {
        for (name, values) in fields {
            values_of(told, &format!("{field}.{name}"), values, check);
        }
    };
    each(told, [("principals", &of.principals), ("notPrincipals", &of.not_principals)], principal);
    each(told, [("namespaces", &of.namespaces), ("notNamespaces", &of.not_namespaces)], |_, _, _| {});
    each(told, [("trustDomains", &of.trust_domains), ("notTrustDomains", &of.not_trust_domains)], |_, _, _| {});
    each(told, [("ipBlocks", &of.ip_blocks), ("notIpBlocks", &of.not_ip_blocks)], block);
    each(told, [("remoteIpBlocks", &of.remote_ip_blocks), ("notRemoteIpBlocks", &of.not_remote_ip_blocks)], block);
    each(told, [("serviceAccounts", &of.service_accounts), ("notServiceAccounts", &of.not_service_accounts)], account);
    let tokens = [("requestPrincipals", &of.request_principals), ("notRequestPrincipals", &of.not_request_principals)];
    each(told, tokens, |_, _, _| {});
    let accounts = !of.service_accounts.is_empty() || !of.not_service_accounts.is_empty();
    let others = [&of.principals, &of.not_principals, &of.namespaces, &of.not_namespaces];
    if accounts && others.iter().any(|values| !values.is_empty()) {
        told.error(
            field,
            Code::SchemaValidation,
            "The field serviceAccounts cannot be given together with principals or namespaces.",
        );
    }
}

fn operation(told: &mut Told<'_>, field: &str, of: &Operation) {
    let rows: [(Field<'_>, Check); 8] = [
        (("hosts", &of.hosts), star),
        (("notHosts", &of.not_hosts), star),
        (("ports", &of.ports), port),
        (("notPorts", &of.not_ports), port),
        (("methods", &of.methods), method),
        (("notMethods", &of.not_methods), method),
        (("paths", &of.paths), path),
        (("notPaths", &of.not_paths), path),
    ];
    for ((name, values), check) in rows {
        values_of(told, &format!("{field}.{name}"), values, check);
    }
}

/// Whose decision a condition asks for (`custom.PROVIDER_decision`, a key of this mesh), if it does; or what is wrong in it.
pub(crate) fn asked_decision(condition: &Condition) -> Option<Result<&str, &'static str>> {
    let provider = condition.key.strip_prefix("custom.")?.strip_suffix("_decision")?;
    let allowed = |values: &[String]| !values.is_empty() && values.iter().all(|value| value == "allow");
    Some(match condition {
        _ if provider.is_empty() => Err("The condition names no provider: write it as in custom.opa_decision."),
        _ if !condition.not_values.is_empty() => {
            Err("Of a provider's decision, only that it allows can be asked: give values: [allow], no notValues.")
        }
        _ if !allowed(&condition.values) => {
            Err("Of a provider's decision, only that it allows can be asked: give values: [allow].")
        }
        _ => Ok(provider),
    })
}

/// Whose decision a rule asks for; of one that asks in a way that cannot be decided, nobody's.
pub(crate) fn decision_of(rule: &Rule) -> Option<&str> {
    let mut asked = rule.when.iter().filter_map(asked_decision);
    let first = asked.next()?.ok()?;
    asked.all(|other| other == Ok(first)).then_some(first)
}

fn decision(told: &mut Told<'_>, field: &str, asked: Result<&str, &'static str>, rule: &Rule) {
    let Body::AuthorizationPolicy(policy) = &told.object.body else { return };
    let (action, key) = (policy.action, format!("{field}.key"));
    if action != Action::Allow {
        let message = "A provider's decision can be asked for by rules that allow something only; with CUSTOM, give the provider.";
        return told.error(&key, Code::SchemaValidation, message);
    }
    match asked {
        Err(message) => {
            told.error(
                field,
                Code::SchemaValidation,
                &format!("{message} A rule that cannot be decided lets nobody in."),
            );
        }
        Ok(_) if decision_of(rule).is_none() => {
            let message = "A rule can ask for the decision of one provider only; this one lets nobody in.";
            told.error(&key, Code::SchemaValidation, message);
        }
        Ok(_) if dry_run(told.object) == Some(true) => {
            told.warn(&key, Code::NotBuilt, "Nobody is asked on trial: this rule counts as one that lets nobody in.");
        }
        Ok(_) => {}
    }
}

fn condition(told: &mut Told<'_>, field: &str, condition: &Condition) {
    let key = condition.key.as_str();
    let part = PARTS.iter().find(|part| key.starts_with(**part));
    if key.is_empty() {
        return told.error(&format!("{field}.key"), Code::MissingField, "The condition names no attribute.");
    }
    if !KEYS.contains(&key) && part.is_none() {
        let message = format!(
            "There is no attribute {key:?}; a condition can be on {} or request.headers[NAME]. A rule that cannot be decided lets nobody in.",
            KEYS.join(", ")
        );
        return told.error(&format!("{field}.key"), Code::SchemaValidation, &message);
    }
    if part.is_some() && !key.split_once('[').is_some_and(|(_, rest)| rest.len() > 1 && rest.ends_with(']')) {
        let message = format!("The text {key:?} names no part: write it as in request.headers[x-name].");
        return told.error(&format!("{field}.key"), Code::SchemaValidation, &message);
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        told.error(field, Code::MissingField, "The condition has neither values nor notValues.");
    }
    let check: Check = match key {
        "source.ip" | "remote.ip" | "destination.ip" => block,
        "destination.port" => port,
        "source.principal" => principal,
        "source.serviceAccount" => account,
        _ if key.starts_with("request.headers") || key == "connection.sni" => star,
        _ => |_, _, _| {},
    };
    for (name, values) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        values_of(told, &format!("{field}.{name}"), values, check);
    }
    let tells = |filter: &&str| {
        key.strip_prefix("experimental.envoy.filters.http.").is_some_and(|rest| rest.starts_with(*filter))
    };
    if key.starts_with("experimental.") && !TELLING.iter().any(tells) {
        told.warn(
            &format!("{field}.key"),
            Code::NotBuilt,
            "Of the filters of our proxies, only jwt_authn, ext_authz and rbac write metadata: of others, no value ever matches.",
        );
    }
}

fn values_of(told: &mut Told<'_>, field: &str, values: &[String], check: Check) {
    for (index, value) in values.iter().enumerate() {
        let field = format!("{field}[{index}]");
        match value.as_str() {
            "" => told.error(&field, Code::SchemaValidation, "The text is empty; write * for any."),
            value => check(told, &field, value),
        }
    }
}

/// What can match nothing.
fn never(told: &mut Told<'_>, field: &str, message: &str) {
    told.warn(field, Code::NeverMatches, message);
}

fn star(told: &mut Told<'_>, field: &str, value: &str) {
    let inner = value.strip_prefix('*').or_else(|| value.strip_suffix('*')).unwrap_or(value);
    if inner.contains('*') {
        let message = format!(
            "In {value:?}, only a * at the beginning or at the end stands for anything; another one is a star."
        );
        never(told, field, &message);
    }
}

fn principal(told: &mut Told<'_>, field: &str, value: &str) {
    star(told, field, value);
    if let Some(name) = value.strip_prefix("spiffe://") {
        return never(
            told,
            field,
            &format!("An identity is written without spiffe://; this never matches. Write {name}."),
        );
    }
    let whole = matches!(value.split('/').collect::<Vec<_>>()[..], [_, "ns", _, "sa", _]);
    if !value.contains('*') && !whole {
        let message = format!(
            "The identity {value:?} is no identity of a mesh (TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT); it matches no workload."
        );
        never(told, field, &message);
    }
}

fn account(told: &mut Told<'_>, field: &str, value: &str) {
    if value.contains('*') || value.split('/').count() > 2 || value.split('/').any(str::is_empty) {
        let message = format!("The text {value:?} is not the name of a service account, NAMESPACE/NAME or NAME.");
        told.error(field, Code::SchemaValidation, &message);
    }
}

fn block(told: &mut Told<'_>, field: &str, value: &str) {
    let good =
        if value.contains('/') { value.parse::<ipnet::IpNet>().is_ok() } else { value.parse::<IpAddr>().is_ok() };
    if !good {
        told.error(
            field,
            Code::SchemaValidation,
            &format!("The text {value:?} is neither an IP address nor a range such as 10.0.0.0/8."),
        );
    }
}

fn port(told: &mut Told<'_>, field: &str, value: &str) {
    if value.parse::<u16>().is_err() {
        told.error(field, Code::SchemaValidation, &format!("The text {value:?} is not the number of a port."));
    }
}

fn method(told: &mut Told<'_>, field: &str, value: &str) {
    star(told, field, value);
    if value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let message = format!(
            "Methods are written in upper case; {value:?} matches none that is in use. Write {:?}.",
            value.to_ascii_uppercase()
        );
        never(told, field, &message);
    }
}

fn path(told: &mut Told<'_>, field: &str, value: &str) {
    if value.contains("{*}") || value.contains("{**}") {
        return template(told, field, value);
    }
    star(told, field, value);
    if !value.starts_with(['/', '*']) {
        never(told, field, &format!("Paths begin with a slash; {value:?} matches none."));
    }
    if value.contains(['?', '#']) {
        never(told, field, "The query is no part of the path that is compared; this matches no path.");
    }
}

/// A path with `{*}` for one segment and `{**}` for any number of them, the latter last among them.
fn template(told: &mut Told<'_>, field: &str, value: &str) {
    let mut open = false;
    let good = value.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|segment| {
            let last = open;
            open |= segment == "{**}";
            let plain = !segment.contains(['*', '{', '}']);
            (plain || segment == "{*}" || segment == "{**}") && !(last && segment.starts_with('{'))
        })
    });
    if !good {
        let message = format!(
            "The path {value:?} is no template: begin with a slash, and let {{*}} and {{**}} be whole segments, {{**}} the last of them."
        );
        told.error(field, Code::SchemaValidation, &message);
    }
}
