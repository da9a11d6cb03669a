//! `meshctl`: see the library.

use std::process::ExitCode;

use clap::Parser;
use meshctl::cli::Cli;
use meshctl::cluster::refusal::told;
use meshctl::command;

/// istioctl's exit code for words that make no sense.
const USAGE: u8 = 64;

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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help was asked for, or the words make no sense.
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match command::run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}
