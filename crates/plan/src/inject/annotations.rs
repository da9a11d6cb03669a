//! The annotations that pods may carry, and what their values must be (Istio `pkg/kube/inject/validate.go`): a wrong value
//! refuses the pod with one sentence, one without effect is told.

use api::problem::nearest;
use ipnet::IpNet;
use serde_json::Value;

use super::{Texts, proxy_settings};

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
    ("sidecar.istio.io/agentLogLevel", scopes),
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
    "ambient.istio.io/redirection",
    "ambient.istio.io/bypass-inbound-capture",
    "topology.istio.io/controlPlaneClusters",
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
    within_limits(annotations)?;
    let given = WITHOUT_EFFECT.iter().filter(|name| annotations.contains_key(**name));
    let given = given.map(|name| format!("The annotation {name} has no effect in this proxy."));
    Ok(given.chain(annotations.keys().filter_map(|name| misspelt(name))).collect())
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
    amount(value).map(drop).ok_or_else(|| "is not a quantity of 0 or more, such as 100m or 128Mi".to_owned())
}

/// How much a quantity is.
fn amount(value: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 16] = [
        ("", 1.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
    ];
    let number = value.strip_prefix('+').unwrap_or(value);
    let end = number.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(number.len());
    let (number, suffix) = number.split_at(end);
    let exponent = || suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok().map(|power| 10f64.powi(power));
    let known = SUFFIXES.iter().find(|(known, _)| *known == suffix).map(|(_, factor)| *factor);
    Some(number.parse::<f64>().ok()? * known.or_else(exponent)?)
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
    proxy_settings::read(value).map(drop)
}

/// Levels of the proxy's own log: `info`, or `SCOPE:LEVEL,…`.
fn scopes(value: &str) -> Result<(), String> {
    const LEVELS: [&str; 8] = ["none", "fatal", "error", "warn", "warning", "info", "debug", "trace"];
    let is_level = |word: &&str| LEVELS.contains(&word.rsplit_once(':').map_or(*word, |(_, level)| level));
    match words(value).find(|word| !is_level(word)) {
        Some(wrong) => {
            Err(format!("holds {wrong:?}, which is not LEVEL or SCOPE:LEVEL with one of {}", LEVELS.join(", ")))
        }
        None => Ok(()),
    }
}

/// Nobody may ask for more than the limit: the API server would refuse the pod for a container that its author did not write.
fn within_limits(annotations: &Texts) -> Result<(), String> {
    for what in ["proxyCPU", "proxyMemory"] {
        let [asked, limit] = ["", "Limit"].map(|end| annotations.get(&format!("sidecar.istio.io/{what}{end}")));
        if let (Some(asked), Some(limit)) = (asked, limit)
            && amount(asked) > amount(limit)
        {
            return Err(format!(
                "The annotation sidecar.istio.io/{what} is wrong: {asked:?} is more than {limit:?}, which sidecar.istio.io/{what}Limit allows."
            ));
        }
    }
    Ok(())
}

/// A name that looks like one of ours and is none.
fn misspelt(name: &str) -> Option<String> {
    const PREFIXES: [&str; 7] = [
        "sidecar.istio.io/",
        "status.sidecar.istio.io/",
        "readiness.status.sidecar.istio.io/",
        "traffic.sidecar.istio.io/",
        "proxy.istio.io/",
        "inject.istio.io/",
        "prometheus.istio.io/",
    ];
    let all = || api::annotation::ALL.iter().map(|key| key.name).chain(WITHOUT_EFFECT.iter().copied());
    let all =
        || all().chain(CHECKED.iter().map(|(name, _)| *name)).chain([super::undo::STATUS, super::undo::OVERRIDES]);
    if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || all().any(|known| known == name) {
        return None;
    }
    let near = nearest(name, all()).map(|near| format!("; did you mean {near}?")).unwrap_or_else(|| ".".to_owned());
    Some(format!("The annotation {name} is not known and has no effect{near}"))
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
            ("proxy.istio.io/config", "{concurrency: many}"),
            ("sidecar.istio.io/agentLogLevel", "default:loud"),
            ("sidecar.istio.io/proxyMemory", "-1Gi"),
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
            ("sidecar.istio.io/agentLogLevel", "default:info,xds:debug"),
            ("sidecar.istio.io/inject", "true"),
        ] {
            let told = check(&Texts::from([(name.to_owned(), value.to_owned())]));
            assert_eq!(told, Ok(Vec::new()), "{name}");
        }
        let told = check(&Texts::from([("sidecar.istio.io/bootstrapOverride".to_owned(), "x".to_owned())])).unwrap();
        assert_eq!(told.len(), 1);
    }

    #[test]
    fn more_than_the_limit_is_refused_and_a_misspelt_name_is_told() {
        let given = |pairs: &[(&str, &str)]| {
            let texts = pairs.iter().map(|(name, value)| (format!("sidecar.istio.io/{name}"), (*value).to_owned()));
            check(&texts.collect())
        };
        let told = given(&[("proxyCPU", "2"), ("proxyCPULimit", "500m")]).unwrap_err();
        assert!(told.contains("proxyCPU is wrong") && told.contains("500m"), "{told}");
        assert_eq!(given(&[("proxyMemory", "1Gi"), ("proxyMemoryLimit", "1024Mi")]), Ok(Vec::new()));
        let told = given(&[("proxyCpuLimits", "1")]).unwrap();
        assert!(told.len() == 1 && told[0].contains("did you mean sidecar.istio.io/proxyCPULimit?"), "{told:?}");
    }
}
