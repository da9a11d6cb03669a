//! Resources made before, by the digest of what they were made from. A generator is a function of that digest alone, so
//! proxies share what is equal for them, and a new snapshot makes only what changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::model::Named;

/// A list of resources, or the place where one is being made: whoever else wants it waits instead of making it too.
type Place = Arc<OnceLock<Arc<[Arc<Named>]>>>;

/// What was made for the current and the previous snapshot.
#[derive(Debug, Default)]
pub(crate) struct Made(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, Place>,
    old: HashMap<u64, Place>,
    /// How much the generation before held.
    at_first: usize,
}

impl Made {
    /// What was made of this digest, or makes it. The lock is not held meanwhile.
    pub(crate) fn get(&self, digest: u64, make: impl FnOnce() -> Vec<Arc<Named>>) -> Arc<[Arc<Named>]> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match generations.young.get(&digest) {
            Some(place) => place.clone(),
            None => {
                let place = generations.old.remove(&digest).unwrap_or_default();
                generations.young.insert(digest, place.clone());
                place
            }
        };
        drop(generations);
        place.get_or_init(|| make().into()).clone()
    }

    /// The same, if much has come since the last time.
    pub(crate) fn next_if_large(&self) {
        let generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = generations.young.len() > 2 * generations.at_first.max(1024);
        drop(generations);
        if grown {
            self.next();
        }
    }

    /// A new snapshot begins: what the last one did not use is forgotten.
    pub(crate) fn next(&self) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.at_first = generations.young.len();
        generations.old = std::mem::take(&mut generations.young);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_kept_and_what_is_not_is_forgotten() {
        let made = Made::default();
        let named = |version| vec![Arc::new(Named::new("a", version, Default::default()))];
        assert_eq!(made.get(1, || named(1))[0].version, 1);
        made.next();
        assert_eq!(made.get(1, || named(2))[0].version, 1);
        made.next();
        made.next();
        assert_eq!(made.get(1, || named(3))[0].version, 3);
    }
}
