//! What the proxy tells about the traffic: metrics, access logs, and why requests failed.

pub mod format;
pub mod access_log;
pub mod metrics;
pub mod why;
pub mod exchange;
pub mod peer;
pub mod labels;
