//! One kind's watch: which objects of it, in which version, and what of them is kept.

use std::collections::BTreeSet;
use std::pin::pin;

use api::decode::{self, Decoded};
use api::object::{KINDS, Kind, ObjectKey};
use futures_util::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Error, watcher};
use kube::{Client, ResourceExt};
use plan::Change;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

use super::Event;
use super::server::Pauses;
use super::tags::REVISION;

/// Objects that a list brings at a time.
const PAGE: u32 = 500;
/// Secrets that hold no certificate: Helm's releases are large, and tokens are nobody's business.
const SECRETS: &str =
    "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,type!=kubernetes.io/dockerconfigjson";

/// Which objects of a kind are followed.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// Kind.
    pub(super) kind: Kind,
    /// Only this namespace.
    namespace: Option<String>,
    /// Only these, by field.
    fields: Option<&'static str>,
    /// Not those that are labelled for another revision of the control plane.
    revisions: Revisions,
}

/// Under which names objects are for this control plane.
#[derive(Clone, Debug)]
pub(super) struct Revisions {
    own: String,
    /// Tags that stand for it now; `None` while they are not known.
    tags: watch::Receiver<Option<BTreeSet<String>>>,
}

impl Revisions {
    /// A revision and its tags.
    pub(super) fn new(own: String, tags: watch::Receiver<Option<BTreeSet<String>>>) -> Self {
        Self { own, tags }
    }

    /// Whether an object with this label is ours; one without is everybody's (Istio `LabelsInRevisionOrTags`).
    fn include(&self, label: Option<&str>) -> bool {
        label.is_none_or(|label| {
            label == self.own || self.tags.borrow().as_ref().is_some_and(|tags| tags.contains(label))
        })
    }
}

/// Everything that is planned from. `Endpoints` are left out: the API server mirrors them as EndpointSlices.
pub(super) fn selections(root_namespace: &str, revisions: &Revisions) -> Vec<Selection> {
    let istio = KINDS.iter().filter(|row| row.strict).map(|row| row.kind);
    let core =
        [Kind::Node, Kind::Namespace, Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Secret, Kind::ConfigMap];
    istio
        .chain(core)
        .map(|kind| Selection {
            kind,
            namespace: (kind == Kind::ConfigMap).then(|| root_namespace.to_owned()),
            fields: (kind == Kind::Secret).then_some(SECRETS),
            revisions: revisions.clone(),
        })
        .collect()
}

/// Follows one kind until nobody listens. Whose an object is, is known only with the tags, and other tags make others ours: then
/// the kind is listed anew. A version that the API server does not serve is followed by the next older one.
pub(super) async fn follow(client: Client, mut selection: Selection, events: Sender<Event>) {
    let row = selection.kind.row();
    if row.strict && selection.revisions.tags.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut versions = row.versions.iter().cycle().peekable();
    while let Some(version) = versions.peek().copied() {
        let resource = ApiResource {
            group: row.group.to_owned(),
            version: (*version).to_owned(),
            api_version: if row.group.is_empty() { (*version).to_owned() } else { format!("{}/{version}", row.group) },
            kind: row.name.to_owned(),
            plural: row.plural.to_owned(),
        };
        let api: Api<DynamicObject> = match &selection.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        match watch(api, &resource, &mut selection, &events).await {
            Ended::Listener => return,
            Ended::Tags => continue,
            Ended::Version => versions.next(),
        };
        // Every version was asked for: the kind is not installed. It may be later.
        if version == row.versions.last().unwrap_or(version) {
            let listed = events.send(Event::Listed(selection.kind, BTreeSet::new())).await;
            if listed.is_err() || events.send(Event::Unknown(selection.kind)).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    /// Nobody listens.
    Listener,
    /// The API server does not serve this kind in this version.
    Version,
    /// The tags of this revision are others.
    Tags,
}

async fn watch(
    api: Api<DynamicObject>,
    resource: &ApiResource,
    selection: &mut Selection,
    events: &Sender<Event>,
) -> Ended {
    let mut config = Config::default().page_size(PAGE);
    if let Some(fields) = selection.fields {
        config = config.fields(fields);
    }
    let mut stream = pin!(watcher(api, config).backoff(Pauses::default()));
    let mut listed = BTreeSet::new();
    let mut broken = false;
    let heeds_tags = selection.kind.row().strict;
    let mut tags = selection.revisions.tags.clone();
    tags.mark_unchanged();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            Ok(()) = tags.changed(), if heeds_tags => return Ended::Tags,
        };
        let Some(event) = event else { break };
        let told = match event {
            Ok(event) => {
                if broken {
                    broken = false;
                    tracing::info!(kind = resource.kind, "followed again");
                }
                match event {
                    watcher::Event::Init => {
                        listed.clear();
                        continue;
                    }
                    watcher::Event::InitDone => Event::Listed(selection.kind, std::mem::take(&mut listed)),
                    watcher::Event::InitApply(object) => {
                        let event = read(object, resource, selection);
                        if let Event::Seen(key, ..) = &event {
                            listed.insert(key.clone());
                        }
                        event
                    }
                    watcher::Event::Apply(object) => read(object, resource, selection),
                    watcher::Event::Delete(object) => Event::Gone(key(&object, selection.kind)),
                }
            }
            Err(error) if not_served(&error, selection.kind) => return Ended::Version,
            Err(error) if status(&error).is_some_and(|status| status.code == 410) => {
                tracing::info!(kind = resource.kind, "the watch is too old for the API server, all are listed anew");
                continue;
            }
            Err(error) => {
                // Said once for each time that it breaks, not for each attempt.
                if !broken {
                    broken = true;
                    tracing::warn!(kind = resource.kind, %error, "cannot be followed for now; what was seen last stays in effect");
                }
                continue;
            }
        };
        if events.send(told).await.is_err() {
            return Ended::Listener;
        }
    }
    Ended::Listener
}

/// What the API server said.
fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::InitialListFailed(kube::Error::Api(status)) | Error::WatchStartFailed(kube::Error::Api(status)) => {
            Some(status)
        }
        Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// Whether there is nothing to wait for. Of nodes only their places are read: who may not see them goes on without.
fn not_served(error: &Error, kind: Kind) -> bool {
    status(error).is_some_and(|status| status.code == 404 || (status.code == 403 && kind == Kind::Node))
}

fn key(object: &DynamicObject, kind: Kind) -> ObjectKey {
    ObjectKey { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

/// Reads an object through the same door as files.
fn read(object: DynamicObject, resource: &ApiResource, selection: &Selection) -> Event {
    let kind = selection.kind;
    let key = key(&object, kind);
    let meant = object.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION)).map(String::as_str);
    if kind.row().strict && !selection.revisions.include(meant) {
        return Event::Gone(key);
    }
    let Decoded { objects, problems, rejected } = decode::object(&document(object, resource, kind), "", "default");
    let taken = objects.into_iter().map(|object| Change::Upsert(Box::new(object)));
    let changes = taken.chain(rejected.into_iter().map(Change::Reject)).collect();
    Event::Seen(key, changes, problems)
}

/// The object as a document, without what is never looked at: who wrote which field, and most of a pod.
fn document(object: DynamicObject, resource: &ApiResource, kind: Kind) -> Value {
    let mut metadata = serde_json::to_value(&object.metadata).unwrap_or_default();
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    let mut document = match object.data {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    match kind {
        Kind::Pod => prune_pod(&mut document),
        Kind::Node => prune_node(&mut document, &mut metadata),
        _ => {}
    }
    document.insert("apiVersion".to_owned(), json!(resource.api_version));
    document.insert("kind".to_owned(), json!(resource.kind));
    document.insert("metadata".to_owned(), metadata);
    Value::Object(document)
}

/// Keeps where the node is. The rest is large and changes by itself.
fn prune_node(node: &mut Map<String, Value>, metadata: &mut Value) {
    node.clear();
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.retain(|field, _| matches!(field.as_str(), "name" | "labels" | "uid" | "resourceVersion"));
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.retain(|key, _| key.starts_with("topology."));
        }
    }
}

/// Keeps what `api::kube::Pod` reads. A pod's status changes often for reasons that concern nobody here; without them those
/// changes are none.
fn prune_pod(pod: &mut Map<String, Value>) {
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|field, _| {
            matches!(
                field.as_str(),
                "serviceAccountName" | "nodeName" | "hostNetwork" | "containers" | "securityContext" | "readinessGates"
            )
        });
        for container in spec.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.retain(|field, _| matches!(field.as_str(), "name" | "ports" | "securityContext"));
            }
        }
    }
    if let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|field, _| matches!(field.as_str(), "podIP" | "podIPs" | "phase" | "conditions"));
        if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
            conditions.retain(|condition| condition["type"] == "Ready" || condition["type"] == "ContainersReady");
            for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                condition.retain(|field, _| matches!(field.as_str(), "type" | "status"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: Kind) -> ApiResource {
        let row = kind.row();
        ApiResource {
            group: row.group.into(),
            version: row.storage.into(),
            api_version: row.storage.into(),
            kind: row.name.into(),
            plural: row.plural.into(),
        }
    }

    #[test]
    fn a_pod_whose_probes_were_counted_is_the_same_pod() {
        let pod = |transition: &str, image: &str| {
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "user-1", "namespace": "shop", "labels": {"app": "user"}, "managedFields": [{"manager": transition}]},
                "spec": {"serviceAccountName": "user", "containers": [{"name": "app", "image": image, "ports": [{"name": "http", "containerPort": 80}]}]},
                "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": transition}]},
            }))
            .unwrap();
            let Event::Seen(key, changes, problems) = read(object, &resource(Kind::Pod), &selection(Kind::Pod)) else {
                panic!("not seen")
            };
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!((key.namespace.as_str(), key.name.as_str()), ("shop", "user-1"));
            let [Change::Upsert(object)] = changes.as_slice() else { panic!("{changes:?}") };
            object.clone()
        };
        let (one, other) = (pod("2026-01-01T00:00:00Z", "a"), pod("2026-01-02T00:00:00Z", "b"));
        assert_eq!(one.digest, other.digest);
        let api::object::Body::Pod(body) = one.body else { panic!("not a pod") };
        assert_eq!((body.status.pod_ip.as_str(), body.spec.containers[0].ports[0].container_port), ("10.0.0.1", 80));
    }

    fn selection(kind: Kind) -> Selection {
        let tags = BTreeSet::from(["prod".to_owned()]);
        let revisions = Revisions::new("default".to_owned(), watch::channel(Some(tags)).1);
        selections("istio-system", &revisions).into_iter().find(|selection| selection.kind == kind).unwrap()
    }

    #[test]
    fn an_object_for_another_revision_is_not_there_and_one_for_a_tag_of_ours_is() {
        let row = ApiResource { api_version: "networking.istio.io/v1".into(), ..resource(Kind::VirtualService) };
        let seen = |labels: Value| {
            let object: DynamicObject = serde_json::from_value(json!({
                "metadata": {"name": "a", "namespace": "shop", "labels": labels}, "spec": {"hosts": ["a"]},
            }))
            .unwrap();
            matches!(read(object, &row, &selection(Kind::VirtualService)), Event::Seen(..))
        };
        assert!(seen(json!({})) && seen(json!({REVISION: "default"})) && seen(json!({REVISION: "prod"})));
        assert!(!seen(json!({REVISION: "canary"})));
    }

    #[test]
    fn a_node_whose_state_was_told_is_the_same_node() {
        let node = |time: &str| {
            let object: DynamicObject = serde_json::from_value(json!({
                "metadata": {
                    "name": "n", "labels": {"topology.kubernetes.io/zone": "a", "kubernetes.io/os": "linux"},
                    "annotations": {"state": time},
                },
                "spec": {"podCIDR": time}, "status": {"conditions": [{"lastHeartbeatTime": time}]},
            }))
            .unwrap();
            let Event::Seen(_, changes, _) = read(object, &resource(Kind::Node), &selection(Kind::Node)) else {
                panic!("not seen")
            };
            let [Change::Upsert(object)] = changes.as_slice() else { panic!("{changes:?}") };
            object.clone()
        };
        assert_eq!(node("1").digest, node("2").digest);
        assert_eq!(node("1").meta.labels.len(), 1);
    }

    #[test]
    fn a_broken_object_is_a_problem_of_its_own() {
        let object: DynamicObject = serde_json::from_value(json!({
            "metadata": {"name": "bad", "namespace": "shop"}, "spec": {"hosts": 7},
        }))
        .unwrap();
        let row = ApiResource { api_version: "networking.istio.io/v1".into(), ..resource(Kind::VirtualService) };
        let Event::Seen(_, changes, problems) = read(object, &row, &selection(Kind::VirtualService)) else {
            panic!("not seen")
        };
        assert!(!problems.is_empty());
        assert!(changes.iter().all(|change| matches!(change, Change::Reject(_))), "{changes:?}");
    }
}
