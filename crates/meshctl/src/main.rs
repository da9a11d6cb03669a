//! `meshctl`: see the library.

use std::process::ExitCode;

use clap::Parser;
use meshctl::cli::Cli;
use meshctl::cluster::refusal::told;
use meshctl::command;

#[tokio::main]
async fn main() -> ExitCode {
    // Who reads no further (`| head`) wants no more, and no account of a panic either.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|told| told.contains("stdout: Broken pipe")) {
            std::process::exit(0);
        }
        usual(panic);
    }));
    match command::run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}
