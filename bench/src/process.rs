//! Programs under measurement: pinned to a core, logged, measured from `/proc`, and ended with this program, however it ends.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// How long a program gets to end by itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// Ties the calling thread, and the threads and programs it starts from now on, to one core.
///
/// # Errors
/// The core does not exist or may not be used.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("there is no core {core}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("core {core} may not be used"))
}

/// Becomes another program, tied to a core, that is asked to end when this program's parent is gone: so nothing is left
/// behind even if a benchmark is killed.
///
/// # Errors
/// Comes back only if the program cannot be started.
pub(crate) fn become_program(core: Option<usize>, words: &[String]) -> Result<()> {
    set_pdeathsig(Signal::SIGTERM)?;
    if let Some(core) = core {
        pin(core)?;
    }
    let (program, arguments) = words.split_first().context("no program is named")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("{program} cannot be started"))
}

/// A running program; it ends with this value.
pub(crate) struct Process {
    /// What to call it.
    pub(crate) name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program. What it says goes to `log`; its standard output to a pipe if `piped`.
    ///
    /// # Errors
    /// The program is not there, or the log cannot be written.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        arguments: &[String],
        log: &Path,
        core: Option<usize>,
        piped: bool,
    ) -> Result<Process> {
        let file = File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("launch");
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        command.arg("--").arg(program).args(arguments).stdin(Stdio::null()).stderr(file.try_clone()?);
        // A group of its own: ctrl-C ends the benchmark, which ends its programs.
        command.process_group(0);
        command.stdout(if piped { Stdio::piped() } else { Stdio::from(file) });
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        Ok(Process { name: name.to_owned(), log: log.to_owned(), child })
    }

    /// Its standard output, if piped; once.
    pub(crate) fn output(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It does not: how it ended, and its last words.
    pub(crate) fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended: {status}\n{}", self.name, self.last_words()),
        }
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
    }

    /// Its process and those it started.
    fn tree(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let mut next = 0;
        while let Some(&process) = found.get(next) {
            let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                found.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
            }
            next += 1;
        }
        found
    }

    /// Seconds of user and system time that it and its children have used (`/proc/PID/stat`, fields 14 and 15).
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the system does not tell its clock tick")?;
        let mut ticks = 0;
        for process in self.tree() {
            let text = fs::read_to_string(format!("/proc/{process}/stat"))
                .with_context(|| format!("{} is gone\n{}", self.name, self.last_words()))?;
            // The second field is a name in parentheses that may hold anything.
            let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
            ticks += field(14).zip(field(15)).map(|(user, system)| user + system).context("/proc/PID/stat is odd")?;
        }
        Ok(ticks as f64 / per_second as f64)
    }

    /// Resident memory in bytes, of the largest process among it and its children (`VmRSS`): the children of a server
    /// that forks share their parent's pages.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// What of it is not a file's (`RssAnon`): connections have none of a program's code.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn anonymous(&self) -> Result<u64> {
        self.memory("RssAnon:")
    }

    fn memory(&self, kind: &str) -> Result<u64> {
        let of = |process: &u32| {
            let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let kilobytes = self.tree().iter().filter_map(of).max();
        kilobytes.map(|size| size * 1024).with_context(|| format!("{} is gone\n{}", self.name, self.last_words()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for process in self.tree().into_iter().rev().filter_map(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}
