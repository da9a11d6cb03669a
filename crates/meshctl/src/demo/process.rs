//! The demo's programs: started with their output in a log, ended for sure.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// A program that ends with this value.
pub(super) struct Process {
    /// What to call it.
    pub(super) name: String,
    /// Its log.
    pub(super) log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program that lies beside this one. Its standard output goes to `log`, or to a pipe if `piped`.
    pub(super) fn start(program: &str, name: &str, log: &Path, arguments: &[String], piped: bool) -> Result<Process> {
        let here = std::env::current_exe()?;
        let path = here.with_file_name(program);
        anyhow::ensure!(
            path.exists(),
            "{} is not there: build all programs with `cargo build --workspace`",
            path.display()
        );
        let file = File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
        let mut command = Command::new(&path);
        command.args(arguments).stdin(Stdio::null()).stderr(file.try_clone()?).kill_on_drop(true);
        // A group of its own: ctrl-C is for the demo, which ends its programs in order.
        command.process_group(0);
        command.stdout(if piped { Stdio::piped() } else { Stdio::from(file) });
        let child = command.spawn().with_context(|| format!("{} cannot be started", path.display()))?;
        Ok(Process { name: name.to_owned(), log: log.to_owned(), child })
    }

    /// Its standard output, if piped; once.
    pub(super) fn output(&mut self) -> Option<tokio::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        self.child
            .try_wait()
            .ok()
            .flatten()
            .map(|status| format!("{} ended: {status}\n{}", self.name, self.last_lines()))
    }

    /// The end of its log.
    pub(super) fn last_lines(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Asks it to end.
    pub(super) fn terminate(&self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits for its end; kills it when it takes too long.
    pub(super) async fn wait(&mut self, patience: Duration) {
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
