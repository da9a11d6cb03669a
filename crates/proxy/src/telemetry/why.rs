//! The last failures of this proxy with their explanation, for `/why`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use api::debug::Why;

/// How many are kept.
const KEPT: usize = 256;

/// The last failures. Failures are rare enough for a lock.
#[derive(Debug, Default)]
pub struct Failures {
    last: Mutex<VecDeque<Why>>,
}

impl Failures {
    /// Adds one; the oldest goes.
    pub fn add(&self, why: Why) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(why);
    }

    /// Those of one request.
    pub fn of(&self, request_id: &str) -> Vec<Why> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|why| why.request_id == request_id)
            .cloned()
            .collect()
    }

    /// The newest first.
    pub fn last(&self, count: usize) -> Vec<Why> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().take(count).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_and_the_newest_comes_first() {
        let failures = Failures::default();
        for number in 0..300 {
            failures.add(Why { request_id: number.to_string(), ..Why::default() });
        }
        assert!(failures.of("0").is_empty());
        assert_eq!(failures.of("299").len(), 1);
        assert_eq!(failures.last(2).iter().map(|why| why.request_id.as_str()).collect::<Vec<_>>(), ["299", "298"]);
        assert_eq!(failures.last(1000).len(), KEPT);
    }
}
