//! The annotations that pods may carry, and what their values must be (Istio `pkg/kube/inject/validate.go`): a wrong value
//! refuses the pod with one sentence, one without effect is told.

use ipnet::IpNet;
use serde_json::Value;

use super::Texts;

/// What a value must be: an error completes the sentence "NAME: VALUE …".
type Check = fn(&str) -> Result<(), String>;

const CHECKED: &[(&str, Check)] = &[
    ("sidecar.istio.io/interceptionMode", interception),
    ("sidecar.istio.io/nativeSidecar", truth),
    ("sidecar.istio.io/rewriteAppHTTPProbers", truth),
    ("sidecar.istio.io/proxyCPU", quantity),
    ("sidecar.istio.io/proxyCPULimit", quantity),
    ("sidecar.istio.io/proxyMemory", quantity),
    ("sidecar.istio.io/proxyMemoryLimit", quantity),
    ("sidecar.istio.io/capNetBindService", truth),
    ("sidecar.istio.io/userVolume", volumes),
    ("sidecar.istio.io/userVolumeMount", volumes),
    ("sidecar.istio.io/logLevel", level),
    ("status.sidecar.istio.io/port", port),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", seconds),
    ("readiness.status.sidecar.istio.io/periodSeconds", seconds),
    ("readiness.status.sidecar.istio.io/failureThreshold", seconds),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", networks_or_all),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", networks),
    ("traffic.sidecar.istio.io/includeInboundPorts", ports_or_all),
    ("traffic.sidecar.istio.io/excludeInboundPorts", ports),
    ("traffic.sidecar.istio.io/includeOutboundPorts", ports),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", ports),
    ("traffic.sidecar.istio.io/excludeInterfaces", interfaces),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", interfaces),
    ("istio.io/reroute-virtual-interfaces", interfaces),
    ("prometheus.istio.io/merge-metrics", truth),
    ("prometheus.istio.io/scrape-targets", targets),
    ("proxy.istio.io/config", settings),
];

/// Annotations of Istio's that are taken and do nothing here.
const WITHOUT_EFFECT: &[&str] = &[
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/statsInclusionPrefixes",
    "sidecar.istio.io/statsInclusionSuffixes",
    "sidecar.istio.io/statsInclusionRegexps",
    "sidecar.istio.io/extraStatTags",
    "sidecar.istio.io/statsHistogramBuckets",
    "sidecar.istio.io/statsHistogramBins",
    "sidecar.istio.io/statsFlushInterval",
    "sidecar.istio.io/statsEvictionInterval",
    "sidecar.istio.io/statsCompression",
    "sidecar.istio.io/componentLogLevel",
    "sidecar.istio.io/enableCoreDump",
    "readiness.status.sidecar.istio.io/applicationPorts",
    "prometheus.istio.io/secure-port",
];

/// Checks all; returns what has no effect, one sentence each.
///
/// # Errors
/// One sentence on the first value that is wrong.
pub(super) fn check(annotations: &Texts) -> Result<Vec<String>, String> {
    for (name, check) in CHECKED {
        if let Some(value) = annotations.get(*name) {
            check(value).map_err(|wrong| format!("The annotation {name} is wrong: {value:?} {wrong}."))?;
        }
    }
    let given = WITHOUT_EFFECT.iter().filter(|name| annotations.contains_key(**name));
    Ok(given.map(|name| format!("The annotation {name} has no effect in this proxy.")).collect())
}

/// Go's spellings of truth.
pub(super) fn read_truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The words of a list, without the blanks around them.
pub(super) fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn truth(value: &str) -> Result<(), String> {
    read_truth(value).map(|_| ()).ok_or_else(|| "is neither true nor false".to_owned())
}

fn interception(value: &str) -> Result<(), String> {
    match value {
        "REDIRECT" | "TPROXY" | "NONE" => Ok(()),
        _ => Err("is none of REDIRECT, TPROXY and NONE".to_owned()),
    }
}

fn level(value: &str) -> Result<(), String> {
    match value {
        "trace" | "debug" | "info" | "warning" | "warn" | "error" | "critical" | "off" => Ok(()),
        _ => Err("is not a log level (trace, debug, info, warning, error, critical, off)".to_owned()),
    }
}

fn port(value: &str) -> Result<(), String> {
    value.parse::<u16>().map(|_| ()).map_err(|_| "is not a port from 0 to 65535".to_owned())
}

fn seconds(value: &str) -> Result<(), String> {
    value.parse::<u32>().map(|_| ()).map_err(|_| "is not a whole number of 0 or more".to_owned())
}

fn ports(value: &str) -> Result<(), String> {
    match words(value).find(|word| word.parse::<u16>().is_err()) {
        Some(wrong) => Err(format!("holds {wrong:?}, which is not a port from 0 to 65535")),
        None => Ok(()),
    }
}

fn ports_or_all(value: &str) -> Result<(), String> {
    if value.trim() == "*" { Ok(()) } else { ports(value) }
}

fn networks(value: &str) -> Result<(), String> {
    match words(value).find(|word| word.parse::<IpNet>().is_err()) {
        Some(wrong) => Err(format!("holds {wrong:?}, which is not a network such as 10.0.0.0/8")),
        None => Ok(()),
    }
}

fn networks_or_all(value: &str) -> Result<(), String> {
    if value.trim() == "*" { Ok(()) } else { networks(value) }
}

fn interfaces(value: &str) -> Result<(), String> {
    let is_name = |word: &str| word.len() < 16 && word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    match words(value).find(|word| !is_name(word)) {
        Some(wrong) => Err(format!("holds {wrong:?}, which is not the name of an interface")),
        None => Ok(()),
    }
}

/// Kubernetes' quantities: a number with an optional suffix.
fn quantity(value: &str) -> Result<(), String> {
    let number = value.trim_start_matches(['+', '-']);
    let end = number.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(number.len());
    let suffixes = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let exponent = number[end..].strip_prefix(['e', 'E']).is_some_and(|power| power.parse::<i32>().is_ok());
    if number[..end].parse::<f64>().is_ok() && (suffixes.contains(&&number[end..]) || exponent) {
        return Ok(());
    }
    Err("is not a quantity such as 100m or 128Mi".to_owned())
}

/// A list of volumes or mounts, or a map by their names.
pub(super) fn read_volumes(value: &str) -> Option<Vec<Value>> {
    match serde_json::from_str(value).ok()? {
        Value::Array(list) => list.iter().all(Value::is_object).then_some(list),
        Value::Object(map) => {
            let named = |(name, value): (String, Value)| match value {
                Value::Object(mut fields) => {
                    fields.insert("name".to_owned(), Value::String(name));
                    Some(Value::Object(fields))
                }
                _ => None,
            };
            map.into_iter().map(named).collect()
        }
        _ => None,
    }
}

fn volumes(value: &str) -> Result<(), String> {
    match read_volumes(value) {
        Some(list) if list.iter().all(|one| one.get("name").is_some_and(Value::is_string)) => Ok(()),
        _ => Err("is not JSON of a list, or of a map by name".to_owned()),
    }
}

/// `port:path,…`, as the pair of both.
pub(super) fn read_target(word: &str) -> Option<(u16, String)> {
    let (port, path) = word.split_once(':').unwrap_or((word, "/metrics"));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some((port.trim().parse().ok()?, path))
}

fn targets(value: &str) -> Result<(), String> {
    match words(value).find(|word| read_target(word).is_none()) {
        Some(wrong) => Err(format!("holds {wrong:?}, which is not port:path")),
        None => Ok(()),
    }
}

fn settings(value: &str) -> Result<(), String> {
    let read = api::mesh_config::proxy_config(value);
    let config = read.map_err(|error| format!("cannot be read: {}", error.lines().next().unwrap_or_default()))?;
    match config.get("interceptionMode").and_then(Value::as_str) {
        Some(mode) => interception(mode).map_err(|wrong| format!("sets interceptionMode: {mode}, which {wrong}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_value_is_told_in_one_sentence() {
        for (name, value) in [
            ("sidecar.istio.io/interceptionMode", "redirect"),
            ("sidecar.istio.io/proxyCPU", "1 core"),
            ("sidecar.istio.io/userVolume", "[1]"),
            ("status.sidecar.istio.io/port", "70000"),
            ("readiness.status.sidecar.istio.io/periodSeconds", "-1"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8,*"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0"),
            ("traffic.sidecar.istio.io/includeInboundPorts", "80,x"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "*"),
            ("prometheus.istio.io/merge-metrics", "maybe"),
            ("prometheus.istio.io/scrape-targets", "x:/metrics"),
            ("proxy.istio.io/config", "- a"),
        ] {
            let sentence = check(&Texts::from([(name.to_owned(), value.to_owned())])).unwrap_err();
            assert!(sentence.contains(name) && sentence.ends_with('.'), "{sentence}");
        }
    }

    #[test]
    fn good_values_pass_and_what_does_nothing_is_told() {
        for (name, value) in [
            ("sidecar.istio.io/interceptionMode", "NONE"),
            ("sidecar.istio.io/interceptionMode", "TPROXY"),
            ("sidecar.istio.io/proxyCPU", "100m"),
            ("sidecar.istio.io/proxyMemory", "1.5Gi"),
            ("sidecar.istio.io/proxyMemoryLimit", "1e3"),
            ("sidecar.istio.io/userVolume", r#"{"a":{"emptyDir":{}}}"#),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/8, fd00::/8"),
            ("traffic.sidecar.istio.io/includeInboundPorts", ""),
            ("prometheus.istio.io/scrape-targets", "9090:/metrics,9091"),
            ("proxy.istio.io/config", "concurrency: 2"),
        ] {
            let told = check(&Texts::from([(name.to_owned(), value.to_owned())]));
            assert_eq!(told, Ok(Vec::new()), "{name}");
        }
        let told = check(&Texts::from([("sidecar.istio.io/bootstrapOverride".to_owned(), "x".to_owned())])).unwrap();
        assert_eq!(told.len(), 1);
    }
}
