//! What is known of a connection: plain data, collected by `listen` and `tls`, read by every decision.

#![deny(clippy::disallowed_methods)]

use std::net::SocketAddr;
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

/// Everything known of one accepted connection.
#[derive(Clone, Debug)]
pub struct ConnFacts {
    /// Which way the listener's traffic flows.
    pub direction: Direction,
    /// Who dialled.
    pub remote: SocketAddr,
    /// Where the connection meant to go: the original destination if it was redirected, else the local address.
    pub destination: SocketAddr,
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
