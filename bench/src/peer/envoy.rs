//! Envoy: one worker, configured as Istio configures its sidecars, with HTTP/1.1 or HTTP/2 between the two.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Pair, Peer, Ports, Site, fill, find, version};
use crate::load::Target;
use crate::process::Process;

/// Client's side and server's side.
const TEMPLATES: [&str; 2] =
    [include_str!("../../peers/envoy-client.yaml"), include_str!("../../peers/envoy-server.yaml")];

/// Starts the two.
pub(super) fn start(peer: Peer, site: &Site) -> Result<Pair> {
    let program = program()?;
    let ports = Ports::choose()?;
    let (options, alpn) = match peer {
        Peer::EnvoyHttp2 => ("http2_protocol_options", "h2"),
        _ => ("http_protocol_options", "http/1.1"),
    };
    let mut proxies = Vec::new();
    for (side, name) in [(1, "server"), (0, "client")] {
        let folder = site.folder.join(format!("{}-{name}", peer.name()));
        fs::create_dir_all(&folder)?;
        let mut values = vec![("hop_options".to_owned(), options.to_owned()), ("hop_alpn".to_owned(), alpn.to_owned())];
        for (key, value) in ports.values(side, site) {
            // Envoy wants address and port apart.
            if let Some((address, port)) = value.split_once(':') {
                values.push((format!("{key}_address"), address.to_owned()));
                values.push((format!("{key}_port"), port.to_owned()));
            } else {
                values.push((key.to_owned(), value));
            }
        }
        let values: Vec<(&str, String)> = values.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let file = folder.join("envoy.yaml");
        fill(TEMPLATES[side], &values, &file)?;
        let config = file.display().to_string();
        let arguments =
            ["-c", &config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"].map(str::to_owned);
        let log = folder.join("log");
        proxies.push(Process::start(&format!("envoy {name}"), &program, &arguments, &log, site.proxy_core, false)?);
    }
    proxies.reverse();
    Ok(Pair {
        version: version(&program, "--version")?,
        http: Ports::target(ports.http[0]),
        grpc: once(peer, ports.grpc[0], "gRPC goes over HTTP/2 in any case"),
        tcp: once(peer, ports.tcp[0], "bytes go the same way"),
        proxies,
        others: Vec::new(),
    })
}

/// Where the two variants do not differ, one of them is measured.
fn once(peer: Peer, address: SocketAddr, why: &str) -> Result<Target, String> {
    if peer == Peer::EnvoyHttp2 { Ports::target(address) } else { Err(format!("{why}: see envoy-http2")) }
}

/// The program: as `ENVOY` says, as `cargo xtask` installs it, or in PATH.
fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("ENVOY") {
        let program = PathBuf::from(program);
        anyhow::ensure!(program.is_file(), "ENVOY names {}, which is not there", program.display());
        return Ok(program);
    }
    find("envoy").context("ENVOY does not name it either; `cargo xtask bench` installs one")
}
