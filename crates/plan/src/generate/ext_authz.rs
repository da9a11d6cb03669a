//! The filters that ask somebody else about requests and connections (Envoy ext_authz; Istio
//! `pilot/pkg/security/authz/builder`): behind a filter that only notes which policy matches, for what it has noted.

use api::xds::core::{
    ApiVersion, GrpcService, HeaderValue, HttpUri, grpc_service::EnvoyGrpc, grpc_service::TargetSpecifier, http_uri,
};
use api::xds::{Any, pack};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz, HttpService, ext_authz::Services,
};
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz as NetworkExtAuthz;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListStringMatcher, MetadataMatcher, StringMatcher, ValueMatcher, string_matcher::MatchPattern, value_matcher,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;

use super::wire::some_duration;
use crate::snapshot::providers::Provider;

/// Name of the HTTP filter.
pub(super) const HTTP: &str = "envoy.filters.http.ext_authz";
/// Name of the network filter.
pub(super) const NETWORK: &str = "envoy.filters.network.ext_authz";

/// Which notes of the filter in front ask for the question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted {
    /// Name of the filter that notes.
    pub(super) filter: &'static str,
    /// Stands before its keys.
    pub(super) prefix: &'static str,
    /// How names of policies begin whose provider is to be asked.
    pub(super) policies: &'static str,
}

impl Noted {
    fn matcher(self) -> MetadataMatcher {
        let key = format!("{}shadow_effective_policy_id", self.prefix);
        let begins =
            StringMatcher { match_pattern: Some(MatchPattern::Prefix(self.policies.into())), ignore_case: false };
        MetadataMatcher {
            filter: self.filter.to_owned(),
            path: vec![PathSegment { segment: Some(Segment::Key(key)) }],
            value: Some(ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::StringMatch(begins)) }),
            ..MetadataMatcher::default()
        }
    }
}

/// Configuration of the HTTP filter.
pub(super) fn http(provider: &Provider, noted: Noted) -> Any {
    let mut filter = ExtAuthz {
        transport_api_version: ApiVersion::V3 as i32,
        failure_mode_allow: provider.fail_open,
        clear_route_cache: provider.clear_route_cache,
        status_on_error: provider.status_on_error.map(|code| HttpStatus { code: code as i32 }),
        filter_enabled_metadata: Some(noted.matcher()),
        with_request_body: provider.body.map(|body| BufferSettings {
            max_request_bytes: body.max_request_bytes,
            allow_partial_message: body.allow_partial_message,
            pack_as_bytes: body.pack_as_bytes,
        }),
        ..ExtAuthz::default()
    };
    let Some(http) = &provider.http else {
        filter.services = Some(Services::GrpcService(grpc(provider)));
        return pack(&filter);
    };
    let add = |(key, value): (&String, &String)| HeaderValue {
        key: key.clone(),
        value: value.clone(),
        ..HeaderValue::default()
    };
    let headers_to_add: Vec<HeaderValue> = http.include_additional_headers_in_check.iter().map(add).collect();
    let asked: Vec<String> =
        http.include_request_headers_in_check.iter().chain(&http.include_headers_in_check).cloned().collect();
    filter.allowed_headers = headers(&asked);
    let response = AuthorizationResponse {
        allowed_upstream_headers: headers(&http.headers_to_upstream_on_allow),
        allowed_client_headers: headers(&http.headers_to_downstream_on_deny),
        allowed_client_headers_on_success: headers(&http.headers_to_downstream_on_allow),
        ..AuthorizationResponse::default()
    };
    filter.services = Some(Services::HttpService(HttpService {
        server_uri: Some(HttpUri {
            // Nobody looks at it, but it must be there.
            uri: format!("http://{}", provider.service.host),
            timeout: some_duration(provider.timeout),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(provider.cluster.clone())),
        }),
        path_prefix: http.path_prefix.clone(),
        authorization_request: (!headers_to_add.is_empty())
            .then(|| AuthorizationRequest { headers_to_add, ..AuthorizationRequest::default() }),
        authorization_response: (response != AuthorizationResponse::default()).then_some(response),
        ..HttpService::default()
    }));
    pack(&filter)
}

/// Configuration of the network filter, if the provider can be asked about connections.
pub(super) fn network(provider: &Provider, noted: Noted) -> Option<Any> {
    if provider.http.is_some() {
        return None;
    }
    Some(pack(&NetworkExtAuthz {
        stat_prefix: "tcp.".into(),
        grpc_service: Some(grpc(provider)),
        failure_mode_allow: provider.fail_open,
        transport_api_version: ApiVersion::V3 as i32,
        filter_enabled_metadata: Some(noted.matcher()),
        ..NetworkExtAuthz::default()
    }))
}

fn grpc(provider: &Provider) -> GrpcService {
    let envoy = EnvoyGrpc {
        cluster_name: provider.cluster.clone(),
        // Without it the cluster's name would be sent, which is no host.
        authority: provider.service.host.to_string(),
        ..EnvoyGrpc::default()
    };
    GrpcService {
        timeout: some_duration(provider.timeout),
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(envoy)),
        ..GrpcService::default()
    }
}

/// Names of headers: exact, `PREFIX*` or `*SUFFIX`, in any case.
fn headers(names: &[String]) -> Option<ListStringMatcher> {
    let matcher = |name: &String| {
        let pattern = match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(suffix), _) => MatchPattern::Suffix(suffix.to_owned()),
            (_, Some(prefix)) => MatchPattern::Prefix(prefix.to_owned()),
            _ => MatchPattern::Exact(name.clone()),
        };
        StringMatcher { match_pattern: Some(pattern), ignore_case: true }
    };
    (!names.is_empty()).then(|| ListStringMatcher { patterns: names.iter().map(matcher).collect() })
}
