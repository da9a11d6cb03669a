//! Objects become the model: workloads first, then services with their endpoints.

mod workload;
mod allocate;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::object::{Kind, Object};
use api::problem::Problem;

use crate::model::{Digested, Service, Workload};
use crate::world::World;

pub(crate) use allocate::Allocated;
pub(crate) use service::Memory;
pub(crate) use workload::locality_parts;

/// The registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    /// By host, then by the order in which they count for a proxy of no special namespace.
    pub(crate) services: Vec<Digested<Service>>,
    /// All that runs.
    pub(crate) workloads: Vec<Arc<Workload>>,
    /// Addresses that the mesh gives to hosts of ServiceEntries.
    pub(crate) allocated: Allocated,
    pub(crate) problems: Vec<Problem>,
    /// For the next time.
    pub(crate) memory: Memory,
}

/// Objects by kind and namespace, so that nobody walks all of them.
pub(crate) struct ByKind<'a> {
    map: BTreeMap<(Kind, &'a str), Vec<&'a Arc<Object>>>,
}

impl<'a> ByKind<'a> {
    pub(crate) fn of(world: &'a World) -> Self {
        let mut map: BTreeMap<(Kind, &str), Vec<&Arc<Object>>> = BTreeMap::new();
        for object in world.objects.values() {
            map.entry((object.kind, object.meta.namespace.as_str())).or_default().push(object);
        }
        Self { map }
    }

    pub(crate) fn all(&self, kind: Kind) -> impl Iterator<Item = &'a Arc<Object>> {
        self.map
            .range((kind, "")..)
            .take_while(move |((of, _), _)| *of == kind)
            .flat_map(|(_, objects)| objects.iter().copied())
    }

    /// The object of a name: those of a kind and namespace are in the order of their names, as in the world.
    pub(crate) fn named(&self, kind: Kind, namespace: &str, name: &str) -> Option<&'a Arc<Object>> {
        let all = self.map.get(&(kind, namespace))?;
        all.binary_search_by(|one| one.meta.name.as_str().cmp(name)).ok().map(|place| all[place])
    }
}

/// Makes the registry. `before` is the memory of the registry before.
pub(crate) fn registry(world: &World, by_kind: &ByKind<'_>, before: Option<&Memory>) -> Registry {
    let mut registry = Registry { workloads: workload::all(by_kind), ..Registry::default() };
    registry.allocated = allocate::all(by_kind, &mut registry.problems);
    service::all(world, by_kind, before, &mut registry);
    registry
}
