//! The leaves of xDS messages that filters and resources share: durations, shares, matchers of texts, headers, query parameters
//! and routes, read into their compiled forms.

#![deny(clippy::disallowed_methods)]
// Servers still send the older spelling of many fields; all of them are read.
#![allow(deprecated)]

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch as XdsRouteMatch};
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    MetadataMatcher, RegexMatchAndSubstitute, StringMatcher, ValueMatcher,
};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use regex::Regex;

use crate::snapshot::metadata_match::{MetadataMatch, ValueMatch};
use crate::snapshot::route::matcher::{Condition, Field, HeaderMatch, PathMatch, QueryMatch, RouteMatch};
use crate::snapshot::text_match::{Pattern, TextMatch};

/// A protobuf duration; negative ones and such beyond 10,000 years are refused.
///
/// # Errors
/// The sentence names the value.
pub fn duration(time: &envoy_types::pb::google::protobuf::Duration) -> Result<Duration, String> {
    match (u64::try_from(time.seconds), u32::try_from(time.nanos)) {
        (Ok(seconds), Ok(nanos)) if seconds <= 315_576_000_000 && nanos < 1_000_000_000 => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(format!("{}s {}ns is not a duration", time.seconds, time.nanos)),
    }
}

/// A duration that may be missing.
pub(crate) fn duration_or(
    time: &Option<envoy_types::pb::google::protobuf::Duration>,
    default: Duration,
) -> Result<Duration, String> {
    time.as_ref().map_or(Ok(default), duration)
}

/// A share in millionths.
pub fn millionths(percent: &FractionalPercent) -> u32 {
    let scale = match percent.denominator {
        0 => 10_000,
        1 => 100,
        _ => 1,
    };
    percent.numerator.saturating_mul(scale).min(1_000_000)
}

/// A share under a runtime key: there is no runtime, so its default counts.
pub(crate) fn fraction(percent: Option<&RuntimeFractionalPercent>) -> Option<u32> {
    percent.and_then(|percent| percent.default_value.as_ref()).map(millionths)
}

/// An expression that must match the whole text, as RE2 does in Envoy.
pub(crate) fn whole_regex(text: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{text})$"))
        .map_err(|error| format!("the regular expression {text:?} cannot be compiled: {error}"))
}

/// A substitution: RE2's `\1` becomes `${1}`.
pub(crate) fn substitution(rewrite: &RegexMatchAndSubstitute) -> Result<(Regex, String), String> {
    let text = rewrite.pattern.as_ref().map(|pattern| pattern.regex.as_str()).unwrap_or_default();
    let pattern =
        Regex::new(text).map_err(|error| format!("the regular expression {text:?} cannot be compiled: {error}"))?;
    let mut out = String::new();
    let mut letters = rewrite.substitution.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str(&format!("${{{digit}}}"));
                }
                Some('\\') => out.push('\\'),
                other => return Err(format!("the substitution has a backslash before {other:?}")),
            },
            '$' => out.push_str("$$"),
            other => out.push(other),
        }
    }
    Ok((pattern, out))
}

/// A text matcher.
///
/// # Errors
/// No pattern, an unknown kind, or an expression that cannot be compiled.
pub fn text_match(matcher: &StringMatcher) -> Result<TextMatch, String> {
    let fold = |text: &str| if matcher.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    let pattern = match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => Pattern::Exact(fold(text)),
        Some(MatchPattern::Prefix(text)) => Pattern::Prefix(fold(text)),
        Some(MatchPattern::Suffix(text)) => Pattern::Suffix(fold(text)),
        Some(MatchPattern::Contains(text)) => Pattern::Contains(fold(text)),
        Some(MatchPattern::SafeRegex(regex)) => Pattern::Regex(whole_regex(&regex.regex)?),
        Some(MatchPattern::Custom(_)) => return Err("custom string matchers are not known".to_owned()),
        None => return Err("a string matcher has no pattern".to_owned()),
    };
    Ok(TextMatch { pattern, ignore_case: matcher.ignore_case })
}

/// A matcher of metadata.
///
/// # Errors
/// A value that is not asked for anything, or a path that is none.
pub fn metadata_match(matcher: &MetadataMatcher) -> Result<MetadataMatch, String> {
    let name = |segment: &PathSegment| match &segment.segment {
        Some(Segment::Key(name)) => Ok(name.clone()),
        None => Err("a path of metadata has a part without a name".to_owned()),
    };
    Ok(MetadataMatch {
        filter: matcher.filter.clone(),
        path: matcher.path.iter().map(name).collect::<Result<_, _>>()?,
        value: value_match(matcher.value.as_ref())?,
        invert: matcher.invert,
    })
}

fn value_match(matcher: Option<&ValueMatcher>) -> Result<ValueMatch, String> {
    use envoy_types::pb::envoy::r#type::matcher::v3::double_matcher::MatchPattern as Number;
    use envoy_types::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as List;
    use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as Is;
    let nothing = || "a test of a value says nothing of it".to_owned();
    Ok(match matcher.and_then(|matcher| matcher.match_pattern.as_ref()).ok_or_else(nothing)? {
        Is::NullMatch(_) => ValueMatch::Null,
        Is::DoubleMatch(number) => match number.match_pattern.as_ref().ok_or_else(nothing)? {
            Number::Exact(number) => ValueMatch::Number(*number),
            Number::Range(range) => ValueMatch::Range(range.start, range.end),
        },
        Is::StringMatch(text) => ValueMatch::Text(text_match(text)?),
        Is::BoolMatch(truth) => ValueMatch::Truth(*truth),
        Is::PresentMatch(wanted) => ValueMatch::Present(*wanted),
        Is::ListMatch(list) => match list.match_pattern.as_ref().ok_or_else(nothing)? {
            List::OneOf(one) => ValueMatch::OneOf(Box::new(value_match(Some(one))?)),
        },
        Is::OrMatch(any) => {
            ValueMatch::Any(any.value_matchers.iter().map(|one| value_match(Some(one))).collect::<Result<_, _>>()?)
        }
    })
}

/// A header matcher.
///
/// # Errors
/// A name or expression that cannot be used.
pub fn header_match(matcher: &HeaderMatcher) -> Result<HeaderMatch, String> {
    let field = match matcher.name.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        ":path" => Field::Path,
        name => Field::Header(name.parse().map_err(|_| format!("{name:?} is not a header's name"))?),
    };
    let text = |pattern| Condition::Text(TextMatch { pattern, ignore_case: false });
    let condition = match &matcher.header_match_specifier {
        None => Condition::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(wanted)) => Condition::Present(*wanted),
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => Condition::Text(text_match(matcher)?),
        Some(HeaderMatchSpecifier::RangeMatch(range)) => Condition::Range(range.start, range.end),
        Some(HeaderMatchSpecifier::ExactMatch(exact)) => text(Pattern::Exact(exact.clone())),
        Some(HeaderMatchSpecifier::PrefixMatch(prefix)) => text(Pattern::Prefix(prefix.clone())),
        Some(HeaderMatchSpecifier::SuffixMatch(suffix)) => text(Pattern::Suffix(suffix.clone())),
        Some(HeaderMatchSpecifier::ContainsMatch(part)) => text(Pattern::Contains(part.clone())),
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => text(Pattern::Regex(whole_regex(&regex.regex)?)),
    };
    Ok(HeaderMatch {
        field,
        condition,
        invert: matcher.invert_match,
        missing_is_empty: matcher.treat_missing_header_as_empty,
    })
}

fn query_match(matcher: &QueryParameterMatcher) -> Result<QueryMatch, String> {
    let text = match &matcher.query_parameter_match_specifier {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return Err("a query parameter that must be absent is not built".to_owned());
        }
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => Some(text_match(matcher)?),
    };
    Ok(QueryMatch { name: matcher.name.clone(), text })
}

/// A route's match.
///
/// # Errors
/// Conditions that are not built: cookies, TLS context, filter state, path templates.
pub(crate) fn route_match(matcher: &XdsRouteMatch) -> Result<RouteMatch, String> {
    if !matcher.cookies.is_empty() || matcher.tls_context.is_some() || !matcher.filter_state.is_empty() {
        return Err("matching by cookie, TLS context or filter state is not built".to_owned());
    }
    let path = match &matcher.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.clone()),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path.clone()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => PathMatch::SeparatedPrefix(prefix.clone()),
        Some(PathSpecifier::SafeRegex(regex)) => PathMatch::Regex(whole_regex(&regex.regex)?),
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            return Err(format!("the path matcher {:?} is not known", policy.name));
        }
        None => return Err("a route's match has no path".to_owned()),
    };
    Ok(RouteMatch {
        path,
        ignore_case: matcher.case_sensitive.is_some_and(|sensitive| !sensitive.value),
        headers: matcher.headers.iter().map(header_match).collect::<Result<_, _>>()?,
        query: matcher.query_parameters.iter().map(query_match).collect::<Result<_, _>>()?,
        metadata: matcher.dynamic_metadata.iter().map(metadata_match).collect::<Result<_, _>>()?,
        grpc: matcher.grpc.is_some(),
        fraction: fraction(matcher.runtime_fraction.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_substitutions() {
        assert_eq!(millionths(&FractionalPercent { numerator: 50, denominator: 0 }), 500_000);
        assert_eq!(millionths(&FractionalPercent { numerator: 1, denominator: 2 }), 1);
        let rewrite = RegexMatchAndSubstitute {
            pattern: Some(envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher {
                regex: "^/a/(.*)$".into(),
                ..Default::default()
            }),
            substitution: r"/b/\1$".into(),
        };
        let (pattern, to) = substitution(&rewrite).unwrap();
        assert_eq!(pattern.replace_all("/a/x", to.as_str()), "/b/x$");
        assert!(whole_regex("(").is_err());
        assert!(!whole_regex("a|b").unwrap().is_match("ab"), "the whole text must match");
    }
}
