//! Host names and what "more specific than" means among them (Istio `pkg/config/host/name.go`).

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A host name of Istio's objects: a DNS name, or one with a wildcard as its first label (`*.example.com`), or `*`.
/// Always lower case and without a trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct Hostname(Arc<str>);

impl Hostname {
    /// Takes any text: case is folded and a trailing dot removed. Validity is the validator's business, not this type's.
    pub fn new(text: &str) -> Self {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Self(text.to_ascii_lowercase().into())
        } else {
            Self(text.into())
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name starts with `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// What follows the `*` of a wildcard (`.example.com`, or empty for `*`); `None` for a plain name.
    pub fn wildcard_suffix(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }

    /// Whether some name is matched by both (`*.example.com` and `a.example.com`; `*` and all).
    pub fn overlaps(&self, other: &Hostname) -> bool {
        match (self.wildcard_suffix(), other.wildcard_suffix()) {
            (Some(mine), Some(theirs)) => mine.ends_with(theirs) || theirs.ends_with(mine),
            (Some(mine), None) => other.0.ends_with(mine),
            (None, Some(theirs)) => self.0.ends_with(theirs),
            (None, None) => self == other,
        }
    }

    /// Whether every name that `other` matches is matched by this one.
    pub fn covers(&self, other: &Hostname) -> bool {
        match (self.wildcard_suffix(), other.wildcard_suffix()) {
            (Some(mine), Some(theirs)) => theirs.ends_with(mine),
            (Some(mine), None) => other.0.ends_with(mine),
            (None, Some(_)) => false,
            (None, None) => self == other,
        }
    }

    /// Orders from the most specific to the least: plain names first, then longer wildcards, `*` last; equals by text.
    pub fn by_specificity(&self, other: &Hostname) -> Ordering {
        let rank = |name: &Hostname| (name.is_wildcard(), std::cmp::Reverse(name.0.len()));
        rank(self).cmp(&rank(other)).then_with(|| self.0.cmp(&other.0))
    }

    /// A short name (no dot, no wildcard) becomes `name.namespace.svc.domain`; all others stay as they are. Istio resolves
    /// short names in the namespace of the object that holds them.
    pub fn resolve(text: &str, namespace: &str, domain: &str) -> Hostname {
        if text.contains('.') || text.starts_with('*') || text.contains(':') || text.is_empty() {
            Hostname::new(text)
        } else {
            Hostname::new(&format!("{text}.{namespace}.svc.{domain}"))
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Hostname {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

impl From<String> for Hostname {
    fn from(text: String) -> Self {
        Hostname::new(&text)
    }
}

impl From<&str> for Hostname {
    fn from(text: &str) -> Self {
        Hostname::new(text)
    }
}

impl From<Hostname> for String {
    fn from(name: Hostname) -> Self {
        name.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_take_the_namespace_and_domain() {
        assert_eq!(
            Hostname::resolve("user-service", "shop", "cluster.local").as_str(),
            "user-service.shop.svc.cluster.local"
        );
        assert_eq!(Hostname::resolve("api.example.com", "shop", "cluster.local").as_str(), "api.example.com");
        assert_eq!(Hostname::resolve("*", "shop", "cluster.local").as_str(), "*");
    }

    #[test]
    fn wildcards_cover_and_overlap() {
        let (all, wide, deep, plain) =
            (Hostname::new("*"), Hostname::new("*.a.com"), Hostname::new("*.b.a.com"), Hostname::new("x.b.a.com"));
        assert!(all.covers(&wide) && wide.covers(&deep) && deep.covers(&plain));
        assert!(!deep.covers(&wide) && !plain.covers(&deep) && !wide.covers(&Hostname::new("a.com")));
        assert!(deep.overlaps(&wide) && plain.overlaps(&all) && !plain.overlaps(&Hostname::new("*.c.com")));
    }

    #[test]
    fn the_most_specific_name_sorts_first() {
        let mut names = ["*", "*.a.com", "b.com", "*.b.a.com", "long.a.com"].map(Hostname::new).to_vec();
        names.sort_by(Hostname::by_specificity);
        assert_eq!(
            names.iter().map(Hostname::as_str).collect::<Vec<_>>(),
            ["long.a.com", "b.com", "*.b.a.com", "*.a.com", "*"]
        );
    }

    #[test]
    fn case_and_trailing_dot_do_not_matter() {
        assert_eq!(Hostname::new("API.Example.com."), Hostname::new("api.example.com"));
    }
}
