//! Tests of the whole mesh: its parts in one process, its programs on one machine. Nobody depends on this crate.

// What tests are made of stops at the first thing that is not as it should be, as they do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod wait;
pub mod control_plane;
pub mod ads;
pub mod network;
pub mod envoy;
pub mod foreign;
pub mod sidecar;
pub mod server;
pub mod misbehaving;
pub mod names;
pub mod tokens;
pub mod twins;
pub mod authorizer;
pub mod programs;
pub mod steady;
