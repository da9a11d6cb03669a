//! The token with which a workload outside of Kubernetes proves its identity to the control plane: signed by whoever may
//! read the control plane's state folder, valid for one namespace and service account, for a short time.
//! A JWT (RFC 7519, HS256) with the subject of a Kubernetes service account token and Istio's audience.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

/// Audience that Istio's agents ask for (`TOKEN_AUDIENCES`).
pub const AUDIENCE: &str = "istio-ca";
/// Issuer of join tokens, so that they are told apart from Kubernetes' tokens.
pub const ISSUER: &str = "meshd";
/// Name of the key's file in the state folder.
pub const KEY_FILE: &str = "join-token.key";
/// Length of the key, bytes.
pub const KEY_LENGTH: usize = 32;
/// Longest lifetime that is accepted, seconds.
pub const MAX_LIFETIME: i64 = 24 * 3600;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: i64,
    exp: i64,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a token, or signed by another key.
    #[error("the join token is not signed by this control plane")]
    NotOurs,
    /// Too old.
    #[error("the join token expired {0} s ago; make a new one with `meshctl token create`")]
    Expired(i64),
    /// Made for longer than is allowed, or for the future.
    #[error("the join token's times are not acceptable")]
    BadTimes,
    /// The subject is not a service account.
    #[error("the join token names no service account")]
    NoAccount,
}

/// Signs a token for a service account. `now` is in seconds since 1970, `lifetime` in seconds.
///
/// # Errors
/// The lifetime is not within 1 s and a day, or a name is not one.
pub fn create(key: &[u8], namespace: &str, service_account: &str, now: i64, lifetime: i64) -> Result<String, String> {
    if !(1..=MAX_LIFETIME).contains(&lifetime) {
        return Err(format!("a lifetime of {lifetime} s is not within 1 s and {MAX_LIFETIME} s"));
    }
    let named = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.')
    };
    for (what, word) in [("namespace", namespace), ("service account", service_account)] {
        if !named(word) {
            return Err(format!("{word:?} is not the name of a {what}: lower case letters, digits, dashes and dots"));
        }
    }
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: format!("system:serviceaccount:{namespace}:{service_account}"),
        iat: now,
        exp: now + lifetime,
    };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(key))
        .map_err(|error| error.to_string())
}

/// Checks a token and tells (namespace, service account). `now` is in seconds since 1970.
///
/// # Errors
/// See [`Refused`].
pub fn verify(key: &[u8], token: &str, now: i64) -> Result<(String, String), Refused> {
    let mut rules = Validation::new(Algorithm::HS256);
    rules.set_audience(&[AUDIENCE]);
    rules.set_issuer(&[ISSUER]);
    // The clock is the caller's.
    rules.validate_exp = false;
    let claims = jsonwebtoken::decode::<Claims>(token, &DecodingKey::from_secret(key), &rules)
        .map_err(|_| Refused::NotOurs)?
        .claims;
    if claims.exp - claims.iat > MAX_LIFETIME || claims.iat > now + 60 {
        return Err(Refused::BadTimes);
    }
    if claims.exp <= now {
        return Err(Refused::Expired(now - claims.exp));
    }
    let account = claims.sub.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    account.map(|(namespace, account)| (namespace.to_owned(), account.to_owned())).ok_or(Refused::NoAccount)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

    #[test]
    fn a_token_proves_what_it_was_made_for() {
        let token = create(KEY, "shop", "order-service", 1_000, 60).unwrap();
        assert_eq!(verify(KEY, &token, 1_059), Ok(("shop".into(), "order-service".into())));
        assert_eq!(verify(KEY, &token, 1_061), Err(Refused::Expired(1)));
        assert_eq!(verify(b"another key another key another!", &token, 1_000), Err(Refused::NotOurs));
        assert_eq!(verify(KEY, "nonsense", 1_000), Err(Refused::NotOurs));
        assert_eq!(verify(KEY, &token, -10_000), Err(Refused::BadTimes));
    }

    #[test]
    fn odd_wishes_are_refused() {
        assert!(create(KEY, "shop", "x:y", 0, 60).unwrap_err().contains("service account"));
        assert!(create(KEY, "", "x", 0, 60).is_err());
        assert!(create(KEY, "a", "b", 0, 0).is_err());
        assert!(create(KEY, "a", "b", 0, MAX_LIFETIME + 1).is_err());
    }
}
