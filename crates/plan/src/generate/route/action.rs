//! What a route does: forward, redirect or answer; with rewrites, retries, mirrors, faults and header changes.

use std::collections::HashMap;

use api::cluster_name::ClusterName;
use api::crd::virtual_service::{
    CorsPolicy as WrittenCors, DerivePort, Destination, HeaderOperations, HttpFaultInjection, HttpMatchRequest,
    HttpRedirect, HttpRetry, HttpRoute, RouteDestination, UnmatchedPreflights,
};
use api::name::Hostname;
use api::value::{Duration, StringMatch};
use api::xds::core::{
    DataSource, HeaderValue, HeaderValueOption, RuntimeFractionalPercent, data_source::Specifier,
    header_value_option::HeaderAppendAction,
};
use api::xds::{Any, pack};
use base64::Engine;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    Decorator, DirectResponseAction, RedirectAction, RetryPolicy, Route, RouteAction, WeightedCluster,
};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy;
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};

use super::super::wire::{some_bool, some_duration, some_u32};
use super::matcher;
use crate::model::grpc_status;
use crate::scope::Scope;
use crate::snapshot::VirtualService;

/// Istio's default conditions for another try.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

/// Writes what a rule does into its route.
pub(super) fn write(
    scope: &Scope,
    rules: &VirtualService,
    rule: &HttpRoute,
    one: Option<&HttpMatchRequest>,
    port: u16,
    route: &mut Route,
) {
    if let Some(headers) = &rule.headers {
        let (set, remove) = changes(headers.request.as_ref());
        // The host is a rewrite, not a header.
        (route.request_headers_to_add, route.request_headers_to_remove) = (set, remove);
        (route.response_headers_to_add, route.response_headers_to_remove) = changes(headers.response.as_ref());
    }
    let mut per_filter: HashMap<String, Any> = HashMap::new();
    if let Some(fault) = rule.fault.as_ref().and_then(fault) {
        per_filter.insert("envoy.filters.http.fault".into(), pack(&fault));
    }
    if let Some(written) = &rule.cors_policy {
        per_filter.insert("envoy.filters.http.cors".into(), pack(&cors(written)));
    }
    route.typed_per_filter_config = per_filter;
    if let Some(redirect) = &rule.redirect {
        route.action = redirect_action(redirect, port).map(Action::Redirect);
    } else if let Some(response) = &rule.direct_response {
        let body = response.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
            (Some(text), _) => Some(Specifier::InlineString(text.clone())),
            (None, Some(text)) => {
                base64::engine::general_purpose::STANDARD.decode(text).ok().map(Specifier::InlineBytes)
            }
            (None, None) => None,
        });
        let body = body.map(|specifier| DataSource { specifier: Some(specifier), ..DataSource::default() });
        route.action = Some(Action::DirectResponse(DirectResponseAction {
            status: response.status,
            body,
            ..DirectResponseAction::default()
        }));
    } else {
        forward(scope, rules, rule, one, port, route);
    }
}

fn forward(
    scope: &Scope,
    rules: &VirtualService,
    rule: &HttpRoute,
    one: Option<&HttpMatchRequest>,
    port: u16,
    route: &mut Route,
) {
    let mut action = RouteAction { timeout: some_duration(rule.timeout.unwrap_or_default()), ..RouteAction::default() };
    if rule.timeout.is_none_or(Duration::is_zero) {
        // Without a timeout of the route, the caller's own `grpc-timeout` counts.
        action.max_stream_duration = Some(MaxStreamDuration {
            max_stream_duration: some_duration(Duration::default()),
            grpc_timeout_header_max: some_duration(Duration::default()),
            ..MaxStreamDuration::default()
        });
    }
    action.retry_policy = retries(scope, rule.retries.as_ref());
    // Of two ways to write the host, the rewrite counts.
    if let Some(host) = rule.headers.as_ref().and_then(|headers| headers.request.as_ref()).and_then(host_header) {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
    }
    if let Some(rewrite) = &rule.rewrite {
        if !rewrite.authority.is_empty() {
            action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(rewrite.authority.clone()));
        }
        if let Some(by_regex) = &rewrite.uri_regex_rewrite {
            action.regex_rewrite = Some(RegexMatchAndSubstitute {
                pattern: Some(matcher::regex(&by_regex.matches)),
                substitution: by_regex.rewrite.clone(),
            });
        } else if !rewrite.uri.is_empty() {
            rewrite_uri(&rewrite.uri, one.and_then(|one| one.uri.as_ref()), &mut action);
        }
    }
    action.request_mirror_policies = mirrors(scope, rules, rule, port);
    let live: Vec<_> =
        rule.route.iter().filter(|destination| destination.weight > 0 || rule.route.len() == 1).collect();
    match live.as_slice() {
        [] => {
            // All weights are nothing: nobody is to get the requests.
            route.action = Some(Action::DirectResponse(DirectResponseAction {
                status: if rule.route.is_empty() { 404 } else { 503 },
                ..DirectResponseAction::default()
            }));
            return;
        }
        [only] => {
            let cluster = cluster_of(scope, rules, &only.destination, port);
            route.decorator =
                Some(Decorator { operation: operation(scope, rules, &only.destination, port), ..Decorator::default() });
            if let Some(headers) = &only.headers {
                let (mut set, mut remove) = changes(headers.request.as_ref());
                route.request_headers_to_add.append(&mut set);
                route.request_headers_to_remove.append(&mut remove);
                let (mut set, mut remove) = changes(headers.response.as_ref());
                route.response_headers_to_add.append(&mut set);
                route.response_headers_to_remove.append(&mut remove);
                if let Some(host) = headers.request.as_ref().and_then(host_header) {
                    action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
                }
            }
            action.cluster_specifier = Some(ClusterSpecifier::Cluster(cluster));
        }
        several => {
            let clusters = several.iter().map(|one| {
                let headers = one.headers.clone().unwrap_or_default();
                let (request_headers_to_add, request_headers_to_remove) = changes(headers.request.as_ref());
                let (response_headers_to_add, response_headers_to_remove) = changes(headers.response.as_ref());
                let host = headers.request.as_ref().and_then(host_header);
                ClusterWeight {
                    name: cluster_of(scope, rules, &one.destination, port),
                    weight: some_u32(one.weight),
                    request_headers_to_add,
                    request_headers_to_remove,
                    response_headers_to_add,
                    response_headers_to_remove,
                    host_rewrite_specifier: host.map(envoy_types::pb::envoy::config::route::v3::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                    ..ClusterWeight::default()
                }
            });
            route.decorator = several.first().map(|one| Decorator {
                operation: operation(scope, rules, &one.destination, port),
                ..Decorator::default()
            });
            action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: clusters.collect(),
                ..WeightedCluster::default()
            }));
        }
    }
    route.action = Some(Action::Route(action));
}

/// A prefix's new beginning, or the whole new path where the whole path was matched.
fn rewrite_uri(uri: &str, matched: Option<&StringMatch>, action: &mut RouteAction) {
    match matched {
        // `/a/` rewritten to `/` must not leave `//`; Envoy replaces just the prefix.
        Some(StringMatch::Regex(_)) => {
            action.regex_rewrite =
                Some(RegexMatchAndSubstitute { pattern: Some(matcher::regex("^/.*$")), substitution: uri.to_owned() });
        }
        _ => action.prefix_rewrite = uri.to_owned(),
    }
}

fn operation(scope: &Scope, rules: &VirtualService, destination: &Destination, port: u16) -> String {
    let host = Hostname::resolve(&destination.host, &rules.namespace, &scope.snapshot.domain);
    format!("{host}:{}/*", destination_port(scope, rules, destination, port))
}

/// The port of a destination: the one named, the only one of the service, else the one the request came to.
fn destination_port(scope: &Scope, rules: &VirtualService, destination: &Destination, port: u16) -> u16 {
    if let Some(selector) = destination.port.as_ref().filter(|selector| selector.number > 0) {
        return selector.number;
    }
    let host = Hostname::resolve(&destination.host, &rules.namespace, &scope.snapshot.domain);
    match scope.service(&host).map(|service| service.ports.as_slice()) {
        Some([only]) => only.number,
        _ => port,
    }
}

/// The cluster of a destination.
pub(super) fn cluster_of(scope: &Scope, rules: &VirtualService, destination: &Destination, port: u16) -> String {
    let host = Hostname::resolve(&destination.host, &rules.namespace, &scope.snapshot.domain);
    ClusterName::outbound(destination_port(scope, rules, destination, port), &destination.subset, host.as_str())
        .to_string()
}

/// The destinations of a TLS or TCP rule.
pub(in crate::generate) fn weighted_tcp(
    scope: &Scope,
    rules: &VirtualService,
    routes: &[RouteDestination],
    port: u16,
) -> Option<tcp_proxy::ClusterSpecifier> {
    let live: Vec<&RouteDestination> = routes.iter().filter(|route| route.weight > 0 || routes.len() == 1).collect();
    let cluster = |route: &RouteDestination| cluster_of(scope, rules, &route.destination, port);
    match live.as_slice() {
        [] => None,
        [only] => Some(tcp_proxy::ClusterSpecifier::Cluster(cluster(only))),
        several => Some(tcp_proxy::ClusterSpecifier::WeightedClusters(tcp_proxy::WeightedCluster {
            clusters: several
                .iter()
                .map(|route| tcp_proxy::weighted_cluster::ClusterWeight {
                    name: cluster(route),
                    weight: route.weight,
                    ..Default::default()
                })
                .collect(),
        })),
    }
}

fn mirrors(scope: &Scope, rules: &VirtualService, rule: &HttpRoute, port: u16) -> Vec<RequestMirrorPolicy> {
    let policy = |destination: &Destination, percent: f64| RequestMirrorPolicy {
        cluster: cluster_of(scope, rules, destination, port),
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(fraction(percent)),
            ..RuntimeFractionalPercent::default()
        }),
        trace_sampled: some_bool(false),
        ..RequestMirrorPolicy::default()
    };
    let single = rule.mirror.as_ref().map(|mirror| {
        let percent =
            rule.mirror_percentage.map(|percent| percent.value).or(rule.mirror_percent.map(f64::from)).unwrap_or(100.0);
        policy(mirror, percent)
    });
    single
        .into_iter()
        .chain(
            rule.mirrors
                .iter()
                .map(|mirror| policy(&mirror.destination, mirror.percentage.map_or(100.0, |percent| percent.value))),
        )
        .filter(|policy| {
            policy
                .runtime_fraction
                .as_ref()
                .and_then(|fraction| fraction.default_value)
                .is_some_and(|value| value.numerator > 0)
        })
        .collect()
}

/// Percent with the precision that Envoy has, a millionth.
fn fraction(percent: f64) -> FractionalPercent {
    FractionalPercent {
        numerator: (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32,
        denominator: DenominatorType::Million as i32,
    }
}

/// Retries of routes that do not say: the mesh's.
pub(super) fn default_retries(scope: &Scope) -> Option<RetryPolicy> {
    retries(scope, None)
}

/// A request that the application never saw may be sent to it again.
pub(super) fn inbound_retries() -> RetryPolicy {
    RetryPolicy { retry_on: "reset-before-request".into(), num_retries: some_u32(2), ..RetryPolicy::default() }
}

fn retries(scope: &Scope, written: Option<&HttpRetry>) -> Option<RetryPolicy> {
    let written = written.or(scope.snapshot.mesh.default_http_retry_policy.as_ref());
    let mut policy = RetryPolicy {
        retry_on: RETRY_ON.into(),
        num_retries: some_u32(2),
        retry_host_predicate: vec![previous_hosts()],
        host_selection_retry_max_attempts: 5,
        ..RetryPolicy::default()
    };
    let Some(written) = written else { return Some(policy) };
    if written.attempts <= 0 {
        return None;
    }
    policy.num_retries = some_u32(u32::try_from(written.attempts).unwrap_or(0));
    policy.per_try_timeout = written.per_try_timeout.and_then(some_duration);
    if let Some(base) = written.backoff {
        policy.retry_back_off = Some(RetryBackOff { base_interval: some_duration(base), ..RetryBackOff::default() });
    }
    if written.retry_ignore_previous_hosts == Some(false) {
        policy.retry_host_predicate.clear();
        policy.host_selection_retry_max_attempts = 0;
    }
    if !written.retry_on.is_empty() {
        let (codes, words): (Vec<&str>, Vec<&str>) = written
            .retry_on
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .partition(|word| word.parse::<u32>().is_ok());
        policy.retriable_status_codes = codes.iter().filter_map(|code| code.parse().ok()).collect();
        policy.retry_on = words.join(",");
        if !codes.is_empty() && !words.contains(&"retriable-status-codes") {
            policy.retry_on = if policy.retry_on.is_empty() {
                "retriable-status-codes".into()
            } else {
                format!("{},retriable-status-codes", policy.retry_on)
            };
        }
    }
    Some(policy)
}

fn previous_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".into(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(&PreviousHostsPredicate {}))),
    }
}

/// Headers to add and to remove. The authority is changed by a rewrite, not here.
fn changes(operations: Option<&HeaderOperations>) -> (Vec<HeaderValueOption>, Vec<String>) {
    let Some(operations) = operations else { return (Vec::new(), Vec::new()) };
    let option = |key: &String, value: &String, action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue { key: key.clone(), value: value.clone(), ..HeaderValue::default() }),
        append_action: action as i32,
        ..HeaderValueOption::default()
    };
    let add = operations.add.iter().map(|(key, value)| option(key, value, HeaderAppendAction::AppendIfExistsOrAdd));
    let set = operations
        .set
        .iter()
        .filter(|(key, _)| !is_host(key))
        .map(|(key, value)| option(key, value, HeaderAppendAction::OverwriteIfExistsOrAdd));
    (add.chain(set).collect(), operations.remove.clone())
}

fn is_host(key: &str) -> bool {
    key.eq_ignore_ascii_case("host") || key.eq_ignore_ascii_case(":authority")
}

fn host_header(operations: &HeaderOperations) -> Option<String> {
    operations.set.iter().find(|(key, _)| is_host(key)).map(|(_, value)| value.clone())
}

/// `request_port` is the port that the routes are for: what the caller asked for.
fn redirect_action(redirect: &HttpRedirect, request_port: u16) -> Option<RedirectAction> {
    let code = match redirect.redirect_code {
        None | Some(301) => RedirectResponseCode::MovedPermanently,
        Some(302) => RedirectResponseCode::Found,
        Some(303) => RedirectResponseCode::SeeOther,
        Some(307) => RedirectResponseCode::TemporaryRedirect,
        Some(308) => RedirectResponseCode::PermanentRedirect,
        // Told by `check`.
        Some(_) => RedirectResponseCode::MovedPermanently,
    };
    let path = match (redirect.uri.as_str(), redirect.prefix_rewrite.as_str()) {
        ("", "") => None,
        ("", prefix) => Some(PathRewriteSpecifier::PrefixRewrite(prefix.to_owned())),
        (uri, _) => Some(PathRewriteSpecifier::PathRedirect(uri.to_owned())),
    };
    let port = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => port,
        (None, Some(DerivePort::FromProtocolDefault)) if redirect.scheme == "https" => 443,
        (None, Some(DerivePort::FromProtocolDefault)) if redirect.scheme == "http" => 80,
        (None, Some(DerivePort::FromRequestPort)) => u32::from(request_port),
        _ => 0,
    };
    Some(RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect: port,
        response_code: code as i32,
        path_rewrite_specifier: path,
        scheme_rewrite_specifier: (!redirect.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone())),
        ..RedirectAction::default()
    })
}

fn fault(written: &HttpFaultInjection) -> Option<HttpFault> {
    let mut fault = HttpFault::default();
    if let Some(delay) = &written.delay
        && let Some(fixed) = delay.fixed_delay
    {
        let percent = delay.percentage.map(|percent| percent.value).or(delay.percent.map(f64::from)).unwrap_or(0.0);
        fault.delay = Some(FaultDelay {
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(fixed.proto())),
            percentage: Some(fraction(percent)),
        });
    }
    if let Some(abort) = &written.abort {
        let kind = match (abort.http_status, grpc_status(&abort.grpc_status)) {
            (Some(status), _) => Some(ErrorType::HttpStatus(status)),
            (None, Some(status)) => Some(ErrorType::GrpcStatus(status)),
            (None, None) => None,
        };
        let percent = abort.percentage.map_or(0.0, |percent| percent.value);
        fault.abort = kind.map(|kind| FaultAbort {
            error_type: Some(kind),
            percentage: Some(fraction(percent)),
            ..FaultAbort::default()
        });
    }
    (fault.delay.is_some() || fault.abort.is_some()).then_some(fault)
}

fn cors(written: &WrittenCors) -> CorsPolicy {
    let old = written
        .allow_origin
        .iter()
        .map(|origin| if origin == "*" { StringMatch::Regex(".*".into()) } else { StringMatch::Exact(origin.clone()) });
    let origins = old.chain(written.allow_origins.iter().cloned()).map(|origin| {
        matcher::string(&origin)
            .unwrap_or_else(|| matcher::string(&StringMatch::Regex(".*".into())).unwrap_or_default())
    });
    CorsPolicy {
        allow_origin_string_match: origins.collect(),
        allow_methods: written.allow_methods.join(","),
        allow_headers: written.allow_headers.join(","),
        expose_headers: written.expose_headers.join(","),
        max_age: written.max_age.map(|age| age.0.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: written.allow_credentials.and_then(some_bool),
        forward_not_matching_preflights: some_bool(written.unmatched_preflights != Some(UnmatchedPreflights::Ignore)),
        filter_enabled: Some(RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: 100, denominator: DenominatorType::Hundred as i32 }),
            ..RuntimeFractionalPercent::default()
        }),
        ..CorsPolicy::default()
    }
}
