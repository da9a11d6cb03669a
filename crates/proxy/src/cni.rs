//! Capture without a privilege in the pod: the plug-in `istio-cni`, which the container runtime calls for each pod on a node, and
//! the agent `install-cni`, which keeps the plug-in in its place there (ADR 15).

pub mod conflist;
pub mod decide;
pub mod plugin;
mod api;
mod owner;
mod repair;
pub mod install;

/// Name of the plug-in: of its program, and of its type in the runtime's configuration.
pub const NAME: &str = "istio-cni";
