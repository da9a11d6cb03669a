//! The labels of Istio's standard metrics that HTTP and TCP share.

use super::peer::Peer;

/// What the labels that HTTP and TCP share are made of.
pub struct StandardLabels<'a> {
    /// Reported by the destination.
    pub inbound: bool,
    /// This workload.
    pub own: &'a Peer,
    /// Its principal.
    pub own_principal: &'a str,
    /// The other one.
    pub peer: Option<&'a Peer>,
    /// Its principal.
    pub peer_principal: &'a str,
    /// Host, name and namespace of the destination service; empty: not known.
    pub service: (&'a str, &'a str, &'a str),
    /// The host that was asked for, in its place.
    pub host: &'a str,
    /// The client's connection is mutual TLS.
    pub mutual_tls: bool,
}

/// Istio's standard labels, without those of HTTP.
pub fn standard_labels<'a>(from: &StandardLabels<'a>) -> Vec<(&'static str, &'a str)> {
    let known = |text: &'a str| if text.is_empty() { "unknown" } else { text };
    let unknown = ["unknown"; 7];
    let of = |peer: &'a Peer| {
        [
            known(&peer.workload),
            known(&peer.namespace),
            known(&peer.app),
            known(&peer.version),
            known(&peer.canonical_service),
            if peer.canonical_revision.is_empty() { "latest" } else { &peer.canonical_revision },
            known(&peer.cluster),
        ]
    };
    let other = from.peer.map_or(unknown, of);
    let own = of(from.own);
    let (source, destination) = if from.inbound { (other, own) } else { (own, other) };
    let (source_principal, destination_principal) = match from.inbound {
        true => (from.peer_principal, from.own_principal),
        false => (from.own_principal, from.peer_principal),
    };
    // At the source the connection is the application's own: only the destination can tell how it was secured.
    let policy = match (from.inbound, from.mutual_tls) {
        (false, _) => "unknown",
        (true, true) => "mutual_tls",
        (true, false) => "none",
    };
    let (host, name, namespace) = from.service;
    vec![
        ("reporter", if from.inbound { "destination" } else { "source" }),
        ("source_workload", source[0]),
        ("source_workload_namespace", source[1]),
        ("source_principal", source_principal),
        ("source_app", source[2]),
        ("source_version", source[3]),
        ("source_canonical_service", source[4]),
        ("source_canonical_revision", source[5]),
        ("source_cluster", source[6]),
        ("destination_workload", destination[0]),
        ("destination_workload_namespace", destination[1]),
        ("destination_principal", destination_principal),
        ("destination_app", destination[2]),
        ("destination_version", destination[3]),
        ("destination_service", if host.is_empty() { known(from.host) } else { host }),
        ("destination_service_name", if name.is_empty() { known(from.host) } else { name }),
        ("destination_service_namespace", if namespace.is_empty() { destination[1] } else { namespace }),
        ("destination_canonical_service", destination[4]),
        ("destination_canonical_revision", destination[5]),
        ("destination_cluster", destination[6]),
        ("connection_security_policy", policy),
    ]
}
