//! `meshctl`: see the library.

use std::process::ExitCode;

use clap::Parser;
use meshctl::cli::Cli;
use meshctl::command;

#[tokio::main]
async fn main() -> ExitCode {
    match command::run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
