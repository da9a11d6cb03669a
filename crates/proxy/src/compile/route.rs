//! Route configurations.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::xds::Any;
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
use envoy_types::pb::envoy::config::route::v3::route::Action as XdsAction;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::cluster_weight;
use envoy_types::pb::envoy::config::route::v3::{
    RedirectAction, RetryPolicy, Route as XdsRoute, RouteAction, RouteConfiguration, VirtualHost as XdsHost,
    WeightedCluster as XdsWeighted,
};
use http::HeaderValue;

use super::edits::header_edits;
use crate::filters::{self, Compiled};
use crate::leaf::{duration, duration_or};
use crate::leaf::{fraction, route_match, substitution};
use crate::snapshot::route::action::{
    Action, ClusterChoice, Forward, HostRewrite, Mirror, PathRewrite, Redirect, WeightedCluster,
};
use crate::snapshot::route::matcher::{PathMatch, RouteMatch};
use crate::snapshot::route::retry::{RetryOn, RetryPlan};
use crate::snapshot::route::{Overrides, Route, RouteTable, VirtualHost};

/// Compiles an RDS resource.
///
/// # Errors
/// What is unknown or not built; the sentence names virtual host and route.
pub fn compile_any(any: &Any) -> Result<RouteTable, String> {
    compile(&api::xds::unpack(any)?)
}

/// Compiles a route configuration.
pub(crate) fn compile(config: &RouteConfiguration) -> Result<RouteTable, String> {
    if config.vhds.is_some() || !config.cluster_specifier_plugins.is_empty() {
        return Err("virtual host discovery and cluster specifier plugins are not built".to_owned());
    }
    if !config.vhost_header.is_empty() || !config.typed_per_filter_config.is_empty() {
        return Err("vhost_header and typed_per_filter_config of a route configuration are not built".to_owned());
    }
    let mut table = RouteTable {
        name: config.name.as_str().into(),
        ignore_port: config.ignore_port_in_host_matching,
        edits: header_edits(
            &config.request_headers_to_add,
            &config.request_headers_to_remove,
            &config.response_headers_to_add,
            &config.response_headers_to_remove,
        )?,
        ..RouteTable::default()
    };
    for (place, host) in config.virtual_hosts.iter().enumerate() {
        for domain in &host.domains {
            let domain = domain.to_ascii_lowercase();
            let taken = match domain.as_str() {
                "*" => table.any.replace(place).is_some(),
                _ if domain.starts_with('*') => {
                    table.suffixes.push((domain[1..].to_owned(), place));
                    false
                }
                _ if domain.ends_with('*') => {
                    table.prefixes.push((domain[..domain.len() - 1].to_owned(), place));
                    false
                }
                _ => table.exact.insert(domain.clone(), place).is_some(),
            };
            if taken {
                return Err(format!("the domain {domain:?} stands in two virtual hosts"));
            }
        }
        let compiled = virtual_host(host, &config.request_mirror_policies)
            .map_err(|error| format!("virtual host {:?}: {error}", host.name))?;
        table.hosts.push(compiled);
    }
    table.suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
    table.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    Ok(table)
}

fn virtual_host(host: &XdsHost, mirrors: &[RequestMirrorPolicy]) -> Result<VirtualHost, String> {
    if host.cors.is_some() || host.matcher.is_some() || host.hedge_policy.is_some() || !host.rate_limits.is_empty() {
        return Err("the old cors field, matcher trees, hedging and rate limits are not built".to_owned());
    }
    let mirrors = if host.request_mirror_policies.is_empty() { mirrors } else { &host.request_mirror_policies };
    let routes = host
        .routes
        .iter()
        .map(|xds| {
            route(xds, host.retry_policy.as_ref(), mirrors).map_err(|error| format!("route {:?}: {error}", xds.name))
        })
        .collect::<Result<_, _>>()?;
    Ok(VirtualHost {
        name: host.name.as_str().into(),
        routes,
        require_tls: match TlsRequirementType::try_from(host.require_tls) {
            Ok(TlsRequirementType::None) => false,
            Ok(TlsRequirementType::All) => true,
            _ => return Err("require_tls: only NONE and ALL are built".to_owned()),
        },
        edits: header_edits(
            &host.request_headers_to_add,
            &host.request_headers_to_remove,
            &host.response_headers_to_add,
            &host.response_headers_to_remove,
        )?,
        count_attempts: host.include_request_attempt_count,
        count_attempts_in_response: host.include_attempt_count_in_response,
        overrides: overrides(&host.typed_per_filter_config)?,
    })
}

fn overrides(config: &HashMap<String, Any>) -> Result<Overrides, String> {
    let mut all = Overrides::new();
    for (name, any) in config {
        match filters::compile(any).map_err(|error| format!("filter {name:?}: {error}"))? {
            Compiled::Filter(filter) => all.push((name.as_str().into(), filter)),
            Compiled::Idle | Compiled::Alpn | Compiled::Stats | Compiled::GrpcStats | Compiled::PeerMetadata(_) => {}
            Compiled::Router => return Err("the router cannot be overridden".to_owned()),
        }
    }
    Ok(all)
}

fn route(xds: &XdsRoute, host_retry: Option<&RetryPolicy>, mirrors: &[RequestMirrorPolicy]) -> Result<Route, String> {
    let Some(matcher) = &xds.r#match else { return Err("it has no match".to_owned()) };
    let matches = route_match(matcher)?;
    let action = match &xds.action {
        Some(XdsAction::Route(action)) => Action::Forward(Box::new(forward(action, &matches, host_retry, mirrors)?)),
        Some(XdsAction::Redirect(redirect)) => Action::Redirect(Box::new(redirect_of(redirect, &matches)?)),
        Some(XdsAction::DirectResponse(direct)) => {
            if direct.body_format.is_some() {
                return Err("a body format is not built".to_owned());
            }
            let body = match direct.body.as_ref().and_then(|body| body.specifier.as_ref()) {
                None => Bytes::new(),
                Some(Specifier::InlineBytes(bytes)) => Bytes::copy_from_slice(bytes),
                Some(Specifier::InlineString(text)) => Bytes::copy_from_slice(text.as_bytes()),
                Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
                    return Err("a direct response's body must be given in place".to_owned());
                }
            };
            let status = u16::try_from(direct.status).ok().filter(|status| (200..600).contains(status));
            Action::Direct { status: status.ok_or_else(|| format!("{} is not a status", direct.status))?, body }
        }
        Some(XdsAction::FilterAction(_) | XdsAction::NonForwardingAction(_)) => {
            return Err("its action is for another kind of client".to_owned());
        }
        None => return Err("it has no action".to_owned()),
    };
    Ok(Route {
        name: if xds.name.is_empty() { "default".into() } else { xds.name.as_str().into() },
        matches,
        action,
        edits: header_edits(
            &xds.request_headers_to_add,
            &xds.request_headers_to_remove,
            &xds.response_headers_to_add,
            &xds.response_headers_to_remove,
        )?,
        overrides: overrides(&xds.typed_per_filter_config)?,
        object: super::object_of(xds.metadata.as_ref()),
    })
}

/// What a prefix rewrite replaces: only what a prefix or an exact path matched.
fn prefix_rewrite(text: &str, matches: &RouteMatch) -> Result<PathRewrite, String> {
    match &matches.path {
        PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => {
            Ok(PathRewrite::Prefix { matched: prefix.len(), text: text.to_owned() })
        }
        PathMatch::Exact(_) => Ok(PathRewrite::Whole(text.to_owned())),
        PathMatch::Regex(_) | PathMatch::Connect => {
            Err("a prefix can be rewritten only where a prefix or path is matched".to_owned())
        }
    }
}

fn forward(
    action: &RouteAction,
    matches: &RouteMatch,
    host_retry: Option<&RetryPolicy>,
    mirrors: &[RequestMirrorPolicy],
) -> Result<Forward, String> {
    if action.metadata_match.is_some() || action.cors.is_some() {
        return Err("metadata_match and the old cors field are not built".to_owned());
    }
    if action.hedge_policy.is_some()
        || action.internal_redirect_policy.is_some()
        || !action.rate_limits.is_empty()
        || action.path_rewrite_policy.is_some()
    {
        return Err("hedging, internal redirects, rate limits and path rewrite policies are not built".to_owned());
    }
    let path = match (action.prefix_rewrite.as_str(), &action.regex_rewrite) {
        ("", None) => PathRewrite::None,
        (text, None) => prefix_rewrite(text, matches)?,
        (_, Some(rewrite)) => {
            let (pattern, substitution) = substitution(rewrite)?;
            PathRewrite::Regex { pattern, substitution }
        }
    };
    let host = match &action.host_rewrite_specifier {
        None => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host) | HostRewriteSpecifier::HostRewrite(host)) => {
            literal_host(host)?
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if auto.value => HostRewrite::Endpoint,
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => HostRewrite::Header(
            name.to_ascii_lowercase().parse().map_err(|_| format!("{name:?} is not a header's name"))?,
        ),
        Some(HostRewriteSpecifier::HostRewritePathRegex(_)) => {
            return Err("a host taken from the path is not built".to_owned());
        }
    };
    let own = if action.request_mirror_policies.is_empty() { mirrors } else { &action.request_mirror_policies };
    let max = action.max_stream_duration.as_ref();
    let mut ends_connect = false;
    let mut upgrades = Vec::new();
    for upgrade in &action.upgrade_configs {
        let kind = upgrade.upgrade_type.to_ascii_lowercase();
        let enabled = upgrade.enabled.is_none_or(|enabled| enabled.value);
        ends_connect |= kind == "connect" && enabled && upgrade.connect_config.is_some();
        upgrades.push((kind, enabled));
    }
    Ok(Forward {
        cluster: cluster_choice(action)?,
        append_forwarded_host: action.append_x_forwarded_host,
        // SERVICE_UNAVAILABLE 0, NOT_FOUND 1, INTERNAL_SERVER_ERROR 2.
        not_found_status: match action.cluster_not_found_response_code {
            1 => 404,
            2 => 500,
            _ => 503,
        },
        path,
        host,
        timeout: duration_or(&action.timeout, Duration::from_secs(15))?,
        idle_timeout: action.idle_timeout.as_ref().map(duration).transpose()?,
        max_duration: max
            .and_then(|max| max.max_stream_duration.as_ref())
            .map(duration)
            .transpose()?
            .filter(|time| !time.is_zero()),
        grpc_timeout_max: match max
            .and_then(|max| max.grpc_timeout_header_max.as_ref())
            .or(action.max_grpc_timeout.as_ref())
        {
            Some(most) => Some(duration(most)?),
            None => None,
        },
        retry: action.retry_policy.as_ref().or(host_retry).map(retry_plan).transpose()?,
        mirrors: own.iter().map(mirror).collect::<Result<_, _>>()?,
        upgrades,
        ends_connect,
    })
}

fn literal_host(host: &str) -> Result<HostRewrite, String> {
    if host.is_empty() {
        return Ok(HostRewrite::None);
    }
    HeaderValue::from_str(host).map(HostRewrite::Literal).map_err(|_| format!("{host:?} is not a host"))
}

fn cluster_choice(action: &RouteAction) -> Result<ClusterChoice, String> {
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Ok(ClusterChoice::One(name.as_str().into())),
        Some(ClusterSpecifier::ClusterHeader(name)) => Ok(ClusterChoice::Header(
            name.to_ascii_lowercase().parse().map_err(|_| format!("{name:?} is not a header's name"))?,
        )),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted_clusters(weighted),
        Some(_) => Err("cluster specifier plugins are not built".to_owned()),
        None => Err("it names no cluster".to_owned()),
    }
}

fn weighted_clusters(weighted: &XdsWeighted) -> Result<ClusterChoice, String> {
    let mut clusters = Vec::new();
    for row in &weighted.clusters {
        if row.metadata_match.is_some() {
            return Err("metadata_match is not built".to_owned());
        }
        if !row.cluster_header.is_empty() {
            return Err("a weighted cluster named by a header is not built".to_owned());
        }
        clusters.push(WeightedCluster {
            name: row.name.as_str().into(),
            weight: row.weight.map_or(0, |weight| weight.value),
            edits: header_edits(
                &row.request_headers_to_add,
                &row.request_headers_to_remove,
                &row.response_headers_to_add,
                &row.response_headers_to_remove,
            )?,
            host: match &row.host_rewrite_specifier {
                None => HostRewrite::None,
                Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) => literal_host(host)?,
            },
            overrides: overrides(&row.typed_per_filter_config)?,
        });
    }
    let total = clusters.iter().map(|row| u64::from(row.weight)).sum();
    if total == 0 {
        return Err("the weights of its clusters add up to zero".to_owned());
    }
    Ok(ClusterChoice::Weighted { clusters, total })
}

fn mirror(policy: &RequestMirrorPolicy) -> Result<Mirror, String> {
    if policy.cluster.is_empty() {
        return Err("a mirror whose cluster a header names is not built".to_owned());
    }
    Ok(Mirror {
        cluster: policy.cluster.as_str().into(),
        fraction: fraction(policy.runtime_fraction.as_ref()).unwrap_or(1_000_000),
        shadow_suffix: !policy.disable_shadow_host_suffix_append,
    })
}

fn retry_plan(policy: &RetryPolicy) -> Result<RetryPlan, String> {
    let (mut on, mut statuses, unknown) = RetryOn::parse(&policy.retry_on);
    if let Some(word) = unknown.first() {
        return Err(format!("the retry condition {word:?} is not known"));
    }
    if on.headers || !policy.retriable_headers.is_empty() || !policy.retriable_request_headers.is_empty() {
        return Err("retries that headers decide are not built".to_owned());
    }
    for status in &policy.retriable_status_codes {
        statuses.push(u16::try_from(*status).map_err(|_| format!("{status} is not a status"))?);
    }
    on.statuses |= !statuses.is_empty() && policy.retry_on.contains("retriable-status-codes");
    let base = policy
        .retry_back_off
        .as_ref()
        .and_then(|back_off| back_off.base_interval.as_ref())
        .map(duration)
        .transpose()?;
    let base = base.filter(|base| !base.is_zero()).unwrap_or(Duration::from_millis(25));
    let most =
        policy.retry_back_off.as_ref().and_then(|back_off| back_off.max_interval.as_ref()).map(duration).transpose()?;
    Ok(RetryPlan {
        on,
        num_retries: policy.num_retries.map_or(1, |retries| retries.value),
        per_try_timeout: duration_or(&policy.per_try_timeout, Duration::ZERO)?,
        avoid_previous: policy.retry_host_predicate.iter().any(|predicate| predicate.name.ends_with("previous_hosts")),
        host_attempts: u32::try_from(policy.host_selection_retry_max_attempts.clamp(0, 100)).unwrap_or(0).max(1),
        statuses,
        back_off: (base, most.unwrap_or(base * 10)),
    })
}

fn redirect_of(redirect: &RedirectAction, matches: &RouteMatch) -> Result<Redirect, String> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(Redirect {
        scheme: match &redirect.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => some(scheme),
            _ => None,
        },
        host: some(&redirect.host_redirect),
        port: match redirect.port_redirect {
            0 => None,
            port => Some(u16::try_from(port).map_err(|_| format!("{port} is not a port"))?),
        },
        path: match &redirect.path_rewrite_specifier {
            Some(PathRewriteSpecifier::PathRedirect(path) | PathRewriteSpecifier::PathRewrite(path))
                if !path.is_empty() =>
            {
                PathRewrite::Whole(path.clone())
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) if !prefix.is_empty() => prefix_rewrite(prefix, matches)?,
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                let (pattern, substitution) = substitution(rewrite)?;
                PathRewrite::Regex { pattern, substitution }
            }
            _ => PathRewrite::None,
        },
        // MOVED_PERMANENTLY 0, FOUND 1, SEE_OTHER 2, TEMPORARY_REDIRECT 3, PERMANENT_REDIRECT 4.
        status: match redirect.response_code {
            1 => 302,
            2 => 303,
            3 => 307,
            4 => 308,
            _ => 301,
        },
        strip_query: redirect.strip_query,
    })
}

/// For listeners with routes in place.
pub(crate) fn inline(config: &RouteConfiguration) -> Result<Arc<RouteTable>, String> {
    compile(config).map(Arc::new).map_err(|error| format!("route configuration {:?}: {error}", config.name))
}
