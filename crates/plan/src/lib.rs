//! The control plane's pure half: (objects, proxy's identity) to xDS resources and problems. No I/O, no clock, no runtime:
//! equal inputs in any order give equal bytes.
//!
//! A module may use only modules listed above it.
#![deny(clippy::disallowed_methods)]
#![warn(missing_docs)]

pub mod proxy;
pub mod model;
pub mod keys;
mod resources;
mod made;
mod bypass;
mod intrinsic;
mod mesh_settings;
pub mod world;
mod lower;
pub mod snapshot;
mod check;
pub mod scope;
mod generate;
pub mod go_template;
pub mod inject;

pub use bypass::bypassing;
pub use intrinsic::intrinsic;
pub use model::Named;
pub use proxy::ProxyIdentity;
pub use resources::Resources;
pub use scope::Scope;
pub use snapshot::Snapshot;
pub use world::{Change, World};
