//! The state of one ADS stream, without I/O: requests and offers in, responses out. Speaks both variants of the protocol
//! (state of the world, delta).
//!
//! Three rules give the order that loses no request (xDS protocol, "Eventual consistency considerations"):
//! 1. at most one response of a kind is unanswered, so a slow client holds back only itself and then gets the newest state;
//! 2. what points at something is sent after it was taken: clusters, their endpoints, listeners, routes;
//! 3. what nothing points at any more is removed last: clusters, after listeners and routes.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::xds::{KINDS, ResourceKind};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use plan::{Named, Resources};

use super::offer::Offer;

/// Which of the two protocols the stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `StreamAggregatedResources`.
    StateOfTheWorld,
    /// `DeltaAggregatedResources`.
    Delta,
}

/// A request of either protocol, as far as the session cares.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    kind: Option<ResourceKind>,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
    held: Vec<(String, String)>,
    nonce: String,
    error: Option<String>,
}

impl From<DeltaDiscoveryRequest> for Ask {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        Ask {
            kind: ResourceKind::of(&request.type_url),
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            held: request.initial_resource_versions.into_iter().collect(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        }
    }
}

impl From<DiscoveryRequest> for Ask {
    fn from(request: DiscoveryRequest) -> Self {
        Ask {
            kind: ResourceKind::of(&request.type_url),
            subscribe: request.resource_names,
            unsubscribe: Vec::new(),
            held: Vec::new(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        }
    }
}

/// A response, before it becomes bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Kind.
    pub kind: ResourceKind,
    /// Resources to set.
    pub entries: Vec<Arc<Named>>,
    /// Names to remove (delta only; the other variant leaves them out of `entries`).
    pub removed: Vec<String>,
    /// Identifies the response in its acknowledgement.
    pub nonce: String,
}

impl Answer {
    /// Bytes of its resources.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.length()).sum()
    }

    /// As the delta protocol sends it.
    pub fn into_delta(self) -> DeltaDiscoveryResponse {
        let resource = |entry: &Arc<Named>| Resource {
            name: entry.name.to_string(),
            version: version(entry.version),
            resource: Some(entry.body()),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: self.nonce.clone(),
            resources: self.entries.iter().map(resource).collect(),
            type_url: self.kind.type_url().to_owned(),
            removed_resources: self.removed,
            nonce: self.nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }

    /// As the state-of-the-world protocol sends it.
    pub fn into_state_of_the_world(self) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: self.nonce.clone(),
            resources: self.entries.iter().map(|entry| entry.body()).collect(),
            type_url: self.kind.type_url().to_owned(),
            nonce: self.nonce,
            ..DiscoveryResponse::default()
        }
    }
}

/// How a resource's digest is written as its version.
pub(super) fn version(digest: u64) -> String {
    format!("{digest:016x}")
}

/// What the stream's client holds of one kind, for the debug pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindStatus {
    /// Whether the client asked for the kind.
    pub subscribed: bool,
    /// Nonce of the last response.
    pub sent: String,
    /// Nonce of the last one taken.
    pub acked: String,
    /// Why the last one was refused; empty when it was not.
    pub nack: String,
    /// Resources that the client was sent and not told to drop.
    pub resources: usize,
}

/// What happened to a request, for the metrics and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A subscription, or a change of it.
    Subscription(ResourceKind),
    /// A response was taken.
    Ack(ResourceKind),
    /// A response was refused, with this reason.
    Nack(ResourceKind, String),
    /// The answer to an older response.
    Stale(ResourceKind),
    /// A kind that we do not serve.
    UnknownKind,
}

/// One stream.
pub struct Session {
    variant: Variant,
    offer: Option<Arc<Offer>>,
    kinds: [State; KINDS.len()],
    last_nonce: u64,
    /// Endpoints that clusters already sent will ask for, and have not yet.
    awaited_endpoints: BTreeSet<Arc<str>>,
}

#[derive(Default)]
struct State {
    subscribed: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client was last sent (or said that it holds: then without a body), by name.
    held: Held,
    /// Names that were asked for and have not been answered.
    unanswered: BTreeSet<Arc<str>>,
    /// Whether a first response was sent.
    answered: bool,
    /// Nonce of the response that the client has not answered.
    outstanding: Option<String>,
    /// What was offered when nothing was left to send: while it is offered and the client asks for nothing else, nothing is.
    settled: Option<Resources>,
    status: KindStatus,
}

/// What has to change at the client for one kind.
#[derive(Default)]
struct Difference {
    set: Vec<Arc<Named>>,
    remove: Vec<String>,
}

impl Session {
    /// A new stream.
    pub fn new(variant: Variant) -> Self {
        Self { variant, offer: None, kinds: Default::default(), last_nonce: 0, awaited_endpoints: BTreeSet::new() }
    }

    /// Which of the two protocols it speaks.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Sets what the client should hold from now on.
    pub fn set_offer(&mut self, offer: Arc<Offer>) {
        self.offer = Some(offer);
    }

    /// The client's state of one kind.
    pub fn status(&self, kind: ResourceKind) -> KindStatus {
        let state = &self.kinds[kind as usize];
        KindStatus { subscribed: state.subscribed, resources: state.held.0.len(), ..state.status.clone() }
    }

    /// Whether endpoints are awaited that the client may never ask for: see [`Session::stop_waiting`].
    pub fn is_waiting(&self) -> bool {
        !self.awaited_endpoints.is_empty()
    }

    /// Goes on without the subscriptions that have not come.
    pub fn stop_waiting(&mut self) {
        self.awaited_endpoints.clear();
    }

    /// Takes a request.
    pub fn request(&mut self, ask: Ask) -> Heard {
        let Some(kind) = ask.kind else { return Heard::UnknownKind };
        let state = &mut self.kinds[kind as usize];
        let mut heard = Heard::Subscription(kind);
        if !ask.nonce.is_empty() {
            // A client may think again of the last response: what it holds of it can depend on other kinds.
            // In state of the world every request carries the last nonce: only a refusal says something new there.
            let says_so = self.variant == Variant::Delta || ask.error.is_some();
            let thinks_again = says_so && state.outstanding.is_none() && state.status.sent == ask.nonce;
            if state.outstanding.as_ref() == Some(&ask.nonce) || thinks_again {
                state.outstanding = None;
                heard = match ask.error {
                    None => {
                        state.status.acked = ask.nonce;
                        state.status.nack.clear();
                        Heard::Ack(kind)
                    }
                    Some(reason) => {
                        state.status.nack.clone_from(&reason);
                        Heard::Nack(kind, reason)
                    }
                };
            } else {
                heard = Heard::Stale(kind);
            }
        }
        // Names of what is offered are shared with the offer: every client asks for thousands of them.
        let offered = self.offer.as_ref().filter(|_| !ask.subscribe.is_empty()).map(|offer| offer.of(kind));
        let shared = |name: &String| offered?.get(name).map(|one| one.name.clone());
        let names = ask.subscribe.iter().map(|name| shared(name).unwrap_or_else(|| name.as_str().into())).collect();
        let only_answers = ask.subscribe.is_empty() && ask.unsubscribe.is_empty() && ask.held.is_empty();
        if !(only_answers && state.subscribed && self.variant == Variant::Delta) {
            state.settled = None;
        }
        match self.variant {
            Variant::Delta => state.subscribe_delta(kind, names, ask.unsubscribe, ask.held),
            // An answer to an older response tells old names: the newer answer, which will come, counts.
            Variant::StateOfTheWorld if heard == Heard::Stale(kind) && state.outstanding.is_some() => {}
            Variant::StateOfTheWorld => state.subscribe_whole(kind, names),
        }
        if kind == ResourceKind::Endpoint {
            let names = &self.kinds[kind as usize].names;
            self.awaited_endpoints.retain(|name| !names.contains(name));
        }
        heard
    }

    /// The next response to send, if there is one. To be called until there is none, after every request and offer.
    pub fn next_answer(&mut self) -> Option<Answer> {
        let offer = self.offer.clone()?;
        // Endpoints of clusters that have gone meanwhile will not be asked for.
        if !self.awaited_endpoints.is_empty() {
            self.awaited_endpoints.retain(|name| offer.of(ResourceKind::Endpoint).get(name).is_some());
        }
        let mut settled = true;
        for row in KINDS {
            let kind = row.kind;
            let after_clusters = matches!(kind, ResourceKind::Listener | ResourceKind::Route);
            if after_clusters && !(settled && self.awaited_endpoints.is_empty()) {
                continue;
            }
            let state = &mut self.kinds[kind as usize];
            if !state.subscribed {
                continue;
            }
            if state.is_settled(offer.of(kind)) {
                settled &= state.outstanding.is_none();
                continue;
            }
            let difference = state.difference(offer.of(kind));
            let due = !difference.set.is_empty()
                || !state.answered
                || state.has_unanswered(offer.of(kind))
                || (kind != ResourceKind::Cluster && !difference.remove.is_empty());
            if state.outstanding.is_some() {
                settled = false;
                continue;
            }
            if due {
                let later = kind == ResourceKind::Cluster && !difference.remove.is_empty();
                let remove = if kind == ResourceKind::Cluster { Vec::new() } else { difference.remove };
                let answer = self.answer(kind, difference.set, remove);
                self.kinds[kind as usize].settled = (!later).then(|| offer.of(kind).clone());
                return Some(answer);
            }
            if difference.remove.is_empty() {
                state.settled = Some(offer.of(kind).clone());
            }
        }
        self.remove_clusters(&offer, settled)
    }

    /// Clusters that have gone, once listeners and routes no longer point at them.
    fn remove_clusters(&mut self, offer: &Offer, settled: bool) -> Option<Answer> {
        let clusters = &self.kinds[ResourceKind::Cluster as usize];
        if !settled || !clusters.subscribed || clusters.outstanding.is_some() || !self.awaited_endpoints.is_empty() {
            return None;
        }
        if clusters.is_settled(offer.of(ResourceKind::Cluster)) {
            return None;
        }
        let remove = clusters.difference(offer.of(ResourceKind::Cluster)).remove;
        if remove.is_empty() {
            return None;
        }
        Some(self.answer(ResourceKind::Cluster, Vec::new(), remove))
    }

    fn answer(&mut self, kind: ResourceKind, set: Vec<Arc<Named>>, remove: Vec<String>) -> Answer {
        self.last_nonce += 1;
        let nonce = format!("{:x}", self.last_nonce);
        if kind == ResourceKind::Cluster {
            let endpoints = &self.kinds[ResourceKind::Endpoint as usize];
            let new = set.iter().filter_map(|entry| entry.endpoints()).filter(|name| !endpoints.names.contains(*name));
            self.awaited_endpoints.extend(new.cloned());
        }
        let state = &mut self.kinds[kind as usize];
        state.held.set(&set);
        state.held.remove(&remove);
        state.unanswered.clear();
        state.settled = None;
        state.answered = true;
        state.outstanding = Some(nonce.clone());
        state.status.sent.clone_from(&nonce);
        // State of the world means it for clusters and listeners: all of them, every time.
        let entries = match self.variant {
            Variant::StateOfTheWorld if kind.row().wildcard => state.held.0.clone(),
            _ => set,
        };
        Answer { kind, entries, removed: remove, nonce }
    }
}

impl State {
    fn subscribe_delta(
        &mut self,
        kind: ResourceKind,
        subscribe: Vec<Arc<str>>,
        unsubscribe: Vec<String>,
        held: Vec<(String, String)>,
    ) {
        // The first request of a wildcard kind without names asks for all; `*` asks for all at any time.
        if !self.subscribed && subscribe.is_empty() && kind.row().wildcard {
            self.wildcard = true;
        }
        self.subscribed = true;
        let known = |(name, version): (String, String)| {
            let version = u64::from_str_radix(&version, 16).unwrap_or_default();
            Arc::new(Named::new(&name, version, Default::default()))
        };
        let mut held: Vec<_> = held.into_iter().map(known).collect();
        held.sort_by(|one, two| one.name.cmp(&two.name));
        self.held.set(&held);
        for name in subscribe {
            if &*name == "*" {
                self.wildcard = true;
                continue;
            }
            if self.held.get(&name).is_none() {
                self.unanswered.insert(name.clone());
            }
            self.names.insert(name);
        }
        let mut dropped = Vec::new();
        for name in unsubscribe {
            if name == "*" {
                self.wildcard = false;
                continue;
            }
            self.names.remove(name.as_str());
            self.unanswered.remove(name.as_str());
            dropped.push(name);
        }
        if !self.wildcard {
            dropped.sort();
            self.held.remove(&dropped);
        }
    }

    fn subscribe_whole(&mut self, kind: ResourceKind, names: Vec<Arc<str>>) {
        let names: BTreeSet<Arc<str>> = names.into_iter().collect();
        let first = !std::mem::replace(&mut self.subscribed, true);
        self.wildcard = (kind.row().wildcard && names.is_empty() && (first || self.wildcard)) || names.contains("*");
        if self.wildcard {
            return;
        }
        let new: Vec<Arc<str>> = names.difference(&self.names).cloned().collect();
        self.unanswered.extend(new);
        self.unanswered.retain(|name| names.contains(name));
        self.held.0.retain(|one| names.contains(&one.name));
        self.names = names;
    }

    fn is_settled(&self, offered: &Resources) -> bool {
        self.settled.as_ref().is_some_and(|settled| settled.is_same(offered))
    }

    /// Whether a name waits for an answer that can be given: in delta also "there is none".
    fn has_unanswered(&self, offered: &Resources) -> bool {
        self.unanswered.iter().any(|name| offered.get(name).is_none())
    }

    /// One walk through what is held and what is offered, both in order: most of it is the very same.
    fn difference(&self, offered: &Resources) -> Difference {
        let mut difference = Difference::default();
        let mut held = self.held.0.iter().peekable();
        let wanted = |one: &Arc<Named>| self.wildcard || self.names.contains(&one.name);
        for one in offered.iter() {
            // What was asked for by name goes when the client no longer asks for it: taking endpoints away while a route
            // still leads to their cluster would fail requests. Only a name that never was there is told to be missing.
            while let Some(gone) = held.next_if(|held| !Arc::ptr_eq(held, one) && held.name < one.name) {
                if self.wildcard {
                    difference.remove.push(gone.name.to_string());
                }
            }
            match held.next_if(|held| Arc::ptr_eq(held, one) || held.name == one.name) {
                Some(same) if same.version == one.version => {}
                _ if wanted(one) => difference.set.push(one.clone()),
                _ => {}
            }
        }
        if self.wildcard {
            difference.remove.extend(held.map(|gone| gone.name.to_string()));
        } else {
            let gone = self.unanswered.iter().filter(|name| offered.get(name).is_none());
            difference.remove = gone.map(|name| name.to_string()).collect();
        }
        difference
    }
}

/// What a client holds, in the order of names: shared with the offers, so that a client costs little more than a pointer for
/// each.
#[derive(Default)]
struct Held(Vec<Arc<Named>>);

impl Held {
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|one| (*one.name).cmp(name))
    }

    fn get(&self, name: &str) -> Option<&Arc<Named>> {
        self.place(name).ok().map(|place| &self.0[place])
    }

    /// Takes resources, which are in order.
    fn set(&mut self, set: &[Arc<Named>]) {
        if set.len() > 16 {
            let old = std::mem::take(&mut self.0);
            self.0 = merged(old, set);
            return;
        }
        for one in set {
            match self.place(&one.name) {
                Ok(place) => self.0[place] = one.clone(),
                Err(place) => self.0.insert(place, one.clone()),
            }
        }
    }

    /// Drops names, which are in order.
    fn remove(&mut self, names: &[String]) {
        if !names.is_empty() {
            self.0.retain(|one| names.binary_search_by(|name| name.as_str().cmp(&one.name)).is_err());
        }
    }
}

/// Both, in order; of one name the new one.
fn merged(old: Vec<Arc<Named>>, new: &[Arc<Named>]) -> Vec<Arc<Named>> {
    let mut all = Vec::with_capacity(old.len() + new.len());
    let mut old = old.into_iter().peekable();
    for one in new {
        while let Some(before) = old.next_if(|old| old.name < one.name) {
            all.push(before);
        }
        old.next_if(|old| old.name == one.name);
        all.push(one.clone());
    }
    all.extend(old);
    all.shrink_to_fit();
    all
}
