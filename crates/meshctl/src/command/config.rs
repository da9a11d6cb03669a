//! `meshctl config`: what a proxy has in effect, in istioctl's columns.

use anyhow::Result;
use api::cluster_name::{ClusterName, Direction};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::log;
use crate::cli::{ConfigCommand, OfProxy};
use crate::mesh::Mesh;
use crate::print::{Format, structured, table};

pub(super) async fn run(mesh: &Mesh, command: ConfigCommand) -> Result<String> {
    match command {
        ConfigCommand::Clusters { of, fqdn, direction, port, subset } => {
            let found = section(mesh, &of, "ClustersConfigDump").await?;
            let clusters: Vec<&Value> = resources(&found, "dynamic_active_clusters", "cluster");
            let keep = |cluster: &&Value| {
                let parts = parts(text(&cluster["name"]));
                fqdn.as_ref().is_none_or(|wanted| parts.host == *wanted)
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
        ConfigCommand::Listeners { of, port } => {
            let found = section(mesh, &of, "ListenersConfigDump").await?;
            let all =
                found["dynamic_listeners"].as_array().into_iter().flatten().map(|row| &row["active_state"]["listener"]);
            let keep = |listener: &&Value| {
                port.is_none_or(|wanted| listener.pointer("/address/socket_address/port_value") == Some(&wanted.into()))
            };
            let listeners: Vec<&Value> = all.filter(keep).collect();
            shown(of.output, &listeners, &["ADDRESSES", "PORT", "MATCH", "DESTINATION"], listener_rows)
        }
        ConfigCommand::Routes { of, name } => {
            let found = section(mesh, &of, "RoutesConfigDump").await?;
            let all = resources(&found, "dynamic_route_configs", "route_config");
            let routes: Vec<&Value> = all
                .into_iter()
                .filter(|route| name.as_ref().is_none_or(|wanted| text(&route["name"]) == wanted))
                .collect();
            shown(of.output, &routes, &["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"], route_rows)
        }
        ConfigCommand::Endpoints { of, cluster } => {
            let proxy = mesh.proxy(&of.proxy.full()).await?;
            let page = mesh.admin(&proxy, "/clusters?format=json").await?;
            let all = page["cluster_statuses"].as_array().into_iter().flatten();
            let statuses: Vec<&Value> =
                all.filter(|status| cluster.as_ref().is_none_or(|wanted| text(&status["name"]) == wanted)).collect();
            shown(of.output, &statuses, &["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"], endpoint_rows)
        }
        ConfigCommand::Secrets { of } => {
            let proxy = mesh.proxy(&of.proxy.full()).await?;
            let page = mesh.admin(&proxy, "/certs").await?;
            let certificates: Vec<&Value> = page["certificates"].as_array().into_iter().flatten().collect();
            shown(
                of.output,
                &certificates,
                &["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"],
                secret_rows,
            )
        }
        ConfigCommand::Bootstrap { of } => structured(of.output, &section(mesh, &of, "BootstrapConfigDump").await?),
        ConfigCommand::Ecds { of } => {
            let found = section(mesh, &of, "EcdsConfigDump").await?;
            shown(of.output, &resources(&found, "ecds_filters", "ecds_filter"), &["ECDS NAME", "TYPE"], |filter| {
                let kind = text(&filter["typed_config"]["@type"]);
                let kind = kind.rsplit_once('.').map_or(kind, |(_, last)| last);
                vec![vec![text(&filter["name"]).to_owned(), kind.to_owned()]]
            })
        }
        ConfigCommand::Log { proxy, level, reset } => log::run(mesh, &proxy.full(), level.as_deref(), reset).await,
        ConfigCommand::Dump { of } => {
            let proxy = mesh.proxy(&of.proxy.full()).await?;
            structured(of.output, &mesh.admin(&proxy, "/config_dump").await?)
        }
    }
}

/// One part of the proxy's config dump, by the last word of its type.
async fn section(mesh: &Mesh, of: &OfProxy, kind: &str) -> Result<Value> {
    let proxy = mesh.proxy(&of.proxy.full()).await?;
    let dump = mesh.admin(&proxy, "/config_dump").await?;
    let mut parts = dump["configs"].as_array().into_iter().flatten();
    Ok(parts.find(|part| text(&part["@type"]).ends_with(kind)).cloned().unwrap_or(Value::Null))
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
        let health = host.pointer("/health_status/eds_health_status").and_then(Value::as_str).unwrap_or("HEALTHY");
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
    use super::*;

    #[test]
    fn certificates_are_valid_between_two_times() {
        let now = OffsetDateTime::parse("2026-11-22T12:00:00Z", &Rfc3339).unwrap();
        let (early, late) = ("2026-11-22T11:00:00.000Z", "2026-11-23T11:00:00.000Z");
        assert_eq!(is_valid(early, late, now), Some(true));
        assert_eq!(is_valid(late, late, now), Some(false));
        assert_eq!(is_valid(early, early, now), Some(false));
        assert_eq!(is_valid("", late, now), None);
    }
    use serde_json::json;

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
}
