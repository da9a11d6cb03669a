//! What a route does: forward, redirect, or answer (Envoy `RouteAction`, `RedirectAction`, `DirectResponseAction`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use regex::Regex;

use super::Overrides;
use super::edit::HeaderEdits;
use super::retry::RetryPlan;

/// What happens to a request.
#[derive(Debug)]
pub enum Action {
    /// It is sent to a cluster.
    Forward(Box<Forward>),
    /// It is answered with another place to go.
    Redirect(Box<Redirect>),
    /// It is answered.
    Direct {
        /// Status.
        status: u16,
        /// Body.
        body: Bytes,
    },
}

/// Where and how a request is forwarded.
#[derive(Debug)]
pub struct Forward {
    /// To which cluster.
    pub cluster: ClusterChoice,
    /// Status when the cluster does not exist.
    pub not_found_status: u16,
    /// Change of the path.
    pub path: PathRewrite,
    /// Change of the authority.
    pub host: HostRewrite,
    /// The host of before is told in `x-forwarded-host` when it changes.
    pub append_forwarded_host: bool,
    /// Time for the whole answer; zero: none.
    pub timeout: Duration,
    /// Time without a byte; `None`: what the listener says.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a stream; zero: none.
    pub max_duration: Option<Duration>,
    /// Upper bound of `grpc-timeout`, which is honoured if this is there; zero: no bound.
    pub grpc_timeout_max: Option<Duration>,
    /// Retries.
    pub retry: Option<RetryPlan>,
    /// Copies.
    pub mirrors: Vec<Mirror>,
    /// Kinds of upgrade allowed or forbidden here, lower case, in place of the listener's.
    pub upgrades: Vec<(String, bool)>,
    /// CONNECT is ended here: bytes go to the upstream as TCP.
    pub ends_connect: bool,
}

/// Which cluster.
#[derive(Debug)]
pub enum ClusterChoice {
    /// This one.
    One(Arc<str>),
    /// The one that this header names.
    Header(HeaderName),
    /// One of these.
    Weighted {
        /// The clusters.
        clusters: Vec<WeightedCluster>,
        /// Sum of their weights.
        total: u64,
    },
}

/// One of several clusters.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Name.
    pub name: Arc<str>,
    /// Weight.
    pub weight: u32,
    /// Header changes.
    pub edits: HeaderEdits,
    /// Change of the authority.
    pub host: HostRewrite,
    /// Filters in place of the chain's.
    pub overrides: Overrides,
}

/// How the path is changed.
#[derive(Debug, Default)]
pub enum PathRewrite {
    /// Not.
    #[default]
    None,
    /// The first so many bytes, which the route matched, become this text.
    Prefix {
        /// Length of what was matched.
        matched: usize,
        /// What it becomes.
        text: String,
    },
    /// The whole path becomes this text.
    Whole(String),
    /// What the expression matches is substituted.
    Regex {
        /// Expression.
        pattern: Regex,
        /// Substitution, in the syntax of the `regex` crate.
        substitution: String,
    },
}

/// How the authority is changed.
#[derive(Debug, Default)]
pub enum HostRewrite {
    /// Not.
    #[default]
    None,
    /// To this.
    Literal(HeaderValue),
    /// To the endpoint's host name.
    Endpoint,
    /// To the value of this header.
    Header(HeaderName),
}

/// A copy of requests to another cluster.
#[derive(Debug)]
pub struct Mirror {
    /// Where.
    pub cluster: Arc<str>,
    /// How many, in millionths.
    pub fraction: u32,
    /// `-shadow` is appended to the authority.
    pub shadow_suffix: bool,
}

/// A redirect.
#[derive(Debug)]
pub struct Redirect {
    /// New scheme.
    pub scheme: Option<String>,
    /// New host.
    pub host: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: PathRewrite,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The query is dropped.
    pub strip_query: bool,
}

impl PathRewrite {
    /// The new path with the old query; `None` if nothing changes.
    pub fn apply(&self, path: &str, query: Option<&str>) -> Option<String> {
        let mut new = match self {
            PathRewrite::None => return None,
            PathRewrite::Prefix { matched, text } => format!("{text}{}", path.get(*matched..).unwrap_or("")),
            PathRewrite::Whole(text) => text.clone(),
            PathRewrite::Regex { pattern, substitution } => {
                pattern.replace_all(path, substitution.as_str()).into_owned()
            }
        };
        if !new.starts_with('/') {
            new.insert(0, '/');
        }
        if let (Some(query), false) = (query, new.contains('?')) {
            new.push('?');
            new.push_str(query);
        }
        Some(new)
    }
}

impl Redirect {
    /// The `location` of the answer.
    pub fn location(&self, tls: bool, authority: &str, path: &str, query: Option<&str>) -> String {
        let old_scheme = if tls { "https" } else { "http" };
        let scheme = self.scheme.as_deref().unwrap_or(old_scheme);
        let bare = super::without_port(authority);
        let host = match (&self.host, self.port) {
            (Some(host), Some(port)) => with_port(host, port, scheme),
            (Some(host), None) => host.clone(),
            (None, Some(port)) => with_port(bare, port, scheme),
            // Envoy drops a port that was the old scheme's default when the scheme changes.
            (None, None) if scheme != old_scheme => match (old_scheme, authority.strip_prefix(bare)) {
                ("http", Some(":80")) | ("https", Some(":443")) => bare.to_owned(),
                _ => authority.to_owned(),
            },
            (None, None) => authority.to_owned(),
        };
        let query = if self.strip_query { None } else { query };
        let path = self.path.apply(path, query).unwrap_or_else(|| match query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        });
        format!("{scheme}://{host}{path}")
    }
}

fn with_port(host: &str, port: u16, scheme: &str) -> String {
    match (scheme, port) {
        ("http", 80) | ("https", 443) => host.to_owned(),
        _ => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_keep_the_query() {
        let prefix = PathRewrite::Prefix { matched: 5, text: "/new".into() };
        assert_eq!(prefix.apply("/shop/a", Some("x=1")).unwrap(), "/new/a?x=1");
        assert_eq!(PathRewrite::Prefix { matched: 6, text: "/".into() }.apply("/shop/a", None).unwrap(), "/a");
        assert_eq!(PathRewrite::Whole("/all".into()).apply("/shop", Some("q")).unwrap(), "/all?q");
        let regex = PathRewrite::Regex {
            pattern: Regex::new("^/service/([^/]+)(/.*)$").unwrap(),
            substitution: "${2}/instance/${1}".into(),
        };
        assert_eq!(regex.apply("/service/foo/v1/api", None).unwrap(), "/v1/api/instance/foo");
        assert_eq!(PathRewrite::None.apply("/", None), None);
    }

    #[test]
    fn redirects() {
        let base = || Redirect {
            scheme: None,
            host: None,
            port: None,
            path: PathRewrite::None,
            status: 301,
            strip_query: false,
        };
        let https = Redirect { scheme: Some("https".into()), ..base() };
        assert_eq!(https.location(false, "a.b:80", "/x", Some("q=1")), "https://a.b/x?q=1");
        assert_eq!(https.location(false, "a.b:8080", "/x", None), "https://a.b:8080/x");
        let moved = Redirect {
            host: Some("c.d".into()),
            port: Some(81),
            path: PathRewrite::Whole("/y".into()),
            strip_query: true,
            ..base()
        };
        assert_eq!(moved.location(false, "a.b", "/x", Some("q=1")), "http://c.d:81/y");
    }
}
