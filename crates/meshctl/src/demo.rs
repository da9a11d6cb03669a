//! `meshctl demo`: the sample shop behind a gateway on this machine, with a sidecar for each service, and a walk through what
//! the mesh does. Needs no root: each workload has a loopback address of its own.

mod folder;
mod process;
mod mesh;
mod claims;
mod traffic;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::DemoArguments;

/// Runs the sample; whatever happens, nothing is left behind.
///
/// # Errors
/// The mesh could not be started; the sentence says which part failed and shows the end of its log.
pub async fn run(arguments: DemoArguments) -> Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut mesh = mesh::Mesh::prepare(&arguments)?;
    let outcome = tokio::select! {
        outcome = show(&mut mesh, arguments.keep) => outcome,
        _ = interrupt.recv() => Ok(stopped()),
        _ = terminate.recv() => Ok(stopped()),
    };
    let logs = outcome.as_ref().err().map(|_| mesh.keep_logs());
    mesh.end().await;
    if let Some(folder) = logs {
        eprintln!("The logs are in {}.", folder.display());
    }
    outcome
}

fn stopped() -> ExitCode {
    eprintln!("Stopped.");
    ExitCode::from(130)
}

async fn show(mesh: &mut mesh::Mesh, keep: bool) -> Result<ExitCode> {
    let started = Instant::now();
    mesh.start().await?;
    println!("The mesh is ready after {:.1} s: {}.\n", started.elapsed().as_secs_f64(), mesh.summary());
    let failed = claims::walk(mesh).await?;
    println!("\nDone in {:.1} s.", started.elapsed().as_secs_f64());
    if keep {
        println!("\n{}", mesh.invitation());
        mesh.watch().await?;
    }
    if failed > 0 {
        println!("{failed} claims did not hold.");
        return Ok(ExitCode::FAILURE);
    }
    println!("Every claim held.");
    Ok(ExitCode::SUCCESS)
}
