//! The whole mesh at one moment: services, routing objects and policies with their relations resolved and indexed, and
//! all problems. Immutable.

mod by_address;
mod held;
pub(crate) mod providers;
pub(crate) mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::crd;
use api::crd::authorization_policy::Action;
use api::crd::peer_authentication::MutualTlsMode;
use api::crd::target_reference::PolicyTargetReference;
use api::mesh_config::MeshConfig;
use api::name::Hostname;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::Problem;
use api::selector::MatchLabels;
use api::value::Labels;
use serde_json::{Value, json};

use crate::intrinsic::{decision_of, dry_run};
use crate::keys::{KeySource, usable_keys};
use crate::lower::{self, ByKind};
use crate::made::Made;
use crate::model::{Age, Digested, Distribution, Endpoint, Exports, Place, Service, Workload, digest_of};
use crate::world::World;

/// A VirtualService with its names resolved.
#[derive(Clone, Debug)]
pub(crate) struct VirtualService {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) hosts: Vec<Hostname>,
    /// `mesh`, or `namespace/name`.
    pub(crate) gateways: Vec<String>,
    pub(crate) exports: Exports,
    pub(crate) age: Age,
    /// Rules; delegates are put in.
    pub(crate) spec: Arc<crd::VirtualService>,
    pub(crate) digest: u64,
}

impl VirtualService {
    pub(crate) fn is_for_mesh(&self) -> bool {
        self.gateways.iter().any(|gateway| gateway == "mesh")
    }
}

/// All DestinationRules of one host, namespace and visibility, as one.
#[derive(Clone, Debug)]
pub(crate) struct DestinationRule {
    /// Name of the oldest, shown by tools.
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) host: Hostname,
    pub(crate) exports: Exports,
    pub(crate) age: Age,
    pub(crate) spec: Arc<crd::DestinationRule>,
    pub(crate) digest: u64,
}

/// An object of a kind that needs no more than its spec.
#[derive(Clone, Debug)]
pub(crate) struct Plain<T> {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) age: Age,
    pub(crate) spec: Arc<T>,
    pub(crate) digest: u64,
}

/// An AuthorizationPolicy, and whether it is only to be told what it would decide.
#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(crate) policy: crd::AuthorizationPolicy,
    pub(crate) dry_run: bool,
}

/// A RequestAuthentication, and of each of its rules the keys that are known.
#[derive(Clone, Debug)]
pub(crate) struct Authentication {
    pub(crate) policy: crd::RequestAuthentication,
    pub(crate) keys: Vec<Option<Arc<str>>>,
}

/// An AuthorizationPolicy that binds a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPolicy {
    /// What it does to what it matches.
    pub action: Action,
    /// It is only to be told what it would do.
    pub dry_run: bool,
    /// The object.
    pub key: ObjectKey,
    /// The provider that is asked for it.
    pub asks: Option<String>,
}

/// A policy that is for workloads: those of its namespace, or of all if it is in the root namespace.
trait Binding {
    fn scope(&self) -> (&Option<PolicyTargetReference>, &[PolicyTargetReference], &Option<MatchLabels>);

    /// Whether it is for the workloads of a namespace that have these labels. What is for objects is for no workload: there are
    /// none of the kinds that it may name.
    fn binds(&self, labels: &Labels) -> bool {
        let (target, targets, selector) = self.scope();
        target.is_none()
            && targets.is_empty()
            && selector.as_ref().is_none_or(|selector| api::selector::selects(&selector.match_labels, labels))
    }
}

impl Binding for Authorization {
    fn scope(&self) -> (&Option<PolicyTargetReference>, &[PolicyTargetReference], &Option<MatchLabels>) {
        (&self.policy.target_ref, &self.policy.target_refs, &self.policy.selector)
    }
}

impl Binding for Authentication {
    fn scope(&self) -> (&Option<PolicyTargetReference>, &[PolicyTargetReference], &Option<MatchLabels>) {
        (&self.policy.target_ref, &self.policy.target_refs, &self.policy.selector)
    }
}

/// The mesh at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) mesh: MeshConfig,
    pub(crate) mesh_digest: u64,
    pub(crate) domain: String,
    pub(crate) services: Vec<Digested<Service>>,
    /// Places in `services` by host.
    pub(crate) by_host: Arc<BTreeMap<Hostname, Vec<usize>>>,
    pub(crate) workloads: Vec<Arc<Workload>>,
    /// Places in `workloads` by address.
    pub(crate) by_address: Arc<BTreeMap<String, Vec<usize>>>,
    endpoints_by_address: by_address::ByAddress,
    /// The oldest first.
    pub(crate) virtual_services: Vec<Arc<VirtualService>>,
    /// By namespace.
    pub(crate) destination_rules: BTreeMap<String, Vec<Arc<DestinationRule>>>,
    pub(crate) gateways: Vec<Arc<Plain<crd::Gateway>>>,
    pub(crate) sidecars: Vec<Arc<Plain<crd::Sidecar>>>,
    pub(crate) peer_authentications: Vec<Arc<Plain<crd::PeerAuthentication>>>,
    pub(crate) authorizations: Vec<Arc<Plain<Authorization>>>,
    pub(crate) authentications: Vec<Arc<Plain<Authentication>>>,
    pub(crate) secrets: BTreeMap<(String, String), Arc<Object>>,
    /// Who else decides about requests.
    pub(crate) providers: providers::Providers,
    pub(crate) made: Arc<Made>,
    pub(crate) views: view::Views,
    /// Digest of all that views are made from, but for the places of endpoints.
    shape: u64,
    /// Subsets for which rules keep the routes they had.
    pub(crate) awaited: BTreeSet<held::Awaited>,
    allocated: lower::Allocated,
    /// What the registry was made from, so that the next one makes only what is new.
    memory: lower::Memory,
    /// Some service asks where its callers are; and on which node.
    asks_place: (bool, bool),
    problems: Vec<Problem>,
}

impl Snapshot {
    /// Resolves all relations.
    pub(crate) fn assemble(world: &World, previous: Option<&Arc<Snapshot>>) -> Snapshot {
        let by_kind = ByKind::of(world);
        let registry = lower::registry(world, &by_kind, previous.map(|previous| &previous.memory));
        let mut services = registry.services;
        // Services that did not change keep their place in memory, so that what was made of them can be kept too.
        for (place, service) in services.iter_mut().enumerate() {
            if let Some(same) = previous.and_then(|previous| previous.equal(place, service)) {
                *service = same.clone();
            }
        }
        let same_hosts = |previous: &&Arc<Snapshot>| {
            let old = previous.services.iter().map(|service| &service.host);
            old.eq(services.iter().map(|service| &service.host))
        };
        let by_host = previous.filter(same_hosts).map(|previous| previous.by_host.clone());
        let by_host = by_host.unwrap_or_else(|| Arc::new(index(services.iter().map(|service| service.host.clone()))));
        let by_address = previous
            .filter(|previous| previous.workloads == registry.workloads)
            .map_or_else(|| Arc::new(workload_index(&registry.workloads)), |previous| previous.by_address.clone());
        let endpoints_by_address = match previous {
            Some(previous) => previous.endpoints_by_address.after(&previous.services, &services),
            None => by_address::ByAddress::of(&services),
        };
        let mut snapshot = Snapshot {
            mesh_digest: digest_of(&format!("{:?}{}", world.mesh(), world.domain)),
            mesh: world.mesh().clone(),
            providers: providers::Providers::of(world.mesh(), &services, &by_host),
            domain: world.domain.clone(),
            by_host,
            endpoints_by_address,
            services,
            by_address,
            workloads: registry.workloads,
            virtual_services: virtual_services(world, &by_kind),
            destination_rules: destination_rules(world, &by_kind),
            gateways: plain(&by_kind, Kind::Gateway, |body| match body {
                Body::Gateway(spec) => Some(spec),
                _ => None,
            }),
            sidecars: plain(&by_kind, Kind::Sidecar, |body| match body {
                Body::Sidecar(spec) => Some(spec),
                _ => None,
            }),
            peer_authentications: plain(&by_kind, Kind::PeerAuthentication, |body| match body {
                Body::PeerAuthentication(spec) => Some(spec),
                _ => None,
            }),
            authorizations: authorizations(&by_kind),
            authentications: authentications(world, &by_kind),
            secrets: by_kind
                .all(Kind::Secret)
                .map(|object| ((object.meta.namespace.clone(), object.meta.name.clone()), (*object).clone()))
                .collect(),
            made: previous.map(|previous| previous.made.clone()).unwrap_or_default(),
            views: view::Views::default(),
            shape: 0,
            awaited: BTreeSet::new(),
            allocated: registry.allocated,
            memory: registry.memory,
            asks_place: (false, false),
            problems: registry.problems,
        };
        if let Some(previous) = previous {
            snapshot.hold_routes(previous);
        }
        snapshot.asks_place = (
            snapshot.services.iter().any(|service| service.depends_on_place()),
            snapshot
                .services
                .iter()
                .any(|service| service.node_local || service.distribution == Distribution::SameNode),
        );
        snapshot.shape = snapshot.shape_digest();
        match previous.filter(|previous| previous.shape == snapshot.shape) {
            Some(previous) => snapshot.views = view::Views::after(previous, &snapshot),
            None => snapshot.made.next(),
        }
        snapshot.made.next_if_large();
        snapshot
    }

    /// This snapshot's service that equals one of the next, which has this place there.
    fn equal(&self, place: usize, next: &Digested<Service>) -> Option<&Digested<Service>> {
        let same = |service: &&Digested<Service>| service.digest == next.digest && service.host == next.host;
        // Nearly always no service has come or gone.
        if let Some(service) = self.services.get(place).filter(same) {
            return Some(service);
        }
        let from = self.services.partition_point(|service| service.host < next.host);
        self.services[from..].iter().take_while(|service| service.host == next.host).find(same)
    }

    /// The services that have an endpoint with this address, and the places of these endpoints.
    pub(crate) fn endpoints_at(&self, address: &str) -> impl Iterator<Item = (&Digested<Service>, &Endpoint)> {
        let found = self.endpoints_by_address.get(&self.services, address).into_iter();
        found.map(|(service, endpoint)| (&self.services[service], &self.services[service].endpoints[endpoint]))
    }

    fn shape_digest(&self) -> u64 {
        let mut parts = vec![self.mesh_digest, digest_of(&self.domain)];
        parts.extend(self.services.iter().map(|service| service.shape));
        parts.extend(self.virtual_services.iter().map(|routing| routing.digest));
        parts.extend(self.destination_rules.values().flatten().map(|rule| rule.digest));
        parts.extend(self.sidecars.iter().map(|sidecar| sidecar.digest));
        parts.extend(self.peer_authentications.iter().map(|policy| policy.digest));
        digest_of(&parts)
    }

    pub(crate) fn add_problems(&mut self, mut problems: Vec<Problem>) {
        problems.append(&mut self.problems);
        problems.sort();
        problems.dedup();
        self.problems = problems;
    }

    /// What is wrong with the objects, those of decoding apart.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The addresses that the mesh gives to hosts of ServiceEntries, by object: what `status.addresses` should say. Objects
    /// whose hosts need none are not among them.
    pub fn allocated(&self) -> impl Iterator<Item = (&ObjectKey, &[(String, Vec<IpAddr>)])> {
        self.allocated.iter().map(|(key, hosts)| (key, hosts.as_slice()))
    }

    /// Where a workload is, as far as some service asks: workloads of one zone, or of one node, are told the same.
    pub(crate) fn place(&self, workload: &Workload) -> Option<Place> {
        let (locality, node) = self.asks_place;
        let place = || Place {
            locality: workload.locality.clone(),
            node: if node { workload.node.clone() } else { String::new() },
        };
        locality.then(place)
    }

    /// Whether some DestinationRule is for chosen workloads only.
    pub(crate) fn rules_select(&self) -> bool {
        self.destination_rules.values().flatten().any(|rule| rule.spec.workload_selector.is_some())
    }

    /// Mesh-wide settings.
    pub fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    /// Services and endpoints, for `/debug/registryz` and `/debug/endpointz`.
    pub fn registry(&self) -> Value {
        let service = |service: &Digested<Service>| {
            let endpoints: Vec<Value> = service
                .endpoints
                .iter()
                .map(|endpoint| {
                    json!({
                        "address": endpoint.address, "port": endpoint.port, "servicePort": endpoint.service_port,
                        "workload": endpoint.workload, "namespace": endpoint.namespace,
                        "serviceAccount": endpoint.service_account, "labels": endpoint.labels,
                        "tlsMode": if endpoint.tls { "istio" } else { "disabled" }, "locality": endpoint.locality, "ready": endpoint.ready,
                    })
                })
                .collect();
            let ports: Vec<Value> = service
                .ports
                .iter()
                .map(|port| json!({"name": port.name, "port": port.number, "protocol": format!("{:?}", port.protocol)}))
                .collect();
            json!({
                "hostname": service.host.as_str(), "namespace": service.namespace, "name": service.name,
                "addresses": service.addresses, "autoAddresses": service.auto_addresses, "ports": ports, "resolution": format!("{:?}", service.resolution),
                "external": service.external, "object": service.object.to_string(), "endpoints": endpoints,
            })
        };
        json!({"services": self.services.iter().map(service).collect::<Vec<_>>()})
    }

    /// The workload behind one of these addresses: of the namespace if there is one, pods before others, then the oldest.
    pub(crate) fn workload_at(&self, addresses: &[String], namespace: &str) -> Option<&Arc<Workload>> {
        addresses
            .iter()
            .filter_map(|address| self.by_address.get(address))
            .flatten()
            .map(|place| &self.workloads[*place])
            .filter(|workload| workload.namespace == namespace)
            .min_by_key(|workload| (workload.source, workload.age.clone()))
    }

    /// The service of a host that a namespace sees: its own first.
    pub(crate) fn service(&self, host: &Hostname, namespace: &str) -> Option<&Digested<Service>> {
        let places = self.by_host.get(host)?;
        let visible =
            || places.iter().map(|place| &self.services[*place]).filter(|service| service.exports.to(namespace));
        visible().find(|service| service.namespace == namespace).or_else(|| visible().next())
    }

    /// The DestinationRule for a host, seen from a client's namespace: the client's own, the service's, the mesh's.
    pub(crate) fn destination_rule(
        &self,
        host: &Hostname,
        service_namespace: &str,
        client: &str,
        labels: &Labels,
    ) -> Option<&Arc<DestinationRule>> {
        let root = self.mesh.root_namespace.as_str();
        let mut tried = BTreeSet::new();
        let namespaces = [Some(client).filter(|client| *client != root), Some(service_namespace), Some(root)];
        for namespace in namespaces.into_iter().flatten().filter(|namespace| tried.insert(*namespace)) {
            let best = self
                .destination_rules
                .get(namespace)
                .into_iter()
                .flatten()
                .filter(|rule| rule.host.covers(host) && (namespace == client || rule.exports.to(client)))
                .filter(|rule| match &rule.spec.workload_selector {
                    Some(selector) => namespace == client && api::selector::selects(&selector.match_labels, labels),
                    None => true,
                })
                .min_by(|one, two| {
                    let chosen = |rule: &DestinationRule| rule.spec.workload_selector.is_none();
                    one.host
                        .by_specificity(&two.host)
                        .then_with(|| chosen(one).cmp(&chosen(two)))
                        .then_with(|| one.age.cmp(&two.age))
                });
            if best.is_some() {
                return best;
            }
        }
        None
    }

    /// The mode in which a workload takes connections on a port, and the policy that says so.
    pub fn mutual_tls(&self, namespace: &str, labels: &Labels, port: u16) -> (MutualTlsMode, Option<ObjectKey>) {
        let root = self.mesh.root_namespace.as_str();
        let mut decided = (MutualTlsMode::Permissive, None);
        let mut take = |policy: &Plain<crd::PeerAuthentication>, found: Option<MutualTlsMode>| {
            if let Some(found) = found.filter(|found| *found != MutualTlsMode::Unset) {
                let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
                decided = (found, Some(ObjectKey { kind: Kind::PeerAuthentication, namespace, name }));
            }
        };
        for of in [root, namespace] {
            let wide = self.peer_authentications.iter().find(|policy| policy.namespace == of && is_wide(&policy.spec));
            if let Some(policy) = wide {
                take(policy, policy.spec.mtls.map(|mtls| mtls.mode));
            }
        }
        let own = self.peer_authentications.iter().find(|policy| {
            policy.namespace == namespace
                && !is_wide(&policy.spec)
                && policy
                    .spec
                    .selector
                    .as_ref()
                    .is_some_and(|selector| api::selector::selects(&selector.match_labels, labels))
        });
        if let Some(own) = own.filter(|own| own.namespace != root || namespace == root) {
            take(own, own.spec.mtls.map(|mtls| mtls.mode));
            take(own, own.spec.port_level_mtls.get(&port.to_string()).map(|mtls| mtls.mode));
        }
        decided
    }

    /// The AuthorizationPolicies that bind a workload, the oldest first: those of its namespace and of the root namespace.
    pub(crate) fn authorizations(&self, namespace: &str, labels: &Labels) -> Vec<Arc<Plain<Authorization>>> {
        self.bound(&self.authorizations, namespace, labels)
    }

    /// Who is asked for the policies of a workload that ask somebody (CUSTOM): one, or nobody can be asked.
    pub(crate) fn custom_provider(&self, policies: &[Arc<Plain<Authorization>>]) -> Option<&Arc<providers::Provider>> {
        self.only(custom_providers(policies))
    }

    /// Whose decision the rules of a workload's policies that allow something ask for: that of one, or nobody's can be had.
    pub(crate) fn decision_provider(
        &self,
        policies: &[Arc<Plain<Authorization>>],
    ) -> Option<&Arc<providers::Provider>> {
        self.only(decision_providers(policies))
    }

    fn only(&self, names: BTreeSet<&str>) -> Option<&Arc<providers::Provider>> {
        let mut names = names.into_iter();
        match (names.next(), names.next()) {
            (Some(name), None) => self.providers.get(name),
            _ => None,
        }
    }

    /// The RequestAuthentications that bind a workload, the oldest first.
    pub(crate) fn authentications(&self, namespace: &str, labels: &Labels) -> Vec<Arc<Plain<Authentication>>> {
        self.bound(&self.authentications, namespace, labels)
    }

    fn bound<T: Binding>(&self, all: &[Arc<Plain<T>>], namespace: &str, labels: &Labels) -> Vec<Arc<Plain<T>>> {
        let root = self.mesh.root_namespace.as_str();
        let near = |policy: &&Arc<Plain<T>>| policy.namespace == namespace || policy.namespace == root;
        all.iter().filter(near).filter(|policy| policy.spec.binds(labels)).cloned().collect()
    }

    /// The RequestAuthentications that bind a workload, the oldest first, each with the issuers whose tokens it takes.
    pub fn issuers_of(&self, namespace: &str, labels: &Labels) -> Vec<(ObjectKey, Vec<String>)> {
        let told = |bound: Arc<Plain<Authentication>>| {
            let (namespace, name) = (bound.namespace.clone(), bound.name.clone());
            let issuers = bound.spec.policy.jwt_rules.iter().map(|rule| rule.issuer.clone()).collect();
            (ObjectKey { kind: Kind::RequestAuthentication, namespace, name }, issuers)
        };
        self.authentications(namespace, labels).into_iter().map(told).collect()
    }

    /// The AuthorizationPolicies that bind a workload, the oldest first.
    pub fn policies_of(&self, namespace: &str, labels: &Labels) -> Vec<BoundPolicy> {
        let all = self.authorizations(namespace, labels);
        let name = |provider: Option<&Arc<providers::Provider>>| provider.map(|provider| provider.name.clone());
        let (custom, decision) = (name(self.custom_provider(&all)), name(self.decision_provider(&all)));
        let told = |bound: &Arc<Plain<Authorization>>| {
            let (namespace, name) = (bound.namespace.clone(), bound.name.clone());
            let policy = &bound.spec.policy;
            let asks = match policy.action {
                Action::Custom => custom.clone(),
                Action::Allow if policy.rules.iter().any(|rule| decision_of(rule).is_some()) => decision.clone(),
                _ => None,
            };
            let key = ObjectKey { kind: Kind::AuthorizationPolicy, namespace, name };
            BoundPolicy { action: policy.action, dry_run: bound.spec.dry_run, key, asks }
        };
        all.iter().map(told).collect()
    }

    /// The mode that clients expect of a service's endpoints: that of mesh and namespace alone, as Istio does.
    pub(crate) fn expected_mutual_tls(&self, namespace: &str) -> MutualTlsMode {
        let root = self.mesh.root_namespace.clone();
        let wide = |of: &str| {
            self.peer_authentications
                .iter()
                .find(|policy| policy.namespace == of && is_wide(&policy.spec))
                .and_then(|policy| policy.spec.mtls)
                .map(|mtls| mtls.mode)
        };
        let unset = |mode: &MutualTlsMode| *mode != MutualTlsMode::Unset;
        wide(namespace).filter(unset).or_else(|| wide(&root).filter(unset)).unwrap_or(MutualTlsMode::Permissive)
    }
}

/// The providers that policies ask (CUSTOM); one without a name asks nobody.
pub(crate) fn custom_providers(policies: &[Arc<Plain<Authorization>>]) -> BTreeSet<&str> {
    let asking = policies.iter().filter(|one| one.spec.policy.action == Action::Custom && !one.spec.dry_run);
    asking.map(|one| one.spec.policy.provider.as_ref().map_or("", |provider| provider.name.as_str())).collect()
}

/// The providers whose decision rules that allow something ask for.
pub(crate) fn decision_providers(policies: &[Arc<Plain<Authorization>>]) -> BTreeSet<&str> {
    let allowing = policies.iter().filter(|one| one.spec.policy.action == Action::Allow && !one.spec.dry_run);
    allowing.flat_map(|one| &one.spec.policy.rules).filter_map(decision_of).collect()
}

fn is_wide(policy: &crd::PeerAuthentication) -> bool {
    policy.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
}

fn index<T: Ord>(keys: impl Iterator<Item = T>) -> BTreeMap<T, Vec<usize>> {
    let mut map: BTreeMap<T, Vec<usize>> = BTreeMap::new();
    for (place, key) in keys.enumerate() {
        map.entry(key).or_default().push(place);
    }
    map
}

fn workload_index(workloads: &[Arc<Workload>]) -> BTreeMap<String, Vec<usize>> {
    let mut map: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (place, workload) in workloads.iter().enumerate() {
        for address in &workload.addresses {
            map.entry(address.clone()).or_default().push(place);
        }
    }
    map
}

fn plain<T: Clone>(by_kind: &ByKind<'_>, kind: Kind, spec: impl Fn(&Body) -> Option<&T>) -> Vec<Arc<Plain<T>>> {
    let make = |object: &Arc<Object>| {
        Some(Arc::new(Plain {
            name: object.meta.name.clone(),
            namespace: object.meta.namespace.clone(),
            age: Age::of(object),
            spec: Arc::new(spec(&object.body)?.clone()),
            digest: digest_of(&(object.digest, Age::of(object))),
        }))
    };
    let mut all: Vec<_> = by_kind.all(kind).filter_map(make).collect();
    all.sort_by(|one, two| one.age.cmp(&two.age));
    all
}

fn authorizations(by_kind: &ByKind<'_>) -> Vec<Arc<Plain<Authorization>>> {
    let make = |object: &Arc<Object>| {
        let Body::AuthorizationPolicy(policy) = &object.body else { return None };
        Some(Arc::new(Plain {
            name: object.meta.name.clone(),
            namespace: object.meta.namespace.clone(),
            age: Age::of(object),
            spec: Arc::new(Authorization { policy: policy.clone(), dry_run: dry_run(object) == Some(true) }),
            digest: digest_of(&(object.digest, Age::of(object))),
        }))
    };
    let mut all: Vec<_> = by_kind.all(Kind::AuthorizationPolicy).filter_map(make).collect();
    all.sort_by(|one, two| one.age.cmp(&two.age));
    all
}

fn authentications(world: &World, by_kind: &ByKind<'_>) -> Vec<Arc<Plain<Authentication>>> {
    let make = |object: &Arc<Object>| {
        let Body::RequestAuthentication(policy) = &object.body else { return None };
        let keys = policy.jwt_rules.iter().map(|rule| match KeySource::of(rule) {
            // A real Envoy refuses all that stands beside a key set without a key.
            None => Some(Arc::from(rule.jwks.as_str())).filter(|jwks| usable_keys(jwks) > Some(0)),
            Some(source) => world.keys.get(&source)?.jwks.clone(),
        });
        let keys: Vec<Option<Arc<str>>> = keys.collect();
        Some(Arc::new(Plain {
            name: object.meta.name.clone(),
            namespace: object.meta.namespace.clone(),
            age: Age::of(object),
            digest: digest_of(&(object.digest, Age::of(object), &keys)),
            spec: Arc::new(Authentication { policy: policy.clone(), keys }),
        }))
    };
    let mut all: Vec<_> = by_kind.all(Kind::RequestAuthentication).filter_map(make).collect();
    all.sort_by(|one, two| one.age.cmp(&two.age));
    all
}

fn virtual_services(world: &World, by_kind: &ByKind<'_>) -> Vec<Arc<VirtualService>> {
    let default = &world.mesh().default_virtual_service_export_to;
    let mut all = Vec::new();
    for object in by_kind.all(Kind::VirtualService) {
        let Body::VirtualService(spec) = &object.body else { continue };
        // Without hosts it is a delegate: it takes effect through its root.
        if spec.hosts.is_empty() {
            continue;
        }
        let namespace = &object.meta.namespace;
        let mut digest = digest_of(&(object.digest, Age::of(object)));
        let spec = with_delegates(world, object, spec, &mut digest);
        let gateway = |name: &String| match name.as_str() {
            "mesh" => name.clone(),
            _ if name.contains('/') => name.clone(),
            _ => format!("{namespace}/{name}"),
        };
        let mut gateways: Vec<String> = spec.gateways.iter().map(gateway).collect();
        if gateways.is_empty() {
            gateways.push("mesh".into());
        }
        all.push(Arc::new(VirtualService {
            name: object.meta.name.clone(),
            namespace: namespace.clone(),
            hosts: spec.hosts.iter().map(|host| Hostname::resolve(host, namespace, &world.domain)).collect(),
            gateways,
            exports: Exports::of(spec.export_to.iter().map(String::as_str), default, namespace),
            age: Age::of(object),
            spec: Arc::new(spec),
            digest,
        }));
    }
    all.sort_by(|one, two| one.age.cmp(&two.age));
    all
}

/// The rules with those of delegates in their places. Hosts of the delegate's destinations are of its own namespace.
fn with_delegates(world: &World, root: &Object, spec: &crd::VirtualService, digest: &mut u64) -> crd::VirtualService {
    let mut merged = spec.clone();
    if spec.http.iter().all(|rule| rule.delegate.is_none()) {
        return merged;
    }
    merged.http = Vec::new();
    for rule in &spec.http {
        let Some(delegate) = &rule.delegate else {
            merged.http.push(rule.clone());
            continue;
        };
        let namespace = if delegate.namespace.is_empty() { &root.meta.namespace } else { &delegate.namespace };
        let key = ObjectKey { kind: Kind::VirtualService, namespace: namespace.clone(), name: delegate.name.clone() };
        let Some(object) = world.objects.get(&key) else { continue };
        let Body::VirtualService(child) = &object.body else { continue };
        let exports = Exports::of(
            child.export_to.iter().map(String::as_str),
            &world.mesh().default_virtual_service_export_to,
            namespace,
        );
        if !child.hosts.is_empty() || !exports.to(&root.meta.namespace) {
            continue;
        }
        *digest = digest_of(&(*digest, object.digest));
        merged.http.extend(child.http.iter().filter_map(|inner| merge_rule(rule, inner, namespace, &world.domain)));
    }
    merged
}

fn merge_rule(
    root: &crd::virtual_service::HttpRoute,
    child: &crd::virtual_service::HttpRoute,
    namespace: &str,
    domain: &str,
) -> Option<crd::virtual_service::HttpRoute> {
    let mut merged = child.clone();
    let resolve = |host: &mut String| *host = Hostname::resolve(host, namespace, domain).to_string();
    merged.route.iter_mut().for_each(|route| resolve(&mut route.destination.host));
    merged.mirror.iter_mut().for_each(|mirror| resolve(&mut mirror.host));
    merged.mirrors.iter_mut().for_each(|mirror| resolve(&mut mirror.destination.host));
    merged.matches = match (root.matches.is_empty(), child.matches.is_empty()) {
        (true, _) => child.matches.clone(),
        (false, true) => root.matches.clone(),
        (false, false) => root
            .matches
            .iter()
            .flat_map(|outer| child.matches.iter().filter_map(|inner| merge_match(outer, inner)))
            .collect(),
    };
    if merged.matches.is_empty() && !(root.matches.is_empty() && child.matches.is_empty()) {
        return None;
    }
    if merged.name.is_empty() {
        merged.name.clone_from(&root.name);
    } else if !root.name.is_empty() {
        merged.name = format!("{}-{}", root.name, child.name);
    }
    macro_rules! inherit {
        ($($field:ident),*) => { $( if merged.$field.is_none() { merged.$field.clone_from(&root.$field); } )* };
    }
    inherit!(timeout, retries, fault, cors_policy, headers, rewrite, mirror, mirror_percentage);
    Some(merged)
}

/// Both matches at once; none if the child's is not inside the root's.
fn merge_match(
    root: &crd::virtual_service::HttpMatchRequest,
    child: &crd::virtual_service::HttpMatchRequest,
) -> Option<crd::virtual_service::HttpMatchRequest> {
    use api::value::StringMatch;
    let inside = |outer: &Option<StringMatch>, inner: &Option<StringMatch>| match (outer, inner) {
        (None, inner) => Some(inner.clone()),
        (outer, None) => Some(outer.clone()),
        (Some(StringMatch::Prefix(outer)), Some(StringMatch::Prefix(text) | StringMatch::Exact(text)))
            if text.starts_with(outer.as_str()) =>
        {
            Some(inner.clone())
        }
        (outer, inner) if outer == inner => Some(inner.clone()),
        _ => None,
    };
    let mut merged = child.clone();
    merged.uri = inside(&root.uri, &child.uri)?;
    merged.scheme = inside(&root.scheme, &child.scheme)?;
    merged.method = inside(&root.method, &child.method)?;
    merged.authority = inside(&root.authority, &child.authority)?;
    for (name, value) in &root.headers {
        let inner = inside(&Some(value.clone()), &child.headers.get(name).cloned())?;
        merged.headers.extend(inner.map(|inner| (name.clone(), inner)));
    }
    for (name, value) in &root.query_params {
        let inner = inside(&Some(value.clone()), &child.query_params.get(name).cloned())?;
        merged.query_params.extend(inner.map(|inner| (name.clone(), inner)));
    }
    merged.without_headers.extend(root.without_headers.clone());
    merged.source_labels.extend(root.source_labels.clone());
    if merged.gateways.is_empty() {
        merged.gateways.clone_from(&root.gateways);
    }
    if merged.source_namespace.is_empty() {
        merged.source_namespace.clone_from(&root.source_namespace);
    }
    merged.port = match (root.port, child.port) {
        (Some(outer), Some(inner)) if outer != inner => return None,
        (outer, inner) => inner.or(outer),
    };
    merged.ignore_uri_case |= root.ignore_uri_case;
    if merged.name.is_empty() {
        merged.name.clone_from(&root.name);
    } else if !root.name.is_empty() {
        merged.name = format!("{}-{}", root.name, child.name);
    }
    Some(merged)
}

fn destination_rules(world: &World, by_kind: &ByKind<'_>) -> BTreeMap<String, Vec<Arc<DestinationRule>>> {
    let default = &world.mesh().default_destination_rule_export_to;
    let mut objects: Vec<(&Arc<Object>, &crd::DestinationRule)> = by_kind
        .all(Kind::DestinationRule)
        .filter_map(|object| match &object.body {
            Body::DestinationRule(spec) => Some((object, spec)),
            _ => None,
        })
        .collect();
    objects.sort_by_key(|(object, _)| Age::of(object));
    let mut all: BTreeMap<String, Vec<DestinationRule>> = BTreeMap::new();
    for (object, spec) in objects {
        let namespace = &object.meta.namespace;
        let host = Hostname::resolve(&spec.host, namespace, &world.domain);
        let exports = Exports::of(spec.export_to.iter().map(String::as_str), default, namespace);
        let rules = all.entry(namespace.clone()).or_default();
        let same = |rule: &&mut DestinationRule| {
            rule.host == host && rule.exports == exports && rule.spec.workload_selector == spec.workload_selector
        };
        if let Some(older) = rules.iter_mut().find(same) {
            merge_rules(older, spec, object.digest);
            continue;
        }
        rules.push(DestinationRule {
            name: object.meta.name.clone(),
            namespace: namespace.clone(),
            host,
            exports,
            age: Age::of(object),
            spec: Arc::new(spec.clone()),
            digest: digest_of(&(object.digest, Age::of(object))),
        });
    }
    all.into_iter().map(|(namespace, rules)| (namespace, rules.into_iter().map(Arc::new).collect())).collect()
}

/// The older one's policy counts; subsets of both, of equal names the older's.
fn merge_rules(older: &mut DestinationRule, younger: &crd::DestinationRule, digest: u64) {
    let mut spec = (*older.spec).clone();
    for subset in &younger.subsets {
        if !spec.subsets.iter().any(|have| have.name == subset.name) {
            spec.subsets.push(subset.clone());
        }
    }
    if spec.traffic_policy.is_none() {
        spec.traffic_policy.clone_from(&younger.traffic_policy);
    }
    older.spec = Arc::new(spec);
    older.digest = digest_of(&(older.digest, digest));
}
