//! Who may do what, compiled (Envoy `config.rbac.v3`): a tree of tests for each policy, asked with what is known of a connection
//! and, if there is one, of its request. Nothing is looked up and nothing is kept while it is asked.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use regex::Regex;
use serde_json::Value;

use super::metadata_match::MetadataMatch;
use super::route::matcher::{HeaderMatch, RequestView};
use super::text_match::TextMatch;
use crate::facts::ConnFacts;
use crate::failure::Refusal;
use crate::metadata::Metadata;
use crate::telemetry::metrics::Decided;

/// What is decided on.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The connection.
    pub connection: &'a ConnFacts,
    /// Who asks, as far as the proxies in between are believed.
    pub client: IpAddr,
    /// The request, if the connection carries some.
    pub request: Option<RequestView<'a>>,
    /// What filters in front told of it.
    pub metadata: Option<&'a Metadata>,
}

/// One test. What cannot be known of the subject does not hold.
#[derive(Debug)]
pub enum Test {
    /// It holds.
    Always,
    /// All of these hold.
    All(Vec<Test>),
    /// One of these holds.
    Any(Vec<Test>),
    /// This does not hold.
    Not(Box<Test>),
    /// A header of the request.
    Header(HeaderMatch),
    /// The path, without its query.
    Path(TextMatch),
    /// The same, by a template.
    Template(Regex),
    /// The address that was called.
    DestinationIp(IpNet),
    /// Its port, from the first up to but without the second.
    DestinationPort(i64, i64),
    /// The server name of the handshake.
    ServerName(TextMatch),
    /// The peer's certificate has a name like this, or is any at all.
    Peer(Option<TextMatch>),
    /// The address of whoever connected.
    CallerIp(IpNet),
    /// The address of whoever asks.
    ClientIp(IpNet),
    /// What filters in front told.
    Metadata(MetadataMatch),
}

impl Test {
    /// Whether it holds.
    pub fn holds(&self, subject: &Subject<'_>) -> bool {
        let connection = subject.connection;
        match self {
            Test::Always => true,
            Test::All(tests) => tests.iter().all(|test| test.holds(subject)),
            Test::Any(tests) => tests.iter().any(|test| test.holds(subject)),
            Test::Not(test) => !test.holds(subject),
            Test::Header(header) => subject.request.as_ref().is_some_and(|request| header.matches_some(request)),
            Test::Path(text) => path(subject).is_some_and(|path| text.matches(path)),
            Test::Template(template) => path(subject).is_some_and(|path| template.is_match(path)),
            Test::DestinationIp(range) => range.contains(&connection.destination.ip().to_canonical()),
            Test::DestinationPort(from, to) => (*from..*to).contains(&i64::from(connection.destination.port())),
            Test::ServerName(text) => text.matches(connection.server_name.as_deref().unwrap_or("")),
            Test::Peer(name) => is_peer(connection, name.as_ref()),
            Test::CallerIp(range) => range.contains(&connection.remote.ip().to_canonical()),
            Test::ClientIp(range) => range.contains(&subject.client.to_canonical()),
            Test::Metadata(metadata) => metadata.matches(subject.metadata),
        }
    }

    /// Whether it asks for the address of whoever asks.
    pub fn asks_client(&self) -> bool {
        match self {
            Test::ClientIp(_) => true,
            Test::All(tests) | Test::Any(tests) => tests.iter().any(Test::asks_client),
            Test::Not(test) => test.asks_client(),
            _ => false,
        }
    }
}

fn path<'a>(subject: &Subject<'a>) -> Option<&'a str> {
    subject.request.as_ref().and_then(RequestView::path)
}

/// A certificate's names are its URIs, its DNS names and its subject, in this order (Envoy `Principal.authenticated`).
fn is_peer(connection: &ConnFacts, name: Option<&TextMatch>) -> bool {
    match (&connection.peer, name) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(peer), Some(name)) => {
            peer.uris.iter().chain(&peer.dns).any(|known| name.matches(known)) || name.matches(&peer.subject)
        }
    }
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    /// Its name.
    pub name: Arc<Value>,
    /// One of these must hold …
    pub permissions: Vec<Test>,
    /// … and one of these.
    pub principals: Vec<Test>,
    /// What is said if the policy refuses.
    pub refusal: Arc<Refusal>,
}

impl Policy {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.permissions.iter().any(|test| test.holds(subject))
            && self.principals.iter().any(|test| test.holds(subject))
    }
}

/// Policies of one action, in the order of their names.
#[derive(Debug)]
pub enum Engine {
    /// One must match; else this is said.
    Allow(Vec<Policy>, Arc<Refusal>),
    /// None may match.
    Deny(Vec<Policy>),
}

impl Engine {
    /// What is said to a subject that is refused.
    pub fn refuses(&self, subject: &Subject<'_>) -> Option<&Arc<Refusal>> {
        self.judge(subject).1
    }

    /// The policy that matches, if it is of matter which, and what is said if the subject is refused.
    fn judge(&self, subject: &Subject<'_>) -> (Option<&Policy>, Option<&Arc<Refusal>>) {
        let matching = self.policies().iter().find(|policy| policy.matches(subject));
        let refusal = match self {
            Engine::Allow(_, otherwise) => matching.is_none().then_some(otherwise),
            Engine::Deny(_) => matching.map(|policy| &policy.refusal),
        };
        (matching, refusal)
    }

    fn policies(&self) -> &[Policy] {
        match self {
            Engine::Allow(policies, _) | Engine::Deny(policies) => policies,
        }
    }
}

/// What is noted for the filters behind of policies that only tell (Envoy's `shadow_effective_policy_id` and
/// `shadow_engine_result`): the keys and the words, made once.
#[derive(Debug)]
pub struct Notes {
    filter: &'static str,
    policy: Arc<str>,
    result: Arc<str>,
    allowed: Arc<Value>,
    denied: Arc<Value>,
}

impl Notes {
    /// For the filter of this name; `prefix` stands before its keys.
    pub fn new(filter: &'static str, prefix: &str) -> Self {
        Self {
            filter,
            policy: format!("{prefix}shadow_effective_policy_id").into(),
            result: format!("{prefix}shadow_engine_result").into(),
            allowed: Arc::new("allowed".into()),
            denied: Arc::new("denied".into()),
        }
    }
}

/// What policies that only tell found.
#[derive(Debug)]
pub struct Found {
    policy: Option<Arc<Value>>,
    refused: bool,
}

/// What one filter decides.
#[derive(Debug)]
pub struct Guard {
    /// What counts.
    pub rules: Option<Engine>,
    /// What is only told.
    pub shadow: Option<Engine>,
    /// How it is told.
    pub notes: Notes,
}

impl Guard {
    /// What the policies that only tell find, and counts it.
    pub fn finds(&self, subject: &Subject<'_>, decided: &mut Decided) -> Option<Found> {
        let (policy, refusal) = self.shadow.as_ref()?.judge(subject);
        match refusal {
            None => decided.shadow_allowed += 1,
            Some(refusal) => {
                decided.shadow_denied += 1;
                tracing::debug!(details = %refusal.details, "a policy that only tells refuses this");
            }
        }
        Some(Found { policy: policy.map(|policy| Arc::clone(&policy.name)), refused: refusal.is_some() })
    }

    /// Tells it to the filters behind.
    pub fn tell(&self, found: Found, metadata: &mut Metadata) {
        let notes = &self.notes;
        if let Some(policy) = found.policy {
            metadata.tell(notes.filter, &notes.policy, policy);
        }
        let result = if found.refused { &notes.denied } else { &notes.allowed };
        metadata.tell(notes.filter, &notes.result, Arc::clone(result));
    }

    /// What is said to a subject that is refused, and counts what was decided.
    pub fn refuses(&self, subject: &Subject<'_>, decided: &mut Decided) -> Option<&Arc<Refusal>> {
        let refusal = self.rules.as_ref()?.refuses(subject);
        match refusal {
            None => decided.allowed += 1,
            Some(_) => decided.denied += 1,
        }
        refusal
    }

    /// Whether some test asks for the address of whoever asks.
    pub fn asks_client(&self) -> bool {
        let policies = [&self.rules, &self.shadow].into_iter().flatten().flat_map(Engine::policies);
        policies.flat_map(|policy| &policy.principals).any(Test::asks_client)
    }
}
