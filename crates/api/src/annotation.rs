//! Every label and annotation that the mesh reads or writes, with what it means. Keys are Istio's and Kubernetes'.

/// One key that users may set or that the mesh writes.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The full key.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
}

macro_rules! keys {
    ($($constant:ident = $name:literal: $doc:literal;)*) => {
        $(#[doc = $doc] pub const $constant: &str = $name;)*
        /// All keys, in alphabetical order of their constants' families.
        pub const ALL: &[Key] = &[$(Key { name: $name, doc: $doc }),*];
    };
}

keys! {
    DRY_RUN = "istio.io/dry-run": "Annotation of an AuthorizationPolicy: `true` if it is only to be told what it would decide.";
    TLS_MODE = "security.istio.io/tlsMode": "`istio` on workloads that accept mutual TLS; endpoints carry it to the clients.";
    CANONICAL_NAME = "service.istio.io/canonical-name": "Name of the workload's service in metrics.";
    CANONICAL_REVISION = "service.istio.io/canonical-revision": "Revision of the workload in metrics; `latest` when unknown.";
    APP = "app": "Application name; fallback of the canonical name.";
    APP_NAME = "app.kubernetes.io/name": "Application name; preferred over `app`.";
    VERSION = "version": "Version; fallback of the canonical revision.";
    APP_VERSION = "app.kubernetes.io/version": "Version; preferred over `version`.";
    EXPORT_TO = "networking.istio.io/exportTo": "Namespaces that may see a Service.";
    TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution": "Annotation of a Service, ServiceEntry or namespace: PreferSameZone, PreferClose or PreferSameNode.";
    TOPOLOGY_MODE = "service.kubernetes.io/topology-mode": "Annotation of a Service for kube-proxy; the mesh has `trafficDistribution` for it.";
    HOSTNAME = "kubernetes.io/hostname": "Node of a workload that is not a pod.";
    AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip": "Label of a ServiceEntry: `false` if its hosts get no address from the mesh.";
    REGION = "topology.kubernetes.io/region": "Region of a node.";
    ZONE = "topology.kubernetes.io/zone": "Zone of a node.";
    SUBZONE = "topology.istio.io/subzone": "Sub-zone of a node.";
    LOCALITY = "istio-locality": "Locality of a workload as `region.zone.subzone`.";
    SERVICE_NAME = "kubernetes.io/service-name": "Service that an EndpointSlice belongs to.";
    INJECT = "sidecar.istio.io/inject": "Label (or annotation) of pods: whether they get a sidecar; counts over selectors and policy.";
    INJECT_TEMPLATES = "inject.istio.io/templates": "Names of the injection templates, in order, separated by commas.";
    SIDECAR_STATUS = "sidecar.istio.io/status": "Written: what injection added to the pod, as JSON.";
    PROXY_OVERRIDES = "proxy.istio.io/overrides": "Written: containers of the user's that injection completed, as JSON.";
    PROXY_CONFIG = "proxy.istio.io/config": "The proxy's own settings in YAML, over the mesh's `defaultConfig`.";
    REVISION = "istio.io/rev": "Written to pods: revision of the control plane that injected them.";
    PROXY_IMAGE = "sidecar.istio.io/proxyImage": "Image of the proxy: a whole reference, or its last part.";
    PROXY_CPU = "sidecar.istio.io/proxyCPU": "CPU that the proxy requests.";
    PROXY_CPU_LIMIT = "sidecar.istio.io/proxyCPULimit": "CPU that the proxy may use.";
    PROXY_MEMORY = "sidecar.istio.io/proxyMemory": "Memory that the proxy requests.";
    PROXY_MEMORY_LIMIT = "sidecar.istio.io/proxyMemoryLimit": "Memory that the proxy may use.";
    INTERCEPTION_MODE = "sidecar.istio.io/interceptionMode": "REDIRECT, TPROXY for applications that are to see their callers' addresses, or NONE for pods whose traffic is not captured.";
    NATIVE_SIDECAR = "sidecar.istio.io/nativeSidecar": "Whether the proxy is an init container that stays.";
    REWRITE_PROBES = "sidecar.istio.io/rewriteAppHTTPProbers": "Whether the application's probes go through the proxy's status port.";
    PROXY_LOG_LEVEL = "sidecar.istio.io/logLevel": "Log level of the data path.";
    AGENT_LOG_LEVEL = "sidecar.istio.io/agentLogLevel": "Log level of the rest of the proxy.";
    USER_VOLUME = "sidecar.istio.io/userVolume": "Volumes to add to the pod, as JSON.";
    USER_VOLUME_MOUNT = "sidecar.istio.io/userVolumeMount": "Mounts to add to the proxy, as JSON.";
    CAP_NET_BIND_SERVICE = "sidecar.istio.io/capNetBindService": "Whether the proxy may listen on ports below 1024.";
    STATUS_PORT = "status.sidecar.istio.io/port": "The proxy's status port; 0 is a proxy without probes.";
    READY_INITIAL_DELAY = "readiness.status.sidecar.istio.io/initialDelaySeconds": "Delay of the proxy's readiness probe.";
    READY_PERIOD = "readiness.status.sidecar.istio.io/periodSeconds": "Period of the proxy's readiness probe.";
    READY_FAILURES = "readiness.status.sidecar.istio.io/failureThreshold": "Failures that make the proxy unready.";
    INCLUDE_OUTBOUND_RANGES = "traffic.sidecar.istio.io/includeOutboundIPRanges": "Networks whose traffic is captured on its way out.";
    EXCLUDE_OUTBOUND_RANGES = "traffic.sidecar.istio.io/excludeOutboundIPRanges": "Networks whose traffic is not.";
    INCLUDE_INBOUND_PORTS = "traffic.sidecar.istio.io/includeInboundPorts": "Ports whose traffic is captured on its way in.";
    EXCLUDE_INBOUND_PORTS = "traffic.sidecar.istio.io/excludeInboundPorts": "Ports whose traffic is not.";
    INCLUDE_OUTBOUND_PORTS = "traffic.sidecar.istio.io/includeOutboundPorts": "Ports captured on the way out, whatever the network.";
    EXCLUDE_OUTBOUND_PORTS = "traffic.sidecar.istio.io/excludeOutboundPorts": "Ports not captured on the way out.";
    EXCLUDE_INTERFACES = "traffic.sidecar.istio.io/excludeInterfaces": "Interfaces whose traffic is not captured.";
    REROUTE_INTERFACES = "istio.io/reroute-virtual-interfaces": "Interfaces of virtual machines, whose traffic is outbound.";
    PROMETHEUS_MERGE = "prometheus.istio.io/merge-metrics": "Whether the proxy serves the application's metrics with its own.";
    PROMETHEUS_TARGETS = "prometheus.istio.io/scrape-targets": "Further pages of the application's metrics: port:path, separated by commas.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn keys_are_unique_and_documented() {
        let names: HashSet<_> = super::ALL.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), super::ALL.len());
        assert!(super::ALL.iter().all(|key| key.doc.ends_with('.')));
    }
}
