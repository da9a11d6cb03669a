//! `bench`: what the mesh costs, measured beside others on the same machine.

mod backend;
mod certificates;
mod cluster;
mod compare;
mod control;
mod histogram;
mod load;
mod pair;
mod peer;
mod process;
mod report;
mod webhook;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Benchmarks of the mesh.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Pairs of proxies with mutual TLS between them: ours, nginx, HAProxy, Envoy.
    Pair(pair::Arguments),
    /// The control plane: many services, many proxies, and how fast a change arrives.
    Control(control::Arguments),
    /// The injection webhook: reviews of pods at a fixed rate.
    Webhook(webhook::Arguments),
    /// Two builds of ours against each other: what the new one costs, as a multiple of the old one.
    Compare(compare::Arguments),
    /// In a Kubernetes cluster: what the mesh adds to workloads there.
    Cluster(cluster::Arguments),
    /// What runs in the pods of `cluster`.
    #[command(hide = true)]
    Pod {
        /// What to be.
        #[command(subcommand)]
        role: cluster::pod::Role,
    },
    /// Becomes another program that ends with this one.
    #[command(hide = true)]
    Launch {
        /// Core to be tied to.
        #[arg(long)]
        core: Option<usize>,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

fn main() -> ExitCode {
    match run(Cli::parse().bench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Launch { core, words } => process::become_program(core, &words),
        Bench::Cluster(arguments) => in_folder(|folder| cluster::run(&arguments, folder)),
        Bench::Pod { role } => cluster::pod::run(&role),
        Bench::Control(arguments) => in_folder(|folder| control::run(&arguments, folder)),
        Bench::Webhook(arguments) => in_folder(|folder| webhook::run(&arguments, folder)),
        Bench::Compare(arguments) => in_folder(|folder| compare::run(&arguments, folder)),
        Bench::Pair(arguments) => in_folder(|folder| pair::run(&arguments, folder)),
    }
}

/// Runs a benchmark in a fresh folder that is gone afterwards, also after ctrl-C. Its programs end with it in any case.
fn in_folder(bench: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    raise_open_files()?;
    let folder = tempfile::Builder::new().prefix("mesh-bench-").tempdir()?;
    let path = folder.path().to_owned();
    std::thread::Builder::new().name("ctrl-c".to_owned()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        if runtime.block_on(ended()).is_ok() {
            let _ = std::fs::remove_dir_all(&path);
            std::process::exit(130);
        }
    })?;
    bench(folder.path())
}

async fn ended() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => Ok(outcome?),
        _ = terminated.recv() => Ok(()),
    }
}

/// Ten thousand connections need as many open files, in this program and in those it starts.
fn raise_open_files() -> Result<()> {
    const WANTED: u64 = 65_536;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Only root may raise the hard limit.
    if setrlimit(Resource::RLIMIT_NOFILE, WANTED, hard.max(WANTED)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("the number of open files cannot be raised")?;
    }
    Ok(())
}

/// The folder of this program, where cargo puts the others too.
fn beside() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    here.parent().map(Path::to_owned).context("this program is in no folder")
}
