//! When to build: pure. A lone change is built at once after a short quiet time, a stream of changes now and then.

use std::time::{Duration, Instant};

/// A batch is closed when nothing came for so long. Sources gather bursts of their own, so this is short.
const QUIET: Duration = Duration::from_millis(2);
/// A batch is closed after so long at the latest.
const LONGEST: Duration = Duration::from_millis(100);

/// The arrivals of one batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Debounce {
    first: Option<Instant>,
    last: Option<Instant>,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing has come: wait for something.
    Idle,
    /// Wait so long for more.
    Wait(Duration),
    /// Build; the first change came then.
    Build(Instant),
}

impl Debounce {
    /// A change came.
    pub fn arrived(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    /// What to do now.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Verdict::Idle };
        let due = (last + QUIET).min(first + LONGEST);
        match due.checked_duration_since(now) {
            Some(pause) if !pause.is_zero() => Verdict::Wait(pause),
            _ => Verdict::Build(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_change_waits_for_quiet_and_a_stream_does_not_wait_for_ever() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        assert_eq!(debounce.verdict(start), Verdict::Idle);
        debounce.arrived(start);
        assert_eq!(debounce.verdict(start), Verdict::Wait(QUIET));
        assert_eq!(debounce.verdict(start + QUIET), Verdict::Build(start));
        for step in 0..200 {
            debounce.arrived(start + Duration::from_millis(step));
        }
        assert_eq!(debounce.verdict(start + LONGEST), Verdict::Build(start));
    }
}
