//! Memory that nobody holds any more goes back to the system. Planning and encoding for many proxies takes room that the
//! allocator would keep.
// The allocator can only be asked through C.
#![allow(unsafe_code)]

use std::time::Duration;

use tokio::sync::watch;

/// How long it must have been quiet.
const QUIET: Duration = Duration::from_millis(300);

/// Gives back what is free whenever work has been done and then nothing for a while. `work` changes with each piece of it.
pub async fn follow(mut work: watch::Receiver<u64>) {
    while work.changed().await.is_ok() {
        while tokio::time::timeout(QUIET, work.changed()).await.is_ok_and(|changed| changed.is_ok()) {}
        let _ = tokio::task::spawn_blocking(give_back).await;
    }
}

fn give_back() {
    // SAFETY: `malloc_trim` may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
