//! AuthorizationPolicies as Envoy's RBAC filters, one for each action in the order in which they decide: CUSTOM, DENY, ALLOW
//! (Istio `pilot/pkg/security/authz`); whoever is to be asked besides is asked by `ext_authz`. What cannot be said of a connection, or not at all, lets nobody in: an ALLOW rule with
//! it is left out, a DENY rule goes without it and denies more.

use std::sync::Arc;

use api::crd::AuthorizationPolicy;
use api::crd::authorization_policy::{Action, Condition, Operation, Rule, Source};
use api::xds::core::TypedExtensionConfig;
use api::xds::{Any, pack};
use envoy_types::pb::envoy::config::rbac::v3::permission::{self, Rule as Is};
use envoy_types::pb::envoy::config::rbac::v3::principal::{self, Identifier};
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action as Verdict;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac, SourcedMetadata};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, PathMatcher, RegexMatcher, StringMatcher, ValueMatcher, list_matcher, path_matcher,
    string_matcher::MatchPattern, value_matcher,
};

use super::ext_authz::{self, Noted};
use super::jwt::{NAME as TOKENS, PAYLOAD};
use super::wire::cidr;
use crate::intrinsic::{asked_decision, decision_of};
use crate::scope::Scope;
use crate::snapshot::providers::Provider;
use crate::snapshot::{Authorization, Plain};

/// Name of the HTTP filter.
pub(super) const HTTP: &str = "envoy.filters.http.rbac";
/// Name of the network filter.
pub(super) const NETWORK: &str = "envoy.filters.network.rbac";

/// A filter: its name and its configuration.
pub(super) type Written = (&'static str, Any);

/// Policies whose names begin so ask their provider (Istio).
const CUSTOM: Marks = Marks { prefix: "istio_ext_authz_", policies: "istio-ext-authz-" };
/// The same for rules that ask for a provider's decision. The names of all others come before theirs: of several rules that match,
/// the first by name is noted, so that nobody is asked about what is allowed anyway.
const DECISION: Marks = Marks { prefix: "mesh_decision_", policies: "mesh-decision-" };
const UNDECIDED: &str = "allowed-";

/// What a filter that decides nothing writes down for the one behind it.
#[derive(Clone, Copy)]
struct Marks {
    prefix: &'static str,
    policies: &'static str,
}

/// The HTTP filters that ask somebody else, before anything else is decided.
pub(super) fn asked_first(scope: &Scope) -> Vec<Written> {
    custom(scope, Traffic::Http)
}

/// The HTTP filters of all other policies.
pub(super) fn http(scope: &Scope) -> Vec<Written> {
    let mut all: Vec<Written> = enforced(scope, Action::Deny, Traffic::Http).into_iter().collect();
    if let Some(provider) = decider(scope) {
        let rules = undecided(scope, &provider.name);
        all.push(
            Engines { verdict: Verdict::Deny, rules: None, shadow: Some(rules) }.write(Traffic::Http, DECISION.prefix),
        );
        let noted = Noted { filter: HTTP, prefix: DECISION.prefix, policies: DECISION.policies };
        all.push((ext_authz::HTTP, ext_authz::http(provider, noted)));
    }
    all.extend(enforced(scope, Action::Allow, Traffic::Http));
    all
}

/// The network filters.
pub(super) fn network(scope: &Scope) -> Vec<Written> {
    let mut all = custom(scope, Traffic::Bytes);
    all.extend([Action::Deny, Action::Allow].into_iter().filter_map(|action| enforced(scope, action, Traffic::Bytes)));
    all
}

/// What is known of the traffic that is decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    Http,
    Bytes,
}

/// All policies of one action.
struct Engines {
    verdict: Verdict,
    rules: Option<Rbac>,
    /// Of those that are only to be told what they would decide.
    shadow: Option<Rbac>,
}

impl Engines {
    fn write(self, traffic: Traffic, shadow_prefix: &str) -> Written {
        let shadow_rules_stat_prefix = match (&self.shadow, self.verdict) {
            (None, _) => "",
            (Some(_), _) if !shadow_prefix.is_empty() => shadow_prefix,
            (Some(_), Verdict::Allow) => "istio_dry_run_allow_",
            (Some(_), _) => "istio_dry_run_deny_",
        };
        let shadow_rules_stat_prefix = shadow_rules_stat_prefix.to_owned();
        match traffic {
            Traffic::Http => {
                let config = HttpRbac {
                    shadow_rules_stat_prefix,
                    rules: self.rules,
                    shadow_rules: self.shadow,
                    ..HttpRbac::default()
                };
                (HTTP, pack(&config))
            }
            Traffic::Bytes => {
                let config = NetworkRbac {
                    stat_prefix: "tcp.".into(),
                    shadow_rules_stat_prefix,
                    rules: self.rules,
                    shadow_rules: self.shadow,
                    ..NetworkRbac::default()
                };
                (NETWORK, pack(&config))
            }
        }
    }
}

/// The filter of the policies of an action that decide by themselves.
fn enforced(scope: &Scope, action: Action, traffic: Traffic) -> Option<Written> {
    let verdict = if action == Action::Allow { Verdict::Allow } else { Verdict::Deny };
    let decider = decider(scope).filter(|_| traffic == Traffic::Http).map(|provider| provider.name.as_str());
    let rules = engine(scope, &Kept { action, verdict, traffic, dry_run: false, decider }, |_, name| name);
    let shadow = engine(scope, &Kept { action, verdict, traffic, dry_run: true, decider: None }, |_, name| name);
    let found = rules.is_some() || shadow.is_some();
    found.then(|| Engines { verdict, rules, shadow }.write(traffic, ""))
}

/// The filters of policies that ask a provider: what they match is noted, and asked about. Where nobody can be asked, it is denied.
fn custom(scope: &Scope, traffic: Traffic) -> Vec<Written> {
    let kept = Kept { action: Action::Custom, verdict: Verdict::Deny, traffic, dry_run: false, decider: None };
    let provider = scope.custom_provider();
    let name = |policy: &AuthorizationPolicy, name: String| {
        let begin = CUSTOM.policies;
        let name = match &policy.provider {
            Some(provider) => format!("{begin}{}-{name}", provider.name),
            None => format!("{begin}{name}"),
        };
        if provider.is_some() { name } else { format!("{name}-deny-due-to-bad-CUSTOM-action") }
    };
    let Some(rules) = engine(scope, &kept, name) else { return Vec::new() };
    let Some(provider) = provider else {
        return vec![Engines { verdict: Verdict::Deny, rules: Some(rules), shadow: None }.write(traffic, "")];
    };
    let noted = |filter| Noted { filter, prefix: CUSTOM.prefix, policies: CUSTOM.policies };
    let asks = match traffic {
        Traffic::Http => (ext_authz::HTTP, ext_authz::http(provider, noted(HTTP))),
        // Nobody who is asked over HTTP can be asked about connections (Istio).
        Traffic::Bytes => match ext_authz::network(provider, noted(NETWORK)) {
            Some(config) => (ext_authz::NETWORK, config),
            None => return Vec::new(),
        },
    };
    let notes = Engines { verdict: Verdict::Deny, rules: None, shadow: Some(rules) };
    vec![notes.write(traffic, CUSTOM.prefix), asks]
}

/// Whose decision rules ask for, if it can be asked for.
fn decider(scope: &Scope) -> Option<&Arc<Provider>> {
    scope.decision_provider()
}

/// All rules that allow something, as notes: those that ask for the decision match what is to be asked about.
fn undecided(scope: &Scope, decider: &str) -> Rbac {
    let kept = Kept {
        action: Action::Allow,
        verdict: Verdict::Allow,
        traffic: Traffic::Http,
        dry_run: false,
        decider: Some(decider),
    };
    let mut rbac = Rbac { action: Verdict::Deny as i32, ..Rbac::default() };
    each_rule(scope, &kept, |policy, rule, name, written| {
        let name = match decision_of(&policy.rules[rule]) {
            Some(_) => format!("{}{decider}-{name}", DECISION.policies),
            None => format!("{UNDECIDED}{name}"),
        };
        rbac.policies.insert(name, written);
    });
    rbac
}

/// Which policies are written, and for what.
struct Kept<'a> {
    action: Action,
    verdict: Verdict,
    traffic: Traffic,
    dry_run: bool,
    /// Whose decision is asked for elsewhere, so that rules that ask for it need not.
    decider: Option<&'a str>,
}

/// A policy that says nothing, and the name of its first rule.
type Silent = (Arc<Plain<Authorization>>, String);

/// Calls with each rule that can be said: its policy, its number there, its name. Says whether there is any policy, and the names of
/// those that say nothing.
fn each_rule(
    scope: &Scope,
    kept: &Kept<'_>,
    mut call: impl FnMut(&AuthorizationPolicy, usize, String, Policy),
) -> (bool, Vec<Silent>) {
    let mesh = &scope.snapshot.mesh;
    let mut domains = vec![mesh.trust_domain.as_str()];
    domains.extend(mesh.trust_domain_aliases.iter().map(String::as_str));
    let (mut found, mut silent) = (false, Vec::new());
    let bound =
        |one: &&Arc<Plain<Authorization>>| one.spec.policy.action == kept.action && one.spec.dry_run == kept.dry_run;
    for bound in scope.authorizations.iter().filter(bound) {
        found = true;
        let policy = &bound.spec.policy;
        let name = |rule: usize| format!("ns[{}]-policy[{}]-rule[{rule}]", bound.namespace, bound.name);
        let writer = Writer {
            allows: kept.verdict == Verdict::Allow,
            traffic: kept.traffic,
            domains: &domains,
            namespace: &bound.namespace,
            decider: kept.decider,
        };
        let mut written_any = false;
        for (index, rule) in policy.rules.iter().enumerate() {
            if let Ok(written) = writer.rule(rule) {
                written_any = true;
                call(policy, index, name(index), written);
            }
        }
        if !written_any {
            silent.push((bound.clone(), name(0)));
        }
    }
    (found, silent)
}

fn engine(scope: &Scope, kept: &Kept<'_>, name: impl Fn(&AuthorizationPolicy, String) -> String) -> Option<Rbac> {
    let mut rbac = Rbac { action: kept.verdict as i32, ..Rbac::default() };
    let (found, silent) = each_rule(scope, kept, |policy, _, rule, written| {
        rbac.policies.insert(name(policy, rule), written);
    });
    // Nothing is matched, but whoever is refused for that is told by which policy.
    for (bound, rule) in silent {
        let never = Policy {
            permissions: vec![Permission::not(Permission::always())],
            principals: vec![Principal::not(Principal::always())],
            ..Policy::default()
        };
        rbac.policies.insert(name(&bound.spec.policy, rule), never);
    }
    found.then_some(rbac)
}

/// It cannot be said: of this traffic, or at all.
#[derive(Debug)]
struct Unsayable;

type Said<T> = Result<T, Unsayable>;

/// What permissions and principals have in common.
trait Term: Sized {
    fn always() -> Self;
    fn all(terms: Vec<Self>) -> Self;
    fn any(terms: Vec<Self>) -> Self;
    fn not(term: Self) -> Self;
}

impl Term for Permission {
    fn always() -> Self {
        permits(Is::Any(true))
    }
    fn all(rules: Vec<Self>) -> Self {
        permits(Is::AndRules(permission::Set { rules }))
    }
    fn any(rules: Vec<Self>) -> Self {
        permits(Is::OrRules(permission::Set { rules }))
    }
    fn not(term: Self) -> Self {
        permits(Is::NotRule(Box::new(term)))
    }
}

impl Term for Principal {
    fn always() -> Self {
        identified(Identifier::Any(true))
    }
    fn all(ids: Vec<Self>) -> Self {
        identified(Identifier::AndIds(principal::Set { ids }))
    }
    fn any(ids: Vec<Self>) -> Self {
        identified(Identifier::OrIds(principal::Set { ids }))
    }
    fn not(term: Self) -> Self {
        identified(Identifier::NotId(Box::new(term)))
    }
}

fn permits(rule: Is) -> Permission {
    Permission { rule: Some(rule) }
}

fn identified(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

/// Writes the rules of one policy.
struct Writer<'a> {
    allows: bool,
    traffic: Traffic,
    /// The mesh's trust domain, then its aliases.
    domains: &'a [&'a str],
    namespace: &'a str,
    /// Whose decision is asked for elsewhere.
    decider: Option<&'a str>,
}

impl Writer<'_> {
    fn rule(&self, rule: &Rule) -> Said<Policy> {
        let (mut permissions, mut principals) = (Vec::new(), Vec::new());
        for condition in &rule.when {
            match self.condition(condition) {
                Ok(Terms::Permissions(terms)) => permissions.extend(terms),
                Ok(Terms::Principals(terms)) => principals.extend(terms),
                Err(Unsayable) if self.allows => return Err(Unsayable),
                Err(Unsayable) => {}
            }
        }
        let operations = rule.to.iter().map(|to| self.operation(to.operation.as_ref(), &permissions));
        let sources = rule.from.iter().map(|from| self.source(from.source.as_ref(), &principals));
        let mut policy = Policy {
            permissions: operations.collect::<Said<_>>()?,
            principals: sources.collect::<Said<_>>()?,
            ..Policy::default()
        };
        if rule.to.is_empty() {
            policy.permissions.push(joined(permissions));
        }
        if rule.from.is_empty() {
            policy.principals.push(joined(principals));
        }
        Ok(policy)
    }

    fn operation(&self, operation: Option<&Operation>, also: &[Permission]) -> Said<Permission> {
        let Some(of) = operation.filter(|operation| **operation != Operation::default()) else {
            return self.nothing(also);
        };
        let mut terms =
            self.field(&of.hosts, &of.not_hosts, |host| self.of_request(|| header_of(":authority", host, true)))?;
        terms.extend(
            self.field(&of.methods, &of.not_methods, |method| self.of_request(|| header_of(":method", method, false)))?,
        );
        terms.extend(self.field(&of.paths, &of.not_paths, |path| self.of_request(|| path_of(path)))?);
        terms.extend(self.field(&of.ports, &of.not_ports, port)?);
        Ok(joined(terms.into_iter().chain(also.iter().cloned()).collect()))
    }

    fn source(&self, source: Option<&Source>, also: &[Principal]) -> Said<Principal> {
        let Some(of) = source.filter(|source| **source != Source::default()) else { return self.nothing(also) };
        let (is, is_not) = (self.aliased(&of.principals), self.aliased(&of.not_principals));
        let mut terms = self.field(&is, &is_not, |value| Ok(peer(identity(value))))?;
        let tokens = (&of.request_principals, &of.not_request_principals);
        terms.extend(self.field(tokens.0, tokens.1, |value| self.of_request(|| Ok(token_principal(value))))?);
        terms.extend(self.field(&of.namespaces, &of.not_namespaces, |value| Ok(peer(of_namespace(value))))?);
        let accounts = (&of.service_accounts, &of.not_service_accounts);
        terms.extend(self.field(accounts.0, accounts.1, |value| Ok(peer(self.of_account(value))))?);
        let (is, is_not) = (self.domains_of(&of.trust_domains), self.domains_of(&of.not_trust_domains));
        terms.extend(self.field(&is, &is_not, |value| Ok(peer(of_domain(value))))?);
        terms.extend(self.field(&of.ip_blocks, &of.not_ip_blocks, caller)?);
        terms.extend(self.field(&of.remote_ip_blocks, &of.not_remote_ip_blocks, client)?);
        Ok(joined(terms.into_iter().chain(also.iter().cloned()).collect()))
    }

    /// An entry that says nothing is a mistake: it is not to let everybody in.
    fn nothing<T: Term + Clone>(&self, also: &[T]) -> Said<T> {
        if self.allows { Err(Unsayable) } else { Ok(joined(also.to_vec())) }
    }

    fn condition(&self, condition: &Condition) -> Said<Terms> {
        let Condition { key, values, not_values } = condition;
        let permissions =
            |one: &dyn Fn(&str) -> Said<Permission>| self.field(values, not_values, one).map(Terms::Permissions);
        let principals = |values: &[String], not_values: &[String], one: &dyn Fn(&str) -> Said<Principal>| {
            self.field(values, not_values, one).map(Terms::Principals)
        };
        let bracketed = |name: &str| key.strip_prefix(name).and_then(brackets);
        match key.as_str() {
            "destination.ip" => permissions(&|value| Ok(permits(Is::DestinationIp(cidr(value).ok_or(Unsayable)?)))),
            "destination.port" => permissions(&port),
            "connection.sni" => permissions(&|value| Ok(permits(Is::RequestedServerName(text(value))))),
            "source.ip" => principals(values, not_values, &caller),
            "remote.ip" => principals(values, not_values, &client),
            "source.namespace" => principals(values, not_values, &|value| Ok(peer(of_namespace(value)))),
            "source.serviceAccount" => principals(values, not_values, &|value| Ok(peer(self.of_account(value)))),
            "source.trustDomain" => {
                let (values, not_values) = (self.domains_of(values), self.domains_of(not_values));
                principals(&values, &not_values, &|value| Ok(peer(of_domain(value))))
            }
            "source.principal" => {
                let (values, not_values) = (self.aliased(values), self.aliased(not_values));
                principals(&values, &not_values, &|value| Ok(peer(identity(value))))
            }
            "request.auth.principal" => {
                principals(values, not_values, &|value| self.of_request(|| Ok(token_principal(value))))
            }
            "request.auth.audiences" => {
                principals(values, not_values, &|value| self.of_request(|| Ok(claim(&["aud"], text(value)))))
            }
            "request.auth.presenter" => {
                principals(values, not_values, &|value| self.of_request(|| Ok(claim(&["azp"], text(value)))))
            }
            _ => {
                if let Some(decision) = asked_decision(condition) {
                    let asked = self.allows && decision.is_ok_and(|provider| self.decider == Some(provider));
                    return if asked { Ok(Terms::Permissions(Vec::new())) } else { Err(Unsayable) };
                }
                if let Some(names) = bracketed("request.headers")
                    && let [name] = names.as_slice()
                {
                    return principals(values, not_values, &|value| {
                        self.of_request(|| Ok(identified(Identifier::Header(header(name, value, false)))))
                    });
                }
                if let Some(names) = bracketed("request.auth.claims") {
                    return principals(values, not_values, &|value| self.of_request(|| Ok(claim(&names, text(value)))));
                }
                let filter = key.strip_prefix("experimental.").filter(|filter| filter.starts_with("envoy.filters."));
                let (filter, names) = filter.and_then(|filter| filter.split_once('[')).ok_or(Unsayable)?;
                let name = names.strip_suffix(']').ok_or(Unsayable)?;
                permissions(&|value| {
                    let list = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
                    let value = list.map_or_else(|| plain(text(value)), |value| one_of(text(value)));
                    Ok(permits(Is::SourcedMetadata(metadata(filter, &[name], value))))
                })
            }
        }
    }

    /// The terms of one field: one of the values, and none of those that are not to be.
    fn field<T: Term>(&self, values: &[String], not_values: &[String], one: impl Fn(&str) -> Said<T>) -> Said<Vec<T>> {
        let list = |values: &[String]| {
            let mut terms = Vec::new();
            for value in values {
                match one(value) {
                    Ok(term) => terms.push(term),
                    Err(Unsayable) if self.allows => return Err(Unsayable),
                    Err(Unsayable) => {}
                }
            }
            Ok((!terms.is_empty()).then(|| T::any(terms)))
        };
        Ok(list(values)?.into_iter().chain(list(not_values)?.map(T::not)).collect())
    }

    /// What only requests have.
    fn of_request<T>(&self, make: impl Fn() -> Said<T>) -> Said<T> {
        if self.traffic == Traffic::Http { make() } else { Err(Unsayable) }
    }

    /// Identities of the mesh's own trust domain are those of its aliases too; `cluster.local` is the mesh's, whatever it is
    /// called (Istio `trustDomainAliases`).
    fn aliased(&self, principals: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for principal in principals {
            let own =
                |domain: &str| domain == "cluster.local" || self.domains.iter().any(|known| is_like(domain, known));
            match principal.split_once('/') {
                Some((domain, rest)) if domain != "*" && rest.split('/').count() == 4 && own(domain) => {
                    for known in self.domains {
                        let one = if is_like(domain, known) { principal.clone() } else { format!("{known}/{rest}") };
                        if !all.contains(&one) {
                            all.push(one);
                        }
                    }
                }
                _ => all.push(principal.clone()),
            }
        }
        all
    }

    fn domains_of(&self, domains: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for domain in domains {
            match self.domains.contains(&domain.as_str()) {
                true => all.extend(self.domains.iter().map(|known| (*known).to_owned())),
                false => all.push(domain.clone()),
            }
        }
        all.dedup();
        all
    }

    fn of_account(&self, account: &str) -> StringMatcher {
        let (namespace, name) = account.split_once('/').unwrap_or((self.namespace, account));
        regex(format!("spiffe://.+/ns/{}/(.+/)?sa/{}(/.+)?", quoted(namespace), quoted(name)))
    }
}

/// A condition is about the request or about the caller.
enum Terms {
    Permissions(Vec<Permission>),
    Principals(Vec<Principal>),
}

/// All of these; none means anything.
fn joined<T: Term>(terms: Vec<T>) -> T {
    if terms.is_empty() { T::all(vec![T::always()]) } else { T::all(terms) }
}

/// Whether a trust domain is the known one, which may be written `*SUFFIX`.
fn is_like(written: &str, known: &str) -> bool {
    written == known || written.strip_prefix('*').is_some_and(|suffix| known.ends_with(suffix))
}

/// The names in `[a][b]`.
fn brackets(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<&str> = inner.split("][").collect();
    names.iter().all(|name| !name.is_empty()).then_some(names)
}

fn matcher(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

fn regex(regex: String) -> StringMatcher {
    matcher(MatchPattern::SafeRegex(RegexMatcher { regex, ..RegexMatcher::default() }))
}

/// The text as a part of a regular expression.
fn quoted(text: &str) -> String {
    regex::escape(text)
}

/// The same, where `*` stands for anything.
fn globbed(text: &str, anything: &str) -> String {
    text.split('*').map(quoted).collect::<Vec<_>>().join(anything)
}

/// Exact, `PREFIX*`, `*SUFFIX`, or `*` for anything that is there.
fn text(value: &str) -> StringMatcher {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => regex(".+".into()),
        (Some(suffix), _) => matcher(MatchPattern::Suffix(suffix.to_owned())),
        (_, Some(prefix)) => matcher(MatchPattern::Prefix(prefix.to_owned())),
        _ => matcher(MatchPattern::Exact(value.to_owned())),
    }
}

/// An identity, which is written without its scheme.
fn identity(value: &str) -> StringMatcher {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => regex(".+".into()),
        (Some(suffix), _) => regex(format!("spiffe://.*{}", quoted(suffix))),
        (_, Some(prefix)) => matcher(MatchPattern::Prefix(format!("spiffe://{prefix}"))),
        _ => matcher(MatchPattern::Exact(format!("spiffe://{value}"))),
    }
}

fn of_namespace(namespace: &str) -> StringMatcher {
    regex(format!(".*/ns/{}/.*", globbed(namespace, ".*")))
}

fn of_domain(domain: &str) -> StringMatcher {
    regex(format!("spiffe://{}/.*", globbed(domain, "[^/]*")))
}

fn peer(principal_name: StringMatcher) -> Principal {
    identified(Identifier::Authenticated(principal::Authenticated { principal_name: Some(principal_name) }))
}

fn caller(block: &str) -> Said<Principal> {
    Ok(identified(Identifier::DirectRemoteIp(cidr(block).ok_or(Unsayable)?)))
}

fn client(block: &str) -> Said<Principal> {
    Ok(identified(Identifier::RemoteIp(cidr(block).ok_or(Unsayable)?)))
}

fn port(port: &str) -> Said<Permission> {
    let port: u16 = port.parse().map_err(|_| Unsayable)?;
    Ok(permits(Is::DestinationPort(u32::from(port))))
}

fn header(name: &str, value: &str, ignore_case: bool) -> HeaderMatcher {
    let specifier = match value {
        "*" => HeaderMatchSpecifier::PresentMatch(true),
        _ => HeaderMatchSpecifier::StringMatch(StringMatcher { ignore_case, ..text(value) }),
    };
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..HeaderMatcher::default() }
}

fn header_of(name: &str, value: &str, ignore_case: bool) -> Said<Permission> {
    Ok(permits(Is::Header(header(name, value, ignore_case))))
}

fn path_of(path: &str) -> Said<Permission> {
    if !is_template(path) {
        return Ok(permits(Is::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(text(path))) })));
    }
    let path_template = path.replace("{**}", "**").replace("{*}", "*");
    let config = pack(&UriTemplateMatchConfig { path_template });
    let name = "envoy.path.match.uri_template.uri_template_matcher".to_owned();
    Ok(permits(Is::UriTemplate(TypedExtensionConfig { name, typed_config: Some(config) })))
}

/// Whether a path has parts that stand for anything: `{*}` is one segment, `{**}` any number of them.
fn is_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}

/// Issuer and subject of a token, `ISSUER/SUBJECT`; the issuer may have slashes of its own.
fn token_principal(value: &str) -> Principal {
    let anything = || regex(".+".into());
    let (issuer, subject) = match (value, value.rsplit_once('/')) {
        ("*", _) => (anything(), anything()),
        (_, Some((issuer, subject))) => (text(issuer), text(subject)),
        (_, None) if value.starts_with('*') => (anything(), text(value)),
        (_, None) if value.ends_with('*') => (text(value), anything()),
        (_, None) => (text(value), matcher(MatchPattern::Exact(String::new()))),
    };
    let of = |name: &str, matcher| metadata(TOKENS, &[PAYLOAD, name], plain(matcher));
    let terms = [of("iss", issuer), of("sub", subject)].map(|one| identified(Identifier::SourcedMetadata(one)));
    Principal::all(terms.into())
}

/// A claim of a token: a text, or a list with it. Where the text is that of a truth, the claim may be the truth itself (Istio
/// takes texts only).
fn claim(names: &[&str], matcher: StringMatcher) -> Principal {
    let path: Vec<&str> = [PAYLOAD].iter().chain(names).copied().collect();
    let truth = match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => text.parse().ok(),
        _ => None,
    };
    let truth = truth.map(|truth| ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::BoolMatch(truth)) });
    let either = [plain(matcher.clone()), one_of(matcher)].into_iter().chain(truth);
    Principal::any(
        either.map(|value| identified(Identifier::SourcedMetadata(metadata(TOKENS, &path, value)))).collect(),
    )
}

fn plain(matcher: StringMatcher) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::StringMatch(matcher)) }
}

fn one_of(matcher: StringMatcher) -> ValueMatcher {
    let one = list_matcher::MatchPattern::OneOf(Box::new(plain(matcher)));
    let list = Box::new(ListMatcher { match_pattern: Some(one) });
    ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::ListMatch(list)) }
}

fn metadata(filter: &str, path: &[&str], value: ValueMatcher) -> SourcedMetadata {
    let segment = |name: &&str| PathSegment { segment: Some(Segment::Key((*name).to_owned())) };
    let matcher = MetadataMatcher {
        filter: filter.to_owned(),
        path: path.iter().map(segment).collect(),
        value: Some(value),
        ..MetadataMatcher::default()
    };
    SourcedMetadata { metadata_matcher: Some(matcher), ..SourcedMetadata::default() }
}
