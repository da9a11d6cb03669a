//! HTTP: from a client's connection to an upstream's and back.

pub mod names;
pub mod story;
pub mod body;
pub mod path;
pub mod forwarded;
pub mod reply;
pub mod upgrade;
pub mod attempt;
pub mod mirror;
pub mod check;
pub mod exchange;
pub mod server;
