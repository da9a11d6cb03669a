//! One workload twice, behind our proxy and behind a real Envoy, under one control plane: what they decide can be compared.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use api::node::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::control_plane::ControlPlane;
use crate::envoy::{Envoy, Workload};
use crate::server::ask;
use crate::sidecar::Process;
use crate::wait::until;

/// Ends of names: ours, Envoy.
pub const KINDS: [char; 2] = ['m', 'e'];
/// Settings of the mesh, in which each proxy says in JSON what it has done.
pub const MESH: &str = "proxyHttpPort: 15080\naccessLogFile: /dev/stdout\naccessLogEncoding: JSON\ndefaultConfig: {interceptionMode: NONE}\n";

/// Both of them; they end with this value.
pub struct Twins {
    /// Addresses of the workloads `web-m` and `web-e`.
    pub addresses: [String; 2],
    /// Where the proxies say what they have done.
    pub outputs: [PathBuf; 2],
    /// Their admin interfaces.
    pub admins: [String; 2],
    /// The control plane.
    pub control_plane: ControlPlane,
    _ours: Process,
    _envoy: Envoy,
}

impl Twins {
    /// Starts the proxies of the workloads `web-m` and `web-e` in the namespace `shop`.
    pub async fn start(control_plane: ControlPlane, addresses: [String; 2]) -> Twins {
        let output = control_plane.path("web-m.out");
        let file = Stdio::from(std::fs::File::create(&output).unwrap());
        let ours = Process::start_writing(&control_plane, Role::Sidecar, "web-m", "shop", &addresses[0], file).await;
        let identity = Workload {
            node_id: format!("sidecar~{}~web-e.shop~shop.svc.cluster.local", addresses[1]),
            namespace: "shop".into(),
            account: "web-e".into(),
            labels: json!({"app": "web-e"}),
        };
        let envoy = Envoy::start(&control_plane, &identity, true);
        let admin = until("Envoy", async || {
            let admin = envoy.admin().ok_or_else(|| "no admin".to_owned())?;
            match ask(&admin, "x", "/ready").await {
                Ok((200, _)) => Ok(admin),
                other => Err(format!("{other:?} {}", std::fs::read_to_string(&envoy.log).unwrap())),
            }
        })
        .await;
        Twins {
            outputs: [output, envoy.output.clone()],
            admins: [format!("{}:{}", addresses[0], api::port::ADMIN), admin],
            addresses,
            control_plane,
            _ours: ours,
            _envoy: envoy,
        }
    }

    /// The answer to a request that asks for the connection's end, as it came.
    pub async fn send(&self, place: usize, port: u16, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(format!("{}:{port}", self.addresses[place])).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // Who is refused may find the connection reset.
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Lines of a log that are about this.
    pub fn lines(&self, place: usize, about: impl Fn(&Value) -> bool) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.outputs[place]).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|line| about(line)).collect()
    }

    /// What the log says of a request by its `user-agent`, once it does.
    pub async fn told<const N: usize>(&self, place: usize, id: &str, keys: [&str; N]) -> [String; N] {
        let about = |line: &Value| line["user_agent"] == id;
        let line = until("the log", async || self.lines(place, about).into_iter().next().ok_or("no line")).await;
        keys.map(|key| line[key].to_string())
    }
}
