//! Where a token stands in a request: headers, query parameters, cookies; and how it is taken out again.

use http::header::{AUTHORIZATION, COOKIE, HeaderName};
use http::request::Parts as RequestHead;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};

/// Where an issuer's tokens stand.
#[derive(Debug)]
pub(super) struct Places {
    /// Headers, each with what stands before the token, in the order of their names.
    headers: Vec<(HeaderName, String)>,
    params: Vec<String>,
    cookies: Vec<String>,
}

/// A token that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The token.
    pub(super) text: String,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Header(HeaderName),
    Param(String),
    Cookie,
}

impl Places {
    /// The given places, or the usual ones: `Authorization: Bearer` and the parameter `access_token` (RFC 6750).
    pub(super) fn of(
        mut headers: Vec<(HeaderName, String)>,
        mut params: Vec<String>,
        mut cookies: Vec<String>,
    ) -> Places {
        if headers.is_empty() && params.is_empty() && cookies.is_empty() {
            headers.push((AUTHORIZATION, "Bearer ".to_owned()));
            params.push("access_token".to_owned());
        }
        headers.sort_by(|one, two| (one.0.as_str(), &one.1).cmp(&(two.0.as_str(), &two.1)));
        headers.dedup();
        for list in [&mut params, &mut cookies] {
            list.sort();
            list.dedup();
        }
        Places { headers, params, cookies }
    }

    /// All tokens that are there.
    pub(super) fn find(&self, head: &RequestHead) -> Vec<Found> {
        let mut found = Vec::new();
        for (name, before) in &self.headers {
            for value in values(&head.headers, name) {
                if let Some(text) = behind(&value, before) {
                    found.push(Found { text: text.to_owned(), place: Place::Header(name.clone()) });
                }
            }
        }
        for name in &self.params {
            let query = head.uri.query().unwrap_or_default();
            if let Some((_, value)) = params(query).find(|(key, _)| decoded(key) == *name) {
                found.push(Found { text: decoded(value), place: Place::Param(name.clone()) });
            }
        }
        for name in &self.cookies {
            if let Some(text) = cookie(&head.headers, name) {
                found.push(Found { text, place: Place::Cookie });
            }
        }
        found
    }
}

impl Found {
    /// Takes the token out of the request. Cookies stay: they carry more than tokens, and Envoy leaves them too.
    pub(super) fn take_out(&self, head: &mut RequestHead) {
        match &self.place {
            Place::Header(name) => drop(head.headers.remove(name)),
            Place::Param(name) => without_param(head, name),
            Place::Cookie => {}
        }
    }
}

/// The values of a header; those of `Authorization`, which has one, as one (Envoy).
fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let values: Vec<String> = values.collect();
    if *name == AUTHORIZATION && values.len() > 1 { vec![values.join(",")] } else { values }
}

/// What stands behind a word, wherever that stands, from the first letter that a token can begin with.
fn behind<'a>(value: &'a str, before: &str) -> Option<&'a str> {
    if before.is_empty() {
        return Some(value);
    }
    let rest = &value[value.find(before)? + before.len()..];
    let of_token = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    Some(rest.find(of_token).map_or(value, |at| &rest[at..]))
}

fn params(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// The text without its `%41`s; what is no such number stays.
fn decoded(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let number = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match number.filter(|_| bytes[at] == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let texts = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let value = pairs.find(|(key, _)| *key == name)?.1;
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Some(inner.unwrap_or(value).to_owned())
}

fn without_param(head: &mut RequestHead, name: &str) {
    let Some(query) = head.uri.query() else { return };
    let is_it = |part: &&str| decoded(part.split_once('=').map_or(*part, |(key, _)| key)) == name;
    let rest: Vec<&str> = query.split('&').filter(|part| !is_it(part)).collect();
    let path = head.uri.path();
    let text = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    if let Ok(path) = PathAndQuery::try_from(text) {
        head.uri = Uri::from(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(uri: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn texts(places: &Places, head: &RequestHead) -> Vec<String> {
        places.find(head).into_iter().map(|found| found.text).collect()
    }

    #[test]
    fn the_usual_places() {
        let places = Places::of(vec![], vec![], vec![]);
        let found = |uri: &str, headers: &[(&str, &str)]| texts(&places, &head(uri, headers));
        assert_eq!(found("/", &[]), [""; 0]);
        assert_eq!(found("/", &[("authorization", "Bearer a.b.c")]), ["a.b.c"]);
        assert_eq!(found("/", &[("authorization", "Bearer   a.b.c")]), ["a.b.c"]);
        assert_eq!(found("/", &[("authorization", "Basic a.b.c")]), [""; 0]);
        assert_eq!(found("/", &[("authorization", "bearer a.b.c")]), [""; 0]);
        assert_eq!(found("/", &[("authorization", "Bearer ")]), ["Bearer "]);
        assert_eq!(found("/x?y=z&access_token=a%2Eb.c&access_token=d", &[]), ["a.b.c"]);
        assert_eq!(found("/?access_token=q", &[("authorization", "Bearer h")]), ["h", "q"]);
    }

    #[test]
    fn other_places() {
        let places = Places::of(
            vec![("x-b".parse().unwrap(), String::new()), ("x-a".parse().unwrap(), "JWT ".into())],
            vec!["t".into()],
            vec!["c".into()],
        );
        let request = head(
            "/?t=p",
            &[("x-b", "one"), ("x-a", "JWT two"), ("x-b", "three"), ("cookie", "a=b; c=\"four\"; c=five")],
        );
        assert_eq!(texts(&places, &request), ["two", "one", "three", "p", "four"]);
        assert_eq!(texts(&places, &head("/", &[("authorization", "Bearer a")])), [""; 0]);
    }

    #[test]
    fn tokens_are_taken_out() {
        let places = Places::of(vec![], vec![], vec![]);
        let mut request = head("/x?a=b&access_token=t&c=%20", &[("authorization", "Bearer t"), ("x", "y")]);
        for found in places.find(&request) {
            found.take_out(&mut request);
        }
        assert_eq!(request.uri, "/x?a=b&c=%20");
        assert_eq!(request.headers.len(), 1);
        let mut request = head("/x?access_token=t", &[]);
        places.find(&request)[0].take_out(&mut request);
        assert_eq!(request.uri, "/x");
    }
}
