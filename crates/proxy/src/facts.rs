//! What is known of a connection: plain data, collected by `listen` and `tls`, read by every decision.

#![deny(clippy::disallowed_methods)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::spiffe::SpiffeId;

/// Which way the traffic of a listener flows (Envoy `core.v3.TrafficDirection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload, or through a gateway.
    #[default]
    Outbound,
}

impl Direction {
    /// The word as metrics and explanations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// What the peer's certificate proves, after it was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerFacts {
    /// URI names, in the certificate's order.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Subject, RFC 2253.
    pub subject: String,
    /// SHA-256 of the certificate, lower-case hex.
    pub hash: String,
    /// The certificate itself, DER.
    pub der: Vec<u8>,
    /// The identity, if the only URI is one.
    pub spiffe: Option<SpiffeId>,
}

impl PeerFacts {
    /// The principal as Istio's metrics write it, `unknown` without one.
    pub fn principal(&self) -> String {
        self.uris.first().cloned().unwrap_or_else(|| "unknown".to_owned())
    }
}

/// The client, where upstreams are called in its name: they see its address as that of their caller (Envoy `original_src`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub address: IpAddr,
    /// Mark of the packets to the upstream, by which answers find back; 0: none.
    pub mark: u32,
}

impl Caller {
    /// Whether an upstream can be called in its name: one on a loopback address cannot, its answer would not be routed; nor is a
    /// link's own address one without the link.
    pub fn calls(self, upstream: IpAddr) -> bool {
        let is_link_local = matches!(self.address, IpAddr::V6(six) if six.is_unicast_link_local());
        self.address.is_ipv4() == upstream.is_ipv4()
            && !is_link_local
            && (!upstream.is_loopback() || self.address.is_loopback())
    }
}

/// Everything known of one accepted connection.
#[derive(Clone, Debug)]
pub struct ConnFacts {
    /// Which way the listener's traffic flows.
    pub direction: Direction,
    /// Who dialled.
    pub remote: SocketAddr,
    /// Where the connection meant to go: the original destination if it was redirected, else the local address.
    pub destination: SocketAddr,
    /// Upstreams are called in the client's name.
    pub caller: Option<Caller>,
    /// Server name of the TLS client hello, lower case.
    pub server_name: Option<Arc<str>>,
    /// Negotiated application protocol.
    pub alpn: Option<Arc<str>>,
    /// The connection is TLS that we ended.
    pub tls: bool,
    /// The verified peer, if it showed a certificate.
    pub peer: Option<Arc<PeerFacts>>,
    /// Our own URI name on this connection, for `x-forwarded-client-cert`.
    pub own_uri: Option<Arc<str>>,
    /// TLS version as Envoy writes it, `TLSv1.3`; `None` without TLS.
    pub tls_version: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_called_in_a_clients_name_where_their_answer_comes_back() {
        for (client, upstream, expected) in [
            ("10.0.0.1", "10.0.0.2", true),
            ("fd00::1", "fd00::2", true),
            ("127.0.0.1", "127.0.0.1", true),
            // The answer from there could only go to this host's own addresses.
            ("10.0.0.1", "127.0.0.1", false),
            ("10.0.0.1", "fd00::2", false),
            ("fe80::1", "fd00::2", false),
        ] {
            let caller = Caller { address: client.parse().unwrap(), mark: 1 };
            assert_eq!(caller.calls(upstream.parse().unwrap()), expected, "{client} {upstream}");
        }
    }
}
