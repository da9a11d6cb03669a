//! HAProxy: one thread, shared upstream connections, mutual TLS between the two.

use std::fs;

use anyhow::Result;

use super::{Pair, Ports, Site, fill, find, version};
use crate::process::Process;

/// Client's side and server's side.
const TEMPLATES: [&str; 2] =
    [include_str!("../../peers/haproxy-client.cfg"), include_str!("../../peers/haproxy-server.cfg")];

/// Starts the two.
pub(super) fn start(site: &Site) -> Result<Pair> {
    let program = find("haproxy")?;
    let ports = Ports::choose()?;
    let mut proxies = Vec::new();
    for (side, name) in [(1, "server"), (0, "client")] {
        let folder = site.folder.join(format!("haproxy-{name}"));
        fs::create_dir_all(&folder)?;
        let file = folder.join("haproxy.cfg");
        fill(TEMPLATES[side], &ports.values(side, site), &file)?;
        let arguments = ["-db", "-f", &file.display().to_string()].map(str::to_owned);
        let log = folder.join("log");
        proxies.push(Process::start(&format!("haproxy {name}"), &program, &arguments, &log, site.proxy_core, false)?);
    }
    proxies.reverse();
    Ok(Pair {
        version: version(&program, "-v")?,
        http: Ports::target(ports.http[0]),
        grpc: Ports::target(ports.grpc[0]),
        tcp: Ports::target(ports.tcp[0]),
        proxies,
        others: Vec::new(),
    })
}
