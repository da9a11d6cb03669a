//! What is wrong with an object in itself. An Error keeps a new version out, so only what Istio's own validation refuses
//! is one; what is not built yet is told on its field.

mod authentication;
mod authorization;

use std::collections::BTreeSet;

pub(crate) use authorization::{asked_decision, decision_of};

use api::annotation;
use api::crd;
use api::crd::destination_rule::{
    ClientTlsMode, ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection, SimpleLb, TrafficPolicy,
};
use api::crd::gateway::ServerTlsMode;
use api::crd::service_entry::Resolution;
use api::crd::virtual_service::{DerivePort, Destination, Headers, HttpMatchRequest, HttpRoute};
use api::object::{Body, Object};
use api::problem::{Code, Problem, Severity, nearest};
use api::value::{Duration, StringMatch};

use crate::bypass::bypassing;
use crate::model::{Protocol, grpc_status};

/// A problem of an object.
pub(crate) fn problem(object: &Object, field: &str, code: Code, severity: Severity, message: String) -> Problem {
    Problem {
        object: object.reference(),
        origin: object.origin.clone(),
        field: field.to_owned(),
        code,
        severity,
        message,
    }
}

/// Whether the object comes into the world in spite of an Error: what is not built yet is stored and listed.
pub(crate) fn keeps_effect(problem: &Problem) -> bool {
    problem.code == Code::NotBuilt
}

/// Everything that can be said of the object alone: what the API server refuses if we are asked.
pub fn intrinsic(object: &Object) -> Vec<Problem> {
    let mut told = Told { object, problems: Vec::new() };
    match &object.body {
        Body::VirtualService(spec) => virtual_service(&mut told, spec),
        Body::DestinationRule(spec) => destination_rule(&mut told, spec),
        Body::Gateway(spec) => gateway(&mut told, spec),
        Body::ServiceEntry(spec) => service_entry(&mut told, spec),
        Body::Sidecar(spec) => sidecar(&mut told, spec),
        Body::WorkloadEntry(spec) if spec.address.is_empty() => {
            told.warn("spec.address", Code::MissingField, "The workload has no address; it is nobody's endpoint.");
        }
        Body::PeerAuthentication(spec) => peer_authentication(&mut told, spec),
        // Pods without a proxy, and those whose traffic is not captured, have nothing to go around.
        Body::Pod(pod) if is_captured(object) => {
            for (field, sentence) in bypassing(&pod.spec) {
                told.warn(&field, Code::SidecarBypassed, &sentence);
            }
        }
        Body::AuthorizationPolicy(spec) => authorization::check(&mut told, spec),
        Body::RequestAuthentication(spec) => authentication::check(&mut told, spec),
        Body::EnvoyFilter(_)
        | Body::ProxyConfig(_)
        | Body::Telemetry(_)
        | Body::WasmPlugin(_)
        | Body::TrafficExtension(_)
        | Body::WorkloadGroup(_) => {
            told.warn("", Code::NotBuilt, &format!("{} is stored but has no effect yet.", object.kind));
        }
        _ => {}
    }
    told.problems
}

/// Whether an AuthorizationPolicy is only to be told what it would decide; nothing if its annotation says neither (the words
/// are those that Go reads as a boolean).
pub(crate) fn dry_run(object: &Object) -> Option<bool> {
    match object.meta.annotations.get(annotation::DRY_RUN).map(String::as_str) {
        None | Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Some(false),
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Some(true),
        Some(_) => None,
    }
}

fn is_captured(pod: &Object) -> bool {
    let annotations = &pod.meta.annotations;
    let mode = annotations.get(annotation::INTERCEPTION_MODE).map_or("", String::as_str);
    annotations.contains_key(annotation::SIDECAR_STATUS) && mode != "NONE"
}

/// Problems as they are found.
struct Told<'a> {
    object: &'a Object,
    problems: Vec<Problem>,
}

impl Told<'_> {
    fn tell(&mut self, field: &str, code: Code, severity: Severity, message: &str) {
        self.problems.push(problem(self.object, field, code, severity, message.to_owned()));
    }

    fn error(&mut self, field: &str, code: Code, message: &str) {
        self.tell(field, code, Severity::Error, message);
    }

    fn warn(&mut self, field: &str, code: Code, message: &str) {
        self.tell(field, code, Severity::Warning, message);
    }

    fn info(&mut self, field: &str, code: Code, message: &str) {
        self.tell(field, code, Severity::Info, message);
    }

    fn not_built(&mut self, field: &str, used: bool) {
        if used {
            let name = field.rsplit('.').next().unwrap_or(field).to_owned();
            self.warn(field, Code::NotBuilt, &format!("The field {name} is not built yet; it has no effect."));
        }
    }

    fn deprecated(&mut self, field: &str, used: bool, instead: &str) {
        if used {
            self.info(field, Code::Deprecated, &format!("This is deprecated; it still works. {instead}"));
        }
    }

    fn regex(&mut self, field: &str, expression: &str) {
        if let Err(error) = regex::Regex::new(expression) {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            self.error(
                field,
                Code::InvalidRegex,
                &format!("The text {expression:?} is not a regular expression: {reason}."),
            );
        }
    }

    fn string(&mut self, field: &str, value: &StringMatch) {
        if let Some(expression) = value.regex() {
            self.regex(&format!("{field}.regex"), expression);
        }
    }

    /// Istio takes no length of time below a millisecond; Envoy refuses all resources that hold a 0 here.
    fn positive(&mut self, field: &str, duration: Option<Duration>) {
        if duration.is_some_and(|duration| duration < Duration::millis(1)) {
            self.error(field, Code::SchemaValidation, "The duration must be at least 1ms.");
        }
    }

    /// The same where zero switches off.
    fn none_or_positive(&mut self, field: &str, duration: Option<Duration>) {
        self.positive(field, duration.filter(|duration| *duration != Duration::millis(0)));
    }

    /// A DNS name, a wildcard (`*`, `*.a.com`) or an IP address.
    fn host(&mut self, field: &str, host: &str) {
        let rest = host.strip_prefix("*.").unwrap_or(host);
        let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let good =
            host == "*" || (!rest.is_empty() && (rest.bytes().all(name) || rest.parse::<std::net::IpAddr>().is_ok()));
        if !good {
            let message = format!(
                "The text {host:?} is neither a DNS name, a wildcard such as *.example.com, nor an IP address."
            );
            self.error(field, Code::SchemaValidation, &message);
        }
    }

    /// The name of a header; one bad name would cost all routes that stand beside it.
    fn header(&mut self, field: &str, name: &str) {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let claims = name.starts_with('@');
        if name.is_empty() || !(claims || name.bytes().all(token)) {
            self.error(field, Code::SchemaValidation, &format!("The text {name:?} is not the name of a header."));
        }
    }

    fn header_changes(&mut self, field: &str, headers: Option<&Headers>) {
        let Some(headers) = headers else { return };
        for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
            let Some(operations) = operations else { continue };
            for (kind, map) in [("set", &operations.set), ("add", &operations.add)] {
                for (name, value) in map {
                    let field = format!("{field}.headers.{side}.{kind}[{name:?}]");
                    let host = name.eq_ignore_ascii_case("host") || name == ":authority";
                    if host && (side, kind) == ("request", "set") {
                        continue;
                    } else if host {
                        self.error(
                            &field,
                            Code::SchemaValidation,
                            "The host can only be set, and only on the request.",
                        );
                    } else {
                        self.header(&field, name);
                    }
                    if value.replace("%%", "").matches('%').count() % 2 == 1 {
                        let message = format!(
                            "The text {value:?} has a % that opens a variable and none that closes it; write %% for a percent sign."
                        );
                        self.error(&field, Code::SchemaValidation, &message);
                    }
                }
            }
            for (index, name) in operations.remove.iter().enumerate() {
                self.header(&format!("{field}.headers.{side}.remove[{index}]"), name);
            }
        }
    }

    fn destination(&mut self, field: &str, destination: &Destination) {
        if destination.host.is_empty() {
            self.error(&format!("{field}.host"), Code::MissingField, "The destination names no host.");
        }
    }
}

fn virtual_service(told: &mut Told<'_>, spec: &crd::VirtualService) {
    for (index, host) in spec.hosts.iter().enumerate() {
        told.host(&format!("spec.hosts[{index}]"), host);
    }
    for (index, rule) in spec.http.iter().enumerate() {
        http_rule(told, &format!("spec.http[{index}]"), rule);
        claims(told, spec, &format!("spec.http[{index}]"), rule);
    }
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        told.error("spec", Code::MissingField, "The object has no rule: none of http, tls and tcp is given.");
    }
    for (index, rule) in spec.tls.iter().enumerate() {
        let field = format!("spec.tls[{index}]");
        if rule.matches.is_empty() {
            told.error(
                &format!("{field}.match"),
                Code::MissingField,
                "A TLS rule must say which server names it is for.",
            );
        }
        for (place, _) in rule.matches.iter().enumerate().filter(|(_, one)| one.sni_hosts.is_empty()) {
            told.error(
                &format!("{field}.match[{place}].sniHosts"),
                Code::MissingField,
                "A TLS rule must say which server names it is for.",
            );
        }
        for (place, one) in rule.matches.iter().enumerate() {
            for (number, name) in one.sni_hosts.iter().enumerate() {
                told.host(&format!("{field}.match[{place}].sniHosts[{number}]"), name);
            }
        }
        l4_routes(told, &field, &rule.route);
    }
    for (index, rule) in spec.tcp.iter().enumerate() {
        let field = format!("spec.tcp[{index}]");
        for (place, one) in rule.matches.iter().enumerate() {
            told.not_built(&format!("{field}.match[{place}].sourceSubnet"), !one.source_subnet.is_empty());
        }
        l4_routes(told, &field, &rule.route);
    }
}

fn l4_routes(told: &mut Told<'_>, field: &str, routes: &[crd::virtual_service::RouteDestination]) {
    if routes.is_empty() {
        told.error(&format!("{field}.route"), Code::MissingField, "The rule has no destination.");
    }
    for (index, route) in routes.iter().enumerate() {
        told.destination(&format!("{field}.route[{index}].destination"), &route.destination);
    }
}

fn http_rule(told: &mut Told<'_>, field: &str, rule: &HttpRoute) {
    let actions =
        [!rule.route.is_empty(), rule.redirect.is_some(), rule.direct_response.is_some(), rule.delegate.is_some()];
    match actions.iter().filter(|given| **given).count() {
        0 => told.error(
            field,
            Code::MissingField,
            "The rule says nothing to do: give route, redirect, directResponse or delegate.",
        ),
        1 => {}
        _ => told.error(
            field,
            Code::SchemaValidation,
            "Only one of route, redirect, directResponse and delegate may be given.",
        ),
    }
    for (index, one) in rule.matches.iter().enumerate() {
        http_match(told, &format!("{field}.match[{index}]"), one);
    }
    for (index, route) in rule.route.iter().enumerate() {
        told.destination(&format!("{field}.route[{index}].destination"), &route.destination);
    }
    if rule.route.len() > 1 && rule.route.iter().all(|route| route.weight == 0) {
        told.warn(
            &format!("{field}.route"),
            Code::MeaningTaken,
            "All weights are 0: no destination gets requests, they are answered 503.",
        );
    }
    told.header_changes(field, rule.headers.as_ref());
    for (index, route) in rule.route.iter().enumerate() {
        told.header_changes(&format!("{field}.route[{index}]"), route.headers.as_ref());
    }
    if let Some(mirror) = &rule.mirror {
        told.destination(&format!("{field}.mirror"), mirror);
    }
    told.deprecated(&format!("{field}.mirrorPercent"), rule.mirror_percent.is_some(), "Write mirrorPercentage.");
    if let Some(redirect) = &rule.redirect {
        if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
            told.error(
                &format!("{field}.redirect"),
                Code::SchemaValidation,
                "Only one of uri and prefixRewrite may be given.",
            );
        }
        if let Some(port) = redirect.port.filter(|port| *port > 65535) {
            told.error(
                &format!("{field}.redirect.port"),
                Code::SchemaValidation,
                &format!("The number {port} is not that of a port."),
            );
        }
        if redirect.derive_port == Some(DerivePort::FromProtocolDefault)
            && redirect.scheme.is_empty()
            && redirect.authority.is_empty()
        {
            told.warn(
                &format!("{field}.redirect.derivePort"),
                Code::NotBuilt,
                "Without scheme and authority, FROM_PROTOCOL_DEFAULT is not built yet; the request's port stays.",
            );
        }
        if let Some(code) = redirect.redirect_code.filter(|code| ![301, 302, 303, 307, 308].contains(code)) {
            told.error(
                &format!("{field}.redirect.redirectCode"),
                Code::SchemaValidation,
                &format!("The code {code} is not one of 301, 302, 303, 307, 308."),
            );
        }
    }
    if let Some(response) = rule.direct_response.as_ref().filter(|response| !(200..600).contains(&response.status)) {
        told.error(
            &format!("{field}.directResponse.status"),
            Code::SchemaValidation,
            &format!("The number {} is not a status from 200 to 599.", response.status),
        );
    }
    if let Some(rewrite) = rule.rewrite.as_ref().and_then(|rewrite| rewrite.uri_regex_rewrite.as_ref()) {
        told.regex(&format!("{field}.rewrite.uriRegexRewrite.match"), &rewrite.matches);
    }
    told.none_or_positive(&format!("{field}.timeout"), rule.timeout);
    if let Some(retries) = &rule.retries {
        told.positive(&format!("{field}.retries.backoff"), retries.backoff);
        told.none_or_positive(&format!("{field}.retries.perTryTimeout"), retries.per_try_timeout);
        for word in retries.retry_on.split(',').map(str::trim).filter(|word| !is_retry_condition(word)) {
            let hint =
                nearest(word, RETRY_CONDITIONS).map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
            told.error(
                &format!("{field}.retries.retryOn"),
                Code::SchemaValidation,
                &format!("The word {word:?} is no condition for retries{}", if hint.is_empty() { "." } else { &hint }),
            );
        }
        told.not_built(
            &format!("{field}.retries.retryRemoteLocalities"),
            retries.retry_remote_localities == Some(true),
        );
    }
    fault(told, field, rule);
    if let Some(cors) = &rule.cors_policy {
        told.deprecated(
            &format!("{field}.corsPolicy.allowOrigin"),
            !cors.allow_origin.is_empty(),
            "Write allowOrigins.",
        );
        for (index, origin) in cors.allow_origins.iter().enumerate() {
            told.string(&format!("{field}.corsPolicy.allowOrigins[{index}]"), origin);
        }
    }
}

/// Conditions for retries (Envoy `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Istio takes status codes among them.
fn is_retry_condition(word: &str) -> bool {
    word.is_empty()
        || RETRY_CONDITIONS.contains(&word)
        || word.parse().is_ok_and(|code: u16| (100..600).contains(&code))
}

fn fault(told: &mut Told<'_>, field: &str, rule: &HttpRoute) {
    let Some(fault) = &rule.fault else { return };
    if let Some(delay) = &fault.delay {
        told.positive(&format!("{field}.fault.delay.fixedDelay"), delay.fixed_delay);
        told.not_built(&format!("{field}.fault.delay.exponentialDelay"), delay.exponential_delay.is_some());
        told.deprecated(&format!("{field}.fault.delay.percent"), delay.percent.is_some(), "Write percentage.");
        if delay.percentage.is_none() && delay.percent.is_none() {
            told.warn(
                &format!("{field}.fault.delay.percentage"),
                Code::MeaningTaken,
                "Without a percentage no request is delayed.",
            );
        }
    }
    if let Some(abort) = &fault.abort {
        told.not_built(&format!("{field}.fault.abort.http2Error"), !abort.http2_error.is_empty());
        if !abort.grpc_status.is_empty() && grpc_status(&abort.grpc_status).is_none() {
            told.error(
                &format!("{field}.fault.abort.grpcStatus"),
                Code::SchemaValidation,
                &format!("The text {:?} is not the name of a gRPC status, such as UNAVAILABLE.", abort.grpc_status),
            );
        }
        if let Some(status) = abort.http_status.filter(|status| !(200..600).contains(status)) {
            told.error(
                &format!("{field}.fault.abort.httpStatus"),
                Code::SchemaValidation,
                &format!("The number {status} is not a status from 200 to 599."),
            );
        }
        if abort.percentage.is_none() {
            told.warn(
                &format!("{field}.fault.abort.percentage"),
                Code::MeaningTaken,
                "Without a percentage no request is aborted.",
            );
        }
    }
}

fn http_match(told: &mut Told<'_>, field: &str, one: &HttpMatchRequest) {
    for (name, value) in
        [("uri", &one.uri), ("scheme", &one.scheme), ("method", &one.method), ("authority", &one.authority)]
    {
        if let Some(value) = value {
            told.string(&format!("{field}.{name}"), value);
        }
    }
    for (kind, map) in
        [("headers", &one.headers), ("withoutHeaders", &one.without_headers), ("queryParams", &one.query_params)]
    {
        for (name, value) in map {
            match kind {
                "queryParams" if name.is_empty() => {
                    told.error(&format!("{field}.{kind}"), Code::SchemaValidation, "A query parameter has no name.");
                }
                "queryParams" => {}
                _ => told.header(&format!("{field}.{kind}[{name:?}]"), name),
            }
            told.string(&format!("{field}.{kind}[{name:?}]"), value);
        }
    }
}

/// Claims of tokens stand among the headers, under names of their own.
fn claims(told: &mut Told<'_>, spec: &crd::VirtualService, field: &str, rule: &HttpRoute) {
    // A delegate is where its root is.
    let at_gateways = |gateways: &[String]| !gateways.is_empty() && gateways.iter().all(|name| name != "mesh");
    let of_spec = spec.hosts.is_empty() || at_gateways(&spec.gateways);
    for (index, one) in rule.matches.iter().enumerate() {
        for (kind, map) in [("headers", &one.headers), ("withoutHeaders", &one.without_headers)] {
            for name in map.keys().filter(|name| name.starts_with('@')) {
                let field = format!("{field}.match[{index}].{kind}[{name:?}]");
                if claim_of(name).is_none() {
                    let message = format!(
                        "The text {name:?} is neither the name of a header nor that of a claim, such as @request.auth.claims.role or @request.auth.claims[role]; this match never holds."
                    );
                    told.warn(&field, Code::NeverMatches, &message);
                } else if !of_spec && !at_gateways(&one.gateways) {
                    let message =
                        "Requests are routed by claims of tokens at gateways only; at sidecars this match never holds.";
                    told.warn(&field, Code::NeverMatches, message);
                }
            }
        }
    }
}

/// The names that lead to the claim of a token that a key means: `@request.auth.claims.a.b`, or `@request.auth.claims[a][b]` where
/// names have dots of their own (Istio).
pub(crate) fn claim_of(key: &str) -> Option<Vec<&str>> {
    const START: &str = "@request.auth.claims";
    let (start, rest) = key.split_at_checked(START.len())?;
    let inner = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let names: Vec<&str> = match (rest.strip_prefix('.'), inner) {
        _ if !start.eq_ignore_ascii_case(START) => return None,
        (Some(names), _) => names.split('.').collect(),
        (None, Some(names)) => names.split("][").collect(),
        (None, None) => return None,
    };
    names.iter().all(|name| !name.is_empty()).then_some(names)
}

fn destination_rule(told: &mut Told<'_>, spec: &crd::DestinationRule) {
    if spec.host.is_empty() {
        told.error("spec.host", Code::MissingField, "The object names no host.");
    }
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(told, "spec.trafficPolicy", policy);
    }
    let mut names = BTreeSet::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        if subset.name.is_empty() {
            told.error(&format!("{field}.name"), Code::MissingField, "The subset has no name.");
        } else if !names.insert(&subset.name) {
            told.error(
                &format!("{field}.name"),
                Code::SchemaValidation,
                &format!("Two subsets are named {:?}.", subset.name),
            );
        }
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(told, &format!("{field}.trafficPolicy"), policy);
        }
    }
}

fn traffic_policy(told: &mut Told<'_>, field: &str, policy: &TrafficPolicy) {
    balancer(told, field, policy.load_balancer.as_ref());
    pool(told, field, policy.connection_pool.as_ref());
    ejection(told, field, policy.outlier_detection.as_ref());
    client_tls(told, field, policy.tls.as_ref());
    told.not_built(&format!("{field}.tunnel"), policy.tunnel.is_some());
    told.not_built(&format!("{field}.proxyProtocol"), policy.proxy_protocol.is_some());
    told.not_built(&format!("{field}.retryBudget"), policy.retry_budget.is_some());
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        if port.port.is_none() {
            told.error(&format!("{field}.port"), Code::MissingField, "The entry names no port.");
        }
        balancer(told, &field, port.load_balancer.as_ref());
        pool(told, &field, port.connection_pool.as_ref());
        ejection(told, &field, port.outlier_detection.as_ref());
        client_tls(told, &field, port.tls.as_ref());
    }
}

fn balancer(told: &mut Told<'_>, field: &str, settings: Option<&LoadBalancerSettings>) {
    let Some(settings) = settings else { return };
    let field = format!("{field}.loadBalancer");
    told.deprecated(
        &format!("{field}.simple"),
        settings.simple == Some(SimpleLb::LeastConn),
        "LEAST_CONN is the old name of LEAST_REQUEST.",
    );
    told.not_built(&format!("{field}.consistentHash"), settings.consistent_hash.is_some());
    told.not_built(&format!("{field}.localityLbSetting"), settings.locality_lb_setting.is_some());
    told.not_built(&format!("{field}.zoneAwareLbSetting"), settings.zone_aware_lb_setting.is_some());
    told.not_built(&format!("{field}.warmup"), settings.warmup.is_some());
    told.not_built(&format!("{field}.warmupDurationSecs"), settings.warmup_duration_secs.is_some());
    told.not_built(&format!("{field}.backendUtilization"), settings.backend_utilization.is_some());
}

fn pool(told: &mut Told<'_>, field: &str, settings: Option<&ConnectionPoolSettings>) {
    let Some(settings) = settings else { return };
    let field = format!("{field}.connectionPool");
    if let Some(tcp) = &settings.tcp {
        told.positive(&format!("{field}.tcp.connectTimeout"), tcp.connect_timeout);
        told.positive(&format!("{field}.tcp.maxConnectionDuration"), tcp.max_connection_duration);
        told.not_built(&format!("{field}.tcp.idleTimeout"), tcp.idle_timeout.is_some());
    }
    if let Some(ping) = settings.http.as_ref().and_then(|http| http.http2_keep_alive.as_ref()) {
        told.positive(&format!("{field}.http.http2KeepAlive.interval"), ping.interval);
        told.positive(&format!("{field}.http.http2KeepAlive.timeout"), ping.timeout);
    }
}

fn ejection(told: &mut Told<'_>, field: &str, settings: Option<&OutlierDetection>) {
    let Some(settings) = settings else { return };
    let field = format!("{field}.outlierDetection");
    told.positive(&format!("{field}.interval"), settings.interval);
    told.positive(&format!("{field}.baseEjectionTime"), settings.base_ejection_time);
    told.deprecated(
        &format!("{field}.consecutiveErrors"),
        settings.consecutive_errors.is_some(),
        "It means consecutive5xxErrors.",
    );
    told.not_built(
        &format!("{field}.outlierDetectionHttpErrorCodes"),
        !settings.outlier_detection_http_error_codes.is_empty(),
    );
    for (name, percent) in
        [("maxEjectionPercent", settings.max_ejection_percent), ("minHealthPercent", settings.min_health_percent)]
    {
        if let Some(percent) = percent.filter(|percent| *percent > 100) {
            told.error(
                &format!("{field}.{name}"),
                Code::SchemaValidation,
                &format!("The number {percent} is not a percentage from 0 to 100."),
            );
        }
    }
}

fn client_tls(told: &mut Told<'_>, field: &str, settings: Option<&crd::destination_rule::ClientTlsSettings>) {
    let Some(settings) = settings else { return };
    let field = format!("{field}.tls");
    let own = settings.credential_name.is_empty();
    if settings.mode == ClientTlsMode::Mutual
        && own
        && (settings.client_certificate.is_empty() || settings.private_key.is_empty())
    {
        told.error(
            &field,
            Code::MissingField,
            "Mode MUTUAL needs clientCertificate and privateKey, or credentialName.",
        );
    }
    if !own {
        let message = "Only gateways are served Secrets; sidecars cannot make connections to this host.";
        told.info(&format!("{field}.credentialName"), Code::MeaningTaken, message);
    }
    if settings.insecure_skip_verify == Some(true) {
        told.warn(
            &format!("{field}.insecureSkipVerify"),
            Code::NoServerCertificateVerification,
            "The server's certificate is not verified: anybody may answer.",
        );
    }
}

fn gateway(told: &mut Told<'_>, spec: &crd::Gateway) {
    if spec.servers.is_empty() {
        told.error("spec.servers", Code::MissingField, "The gateway has no server.");
    }
    for (index, server) in spec.servers.iter().enumerate() {
        let field = format!("spec.servers[{index}]");
        if server.port.number == 0 {
            told.error(&format!("{field}.port.number"), Code::MissingField, "The server has no port number.");
        }
        let protocol = Protocol::named(&server.port.protocol);
        if protocol.is_none() {
            told.error(
                &format!("{field}.port.protocol"),
                Code::SchemaValidation,
                &format!(
                    "The protocol {:?} is not one of HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP, TLS.",
                    server.port.protocol
                ),
            );
        }
        if server.hosts.is_empty() {
            told.error(&format!("{field}.hosts"), Code::MissingField, "The server has no hosts.");
        }
        for (place, host) in server.hosts.iter().enumerate() {
            told.host(&format!("{field}.hosts[{place}]"), host.rsplit('/').next().unwrap_or(host));
        }
        told.not_built(&format!("{field}.bind"), server.bind.starts_with("unix://"));
        if let Some(protocol) = protocol {
            server_tls(told, &field, protocol, server.tls.as_ref());
        }
    }
}

fn server_tls(
    told: &mut Told<'_>,
    field: &str,
    protocol: Protocol,
    settings: Option<&crd::gateway::ServerTlsSettings>,
) {
    let Some(settings) = settings else {
        if protocol.is_tls() {
            told.error(
                &format!("{field}.tls"),
                Code::MissingField,
                "A server of protocol HTTPS or TLS needs tls settings.",
            );
        }
        return;
    };
    let field = format!("{field}.tls");
    let terminates =
        matches!(settings.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    let has_certificate = !settings.credential_name.is_empty()
        || !settings.credential_names.is_empty()
        || !settings.tls_certificates.is_empty()
        || !settings.server_certificate.is_empty();
    if settings.https_redirect && protocol != Protocol::Http {
        told.warn(
            &format!("{field}.httpsRedirect"),
            Code::MeaningTaken,
            "Only servers of protocol HTTP redirect; here it has no effect.",
        );
    }
    if protocol.is_http2() && terminates {
        told.info(&field, Code::MeaningTaken, "TLS is terminated and gRPC or HTTP/2 is spoken inside.");
    } else if protocol == Protocol::Http && terminates {
        told.warn(&field, Code::MeaningTaken, "A server of protocol HTTP takes no TLS; write HTTPS to terminate it.");
    }
    if terminates && !has_certificate && protocol != Protocol::Http {
        told.error(
            &format!("{field}.credentialName"),
            Code::MissingField,
            "TLS is to be terminated but there is no certificate: give credentialName.",
        );
    }
    if settings.mode == ServerTlsMode::AutoPassthrough {
        told.warn(
            &format!("{field}.mode"),
            Code::NotBuilt,
            "AUTO_PASSTHROUGH is not built yet; the server serves nothing.",
        );
    }
    told.not_built(&format!("{field}.caCrl"), !settings.ca_crl.is_empty());
    told.not_built(&format!("{field}.insecureSkipVerify"), settings.insecure_skip_verify == Some(true));
}

fn service_entry(told: &mut Told<'_>, spec: &crd::ServiceEntry) {
    if spec.hosts.is_empty() {
        told.error("spec.hosts", Code::MissingField, "The object names no host.");
    }
    for (index, host) in spec.hosts.iter().enumerate().filter(|(_, host)| host.as_str() == "*") {
        told.error(&format!("spec.hosts[{index}]"), Code::SchemaValidation, &format!("The host may not be {host:?}."));
    }
    for (index, host) in spec.hosts.iter().enumerate().filter(|(_, host)| host.as_str() != "*") {
        told.host(&format!("spec.hosts[{index}]"), host);
    }
    if spec.ports.is_empty() {
        told.warn("spec.ports", Code::MissingField, "The object has no ports; nothing can be reached.");
    }
    let mut numbers = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        if port.number == 0 || !numbers.insert(port.number) {
            told.error(
                &format!("spec.ports[{index}].number"),
                Code::SchemaValidation,
                &format!("The number {} is not that of a port, or stands twice.", port.number),
            );
        }
    }
    if !spec.endpoints.is_empty() && spec.workload_selector.is_some() {
        told.error(
            "spec.endpoints",
            Code::SchemaValidation,
            "Only one of endpoints and workloadSelector may be given.",
        );
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate().filter(|_| spec.resolution == Resolution::Static) {
        let address = endpoint.address.as_str();
        if !address.is_empty() && !address.starts_with("unix://") && address.parse::<std::net::IpAddr>().is_err() {
            told.error(
                &format!("spec.endpoints[{index}].address"),
                Code::SchemaValidation,
                &format!(
                    "Resolution STATIC takes addresses, and {address:?} is none; write resolution: DNS for names."
                ),
            );
        }
    }
    match spec.resolution {
        Resolution::None if !spec.endpoints.is_empty() => {
            told.error(
                "spec.endpoints",
                Code::SchemaValidation,
                "Resolution NONE (the default) takes no endpoints; write resolution: STATIC.",
            );
        }
        Resolution::Static if spec.endpoints.is_empty() && spec.workload_selector.is_none() => {
            told.warn(
                "spec.endpoints",
                Code::MissingField,
                "Resolution STATIC without endpoints or workloadSelector: requests are answered 503.",
            );
        }
        Resolution::DnsRoundRobin if spec.endpoints.len() > 1 => {
            told.error("spec.endpoints", Code::SchemaValidation, "Resolution DNS_ROUND_ROBIN takes one endpoint.");
        }
        Resolution::Dns if spec.endpoints.is_empty() && spec.hosts.iter().any(|host| host.starts_with('*')) => {
            told.error(
                "spec.resolution",
                Code::SchemaValidation,
                "A wildcard cannot be looked up; give endpoints, or resolution NONE.",
            );
        }
        _ => {}
    }
    for (index, address) in spec.addresses.iter().enumerate() {
        if address.parse::<std::net::IpAddr>().is_err() && address.parse::<ipnet::IpNet>().is_err() {
            told.error(
                &format!("spec.addresses[{index}]"),
                Code::SchemaValidation,
                &format!("The text {address:?} is neither an IP address nor a range."),
            );
        }
    }
}

fn sidecar(told: &mut Told<'_>, spec: &crd::Sidecar) {
    for (index, ingress) in spec.ingress.iter().enumerate() {
        let field = format!("spec.ingress[{index}]");
        if ingress.port.number == 0 {
            told.error(&format!("{field}.port"), Code::MissingField, "The listener has no port number.");
        }
        let endpoint = ingress.default_endpoint.as_str();
        let known = endpoint.rsplit_once(':').is_some_and(|(host, port)| {
            ["127.0.0.1", "[::1]", "0.0.0.0", "[::]"].contains(&host) && port.parse::<u16>().is_ok()
        });
        if endpoint.starts_with("unix://") {
            told.warn(
                &format!("{field}.defaultEndpoint"),
                Code::NotBuilt,
                "Unix sockets are not built yet; the port is not opened.",
            );
        } else if !endpoint.is_empty() && !known {
            told.error(
                &format!("{field}.defaultEndpoint"),
                Code::SchemaValidation,
                &format!("The text {endpoint:?} is not of the form 127.0.0.1:PORT, 0.0.0.0:PORT or unix://PATH."),
            );
        }
        told.not_built(&format!("{field}.tls"), ingress.tls.is_some());
        told.not_built(&format!("{field}.connectionPool"), ingress.connection_pool.is_some());
    }
    for (index, egress) in spec.egress.iter().enumerate() {
        if egress.hosts.is_empty() {
            told.error(&format!("spec.egress[{index}].hosts"), Code::MissingField, "The listener names no hosts.");
        }
        for (place, host) in egress.hosts.iter().enumerate().filter(|(_, host)| !host.contains('/')) {
            told.error(
                &format!("spec.egress[{index}].hosts[{place}]"),
                Code::SchemaValidation,
                &format!("The text {host:?} is not of the form NAMESPACE/HOST; write \"*/{host}\" or \"./{host}\"."),
            );
        }
    }
    told.not_built("spec.inboundConnectionPool", spec.inbound_connection_pool.is_some());
    told.not_built(
        "spec.outboundTrafficPolicy.egressProxy",
        spec.outbound_traffic_policy.as_ref().is_some_and(|policy| policy.egress_proxy.is_some()),
    );
}

fn peer_authentication(told: &mut Told<'_>, spec: &crd::PeerAuthentication) {
    if !spec.port_level_mtls.is_empty()
        && spec.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
    {
        told.error("spec.portLevelMtls", Code::SchemaValidation, "Modes of single ports need a selector.");
    }
    for port in spec.port_level_mtls.keys().filter(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        told.error(
            &format!("spec.portLevelMtls[{port:?}]"),
            Code::SchemaValidation,
            &format!("The text {port:?} is not a port number."),
        );
    }
}
