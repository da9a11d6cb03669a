//! RequestAuthentication (security.istio.io): which tokens (JWT) requests may carry.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::target_reference::{PolicyTargetReference, one_scope};
use crate::schema::{at_least_1ms, at_most_one};
use crate::selector::MatchLabels;
use crate::value::Duration;

/// The spec of a RequestAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = one_scope()))]
pub struct RequestAuthentication {
    /// Workloads of the namespace; default all (in the root namespace: of the mesh).
    pub selector: Option<MatchLabels>,
    /// One object that the policy is for, in place of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects that the policy is for, in place of workloads.
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Issuers: a token must be good for one of them. A request without a token passes.
    #[schemars(extend("maxItems" = 4096))]
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("oneOf" = at_most_one(&["jwks", "jwksUri", "jwks_uri"])))]
pub struct JwtRule {
    /// Who issues them (claim `iss`).
    pub issuer: String,
    /// For whom they may be (claim `aud`); default anybody.
    pub audiences: Vec<String>,
    /// Where its keys are; default as the issuer's OpenID configuration says.
    #[serde(alias = "jwks_uri")]
    #[schemars(extend("x-aliases" = ["jwks_uri"], "maxLength" = 2048))]
    pub jwks_uri: String,
    /// Its keys.
    pub jwks: String,
    /// Headers that carry a token; default `Authorization: Bearer`.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that carry a token; default `access_token`.
    pub from_params: Vec<String>,
    /// Cookies that carry a token.
    pub from_cookies: Vec<String>,
    /// Header in which the application gets the token's claims, as base64.
    pub output_payload_to_header: String,
    /// Whether the application gets the token itself.
    pub forward_original_token: bool,
    /// Headers in which the application gets single claims.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Time to get the keys; default 5 s.
    #[schemars(extend("x-kubernetes-validations" = at_least_1ms()))]
    pub timeout: Option<Duration>,
    /// Claims that are lists written as one text with spaces, besides `scope` and `permission`.
    #[schemars(extend("maxItems" = 64))]
    pub space_delimited_claims: Vec<String>,
    /// Whether a request without a token is refused; not used by Istio's control plane.
    pub presence: Option<Presence>,
}

/// Whether a request without a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Presence {
    /// No.
    Optional,
    /// Yes.
    Required,
}

/// A header that carries a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct JwtHeader {
    /// Its name.
    pub name: String,
    /// What stands before the token, such as `Bearer ` with the space.
    pub prefix: String,
}

/// A claim for the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["header", "claim"]))]
pub struct ClaimToHeader {
    /// Header.
    pub header: String,
    /// Claim.
    pub claim: String,
}
