//! Whether the traffic of this network namespace is captured, asked without any privilege: a connection of the proxy's own user to
//! the pod's own address is sent to the inbound port by the rules (as if it came from outside), and is refused without them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpSocket;

/// How long a connection within a host may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The connection came to the inbound port.
    Captured,
    /// The connection came to where nobody listens.
    NotCaptured,
    /// The connection could not be made for another reason.
    Unknown(String),
}

/// Asks. Somebody must listen on the inbound port.
pub async fn check(own: IpAddr) -> Found {
    match ask(own).await {
        Ok(()) => Found::Captured,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Found::NotCaptured,
        Err(error) => Found::Unknown(error.to_string()),
    }
}

async fn ask(own: IpAddr) -> std::io::Result<()> {
    let new = || if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    // Bound and never listening: nobody else can listen on this port, so that only the rules answer there.
    let reserved = new()?;
    reserved.bind(SocketAddr::new(own, 0))?;
    let target = reserved.local_addr()?;
    match tokio::time::timeout(TIMEOUT, new()?.connect(target)).await {
        Ok(connected) => connected.map(|_| ()),
        Err(_) => Err(std::io::Error::new(ErrorKind::TimedOut, "the connection was neither taken nor refused")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_rules_nothing_is_captured() {
        assert_eq!(check([127, 0, 0, 1].into()).await, Found::NotCaptured);
        // An address that is not of this host.
        assert!(matches!(check([192, 0, 2, 1].into()).await, Found::Unknown(_)));
    }
}
