//! What one kind of proxy should hold now, by kind and name. Shared between all proxies for which it is the same.

use std::sync::OnceLock;

use api::xds::{KINDS, ResourceKind};
use plan::Resources;

/// Makes the resources of one kind when they are first asked for.
pub type Generate = Box<dyn Fn(ResourceKind) -> Resources + Send + Sync>;

/// What a proxy should hold.
pub struct Offer {
    generate: Generate,
    kinds: [OnceLock<Resources>; KINDS.len()],
}

impl Offer {
    /// An offer whose kinds are made on demand.
    pub fn new(generate: Generate) -> Self {
        Self { generate, kinds: Default::default() }
    }

    /// All resources of a kind.
    pub fn of(&self, kind: ResourceKind) -> &Resources {
        self.kinds[kind as usize].get_or_init(|| (self.generate)(kind))
    }
}
