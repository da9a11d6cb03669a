//! The question as a request like the one that is asked about, and its answer: 200 allows it, 5xx says nothing, all else refuses.

use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as xds;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, LOCATION, WWW_AUTHENTICATE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};

use super::changes::{Change, Changes, is_free};
use super::grpc::PARTIAL;
use super::{Check, Said, Words, list};
use crate::filter::{Answer, Beginning, Exchange, HeaderChange, How, Outgoing};
use crate::snapshot::text_match::TextMatch;

/// Headers that the application is not to get, as the answer lists them.
const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// What is particular to it.
#[derive(Debug)]
pub(super) struct Form {
    prefix: String,
    added: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the answer for the application: in the place of the request's, or joined to them.
    upstream: Vec<TextMatch>,
    joined: Vec<TextMatch>,
    /// For whoever is refused; none: all.
    refused: Vec<TextMatch>,
    /// For whoever is let in.
    let_in: Vec<TextMatch>,
}

impl Form {
    pub(super) fn of(service: &xds::HttpService) -> Result<Self, String> {
        let request = service.authorization_request.clone().unwrap_or_default();
        let response = service.authorization_response.clone().unwrap_or_default();
        if !service.path_override.is_empty() || service.retry_policy.is_some() {
            return Err("of HTTP services of ext_authz, path_override and retries are not built".to_owned());
        }
        #[allow(deprecated)]
        let older = request.allowed_headers.is_some();
        if older || response.dynamic_metadata_from_headers.is_some() {
            return Err(
                "of HTTP services of ext_authz, the older allowed_headers and metadata from headers are not built"
                    .to_owned(),
            );
        }
        let added = |one: &api::xds::core::HeaderValue| {
            let bad = || format!("{:?} with its value {:?} is no header", one.key, one.value);
            // Texts with a command in them would be filled in by Envoy.
            if one.value.contains('%') {
                return Err(bad());
            }
            Ok((one.key.parse().map_err(|_| bad())?, HeaderValue::from_str(&one.value).map_err(|_| bad())?))
        };
        Ok(Self {
            prefix: service.path_prefix.clone(),
            added: request.headers_to_add.iter().map(added).collect::<Result<_, String>>()?,
            upstream: list(response.allowed_upstream_headers.as_ref())?,
            joined: list(response.allowed_upstream_headers_to_append.as_ref())?,
            refused: list(response.allowed_client_headers.as_ref())?,
            let_in: list(response.allowed_client_headers_on_success.as_ref())?,
        })
    }

    /// The question.
    pub(super) fn outgoing(&self, check: &Check, exchange: &Exchange<'_>, body: Option<&Beginning>) -> Outgoing {
        let asked = &*exchange.head;
        let mut head = http::Request::new(()).into_parts().0;
        head.method = asked.method.clone();
        head.version = Version::HTTP_11;
        let path = asked.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        head.uri = PathAndQuery::try_from(format!("{}{path}", self.prefix)).map(Uri::from).unwrap_or_default();
        for (name, value) in &asked.headers {
            let told = *name == AUTHORIZATION || check.tells(name.as_str());
            if told && *name != CONTENT_LENGTH && *name != PARTIAL {
                append(&mut head.headers, name, value);
            }
        }
        if let Some(body) = body {
            let partial = HeaderValue::from_static(if body.partial { "true" } else { "false" });
            head.headers.insert(PARTIAL, partial);
        }
        for (name, value) in &self.added {
            head.headers.insert(name.clone(), value.clone());
        }
        let bytes = body.map(|body| body.bytes.clone()).unwrap_or_default();
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        Outgoing { head, authority: HeaderValue::from_str(exchange.authority).ok(), body: bytes }
    }

    pub(super) fn said(&self, answer: &Answer) -> Said {
        match answer.status {
            500.. => Said::Nothing(Box::default(), format!("answered {}", answer.status)),
            200 => Said::Ok(Box::new(self.changes(answer))),
            status => Said::Denied(Box::new(Words {
                status: Some(status),
                headers: self.words(answer),
                body: answer.body.clone(),
            })),
        }
    }

    fn changes(&self, answer: &Answer) -> Changes {
        let matches = |matchers: &[TextMatch], name: &HeaderName| matchers.iter().any(|one| one.matches(name.as_str()));
        let mut changes = Changes::default();
        for value in answer.headers.get_all(REMOVE) {
            let names = value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
            changes.remove.extend(names.map(str::to_owned));
        }
        for (name, value) in answer.headers.iter().filter(|(name, _)| **name != REMOVE) {
            if matches(&self.upstream, name) {
                changes.headers.extend(Change::of(name.as_str(), value.as_bytes(), How::Set));
            }
            if matches(&self.joined, name) {
                changes.headers.extend(Change::of(name.as_str(), value.as_bytes(), How::AppendIfPresent));
            }
            if matches(&self.let_in, name) && is_free(name) {
                changes.answer.push(HeaderChange { name: name.clone(), value: value.clone(), how: How::Add });
            }
        }
        changes
    }

    /// The answer's headers for whoever is refused.
    fn words(&self, answer: &Answer) -> HeaderMap {
        let named = |name: &HeaderName| {
            self.refused.iter().any(|one| one.matches(name.as_str())) || *name == WWW_AUTHENTICATE || *name == LOCATION
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &answer.headers {
            if is_free(name) && (self.refused.is_empty() || named(name)) {
                headers.append(name.clone(), value.clone());
            }
        }
        headers
    }
}

/// One header for all of its name.
fn append(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    match headers.get_mut(name) {
        None => {
            headers.insert(name.clone(), value.clone());
        }
        Some(known) => {
            let joint: &[u8] = if *name == COOKIE { b"; " } else { b"," };
            if let Ok(joined) = HeaderValue::from_bytes(&[known.as_bytes(), joint, value.as_bytes()].concat()) {
                *known = joined;
            }
        }
    }
}
