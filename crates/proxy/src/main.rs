//! `proxy`: see the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use api::node::Role;
use clap::Parser;
use proxy::agent::Agent;
use proxy::bootstrap::{Arguments, Cli, Command};
use proxy::capture;
use proxy::identity::sds;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Init(options) => capture::run(&options),
        Command::Sidecar(arguments) => run(&arguments, Role::Sidecar),
        Command::Router(arguments) => run(&arguments, Role::Router),
        Command::Sds(options) => serve_secrets(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The control side has threads of its own: workers serve requests and nothing else.
fn run(arguments: &Arguments, role: Role) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()?;
    runtime.block_on(serve(arguments, role))
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

async fn serve(arguments: &Arguments, role: Role) -> Result<()> {
    let handle = start_log(&arguments.log, arguments.log_as_json)?;
    for field in arguments.without_effect() {
        tracing::warn!(field, "this setting of the proxy's own configuration has no effect");
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let agent = Agent::start(arguments.settings(role), arguments.control_plane.clone()).await?;
    let control = move |level: &str| {
        let filter = EnvFilter::try_new(level).map_err(|error| format!("{level:?} is not a log level: {error}"))?;
        handle.reload(filter).map_err(|error| error.to_string())
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
