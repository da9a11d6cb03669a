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
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use ipnet::IpNet;
use regex::Regex;

use super::Compiled;
use crate::failure::{Failure, Refusal};
use crate::filter::{Exchange, HttpFilter, Reply, Step};
use crate::leaf::{header_match, metadata_match, text_match};
use crate::snapshot::rbac::{Engine, Guard, Notes, Policy, Subject, Test};
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
    let notes = Notes::new("envoy.filters.http.rbac", &config.shadow_rules_stat_prefix);
    let found = guard(config.rules.as_ref(), config.shadow_rules.as_ref(), notes)?;
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
    let notes = Notes::new("envoy.filters.network.rbac", &config.shadow_rules_stat_prefix);
    guard(config.rules.as_ref(), config.shadow_rules.as_ref(), notes)
}

impl HttpFilter for Rbac {
    fn on_request(&self, exchange: &mut Exchange<'_>) -> Step {
        let subject = Subject {
            connection: exchange.connection,
            client: exchange.client,
            request: Some(RequestView::of(exchange.head, exchange.authority, exchange.connection.tls)),
            metadata: Some(&exchange.notes.metadata),
        };
        let found = self.0.finds(&subject, &mut exchange.notes.decided);
        let refusal = self.0.refuses(&subject, &mut exchange.notes.decided);
        if let Some(found) = found {
            self.0.tell(found, &mut exchange.notes.metadata);
        }
        match refusal {
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

fn guard(rules: Option<&rbac::Rbac>, shadow: Option<&rbac::Rbac>, notes: Notes) -> Result<Option<Guard>, String> {
    let (rules, shadow) = (of_rules(rules)?, of_rules(shadow)?);
    Ok((rules.is_some() || shadow.is_some()).then_some(Guard { rules, shadow, notes }))
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
            Some(Engine::Allow(
                policies,
                Arc::new(Refusal { failure: Failure::NotAllowed, details, object, told: None }),
            ))
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
        told: None,
    };
    Ok(Policy {
        permissions: policy.permissions.iter().map(permission).collect::<Result<_, _>>()?,
        principals: policy.principals.iter().map(principal).collect::<Result<_, _>>()?,
        refusal: Arc::new(refusal),
        name: Arc::new(name.into()),
    })
}

/// The object that Istio's name for a rule, `ns[NAMESPACE]-policy[NAME]-rule[N]`, speaks of.
pub(super) fn object_of(name: &str) -> Option<Arc<str>> {
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
        Rule::Metadata(matcher) => Test::Metadata(metadata_match(matcher)?),
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
        Identifier::Metadata(matcher) => Test::Metadata(metadata_match(matcher)?),
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
    let matcher = sourced.metadata_matcher.as_ref().ok_or("a test of metadata has no matcher")?;
    Ok(Test::Metadata(metadata_match(matcher)?))
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use api::json::from_json;
    use serde_json::{Value, json};

    use super::*;
    use crate::facts::{ConnFacts, Direction, PeerFacts};
    use crate::telemetry::metrics::Decided;

    fn filter(rules: Value) -> Result<Option<Guard>, String> {
        let json = json!({"@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC", "stat_prefix": "x", "rules": rules});
        network(&from_json(&json).unwrap())
    }

    fn facts(uri: Option<&str>) -> ConnFacts {
        let peer = uri.map(|uri| Arc::new(PeerFacts { uris: vec![uri.to_owned()], ..PeerFacts::default() }));
        ConnFacts {
            direction: Direction::Inbound,
            remote: "10.0.0.9:40000".parse().unwrap(),
            destination: "[::ffff:10.0.0.1]:8080".parse().unwrap(),
            caller: None,
            server_name: Some("a.shop".into()),
            alpn: None,
            tls: peer.is_some(),
            peer,
            own_uri: None,
            tls_version: None,
        }
    }

    /// Whether one test lets a request in; the caller is `spiffe://td/ns/shop/sa/a`, the client 203.0.113.7.
    fn lets_in(permission: Value, principal: Value, path: &str) -> bool {
        let rules = json!({"policies": {"p": {"permissions": [permission], "principals": [principal]}}});
        let guard = filter(rules).unwrap().unwrap();
        let connection = facts(Some("spiffe://td/ns/shop/sa/a"));
        let head = http::Request::get(path).header("x-a", "one").header("x-a", "two").body(()).unwrap().into_parts().0;
        let client: IpAddr = "203.0.113.7".parse().unwrap();
        let request = Some(RequestView::of(&head, "Web.Shop:80", true));
        let subject = Subject { connection: &connection, client, request, metadata: None };
        guard.refuses(&subject, &mut Decided::default()).is_none()
    }

    fn template(path_template: &str) -> Value {
        json!({"uri_template": {"name": "x", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": path_template}}})
    }

    #[test]
    fn every_permission() {
        let range = |address: &str, length: u32| json!({"address_prefix": address, "prefix_len": length});
        let metadata = json!({"filter": "f", "path": [{"key": "k"}], "value": {"present_match": true}});
        let rows = [
            (json!({"any": true}), true),
            (json!({"not_rule": {"any": true}}), false),
            (json!({"and_rules": {"rules": [{"any": true}, {"not_rule": {"any": true}}]}}), false),
            (json!({"or_rules": {"rules": [{"not_rule": {"any": true}}, {"any": true}]}}), true),
            (json!({"header": {"name": ":method", "string_match": {"exact": "GET"}}}), true),
            (json!({"header": {"name": ":path", "string_match": {"exact": "/a/b?q=1"}}}), true),
            (json!({"header": {"name": ":authority", "string_match": {"prefix": "web.", "ignore_case": true}}}), true),
            (json!({"header": {"name": "x-a", "string_match": {"exact": "two"}}}), true),
            (json!({"header": {"name": "x-a", "string_match": {"exact": "one,two"}}}), false),
            (json!({"url_path": {"path": {"exact": "/a/b"}}}), true),
            (json!({"url_path": {"path": {"suffix": "q=1"}}}), false),
            (template("/a/*"), true),
            (template("/*"), false),
            (template("/**"), true),
            (template("/{any}/b"), true),
            (template("/{any=a/*}"), true),
            (json!({"destination_ip": range("10.0.0.0", 24)}), true),
            (json!({"destination_ip": range("10.0.1.0", 24)}), false),
            (json!({"destination_port": 8080}), true),
            (json!({"destination_port": 80}), false),
            (json!({"destination_port_range": {"start": 8080, "end": 8081}}), true),
            (json!({"destination_port_range": {"start": 8000, "end": 8080}}), false),
            (json!({"requested_server_name": {"suffix": ".shop"}}), true),
            (json!({"sourced_metadata": {"metadata_matcher": metadata}}), false),
        ];
        for (permission, expected) in rows {
            assert_eq!(lets_in(permission.clone(), json!({"any": true}), "/a/b?q=1"), expected, "{permission}");
        }
    }

    #[test]
    fn every_principal() {
        let range = |address: &str, length: u32| json!({"address_prefix": address, "prefix_len": length});
        let name = |text: &str| json!({"authenticated": {"principal_name": {"exact": text}}});
        let state = json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": {"suffix": "/sa/a"}}});
        let rows = [
            (json!({"any": true}), true),
            (json!({"not_id": {"any": true}}), false),
            (json!({"and_ids": {"ids": [{"any": true}, name("x")]}}), false),
            (json!({"or_ids": {"ids": [{"any": true}, name("x")]}}), true),
            (name("spiffe://td/ns/shop/sa/a"), true),
            (name("spiffe://td/ns/shop/sa/A"), false),
            (json!({"authenticated": {}}), true),
            (state, true),
            (json!({"direct_remote_ip": range("10.0.0.9", 32)}), true),
            (json!({"source_ip": range("203.0.113.0", 24)}), false),
            (json!({"remote_ip": range("203.0.113.0", 24)}), true),
            (json!({"remote_ip": range("10.0.0.9", 32)}), false),
            (json!({"header": {"name": "x-b", "present_match": true}}), false),
            (json!({"url_path": {"path": {"prefix": "/a"}}}), true),
        ];
        for (principal, expected) in rows {
            assert_eq!(lets_in(json!({"any": true}), principal.clone(), "/a/b"), expected, "{principal}");
        }
    }

    #[test]
    fn refusals_name_the_policy_and_its_object() {
        let all = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
        let none = json!({"permissions": [{"any": true}], "principals": [{"authenticated": {}}]});
        let said = |rules: Value| {
            let connection = facts(None);
            let subject =
                Subject { connection: &connection, client: connection.remote.ip(), request: None, metadata: None };
            let guard = filter(rules).unwrap().unwrap();
            let mut decided = Decided::default();
            let refusal = guard.refuses(&subject, &mut decided).cloned();
            assert_eq!((decided.allowed, decided.denied), if refusal.is_some() { (0, 1) } else { (1, 0) });
            refusal.map(|refusal| (refusal.details.to_string(), refusal.object.clone().unwrap_or_default().to_string()))
        };
        let name = "ns[shop]-policy[no one]-rule[1]";
        let denied = said(json!({"action": "DENY", "policies": {name: all, "z": all}}));
        let details = "rbac_access_denied_matched_policy[ns[shop]-policy[no_one]-rule[1]]".to_owned();
        assert_eq!(denied, Some((details, "AuthorizationPolicy shop/no one".to_owned())));
        let denied = said(json!({"policies": {"ns[shop]-policy[a]-rule[0]": none}}));
        let details = "rbac_access_denied_matched_policy[none]".to_owned();
        assert_eq!(denied, Some((details, "AuthorizationPolicy shop/a".to_owned())));
        assert_eq!(said(json!({"action": "DENY", "policies": {"a": none}})), None);
        assert_eq!(said(json!({"policies": {"a": none, "b": all}})), None);
        assert!(said(json!({"policies": {}})).is_some());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let policy = |permission: Value, principal: Value| {
            filter(json!({"policies": {"p": {"permissions": [permission], "principals": [principal]}}}))
        };
        let any = || json!({"any": true});
        let unknown =
            json!({"name": "odd", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}});
        let rows = [
            (policy(json!({"matcher": unknown}), any()), "odd"),
            (policy(any(), json!({"custom": unknown})), "odd"),
            (policy(json!({}), any()), "no rule"),
            (policy(json!({"any": false}), any()), "must be true"),
            (policy(json!({"requested_server_name": {"safe_regex": {"regex": "("}}}), any()), "compiled"),
            (policy(template("/a*"), any()), "whole segment"),
            (policy(template("/**/*"), any()), "behind **"),
            (policy(any(), json!({"filter_state": {"key": "other", "string_match": {"exact": "x"}}})), "other"),
            (policy(any(), json!({"remote_ip": {"address_prefix": "x"}})), "addresses"),
        ];
        for (result, says) in rows {
            let error = result.err().unwrap();
            assert!(error.contains("policy \"p\"") && error.contains(says), "{error}: {says}");
        }
        let logs = filter(json!({"action": "LOG", "policies": {}})).unwrap();
        assert!(logs.is_none(), "what only notes lets everybody in");
    }
}
