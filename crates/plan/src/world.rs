//! Each object as last seen, by key. An object that is wrong in itself does not come in: its last good version stays. Where
//! there is none, a policy that keeps callers out comes in all the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::mesh_config::MeshConfig;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::{Problem, Severity};
use api::value::Duration;

use crate::intrinsic::{intrinsic, keeps_effect};
use crate::keys::{self, KeySource, KnownKeys};
use crate::mesh_settings::MeshSettings;

/// All objects.
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) settings: MeshSettings,
    pub(crate) domain: String,
    pub(crate) objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// What is known of the keys that tokens are checked with.
    pub(crate) keys: keys::Known,
    /// What is wrong with the newest text of an object whose last good version (if any) is in `objects`.
    pub(crate) refused: BTreeMap<ObjectKey, Vec<Problem>>,
    /// What is wrong with objects that are in effect all the same, each in itself.
    pub(crate) told: BTreeMap<ObjectKey, Vec<Problem>>,
}

/// What a source saw.
#[derive(Clone, Debug)]
pub enum Change {
    /// The object is new or other than before.
    Upsert(Box<Object>),
    /// The object is gone.
    Delete(ObjectKey),
    /// The object has a new text that cannot be read: the last good one stays.
    Reject(ObjectKey),
    /// The keys of an issuer of tokens were fetched, or could not be.
    Keys(KeySource, KnownKeys),
    /// The file of the mesh-wide settings has this text now.
    MeshConfig {
        /// All of it.
        text: String,
        /// The file's name, for problems.
        file: String,
    },
}

impl World {
    /// Without objects.
    pub fn new(mesh: MeshConfig, domain: &str) -> World {
        World {
            settings: MeshSettings::new(mesh),
            domain: domain.to_owned(),
            objects: BTreeMap::new(),
            keys: keys::Known::new(),
            refused: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// Whose mesh-wide settings count: those of the ConfigMap `istio-REVISION`, or `istio` of the default one.
    #[must_use]
    pub fn of_revision(mut self, revision: &str) -> World {
        self.settings = self.settings.of_revision(revision);
        self
    }

    /// The trust domain of the settings is the one that identities are certified for, and stays so.
    #[must_use]
    pub fn certified(mut self) -> World {
        self.settings = self.settings.certified();
        self
    }

    /// Takes a change; says whether anything changed by it.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Upsert(object) => self.upsert(*object),
            Change::Delete(key) => {
                if self.settings.is_source(&key) {
                    self.settings.forget();
                }
                let refused = self.refused.remove(&key).is_some();
                self.told.remove(&key);
                self.objects.remove(&key).is_some() || refused
            }
            Change::Reject(_) => false,
            Change::Keys(source, known) => self.keys.insert(source, known.clone()) != Some(known),
            Change::MeshConfig { text, file } => {
                let is_replaced = self.objects.values().any(|object| {
                    let has_text = matches!(&object.body, Body::ConfigMap(map) if map.data.contains_key("mesh"));
                    has_text && self.settings.is_source(&object.key())
                });
                self.settings.reread(&text, &file, is_replaced)
            }
        }
    }

    fn upsert(&mut self, object: Object) -> bool {
        let key = object.key();
        let problems = intrinsic(&object);
        if keeps_out(&problems) || is_unread(&object) {
            let before = self.objects.get(&key);
            let unprotected = is_closed(&object) && before.is_none_or(|before| is_refused(before));
            let same = before.is_some_and(|before| before.digest == object.digest && before.origin == object.origin);
            let told = self.refused.insert(key.clone(), problems.clone()) != Some(problems);
            if !unprotected {
                return told;
            }
            self.objects.insert(key, Arc::new(object));
            return told || !same;
        }
        let was_refused = self.refused.remove(&key).is_some();
        match problems.is_empty() {
            true => drop(self.told.remove(&key)),
            false => drop(self.told.insert(key.clone(), problems)),
        }
        let same = self.objects.get(&key).is_some_and(|old| {
            old.digest == object.digest
                && old.origin == object.origin
                && old.meta.creation_timestamp == object.meta.creation_timestamp
        });
        if !same && self.settings.is_source(&key) {
            self.settings.take(&object);
        }
        // Even if nothing effective changed, resource version and status are the newest.
        self.objects.insert(key, Arc::new(object));
        !same || was_refused
    }

    /// The settings.
    pub fn mesh(&self) -> &MeshConfig {
        self.settings.effective()
    }

    /// All objects in effect, by key.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// Whose keys must be fetched so that tokens can be checked, and how long that may take.
    pub fn wanted_keys(&self) -> BTreeMap<KeySource, Duration> {
        let rules = self.objects.values().filter_map(|object| match &object.body {
            Body::RequestAuthentication(spec) => Some(&spec.jwt_rules),
            _ => None,
        });
        keys::wanted(rules.flatten())
    }

    /// What is known of keys.
    pub fn known_keys(&self) -> &keys::Known {
        &self.keys
    }

    /// One object in effect.
    pub fn object(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }
}

fn keeps_out(problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.severity == Severity::Error && !keeps_effect(problem))
}

fn is_refused(object: &Object) -> bool {
    is_unread(object) || keeps_out(&intrinsic(object))
}

/// Whether the text of the object could not be read whole, which its reader has told.
fn is_unread(object: &Object) -> bool {
    matches!(&object.body, Body::AuthorizationPolicy(policy) if policy.is_unread)
}

/// Whether the object is made to keep callers out: one that is wrong is better than none, since what is wrong in it lets nobody in
/// and takes nobody's guilt away (`generate/rbac.rs`).
fn is_closed(object: &Object) -> bool {
    object.kind == Kind::AuthorizationPolicy
}
