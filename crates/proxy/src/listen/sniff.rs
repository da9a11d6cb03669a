//! What the first bytes of a connection are: TLS with its client hello (RFC 8446 section 4.1.2), HTTP of either version, or
//! neither. Pure: bytes in, verdict out.

use crate::http::server::PREFACE;

/// A verdict on the first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// More bytes are needed.
    More,
    /// A TLS client hello.
    Tls(Hello),
    /// HTTP/1.0 or 1.1.
    Http1 {
        /// `http/1.0` rather than `http/1.1`.
        old: bool,
    },
    /// HTTP/2 in the clear.
    Http2,
    /// Something else.
    Other,
}

/// What a client hello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Server name, lower case.
    pub server_name: Option<String>,
    /// Offered protocols.
    pub protocols: Vec<String>,
}

/// Client hellos beyond this are not TLS for us.
const MOST: usize = 64 * 1024;

/// Looks at the first bytes.
pub fn sniff(bytes: &[u8], tls: bool, http: bool) -> Sniffed {
    if tls {
        match client_hello(bytes) {
            Parsed::No => {}
            Parsed::More => return Sniffed::More,
            Parsed::Hello(hello) => return Sniffed::Tls(hello),
        }
    }
    if !http {
        return Sniffed::Other;
    }
    let compared = bytes.len().min(PREFACE.len());
    if bytes[..compared] == PREFACE[..compared] {
        return if compared == PREFACE.len() { Sniffed::Http2 } else { Sniffed::More };
    }
    request_line(bytes)
}

/// A request line: a token, a blank, a target, a blank, `HTTP/1.x` (RFC 9112 section 3).
fn request_line(bytes: &[u8]) -> Sniffed {
    const MOST_LINE: usize = 8 * 1024;
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => &bytes[..end],
        None => bytes,
    };
    let whole = line.len() < bytes.len();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().unwrap_or_default();
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if method.len() > 32 || (method.is_empty() && !bytes.is_empty()) || !method.iter().all(token) {
        return Sniffed::Other;
    }
    if whole {
        let version = words.next_back().unwrap_or_default();
        return match version {
            b"HTTP/1.1" => Sniffed::Http1 { old: false },
            b"HTTP/1.0" => Sniffed::Http1 { old: true },
            _ => Sniffed::Other,
        };
    }
    let printable = line.iter().all(|byte| *byte > 0x20 && *byte != 0x7f || *byte == b' ');
    if !printable || bytes.len() > MOST_LINE { Sniffed::Other } else { Sniffed::More }
}

enum Parsed {
    No,
    More,
    Hello(Hello),
}

fn client_hello(bytes: &[u8]) -> Parsed {
    // Record: type 22, version 3.x, length; handshake: type 1, length of three bytes. A hello may span records.
    let mut handshake = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [] => return Parsed::More,
            [22] => return Parsed::More,
            [22, 3, ..] => {}
            _ => return Parsed::No,
        }
        let [_, _, _, high, low, body @ ..] = rest else { return Parsed::More };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > 16 * 1024 + 256 {
            return Parsed::No;
        }
        let part = &body[..length.min(body.len())];
        handshake.extend_from_slice(part);
        if handshake.first().is_some_and(|kind| *kind != 1) || handshake.len() > MOST {
            return Parsed::No;
        }
        if let [_, a, b, c, hello @ ..] = handshake.as_slice() {
            let wanted = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if wanted > MOST {
                return Parsed::No;
            }
            if let Some(hello) = hello.get(..wanted) {
                return extensions_of(hello).map_or(Parsed::No, Parsed::Hello);
            }
        }
        if body.len() < length {
            return Parsed::More;
        }
        rest = &body[length..];
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn vector(&mut self, width: usize) -> Option<Reader<'a>> {
        let length = self.take(width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        self.take(length).map(Reader)
    }
}

fn extensions_of(hello: &[u8]) -> Option<Hello> {
    let mut reader = Reader(hello);
    reader.take(2 + 32)?;
    reader.vector(1)?;
    reader.vector(2)?;
    reader.vector(1)?;
    let mut found = Hello::default();
    let Some(mut extensions) = reader.vector(2) else { return Some(found) };
    while !extensions.0.is_empty() {
        let kind = extensions.take(2)?;
        let mut body = extensions.vector(2)?;
        match kind {
            [0, 0] => {
                let mut names = body.vector(2)?;
                if names.take(1)? == [0] {
                    let name = String::from_utf8_lossy(names.vector(2)?.0).to_ascii_lowercase();
                    found.server_name = Some(name);
                }
            }
            [0, 16] => {
                let mut list = body.vector(2)?;
                while !list.0.is_empty() {
                    found.protocols.push(String::from_utf8_lossy(list.vector(1)?.0).into_owned());
                }
            }
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
        let config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut connection =
            rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn client_hellos_byte_by_byte() {
        let name = "outbound_.9080_.v1_.reviews.default.svc.cluster.local";
        let bytes = hello(name, &["istio-mux", "istio"]);
        for end in 0..bytes.len() {
            assert_eq!(sniff(&bytes[..end], true, true), Sniffed::More, "{end}");
        }
        let expected = Hello { server_name: Some(name.into()), protocols: vec!["istio-mux".into(), "istio".into()] };
        assert_eq!(sniff(&bytes, true, true), Sniffed::Tls(expected));
    }

    #[test]
    fn http_and_others() {
        let cases: [(&[u8], Sniffed); 9] = [
            (b"GET / HTTP/1.1\r\n", Sniffed::Http1 { old: false }),
            (b"GET / HTTP/1.0\n", Sniffed::Http1 { old: true }),
            (b"GET /lo", Sniffed::More),
            (b"G", Sniffed::More),
            (PREFACE, Sniffed::Http2),
            (&PREFACE[..10], Sniffed::More),
            (b"\x00\x01", Sniffed::Other),
            (b"EHLO a\r\n", Sniffed::Other),
            (b"\x16\x02", Sniffed::Other),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes, true, true), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_have_a_verdict(mut bytes: Vec<u8>, as_tls: bool) {
            if as_tls {
                bytes.splice(0..0, [22, 3, 1]);
            }
            let _ = sniff(&bytes, true, true);
        }
    }
}
