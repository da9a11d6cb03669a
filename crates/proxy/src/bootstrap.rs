//! Settings: `proxy sidecar|router --flags`, every flag also as an environment variable. Names are Istio's where it has one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::node::{NodeId, NodeMetadata, Role};
use clap::{Args, Parser, Subcommand};

use crate::control::Settings;

/// The data plane of the mesh.
#[derive(Debug, Parser)]
#[command(name = "proxy", version, about)]
pub struct Cli {
    /// What to run as.
    #[command(subcommand)]
    pub command: Command,
}

/// What to run as.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Beside one workload.
    Sidecar(Options),
    /// As a gateway.
    Router(Options),
}

impl Command {
    /// Role and options.
    pub fn parts(&self) -> (Role, &Options) {
        match self {
            Command::Sidecar(options) => (Role::Sidecar, options),
            Command::Router(options) => (Role::Router, options),
        }
    }
}

/// All settings of the proxy itself.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Name of the workload instance (pod).
    #[arg(long, env = "POD_NAME", default_value = "localhost")]
    pub pod_name: String,
    /// Its namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub pod_namespace: String,
    /// Its first address.
    #[arg(long, env = "INSTANCE_IP", default_value = "127.0.0.1")]
    pub instance_ip: IpAddr,
    /// Name of the workload (Deployment); empty: the instance's name.
    #[arg(long, env = "ISTIO_META_WORKLOAD_NAME", default_value = "")]
    pub workload_name: String,
    /// `kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME`.
    #[arg(long, env = "ISTIO_META_OWNER", default_value = "")]
    pub owner: String,
    /// Labels of the workload, `key=value` separated by commas.
    #[arg(long, env = "ISTIO_META_LABELS", default_value = "", value_parser = parse_labels)]
    pub labels: Labels,
    /// Service account.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Cluster that the workload runs in.
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Network that the workload is on.
    #[arg(long, env = "ISTIO_META_NETWORK", default_value = "")]
    pub network: String,
    /// Mesh.
    #[arg(long, env = "ISTIO_META_MESH_ID", default_value = "cluster.local")]
    pub mesh_id: String,
    /// How traffic is captured: REDIRECT, TPROXY or NONE.
    #[arg(long, env = "ISTIO_META_INTERCEPTION_MODE", default_value = "REDIRECT")]
    pub interception_mode: String,
    /// DNS domain; empty: NAMESPACE.svc.cluster.local.
    #[arg(long, env = "DOMAIN", default_value = "")]
    pub domain: String,
    /// Worker threads; 0: one for each core.
    #[arg(long, env = "CONCURRENCY", default_value_t = 0)]
    pub concurrency: usize,
    /// Envoy's admin interface.
    #[arg(long, env = "PROXY_ADMIN_ADDRESS", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// Status, merged metrics, drain.
    #[arg(long, env = "PROXY_STATUS_ADDRESS", default_value = "0.0.0.0:15020")]
    pub status_address: SocketAddr,
    /// Readiness.
    #[arg(long, env = "PROXY_READY_ADDRESS", default_value = "0.0.0.0:15021")]
    pub ready_address: SocketAddr,
    /// Prometheus.
    #[arg(long, env = "PROXY_PROMETHEUS_ADDRESS", default_value = "0.0.0.0:15090")]
    pub prometheus_address: SocketAddr,
    /// Longest drain, seconds: it ends earlier when nothing is left.
    #[arg(long = "drain-time-s", env = "TERMINATION_DRAIN_DURATION_SECONDS", default_value_t = 45)]
    pub drain_seconds: u64,
    /// Seconds during which new connections are still taken after the proxy was told to end.
    #[arg(long, env = "MINIMUM_DRAIN_DURATION_SECONDS", default_value_t = 0)]
    pub minimum_drain_seconds: u64,
    /// Log level and filter (`info`, `proxy=debug`).
    #[arg(long = "proxyLogLevel", env = "PROXY_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Log as JSON.
    #[arg(long = "log_as_json", env = "LOG_AS_JSON", default_value_t = false)]
    pub log_as_json: bool,
}

/// Labels of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

fn parse_labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    pairs.collect::<Result<_, String>>().map(Labels)
}

impl Options {
    /// The node's id.
    pub fn node_id(&self, role: Role) -> NodeId {
        let domain = if self.domain.is_empty() {
            format!("{}.svc.cluster.local", self.pod_namespace)
        } else {
            self.domain.clone()
        };
        NodeId {
            role,
            address: self.instance_ip,
            name: self.pod_name.clone(),
            namespace: self.pod_namespace.clone(),
            dns_domain: domain,
        }
    }

    /// The node's metadata.
    pub fn metadata(&self) -> NodeMetadata {
        NodeMetadata {
            name: self.pod_name.clone(),
            namespace: self.pod_namespace.clone(),
            workload_name: if self.workload_name.is_empty() {
                self.pod_name.clone()
            } else {
                self.workload_name.clone()
            },
            owner: self.owner.clone(),
            labels: self.labels.0.clone(),
            instance_ips: self.instance_ip.to_string(),
            service_account: self.service_account.clone(),
            cluster_id: self.cluster_id.clone(),
            network: self.network.clone(),
            mesh_id: self.mesh_id.clone(),
            interception_mode: self.interception_mode.clone(),
            mesh_admin_address: self.admin_address.to_string(),
            mesh_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..NodeMetadata::default()
        }
    }

    /// What the proxy is started with.
    pub fn settings(&self, role: Role) -> Settings {
        Settings {
            node_id: self.node_id(role).to_string(),
            metadata: self.metadata(),
            admin: self.admin_address,
            status: self.status_address,
            ready: self.ready_address,
            prometheus: self.prometheus_address,
            workers: self.concurrency,
            drain: Duration::from_secs(self.drain_seconds),
            drain_delay: Duration::from_secs(self.minimum_drain_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_settings() {
        let cli = Cli::try_parse_from([
            "proxy",
            "router",
            "--pod-name",
            "gw-1",
            "--pod-namespace",
            "edge",
            "--labels",
            "app=gw,version=v2",
            "--concurrency",
            "3",
        ])
        .unwrap();
        let (role, options) = cli.command.parts();
        let settings = options.settings(role);
        assert_eq!(settings.node_id, "router~127.0.0.1~gw-1.edge~edge.svc.cluster.local");
        assert_eq!((settings.metadata.labels["version"].as_str(), settings.workers), ("v2", 3));
        assert!(Cli::try_parse_from(["proxy", "sidecar", "--labels", "nonsense"]).is_err());
    }
}
