//! Circuit breakers. They are counted over all workers, but only where a limit is set: no shared counter is touched otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::snapshot::cluster::Limits;

/// The largest limit stands for none.
pub const UNLIMITED: u32 = u32::MAX;

/// What is in use of one cluster, by all workers.
#[derive(Debug, Default)]
pub struct Usage {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    /// Hosts that are ejected.
    pub ejected: AtomicU32,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests under way.
    Requests,
    /// Retries under way.
    Retries,
}

/// One unit in use; dropping gives it back.
#[derive(Debug)]
pub struct Permit(Option<(Arc<Usage>, Limited)>);

impl Usage {
    fn counter(&self, limited: Limited) -> &AtomicU32 {
        match limited {
            Limited::Connections => &self.connections,
            Limited::Pending => &self.pending,
            Limited::Requests => &self.requests,
            Limited::Retries => &self.retries,
        }
    }

    /// Takes a unit, `None` if the limit is reached.
    pub fn take(self: &Arc<Self>, limited: Limited, limits: &Limits) -> Option<Permit> {
        let limit = match limited {
            Limited::Connections => limits.connections,
            Limited::Pending => limits.pending,
            Limited::Requests if limits.budget.is_none() && limits.requests == UNLIMITED => return Some(Permit(None)),
            Limited::Requests => limits.requests,
            Limited::Retries => match limits.budget {
                None => limits.retries,
                Some(budget) => {
                    let active = f64::from(self.requests.load(Ordering::Relaxed));
                    ((active * budget.percent / 100.0) as u32).max(budget.min_concurrency)
                }
            },
        };
        if limit == UNLIMITED {
            return Some(Permit(None));
        }
        let counter = self.counter(limited);
        let taken = counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < limit).then(|| used + 1));
        taken.ok().map(|_| Permit(Some((Arc::clone(self), limited))))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((usage, limited)) = self.0.take() {
            usage.counter(limited).fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::cluster::Budget;

    #[test]
    fn limits_hold_and_units_come_back() {
        let limits = Limits { connections: 1, pending: UNLIMITED, requests: 2, retries: 0, budget: None };
        let usage = Arc::new(Usage::default());
        let first = usage.take(Limited::Connections, &limits).unwrap();
        assert!(usage.take(Limited::Connections, &limits).is_none());
        drop(first);
        assert!(usage.take(Limited::Connections, &limits).is_some());
        assert!(usage.take(Limited::Retries, &limits).is_none());
        let budget = Limits { budget: Some(Budget { percent: 50.0, min_concurrency: 1 }), ..limits };
        let _requests =
            [usage.take(Limited::Requests, &budget).unwrap(), usage.take(Limited::Requests, &budget).unwrap()];
        let retry = usage.take(Limited::Retries, &budget).unwrap();
        assert!(usage.take(Limited::Retries, &budget).is_none());
        drop(retry);
    }
}
