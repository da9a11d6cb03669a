//! Which priority of a cluster's hosts a request goes to, and whether their health still counts (Envoy's priority levels,
//! overprovisioning and panic threshold).

/// Hosts of one priority.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// All.
    pub hosts: usize,
    /// Those that discovery calls healthy and that are not ejected.
    pub healthy: usize,
}

/// A priority's part of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its share, relative to those of the others.
    pub weight: u64,
    /// Too few of its hosts are healthy: all are used.
    pub panics: bool,
}

/// The parts of the priorities, first priority first. `overprovisioning` is a percentage: with 140, a priority takes all requests
/// until fewer than 72 of 100 hosts are healthy; what it cannot take goes on to the next. Priorities panic, with fewer than
/// `panic_threshold` percent of healthy hosts, only if all together are short of healthy hosts; if every one panics, requests
/// are shared by numbers of hosts.
pub fn parts<L>(levels: L, overprovisioning: u32, panic_threshold: u8) -> impl Iterator<Item = Part>
where
    L: Iterator<Item = Level> + Clone,
{
    let share = move |level: Level| match level.hosts {
        0 => 0,
        hosts => (level.healthy as u64 * u64::from(overprovisioning) / hosts as u64).min(100),
    };
    let available = levels.clone().map(share).sum::<u64>().min(100);
    let panics = move |level: &Level| {
        let percent = level.healthy * 100 / level.hosts.max(1);
        available < 100 && percent < usize::from(panic_threshold)
    };
    let all_panic = levels.clone().all(|level| panics(&level));
    let mut left = 100;
    levels.map(move |level| {
        let weight = if all_panic { level.hosts as u64 } else { share(level).min(left) };
        left -= weight.min(left);
        Part { weight, panics: panics(&level) }
    })
}

/// The place of the priority at a point from 0 to the sum of the weights.
pub fn at(parts: impl Iterator<Item = Part>, mut point: u64) -> Option<(usize, Part)> {
    for (place, part) in parts.enumerate() {
        if point < part.weight {
            return Some((place, part));
        }
        point -= part.weight;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Healthy of hosts, by priority, to weights; panicking ones are marked.
    fn of(levels: &[(usize, usize)], threshold: u8) -> Vec<(u64, bool)> {
        let levels = levels.iter().map(|(healthy, hosts)| Level { hosts: *hosts, healthy: *healthy });
        parts(levels, 140, threshold).map(|part| (part.weight, part.panics)).collect()
    }

    #[test]
    fn what_a_priority_cannot_take_goes_on_to_the_next() {
        for (levels, expected) in [
            // 72 of 100 healthy hosts are enough for all requests.
            (&[(100, 100), (100, 100)][..], &[100, 0][..]),
            (&[(72, 100), (100, 100)], &[100, 0]),
            (&[(71, 100), (100, 100)], &[99, 1]),
            (&[(50, 100), (100, 100)], &[70, 30]),
            (&[(25, 100), (25, 100), (100, 100)], &[35, 35, 30]),
            (&[(0, 100), (100, 100)], &[0, 100]),
            (&[(0, 0), (3, 3)], &[0, 100]),
            // A third priority gets what is left only.
            (&[(1, 2), (1, 2), (1, 2)], &[70, 30, 0]),
        ] {
            let weights: Vec<u64> = of(levels, 50).iter().map(|(weight, _)| *weight).collect();
            assert_eq!(weights, expected, "{levels:?}");
        }
    }

    #[test]
    fn nobody_panics_while_the_next_priority_can_take_the_rest() {
        assert_eq!(of(&[(1, 10), (10, 10)], 50), [(14, false), (86, false)]);
        // 14 + 28 of 100: both are under their threshold.
        assert_eq!(of(&[(1, 10), (1, 5)], 50), [(10, true), (5, true)]);
        // Together 14 + 42 of 100; only the first is under its threshold.
        assert_eq!(of(&[(1, 10), (3, 10)], 20), [(14, true), (42, false)]);
    }

    #[test]
    fn without_a_healthy_host_all_are_tried_unless_the_threshold_is_zero() {
        assert_eq!(of(&[(0, 3), (0, 1)], 50), [(3, true), (1, true)]);
        assert_eq!(of(&[(0, 3), (0, 1)], 0), [(0, false), (0, false)]);
        assert_eq!(of(&[(0, 2)], 50), [(2, true)]);
        assert_eq!(of(&[], 50), []);
    }

    #[test]
    fn every_point_belongs_to_one_priority() {
        let parts = [(70, false), (0, true), (30, true)].map(|(weight, panics)| Part { weight, panics });
        let place = |point| at(parts.into_iter(), point).map(|(place, _)| place);
        assert_eq!([0, 69, 70, 99, 100].map(place), [Some(0), Some(0), Some(2), Some(2), None]);
    }
}
