//! The port numbers and user id that Istio's users, tools and firewalls know (Istio `pilot/cmd/pilot-agent`, section 4.1 of
//! the compatibility inventory).

/// Proxy's admin interface.
pub const ADMIN: u16 = 15000;
/// Captured outbound connections arrive here.
pub const OUTBOUND: u16 = 15001;
/// Captured inbound connections arrive here.
pub const INBOUND: u16 = 15006;
/// Plaintext xDS.
pub const XDS: u16 = 15010;
/// xDS and certificate service over TLS.
pub const XDS_TLS: u16 = 15012;
/// Control plane's metrics.
pub const MONITORING: u16 = 15014;
/// Webhooks.
pub const WEBHOOK: u16 = 15017;
/// Merged metrics, health and agent calls of a sidecar.
pub const STATUS: u16 = 15020;
/// Readiness of a proxy.
pub const READY: u16 = 15021;
/// DNS for the workload, where it is captured.
pub const DNS: u16 = 15053;
/// Proxy's own metrics.
pub const PROMETHEUS: u16 = 15090;
/// Unix user and group of the sidecar, whose own connections are not captured.
pub const PROXY_UID: u32 = 1337;
/// Mark of packets that stay on a host with TPROXY, and of connections that a proxy makes from its client's address.
pub const TPROXY_MARK: u32 = 1337;
