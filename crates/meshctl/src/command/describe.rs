//! `meshctl describe`: what the mesh does for a pod or a service, in sentences. Objects are read from the cluster and judged by
//! the control plane's own code; what the proxy holds is asked of the control plane.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use api::crd::authorization_policy::Action;
use api::crd::peer_authentication::MutualTlsMode;
use api::crd::virtual_service::{HttpRoute, RouteDestination};
use api::crd::{DestinationRule, VirtualService};
use api::debug::SyncStatus;
use api::kube::{Service, ServicePort};
use api::mesh_config::MeshConfig;
use api::name::Hostname;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::{ObjectRef, Problem};
use api::selector::selects;
use api::value::{Labels, NumberOrName};
use plan::model::Protocol;
use plan::snapshot::BoundPolicy;
use plan::{Change, Snapshot, World};

use super::analyze;
use super::check::has_proxy;
use crate::cli::DescribeCommand;
use crate::cluster::Cluster;
use crate::mesh::Mesh;

/// Domain of services, where the control plane was told no other.
const DOMAIN: &str = "cluster.local";

/// Everything that is looked at.
struct Known {
    world: World,
    snapshot: Arc<Snapshot>,
    /// What is wrong with objects that could be read only in part.
    reading: Vec<Problem>,
    /// Connected proxies; `None` if the control plane could not be asked.
    proxies: Option<Vec<SyncStatus>>,
}

/// Describes a pod or a service.
pub(super) async fn run(
    cluster: &Cluster,
    mesh: &Mesh,
    root_namespace: &str,
    command: &DescribeCommand,
) -> Result<String> {
    let (objects, reading) = analyze::in_cluster(cluster).await?;
    let proxies = mesh.proxies().await.ok();
    let known = Known::of(objects, reading, proxies, root_namespace);
    match command {
        DescribeCommand::Pod { name, namespace } => pod(&known, &named(name, namespace, Kind::Pod)),
        DescribeCommand::Service { name, namespace } => service(&known, &named(name, namespace, Kind::Service)),
    }
}

/// `NAME.NAMESPACE` (also `NAME.NAMESPACE.svc…`), or a name in the namespace given.
fn named(text: &str, namespace: &str, kind: Kind) -> ObjectKey {
    let mut parts = text.split('.');
    let name = parts.next().unwrap_or_default().to_owned();
    let namespace = parts.next().unwrap_or(namespace).to_owned();
    ObjectKey { kind, namespace, name }
}

impl Known {
    fn of(
        objects: Vec<Object>,
        reading: Vec<Problem>,
        proxies: Option<Vec<SyncStatus>>,
        root_namespace: &str,
    ) -> Known {
        let mesh = MeshConfig { root_namespace: root_namespace.to_owned(), ..MeshConfig::default() };
        let mut world = World::new(mesh, DOMAIN);
        for object in objects {
            world.apply(Change::Upsert(Box::new(object)));
        }
        let snapshot = Snapshot::build(&world, None);
        Known { world, snapshot, reading, proxies }
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.world.objects().map(AsRef::as_ref).filter(move |object| object.kind == kind)
    }

    /// Services of the namespace that take these labels.
    fn services<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a Object, &'a Service)> {
        self.of_kind(Kind::Service).filter_map(move |object| match &object.body {
            Body::Service(service)
                if object.meta.namespace == namespace
                    && !service.spec.selector.is_empty()
                    && selects(&service.spec.selector, labels) =>
            {
                Some((object, service))
            }
            _ => None,
        })
    }

    fn pods<'a>(&'a self, namespace: &'a str, selector: &'a Labels) -> impl Iterator<Item = &'a Object> {
        self.of_kind(Kind::Pod).filter(move |pod| {
            pod.meta.namespace == namespace && !selector.is_empty() && selects(selector, &pod.meta.labels)
        })
    }
}

fn place(object: &Object) -> String {
    format!("{}.{}", object.meta.name, object.meta.namespace)
}

fn pod(known: &Known, key: &ObjectKey) -> Result<String> {
    let missing = || format!("there is no pod {} in the namespace {}", key.name, key.namespace);
    let pod = known.world.object(key).with_context(missing)?;
    let mut text = format!("Pod {}\n", place(pod));
    let _ = writeln!(text, "  {}", membership(pod, known.proxies.as_deref()));
    let ports: Vec<(u16, String)> = container_ports(pod);
    if !ports.is_empty() {
        let list: Vec<String> = ports.iter().map(|(port, container)| format!("{port} ({container})")).collect();
        let _ = writeln!(text, "  Ports: {}", list.join(", "));
    }
    let mut told = BTreeSet::from([pod.reference()]);
    let mut any = false;
    for (object, service) in known.services(&key.namespace, &pod.meta.labels) {
        any = true;
        text += &one_service(known, object, service, Some(pod), &mut told);
    }
    if !any {
        text += "No service selects the pod: nothing in the mesh sends requests to it by name.\n";
    }
    let numbers: Vec<u16> = ports.into_iter().map(|(port, _)| port).collect();
    text += &mutual_tls(known, pod, &numbers, &mut told);
    text += &tokens(known, pod, &mut told);
    text += &policies(known, pod, &mut told);
    Ok(text + &problems(known, &told))
}

fn service(known: &Known, key: &ObjectKey) -> Result<String> {
    let missing = || format!("there is no service {} in the namespace {}", key.name, key.namespace);
    let object = known.world.object(key).with_context(missing)?;
    let Body::Service(service) = &object.body else { anyhow::bail!("{key} could not be read") };
    let mut told = BTreeSet::from([object.reference()]);
    let mut text = one_service(known, object, service, None, &mut told);
    let pods: Vec<&Object> = known.pods(&key.namespace, &service.spec.selector).collect();
    let (inside, outside): (Vec<&Object>, Vec<&Object>) = pods.iter().partition(|pod| has_proxy(&pod.raw));
    let _ = writeln!(text, "Pods: {} in the mesh, {} outside of it", inside.len(), outside.len());
    for pod in outside {
        let _ = writeln!(text, "  {} has no proxy", place(pod));
    }
    if let Some(pod) = pods.first() {
        let targets: Vec<u16> = service.spec.ports.iter().map(|port| target(port, Some(pod))).collect();
        text += &mutual_tls(known, pod, &targets, &mut told);
        text += &tokens(known, pod, &mut told);
        text += &policies(known, pod, &mut told);
    }
    Ok(text + &problems(known, &told))
}

/// Whether a pod is in the mesh, and how it goes.
fn membership(pod: &Object, proxies: Option<&[SyncStatus]>) -> String {
    if !has_proxy(&pod.raw) {
        return "It is not in the mesh: it has no proxy (container istio-proxy).".to_owned();
    }
    let Some(proxies) = proxies else {
        return "It has a proxy. The control plane could not be asked whether that is connected.".to_owned();
    };
    let name = place(pod);
    let Some(proxy) = proxies.iter().find(|proxy| proxy.proxy == name) else {
        return "It has a proxy, which is not connected to the control plane.".to_owned();
    };
    let refused: Vec<&str> =
        proxy.types.iter().filter(|kind| !kind.nack.is_empty()).map(|kind| kind.kind.as_str()).collect();
    if !refused.is_empty() {
        return format!("It is in the mesh. Its proxy refuses {}: see `meshctl status {name}`.", refused.join(", "));
    }
    let late = proxy.types.iter().any(|kind| kind.state == "STALE");
    let state = if late { "has not taken the newest configuration yet" } else { "has the newest configuration" };
    format!("It is in the mesh. Its proxy ({}) is connected and {state}.", proxy.proxy_version)
}

/// Ports that the containers of the application declare.
fn container_ports(pod: &Object) -> Vec<(u16, String)> {
    let Body::Pod(body) = &pod.body else { return Vec::new() };
    let application = body.spec.containers.iter().filter(|container| container.name != "istio-proxy");
    application
        .flat_map(|container| container.ports.iter().map(|port| (port.container_port, container.name.clone())))
        .collect()
}

/// The pod's port behind a service's port.
fn target(port: &ServicePort, pod: Option<&Object>) -> u16 {
    match (&port.target_port, pod.map(|pod| &pod.body)) {
        (Some(NumberOrName::Number(number)), _) => *number,
        (Some(NumberOrName::Name(name)), Some(Body::Pod(pod))) => {
            let mut ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
            ports.find(|port| port.name == *name).map_or(0, |port| port.container_port)
        }
        _ => port.port,
    }
}

fn spoken(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP/2",
        Protocol::Grpc => "gRPC",
        Protocol::GrpcWeb => "gRPC-Web",
        Protocol::Https => "HTTPS, passed through",
        Protocol::Tls => "TLS, passed through",
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP, which the mesh does not carry",
        Protocol::Sniffed => "not told, found out from the first bytes",
    }
}

fn one_service(
    known: &Known,
    object: &Object,
    service: &Service,
    pod: Option<&Object>,
    told: &mut BTreeSet<ObjectRef>,
) -> String {
    told.insert(object.reference());
    let mut text = format!("Service {}\n", place(object));
    for port in &service.spec.ports {
        let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
        let behind = match (&port.target_port, pod) {
            (Some(NumberOrName::Name(name)), None) => name.clone(),
            _ => target(port, pod).to_string(),
        };
        let protocol = Protocol::of_port(port.port, &port.name, &port.app_protocol, &port.protocol);
        let _ = writeln!(text, "  Port {name}{} to {behind}: {}", port.port, spoken(protocol));
    }
    let host = Hostname::resolve(&object.meta.name, &object.meta.namespace, DOMAIN);
    text += &rules(known, &host, pod, told);
    text += &routes(known, &host, told);
    text
}

/// DestinationRules whose host the service is.
fn rules(known: &Known, host: &Hostname, pod: Option<&Object>, told: &mut BTreeSet<ObjectRef>) -> String {
    let mut text = String::new();
    for object in known.of_kind(Kind::DestinationRule) {
        let Body::DestinationRule(rule) = &object.body else { continue };
        if !Hostname::resolve(&rule.host, &object.meta.namespace, DOMAIN).covers(host) {
            continue;
        }
        told.insert(object.reference());
        let _ = writeln!(text, "  DestinationRule {} for {:?}", place(object), rule.host);
        for line in rule_lines(rule, pod) {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn rule_lines(rule: &DestinationRule, pod: Option<&Object>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(policy) = &rule.traffic_policy {
        let blocks = [
            ("load balancer", policy.load_balancer.is_some()),
            ("connection pool", policy.connection_pool.is_some()),
            ("outlier detection", policy.outlier_detection.is_some()),
            ("TLS", policy.tls.is_some()),
            ("single ports", !policy.port_level_settings.is_empty()),
            ("tunnel", policy.tunnel.is_some()),
            ("PROXY protocol", policy.proxy_protocol.is_some()),
            ("retry budget", policy.retry_budget.is_some()),
        ];
        let given: Vec<&str> = blocks.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if !given.is_empty() {
            lines.push(format!("It sets: {}", given.join(", ")));
        }
        if let Some(tls) = &policy.tls {
            lines.push(format!("Clients use TLS: {}", word(&tls.mode)));
        }
    }
    let subsets: Vec<String> = rule
        .subsets
        .iter()
        .map(|subset| {
            let here = pod.is_some_and(|pod| selects(&subset.labels, &pod.meta.labels));
            if here { format!("{} (this pod)", subset.name) } else { subset.name.clone() }
        })
        .collect();
    if !subsets.is_empty() {
        lines.push(format!("Subsets: {}", subsets.join(", ")));
    }
    lines
}

/// A variant's name as Istio writes it: `IstioMutual` is ISTIO_MUTUAL.
fn word(variant: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    for letter in format!("{variant:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_uppercase());
    }
    text
}

/// VirtualServices that route the service's host, or send requests to it from another name.
fn routes(known: &Known, host: &Hostname, told: &mut BTreeSet<ObjectRef>) -> String {
    let mut text = String::new();
    for object in known.of_kind(Kind::VirtualService) {
        let Body::VirtualService(spec) = &object.body else { continue };
        let namespace = object.meta.namespace.as_str();
        let of_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh");
        let binds = of_mesh && spec.hosts.iter().any(|one| Hostname::resolve(one, namespace, DOMAIN).covers(host));
        let leads = destinations(spec).iter().any(|one| Hostname::resolve(one, namespace, DOMAIN) == *host);
        if !binds && !leads {
            continue;
        }
        told.insert(object.reference());
        let gateways: Vec<&str> =
            spec.gateways.iter().map(String::as_str).filter(|gateway| *gateway != "mesh").collect();
        let how = match (binds, gateways.as_slice()) {
            (true, _) => "routes its requests".to_owned(),
            (false, []) => format!("sends requests for {} to it", spec.hosts.join(", ")),
            (false, gateways) => {
                format!("sends requests for {} at {} to it", spec.hosts.join(", "), gateways.join(", "))
            }
        };
        let _ = writeln!(text, "  VirtualService {} {how}", place(object));
        // Of what is for other hosts, only the rules that lead here.
        let here = |one: &str| binds || Hostname::resolve(one, namespace, DOMAIN) == *host;
        let http = spec.http.iter().enumerate();
        for (index, rule) in http.filter(|(_, rule)| binds || rule.route.iter().any(|one| here(&one.destination.host)))
        {
            let _ = writeln!(text, "    http[{index}]: {}", http_line(rule));
        }
        for (kind, rules) in [
            ("tls", spec.tls.iter().map(|rule| &rule.route).collect::<Vec<_>>()),
            ("tcp", spec.tcp.iter().map(|rule| &rule.route).collect()),
        ] {
            let rules = rules.into_iter().enumerate();
            for (index, rule) in rules.filter(|(_, rule)| rule.iter().any(|one| here(&one.destination.host))) {
                let _ = writeln!(text, "    {kind}[{index}]: {}", shares(rule));
            }
        }
    }
    text
}

fn destinations(spec: &VirtualService) -> Vec<&str> {
    let http = spec.http.iter().flat_map(|rule| rule.route.iter().map(|one| one.destination.host.as_str()));
    let tls = spec.tls.iter().flat_map(|rule| &rule.route);
    let tcp = spec.tcp.iter().flat_map(|rule| &rule.route);
    http.chain(tls.chain(tcp).map(|one| one.destination.host.as_str())).collect()
}

fn http_line(rule: &HttpRoute) -> String {
    let when = match rule.matches.len() {
        0 => "all requests".to_owned(),
        1 => "1 match".to_owned(),
        count => format!("{count} matches"),
    };
    let what = if let Some(redirect) = &rule.redirect {
        format!("redirect ({})", redirect.redirect_code.unwrap_or(301))
    } else if let Some(response) = &rule.direct_response {
        format!("answered {}", response.status)
    } else if let Some(delegate) = &rule.delegate {
        format!("left to the VirtualService {}", delegate.name)
    } else {
        shares(
            &rule
                .route
                .iter()
                .map(|one| RouteDestination { destination: one.destination.clone(), weight: one.weight })
                .collect::<Vec<_>>(),
        )
    };
    let extras = [
        ("timeout", rule.timeout.is_some()),
        ("retries", rule.retries.is_some()),
        ("fault injection", rule.fault.is_some()),
        ("mirror", rule.mirror.is_some() || !rule.mirrors.is_empty()),
        ("rewrite", rule.rewrite.is_some()),
        ("CORS", rule.cors_policy.is_some()),
        ("headers", rule.headers.is_some()),
    ];
    let extras: Vec<&str> = extras.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    let extras = if extras.is_empty() { String::new() } else { format!("; with {}", extras.join(", ")) };
    format!("{when}: {what}{extras}")
}

/// Destinations with their shares in percent.
fn shares(routes: &[RouteDestination]) -> String {
    let all: u64 = routes.iter().map(|route| u64::from(route.weight)).sum();
    let shown = |route: &RouteDestination| {
        let destination = &route.destination;
        let subset = if destination.subset.is_empty() { String::new() } else { format!(" {}", destination.subset) };
        match (routes.len(), all) {
            (1, _) => format!("{}{subset}", destination.host),
            (_, 0) => format!("{}{subset} 0 %", destination.host),
            _ => format!("{}{subset} {} %", destination.host, u64::from(route.weight) * 100 / all),
        }
    };
    match routes {
        [] => "nothing".to_owned(),
        routes => format!("to {}", routes.iter().map(shown).collect::<Vec<_>>().join(", ")),
    }
}

/// In which mode a pod takes connections, port by port where they differ.
fn mutual_tls(known: &Known, pod: &Object, ports: &[u16], told: &mut BTreeSet<ObjectRef>) -> String {
    if !has_proxy(&pod.raw) {
        return "Mutual TLS: none, the pod has no proxy; clients in the mesh send plaintext to it\n".to_owned();
    }
    let of = |port: u16| known.snapshot.mutual_tls(&pod.meta.namespace, &pod.meta.labels, port);
    // No policy can speak of port 0: this is what holds for all that are not named.
    let wide = of(0);
    let mut text = format!("Mutual TLS: {}\n", mode(&wide));
    told.extend(wide.1.as_ref().map(ObjectKey::reference));
    for port in ports {
        let own = of(*port);
        if own.0 != wide.0 {
            told.extend(own.1.as_ref().map(ObjectKey::reference));
            let _ = writeln!(text, "  Port {port}: {}", mode(&own));
        }
    }
    text
}

fn mode((mode, policy): &(MutualTlsMode, Option<ObjectKey>)) -> String {
    let meaning = match mode {
        MutualTlsMode::Unset | MutualTlsMode::Permissive => "PERMISSIVE, plaintext is taken too",
        MutualTlsMode::Strict => "STRICT, plaintext is refused",
        MutualTlsMode::Disable => "DISABLE, only plaintext is taken",
    };
    match policy {
        Some(policy) => format!("{meaning} ({})", policy.reference()),
        None => format!("{meaning} (no PeerAuthentication says otherwise)"),
    }
}

/// Whose tokens a pod's proxy looks at.
fn tokens(known: &Known, pod: &Object, told: &mut BTreeSet<ObjectRef>) -> String {
    let bound = known.snapshot.issuers_of(&pod.meta.namespace, &pod.meta.labels);
    if bound.is_empty() {
        return String::new();
    }
    if !has_proxy(&pod.raw) {
        return "Tokens: not looked at, the pod has no proxy\n".to_owned();
    }
    let mut text = "Tokens: one that is not good is refused (401), requests without one pass\n".to_owned();
    for (key, issuers) in bound {
        told.insert(key.reference());
        let _ = writeln!(text, "  {} takes those of {}", key.reference(), issuers.join(", "));
    }
    text
}

/// Which policies say who may call a pod, in the order in which they decide.
fn policies(known: &Known, pod: &Object, told: &mut BTreeSet<ObjectRef>) -> String {
    let mut bound = known.snapshot.policies_of(&pod.meta.namespace, &pod.meta.labels);
    if bound.is_empty() {
        return String::new();
    }
    if !has_proxy(&pod.raw) {
        return "Policies: without effect, the pod has no proxy\n".to_owned();
    }
    bound.sort_by_key(|one| (order(one.action), one.dry_run, one.key.clone()));
    let mut text = "Policies\n".to_owned();
    for BoundPolicy { action, dry_run, key, asks } in bound {
        let meaning = match (action, &asks) {
            (Action::Custom, Some(provider)) => format!("asks the provider {provider} about what its rules match"),
            (Action::Custom, None) => "denies what its rules match, since nobody can be asked".to_owned(),
            (Action::Deny, _) => "denies what its rules match".to_owned(),
            (Action::Allow, asks) => {
                let asked =
                    asks.as_ref().map(|provider| format!(", asking the provider {provider} where a rule says so"));
                let asked = asked.unwrap_or_default();
                format!("lets in what its rules match{asked}; all else that no other lets in is denied")
            }
            (Action::Audit, _) => "has no effect".to_owned(),
        };
        let trial = if dry_run { "; on trial, it is only counted" } else { "" };
        told.insert(key.reference());
        let _ = writeln!(text, "  {} {meaning}{trial}", key.reference());
    }
    text
}

fn order(action: Action) -> u8 {
    match action {
        Action::Custom => 0,
        Action::Deny => 1,
        Action::Allow => 2,
        Action::Audit => 3,
    }
}

/// What is wrong with the objects told of.
fn problems(known: &Known, told: &BTreeSet<ObjectRef>) -> String {
    let all = known.reading.iter().chain(known.snapshot.problems());
    let lines: BTreeSet<String> =
        all.filter(|problem| told.contains(&problem.object)).map(|problem| format!("  {problem}\n")).collect();
    if lines.is_empty() { String::new() } else { format!("Problems\n{}", lines.into_iter().collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use api::debug::TypeStatus;

    use super::*;

    const OBJECTS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: user, namespace: shop}
spec:
  selector: {app: user}
  ports: [{name: http, port: 80, targetPort: web}, {name: admin, port: 9000}]
---
apiVersion: v1
kind: Pod
metadata: {name: user-1, namespace: shop, labels: {app: user, version: v1}}
spec:
  containers:
  - {name: app, ports: [{name: web, containerPort: 8080}, {containerPort: 9000}]}
  - {name: istio-proxy}
status: {podIP: 10.0.0.1, phase: Running}
---
apiVersion: v1
kind: Pod
metadata: {name: lonely, namespace: shop, labels: {app: lonely}}
spec: {containers: [{name: app}]}
status: {podIP: 10.0.0.2, phase: Running}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: user, namespace: shop}
spec:
  hosts: [user]
  http:
  - match: [{headers: {beta: {exact: x}}}]
    route: [{destination: {host: user, subset: v2}}]
    timeout: 2s
  - route:
    - {destination: {host: user, subset: v1}, weight: 9}
    - {destination: {host: user, subset: v3}, weight: 1}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front, namespace: edge}
spec:
  hosts: [shop.example.com]
  gateways: [istio-system/gw]
  http:
  - {match: [{uri: {prefix: /other}}], route: [{destination: {host: other.shop.svc.cluster.local}}]}
  - {route: [{destination: {host: user.shop.svc.cluster.local}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: user, namespace: shop}
spec:
  host: user
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: user, namespace: shop}
spec: {selector: {matchLabels: {app: user}}, portLevelMtls: {'9000': {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everybody, namespace: istio-system}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {selector: {matchLabels: {app: user}}, action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: staff, namespace: istio-system}
spec: {jwtRules: [{issuer: 'https://one.example'}, {issuer: two, jwksUri: 'https://two.example/keys'}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: others, namespace: shop}
spec: {selector: {matchLabels: {app: other}}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asked, namespace: shop}
spec: {selector: {matchLabels: {app: user}}, action: CUSTOM, provider: {name: opa}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: decided, namespace: shop}
spec: {selector: {matchLabels: {app: user}}, rules: [{when: [{key: custom.opa_decision, values: [allow]}]}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: user.shop.svc.cluster.local, port: 80}}]'}
";

    fn known() -> Known {
        let decoded = api::decode::documents(OBJECTS.as_bytes(), "", "default");
        assert_eq!(decoded.problems, []);
        let synced = TypeStatus { kind: "CDS".into(), state: "SYNCED".into(), ..TypeStatus::default() };
        let proxy = SyncStatus {
            proxy: "user-1.shop".into(),
            proxy_version: "0.1.0".into(),
            types: vec![synced],
            ..SyncStatus::default()
        };
        Known::of(decoded.objects, decoded.problems, Some(vec![proxy]), "istio-system")
    }

    #[test]
    fn a_pod_of_the_mesh() {
        let text = pod(&known(), &named("user-1.shop", "default", Kind::Pod)).unwrap();
        for line in [
            "It is in the mesh. Its proxy (0.1.0) is connected and has the newest configuration.",
            "Ports: 8080 (app), 9000 (app)",
            "Service user.shop",
            "Port http 80 to 8080: HTTP",
            "Port admin 9000 to 9000: not told, found out from the first bytes",
            "DestinationRule user.shop for \"user\"",
            "It sets: TLS",
            "Clients use TLS: ISTIO_MUTUAL",
            "Subsets: v1 (this pod), v2",
            "VirtualService user.shop routes its requests",
            "http[0]: 1 match: to user v2; with timeout",
            "http[1]: all requests: to user v1 90 %, user v3 10 %",
            "VirtualService front.edge sends requests for shop.example.com at istio-system/gw to it",
            "http[1]: all requests: to user.shop.svc.cluster.local",
            "Mutual TLS: STRICT, plaintext is refused (PeerAuthentication shop/default)",
            "Port 9000: DISABLE, only plaintext is taken (PeerAuthentication shop/user)",
            "Tokens: one that is not good is refused (401), requests without one pass",
            "RequestAuthentication istio-system/staff takes those of https://one.example, two",
            "AuthorizationPolicy istio-system/everybody lets in what its rules match; all else that no other lets in is denied",
            "AuthorizationPolicy shop/asked asks the provider opa about what its rules match",
            "AuthorizationPolicy shop/decided lets in what its rules match, asking the provider opa where a rule says so; all else that no other lets in is denied",
            "AuthorizationPolicy shop/no-admin denies what its rules match; on trial, it is only counted",
        ] {
            assert!(text.lines().any(|found| found.trim() == line), "{line:?} is not in:\n{text}");
        }
        assert!(!text.contains("shop/others"), "what binds others is not told:\n{text}");
        assert!(!text.contains("to other.shop"), "what leads elsewhere is not told:\n{text}");
        // The subset v3 is not there; the sentence is the control plane's own.
        assert!(text.contains("Problems\n") && text.contains("v3"), "{text}");
    }

    #[test]
    fn a_service_and_a_pod_outside_of_the_mesh() {
        let known = known();
        let text = service(&known, &named("user", "shop", Kind::Service)).unwrap();
        assert!(text.contains("Port http 80 to web: HTTP\n"), "{text}");
        assert!(text.contains("Pods: 1 in the mesh, 0 outside of it\n"), "{text}");
        assert!(text.contains("Mutual TLS: STRICT"), "{text}");
        let text = pod(&known, &named("lonely", "shop", Kind::Pod)).unwrap();
        assert!(text.contains("It is not in the mesh") && text.contains("No service selects the pod"), "{text}");
        assert!(text.contains("Mutual TLS: none"), "{text}");
        let missing = pod(&known, &named("x.y", "shop", Kind::Pod)).unwrap_err();
        assert_eq!(missing.to_string(), "there is no pod x in the namespace y");
    }

    #[test]
    fn the_proxys_state_is_told() {
        let known = known();
        let pod = known.world.object(&named("user-1", "shop", Kind::Pod)).unwrap();
        assert!(membership(pod, Some(&[])).contains("is not connected"));
        assert!(membership(pod, None).contains("could not be asked"));
        let refused = TypeStatus { kind: "RDS".into(), nack: "no".into(), ..TypeStatus::default() };
        let proxy = SyncStatus { proxy: "user-1.shop".into(), types: vec![refused], ..SyncStatus::default() };
        assert!(membership(pod, Some(&[proxy])).contains("refuses RDS"));
    }
}
