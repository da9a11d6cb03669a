//! The byte road: connections that are not HTTP, or not ours to read.

pub mod exchange;
pub mod relay;
pub mod proxy;
