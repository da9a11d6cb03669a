//! The protocol between our proxies (ADR 10): many requests on one connection, in frames that cost little to write and to read.
//! What HTTP/2 offers and a sidecar has no use for (priorities, pushes, settings, codes of bits) is not there; flow control,
//! resets, trailers and an orderly end are.
//!
//! A frame is a length of three bytes, a kind, a stream of four bytes, and so many bytes. The client chooses a stream's number: a
//! place that is free, below a count of its uses; so a late frame for a stream of before is known as such.

pub mod head;
mod connection;
pub mod client;
pub mod server;

#[cfg(test)]
mod tests;

pub use connection::Received;

/// Why a connection or a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The connection closed or broke.
    #[error("the connection closed")]
    Closed,
    /// The peer sent a TLS alert in place of an answer: it refuses our certificate.
    #[error("the peer refused the certificate")]
    Alert,
    /// What came is not this protocol.
    #[error("the peer does not speak this protocol")]
    Protocol,
    /// The peer has not looked at the request.
    #[error("the peer did not take the request")]
    Refused,
    /// The peer broke this stream off.
    #[error("the peer broke off")]
    Reset,
}
