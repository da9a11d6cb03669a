//! `meshd`: see the library.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use meshd::app::{Running, announce};
use meshd::config::Config;
use meshd::pilot_discovery;
use meshd::telemetry::start_log;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(asked) = pilot_discovery::asked(&words) {
        return told(asked.and_then(|(method, path)| page(&method, &path)));
    }
    // Istio's `pilot-discovery discovery --flags`.
    if words.get(1).is_some_and(|word| word == "discovery") {
        words.remove(1);
    }
    let config = Config::parse_from(words);
    told(run(config))
}

fn page(method: &str, path: &str) -> Result<()> {
    let config = Config::try_parse_from(["meshd"]).context("the settings of the control plane cannot be read")?;
    let mut address = config.http_addr.context("this control plane has no debug port")?;
    address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    let page = pilot_discovery::request(address, method, path)?;
    std::io::stdout().write_all(&page).context("standard output is closed")
}

fn told(outcome: Result<()>) -> ExitCode {
    match outcome {
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
