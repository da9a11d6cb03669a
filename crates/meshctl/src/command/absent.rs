//! Commands of istioctl that are not built here: each with the reason, and what to do in its place.

use anyhow::{Result, bail};

const CLUSTERS: &str = "several clusters in one mesh are not built";
const AMBIENT: &str = "ambient is not built: pods have sidecars, and there are no waypoints and no ztunnel";

/// What there is to say, by the command's words.
const ABSENT: &[(&str, &str)] = &[
    ("remote-clusters", CLUSTERS),
    ("create-remote-secret", CLUSTERS),
    ("waypoint", AMBIENT),
    ("ztunnel-config", AMBIENT),
    ("experimental waypoint", AMBIENT),
    ("experimental ztunnel-config", AMBIENT),
    ("experimental remote-clusters", CLUSTERS),
    ("manifest translate", "use `meshctl manifest generate`, or Helm with the charts in `charts/`"),
    (
        "experimental metrics",
        "ask Prometheus, or `meshctl experimental envoy-stats NAME -o prom` for the counters of one proxy",
    ),
    (
        "experimental workload",
        "WorkloadGroups have no effect yet; `meshctl token create` and the README's section on one machine bring a workload outside of the cluster in",
    ),
    (
        "experimental injector",
        "`meshctl tag list` tells the tags with their namespaces, `meshctl experimental check-inject POD` which injector takes a pod",
    ),
    ("experimental config", "there is no file of defaults; flags have environment variables (`meshctl --help`)"),
    ("experimental revision", "`meshctl tag list` tells the tags, `meshctl version` what runs"),
    ("experimental proxy-status", "`meshctl status` is no experiment"),
    ("experimental version", "`meshctl version` is no experiment"),
    (
        "experimental wait",
        "`meshctl status` tells what proxies hold; the condition Reconciled of an object tells whether it is in effect",
    ),
    ("experimental uninstall", "`meshctl uninstall` is no experiment"),
    ("experimental create-remote-secret", CLUSTERS),
];

/// Refuses the command that these words begin with.
///
/// # Errors
/// Always: that is what it is for.
pub(super) fn refuse(words: &[&str]) -> Result<std::process::ExitCode> {
    let called = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    match ABSENT.iter().find(|(command, _)| *command == called || *command == words[0]) {
        Some((command, why)) => bail!("there is no `{command}`: {why}"),
        None => bail!("unknown command `{called}`; `meshctl --help` lists those that there are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_told_and_what_nobody_knows_is_unknown() {
        let told = |words: &[&str]| refuse(words).unwrap_err().to_string();
        assert!(told(&["waypoint", "apply"]).contains("ambient is not built"));
        assert!(told(&["experimental", "metrics", "a"]).contains("Prometheus"));
        assert!(told(&["experimental", "what"]).contains("unknown command"));
    }
}
