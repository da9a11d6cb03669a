//! Our own pair: a real control plane plans it from a folder, as for users; metrics, peer metadata and default filters on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use api::join_token;

use super::{PATIENCE, Pair, Site, fill, free_port, version};
use crate::load::Target;
use crate::process::Process;

const OBJECTS: &str = include_str!("../../peers/mesh.yaml");
const HOST: &str = "server.bench.svc.cluster.local";

/// Starts the control plane and the two proxies.
pub(super) fn start(site: &Site) -> Result<Pair> {
    let folder = site.folder.join("mesh");
    fs::create_dir_all(folder.join("config"))?;
    let (client, server) = addresses();
    let mut ports = Vec::new();
    while ports.len() < 3 {
        let port = free_port(&[client, server])?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let values = [
        ("client", client.to_string()),
        ("server", server.to_string()),
        ("http", ports[0].to_string()),
        ("grpc", ports[1].to_string()),
        ("tcp", ports[2].to_string()),
        ("next_http", site.backend.http.to_string()),
        ("next_grpc", site.backend.grpc.to_string()),
        ("next_tcp", site.backend.tcp.to_string()),
    ];
    fill(OBJECTS, &values, &folder.join("config/bench.yaml"))?;
    fs::write(folder.join("mesh-config.yaml"), "defaultConfig: {interceptionMode: NONE}\n")?;
    let control_plane = ControlPlane::start(&site.binaries, &folder, site.load_core)?;
    let program = binary(&site.binaries, "proxy")?;
    let mut proxies = Vec::new();
    for (name, address) in [("client", client), ("server", server)] {
        let token = folder.join(format!("token-{name}"));
        fs::write(&token, control_plane.token("bench", name)?)?;
        let any = "127.0.0.1:0";
        let arguments = [
            ("--name", name),
            ("--namespace", "bench"),
            ("--ip", &address.to_string()),
            ("--service-account", name),
            ("--labels", &format!("app={name}")),
            ("--interception-mode", "NONE"),
            ("--workers", "1"),
            ("--admin-addr", any),
            ("--status-addr", any),
            ("--ready-addr", any),
            ("--prometheus-addr", any),
            ("--xds-address", &control_plane.secure_grpc),
            ("--root-cert", &folder.join("state/root-cert.pem").display().to_string()),
            ("--token-file", &token.display().to_string()),
        ];
        let mut words = vec!["sidecar".to_owned()];
        words.extend(arguments.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]));
        let log = folder.join(format!("proxy-{name}.log"));
        proxies.push(Process::start(&format!("proxy {name}"), &program, &words, &log, site.proxy_core, false)?);
    }
    let target = |port: u16| Ok(Target { address: (client, port).into(), authority: format!("{HOST}:{port}") });
    Ok(Pair {
        version: version(&binary(&site.binaries, "meshd")?, "--version")?,
        http: target(ports[0]),
        grpc: target(ports[1]),
        tcp: target(ports[2]),
        proxies,
        others: vec![control_plane.process],
    })
}

/// Two loopback addresses that other runs, and other pairs of this run, do not use.
fn addresses() -> (IpAddr, IpAddr) {
    static PAIRS: AtomicU8 = AtomicU8::new(0);
    let id = std::process::id().to_be_bytes();
    let third = id[3].wrapping_add(PAIRS.fetch_add(1, Ordering::Relaxed));
    let at = |last| IpAddr::V4(Ipv4Addr::new(127, 100 + id[2] % 100, third, last));
    (at(1), at(2))
}

/// A program of ours.
pub(crate) fn binary(folder: &Path, name: &str) -> Result<PathBuf> {
    let file = folder.join(name);
    ensure!(file.is_file(), "{} is not there: build it, or name the folder with --binaries", file.display());
    Ok(file)
}

/// A running `meshd`.
pub(crate) struct ControlPlane {
    /// The program.
    pub(crate) process: Process,
    /// Plaintext xDS.
    pub(crate) grpc: String,
    /// xDS and certificates over TLS.
    pub(crate) secure_grpc: String,
    /// Webhooks, over TLS.
    pub(crate) webhook: String,
    folder: PathBuf,
}

impl ControlPlane {
    /// Starts one on `config` and `mesh-config.yaml` of this folder, and waits until it is ready.
    ///
    /// # Errors
    /// It is not there, or does not get ready.
    pub(crate) fn start(binaries: &Path, folder: &Path, core: Option<usize>) -> Result<ControlPlane> {
        let path = |below: &str| folder.join(below).display().to_string();
        let mut words = vec![
            ("--config-dir", path("config")),
            ("--mesh-config", path("mesh-config.yaml")),
            ("--state-dir", path("state")),
        ];
        for flag in ["--grpc-addr", "--secure-grpc-addr", "--http-addr", "--monitoring-addr", "--https-addr"] {
            words.push((flag, "127.0.0.1:0".to_owned()));
        }
        let words: Vec<String> = words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let log = folder.join("meshd.log");
        let mut process = Process::start("meshd", &binary(binaries, "meshd")?, &words, &log, core, true)?;
        let output = process.output().context("meshd has no output")?;
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that meshd never waits for its reader.
        std::thread::Builder::new().name("meshd's output".to_owned()).spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).for_each(|line| {
                let _ = sender.send(line);
            });
        })?;
        let mut started = ControlPlane {
            process,
            grpc: String::new(),
            secure_grpc: String::new(),
            webhook: String::new(),
            folder: folder.to_owned(),
        };
        loop {
            let Ok(line) = lines.recv_timeout(started.patience()) else {
                started.process.alive()?;
                bail!("meshd was not ready in time\n{}", started.process.last_words());
            };
            match line.split_once('=') {
                Some(("grpc", address)) => started.grpc = address.to_owned(),
                Some(("secure-grpc", address)) => started.secure_grpc = address.to_owned(),
                Some(("https", address)) => started.webhook = address.to_owned(),
                _ if line == "ready" => return Ok(started),
                _ => {}
            }
        }
    }

    /// Reading thousands of objects takes longer than starting a pair.
    fn patience(&self) -> Duration {
        PATIENCE * 4
    }

    /// A join token for a service account.
    ///
    /// # Errors
    /// The control plane's state cannot be read.
    pub(crate) fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let key = fs::read(self.folder.join("state").join(join_token::KEY_FILE))?;
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        join_token::create(&key, namespace, account, now, 3600).map_err(anyhow::Error::msg)
    }
}
