//! Kubernetes Services and ServiceEntries become services with their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::annotation;
use api::crd::service_entry::{Location, Resolution as Written};
use api::kube::{EndpointPort, ServicePort, SliceEndpoint};
use api::name::Hostname;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::{Code, Problem, Severity};
use api::selector::selects;
use api::value::{Labels, NumberOrName};

use super::{ByKind, Registry, workload};
use crate::intrinsic::problem;
use crate::model::{
    Age, Digested, Distribution, Endpoint, Exports, Port, Protocol, Resolution, Service, Workload, WorkloadSource,
    digest_of,
};
use crate::world::World;

/// A Kubernetes Service as it was lowered, with all that it was lowered from: kept for the next time.
#[derive(Clone, Debug)]
pub(crate) struct Lowered {
    sources: Vec<Arc<Object>>,
    service: Digested<Service>,
    problems: Vec<Problem>,
}

/// What was lowered from objects and workloads that may still be the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Digest of the mesh-wide settings.
    settings: u64,
    /// By namespace.
    workloads: BTreeMap<String, Vec<Arc<Workload>>>,
    services: BTreeMap<ObjectKey, Lowered>,
}

/// A service on its way: as it was lowered, or changed by what other objects say.
enum Draft {
    Lowered(Digested<Service>),
    Changed(Box<Service>),
}

impl Draft {
    fn get(&self) -> &Service {
        match self {
            Draft::Lowered(service) => service,
            Draft::Changed(service) => service,
        }
    }

    fn change(&mut self) -> &mut Service {
        if let Draft::Lowered(service) = self {
            *self = Draft::Changed(Box::new((*service.value).clone()));
        }
        match self {
            Draft::Changed(service) => service,
            Draft::Lowered(service) => Arc::make_mut(&mut service.value),
        }
    }

    fn done(self) -> Digested<Service> {
        match self {
            Draft::Lowered(service) => service,
            Draft::Changed(service) => finished(*service),
        }
    }
}

/// In order, with its digests.
fn finished(mut service: Service) -> Digested<Service> {
    service.endpoints.sort();
    service.endpoints.dedup();
    service.subject_alt_names.sort();
    service.subject_alt_names.dedup();
    Digested::new(service.with_shape())
}

/// Makes all services; adds inline endpoints to the workloads. What was lowered before from the very same objects and equal
/// workloads is taken from `before`.
pub(super) fn all(world: &World, by_kind: &ByKind<'_>, before: Option<&Memory>, registry: &mut Registry) {
    let mut by_namespace: BTreeMap<String, Vec<Arc<Workload>>> = BTreeMap::new();
    let workloads = registry.workloads.clone();
    for workload in &workloads {
        by_namespace.entry(workload.namespace.clone()).or_default().push(workload.clone());
    }
    let settings = digest_of(&(format!("{:?}", world.mesh().default_service_export_to), &world.domain));
    let before = before.filter(|before| before.settings == settings);
    let mut memory = Memory { settings, workloads: BTreeMap::new(), services: BTreeMap::new() };
    let slices = slices(by_kind);
    let mut services = Vec::new();
    let mut unmoved: (&str, bool) = ("", false);
    for (place, object) in by_kind.all(Kind::Service).enumerate() {
        let namespace = object.meta.namespace.as_str();
        let own = by_namespace.get(namespace).map_or(&[][..], Vec::as_slice);
        if place == 0 || unmoved.0 != namespace {
            let known = before.map(|before| before.workloads.get(namespace).map_or(&[][..], Vec::as_slice));
            unmoved = (namespace, known == Some(own));
        }
        let sources = sources(by_kind, &slices, object);
        let same = |known: &&Lowered| {
            known.sources.len() == sources.len()
                && known.sources.iter().zip(&sources).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        let key = object.key();
        let known = before.filter(|_| unmoved.1).and_then(|before| before.services.get(&key)).filter(same).cloned();
        let lowered = known.unwrap_or_else(|| {
            let mut problems = Vec::new();
            let service = finished(of_kubernetes(world, by_kind, &slices, object, own, &mut problems));
            Lowered { sources, service, problems }
        });
        registry.problems.extend(lowered.problems.iter().cloned());
        services.push(Draft::Lowered(lowered.service.clone()));
        memory.services.insert(key, lowered);
    }
    memory.workloads = by_namespace;
    alias(by_kind, &mut services);
    let known: BTreeMap<Hostname, usize> =
        services.iter().enumerate().map(|(index, service)| (service.get().host.clone(), index)).collect();
    for object in by_kind.all(Kind::ServiceEntry) {
        let own = memory.workloads.get(object.meta.namespace.as_str()).map_or(&[][..], Vec::as_slice);
        for service in of_entry(world, by_kind, object, own, registry) {
            // A ServiceEntry with the host of a Kubernetes Service only decorates it.
            match known.get(&service.host) {
                Some(index) => {
                    services[*index].change().subject_alt_names.extend(service.subject_alt_names);
                    let message = format!(
                        "{} is a Kubernetes Service; of this object only subjectAltNames count for it.",
                        service.host
                    );
                    registry.problems.push(problem(object, "spec.hosts", Code::MeaningTaken, Severity::Info, message));
                }
                None => services.push(Draft::Changed(Box::new(service))),
            }
        }
    }
    registry.services = services.into_iter().map(Draft::done).collect();
    // Of several services with one host, a Kubernetes Service counts before others, then the oldest.
    registry.services.sort_by(|one, two| {
        (&one.host, !one.kubernetes, &one.age, &one.namespace).cmp(&(
            &two.host,
            !two.kubernetes,
            &two.age,
            &two.namespace,
        ))
    });
    registry.memory = memory;
}

/// Slices by namespace and service, in the order of their names.
type Slices<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a Arc<Object>>>;

fn slices<'a>(by_kind: &ByKind<'a>) -> Slices<'a> {
    let mut slices = Slices::new();
    for slice in by_kind.all(Kind::EndpointSlice) {
        if let Some(service) = slice.meta.labels.get(annotation::SERVICE_NAME) {
            slices.entry((&slice.meta.namespace, service)).or_default().push(slice);
        }
    }
    slices
}

/// All objects that a Kubernetes Service is lowered from, besides workloads and settings.
fn sources(by_kind: &ByKind<'_>, slices: &Slices<'_>, object: &Arc<Object>) -> Vec<Arc<Object>> {
    let (namespace, name) = (object.meta.namespace.as_str(), object.meta.name.as_str());
    let own = slices.get(&(namespace, name)).into_iter().flatten().copied();
    let all = std::iter::once(object).chain(own).chain(by_kind.named(Kind::Endpoints, namespace, name));
    all.chain(by_kind.named(Kind::Namespace, "", namespace)).cloned().collect()
}

fn of_kubernetes(
    world: &World,
    by_kind: &ByKind<'_>,
    slices: &Slices<'_>,
    object: &Object,
    own: &[Arc<Workload>],
    problems: &mut Vec<Problem>,
) -> Service {
    let written = match &object.body {
        Body::Service(service) => service.spec.clone(),
        _ => Default::default(),
    };
    let name = &object.meta.name;
    let namespace = &object.meta.namespace;
    let external_name = written.kind == "ExternalName";
    let headless = written.cluster_ip == "None";
    let mut addresses: Vec<String> = written
        .cluster_ips
        .iter()
        .chain([&written.cluster_ip])
        .filter(|ip| ip.parse::<std::net::IpAddr>().is_ok())
        .cloned()
        .collect();
    addresses.sort();
    addresses.dedup();
    let ports: Vec<Port> = written.ports.iter().map(port_of).collect();
    let exports = object.meta.annotations.get(annotation::EXPORT_TO).map_or("", String::as_str);
    let mut service = Service {
        host: Hostname::new(&format!("{name}.{namespace}.svc.{}", world.domain)),
        name: name.clone(),
        namespace: namespace.clone(),
        object: object.key(),
        kubernetes: true,
        external: external_name,
        headless,
        addresses,
        auto_addresses: Vec::new(),
        ports,
        resolution: if external_name { Resolution::Dns } else { Resolution::Static },
        exports: Exports::of(exports.split(','), &world.mesh().default_service_export_to, namespace),
        distribution: distribution(by_kind, object, &written.traffic_distribution, problems),
        node_local: written.internal_traffic_policy == "Local",
        subject_alt_names: Vec::new(),
        age: Age::of(object),
        endpoints: Vec::new(),
        shape: 0,
    };
    for (index, port) in service.ports.iter().enumerate() {
        // The readiness port of gateways, as every installation has it: nobody in the mesh calls it.
        let is_readiness = port.name == "status-port" && port.number == api::port::READY;
        if port.protocol == Protocol::Sniffed && !port.name.is_empty() && !is_readiness {
            let message = format!(
                "The name {:?} does not tell the protocol; it is found out from the first bytes. Name it http-…, tcp-… or so.",
                port.name
            );
            problems.push(problem(
                object,
                &format!("spec.ports[{index}].name"),
                Code::PortNameIsNotUnderNamingConvention,
                Severity::Info,
                message,
            ));
        }
    }
    if object.meta.annotations.get(annotation::TOPOLOGY_MODE).is_some_and(|mode| mode.eq_ignore_ascii_case("auto")) {
        let field = format!("metadata.annotations[{}]", annotation::TOPOLOGY_MODE);
        let message = "Hints of topology have no effect in the mesh; spec.trafficDistribution: PreferSameZone keeps requests in a zone.";
        problems.push(problem(object, &field, Code::MeaningTaken, Severity::Info, message.to_owned()));
    }
    if external_name {
        service.endpoints = service.ports.iter().map(|port| external_endpoint(&written.external_name, port)).collect();
        return service;
    }
    let listed = of_slices(slices, object, &service, own).or_else(|| of_endpoints(by_kind, object, &service, own));
    let pods_too = listed.is_none();
    service.endpoints = listed.unwrap_or_default();
    if !written.selector.is_empty() {
        let mut endpoints = selected(&written.selector, own, &service.ports, pods_too);
        if !pods_too {
            endpoints.extend(not_listed_yet(&written.selector, own, &service));
        }
        if written.publish_not_ready_addresses {
            endpoints.iter_mut().for_each(|endpoint| endpoint.ready = true);
        }
        service.endpoints.append(&mut endpoints);
    }
    service
}

/// Which endpoints are preferred: the field counts over the object's annotation, and that over the namespace's.
fn distribution(by_kind: &ByKind<'_>, object: &Object, field: &str, problems: &mut Vec<Problem>) -> Distribution {
    let annotated = |object: &Object| object.meta.annotations.get(annotation::TRAFFIC_DISTRIBUTION).cloned();
    let namespace = || by_kind.named(Kind::Namespace, "", &object.meta.namespace);
    let key = format!("metadata.annotations[{}]", annotation::TRAFFIC_DISTRIBUTION);
    let (path, written) = match (field, annotated(object)) {
        ("", Some(written)) => (key, written),
        ("", None) => (String::new(), namespace().and_then(|namespace| annotated(namespace)).unwrap_or_default()),
        _ => ("spec.trafficDistribution".to_owned(), field.to_owned()),
    };
    Distribution::named(&written).unwrap_or_else(|| {
        let message = format!(
            "{written:?} is none of PreferSameZone, PreferClose and PreferSameNode; requests go to all endpoints alike."
        );
        problems.push(problem(object, &path, Code::MeaningTaken, Severity::Warning, message));
        Distribution::Any
    })
}

/// An ExternalName that is the name of a Service of the cluster is another name for it (Istio
/// `ENABLE_EXTERNAL_NAME_ALIAS`): requests go to its endpoints, with mutual TLS where they take it. Connections of other kinds
/// are told by the address that the name leads to, which is that Service's own.
fn alias(by_kind: &ByKind<'_>, services: &mut [Draft]) {
    let names: BTreeMap<ObjectKey, Hostname> = by_kind
        .all(Kind::Service)
        .filter_map(|object| match &object.body {
            Body::Service(body) if body.spec.kind == "ExternalName" => {
                Some((object.key(), Hostname::new(body.spec.external_name.trim_end_matches('.'))))
            }
            _ => None,
        })
        .collect();
    if names.is_empty() {
        return;
    }
    let places: BTreeMap<Hostname, usize> =
        services.iter().enumerate().map(|(place, service)| (service.get().host.clone(), place)).collect();
    for (key, name) in &names {
        let own = services.iter().position(|service| service.get().object == *key);
        let (Some(own), Some(target)) = (own, places.get(name)) else { continue };
        let target = services[*target].get().clone();
        // Names of names are left to DNS.
        if target.external {
            continue;
        }
        let service = services[own].change();
        if service.ports.is_empty() {
            service.ports.clone_from(&target.ports);
        }
        let spoken = |port: &&Port| port.protocol.is_http() || port.protocol == Protocol::Sniffed;
        let ports: Vec<Port> =
            service.ports.iter().filter(spoken).filter(|port| target.port(port.number).is_some()).cloned().collect();
        service.external = false;
        service.headless = target.headless;
        service.resolution = target.resolution;
        service.distribution = service.distribution.max(target.distribution);
        service.node_local = target.node_local;
        let listed = |endpoint: &&Endpoint| ports.iter().any(|port| port.number == endpoint.service_port);
        service.endpoints = target.endpoints.iter().filter(listed).cloned().collect();
        service.ports = ports;
    }
}

fn port_of(port: &ServicePort) -> Port {
    Port {
        number: port.port,
        name: port.name.clone(),
        protocol: Protocol::of_port(port.port, &port.name, &port.app_protocol, &port.protocol),
        target: port
            .target_port
            .clone()
            .filter(|target| *target != NumberOrName::Number(0))
            .unwrap_or(NumberOrName::Number(port.port)),
    }
}

fn external_endpoint(address: &str, port: &Port) -> Endpoint {
    Endpoint {
        address: address.to_owned(),
        port: port.number,
        service_port: port.number,
        labels: Labels::new(),
        workload: String::new(),
        namespace: String::new(),
        service_account: String::new(),
        locality: String::new(),
        node: String::new(),
        weight: 0,
        tls: false,
        ready: true,
        hostname: String::new(),
        unheard: false,
    }
}

/// The workloads that a selector takes.
fn selected(selector: &Labels, own: &[Arc<Workload>], ports: &[Port], pods_too: bool) -> Vec<Endpoint> {
    own.iter()
        .filter(|workload| (pods_too || workload.source != WorkloadSource::Pod) && selects(selector, &workload.labels))
        .flat_map(|workload| ports.iter().filter_map(|port| endpoint(workload, port)))
        .collect()
}

/// Pods that are ready and in no slice: these are written some time after the pods, while a Deployment already takes the old ones
/// away. Pods are watched in their order, so that there is no moment without any.
fn not_listed_yet(selector: &Labels, own: &[Arc<Workload>], service: &Service) -> Vec<Endpoint> {
    let listed: BTreeSet<(&str, u16)> =
        service.endpoints.iter().map(|endpoint| (endpoint.workload.as_str(), endpoint.service_port)).collect();
    own.iter()
        .filter(|workload| workload.called_ready && selects(selector, &workload.labels))
        .flat_map(|workload| service.ports.iter().filter_map(|port| endpoint(workload, port)))
        .filter(|endpoint| !listed.contains(&(endpoint.workload.as_str(), endpoint.service_port)))
        .collect()
}

/// A workload as the endpoint of a port; none if it lacks the named port.
fn endpoint(workload: &Workload, port: &Port) -> Option<Endpoint> {
    let by_name = |name: &str| workload.ports.get(name).copied();
    let number = match (&port.target, workload.source) {
        // A WorkloadEntry's ports are named as the service's.
        (NumberOrName::Number(number), WorkloadSource::Pod) => *number,
        (NumberOrName::Number(number), _) => by_name(&port.name).unwrap_or(*number),
        (NumberOrName::Name(name), WorkloadSource::Pod) => by_name(name)?,
        (NumberOrName::Name(name), _) => by_name(name).or_else(|| by_name(&port.name))?,
    };
    Some(at(workload, workload.addresses.first()?, number, port.number))
}

fn at(workload: &Workload, address: &str, port: u16, service_port: u16) -> Endpoint {
    Endpoint {
        address: address.to_owned(),
        port,
        service_port,
        labels: workload.labels.clone(),
        workload: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        locality: workload.locality.clone(),
        node: workload.node.clone(),
        weight: workload.weight,
        tls: workload.tls,
        ready: workload.ready,
        hostname: String::new(),
        unheard: workload.unheard,
    }
}

/// Endpoints of the service's slices; `None` if there are no slices.
fn of_slices(slices: &Slices<'_>, object: &Object, service: &Service, own: &[Arc<Workload>]) -> Option<Vec<Endpoint>> {
    let mut found = None;
    let early = matches!(&object.body, Body::Service(body) if body.spec.publish_not_ready_addresses);
    for slice in slices.get(&(object.meta.namespace.as_str(), object.meta.name.as_str())).into_iter().flatten() {
        let Body::EndpointSlice(body) = &slice.body else { continue };
        let endpoints: &mut Vec<Endpoint> = found.get_or_insert_default();
        for one in &body.endpoints {
            let conditions = one.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false);
            let Some(address) = one.addresses.first() else { continue };
            let pod = one.target_ref.as_ref().map(|target| target.name.as_str());
            let listed = listed(service, own, address, pod, &body.ports, (ready, early), one);
            let named = |endpoint| Endpoint { hostname: one.hostname.clone(), ..endpoint };
            endpoints.extend(listed.into_iter().map(named));
        }
    }
    found
}

/// Endpoints of the object of kind Endpoints; `None` if there is none.
fn of_endpoints(
    by_kind: &ByKind<'_>,
    object: &Object,
    service: &Service,
    own: &[Arc<Workload>],
) -> Option<Vec<Endpoint>> {
    let found = by_kind.named(Kind::Endpoints, &object.meta.namespace, &object.meta.name)?;
    let Body::Endpoints(body) = &found.body else { return None };
    let mut endpoints = Vec::new();
    for subset in &body.subsets {
        for one in &subset.addresses {
            let pod = one.target_ref.as_ref().map(|target| target.name.as_str());
            endpoints.extend(listed(
                service,
                own,
                &one.ip,
                pod,
                &subset.ports,
                (true, true),
                &SliceEndpoint::default(),
            ));
        }
    }
    Some(endpoints)
}

fn listed(
    service: &Service,
    own: &[Arc<Workload>],
    address: &str,
    pod: Option<&str>,
    ports: &[EndpointPort],
    (ready, early): (bool, bool),
    place: &SliceEndpoint,
) -> Vec<Endpoint> {
    let by_address = || {
        own.iter()
            .filter(|workload| workload.addresses.iter().any(|have| have == address))
            .min_by_key(|workload| (workload.source, workload.age.clone()))
    };
    let by_name = |name| own.iter().find(|workload| workload.source == WorkloadSource::Pod && workload.name == name);
    let workload = by_address().or_else(|| pod.and_then(by_name));
    let mut endpoints = Vec::new();
    for port in &service.ports {
        // A single port may be without a name on both sides.
        let Some(listed) = ports
            .iter()
            .find(|listed| listed.name == port.name)
            .or(ports.first().filter(|_| ports.len() == 1 && service.ports.len() == 1))
        else {
            continue;
        };
        let number = if listed.port == 0 { port.number } else { listed.port };
        let mut endpoint = match workload {
            Some(workload) => at(workload, address, number, port.number),
            None => Endpoint {
                port: number,
                workload: pod.unwrap_or_default().to_owned(),
                namespace: service.namespace.clone(),
                ..external_endpoint(address, port)
            },
        };
        // A pod that is not ready counts all the same where its service wants it to; slices say so of it. What the pod says of
        // itself is newer than what a slice says of it.
        let ends = place.conditions.as_ref().is_some_and(|conditions| conditions.terminating == Some(true));
        let called_ready = workload.is_some_and(|workload| workload.called_ready) && !ends;
        endpoint.ready = (ready || called_ready) && (endpoint.ready || early);
        // Slices and pods come over two watches, and that of the pods may be behind: the old ones are gone by their slice, and the
        // new ones are not ready yet by themselves.
        let ahead = ready && workload.is_some_and(|workload| !workload.leaves);
        endpoint.unheard = (endpoint.unheard || ahead) && !endpoint.ready && !ends;
        if endpoint.locality.is_empty() && !place.zone.is_empty() {
            endpoint.locality = format!("/{}", place.zone);
        }
        if endpoint.node.is_empty() {
            endpoint.node.clone_from(&place.node_name);
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn of_entry(
    world: &World,
    by_kind: &ByKind<'_>,
    object: &Object,
    own: &[Arc<Workload>],
    registry: &mut Registry,
) -> Vec<Service> {
    let Body::ServiceEntry(entry) = &object.body else { return Vec::new() };
    let namespace = &object.meta.namespace;
    let ports: Vec<Port> = entry
        .ports
        .iter()
        .map(|port| Port {
            number: port.number,
            name: port.name.clone(),
            protocol: Protocol::named(&port.protocol)
                .unwrap_or_else(|| Protocol::of_port(port.number, &port.name, "", "")),
            target: NumberOrName::Number(port.target_port.unwrap_or(port.number)),
        })
        .collect();
    let resolution = match entry.resolution {
        Written::None => Resolution::Passthrough,
        Written::Static => Resolution::Static,
        Written::Dns => Resolution::Dns,
        Written::DnsRoundRobin => Resolution::DnsRoundRobin,
        Written::DynamicDns => {
            let message =
                "Resolution DYNAMIC_DNS is not built yet; the hosts of this object are not known to the proxies."
                    .to_owned();
            registry.problems.push(problem(object, "spec.resolution", Code::NotBuilt, Severity::Error, message));
            return Vec::new();
        }
    };
    let mut endpoints = Vec::new();
    for (index, written) in entry.endpoints.iter().enumerate() {
        if written.address.starts_with("unix://") {
            let message = "Endpoints on Unix sockets are not built yet; this endpoint is left out.".to_owned();
            registry.problems.push(problem(
                object,
                &format!("spec.endpoints[{index}].address"),
                Code::NotBuilt,
                Severity::Warning,
                message,
            ));
            continue;
        }
        let workload = workload::of_inline(object, index, written);
        endpoints.extend(ports.iter().filter_map(|port| endpoint(&workload, port)));
        registry.workloads.push(Arc::new(workload));
    }
    if let Some(selector) = &entry.workload_selector {
        endpoints.extend(selected(&selector.labels, own, &ports, true));
    }
    let given = registry.allocated.get(&object.key()).into_iter().flatten();
    let allocated: BTreeMap<&String, Vec<String>> =
        given.map(|(host, addresses)| (host, addresses.iter().map(ToString::to_string).collect())).collect();
    let distribution = distribution(by_kind, object, "", &mut registry.problems);
    let service = |text: &String| {
        let host = Hostname::new(text);
        let mut endpoints = endpoints.clone();
        // Without endpoints, DNS is asked for the host itself.
        if endpoints.is_empty()
            && entry.workload_selector.is_none()
            && matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin)
            && !host.is_wildcard()
        {
            let target = |port: &Port| match port.target {
                NumberOrName::Number(number) => number,
                NumberOrName::Name(_) => port.number,
            };
            endpoints = ports
                .iter()
                .map(|port| Endpoint { port: target(port), ..external_endpoint(host.as_str(), port) })
                .collect();
        }
        Service {
            name: object.meta.name.clone(),
            namespace: namespace.clone(),
            object: object.key(),
            kubernetes: false,
            external: entry.location == Location::MeshExternal,
            headless: false,
            addresses: entry.addresses.clone(),
            auto_addresses: allocated.get(text).cloned().unwrap_or_default(),
            ports: ports.clone(),
            resolution: if host.is_wildcard() && resolution == Resolution::Dns {
                Resolution::Passthrough
            } else {
                resolution
            },
            exports: Exports::of(
                entry.export_to.iter().map(String::as_str),
                &world.mesh().default_service_export_to,
                namespace,
            ),
            distribution,
            node_local: false,
            subject_alt_names: entry.subject_alt_names.clone(),
            age: Age::of(object),
            endpoints,
            shape: 0,
            host,
        }
    };
    entry.hosts.iter().map(service).collect()
}
