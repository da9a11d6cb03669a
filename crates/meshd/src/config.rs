//! Every setting: flag (Istio's spelling as an alias where it has one), environment variable, default.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;

/// The control plane of the mesh: reads Istio's objects, serves xDS and certificates.
#[derive(Clone, Debug, Parser)]
#[command(name = "meshd", version, about, long_about = None)]
pub struct Config {
    /// Folder of YAML and JSON files with the objects; read recursively, followed as it changes. Without it the objects are
    /// those of the Kubernetes cluster.
    #[arg(long, env = "MESHD_CONFIG_DIR", visible_alias = "configDir", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// How to reach the cluster, in a kubeconfig file; in a pod of the cluster its own service account is enough.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace in which the control plane runs, and whose objects count for the whole mesh.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,
    /// Name of this replica.
    #[arg(long, env = "POD_NAME", default_value = "meshd")]
    pub replica: String,
    /// Name of the cluster, in metrics and identities of proxies.
    #[arg(long, env = "CLUSTER_ID", visible_alias = "clusterID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Revision: which of several control planes of a cluster this is (Istio `istio.io/rev`).
    #[arg(long, env = "REVISION", default_value = "default")]
    pub revision: String,
    /// File with mesh-wide settings (MeshConfig), followed as it changes. A ConfigMap `istio` in the root namespace overrides it.
    #[arg(long, env = "MESHD_MESH_CONFIG", visible_alias = "meshConfig", value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// Folder that keeps the root key and the key of join tokens across restarts.
    #[arg(long, env = "MESHD_STATE_DIR", default_value = "meshd-state", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Folder with a certificate authority to use instead of our own: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem.
    #[arg(long, env = "MESHD_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Plaintext xDS. Port 0 takes a free port. Empty switches it off.
    #[arg(long, env = "MESHD_GRPC_ADDR", visible_alias = "grpcAddr", default_value = "127.0.0.1:15010", value_parser = address, value_name = "HOST:PORT")]
    pub grpc_addr: Address,
    /// xDS and certificates over TLS.
    #[arg(long, env = "MESHD_SECURE_GRPC_ADDR", visible_aliases = ["secureGRPCAddr", "secureGrpcAddr"], default_value = ":15012", value_parser = address, value_name = "HOST:PORT")]
    pub secure_grpc_addr: Address,
    /// Webhooks, over TLS.
    #[arg(long, env = "MESHD_HTTPS_ADDR", visible_alias = "httpsAddr", default_value = ":15017", value_parser = address, value_name = "HOST:PORT")]
    pub https_addr: Address,
    /// Readiness and debug pages.
    #[arg(long, env = "MESHD_HTTP_ADDR", visible_alias = "httpAddr", default_value = ":8080", value_parser = address, value_name = "HOST:PORT")]
    pub http_addr: Address,
    /// Metrics and debug pages.
    #[arg(long, env = "MESHD_MONITORING_ADDR", visible_alias = "monitoringAddr", default_value = ":15014", value_parser = address, value_name = "HOST:PORT")]
    pub monitoring_addr: Address,
    /// DNS domain of services.
    #[arg(long, env = "MESHD_DOMAIN", default_value = "cluster.local")]
    pub domain: String,
    /// Namespace of objects that name none.
    #[arg(long, env = "MESHD_NAMESPACE", short = 'n', default_value = "default")]
    pub namespace: String,
    /// Host names and addresses to put into the certificate of the TLS ports, besides the usual ones.
    #[arg(long, env = "MESHD_SERVING_NAMES", value_delimiter = ',')]
    pub serving_names: Vec<String>,
    /// Longest time between two looks at an issuer's keys, by which tokens are checked.
    #[arg(long, env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", default_value = "20m", value_parser = length, value_name = "TIME")]
    pub jwks_refresh: Duration,
    /// Addresses (CIDR) that are not asked for keys, whoever names them in a RequestAuthentication.
    #[arg(long, env = "BLOCKED_CIDRS_IN_JWKS_URIS", default_value = "", value_parser = blocks, value_name = "CIDR,CIDR")]
    pub blocked_jwks_cidrs: Blocks,
    /// After SIGTERM: not ready any more, but serving for this long, in milliseconds, so that callers find other replicas first;
    /// 8,000 in a cluster, 0 with a folder. Less than the pod's grace period.
    #[arg(long, env = "MESHD_LEAVE_MS")]
    pub leave_ms: Option<u64>,
    /// Longest time that open streams and requests get after SIGTERM, in milliseconds.
    #[arg(long, env = "MESHD_SHUTDOWN_MS", default_value_t = 500)]
    pub shutdown_ms: u64,
    /// What is logged: `info`, `meshd=debug`, …
    #[arg(long, env = "MESHD_LOG", visible_alias = "log_output_level", default_value = "info")]
    pub log: String,
    /// Log as JSON.
    #[arg(long, env = "MESHD_LOG_AS_JSON", visible_alias = "log_as_json")]
    pub log_as_json: bool,
}

/// Time for leaving in a cluster: a node hears of an endpoint that is gone within a second or two.
const LEAVE: Duration = Duration::from_secs(8);

impl Config {
    /// How long leaving takes.
    pub fn leave(&self) -> Duration {
        let default = if self.config_dir.is_some() { Duration::ZERO } else { LEAVE };
        self.leave_ms.map_or(default, Duration::from_millis)
    }
}

/// Where to listen; `None` for an empty text: not at all.
pub type Address = Option<SocketAddr>;

/// `host:port`, `:port` (all addresses), or empty. Type alias hidden from clap by the function's return type.
fn address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.replace("localhost:", "127.0.0.1:") };
    full.parse().map(Some).map_err(|_| format!("{text:?} is not ADDRESS:PORT, :PORT or empty"))
}

/// Ranges of addresses; a type of its own, since an empty text is none of them rather than one that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks(pub Vec<IpNet>);

/// Ranges or single addresses with commas in between.
fn blocks(text: &str) -> Result<Blocks, String> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let block = |word: &str| match word.parse::<IpAddr>() {
        Ok(address) => Ok(address.into()),
        Err(_) => word.parse().map_err(|_| format!("{word:?} is neither an address nor a range such as 10.0.0.0/8")),
    };
    words.map(block).collect::<Result<_, _>>().map(Blocks)
}

/// A length of time as Go writes it, above zero.
fn length(text: &str) -> Result<Duration, String> {
    let length: api::value::Duration = text.parse()?;
    if length.is_zero() { Err("the time must be above zero".to_owned()) } else { Ok(length.0) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn istios_spellings_are_taken() {
        let config = Config::try_parse_from([
            "meshd",
            "--configDir",
            "x",
            "--grpcAddr",
            ":0",
            "--monitoringAddr",
            "127.0.0.1:1",
            "--httpsAddr",
            "",
        ])
        .unwrap();
        assert_eq!(config.grpc_addr, Some("0.0.0.0:0".parse().unwrap()));
        assert_eq!(config.https_addr, None);
        assert!(Config::try_parse_from(["meshd", "--config-dir", "x", "--grpc-addr", "nonsense"]).is_err());
    }

    #[test]
    fn addresses_without_keys_are_read() {
        let of = |text: &str| {
            let line = ["meshd", "--config-dir", "x", "--blocked-jwks-cidrs", text];
            Config::try_parse_from(line).map(|config| config.blocked_jwks_cidrs.0.len())
        };
        assert_eq!(of("").unwrap(), 0);
        assert_eq!(of("10.0.0.0/8, ::1,192.168.1.1").unwrap(), 3);
        assert!(of("10.0.0.0/8,x").is_err());
        let of =
            |text: &str| Config::try_parse_from(["meshd", "--jwks-refresh", text]).map(|config| config.jwks_refresh);
        assert_eq!(of("20m0s").unwrap(), Duration::from_secs(1200));
        assert!(of("0s").is_err() && of("soon").is_err());
    }

    #[test]
    fn every_setting_has_a_doc_line_and_a_variable() {
        Config::command().debug_assert();
        for argument in Config::command()
            .get_arguments()
            .filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
        {
            assert!(argument.get_help().is_some() && argument.get_env().is_some(), "{}", argument.get_id());
        }
    }
}
