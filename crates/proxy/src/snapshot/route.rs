//! Which virtual host, which route, which cluster: Envoy's route configuration, compiled. `RouteTable::host_of` and `decide`
//! are the whole decision for a request's head; they borrow from the table and allocate nothing unless they rewrite.

pub mod matcher;
pub mod edit;
pub mod retry;
pub mod action;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use http::request::Parts as RequestHead;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::filter::HttpFilter;
use crate::metadata::Metadata;
use action::{Action, Forward, WeightedCluster};
use edit::HeaderEdits;
use matcher::RouteMatch;

/// Filters that replace the chain's filter of the same name for a virtual host, a route or a weighted cluster.
pub type Overrides = Vec<(Arc<str>, Arc<dyn HttpFilter>)>;

/// A compiled route configuration.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Its name.
    pub name: Arc<str>,
    /// All virtual hosts.
    pub hosts: Vec<VirtualHost>,
    /// Domains without wildcard, lower case, to the place in `hosts`.
    pub exact: HashMap<String, usize>,
    /// `*.suffix` domains without the star, longest first.
    pub suffixes: Vec<(String, usize)>,
    /// `prefix.*` domains without the star, longest first.
    pub prefixes: Vec<(String, usize)>,
    /// The virtual host of `*`.
    pub any: Option<usize>,
    /// The port in the authority does not count.
    pub ignore_port: bool,
    /// Header changes for all routes.
    pub edits: HeaderEdits,
}

/// A compiled virtual host.
#[derive(Debug)]
pub struct VirtualHost {
    /// Its name.
    pub name: Arc<str>,
    /// Routes, the first match counts.
    pub routes: Vec<Route>,
    /// Plaintext requests are redirected, whatever their route (`require_tls`).
    pub require_tls: bool,
    /// Header changes.
    pub edits: HeaderEdits,
    /// Send `x-envoy-attempt-count` upstream.
    pub count_attempts: bool,
    /// Send `x-envoy-attempt-count` to the caller.
    pub count_attempts_in_response: bool,
    /// Filters in place of the chain's.
    pub overrides: Overrides,
}

/// A compiled route.
#[derive(Debug)]
pub struct Route {
    /// Its name; `default` in Istio if it has none.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: RouteMatch,
    /// What happens.
    pub action: Action,
    /// Header changes.
    pub edits: HeaderEdits,
    /// Filters in place of the chain's.
    pub overrides: Overrides,
    /// The configuration object it comes from (`VirtualService shop/a`).
    pub object: Option<Arc<str>>,
}

/// What was decided for one request.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The table.
    pub table: &'a RouteTable,
    /// The virtual host.
    pub host: &'a VirtualHost,
    /// The route.
    pub route: &'a Route,
}

/// Where a forwarded request goes.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Name of the cluster.
    pub cluster: Cow<'a, str>,
    /// The weighted cluster chosen, if the route has some.
    pub weighted: Option<&'a WeightedCluster>,
}

impl RouteTable {
    /// The virtual host of an authority (Envoy's order: exact, longest suffix, longest prefix, `*`).
    pub fn host_of(&self, authority: &str) -> Option<&VirtualHost> {
        let mut authority = authority;
        if self.ignore_port {
            authority = without_port(authority);
        }
        if self.hosts.len() == 1
            && self.any == Some(0)
            && self.exact.is_empty()
            && self.suffixes.is_empty()
            && self.prefixes.is_empty()
        {
            return self.hosts.first();
        }
        let folded;
        if authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            folded = authority.to_ascii_lowercase();
            authority = &folded;
        }
        let place = self
            .exact
            .get(authority)
            .copied()
            .or_else(|| longer(&self.suffixes, authority, |text, suffix| text.ends_with(suffix)))
            .or_else(|| longer(&self.prefixes, authority, |text, prefix| text.starts_with(prefix)))
            .or(self.any)?;
        self.hosts.get(place)
    }

    /// The decision for a request among the routes of its virtual host, `None` if nothing matches.
    pub fn decide<'a>(
        &'a self,
        host: &'a VirtualHost,
        head: &RequestHead,
        authority: &str,
        tls: bool,
        metadata: &Metadata,
        dice: &mut SmallRng,
    ) -> Option<Decision<'a>> {
        let request = matcher::RequestView::of(head, authority, tls).told(metadata);
        let route = host.routes.iter().find(|route| route.matches.matches(&request, dice))?;
        Some(Decision { table: self, host, route })
    }
}

/// A wildcard stands for at least one character.
fn longer(domains: &[(String, usize)], text: &str, fits: impl Fn(&str, &str) -> bool) -> Option<usize> {
    domains.iter().find(|(part, _)| text.len() > part.len() && fits(text, part)).map(|(_, place)| *place)
}

/// The authority without a port.
pub fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon)
            if !authority[colon..].contains(']')
                && authority[colon + 1..].bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            &authority[..colon]
        }
        _ => authority,
    }
}

impl Forward {
    /// Picks the cluster: the only one, one by weight, or the one that a header names.
    pub fn target<'a>(&'a self, head: &RequestHead, dice: &mut SmallRng) -> Option<Target<'a>> {
        match &self.cluster {
            action::ClusterChoice::One(name) => Some(Target { cluster: Cow::Borrowed(name), weighted: None }),
            action::ClusterChoice::Header(name) => {
                let cluster = head.headers.get(name)?.to_str().ok()?;
                Some(Target { cluster: Cow::Owned(cluster.to_owned()), weighted: None })
            }
            action::ClusterChoice::Weighted { clusters, total } => {
                let mut point = dice.random_range(0..(*total).max(1));
                for weighted in clusters {
                    if point < u64::from(weighted.weight) {
                        return Some(Target { cluster: Cow::Borrowed(&weighted.name), weighted: Some(weighted) });
                    }
                    point -= u64::from(weighted.weight);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> VirtualHost {
        VirtualHost {
            name: name.into(),
            routes: vec![],
            require_tls: false,
            edits: HeaderEdits::default(),
            count_attempts: false,
            count_attempts_in_response: false,
            overrides: vec![],
        }
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let table = RouteTable {
            hosts: vec![host("exact"), host("deep"), host("wide"), host("prefix"), host("any")],
            exact: [("a.b.com".to_owned(), 0), ("a.b.com:80".to_owned(), 0)].into(),
            suffixes: vec![(".b.com".to_owned(), 1), (".com".to_owned(), 2)],
            prefixes: vec![("shop.".to_owned(), 3)],
            any: Some(4),
            ..RouteTable::default()
        };
        for (authority, expected) in [
            ("a.b.com", "exact"),
            ("A.B.com:80", "exact"),
            ("x.b.com", "deep"),
            ("b.com", "wide"),
            ("shop.org", "prefix"),
            (".b.com", "wide"),
            ("org", "any"),
        ] {
            assert_eq!(table.host_of(authority).unwrap().name.as_ref(), expected, "{authority}");
        }
    }

    #[test]
    fn ports_are_cut_only_where_there_are_some() {
        for (authority, expected) in
            [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:b", "a:b")]
        {
            assert_eq!(without_port(authority), expected);
        }
    }
}
