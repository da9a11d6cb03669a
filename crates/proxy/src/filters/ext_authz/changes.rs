//! What is done to a request that passes, and to its answer.

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Uri};

use crate::filter::{Exchange, HeaderChange, How};

/// Headers that say how a message is framed: nobody but those who write it may.
const FRAMING: [HeaderName; 6] = [
    http::header::CONTENT_LENGTH,
    http::header::TRANSFER_ENCODING,
    http::header::CONNECTION,
    http::header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether somebody else may write the header.
pub(super) fn is_free(name: &HeaderName) -> bool {
    !FRAMING.contains(name)
}

/// All of it, in the order in which it is done.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) headers: Vec<Change>,
    pub(super) remove: Vec<String>,
    pub(super) answer: Vec<HeaderChange>,
    pub(super) query_set: Vec<(String, String)>,
    pub(super) query_remove: Vec<String>,
}

/// A change of the request's head.
#[derive(Debug)]
pub(super) enum Change {
    Header(HeaderChange),
    Path(String),
    Method(Method),
    Host(HeaderValue),
}

impl Change {
    /// Of a header as Envoy names it, where those of the head's first line begin with a colon. What cannot be is none.
    pub(super) fn of(name: &str, value: &[u8], how: How) -> Option<Self> {
        let value = HeaderValue::from_bytes(value).ok()?;
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        Some(match name.to_ascii_lowercase().as_str() {
            ":path" => Self::Path(text(&value)?),
            ":method" => Self::Method(text(&value)?.parse().ok()?),
            ":authority" | "host" => Self::Host(value),
            name if name.starts_with(':') => return None,
            name => {
                let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(is_free)?;
                Self::Header(HeaderChange { name, value, how })
            }
        })
    }
}

impl Changes {
    /// Whether the request is another by it.
    pub(super) fn changes_request(&self) -> bool {
        !(self.headers.is_empty()
            && self.remove.is_empty()
            && self.query_set.is_empty()
            && self.query_remove.is_empty())
    }

    pub(super) fn apply(self, exchange: &mut Exchange<'_>) {
        let head = &mut *exchange.head;
        for change in &self.headers {
            match change {
                Change::Header(change) => change.apply(&mut head.headers),
                Change::Path(path) => set_path(&mut head.uri, path),
                Change::Method(method) => head.method = method.clone(),
                Change::Host(host) => exchange.notes.authority = Some(host.clone()),
            }
        }
        for name in self.remove.iter().filter(|name| !name.eq_ignore_ascii_case("host")) {
            if let Some(name) = HeaderName::from_bytes(name.as_bytes()).ok().filter(is_free) {
                head.headers.remove(name);
            }
        }
        if !self.query_set.is_empty() || !self.query_remove.is_empty() {
            let query = self.query(head.uri.query().unwrap_or_default());
            let path = head.uri.path();
            let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
            set_path(&mut head.uri, &path);
        }
        exchange.notes.answer_edits.extend(self.answer);
    }

    /// The query with its parameters in the order of their names (Envoy).
    fn query(&self, query: &str) -> String {
        let mut all: Vec<(&str, &str)> = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            all.push(part.split_once('=').unwrap_or((part, "")));
        }
        for (name, value) in &self.query_set {
            all.retain(|(known, _)| known != name);
            all.push((name, value));
        }
        all.retain(|(name, _)| !self.query_remove.iter().any(|removed| removed == name));
        all.sort_by_key(|(name, _)| *name);
        all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }
}

fn set_path(uri: &mut Uri, path: &str) {
    if let Ok(path) = PathAndQuery::try_from(path) {
        *uri = Uri::from(path);
    }
}
