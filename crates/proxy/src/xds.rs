//! The client of an xDS server: ADS in both variants, what is held, what is subscribed. It knows nothing of what resources
//! mean to the rest of the proxy: the verdict on them is a closure.

pub mod resources;
pub mod references;
pub mod session;
pub mod variant;
pub mod client;
