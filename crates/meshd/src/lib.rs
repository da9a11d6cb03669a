//! The control plane's shell: reads objects, has `plan` decide, serves xDS, certificates and debug pages.
//!
//! A module may use only modules listed above it.
#![warn(missing_docs)]

pub mod config;
pub mod telemetry;
pub mod memory;
pub mod source;
pub mod state_folder;
pub mod jwks;
pub mod state;
pub mod authn;
pub mod ca;
pub mod writers;
pub mod departure;
pub mod serve;
pub mod webhook;
pub mod admin;
pub mod app;
pub mod pilot_discovery;
