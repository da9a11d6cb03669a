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
/// What must have happened since the last time: so many connections gave up their buffers, or are gone.
const ENOUGH: u64 = 256;

/// Looks for ever. `resting` is the number of connections that have given up their buffers; `generation` is another after
/// each configuration that was taken in.
pub async fn follow(seen: impl Fn() -> Option<(u64, u64)>) {
    let (mut resting, mut generation) = (0, 0);
    loop {
        tokio::time::sleep(LOOK).await;
        let Some((resting_now, generation_now)) = seen() else { return };
        if resting_now.abs_diff(resting) >= ENOUGH || generation_now != generation {
            (resting, generation) = (resting_now, generation_now);
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
