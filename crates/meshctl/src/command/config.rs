//! `meshctl config`: what a proxy has in effect, in istioctl's columns.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use api::cluster_name::{ClusterName, Direction};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::log;
use crate::cli::operator::{EndpointArguments, StatsArguments, StatsFormat};
use crate::cli::{ConfigCommand, OfProxy, Reach, in_namespace};
use crate::mesh::{Mesh, Method};
use crate::print::{Format, structured, table};

/// The field of a config dump.
const CONFIGS: &str = "configs";

pub(super) async fn run(reach: &Reach, command: ConfigCommand) -> Result<String> {
    match command {
        ConfigCommand::Clusters { of, fqdn, direction, port, subset } => {
            let found = section(reach, &of, "ClustersConfigDump").await?;
            let clusters: Vec<&Value> = resources(&found, "dynamic_active_clusters", "cluster");
            let keep = |cluster: &&Value| {
                let parts = parts(text(&cluster["name"]));
                fqdn.as_ref().is_none_or(|wanted| parts.host.contains(wanted.as_str()))
                    && direction.as_ref().is_none_or(|wanted| parts.direction.eq_ignore_ascii_case(wanted))
                    && port.is_none_or(|wanted| parts.port == wanted.to_string())
                    && subset.as_ref().is_none_or(|wanted| parts.subset == *wanted)
            };
            let clusters: Vec<&Value> = clusters.into_iter().filter(keep).collect();
            shown(
                of.output,
                &clusters,
                &["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"],
                |cluster| {
                    let parts = parts(text(&cluster["name"]));
                    let kind = cluster["type"].as_str().unwrap_or("STATIC").to_owned();
                    vec![vec![parts.host, parts.port, dash(parts.subset), dash(parts.direction), kind, object(cluster)]]
                },
            )
        }
        ConfigCommand::Listeners { of, port, address, kind, verbose } => {
            let found = section(reach, &of, "ListenersConfigDump").await?;
            let all =
                found["dynamic_listeners"].as_array().into_iter().flatten().map(|row| &row["active_state"]["listener"]);
            let keep = |listener: &&Value| {
                let socket = &listener["address"]["socket_address"];
                port.is_none_or(|wanted| socket["port_value"] == wanted)
                    && address.as_ref().is_none_or(|wanted| text(&socket["address"]) == wanted)
                    && kind.as_ref().is_none_or(|wanted| type_of(listener).eq_ignore_ascii_case(wanted))
            };
            let listeners: Vec<&Value> = all.filter(keep).collect();
            if verbose {
                shown(of.output, &listeners, &["ADDRESSES", "PORT", "MATCH", "DESTINATION"], listener_rows)
            } else {
                shown(of.output, &listeners, &["ADDRESSES", "PORT", "TYPE"], |listener| {
                    let socket = &listener["address"]["socket_address"];
                    let (address, port) = (text(&socket["address"]).to_owned(), socket["port_value"].to_string());
                    vec![vec![address, port, type_of(listener).to_owned()]]
                })
            }
        }
        ConfigCommand::Routes { of, name, verbose } => {
            let found = section(reach, &of, "RoutesConfigDump").await?;
            let all = resources(&found, "dynamic_route_configs", "route_config");
            let routes: Vec<&Value> = all
                .into_iter()
                .filter(|route| name.as_ref().is_none_or(|wanted| text(&route["name"]) == wanted))
                .collect();
            if verbose {
                shown(of.output, &routes, &["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"], route_rows)
            } else {
                shown(of.output, &routes, &["NAME", "VIRTUAL HOSTS"], |config| {
                    let hosts = config["virtual_hosts"].as_array().map_or(0, Vec::len);
                    vec![vec![text(&config["name"]).to_owned(), hosts.to_string()]]
                })
            }
        }
        ConfigCommand::Endpoints(wish) => {
            let page = page(reach, &wish.of, "/clusters?format=json", "cluster_statuses").await?;
            let all = page["cluster_statuses"].as_array().into_iter().flatten();
            let kept: Vec<Value> = all.filter_map(|status| kept_hosts(status, &wish)).collect();
            let heading = ["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"];
            shown(wish.of.output, &kept.iter().collect::<Vec<_>>(), &heading, endpoint_rows)
        }
        ConfigCommand::Eds(wish) => {
            let found = section(reach, &wish.of, "EndpointsConfigDump").await?;
            let all = resources(&found, "dynamic_endpoint_configs", "endpoint_config");
            let kept: Vec<Value> = all.into_iter().filter_map(|one| kept_assignment(one, &wish)).collect();
            let heading = ["NAME", "STATUS", "LOCALITY", "CLUSTER"];
            shown(wish.of.output, &kept.iter().collect::<Vec<_>>(), &heading, assignment_rows)
        }
        ConfigCommand::Secrets { of } => {
            let page = page(reach, &of, "/certs", "certificates").await?;
            let certificates: Vec<&Value> = page["certificates"].as_array().into_iter().flatten().collect();
            shown(
                of.output,
                &certificates,
                &["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"],
                secret_rows,
            )
        }
        ConfigCommand::Bootstrap { of } => structured(of.output, &section(reach, &of, "BootstrapConfigDump").await?),
        ConfigCommand::Ecds { of } => {
            let found = section(reach, &of, "EcdsConfigDump").await?;
            shown(of.output, &resources(&found, "ecds_filters", "ecds_filter"), &["ECDS NAME", "TYPE"], |filter| {
                let kind = text(&filter["typed_config"]["@type"]);
                let kind = kind.rsplit_once('.').map_or(kind, |(_, last)| last);
                vec![vec![text(&filter["name"]).to_owned(), kind.to_owned()]]
            })
        }
        ConfigCommand::Log { proxy, level, reset } => {
            log::run(&Mesh::open(reach).await?, &proxy.full(), level.as_deref(), reset).await
        }
        ConfigCommand::Dump { of } => structured(of.output, &page(reach, &of, "/config_dump", CONFIGS).await?),
        ConfigCommand::RootcaCompare { first, second, namespace } => {
            let mesh = Mesh::open(reach).await?;
            let mut found = Vec::new();
            for name in [first, second] {
                let proxy = mesh.proxy(&in_namespace(&name, namespace.as_deref())).await?;
                found.push((roots(&mesh.admin(&proxy, "/certs").await?), proxy.proxy));
            }
            compared(&found[0], &found[1])
        }
    }
}

/// Whether an endpoint is among those asked for, by its address and health.
fn is_asked(wish: &EndpointArguments, socket: &Value, health: &str) -> bool {
    wish.address.as_ref().is_none_or(|wanted| text(&socket["address"]) == wanted)
        && wish.port.is_none_or(|wanted| socket["port_value"] == wanted)
        && wish.status.as_ref().is_none_or(|wanted| health.eq_ignore_ascii_case(wanted))
}

fn is_asked_cluster(wish: &EndpointArguments, name: &Value) -> bool {
    wish.cluster.as_ref().is_none_or(|wanted| text(name) == wanted)
}

/// A cluster's status with the hosts that are asked for; none without any.
fn kept_hosts(status: &Value, wish: &EndpointArguments) -> Option<Value> {
    let keep = |host: &Value| is_asked(wish, &host["address"]["socket_address"], health_of(host));
    kept(status, "host_statuses", &keep).filter(|_| is_asked_cluster(wish, &status["name"]))
}

/// The same of a cluster's endpoints as they were sent.
fn kept_assignment(assignment: &Value, wish: &EndpointArguments) -> Option<Value> {
    if !is_asked_cluster(wish, &assignment["cluster_name"]) {
        return None;
    }
    let keep = |one: &Value| is_asked(wish, &one["endpoint"]["address"]["socket_address"], sent_health(one));
    let mut assignment = assignment.clone();
    let groups = assignment["endpoints"].as_array_mut()?;
    *groups = groups.iter().filter_map(|group| kept(group, "lb_endpoints", &keep)).collect();
    (!groups.is_empty()).then_some(assignment)
}

/// A value with the elements of a list that are to be kept; none without any.
fn kept(value: &Value, list: &str, keep: &dyn Fn(&Value) -> bool) -> Option<Value> {
    let mut value = value.clone();
    let all = value[list].as_array_mut()?;
    all.retain(|one| keep(one));
    (!all.is_empty()).then_some(value)
}

fn health_of(host: &Value) -> &str {
    host.pointer("/health_status/eds_health_status").and_then(Value::as_str).unwrap_or("HEALTHY")
}

/// What was not said is healthy.
fn sent_health(endpoint: &Value) -> &str {
    match endpoint["health_status"].as_str() {
        None | Some("UNKNOWN") => "HEALTHY",
        Some(other) => other,
    }
}

fn assignment_rows(assignment: &Value) -> Vec<Vec<String>> {
    let groups = assignment["endpoints"].as_array().into_iter().flatten();
    let rows = groups.flat_map(|group| {
        let words = ["region", "zone", "sub_zone"].map(|part| text(&group["locality"][part]));
        let locality = words.join("/").trim_end_matches('/').to_owned();
        group["lb_endpoints"].as_array().into_iter().flatten().map(move |one| {
            let socket = &one["endpoint"]["address"]["socket_address"];
            let address = format!("{}:{}", text(&socket["address"]), socket["port_value"]);
            let cluster = text(&assignment["cluster_name"]).to_owned();
            vec![address, sent_health(one).to_owned(), dash(locality.clone()), cluster]
        })
    });
    rows.collect()
}

/// What a listener speaks, as istioctl names it.
fn type_of(listener: &Value) -> &'static str {
    let chains = listener["filter_chains"].as_array().into_iter().flatten().chain(listener.get("default_filter_chain"));
    let (mut http, mut tcp) = (false, false);
    for filter in chains.flat_map(|chain| chain["filters"].as_array().into_iter().flatten()) {
        let kind = text(&filter["typed_config"]["@type"]);
        http |= kind.ends_with("HttpConnectionManager");
        tcp |= kind.ends_with("TcpProxy");
    }
    match (http, tcp) {
        (true, true) => "HTTP+TCP",
        (true, false) => "HTTP",
        (false, true) => "TCP",
        (false, false) => "UNKNOWN",
    }
}

/// The counters of a proxy, or of its clusters.
pub(super) async fn stats(mesh: &Mesh, arguments: &StatsArguments) -> Result<String> {
    let proxy = mesh.proxy(&arguments.proxy.full()).await?;
    let path = match (arguments.of.as_str(), arguments.output) {
        ("clusters", StatsFormat::Json) => "/clusters?format=json",
        ("clusters", _) => "/clusters",
        (_, StatsFormat::Text) => "/stats",
        (_, StatsFormat::Json) => "/stats?format=json",
        (_, StatsFormat::Prom) => "/stats/prometheus",
        (_, StatsFormat::PromMerged) => return mesh.merged(&proxy).await,
    };
    let text = mesh.ask(&proxy, Method::GET, path).await?.text();
    Ok(format!("{}\n", text.trim_end()))
}

/// A page of a proxy's admin interface; or a file that such a page was saved to, which has this field.
async fn page(reach: &Reach, of: &OfProxy, path: &str, field: &str) -> Result<Value> {
    let Some(file) = &of.file else {
        let mesh = Mesh::open(reach).await?;
        let proxy = mesh.proxy(&of.full()).await?;
        return mesh.admin(&proxy, path).await;
    };
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")?,
        false => std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?,
    };
    let page: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    if !page[field].is_array() {
        bail!(
            "{} has no {field:?}: it must be what the page {path} of a proxy's admin port (15000) says",
            file.display()
        );
    }
    Ok(page)
}

/// One part of the proxy's config dump, by the last word of its type.
async fn section(reach: &Reach, of: &OfProxy, kind: &str) -> Result<Value> {
    // Envoy leaves endpoints out unless it is asked for them.
    let dump = page(reach, of, "/config_dump?include_eds", CONFIGS).await?;
    let mut parts = dump["configs"].as_array().into_iter().flatten();
    Ok(parts.find(|part| text(&part["@type"]).ends_with(kind)).cloned().unwrap_or(Value::Null))
}

/// The policies that a proxy decides by, as istioctl prints them.
pub(super) async fn authorization(reach: &Reach, of: &OfProxy) -> Result<String> {
    let found = section(reach, of, "ListenersConfigDump").await?;
    let mut policies = BTreeMap::new();
    rules_in(&found, &mut policies);
    let rows: Vec<Vec<String>> = policies
        .into_iter()
        .map(|((action, name), rules): ((String, String), BTreeSet<String>)| {
            vec![action, name, rules.len().to_string()]
        })
        .collect();
    if of.output != Format::Table {
        let named = |row: Vec<String>| serde_json::json!({"action": row[0], "policy": row[1], "rules": row[2]});
        return structured(of.output, &rows.into_iter().map(named).collect::<Vec<_>>());
    }
    Ok(table(&["ACTION", "AuthorizationPolicy", "RULES"], &rows))
}

/// Rules by action and policy, out of all filters below a value: the same policy stands in many of them.
fn rules_in(value: &Value, found: &mut BTreeMap<(String, String), BTreeSet<String>>) {
    if text(&value["@type"]).ends_with(".RBAC") {
        let prefix = text(&value["shadow_rules_stat_prefix"]);
        for (field, shadow) in [("rules", false), ("shadow_rules", true)] {
            let rules = &value[field];
            let action = match (shadow, prefix.contains("ext_authz"), rules["action"].as_str()) {
                (true, true, _) => "CUSTOM".to_owned(),
                (true, false, action) => format!("{} (dry run)", action.unwrap_or("ALLOW")),
                (false, _, action) => action.unwrap_or("ALLOW").to_owned(),
            };
            for rule in rules["policies"].as_object().into_iter().flat_map(|policies| policies.keys()) {
                let (policy, rule) = rule_of(rule);
                found.entry((action.clone(), policy)).or_default().insert(rule);
            }
        }
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| rules_in(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| rules_in(field, found)),
        _ => {}
    }
}

/// `ns[NAMESPACE]-policy[NAME]-rule[N]` (Istio `AuthorizationPolicyRuleName`) as `NAME.NAMESPACE` and the rest.
fn rule_of(key: &str) -> (String, String) {
    let part = |start: &str| key.split_once(start)?.1.split_once(']').map(|(part, _)| part.to_owned());
    match (part("ns["), part("-policy["), part("-rule[")) {
        (Some(namespace), Some(name), Some(rule)) => (format!("{name}.{namespace}"), rule),
        _ => (key.to_owned(), String::new()),
    }
}

/// What tells the authorities apart that a proxy trusts its peers by, from its page of certificates: the public keys; of an Envoy,
/// which does not show those, the serial numbers. Without the field's name they would seem comparable.
fn roots(page: &Value) -> BTreeSet<(&'static str, String)> {
    let all = page["certificates"].as_array().into_iter().flatten().flat_map(|one| one["ca_cert"].as_array());
    let told = |root: &Value| {
        let fields = ["public_key_sha256", "serial_number"];
        fields
            .into_iter()
            .find_map(|field| Some((field, root[field].as_str().filter(|text| !text.is_empty())?.to_owned())))
    };
    all.flatten().filter_map(told).collect()
}

type Trusted = (BTreeSet<(&'static str, String)>, String);

fn compared((first, one): &Trusted, (second, other): &Trusted) -> Result<String> {
    let field = |roots: &BTreeSet<(&'static str, String)>| roots.first().map(|(field, _)| *field);
    for (roots, name) in [(first, one), (second, other)] {
        if roots.is_empty() {
            bail!("{name} does not tell which authorities it trusts");
        }
    }
    if field(first) != field(second) {
        bail!("{one} and {other} are different proxies and tell their authorities in ways that cannot be compared");
    }
    if first != second {
        let common = first.intersection(second).count();
        bail!(
            "{one} and {other} do not trust the same authorities: {common} of {} and {} are the same",
            first.len(),
            second.len()
        );
    }
    Ok(format!("{one} and {other} trust the same authorities ({}): they can speak to each other.\n", first.len()))
}

fn resources<'a>(section: &'a Value, list: &str, field: &str) -> Vec<&'a Value> {
    section[list].as_array().into_iter().flatten().map(|row| &row[field]).collect()
}

fn shown(output: Format, values: &[&Value], heading: &[&str], rows: fn(&Value) -> Vec<Vec<String>>) -> Result<String> {
    if output != Format::Table {
        return structured(output, &values);
    }
    // Routes keep their order, which decides; all else comes by name from the proxy.
    let rows: Vec<Vec<String>> = values.iter().flat_map(|value| rows(value)).collect();
    Ok(table(heading, &rows))
}

struct Parts {
    host: String,
    port: String,
    subset: String,
    direction: String,
}

fn parts(name: &str) -> Parts {
    match name.parse::<ClusterName>() {
        Ok(ClusterName { direction, port, subset, host }) => {
            let direction = if direction == Direction::Inbound { "inbound" } else { "outbound" };
            Parts { host, port: port.to_string(), subset, direction: direction.to_owned() }
        }
        Err(_) => {
            Parts { host: name.to_owned(), port: "-".to_owned(), subset: String::new(), direction: String::new() }
        }
    }
}

fn listener_rows(listener: &Value) -> Vec<Vec<String>> {
    let socket = &listener["address"]["socket_address"];
    let (address, port) = (text(&socket["address"]).to_owned(), socket["port_value"].to_string());
    let chains = listener["filter_chains"].as_array().into_iter().flatten();
    let mut rows: Vec<Vec<String>> = chains
        .chain(listener.get("default_filter_chain"))
        .map(|chain| vec![address.clone(), port.clone(), matched(&chain["filter_chain_match"]), destination(chain)])
        .collect();
    rows.dedup();
    rows
}

fn matched(condition: &Value) -> String {
    let list =
        |field: &str| condition[field].as_array().map(|values| values.iter().map(text).collect::<Vec<_>>().join(","));
    let mut words = Vec::new();
    if let Some(protocol) = condition["transport_protocol"].as_str() {
        words.push(format!("Trans: {protocol}"));
    }
    for (field, word) in [("server_names", "SNI"), ("application_protocols", "App")] {
        if let Some(values) = list(field) {
            words.push(format!("{word}: {values}"));
        }
    }
    if let Some(ranges) = condition["prefix_ranges"].as_array() {
        let ranges: Vec<String> =
            ranges.iter().map(|range| format!("{}/{}", text(&range["address_prefix"]), range["prefix_len"])).collect();
        words.push(format!("Addr: {}", ranges.join(",")));
    }
    if let Some(port) = condition["destination_port"].as_u64() {
        words.push(format!("Port: {port}"));
    }
    if words.is_empty() { "ALL".to_owned() } else { words.join("; ") }
}

fn destination(chain: &Value) -> String {
    for filter in chain["filters"].as_array().into_iter().flatten() {
        let config = &filter["typed_config"];
        if let Some(name) = config.pointer("/rds/route_config_name").and_then(Value::as_str) {
            return format!("Route: {name}");
        }
        if let Some(name) = config.pointer("/route_config/name").and_then(Value::as_str) {
            return format!("Inline Route: {name}");
        }
        if let Some(cluster) = config["cluster"].as_str() {
            return format!("Cluster: {cluster}");
        }
        if config.get("weighted_clusters").is_some() {
            return "Clusters by weight".to_owned();
        }
    }
    "Non-HTTP/Non-TCP".to_owned()
}

fn route_rows(config: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for host in config["virtual_hosts"].as_array().into_iter().flatten() {
        let domains: Vec<&str> = host["domains"].as_array().into_iter().flatten().map(text).collect();
        let domains = match domains.as_slice() {
            [first, second, rest @ ..] if !rest.is_empty() => format!("{first}, {second} + {} more...", rest.len()),
            few => few.join(", "),
        };
        for route in host["routes"].as_array().into_iter().flatten() {
            let condition = &route["match"];
            let path = ["path", "prefix", "path_separated_prefix"].iter().find_map(|field| {
                condition[*field]
                    .as_str()
                    .map(|value| if *field == "path" { value.to_owned() } else { format!("{value}*") })
            });
            let path = path
                .or_else(|| condition.pointer("/safe_regex/regex").map(|regex| format!("regex {}", text(regex))))
                .unwrap_or_else(|| "/*".to_owned());
            rows.push(vec![
                text(&config["name"]).to_owned(),
                text(&host["name"]).to_owned(),
                domains.clone(),
                path,
                object(route),
            ]);
        }
    }
    rows
}

fn endpoint_rows(status: &Value) -> Vec<Vec<String>> {
    let row = |host: &Value| {
        let socket = &host["address"]["socket_address"];
        let health = health_of(host);
        let ejected = host.pointer("/health_status/failed_outlier_check").and_then(Value::as_bool).unwrap_or(false);
        let address = format!("{}:{}", text(&socket["address"]), socket["port_value"]);
        vec![
            address,
            health.to_owned(),
            if ejected { "FAILED" } else { "OK" }.to_owned(),
            text(&status["name"]).to_owned(),
        ]
    };
    status["host_statuses"].as_array().into_iter().flatten().map(row).collect()
}

fn secret_rows(certificate: &Value) -> Vec<Vec<String>> {
    let row = |kind: &str, part: &Value| {
        // Envoy has the file's path there; secrets that are not files have their SDS name.
        let name = part["path"].as_str().unwrap_or("-").to_owned();
        let field = |name: &str| text(&part[name]).to_owned();
        let (after, before) = (field("expiration_time"), field("valid_from"));
        // A proxy shows only what is in use.
        let valid =
            is_valid(&before, &after, OffsetDateTime::now_utc()).map_or("-".to_owned(), |valid| valid.to_string());
        vec![name, kind.to_owned(), "ACTIVE".to_owned(), valid, field("serial_number"), after, before]
    };
    let list = |field: &str| certificate[field].as_array().cloned().unwrap_or_default();
    let chain = list("cert_chain");
    let roots = list("ca_cert");
    chain.iter().map(|part| row("Cert Chain", part)).chain(roots.iter().map(|part| row("CA", part))).collect()
}

/// Whether a time is between two others; none if they cannot be read.
fn is_valid(before: &str, after: &str, now: OffsetDateTime) -> Option<bool> {
    let read = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    Some(read(before)? <= now && now < read(after)?)
}

/// `kind name.namespace` of the object behind a cluster or route.
fn object(resource: &Value) -> String {
    let path = resource.pointer("/metadata/filter_metadata/istio/config").and_then(Value::as_str).unwrap_or_default();
    let words: Vec<&str> = path.split('/').collect();
    match words.as_slice() {
        [.., namespace, _, name] => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn certificates_are_valid_between_two_times() {
        let now = OffsetDateTime::parse("2026-11-22T12:00:00Z", &Rfc3339).unwrap();
        let (early, late) = ("2026-11-22T11:00:00.000Z", "2026-11-23T11:00:00.000Z");
        assert_eq!(is_valid(early, late, now), Some(true));
        assert_eq!(is_valid(late, late, now), Some(false));
        assert_eq!(is_valid(early, early, now), Some(false));
        assert_eq!(is_valid("", late, now), None);
    }
    #[test]
    fn names_are_taken_apart_and_objects_named() {
        let cluster = json!({"metadata": {"filter_metadata": {"istio": {"config": "/apis/networking.istio.io/v1/namespaces/shop/destination-rule/user"}}}});
        assert_eq!(object(&cluster), "user.shop");
        assert_eq!(parts("outbound|80|v1|a.b").subset, "v1");
        assert_eq!(parts("PassthroughCluster").host, "PassthroughCluster");
    }

    #[test]
    fn long_lists_of_domains_are_cut_and_paths_told_apart() {
        let config = json!({"name": "80", "virtual_hosts": [{"name": "a:80", "domains": ["a", "b", "c"], "routes": [
            {"match": {"path": "/x"}}, {"match": {"prefix": "/y"}}, {"match": {"safe_regex": {"regex": "z.*"}}}]}]});
        let rows = route_rows(&config);
        assert_eq!(rows[0][2], "a, b + 1 more...");
        assert_eq!([&rows[0][3], &rows[1][3], &rows[2][3]], ["/x", "/y*", "regex z.*"]);
    }

    fn wish(words: &str) -> EndpointArguments {
        let words = format!("meshctl pc ep a.b {words}");
        match Cli::try_parse_from(words.split_whitespace()).unwrap().command {
            crate::cli::Command::Config(ConfigCommand::Endpoints(wish)) => wish,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn endpoints_are_chosen_by_cluster_address_port_and_health() {
        let host = |address: &str, port: u16, health: &str| {
            json!({"address": {"socket_address": {"address": address, "port_value": port}},
                "health_status": {"eds_health_status": health}})
        };
        let status =
            json!({"name": "c", "host_statuses": [host("10.0.0.1", 80, "HEALTHY"), host("10.0.0.2", 81, "UNHEALTHY")]});
        let count = |words: &str| kept_hosts(&status, &wish(words)).map_or(0, |kept| endpoint_rows(&kept).len());
        for (words, wanted) in [
            ("", 2),
            ("--cluster c", 2),
            ("--cluster d", 0),
            ("--address 10.0.0.1", 1),
            ("--port 81", 1),
            ("--port 81 --address 10.0.0.1", 0),
            ("--status healthy", 1),
            ("--status UNHEALTHY", 1),
        ] {
            assert_eq!(count(words), wanted, "{words}");
        }
        let sent = json!({"cluster_name": "c", "endpoints": [{"locality": {"region": "r", "zone": "z"}, "lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}}]}]});
        let kept = kept_assignment(&sent, &wish("--status healthy --port 80")).unwrap();
        assert_eq!(assignment_rows(&kept), [["10.0.0.1:80", "HEALTHY", "r/z", "c"]]);
        assert!(kept_assignment(&sent, &wish("--status unhealthy")).is_none());
    }

    #[test]
    fn policies_of_a_proxy_are_counted_once_with_their_rules() {
        let rbac = |field: &str, action: &str, names: &[&str]| {
            let policies: serde_json::Map<String, Value> =
                names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
            json!({"typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                field: {"action": action, "policies": policies}}})
        };
        let chain = json!({"filters": [{"http_filters": [
            rbac("rules", "DENY", &["ns[shop]-policy[no]-rule[0]"]),
            rbac("rules", "ALLOW", &["ns[shop]-policy[user]-rule[0]", "ns[shop]-policy[user]-rule[1]"]),
            rbac("shadow_rules", "DENY", &["ns[shop]-policy[try]-rule[0]"])]}]});
        let mut found = BTreeMap::new();
        rules_in(&json!([chain, chain]), &mut found);
        let rows: Vec<_> =
            found.iter().map(|((action, name), rules)| (action.as_str(), name.as_str(), rules.len())).collect();
        assert_eq!(rows, [("ALLOW", "user.shop", 2), ("DENY", "no.shop", 1), ("DENY (dry run)", "try.shop", 1)]);
    }

    #[test]
    fn authorities_are_compared() {
        let of = |key: &str, name: &str| {
            (roots(&json!({"certificates": [{"ca_cert": [{"public_key_sha256": key}]}]})), name.to_owned())
        };
        let envoy = (roots(&json!({"certificates": [{"ca_cert": [{"serial_number": "1"}]}]})), "e.b".to_owned());
        assert!(compared(&of("1", "a.b"), &of("1", "c.b")).unwrap().contains("the same authorities"));
        let told = |one: &Trusted, other: &Trusted| compared(one, other).unwrap_err().to_string();
        assert!(told(&of("1", "a.b"), &of("2", "c.b")).contains("do not trust the same"));
        assert!(told(&of("1", "a.b"), &envoy).contains("cannot be compared"));
        assert!(told(&of("", "a.b"), &envoy).contains("does not tell"));
    }

    #[test]
    fn listeners_have_istioctls_types() {
        let filter =
            |kind: &str| json!({"filters": [{"typed_config": {"@type": format!("type.googleapis.com/a.{kind}")}}]});
        let (http, tcp) = (filter("HttpConnectionManager"), filter("TcpProxy"));
        assert_eq!(type_of(&json!({"filter_chains": [http]})), "HTTP");
        assert_eq!(type_of(&json!({"filter_chains": [http], "default_filter_chain": tcp})), "HTTP+TCP");
        assert_eq!(type_of(&json!({"default_filter_chain": tcp})), "TCP");
        assert_eq!(type_of(&json!({})), "UNKNOWN");
    }
}
