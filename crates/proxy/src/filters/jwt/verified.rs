//! Tokens that were good lately: clients send the same token with each request, and to check a signature costs more than all else
//! that is done with a request. Each worker thread remembers its own, a bounded number of them.

use std::cell::RefCell;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::token::Fault;

/// Half of the tokens that a thread remembers.
const HALF: usize = 128;

/// What a good token says, as it is told.
#[derive(Debug)]
pub(super) struct Good {
    /// Its time; seconds since 1970.
    pub(super) times: Times,
    /// Headers for the application.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// What is said of the token, for filters behind.
    pub(super) header: Option<Arc<Value>>,
    /// What it says, for filters behind.
    pub(super) claims: Option<Arc<Value>>,
}

/// When a token is good; 0 where it does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// From then on.
    pub(super) from: u64,
    /// Until then.
    pub(super) until: u64,
}

impl Times {
    /// Whether it is now, give or take `skew` seconds.
    pub(super) fn check(self, now: u64, skew: u64) -> Result<(), Fault> {
        if now.saturating_add(skew) < self.from {
            return Err(Fault::NotYetValid);
        }
        if self.until > 0 && now > self.until.saturating_add(skew) {
            return Err(Fault::Expired);
        }
        Ok(())
    }
}

/// Who found tokens good: an issuer as it is configured, wherever that is. With other keys it is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Judge(u128);

impl Judge {
    /// By the bytes of its configuration.
    pub(super) fn of(configuration: &[u8]) -> Judge {
        Judge(xxhash_rust::xxh3::xxh3_128(configuration))
    }

    /// The token, if it was found good.
    pub(super) fn recall(self, token: &str) -> Option<Arc<Good>> {
        MEMORY.with_borrow_mut(|memory| memory.recall(self, token))
    }

    /// Remembers a token.
    pub(super) fn remember(self, token: String, good: Arc<Good>) {
        MEMORY.with_borrow_mut(|memory| memory.remember(self, token, good));
    }
}

/// Tokens by text, whole, so that none is taken for another. What was not asked for while the younger half filled is forgotten.
struct Memory {
    younger: HashMap<String, (Judge, Arc<Good>)>,
    older: HashMap<String, (Judge, Arc<Good>)>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::new(Memory { younger: HashMap::new(), older: HashMap::new() });
}

impl Memory {
    fn recall(&mut self, judge: Judge, token: &str) -> Option<Arc<Good>> {
        let known = |half: &HashMap<String, (Judge, Arc<Good>)>| {
            half.get(token).filter(|(by, _)| *by == judge).map(|(_, good)| Arc::clone(good))
        };
        if let Some(good) = known(&self.younger) {
            return Some(good);
        }
        let good = known(&self.older)?;
        let (text, entry) = self.older.remove_entry(token)?;
        self.insert(text, entry);
        Some(good)
    }

    fn remember(&mut self, judge: Judge, token: String, good: Arc<Good>) {
        self.insert(token, (judge, good));
    }

    fn insert(&mut self, token: String, entry: (Judge, Arc<Good>)) {
        if self.younger.len() >= HALF {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(token, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_is_remembered() {
        let good =
            || Arc::new(Good { times: Times { from: 0, until: 0 }, headers: Vec::new(), header: None, claims: None });
        let (one, two) = (Judge::of(b"one"), Judge::of(b"two"));
        one.remember("a".into(), good());
        assert!(one.recall("a").is_some());
        assert!(two.recall("a").is_none(), "another does not know it");
        for number in 0..10 * HALF {
            one.remember(number.to_string(), good());
            assert!(one.recall("a").is_some(), "what is asked for stays");
        }
        assert!(one.recall("0").is_none());
        assert!(one.recall(&(10 * HALF - 1).to_string()).is_some());
        let count = MEMORY.with_borrow(|memory| memory.younger.len() + memory.older.len());
        assert!(count <= 2 * HALF, "{count}");
    }

    #[test]
    fn times_have_a_grace() {
        let times = Times { from: 1000, until: 2000 };
        for (now, right) in [(939, Err(Fault::NotYetValid)), (940, Ok(())), (2060, Ok(())), (2061, Err(Fault::Expired))]
        {
            assert_eq!(times.check(now, 60), right, "{now}");
        }
        let without = Times { from: 0, until: 0 };
        assert_eq!(without.check(u64::MAX, 60), Ok(()), "a token without an end does not end");
    }
}
