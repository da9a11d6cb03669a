//! The JSON that the admin ports speak: written by `meshd` and `proxy`, read by `meshctl`.

use serde::{Deserialize, Serialize};

/// One row of `/debug/syncz`: a connected proxy and what it holds (Istio `pilot/pkg/xds/debug.go`, `SyncStatus`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncStatus {
    /// Cluster the proxy runs in.
    pub cluster_id: String,
    /// `NAME.NAMESPACE`.
    pub proxy: String,
    /// `sidecar` or `router`.
    pub proxy_type: String,
    /// Version that the proxy says it has.
    pub proxy_version: String,
    /// Istio version that it is compatible with.
    pub istio_version: String,
    /// The proxy's address.
    pub address: String,
    /// Where its admin interface listens; empty if it did not say.
    pub admin_address: String,
    /// The kinds it subscribed to.
    pub types: Vec<TypeStatus>,
    /// Which of the control plane's pods it is connected to; filled in by whoever has asked them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub control_plane: String,
}

/// What one proxy holds of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TypeStatus {
    /// `CDS`, `LDS` …
    pub kind: String,
    /// Last version (nonce) sent.
    pub sent: String,
    /// Last version acknowledged.
    pub acked: String,
    /// Why the last refused version was refused; empty if none is refused now.
    pub nack: String,
    /// `SYNCED`, `STALE`, `NOT SENT`, `NACKED`.
    pub state: String,
    /// Resources that the proxy holds.
    pub resources: usize,
}

/// Why a request or connection failed, as a proxy explains it (`/why`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Why {
    /// The request's `x-request-id`; empty for a TCP connection.
    pub request_id: String,
    /// When, RFC 3339.
    pub time: String,
    /// `NAME.NAMESPACE` of the proxy that speaks.
    pub proxy: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// `GET shop.example.com/path`, or `TCP 10.0.0.1:80`.
    pub request: String,
    /// Status answered; 0 for TCP.
    pub status: u16,
    /// Envoy's response flag (`UF`, `NR` …).
    pub flag: String,
    /// Envoy's response code details.
    pub details: String,
    /// Name of the variant in the closed list of failures.
    pub failure: String,
    /// Whose side: `client`, `upstream`, `mesh`, `policy`.
    pub side: String,
    /// What happened and what to do, in one or two sentences.
    pub sentence: String,
    /// The object that caused it (`VirtualService shop/a`), if one did.
    pub object: String,
    /// Where that object was read (`shop.yaml:12`): filled in by who asks the control plane; a proxy does not know.
    pub place: String,
    /// Route, cluster and endpoint concerned, if known.
    pub route: String,
    /// Cluster.
    pub cluster: String,
    /// Upstream address.
    pub endpoint: String,
}

/// The address lines that `meshd` prints and `/debug/addresses` serves once it listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// Plaintext xDS.
    pub grpc: String,
    /// xDS and certificates over TLS.
    pub secure_grpc: String,
    /// Readiness and debug.
    pub http: String,
    /// Metrics and debug.
    pub monitoring: String,
    /// Webhooks.
    pub webhook: String,
}
