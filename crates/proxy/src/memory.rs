//! Memory that nobody holds any more goes back to the system. The allocator keeps what is free between pieces that are still
//! in use; after thousands of connections have given up their buffers that is most of what the process has. The same for the
//! program's own code: starting and taking a configuration in run through most of it, serving through a small part.
// The allocator and the kernel can only be asked through C.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

/// How often it is looked at whether there is something to give back.
const LOOK: Duration = Duration::from_millis(500);
/// What must have changed since the last time: so many connections more or fewer are there, or have given up their buffers.
const ENOUGH: u64 = 256;

/// What tells whether there may be something to give back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Clients' connections that are open.
    pub connections: u64,
    /// Those of them that have given up their buffers.
    pub resting: u64,
    /// Another after each configuration that was taken in.
    pub generation: u64,
}

impl InUse {
    fn is_another_than(&self, last: &InUse) -> bool {
        self.generation != last.generation
            || self.connections.abs_diff(last.connections) >= ENOUGH
            || self.resting.abs_diff(last.resting) >= ENOUGH
    }
}

/// Looks for ever.
pub async fn follow(seen: impl Fn() -> Option<InUse>) {
    let mut last = InUse::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(now) = seen() else { return };
        if now.is_another_than(&last) {
            last = now;
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

/// Gives back what is free in all arenas, and code. Takes some milliseconds for a hundred megabytes; who allocates meanwhile waits.
fn give_back() {
    // SAFETY: `malloc_trim` may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
    static CODE: OnceLock<Option<Range<usize>>> = OnceLock::new();
    let Some(code) = CODE.get_or_init(code) else { return };
    // SAFETY: the range is one mapping of the program's file that nobody writes to: what is used of it is mapped again from the file
    // (madvise(2), `MADV_DONTNEED`), at the price of a minor page fault for each 64 KiB.
    unsafe {
        nix::libc::madvise(code.start as *mut nix::libc::c_void, code.len(), nix::libc::MADV_DONTNEED);
    }
}

/// Where the program's code lies: the mapping that has this function (proc(5), `/proc/PID/maps`), if it cannot be written to.
fn code() -> Option<Range<usize>> {
    let here = code as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mapping = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        (range.contains(&here) && rest.starts_with("r-x")).then_some(range)
    };
    maps.lines().find_map(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(range: &Range<usize>) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", range.start);
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn crowds_that_come_rest_and_go_and_configurations_call_for_it() {
        let last = InUse { connections: 2000, resting: 1000, generation: 7 };
        for now in [
            InUse { connections: 1000, ..last },
            InUse { resting: 1999, ..last },
            InUse { generation: 8, ..last },
            InUse { connections: 2300, ..last },
        ] {
            assert!(now.is_another_than(&last), "{now:?}");
        }
        assert!(!InUse { connections: 1900, resting: 1100, ..last }.is_another_than(&last));
    }

    #[test]
    fn code_is_given_back_and_comes_again_when_it_runs() {
        let code = code().unwrap();
        let page = |at: usize| {
            // SAFETY: code may be read.
            unsafe { std::ptr::read_volatile(at as *const u8) }
        };
        code.clone().step_by(4096).map(page).for_each(drop);
        let before = resident(&code);
        give_back();
        assert!(resident(&code) < before / 2, "{} of {before} kB are left", resident(&code));
    }
}
