//! Istio's kinds as typed structs, one file a kind. A struct here is the only place that declares a field; its doc comment
//! is the field's description. Unknown fields are found while reading (`decode`), null means absent.

pub mod virtual_service;
pub mod destination_rule;
pub mod gateway;
pub mod workload_entry;
pub mod workload_group;
pub mod service_entry;
pub mod sidecar;
pub mod peer_authentication;
pub mod proxy_config;
pub mod target_reference;
pub mod request_authentication;
pub mod authorization_policy;
pub mod envoy_filter;
pub mod telemetry;
pub mod wasm_plugin;
pub mod traffic_extension;

pub use authorization_policy::AuthorizationPolicy;
pub use destination_rule::DestinationRule;
pub use envoy_filter::EnvoyFilter;
pub use gateway::Gateway;
pub use peer_authentication::PeerAuthentication;
pub use proxy_config::ProxyConfig;
pub use request_authentication::RequestAuthentication;
pub use service_entry::ServiceEntry;
pub use sidecar::Sidecar;
pub use telemetry::Telemetry;
pub use traffic_extension::TrafficExtension;
pub use virtual_service::VirtualService;
pub use wasm_plugin::WasmPlugin;
pub use workload_entry::WorkloadEntry;
pub use workload_group::WorkloadGroup;
