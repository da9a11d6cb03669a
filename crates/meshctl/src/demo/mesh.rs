//! Starting, watching and ending the demo's mesh.

use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use api::join_token;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::folder::{Folder, HOST, Workload};
use super::process::Process;
use crate::cli::DemoArguments;
use crate::fetch::{self, Connection};

/// All must be ready after so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Port of a sidecar's HTTP proxy for its own application (`proxyHttpPort` of the sample's settings).
const OUTBOUND: u16 = 15080;

/// The demo's mesh.
pub(super) struct Mesh {
    /// The copy of the sample that it runs from.
    pub(super) folder: Folder,
    /// Where the control plane shows itself.
    pub(super) debug: String,
    secure_grpc: String,
    processes: Vec<Process>,
    keep_folder: bool,
}

impl Mesh {
    /// Copies the sample; starts nothing.
    pub(super) fn prepare(arguments: &DemoArguments) -> Result<Mesh> {
        let sample = match &arguments.sample {
            Some(folder) => folder.clone(),
            None => find_sample()?,
        };
        let folder = Folder::copy(&sample)?;
        Ok(Mesh { folder, debug: String::new(), secure_grpc: String::new(), processes: Vec::new(), keep_folder: false })
    }

    /// Starts the control plane, the proxies and the services, and waits until all are ready.
    pub(super) async fn start(&mut self) -> Result<()> {
        let workloads = self.folder.workloads.clone();
        let progress = Progress::new(workloads.len());
        progress.say("control plane");
        self.start_control_plane().await?;
        let key = fs::read(self.folder.path("state").join(join_token::KEY_FILE))?;
        for workload in &workloads {
            progress.say(&workload.name);
            self.start_proxy(workload, &key)?;
            if !workload.is_gateway() {
                self.start_service(workload)?;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        let mut waiting: Vec<&Workload> = workloads.iter().collect();
        while !waiting.is_empty() {
            let mut still = Vec::new();
            let mut reason = String::new();
            for workload in waiting {
                match ready(workload).await {
                    Ok(()) => progress.step(&workload.name),
                    Err(why) => {
                        reason = format!("{}: {why}", workload.name);
                        still.push(workload);
                    }
                }
            }
            waiting = still;
            self.alive()?;
            if Instant::now() > deadline {
                bail!("not ready after {PATIENCE:?}: {reason}");
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        progress.done();
        Ok(())
    }

    async fn start_control_plane(&mut self) -> Result<()> {
        let path = |below: &str| self.folder.path(below).display().to_string();
        let any = "127.0.0.1:0".to_owned();
        let mut arguments = vec![
            "--config-dir".to_owned(),
            path("config"),
            "--mesh-config".to_owned(),
            path("mesh-config.yaml"),
            "--state-dir".to_owned(),
            path("state"),
        ];
        for flag in ["--grpc-addr", "--secure-grpc-addr", "--http-addr", "--monitoring-addr", "--https-addr"] {
            arguments.extend([flag.to_owned(), any.clone()]);
        }
        let mut process = Process::start("meshd", "meshd", &self.folder.path("logs/meshd.log"), &arguments, true)?;
        let output = process.output().context("meshd has no output")?;
        let mut lines = BufReader::new(output).lines();
        let announced = async {
            while let Some(line) = lines.next_line().await? {
                match line.split_once('=') {
                    Some(("http", address)) => self.debug = address.to_owned(),
                    Some(("secure-grpc", address)) => self.secure_grpc = address.to_owned(),
                    _ if line == "ready" => return Ok(()),
                    _ => {}
                }
            }
            bail!("meshd ended before it was ready")
        };
        let outcome = tokio::time::timeout(PATIENCE, announced).await.context("meshd was not ready in time").flatten();
        if outcome.is_err() {
            process.wait(Duration::from_millis(500)).await;
            return outcome.with_context(|| process.last_lines());
        }
        self.processes.push(process);
        Ok(())
    }

    fn start_proxy(&mut self, workload: &Workload, key: &[u8]) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
        let token =
            join_token::create(key, &workload.namespace, &workload.account, now, 3600).map_err(anyhow::Error::msg)?;
        let file = self.folder.path("tokens").join(&workload.name);
        fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&file)?.write_all(token.as_bytes())?;
        let at = |port: u16| format!("{}:{port}", workload.address);
        let role = if workload.is_gateway() { "router" } else { "sidecar" };
        let arguments = [
            role,
            "--name",
            &workload.name,
            "--namespace",
            &workload.namespace,
            "--ip",
            &workload.address,
            "--service-account",
            &workload.account,
            "--labels",
            &format!("app={},version={}", workload.app, workload.version),
            "--interception-mode",
            "NONE",
            "--workers",
            "1",
            "--admin-addr",
            &at(15000),
            "--status-addr",
            &at(15020),
            "--ready-addr",
            &at(15021),
            "--prometheus-addr",
            &at(15090),
            "--xds-address",
            &self.secure_grpc,
            "--root-cert",
            &self.folder.path("state/root-cert.pem").display().to_string(),
            "--token-file",
            &file.display().to_string(),
        ]
        .map(str::to_owned);
        let log = self.log_of(workload);
        self.processes.push(Process::start("proxy", &format!("proxy of {}", workload.name), &log, &arguments, false)?);
        Ok(())
    }

    fn start_service(&mut self, workload: &Workload) -> Result<()> {
        let listen = format!("{}:18080", workload.address);
        let arguments = [
            "--role",
            workload.role(),
            "--version",
            &workload.version,
            "--listen",
            &listen,
            "--proxy",
            &self.outbound(workload),
        ]
        .map(str::to_owned);
        let log = self.folder.path("logs").join(format!("{}.log", workload.name));
        self.processes.push(Process::start("shop", &workload.name, &log, &arguments, false)?);
        Ok(())
    }

    /// The log of a workload's proxy: its access log is there.
    pub(super) fn log_of(&self, workload: &Workload) -> PathBuf {
        self.folder.path("logs").join(format!("{}-proxy.log", workload.name))
    }

    /// Where a workload's application finds its sidecar.
    pub(super) fn outbound(&self, workload: &Workload) -> String {
        format!("{}:{OUTBOUND}", workload.address)
    }

    /// Whether all programs still run.
    fn alive(&mut self) -> Result<()> {
        match self.processes.iter_mut().find_map(Process::ended) {
            Some(how) => bail!("{how}"),
            None => Ok(()),
        }
    }

    /// A connection to the shop as a customer has it: through the gateway, with TLS.
    pub(super) async fn customer(&self) -> Result<Connection> {
        Connection::open_tls(&self.gateway_tls()?, HOST, self.folder.roots.clone()).await
    }

    /// The gateway's HTTPS address.
    fn gateway_tls(&self) -> Result<String> {
        Ok(format!("{}:8443", self.folder.workload("ingressgateway")?.address))
    }

    /// What runs, in a few words.
    pub(super) fn summary(&self) -> String {
        let services = self.folder.workloads.iter().filter(|workload| !workload.is_gateway()).count();
        format!("1 control plane, 1 gateway, {services} services with a sidecar each")
    }

    /// What a user may try while it runs.
    pub(super) fn invitation(&self) -> String {
        let gateway = self.gateway_tls().unwrap_or_default();
        let order = self.folder.workload("order-v1").map(|workload| self.outbound(workload)).unwrap_or_default();
        let folder = self.folder.path("config");
        format!(
            "The mesh runs until ctrl-C. Try, in another terminal:\n\n  \
             curl -k --resolve {HOST}:{port}:{ip} https://{HOST}:{port}/api/v1/products\n  \
             curl -x http://{order} http://user-service:8080/api/v1/users/1\n  \
             export MESHD={debug}\n  \
             meshctl status\n  \
             meshctl config routes order-v1\n  \
             meshctl why --last\n  \
             $EDITOR {config}/user-service.yaml    # weights take effect as you save\n\n\
             Pages of the control plane: http://{debug}/debug",
            ip = gateway.split(':').next().unwrap_or_default(),
            port = gateway.split(':').nth(1).unwrap_or_default(),
            debug = self.debug,
            config = folder.display(),
        )
    }

    /// Waits until a program ends by itself, which is an error.
    pub(super) async fn watch(&mut self) -> Result<()> {
        loop {
            self.alive()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Leaves the folder when the demo ends. Answers where the logs are.
    pub(super) fn keep_logs(&mut self) -> PathBuf {
        self.keep_folder = true;
        self.folder.path("logs")
    }

    /// Ends all programs, services first, and removes the folder.
    pub(super) async fn end(mut self) {
        self.processes.reverse();
        self.processes.iter().for_each(Process::terminate);
        for process in &mut self.processes {
            process.wait(Duration::from_secs(3)).await;
        }
        if !self.keep_folder {
            let _ = fs::remove_dir_all(&self.folder.root);
        }
    }
}

async fn ready(workload: &Workload) -> Result<(), String> {
    let address = format!("{}:15021", workload.address);
    let answer = fetch::try_get(&address, "/healthz/ready").await.map_err(|error| format!("{error:#}"))?;
    if answer.status != 200 {
        return Err(answer.text().trim().to_owned());
    }
    if workload.is_gateway() {
        return Ok(());
    }
    fetch::get(&format!("{}:18080", workload.address), "/healthz").await.map(drop).map_err(|error| format!("{error:#}"))
}

/// The sample beside the sources: where the working directory, or the program, is below the repository.
fn find_sample() -> Result<PathBuf> {
    let (here, program) = (std::env::current_dir()?, std::env::current_exe()?);
    let is_sample = |folder: &PathBuf| folder.join("config/workloads.yaml").exists();
    let near = |start: &Path| start.ancestors().map(|folder| folder.join("examples/ecommerce")).find(is_sample);
    near(&here)
        .or_else(|| near(&program))
        .context("the sample is not found from here; name its folder (examples/ecommerce of the source) with --sample")
}

/// A bar on a terminal, nothing elsewhere.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(steps: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {pos}/{len} ready  {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(80));
        Self(Some(bar))
    }

    fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("starting {what}"));
        }
    }

    fn step(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
            bar.set_message(what.to_owned());
        }
    }

    fn done(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
