//! When a route applies (Envoy `RouteMatch`).

use http::HeaderName;
use http::request::Parts as RequestHead;
use rand::RngExt;
use rand::rngs::SmallRng;
use regex::Regex;

use crate::metadata::Metadata;
use crate::snapshot::metadata_match::MetadataMatch;
use crate::snapshot::text_match::TextMatch;

/// Conditions of a route; all must hold.
#[derive(Debug, Default)]
pub struct RouteMatch {
    /// Of the path.
    pub path: PathMatch,
    /// Letters of the path match in either case (not for regular expressions).
    pub ignore_case: bool,
    /// Of headers.
    pub headers: Vec<HeaderMatch>,
    /// Of query parameters.
    pub query: Vec<QueryMatch>,
    /// Of what filters told.
    pub metadata: Vec<MetadataMatch>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// The share of requests for which the route applies, in millionths.
    pub fraction: Option<u32>,
}

/// Condition of the path, without its query.
#[derive(Debug)]
pub enum PathMatch {
    /// It starts so.
    Prefix(String),
    /// It is so.
    Exact(String),
    /// It is this or starts with this and a slash.
    SeparatedPrefix(String),
    /// It matches as a whole.
    Regex(Regex),
    /// The request is a CONNECT.
    Connect,
}

impl Default for PathMatch {
    fn default() -> Self {
        PathMatch::Prefix("/".to_owned())
    }
}

/// Condition of one header.
#[derive(Debug)]
pub struct HeaderMatch {
    /// Which.
    pub field: Field,
    /// What of it.
    pub condition: Condition,
    /// The opposite is wanted.
    pub invert: bool,
    /// A missing header counts as an empty one.
    pub missing_is_empty: bool,
}

/// A header or a pseudo header.
#[derive(Debug)]
pub enum Field {
    /// `:method`.
    Method,
    /// `:authority` or `host`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// `:path`, with its query.
    Path,
    /// A header.
    Header(HeaderName),
}

/// Condition of a header's value.
#[derive(Debug)]
pub enum Condition {
    /// It is there (or, false, it is not).
    Present(bool),
    /// The text.
    Text(TextMatch),
    /// A whole number from the first up to but without the second.
    Range(i64, i64),
}

/// Condition of one query parameter.
#[derive(Debug)]
pub struct QueryMatch {
    /// Its name.
    pub name: String,
    /// Text that its first value must match; `None`: it only must be there.
    pub text: Option<TextMatch>,
}

/// The parts of a request that routes look at.
#[derive(Debug)]
pub struct RequestView<'a> {
    head: &'a RequestHead,
    authority: &'a str,
    tls: bool,
    path: &'a str,
    metadata: Option<&'a Metadata>,
}

impl<'a> RequestView<'a> {
    /// Of a head; `authority` is the host that was asked for.
    pub fn of(head: &'a RequestHead, authority: &'a str, tls: bool) -> Self {
        Self { head, authority, tls, path: head.uri.path(), metadata: None }
    }

    /// The same with what filters told.
    #[must_use]
    pub fn told(self, metadata: &'a Metadata) -> Self {
        Self { metadata: Some(metadata), ..self }
    }

    /// The path without its query; none of a CONNECT.
    pub fn path(&self) -> Option<&'a str> {
        (self.head.method != http::Method::CONNECT).then_some(self.path)
    }
}

impl RouteMatch {
    /// Whether all conditions hold. The dice are thrown last, so that they are thrown for requests that match otherwise.
    pub fn matches(&self, request: &RequestView<'_>, dice: &mut SmallRng) -> bool {
        self.path.matches(request, self.ignore_case)
            && self.headers.iter().all(|header| header.matches(request))
            && (self.query.is_empty()
                || self.query.iter().all(|query| query.matches(request.head.uri.query().unwrap_or(""))))
            && self.metadata.iter().all(|one| one.matches(request.metadata))
            && (!self.grpc || is_grpc(request.head))
            && self.fraction.is_none_or(|share| dice.random_range(0..1_000_000) < share)
    }
}

/// Whether the request's content type is gRPC's.
pub fn is_grpc(head: &RequestHead) -> bool {
    let Some(kind) = head.headers.get(http::header::CONTENT_TYPE) else { return false };
    match kind.as_bytes().strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || rest[0] == b'+' || rest[0] == b';',
        None => false,
    }
}

impl PathMatch {
    fn matches(&self, request: &RequestView<'_>, ignore_case: bool) -> bool {
        let is_connect = request.head.method == http::Method::CONNECT;
        let path = request.path;
        match self {
            PathMatch::Connect => is_connect,
            // A CONNECT has no path: only the matcher above and a prefix of `/` mean it.
            PathMatch::Prefix(prefix) if is_connect => prefix == "/",
            _ if is_connect => false,
            PathMatch::Prefix(prefix) => starts_with(path, prefix, ignore_case),
            PathMatch::Exact(exact) if ignore_case => path.eq_ignore_ascii_case(exact),
            PathMatch::Exact(exact) => path == exact,
            PathMatch::SeparatedPrefix(prefix) => {
                starts_with(path, prefix, ignore_case) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            PathMatch::Regex(regex) => regex.is_match(path),
        }
    }
}

fn starts_with(path: &str, prefix: &str, ignore_case: bool) -> bool {
    if ignore_case {
        path.as_bytes().get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
    } else {
        path.starts_with(prefix)
    }
}

impl HeaderMatch {
    /// Whether the condition holds. A missing header never matches, whatever `invert` says, unless it is asked about presence
    /// or `missing_is_empty` (Envoy `HeaderMatcher`).
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        let joined;
        let value = match &self.field {
            Field::Method => Some(request.head.method.as_str()),
            Field::Authority => Some(request.authority),
            Field::Scheme => Some(if request.tls { "https" } else { "http" }),
            Field::Path => Some(request.head.uri.path_and_query().map_or("/", |path| path.as_str())),
            Field::Header(name) => {
                let mut values = request.head.headers.get_all(name).iter();
                match (values.next(), values.next()) {
                    (None, _) => None,
                    (Some(one), None) => match one.to_str() {
                        Ok(text) => Some(text),
                        // Bytes that are no text hide nothing of the others: who adds some does not get around a rule.
                        Err(_) => {
                            joined = String::from_utf8_lossy(one.as_bytes()).into_owned();
                            Some(joined.as_str())
                        }
                    },
                    (Some(one), Some(two)) => {
                        // Envoy joins repeated headers by a comma.
                        joined = [one, two]
                            .into_iter()
                            .chain(values)
                            .map(|value| String::from_utf8_lossy(value.as_bytes()))
                            .collect::<Vec<_>>()
                            .join(",");
                        Some(joined.as_str())
                    }
                }
            }
        };
        self.holds(value)
    }

    /// The same, where a header that is repeated is looked at value by value and one is enough: nobody gets around a policy by saying
    /// more (Envoy's RBAC since 1.38).
    pub fn matches_some(&self, request: &RequestView<'_>) -> bool {
        let Field::Header(name) = &self.field else { return self.matches(request) };
        let mut values = request.head.headers.get_all(name).iter().peekable();
        if values.peek().is_none() || matches!(self.condition, Condition::Present(_)) {
            return self.matches(request);
        }
        let each = |value: &http::HeaderValue| self.says(&String::from_utf8_lossy(value.as_bytes()));
        values.any(each) != self.invert
    }

    fn holds(&self, value: Option<&str>) -> bool {
        if let Condition::Present(wanted) = self.condition {
            return (value.is_some() == wanted) != self.invert;
        }
        let value = match value {
            Some(value) => value,
            None if self.missing_is_empty => "",
            None => return false,
        };
        self.says(value) != self.invert
    }

    /// Whether the condition holds of a value, whatever `invert` says.
    fn says(&self, value: &str) -> bool {
        match &self.condition {
            Condition::Present(_) => true,
            Condition::Text(text) => text.matches(value),
            Condition::Range(from, to) => value.parse::<i64>().is_ok_and(|number| (*from..*to).contains(&number)),
        }
    }
}

impl QueryMatch {
    fn matches(&self, query: &str) -> bool {
        let value = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == self.name).then_some(value)
        });
        match (value, &self.text) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(value), Some(text)) => text.matches(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::text_match::Pattern;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn check(matches: RouteMatch, head: &RequestHead) -> bool {
        matches.matches(&RequestView::of(head, "a.b", false), &mut rand::make_rng())
    }

    #[test]
    fn paths() {
        let request = head("GET", "/Shop/cart?x=1", &[]);
        let path = |path, ignore_case| RouteMatch { path, ignore_case, ..RouteMatch::default() };
        assert!(check(path(PathMatch::Prefix("/Sho".into()), false), &request));
        assert!(!check(path(PathMatch::Prefix("/sho".into()), false), &request));
        assert!(check(path(PathMatch::Prefix("/sho".into()), true), &request));
        assert!(check(path(PathMatch::Exact("/shop/CART".into()), true), &request));
        assert!(!check(path(PathMatch::Exact("/Shop/cart?x=1".into()), false), &request));
        assert!(check(path(PathMatch::SeparatedPrefix("/Shop".into()), false), &request));
        assert!(!check(path(PathMatch::SeparatedPrefix("/Sh".into()), false), &request));
        assert!(check(path(PathMatch::Regex(Regex::new("^(?:/Shop/.*)$").unwrap()), false), &request));
        assert!(!check(path(PathMatch::Connect, false), &request));
        assert!(check(path(PathMatch::Connect, false), &head("CONNECT", "a:80", &[])));
    }

    #[test]
    fn headers() {
        let request = head("GET", "/", &[("end-user", "jason"), ("n", "7"), ("many", "a"), ("many", "b")]);
        let name = |name: &'static str| Field::Header(HeaderName::from_static(name));
        let one = |field, condition, invert, missing_is_empty| {
            HeaderMatch { field, condition, invert, missing_is_empty }.matches(&RequestView::of(&request, "a.b", true))
        };
        let text = |text: &str| Condition::Text(TextMatch::exact(text));
        assert!(one(name("end-user"), text("jason"), false, false));
        assert!(!one(name("end-user"), text("jason"), true, false));
        assert!(one(name("many"), text("a,b"), false, false));
        assert!(
            one(name("n"), Condition::Range(7, 8), false, false)
                && !one(name("n"), Condition::Range(0, 7), false, false)
        );
        assert!(
            one(name("none"), Condition::Present(false), false, false)
                && one(name("none"), Condition::Present(true), true, false)
        );
        assert!(!one(name("none"), text("x"), true, false), "a missing header matches no inverted text");
        assert!(one(name("none"), text("x"), true, true));
        assert!(one(Field::Method, text("GET"), false, false) && one(Field::Scheme, text("https"), false, false));
        assert!(one(Field::Authority, text("a.b"), false, false));
        let some = |name: &'static str, condition, invert| {
            let field = Field::Header(HeaderName::from_static(name));
            HeaderMatch { field, condition, invert, missing_is_empty: false }
                .matches_some(&RequestView::of(&request, "a.b", true))
        };
        assert!(some("many", text("b"), false) && !some("many", text("a,b"), false));
        assert!(!some("many", text("b"), true) && some("many", text("c"), true));
        assert!(!some("none", text("c"), false) && !some("none", text("c"), true));
        assert!(some("many", Condition::Present(true), false) && some("none", Condition::Present(false), false));
    }

    #[test]
    fn query_grpc_and_fraction() {
        let request = head("POST", "/?a=1&b&c=x", &[("content-type", "application/grpc+proto")]);
        let query = |name: &str, text| RouteMatch {
            query: vec![QueryMatch { name: name.into(), text }],
            ..RouteMatch::default()
        };
        assert!(check(query("a", Some(TextMatch::exact("1"))), &request));
        assert!(!check(
            query("a", Some(TextMatch { pattern: Pattern::Prefix("2".into()), ignore_case: false })),
            &request
        ));
        assert!(check(query("b", None), &request) && !check(query("d", None), &request));
        assert!(check(RouteMatch { grpc: true, ..RouteMatch::default() }, &request));
        assert!(!check(
            RouteMatch { grpc: true, ..RouteMatch::default() },
            &head("GET", "/", &[("content-type", "application/grpc-web")])
        ));
        assert!(!check(RouteMatch { fraction: Some(0), ..RouteMatch::default() }, &request));
        assert!(check(RouteMatch { fraction: Some(1_000_000), ..RouteMatch::default() }, &request));
    }
}
