//! The vocabulary that the control plane and the data plane must spell alike. Words live here (names, keys, ports,
//! object types, the JSON of the debug surfaces); behaviour does not. No I/O, no clock, no runtime.
//!
//! A module may use only modules listed above it.
#![deny(clippy::disallowed_methods)]
#![warn(missing_docs)]

pub mod name;
pub mod spiffe;
pub mod cluster_name;
pub mod port;
pub mod annotation;
pub mod problem;
pub mod xds;
pub mod node;
pub mod debug;
pub mod join_token;
pub mod schema;
pub mod value;
pub mod selector;
pub mod crd;
pub mod kube;
pub mod object;
pub mod definition;
pub mod decode;
pub mod extension_provider;
pub mod mesh_config;
pub mod json;
