//! Heads of messages on the hop between our proxies: names that are known are a number, and a value that was sent with the name
//! before is not sent again. There is no code to be looked up bit by bit, and nothing to be evicted: each known name has one
//! place for its last value, at both ends.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use super::Broken;
use crate::message::Head;

/// Names that are known, and whether the last value is kept. Part of the protocol: a name's place is its number. Values that
/// are another for each request are not kept, nor are those that are secret.
const NAMES: [(&str, bool); 68] = [
    ("host", true),
    ("user-agent", true),
    ("accept", true),
    ("accept-encoding", true),
    ("accept-language", true),
    ("content-type", true),
    ("content-length", true),
    ("date", true),
    ("server", true),
    ("cache-control", true),
    ("x-envoy-peer-metadata", true),
    ("x-envoy-peer-metadata-id", true),
    ("x-envoy-attempt-count", true),
    ("x-envoy-upstream-service-time", true),
    ("x-envoy-decorator-operation", true),
    ("x-envoy-expected-rq-timeout-ms", true),
    ("x-envoy-internal", true),
    ("x-envoy-external-address", true),
    ("x-envoy-original-path", false),
    ("x-envoy-original-host", true),
    ("x-forwarded-proto", true),
    ("x-forwarded-for", true),
    ("x-forwarded-host", true),
    ("x-forwarded-client-cert", true),
    ("x-forwarded-port", true),
    ("x-request-id", false),
    ("traceparent", false),
    ("tracestate", false),
    ("baggage", false),
    ("b3", false),
    ("x-b3-traceid", false),
    ("x-b3-spanid", false),
    ("x-b3-parentspanid", false),
    ("x-b3-sampled", true),
    ("x-b3-flags", true),
    ("x-ot-span-context", false),
    ("authorization", false),
    ("cookie", false),
    ("set-cookie", false),
    ("location", false),
    ("etag", false),
    ("last-modified", false),
    ("expires", false),
    ("age", false),
    ("vary", true),
    ("via", true),
    ("range", false),
    ("content-range", false),
    ("content-encoding", true),
    ("content-disposition", false),
    ("if-none-match", false),
    ("if-modified-since", false),
    ("origin", true),
    ("referer", false),
    ("transfer-encoding", true),
    ("te", true),
    ("trailer", true),
    ("pragma", true),
    ("access-control-allow-origin", true),
    ("access-control-allow-credentials", true),
    ("strict-transport-security", true),
    ("x-content-type-options", true),
    ("grpc-status", true),
    ("grpc-message", false),
    ("grpc-timeout", false),
    ("grpc-encoding", true),
    ("grpc-accept-encoding", true),
    ("x-mesh-application", true),
];
/// The number of `host`.
const HOST: usize = 0;
/// The byte in front of a field: this bit stands for the value of before.
const AGAIN: u8 = 0x80;
/// The byte in front of a field whose name follows.
const NAMED: u8 = 0x7f;
/// Longer values are not kept.
const LONGEST_KEPT: usize = 4096;
/// A head takes at most so many bytes: more than the proxy takes from any client or application.
pub const LONGEST: usize = 512 * 1024;
/// In the place of a length: it follows in four bytes.
const LONG: u16 = u16::MAX;

const METHODS: [Method; 8] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::OPTIONS,
    Method::PATCH,
    Method::TRACE,
];
const VERSIONS: [Version; 3] = [Version::HTTP_11, Version::HTTP_2, Version::HTTP_10];

/// The names, to be found by their text.
struct Table {
    names: Vec<HeaderName>,
    /// A name's number and one, at the place that its text gives or the next free one behind it; zero: none.
    places: [u8; Table::PLACES],
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

impl Table {
    const PLACES: usize = 512;

    fn new() -> Self {
        let mut places = [0; Self::PLACES];
        for (number, (name, _)) in (1..).zip(NAMES) {
            let mut place = Self::place(name.as_bytes());
            while places[place] != 0 {
                place = (place + 1) % Self::PLACES;
            }
            places[place] = number;
        }
        Self { names: NAMES.iter().map(|(name, _)| HeaderName::from_static(name)).collect(), places }
    }

    fn place(name: &[u8]) -> usize {
        let at = |index: usize| name.get(index).copied().map_or(0, usize::from);
        let (length, last) = (name.len(), at(name.len().wrapping_sub(1)));
        (length * 31 + at(0) * 7 + last * 131 + at(length / 2) * 17 + at(length.wrapping_sub(3)) * 3) % Self::PLACES
    }

    fn number(&self, name: &[u8]) -> Option<usize> {
        let mut place = Self::place(name);
        loop {
            let number = usize::from(*self.places.get(place)?).checked_sub(1)?;
            if NAMES[number].0.as_bytes() == name {
                return Some(number);
            }
            place = (place + 1) % Self::PLACES;
        }
    }
}

/// Writes heads; one for each direction of a connection.
pub struct Encoder {
    table: &'static Table,
    /// The last values, by number. Empty: none.
    last: Vec<Vec<u8>>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { table: &TABLE, last: vec![Vec::new(); NAMES.len()] }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Encoder")
    }
}

impl Encoder {
    /// Writes a request's head. Its target is path and query; the host is a field.
    pub fn request(&mut self, head: &Head<'_>, out: &mut BytesMut) {
        let version = VERSIONS.iter().position(|version| *version == head.version).unwrap_or(0);
        out.put_u8(version as u8);
        match METHODS.iter().position(|method| method == head.method) {
            Some(number) => out.put_u8(number as u8 + 1),
            None => {
                out.put_u8(0);
                put(out, head.method.as_str().as_bytes());
            }
        }
        put(out, head.target.map_or("/", PathAndQuery::as_str).as_bytes());
        self.known(HOST, head.host.as_bytes(), out);
        self.fields(head.headers, out);
    }

    /// Writes an answer's head.
    pub fn response(&mut self, status: StatusCode, headers: &HeaderMap, out: &mut BytesMut) {
        out.put_u16(status.as_u16());
        self.fields(headers, out);
    }

    /// Writes fields: those of a head, or trailers.
    pub fn fields(&mut self, headers: &HeaderMap, out: &mut BytesMut) {
        for (name, value) in headers {
            let value = value.as_bytes();
            let Some(number) = self.table.number(name.as_str().as_bytes()) else {
                out.put_u8(NAMED);
                put(out, name.as_str().as_bytes());
                put(out, value);
                continue;
            };
            self.known(number, value, out);
        }
    }

    /// Writes the field of this number.
    fn known(&mut self, number: usize, value: &[u8], out: &mut BytesMut) {
        let last = &mut self.last[number];
        if !value.is_empty() && last == value {
            out.put_u8(AGAIN | number as u8);
            return;
        }
        if keeps(number, value.len()) {
            last.clear();
            last.extend_from_slice(value);
        }
        out.put_u8(number as u8);
        put(out, value);
    }
}

/// Whether both ends keep this value.
fn keeps(number: usize, length: usize) -> bool {
    NAMES[number].1 && (1..=LONGEST_KEPT).contains(&length)
}

/// A text with its length in front.
fn put(out: &mut BytesMut, text: &[u8]) {
    out.reserve(text.len() + 6);
    match u16::try_from(text.len()) {
        Ok(length) if length != LONG => out.put_u16(length),
        _ => {
            out.put_u16(LONG);
            out.put_u32(text.len() as u32);
        }
    }
    out.put_slice(text);
}

/// Reads heads; one for each direction of a connection.
pub struct Decoder {
    table: &'static Table,
    last: Vec<Option<HeaderValue>>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: &TABLE, last: vec![None; NAMES.len()] }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Decoder")
    }
}

impl Decoder {
    /// Reads a request's head.
    ///
    /// # Errors
    /// It is not one.
    pub fn request(&mut self, bytes: Bytes) -> Result<http::request::Parts, Broken> {
        let mut text = Text { bytes, at: 0 };
        let (mut head, ()) = http::Request::new(()).into_parts();
        head.version = *VERSIONS.get(usize::from(text.byte()?)).ok_or(Broken::Protocol)?;
        head.method = match text.byte()?.checked_sub(1) {
            None => Method::from_bytes(&text.part()?).map_err(|_| Broken::Protocol)?,
            Some(number) => METHODS.get(usize::from(number)).ok_or(Broken::Protocol)?.clone(),
        };
        let target = PathAndQuery::from_maybe_shared(text.part()?).map_err(|_| Broken::Protocol)?;
        head.uri = Uri::from(target);
        head.headers = self.fields(text)?;
        Ok(head)
    }

    /// Reads an answer's head.
    ///
    /// # Errors
    /// It is not one.
    pub fn response(&mut self, bytes: Bytes) -> Result<http::response::Parts, Broken> {
        let mut text = Text { bytes, at: 0 };
        let (mut head, ()) = http::Response::new(()).into_parts();
        let status = u16::from_be_bytes([text.byte()?, text.byte()?]);
        head.status = StatusCode::from_u16(status).map_err(|_| Broken::Protocol)?;
        head.headers = self.fields(text)?;
        Ok(head)
    }

    /// Reads trailers.
    ///
    /// # Errors
    /// They are none.
    pub fn trailers(&mut self, bytes: Bytes) -> Result<HeaderMap, Broken> {
        self.fields(Text { bytes, at: 0 })
    }

    fn fields(&mut self, mut text: Text) -> Result<HeaderMap, Broken> {
        // With room for what proxies add on the way.
        let mut headers = HeaderMap::with_capacity(24);
        while text.at < text.bytes.len() {
            let (name, value) = match text.byte()? {
                NAMED => {
                    let name = HeaderName::from_bytes(&text.part()?).map_err(|_| Broken::Protocol)?;
                    (name, value(text.part()?)?)
                }
                number if number & AGAIN != 0 => {
                    let number = usize::from(number & !AGAIN);
                    let known = self.last.get(number).and_then(Option::as_ref).ok_or(Broken::Protocol)?;
                    (self.table.names[number].clone(), known.clone())
                }
                number => {
                    let number = usize::from(number);
                    let name = self.table.names.get(number).ok_or(Broken::Protocol)?.clone();
                    let part = text.part()?;
                    if keeps(number, part.len()) {
                        // A copy: what is kept must not hold what was read with it.
                        let value = value(Bytes::copy_from_slice(&part))?;
                        self.last[number] = Some(value.clone());
                        (name, value)
                    } else {
                        (name, value(part)?)
                    }
                }
            };
            headers.try_append(name, value).map_err(|_| Broken::Protocol)?;
        }
        Ok(headers)
    }
}

fn value(bytes: Bytes) -> Result<HeaderValue, Broken> {
    HeaderValue::from_maybe_shared(bytes).map_err(|_| Broken::Protocol)
}

/// What is read, piece by piece.
struct Text {
    bytes: Bytes,
    at: usize,
}

impl Text {
    fn byte(&mut self) -> Result<u8, Broken> {
        let byte = *self.bytes.get(self.at).ok_or(Broken::Protocol)?;
        self.at += 1;
        Ok(byte)
    }

    fn part(&mut self) -> Result<Bytes, Broken> {
        let mut length = u32::from(u16::from_be_bytes([self.byte()?, self.byte()?]));
        if length == u32::from(LONG) {
            length = u32::from_be_bytes([self.byte()?, self.byte()?, self.byte()?, self.byte()?]);
        }
        let length = length as usize;
        let end = self.at + length;
        if end > self.bytes.len() {
            return Err(Broken::Protocol);
        }
        let part = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
        let name = prop_oneof![
            3 => (0..NAMES.len()).prop_map(|number| NAMES[number].0.to_owned()),
            1 => "[a-z][a-z0-9-]{0,12}",
        ];
        let value = prop_oneof![
            3 => "[a-c]{0,2}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(prop_oneof![0x20u8..0x7f, 0x80u8..=0xff, Just(9u8)], 0..40),
            1 => (LONGEST_KEPT - 1..LONGEST_KEPT + 2).prop_map(|length| vec![b'x'; length]),
            1 => (0xfffe_usize..0x1_0001).prop_map(|length| vec![b'x'; length]),
        ];
        (name, value)
    }

    proptest! {
        #[test]
        fn heads_arrive_as_they_were_sent(heads in proptest::collection::vec(proptest::collection::vec(header(), 0..12), 1..12)) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            for (turn, fields) in heads.into_iter().enumerate() {
                let mut headers = HeaderMap::new();
                for (name, value) in fields {
                    headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(&value).unwrap());
                }
                let method = [Method::GET, Method::TRACE, Method::from_bytes(b"PURGE").unwrap()][turn % 3].clone();
                let (target, host) = (PathAndQuery::from_static("/a%20b?c=d"), HeaderValue::from_static("a.b"));
                headers.remove("host");
                let version = VERSIONS[turn % 3];
                let head = Head { method: &method, target: Some(&target), host: &host, version, headers: &headers, upgrade: None };
                let mut out = BytesMut::new();
                encoder.request(&head, &mut out);
                let read = decoder.request(out.freeze()).unwrap();
                prop_assert_eq!((read.method, read.uri, read.version), (method.clone(), Uri::from(target.clone()), version));
                let mut wanted = headers.clone();
                wanted.insert("host", host.clone());
                prop_assert_eq!(read.headers, wanted);
                let mut out = BytesMut::new();
                encoder.response(StatusCode::IM_A_TEAPOT, &headers, &mut out);
                let read = decoder.response(out.freeze()).unwrap();
                prop_assert_eq!((read.status, read.headers), (StatusCode::IM_A_TEAPOT, headers));
            }
        }

        #[test]
        fn what_is_no_head_is_refused_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let mut decoder = Decoder::default();
            let _ = (decoder.request(bytes.clone()), decoder.response(bytes.clone()), decoder.trailers(bytes));
        }
    }

    #[test]
    fn what_was_sent_before_is_one_byte() {
        let mut headers = HeaderMap::new();
        headers.insert("x-envoy-peer-metadata", HeaderValue::from_static("long and the same for the whole connection"));
        let mut encoder = Encoder::default();
        let mut lengths = Vec::new();
        for _ in 0..2 {
            let mut out = BytesMut::new();
            encoder.fields(&headers, &mut out);
            lengths.push(out.len());
        }
        assert_eq!(lengths, [45, 1]);
    }

    #[test]
    fn secrets_are_not_kept() {
        for name in ["authorization", "cookie", "set-cookie"] {
            assert!(NAMES.iter().any(|(known, keeps)| *known == name && !keeps), "{name}");
        }
    }
}
