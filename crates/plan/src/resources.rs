//! The resources of one kind for one proxy: what it shares with others, and what is its own.

use std::sync::Arc;

use crate::model::Named;

/// Resources of one kind, each name once.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// By name; the same list for all proxies that are told the same.
    shared: Arc<[Arc<Named>]>,
    /// By name; counts where a name is in both.
    own: Arc<[Arc<Named>]>,
}

impl Resources {
    /// Of two lists in the order of names.
    pub(crate) fn new(shared: Arc<[Arc<Named>]>, own: Arc<[Arc<Named>]>) -> Self {
        debug_assert!([&shared, &own].iter().all(|list| list.is_sorted_by(|one, two| one.name < two.name)));
        Self { shared, own }
    }

    /// The resource of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<Named>> {
        let find = |list: &'_ [Arc<Named>]| list.binary_search_by(|one| (*one.name).cmp(name)).ok();
        match find(&self.own) {
            Some(place) => Some(&self.own[place]),
            None => find(&self.shared).map(|place| &self.shared[place]),
        }
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Named>> {
        // The own ones are few: their places among the shared ones are looked up, the shared ones are not looked at.
        let mut at = 0;
        let before = self.own.iter().flat_map(move |one| {
            let begin = at;
            let end = begin + self.shared[begin..].partition_point(|other| other.name < one.name);
            at = end + usize::from(self.shared.get(end).is_some_and(|other| other.name == one.name));
            self.shared[begin..end].iter().chain(std::iter::once(one))
        });
        let rest = self.own.last().map_or(0, |last| self.shared.partition_point(|other| other.name <= last.name));
        before.chain(&self.shared[rest..])
    }

    /// Whether these are the very same lists, which is known without looking into them.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |one: &Arc<[Arc<Named>]>, other: &Arc<[Arc<Named>]>| {
            Arc::ptr_eq(one, other) || (one.is_empty() && other.is_empty())
        };
        same(&self.shared, &other.shared) && same(&self.own, &other.own)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.shared.is_empty()
    }
}

/// Equal resources, however they are shared.
impl PartialEq for Resources {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl FromIterator<Arc<Named>> for Resources {
    fn from_iter<I: IntoIterator<Item = Arc<Named>>>(all: I) -> Self {
        Self { shared: Arc::default(), own: ordered(all.into_iter().collect()) }
    }
}

/// In order of names; of several with one name the first counts.
pub(crate) fn ordered(mut all: Vec<Arc<Named>>) -> Arc<[Arc<Named>]> {
    all.sort_by(|one, two| one.name.cmp(&two.name));
    all.dedup_by(|later, first| later.name == first.name);
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_resources_take_the_place_of_shared_ones() {
        let one = |name: &str, version| Arc::new(Named::new(name, version, Default::default()));
        let shared: Arc<[_]> = vec![one("a", 1), one("c", 1), one("d", 1)].into();
        let resources = Resources::new(shared, ordered(vec![one("c", 2), one("b", 2), one("c", 3)]));
        let all: Vec<_> = resources.iter().map(|one| (one.name.to_string(), one.version)).collect();
        assert_eq!(all, [("a".into(), 1), ("b".into(), 2), ("c".into(), 2), ("d".into(), 1)]);
        assert_eq!((resources.get("c").unwrap().version, resources.get("d").unwrap().version), (2, 1));
        assert!(resources.get("e").is_none());
    }
}
