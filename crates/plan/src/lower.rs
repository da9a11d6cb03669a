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

    pub(crate) fn within(&self, kind: Kind, namespace: &'a str) -> &[&'a Arc<Object>] {
        self.map.get(&(kind, namespace)).map_or(&[], Vec::as_slice)
    }
}

/// Makes the registry.
pub(crate) fn registry(world: &World, by_kind: &ByKind<'_>) -> Registry {
    let mut registry = Registry { workloads: workload::all(by_kind), ..Registry::default() };
    registry.allocated = allocate::all(by_kind, &mut registry.problems);
    service::all(world, by_kind, &mut registry);
    registry
}
