//! The mesh's certificate authority: a root that outlives restarts, leaves signed for whoever the caller has proven to be.

pub mod root;
pub mod secret;
pub mod issue;
pub mod serving;
pub mod grpc;
