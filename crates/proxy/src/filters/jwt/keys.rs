//! Keys of an issuer (JWKS, RFC 7517), made ready once: what signatures are checked with.

use api::xds::UNKNOWN_KEY;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
};
use base64::Engine;
use serde_json::{Map, Value};

use super::token::{Algorithm, BASE64, Fault, Token};

/// Keys of one issuer.
#[derive(Debug, Default)]
pub(super) struct Keys {
    known: Vec<Key>,
    /// The control plane has none yet, and says so.
    awaited: bool,
}

/// One key.
#[derive(Debug)]
struct Key {
    /// Its name; empty for a key without one, which any token may be signed with.
    name: String,
    /// What it is for; with anything else it is not even tried.
    only: Option<String>,
    /// How signatures of each algorithm are checked.
    checks: Vec<(Algorithm, Check)>,
}

#[derive(Debug)]
enum Check {
    Public(ParsedPublicKey),
    Secret(Box<hmac::Key>),
}

impl Keys {
    /// Reads a key set. Keys that cannot be used are left out, as Envoy does; what is no key set has none.
    pub(super) fn read(text: &[u8]) -> Keys {
        let Ok(Value::Object(set)) = serde_json::from_slice(text) else { return Keys::default() };
        let keys = set.get("keys").and_then(Value::as_array).into_iter().flatten();
        let (awaited, keys): (Vec<_>, Vec<_>) =
            keys.filter_map(Value::as_object).partition(|key| key.get("kid").is_some_and(|name| name == UNKNOWN_KEY));
        Keys { known: keys.into_iter().filter_map(Key::read).collect(), awaited: !awaited.is_empty() }
    }

    /// Whether the token was signed with one of the keys.
    pub(super) fn check(&self, token: &Token<'_>) -> Result<(), Fault> {
        match (self.known.as_slice(), self.awaited) {
            ([], true) => return Err(Fault::KeysAwaited),
            ([], false) => return Err(Fault::NoKeys),
            _ => {}
        }
        let algorithm = token.header.get("alg").and_then(Value::as_str);
        let mut fault = Fault::UnknownKey;
        for key in &self.known {
            let other_name = !token.key().is_empty() && !key.name.is_empty() && key.name != token.key();
            if other_name || key.only.as_deref().is_some_and(|only| Some(only) != algorithm) {
                continue;
            }
            fault = Fault::Forged;
            let mut checks = key.checks.iter().filter(|(for_algorithm, _)| *for_algorithm == token.algorithm);
            if checks.any(|(_, check)| check.holds(token.signed.as_bytes(), &token.signature)) {
                return Ok(());
            }
        }
        Err(fault)
    }
}

impl Check {
    fn holds(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Check::Public(key) => key.verify_sig(signed, signature).is_ok(),
            Check::Secret(key) => hmac::verify(key, signed, signature).is_ok(),
        }
    }
}

impl Key {
    fn read(key: &Map<String, Value>) -> Option<Key> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(|value| BASE64.decode(value).ok());
        let only = text("alg").filter(|only| !only.is_empty());
        let checks = match text("kty")? {
            "RSA" => rsa(only, &bytes("n")?, &bytes("e")?)?,
            "EC" => vec![elliptic(only, text("crv"), &bytes("x")?, &bytes("y")?)?],
            "OKP" if text("crv")? == "Ed25519" && only.is_none_or(|only| only == "EdDSA") => {
                let key = ParsedPublicKey::new(&ED25519, bytes("x")?).ok()?;
                vec![(Algorithm::EdDSA, Check::Public(key))]
            }
            "oct" => secret(only, &bytes("k")?)?,
            _ => return None,
        };
        Some(Key { name: text("kid").unwrap_or_default().to_owned(), only: only.map(str::to_owned), checks })
    }
}

fn rsa(only: Option<&str>, n: &[u8], e: &[u8]) -> Option<Vec<(Algorithm, Check)>> {
    let rows: [(Algorithm, &'static RsaParameters); 6] = [
        (Algorithm::RS256, &RSA_PKCS1_2048_8192_SHA256),
        (Algorithm::RS384, &RSA_PKCS1_2048_8192_SHA384),
        (Algorithm::RS512, &RSA_PKCS1_2048_8192_SHA512),
        (Algorithm::PS256, &RSA_PSS_2048_8192_SHA256),
        (Algorithm::PS384, &RSA_PSS_2048_8192_SHA384),
        (Algorithm::PS512, &RSA_PSS_2048_8192_SHA512),
    ];
    if only.is_some_and(|only| !only.starts_with("RS") && !only.starts_with("PS")) {
        return None;
    }
    let without_zeros = |bytes: &[u8]| bytes[bytes.iter().take_while(|byte| **byte == 0).count()..].to_vec();
    let components = RsaPublicKeyComponents { n: without_zeros(n), e: without_zeros(e) };
    let wanted = rows.into_iter().filter(|(algorithm, _)| is_for(only, *algorithm));
    wanted
        .map(|(algorithm, parameters)| {
            Some((algorithm, Check::Public(components.to_parsed_public_key(parameters).ok()?)))
        })
        .collect()
}

fn elliptic(only: Option<&str>, curve: Option<&str>, x: &[u8], y: &[u8]) -> Option<(Algorithm, Check)> {
    let algorithm = match (only, curve) {
        (None | Some("ES256"), None | Some("P-256")) => Algorithm::ES256,
        (None, Some("P-384")) | (Some("ES384"), None | Some("P-384")) => Algorithm::ES384,
        (None, Some("P-521")) | (Some("ES512"), None | Some("P-521")) => Algorithm::ES512,
        _ => return None,
    };
    let (parameters, size): (_, usize) = match algorithm {
        Algorithm::ES256 => (&ECDSA_P256_SHA256_FIXED, 32),
        Algorithm::ES384 => (&ECDSA_P384_SHA384_FIXED, 48),
        _ => (&ECDSA_P521_SHA512_FIXED, 66),
    };
    // An uncompressed point: 4, then both coordinates in full length (SEC 1 section 2.3.3).
    let mut point = vec![4];
    for coordinate in [x, y] {
        point.extend(std::iter::repeat_n(0, size.checked_sub(coordinate.len())?));
        point.extend(coordinate);
    }
    Some((algorithm, Check::Public(ParsedPublicKey::new(parameters, point).ok()?)))
}

fn secret(only: Option<&str>, bytes: &[u8]) -> Option<Vec<(Algorithm, Check)>> {
    let rows = [
        (Algorithm::HS256, hmac::HMAC_SHA256),
        (Algorithm::HS384, hmac::HMAC_SHA384),
        (Algorithm::HS512, hmac::HMAC_SHA512),
    ];
    if bytes.is_empty() || only.is_some_and(|only| !only.starts_with("HS")) {
        return None;
    }
    let wanted = rows.into_iter().filter(|(algorithm, _)| is_for(only, *algorithm));
    Some(wanted.map(|(algorithm, kind)| (algorithm, Check::Secret(Box::new(hmac::Key::new(kind, bytes))))).collect())
}

fn is_for(only: Option<&str>, algorithm: Algorithm) -> bool {
    only.is_none_or(|only| Algorithm::named(only) == Some(algorithm))
}
