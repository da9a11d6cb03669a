//! The question and its answer over gRPC (`envoy.service.auth.v3.Authorization/Check`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use api::xds::core::header_value_option::HeaderAppendAction;
use api::xds::core::socket_address::PortSpecifier;
use api::xds::core::{Address, HeaderValueOption, SocketAddress, address};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::google::protobuf::Timestamp;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use prost::Message;
use rand::RngExt;

use super::changes::{Change, Changes, is_free};
use super::{Check, Said, Words, framed, tell_fields};
use crate::facts::ConnFacts;
use crate::filter::{Answer, Beginning, Exchange, HeaderChange, How, Outgoing};
use crate::metadata::Metadata;

/// Whether the body is told whole.
pub(super) const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const SERVICE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A question as a request.
pub(super) fn outgoing(check: CheckRequest, metadata: &HeaderMap) -> Outgoing {
    let mut head = http::Request::new(()).into_parts().0;
    head.method = Method::POST;
    head.version = Version::HTTP_2;
    head.uri = Uri::from_static("/envoy.service.auth.v3.Authorization/Check");
    head.headers.clone_from(metadata);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(TE, HeaderValue::from_static("trailers"));
    Outgoing { head, authority: None, body: framed(&check) }
}

/// A question about a connection.
pub(super) fn about_connection(connection: &ConnFacts) -> CheckRequest {
    CheckRequest { attributes: Some(peers(connection, String::new())) }
}

/// A question about a request, with the beginning of its body.
pub(super) fn about_request(check: &Check, exchange: &mut Exchange<'_>, body: Option<&Beginning>) -> CheckRequest {
    let head = &*exchange.head;
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let service = head.headers.get(&SERVICE).map(text).unwrap_or_default();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let scheme = head
        .headers
        .get(&PROTO)
        .map(text)
        .unwrap_or_else(|| if exchange.connection.tls { "https".to_owned() } else { "http".to_owned() });
    let mut headers: HashMap<String, String> = HashMap::new();
    let pseudo =
        [(":authority", exchange.authority), (":method", head.method.as_str()), (":path", &path), (":scheme", &scheme)];
    for (name, value) in pseudo.into_iter().filter(|(name, _)| check.tells(name)) {
        headers.insert(name.to_owned(), value.to_owned());
    }
    for (name, value) in &head.headers {
        if *name == PARTIAL || !check.tells(name.as_str()) {
            continue;
        }
        let joint = if *name == http::header::COOKIE { "; " } else { "," };
        let value = text(value);
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|known| {
                known.push_str(joint);
                known.push_str(&value);
            })
            .or_insert(value);
    }
    let mut request = HttpRequest {
        id: exchange.dice.random::<u64>().to_string(),
        method: head.method.as_str().to_owned(),
        path,
        host: exchange.authority.to_owned(),
        scheme,
        protocol: match head.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }
        .to_owned(),
        ..HttpRequest::default()
    };
    if let Some(body) = body {
        headers.insert(PARTIAL.as_str().to_owned(), body.partial.to_string());
        request.size = i64::try_from(body.read).unwrap_or(i64::MAX);
        match check.packs_bytes {
            true => request.raw_body = body.bytes.to_vec(),
            false => request.body = readable(&body.bytes),
        }
    }
    request.headers = headers;
    let attributes = AttributeContext {
        request: Some(Request { time: Some(timestamp(exchange.now)), http: Some(request) }),
        ..peers(exchange.connection, service)
    };
    CheckRequest { attributes: Some(attributes) }
}

/// Bytes as text: each that cannot be is an exclamation mark (Envoy).
fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('!', chunk.invalid().len()));
    }
    text
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

fn peers(connection: &ConnFacts, service: String) -> AttributeContext {
    let principal = connection.peer.as_ref().map(|peer| {
        let name = peer.uris.first().or(peer.dns.first()).unwrap_or(&peer.subject);
        name.clone()
    });
    let source = Peer {
        address: Some(address(connection.remote)),
        service,
        principal: principal.unwrap_or_default(),
        ..Peer::default()
    };
    let destination = Peer {
        address: Some(address(connection.destination)),
        principal: connection.own_uri.as_deref().unwrap_or_default().to_owned(),
        ..Peer::default()
    };
    AttributeContext { source: Some(source), destination: Some(destination), ..AttributeContext::default() }
}

fn address(of: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: of.ip().to_canonical().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(of.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// What an answer says; what it tells filters behind is told.
pub(super) fn said(answer: &Answer, metadata: &mut Metadata) -> Said {
    let response = match message(answer) {
        Ok(response) => response,
        Err(why) => return Said::Nothing(Box::default(), why),
    };
    let ok = match &response.http_response {
        Some(HttpResponse::OkResponse(ok)) => Some(ok),
        _ => None,
    };
    // The older place counts where it is filled (Envoy).
    #[allow(deprecated)]
    let fields = ok.and_then(|ok| ok.dynamic_metadata.as_ref()).or(response.dynamic_metadata.as_ref());
    if let Some(fields) = fields {
        tell_fields(&api::xds::struct_to_json(fields), metadata);
    }
    let code = response.status.as_ref().map_or(0, |status| status.code);
    match (code, response.http_response) {
        (0, Some(HttpResponse::OkResponse(ok))) => Said::Ok(Box::new(changes(&ok))),
        (0, _) => Said::Ok(Box::default()),
        (_, Some(HttpResponse::ErrorResponse(words))) => {
            Said::Nothing(Box::new(self::words(&words)), "says that it cannot decide".to_owned())
        }
        (_, Some(HttpResponse::DeniedResponse(words))) => Said::Denied(Box::new(self::words(&words))),
        (..) => Said::Denied(Box::default()),
    }
}

fn message(answer: &Answer) -> Result<CheckResponse, String> {
    let of = |name: &HeaderName| answer.trailers.get(name).or_else(|| answer.headers.get(name));
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    if answer.status != 200 {
        return Err(format!("gave no answer over gRPC but the HTTP status {}", answer.status));
    }
    match of(&GRPC_STATUS).map(text).as_deref() {
        Some("0") => {}
        Some(status) => {
            let says = of(&GRPC_MESSAGE).map(|message| format!(" ({})", text(message))).unwrap_or_default();
            return Err(format!("answered with the gRPC status {status}{says}"));
        }
        None => return Err("broke its answer off".to_owned()),
    }
    let body = &answer.body;
    let length = body.get(1..5).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    let whole = length.and_then(|length| body.get(5..5 + length as usize));
    match (body.first(), whole) {
        (Some(0), Some(message)) => {
            CheckResponse::decode(message).map_err(|error| format!("gave an answer that cannot be read: {error}"))
        }
        _ => Err("gave an answer that is no message of gRPC".to_owned()),
    }
}

/// What is done to a header of the request, or of the answer to one that is refused: the newer word for it is not heeded there, and
/// the older one only joins (Envoy 1.40).
fn how(option: &HeaderValueOption) -> How {
    if appends(option) == Some(true) { How::AppendIfPresent } else { How::Set }
}

/// The same for the application's answer.
fn how_of_answer(option: &HeaderValueOption) -> How {
    match (appends(option), HeaderAppendAction::try_from(option.append_action)) {
        (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => How::Add,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => How::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => How::SetIfPresent,
        (Some(false), _) | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) | Err(_)) => How::Set,
    }
}

fn appends(option: &HeaderValueOption) -> Option<bool> {
    #[allow(deprecated)]
    option.append.map(|append| append.value)
}

fn value_of(option: &HeaderValueOption) -> (&str, &[u8]) {
    let Some(header) = &option.header else { return ("", b"") };
    let raw = header.raw_value.as_slice();
    (&header.key, if header.value.is_empty() { raw } else { header.value.as_bytes() })
}

fn changes(ok: &OkHttpResponse) -> Changes {
    let change = |option: &HeaderValueOption| {
        let (name, value) = value_of(option);
        Change::of(name, value, how(option))
    };
    let of_answer = |option: &HeaderValueOption| {
        let (name, value) = value_of(option);
        Some(HeaderChange {
            name: HeaderName::from_bytes(name.as_bytes()).ok().filter(is_free)?,
            value: HeaderValue::from_bytes(value).ok()?,
            how: how_of_answer(option),
        })
    };
    Changes {
        headers: ok.headers.iter().filter_map(change).collect(),
        remove: ok.headers_to_remove.clone(),
        answer: ok.response_headers_to_add.iter().filter_map(of_answer).collect(),
        query_set: ok.query_parameters_to_set.iter().map(|one| (one.key.clone(), one.value.clone())).collect(),
        query_remove: ok.query_parameters_to_remove.clone(),
    }
}

fn words(denied: &DeniedHttpResponse) -> Words {
    let mut headers = HeaderMap::new();
    for option in &denied.headers {
        let (name, value) = value_of(option);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
            && is_free(&name)
        {
            HeaderChange { name, value, how: how(option) }.apply(&mut headers);
        }
    }
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok()).filter(|code| *code > 0);
    Words { status, headers, body: denied.body.clone().into() }
}
