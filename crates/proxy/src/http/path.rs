//! One canonical path, decided once, forwarded as decided (RFC 3986 section 5.2.4, Envoy `normalize_path`, `merge_slashes`,
//! `path_with_escaped_slashes_action`). Pure.

use std::borrow::Cow;

use crate::snapshot::chain::{EscapedSlashes, HttpChain};

/// What becomes of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canonical {
    /// It stays.
    Same,
    /// It becomes this.
    Changed(String),
    /// The caller is sent to this.
    Redirect(String),
    /// It is refused.
    Refused,
}

/// The canonical form of a path (without its query).
pub fn canonical(path: &str, chain: &HttpChain) -> Canonical {
    if !chain.normalize_path && !chain.merge_slashes && chain.escaped_slashes == EscapedSlashes::Keep {
        return Canonical::Same;
    }
    normal(path, chain.normalize_path, chain.merge_slashes, chain.escaped_slashes)
}

fn normal(path: &str, normalize: bool, merge: bool, escaped: EscapedSlashes) -> Canonical {
    // The common case: nothing to do, found out in one pass.
    let suspicious =
        path.bytes().any(|byte| matches!(byte, b'%' | b'\\')) || path.contains("//") || path.contains("/.");
    if !suspicious {
        return Canonical::Same;
    }
    let mut text = Cow::Borrowed(path);
    let mut redirect = false;
    if escaped != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(&text)
    {
        match escaped {
            EscapedSlashes::Reject => return Canonical::Refused,
            EscapedSlashes::Redirect => redirect = true,
            EscapedSlashes::Keep | EscapedSlashes::Unescape => {}
        }
        text = unescaped.into();
    }
    if normalize {
        let decoded = decode_unreserved(&text.replace('\\', "/"));
        match remove_dots(&decoded) {
            Some(clean) => text = clean.into(),
            None => return Canonical::Refused,
        }
    }
    if merge && text.contains("//") {
        let mut merged = String::with_capacity(text.len());
        for letter in text.chars() {
            if letter != '/' || !merged.ends_with('/') {
                merged.push(letter);
            }
        }
        text = merged.into();
    }
    if text == path {
        return Canonical::Same;
    }
    if redirect { Canonical::Redirect(text.into_owned()) } else { Canonical::Changed(text.into_owned()) }
}

fn unescape_slashes(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    let mut found = false;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        match rest.get(at..at + 3).map(str::to_ascii_uppercase).as_deref() {
            Some("%2F") => out.push('/'),
            Some("%5C") => out.push('\\'),
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
                continue;
            }
        }
        found = true;
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    found.then_some(out)
}

/// Escapes of unreserved characters are no different from the characters (RFC 3986 section 2.3), so that `%2e%2e` is seen.
fn decode_unreserved(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let byte = rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                out.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// `None` if the path climbs above its root.
fn remove_dots(path: &str) -> Option<String> {
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (place, segment) in segments.iter().enumerate() {
        match *segment {
            "." if place == last => out.push(""),
            "." => {}
            ".." => {
                out.pop()?;
                if place == last {
                    out.push("");
                }
            }
            other => out.push(other),
        }
    }
    Some(format!("/{}", out.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_path() {
        let changed = |text: &str| Canonical::Changed(text.to_owned());
        let cases = [
            ("/a/b", Canonical::Same),
            ("/a/./b", changed("/a/b")),
            ("/a/../b", changed("/b")),
            ("/a/%2e%2E/b", changed("/b")),
            ("/a\\b", changed("/a/b")),
            ("/a//b", changed("/a/b")),
            ("/a/..", changed("/")),
            ("/..", Canonical::Refused),
            ("/a/../../b", Canonical::Refused),
            ("/a%41", changed("/aA")),
            ("/a%2Fb", Canonical::Same),
            ("/a%zz", Canonical::Same),
        ];
        for (path, expected) in cases {
            assert_eq!(normal(path, true, true, EscapedSlashes::Keep), expected, "{path}");
        }
        assert_eq!(normal("/a%2F..%5cb", true, true, EscapedSlashes::Unescape), changed("/b"));
        assert_eq!(normal("/a%2fb", true, true, EscapedSlashes::Reject), Canonical::Refused);
        assert_eq!(normal("/a%2fb", false, false, EscapedSlashes::Redirect), Canonical::Redirect("/a/b".to_owned()));
    }
}
