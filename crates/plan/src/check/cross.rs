//! What is wrong among objects: names that lead nowhere, hosts claimed twice, rules nobody reaches, selectors that take
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use api::crd::AuthorizationPolicy;
use api::crd::authorization_policy::Source;
use api::crd::peer_authentication::MutualTlsMode;
use api::crd::virtual_service::{Destination, HttpMatchRequest};
use api::name::Hostname;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::{Code, Problem, Severity, nearest, nearest_host};
use api::selector::selects;
use api::value::{Labels, StringMatch};

use crate::intrinsic::problem;
use crate::snapshot::{Plain, Snapshot, VirtualService};
use crate::world::World;

pub(super) fn all(world: &World, snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    let mut found = Found { world, snapshot, problems, hosts_of_gateways: gateway_hosts(world) };
    for object in world.objects.values() {
        match &object.body {
            Body::VirtualService(_) => found.virtual_service(object),
            Body::DestinationRule(spec) => found.destination_rule(object, &spec.host),
            Body::Gateway(spec) => found.gateway(object, spec),
            Body::Sidecar(spec) => {
                let labels = spec.workload_selector.as_ref().map(|selector| &selector.labels);
                found.selector(object, "spec.workloadSelector.labels", labels, Severity::Warning);
            }
            Body::PeerAuthentication(spec) => {
                let labels = spec.selector.as_ref().map(|selector| &selector.match_labels);
                found.selector(object, "spec.selector.matchLabels", labels, Severity::Warning);
            }
            Body::AuthorizationPolicy(spec) => {
                let labels = spec.selector.as_ref().map(|selector| &selector.match_labels);
                found.selector(object, "spec.selector.matchLabels", labels, Severity::Warning);
                found.unnamed_callers(object, spec);
            }
            Body::RequestAuthentication(spec) => {
                let labels = spec.selector.as_ref().map(|selector| &selector.match_labels);
                found.selector(object, "spec.selector.matchLabels", labels, Severity::Warning);
            }
            _ => {}
        }
    }
    found.conflicting_hosts();
    found.conflicting_sidecars();
    found.conflicting_gateways();
    found.delegates_without_root();
}

struct Found<'a> {
    world: &'a World,
    snapshot: &'a Snapshot,
    problems: &'a mut Vec<Problem>,
    /// Hosts of each gateway, by `namespace/name`.
    hosts_of_gateways: BTreeMap<String, Vec<Hostname>>,
}

fn gateway_hosts(world: &World) -> BTreeMap<String, Vec<Hostname>> {
    let of = |object: &Object| match &object.body {
        Body::Gateway(spec) => {
            let hosts = spec
                .servers
                .iter()
                .flat_map(|server| &server.hosts)
                .map(|host| Hostname::new(host.rsplit('/').next().unwrap_or(host)));
            Some((format!("{}/{}", object.meta.namespace, object.meta.name), hosts.collect()))
        }
        _ => None,
    };
    world.objects.values().filter_map(|object| of(object)).collect()
}

impl Found<'_> {
    fn tell(&mut self, object: &Object, field: &str, code: Code, severity: Severity, message: String) {
        self.problems.push(problem(object, field, code, severity, message));
    }

    fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<&std::sync::Arc<Object>> {
        self.world.objects.get(&ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    fn virtual_service(&mut self, object: &Object) {
        let Body::VirtualService(spec) = &object.body else { return };
        let namespace = object.meta.namespace.as_str();
        for (index, gateway) in spec.gateways.iter().enumerate().filter(|(_, gateway)| gateway.as_str() != "mesh") {
            self.gateway_of(object, &format!("spec.gateways[{index}]"), gateway, &spec.hosts);
        }
        let mut taken_by: Option<usize> = None;
        let mut seen: Vec<&HttpMatchRequest> = Vec::new();
        for (index, rule) in spec.http.iter().enumerate() {
            let field = format!("spec.http[{index}]");
            if let Some(before) = taken_by {
                let message = format!("The rule http[{before}] takes all requests; this rule is never reached.");
                self.tell(object, &field, Code::UnreachableRoute, Severity::Warning, message);
            }
            if taken_by.is_none() && (rule.matches.is_empty() || rule.matches.iter().any(takes_all)) {
                taken_by = Some(index);
            }
            for (place, one) in rule.matches.iter().enumerate() {
                if seen.contains(&one) {
                    self.tell(
                        object,
                        &format!("{field}.match[{place}]"),
                        Code::DuplicateMatch,
                        Severity::Warning,
                        "The same match stands before already; this one is never reached.".into(),
                    );
                }
                seen.push(one);
            }
            for (place, route) in rule.route.iter().enumerate() {
                self.destination(object, &format!("{field}.route[{place}].destination"), &route.destination);
            }
            if let Some(mirror) = &rule.mirror {
                self.destination(object, &format!("{field}.mirror"), mirror);
            }
            for (place, mirror) in rule.mirrors.iter().enumerate() {
                self.destination(object, &format!("{field}.mirrors[{place}].destination"), &mirror.destination);
            }
            if let Some(delegate) = &rule.delegate {
                let of = if delegate.namespace.is_empty() { namespace } else { &delegate.namespace };
                if self.object(Kind::VirtualService, of, &delegate.name).is_none() {
                    let message = format!("There is no VirtualService {of}/{}; the rule has no effect.", delegate.name);
                    self.tell(
                        object,
                        &format!("{field}.delegate"),
                        Code::ReferencedResourceNotFound,
                        Severity::Error,
                        message,
                    );
                }
            }
        }
        let tls = spec.tls.iter().enumerate().flat_map(|(index, rule)| {
            rule.route.iter().enumerate().map(move |(place, route)| {
                (format!("spec.tls[{index}].route[{place}].destination"), &route.destination)
            })
        });
        let tcp = spec.tcp.iter().enumerate().flat_map(|(index, rule)| {
            rule.route.iter().enumerate().map(move |(place, route)| {
                (format!("spec.tcp[{index}].route[{place}].destination"), &route.destination)
            })
        });
        for (field, destination) in tls.chain(tcp) {
            self.destination(object, &field, destination);
        }
    }

    fn gateway_of(&mut self, object: &Object, field: &str, gateway: &str, hosts: &[String]) {
        let full =
            if gateway.contains('/') { gateway.to_owned() } else { format!("{}/{gateway}", object.meta.namespace) };
        let Some(have) = self.hosts_of_gateways.get(&full) else {
            let elsewhere = self.hosts_of_gateways.keys().find(|key| key.rsplit('/').next() == full.rsplit('/').next());
            let hint = match elsewhere
                .map(String::as_str)
                .or_else(|| nearest(&full, self.hosts_of_gateways.keys().map(String::as_str)))
            {
                Some(other) => format!(" Did you mean {other}?"),
                None => String::new(),
            };
            let message = format!("There is no Gateway {full}; the rules have no effect there.{hint}");
            return self.tell(object, field, Code::ReferencedResourceNotFound, Severity::Warning, message);
        };
        let outside: Vec<String> =
            hosts.iter().filter(|host| !have.iter().any(|one| one.overlaps(&Hostname::new(host)))).cloned().collect();
        for host in outside {
            let index = hosts.iter().position(|one| *one == host).unwrap_or(0);
            let message =
                format!("The host {host:?} is not among the hosts of Gateway {full}; it is not served there.");
            self.tell(object, &format!("spec.hosts[{index}]"), Code::HostNotFoundInGateway, Severity::Warning, message);
        }
    }

    fn destination(&mut self, object: &Object, field: &str, destination: &Destination) {
        let namespace = object.meta.namespace.as_str();
        let host = Hostname::resolve(&destination.host, namespace, &self.world.domain);
        let Some(service) = self.snapshot.service(&host, namespace) else {
            if self.snapshot.by_host.keys().any(|known| known.is_wildcard() && known.covers(&host)) {
                return;
            }
            let hint = match nearest_host(&host, self.snapshot.by_host.keys()) {
                Some(near) => format!(" Did you mean {near}?"),
                None => String::new(),
            };
            let message = format!("No service has the host {host}; requests to it are answered 503.{hint}");
            return self.tell(
                object,
                &format!("{field}.host"),
                Code::ReferencedResourceNotFound,
                Severity::Error,
                message,
            );
        };
        let ports: Vec<u16> = service.ports.iter().map(|port| port.number).collect();
        let service_namespace = service.namespace.clone();
        match &destination.port {
            Some(port) if !ports.contains(&port.number) => {
                let message = format!("The host {host} has no port {}, only {ports:?}.", port.number);
                self.tell(
                    object,
                    &format!("{field}.port.number"),
                    Code::ReferencedResourceNotFound,
                    Severity::Error,
                    message,
                );
            }
            None if ports.len() > 1 => {
                let message = format!(
                    "The host {host} has the ports {ports:?}; name one, or the port that the request came to is taken."
                );
                self.tell(
                    object,
                    field,
                    Code::VirtualServiceDestinationPortSelectorRequired,
                    Severity::Warning,
                    message,
                );
            }
            _ => {}
        }
        if destination.subset.is_empty() {
            return;
        }
        let rule = self.snapshot.destination_rule(&host, &service_namespace, namespace, &Labels::new());
        let subsets: Vec<&str> =
            rule.into_iter().flat_map(|rule| &rule.spec.subsets).map(|subset| subset.name.as_str()).collect();
        if !subsets.contains(&destination.subset.as_str()) {
            let known = match (rule, nearest(&destination.subset, subsets.iter().copied())) {
                (None, _) => " There is no DestinationRule for the host.".to_owned(),
                (_, Some(near)) => format!(" Did you mean {near}?"),
                _ => String::new(),
            };
            // What a delegate waits for is known of its root.
            let waits = self.snapshot.awaited.iter().any(|awaited| {
                let own =
                    (awaited.rules.0.as_str(), awaited.rules.1.as_str()) == (namespace, object.meta.name.as_str());
                awaited.host == host && awaited.subset == destination.subset && (own || is_delegate(object))
            });
            let then = match waits {
                true => "its requests keep the destinations they had before until there is one",
                false => "requests to it are answered 503",
            };
            let message =
                format!("No DestinationRule defines subset {:?} of {host}; {then}.{known}", destination.subset);
            self.tell(object, &format!("{field}.subset"), Code::SubsetNotFound, Severity::Warning, message);
        }
    }

    fn destination_rule(&mut self, object: &Object, host: &str) {
        let host = Hostname::resolve(host, &object.meta.namespace, &self.world.domain);
        if self.snapshot.by_host.keys().any(|known| host.covers(known)) {
            return;
        }
        let hint = match nearest_host(&host, self.snapshot.by_host.keys()) {
            Some(near) => format!(" Did you mean {near}?"),
            None => String::new(),
        };
        let message = format!("No service has the host {host}; the object has no effect.{hint}");
        self.tell(object, "spec.host", Code::ReferencedResourceNotFound, Severity::Warning, message);
    }

    fn gateway(&mut self, object: &Object, spec: &api::crd::Gateway) {
        let namespaces: BTreeSet<String> = self
            .snapshot
            .workloads
            .iter()
            .filter(|workload| selects(&spec.selector, &workload.labels))
            .map(|workload| workload.namespace.clone())
            .collect();
        if namespaces.is_empty() && !spec.selector.is_empty() {
            // Gateways may also be known by nothing but the labels that their proxy tells.
            self.tell(
                object,
                "spec.selector",
                Code::NoMatchingWorkloadsFound,
                Severity::Info,
                "No known workload has these labels.".into(),
            );
        }
        let own = BTreeSet::from([object.meta.namespace.clone()]);
        let namespaces = if namespaces.is_empty() { own } else { namespaces };
        for (index, server) in spec.servers.iter().enumerate() {
            let Some(tls) = &server.tls else { continue };
            let name = tls.credential_name.as_str();
            if name.is_empty()
                || name.contains("://")
                || namespaces
                    .iter()
                    .any(|namespace| self.snapshot.secrets.contains_key(&(namespace.clone(), name.to_owned())))
            {
                continue;
            }
            let places =
                namespaces.iter().map(|namespace| format!("{namespace}/{name}")).collect::<Vec<_>>().join(" or ");
            let message = format!("There is no Secret {places}; handshakes for these hosts fail until there is.");
            self.tell(
                object,
                &format!("spec.servers[{index}].tls.credentialName"),
                Code::ReferencedResourceNotFound,
                Severity::Warning,
                message,
            );
        }
    }

    fn selector(&mut self, object: &Object, field: &str, labels: Option<&Labels>, severity: Severity) {
        let Some(labels) = labels.filter(|labels| !labels.is_empty()) else { return };
        let anywhere = object.meta.namespace == self.world.mesh().root_namespace;
        let taken = self.snapshot.workloads.iter().any(|workload| {
            (anywhere || workload.namespace == object.meta.namespace) && selects(labels, &workload.labels)
        });
        if !taken {
            self.tell(
                object,
                field,
                Code::NoMatchingWorkloadsFound,
                severity,
                "No workload of the namespace has these labels.".into(),
            );
        }
    }

    /// Callers have names only where mutual TLS is spoken.
    fn unnamed_callers(&mut self, object: &Object, spec: &AuthorizationPolicy) {
        if !names_callers(spec) || spec.target_ref.is_some() || !spec.target_refs.is_empty() {
            return;
        }
        let anywhere = object.meta.namespace == self.world.mesh().root_namespace;
        let labels = spec.selector.as_ref().map(|selector| &selector.match_labels);
        let bound = self.snapshot.workloads.iter().find(|workload| {
            (anywhere || workload.namespace == object.meta.namespace)
                && labels.is_none_or(|labels| selects(labels, &workload.labels))
                && self.snapshot.mutual_tls(&workload.namespace, &workload.labels, 0).0 == MutualTlsMode::Disable
        });
        let Some(workload) = bound else { return };
        let message = format!(
            "The policy asks for names of callers, which only mutual TLS tells; the workload {}/{} takes none (PeerAuthentication DISABLE), so nobody there has the name.",
            workload.namespace, workload.name
        );
        self.tell(object, "spec.rules", Code::NeverMatches, Severity::Warning, message);
    }

    /// Of VirtualServices with one host, sidecars follow the oldest.
    fn conflicting_hosts(&mut self) {
        let mut first: BTreeMap<&Hostname, Vec<&VirtualService>> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for rules in self.snapshot.virtual_services.iter().filter(|rules| rules.is_for_mesh()) {
            for (index, host) in rules.hosts.iter().enumerate() {
                let older = first.entry(host).or_default();
                // Objects that no proxy sees both of do not conflict.
                if let Some(other) = older.iter().find(|other| {
                    other.exports == rules.exports
                        && (other.namespace == rules.namespace || rules.exports == crate::model::Exports::All)
                }) {
                    if other.name != rules.name || other.namespace != rules.namespace {
                        conflicts.push((rules.namespace.clone(), rules.name.clone(), index, format!("The host {host} is routed by VirtualService {}/{}, which is older; for sidecars, this object has no effect on it.", other.namespace, other.name)));
                    }
                } else {
                    older.push(rules);
                }
            }
        }
        for (namespace, name, index, message) in conflicts {
            if let Some(object) = self.object(Kind::VirtualService, &namespace, &name).cloned() {
                self.tell(
                    &object,
                    &format!("spec.hosts[{index}]"),
                    Code::ConflictingMeshGatewayVirtualServiceHosts,
                    Severity::Error,
                    message,
                );
            }
        }
    }

    fn conflicting_sidecars(&mut self) {
        let mut first: BTreeMap<(String, Labels), String> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for sidecar in &self.snapshot.sidecars {
            let labels =
                sidecar.spec.workload_selector.as_ref().map(|selector| selector.labels.clone()).unwrap_or_default();
            let code = if labels.is_empty() {
                Code::MultipleSidecarsWithoutWorkloadSelectors
            } else {
                Code::ConflictingSidecarWorkloadSelectors
            };
            match first.get(&(sidecar.namespace.clone(), labels.clone())) {
                Some(older) => conflicts.push((
                    sidecar.namespace.clone(),
                    sidecar.name.clone(),
                    code,
                    format!("Sidecar {older} is older and for the same workloads; this one has no effect."),
                )),
                None => {
                    first.insert((sidecar.namespace.clone(), labels), sidecar.name.clone());
                }
            }
        }
        for (namespace, name, code, message) in conflicts {
            if let Some(object) = self.object(Kind::Sidecar, &namespace, &name).cloned() {
                self.tell(&object, "spec.workloadSelector", code, Severity::Error, message);
            }
        }
    }

    /// Servers of several Gateways with one port and host, on the same proxies.
    fn conflicting_gateways(&mut self) {
        let mut conflicts = Vec::new();
        for (place, younger) in self.snapshot.gateways.iter().enumerate() {
            for older in self.snapshot.gateways.iter().take(place).filter(|older| self.share_proxies(older, younger)) {
                for (index, server) in younger.spec.servers.iter().enumerate() {
                    let same = older
                        .spec
                        .servers
                        .iter()
                        .filter(|other| other.port.number == server.port.number && other.bind == server.bind);
                    for (other, host) in same.flat_map(|other| server.hosts.iter().map(move |host| (other, host))) {
                        if !other.hosts.iter().any(|taken| claims_overlap(taken, host)) {
                            continue;
                        }
                        // Plaintext HTTP servers of a port share their routes; of TLS servers the first one's terms count.
                        let effect = match (&server.tls, &other.tls) {
                            (None, None) => "the routes of both count, the older one's first",
                            _ => "the older one's TLS settings count",
                        };
                        let message = format!(
                            "Gateway {}/{}, which is older, has port {} and host {host:?} for the same proxies too; {effect}.",
                            older.namespace, older.name, server.port.number
                        );
                        conflicts.push((younger.namespace.clone(), younger.name.clone(), index, message));
                    }
                }
            }
        }
        for (namespace, name, index, message) in conflicts {
            if let Some(object) = self.object(Kind::Gateway, &namespace, &name).cloned() {
                self.tell(
                    &object,
                    &format!("spec.servers[{index}].hosts"),
                    Code::ConflictingGateways,
                    Severity::Warning,
                    message,
                );
            }
        }
    }

    fn share_proxies(&self, one: &Plain<api::crd::Gateway>, two: &Plain<api::crd::Gateway>) -> bool {
        one.spec.selector == two.spec.selector
            || self.snapshot.workloads.iter().any(|workload| {
                selects(&one.spec.selector, &workload.labels) && selects(&two.spec.selector, &workload.labels)
            })
    }

    /// A VirtualService without hosts is a delegate: it needs a root that names it.
    fn delegates_without_root(&mut self) {
        let mut named: BTreeSet<(String, String)> = BTreeSet::new();
        let mut without_hosts = Vec::new();
        for object in self.world.objects.values() {
            let Body::VirtualService(spec) = &object.body else { continue };
            for delegate in spec.http.iter().filter_map(|rule| rule.delegate.as_ref()) {
                let namespace =
                    if delegate.namespace.is_empty() { &object.meta.namespace } else { &delegate.namespace };
                named.insert((namespace.clone(), delegate.name.clone()));
            }
            if spec.hosts.is_empty() {
                without_hosts.push(object.clone());
            }
        }
        for object in without_hosts
            .iter()
            .filter(|object| !named.contains(&(object.meta.namespace.clone(), object.meta.name.clone())))
        {
            let message =
                "The object names no hosts and no other VirtualService delegates to it; it has no effect.".to_owned();
            self.tell(object, "spec.hosts", Code::MissingField, Severity::Warning, message);
        }
    }
}

/// Whether some rule asks who calls, by a name that the caller's certificate proves.
fn names_callers(spec: &AuthorizationPolicy) -> bool {
    const KEYS: [&str; 4] = ["source.principal", "source.namespace", "source.serviceAccount", "source.trustDomain"];
    let named = |source: &Source| {
        let lists = [&source.principals, &source.namespaces, &source.service_accounts, &source.trust_domains];
        lists.iter().any(|list| !list.is_empty())
    };
    spec.rules.iter().any(|rule| {
        rule.from.iter().filter_map(|from| from.source.as_ref()).any(named)
            || rule.when.iter().any(|condition| KEYS.contains(&condition.key.as_str()))
    })
}

/// Whether two hosts of servers (`NAMESPACE/HOST` or `HOST`) are one for some VirtualService.
fn claims_overlap(one: &str, two: &str) -> bool {
    let split = |text: &str| match text.split_once('/') {
        Some((namespace, host)) => (namespace.to_owned(), host.to_owned()),
        None => ("*".to_owned(), text.to_owned()),
    };
    let ((first, one), (second, two)) = (split(one), split(two));
    one == two && (first == second || first == "*" || second == "*")
}

fn is_delegate(object: &Object) -> bool {
    matches!(&object.body, Body::VirtualService(spec) if spec.hosts.is_empty())
}

fn takes_all(one: &HttpMatchRequest) -> bool {
    let path = one
        .uri
        .as_ref()
        .is_none_or(|uri| matches!(uri, StringMatch::Prefix(prefix) if prefix == "/" || prefix.is_empty()));
    let nothing_else = HttpMatchRequest {
        uri: None,
        name: String::new(),
        ignore_uri_case: false,
        stat_prefix: String::new(),
        ..one.clone()
    };
    path && nothing_else == HttpMatchRequest::default()
}
