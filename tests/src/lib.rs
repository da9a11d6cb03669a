//! Tests of the whole mesh: its parts in one process, its programs on one machine. Nobody depends on this crate.

pub mod wait;
pub mod control_plane;
pub mod ads;
pub mod sds;
pub mod network;
pub mod sidecar;
pub mod server;
