//! Making one connection: dial, TLS, and what it proved.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::Env;
use super::io::{Io, Prefixed};
use crate::facts::{Caller, PeerFacts};
use crate::failure::Failure;
use crate::snapshot::cluster::Cluster;
use crate::snapshot::endpoint::Place;
use crate::snapshot::tls_terms::ClientTerms;
use crate::tls::client::Offer;

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Dialled {
    /// Bytes.
    pub io: Io,
    /// Negotiated protocol.
    pub alpn: Option<Vec<u8>>,
    /// The verified endpoint.
    pub peer: Option<Arc<PeerFacts>>,
    /// Our end.
    pub local: Option<SocketAddr>,
    /// The name in the certificate that we offered.
    pub own_uri: Option<Arc<str>>,
}

/// Dials within the cluster's connect timeout. `host` is the request's host, for `auto_host_sni`; with a `caller` it is done in its
/// name.
///
/// # Errors
/// Why there is no connection.
pub async fn dial(
    env: &Env,
    cluster: &Cluster,
    place: &Place,
    terms: Option<&Arc<ClientTerms>>,
    offer: Offer,
    host: &str,
    caller: Option<Caller>,
) -> Result<Dialled, Failure> {
    // The configuration comes first: without a certificate there is nothing to dial for.
    let config = terms.map(|terms| env.tls.get(terms, offer).map(|config| (terms, config))).transpose()?;
    let work = async {
        let stream = match place {
            Place::Socket(address) => tcp(cluster, *address, caller).await?,
            Place::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|_| Failure::ConnectFailed)?;
                return Ok(Dialled {
                    io: Io::Unix(Prefixed { prefix: Bytes::new(), inner: stream }),
                    alpn: None,
                    peer: None,
                    local: None,
                    own_uri: None,
                });
            }
            Place::Name(..) => return Err(Failure::NoHealthyUpstream),
        };
        let local = stream.local_addr().ok();
        let Some((terms, config)) = config else {
            return Ok(Dialled {
                io: Io::Tcp(Prefixed { prefix: Bytes::new(), inner: stream }),
                alpn: None,
                peer: None,
                local,
                own_uri: None,
            });
        };
        let name = server_name(terms, host, place);
        let stream = TlsConnector::from(config.tls).connect(name, stream).await.map_err(|error| {
            tracing::debug!(cluster = %cluster.name, ?place, %error, "TLS with an upstream failed");
            failure_of(&error)
        })?;
        let session = stream.get_ref().1;
        let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
        let peer = session.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| env.peer_facts(leaf));
        Ok(Dialled { io: Io::Client(Box::new(stream), Bytes::new()), alpn, peer, local, own_uri: config.own_uri })
    };
    tokio::time::timeout(cluster.connect_timeout, work).await.unwrap_or(Err(Failure::ConnectTimeout))
}

async fn tcp(cluster: &Cluster, address: SocketAddr, caller: Option<Caller>) -> Result<TcpStream, Failure> {
    let stream = match caller.filter(|caller| caller.calls(address.ip())) {
        Some(caller) => match named(caller) {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        },
        None => plain(cluster, address).await,
    };
    let stream = stream.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
        std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(
                cluster = %cluster.name, %address,
                "an upstream cannot be called from its client's address: this takes the capability NET_ADMIN (interceptionMode TPROXY)"
            );
            Failure::ConnectFailed
        }
        _ => Failure::ConnectFailed,
    })?;
    // A proxy must not add Nagle's delay to others' writes.
    let _ = stream.set_nodelay(true);
    if let Some((time, interval, probes)) = cluster.tcp_keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(std::time::Duration::from_secs(time.into()))
            .with_interval(std::time::Duration::from_secs(interval.into()))
            .with_retries(probes);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    }
    Ok(stream)
}

async fn plain(cluster: &Cluster, address: SocketAddr) -> std::io::Result<TcpStream> {
    match cluster.bind.iter().find(|bind| bind.is_ipv4() == address.is_ipv4()) {
        None => TcpStream::connect(address).await,
        Some(bind) => {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            match socket.and_then(|socket| socket.bind(SocketAddr::new(*bind, 0)).map(|()| socket)) {
                Ok(socket) => socket.connect(address).await,
                Err(error) => Err(error),
            }
        }
    }
}

/// Ports from which a client is called for. Clients themselves use those from 32768 on (Linux `ip_local_port_range`): a
/// connection of the client's own and one in its name must not be told apart by their ports alone, for nothing else does.
const PORTS: std::ops::Range<u16> = 2048..32768;
/// So many of them are tried before the kernel chooses.
const TRIES: usize = 16;

/// A socket with its client's address, which is not this host's.
fn named(caller: Caller) -> std::io::Result<TcpSocket> {
    let four = caller.address.is_ipv4();
    let socket = if four { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let options = SockRef::from(&socket);
    if four { options.set_ip_transparent_v4(true) } else { options.set_ip_transparent_v6(true) }?;
    if caller.mark != 0 {
        options.set_mark(caller.mark)?;
    }
    for _ in 0..TRIES {
        match socket.bind(SocketAddr::new(caller.address, rand::rng().random_range(PORTS))) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            bound => return bound.map(|()| socket),
        }
    }
    socket.bind(SocketAddr::new(caller.address, 0)).map(|()| socket)
}

/// What went wrong in a handshake.
fn failure_of(error: &std::io::Error) -> Failure {
    use rustls::{CertificateError as Bad, Error, InvalidMessage};
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return Failure::TlsFailed;
    };
    match error {
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => Failure::TlsUntrusted,
        Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        ) => Failure::TlsExpired,
        // The verifier's own refusal: none of the names is one of the expected.
        Error::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } | Bad::ApplicationVerificationFailure,
        ) => Failure::TlsWrongName,
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            Failure::TlsNotSpoken
        }
        _ => Failure::TlsFailed,
    }
}

/// The server name to send. An address stands for none: rustls sends no server name for it.
fn server_name(terms: &ClientTerms, host: &str, place: &Place) -> ServerName<'static> {
    let wanted = if terms.auto_host_sni { crate::snapshot::route::without_port(host) } else { &terms.sni };
    let nameless = match place {
        Place::Socket(address) => ServerName::IpAddress(address.ip().into()),
        _ => ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into()),
    };
    if wanted.is_empty() {
        return nameless;
    }
    ServerName::try_from(wanted.to_owned()).unwrap_or_else(|_| {
        tracing::warn!(name = wanted, "this cannot be sent as a server name; none is sent");
        nameless
    })
}
