//! Whether the rules do what they should (Istio `tools/istio-iptables/pkg/validation`): a connection to an address and port that
//! nobody has comes to this program in the proxy's place, with where it wanted to go. For a pod whose rules somebody else
//! installs (a CNI plugin), this says that they are there.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::routes::Marked;
use super::rules::{Family, Options, given};

/// The rules are not there, or do something else. The program ends with Istio's code for that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rules of capture do not work: {0}")]
pub struct Invalid(pub String);

/// What the program ends with where the rules do not work (Istio's `ValidationErrorCode`).
pub const EXIT_CODE: u8 = 126;
/// How long one connection within a host may take.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Pause between two attempts: rules may come while it is asked.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection to make, and where it has to come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trial {
    target: SocketAddr,
    port: u16,
}

/// Tries each family until it works, at most as long as the options say.
///
/// # Errors
/// It does not, and how.
pub(super) async fn validate(options: &Options, families: &[Family]) -> Result<(), Invalid> {
    for family in families {
        if options.is_transparent() {
            let (mark, table) = (options.mark(), options.table());
            let marked = Marked { mark, table, family: *family };
            // What comes from outside cannot be sent from here; where it would go can be asked.
            match marked.keeps(documentation(*family)) {
                Ok(true) => {}
                Ok(false) => return Err(Invalid(format!("{family} packets marked {mark} do not stay on this host"))),
                Err(error) => {
                    return Err(Invalid(format!("{family} packets marked {mark} do not stay on this host: {error}")));
                }
            }
        }
        let trial = trial(options, *family, own_address(*family), nix::unistd::geteuid().as_raw());
        let Some(trial) = trial else {
            eprintln!("{family}: nothing that this program could send is captured; there is nothing to try");
            continue;
        };
        let until = Instant::now() + options.probe_timeout;
        while let Err(reason) = run(&trial).await {
            if Instant::now() + PAUSE >= until {
                return Err(Invalid(reason));
            }
            sleep(PAUSE).await;
        }
        eprintln!("{family} traffic is captured (tried: {} comes to port {})", trial.target, trial.port);
    }
    Ok(())
}

/// What can be tried as this user: the proxy's own connections to the pod's address count as inbound, those of all others to
/// addresses elsewhere as outbound.
fn trial(options: &Options, family: Family, own: Option<IpAddr>, user: u32) -> Option<Trial> {
    let at = |address: IpAddr| SocketAddr::new(address, options.probe_port);
    if options.uids.contains(&user) {
        let all = given(&options.inbound_ports).any(|port| port == "*");
        return Some(Trial { target: at(own?), port: options.inbound_port }).filter(|_| all);
    }
    let excluded = |address: &IpAddr| {
        given(&options.outbound_exclude)
            .any(|text| text.parse::<IpNet>().is_ok_and(|network| network.contains(address)))
    };
    let mut targets = given(&options.outbound_networks).filter_map(|text| match text {
        "*" => Some(documentation(family)),
        _ => text.parse::<IpNet>().ok().filter(|network| is_of(family, network.addr()))?.hosts().next(),
    });
    let target = targets.find(|target| !excluded(target))?;
    Some(Trial { target: at(target), port: options.outbound_port })
}

/// An address that is nobody's (RFC 5737, RFC 3849).
fn documentation(family: Family) -> IpAddr {
    match family {
        Family::Four => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::Six => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

fn is_of(family: Family, address: IpAddr) -> bool {
    address.is_ipv6() == (family == Family::Six)
}

/// An address of this network namespace that others can reach.
fn own_address(family: Family) -> Option<IpAddr> {
    let all = getifaddrs().ok()?.filter_map(|interface| {
        let address = interface.address?;
        let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let ours = family.passthrough_source().parse::<IpNet>().ok().map(|network| network.addr());
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
    let mut others = all.filter(|address| is_of(family, *address) && Some(*address) != ours);
    others.find(|address| !address.is_loopback() && !is_link_local(address))
}

/// One attempt.
async fn run(trial: &Trial) -> Result<(), String> {
    let Trial { target, port } = trial;
    let listener = match listen(target, *port) {
        Ok(listener) => Some(listener),
        // A proxy runs already: then it is enough that somebody takes the connection.
        Err(error) if error.kind() == ErrorKind::AddrInUse => None,
        Err(error) => return Err(format!("port {port} cannot be listened on: {error}")),
    };
    let connected = match timeout(ATTEMPT, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("a connection to {target} did not come to port {port}: {error}")),
        Err(_) => return Err(format!("a connection to {target} did not come to port {port} within {ATTEMPT:?}")),
    };
    let Some(listener) = listener else { return Ok(()) };
    let until = Instant::now() + ATTEMPT;
    let own = connected.local_addr().map_err(|error| error.to_string())?;
    loop {
        let Ok(Ok((taken, peer))) = timeout_at(until, listener.accept()).await else {
            return Err(format!("a connection to {target} was taken by somebody else than port {port}"));
        };
        // Others may connect too.
        if peer.port() != own.port() {
            continue;
        }
        let socket = SockRef::from(&taken);
        let found = if target.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        let wanted = found.ok().and_then(|address| address.as_socket());
        return match wanted {
            Some(wanted) if wanted.ip() == target.ip() && wanted.port() == target.port() => Ok(()),
            other => Err(format!("a connection to {target} came to port {port} as one to {other:?}")),
        };
    }
}

fn listen(target: &SocketAddr, port: u16) -> std::io::Result<TcpListener> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = Socket::new(Domain::for_address(*target), Type::STREAM, Some(Protocol::TCP))?;
    if target.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.listen(16)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn what_is_tried_is_what_is_captured() {
        let own: Option<IpAddr> = Some([10, 1, 0, 9].into());
        let of = |line: &str, user: u32| {
            let words = std::iter::once("init").chain(line.split_whitespace());
            trial(&Line::parse_from(words).options, Family::Four, own, user)
                .map(|it| format!("{} {}", it.target, it.port))
        };
        assert_eq!(of("", 0).unwrap(), "192.0.2.1:15002 15001");
        assert_eq!(of("", 1337).unwrap(), "10.1.0.9:15002 15006");
        assert_eq!(of("-i 10.96.0.0/12 --iptables-probe-port 99", 0).unwrap(), "10.96.0.1:99 15001");
        // Nothing of this family leaves by the proxy, or nothing comes in by it.
        assert_eq!(of("-i fd00::/8", 0), None);
        assert_eq!(of("-x 192.0.2.0/24", 0), None);
        assert_eq!(of("-b 8080", 1337), None);
    }

    #[tokio::test]
    async fn without_rules_it_fails() {
        // An address of this host on which nobody listens.
        let trial = Trial { target: ([127, 0, 0, 1], 1).into(), port: 0 };
        assert!(run(&trial).await.unwrap_err().contains("127.0.0.1:1"));
    }
}
