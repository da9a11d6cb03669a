//! The names of Envoy clusters that users and tools see: `direction|port|subset|host` (Istio `model.BuildSubsetKey`).

use std::fmt;
use std::str::FromStr;

/// Where requests without a known destination go when the mesh allows any.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// Where requests without a known destination go when the mesh allows only what it knows.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Where captured inbound connections go that no service port claims.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// Which way the traffic of a cluster or listener flows, seen from the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

impl Direction {
    /// The word as it stands in cluster names.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// A cluster's name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName {
    /// Which way.
    pub direction: Direction,
    /// The service's port (outbound), the service's port too for inbound (Istio uses the service port there).
    pub port: u16,
    /// Name of the subset, or empty.
    pub subset: String,
    /// The service's host, or empty for inbound.
    pub host: String,
}

/// The text is not a cluster name of Istio's shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form DIRECTION|PORT|SUBSET|HOST")]
pub struct NotClusterName(pub String);

impl ClusterName {
    /// `outbound|port|subset|host`.
    pub fn outbound(port: u16, subset: &str, host: &str) -> Self {
        Self { direction: Direction::Outbound, port, subset: subset.to_owned(), host: host.to_owned() }
    }

    /// `inbound|port||`.
    pub fn inbound(port: u16) -> Self {
        Self { direction: Direction::Inbound, port, subset: String::new(), host: String::new() }
    }

    /// The server name that a client's sidecar sends for this cluster: `outbound_.port_.subset_.host`.
    pub fn sni(&self) -> String {
        format!("{}_.{}_.{}_.{}", self.direction.as_str(), self.port, self.subset, self.host)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}|{}|{}|{}", self.direction.as_str(), self.port, self.subset, self.host)
    }
}

impl FromStr for ClusterName {
    type Err = NotClusterName;

    fn from_str(text: &str) -> Result<Self, NotClusterName> {
        let wrong = || NotClusterName(text.to_owned());
        let mut parts = text.split('|');
        let direction = match parts.next() {
            Some("inbound") => Direction::Inbound,
            Some("outbound") => Direction::Outbound,
            _ => return Err(wrong()),
        };
        let port = parts.next().and_then(|port| port.parse().ok()).ok_or_else(wrong)?;
        let (Some(subset), Some(host), None) = (parts.next(), parts.next(), parts.next()) else { return Err(wrong()) };
        Ok(Self { direction, port, subset: subset.to_owned(), host: host.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        for text in ["outbound|80||a.b.svc.cluster.local", "outbound|9080|v1|a.b", "inbound|8080||"] {
            assert_eq!(text.parse::<ClusterName>().unwrap().to_string(), text);
        }
        for text in ["", "PassthroughCluster", "outbound|x||h", "outbound|70000||h", "outbound|80|h", "outbound|80||h|"]
        {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_server_name_has_the_four_parts() {
        assert_eq!(ClusterName::outbound(80, "v1", "a.b").sni(), "outbound_.80_.v1_.a.b");
    }
}
