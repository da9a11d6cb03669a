//! Keys of those who issue tokens: where they are, and what is known of them. They are told as changes of the world; who fetches
//! them is of no matter here.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::crd::request_authentication::JwtRule;
use api::value::Duration;
use serde_json::Value;

/// Time to fetch keys where a rule gives none (Istio).
const TIMEOUT: Duration = Duration::millis(5000);

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// At this address (`jwksUri`).
    Address(String),
    /// Where the OpenID configuration of this issuer says.
    Issuer(String),
}

impl KeySource {
    /// Where the keys of a rule are; nothing if they stand in the rule.
    pub fn of(rule: &JwtRule) -> Option<KeySource> {
        match (rule.jwks.is_empty(), rule.jwks_uri.is_empty()) {
            (false, _) => None,
            (true, false) => Some(KeySource::Address(rule.jwks_uri.clone())),
            (true, true) => Some(KeySource::Issuer(rule.issuer.clone())),
        }
    }

    /// The address that is asked first. OpenID Connect Discovery 1.0 section 4 says where an issuer's configuration is.
    pub fn address(&self) -> String {
        match self {
            KeySource::Address(address) => address.clone(),
            KeySource::Issuer(issuer) => {
                format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer))
            }
        }
    }
}

/// What is known of the keys of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownKeys {
    /// The last key set that could be read (JWKS); it stays, whatever fails after it.
    pub jwks: Option<Arc<str>>,
    /// Why the last attempt to get it failed, half a sentence; empty if it did not.
    pub failure: String,
}

/// All that is known, by source.
pub type Known = BTreeMap<KeySource, KnownKeys>;

/// The sources that rules ask for, each with the longest time that one of its rules gives.
pub(crate) fn wanted<'a>(rules: impl Iterator<Item = &'a JwtRule>) -> BTreeMap<KeySource, Duration> {
    let mut all = BTreeMap::new();
    for rule in rules {
        let Some(source) = KeySource::of(rule) else { continue };
        let time = rule.timeout.unwrap_or(TIMEOUT);
        let known = all.entry(source).or_insert(time);
        *known = time.max(*known);
    }
    all
}

/// How many keys of a key set are whole and of a kind that signatures can be checked with; nothing if the text is no key set (RFC
/// 7517, RFC 7518 section 6, RFC 8037).
pub fn usable_keys(jwks: &str) -> Option<usize> {
    let set: Value = serde_json::from_str(jwks).ok()?;
    let keys = set.get("keys")?.as_array()?;
    Some(keys.iter().filter(|key| is_usable(key)).count())
}

fn is_usable(key: &Value) -> bool {
    let text = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| {
        let digits = text(name).trim_end_matches('=');
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let is_for =
        |prefixes: &[&str]| text("alg").is_empty() || prefixes.iter().any(|prefix| text("alg").starts_with(prefix));
    match text("kty") {
        "RSA" => number("n") && number("e") && is_for(&["RS", "PS"]),
        "EC" => number("x") && number("y") && is_for(&["ES"]) && ["", "P-256", "P-384", "P-521"].contains(&text("crv")),
        "OKP" => number("x") && is_for(&["EdDSA"]) && text("crv") == "Ed25519",
        "oct" => number("k") && is_for(&["HS"]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(issuer: &str, uri: &str, jwks: &str, timeout: u64) -> JwtRule {
        JwtRule {
            issuer: issuer.into(),
            jwks_uri: uri.into(),
            jwks: jwks.into(),
            timeout: (timeout > 0).then(|| Duration::millis(timeout)),
            ..JwtRule::default()
        }
    }

    #[test]
    fn sources_are_told_once_with_the_longest_time() {
        let rules = [
            rule("a", "http://k", "", 0),
            rule("b", "http://k", "", 9000),
            rule("https://c/", "", "", 100),
            rule("d", "", "{}", 0),
        ];
        let wanted: Vec<(String, Duration)> =
            wanted(rules.iter()).into_iter().map(|(source, time)| (source.address(), time)).collect();
        let right = [
            ("http://k".to_owned(), Duration::millis(9000)),
            ("https://c/.well-known/openid-configuration".to_owned(), Duration::millis(100)),
        ];
        assert_eq!(wanted, right);
    }

    #[test]
    fn key_sets_are_told_from_other_texts() {
        assert_eq!(usable_keys("x"), None);
        assert_eq!(usable_keys("{}"), None);
        assert_eq!(usable_keys(r#"{"keys": []}"#), Some(0));
        let keys = r#"{"keys": [{"kty": "RSA", "n": "AQ", "e": "AQAB"}, {"kty": "RSA", "n": "+"}, {"kty": "EC", "crv": "x", "x": "A", "y": "A"},
            {"kty": "OKP", "crv": "Ed25519", "x": "A", "alg": "RS256"}, {"kty": "other"}, 1, {}]}"#;
        assert_eq!(usable_keys(keys), Some(1));
    }
}
