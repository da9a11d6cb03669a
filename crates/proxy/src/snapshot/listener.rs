//! Which listener, which chain (Envoy's order of precedence of `FilterChainMatch`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::chain::{Chain, Transport};
use crate::facts::Direction;
use crate::telemetry::access_log::AccessLog;

/// A compiled listener.
#[derive(Debug)]
pub struct Listener {
    /// Its name.
    pub name: Arc<str>,
    /// Where.
    pub addresses: Vec<SocketAddr>,
    /// It has sockets of its own; else it only takes connections that another hands over.
    pub binds: bool,
    /// Connections go to the listener of their original destination, if there is one.
    pub use_original_dst: bool,
    /// The original destination is asked for.
    pub original_dst: bool,
    /// The listener's socket takes connections for foreign addresses (TPROXY).
    pub transparent: bool,
    /// Upstreams see the client's address (TPROXY); the mark of the connections to them, 0 is none.
    pub original_src: Option<u32>,
    /// Client hellos are looked at.
    pub inspect_tls: bool,
    /// Plaintext is looked at for HTTP.
    pub inspect_http: bool,
    /// Time to look; zero: until something comes.
    pub inspect_timeout: Duration,
    /// When that time is over the connection goes on as plaintext; else it is closed.
    pub continue_on_timeout: bool,
    /// Which way.
    pub direction: Direction,
    /// Chains.
    pub chains: Vec<Arc<Chain>>,
    /// If none matches.
    pub default_chain: Option<Arc<Chain>>,
    /// Log of connections that no chain takes.
    pub access_logs: Vec<AccessLog>,
    /// The object that says which connections are taken (`PeerAuthentication shop/a`), if it says so.
    pub object: Option<Arc<str>>,
}

/// What a chain is chosen by.
#[derive(Clone, Debug)]
pub struct ChainQuery<'a> {
    /// Destination.
    pub destination: SocketAddr,
    /// Who dialled.
    pub source: SocketAddr,
    /// Server name, lower case.
    pub server_name: Option<&'a str>,
    /// First bytes.
    pub transport: Transport,
    /// Offered or detected protocols.
    pub protocols: &'a [String],
}

impl Listener {
    /// Whether the choice of a chain depends on the client's first bytes.
    pub fn must_look(&self) -> bool {
        (self.inspect_tls || self.inspect_http)
            && self.chains.iter().any(|chain| {
                let matches = &chain.matches;
                matches.transport.is_some() || !matches.protocols.is_empty() || !matches.server_names.is_empty()
            })
    }

    /// The chain for a connection. Each criterion in turn keeps the chains that match it most specifically; a chain that does
    /// not ask for a criterion matches it least. There is no way back: that is Envoy's rule.
    pub fn chain_for(&self, query: &ChainQuery<'_>) -> Option<&Arc<Chain>> {
        let mut left: Vec<&Arc<Chain>> = self.chains.iter().collect();
        narrow(&mut left, |chain| optional(chain.matches.port, |port| port == query.destination.port()));
        narrow(&mut left, |chain| prefix(&chain.matches.destinations, query.destination.ip()));
        narrow(&mut left, |chain| server_name(&chain.matches.server_names, query.server_name));
        narrow(&mut left, |chain| optional(chain.matches.transport, |transport| transport == query.transport));
        narrow(&mut left, |chain| {
            among(&chain.matches.protocols, |wanted| query.protocols.iter().any(|offered| offered == wanted))
        });
        let local = query.source.ip().is_loopback() || query.source.ip() == query.destination.ip();
        narrow(&mut left, |chain| optional(chain.matches.local_source, |wanted| wanted == local));
        narrow(&mut left, |chain| prefix(&chain.matches.sources, query.source.ip()));
        narrow(&mut left, |chain| among(&chain.matches.source_ports, |port| *port == query.source.port()));
        left.first().copied().or(self.default_chain.as_ref())
    }

    /// All chains, the default one last.
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(self.default_chain.as_ref())
    }
}

/// Keeps the candidates with the best rank; those without a rank do not match.
fn narrow(left: &mut Vec<&Arc<Chain>>, rank: impl Fn(&Chain) -> Option<u32>) {
    if left.is_empty() {
        return;
    }
    let best = left.iter().filter_map(|chain| rank(chain)).max();
    left.retain(|chain| {
        let mine = rank(chain);
        mine.is_some() && mine == best
    });
}

fn optional<T>(wanted: Option<T>, holds: impl Fn(T) -> bool) -> Option<u32> {
    match wanted {
        None => Some(0),
        Some(wanted) => holds(wanted).then_some(1),
    }
}

fn among<T>(wanted: &[T], holds: impl Fn(&T) -> bool) -> Option<u32> {
    match wanted.is_empty() {
        true => Some(0),
        false => wanted.iter().any(holds).then_some(1),
    }
}

fn prefix(wanted: &[ipnet::IpNet], address: IpAddr) -> Option<u32> {
    match wanted.is_empty() {
        true => Some(0),
        false => {
            wanted.iter().filter(|range| range.contains(&address)).map(|range| u32::from(range.prefix_len()) + 1).max()
        }
    }
}

fn server_name(wanted: &[String], name: Option<&str>) -> Option<u32> {
    if wanted.is_empty() {
        return Some(0);
    }
    let name = name?;
    wanted
        .iter()
        .filter_map(|pattern| match pattern.strip_prefix('*') {
            Some("") => Some(1),
            Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(1 + suffix.len() as u32),
            None => (pattern == name).then_some(u32::MAX),
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::chain::{ChainMatch, Network};

    fn listener(chains: Vec<(&str, ChainMatch)>) -> Listener {
        let chain = |(name, matches): (&str, ChainMatch)| {
            Arc::new(Chain { name: name.into(), matches, tls: None, network: Network::Close })
        };
        Listener {
            name: "l".into(),
            addresses: vec![],
            binds: true,
            use_original_dst: false,
            original_dst: false,
            transparent: false,
            original_src: None,
            inspect_tls: true,
            inspect_http: true,
            inspect_timeout: Duration::ZERO,
            continue_on_timeout: true,
            direction: Direction::Inbound,
            chains: chains.into_iter().map(chain).collect(),
            default_chain: None,
            access_logs: vec![],
            object: None,
        }
    }

    fn chosen<'a>(
        listener: &'a Listener,
        port: u16,
        name: Option<&str>,
        transport: Transport,
        protocols: &[&str],
    ) -> Option<&'a str> {
        let protocols: Vec<String> = protocols.iter().map(|text| (*text).to_owned()).collect();
        let query = ChainQuery {
            destination: ([10, 0, 0, 1], port).into(),
            source: ([10, 0, 0, 2], 999).into(),
            server_name: name,
            transport,
            protocols: &protocols,
        };
        listener.chain_for(&query).map(|chain| chain.name.as_ref())
    }

    #[test]
    fn istio_inbound_permissive() {
        let base = ChainMatch { port: Some(80), ..ChainMatch::default() };
        let with = |transport, protocols: &[&str]| ChainMatch {
            transport,
            protocols: protocols.iter().map(|text| (*text).to_owned()).collect(),
            ..base.clone()
        };
        let listener = listener(vec![
            ("mtls-http", with(Some(Transport::Tls), &["istio-http/1.1", "istio-h2"])),
            ("plain-http", with(Some(Transport::Raw), &["http/1.1", "h2c"])),
            ("mtls-tcp", with(Some(Transport::Tls), &["istio-peer-exchange", "istio"])),
            ("plain-tcp", with(Some(Transport::Raw), &[])),
            ("app-tls", with(Some(Transport::Tls), &[])),
            ("other", ChainMatch::default()),
        ]);
        let tls = Transport::Tls;
        assert_eq!(chosen(&listener, 80, None, tls, &["istio-mux", "istio-http/1.1", "istio"]), Some("mtls-http"));
        assert_eq!(chosen(&listener, 80, None, Transport::Raw, &["http/1.1"]), Some("plain-http"));
        assert_eq!(chosen(&listener, 80, None, tls, &["istio"]), Some("mtls-tcp"));
        assert_eq!(chosen(&listener, 80, None, tls, &["h2"]), Some("app-tls"));
        assert_eq!(chosen(&listener, 80, None, Transport::Raw, &[]), Some("plain-tcp"));
        assert_eq!(chosen(&listener, 81, None, tls, &["istio"]), Some("other"));
    }

    #[test]
    fn server_names_and_addresses_by_specificity() {
        let name = |name: &str| ChainMatch { server_names: vec![name.to_owned()], ..ChainMatch::default() };
        let listener1 = listener(vec![("any", name("*")), ("wild", name("*.b.com")), ("exact", name("a.b.com"))]);
        assert_eq!(chosen(&listener1, 1, Some("a.b.com"), Transport::Tls, &[]), Some("exact"));
        assert_eq!(chosen(&listener1, 1, Some("c.b.com"), Transport::Tls, &[]), Some("wild"));
        assert_eq!(chosen(&listener1, 1, Some("c.com"), Transport::Tls, &[]), Some("any"));
        assert_eq!(chosen(&listener1, 1, None, Transport::Tls, &[]), None);
        let range = |range: &str| ChainMatch { destinations: vec![range.parse().unwrap()], ..ChainMatch::default() };
        let listener2 = listener(vec![
            ("wide", range("10.0.0.0/8")),
            ("one", range("10.0.0.1/32")),
            ("other", range("11.0.0.0/8")),
        ]);
        assert_eq!(chosen(&listener2, 1, None, Transport::Raw, &[]), Some("one"));
    }

    #[test]
    fn there_is_no_way_back() {
        let port = ChainMatch { port: Some(80), transport: Some(Transport::Tls), ..ChainMatch::default() };
        let listener = listener(vec![("port", port), ("any", ChainMatch::default())]);
        assert_eq!(
            chosen(&listener, 80, None, Transport::Raw, &[]),
            None,
            "the port was more specific, and it wants TLS"
        );
    }
}
