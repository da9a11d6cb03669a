//! The project's chores: `cargo xtask demo | test | bench | cluster | image | e2e | tidy | codegen`.

mod bench;
mod cluster;
mod codegen;
mod image;
mod e2e;
mod repository;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build everything and run the e-commerce sample through the mesh on this machine.
    Demo {
        /// Passed on to `meshctl demo`: --keep, --once.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every kind of test; installs what they need. The last line is `N passed, N failed`.
    Test,
    /// Build everything in release mode and measure it: `bench pair | control | cluster | compare`; see `bench --help`.
    Bench {
        /// Profile of cargo; a build with fewer optimisations is made faster.
        #[arg(long, default_value = "release")]
        profile: String,
        /// Passed on to `bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A real, small Kubernetes on this machine (as root): start it, end it, load our images.
    Cluster {
        /// What to do.
        #[command(subcommand)]
        chore: cluster::Chore,
    },
    /// Build container images from static programs; prints the name and the archive of each.
    Image {
        /// Profile of cargo.
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// Test the mesh on a real Kubernetes: starts a small one (as root), or takes the one that KUBECONFIG names.
    E2e(e2e::Options),
    /// Check what the compiler does not: order of modules, fences, names, the map in ARCHITECTURE.md.
    Tidy {
        /// Write the map instead of comparing it.
        #[arg(long)]
        write: bool,
    },
    /// Make the generated files again.
    Codegen,
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<ExitCode> {
    let root = repository::root()?;
    match chore {
        Chore::Demo { arguments } => {
            repository::cargo(&root, &["build", "--workspace", "--bins"])?;
            let status = std::process::Command::new(repository::program(&root, "meshctl")?)
                .arg("demo")
                .args(arguments)
                .current_dir(&root)
                .status()?;
            Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
        }
        Chore::Test => test::run(&root),
        Chore::Bench { profile, arguments } => bench::run(&root, &profile, &arguments),
        Chore::Cluster { chore } => cluster::run(&root, &chore).map(|()| ExitCode::SUCCESS),
        Chore::Image { profile } => image::build(&root, &profile, cluster::TAG).map(|_| ExitCode::SUCCESS),
        Chore::E2e(options) => e2e::run(&root, &options),
        Chore::Tidy { write } => {
            let faults = tidy::check(&root, write)?;
            faults.iter().for_each(|fault| eprintln!("{fault}"));
            Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Chore::Codegen => codegen::run().map(|()| ExitCode::SUCCESS),
    }
}
