//! Sidecar (networking.istio.io): what a workload's proxy takes in and may reach.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::destination_rule::ConnectionPoolSettings;
use crate::crd::gateway::{Port, ServerTlsSettings};
use crate::crd::virtual_service::Destination;
use crate::selector::WorkloadSelector;

/// The spec of a Sidecar.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// Workloads of the namespace; default all.
    pub workload_selector: Option<WorkloadSelector>,
    /// What it takes in; default as the services say.
    pub ingress: Vec<IstioIngressListener>,
    /// What it may reach; default everything that is exported.
    pub egress: Vec<IstioEgressListener>,
    /// Limits of what it takes in.
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    /// What happens to traffic whose destination is not known; default as the mesh says.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// One port taken in.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["port"]))]
pub struct IstioIngressListener {
    /// Port.
    pub port: Port,
    /// Address; default the workload's.
    pub bind: String,
    /// How traffic gets here.
    pub capture_mode: CaptureMode,
    /// Where the application listens: `127.0.0.1:P`, `[::1]:P`, `0.0.0.0:P`, `[::]:P`, `unix://…`.
    pub default_endpoint: String,
    /// TLS from the clients.
    pub tls: Option<ServerTlsSettings>,
    /// Limits of this port.
    pub connection_pool: Option<ConnectionPoolSettings>,
}

/// One group of hosts that may be reached.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["hosts"]))]
pub struct IstioEgressListener {
    /// Port; without one, all ports of the services.
    pub port: Option<Port>,
    /// Address.
    pub bind: String,
    /// How traffic gets here.
    pub capture_mode: CaptureMode,
    /// `namespace/host`; namespace `*` any, `.` the own, `~` none.
    pub hosts: Vec<String>,
}

/// How traffic gets to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// As the environment does it.
    #[default]
    Default,
    /// Redirected.
    Iptables,
    /// Applications connect to the listener.
    None,
}

/// What happens to traffic whose destination is not known.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// Which.
    pub mode: Option<OutboundMode>,
    /// Proxy through which it goes.
    pub egress_proxy: Option<Destination>,
}

/// The ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// It is refused.
    RegistryOnly,
    /// It goes where it was sent.
    #[default]
    AllowAny,
}
