//! One module a command, and who is called for what.

mod analyze;
mod config;
mod inject;
mod install;
mod status;
mod token;
mod uninstall;
mod version;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Command, ManifestCommand};
use crate::cluster::Cluster;
use crate::demo;
use crate::mesh::Mesh;

/// Runs a command.
///
/// # Errors
/// One sentence for the user.
pub async fn run(cli: Cli) -> Result<ExitCode> {
    let mesh = Mesh::new(&cli.meshd);
    match cli.command {
        Command::Demo(arguments) => return demo::run(arguments).await,
        Command::Analyze(arguments) => return analyze::run(arguments),
        Command::Status { proxy, output } => print!("{}", status::run(&mesh, proxy.as_deref(), output).await?),
        Command::Config(command) => print!("{}", config::run(&mesh, command).await?),
        Command::Why(arguments) => return why::run(&mesh, arguments).await,
        Command::Inject(arguments) => inject::run(&arguments)?,
        Command::Token(command) => print!("{}", token::run(command)?),
        Command::Version { output } => print!("{}", version::run(&mesh, output).await?),
        Command::Install(arguments) => {
            let cluster = Cluster::open(cli.kubeconfig.as_deref(), cli.context.as_deref()).await?;
            return install::run(&cluster, &arguments).await;
        }
        Command::Uninstall(arguments) => {
            let cluster = Cluster::open(cli.kubeconfig.as_deref(), cli.context.as_deref()).await?;
            return uninstall::run(&cluster, &arguments).await;
        }
        Command::Manifest(ManifestCommand::Generate(wish)) => print!("{}", install::generate(&wish)?),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut std::io::stdout())
        }
    }
    Ok(ExitCode::SUCCESS)
}
