//! The way to the API server. A watch says nothing for minutes when all is well, so a server that is gone without a word (a node
//! that lost power, a balancer that forgot the connection) looks the same; the kernel asks for signs of life.

use std::time::Duration;

use anyhow::Result;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::runtime::utils::Backoff;
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::util::MapErrLayer;
use tower::{BoxError, ServiceBuilder};

/// After so long without a byte the kernel asks,
const SILENCE: Duration = Duration::from_secs(10);
/// so often,
const QUESTIONS: u32 = 3;
/// with this pause, before the connection counts as broken.
const PAUSE: Duration = Duration::from_secs(5);
/// What was sent and is not acknowledged for so long breaks it as well.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// A connection that is not there by then will not be.
const CONNECT: Duration = Duration::from_secs(10);

/// A client whose connections do not outlive the server in silence for more than half a minute.
///
/// # Errors
/// The settings cannot be used.
pub fn client(config: Config) -> Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(SILENCE));
    tcp.set_keepalive_interval(Some(PAUSE));
    tcp.set_keepalive_retries(Some(QUESTIONS));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let http: Http<_, Body> =
        Http::builder(TokioExecutor::new()).build(config.rustls_https_connector_with_connector(tcp)?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .layer(MapErrLayer::new(BoxError::from))
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

/// Pauses between attempts to follow a kind again: doubled up to a few seconds, however long the server is away, since what is
/// seen late is sent to endpoints that are gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses(Duration);

/// The first pause.
const FIRST: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST: Duration = Duration::from_secs(4);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let next = (self.0 * 2).min(LONGEST);
        Some(std::mem::replace(&mut self.0, next))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_few_seconds_and_begin_anew() {
        let mut pauses = Pauses::default();
        let taken: Vec<u128> = pauses.by_ref().take(5).map(|pause| pause.as_millis()).collect();
        assert_eq!(taken, [500, 1000, 2000, 4000, 4000]);
        pauses.reset();
        assert_eq!(pauses.next(), Some(FIRST));
    }
}
