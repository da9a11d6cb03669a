//! Every setting of the proxy: flag, environment variable (Istio's name where it has one), default; and the node it says it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::node::{NodeId, NodeMetadata, Role};
use api::xds::core::{Extension, Node};
use api::xds::json_to_struct;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::capture;
use crate::cni::install;
use crate::control::Settings;
use crate::dns;
use crate::filters;
use crate::go_value::parse_duration;
use crate::identity::sds;
use crate::pod::Pod;
use crate::xds::client::Options;

/// The release of Istio whose configuration the proxy understands.
const ISTIO_VERSION: &str = "1.32.0";
/// Extensions that only Istio's builds of Envoy have, and this proxy: a control plane may use them.
const EXTENSIONS: &[&str] =
    &["istio.metadata_exchange", "envoy.filters.network.metadata_exchange", "istio.stats", "istio.alpn"];

/// The data plane of the mesh: proxies the traffic of one workload, or of a gateway.
#[derive(Debug, Parser)]
#[command(name = "proxy", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to be.
    #[command(subcommand)]
    pub command: Command,
}

/// `proxy …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Beside a workload.
    Sidecar(Box<Arguments>),
    /// At the edge of the mesh.
    Router(Box<Arguments>),
    /// Beside an Envoy: get the workload's certificate and serve it on the workload socket, as Istio's agent does.
    Sds(Box<sds::Arguments>),
    /// Install the rules that send a workload's traffic through its sidecar (Istio's `istio-iptables`), then end.
    #[command(visible_alias = "istio-iptables")]
    Init(Box<capture::Options>),
    /// On each node of a cluster: keep the plug-in `istio-cni` in its place, which does what `init` does, from outside of pods.
    InstallCni(Box<install::Arguments>),
}

/// Settings of a sidecar or gateway.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Name of the workload's instance (the pod).
    #[arg(long, env = "POD_NAME")]
    pub name: String,
    /// Its namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Its address.
    #[arg(long, env = "INSTANCE_IP")]
    pub ip: IpAddr,
    /// All of its addresses, if there are more: a workload with addresses of both families is captured in both.
    #[arg(long, env = "INSTANCE_IPS", value_delimiter = ',')]
    pub instance_ips: Vec<IpAddr>,
    /// Its service account.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Its labels, if the control plane does not know it by its address: `app=user,version=v1`.
    #[arg(long, env = "MESH_LABELS", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Name of the workload (the Deployment); the instance's name if not given.
    #[arg(long, env = "ISTIO_META_WORKLOAD_NAME")]
    pub workload_name: Option<String>,
    /// How traffic comes: REDIRECT or TPROXY (captured by `proxy init`; with TPROXY the application sees its callers' addresses), or
    /// NONE (the proxy is addressed).
    #[arg(long, env = "ISTIO_META_INTERCEPTION_MODE", default_value = "REDIRECT")]
    pub interception_mode: String,
    /// The proxy's own settings in YAML, with the fields of the mesh's `defaultConfig`, over which they count (Istio: the
    /// annotation `proxy.istio.io/config`). Of them, `proxyHeaders.preserveHttp1HeaderCase` has an effect.
    #[arg(long, env = "PROXY_CONFIG", value_parser = api::mesh_config::proxy_config)]
    pub proxy_config: Option<serde_json::Value>,
    /// Cluster that the workload runs in.
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Mesh that it belongs to.
    #[arg(long, env = "ISTIO_META_MESH_ID", default_value = "cluster.local")]
    pub mesh_id: String,
    /// Domain of its services' names; `NAMESPACE.svc.cluster.local` if not given.
    #[arg(long, env = "DNS_DOMAIN")]
    pub domain: Option<String>,
    /// Admin interface. Port 0 takes a free port.
    #[arg(long, env = "ADMIN_ADDR", default_value_t = at(api::port::ADMIN))]
    pub admin_addr: SocketAddr,
    /// Metrics and health as Istio's agent serves them.
    #[arg(long, env = "STATUS_ADDR", default_value_t = any(api::port::STATUS))]
    pub status_addr: SocketAddr,
    /// Readiness.
    #[arg(long, env = "READY_ADDR", default_value_t = any(api::port::READY))]
    pub ready_addr: SocketAddr,
    /// Metrics as Envoy serves them.
    #[arg(long, env = "PROMETHEUS_ADDR", default_value_t = any(api::port::PROMETHEUS))]
    pub prometheus_addr: SocketAddr,
    /// Worker threads; 0 is one for each core.
    #[arg(long, env = "CONCURRENCY", visible_alias = "concurrency", default_value_t = 0)]
    pub workers: usize,
    /// Longest time that running requests get after SIGTERM.
    #[arg(long, env = "DRAIN_DURATION", visible_alias = "drainDuration", default_value = "45s", value_parser = parse_duration)]
    pub drain: Duration,
    /// How long new connections are still taken after SIGTERM.
    #[arg(long, env = "DRAIN_DELAY", default_value = "0s", value_parser = parse_duration)]
    pub drain_delay: Duration,
    /// What is logged.
    #[arg(long, env = "PROXY_LOG", visible_aliases = ["proxyLogLevel", "log_output_level"], default_value = "info")]
    pub log: String,
    /// Log as JSON.
    #[arg(long, env = "LOG_AS_JSON", visible_alias = "log_as_json")]
    pub log_as_json: bool,
    /// The control plane.
    #[command(flatten)]
    pub control_plane: Options,
    /// The capture of DNS.
    #[command(flatten)]
    pub dns: dns::Arguments,
    /// What only a proxy in a pod has.
    #[arg(skip)]
    pub pod: Pod,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Arguments {
    /// The settings of the proxy proper.
    pub fn settings(&self, role: Role) -> Settings {
        let dns_domain = self.domain.clone().unwrap_or_else(|| format!("{}.svc.cluster.local", self.namespace));
        // Gateways have no workload that asks.
        let dns = if role == Role::Sidecar { self.dns.settings(&self.namespace, &dns_domain) } else { None };
        let id =
            NodeId { role, address: self.ip, name: self.name.clone(), namespace: self.namespace.clone(), dns_domain };
        Settings {
            dns,
            node_id: id.to_string(),
            metadata: self.metadata(),
            admin: self.admin_addr,
            status: self.status_addr,
            ready: self.ready_addr,
            prometheus: self.prometheus_addr,
            workers: self.workers,
            drain: self.drain,
            drain_delay: self.drain_delay,
            pod: self.pod.clone(),
        }
    }

    /// What is said in the proxy's own settings and has no effect.
    pub fn without_effect(&self) -> Vec<String> {
        let Some(config) = &self.proxy_config else { return Vec::new() };
        let mut fields = api::mesh_config::proxy_config_without_effect(config);
        // The setting of its own counts.
        fields.extend(config.get("interceptionMode").map(|_| "interceptionMode".to_owned()));
        fields
    }

    fn addresses(&self) -> String {
        let mut all = vec![self.ip];
        all.extend(self.instance_ips.iter().filter(|address| **address != self.ip));
        all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
    }

    fn metadata(&self) -> NodeMetadata {
        let told = |name: &str| self.pod.metadata.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        NodeMetadata {
            owner: told("OWNER"),
            network: told("NETWORK"),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            workload_name: self.workload_name.clone().unwrap_or_else(|| self.name.clone()),
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            instance_ips: self.addresses(),
            service_account: self.service_account.clone(),
            cluster_id: self.cluster_id.clone(),
            mesh_id: self.mesh_id.clone(),
            interception_mode: self.interception_mode.clone(),
            proxy_config: self.proxy_config.clone().unwrap_or_default(),
            istio_version: ISTIO_VERSION.to_owned(),
            mesh_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..NodeMetadata::default()
        }
    }
}

/// The node as an xDS server is told. `admin` is where the admin interface came to listen.
pub fn node(settings: &Settings, admin: SocketAddr) -> Node {
    let mut metadata = settings.metadata.clone();
    metadata.dns_capture = if settings.dns.is_some() { "true".to_owned() } else { String::new() };
    metadata.mesh_admin_address = admin.to_string();
    let mut json = serde_json::to_value(&metadata).unwrap_or_default();
    if let Some(map) = json.as_object_mut() {
        map.retain(|_, value| value.as_str() != Some(""));
        for (name, value) in &settings.pod.metadata {
            map.entry(name).or_insert_with(|| value.clone());
        }
    }
    let named = EXTENSIONS.iter().map(|name| Extension { name: (*name).to_owned(), ..Extension::default() });
    let typed = filters::TABLE.iter().map(|row| Extension {
        name: row.type_name.to_owned(),
        type_urls: vec![row.type_name.to_owned()],
        ..Extension::default()
    });
    Node {
        id: settings.node_id.clone(),
        cluster: format!("{}.{}", metadata.workload_name, metadata.namespace),
        metadata: Some(json_to_struct(&json)),
        user_agent_name: "mesh-proxy".to_owned(),
        extensions: named.chain(typed).collect(),
        ..Node::default()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_setting_has_a_doc_line_and_a_variable() {
        Cli::command().debug_assert();
        let command = Cli::command();
        let sidecar = command.find_subcommand("sidecar").unwrap();
        for argument in
            sidecar.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
        {
            assert!(argument.get_help().is_some() && argument.get_env().is_some(), "{}", argument.get_id());
        }
    }

    #[test]
    fn the_node_says_who_it_is() {
        let line = "proxy sidecar --name user-1 --namespace shop --ip 127.1.2.3 --labels app=user,version=v1 --interception-mode NONE";
        let Command::Sidecar(arguments) = Cli::parse_from(line.split(' ')).command else { panic!("not a sidecar") };
        let node = node(&arguments.settings(Role::Sidecar), "127.0.0.1:15000".parse().unwrap());
        assert_eq!(node.id, "sidecar~127.1.2.3~user-1.shop~shop.svc.cluster.local");
        let read = NodeMetadata::of(&node);
        assert_eq!(
            (read.labels["app"].as_str(), read.mesh_admin_address.as_str(), read.interception_mode.as_str()),
            ("user", "127.0.0.1:15000", "NONE")
        );
        assert!(api::node::has_extension(&node, "istio.stats"));
    }
}
