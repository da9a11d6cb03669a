//! `proxy`: see the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use api::node::Role;
use clap::Parser;
use proxy::agent::Agent;
use proxy::bootstrap::{Arguments, Cli, Command};
use proxy::capture;
use proxy::cni::{install, plugin};
use proxy::identity::sds;
use proxy::pilot_agent::{self, AgentCommand, Environment, PilotAgent};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    if plugin::is_called(name.as_deref()) {
        return plugin::run();
    }
    let outcome = if pilot_agent::is_called(name.as_deref()) { as_agent() } else { as_proxy() };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy: {error:#}");
            match error.downcast_ref::<capture::Invalid>() {
                Some(_) => ExitCode::from(capture::EXIT_CODE),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// Under our own name.
fn as_proxy() -> Result<()> {
    match Cli::parse().command {
        Command::Init(options) => capture::run(&options),
        Command::Sidecar(arguments) => run(&arguments, Role::Sidecar, &[]),
        Command::Router(arguments) => run(&arguments, Role::Router, &[]),
        Command::Sds(options) => serve_secrets(&options),
        Command::InstallCni(arguments) => install_plugin(&arguments),
    }
}

/// Under the name of Istio's agent, as pods start it.
fn as_agent() -> Result<()> {
    match PilotAgent::parse().command {
        AgentCommand::Proxy(options) => {
            let in_pod = options.settings(&Environment::of_process())?;
            run(&in_pod.arguments, in_pod.role, &in_pod.without_effect)
        }
        AgentCommand::Request(options) => options.run(),
        AgentCommand::Wait(options) => options.run(),
        AgentCommand::IstioIptables(options) => capture::run(&options),
        AgentCommand::Version(_) => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}

/// The control side has threads of its own: workers serve requests and nothing else.
fn run(arguments: &Arguments, role: Role, idle_flags: &[&str]) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()?;
    runtime.block_on(serve(arguments, role, idle_flags))
}

/// Serves the workload's certificate until it is told to end.
fn serve_secrets(options: &sds::Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        start_log(&options.log, options.log_as_json)?;
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            ended = sds::run(options) => ended,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

/// Keeps the plug-in on the node until it is told to end.
fn install_plugin(arguments: &install::Arguments) -> Result<()> {
    start_log(&arguments.log, arguments.log_as_json)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(install::run(arguments))
}

/// Starts the log. The handle changes its level.
fn start_log(level: &str, as_json: bool) -> Result<reload::Handle<EnvFilter, Registry>> {
    let filter =
        EnvFilter::try_new(level).map_err(|error| anyhow::anyhow!("the log filter {level:?} is wrong: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let format =
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    if as_json {
        registry.with(format.json()).init()
    } else {
        registry.with(format).init()
    }
    Ok(handle)
}

/// A level, or levels of parts of the program. A word that is neither would be taken for a part, and all others fall silent.
fn filter_of(text: &str) -> Result<EnvFilter, String> {
    for part in text.split(',').filter(|part| !part.contains('=')) {
        if part.parse::<tracing::metadata::LevelFilter>().is_err() {
            return Err(format!(
                "{part:?} is none of trace, debug, info, warning, error and off, nor levels of parts such as info,proxy::tls=debug"
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("{text:?} is not a log level: {error}"))
}

async fn serve(arguments: &Arguments, role: Role, idle_flags: &[&str]) -> Result<()> {
    let handle = start_log(&arguments.log, arguments.log_as_json)?;
    if !idle_flags.is_empty() {
        tracing::warn!(flags = idle_flags.join(", "), "taken, but without effect here");
    }
    for field in arguments.without_effect() {
        tracing::warn!(field, "this setting of the proxy's own configuration has no effect");
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let agent = Agent::start(arguments.settings(role), arguments.control_plane.clone()).await?;
    let start = arguments.log.clone();
    let control = move |level: Option<&str>| {
        if let Some(level) = level {
            // Envoy's words, as its users write them.
            let filter = match level {
                "reset" => start.as_str(),
                "warning" => "warn",
                "critical" => "error",
                other => other,
            };
            let filter = filter_of(filter)?;
            handle.reload(filter).map_err(|error| error.to_string())?;
        }
        handle.with_current(ToString::to_string).map_err(|error| error.to_string())
    };
    agent.running.shared().set_log_control(Box::new(control));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = agent.running.quit() => {}
    }
    tracing::info!("ending: running requests are finished first");
    agent.end().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_that_are_known() {
        for good in ["info", "off", "info,proxy::tls=debug", "warn", "proxy=trace"] {
            assert!(filter_of(good).is_ok(), "{good}");
        }
        for bad in ["loud", "http:debug", "info,loud", "proxy=loud"] {
            let error = filter_of(bad).unwrap_err();
            assert_eq!(error.matches(" is n").count(), 1, "said once: {error}");
        }
    }
}
