//! x
pub mod offer;
pub mod session;
