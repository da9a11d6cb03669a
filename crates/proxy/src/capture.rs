//! `proxy init`: rules that send a workload's traffic through its proxy. Same flags, order and meaning as Istio's
//! `istio-iptables` (compatibility inventory, 4.2), as pure text for nftables or iptables, then handed to the system's program.

mod rules;
mod render;
mod routes;
mod validate;
pub mod check;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::dns::resolv_conf::{RESOLV_CONF, ResolvConf};

pub use render::{Program, render};
pub use rules::{Family, Options, Rule, rules};
pub use validate::{EXIT_CODE, Invalid};

/// Installs the rules, or prints them with `--dry-run`. Doing it twice is doing it once.
///
/// # Errors
/// A flag is wrong or not built, no program takes the rules, or they are not there afterwards; [`Invalid`] if they do not work.
pub fn run(options: &Options) -> Result<()> {
    options.check().map_err(anyhow::Error::msg)?;
    let mut options = options.clone();
    if options.redirect_dns && options.name_servers.is_empty() {
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        options.name_servers = ResolvConf::parse(&text).servers;
        if options.name_servers.is_empty() && !options.capture_all_dns {
            eprintln!(
                "{RESOLV_CONF} names no name server: no DNS query is captured; --capture-all-dns captures those to any"
            );
        }
    }
    let options = &options;
    let idle = options.without_effect();
    if !idle.is_empty() {
        eprintln!("taken, but without effect here: {}", idle.join(", "));
    }
    if let Some(sentence) = options.doubt() {
        eprintln!("{sentence}");
    }
    if options.cleanup_only && !options.dry_run {
        return clean(options);
    }
    for family in families() {
        if options.dry_run {
            print!("{}", render(options, Program::Nft, family));
            if options.is_transparent() {
                let (word, mark, table) = (render::word(family), options.mark(), options.table());
                let flag = if family == Family::Six { "-6" } else { "-4" };
                println!("# {word}: as by ip {flag} rule add fwmark {mark} lookup {table}");
                println!("# {word}: as by ip {flag} route add local default dev lo table {table}");
            }
        } else if !options.skip_rule_apply {
            install(options, family)?;
        }
    }
    if options.run_validation && !options.dry_run {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(validate::validate(options, &families()))?;
    }
    Ok(())
}

/// IPv4, and IPv6 if an interface has an address of it that others can reach, as Istio does.
fn families() -> Vec<Family> {
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    if has_global(&table) { vec![Family::Four, Family::Six] } else { vec![Family::Four] }
}

/// Whether the kernel's table of IPv6 addresses has one of global scope. Its columns are address, interface, length of the
/// prefix, scope, flags and name; the scope 00 is global.
fn has_global(table: &str) -> bool {
    table.lines().any(|line| {
        let mut columns = line.split_whitespace();
        let address = columns.next().unwrap_or_default();
        columns.nth(2) == Some("00") && address != OWN_SIX
    })
}

/// Whether a program that takes rules is installed.
pub fn can_be_asked() -> bool {
    PROGRAMS.iter().any(|program| output(program.single(Family::Four), &["--version"]).is_ok())
}

/// Whether the rules are there, in each family that asks for them, by whichever program.
pub fn is_installed(options: &Options) -> bool {
    families().into_iter().all(|family| PROGRAMS.iter().any(|program| verify(options, *program, family).is_ok()))
}

/// Who is asked to take the rules, in this order.
const PROGRAMS: [Program; 3] = [Program::Nft, Program::Iptables, Program::IptablesLegacy];

/// `::6` as the kernel's table has it: the address that we add ourselves.
const OWN_SIX: &str = "00000000000000000000000000000006";

fn install(options: &Options, family: Family) -> Result<()> {
    if family == Family::Six {
        // Unlike 127.0.0.6, this address is none of the loopback interface by itself.
        let source = family.passthrough_source();
        output("ip", &["-6", "addr", "replace", source, "dev", "lo"]).context(
            "IPv6 needs the address ::6 on the loopback interface, set with the program ip (iproute2) and NET_ADMIN",
        )?;
    }
    if options.is_transparent() {
        let routes = marked(options, family);
        routes.install().with_context(|| {
            format!(
                "packets marked {} cannot be routed to this host by table {} ({family}); this takes the capability NET_ADMIN",
                routes.mark, routes.table
            )
        })?;
    }
    let mut reasons = Vec::new();
    for program in PROGRAMS {
        match apply(options, program, family) {
            Ok(()) => {
                eprintln!("{family} traffic is captured (with {})", program.name(family));
                return Ok(());
            }
            Err(error) => reasons.push(format!("{}: {error:#}", program.name(family))),
        }
    }
    let more = if options.is_transparent() {
        "; for TPROXY also nft_tproxy, or xt_TPROXY, xt_mark, xt_connmark and xt_conntrack"
    } else {
        ""
    };
    bail!(
        "no rules for {family} could be installed. This takes the capabilities NET_ADMIN and NET_RAW, and of the node's kernel either \
         nf_tables (modules nf_tables, nft_chain_nat, nft_redir, nft_ct) or ip_tables (modules ip_tables, iptable_nat, iptable_raw, \
         xt_REDIRECT, xt_owner, xt_CT){more}: load them on the node, or leave capture to somebody else (interceptionMode NONE). Tried:\n  {}",
        reasons.join("\n  ")
    )
}

fn apply(options: &Options, program: Program, family: Family) -> Result<()> {
    let text = render(options, program, family);
    match program {
        Program::Nft => {
            feed("nft", &["-f", "-"], &text)?;
        }
        Program::Iptables | Program::IptablesLegacy => {
            // Chains of ours that exist already are replaced: --noflush leaves all others alone.
            remove_jumps(program, family);
            feed(program.name(family), &["--noflush", "-w"], &text)?;
        }
    }
    verify(options, program, family)
}

/// What was asked for must be there: a kernel without NAT takes the table and drops the chains on some systems.
fn verify(options: &Options, program: Program, family: Family) -> Result<()> {
    let is_there = match program {
        Program::Nft => {
            let listed = output("nft", &["list", "table", render::word(family), render::TABLE])?;
            listed.contains("redirect to") && (!options.is_transparent() || listed.contains("tproxy to"))
        }
        Program::Iptables | Program::IptablesLegacy => {
            let tables = [("nat", "-j REDIRECT"), ("mangle", "-j TPROXY")];
            let mut found = true;
            for (table, part) in &tables[..if options.is_transparent() { 2 } else { 1 }] {
                found &= output(program.single(family), &["-w", "-t", table, "-S"])?.contains(part);
            }
            found
        }
    };
    if !is_there {
        bail!("the rules are not there after they were installed");
    }
    Ok(())
}

/// The jumps into our chains, which would double with each run.
fn remove_jumps(program: Program, family: Family) {
    for (table, chain, rest) in [
        ("nat", "PREROUTING", &["-p", "tcp", "-j", "ISTIO_INBOUND"][..]),
        ("nat", "OUTPUT", &["-j", "ISTIO_OUTPUT"]),
        ("nat", "OUTPUT", &["-p", "udp", "-j", "ISTIO_OUTPUT_DNS"]),
        ("raw", "OUTPUT", &["-p", "udp", "-j", "ISTIO_OUTPUT_DNS"]),
        ("raw", "PREROUTING", &["-p", "udp", "-j", "ISTIO_PREROUTING_DNS"]),
        ("mangle", "PREROUTING", &["-m", "conntrack", "--ctstate", "INVALID", "-j", "ISTIO_DROP"]),
        ("mangle", "PREROUTING", &["-p", "tcp", "-j", "ISTIO_INBOUND"]),
        ("mangle", "OUTPUT", &["-p", "tcp", "-j", "ISTIO_OUTPUT"]),
    ] {
        let mut command = Command::new(program.single(family));
        let _ = command.args(["-w", "-t", table, "-D", chain]).args(rest).stderr(Stdio::null()).status();
    }
}

fn marked(options: &Options, family: Family) -> routes::Marked {
    routes::Marked { mark: options.mark(), table: options.table(), family }
}

fn clean(options: &Options) -> Result<()> {
    for family in [Family::Four, Family::Six] {
        marked(options, family).remove();
        let word = render::word(family);
        if output("nft", &["list", "table", word, render::TABLE]).is_ok() {
            feed("nft", &["-f", "-"], &format!("delete table {word} {}\n", render::TABLE))?;
        }
        for program in [Program::Iptables, Program::IptablesLegacy] {
            remove_chains(program, family);
        }
    }
    let source = Family::Six.passthrough_source();
    let mut command = Command::new("ip");
    let _ = command.args(["-6", "addr", "del", source, "dev", "lo"]).stderr(Stdio::null()).status();
    Ok(())
}

/// Whatever is there of ours; a program that is not there has left nothing.
fn remove_chains(program: Program, family: Family) {
    remove_jumps(program, family);
    for action in ["-F", "-X"] {
        for (table, chain) in render::OURS {
            let mut command = Command::new(program.single(family));
            let words = ["-w", "-t", table.word(), action, render::name(chain)];
            let _ = command.args(words).stderr(Stdio::null()).status();
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_reach_ask_for_the_second_family() {
        let (loopback, link, global, own) = (
            "00000000000000000000000000000001 01 80 10 80       lo\n",
            "fe800000000000004c1d0ffffe0a1b2c 02 40 20 80     eth0\n",
            "fd660000000000000000000000000003 02 40 00 80     eth0\n",
            "00000000000000000000000000000006 01 80 00 80       lo\n",
        );
        assert!(!has_global(""));
        assert!(!has_global(&[loopback, link, own].concat()));
        assert!(has_global(&[loopback, link, global].concat()));
    }
}
