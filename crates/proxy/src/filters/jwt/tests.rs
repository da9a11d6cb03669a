//! Tokens, good and bad, through the filter.

use std::time::{Duration, SystemTime};

use api::json::from_json;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA384, RsaEncoding, RsaKeyPair,
};
use aws_lc_rs::{hmac, signature};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::json;

use super::token::BASE64;
use super::*;
use crate::facts::{ConnFacts, Direction};
use crate::filter::Notes;

/// When all requests come.
const NOW: u64 = 1_800_000_000;

/// Somebody who signs.
enum Signer {
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Elliptic(EcdsaKeyPair),
    Edwards(Ed25519KeyPair),
    Secret(hmac::Algorithm, &'static [u8]),
}

impl Signer {
    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let dice = SystemRandom::new();
        match self {
            Signer::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*encoding, &dice, bytes, &mut signature).unwrap();
                signature
            }
            Signer::Elliptic(key) => key.sign(&dice, bytes).unwrap().as_ref().to_vec(),
            Signer::Edwards(key) => key.sign(bytes).as_ref().to_vec(),
            Signer::Secret(kind, key) => hmac::sign(&hmac::Key::new(*kind, key), bytes).as_ref().to_vec(),
        }
    }

    fn public(&self) -> Value {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        match self {
            Signer::Rsa(key, _) => {
                let key = key.public_key();
                json!({"kty": "RSA", "n": text(key.modulus().big_endian_without_leading_zero()), "e": text(key.exponent().big_endian_without_leading_zero())})
            }
            Signer::Elliptic(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at((key.public_key().as_ref().len() - 1) / 2);
                let curve = match x.len() {
                    32 => "P-256",
                    48 => "P-384",
                    _ => "P-521",
                };
                json!({"kty": "EC", "crv": curve, "x": text(x), "y": text(y)})
            }
            Signer::Edwards(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref())}),
            Signer::Secret(_, key) => json!({"kty": "oct", "k": text(key)}),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        format!("{signed}.{}", BASE64.encode(self.sign(signed.as_bytes())))
    }
}

fn elliptic(kind: &'static signature::EcdsaSigningAlgorithm) -> Signer {
    Signer::Elliptic(EcdsaKeyPair::generate(kind).unwrap())
}

fn with(key: Value, more: Value) -> Value {
    let mut key = key;
    key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    key
}

fn provider(keys: &[Value], more: Value) -> Value {
    let own = json!({"issuer": "me", "payload_in_metadata": "payload",
        "local_jwks": {"inline_string": json!({"keys": keys}).to_string()},
        "failed_status_in_metadata": "RequestAuthentication shop/one"});
    with(own, more)
}

fn filter_of(config: Value) -> Result<Compiled, String> {
    let kind = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"});
    compile(&from_json(&with(kind, config)).unwrap())
}

fn all_paths(requires: Value) -> Value {
    json!([{"match": {"prefix": "/"}, "requires": requires}])
}

/// A filter for which a token of each of these may be missing, but not bad, as our control plane has it.
fn optional(providers: &[Value]) -> Arc<dyn HttpFilter> {
    let name = |place: usize| json!({"provider_name": format!("origins-{place}")});
    let each: Vec<Value> = (0..providers.len())
        .map(|place| json!({"requires_any": {"requirements": [name(place), {"allow_missing": {}}]}}))
        .collect();
    let requires = match each.as_slice() {
        [only] => only.clone(),
        _ => {
            let mut any: Vec<Value> = (0..providers.len()).map(name).collect();
            any.push(json!({"requires_all": {"requirements": each}}));
            json!({"requires_any": {"requirements": any}})
        }
    };
    let providers: Map<String, Value> =
        providers.iter().enumerate().map(|(place, one)| (format!("origins-{place}"), one.clone())).collect();
    filter(json!({"providers": providers, "rules": all_paths(requires), "bypass_cors_preflight": true}))
}

fn filter(config: Value) -> Arc<dyn HttpFilter> {
    match filter_of(config).unwrap() {
        Compiled::Filter(filter) => filter,
        other => panic!("{other:?}"),
    }
}

/// What came of a request.
struct Outcome {
    head: RequestHead,
    reply: Option<Reply>,
    notes: Notes,
}

impl Outcome {
    /// Status and body; 200 and what the token says if the request goes on.
    fn says(&self) -> (u16, String) {
        match &self.reply {
            Some(reply) => (reply.status, String::from_utf8_lossy(&reply.body).into_owned()),
            None => (200, self.claim("").map_or(String::new(), |claims| claims.to_string())),
        }
    }

    fn claim(&self, path: &str) -> Option<Value> {
        let path: Vec<String> = std::iter::once("payload")
            .chain(path.split('/').filter(|name| !name.is_empty()))
            .map(str::to_owned)
            .collect();
        self.notes.metadata.at(NAME, &path).cloned()
    }
}

fn send(filter: &Arc<dyn HttpFilter>, request: http::request::Builder) -> Outcome {
    send_at(filter, request, NOW)
}

fn send_at(filter: &Arc<dyn HttpFilter>, request: http::request::Builder, now: u64) -> Outcome {
    let mut head = request.body(()).unwrap().into_parts().0;
    let connection = ConnFacts {
        direction: Direction::Inbound,
        remote: "10.0.0.9:40000".parse().unwrap(),
        destination: "10.0.0.1:8080".parse().unwrap(),
        caller: None,
        server_name: None,
        alpn: None,
        tls: false,
        peer: None,
        own_uri: None,
        tls_version: None,
    };
    let mut notes = Notes::default();
    let step = filter.on_request(&mut Exchange {
        head: &mut head,
        authority: "web.shop",
        client: connection.remote.ip(),
        connection: &connection,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(now),
        dice: &mut SmallRng::seed_from_u64(1),
        notes: &mut notes,
    });
    let reply = match step {
        Step::Continue => None,
        Step::Reply(reply) => Some(*reply),
        Step::Wait(_) | Step::Ask(_) => panic!("it waits"),
    };
    Outcome { head, reply, notes }
}

fn bearing(token: &str) -> http::request::Builder {
    http::Request::get("/a?b=c").header("authorization", format!("Bearer {token}"))
}

#[test]
fn every_algorithm() {
    let rsa = || RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let signers = [
        ("RS256", Signer::Rsa(rsa(), &RSA_PKCS1_SHA256)),
        ("PS384", Signer::Rsa(rsa(), &RSA_PSS_SHA384)),
        ("ES256", elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING)),
        ("ES384", elliptic(&ECDSA_P384_SHA384_FIXED_SIGNING)),
        ("ES512", elliptic(&ECDSA_P521_SHA512_FIXED_SIGNING)),
        ("EdDSA", Signer::Edwards(Ed25519KeyPair::generate().unwrap())),
        ("HS256", Signer::Secret(hmac::HMAC_SHA256, b"a secret that both know")),
    ];
    let keys: Vec<Value> = signers.iter().map(|(name, signer)| with(signer.public(), json!({"kid": name}))).collect();
    let filter = optional(&[provider(&keys, json!({}))]);
    let strict: Vec<Value> = signers.iter().map(|(name, signer)| with(signer.public(), json!({"alg": name}))).collect();
    let strict = optional(&[provider(&strict, json!({}))]);
    for (name, signer) in &signers {
        let claims = json!({"iss": "me"});
        let token = signer.token(&json!({"alg": name, "kid": name}), &claims);
        assert_eq!(send(&filter, bearing(&token)).says(), (200, claims.to_string()), "{name}");
        assert_eq!(send(&strict, bearing(&token)).says(), (200, claims.to_string()), "{name}");
        // It is remembered, and only that: another that begins so is not it.
        assert_eq!(send(&filter, bearing(&token)).says(), (200, claims.to_string()), "{name}");
        let without_name = signer.token(&json!({"alg": name}), &claims);
        assert_eq!(send(&filter, bearing(&without_name)).says(), (200, claims.to_string()), "{name}");
        let (head, _) = token.rsplit_once('.').unwrap();
        let other = signer.token(&json!({"alg": name, "kid": name}), &json!({"iss": "me", "sub": "root"}));
        let swapped = format!("{head}.{}", other.rsplit_once('.').unwrap().1);
        assert_eq!(send(&filter, bearing(&swapped)).says(), (401, "Jwt verification fails".to_owned()), "{name}");
        let others_key = if *name == "ES256" { "RS256" } else { "ES256" };
        let confused = signer.token(&json!({"alg": name, "kid": others_key}), &claims);
        assert_eq!(send(&filter, bearing(&confused)).says(), (401, "Jwt verification fails".to_owned()), "{name}");
    }
}

#[test]
fn what_is_wrong_is_told() {
    let signer = elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let keys = [with(signer.public(), json!({"kid": "k", "alg": "ES256"}))];
    let filter = optional(&[provider(&keys, json!({"audiences": ["https://shop/"]}))]);
    let header = json!({"alg": "ES256", "kid": "k"});
    let good = json!({"iss": "me", "aud": ["x", "shop"], "exp": NOW + 10, "nbf": NOW});
    let but = |more: Value| signer.token(&header, &with(good.clone(), more));
    let public = keys[0].to_string();
    let forged = {
        let signed = format!(
            "{}.{}",
            BASE64.encode(json!({"alg": "HS256", "kid": "k"}).to_string()),
            BASE64.encode(good.to_string())
        );
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, public.as_bytes()), signed.as_bytes());
        format!("{signed}.{}", BASE64.encode(tag.as_ref()))
    };
    let unsigned =
        format!("{}.{}.", BASE64.encode(json!({"alg": "none"}).to_string()), BASE64.encode(good.to_string()));
    let rows = [
        (but(json!({})), 200, Failure::TokenMissing, ""),
        (but(json!({"iss": "you"})), 401, Failure::TokenUnknownIssuer, "Jwt issuer is not configured"),
        (but(json!({"exp": NOW - 61})), 401, Failure::TokenExpired, "Jwt is expired"),
        (but(json!({"exp": NOW - 60})), 200, Failure::TokenMissing, ""),
        (but(json!({"nbf": NOW + 61})), 401, Failure::TokenNotYetValid, "Jwt not yet valid"),
        (but(json!({"aud": "other"})), 403, Failure::TokenWrongAudience, "Audiences in Jwt are not allowed"),
        (but(json!({"sub": 1})), 401, Failure::TokenUnreadable, "Jwt payload [sub] field is not a string"),
        (
            signer.token(&json!({"alg": "ES256", "kid": "other"}), &good),
            401,
            Failure::TokenUnknownKey,
            "Jwks doesn't have key to match kid or alg from Jwt",
        ),
        (forged, 401, Failure::TokenUnknownKey, "Jwks doesn't have key to match kid or alg from Jwt"),
        (
            unsigned,
            401,
            Failure::TokenUnreadable,
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        ),
        (
            elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING).token(&header, &good),
            401,
            Failure::TokenForged,
            "Jwt verification fails",
        ),
    ];
    for (token, status, failure, says) in rows {
        let outcome = send(&filter, bearing(&token));
        if status == 200 {
            assert_eq!(outcome.says().0, 200, "{:?}", outcome.reply);
            continue;
        }
        assert_eq!(outcome.says(), (status, says.to_owned()));
        let reply = outcome.reply.unwrap();
        assert_eq!(reply.failure, Some(failure));
        assert_eq!(reply.headers[WWW_AUTHENTICATE], "Bearer realm=\"http://web.shop/a?b=c\", error=\"invalid_token\"");
        let refusal = outcome.notes.refusal.unwrap();
        assert_eq!(*refusal.details, *format!("jwt_authn_access_denied{{{}}}", says.replace(' ', "_")));
        assert_eq!(refusal.object.as_deref(), Some("RequestAuthentication shop/one"));
        assert!(outcome.notes.metadata.at(NAME, &["payload".to_owned()]).is_none());
        if failure != Failure::TokenUnreadable {
            assert_eq!((failure.status(), failure.body(), failure.details()), (status, says, &*refusal.details));
        }
    }
    assert_eq!(send(&filter, http::Request::get("/")).says(), (200, String::new()), "a token may be missing");
    let none = optional(&[provider(&[], json!({}))]);
    let told = (401, "Jwks doesn't have any valid public key".to_owned());
    assert_eq!(send(&none, bearing(&but(json!({})))).says(), told);
    assert_eq!(send(&none, http::Request::get("/")).says().0, 200);
    let preflight = http::Request::options("/").header("origin", "x").header("access-control-request-method", "GET");
    assert_eq!(send(&filter, preflight.header("authorization", "Bearer x")).says().0, 200);
}

#[test]
fn what_the_application_gets() {
    let signer = elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let more = json!({
        "forward_payload_header": "x-claims",
        "claim_to_headers": [
            {"header_name": "x-name", "claim_name": "name"}, {"header_name": "x-inner", "claim_name": "a.b"},
            {"header_name": "x-yes", "claim_name": "yes"}, {"header_name": "x-number", "claim_name": "number"},
            {"header_name": "x-real", "claim_name": "real"}, {"header_name": "x-list", "claim_name": "list"},
            {"header_name": "x-none", "claim_name": "none"}, {"header_name": "x-url", "claim_name": "https://x.y/z"}],
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]},
    });
    let claims = json!({"iss": "me", "name": "N", "a": {"b": "B"}, "yes": true, "number": 7, "real": 1.5, "list": [1],
        "https://x.y/z": "U", "scope": "read  write"});
    let filter = optional(&[provider(&[signer.public()], more.clone())]);
    let token = signer.token(&json!({"alg": "ES256"}), &claims);
    let outcome =
        send(&filter, bearing(&token).header("x-name", "root").header("x-none", "root").header("x-claims", "root"));
    let of = |name: &str| -> Vec<&str> {
        outcome.head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    };
    let payload = BASE64.encode(claims.to_string());
    let rows = [
        ("authorization", None),
        ("x-claims", Some(payload.as_str())),
        ("x-name", Some("N")),
        ("x-inner", Some("B")),
        ("x-yes", Some("true")),
        ("x-number", Some("7")),
        ("x-real", Some("1.500000")),
        ("x-list", Some("WzFd")),
        ("x-none", None),
        ("x-url", None),
    ];
    for (name, right) in rows {
        assert_eq!(of(name), Vec::from_iter(right), "{name}");
    }
    assert_eq!(outcome.claim("scope"), Some(json!(["read", "write"])));
    assert_eq!(outcome.claim("a/b"), Some(json!("B")));
    // Without a token nobody's words for it are passed on either.
    let outcome = send(&filter, http::Request::get("/").header("x-name", "root"));
    assert!(outcome.reply.is_none() && outcome.head.headers.is_empty(), "{:?}", outcome.head);
    let keeps = optional(&[provider(&[signer.public()], with(more, json!({"forward": true})))]);
    assert!(send(&keeps, bearing(&token)).head.headers.contains_key("authorization"));
}

#[test]
fn several_issuers_and_several_tokens() {
    let (one, two) = (elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING), elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING));
    let of_two = provider(
        &[two.public()],
        json!({"issuer": "you", "failed_status_in_metadata": "RequestAuthentication shop/two"}),
    );
    let elsewhere = with(of_two.clone(), json!({"from_headers": [{"name": "x-token"}]}));
    let header = json!({"alg": "ES256"});
    let (mine, yours) = (one.token(&header, &json!({"iss": "me"})), two.token(&header, &json!({"iss": "you"})));
    let wrong = one.token(&header, &json!({"iss": "you"}));
    let filter = optional(&[provider(&[one.public()], json!({})), of_two]);
    assert_eq!(send(&filter, bearing(&mine)).says().0, 200);
    assert_eq!(send(&filter, bearing(&yours)).says().0, 200);
    let outcome = send(&filter, bearing(&wrong));
    assert_eq!(outcome.says(), (401, "Jwt verification fails".to_owned()));
    assert_eq!(outcome.notes.refusal.unwrap().object.as_deref(), Some("RequestAuthentication shop/two"));
    let strange = one.token(&header, &json!({"iss": "they"}));
    assert_eq!(send(&filter, bearing(&strange)).says(), (401, "Jwt issuer is not configured".to_owned()));
    assert_eq!(send(&filter, http::Request::get("/")).says().0, 200);
    // Of two tokens for one issuer both must be good.
    let uri = |token: &str| {
        http::Request::get(format!("/?access_token={token}")).header("authorization", format!("Bearer {mine}"))
    };
    let single = optional(&[provider(&[one.public()], json!({}))]);
    let outcome = send(&single, uri(&mine));
    assert_eq!(outcome.says().0, 200);
    assert_eq!(outcome.head.uri, "/", "it is taken out of the query too");
    assert_eq!(send(&single, uri("x")).says().0, 401);
    // In places of their own, one of them is enough.
    let filter = optional(&[provider(&[one.public()], json!({})), elsewhere]);
    assert_eq!(send(&filter, bearing(&mine).header("x-token", yours.as_str())).says().0, 200);
    assert_eq!(send(&filter, http::Request::get("/").header("x-token", wrong.as_str())).says().0, 401);
}

/// A token that was good is not good for ever, nor for other keys.
#[test]
fn what_is_remembered_still_ends() {
    let signer = elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let filter = optional(&[provider(&[signer.public()], json!({}))]);
    let token = signer.token(&json!({"alg": "ES256"}), &json!({"iss": "me", "exp": NOW + 100}));
    let at = |filter: &Arc<dyn HttpFilter>, now: u64| send_at(filter, bearing(&token), now).says();
    assert_eq!(at(&filter, NOW).0, 200);
    assert_eq!(at(&filter, NOW + 160).0, 200);
    assert_eq!(at(&filter, NOW + 161), (401, "Jwt is expired".to_owned()));
    assert_eq!(at(&filter, NOW).0, 200);
    let others = elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let changed = optional(&[provider(&[others.public()], json!({}))]);
    assert_eq!(at(&changed, NOW), (401, "Jwt verification fails".to_owned()));
    let narrower = optional(&[provider(&[signer.public()], json!({"audiences": ["x"]}))]);
    assert_eq!(at(&narrower, NOW).0, 403);
}

#[test]
fn requirements_of_other_control_planes() {
    let signer = elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let token = signer.token(&json!({"alg": "ES256"}), &json!({"iss": "me", "aud": "a"}));
    let of = |requires: Value| {
        filter(json!({"providers": {"p": provider(&[signer.public()], json!({}))}, "rules": all_paths(requires)}))
    };
    let must = of(json!({"provider_name": "p"}));
    let outcome = send(&must, http::Request::get("/"));
    assert_eq!(outcome.says(), (401, "Jwt is missing".to_owned()));
    assert_eq!(outcome.reply.unwrap().headers[WWW_AUTHENTICATE], "Bearer realm=\"http://web.shop/\"");
    assert_eq!(send(&must, bearing(&token)).says().0, 200);
    let for_b = of(json!({"provider_and_audiences": {"provider_name": "p", "audiences": ["b"]}}));
    assert_eq!(send(&for_b, bearing(&token)).says().0, 403);
    let any = of(json!({"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing_or_failed": {}}]}}));
    assert_eq!(send(&any, bearing("x")).says().0, 200);
    let named = filter(json!({
        "providers": {"p": provider(&[signer.public()], json!({}))},
        "requirement_map": {"r": {"provider_name": "p"}},
        "rules": [{"match": {"prefix": "/"}, "requirement_name": "r"}],
        "strip_failure_response": true,
    }));
    let outcome = send(&named, bearing("x"));
    assert_eq!(outcome.says(), (401, String::new()));
    assert!(outcome.reply.unwrap().headers.is_empty());
}

#[test]
fn what_is_not_built_is_refused() {
    let of =
        |provider: Value, rules: Value| filter_of(json!({"providers": {"p": provider}, "rules": rules})).err().unwrap();
    let rule = || all_paths(json!({"provider_name": "p"}));
    let but = |more: Value| of(provider(&[], more), rule());
    let rows = [
        (but(json!({"subjects": {"exact": "x"}})), "subjects"),
        (but(json!({"from_headers": [{"name": "a b"}]})), "\"a b\""),
        (but(json!({"local_jwks": {"filename": "/x"}})), "inline"),
        (of(json!({"remote_jwks": {}}), rule()), "remote_jwks"),
        (of(json!({}), rule()), "no keys"),
        (of(provider(&[], json!({})), all_paths(json!({"provider_name": "q"}))), "\"q\""),
        (of(provider(&[], json!({})), all_paths(json!({"allow_missing": {}}))), "missing"),
        (
            of(provider(&[], json!({})), all_paths(json!({"requires_any": {"requirements": [{"allow_missing": {}}]}}))),
            "no provider",
        ),
        (of(provider(&[], json!({})), json!([{"match": {"prefix": "/a"}}])), "prefix /"),
        (
            of(provider(&[], json!({})), json!([{"match": {"prefix": "/"}}, {"match": {"prefix": "/"}}])),
            "several rules",
        ),
    ];
    for (error, says) in rows {
        assert!(error.contains(says), "{error}: {says}");
    }
}
