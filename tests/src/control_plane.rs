//! A control plane in this process, on ports of the system's choice, with folders of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::debug::SyncStatus;
use api::join_token;
use api::problem::Problem;
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use meshd::app::Running;
use meshd::config::Config;
use meshd::state::Published;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};

/// The control plane; ends with this value.
pub struct ControlPlane {
    /// Where it listens.
    pub addresses: api::debug::Addresses,
    /// What it has planned.
    pub published: watch::Receiver<Option<Published>>,
    folder: TempDir,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl ControlPlane {
    /// Starts one with these files in its folder, and waits until it is ready.
    pub async fn start(files: &[(&str, &str)]) -> ControlPlane {
        Self::start_with(files, "").await
    }

    /// The same with mesh-wide settings.
    pub async fn start_with(files: &[(&str, &str)], mesh_config: &str) -> ControlPlane {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        std::fs::write(folder.path().join("mesh.yaml"), mesh_config).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("config").join(name), text).unwrap();
        }
        Self::start_in(folder, 0).await
    }

    /// The same, but it leaves in so many milliseconds, as in a cluster.
    pub async fn start_that_leaves(files: &[(&str, &str)], milliseconds: u64) -> ControlPlane {
        let mut control_plane = Self::start(files).await;
        control_plane.end().await;
        let folder = std::mem::replace(&mut control_plane.folder, tempfile::tempdir().unwrap());
        Self::start_in(folder, milliseconds).await
    }

    async fn start_in(folder: TempDir, leave: u64) -> ControlPlane {
        let path = |below: &str| folder.path().join(below).display().to_string();
        let any = "127.0.0.1:0";
        let line = [
            "meshd",
            "--config-dir",
            &path("config"),
            "--mesh-config",
            &path("mesh.yaml"),
            "--state-dir",
            &path("state"),
            "--grpc-addr",
            any,
            "--secure-grpc-addr",
            any,
            "--http-addr",
            any,
            "--monitoring-addr",
            any,
            "--https-addr",
            any,
            "--leave-ms",
            &leave.to_string(),
        ]
        .map(str::to_owned);
        let mut running = Running::start(Config::parse_from(line)).await.unwrap();
        running.ready().await.unwrap();
        let (addresses, published) = (running.addresses.clone(), running.published.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let end = async {
            let _ = stopped.await;
        };
        let ended = tokio::spawn(running.run_until(end, Duration::from_secs(1)));
        ControlPlane { addresses, published, folder, stop: Some(stop), ended: Some(ended) }
    }

    /// Ends it and starts another on the same folders (and other ports).
    pub async fn restart(mut self) -> ControlPlane {
        self.end().await;
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start_in(folder, 0).await
    }

    /// Tells it to end, as SIGTERM does.
    pub fn tell_to_end(&mut self) {
        self.stop.take();
    }

    /// Ends it.
    pub async fn end(&mut self) {
        self.tell_to_end();
        self.ended.take().unwrap().await.unwrap().unwrap();
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

    /// A join token.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        let key = std::fs::read(self.path("state").join(join_token::KEY_FILE)).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        join_token::create(&key, namespace, account, now, 600).unwrap()
    }

    /// File with what to trust.
    pub fn root_cert(&self) -> PathBuf {
        self.path("state").join("root-cert.pem")
    }

    /// A page of the debug port.
    pub async fn page(&self, path: &str) -> serde_json::Value {
        let (status, body) = get(&self.addresses.http, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or(serde_json::Value::String(body))
    }

    /// Connected proxies.
    pub async fn proxies(&self) -> Vec<SyncStatus> {
        serde_json::from_value(self.page("/debug/syncz").await).unwrap()
    }

    /// All problems of now.
    pub fn problems(&self) -> Vec<Problem> {
        self.published.borrow().as_ref().unwrap().problems().cloned().collect()
    }

    /// A metric's value; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = get(&self.addresses.monitoring, "/metrics").await;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok()).unwrap_or_default()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop.take();
    }
}

/// A plain GET: status and body.
pub async fn get(address: &str, path: &str) -> (u16, String) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", address).body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// The files of a folder, with their names.
pub fn files_of(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}
