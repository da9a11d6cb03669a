//! Settings of a cluster (Envoy `cluster.v3.Cluster`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoints;
use super::tls_terms::ClientTerms;

/// A compiled cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: Arc<str>,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How a host is picked.
    pub balance: Balance,
    /// Time to make a connection, TLS included.
    pub connect_timeout: Duration,
    /// What is spoken to the endpoints.
    pub protocol: Protocol,
    /// Keep the spelling of HTTP/1 header names (`preserve_case` formatter): asks for HTTP/1.1 connections.
    pub preserve_header_case: bool,
    /// Idle connections are closed after this; zero: never.
    pub idle_timeout: Duration,
    /// Requests after which a connection is retired; 0: no limit.
    pub max_requests_per_connection: u32,
    /// A connection is retired at this age.
    pub max_connection_duration: Option<Duration>,
    /// Concurrent streams of one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Circuit breakers (`DEFAULT` priority).
    pub limits: Limits,
    /// Ejection of failing hosts.
    pub outlier: Option<Outlier>,
    /// Percentage of healthy hosts under which health is ignored.
    pub panic_threshold: u8,
    /// How to talk: by endpoint metadata, the first match counts; none left: plaintext.
    pub sockets: Vec<SocketChoice>,
    /// Our metadata is told in front of the bytes of TCP connections and the endpoint's is read, if TLS negotiated that.
    pub exchange: bool,
    /// Source addresses of connections, of each family the first (`upstream_bind_config`).
    pub bind: Vec<IpAddr>,
    /// Seconds of silence before TCP keep-alive probes start, seconds between them, and their number.
    pub tcp_keepalive: Option<(u32, u32, u32)>,
    /// Which addresses of a name count.
    pub dns_family: Family,
    /// How often names are looked up.
    pub dns_refresh: Duration,
    /// Names are looked up when what was found is no longer valid, in place of `dns_refresh`.
    pub respect_dns_ttl: bool,
    /// Name servers; empty: the system's.
    pub name_servers: Vec<SocketAddr>,
    /// The service as Istio's metrics name it: host, name, namespace.
    pub service: Service,
    /// The configuration object the cluster comes from (`DestinationRule shop/a`), if it says so.
    pub object: Option<Arc<str>>,
    /// The object that the service is (`Service shop/a`), if it says so.
    pub origin: Option<Arc<str>>,
}

/// Istio's name of a destination service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Host.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

/// Where endpoints come from.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// In the cluster itself.
    Static(Arc<Endpoints>),
    /// By EDS under this name.
    Eds(Arc<str>),
    /// Each name in it stands for all of its addresses.
    StrictDns(Arc<Endpoints>),
    /// Each name in it stands for one of its addresses.
    LogicalDns(Arc<Endpoints>),
    /// The connection's original destination, with another port if one is given.
    OriginalDst {
        /// Replaces the port.
        port: Option<u16>,
    },
}

/// How a host is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// One after the other, by weight.
    RoundRobin,
    /// The least busy of some picked at random.
    LeastRequest {
        /// How many; 2 by default.
        choices: u32,
    },
    /// At random, by weight.
    Random,
}

/// What is spoken to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// What the client speaks.
    Downstream,
    /// What TLS negotiates, HTTP/1.1 without TLS.
    Auto,
}

/// Circuit breakers (Envoy `CircuitBreakers.Thresholds`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests under way.
    pub requests: u32,
    /// Retries under way.
    pub retries: u32,
    /// Retries as a share of requests under way, in place of `retries`.
    pub budget: Option<Budget>,
}

/// Retry budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Percentage of the requests under way that may be retries.
    pub percent: f64,
    /// Retries that are always allowed.
    pub min_concurrency: u32,
}

/// Outlier detection (Envoy `OutlierDetection`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlier {
    /// Consecutive 5xx (and local failures) that eject; 0: off.
    pub consecutive_5xx: u32,
    /// Consecutive 502, 503, 504 that eject; 0: off.
    pub consecutive_gateway: u32,
    /// Consecutive local failures that eject, counted apart; 0: counted as 5xx.
    pub consecutive_local: u32,
    /// How often hosts are looked at for return.
    pub interval: Duration,
    /// First time out; grows with every ejection.
    pub base_ejection: Duration,
    /// Longest time out.
    pub max_ejection: Duration,
    /// Share of hosts that may be out, in percent.
    pub max_percent: u32,
}

/// One transport socket with the metadata that asks for it.
#[derive(Clone, Debug)]
pub struct SocketChoice {
    /// All of these must stand in the endpoint's metadata; empty matches every endpoint.
    pub labels: BTreeMap<String, String>,
    /// TLS terms, none for plaintext.
    pub tls: Option<Arc<ClientTerms>>,
}

impl Cluster {
    /// The terms under which an endpoint with this metadata is dialled; `None` is plaintext.
    pub fn socket_for(&self, metadata: &BTreeMap<String, String>) -> Option<&Arc<ClientTerms>> {
        self.sockets
            .iter()
            .find(|choice| choice.labels.iter().all(|(key, value)| metadata.get(key) == Some(value)))
            .and_then(|choice| choice.tls.as_ref())
    }
}

/// Which addresses of a looked-up name count (Envoy `DnsLookupFamily`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 if there is no IPv6 (`AUTO`).
    V6Preferred,
    /// IPv6 if there is no IPv4.
    V4Preferred,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// Both.
    All,
}

impl Family {
    /// Those of the addresses that count.
    pub fn of(self, all: Vec<IpAddr>) -> Vec<IpAddr> {
        let (four, six): (Vec<_>, Vec<_>) = all.iter().copied().partition(IpAddr::is_ipv4);
        match self {
            Family::V4Only => four,
            Family::V6Only => six,
            Family::V4Preferred if !four.is_empty() => four,
            Family::V4Preferred => six,
            Family::V6Preferred if !six.is_empty() => six,
            Family::V6Preferred => four,
            Family::All => all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_family() {
        let (four, six): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into());
        for (family, of_both, of_four) in [
            (Family::V4Preferred, vec![four], vec![four]),
            (Family::V6Preferred, vec![six], vec![four]),
            (Family::V4Only, vec![four], vec![four]),
            (Family::V6Only, vec![six], vec![]),
            (Family::All, vec![four, six], vec![four]),
        ] {
            assert_eq!(family.of(vec![four, six]), of_both, "{family:?}");
            assert_eq!(family.of(vec![four]), of_four, "{family:?}");
        }
    }
}
