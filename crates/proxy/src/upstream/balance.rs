//! Picking one of several hosts. Members are functions over what a host shows; the table is the match.

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::snapshot::cluster::Balance;

/// What a balancer sees of a host.
pub trait Candidate {
    /// Its weight, at least 1.
    fn weight(&self) -> u32;
    /// Requests under way.
    fn active(&self) -> u32;
}

/// What a balancer remembers between picks.
#[derive(Debug)]
pub struct Memory {
    /// The next turn.
    turn: u64,
}

impl Memory {
    /// Starts at a random turn, so that workers and proxies do not all begin with the first host.
    pub fn new(dice: &mut SmallRng) -> Self {
        Self { turn: u64::from(dice.random::<u32>()) }
    }
}

/// Picks a place among the candidates.
pub fn pick<C: Candidate>(
    policy: Balance,
    candidates: &[C],
    memory: &mut Memory,
    dice: &mut SmallRng,
) -> Option<usize> {
    match candidates.len() {
        0 => None,
        1 => Some(0),
        _ => Some(match policy {
            Balance::RoundRobin => round_robin(candidates, memory),
            Balance::Random => by_weight(candidates, dice.random_range(0..total(candidates).max(1))),
            Balance::LeastRequest { choices } => least_request(candidates, choices, dice),
        }),
    }
}

fn total<C: Candidate>(candidates: &[C]) -> u64 {
    candidates.iter().map(|candidate| u64::from(candidate.weight())).sum()
}

fn by_weight<C: Candidate>(candidates: &[C], mut point: u64) -> usize {
    for (place, candidate) in candidates.iter().enumerate() {
        let weight = u64::from(candidate.weight());
        if point < weight {
            return place;
        }
        point -= weight;
    }
    candidates.len() - 1
}

fn round_robin<C: Candidate>(candidates: &[C], memory: &mut Memory) -> usize {
    memory.turn = memory.turn.wrapping_add(1);
    let first = candidates[0].weight();
    if candidates.iter().all(|candidate| candidate.weight() == first) {
        return (memory.turn % candidates.len() as u64) as usize;
    }
    // Weighted: a stride that has no common factor with the total visits every unit of weight once a round, spread out.
    let total = total(candidates);
    let stride = (1..)
        .map(|step| (total as f64 * 0.618_033_988_75) as u64 + step)
        .find(|stride| gcd(*stride, total) == 1)
        .unwrap_or(1);
    let point = (u128::from(memory.turn) * u128::from(stride) % u128::from(total)) as u64;
    by_weight(candidates, point)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn least_request<C: Candidate>(candidates: &[C], choices: u32, dice: &mut SmallRng) -> usize {
    let first = candidates[0].weight();
    let equal = candidates.iter().all(|candidate| candidate.weight() == first);
    let all = total(candidates);
    let mut draw = || match equal {
        true => dice.random_range(0..candidates.len()),
        false => by_weight(candidates, dice.random_range(0..all.max(1))),
    };
    let mut best = draw();
    for turn in 1..choices {
        let mut other = draw();
        if other == best && equal && turn == 1 {
            other = (other + 1) % candidates.len();
        }
        if candidates[other].active() < candidates[best].active() {
            best = other;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host(u32, u32);

    impl Candidate for Host {
        fn weight(&self) -> u32 {
            self.0
        }

        fn active(&self) -> u32 {
            self.1
        }
    }

    fn counts(policy: Balance, hosts: &[Host], picks: usize) -> Vec<usize> {
        let mut dice: SmallRng = rand::make_rng();
        let mut memory = Memory::new(&mut dice);
        let mut counts = vec![0; hosts.len()];
        for _ in 0..picks {
            counts[pick(policy, hosts, &mut memory, &mut dice).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_is_exact() {
        assert_eq!(counts(Balance::RoundRobin, &[Host(1, 0), Host(1, 0), Host(1, 0)], 30), [10, 10, 10]);
        assert_eq!(counts(Balance::RoundRobin, &[Host(1, 0), Host(3, 0)], 40), [10, 30]);
        assert_eq!(counts(Balance::RoundRobin, &[Host(5, 0), Host(1, 0), Host(4, 0)], 100), [50, 10, 40]);
    }

    #[test]
    fn random_follows_weights() {
        let counts = counts(Balance::Random, &[Host(1, 0), Host(9, 0)], 10_000);
        assert!((600..1400).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn the_busy_host_is_avoided() {
        let counts = counts(Balance::LeastRequest { choices: 2 }, &[Host(1, 10), Host(1, 0)], 1000);
        assert_eq!(counts[0], 0, "of two choices the busier is never taken");
        assert_eq!(pick::<Host>(Balance::Random, &[], &mut Memory { turn: 0 }, &mut rand::make_rng()), None);
    }
}
