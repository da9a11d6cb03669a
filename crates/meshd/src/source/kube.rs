//! Objects of a cluster: one watch a kind, all of them in one stream of batches. A watch that breaks is begun again from a
//! whole list; until then what was seen last stays in effect, however long the API server is away.

pub mod server;
mod tags;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;

use api::object::{Kind, ObjectKey};
use api::problem::Problem;
use kube::Client;
use plan::Change;
use tokio::sync::{mpsc, watch};

use super::Batch;
use watched::{Revisions, follow, selections};

/// Most events that one batch takes.
const MOST: usize = 4_096;

/// What one watch tells.
enum Event {
    /// An object, as the API server has it now.
    Seen(ObjectKey, Vec<Change>, Vec<Problem>),
    /// It is gone.
    Gone(ObjectKey),
    /// All objects of a kind have been told; those that were known and are not among them are gone.
    Listed(Kind, BTreeSet<ObjectKey>),
    /// The API server does not know the kind (its CustomResourceDefinition is not installed).
    Unknown(Kind),
}

/// Follows all kinds until nobody listens. The first batch comes when every kind has been listed once: nothing is planned
/// from a half.
pub async fn run(client: Client, root_namespace: String, revision: String, batches: mpsc::Sender<Batch>) {
    let (send, mut events) = mpsc::channel(MOST);
    let (tell, tags) = watch::channel(None);
    tokio::spawn(tags::follow(client.clone(), revision.clone(), tell));
    let selections = selections(&root_namespace, &Revisions::new(revision, tags));
    let mut unlisted: BTreeSet<Kind> = selections.iter().map(|selection| selection.kind).collect();
    for selection in selections {
        tokio::spawn(follow(client.clone(), selection, send.clone()));
    }
    drop(send);
    let mut seen = Seen::default();
    let mut gathered = Vec::new();
    let mut changes = Vec::new();
    loop {
        if events.recv_many(&mut gathered, MOST).await == 0 {
            return;
        }
        for event in gathered.drain(..) {
            if let Event::Listed(kind, _) | Event::Unknown(kind) = &event
                && unlisted.remove(kind)
            {
                tracing::debug!(%kind, left = unlisted.len(), "listed");
            }
            seen.take(event, &mut changes);
        }
        if unlisted.is_empty() {
            let problems = seen.problems.values().flatten().cloned().collect();
            if batches.send(Batch { changes: take(&mut changes), problems }).await.is_err() {
                return;
            }
        }
    }
}

/// Which objects are known, and what was wrong with reading them.
#[derive(Default)]
struct Seen {
    keys: BTreeSet<ObjectKey>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
}

impl Seen {
    fn take(&mut self, event: Event, changes: &mut Vec<Change>) {
        match event {
            Event::Seen(key, told, problems) => {
                changes.extend(told);
                if problems.is_empty() {
                    self.problems.remove(&key);
                } else {
                    self.problems.insert(key.clone(), problems);
                }
                self.keys.insert(key);
            }
            Event::Gone(key) => self.forget(key, changes),
            Event::Listed(kind, listed) => {
                let gone: Vec<ObjectKey> =
                    self.keys.iter().filter(|key| key.kind == kind && !listed.contains(key)).cloned().collect();
                gone.into_iter().for_each(|key| self.forget(key, changes));
            }
            Event::Unknown(_) => {}
        }
    }

    fn forget(&mut self, key: ObjectKey, changes: &mut Vec<Change>) {
        self.problems.remove(&key);
        if self.keys.remove(&key) {
            changes.push(Change::Delete(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::Service, namespace: "shop".into(), name: name.into() }
    }

    #[test]
    fn what_is_missing_from_a_new_list_is_gone() {
        let mut seen = Seen::default();
        let mut changes = Vec::new();
        for name in ["a", "b"] {
            seen.take(Event::Seen(key(name), Vec::new(), Vec::new()), &mut changes);
        }
        seen.take(Event::Listed(Kind::Service, BTreeSet::from([key("b")])), &mut changes);
        seen.take(Event::Listed(Kind::Pod, BTreeSet::new()), &mut changes);
        assert!(matches!(changes.as_slice(), [Change::Delete(gone)] if *gone == key("a")), "{changes:?}");
        seen.take(Event::Gone(key("a")), &mut changes);
        assert_eq!(changes.len(), 1, "an object goes once");
    }
}
