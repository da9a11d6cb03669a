//! Ejection of failing hosts (Envoy outlier detection by consecutive failures). The health of a host is shared by all workers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::limits::Usage;
use crate::snapshot::cluster::Outlier;

/// What is known of one host's behaviour. Times are milliseconds on the proxy's own clock.
#[derive(Debug, Default)]
pub struct Health {
    fives: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    /// 0: not ejected.
    ejected_until: AtomicU64,
    times: AtomicU32,
}

/// What a try said about a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answered with this status.
    Status(u16),
    /// It could not be reached, or broke off.
    Local,
}

impl Health {
    /// Whether the host is out. One that has served its time comes back here.
    pub fn is_ejected(&self, now: u64, usage: &Usage) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        if until == 0 {
            return false;
        }
        if now < until {
            return true;
        }
        if self.ejected_until.compare_exchange(until, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            usage.ejected.fetch_sub(1, Ordering::AcqRel);
        }
        false
    }

    /// Takes a verdict into account; says whether it ejected the host. `hosts` is how many the cluster has.
    pub fn report(&self, verdict: Verdict, settings: &Outlier, now: u64, hosts: usize, usage: &Usage) -> bool {
        let (bad, gateway, local) = match verdict {
            Verdict::Status(status) => (status >= 500, matches!(status, 502..=504), false),
            Verdict::Local if settings.consecutive_local > 0 => (false, false, true),
            Verdict::Local => (true, true, false),
        };
        let mut eject = false;
        for (counter, hit, limit) in [
            (&self.fives, bad, settings.consecutive_5xx),
            (&self.gateway, gateway, settings.consecutive_gateway),
            (&self.local, local, settings.consecutive_local),
        ] {
            if !hit {
                // A read costs nothing; a write would make workers fight over the line.
                if counter.load(Ordering::Relaxed) != 0 && (!local || std::ptr::eq(counter, &self.local)) {
                    counter.store(0, Ordering::Relaxed);
                }
                continue;
            }
            if limit > 0 && counter.fetch_add(1, Ordering::AcqRel) + 1 >= limit {
                counter.store(0, Ordering::Relaxed);
                eject = true;
            }
        }
        eject && self.eject(settings, now, hosts, usage)
    }

    fn eject(&self, settings: &Outlier, now: u64, hosts: usize, usage: &Usage) -> bool {
        // At least one host may always go (Envoy): else the percentage would protect small clusters from any ejection.
        let most = ((hosts as u64 * u64::from(settings.max_percent) / 100) as u32).max(1);
        if usage.ejected.load(Ordering::Acquire) >= most || settings.max_percent == 0 {
            return false;
        }
        let times = self.times.fetch_add(1, Ordering::AcqRel) + 1;
        let time = settings.base_ejection.saturating_mul(times).min(settings.max_ejection).as_millis() as u64;
        if self.ejected_until.compare_exchange(0, now + time.max(1), Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        usage.ejected.fetch_add(1, Ordering::AcqRel);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn consecutive_failures_eject_and_time_brings_back() {
        let settings = Outlier {
            consecutive_5xx: 3,
            consecutive_gateway: 0,
            consecutive_local: 0,
            interval: Duration::from_secs(1),
            base_ejection: Duration::from_millis(100),
            max_ejection: Duration::from_millis(150),
            max_percent: 50,
        };
        let (health, other, usage) = (Health::default(), Health::default(), Usage::default());
        let bad = |health: &Health, now| health.report(Verdict::Status(500), &settings, now, 2, &usage);
        assert!(!bad(&health, 0) && !bad(&health, 0));
        health.report(Verdict::Status(200), &settings, 0, 2, &usage);
        assert!(!bad(&health, 0) && !health.report(Verdict::Local, &settings, 0, 2, &usage) && bad(&health, 0));
        assert!(health.is_ejected(99, &usage));
        for _ in 0..3 {
            assert!(!bad(&other, 10), "half of the hosts are out already");
        }
        assert!(!health.is_ejected(100, &usage));
        assert!(!bad(&health, 200) && !bad(&health, 200) && bad(&health, 200));
        assert!(
            health.is_ejected(349, &usage) && !health.is_ejected(350, &usage),
            "longer the second time, but bounded"
        );
    }
}
