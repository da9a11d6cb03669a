//! The application's metrics are served with the proxy's: scrapers are sent to the status port, which asks the application
//! (Istio `applyPrometheusMerge`). Where it asks travels in an environment variable.

use serde_json::{Value, json};

use super::Texts;
use super::annotations::{read_target, read_truth, words};

/// The variable that says where the application's metrics are.
pub(super) const ORIGINAL: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
/// Where the merged metrics are.
pub(super) const PATH: &str = "/stats/prometheus";
/// Ports of the mesh's own, which would be asked in a circle.
const OWN_PORTS: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// The annotations that scrapers read.
pub(super) const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH_NAME: &str = "prometheus.io/path";
const TARGETS: &str = "prometheus.istio.io/scrape-targets";

/// Changes the annotations. Returns what the proxy must know of the application's metrics, if it has any.
///
/// # Errors
/// A port of the mesh's own is named as the application's.
pub(super) fn merge(annotations: &mut Texts, enabled: bool, status_port: u16) -> Result<Option<String>, String> {
    let wanted = annotations.get("prometheus.istio.io/merge-metrics").and_then(|value| read_truth(value));
    let scraped = annotations.get(SCRAPE).and_then(|value| read_truth(value));
    if !wanted.unwrap_or(enabled) || scraped == Some(false) {
        return Ok(None);
    }
    let own = annotations.get(PORT).and_then(|port| port.parse::<u16>().ok());
    if own == Some(status_port) {
        return Ok(None);
    }
    let mut ports: Vec<u16> = own.into_iter().collect();
    let targets: Vec<(u16, String)> =
        annotations.get(TARGETS).iter().flat_map(|value| words(value)).filter_map(read_target).collect();
    ports.extend(targets.iter().map(|(port, _)| *port));
    if let Some(wrong) = ports.iter().find(|port| OWN_PORTS.contains(port)) {
        return Err(format!(
            "The port {wrong} is the mesh's own and cannot be the application's metrics port (annotations prometheus.io/port, {TARGETS})."
        ));
    }
    let mut told = serde_json::Map::new();
    for (key, name) in [("scrape", SCRAPE), ("port", PORT), ("path", PATH_NAME)] {
        told.extend(annotations.get(name).map(|value| (key.to_owned(), Value::from(value.as_str()))));
    }
    if !targets.is_empty() {
        let list = targets.into_iter().map(|(port, path)| json!({"port": port.to_string(), "path": path}));
        told.insert("targets".to_owned(), list.collect());
    }
    annotations.insert(SCRAPE.to_owned(), "true".to_owned());
    annotations.insert(PORT.to_owned(), status_port.to_string());
    annotations.insert(PATH_NAME.to_owned(), PATH.to_owned());
    Ok((!told.is_empty()).then(|| Value::Object(told).to_string()))
}

/// Puts the original annotations back, if these are ours.
pub(super) fn restore(annotations: &mut Texts, original: Option<&str>) {
    if annotations.get(PATH_NAME).is_none_or(|path| path != PATH) {
        return;
    }
    let original: Value = original.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    for (key, name) in [("scrape", SCRAPE), ("port", PORT), ("path", PATH_NAME)] {
        match original.get(key).and_then(Value::as_str) {
            Some(value) => annotations.insert(name.to_owned(), value.to_owned()),
            None => annotations.remove(name),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Texts {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn scrapers_are_sent_to_the_proxy_and_back() {
        let before = annotations(&[(SCRAPE, "true"), (PORT, "9090"), (PATH_NAME, "/m")]);
        let mut now = before.clone();
        let told = merge(&mut now, true, 15020).unwrap();
        assert_eq!(told.as_deref(), Some(r#"{"path":"/m","port":"9090","scrape":"true"}"#));
        assert_eq!(now, annotations(&[(SCRAPE, "true"), (PORT, "15020"), (PATH_NAME, PATH)]));
        restore(&mut now, told.as_deref());
        assert_eq!(now, before);
        let mut none = Texts::new();
        assert_eq!(merge(&mut none, true, 15020), Ok(None));
        assert_eq!(none[PORT], "15020");
        restore(&mut none, None);
        assert_eq!(none, Texts::new());
    }

    #[test]
    fn who_does_not_want_it_is_left_alone() {
        for pairs in [&[(SCRAPE, "false")][..], &[("prometheus.istio.io/merge-metrics", "false")]] {
            let mut now = annotations(pairs);
            assert_eq!(merge(&mut now, true, 15020), Ok(None));
            assert_eq!(now, annotations(pairs));
        }
        assert_eq!(merge(&mut Texts::new(), false, 15020), Ok(None));
        assert!(merge(&mut annotations(&[(PORT, "15090")]), true, 15020).unwrap_err().contains("15090"));
        let told = merge(&mut annotations(&[(TARGETS, "81:/a,82")]), true, 15020).unwrap().unwrap();
        assert_eq!(told, r#"{"targets":[{"path":"/a","port":"81"},{"path":"/metrics","port":"82"}]}"#);
    }
}
