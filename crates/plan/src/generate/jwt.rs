//! RequestAuthentications as Envoy's filter for tokens (Istio `pilot/pkg/security/authn`): a token that a request carries must be
//! good, a request without one passes. What good tokens say is told under the names that `rbac` asks for.

use std::collections::BTreeSet;

use api::crd::request_authentication::JwtRule;
use api::xds::core::{DataSource, data_source::Specifier};
use api::xds::{Any, UNKNOWN_KEY, pack};
use envoy_types::pb::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::{
    JwksSourceSpecifier, NormalizePayload,
};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement, JwtRequirementAndList,
    JwtRequirementOrList, RequirementRule,
};
use envoy_types::pb::google::protobuf::Empty;

use serde_json::json;

use crate::scope::Scope;

/// Name of the filter, under which filters behind find what tokens say.
pub(super) const NAME: &str = "envoy.filters.http.jwt_authn";
/// Key of what a good token says.
pub(super) const PAYLOAD: &str = "payload";
/// Claims that are lists written as one text (Istio).
const LISTS: [&str; 2] = ["permission", "scope"];
/// What stands for a key of an issuer as long as none is known: a digest (SHA-256 of `no key of this issuer has been fetched`) in
/// the place of an Ed25519 point, so that nobody can have the other half of it.
const NOBODYS: &str = "KFYRXM3rtjsv0bGs5WNJeTYZI_r2Z0spkN0Vxk0m9gw";

/// A rule with its keys and the object that it stands in.
struct Rule<'a> {
    rule: &'a JwtRule,
    jwks: Option<&'a str>,
    object: String,
}

/// Configuration of the filter, for a workload that some rule binds. Gateways route by what tokens say, too.
pub(super) fn http(scope: &Scope, routes: bool) -> Option<Any> {
    let mut rules: Vec<Rule> = Vec::new();
    for bound in &scope.authentications {
        for (rule, jwks) in bound.spec.policy.jwt_rules.iter().zip(&bound.spec.keys) {
            let object = format!("RequestAuthentication {}/{}", bound.namespace, bound.name);
            rules.push(Rule { rule, jwks: jwks.as_deref(), object });
        }
    }
    if rules.is_empty() {
        return None;
    }
    rules.sort_by(|one, two| one.rule.issuer.cmp(&two.rule.issuer));
    let name = |place: usize| format!("origins-{place}");
    let required = RequirementRule {
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }),
        requirement_type: Some(RequirementType::Requires(requirement((0..rules.len()).map(name).collect()))),
    };
    Some(pack(&JwtAuthentication {
        providers: rules.iter().enumerate().map(|(place, rule)| (name(place), provider(rule, routes))).collect(),
        rules: vec![required],
        bypass_cors_preflight: true,
        ..JwtAuthentication::default()
    }))
}

fn provider(Rule { rule, jwks, object }: &Rule<'_>, routes: bool) -> JwtProvider {
    let lists: BTreeSet<&str> = rule.space_delimited_claims.iter().map(String::as_str).chain(LISTS).collect();
    let jwks = match jwks {
        Some(jwks) => (*jwks).to_owned(),
        None => json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": UNKNOWN_KEY, "x": NOBODYS}]}).to_string(),
    };
    let jwks = DataSource { specifier: Some(Specifier::InlineString(jwks)), ..DataSource::default() };
    let header = |one: &api::crd::request_authentication::JwtHeader| JwtHeader {
        name: one.name.clone(),
        value_prefix: one.prefix.clone(),
    };
    let claim = |one: &api::crd::request_authentication::ClaimToHeader| JwtClaimToHeader {
        header_name: one.header.clone(),
        claim_name: one.claim.clone(),
        ..JwtClaimToHeader::default()
    };
    JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        forward: rule.forward_original_token,
        from_headers: rule.from_headers.iter().map(header).collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        forward_payload_header: rule.output_payload_to_header.clone(),
        clear_route_cache: routes,
        payload_in_metadata: PAYLOAD.into(),
        normalize_payload_in_metadata: Some(NormalizePayload {
            space_delimited_claims: lists.into_iter().map(str::to_owned).collect(),
        }),
        // Under the object's own name, so that the proxy can tell whose rule refused a request.
        failed_status_in_metadata: object.clone(),
        claim_to_headers: rule.output_claim_to_headers.iter().map(claim).collect(),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(jwks)),
        ..JwtProvider::default()
    }
}

/// A good token of one provider, or none at all. Tokens of several providers stand in the same place as a rule, where one of
/// them is no other's: therefore one is enough, and only a request in which none finds a token passes without.
fn requirement(names: Vec<String>) -> JwtRequirement {
    let of = |requires| JwtRequirement { requires_type: Some(requires) };
    let any = |requirements| of(RequiresType::RequiresAny(JwtRequirementOrList { requirements }));
    let token = |name: &String| of(RequiresType::ProviderName(name.clone()));
    let optional: Vec<JwtRequirement> =
        names.iter().map(|name| any(vec![token(name), of(RequiresType::AllowMissing(Empty::default()))])).collect();
    if let [only] = optional.as_slice() {
        return only.clone();
    }
    let all = of(RequiresType::RequiresAll(JwtRequirementAndList { requirements: optional }));
    any(names.iter().map(token).chain([all]).collect())
}
