//! Memory that nobody holds any more goes back to the system. The allocator keeps what is free between pieces that are still
//! in use; after thousands of connections have given up their buffers that is most of what the process has.
// The allocator can only be asked through C.
#![allow(unsafe_code)]

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

/// Gives back what is free, in all arenas. Takes some milliseconds for a hundred megabytes; who allocates meanwhile waits.
fn give_back() {
    // SAFETY: `malloc_trim` may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
