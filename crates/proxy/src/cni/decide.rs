//! Whether the plug-in captures a pod's traffic, and how: pure. Injection has written into the pod's annotation
//! `sidecar.istio.io/status` what `proxy init` would have been called with, and the runtime hands the annotations on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::annotation;
use clap::Parser;
use serde::Deserialize;
use serde_json::Value;

use crate::capture::Options;
use crate::go_value::parse_bool;

/// Capability by which runtimes (containerd, CRI-O) hand on a pod's annotations.
pub const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// What the runtime gives the plug-in on its standard input.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Version of the protocol that is spoken.
    pub cni_version: String,
    /// Namespaces whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// What the plug-ins before have done.
    pub prev_result: Option<Value>,
    /// What is special to this pod.
    pub runtime_config: RuntimeConfig,
}

/// What the runtime tells of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// Its annotations; `None` if the runtime does not know how to hand them on.
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Its `resolv.conf`.
    pub dns: Dns,
}

/// What stands in a pod's `resolv.conf`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers. containerd writes the name as Go has it.
    #[serde(alias = "Servers")]
    pub servers: Option<Vec<String>>,
}

/// Which pod, as `CNI_ARGS` says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace; empty for what is no pod of Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Pod {
    /// Reads `KEY=VALUE;KEY=VALUE`.
    pub fn parse(arguments: &str) -> Pod {
        let get = |name: &str| {
            let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        Pod { namespace: get("K8S_POD_NAMESPACE"), name: get("K8S_POD_NAME") }
    }
}

/// What becomes of a pod's traffic.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Nothing, and why.
    Leave(&'static str),
    /// These rules.
    Capture(Box<Options>),
}

/// The words of `status.capture` as `proxy init` takes them.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Words {
    #[command(flatten)]
    options: Options,
}

/// Decides.
///
/// # Errors
/// The annotation cannot be read: a sentence for `kubectl describe pod`.
pub fn decide(config: &Config, pod: &Pod) -> Result<Decision, String> {
    if pod.namespace.is_empty() {
        return Ok(Decision::Leave("it is no pod of Kubernetes"));
    }
    if config.exclude_namespaces.contains(&pod.namespace) {
        return Ok(Decision::Leave("its namespace is excluded"));
    }
    let Some(annotations) = &config.runtime_config.annotations else {
        // Its sidecar, if it has one, says that nothing is captured, and is not ready.
        return Ok(Decision::Leave("the runtime hands on no annotations"));
    };
    let Some(status) = annotations.get(annotation::SIDECAR_STATUS) else {
        return Ok(Decision::Leave("it has no sidecar"));
    };
    if annotations.get(annotation::INJECT).is_some_and(|asked| !asked.is_empty() && parse_bool(asked) == Ok(false)) {
        return Ok(Decision::Leave("it wants no sidecar"));
    }
    let status: Value = serde_json::from_str(status)
        .map_err(|error| format!("the annotation {} is not JSON: {error}", annotation::SIDECAR_STATUS))?;
    let own = status["initContainers"].as_array().into_iter().flatten();
    if own.into_iter().any(|name| name == "istio-init") {
        return Ok(Decision::Leave("its own init container captures"));
    }
    let Some(words) = status["capture"].as_array() else {
        return Ok(Decision::Leave("its proxy captures nothing"));
    };
    let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
    options(&words.unwrap_or_default(), &config.runtime_config.dns)
        .map(|options| Decision::Capture(Box::new(options)))
        .map_err(|wrong| {
            format!("the annotation {} asks for a capture that cannot be: {wrong}", annotation::SIDECAR_STATUS)
        })
}

fn options(words: &[&str], dns: &Dns) -> Result<Options, String> {
    let mut options = Words::try_parse_from(words)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())?
        .options;
    options.check()?;
    if options.dry_run || options.cleanup_only || options.skip_rule_apply || options.run_validation {
        return Err("only flags that say what is captured are taken here".to_owned());
    }
    if options.redirect_dns && !options.capture_all_dns {
        let servers = dns.servers.iter().flatten();
        options.name_servers = servers.filter_map(|server| server.parse::<IpAddr>().ok()).collect();
        if options.name_servers.is_empty() {
            return Err("DNS is to be captured, but the runtime does not say which name servers the pod has".to_owned());
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(annotations: Value) -> Config {
        serde_json::from_value(json!({
            "cniVersion": "1.0.0", "excludeNamespaces": ["kube-system"], "unheardOf": 1,
            "runtimeConfig": {ANNOTATIONS: annotations, "dns": {"Servers": ["10.96.0.10", "fd00::10"], "Searches": []}},
        }))
        .unwrap()
    }

    fn of(annotations: Value) -> Result<Decision, String> {
        let pod = Pod { namespace: "shop".into(), name: "web".into() };
        decide(&config(annotations), &pod)
    }

    fn status(status: Value) -> Value {
        json!({"sidecar.istio.io/status": status.to_string()})
    }

    #[test]
    fn the_pod_is_named_by_the_runtimes_arguments() {
        let pod = Pod::parse("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u");
        assert_eq!(pod, Pod { namespace: "shop".into(), name: "web-1".into() });
        assert_eq!(Pod::parse(""), Pod::default());
    }

    #[test]
    fn who_is_left_alone() {
        let captured = status(json!({"capture": ["-p", "15001"]}));
        let mut unwanted = captured.clone();
        unwanted["sidecar.istio.io/inject"] = json!("false");
        for (annotations, why) in [
            (Value::Null, "no annotations"),
            (json!({"a": "b"}), "no sidecar"),
            (unwanted, "wants no sidecar"),
            (status(json!({"initContainers": ["istio-init"], "capture": []})), "own init container"),
            (status(json!({"initContainers": ["istio-proxy"], "revision": "default"})), "captures nothing"),
        ] {
            let decision = of(annotations).unwrap();
            assert!(matches!(decision, Decision::Leave(told) if told.contains(why)), "{why}: {decision:?}");
        }
        let excluded = Pod { namespace: "kube-system".into(), name: "dns".into() };
        assert!(matches!(decide(&config(captured.clone()), &excluded), Ok(Decision::Leave(_))));
        assert!(matches!(decide(&config(captured), &Pod::default()), Ok(Decision::Leave(_))));
    }

    #[test]
    fn the_rules_are_those_that_injection_asks_for() {
        let words =
            "-p 15001 -z 15006 -u 1337 -m TPROXY -i * -x 10.9.0.0/16 -b * -d 15090,15021,15020,9 -q 7 --drop-invalid";
        let words: Vec<&str> = words.split(' ').collect();
        let Ok(Decision::Capture(options)) = of(status(json!({"initContainers": ["istio-proxy"], "capture": words})))
        else {
            panic!("not captured")
        };
        assert!(options.is_transparent() && options.drop_invalid && !options.redirect_dns);
        assert_eq!(options.inbound_exclude, ["15090", "15021", "15020", "9"]);
        assert_eq!(
            (options.outbound_exclude.join(","), options.outbound_ports.join(",")),
            ("10.9.0.0/16".into(), "7".into())
        );
    }

    #[test]
    fn dns_goes_by_the_pods_own_name_servers() {
        let captured = status(json!({"capture": ["--redirect-dns"]}));
        let Ok(Decision::Capture(options)) = of(captured.clone()) else { panic!("not captured") };
        let servers: Vec<String> = options.name_servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.96.0.10", "fd00::10"]);
        let mut silent = config(captured);
        silent.runtime_config.dns = Dns::default();
        let pod = Pod { namespace: "shop".into(), name: "web".into() };
        assert!(decide(&silent, &pod).unwrap_err().contains("name servers"));
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (annotations, wrong) in [
            (json!({"sidecar.istio.io/status": "{"}), "not JSON"),
            (status(json!({"capture": ["-p", "many"]})), "many"),
            (status(json!({"capture": ["-m", "SOME"]})), "neither REDIRECT nor TPROXY"),
            (status(json!({"capture": ["--cleanup-only"]})), "only flags"),
            (status(json!({"capture": ["--dry-run"]})), "only flags"),
            (status(json!({"capture": ["-i", "x; flush ruleset"]})), "not a network"),
        ] {
            let told = of(annotations).unwrap_err();
            assert!(told.contains(wrong) && !told.contains('\n'), "{told}");
        }
    }
}
