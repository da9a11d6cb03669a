//! Settings of Istio's charts and of IstioOperator that have no effect here under their names: which setting has that effect, or why
//! there is none. A sentence each, for whoever brings his installation along.

use api::problem::nearest;
use serde_json::{Value, json};

/// A setting of Istio's, and what to say of it. Settings below it are meant too; the longest row counts.
struct Row {
    /// Path as it stands in an IstioOperator.
    path: &'static str,
    /// A value that asks for what is so here anyway.
    so_anyway: Option<bool>,
    /// Ends the sentence "PATH: …".
    told: &'static str,
}

const fn row(path: &'static str, told: &'static str) -> Row {
    Row { path, so_anyway: None, told }
}

const fn off(path: &'static str, told: &'static str) -> Row {
    Row { path, so_anyway: Some(false), told }
}

const fn on(path: &'static str, told: &'static str) -> Row {
    Row { path, so_anyway: Some(true), told }
}

const CNI: &str = "components.cni.enabled does that";
const MULTUS: &str = "the plug-in follows the node's own network configuration; Multus is not built";
const REPAIR: &str = "values.cni.repair.deletePods is what there is: pods that started before the plug-in are deleted";
const AMBIENT: &str = "ambient is not built; pods have sidecars";
const CLUSTERS: &str = "several clusters in one mesh are not built";
const TRACES: &str = "traces are not built";
const ADD_ONS: &str = "add-ons are not part of an installation; apply their own manifests";
const METRICS: &str = "the standard metrics are always made; Telemetry objects have no effect yet";

const ROWS: &[Row] = &[
    row("components.cni", "enabled, namespace and k8s are what there is to set"),
    row(
        "components.cni.k8s",
        "resources, nodeSelector, tolerations, affinity and podAnnotations are what there is to set",
    ),
    row("values.pilot.cni", "values.pilot.cni.enabled is what there is to set"),
    row("values.pilot.cni.provider", MULTUS),
    off("values.istio_cni.enabled", CNI),
    row("values.istio_cni", CNI),
    row("values.cni.provider", MULTUS),
    on("values.cni.chained", MULTUS),
    off("values.cni.ambient.enabled", AMBIENT),
    row("values.cni.ambient", AMBIENT),
    off("values.cni.repair.enabled", REPAIR),
    off("values.cni.repair.repairPods", REPAIR),
    off("values.cni.repair.labelPods", REPAIR),
    row("values.cni.repair", REPAIR),
    off("values.cni.privileged", "the agent needs no privilege; values.cni.seLinuxOptions is for nodes with SELinux"),
    row("values.cni.enabled", CNI),
    row("values.cni.logLevel", "values.cni.logging.level does that"),
    row("values.cni.hub", "`--set hub=REGISTRY`, or values.cni.image with a whole name, does that"),
    row("values.cni.tag", "`--set tag=TAG`, or values.cni.image with a whole name, does that"),
    row("values.cni.variant", "images come in one variant, without a distribution"),
    row("values.cni.cniNetnsDir", "the container runtime names the network of each pod; leave it out"),
    row("values.cni.resourceQuotas", "there is no setting for it"),
    off("components.ztunnel.enabled", AMBIENT),
    row("components.ztunnel", AMBIENT),
    row("values.ztunnel", AMBIENT),
    off("values.ambient.enabled", AMBIENT),
    row("values.ambient", AMBIENT),
    row("values.pilot.trustedZtunnelNamespace", AMBIENT),
    row(
        "values.pilot.taint",
        "nodes are not tainted until the CNI plug-in is there: proxies of pods that come before say so, and keep the application waiting",
    ),
    off("components.istiodRemote.enabled", CLUSTERS),
    row("components.istiodRemote", CLUSTERS),
    row("values.istiodRemote", CLUSTERS),
    off("values.global.multiCluster.enabled", CLUSTERS),
    row("values.global.meshNetworks", CLUSTERS),
    off("values.global.externalIstiod", CLUSTERS),
    off("values.global.configCluster", CLUSTERS),
    row("values.global.remotePilotAddress", CLUSTERS),
    row("compatibilityVersion", "there are no older behaviours to choose; leave it out"),
    row("values.compatibilityVersion", "there are no older behaviours to choose; leave it out"),
    row("values.defaultRevision", "`meshctl tag set default --revision NAME` does that"),
    row("values.revisionTags", "`meshctl tag set TAG --revision NAME` does that"),
    row("values.gateways", "gateways are set by components.ingressGateways[0] and components.egressGateways[0]"),
    on("values.telemetry.enabled", METRICS),
    on("values.telemetry.v2.enabled", METRICS),
    on("values.telemetry.v2.prometheus.enabled", METRICS),
    row("values.telemetry", METRICS),
    row("values.global.proxy.tracer", TRACES),
    row("values.global.tracer", TRACES),
    row("values.pilot.traceSampling", TRACES),
    row("values.global.platform", "nothing differs between platforms here; leave it out"),
    row("values.platform", "nothing differs between platforms here; leave it out"),
    row("values.profile", "`--set profile=NAME` does that"),
    row("values.hub", "`--set hub=REGISTRY` does that"),
    row("values.tag", "`--set tag=TAG` does that"),
    row("values.pilot.hub", "`--set hub=REGISTRY`, or values.pilot.image with a whole name, does that"),
    row("values.pilot.tag", "`--set tag=TAG`, or values.pilot.image with a whole name, does that"),
    row("values.pilot.variant", "images come in one variant, without a distribution"),
    row("values.global.variant", "images come in one variant, without a distribution"),
    row("values.pilot.enabled", "components.pilot.enabled does that"),
    row("values.pilot.memory", "values.pilot.autoscaleEnabled goes by CPU (values.pilot.cpu.targetAverageUtilization)"),
    row("values.pilot.autoscaleBehavior", "values.pilot.autoscaleMin and autoscaleMax are what there is to set"),
    row("values.pilot.rollingMaxSurge", "a replica is made before one is taken away; leave it out"),
    row("values.pilot.rollingMaxUnavailable", "a replica is made before one is taken away; leave it out"),
    row(
        "values.pilot.keepaliveMaxServerConnectionAge",
        "connections of proxies are renewed after 30 minutes; leave it out",
    ),
    row("values.pilot.configMap", "the mesh-wide settings are always in the ConfigMap istio; leave it out"),
    row("values.pilot.volumes", "the control plane needs no further volumes; there is no setting for them"),
    row("values.pilot.volumeMounts", "the control plane needs no further volumes; there is no setting for them"),
    row("values.pilot.extraContainerArgs", "values.pilot.extraContainerArgs is a list"),
    row("values.pilot.deploymentLabels", "values.pilot.podLabels has labels of the pods"),
    row(
        "values.pilot.serviceAccountAnnotations",
        "there is no setting for it; `kubectl annotate serviceaccount` does that",
    ),
    row("values.pilot.ipFamilies", "the Service has the family of the cluster; there is no setting for it"),
    row("values.pilot.ipFamilyPolicy", "the Service has the family of the cluster; there is no setting for it"),
    row(
        "values.global.defaultResources",
        "components.pilot.k8s.resources and components.ingressGateways[0].k8s.resources do that",
    ),
    row(
        "values.global.defaultNodeSelector",
        "components.pilot.k8s.nodeSelector and components.ingressGateways[0].k8s.nodeSelector do that",
    ),
    row(
        "values.global.defaultTolerations",
        "components.pilot.k8s.tolerations and components.ingressGateways[0].k8s.tolerations do that",
    ),
    on("values.global.defaultPodDisruptionBudget.enabled", "the control plane has a budget; leave it out"),
    row("values.global.priorityClassName", "there is no setting for it"),
    row("values.global.network", "values.global.network is a text"),
    row("values.global.pilotCertProvider", "the control plane certifies itself; leave it out"),
    row(
        "values.global.caAddress",
        "the control plane certifies workloads; another authority is not built (cacerts brings your own root)",
    ),
    row(
        "values.global.caName",
        "the control plane certifies workloads; another authority is not built (cacerts brings your own root)",
    ),
    row(
        "values.global.certSigners",
        "the control plane certifies workloads; another authority is not built (cacerts brings your own root)",
    ),
    row("values.global.jwtPolicy", "tokens are always bound to the audience istio-ca (third-party-jwt); leave it out"),
    off(
        "values.global.mountMtlsCerts",
        "certificates are not read from a Secret; proxies get them from the control plane",
    ),
    row("values.global.sds", "proxies always get certificates from the control plane; leave it out"),
    row("values.global.sts", "there is no token exchange; leave it out"),
    off("values.global.oneNamespace", "the control plane looks at all namespaces; there is no setting for it"),
    on("values.global.configValidation", "objects are always validated; leave it out"),
    off("values.global.omitSidecarInjectorConfigMap", "the ConfigMap istio-sidecar-injector is always made"),
    off("values.global.operatorManageWebhooks", "webhooks are always part of an installation"),
    off("values.global.nativeNftables", "the kernel decides: nftables where it has them, else iptables; leave it out"),
    row("values.global.proxy.enableCoreDump", "no core dumps are written"),
    row(
        "values.global.proxy.lifecycle",
        "values.global.proxy.holdApplicationUntilProxyStarts has applications wait; the rest is built in",
    ),
    row("values.global.proxy.outlierLogPath", "ejections are in the proxy's log; there is no file of their own"),
    row(
        "values.global.proxy.excludeInterfaces",
        "the annotation traffic.sidecar.istio.io/excludeInterfaces of pods does that",
    ),
    row("values.sidecarInjectorWebhook.enabled", "values.global.proxy.autoInject=disabled does that"),
    row("values.sidecarInjectorWebhook.injectLabel", "the label is sidecar.istio.io/inject"),
    row("values.istio_ingressgateway", "gateways are set by components.ingressGateways[0]"),
    row("values.base", "kinds and validation are always part of an installation; leave it out"),
    row("values.prometheus", ADD_ONS),
    row("values.grafana", ADD_ONS),
    row("values.kiali", ADD_ONS),
    row("values.tracing", ADD_ONS),
    row("addonComponents", ADD_ONS),
    row("unvalidatedValues", "`values` takes all that there is"),
    row("installPackagePath", "the charts are part of this program; `helm install` takes those of a folder"),
    row("components.pilot.k8s.strategy", "a replica is made before one is taken away; leave it out"),
    row(
        "components.pilot.k8s.overlays",
        "print the objects with `meshctl manifest generate`, and change and apply those",
    ),
    row("components.pilot.k8s.podDisruptionBudget", "the control plane has a budget; leave it out"),
    row("components.pilot.k8s.hpaSpec", "values.pilot.autoscaleEnabled, autoscaleMin and autoscaleMax do that"),
];

/// Settings of the charts of Istio's gateways, and the path below a gateway of an IstioOperator that has their effect.
const OF_GATEWAY: &[(&str, &str)] = &[
    ("enabled", "enabled"),
    ("name", "name"),
    ("namespace", "namespace"),
    ("labels", "label"),
    ("type", "k8s.service.type"),
    ("ports", "k8s.service.ports"),
    ("loadBalancerIP", "k8s.service.loadBalancerIP"),
    ("loadBalancerSourceRanges", "k8s.service.loadBalancerSourceRanges"),
    ("externalTrafficPolicy", "k8s.service.externalTrafficPolicy"),
    ("serviceAnnotations", "k8s.serviceAnnotations"),
    ("podAnnotations", "k8s.podAnnotations"),
    ("replicaCount", "k8s.replicaCount"),
    ("autoscaleEnabled", "k8s.hpaSpec"),
    ("autoscaleMin", "k8s.hpaSpec.minReplicas"),
    ("autoscaleMax", "k8s.hpaSpec.maxReplicas"),
    ("resources", "k8s.resources"),
    ("nodeSelector", "k8s.nodeSelector"),
    ("tolerations", "k8s.tolerations"),
    ("affinity", "k8s.affinity"),
    ("env", "k8s.env"),
];

/// Whether a setting that no chart knows asks for what is so anyway.
pub(super) fn is_so_anyway(path: &str, value: &Value) -> bool {
    found(path).is_some_and(|row| row.path == path && row.so_anyway.is_some_and(|truth| *value == json!(truth)))
}

/// What to say of a setting that no chart knows; `known` are the paths that charts know.
pub(super) fn told(path: &str, known: &[String]) -> String {
    if let Some(there) = of_gateway(path) {
        return format!("{path}: here {there} does that");
    }
    if let Some(row) = found(path) {
        return format!("{path}: {}", row.told);
    }
    match nearest(path, known.iter().map(String::as_str)) {
        Some(near) => format!("{path}: no such setting here, it would have no effect; did you mean {near}?"),
        None => format!("{path}: no such setting here, it would have no effect"),
    }
}

fn found(path: &str) -> Option<&'static Row> {
    let below =
        |row: &&Row| path.strip_prefix(row.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    ROWS.iter().filter(below).max_by_key(|row| row.path.len())
}

fn of_gateway(path: &str) -> Option<String> {
    let rest = path.strip_prefix("values.gateways.")?;
    let (gateway, setting) = rest.split_once('.')?;
    let list = match gateway {
        "istio-ingressgateway" => "ingressGateways",
        "istio-egressgateway" => "egressGateways",
        _ => return None,
    };
    let (head, below) = setting.split_once('.').map_or((setting, ""), |(head, below)| (head, below));
    let (_, there) = OF_GATEWAY.iter().find(|(name, _)| *name == head)?;
    let below = if below.is_empty() { String::new() } else { format!(".{below}") };
    Some(format!("components.{list}[0].{there}{below}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_say_something() {
        let mut paths: Vec<&str> = ROWS.iter().map(|row| row.path).collect();
        paths.sort_unstable();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count);
        assert!(ROWS.iter().all(|row| !row.told.is_empty() && !row.told.ends_with('.')));
    }

    #[test]
    fn a_setting_of_istios_is_answered_with_ours() {
        let known = ["values.pilot.replicaCount".to_owned()];
        for (path, answer) in [
            ("values.gateways.istio-ingressgateway.type", "components.ingressGateways[0].k8s.service.type does that"),
            (
                "values.gateways.istio-egressgateway.resources.limits.cpu",
                "components.egressGateways[0].k8s.resources.limits.cpu does that",
            ),
            ("values.gateways.istio-ingressgateway.secretVolumes", "gateways are set by components.ingressGateways[0]"),
            ("values.pilot.cni.provider", "Multus is not built"),
            ("values.cni.repair.repairPods", "values.cni.repair.deletePods is what there is"),
            ("values.cni.ambient.enabled", "ambient is not built"),
            ("values.defaultRevision", "meshctl tag set default"),
            ("values.pilot.replicaCounts", "did you mean values.pilot.replicaCount?"),
            ("values.what.else", "no such setting here, it would have no effect"),
        ] {
            let told = told(path, &known);
            assert!(told.starts_with(path) && told.contains(answer), "{told}");
        }
    }

    #[test]
    fn asking_for_what_is_so_anyway_is_no_mistake() {
        assert!(is_so_anyway("values.cni.chained", &json!(true)));
        assert!(!is_so_anyway("values.cni.chained", &json!(false)));
        assert!(is_so_anyway("values.telemetry.enabled", &json!(true)));
        assert!(!is_so_anyway("components.ztunnel.namespace", &json!(false)));
    }
}
