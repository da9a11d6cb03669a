//! Who may do what (Envoy `RBAC`, the HTTP and the network filter): configurations become trees of tests (`snapshot/rbac.rs`).
//! What cannot be decided here is refused as a whole, so that nothing is let in by a rule that is not understood.

// Servers still send the older spelling of some tests; both are read.
#![allow(deprecated)]

use std::sync::Arc;

use api::xds::Any;
use envoy_types::pb::envoy::config::core::v3::{CidrRange, TypedExtensionConfig};
use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::config::rbac::v3::{self as rbac, Permission, Principal};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::{MetadataMatcher, PathMatcher, path_matcher};
use ipnet::IpNet;
use regex::Regex;

use super::Compiled;
use crate::failure::{Failure, Refusal};
use crate::filter::{Exchange, HttpFilter, Reply, Step};
use crate::leaf::{header_match, text_match};
use crate::snapshot::rbac::{Engine, Guard, Policy, Subject, Test};
use crate::snapshot::route::matcher::RequestView;

#[derive(Debug)]
struct Rbac(Guard);

/// Reads the HTTP filter's configuration.
///
/// # Errors
/// A test that is not built or cannot be compiled, matcher trees, CEL conditions, audit loggers.
pub fn compile(any: &Any) -> Result<Compiled, String> {
    let config: HttpRbac = api::xds::unpack(any)?;
    if config.matcher.is_some() || config.shadow_matcher.is_some() {
        return Err("matcher trees of RBAC are not built".to_owned());
    }
    let found = guard(config.rules.as_ref(), config.shadow_rules.as_ref())?;
    Ok(found.map_or(Compiled::Idle, |guard| Compiled::Filter(Arc::new(Rbac(guard)))))
}

/// Reads the network filter's configuration; nothing if it has no rules.
///
/// # Errors
/// As of the HTTP filter; also continuous enforcement and delayed refusals.
pub fn network(any: &Any) -> Result<Option<Guard>, String> {
    let config: NetworkRbac = api::xds::unpack(any)?;
    if config.matcher.is_some() || config.shadow_matcher.is_some() {
        return Err("matcher trees of RBAC are not built".to_owned());
    }
    if config.enforcement_type != 0 || config.delay_deny.is_some() {
        return Err("of network RBAC, enforcement_type and delay_deny are not built".to_owned());
    }
    guard(config.rules.as_ref(), config.shadow_rules.as_ref())
}

impl HttpFilter for Rbac {
    fn on_request(&self, exchange: &mut Exchange<'_>) -> Step {
        let subject = Subject {
            connection: exchange.connection,
            client: exchange.client,
            request: Some(RequestView::of(exchange.head, exchange.authority, exchange.connection.tls)),
        };
        match self.0.refuses(&subject, &mut exchange.notes.decided) {
            None => Step::Continue,
            Some(refusal) => {
                exchange.notes.refusal = Some(Arc::clone(refusal));
                Step::Reply(Box::new(Reply::failure(refusal.failure)))
            }
        }
    }

    fn asks_client(&self) -> bool {
        self.0.asks_client()
    }
}

fn guard(rules: Option<&rbac::Rbac>, shadow: Option<&rbac::Rbac>) -> Result<Option<Guard>, String> {
    let (rules, shadow) = (of_rules(rules)?, of_rules(shadow)?);
    Ok((rules.is_some() || shadow.is_some()).then_some(Guard { rules, shadow }))
}

fn of_rules(rules: Option<&rbac::Rbac>) -> Result<Option<Engine>, String> {
    let Some(rules) = rules else { return Ok(None) };
    let audited = rules.audit_logging_options.as_ref().is_some_and(|audit| !audit.logger_configs.is_empty());
    if audited {
        return Err("audit loggers are not built".to_owned());
    }
    // Of several that match, the first by name is told.
    let mut names: Vec<&String> = rules.policies.keys().collect();
    names.sort();
    let policies = names.into_iter().map(|name| {
        rules.policies.get(name).map_or_else(
            || Err(format!("the policy {name:?} is gone")),
            |one| policy(name, one).map_err(|error| format!("policy {name:?}: {error}")),
        )
    });
    let policies: Vec<Policy> = policies.collect::<Result<_, _>>()?;
    Ok(match Action::try_from(rules.action) {
        Ok(Action::Allow) => {
            let object = policies.first().and_then(|policy| policy.refusal.object.clone());
            let details = Failure::NotAllowed.details().into();
            Some(Engine::Allow(policies, Arc::new(Refusal { failure: Failure::NotAllowed, details, object })))
        }
        Ok(Action::Deny) => Some(Engine::Deny(policies)),
        // It decides nothing; what it notes is for access logs that nobody writes here.
        Ok(Action::Log) => None,
        Err(_) => return Err(format!("the action {} is not known", rules.action)),
    })
}

fn policy(name: &str, policy: &rbac::Policy) -> Result<Policy, String> {
    if policy.condition.is_some() || policy.checked_condition.is_some() {
        return Err("CEL conditions are not built".to_owned());
    }
    let shown: String = name.chars().map(|letter| if letter.is_whitespace() { '_' } else { letter }).collect();
    let refusal = Refusal {
        failure: Failure::Denied,
        details: format!("{}[{shown}]", Failure::Denied.details()).into(),
        object: object_of(name),
    };
    Ok(Policy {
        permissions: policy.permissions.iter().map(permission).collect::<Result<_, _>>()?,
        principals: policy.principals.iter().map(principal).collect::<Result<_, _>>()?,
        refusal: Arc::new(refusal),
    })
}

/// The object that Istio's name for a rule, `ns[NAMESPACE]-policy[NAME]-rule[N]`, speaks of.
fn object_of(name: &str) -> Option<Arc<str>> {
    let (_, rest) = name.split_once("ns[")?;
    let (namespace, rest) = rest.split_once("]-policy[")?;
    let (name, _) = rest.split_once("]-rule[")?;
    Some(format!("AuthorizationPolicy {namespace}/{name}").into())
}

fn permission(permission: &Permission) -> Result<Test, String> {
    let all = |set: &rbac::permission::Set| set.rules.iter().map(self::permission).collect::<Result<_, _>>();
    Ok(match permission.rule.as_ref().ok_or("a permission has no rule")? {
        Rule::AndRules(set) => Test::All(all(set)?),
        Rule::OrRules(set) => Test::Any(all(set)?),
        Rule::NotRule(rule) => Test::Not(Box::new(self::permission(rule)?)),
        Rule::Any(any) => always(*any)?,
        Rule::Header(header) => Test::Header(header_match(header)?),
        Rule::UrlPath(path) => path_test(path)?,
        Rule::UriTemplate(config) => template(config)?,
        Rule::DestinationIp(range) => Test::DestinationIp(block(range)?),
        Rule::DestinationPort(port) => Test::DestinationPort(i64::from(*port), i64::from(*port) + 1),
        Rule::DestinationPortRange(range) => Test::DestinationPort(range.start.into(), range.end.into()),
        Rule::RequestedServerName(name) => Test::ServerName(text_match(name)?),
        Rule::Metadata(matcher) => metadata(matcher),
        Rule::SourcedMetadata(sourced) => sourced_metadata(sourced)?,
        Rule::Matcher(extension) => return Err(format!("the matcher {:?} is not known", extension.name)),
    })
}

fn principal(principal: &Principal) -> Result<Test, String> {
    let all = |set: &rbac::principal::Set| set.ids.iter().map(self::principal).collect::<Result<_, _>>();
    Ok(match principal.identifier.as_ref().ok_or("a principal has no identifier")? {
        Identifier::AndIds(set) => Test::All(all(set)?),
        Identifier::OrIds(set) => Test::Any(all(set)?),
        Identifier::NotId(id) => Test::Not(Box::new(self::principal(id)?)),
        Identifier::Any(any) => always(*any)?,
        Identifier::Authenticated(one) => Test::Peer(one.principal_name.as_ref().map(text_match).transpose()?),
        Identifier::SourceIp(range) | Identifier::DirectRemoteIp(range) => Test::CallerIp(block(range)?),
        Identifier::RemoteIp(range) => Test::ClientIp(block(range)?),
        Identifier::Header(header) => Test::Header(header_match(header)?),
        Identifier::UrlPath(path) => path_test(path)?,
        Identifier::Metadata(matcher) => metadata(matcher),
        Identifier::SourcedMetadata(sourced) => sourced_metadata(sourced)?,
        Identifier::FilterState(state) => filter_state(state)?,
        Identifier::Custom(extension) => return Err(format!("the principal {:?} is not known", extension.name)),
    })
}

fn always(any: bool) -> Result<Test, String> {
    any.then_some(Test::Always).ok_or_else(|| "any must be true".to_owned())
}

fn path_test(path: &PathMatcher) -> Result<Test, String> {
    match &path.rule {
        Some(path_matcher::Rule::Path(text)) => Ok(Test::Path(text_match(text)?)),
        None => Err("a path matcher has no rule".to_owned()),
    }
}

/// Istio keeps the peer's verified name under this key; there is no other state.
fn filter_state(state: &envoy_types::pb::envoy::r#type::matcher::v3::FilterStateMatcher) -> Result<Test, String> {
    use envoy_types::pb::envoy::r#type::matcher::v3::filter_state_matcher::Matcher;
    match (state.key.as_str(), &state.matcher) {
        ("io.istio.peer_principal", Some(Matcher::StringMatch(text))) => Ok(Test::Peer(Some(text_match(text)?))),
        (key, _) => Err(format!("the filter state {key:?} is not known")),
    }
}

fn sourced_metadata(sourced: &rbac::SourcedMetadata) -> Result<Test, String> {
    if sourced.metadata_source != 0 {
        return Err("tests of a route's metadata are not built".to_owned());
    }
    sourced.metadata_matcher.as_ref().map(metadata).ok_or_else(|| "a test of metadata has no matcher".to_owned())
}

/// No filter here writes metadata: nothing is ever there that a value could match.
fn metadata(matcher: &MetadataMatcher) -> Test {
    if matcher.invert { Test::Always } else { Test::Never }
}

fn block(range: &CidrRange) -> Result<IpNet, String> {
    let bad = || format!("{:?} is not a range of addresses", range.address_prefix);
    let address = range.address_prefix.parse().map_err(|_| bad())?;
    let length = u8::try_from(range.prefix_len.map_or(0, |length| length.value)).map_err(|_| bad())?;
    Ok(IpNet::new(address, length).map_err(|_| bad())?.trunc())
}

fn template(config: &TypedExtensionConfig) -> Result<Test, String> {
    let any = config.typed_config.as_ref().ok_or("a path template has no configuration")?;
    let config: UriTemplateMatchConfig = api::xds::unpack(any)?;
    let expression = expression(&config.path_template)?;
    let regex = Regex::new(&expression)
        .map_err(|error| format!("the path template {:?} cannot be compiled: {error}", config.path_template))?;
    Ok(Test::Template(regex))
}

/// Letters of a path's segment that a template's parts stand for.
const SEGMENT: &str = r"a-zA-Z0-9\-._~%!$&'()*+,;:@=";

/// A template as a regular expression (Envoy `uri_template`): `*` is one segment, `**` the rest, `{NAME}` and `{NAME=PATTERN}`
/// are these with a name.
fn expression(template: &str) -> Result<String, String> {
    let bad = |why: &str| format!("the path template {template:?} {why}");
    let rest = template.strip_prefix('/').ok_or_else(|| bad("does not begin with a slash"))?;
    let mut out = String::from("^");
    let mut ended = false;
    // What stands between braces may have slashes of its own.
    let mut pattern = String::new();
    let mut left = rest;
    while let Some(open) = left.find('{') {
        let close = left[open..].find('}').ok_or_else(|| bad("has a brace that is not closed"))? + open;
        let inner = &left[open + 1..close];
        pattern.push_str(&left[..open]);
        pattern.push_str(inner.split_once('=').map_or("*", |(_, pattern)| pattern));
        left = &left[close + 1..];
    }
    pattern.push_str(left);
    for segment in pattern.split('/') {
        out.push('/');
        match segment {
            _ if ended && segment.contains('*') => return Err(bad("has a wildcard behind **")),
            "*" => out.push_str(&format!("[{SEGMENT}]+")),
            "**" => {
                ended = true;
                out.push_str(&format!("[{SEGMENT}/]*"));
            }
            _ if segment.contains(['*', '}']) => return Err(bad("has a wildcard that is no whole segment")),
            _ => out.push_str(&regex::escape(segment)),
        }
    }
    out.push('$');
    Ok(out)
}
