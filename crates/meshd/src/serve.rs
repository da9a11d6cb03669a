//! The xDS server: one task a proxy, bytes in, bytes out.

pub mod offer;
pub mod session;
