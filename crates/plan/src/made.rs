//! Resources, and pieces of resources, made before, by the digest of what they were made from. A generator is a function of that digest alone, so
//! proxies share what is equal for them, and a new snapshot makes only what changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::model::{Named, digest_of};

/// A list of resources, or the place where one is being made: whoever else wants it waits instead of making it too.
type Place = Arc<OnceLock<Arc<[Arc<Named>]>>>;

/// What was made for the current and the previous snapshot.
#[derive(Debug, Default)]
pub(crate) struct Made(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, Place>,
    old: HashMap<u64, Place>,
    /// Parts of messages, by the digest of what they were made from, or of their bytes.
    young_pieces: HashMap<u64, Arc<[u8]>>,
    old_pieces: HashMap<u64, Arc<[u8]>>,
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

    /// Bytes that were made of this digest, or are made now. Two may make the same at the same time; one of it is kept.
    pub(crate) fn piece(&self, digest: u64, make: impl FnOnce() -> Vec<u8>) -> Arc<[u8]> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().known_piece(digest) {
            return known;
        }
        let made = self.same(make());
        lock().young_pieces.entry(digest).or_insert(made).clone()
    }

    /// These bytes, in the place where equal ones are already.
    pub(crate) fn same(&self, bytes: Vec<u8>) -> Arc<[u8]> {
        let digest = digest_of(&("bytes", &bytes));
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match generations.known_piece(digest) {
            Some(known) => known,
            None => generations.young_pieces.entry(digest).or_insert(bytes.into()).clone(),
        }
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
        generations.old_pieces = std::mem::take(&mut generations.young_pieces);
    }
}

impl Generations {
    fn known_piece(&mut self, digest: u64) -> Option<Arc<[u8]>> {
        if let Some(known) = self.young_pieces.get(&digest) {
            return Some(known.clone());
        }
        let known = self.old_pieces.remove(&digest)?;
        self.young_pieces.insert(digest, known.clone());
        Some(known)
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
