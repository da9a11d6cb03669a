//! The command line: asks the control plane and the proxies, checks files, shows the sample.
//!
//! A module may use only modules listed above it.

pub mod fetch;
pub mod print;
pub mod chart;
pub mod cluster;
pub mod install;
pub mod cli;
pub mod workload;
pub mod mesh;
pub mod demo;
pub mod command;
