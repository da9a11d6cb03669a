//! nginx: one worker, kept upstream connections, mutual TLS between the two.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::{Pair, Ports, Site, fill, find, version};
use crate::process::Process;

/// Client's side and server's side.
const TEMPLATES: [&str; 2] =
    [include_str!("../../peers/nginx-client.conf"), include_str!("../../peers/nginx-server.conf")];
/// What carries bytes; distributions ship it apart.
const STREAMS: [&str; 2] =
    [include_str!("../../peers/nginx-client-stream.conf"), include_str!("../../peers/nginx-server-stream.conf")];

/// Starts the two.
pub(super) fn start(site: &Site) -> Result<Pair> {
    let program = find("nginx")?;
    let ports = Ports::choose()?;
    let stream = stream_module();
    let mut proxies = Vec::new();
    for (side, name) in [(1, "server"), (0, "client")] {
        let folder = site.folder.join(format!("nginx-{name}"));
        fs::create_dir_all(&folder)?;
        let mut template = TEMPLATES[side].to_owned();
        if let Some(module) = &stream {
            template = format!("load_module {};\n{template}\n{}", module.display(), STREAMS[side]);
        }
        let mut values = ports.values(side, site);
        values.push(("folder", folder.display().to_string()));
        let file = folder.join("nginx.conf");
        fill(&template, &values, &file)?;
        let arguments =
            ["-p", &folder.display().to_string(), "-c", &file.display().to_string(), "-e", "stderr"].map(str::to_owned);
        let log = folder.join("log");
        proxies.push(Process::start(&format!("nginx {name}"), &program, &arguments, &log, site.proxy_core, false)?);
    }
    proxies.reverse();
    Ok(Pair {
        version: version(&program, "-v")?,
        http: Ports::target(ports.http[0]),
        grpc: Ports::target(ports.grpc[0]),
        tcp: match stream {
            Some(_) => Ports::target(ports.tcp[0]),
            None => Err("this nginx has no stream module (Debian: libnginx-mod-stream)".to_owned()),
        },
        proxies,
        others: Vec::new(),
    })
}

fn stream_module() -> Option<PathBuf> {
    ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"]
        .map(|folder| PathBuf::from(folder).join("ngx_stream_module.so"))
        .into_iter()
        .find(|file| file.is_file())
}
