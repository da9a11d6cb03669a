//! `meshd`: see the library.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use meshd::app::{Running, announce};
use meshd::config::Config;
use meshd::telemetry::start_log;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let config = Config::parse();
    meshd::memory::few_heaps();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config) -> Result<()> {
    start_log(&config.log, config.log_as_json)?;
    let patience = Duration::from_millis(config.shutdown_ms);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut running = Running::start(config).await?;
    running.ready().await?;
    announce(&running.addresses)?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    running.run_until(end, patience).await
}
