//! Accepting connections: which listener, what the first bytes are, which chain, TLS, and then HTTP or bytes.

pub mod sniff;
pub mod original_dst;
pub mod accept;
