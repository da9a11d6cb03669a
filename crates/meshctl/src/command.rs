//! One module a command, and who is called for what.

mod absent;
mod analyze;
mod bug_report;
mod check;
mod check_inject;
mod config;
mod dashboard;
mod describe;
mod inject;
mod install;
mod log;
mod admin;
mod logs;
mod status;
mod tag;
mod token;
mod uninstall;
mod validate;
mod version;
mod why;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use serde_json::Value;

use crate::cli::{AuthzCommand, Cli, Command, ExperimentalCommand, ManifestCommand, in_namespace};
use crate::cluster::Cluster;
use crate::demo;
use crate::mesh::Mesh;
use crate::print::{Format, structured};

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
        Command::Analyze(arguments) if arguments.list_analyzers => print!("{}", analyze::list()),
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
        Command::Config(command) => print!("{}", config::run(&reach, command).await?),
        Command::Logs(arguments) => logs::run(&cluster().await?, namespace, &arguments).await?,
        Command::Why(arguments) => return why::run(&mesh().await?, arguments).await,
        Command::Inject(arguments) => {
            let cluster = if arguments.use_kube { Some(cluster().await?) } else { None };
            inject::run(cluster.as_ref(), namespace, &arguments).await?;
        }
        Command::Token(command) => print!("{}", token::run(command)?),
        Command::Version(arguments) => print!("{}", version::run(mesh().await.ok(), &arguments).await?),
        Command::Validate(arguments) => return validate::run(&arguments),
        Command::Admin(command) => print!("{}", admin::run(&mesh().await?, command).await?),
        Command::Dashboard(command) => dashboard::run(&cluster().await?, namespace, &command).await?,
        Command::BugReport(arguments) => {
            bug_report::run(&cluster().await?, &mesh().await?, namespace, &arguments).await?;
        }
        Command::Experimental(ExperimentalCommand::CheckInject(arguments)) => {
            print!("{}", check_inject::run(&cluster().await?, &arguments).await?);
        }
        Command::Experimental(ExperimentalCommand::Authz(AuthzCommand::Check { of })) => {
            print!("{}", config::authorization(&reach, &of).await?);
        }
        Command::Experimental(ExperimentalCommand::EnvoyStats(arguments)) => {
            print!("{}", config::stats(&mesh().await?, &arguments).await?);
        }
        Command::Experimental(ExperimentalCommand::InternalDebug { page }) => {
            let pages = mesh().await?.pages(&format!("/debug/{}", page.trim_start_matches("/debug/"))).await?;
            let pages: BTreeMap<String, Value> = pages.into_iter().collect();
            print!("{}", structured(Format::Json, &pages)?);
        }
        Command::Experimental(ExperimentalCommand::Other(words)) => {
            let words: Vec<&str> = std::iter::once("experimental").chain(words.iter().map(String::as_str)).collect();
            return absent::refuse(&words);
        }
        Command::RemoteClusters(_) => return absent::refuse(&["remote-clusters"]),
        Command::CreateRemoteSecret(_) => return absent::refuse(&["create-remote-secret"]),
        Command::Waypoint(_) => return absent::refuse(&["waypoint"]),
        Command::ZtunnelConfig(_) => return absent::refuse(&["ztunnel-config"]),
        Command::Manifest(ManifestCommand::Translate(_)) => return absent::refuse(&["manifest", "translate"]),
        Command::Install(arguments) => return install::run(&cluster().await?, namespace, &arguments).await,
        Command::Uninstall(arguments) => return uninstall::run(&cluster().await?, namespace, &arguments).await,
        Command::Manifest(ManifestCommand::Generate(arguments)) => install::generate(namespace, &arguments)?,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut std::io::stdout())
        }
    }
    Ok(ExitCode::SUCCESS)
}
