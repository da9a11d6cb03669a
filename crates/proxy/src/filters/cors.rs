//! Cross-origin requests (Envoy `CorsPolicy`; the Fetch standard's protocol).

use std::sync::Arc;

use api::xds::Any;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    ORIGIN,
};
use http::response::Parts as ResponseHead;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::Compiled;
use crate::filter::{Exchange, HttpFilter, Notes, Reply, Step};
use crate::leaf::text_match;
use crate::snapshot::text_match::TextMatch;

#[derive(Debug)]
struct Cors {
    origins: Vec<TextMatch>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    forward_not_matching: bool,
}

/// Reads the policy.
///
/// # Errors
/// A value that cannot stand in a header, or a runtime switch that is neither all nor nothing.
pub fn compile(any: &Any) -> Result<Compiled, String> {
    let config: CorsPolicy = api::xds::unpack(any)?;
    let share = config
        .filter_enabled
        .as_ref()
        .and_then(|enabled| enabled.default_value.as_ref())
        .map_or(1_000_000, crate::leaf::millionths);
    match share {
        0 => return Ok(Compiled::Idle),
        1_000_000 => {}
        _ => return Err("a CORS policy can be on or off, not partly on".to_owned()),
    }
    let value = |text: &str| match text {
        "" => Ok(None),
        text => HeaderValue::from_str(text).map(Some).map_err(|_| format!("{text:?} cannot stand in a header")),
    };
    Ok(Compiled::Filter(Arc::new(Cors {
        origins: config.allow_origin_string_match.iter().map(text_match).collect::<Result<_, _>>()?,
        methods: value(&config.allow_methods)?,
        headers: value(&config.allow_headers)?,
        expose: value(&config.expose_headers)?,
        max_age: value(&config.max_age)?,
        credentials: config.allow_credentials.is_some_and(|allowed| allowed.value),
        forward_not_matching: config.forward_not_matching_preflights.is_none_or(|forward| forward.value),
    })))
}

impl HttpFilter for Cors {
    fn on_request(&self, exchange: &mut Exchange<'_>) -> Step {
        let headers = &exchange.head.headers;
        let Some(origin) = headers.get(ORIGIN) else { return Step::Continue };
        let is_preflight =
            exchange.head.method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let text = origin.to_str().unwrap_or("");
        if !self.origins.iter().any(|allowed| allowed.matches(text)) {
            return if is_preflight && !self.forward_not_matching {
                Step::Reply(Box::new(Reply::plain(200)))
            } else {
                Step::Continue
            };
        }
        if !is_preflight {
            exchange.notes.cors_origin = Some(origin.clone());
            return Step::Continue;
        }
        let mut reply = Reply::plain(200);
        reply.headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        self.set(&mut reply.headers, ACCESS_CONTROL_ALLOW_METHODS, &self.methods);
        self.set(&mut reply.headers, ACCESS_CONTROL_ALLOW_HEADERS, &self.headers);
        self.set(&mut reply.headers, ACCESS_CONTROL_MAX_AGE, &self.max_age);
        self.allow_credentials(&mut reply.headers);
        Step::Reply(Box::new(reply))
    }

    fn on_response(&self, head: &mut ResponseHead, notes: &Notes) {
        let Some(origin) = &notes.cors_origin else { return };
        head.headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        self.set(&mut head.headers, ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose);
        self.allow_credentials(&mut head.headers);
    }
}

impl Cors {
    fn set(&self, headers: &mut HeaderMap, name: HeaderName, value: &Option<HeaderValue>) {
        if let Some(value) = value {
            headers.insert(name, value.clone());
        }
    }

    fn allow_credentials(&self, headers: &mut HeaderMap) {
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}
