//! The proxy's program: settings, logs, run until told to end.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use proxy::app::Running;
use proxy::bootstrap::{Cli, Options};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, prelude::*, reload};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs, with the control that changes their level.
fn logs(options: &Options) -> anyhow::Result<proxy::app::LogControl> {
    let filter = EnvFilter::try_new(&options.log_level).context("the log level")?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    match options.log_as_json {
        true => registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).init(),
        false => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init(),
    }
    Ok(Box::new(move |level| {
        let filter = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let (role, options) = cli.command.parts();
    let control = logs(options)?;
    // The control side: admin, and whoever feeds it. Requests are on threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let running = Running::start(options.settings(role), Arc::default()).await?;
        running.shared().set_log_control(control);
        tracing::info!(node = %options.node_id(role), admin = %running.admin_addr(), "started");
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            () = running.quit() => {}
        }
        let drained = running.drain().await;
        tracing::info!(?drained, "ended");
        Ok(())
    })
}
