//! The data plane: takes Envoy's xDS, proxies the traffic of one workload or gateway.
//!
//! A module may use only modules listed above it.

pub mod capture;
pub mod secret;
pub mod xds;
pub mod identity;
