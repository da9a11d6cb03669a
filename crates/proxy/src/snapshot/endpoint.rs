//! Endpoints of a cluster as compact records (Envoy `ClusterLoadAssignment`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// All endpoints under one name.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Endpoints by priority, lowest number first; a hole in the numbers is an empty list.
    pub priorities: Vec<Vec<Arc<Endpoint>>>,
    /// Share of calls to drop at random, in millionths (`policy.drop_overloads`).
    pub drop_millionths: u32,
    /// Factor by which healthy shares are overrated before traffic spills to the next priority, in percent; Envoy's default is 140.
    pub overprovisioning: u32,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// An address.
    Socket(SocketAddr),
    /// A name to look up, and a port.
    Name(String, u16),
    /// A Unix socket.
    Unix(String),
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where.
    pub place: Place,
    /// Host name, for health checks and `auto_host_rewrite`.
    pub hostname: String,
    /// Weight of the endpoint times the weight of its locality, at least 1.
    pub weight: u32,
    /// Neither unhealthy, draining nor timed out.
    pub healthy: bool,
    /// `envoy.transport_socket_match` metadata: chooses among the cluster's transport sockets.
    pub socket_match: BTreeMap<String, String>,
    /// Istio's `istio.workload` metadata: `name;namespace;canonical-service;canonical-revision;cluster`.
    pub workload: Option<Arc<str>>,
    /// Locality, `region/zone/subzone`.
    pub locality: Arc<str>,
}
