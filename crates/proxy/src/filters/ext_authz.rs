//! Somebody else is asked about requests and connections (Envoy ext_authz, the HTTP and the network filter): the question, over
//! gRPC or as a request like the one that is asked about, and what an answer means. What is not built is refused as a whole.

mod grpc;
mod http;
mod changes;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use api::xds::Any;
use api::xds::core::grpc_service::TargetSpecifier;
use api::xds::core::http_uri::HttpUpstreamType;
use api::xds::core::{GrpcService, HttpUri};
use bytes::Bytes;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as xds;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz as NetworkExtAuthz;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use prost::Message;
use serde_json::Value;
use xds::ext_authz::Services;

use super::Compiled;
use super::rbac::object_of;
use crate::facts::ConnFacts;
use crate::failure::{Failure, Refusal};
use crate::filter::{
    Addressee, Answer, Beginning, BodyLimits, ConnectionQuestion, Exchange, HttpFilter, Outgoing, Question, Reply, Step,
};
use crate::leaf::{duration, metadata_match, text_match};
use crate::metadata::Metadata;
use crate::snapshot::metadata_match::MetadataMatch;
use crate::snapshot::text_match::TextMatch;
use crate::telemetry::metrics::Asked;
use changes::Changes;

/// Under this name filters behind find what was answered.
const NAME: &str = "envoy.filters.http.ext_authz";
/// Tells the upstream that nobody was to be had (Envoy).
const PASSED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// The HTTP filter.
#[derive(Debug)]
struct ExtAuthz(Arc<Check>);

/// Whom to ask about a request, what, and what to do with the answer.
#[derive(Debug)]
struct Check {
    terms: Terms,
    form: Form,
    body: Option<BodyLimits>,
    packs_bytes: bool,
    /// A request that is changed is routed anew.
    reroutes: bool,
    passed_header: bool,
    status_on_error: u16,
    /// Headers that are told; none: all.
    told: Option<Vec<TextMatch>>,
    untold: Vec<TextMatch>,
}

/// What requests and connections have in common.
#[derive(Debug)]
struct Terms {
    to: Addressee,
    fails_open: bool,
    enabled: Option<MetadataMatch>,
}

#[derive(Debug)]
enum Form {
    Grpc(HeaderMap),
    Http(http::Form),
}

/// What somebody said.
#[derive(Debug)]
enum Said {
    /// It passes, changed.
    Ok(Box<Changes>),
    /// It does not, and this is to be answered.
    Denied(Box<Words>),
    /// Nobody can say; perhaps with words of their own.
    Nothing(Box<Words>, String),
}

/// What is answered to a request that does not pass.
#[derive(Debug, Default)]
struct Words {
    status: Option<u16>,
    headers: HeaderMap,
    body: Bytes,
}

/// Reads the HTTP filter's configuration.
///
/// # Errors
/// Anything that is not built.
pub fn compile(any: &Any) -> Result<Compiled, String> {
    let config: xds::ExtAuthz = api::xds::unpack(any)?;
    if config == xds::ExtAuthz::default() {
        return Ok(Compiled::Idle);
    }
    let known = xds::ExtAuthz {
        services: config.services.clone(),
        transport_api_version: config.transport_api_version,
        failure_mode_allow: config.failure_mode_allow,
        failure_mode_allow_header_add: config.failure_mode_allow_header_add,
        with_request_body: config.with_request_body,
        clear_route_cache: config.clear_route_cache,
        status_on_error: config.status_on_error,
        filter_enabled_metadata: config.filter_enabled_metadata.clone(),
        stat_prefix: config.stat_prefix.clone(),
        allowed_headers: config.allowed_headers.clone(),
        disallowed_headers: config.disallowed_headers.clone(),
        ..xds::ExtAuthz::default()
    };
    if known != config {
        return Err("of ext_authz, only the services, the body, the headers, the failure mode, the status on errors, filter_enabled_metadata and clear_route_cache are built".to_owned());
    }
    let enabled = config.filter_enabled_metadata.as_ref().map(metadata_match).transpose()?;
    let (to, form) = match &config.services {
        None => return Err("ext_authz names no service".to_owned()),
        Some(Services::GrpcService(service)) => {
            version(config.transport_api_version)?;
            let (to, metadata) = grpc_service(service)?;
            (to, Form::Grpc(metadata))
        }
        Some(Services::HttpService(service)) => {
            let (to, form) = http_service(service)?;
            (to, Form::Http(form))
        }
    };
    let body = config.with_request_body.unwrap_or_default();
    if config.with_request_body.is_some() && body.max_request_bytes == 0 {
        return Err("with_request_body needs max_request_bytes".to_owned());
    }
    let limits = BodyLimits { most: body.max_request_bytes as usize, partial: body.allow_partial_message };
    let check = Check {
        terms: Terms { to, fails_open: config.failure_mode_allow, enabled },
        body: config.with_request_body.map(|_| limits),
        packs_bytes: body.pack_as_bytes,
        reroutes: config.clear_route_cache,
        passed_header: config.failure_mode_allow_header_add,
        status_on_error: config.status_on_error.map_or(Ok(403), |status| self::status(status.code))?,
        told: told(config.allowed_headers.as_ref(), &form)?,
        untold: list(config.disallowed_headers.as_ref())?,
        form,
    };
    Ok(Compiled::Filter(Arc::new(ExtAuthz(Arc::new(check)))))
}

/// AUTO is the third as well.
fn version(version: i32) -> Result<(), String> {
    if version == 0 || version == 2 { Ok(()) } else { Err(format!("ext_authz of the version {version} is not built")) }
}

fn status(code: i32) -> Result<u16, String> {
    let code = u16::try_from(code).ok().filter(|code| (200..600).contains(code));
    code.ok_or_else(|| "status_on_error is no HTTP status".to_owned())
}

fn list(matchers: Option<&ListStringMatcher>) -> Result<Vec<TextMatch>, String> {
    matchers.into_iter().flat_map(|list| &list.patterns).map(text_match).collect()
}

/// The headers that are told: to whoever is asked over gRPC all, unless some are named; over HTTP these and a few besides.
fn told(matchers: Option<&ListStringMatcher>, form: &Form) -> Result<Option<Vec<TextMatch>>, String> {
    let named = list(matchers)?;
    Ok(match form {
        Form::Grpc(_) if named.is_empty() => None,
        _ => Some(named),
    })
}

fn grpc_service(service: &GrpcService) -> Result<(Addressee, HeaderMap), String> {
    let Some(TargetSpecifier::EnvoyGrpc(envoy)) = &service.target_specifier else {
        return Err("of gRPC services, envoy_grpc is built only".to_owned());
    };
    if service.retry_policy.is_some() || envoy.retry_policy.is_some() || envoy.skip_envoy_headers {
        return Err("of gRPC services, retries and skip_envoy_headers are not built".to_owned());
    }
    let mut metadata = HeaderMap::new();
    for one in &service.initial_metadata {
        let bad = |_| format!("{:?} cannot be sent as metadata", one.key);
        let name: HeaderName =
            one.key.parse().map_err(|error: ::http::header::InvalidHeaderName| bad(error.to_string()))?;
        let value = HeaderValue::from_str(&one.value).map_err(|error| bad(error.to_string()))?;
        metadata.append(name, value);
    }
    let authority = if envoy.authority.is_empty() { &envoy.cluster_name } else { &envoy.authority };
    let timeout = service.timeout.as_ref().map_or(Ok(Duration::ZERO), duration)?;
    Ok((addressee(&envoy.cluster_name, authority, true, timeout)?, metadata))
}

fn http_service(service: &xds::HttpService) -> Result<(Addressee, http::Form), String> {
    let uri: &HttpUri = service.server_uri.as_ref().ok_or("an HTTP service of ext_authz has no server_uri")?;
    let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
        return Err("an HTTP service of ext_authz names no cluster".to_owned());
    };
    let timeout = uri.timeout.as_ref().map_or(Ok(Duration::ZERO), duration)?;
    // The question has the host of the request.
    Ok((addressee(cluster, cluster, false, timeout)?, http::Form::of(service)?))
}

fn addressee(cluster: &str, authority: &str, http2: bool, timeout: Duration) -> Result<Addressee, String> {
    if cluster.is_empty() {
        return Err("ext_authz names no cluster".to_owned());
    }
    // The name of a cluster of Istio's is no host, but ends in one.
    let host = authority.rsplit('|').next().unwrap_or_default();
    let authority = HeaderValue::from_str(host).map_err(|_| format!("{authority:?} cannot be a host"))?;
    Ok(Addressee { cluster: cluster.into(), authority, http2, timeout })
}

impl Terms {
    /// Whether somebody is to be asked.
    fn is_enabled(&self, metadata: &Metadata) -> bool {
        self.enabled.as_ref().is_none_or(|enabled| enabled.matches(Some(metadata)))
    }

    /// The policy for which somebody is asked, as the filter in front has noted it.
    fn policy<'a>(&self, metadata: &'a Metadata) -> Option<&'a str> {
        let enabled = self.enabled.as_ref()?;
        metadata.at(&enabled.filter, &enabled.path)?.as_str()
    }

    /// Who was asked, as the mesh's settings name it.
    fn asked(&self, metadata: &Metadata) -> String {
        let name = self.policy(metadata).and_then(|policy| policy.split_once("-ns["));
        let name =
            name.map(|(begin, _)| begin.trim_start_matches("istio-ext-authz-").trim_start_matches("mesh-decision-"));
        match name {
            Some(name) => format!("The provider {name} ({})", self.to.cluster),
            None => format!("The cluster {}", self.to.cluster),
        }
    }

    fn refusal(&self, failure: Failure, said: &str, metadata: &Metadata) -> Refusal {
        Refusal {
            failure,
            details: failure.details().into(),
            object: self.policy(metadata).and_then(object_of),
            told: Some(format!("{} {said}.", self.asked(metadata)).into()),
        }
    }
}

impl HttpFilter for ExtAuthz {
    fn on_request(&self, exchange: &mut Exchange<'_>) -> Step {
        if !self.0.terms.is_enabled(&exchange.notes.metadata) {
            exchange.notes.decided.asked.disabled += 1;
            return Step::Continue;
        }
        Step::Ask(Arc::clone(&self.0) as Arc<dyn Question>)
    }
}

impl Question for Check {
    fn addressee(&self) -> &Addressee {
        &self.terms.to
    }

    fn body(&self) -> Option<BodyLimits> {
        self.body
    }

    fn ask(&self, exchange: &mut Exchange<'_>, body: Option<&Beginning>) -> Outgoing {
        match &self.form {
            Form::Grpc(metadata) => grpc::outgoing(grpc::about_request(self, exchange, body), metadata),
            Form::Http(form) => form.outgoing(self, exchange, body),
        }
    }

    fn take(&self, answer: Result<Answer, Failure>, exchange: &mut Exchange<'_>) -> Option<Box<Reply>> {
        let said = match (answer, &self.form) {
            (Err(failure), _) => {
                let why = failure.sentence().trim_end_matches('.');
                Said::Nothing(Box::default(), format!("gave no answer: {why}"))
            }
            (Ok(answer), Form::Grpc(_)) => grpc::said(&answer, &mut exchange.notes.metadata),
            (Ok(answer), Form::Http(form)) => form.said(&answer),
        };
        let decided = &mut exchange.notes.decided.asked;
        match said {
            Said::Ok(changes) => {
                decided.ok += 1;
                exchange.notes.rerouted |= self.reroutes && changes.changes_request();
                changes.apply(exchange);
                None
            }
            Said::Denied(words) => {
                decided.denied += 1;
                let status = words.status.unwrap_or(403);
                Some(self.refuse(
                    Failure::ExternalDenied,
                    *words,
                    status,
                    &format!("does not allow it: it answered {status}"),
                    exchange,
                ))
            }
            Said::Nothing(_, why) if self.terms.fails_open => {
                tracing::debug!(cluster = %self.terms.to.cluster, why, "a request passes without having been asked about");
                note_passed(decided);
                if self.passed_header {
                    exchange.head.headers.insert(PASSED, HeaderValue::from_static("true"));
                }
                None
            }
            Said::Nothing(words, why) => {
                decided.error += 1;
                let status = words.status.unwrap_or(self.status_on_error);
                Some(self.refuse(Failure::ExternalError, *words, status, &why, exchange))
            }
        }
    }

    fn too_large(&self, exchange: &mut Exchange<'_>) -> Box<Reply> {
        let most = self.body.map_or(0, |limits| limits.most);
        let said = format!("is sent no more than {most} bytes");
        let refusal = self.terms.refusal(Failure::BodyTooLarge, &said, &exchange.notes.metadata);
        exchange.notes.refusal = Some(Arc::new(refusal));
        Box::new(Reply::failure(Failure::BodyTooLarge))
    }
}

fn note_passed(decided: &mut Asked) {
    decided.error += 1;
    decided.failure_mode_allowed += 1;
}

impl Check {
    fn refuse(
        &self,
        failure: Failure,
        words: Words,
        status: u16,
        said: &str,
        exchange: &mut Exchange<'_>,
    ) -> Box<Reply> {
        let refusal = self.terms.refusal(failure, said, &exchange.notes.metadata);
        exchange.notes.refusal = Some(Arc::new(refusal));
        Box::new(Reply { headers: words.headers, body: words.body, failure: Some(failure), ..Reply::plain(status) })
    }

    /// Whether a header is told.
    fn tells(&self, name: &str) -> bool {
        self.told.as_ref().is_none_or(|told| told.iter().any(|one| one.matches(name)))
            && !self.untold.iter().any(|one| one.matches(name))
    }
}

/// Whom to ask about a connection.
#[derive(Debug)]
struct ConnectionCheck {
    terms: Terms,
    metadata: HeaderMap,
}

/// Reads the network filter's configuration.
///
/// # Errors
/// Anything that is not built.
pub fn network(any: &Any) -> Result<Arc<dyn ConnectionQuestion>, String> {
    let config: NetworkExtAuthz = api::xds::unpack(any)?;
    let known = NetworkExtAuthz {
        stat_prefix: config.stat_prefix.clone(),
        grpc_service: config.grpc_service.clone(),
        failure_mode_allow: config.failure_mode_allow,
        transport_api_version: config.transport_api_version,
        filter_enabled_metadata: config.filter_enabled_metadata.clone(),
        ..NetworkExtAuthz::default()
    };
    if known != config {
        return Err(
            "of network ext_authz, only the service, the failure mode and filter_enabled_metadata are built".to_owned()
        );
    }
    version(config.transport_api_version)?;
    let (to, metadata) = grpc_service(config.grpc_service.as_ref().ok_or("ext_authz names no service")?)?;
    let enabled = config.filter_enabled_metadata.as_ref().map(metadata_match).transpose()?;
    let terms = Terms { to, fails_open: config.failure_mode_allow, enabled };
    Ok(Arc::new(ConnectionCheck { terms, metadata }))
}

impl ConnectionQuestion for ConnectionCheck {
    fn is_enabled(&self, metadata: &Metadata) -> bool {
        self.terms.is_enabled(metadata)
    }

    fn addressee(&self) -> &Addressee {
        &self.terms.to
    }

    fn ask(&self, connection: &ConnFacts) -> Outgoing {
        grpc::outgoing(grpc::about_connection(connection), &self.metadata)
    }

    fn take(&self, answer: Result<Answer, Failure>, metadata: &mut Metadata, asked: &mut Asked) -> Option<Refusal> {
        let said = match answer {
            Err(failure) => {
                let why = failure.sentence().trim_end_matches('.');
                Said::Nothing(Box::default(), format!("gave no answer: {why}"))
            }
            Ok(answer) => grpc::said(&answer, metadata),
        };
        match said {
            Said::Ok(_) => {
                asked.ok += 1;
                None
            }
            Said::Denied(_) => {
                asked.denied += 1;
                Some(self.terms.refusal(Failure::ExternalDenied, "does not allow it", metadata))
            }
            Said::Nothing(..) if self.terms.fails_open => {
                note_passed(asked);
                None
            }
            Said::Nothing(_, why) => {
                asked.error += 1;
                Some(self.terms.refusal(Failure::ExternalError, &why, metadata))
            }
        }
    }
}

/// A message with gRPC's five bytes in front.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(5 + length);
    framed.push(0);
    framed.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message.encode_to_vec());
    framed.into()
}

/// Fields of a protobuf struct, as filters behind are told them.
fn tell_fields(fields: &Value, metadata: &mut Metadata) {
    for (name, value) in fields.as_object().into_iter().flatten() {
        metadata.tell(NAME, &name.as_str().into(), Arc::new(value.clone()));
    }
}
