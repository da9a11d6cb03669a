//! Pairs of proxies that are compared: started on loopback addresses of their own, all in front of the same server.

mod envoy;
mod haproxy;
mod mesh;
mod nginx;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub(crate) use self::mesh::ControlPlane;
use crate::backend;
use crate::certificates::Certificates;
use crate::load::{self, Kind, Target};
use crate::process::Process;

/// All programs of a pair must serve after so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What stands between the client and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    /// Nothing: what the load and the server cost.
    None,
    /// Our proxy, planned by our control plane.
    Mesh,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Envoy, HTTP/1.1 between the two (HTTP/2 for gRPC).
    EnvoyHttp1,
    /// Envoy, HTTP/2 between the two.
    EnvoyHttp2,
}

impl Peer {
    /// As it is written on the command line and in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::None => "none",
            Peer::Mesh => "mesh",
            Peer::Nginx => "nginx",
            Peer::Haproxy => "haproxy",
            Peer::EnvoyHttp1 => "envoy-http1",
            Peer::EnvoyHttp2 => "envoy-http2",
        }
    }
}

/// What all pairs share.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Folder of the run.
    pub(crate) folder: PathBuf,
    /// Folder with `meshd` and `proxy`.
    pub(crate) binaries: PathBuf,
    /// Core of the proxies, if there are enough.
    pub(crate) proxy_core: Option<usize>,
    /// Core of everything else.
    pub(crate) load_core: Option<usize>,
    /// The server.
    pub(crate) backend: backend::Addresses,
    /// For the peers; ours gets its own from the control plane.
    pub(crate) certificates: Certificates,
}

/// A running pair.
pub(crate) struct Pair {
    /// As the program tells it.
    pub(crate) version: String,
    /// Where HTTP/1.1 requests go, or why they cannot.
    pub(crate) http: Result<Target, String>,
    /// Where gRPC calls go.
    pub(crate) grpc: Result<Target, String>,
    /// Where connections of bytes go.
    pub(crate) tcp: Result<Target, String>,
    /// The proxies, the client's first. Empty for no proxy.
    pub(crate) proxies: Vec<Process>,
    /// What else they need to run; not measured.
    others: Vec<Process>,
}

impl Pair {
    /// Starts one and waits until it serves all it can.
    ///
    /// # Errors
    /// A program is missing, refuses its configuration, or does not serve in time.
    pub(crate) fn start(peer: Peer, site: &Site) -> Result<Pair> {
        let started = match peer {
            Peer::None => Ok(direct(site)),
            Peer::Mesh => mesh::start(site),
            Peer::Nginx => nginx::start(site),
            Peer::Haproxy => haproxy::start(site),
            Peer::EnvoyHttp1 | Peer::EnvoyHttp2 => envoy::start(peer, site),
        };
        let mut pair = started.with_context(|| format!("{} could not be started", peer.name()))?;
        pair.wait().with_context(|| format!("{} does not serve", peer.name()))?;
        Ok(pair)
    }

    /// Whether all of its programs still run.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn alive(&mut self) -> Result<()> {
        self.proxies.iter_mut().chain(&mut self.others).try_for_each(Process::alive)
    }

    /// CPU of both proxies so far, in seconds.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        self.proxies.iter().map(Process::cpu_seconds).sum()
    }

    /// Memory of each proxy, in bytes.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn resident(&self) -> Result<Vec<u64>> {
        self.proxies.iter().map(Process::resident).collect()
    }

    /// Resident memory of both proxies together in bytes, without what is a file's.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn anonymous(&self) -> Result<u64> {
        self.proxies.iter().map(Process::anonymous).sum()
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let ways = [
            (self.http.clone().ok(), Kind::Http1 { size: 64 }),
            (self.grpc.clone().ok(), Kind::Grpc { size: 64, calls: 1 }),
            (self.tcp.clone().ok(), Kind::Churn),
        ];
        for (target, kind) in ways {
            let Some(target) = target else { continue };
            loop {
                let Err(error) = load::probe(&target, kind) else { break };
                self.alive()?;
                if Instant::now() > deadline {
                    let words: Vec<String> = self.proxies.iter().chain(&self.others).map(Process::last_words).collect();
                    bail!("{kind:?} at {}: {error:#}\n{}", target.address, words.join("\n"));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // All end at the same time; each is waited for as it is dropped.
        self.proxies.iter().chain(&self.others).for_each(Process::terminate);
    }
}

fn direct(site: &Site) -> Pair {
    let target = |address: SocketAddr| Ok(Target { address, authority: address.to_string() });
    Pair {
        version: String::new(),
        http: target(site.backend.http),
        grpc: target(site.backend.grpc),
        tcp: target(site.backend.tcp),
        proxies: Vec::new(),
        others: Vec::new(),
    }
}

/// A port below those that outgoing connections are given: between the moment at which it is chosen and the one at which its proxy
/// listens, none of the many connections of a benchmark takes it.
fn below(address: IpAddr) -> Result<TcpListener> {
    const FIRST: u16 = 10_240;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
    let count = u16::max(end, FIRST + 1) - FIRST;
    // Another benchmark beside this one begins elsewhere.
    let start = (std::process::id() % u32::from(count)) as u16;
    for _ in 0..count {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % count;
        let port = FIRST + ((u32::from(start) + u32::from(step)) % u32::from(count)) as u16;
        if let Ok(listener) = TcpListener::bind((address, port)) {
            return Ok(listener);
        }
    }
    bail!("no port below {end} is free at {address}")
}

/// A port that is free at all of these addresses.
fn free_port(addresses: &[IpAddr]) -> Result<u16> {
    let (first, rest) = addresses.split_first().context("no address is given")?;
    for _ in 0..100 {
        let port = below(*first)?.local_addr()?.port();
        if rest.iter().all(|address| TcpListener::bind((*address, port)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no port is free at all of {addresses:?}")
}

/// Writes a template with its `{{name}}` filled in.
fn fill(template: &str, values: &[(&str, String)], file: &Path) -> Result<()> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    if let Some(at) = text.find("{{") {
        let rest: String = text.chars().skip(at).take(40).collect();
        bail!("a template has a place that nothing fills: {rest}");
    }
    fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))
}

/// Where a program is, looking also where ordinary users' paths do not.
fn find(program: &str) -> Result<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not installed (or leave it out with --peers)"))
}

/// What a program says of its version: the first line.
fn version(program: &Path, flag: &str) -> Result<String> {
    let output = Command::new(program).arg(flag).output()?;
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let said = String::from_utf8_lossy(&said);
    Ok(said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned())
}

/// The ports of a pair of plain peers: what the client's side and the server's side listen on.
struct Ports {
    http: [SocketAddr; 2],
    grpc: [SocketAddr; 2],
    tcp: [SocketAddr; 2],
}

impl Ports {
    fn choose() -> Result<Ports> {
        // Held until all are chosen, so that no port is chosen twice.
        let sockets = (0..6).map(|_| below(Ipv4Addr::LOCALHOST.into())).collect::<Result<Vec<_>>>()?;
        let addresses = sockets.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
        let [a, b, c, d, e, f] = addresses[..] else { bail!("six ports were to be chosen") };
        Ok(Ports { http: [a, b], grpc: [c, d], tcp: [e, f] })
    }

    /// Values of the templates. `near` is 0 for the client's side, whose next hop is the server's side.
    fn values(&self, side: usize, site: &Site) -> Vec<(&'static str, String)> {
        let next = |ports: &[SocketAddr; 2], backend: SocketAddr| if side == 0 { ports[1] } else { backend };
        vec![
            ("http", self.http[side].to_string()),
            ("grpc", self.grpc[side].to_string()),
            ("tcp", self.tcp[side].to_string()),
            ("next_http", next(&self.http, site.backend.http).to_string()),
            ("next_grpc", next(&self.grpc, site.backend.grpc).to_string()),
            ("next_tcp", next(&self.tcp, site.backend.tcp).to_string()),
            ("certificates", site.certificates.folder()),
        ]
    }

    fn target(address: SocketAddr) -> Result<Target, String> {
        Ok(Target { address, authority: "server.bench".to_owned() })
    }
}
