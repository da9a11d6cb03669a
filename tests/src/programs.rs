//! The real programs as processes that can be killed, frozen, starved and measured: a control plane on addresses of its own
//! that outlive it, and proxies under it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use api::join_token;
use serde_json::Value;
use tempfile::TempDir;

use crate::control_plane::get;
use crate::network::program;
use crate::server::ask;
use crate::sidecar::loopback;
use crate::wait::until;

/// What a process finds around it.
#[derive(Clone, Debug)]
pub enum Around {
    /// Nothing out of the ordinary.
    Usual,
    /// So many descriptors and no more.
    Descriptors(u32),
    /// A file of its own in the place of `/etc/resolv.conf`. This takes root.
    ResolvConf(PathBuf),
}

/// A process; it ends with this value.
pub struct Running(Child);

impl Running {
    /// Starts a program, with its output behind what is in the log.
    pub fn start(program: PathBuf, words: &[String], around: &Around, log: &Path) -> Running {
        const RUN: &str = "exec \"$0\" \"$@\"";
        let mut command = match around {
            Around::Usual => Command::new(program),
            Around::Descriptors(most) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {most} && {RUN}")).arg(program);
                shell
            }
            Around::ResolvConf(file) => {
                let mut shell = Command::new("unshare");
                let mount = format!("mount --bind '{}' /etc/resolv.conf && {RUN}", file.display());
                shell.args(["--mount", "sh", "-c", &mount]).arg(program);
                shell
            }
        };
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let command = command.args(words).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Running(command.spawn().unwrap())
    }

    /// Sends a signal by its name (`STOP`).
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.0.id())).status().unwrap();
        assert!(sent.success(), "{name} cannot be sent");
    }

    /// Ends it without warning, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }

    /// Memory that it has allocated and uses, in bytes (`RssAnon`). Pages of its file (`VmRSS` has them too) say nothing about what it
    /// keeps: it gives them back now and then, and the system brings them again as they are needed.
    pub fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A control plane that can go away and come back at the same addresses.
pub struct Meshd {
    folder: TempDir,
    address: String,
    process: Option<Running>,
}

impl Meshd {
    /// Starts one with these files and mesh-wide settings, and waits until it is ready.
    pub async fn start(files: &[(&str, &str)], mesh_config: &str) -> Meshd {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        std::fs::write(folder.path().join("mesh.yaml"), mesh_config).unwrap();
        let mut meshd = Meshd { folder, address: loopback(), process: None };
        for (name, text) in files {
            meshd.write(name, text);
        }
        meshd.come().await;
        meshd.trust();
        meshd
    }

    /// A path in its folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Writes a file of its configuration, whole, as an editor does.
    pub fn write(&self, name: &str, text: &str) {
        let draft = self.path("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, self.path("config").join(name)).unwrap();
    }

    /// Where its debug pages are.
    pub fn debug(&self) -> String {
        format!("{}:8080", self.address)
    }

    /// Starts it (again), and waits until it is ready.
    pub async fn come(&mut self) {
        let path = |below: &str| self.path(below).display().to_string();
        let mut words: Vec<String> = Vec::new();
        for (flag, value) in [
            ("--config-dir", path("config")),
            ("--mesh-config", path("mesh.yaml")),
            ("--state-dir", path("state")),
            ("--grpc-addr", String::new()),
            ("--https-addr", String::new()),
            ("--secure-grpc-addr", format!("{}:15012", self.address)),
            ("--http-addr", self.debug()),
            ("--monitoring-addr", format!("{}:15014", self.address)),
            ("--log", "warn".to_owned()),
        ] {
            words.extend([flag.to_owned(), value]);
        }
        self.process = Some(Running::start(program("meshd"), &words, &Around::Usual, &self.path("meshd.log")));
        let debug = self.debug();
        until("the control plane", async || match ask(&debug, &debug, "/ready").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// Kills it.
    pub fn go(&mut self) {
        self.process = None;
    }

    /// Gives the proxies its root and tokens of its key: what whoever runs the mesh does once, and again for a new root.
    pub fn trust(&self) {
        std::fs::copy(self.path("state").join("root-cert.pem"), self.path("trusted.pem")).unwrap();
        for name in std::fs::read_dir(self.folder.path()).unwrap() {
            let name = name.unwrap().file_name().into_string().unwrap();
            if let Some(account) = name.strip_prefix("token-") {
                std::fs::write(self.path(&name), self.token(account)).unwrap();
            }
        }
    }

    fn token(&self, account: &str) -> String {
        let key = std::fs::read(self.path("state").join(join_token::KEY_FILE)).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        join_token::create(&key, "shop", account, now, 3600).unwrap()
    }

    /// A debug page.
    pub async fn page(&self, path: &str) -> Value {
        serde_json::from_str(&get(&self.debug(), path).await.1).unwrap()
    }

    /// A metric's values by their line's labels.
    pub async fn metric(&self, name: &str) -> Vec<String> {
        let (_, text) = get(&format!("{}:15014", self.address), "/metrics").await;
        text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    /// What `meshctl` prints.
    pub async fn meshctl(&self, words: &[&str]) -> String {
        let output = tokio::process::Command::new(program("meshctl"))
            .args(["--meshd", &self.debug()])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// Starts the sidecar of a workload of the namespace `shop`, and waits until it serves. `more` are further settings.
    pub async fn proxy(&self, name: &str, address: &str, more: &[&str], around: &Around) -> Running {
        let account = name.split('-').next().unwrap();
        let token = self.path(&format!("token-{account}"));
        std::fs::write(&token, self.token(account)).unwrap();
        let ready = format!("{address}:{}", api::port::READY);
        let mut words = vec!["sidecar".to_owned()];
        for (flag, value) in [
            ("--name", name),
            ("--namespace", "shop"),
            ("--ip", address),
            ("--service-account", account),
            ("--labels", &format!("app={account}")),
            ("--interception-mode", "NONE"),
            ("--workers", "1"),
            ("--admin-addr", "127.0.0.1:0"),
            ("--status-addr", "127.0.0.1:0"),
            ("--ready-addr", &ready),
            ("--prometheus-addr", "127.0.0.1:0"),
            ("--xds-address", &format!("{}:15012", self.address)),
            ("--root-cert", &self.path("trusted.pem").display().to_string()),
            ("--token-file", &token.display().to_string()),
            ("--log", "warn"),
        ] {
            words.extend([flag.to_owned(), value.to_owned()]);
        }
        words.extend(more.iter().map(|word| (*word).to_owned()));
        let process = Running::start(program("proxy"), &words, around, &self.path(&format!("{name}.log")));
        until(&format!("the proxy of {name}"), async || match ask(&ready, "x", "/healthz/ready").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
        process
    }

    /// Waits until this proxy is connected, and has taken all that it was sent.
    pub async fn in_sync(&self, proxy: &str) {
        until(&format!("{proxy} in sync"), async || {
            let rows: Vec<api::debug::SyncStatus> = serde_json::from_value(self.page("/debug/syncz").await).unwrap();
            let row = rows.into_iter().find(|row| row.proxy == format!("{proxy}.shop")).ok_or("not connected")?;
            let synced = row.types.iter().all(|kind| ["SYNCED", "NOT SENT"].contains(&kind.state.as_str()));
            if synced { Ok(()) } else { Err("not in sync") }
        })
        .await;
    }
}
