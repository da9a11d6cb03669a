//! One module a command, and who is called for what.

mod analyze;
mod check;
mod config;
mod describe;
mod inject;
mod install;
mod log;
mod logs;
mod status;
mod tag;
mod token;
mod uninstall;
mod version;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Command, ExperimentalCommand, ManifestCommand, in_namespace};
use crate::cluster::Cluster;
use crate::demo;
use crate::mesh::Mesh;

/// Runs a command.
///
/// # Errors
/// One sentence for the user.
pub async fn run(cli: Cli) -> Result<ExitCode> {
    let reach = cli.reach;
    let cluster = || Cluster::open(reach.kubeconfig.as_deref(), reach.context.as_deref());
    let mesh = || Mesh::open(&reach);
    let namespace = reach.istio_namespace.as_str();
    match cli.command {
        Command::Demo(arguments) => return demo::run(arguments).await,
        Command::Analyze(arguments) if arguments.use_kube || arguments.paths.is_empty() => {
            return analyze::run(Some(&cluster().await?), arguments).await;
        }
        Command::Analyze(arguments) => return analyze::run(None, arguments).await,
        Command::Status { proxy, namespace, output } => {
            let proxy = proxy.map(|name| in_namespace(&name, namespace.as_deref()));
            print!("{}", status::run(&mesh().await?, proxy.as_deref(), output).await?);
        }
        Command::Check(arguments) | Command::Experimental(ExperimentalCommand::Precheck(arguments)) => {
            return check::run(cluster().await?, &mesh().await?, namespace, &arguments, false).await;
        }
        Command::VerifyInstall(arguments) => {
            return check::run(cluster().await?, &mesh().await?, namespace, &arguments, true).await;
        }
        Command::Describe(command) | Command::Experimental(ExperimentalCommand::Describe(command)) => {
            print!("{}", describe::run(&cluster().await?, &mesh().await?, namespace, &command).await?);
        }
        Command::Tag(command) => return tag::run(&cluster().await?, command).await,
        Command::Config(command) => print!("{}", config::run(&mesh().await?, command).await?),
        Command::Logs(arguments) => logs::run(&cluster().await?, namespace, &arguments).await?,
        Command::Why(arguments) => return why::run(&mesh().await?, arguments).await,
        Command::Inject(arguments) => {
            let cluster = if arguments.use_kube { Some(cluster().await?) } else { None };
            inject::run(cluster.as_ref(), namespace, &arguments).await?;
        }
        Command::Token(command) => print!("{}", token::run(command)?),
        Command::Version { output } => print!("{}", version::run(mesh().await.ok(), output).await?),
        Command::Install(arguments) => return install::run(&cluster().await?, namespace, &arguments).await,
        Command::Uninstall(arguments) => return uninstall::run(&cluster().await?, namespace, &arguments).await,
        Command::Manifest(ManifestCommand::Generate(wish)) => print!("{}", install::generate(namespace, &wish)?),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut std::io::stdout())
        }
    }
    Ok(ExitCode::SUCCESS)
}
