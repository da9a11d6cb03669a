//! What is wrong with a RequestAuthentication in itself (Istio `ValidateRequestAuthentication`), and what in it has no effect.

use std::collections::BTreeSet;

use api::crd;
use api::crd::request_authentication::{JwtRule, Presence};
use api::problem::Code;

use super::Told;
use crate::keys::{KeySource, usable_keys};

pub(super) fn check(told: &mut Told<'_>, spec: &crd::RequestAuthentication) {
    let by_object = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    if by_object && spec.selector.is_some() {
        told.error("spec", Code::SchemaValidation, "Only one of selector and targetRefs may be given.");
    }
    if by_object {
        told.error(
            "spec.targetRefs",
            Code::NotBuilt,
            "Policies for single objects (the Gateway API) are not built yet; no token is looked at. Give a selector.",
        );
    }
    if spec.jwt_rules.is_empty() {
        told.info("spec.jwtRules", Code::MeaningTaken, "Without rules no token is looked at; all requests pass.");
    }
    let mut issuers = BTreeSet::new();
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        let field = format!("spec.jwtRules[{index}]");
        one_rule(told, &field, rule);
        if !issuers.insert(&rule.issuer) {
            let message = format!(
                "A rule above is for the issuer {:?} too; a token that is good for either is good.",
                rule.issuer
            );
            told.info(&format!("{field}.issuer"), Code::MeaningTaken, &message);
        }
    }
}

fn one_rule(told: &mut Told<'_>, field: &str, rule: &JwtRule) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        told.error(
            &format!("{field}.issuer"),
            Code::MissingField,
            "The rule names no issuer; without one it needs at least a jwksUri.",
        );
    } else if rule.issuer.is_empty() {
        told.warn(
            &format!("{field}.issuer"),
            Code::MeaningTaken,
            "The rule names no issuer: tokens of any issuer are good that one of the keys has signed.",
        );
    }
    keys(told, field, rule);
    for (index, _) in rule.audiences.iter().enumerate().filter(|(_, name)| name.is_empty()) {
        told.error(&format!("{field}.audiences[{index}]"), Code::SchemaValidation, "The audience is empty.");
    }
    for (index, header) in rule.from_headers.iter().enumerate() {
        told.header(&format!("{field}.fromHeaders[{index}].name"), &header.name);
        if header.prefix.contains(['\r', '\n', '\0']) {
            let message = "The text cannot stand in a header.";
            told.error(&format!("{field}.fromHeaders[{index}].prefix"), Code::SchemaValidation, message);
        }
    }
    for (name, values) in [
        ("fromParams", &rule.from_params),
        ("fromCookies", &rule.from_cookies),
        ("spaceDelimitedClaims", &rule.space_delimited_claims),
    ] {
        for (index, _) in values.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            told.error(&format!("{field}.{name}[{index}]"), Code::SchemaValidation, "The name is empty.");
        }
    }
    let mut headers = BTreeSet::new();
    if !rule.output_payload_to_header.is_empty() {
        told.header(&format!("{field}.outputPayloadToHeader"), &rule.output_payload_to_header);
        headers.insert(rule.output_payload_to_header.to_ascii_lowercase());
    }
    for (index, one) in rule.output_claim_to_headers.iter().enumerate() {
        let field = format!("{field}.outputClaimToHeaders[{index}]");
        told.header(&format!("{field}.header"), &one.header);
        if one.claim.is_empty() {
            told.error(&format!("{field}.claim"), Code::MissingField, "The name of the claim is missing.");
        }
        if !headers.insert(one.header.to_ascii_lowercase()) {
            let message = format!("The header {} is written twice; the application gets both values.", one.header);
            told.warn(&format!("{field}.header"), Code::MeaningTaken, &message);
        }
    }
    told.positive(&format!("{field}.timeout"), rule.timeout);
    if rule.presence == Some(Presence::Required) {
        told.warn(
            &format!("{field}.presence"),
            Code::NotBuilt,
            "REQUIRED is not built yet: a request without a token passes. An AuthorizationPolicy can ask for one (requestPrincipals).",
        );
    }
}

fn keys(told: &mut Told<'_>, field: &str, rule: &JwtRule) {
    if !rule.jwks.is_empty() && !rule.jwks_uri.is_empty() {
        told.error(field, Code::SchemaValidation, "Only one of jwks and jwksUri may be given.");
    }
    if !rule.jwks.is_empty() {
        match usable_keys(&rule.jwks) {
            None => told.error(
                &format!("{field}.jwks"),
                Code::SchemaValidation,
                "The text is no key set (JWKS): JSON with a list named keys.",
            ),
            Some(0) => told.warn(
                &format!("{field}.jwks"),
                Code::NeverMatches,
                "The key set has no key that signatures can be checked with: every token of the issuer is refused.",
            ),
            Some(_) => {}
        }
        return;
    }
    match KeySource::of(rule) {
        Some(KeySource::Address(address)) if !is_address(&address) => {
            let message = format!("The text {address:?} is not of the form http://HOST/PATH or https://HOST/PATH.");
            told.error(&format!("{field}.jwksUri"), Code::SchemaValidation, &message);
        }
        Some(KeySource::Issuer(issuer)) if !issuer.is_empty() && !is_address(&issuer) => {
            let message = format!(
                "The issuer {issuer:?} is no address under which its keys could be looked up; give jwks or jwksUri. Until then every token of it is refused."
            );
            told.warn(&format!("{field}.issuer"), Code::NeverMatches, &message);
        }
        _ => {}
    }
}

/// Whether the text is an address that keys can be fetched from.
fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(host) = rest.and_then(|rest| rest.split(['/', '?', '#']).next()) else { return false };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let letters = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"@\\".contains(&byte));
    !name.is_empty() && letters(text) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}
