//! The resources held, as bytes with a version, by kind and name.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::xds::{Any, KINDS, ResourceKind};

/// One resource as the server sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// The server's version of it: equal versions of one name are equal resources.
    pub version: String,
    /// The message.
    pub body: Arc<Any>,
}

/// A refused resource: the last good one of its name stays in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Kind.
    pub kind: ResourceKind,
    /// Name.
    pub name: String,
    /// One sentence: what is wrong in it.
    pub reason: String,
}

/// All resources held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    by_kind: [BTreeMap<String, Resource>; KINDS.len()],
    told: [bool; KINDS.len()],
}

impl ResourceSet {
    /// The resources of one kind, by name.
    pub fn of(&self, kind: ResourceKind) -> &BTreeMap<String, Resource> {
        &self.by_kind[kind as usize]
    }

    /// Whether something of this kind is held, or the server has told that there is nothing.
    pub fn is_told(&self, kind: ResourceKind) -> bool {
        self.told[kind as usize] || !self.of(kind).is_empty()
    }

    /// The server has told of this kind, and all of that is held. Returns whether that is new.
    pub fn tell(&mut self, kind: ResourceKind) -> bool {
        !std::mem::replace(&mut self.told[kind as usize], true)
    }

    /// The same, to change.
    pub fn of_mut(&mut self, kind: ResourceKind) -> &mut BTreeMap<String, Resource> {
        &mut self.by_kind[kind as usize]
    }
}
