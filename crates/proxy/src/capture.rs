//! `proxy init`: rules that send a workload's traffic through its proxy. Same flags, order and meaning as Istio's
//! `istio-iptables` (compatibility inventory, 4.2), as pure text for nftables or iptables, then handed to the system's program.

mod rules;
mod render;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

pub use render::{Program, render};
pub use rules::{Options, Rule, rules};

/// Installs the rules, or prints them with `--dry-run`. Doing it twice is doing it once.
///
/// # Errors
/// A flag is wrong or not built, no program takes the rules, or they are not there afterwards.
pub fn run(options: &Options) -> Result<()> {
    options.check().map_err(anyhow::Error::msg)?;
    if options.dry_run {
        print!("{}", render(options, Program::Nft));
        return Ok(());
    }
    if options.cleanup_only {
        return clean();
    }
    let mut reasons = Vec::new();
    for program in [Program::Nft, Program::Iptables] {
        match apply(options, program) {
            Ok(()) => {
                eprintln!("traffic is captured (with {})", program.name());
                return Ok(());
            }
            Err(error) => reasons.push(format!("{}: {error:#}", program.name())),
        }
    }
    bail!(
        "no rules could be installed; this takes the capability NET_ADMIN and nft or iptables-restore.\n  {}",
        reasons.join("\n  ")
    )
}

fn apply(options: &Options, program: Program) -> Result<()> {
    let text = render(options, program);
    match program {
        Program::Nft => {
            feed("nft", &["-f", "-"], &text)?;
            // What was asked for must be there: a kernel without NAT takes the table and drops the chains on some systems.
            let listed = output("nft", &["list", "table", "ip", render::TABLE])?;
            if !listed.contains("redirect to") {
                bail!("the rules are not there after they were installed");
            }
        }
        Program::Iptables => {
            // Chains of ours that exist already are replaced: --noflush leaves all others alone.
            remove_jumps();
            feed("iptables-restore", &["--noflush", "-w"], &text)?;
            if !output("iptables", &["-w", "-t", "nat", "-S"])?.contains("ISTIO_REDIRECT") {
                bail!("the rules are not there after they were installed");
            }
        }
    }
    Ok(())
}

/// The jumps into our chains, which would double with each run.
fn remove_jumps() {
    for (chain, rest) in
        [("PREROUTING", &["-p", "tcp", "-j", "ISTIO_INBOUND"][..]), ("OUTPUT", &["-j", "ISTIO_OUTPUT"])]
    {
        let _ =
            Command::new("iptables").args(["-w", "-t", "nat", "-D", chain]).args(rest).stderr(Stdio::null()).status();
    }
}

fn clean() -> Result<()> {
    if output("nft", &["list", "table", "ip", render::TABLE]).is_ok() {
        feed("nft", &["-f", "-"], &format!("delete table ip {}\n", render::TABLE))?;
    }
    remove_jumps();
    for action in ["-F", "-X"] {
        for chain in ["ISTIO_OUTPUT", "ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT"] {
            let _ = Command::new("iptables").args(["-w", "-t", "nat", action, chain]).stderr(Stdio::null()).status();
        }
    }
    Ok(())
}

fn feed(program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("it cannot be started")?;
    child.stdin.take().context("it has no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).stderr(Stdio::null()).output().context("it cannot be started")?;
    if !output.status.success() {
        bail!("{program} {} failed", arguments.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
