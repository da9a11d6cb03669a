//! A token (JWT, RFC 7519) as it came: its parts, read and not yet believed. What is wrong with it is told in Envoy's words.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

/// Base64 of tokens and keys, with or without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a token, or a request without one, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is none.
    Missing,
    /// It cannot be read; Envoy's sentence.
    Unreadable(&'static str),
    /// It is from somebody else.
    UnknownIssuer,
    /// Its time has not come.
    NotYetValid,
    /// Its time is over.
    Expired,
    /// It is for somebody else.
    WrongAudience,
    /// There is no key to check it with.
    NoKeys,
    /// The keys to check it with are not there yet.
    KeysAwaited,
    /// It was signed with a key that is none of the issuer's.
    UnknownKey,
    /// Its signature is wrong.
    Forged,
}

/// How a token is signed (RFC 7518 section 3.1, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms, missing_docs)]
pub(super) enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
}

impl Algorithm {
    /// Names, as tokens and keys have them.
    pub(super) const ALL: [(&'static str, Algorithm); 13] = [
        ("HS256", Algorithm::HS256),
        ("HS384", Algorithm::HS384),
        ("HS512", Algorithm::HS512),
        ("RS256", Algorithm::RS256),
        ("RS384", Algorithm::RS384),
        ("RS512", Algorithm::RS512),
        ("PS256", Algorithm::PS256),
        ("PS384", Algorithm::PS384),
        ("PS512", Algorithm::PS512),
        ("ES256", Algorithm::ES256),
        ("ES384", Algorithm::ES384),
        ("ES512", Algorithm::ES512),
        ("EdDSA", Algorithm::EdDSA),
    ];

    /// By its name.
    pub(super) fn named(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }
}

/// A token that could be read.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// What is signed.
    pub(super) signed: &'a str,
    /// The payload as it came.
    pub(super) payload: &'a str,
    /// The signature.
    pub(super) signature: Vec<u8>,
    /// How it is signed.
    pub(super) algorithm: Algorithm,
    /// What is said of the token.
    pub(super) header: Map<String, Value>,
    /// What the token says.
    pub(super) claims: Map<String, Value>,
    /// From when on it is good; seconds since 1970, 0 if it does not say.
    pub(super) not_before: u64,
    /// Until when.
    pub(super) expires: u64,
}

impl<'a> Token<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// What cannot be read of it.
    pub(super) fn read(text: &'a str) -> Result<Token<'a>, Fault> {
        let unreadable = Fault::Unreadable;
        let form = || unreadable("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections");
        let (signed, signature) = text.rsplit_once('.').ok_or_else(form)?;
        let (header, payload) = signed.split_once('.').ok_or_else(form)?;
        if header.is_empty() || payload.is_empty() || signature.is_empty() || payload.contains('.') {
            return Err(form());
        }
        let header = BASE64.decode(header).map_err(|_| unreadable("Jwt header is an invalid Base64url encoded"))?;
        let header: Map<String, Value> =
            serde_json::from_slice(&header).map_err(|_| unreadable("Jwt header is an invalid JSON"))?;
        let algorithm = header.get("alg").and_then(Value::as_str);
        let algorithm = algorithm.ok_or(unreadable("Jwt header [alg] field is required and must be a string"))?;
        let algorithm = Algorithm::named(algorithm).ok_or(unreadable("Jwt header [alg] is not supported"))?;
        if header.get("kid").is_some_and(|kid| !kid.is_string()) {
            return Err(unreadable("Jwt header [kid] field is not a string"));
        }
        let bytes = BASE64.decode(payload).map_err(|_| unreadable("Jwt payload is an invalid Base64url encoded"))?;
        let claims: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| unreadable("Jwt payload is an invalid JSON"))?;
        let text_rows = [
            ("iss", "Jwt payload [iss] field is not a string"),
            ("sub", "Jwt payload [sub] field is not a string"),
            ("jti", "Jwt payload [jti] field is not a string"),
        ];
        for (name, wrong) in text_rows {
            if claims.get(name).is_some_and(|value| !value.is_string()) {
                return Err(unreadable(wrong));
            }
        }
        time(
            &claims,
            "iat",
            ["Jwt payload [iat] field is not an integer", "Jwt payload [iat] field is not a positive 64 bit integer"],
        )?;
        let not_before = time(
            &claims,
            "nbf",
            ["Jwt payload [nbf] field is not an integer", "Jwt payload [nbf] field is not a positive 64 bit integer"],
        )?;
        let expires = time(
            &claims,
            "exp",
            ["Jwt payload [exp] field is not an integer", "Jwt payload [exp] field is not a positive 64 bit integer"],
        )?;
        let is_texts = |value: &Value| match value {
            Value::String(_) => true,
            Value::Array(list) => list.iter().all(Value::is_string),
            _ => false,
        };
        if claims.get("aud").is_some_and(|value| !is_texts(value)) {
            return Err(unreadable("Jwt payload [aud] field is not a string or string list"));
        }
        let signature =
            BASE64.decode(signature).map_err(|_| unreadable("Jwt signature is an invalid Base64url encoded"))?;
        Ok(Token { signed, payload, signature, algorithm, header, claims, not_before, expires })
    }

    /// Who issued it; empty if it does not say.
    pub(super) fn issuer(&self) -> &str {
        self.claims.get("iss").and_then(Value::as_str).unwrap_or_default()
    }

    /// The name of the key; empty if it does not say.
    pub(super) fn key(&self) -> &str {
        self.header.get("kid").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it is for one of these; for anybody if there are none.
    pub(super) fn is_for(&self, audiences: &[String]) -> bool {
        let among = |value: &Value| {
            value.as_str().is_some_and(|name| audiences.iter().any(|known| known == bare_audience(name)))
        };
        match self.claims.get("aud") {
            _ if audiences.is_empty() => true,
            Some(Value::Array(list)) => list.iter().any(among),
            Some(value) => among(value),
            None => false,
        }
    }
}

/// An audience as it is compared: without scheme and final slash (Envoy `CheckAudience`).
pub(super) fn bare_audience(name: &str) -> &str {
    let name = name.strip_prefix("http://").or_else(|| name.strip_prefix("https://")).unwrap_or(name);
    name.strip_suffix('/').unwrap_or(name)
}

/// Seconds since 1970; 0 if the token does not say.
fn time(claims: &Map<String, Value>, name: &str, [no_number, no_time]: [&'static str; 2]) -> Result<u64, Fault> {
    let Some(value) = claims.get(name) else { return Ok(0) };
    let number = value.as_f64().ok_or(Fault::Unreadable(no_number))?;
    if !(0.0..u64::MAX as f64).contains(&number) {
        return Err(Fault::Unreadable(no_time));
    }
    Ok(number as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(header: &Value, claims: &Value) -> String {
        format!("{}.{}.c2ln", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let header = json!({"alg": "RS256"});
        let of = |claims: Value| token(&json!({"alg": "RS256"}), &claims);
        let rows = [
            ("a.b".to_owned(), "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
            ("a.b.c.d".to_owned(), "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
            ("..".to_owned(), "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
            ("%.b.c".to_owned(), "Jwt header is an invalid Base64url encoded"),
            ("YQ.b.c".to_owned(), "Jwt header is an invalid JSON"),
            (token(&json!({}), &json!({})), "Jwt header [alg] field is required and must be a string"),
            (token(&json!({"alg": "none"}), &json!({})), "Jwt header [alg] is not supported"),
            (token(&json!({"alg": "RS256", "kid": 1}), &json!({})), "Jwt header [kid] field is not a string"),
            (format!("{}.%.c", BASE64.encode(header.to_string())), "Jwt payload is an invalid Base64url encoded"),
            (format!("{}.YQ.c", BASE64.encode(header.to_string())), "Jwt payload is an invalid JSON"),
            (of(json!({"iss": 1})), "Jwt payload [iss] field is not a string"),
            (of(json!({"sub": []})), "Jwt payload [sub] field is not a string"),
            (of(json!({"jti": 1})), "Jwt payload [jti] field is not a string"),
            (of(json!({"exp": "1"})), "Jwt payload [exp] field is not an integer"),
            (of(json!({"nbf": -1})), "Jwt payload [nbf] field is not a positive 64 bit integer"),
            (of(json!({"iat": 1e30})), "Jwt payload [iat] field is not a positive 64 bit integer"),
            (of(json!({"aud": ["a", 1]})), "Jwt payload [aud] field is not a string or string list"),
            (of(json!({})).replace(".c2ln", ".%"), "Jwt signature is an invalid Base64url encoded"),
        ];
        for (text, says) in rows {
            assert_eq!(Token::read(&text).err(), Some(Fault::Unreadable(says)), "{text}");
        }
    }

    #[test]
    fn audiences_are_compared_without_scheme_and_slash() {
        let of = |claims: Value, audiences: &[&str]| {
            let text = token(&json!({"alg": "ES256"}), &claims);
            let audiences: Vec<String> = audiences.iter().map(|name| bare_audience(name).to_owned()).collect();
            Token::read(&text).unwrap().is_for(&audiences)
        };
        assert!(of(json!({}), &[]));
        assert!(!of(json!({}), &["a"]));
        assert!(of(json!({"aud": "a"}), &["b", "a"]));
        assert!(of(json!({"aud": ["x", "https://a/"]}), &["a"]));
        assert!(of(json!({"aud": "a"}), &["http://a/"]));
        assert!(!of(json!({"aud": "A"}), &["a"]));
    }
}
