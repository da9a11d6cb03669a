//! What one proxy may see and which policies bind it. All precedence among objects is decided here; the generators below
//! only write down what the scope holds.

mod credentials;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::crd;
use api::crd::peer_authentication::MutualTlsMode;
use api::crd::sidecar::{CaptureMode, OutboundMode};
use api::name::Hostname;
use api::node::Role;
use api::object::{Kind, ObjectKey};
use api::problem::{Code, ObjectRef, Origin, Problem, Severity};
use api::selector::selects;
use api::value::Labels;

use crate::model::{Digested, Protocol, Service, digest_of};
use crate::proxy::{Interception, ProxyIdentity};
use crate::snapshot::{DestinationRule, Plain, Snapshot, VirtualService};

pub(crate) use credentials::{AUTHORITIES, secret_name};

/// Which resources of a kind are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// All that the proxy should have.
    All,
    /// Those of these names.
    Names(&'a BTreeSet<String>),
}

impl Want<'_> {
    /// Whether a name is wanted.
    pub(crate) fn takes(&self, name: &str) -> bool {
        match self {
            Want::All => true,
            Want::Names(names) => names.contains(name),
        }
    }
}

/// What one proxy may see.
#[derive(Debug)]
pub struct Scope {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) proxy: ProxyIdentity,
    /// The workload's labels.
    pub(crate) labels: Labels,
    pub(crate) egress: Vec<Egress>,
    pub(crate) inbound: Vec<Inbound>,
    pub(crate) gateways: Vec<Arc<Plain<crd::Gateway>>>,
    /// For a gateway: ports of services that select it, and the port that the gateway itself listens on.
    pub(crate) target_ports: BTreeMap<u16, BTreeSet<u16>>,
    /// All services that some egress listener shows, by host.
    pub(crate) services: BTreeMap<Hostname, Digested<Service>>,
    /// The rule of each of them that has one.
    pub(crate) rules: BTreeMap<Hostname, Arc<DestinationRule>>,
    pub(crate) outbound: OutboundMode,
    key: u64,
    problems: Vec<Problem>,
}

/// One group of hosts that a proxy may reach.
#[derive(Debug)]
pub(crate) struct Egress {
    /// Own port, or all ports of the services.
    pub(crate) port: Option<crd::gateway::Port>,
    pub(crate) bind: String,
    /// Applications connect to the listener; else traffic is redirected.
    pub(crate) bound: bool,
    pub(crate) services: Vec<Digested<Service>>,
    pub(crate) virtual_services: Vec<Arc<VirtualService>>,
}

/// One port that a sidecar takes in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inbound {
    /// Host of the service, for the metrics; empty for a Sidecar's own port.
    pub(crate) host: String,
    pub(crate) service: String,
    pub(crate) namespace: String,
    /// Number in the cluster's name.
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// Address and port on which the proxy listens (not captured), or which the filter chain matches (captured).
    pub(crate) bind: String,
    pub(crate) listen: u16,
    /// Where the application is; none for "the address that the caller asked for".
    pub(crate) forward: Option<(String, u16)>,
    pub(crate) mutual_tls: MutualTlsMode,
    /// The PeerAuthentication that says so.
    pub(crate) policy: Option<ObjectKey>,
    /// The Service or Sidecar that opens the port.
    pub(crate) object: ObjectKey,
    /// The proxy listens itself.
    pub(crate) bound: bool,
}

impl Scope {
    /// What this proxy may see.
    pub fn of(snapshot: &Arc<Snapshot>, proxy: &ProxyIdentity) -> Scope {
        let addresses: Vec<String> = proxy.addresses.iter().map(ToString::to_string).collect();
        let workload = snapshot.workload_at(&addresses, &proxy.namespace).cloned();
        let labels = workload.as_ref().map_or_else(|| proxy.labels.clone(), |workload| workload.labels.clone());
        let mut scope = Scope {
            snapshot: snapshot.clone(),
            proxy: ProxyIdentity { interception: proxy.interception.or_of(&snapshot.mesh), ..proxy.clone() },
            labels,
            egress: Vec::new(),
            inbound: Vec::new(),
            gateways: Vec::new(),
            target_ports: BTreeMap::new(),
            services: BTreeMap::new(),
            rules: BTreeMap::new(),
            outbound: snapshot.mesh.outbound_traffic_policy.mode.unwrap_or_default(),
            key: 0,
            problems: Vec::new(),
        };
        let sidecar = (proxy.role == Role::Sidecar).then(|| scope.sidecar()).flatten();
        scope.see(sidecar.as_deref().map(|sidecar| &*sidecar.spec));
        match proxy.role {
            Role::Sidecar => scope.take_in(sidecar.as_deref(), &addresses),
            Role::Router => scope.open(&addresses),
        }
        scope.key = scope.digest(sidecar.as_deref());
        scope
    }

    /// Equal keys are equal resources of all kinds.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// What is wrong for this proxy alone.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The Sidecar object: by workload, else the namespace's, else the mesh's.
    fn sidecar(&self) -> Option<Arc<Plain<crd::Sidecar>>> {
        let all = &self.snapshot.sidecars;
        let root = &self.snapshot.mesh.root_namespace;
        let selector = |sidecar: &Plain<crd::Sidecar>| {
            sidecar.spec.workload_selector.clone().filter(|selector| !selector.labels.is_empty())
        };
        let own = all.iter().find(|sidecar| {
            sidecar.namespace == self.proxy.namespace
                && selector(sidecar).is_some_and(|selector| selects(&selector.labels, &self.labels))
        });
        let of =
            |namespace: &str| all.iter().find(|sidecar| sidecar.namespace == namespace && selector(sidecar).is_none());
        own.or_else(|| of(&self.proxy.namespace)).or_else(|| of(root)).cloned()
    }

    fn see(&mut self, sidecar: Option<&crd::Sidecar>) {
        if let Some(mode) =
            sidecar.and_then(|sidecar| sidecar.outbound_traffic_policy.as_ref()).and_then(|policy| policy.mode)
        {
            self.outbound = mode;
        }
        let uncaptured = self.proxy.interception == Interception::None;
        let listeners = sidecar.map(|sidecar| sidecar.egress.as_slice()).unwrap_or_default();
        let everything = crd::sidecar::IstioEgressListener { hosts: vec!["*/*".into()], ..Default::default() };
        let listeners = if listeners.is_empty() { std::slice::from_ref(&everything) } else { listeners };
        for listener in listeners {
            let (services, virtual_services) = self.visible(&listener.hosts);
            for service in &services {
                self.services.entry(service.host.clone()).or_insert_with(|| service.clone());
            }
            let bound = match listener.capture_mode {
                CaptureMode::Default => uncaptured,
                CaptureMode::Iptables => false,
                CaptureMode::None => true,
            };
            self.egress.push(Egress {
                port: listener.port.clone(),
                bind: listener.bind.clone(),
                bound,
                services,
                virtual_services,
            });
        }
        for service in self.services.values() {
            if let Some(rule) =
                self.snapshot.destination_rule(&service.host, &service.namespace, &self.proxy.namespace, &self.labels)
            {
                self.rules.insert(service.host.clone(), rule.clone());
            }
        }
    }

    /// Services and VirtualServices that some of `namespace/host` names; the destinations of the latter are visible too.
    fn visible(&self, hosts: &[String]) -> (Vec<Digested<Service>>, Vec<Arc<VirtualService>>) {
        let own = self.proxy.namespace.as_str();
        let wanted: Vec<(&str, Hostname)> = hosts
            .iter()
            .filter_map(|text| text.split_once('/'))
            .filter(|(namespace, _)| *namespace != "~")
            .map(|(namespace, host)| (if namespace == "." { own } else { namespace }, Hostname::new(host)))
            .collect();
        let all = wanted.iter().any(|(namespace, host)| *namespace == "*" && host.as_str() == "*");
        let in_namespace = |wanted: &str, namespace: &str| wanted == "*" || wanted == namespace;
        let virtual_services: Vec<Arc<VirtualService>> = self
            .snapshot
            .virtual_services
            .iter()
            .filter(|routing| routing.exports.to(own))
            .filter(|routing| self.proxy.role == Role::Router || routing.is_for_mesh())
            .filter(|routing| {
                all || wanted.iter().any(|(namespace, host)| {
                    in_namespace(namespace, &routing.namespace) && routing.hosts.iter().any(|have| have.overlaps(host))
                })
            })
            .cloned()
            .collect();
        let mut chosen: BTreeMap<&Hostname, &Digested<Service>> = BTreeMap::new();
        for service in self.snapshot.services.iter().filter(|service| service.exports.to(own)) {
            if !(all
                || wanted
                    .iter()
                    .any(|(namespace, host)| in_namespace(namespace, &service.namespace) && host.covers(&service.host)))
            {
                continue;
            }
            // The first counts, unless a later one is of the proxy's own namespace.
            let best = chosen.entry(&service.host).or_insert(service);
            if best.namespace != own && service.namespace == own {
                *best = service;
            }
        }
        if !all {
            for routing in &virtual_services {
                for host in destinations(&routing.spec)
                    .map(|host| Hostname::resolve(host, &routing.namespace, &self.snapshot.domain))
                {
                    if let Some(service) = self.snapshot.service(&host, own) {
                        chosen.entry(&service.host).or_insert(service);
                    }
                }
            }
        }
        (chosen.into_values().cloned().collect(), virtual_services)
    }

    /// What a sidecar takes in: as the Sidecar object says, else as the services of its workload say.
    fn take_in(&mut self, sidecar: Option<&Plain<crd::Sidecar>>, addresses: &[String]) {
        let uncaptured = self.proxy.interception == Interception::None;
        let own = self.proxy.address().to_string();
        if let Some(sidecar) = sidecar.filter(|sidecar| !sidecar.spec.ingress.is_empty()) {
            for (index, ingress) in sidecar.spec.ingress.iter().enumerate() {
                self.take_in_ingress(sidecar, index, ingress, &own, uncaptured);
            }
            // A service of the workload on the port of an ingress listener gives it its name (Istio).
            for (service, _, target) in self.instances(addresses) {
                let nameless = |inbound: &&mut Inbound| inbound.port == target && inbound.service.is_empty();
                for inbound in self.inbound.iter_mut().filter(nameless) {
                    inbound.host = service.host.to_string();
                    inbound.service.clone_from(&service.name);
                }
            }
            return;
        }
        let mut taken = Vec::new();
        let mut problems = Vec::new();
        for (service, number, target) in self.instances(addresses) {
            let Some(port) = service.port(number).filter(|port| port.protocol != Protocol::Udp) else { continue };
            if uncaptured && own == "127.0.0.1" {
                let message = format!(
                    "The workload's address is 127.0.0.1, where the application itself listens on {target}; give it an address of its own or a Sidecar with ingress."
                );
                problems.push(self.problem(Code::MeaningTaken, Severity::Warning, message));
                continue;
            }
            let (mutual_tls, policy) = self.snapshot.mutual_tls(&self.proxy.namespace, &self.labels, target);
            taken.push(Inbound {
                host: service.host.to_string(),
                service: service.name.clone(),
                namespace: service.namespace.clone(),
                port: target,
                protocol: port.protocol,
                bind: if uncaptured { own.clone() } else { "0.0.0.0".into() },
                listen: target,
                forward: uncaptured.then(|| ("127.0.0.1".to_owned(), target)),
                mutual_tls,
                policy,
                object: service.object.clone(),
                bound: uncaptured,
            });
        }
        self.inbound = taken;
        self.problems.append(&mut problems);
    }

    /// The workload's services with their port and the workload's port for it, one for each of the workload's ports.
    fn instances(&self, addresses: &[String]) -> Vec<(Digested<Service>, u16, u16)> {
        let mut instances: Vec<(&Digested<Service>, u16, u16)> = addresses
            .iter()
            .filter_map(|address| self.snapshot.endpoints_by_address.get(address))
            .flatten()
            .map(|(service, endpoint)| (&self.snapshot.services[*service], *endpoint))
            .map(|(service, endpoint)| {
                (service, service.endpoints[endpoint].service_port, service.endpoints[endpoint].port)
            })
            .filter(|(service, ..)| service.namespace == self.proxy.namespace)
            .collect();
        // Of several services on one port of the workload, the oldest says the protocol.
        instances.sort_by(|one, two| (one.2, &one.0.age, one.1).cmp(&(two.2, &two.0.age, two.1)));
        instances.dedup_by_key(|instance| instance.2);
        instances.into_iter().map(|(service, number, target)| (service.clone(), number, target)).collect()
    }

    fn take_in_ingress(
        &mut self,
        sidecar: &Plain<crd::Sidecar>,
        index: usize,
        ingress: &crd::sidecar::IstioIngressListener,
        own: &str,
        uncaptured: bool,
    ) {
        let bound = match ingress.capture_mode {
            CaptureMode::Default => uncaptured,
            CaptureMode::Iptables => false,
            CaptureMode::None => true,
        };
        let forward = match ingress.default_endpoint.rsplit_once(':') {
            _ if ingress.default_endpoint.is_empty() => None,
            Some((host @ ("127.0.0.1" | "[::1]"), port)) => {
                port.parse().ok().map(|port| (host.trim_matches(['[', ']']).to_owned(), port))
            }
            // All addresses: the instance's own one.
            Some(("0.0.0.0" | "[::]", port)) => port.parse().ok().map(|port| (own.to_owned(), port)),
            _ => {
                // Told by `check`; nothing can be forwarded there.
                return;
            }
        };
        let bind = match (ingress.bind.as_str(), bound) {
            ("" | "0.0.0.0" | "::", true) => own.to_owned(),
            ("", false) => "0.0.0.0".to_owned(),
            (bind, _) => bind.to_owned(),
        };
        let forward = forward.or_else(|| bound.then(|| ("127.0.0.1".to_owned(), ingress.port.number)));
        if bound && forward.as_ref().is_some_and(|(host, port)| *host == bind && *port == ingress.port.number) {
            let message = format!(
                "Sidecar {}: ingress[{index}] forwards to the address it listens on, {bind}:{}.",
                sidecar.name, ingress.port.number
            );
            self.problems.push(self.problem(Code::MeaningTaken, Severity::Warning, message));
            return;
        }
        let (mutual_tls, policy) = self.snapshot.mutual_tls(&self.proxy.namespace, &self.labels, ingress.port.number);
        let (namespace, name) = (sidecar.namespace.clone(), sidecar.name.clone());
        self.inbound.push(Inbound {
            host: String::new(),
            service: String::new(),
            namespace: self.proxy.namespace.clone(),
            port: ingress.port.number,
            protocol: Protocol::named(&ingress.port.protocol).unwrap_or(Protocol::Sniffed),
            bind,
            listen: ingress.port.number,
            forward,
            mutual_tls,
            policy,
            object: ObjectKey { kind: Kind::Sidecar, namespace, name },
            bound,
        });
    }

    /// Which Gateways a router serves, and on which ports.
    fn open(&mut self, addresses: &[String]) {
        self.gateways = self
            .snapshot
            .gateways
            .iter()
            .filter(|gateway| selects(&gateway.spec.selector, &self.labels))
            .cloned()
            .collect();
        for (service, endpoint) in
            addresses.iter().filter_map(|address| self.snapshot.endpoints_by_address.get(address)).flatten()
        {
            let service = &self.snapshot.services[*service];
            if service.namespace == self.proxy.namespace {
                let endpoint = &service.endpoints[*endpoint];
                self.target_ports.entry(endpoint.service_port).or_default().insert(endpoint.port);
            }
        }
    }

    fn problem(&self, code: Code, severity: Severity, message: String) -> Problem {
        Problem {
            object: ObjectRef {
                kind: "Proxy".into(),
                namespace: self.proxy.namespace.clone(),
                name: self.proxy.name.clone(),
            },
            origin: Origin::default(),
            field: String::new(),
            code,
            severity,
            message,
        }
    }

    fn digest(&self, sidecar: Option<&Plain<crd::Sidecar>>) -> u64 {
        let proxy = ProxyIdentity {
            // The name is of no matter to any resource, and labels only through what they select.
            name: String::new(),
            ..self.proxy.clone()
        };
        let mut parts: Vec<u64> = vec![
            self.snapshot.mesh_digest,
            digest_of(&proxy),
            digest_of(&self.labels),
            sidecar.map_or(0, |sidecar| sidecar.digest),
        ];
        parts.push(digest_of(&self.inbound));
        parts.push(digest_of(&self.target_ports));
        for egress in &self.egress {
            parts.extend(egress.services.iter().map(|service| service.digest));
            parts.push(u64::MAX);
            parts.extend(egress.virtual_services.iter().map(|routing| routing.digest));
            parts.push(u64::MAX);
        }
        parts.extend(self.rules.values().map(|rule| rule.digest));
        parts.extend(self.gateways.iter().map(|gateway| gateway.digest));
        let namespaces: BTreeSet<&str> = self.services.values().map(|service| service.namespace.as_str()).collect();
        parts.extend(namespaces.iter().map(|namespace| digest_of(&self.snapshot.expected_mutual_tls(namespace))));
        parts.extend(self.credential_digests());
        digest_of(&parts)
    }

    /// Digest of all that outbound routes and a gateway's routes are made from. The workload's labels are among it only if
    /// some rule asks for them, so that workloads of a namespace share their routes.
    pub(crate) fn routes_digest(&self) -> u64 {
        let asks = |routing: &VirtualService| {
            let spec = &routing.spec;
            let http = spec.http.iter().flat_map(|rule| &rule.matches).any(|one| !one.source_labels.is_empty());
            let tls = spec.tls.iter().flat_map(|rule| &rule.matches).any(|one| !one.source_labels.is_empty());
            http || tls || spec.tcp.iter().flat_map(|rule| &rule.matches).any(|one| !one.source_labels.is_empty())
        };
        let asks = self.egress.iter().flat_map(|egress| &egress.virtual_services).any(|routing| asks(routing));
        let proxy = &self.proxy;
        let mut parts = vec![
            self.snapshot.mesh_digest,
            digest_of(&(proxy.role, &proxy.namespace, proxy.interception, self.outbound == OutboundMode::AllowAny)),
            if asks { digest_of(&self.labels) } else { 0 },
            digest_of(&self.target_ports),
            // Listeners are named by address where the address is the proxy's own.
            digest_of(&(proxy.wildcard(), proxy.local_host(), proxy.any_addresses())),
        ];
        for egress in &self.egress {
            let port = egress.port.as_ref().map(|port| (port.number, port.protocol.as_str()));
            parts.push(digest_of(&(port, &egress.bind, egress.bound)));
            parts.extend(egress.services.iter().map(|service| service.digest));
            parts.push(u64::MAX);
            parts.extend(egress.virtual_services.iter().map(|routing| routing.digest));
        }
        parts.extend(self.gateways.iter().map(|gateway| gateway.digest));
        digest_of(&parts)
    }

    /// The service of a host as this proxy sees it.
    pub(crate) fn service(&self, host: &Hostname) -> Option<&Digested<Service>> {
        self.services.get(host)
    }
}

/// All hosts that a VirtualService sends to.
pub(crate) fn destinations(spec: &crd::VirtualService) -> impl Iterator<Item = &str> {
    let http = spec.http.iter().flat_map(|rule| {
        let routes = rule.route.iter().map(|route| &route.destination);
        routes.chain(rule.mirror.iter()).chain(rule.mirrors.iter().map(|mirror| &mirror.destination))
    });
    let tls = spec.tls.iter().flat_map(|rule| rule.route.iter().map(|route| &route.destination));
    let tcp = spec.tcp.iter().flat_map(|rule| rule.route.iter().map(|route| &route.destination));
    http.chain(tls).chain(tcp).map(|destination| destination.host.as_str()).filter(|host| !host.is_empty())
}
