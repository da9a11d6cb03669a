//! What a proxy says of the client: `x-forwarded-for`, `x-forwarded-proto`, `x-forwarded-client-cert`, `x-request-id`; and what
//! it must not pass on.

use std::cell::OnceCell;

use bytes::Bytes;
use http::header::{CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};
use rand::RngExt;
use rand::rngs::SmallRng;

use super::names;
use crate::facts::{ConnFacts, PeerFacts};
use crate::snapshot::chain::{ClientCertMode, HttpChain};

/// Which of the rarer headers a message has: found in one pass over its names, so that the common message is not searched for
/// each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rare {
    /// `connection`.
    pub connection: bool,
    /// Another that belongs to the connection.
    pub hop_by_hop: bool,
    /// `upgrade`.
    pub upgrade: bool,
    /// `transfer-encoding`.
    pub transfer_encoding: bool,
    /// One with which a caller steers Envoy's router (`x-envoy-…`).
    pub steering: bool,
    /// What the proxy on the other side says of itself.
    pub peer_metadata: bool,
    /// All names and values together, in bytes.
    pub size: usize,
}

impl Rare {
    /// Of these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut rare = Self::default();
        for (name, value) in headers {
            rare.size += name.as_str().len() + value.len();
            match name.as_str() {
                "connection" => rare.connection = true,
                "upgrade" => (rare.upgrade, rare.hop_by_hop) = (true, true),
                "transfer-encoding" => (rare.transfer_encoding, rare.hop_by_hop) = (true, true),
                "keep-alive" | "proxy-connection" | "proxy-authenticate" | "proxy-authorization" | "te" => {
                    rare.hop_by_hop = true;
                }
                "x-envoy-peer-metadata" | "x-envoy-peer-metadata-id" => rare.peer_metadata = true,
                "x-envoy-retry-on"
                | "x-envoy-retry-grpc-on"
                | "x-envoy-max-retries"
                | "x-envoy-upstream-rq-timeout-ms"
                | "x-envoy-upstream-rq-per-try-timeout-ms" => rare.steering = true,
                _ => {}
            }
        }
        rare
    }
}

/// Removes what belongs to one connection (RFC 9110 section 7.6.1). `te: trailers` stays: gRPC needs it. Returns the upgrade
/// that was asked for.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, rare: Rare) -> Option<HeaderValue> {
    let mut upgrade = None;
    if rare.connection
        && let Some(connection) = headers.remove(CONNECTION)
    {
        for name in connection.to_str().unwrap_or("").split(',').map(str::trim) {
            match name {
                "" | "keep-alive" | "close" | "Keep-Alive" | "Close" => continue,
                _ if name.eq_ignore_ascii_case("upgrade") => upgrade = headers.remove(UPGRADE),
                // The host and our own words are not to be removed by whoever calls.
                _ if name.eq_ignore_ascii_case("host")
                    || name.eq_ignore_ascii_case("te")
                    || name.get(..12).is_some_and(|begin| begin.eq_ignore_ascii_case("x-forwarded-")) => {}
                _ => drop(headers.remove(name)),
            }
        }
    }
    if !rare.hop_by_hop {
        return upgrade;
    }
    headers.remove(UPGRADE);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(&names::KEEP_ALIVE);
    headers.remove(&names::PROXY_CONNECTION);
    headers.remove(PROXY_AUTHENTICATE);
    headers.remove(PROXY_AUTHORIZATION);
    if headers.get(TE).is_some_and(|te| !te.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        let trailers = headers
            .get(TE)
            .and_then(|te| te.to_str().ok())
            .is_some_and(|te| te.split(',').any(|part| part.trim().eq_ignore_ascii_case("trailers")));
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
    upgrade
}

/// Headers with which callers could steer an edge from outside.
fn sanitize(headers: &mut HeaderMap) {
    for name in [
        &names::INTERNAL,
        &names::UPSTREAM_TIMEOUT,
        &names::PER_TRY_TIMEOUT,
        &names::MAX_RETRIES,
        &names::RETRY_ON,
        &names::RETRY_GRPC_ON,
        &names::DECORATOR_OPERATION,
        &names::EXPECTED_TIMEOUT,
        &names::ATTEMPT_COUNT,
        &names::ORIGINAL_PATH,
        &names::ORIGINAL_HOST,
    ] {
        headers.remove(name);
    }
}

/// Sets what is said of the client.
///
/// `certificate` keeps the text of the client's certificate, which is the same for all requests of a connection.
pub fn describe_client(
    headers: &mut HeaderMap,
    connection: &ConnFacts,
    chain: &HttpChain,
    certificate: &OnceCell<HeaderValue>,
    dice: &mut SmallRng,
) {
    let scheme = HeaderValue::from_static(if connection.tls { "https" } else { "http" });
    if chain.use_remote_address {
        // No address is internal that the configuration does not name (Envoy `internal_address_config`, which nothing sets).
        sanitize(headers);
        if let Ok(address) = HeaderValue::from_str(&connection.remote.ip().to_string()) {
            headers.insert(names::EXTERNAL_ADDRESS.clone(), address);
        }
        if !chain.skip_xff_append {
            append(headers, &names::FORWARDED_FOR, &connection.remote.ip().to_string());
        }
        if chain.xff_trusted_hops == 0 || !headers.contains_key(&names::FORWARDED_PROTO) {
            headers.insert(names::FORWARDED_PROTO.clone(), scheme);
        }
    } else if !headers.contains_key(&names::FORWARDED_PROTO) {
        headers.insert(names::FORWARDED_PROTO.clone(), scheme);
    }
    if chain.generate_request_id {
        let keep = headers.contains_key(&names::REQUEST_ID)
            && (!chain.use_remote_address || chain.preserve_external_request_id);
        if !keep {
            headers.insert(names::REQUEST_ID.clone(), request_id(dice));
        }
    }
    client_cert(headers, connection, chain, certificate);
}

/// The client as the proxies in front of us say, where they are believed: the last of `x-forwarded-for` but the trusted hops
/// (Envoy `use_remote_address`, `xff_num_trusted_hops`). Its port is not known.
pub fn client(headers: &HeaderMap, chain: &HttpChain) -> Option<std::net::SocketAddr> {
    // An edge has appended the address of whoever connected.
    if chain.use_remote_address && (chain.xff_trusted_hops == 0 || chain.skip_xff_append) {
        return None;
    }
    let address = told_client(headers, chain.xff_trusted_hops)?;
    Some(std::net::SocketAddr::new(address, 0))
}

fn told_client(headers: &HeaderMap, trusted_hops: u32) -> Option<std::net::IpAddr> {
    let line = headers.get_all(&names::FORWARDED_FOR).iter().next_back()?.to_str().ok()?;
    line.rsplit(',').nth(trusted_hops as usize)?.trim().parse().ok()
}

fn append(headers: &mut HeaderMap, name: &HeaderName, text: &str) {
    let joined = match headers.get(name).and_then(|old| old.to_str().ok()) {
        Some(old) => HeaderValue::try_from(format!("{old},{text}")),
        None => HeaderValue::from_str(text),
    };
    if let Ok(value) = joined {
        headers.insert(name.clone(), value);
    }
}

/// A random UUID (RFC 9562 version 4).
fn request_id(dice: &mut SmallRng) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = dice.random::<u128>().to_be_bytes();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (place, byte) in bytes.into_iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    // Counted from the start: it is kept twice, and a copy of other bytes would be counted only then. No table is to remember it.
    let mut id =
        HeaderValue::from_maybe_shared(Bytes::from_owner(text)).unwrap_or_else(|_| HeaderValue::from_static("-"));
    id.set_sensitive(true);
    id
}

fn client_cert(
    headers: &mut HeaderMap,
    connection: &ConnFacts,
    chain: &HttpChain,
    certificate: &OnceCell<HeaderValue>,
) {
    let mutual = connection.peer.as_deref();
    match (chain.client_cert.mode, mutual) {
        (ClientCertMode::AlwaysForwardOnly, _) | (ClientCertMode::ForwardOnly, Some(_)) => {}
        (
            ClientCertMode::Sanitize
            | ClientCertMode::ForwardOnly
            | ClientCertMode::AppendForward
            | ClientCertMode::SanitizeSet,
            None,
        )
        | (ClientCertMode::Sanitize, Some(_)) => {
            headers.remove(&names::FORWARDED_CLIENT_CERT);
        }
        (mode @ (ClientCertMode::AppendForward | ClientCertMode::SanitizeSet), Some(peer)) => {
            if mode == ClientCertMode::SanitizeSet {
                headers.remove(&names::FORWARDED_CLIENT_CERT);
            }
            let text = certificate.get_or_init(|| described(connection, peer, chain));
            match headers.get(&names::FORWARDED_CLIENT_CERT) {
                None => drop(headers.insert(names::FORWARDED_CLIENT_CERT.clone(), text.clone())),
                Some(_) => append(headers, &names::FORWARDED_CLIENT_CERT, text.to_str().unwrap_or_default()),
            }
        }
    }
}

/// One element of `x-forwarded-client-cert`.
fn described(connection: &ConnFacts, peer: &PeerFacts, chain: &HttpChain) -> HeaderValue {
    let mut parts = Vec::new();
    if let Some(own) = &connection.own_uri {
        parts.push(format!("By={own}"));
    }
    parts.push(format!("Hash={}", peer.hash));
    if chain.client_cert.cert {
        parts.push(format!("Cert=\"{}\"", encoded_pem(&peer.der)));
    }
    if chain.client_cert.subject {
        parts.push(format!("Subject=\"{}\"", peer.subject.replace('"', "\\\"")));
    }
    if chain.client_cert.uri {
        parts.push(format!("URI={}", peer.uris.first().map(String::as_str).unwrap_or_default()));
    }
    if chain.client_cert.dns {
        parts.extend(peer.dns.iter().map(|name| format!("DNS={name}")));
    }
    HeaderValue::try_from(parts.join(";")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The certificate as PEM, percent-encoded: as Envoy puts it into `x-forwarded-client-cert`.
fn encoded_pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for line in body.as_bytes().chunks(64) {
        for byte in line {
            match byte {
                b'+' => text.push_str("%2B"),
                b'/' => text.push_str("%2F"),
                b'=' => text.push_str("%3D"),
                byte => text.push(char::from(*byte)),
            }
        }
        text.push_str("%0A");
    }
    text + "-----END%20CERTIFICATE-----%0A"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_go_and_the_upgrade_is_told() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade, x-own, host"),
            ("upgrade", "websocket"),
            ("x-own", "1"),
            ("host", "a"),
            ("te", "gzip, trailers"),
            ("keep-alive", "5"),
            ("x-kept", "1"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let rare = Rare::of(&headers);
        assert_eq!(strip_hop_by_hop(&mut headers, rare).unwrap(), "websocket");
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "te", "x-kept"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn the_client_is_the_last_address_but_the_trusted_hops() {
        let told = |line: &'static str, hops| {
            let mut headers = HeaderMap::new();
            headers.insert(names::FORWARDED_FOR.clone(), HeaderValue::from_static(line));
            told_client(&headers, hops).map(|address| address.to_string()).unwrap_or_default()
        };
        assert_eq!(told("198.51.100.1, 192.0.2.1", 0), "192.0.2.1");
        assert_eq!(told("198.51.100.1, 192.0.2.1", 1), "198.51.100.1");
        assert_eq!(told("2001:db8::1", 0), "2001:db8::1");
        assert_eq!((told("192.0.2.1", 1), told("unknown", 0)), (String::new(), String::new()));
        assert_eq!(told_client(&HeaderMap::new(), 0), None);
    }

    #[test]
    fn request_ids_are_uuids() {
        let id = request_id(&mut rand::make_rng());
        let text = id.to_str().unwrap();
        assert_eq!(text.len(), 36);
        assert_eq!((&text[14..15], text.split('-').count()), ("4", 5));
    }
}
