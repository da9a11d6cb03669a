//! What a pod's environment and files say, as the injector put it there: node metadata, probes of the application, where its
//! metrics are, and how the proxy begins and ends beside it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What only a proxy in a pod has.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Whether readiness takes that the pod's traffic is captured.
    pub check_capture: bool,
    /// Whether the node's CNI plug-in captures it (`MESH_CAPTURED_BY_CNI`), in place of an init container.
    pub captured_by_node: bool,
    /// Addresses on which connections wait until there is a configuration, and whether they keep their addresses (TPROXY).
    pub early: Vec<(SocketAddr, bool)>,
    /// Whether the proxy ends as soon as nothing is connected (`EXIT_ON_ZERO_ACTIVE_CONNECTIONS`).
    pub exit_on_zero: bool,
    /// Whether connections of the application are still taken while the proxy ends.
    pub keep_outbound: bool,
    /// The application's probes and lifecycle hooks, by path on the status port (`ISTIO_KUBE_APP_PROBERS`).
    pub probes: BTreeMap<String, Probe>,
    /// Where the application's metrics are (`ISTIO_PROMETHEUS_ANNOTATIONS`).
    pub metrics: Vec<Target>,
    /// Node metadata besides what the proxy knows by itself.
    pub metadata: Map<String, Value>,
}

/// One probe of the application, or lifecycle hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    /// An HTTP request.
    pub http_get: Option<HttpGet>,
    /// A connection.
    pub tcp_socket: Option<TcpSocket>,
    /// A call of gRPC's health service.
    pub grpc: Option<Grpc>,
    /// Seconds; absent or 0 is one.
    pub timeout_seconds: u64,
}

impl Probe {
    /// How long the application has.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.max(1))
    }
}

/// An HTTP request to the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpGet {
    /// Path, with its query.
    pub path: String,
    /// Port.
    pub port: u16,
    /// `HTTP` or `HTTPS`; certificates are not checked, as by the kubelet.
    pub scheme: String,
    /// Headers.
    pub http_headers: Vec<Header>,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A connection to the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TcpSocket {
    /// Port.
    pub port: u16,
}

/// A call of `grpc.health.v1.Health/Check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Grpc {
    /// Port.
    pub port: u16,
    /// Which service is asked about; empty is the server.
    pub service: String,
}

/// A page of the application's metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Port.
    pub port: u16,
    /// Path.
    pub path: String,
}

/// Reads `ISTIO_KUBE_APP_PROBERS`.
///
/// # Errors
/// It is not the JSON that the injector writes.
pub fn probes(text: &str) -> Result<BTreeMap<String, Probe>, String> {
    let probes: BTreeMap<String, Probe> =
        serde_json::from_str(text).map_err(|error| format!("ISTIO_KUBE_APP_PROBERS cannot be read: {error}"))?;
    let has_action = |probe: &Probe| probe.http_get.is_some() || probe.tcp_socket.is_some() || probe.grpc.is_some();
    match probes.iter().find(|(_, probe)| !has_action(probe)) {
        Some((path, _)) => Err(format!("ISTIO_KUBE_APP_PROBERS: {path} has neither httpGet, tcpSocket nor grpc")),
        None => Ok(probes),
    }
}

/// `ISTIO_PROMETHEUS_ANNOTATIONS` as it is written: all values are texts.
#[derive(Deserialize)]
#[serde(default)]
struct Scrape {
    scrape: String,
    port: String,
    path: String,
    targets: Vec<ScrapeTarget>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ScrapeTarget {
    port: String,
    path: String,
}

impl Default for Scrape {
    fn default() -> Self {
        Self { scrape: "true".to_owned(), port: String::new(), path: String::new(), targets: Vec::new() }
    }
}

/// Reads `ISTIO_PROMETHEUS_ANNOTATIONS`.
///
/// # Errors
/// It is not the JSON that the injector writes.
pub fn metrics(text: &str) -> Result<Vec<Target>, String> {
    let wrong = |error: String| format!("ISTIO_PROMETHEUS_ANNOTATIONS cannot be read: {error}");
    let scrape: Scrape = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if scrape.scrape == "false" {
        return Ok(Vec::new());
    }
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let mut asked: Vec<(String, String)> = scrape.targets.into_iter().map(|one| (one.port, one.path)).collect();
    // Where only further pages are named, there is no page at the default port.
    if asked.is_empty() || !scrape.port.is_empty() {
        asked.insert(0, (scrape.port, scrape.path));
    }
    asked
        .into_iter()
        .map(|(port, path)| {
            let port = or(port, "80");
            let port = port.parse().map_err(|_| wrong(format!("{port:?} is not a port")))?;
            Ok(Target { port, path: or(path, "/metrics") })
        })
        .collect()
}

/// Node metadata of the variables `ISTIO_META_…`: the name without its prefix; JSON of a map or list is read, all else is text.
pub fn metadata(variables: impl Iterator<Item = (String, String)>) -> Map<String, Value> {
    let named = variables.filter_map(|(name, value)| Some((name.strip_prefix("ISTIO_META_")?.to_owned(), value)));
    let read = |text: String| match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.is_object() || value.is_array() => value,
        _ => Value::String(text),
    };
    named.map(|(name, value)| (name, read(value))).collect()
}

/// A file of Kubernetes' downward API: lines of `key="value"`, quoted as Go does.
pub fn downward(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (key, value) = line.split_once('=')?;
        Some((key.to_owned(), unquoted(value)))
    };
    text.lines().filter_map(line).collect()
}

fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else { return text.to_owned() };
    let (mut out, mut letters) = (String::new(), inner.chars());
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            out.push(letter);
            continue;
        }
        let escape = letters.next();
        let digits = match escape {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => 0,
        };
        match escape {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(_) if digits > 0 => {
                let code: String = letters.by_ref().take(digits).collect();
                out.extend(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_injectors_probes_are_read() {
        let text = r#"{"/app-health/web/livez":{"httpGet":{"path":"/live","port":8080,"scheme":"HTTPS","httpHeaders":[{"name":"a","value":"b"}]},"timeoutSeconds":3},
            "/app-health/web/readyz":{"tcpSocket":{"port":1}},"/app-health/web/startupz":{"grpc":{"port":2,"service":null}}}"#;
        let text = text.replace("null", "\"s\"");
        let probes = probes(&text).unwrap();
        let live = &probes["/app-health/web/livez"];
        let get = live.http_get.as_ref().unwrap();
        assert_eq!((get.port, get.scheme.as_str(), get.http_headers[0].name.as_str()), (8080, "HTTPS", "a"));
        assert_eq!(live.timeout(), Duration::from_secs(3));
        assert_eq!(probes["/app-health/web/readyz"].timeout(), Duration::from_secs(1));
        assert_eq!(probes["/app-health/web/startupz"].grpc.as_ref().unwrap().service, "s");
        assert!(super::probes("[]").is_err() && super::probes(r#"{"/a":{}}"#).unwrap_err().contains("/a"));
    }

    #[test]
    fn the_applications_metrics_are_found() {
        let target = |port: u16, path: &str| Target { port, path: path.to_owned() };
        assert_eq!(metrics(r#"{"scrape":"true","path":"/m","port":"9090"}"#), Ok(vec![target(9090, "/m")]));
        assert_eq!(metrics("{}"), Ok(vec![target(80, "/metrics")]));
        assert_eq!(metrics(r#"{"scrape":"false","port":"1"}"#), Ok(vec![]));
        let both = metrics(r#"{"port":"1","targets":[{"port":"2","path":"/b"}]}"#);
        assert_eq!(both, Ok(vec![target(1, "/metrics"), target(2, "/b")]));
        assert_eq!(metrics(r#"{"targets":[{"port":"2","path":"/b"}]}"#), Ok(vec![target(2, "/b")]));
        assert!(metrics(r#"{"port":"x"}"#).is_err());
    }

    #[test]
    fn variables_become_metadata() {
        let variables = [
            ("ISTIO_META_A", "x"),
            ("ISTIO_META_POD_PORTS", "[{\"containerPort\":1}]"),
            ("ISTIO_META_T", "true"),
            ("HOME", "/"),
        ];
        let found = metadata(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(
            Value::Object(found),
            serde_json::json!({"A": "x", "POD_PORTS": [{"containerPort": 1}], "T": "true"})
        );
    }

    #[test]
    fn files_of_the_downward_api_are_read() {
        let read = downward("app=\"web\"\nnote=\"a \\\"b\\\"\\nc=\\u00e9\\x41\"\n\nodd\nplain=x");
        let wanted = [("app", "web"), ("note", "a \"b\"\nc=\u{e9}A"), ("plain", "x")];
        assert_eq!(read, wanted.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
    }
}
