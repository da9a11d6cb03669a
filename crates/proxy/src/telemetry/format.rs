//! Envoy's format strings: text with `%OPERATORS%`, parsed once, written often. Pure.

#![deny(clippy::disallowed_methods)]

use std::borrow::Cow;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};

/// What operators ask for. Times and addresses are of the moment of writing; a missing value is written as `-`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Facts<'a> {
    pub start: Option<SystemTime>,
    pub duration: Option<Duration>,
    /// Time until the answer's head arrived from upstream.
    pub response_duration: Option<Duration>,
    pub method: &'a str,
    pub path: &'a str,
    pub authority: &'a str,
    pub scheme: &'a str,
    pub protocol: Option<&'static str>,
    /// Request headers kept for the log.
    pub request: &'a [(HeaderName, HeaderValue)],
    /// Answer headers kept for the log.
    pub response: &'a [(HeaderName, HeaderValue)],
    pub status: u16,
    pub grpc_status: Option<u32>,
    pub flags: &'a str,
    pub details: Option<&'a str>,
    pub termination_details: Option<&'a str>,
    pub transport_failure: Option<&'a str>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub upstream_host: Option<SocketAddr>,
    pub upstream_local: Option<SocketAddr>,
    pub upstream_cluster: Option<&'a str>,
    pub downstream_local: Option<SocketAddr>,
    pub downstream_remote: Option<SocketAddr>,
    /// Who dialled, if that is another.
    pub downstream_direct: Option<SocketAddr>,
    pub server_name: Option<&'a str>,
    pub route: Option<&'a str>,
    pub attempts: u32,
    pub peer_uri: Option<&'a str>,
    /// TLS version of the caller's connection.
    pub tls_version: Option<&'a str>,
    pub peer_subject: Option<&'a str>,
    pub local_uri: Option<&'a str>,
    pub hostname: Option<&'a str>,
}

macro_rules! operators {
    ($($variant:ident = $name:literal),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Plain { $($variant),* }

        impl Plain {
            fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Plain::$variant),)* _ => None }
            }
        }
    };
}

operators! {
    Protocol = "PROTOCOL", ResponseCode = "RESPONSE_CODE", ResponseFlags = "RESPONSE_FLAGS", ResponseFlagsLong = "RESPONSE_FLAGS_LONG",
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS", ConnectionTermination = "CONNECTION_TERMINATION_DETAILS",
    TransportFailure = "UPSTREAM_TRANSPORT_FAILURE_REASON", BytesReceived = "BYTES_RECEIVED", BytesSent = "BYTES_SENT",
    Duration = "DURATION", ResponseDuration = "RESPONSE_DURATION", UpstreamHost = "UPSTREAM_HOST", UpstreamRemote = "UPSTREAM_REMOTE_ADDRESS",
    UpstreamCluster = "UPSTREAM_CLUSTER", UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW", UpstreamLocal = "UPSTREAM_LOCAL_ADDRESS",
    DownstreamLocal = "DOWNSTREAM_LOCAL_ADDRESS", DownstreamLocalBare = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    DownstreamRemote = "DOWNSTREAM_REMOTE_ADDRESS", DownstreamRemoteBare = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamDirect = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", DownstreamDirectBare = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    ServerName = "REQUESTED_SERVER_NAME", RouteName = "ROUTE_NAME", Attempts = "UPSTREAM_REQUEST_ATTEMPT_COUNT", GrpcStatusNumber = "GRPC_STATUS_NUMBER",
    GrpcStatus = "GRPC_STATUS", PeerUri = "DOWNSTREAM_PEER_URI_SAN", PeerSubject = "DOWNSTREAM_PEER_SUBJECT", LocalUri = "DOWNSTREAM_LOCAL_URI_SAN", TlsVersion = "DOWNSTREAM_TLS_VERSION",
    Hostname = "HOSTNAME",
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Plain(Plain, Option<usize>),
    Start(Option<String>),
    Header { request: bool, first: Field, second: Option<Field>, limit: Option<usize>, without_query: bool },
}

#[derive(Clone, Debug, PartialEq)]
enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Name(HeaderName),
}

/// A parsed format.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    pieces: Vec<Piece>,
}

impl Format {
    /// Parses a format.
    ///
    /// # Errors
    /// An operator that is not known or not closed; the sentence names it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(start) = rest.find('%') {
            literal.push_str(&rest[..start]);
            rest = &rest[start + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            // A parameter in parentheses may hold percent signs (`%START_TIME(%Y)%`).
            let from = match (rest.find('('), rest.find('%')) {
                (Some(open), Some(close)) if open < close => rest[open..].find(')').map(|end| open + end),
                _ => Some(0),
            };
            let end = from.and_then(|from| rest[from..].find('%').map(|end| from + end));
            let Some(end) = end else { return Err(format!("the operator {rest:?} is not closed")) };
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(operator(&rest[..end])?);
            rest = &rest[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self { pieces })
    }

    /// The request (`true`) or answer headers that the format asks for.
    pub fn headers(&self, of_request: bool) -> impl Iterator<Item = &HeaderName> {
        self.pieces
            .iter()
            .filter_map(move |piece| match piece {
                Piece::Header { request, first, second, .. } if *request == of_request => {
                    Some([Some(first), second.as_ref()])
                }
                _ => None,
            })
            .flatten()
            .flatten()
            .filter_map(|field| match field {
                Field::Name(name) => Some(name),
                _ => None,
            })
    }

    /// Whether the format is one operator for which `-` is a value: no flags.
    pub fn is_flags(&self) -> bool {
        matches!(self.pieces.as_slice(), [Piece::Plain(Plain::ResponseFlags | Plain::ResponseFlagsLong, _)])
    }

    /// Whether the format is one operator whose value is a number.
    pub fn is_number(&self) -> bool {
        matches!(
            self.pieces.as_slice(),
            [Piece::Plain(
                Plain::ResponseCode
                    | Plain::BytesReceived
                    | Plain::BytesSent
                    | Plain::Duration
                    | Plain::ResponseDuration
                    | Plain::Attempts
                    | Plain::GrpcStatusNumber
                    | Plain::DownstreamLocalPort,
                _
            )]
        )
    }

    /// Writes the text.
    pub fn write(&self, facts: &Facts<'_>, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Start(pattern) => match (facts.start, pattern) {
                    (Some(start), None) => write_time(start, out),
                    (Some(start), Some(pattern)) => write_strftime(start, pattern, out),
                    (None, _) => out.push('-'),
                },
                Piece::Plain(plain, limit) => {
                    let value = plain.value(facts);
                    let value = value.as_deref().unwrap_or("-");
                    out.push_str(cut(value, *limit));
                }
                Piece::Header { request, first, second, limit, without_query } => {
                    let value = first
                        .value(facts, *request)
                        .or_else(|| second.as_ref().and_then(|second| second.value(facts, *request)));
                    let mut value = value.unwrap_or("-");
                    if *without_query {
                        value = value.split('?').next().unwrap_or(value);
                    }
                    out.push_str(cut(value, *limit));
                }
            }
        }
    }
}

fn cut(text: &str, limit: Option<usize>) -> &str {
    match limit {
        Some(limit) if text.len() > limit => text.get(..limit).unwrap_or(text),
        _ => text,
    }
}

fn operator(text: &str) -> Result<Piece, String> {
    let (name, rest) = text.split_at(text.find(['(', ':']).unwrap_or(text.len()));
    let (parameter, rest) = match rest.strip_prefix('(').and_then(|rest| rest.rsplit_once(')')) {
        Some((parameter, rest)) => (Some(parameter), rest),
        None => (None, rest),
    };
    let limit = match rest.strip_prefix(':') {
        Some(limit) => Some(limit.parse().map_err(|_| format!("the length in %{text}% is not a number"))?),
        None => None,
    };
    match (name, parameter) {
        ("START_TIME", pattern) => Ok(Piece::Start(pattern.filter(|pattern| !pattern.is_empty()).map(str::to_owned))),
        ("REQ" | "REQ_WITHOUT_QUERY" | "RESP" | "TRAILER", Some(fields)) => {
            let request = name.starts_with("REQ");
            let mut fields = fields.split('?');
            let first = field(fields.next().unwrap_or_default())?;
            let second = fields.next().map(field).transpose()?;
            Ok(Piece::Header { request, first, second, limit, without_query: name == "REQ_WITHOUT_QUERY" })
        }
        _ => Plain::parse(name)
            .map(|plain| Piece::Plain(plain, limit))
            .ok_or_else(|| format!("the operator %{text}% is not known")),
    }
}

fn field(name: &str) -> Result<Field, String> {
    match name.to_ascii_lowercase().as_str() {
        ":method" => Ok(Field::Method),
        ":path" => Ok(Field::Path),
        ":authority" | "host" => Ok(Field::Authority),
        ":scheme" => Ok(Field::Scheme),
        other => other.parse().map(Field::Name).map_err(|_| format!("{name:?} is not a header's name")),
    }
}

impl Field {
    fn value<'a>(&self, facts: &Facts<'a>, request: bool) -> Option<&'a str> {
        let text = match self {
            Field::Method => facts.method,
            Field::Path => facts.path,
            Field::Authority => facts.authority,
            Field::Scheme => facts.scheme,
            Field::Name(name) => {
                let kept = if request { facts.request } else { facts.response };
                kept.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.to_str().ok())?
            }
        };
        (!text.is_empty()).then_some(text)
    }
}

impl Plain {
    fn value<'a>(self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        let text = |text: Option<&'a str>| text.filter(|text| !text.is_empty()).map(Cow::Borrowed);
        let number = |number: u64| Some(Cow::Owned(number.to_string()));
        let millis = |time: Option<Duration>| time.map(|time| Cow::Owned(time.as_millis().to_string()));
        let address = |address: Option<SocketAddr>| address.map(|address| Cow::Owned(address.to_string()));
        let bare = |address: Option<SocketAddr>| address.map(|address| Cow::Owned(address.ip().to_string()));
        match self {
            Plain::Protocol => facts.protocol.map(Cow::Borrowed),
            Plain::ResponseCode => number(u64::from(facts.status)),
            Plain::ResponseFlags | Plain::ResponseFlagsLong => text(Some(facts.flags)),
            Plain::ResponseCodeDetails => text(facts.details),
            Plain::ConnectionTermination => text(facts.termination_details),
            Plain::TransportFailure => text(facts.transport_failure),
            Plain::BytesReceived => number(facts.bytes_received),
            Plain::BytesSent => number(facts.bytes_sent),
            Plain::Duration => millis(facts.duration),
            Plain::ResponseDuration => millis(facts.response_duration),
            Plain::UpstreamHost | Plain::UpstreamRemote => address(facts.upstream_host),
            Plain::UpstreamCluster | Plain::UpstreamClusterRaw => text(facts.upstream_cluster),
            Plain::UpstreamLocal => address(facts.upstream_local),
            Plain::DownstreamLocal => address(facts.downstream_local),
            Plain::DownstreamLocalBare => bare(facts.downstream_local),
            Plain::DownstreamLocalPort => facts.downstream_local.map(|address| Cow::Owned(address.port().to_string())),
            Plain::DownstreamRemote => address(facts.downstream_remote),
            Plain::DownstreamDirect => address(facts.downstream_direct.or(facts.downstream_remote)),
            Plain::DownstreamRemoteBare => bare(facts.downstream_remote),
            Plain::DownstreamDirectBare => bare(facts.downstream_direct.or(facts.downstream_remote)),
            Plain::ServerName => text(facts.server_name),
            Plain::RouteName => text(facts.route),
            Plain::Attempts => number(u64::from(facts.attempts)),
            Plain::GrpcStatus | Plain::GrpcStatusNumber => {
                facts.grpc_status.map(|status| Cow::Owned(status.to_string()))
            }
            Plain::PeerUri => text(facts.peer_uri),
            Plain::TlsVersion => text(facts.tls_version),
            Plain::PeerSubject => text(facts.peer_subject),
            Plain::LocalUri => text(facts.local_uri),
            Plain::Hostname => text(facts.hostname),
        }
    }
}

/// Days since 1970 as year, month, day (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `2026-01-31T12:00:00.000Z`.
pub fn write_time(time: SystemTime, out: &mut String) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil((since.as_secs() / 86_400) as i64);
    let second = since.as_secs() % 86_400;
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    );
}

fn write_strftime(time: SystemTime, pattern: &str, out: &mut String) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil((since.as_secs() / 86_400) as i64);
    let second = since.as_secs() % 86_400;
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let _ = match letters.next() {
            Some('Y') => write!(out, "{year:04}"),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('H') => write!(out, "{:02}", second / 3600),
            Some('M') => write!(out, "{:02}", second / 60 % 60),
            Some('S') => write!(out, "{:02}", second % 60),
            Some('s') => write!(out, "{}", since.as_secs()),
            Some('F') => write!(out, "{year:04}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60),
            Some('f' | '3') => write!(out, "{:03}", since.subsec_millis()),
            Some(other) => write!(out, "%{other}"),
            None => Ok(()),
        };
    }
}

/// Istio's default text format, written for this project from its documented field order.
pub const ISTIO_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \
\"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: &str, facts: &Facts<'_>) -> String {
        let mut out = String::new();
        Format::parse(format).unwrap().write(facts, &mut out);
        out
    }

    #[test]
    fn the_default_line() {
        let request = [(HeaderName::from_static("user-agent"), HeaderValue::from_static("curl"))];
        let facts = Facts {
            start: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_769_860_800_123)),
            duration: Some(Duration::from_millis(7)),
            method: "GET",
            path: "/a",
            authority: "shop",
            protocol: Some("HTTP/1.1"),
            request: &request,
            status: 200,
            details: Some("via_upstream"),
            bytes_sent: 5,
            upstream_host: Some(([10, 0, 0, 1], 80).into()),
            route: Some("default"),
            ..Facts::default()
        };
        assert_eq!(
            written(ISTIO_TEXT, &facts),
            "[2026-01-31T12:00:00.123Z] \"GET /a HTTP/1.1\" 200 - via_upstream - \"-\" 0 5 7 - \"-\" \"curl\" \"-\" \"shop\" \"10.0.0.1:80\" - - - - - default\n"
        );
    }

    #[test]
    fn lengths_alternatives_and_escapes() {
        let facts = Facts { path: "/abc?q", start: Some(SystemTime::UNIX_EPOCH), ..Facts::default() };
        assert_eq!(
            written("100%% %REQ(X-NONE?:PATH):3% %REQ_WITHOUT_QUERY(:PATH)% %START_TIME(%Y/%m)%", &facts),
            "100% /ab /abc 1970/01"
        );
        for bad in ["%NONSENSE%", "%REQ(a", "%RESPONSE_CODE:x%"] {
            assert!(Format::parse(bad).is_err(), "{bad}");
        }
        assert!(Format::parse("%DURATION%").unwrap().is_number() && !Format::parse("%DURATION% ").unwrap().is_number());
        assert_eq!(Format::parse(ISTIO_TEXT).unwrap().headers(true).count(), 4);
    }
}
