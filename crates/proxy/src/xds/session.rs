//! The state of one delta ADS client, without I/O: responses in, requests out. It outlives streams, so that a reconnect
//! asks only for what it does not hold (xDS protocol, "Incremental xDS").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::node::NodeMetadata;
use api::xds::core::Node;
use api::xds::{KINDS, KindRow, ResourceKind};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status;

use super::references::{self, Reference};
use super::resources::{Reject, Resource, ResourceSet};

/// gRPC status INVALID_ARGUMENT, which is what Envoy sends with a NACK.
const INVALID_ARGUMENT: i32 = 3;

/// What the session holds and asks for.
pub struct Session {
    node: Node,
    /// Whether names are asked for: only whoever captures DNS needs them.
    names: bool,
    /// What the server sent last, by name.
    received: ResourceSet,
    /// What is in effect: a received resource takes effect once all that it points at has been answered.
    effective: ResourceSet,
    kinds: [Kind; KINDS.len()],
    /// What was refused of what is in effect.
    rejects: Vec<Reject>,
    /// What each received resource points at, so that it is read once.
    references: BTreeMap<Reference, BTreeSet<Reference>>,
    /// The same for what is in effect: it may still be an older version, whose references must stay.
    effective_references: BTreeMap<Reference, BTreeSet<Reference>>,
}

#[derive(Default)]
struct Kind {
    /// Names subscribed on this stream (empty for wildcard kinds).
    subscribed: BTreeSet<String>,
    /// Names of which the server has said, ever, what they are or that they are not.
    answered: BTreeSet<String>,
    /// Whether a first request was sent on this stream.
    asked: bool,
    /// Whether the server has answered the wildcard once.
    first_answer: bool,
    /// Nonce of the last response on this stream.
    nonce: String,
    /// Whether that was refused.
    refused: bool,
}

impl Session {
    /// A session that holds nothing.
    pub fn new(node: Node) -> Self {
        let names = NodeMetadata::of(&node).dns_capture == "true";
        Self {
            node,
            names,
            received: ResourceSet::default(),
            effective: ResourceSet::default(),
            kinds: Default::default(),
            rejects: Vec::new(),
            references: BTreeMap::new(),
            effective_references: BTreeMap::new(),
        }
    }

    /// What is in effect now.
    pub fn effective(&self) -> &ResourceSet {
        &self.effective
    }

    /// What the server sent last.
    pub fn received(&self) -> &ResourceSet {
        &self.received
    }

    /// Whether all of a kind is asked for.
    fn asks_all(&self, row: &KindRow) -> bool {
        row.wildcard && (row.kind != ResourceKind::NameTable || self.names)
    }

    /// Whether the server has told all that was asked of it so far: clusters and listeners, and all that they point at.
    pub fn is_complete(&self) -> bool {
        KINDS.iter().all(|row| {
            let state = &self.kinds[row.kind as usize];
            if self.asks_all(row) { state.first_answer } else { state.subscribed.is_subset(&state.answered) }
        })
    }

    /// A new stream was opened: the requests to start with.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        for state in &mut self.kinds {
            state.asked = false;
            state.subscribed.clear();
            state.nonce.clear();
            state.refused = false;
        }
        let mut requests = Vec::new();
        for row in KINDS {
            if self.asks_all(row) {
                requests.push(self.first_request(row.kind, BTreeSet::new()));
            }
        }
        requests.extend(self.resubscribe());
        requests
    }

    /// A response came: takes it, asks `apply` for its verdict if what is in effect changed, and answers.
    pub fn respond(
        &mut self,
        response: DeltaDiscoveryResponse,
        apply: &mut dyn FnMut(&ResourceSet) -> Vec<Reject>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let Some(kind) = ResourceKind::of(&response.type_url) else {
            let reason = format!("resources of type {:?} were not asked for", response.type_url);
            return vec![DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                error_detail: Some(Status { code: INVALID_ARGUMENT, message: reason, ..Status::default() }),
                ..DeltaDiscoveryRequest::default()
            }];
        };
        let faults = self.take(kind, response.resources, response.removed_resources);
        let mut changed = self.settle();
        for kind in KINDS.iter().map(|row| row.kind).filter(|kind| self.kinds[*kind as usize].first_answer) {
            let whole = self.effective.of(kind).len() == self.received.of(kind).len();
            changed |= whole && self.effective.tell(kind);
        }
        if changed {
            self.rejects = apply(&self.effective);
        }
        self.kinds[kind as usize].nonce.clone_from(&response.nonce);
        // New subscriptions go out before the acknowledgement: a server that pushes in order (clusters, their endpoints,
        // then routes) learns of them before it goes on.
        let mut requests = self.resubscribe();
        requests.push(self.verdict(kind, faults));
        // What had to wait for this response may have been refused only now, or be refused no longer: that is told with the
        // last response of its own kind.
        for row in KINDS.iter().filter(|row| row.kind != kind) {
            let state = &self.kinds[row.kind as usize];
            let refused = self.rejects.iter().any(|reject| reject.kind == row.kind);
            if refused != state.refused && !state.nonce.is_empty() {
                requests.push(self.verdict(row.kind, Vec::new()));
            }
        }
        requests
    }

    /// Takes or refuses the last response of a kind.
    fn verdict(&mut self, kind: ResourceKind, mut faults: Vec<String>) -> DeltaDiscoveryRequest {
        let of_kind = self.rejects.iter().filter(|reject| reject.kind == kind);
        faults.extend(of_kind.map(|reject| format!("{} {:?}: {}", kind.row().short, reject.name, reject.reason)));
        let state = &mut self.kinds[kind as usize];
        state.refused = !faults.is_empty();
        let refusal = || Status { code: INVALID_ARGUMENT, message: faults.join("; "), ..Status::default() };
        DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            response_nonce: state.nonce.clone(),
            error_detail: state.refused.then(refusal),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn take(
        &mut self,
        kind: ResourceKind,
        resources: Vec<envoy_types::pb::envoy::service::discovery::v3::Resource>,
        removed: Vec<String>,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        let state = &mut self.kinds[kind as usize];
        state.first_answer = true;
        // The answer to a name that is not asked for any more came too late: nobody would ever take it away again.
        let wanted = |state: &Kind, name: &String| kind.row().wildcard || state.subscribed.contains(name);
        for resource in resources {
            if !wanted(state, &resource.name) {
                continue;
            }
            let Some(body) = resource.resource else {
                faults.push(format!("{} {:?}: the resource is empty", kind.row().short, resource.name));
                continue;
            };
            self.references.insert((kind, resource.name.clone()), references::of(kind, &body));
            state.answered.insert(resource.name.clone());
            self.received
                .of_mut(kind)
                .insert(resource.name, Resource { version: resource.version, body: Arc::new(body) });
        }
        for name in removed {
            self.references.remove(&(kind, name.clone()));
            self.received.of_mut(kind).remove(&name);
            if wanted(state, &name) {
                state.answered.insert(name);
            }
        }
        faults
    }

    /// Brings into effect what has become complete. Returns whether anything changed.
    fn settle(&mut self) -> bool {
        let mut changed = false;
        for row in KINDS {
            let received = self.received.of(row.kind);
            let effective = self.effective.of_mut(row.kind);
            let before = effective.len();
            effective.retain(|name, _| received.contains_key(name));
            changed |= before != effective.len();
            for (name, resource) in received {
                if effective.get(name).is_some_and(|held| Arc::ptr_eq(&held.body, &resource.body) || held == resource) {
                    continue;
                }
                let key = (row.kind, name.clone());
                let points_at = self.references.get(&key).cloned().unwrap_or_default();
                if points_at.iter().all(|(kind, name)| self.kinds[*kind as usize].answered.contains(name)) {
                    effective.insert(name.clone(), resource.clone());
                    self.effective_references.insert(key, points_at);
                    changed = true;
                }
            }
        }
        let effective = &self.effective;
        self.effective_references.retain(|(kind, name), _| effective.of(*kind).contains_key(name));
        changed
    }

    /// The requests that make the subscriptions by name equal to what is pointed at.
    fn resubscribe(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut wanted: [BTreeSet<String>; KINDS.len()] = Default::default();
        for (kind, name) in self.references.values().chain(self.effective_references.values()).flatten() {
            wanted[*kind as usize].insert(name.clone());
        }
        let mut requests = Vec::new();
        for row in KINDS.iter().filter(|row| !row.wildcard) {
            let wanted = std::mem::take(&mut wanted[row.kind as usize]);
            let state = &mut self.kinds[row.kind as usize];
            let gone: Vec<String> = state.subscribed.difference(&wanted).cloned().collect();
            let new: Vec<String> = wanted.difference(&state.subscribed).cloned().collect();
            for name in &gone {
                state.answered.remove(name);
                self.received.of_mut(row.kind).remove(name);
                // Nothing in effect points at it: whoever applies the set does not have to be told.
                self.effective.of_mut(row.kind).remove(name);
            }
            if !state.asked && !wanted.is_empty() {
                requests.push(self.first_request(row.kind, wanted));
            } else if !gone.is_empty() || !new.is_empty() {
                state.subscribed = wanted;
                requests.push(DeltaDiscoveryRequest {
                    type_url: row.type_url.to_owned(),
                    resource_names_subscribe: new,
                    resource_names_unsubscribe: gone,
                    ..DeltaDiscoveryRequest::default()
                });
            }
        }
        requests
    }

    /// The first request of a kind on a stream tells what is held already.
    fn first_request(&mut self, kind: ResourceKind, names: BTreeSet<String>) -> DeltaDiscoveryRequest {
        let held = self.received.of(kind).iter().filter(|(name, _)| kind.row().wildcard || names.contains(*name));
        let initial_resource_versions = held.map(|(name, resource)| (name.clone(), resource.version.clone())).collect();
        let state = &mut self.kinds[kind as usize];
        state.asked = true;
        state.subscribed = names.clone();
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.into_iter().collect(),
            initial_resource_versions,
            ..DeltaDiscoveryRequest::default()
        }
    }
}
