//! Matches of a VirtualService as Envoy's.

use api::crd::virtual_service::HttpMatchRequest;
use api::value::StringMatch;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, Route, RouteMatch};
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as Value;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, RegexMatcher, StringMatcher, ValueMatcher, list_matcher,
};

use crate::generate::jwt::{NAME, PAYLOAD};
use crate::intrinsic::claim_of;

/// Keys that Istio ignores among the headers: there are fields for them.
const NOT_HEADERS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// Everything.
pub(super) fn all() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }
}

/// Whether a route takes all requests.
pub(super) fn takes_all(route: &Route) -> bool {
    route.r#match.as_ref() == Some(&all())
}

pub(super) fn of(one: &HttpMatchRequest) -> RouteMatch {
    let mut matcher = RouteMatch {
        case_sensitive: one.ignore_uri_case.then_some(envoy_types::pb::google::protobuf::BoolValue { value: false }),
        ..all()
    };
    match &one.uri {
        None | Some(StringMatch::Present) => {}
        Some(StringMatch::Exact(path)) => matcher.path_specifier = Some(PathSpecifier::Path(path.clone())),
        Some(StringMatch::Prefix(prefix)) => matcher.path_specifier = Some(PathSpecifier::Prefix(prefix.clone())),
        Some(StringMatch::Regex(expression)) => {
            matcher.path_specifier = Some(PathSpecifier::SafeRegex(regex(expression)));
            matcher.case_sensitive = None;
        }
    }
    for (headers, invert) in [(&one.headers, false), (&one.without_headers, true)] {
        for (name, value) in headers.iter().filter(|(name, _)| !NOT_HEADERS.contains(&name.as_str())) {
            match claim_of(name) {
                Some(path) => matcher.dynamic_metadata.push(of_claim(&path, value, invert)),
                None => matcher.headers.push(header(name, value, invert)),
            }
        }
    }
    for (name, value) in [(":method", &one.method), (":authority", &one.authority), (":scheme", &one.scheme)] {
        matcher.headers.extend(value.as_ref().map(|value| header(name, value, false)));
    }
    matcher.query_parameters = one.query_params.iter().map(|(name, value)| parameter(name, value)).collect();
    matcher
}

/// A claim that is such a text, or a list with it.
fn of_claim(path: &[&str], value: &StringMatch, invert: bool) -> MetadataMatcher {
    let is = |pattern| ValueMatcher { match_pattern: Some(pattern) };
    let value = match string(value) {
        None => is(Value::PresentMatch(true)),
        Some(text) => {
            let one = ListMatcher {
                match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(is(Value::StringMatch(text.clone()))))),
            };
            let either = vec![is(Value::StringMatch(text)), is(Value::ListMatch(Box::new(one)))];
            is(Value::OrMatch(OrMatcher { value_matchers: either }))
        }
    };
    let segment = |name: &str| PathSegment { segment: Some(Segment::Key(name.to_owned())) };
    MetadataMatcher {
        filter: NAME.to_owned(),
        path: std::iter::once(PAYLOAD).chain(path.iter().copied()).map(segment).collect(),
        value: Some(value),
        invert,
    }
}

fn header(name: &str, value: &StringMatch, invert: bool) -> HeaderMatcher {
    let specifier = match string(value) {
        Some(pattern) => HeaderMatchSpecifier::StringMatch(pattern),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    // A header that is absent is not "another value than": withoutHeaders also takes requests without the header.
    let treat = invert && string(value).is_some();
    HeaderMatcher {
        name: name.to_ascii_lowercase(),
        header_match_specifier: Some(specifier),
        invert_match: invert,
        treat_missing_header_as_empty: treat,
    }
}

fn parameter(name: &str, value: &StringMatch) -> QueryParameterMatcher {
    let specifier = match string(value) {
        Some(pattern) => QueryParameterMatchSpecifier::StringMatch(pattern),
        None => QueryParameterMatchSpecifier::PresentMatch(true),
    };
    QueryParameterMatcher { name: name.to_owned(), query_parameter_match_specifier: Some(specifier) }
}

/// Envoy's matcher; none for "is there".
pub(super) fn string(value: &StringMatch) -> Option<StringMatcher> {
    let pattern = match value {
        StringMatch::Present => return None,
        StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        // Envoy refuses an empty prefix; it means any value.
        StringMatch::Prefix(text) if text.is_empty() => return None,
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
        StringMatch::Regex(expression) => MatchPattern::SafeRegex(regex(expression)),
    };
    Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() })
}

pub(super) fn regex(expression: &str) -> RegexMatcher {
    RegexMatcher { regex: expression.to_owned(), ..RegexMatcher::default() }
}
