//! The head of a request as it leaves: borrowed, so that a request that may be sent again is not copied to be sent.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version};

/// A request's head, for connections that write it at once.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path and query; CONNECT has none.
    pub target: Option<&'a PathAndQuery>,
    /// The host asked for: not among the headers.
    pub host: &'a HeaderValue,
    /// The client's protocol.
    pub version: Version,
    /// All others.
    pub headers: &'a HeaderMap,
    /// The connection is to become a tunnel of this kind.
    pub upgrade: Option<&'a HeaderValue>,
}
