//! Tokens of requests (Envoy `JwtAuthentication`): a request with a token that is not good is refused, what a good one says is
//! told to the filters behind and, if asked for, to the application. What is not built is refused as a whole.

mod token;
mod keys;
mod verified;
mod places;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use api::xds::Any;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::route::v3::RouteMatch;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as xds;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts as RequestHead;
use http::{HeaderValue, Method, Uri};
use prost::Message;
use serde_json::{Map, Value};
use xds::jwt_provider::JwksSourceSpecifier;
use xds::jwt_requirement::RequiresType;
use xds::requirement_rule::RequirementType;

use super::Compiled;
use crate::failure::{Failure, Refusal};
use crate::filter::{Exchange, HttpFilter, Reply, Step};
use keys::Keys;
use places::{Found, Places};
use token::{Fault, Token, bare_audience};
use verified::{Good, Judge, Times};

/// Under this name filters behind find what tokens say.
const NAME: &str = "envoy.filters.http.jwt_authn";
/// Clocks may differ by this, in seconds, unless the configuration says otherwise (Envoy).
const SKEW: u32 = 60;
/// Longest path in the answer to a request that is refused (Envoy).
const LONGEST_PATH: usize = 256;

/// The filter.
#[derive(Debug)]
struct Jwt {
    issuers: Vec<Issuer>,
    needs: Need,
    /// Headers that only this filter may write: callers' own are taken away.
    own_headers: Vec<HeaderName>,
    bypass_preflight: bool,
    /// Whoever is refused is not told why.
    silent: bool,
}

/// Somebody whose tokens are looked at (Envoy `JwtProvider`).
#[derive(Debug)]
struct Issuer {
    /// Claim `iss`; empty for any.
    name: String,
    audiences: Vec<String>,
    keys: Keys,
    judge: Judge,
    places: Places,
    skew: u64,
    /// The application gets the token too.
    forward: bool,
    /// What tokens say may lead to another route.
    reroutes: bool,
    payload_header: Option<HeaderName>,
    pads_payload: bool,
    claim_headers: Vec<(HeaderName, String)>,
    payload_key: Option<Arc<str>>,
    header_key: Option<Arc<str>>,
    /// Claims that are lists written as one text.
    lists: Vec<String>,
    /// The object that it was made from.
    object: Option<Arc<str>>,
}

/// What a request must have (Envoy `JwtRequirement`).
#[derive(Debug)]
enum Need {
    /// A good token of this issuer, for these audiences in place of the issuer's.
    Token(usize, Option<Vec<String>>),
    /// One of these; without any token, or with bad ones only, it may pass if so said.
    Any { needs: Vec<Need>, missing: bool, failed: bool },
    /// All of these.
    All(Vec<Need>),
    /// Nothing.
    Nothing,
}

/// Why a request is refused, and by whose rule.
#[derive(Clone, Copy, Debug)]
struct Denied {
    fault: Fault,
    issuer: usize,
}

/// Reads the filter's configuration.
///
/// # Errors
/// Anything that is not built, or that names what is not there.
pub fn compile(any: &Any) -> Result<Compiled, String> {
    let config: xds::JwtAuthentication = api::xds::unpack(any)?;
    if config.filter_state_rules.is_some() {
        return Err("rules by filter state are not built for tokens".to_owned());
    }
    let mut names: Vec<&String> = config.providers.keys().collect();
    names.sort();
    let issuers = names.iter().filter_map(|name| Some((name, config.providers.get(*name)?)));
    let issuers: Vec<Issuer> = issuers
        .map(|(name, provider)| issuer(provider).map_err(|error| format!("provider {name:?}: {error}")))
        .collect::<Result<_, _>>()?;
    let places: HashMap<&str, usize> = names.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    // Rules are asked in their order, and one for all paths ends them.
    let needs = match config.rules.as_slice() {
        [] => return Ok(Compiled::Idle),
        [rule] => {
            for_all_paths(rule.r#match.as_ref())?;
            match &rule.requirement_type {
                None => Need::Nothing,
                Some(RequirementType::Requires(need)) => self::need(need, &places)?,
                Some(RequirementType::RequirementName(name)) => {
                    let need = config.requirement_map.get(name);
                    self::need(need.ok_or_else(|| format!("there is no requirement {name:?}"))?, &places)?
                }
            }
        }
        _ => return Err("several rules for tokens are not built: give one for the prefix /".to_owned()),
    };
    let mut own_headers: Vec<HeaderName> = Vec::new();
    for issuer in &issuers {
        let claims = issuer.claim_headers.iter().map(|(name, _)| name);
        own_headers.extend(issuer.payload_header.iter().chain(claims).cloned());
    }
    own_headers.sort_by(|one, two| one.as_str().cmp(two.as_str()));
    own_headers.dedup();
    Ok(Compiled::Filter(Arc::new(Jwt {
        issuers,
        needs,
        own_headers,
        bypass_preflight: config.bypass_cors_preflight,
        silent: config.strip_failure_response,
    })))
}

fn for_all_paths(rule: Option<&RouteMatch>) -> Result<(), String> {
    let wrong = || "rules for tokens are built for the prefix / only".to_owned();
    let rule = rule.ok_or_else(wrong)?;
    let all = RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() };
    if *rule == all { Ok(()) } else { Err(wrong()) }
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    name.parse().map_err(|_| format!("{name:?} is not a header's name"))
}

fn issuer(provider: &xds::JwtProvider) -> Result<Issuer, String> {
    if provider.subjects.is_some() || provider.require_expiration || provider.max_lifetime.is_some() {
        return Err("of tokens, subjects, require_expiration and max_lifetime are not built".to_owned());
    }
    let named = |name: &String| if name.is_empty() { Ok(None) } else { header_name(name).map(Some) };
    let claim = |one: &xds::JwtClaimToHeader| match one.claim_path.as_slice() {
        [] => Ok((header_name(&one.header_name)?, one.claim_name.clone())),
        _ => Err("claims by path are not built".to_owned()),
    };
    let headers = provider.from_headers.iter().map(|one| Ok((header_name(&one.name)?, one.value_prefix.clone())));
    let key = |name: &String| (!name.is_empty()).then(|| Arc::from(name.as_str()));
    Ok(Issuer {
        name: provider.issuer.clone(),
        audiences: bare(&provider.audiences),
        judge: Judge::of(&provider.encode_to_vec()),
        keys: keys_of(provider.jwks_source_specifier.as_ref())?,
        places: Places::of(
            headers.collect::<Result<_, String>>()?,
            provider.from_params.clone(),
            provider.from_cookies.clone(),
        ),
        skew: u64::from(if provider.clock_skew_seconds == 0 { SKEW } else { provider.clock_skew_seconds }),
        forward: provider.forward,
        reroutes: provider.clear_route_cache,
        payload_header: named(&provider.forward_payload_header)?,
        pads_payload: provider.pad_forward_payload_header,
        claim_headers: provider.claim_to_headers.iter().map(claim).collect::<Result<_, _>>()?,
        payload_key: key(&provider.payload_in_metadata),
        header_key: key(&provider.header_in_metadata),
        lists: provider
            .normalize_payload_in_metadata
            .as_ref()
            .map(|normal| normal.space_delimited_claims.clone())
            .unwrap_or_default(),
        // Our control plane has the object told under its own name.
        object: Some(&provider.failed_status_in_metadata)
            .filter(|name| name.starts_with("RequestAuthentication "))
            .map(|name| Arc::from(name.as_str())),
    })
}

fn bare(audiences: &[String]) -> Vec<String> {
    audiences.iter().map(|name| bare_audience(name).to_owned()).collect()
}

fn keys_of(source: Option<&JwksSourceSpecifier>) -> Result<Keys, String> {
    match source {
        Some(JwksSourceSpecifier::LocalJwks(DataSource { specifier: Some(Specifier::InlineString(text)), .. })) => {
            Ok(Keys::read(text.as_bytes()))
        }
        Some(JwksSourceSpecifier::LocalJwks(DataSource { specifier: Some(Specifier::InlineBytes(bytes)), .. })) => {
            Ok(Keys::read(bytes))
        }
        Some(JwksSourceSpecifier::LocalJwks(_)) => Err("keys of tokens are taken inline only".to_owned()),
        Some(JwksSourceSpecifier::RemoteJwks(_)) => {
            Err("keys of tokens are fetched by the control plane: remote_jwks is not built".to_owned())
        }
        None => Err("there are no keys for tokens".to_owned()),
    }
}

fn need(need: &xds::JwtRequirement, places: &HashMap<&str, usize>) -> Result<Need, String> {
    let place = |name: &String| {
        places.get(name.as_str()).copied().ok_or_else(|| format!("there is no provider {name:?} of tokens"))
    };
    Ok(match &need.requires_type {
        None => Need::Nothing,
        Some(RequiresType::ProviderName(name)) => Need::Token(place(name)?, None),
        Some(RequiresType::ProviderAndAudiences(one)) => {
            let audiences = (!one.audiences.is_empty()).then(|| bare(&one.audiences));
            Need::Token(place(&one.provider_name)?, audiences)
        }
        Some(RequiresType::RequiresAll(all)) => {
            Need::All(all.requirements.iter().map(|one| self::need(one, places)).collect::<Result<_, _>>()?)
        }
        Some(RequiresType::RequiresAny(any)) => {
            let (mut needs, mut missing, mut failed) = (Vec::new(), false, false);
            for one in &any.requirements {
                match &one.requires_type {
                    Some(RequiresType::AllowMissing(_)) => missing = true,
                    Some(RequiresType::AllowMissingOrFailed(_)) => failed = true,
                    _ => needs.push(self::need(one, places)?),
                }
            }
            if needs.is_empty() {
                return Err("a choice of requirements for tokens names no provider".to_owned());
            }
            Need::Any { needs, missing, failed }
        }
        Some(RequiresType::AllowMissing(_) | RequiresType::AllowMissingOrFailed(_)) => {
            return Err("tokens may be missing or wrong only beside a provider that reads them".to_owned());
        }
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
            return Err("tokens that are read without being checked are not built".to_owned());
        }
    })
}

impl HttpFilter for Jwt {
    fn on_request(&self, exchange: &mut Exchange<'_>) -> Step {
        // Tokens are taken out of the path, but the answer names it as it came.
        let asked = exchange.head.uri.clone();
        for name in &self.own_headers {
            exchange.head.headers.remove(name);
        }
        if self.bypass_preflight && is_preflight(exchange.head) {
            return Step::Continue;
        }
        match self.meets(&self.needs, exchange) {
            Ok(()) => Step::Continue,
            Err(denied) => Step::Reply(Box::new(self.refuse(denied, &asked, exchange))),
        }
    }
}

/// A browser asks for permission without any token (the Fetch standard).
fn is_preflight(head: &RequestHead) -> bool {
    let given = |name| head.headers.get(name).is_some_and(|value: &HeaderValue| !value.is_empty());
    head.method == Method::OPTIONS && given(ORIGIN) && given(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Jwt {
    fn meets(&self, need: &Need, exchange: &mut Exchange<'_>) -> Result<(), Denied> {
        match need {
            Need::Nothing => Ok(()),
            Need::Token(issuer, audiences) => self.token_of(*issuer, audiences.as_deref(), exchange),
            Need::All(needs) => needs.iter().try_for_each(|need| self.meets(need, exchange)),
            Need::Any { needs, missing, failed } => {
                let mut last: Option<Denied> = None;
                for need in needs {
                    let Err(denied) = self.meets(need, exchange) else { return Ok(()) };
                    // What is wrong with a token that was meant says more than that it is of another issuer, or that there
                    // is none.
                    let says_more = !matches!(denied.fault, Fault::Missing | Fault::UnknownIssuer);
                    if says_more || last.is_none_or(|last| last.fault == Fault::Missing) {
                        last = Some(denied);
                    }
                }
                let passes = |denied: &Denied| *failed || (*missing && denied.fault == Fault::Missing);
                last.filter(|denied| !passes(denied)).map_or(Ok(()), Err)
            }
        }
    }

    /// All tokens that stand where this issuer's do must be good: the application might take the one that is not.
    fn token_of(&self, place: usize, audiences: Option<&[String]>, exchange: &mut Exchange<'_>) -> Result<(), Denied> {
        let denied = |fault| Denied { fault, issuer: place };
        let issuer = &self.issuers[place];
        let found = issuer.places.find(exchange.head);
        if found.is_empty() {
            return Err(denied(Fault::Missing));
        }
        found.iter().rev().try_for_each(|one| issuer.take(one, audiences, exchange)).map_err(denied)
    }

    fn refuse(&self, denied: Denied, asked: &Uri, exchange: &mut Exchange<'_>) -> Reply {
        let (failure, says) = match denied.fault {
            Fault::Unreadable(says) => (Failure::TokenUnreadable, says),
            // In the words that Envoy has for the key that stands for them.
            Fault::KeysAwaited => (Failure::TokenNoKeys, Failure::TokenUnknownKey.body()),
            fault => {
                let failure = failure_of(fault);
                (failure, failure.body())
            }
        };
        exchange.notes.refusal = Some(Arc::new(Refusal {
            failure,
            details: format!("jwt_authn_access_denied{{{}}}", says.replace(' ', "_")).into(),
            object: self.issuers[denied.issuer].object.clone(),
            told: None,
        }));
        let mut reply = Reply::failure(failure);
        if self.silent {
            reply.body = Bytes::new();
            return reply;
        }
        reply.body = Bytes::from_static(says.as_bytes());
        let wrong = if denied.fault == Fault::Missing { "" } else { ", error=\"invalid_token\"" };
        if let Ok(value) = HeaderValue::try_from(format!("Bearer realm=\"{}\"{wrong}", whole(asked, exchange))) {
            reply.headers.insert(WWW_AUTHENTICATE, value);
        }
        reply
    }
}

fn failure_of(fault: Fault) -> Failure {
    match fault {
        Fault::Missing => Failure::TokenMissing,
        Fault::Unreadable(_) => Failure::TokenUnreadable,
        Fault::UnknownIssuer => Failure::TokenUnknownIssuer,
        Fault::NotYetValid => Failure::TokenNotYetValid,
        Fault::Expired => Failure::TokenExpired,
        Fault::WrongAudience => Failure::TokenWrongAudience,
        Fault::NoKeys | Fault::KeysAwaited => Failure::TokenNoKeys,
        Fault::UnknownKey => Failure::TokenUnknownKey,
        Fault::Forged => Failure::TokenForged,
    }
}

/// What was asked for, as the answer names it.
fn whole(asked: &Uri, exchange: &Exchange<'_>) -> String {
    let forwarded = exchange.head.headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    let secure = forwarded.map_or(exchange.connection.tls, |scheme| scheme.eq_ignore_ascii_case("https"));
    let scheme = if secure { "https" } else { "http" };
    let path = asked.path_and_query().map_or("", |path| path.as_str());
    format!("{scheme}://{}{}", exchange.authority, &path[..path.floor_char_boundary(LONGEST_PATH)])
}

impl Issuer {
    /// Checks one token, and tells what it says if it is good.
    fn take(&self, found: &Found, audiences: Option<&[String]>, exchange: &mut Exchange<'_>) -> Result<(), Fault> {
        let now = exchange.now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // What was found good is good for the issuer's own audiences.
        if let Some(good) = self.judge.recall(&found.text).filter(|_| audiences.is_none()) {
            good.times.check(now, self.skew)?;
            self.tell(&good, found, exchange);
            return Ok(());
        }
        let token = Token::read(&found.text)?;
        if !self.name.is_empty() && token.issuer() != self.name {
            return Err(Fault::UnknownIssuer);
        }
        let times = Times { from: token.not_before, until: token.expires };
        times.check(now, self.skew)?;
        if !token.is_for(audiences.unwrap_or(&self.audiences)) {
            return Err(Fault::WrongAudience);
        }
        self.keys.check(&token)?;
        let good = Arc::new(self.good(token, times));
        self.tell(&good, found, exchange);
        if audiences.is_none() {
            self.judge.remember(found.text.clone(), good);
        }
        Ok(())
    }

    fn good(&self, token: Token<'_>, times: Times) -> Good {
        let mut headers = Vec::new();
        if let Some(name) = &self.payload_header {
            let missing = if self.pads_payload { (4 - token.payload.len() % 4) % 4 } else { 0 };
            let value = HeaderValue::try_from(format!("{}{}", token.payload, "=".repeat(missing)));
            headers.extend(value.ok().map(|value| (name.clone(), value)));
        }
        for (name, claim) in &self.claim_headers {
            let value = at(&token.claims, claim).and_then(shown).and_then(|text| HeaderValue::try_from(text).ok());
            headers.extend(value.map(|value| (name.clone(), value)));
        }
        let Token { header, mut claims, .. } = token;
        self.lists.iter().for_each(|name| split(&mut claims, name));
        Good {
            times,
            headers,
            header: self.header_key.is_some().then(|| Arc::new(Value::Object(header))),
            claims: self.payload_key.is_some().then(|| Arc::new(Value::Object(claims))),
        }
    }

    fn tell(&self, good: &Good, found: &Found, exchange: &mut Exchange<'_>) {
        exchange.notes.rerouted |= self.reroutes && (!good.headers.is_empty() || good.claims.is_some());
        for (name, value) in &good.headers {
            exchange.head.headers.append(name.clone(), value.clone());
        }
        if !self.forward {
            found.take_out(exchange.head);
        }
        for (key, value) in [(&self.header_key, &good.header), (&self.payload_key, &good.claims)] {
            if let (Some(key), Some(value)) = (key, value) {
                exchange.notes.metadata.tell(NAME, key, Arc::clone(value));
            }
        }
    }
}

/// A text of words becomes a list of them.
fn split(claims: &mut Map<String, Value>, name: &str) {
    if let Some(value) = claims.get_mut(name)
        && let Value::String(text) = value
    {
        *value = text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
    }
}

/// A claim by the names that lead to it, with dots in between (Envoy: a name with a dot of its own leads nowhere).
fn at<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let mut names = name.split('.');
    let first = claims.get(names.next()?)?;
    names.try_fold(first, |value, name| value.as_object()?.get(name))
}

/// A claim as the text of a header; nothing for what would be empty.
fn shown(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::Null => return None,
        Value::Bool(truth) => truth.to_string(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(real)) if real >= 0.0 && real.fract() == 0.0 && real < u64::MAX as f64 => {
                (real as u64).to_string()
            }
            (None, real) => format!("{:.6}", real?),
        },
        Value::Array(_) | Value::Object(_) => STANDARD.encode(claim.to_string()),
    };
    Some(text).filter(|text| !text.is_empty())
}
