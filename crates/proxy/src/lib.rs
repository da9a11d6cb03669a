//! The data plane: takes Envoy's xDS, proxies the traffic of one workload or gateway.
//!
//! A module may use only modules listed above it.
#![warn(missing_docs)]

pub mod go_value;
pub mod dns;
pub mod capture;
pub mod cni;
pub mod pod;
pub mod secret;
pub mod xds;
pub mod identity;
pub mod facts;
pub mod failure;
pub mod telemetry;
pub mod metadata;
pub mod filter;
pub mod snapshot;
pub mod leaf;
pub mod filters;
pub mod compile;
pub mod tls;
pub mod message;
pub mod mux;
pub mod upstream;
pub mod call;
pub mod drain;
pub mod worker;
pub mod tcp;
pub mod http;
pub mod listen;
pub mod memory;
pub mod control;
pub mod bootstrap;
pub mod pilot_agent;
pub mod admin;
pub mod app;
pub mod agent;
