//! What one proxy may see and which policies bind it. All precedence among objects is decided here; the generators below
//! only write down what the scope holds.

mod credentials;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::crd;
use api::crd::peer_authentication::MutualTlsMode;
use api::crd::sidecar::CaptureMode;
use api::name::Hostname;
use api::node::Role;
use api::object::{Kind, ObjectKey};
use api::problem::{Code, ObjectRef, Origin, Problem, Severity};
use api::selector::selects;
use api::value::Labels;

use crate::model::{Digested, Named, Place, Protocol, Service, digest_of};
use crate::proxy::{Interception, ProxyIdentity};
use crate::resources::ordered;
use crate::snapshot::providers::Provider;
use crate::snapshot::view::{View, sidecar_of};
use crate::snapshot::{Authentication, Authorization, DestinationRule, Plain, Snapshot};

pub(crate) use credentials::{AUTHORITIES, secret_name};

/// What one proxy may see.
#[derive(Debug)]
pub struct Scope {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) proxy: ProxyIdentity,
    /// The workload's labels.
    pub(crate) labels: Labels,
    /// The mesh outside of the workload.
    pub(crate) view: Arc<View>,
    pub(crate) inbound: Vec<Inbound>,
    pub(crate) gateways: Vec<Arc<Plain<crd::Gateway>>>,
    /// Who may do what, the oldest first.
    pub(crate) authorizations: Vec<Arc<Plain<Authorization>>>,
    /// Whose tokens are looked at, the oldest first.
    pub(crate) authentications: Vec<Arc<Plain<Authentication>>>,
    /// The services of those who are asked about requests, as far as the view does not have them, each with its rule.
    pub(crate) asked: Vec<(Digested<Service>, Option<Arc<DestinationRule>>)>,
    /// Where the workload is, if that is of matter for some service.
    pub(crate) place: Option<Place>,
    /// For a gateway: ports of services that select it, and the port that the gateway itself listens on.
    pub(crate) target_ports: BTreeMap<u16, BTreeSet<u16>>,
    key: u64,
    /// The key without the places of endpoints.
    shape: u64,
    problems: Vec<Problem>,
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
    /// Number that the service has for it, by which rules speak of it.
    pub(crate) service_port: Option<u16>,
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
        let proxy = ProxyIdentity { interception: proxy.interception.or_of(&snapshot.mesh), ..proxy.clone() };
        let sidecar = (proxy.role == Role::Sidecar).then(|| sidecar_of(snapshot, &proxy.namespace, &labels)).flatten();
        let view = View::shared(snapshot, &proxy, &labels, sidecar.as_deref());
        let place = workload.as_ref().and_then(|workload| snapshot.place(workload));
        let authorizations = snapshot.authorizations(&proxy.namespace, &labels);
        let authentications = snapshot.authentications(&proxy.namespace, &labels);
        let mut scope = Scope {
            snapshot: snapshot.clone(),
            authorizations,
            authentications,
            asked: Vec::new(),
            place,
            proxy,
            labels,
            view,
            inbound: Vec::new(),
            gateways: Vec::new(),
            target_ports: BTreeMap::new(),
            key: 0,
            shape: 0,
            problems: Vec::new(),
        };
        match scope.proxy.role {
            Role::Sidecar => scope.take_in(sidecar.as_deref(), &addresses),
            Role::Router => scope.open(&addresses),
        }
        scope.asked = scope.unseen();
        scope.tell_unguarded();
        scope.shape = scope.digest(sidecar.as_deref());
        let asked: Vec<u64> = scope.asked.iter().map(|(service, _)| service.digest).collect();
        scope.key = digest_of(&(scope.shape, scope.view.digest, asked));
        scope
    }

    /// Who is asked for policies that ask somebody (CUSTOM).
    pub(crate) fn custom_provider(&self) -> Option<&Arc<Provider>> {
        self.snapshot.custom_provider(&self.authorizations)
    }

    /// Whose decision rules that allow something ask for.
    pub(crate) fn decision_provider(&self) -> Option<&Arc<Provider>> {
        self.snapshot.decision_provider(&self.authorizations)
    }

    /// The rule for calls of a host.
    pub(crate) fn rule(&self, host: &Hostname) -> Option<&Arc<DestinationRule>> {
        let asked = || self.asked.iter().find(|(service, _)| service.host == *host)?.1.as_ref();
        self.view.rules.get(host).or_else(asked)
    }

    /// The services of those who are asked that the view does not have: whoever is asked must be reached (Istio).
    fn unseen(&self) -> Vec<(Digested<Service>, Option<Arc<DestinationRule>>)> {
        let asked = [self.custom_provider(), self.decision_provider()];
        let mut unseen: Vec<(Digested<Service>, Option<Arc<DestinationRule>>)> = Vec::new();
        for service in asked.into_iter().flatten().map(|provider| &provider.service) {
            let known = unseen.iter().any(|(known, _)| known.host == service.host);
            if known || self.view.services.contains_key(&service.host) || self.proxy.proxyless {
                continue;
            }
            let (host, namespace) = (&service.host, &service.namespace);
            let rule = self.snapshot.destination_rule(host, namespace, &self.proxy.namespace, &self.labels);
            unseen.push((service.clone(), rule.cloned()));
        }
        unseen
    }

    /// Equal keys are equal resources of all kinds.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// What is wrong for this proxy alone.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
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
            for (service, number, target) in self.instances(addresses) {
                let nameless = |inbound: &&mut Inbound| inbound.port == target && inbound.service.is_empty();
                for inbound in self.inbound.iter_mut().filter(nameless) {
                    inbound.host = service.host.to_string();
                    inbound.service.clone_from(&service.name);
                    inbound.service_port = Some(number);
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
                service_port: Some(number),
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
            .flat_map(|address| self.snapshot.endpoints_at(address))
            .map(|(service, endpoint)| (service, endpoint.service_port, endpoint.port))
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
            service_port: None,
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
        for (service, endpoint) in addresses.iter().flat_map(|address| self.snapshot.endpoints_at(address)) {
            if service.namespace == self.proxy.namespace {
                self.target_ports.entry(endpoint.service_port).or_default().insert(endpoint.port);
            }
        }
    }

    /// A gRPC server without a proxy is told nothing of what it takes in.
    fn tell_unguarded(&mut self) {
        if !self.proxy.proxyless {
            return;
        }
        let authorizations =
            self.authorizations.iter().map(|policy| ("AuthorizationPolicy", &policy.namespace, &policy.name));
        let authentications =
            self.authentications.iter().map(|policy| ("RequestAuthentication", &policy.namespace, &policy.name));
        let problems = authorizations.chain(authentications).map(|(kind, namespace, name)| {
            let message = format!(
                "{kind} {namespace}/{name} does not protect this workload: it has no proxy, and gRPC servers get no configuration from here yet."
            );
            self.problem(Code::NotBuilt, Severity::Warning, message)
        });
        let mut problems: Vec<Problem> = problems.collect();
        self.problems.append(&mut problems);
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
            digest_of(&self.place),
            sidecar.map_or(0, |sidecar| sidecar.digest),
            digest_of(&self.inbound),
            digest_of(&self.target_ports),
            self.view.shape,
        ];
        parts.extend(self.gateways.iter().map(|gateway| gateway.digest));
        parts.extend(self.authorizations.iter().map(|policy| policy.digest));
        parts.extend(self.authentications.iter().map(|policy| policy.digest));
        parts.extend([self.custom_provider(), self.decision_provider()].map(|one| one.map_or(0, |one| one.digest())));
        for (service, rule) in &self.asked {
            // Whether clusters that ask for an address speak mutual TLS depends on what is there.
            let own = if service.headless { service.digest } else { service.shape };
            let expected = digest_of(&self.snapshot.expected_mutual_tls(&service.namespace));
            parts.extend([own, expected, rule.as_ref().map_or(0, |rule| rule.digest)]);
        }
        parts.extend(self.credential_digests());
        digest_of(&parts)
    }

    /// What a proxy has for itself alone, in order: kept for as long as nothing changes for it but the places of endpoints.
    pub(crate) fn own(&self, what: &str, make: impl FnOnce() -> Vec<Arc<Named>>) -> Arc<[Arc<Named>]> {
        self.snapshot.made.get(digest_of(&("own", what, self.shape)), || ordered(make()).to_vec())
    }

    /// Digest of all that is of matter of a proxy for the clusters and endpoints outside of its workload, besides its view.
    pub(crate) fn kin(&self) -> u64 {
        let proxy = &self.proxy;
        let own = (proxy.role, proxy.interception, &proxy.cluster_id, proxy.dns_capture);
        let place = (proxy.any_addresses(), &self.place);
        digest_of(&(self.snapshot.mesh_digest, own, place, proxy.preserve_header_case, proxy.extensions.peer_exchange))
    }

    /// Digest of all that outbound listeners and routes, and a gateway's routes, are made from. The workload's labels are
    /// among it only if some rule asks for them, so that workloads of a namespace share their routes.
    pub(crate) fn routes_digest(&self) -> u64 {
        self.routes_digest_with(self.view.shape)
    }

    /// The same without VirtualServices.
    pub(crate) fn unrouted_digest(&self) -> u64 {
        self.routes_digest_with(self.view.unrouted)
    }

    fn routes_digest_with(&self, view: u64) -> u64 {
        let proxy = &self.proxy;
        let mut parts = vec![
            self.kin(),
            digest_of(&(&proxy.namespace, &proxy.domain, proxy.extensions)),
            view,
            if self.view.asks_labels { digest_of(&self.labels) } else { 0 },
            digest_of(&self.target_ports),
            // Listeners are named by address where the address is the proxy's own.
            digest_of(&(proxy.wildcard(), proxy.local_host(), proxy.any_addresses())),
        ];
        parts.extend(self.gateways.iter().map(|gateway| gateway.digest));
        digest_of(&parts)
    }

    /// The addresses by which this proxy's workload may call a service, in the families that it has: those that the mesh gave the
    /// service only if it has none of its own and the proxy answers DNS.
    pub(crate) fn addresses<'s>(&self, service: &'s Service) -> Vec<&'s str> {
        let families = self.proxy.any_addresses();
        let reached = |address: &&String| families.iter().any(|family| family.contains(':') == address.contains(':'));
        if service.addresses.is_empty() && self.proxy.dns_capture {
            return service.auto_addresses.iter().filter(reached).map(String::as_str).collect();
        }
        // A service that has none in the workload's families is still no service without address.
        let all = !service.addresses.iter().any(|address| reached(&address));
        service.addresses.iter().filter(|address| all || reached(address)).map(String::as_str).collect()
    }

    /// The service of a host as this proxy sees it.
    pub(crate) fn service(&self, host: &Hostname) -> Option<&Digested<Service>> {
        self.view.services.get(host)
    }
}
