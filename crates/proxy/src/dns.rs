//! DNS for the workload (Istio `pkg/dns/client`): names of the mesh are answered from a table that the control plane serves,
//! all others by the name servers of `resolv.conf`. `capture` sends the workload's queries here.

pub mod resolv_conf;
mod message;
mod table;
mod metrics;
mod forward;
mod serve;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::xds::nds::NameTable;
use api::xds::{Any, unpack};
use arc_swap::ArcSwapOption;

use forward::Forwarder;
use metrics::Metrics;
use resolv_conf::{RESOLV_CONF, ResolvConf};
pub use serve::Serving;
use table::{Own, Table};

use crate::go_value::{parse_bool, parse_duration};

/// Settings of the capture of DNS. Variables and defaults are Istio's.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "dns")]
pub struct Arguments {
    /// Answer the workload's DNS queries, which `proxy init --redirect-dns` sends here.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", num_args = 0..=1, default_value = "false", default_missing_value = "true",
          value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub dns_capture: bool,
    /// Where DNS is answered, over UDP and TCP; `localhost` is the loopback address of either family.
    #[arg(long, env = "DNS_PROXY_ADDR", default_value = "localhost:15053")]
    pub dns_proxy_addr: Listen,
    /// Ask all name servers at once in place of one after the other.
    #[arg(long, env = "DNS_FORWARD_PARALLEL", num_args = 0..=1, default_value = "false", default_missing_value = "true",
          value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub dns_forward_parallel: bool,
    /// How long a name server has.
    #[arg(long, env = "DNS_FORWARD_TIMEOUT", default_value = "5s", value_parser = parse_duration)]
    pub dns_forward_timeout: Duration,
}

/// What a server of DNS is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens; the first must be had, others only if this host has such addresses.
    pub listen: Vec<SocketAddr>,
    /// Who answers what is not of the mesh.
    pub servers: Vec<SocketAddr>,
    /// The suffix that programs try first for names that are not whole.
    pub search: Option<String>,
    /// Namespace of the workload.
    pub namespace: String,
    /// What follows the namespace in the names of services: `svc.cluster.local`.
    pub domain: String,
    /// Whether all name servers are asked at once.
    pub parallel: bool,
    /// How long a name server has.
    pub timeout: Duration,
}

impl Arguments {
    /// The settings, if DNS is captured. `dns_domain` is that of the node id, `NAMESPACE.svc.cluster.local`.
    pub fn settings(&self, namespace: &str, dns_domain: &str) -> Option<Settings> {
        if !self.dns_capture {
            return None;
        }
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let conf = ResolvConf::parse(&text);
        let own = dns_domain.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('.'));
        Some(Settings {
            listen: self.dns_proxy_addr.0.clone(),
            servers: conf.servers.iter().map(|address| SocketAddr::new(*address, 53)).collect(),
            search: conf.search.first().cloned(),
            namespace: namespace.to_owned(),
            domain: own.unwrap_or(dns_domain).to_owned(),
            parallel: self.dns_forward_parallel,
            timeout: self.dns_forward_timeout,
        })
    }
}

/// Where DNS is answered: an address, or `localhost` for the loopback addresses of both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen(pub Vec<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an address and port such as localhost:15053");
        let Some(port) = text.strip_prefix("localhost:") else {
            return text.parse().map(|address| Self(vec![address])).map_err(|_| wrong());
        };
        let port: u16 = port.parse().map_err(|_| wrong())?;
        Ok(Self(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]))
    }
}

/// The server of DNS.
pub struct Dns {
    own: Own,
    /// Nothing until the control plane has told.
    table: ArcSwapOption<Table>,
    forwarder: Forwarder,
    metrics: Arc<Metrics>,
}

impl Dns {
    /// Listens, and answers from then on. Ends with its last holder, and with the runtime.
    ///
    /// # Errors
    /// The first address cannot be had.
    pub async fn start(settings: Settings) -> anyhow::Result<(Arc<Dns>, Serving)> {
        let metrics = Arc::new(Metrics::default());
        if settings.servers.is_empty() {
            tracing::warn!("{RESOLV_CONF} names no name server: only names of the mesh can be answered");
        }
        let dns = Arc::new(Dns {
            own: Own { namespace: settings.namespace, domain: settings.domain, search: settings.search },
            table: ArcSwapOption::empty(),
            forwarder: Forwarder::new(settings.servers, settings.parallel, settings.timeout, Arc::clone(&metrics)),
            metrics,
        });
        let mut serving = Serving::default();
        for (place, address) in settings.listen.iter().enumerate() {
            match serving.add(&dns, *address).await {
                Ok(()) => {}
                Err(error) if place > 0 => {
                    tracing::info!(%address, %error, "DNS is not answered there: this host does not have the address");
                }
                Err(error) => return Err(error).with_context(|| format!("DNS cannot be answered on {address}")),
            }
        }
        Ok((dns, serving))
    }

    /// Takes the control plane's table.
    ///
    /// # Errors
    /// It cannot be read; a sentence. The last good one stays.
    pub fn set_names(&self, body: &Any) -> Result<(), String> {
        let names: NameTable = unpack(body)?;
        let table = Table::new(names)?;
        tracing::debug!(names = table.len(), "a new table of names");
        self.table.store(Some(Arc::new(table)));
        Ok(())
    }

    /// Istio's metrics of it, as Prometheus reads them.
    pub fn prometheus(&self) -> String {
        self.metrics.prometheus()
    }
}

/// Any address of this host of the family of another, and any port.
fn unspecified(like: SocketAddr) -> SocketAddr {
    let any = match like.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(any, 0)
}

#[cfg(test)]
mod tests;
