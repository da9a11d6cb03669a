//! Clusters of names, against a name server of the test.

#![allow(deprecated)]

use std::net::Ipv4Addr;
use std::sync::Mutex;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use tokio::net::UdpSocket;
use tokio::task::{JoinHandle, LocalSet};

use super::super::{Env, Upstreams};
use super::*;
use crate::snapshot::{Snapshot, Versioned};

/// IPv4 addresses and time to live of a name; a name that is not here does not exist.
type Zone = Arc<Mutex<HashMap<String, (Vec<Ipv4Addr>, u32)>>>;

struct Server {
    zone: Zone,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (zone, address) = (Zone::default(), socket.local_addr().unwrap());
        let known = Arc::clone(&zone);
        let task = tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let answer = answer(&query[..length], &known.lock().unwrap());
                let _ = socket.send_to(&answer, from).await;
            }
        });
        Server { zone, address, task }
    }

    fn set(&self, name: &str, last: &[u8], ttl: u32) {
        let addresses = last.iter().map(|last| Ipv4Addr::new(127, 0, 9, *last)).collect();
        self.zone.lock().unwrap().insert(name.to_owned(), (addresses, ttl));
    }
}

/// RFC 1035, section 4.
fn answer(query: &[u8], zone: &HashMap<String, (Vec<Ipv4Addr>, u32)>) -> Vec<u8> {
    let (mut name, mut at) = (String::new(), 12);
    while query[at] != 0 {
        let label = &query[at + 1..at + 1 + usize::from(query[at])];
        name += &format!("{}.", String::from_utf8_lossy(label).to_lowercase());
        at += 1 + label.len();
    }
    let (question, is_a) = (&query[12..at + 5], query[at + 2] == 1);
    let found = zone.get(name.trim_end_matches('.'));
    let records: Vec<Ipv4Addr> = found.map(|(all, _)| all.clone()).filter(|_| is_a).unwrap_or_default();
    let mut text = query[..2].to_vec();
    text.extend([0x81, if found.is_some() { 0x80 } else { 0x83 }, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    text.extend(question);
    for record in records {
        text.extend([0xc0, 12, 0, 1, 0, 1]);
        text.extend(found.map_or(0, |(_, ttl)| *ttl).to_be_bytes());
        text.extend([0, 4]);
        text.extend(record.octets());
    }
    text
}

fn at(host: &str, port: u16) -> Address {
    let socket = SocketAddress {
        address: host.into(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// A cluster of names on port 80.
fn cluster(kind: i32, server: SocketAddr, names: &[&str], change: impl FnOnce(&mut Cluster)) -> Rc<Upstream> {
    let endpoint = |name: &&str| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(at(name, 80)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let mut cluster = Cluster {
        name: "names".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind)),
        dns_resolvers: vec![at(&server.ip().to_string(), server.port())],
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: "names".into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: names.iter().map(endpoint).collect(),
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        dns_refresh_rate: Some(length(100)),
        ..Cluster::default()
    };
    change(&mut cluster);
    let compiled = crate::compile::cluster::compile(&api::xds::pack(&cluster)).unwrap();
    let mut snapshot = Snapshot::default();
    let held = Versioned { version: "1".into(), value: Arc::new(compiled) };
    snapshot.clusters.insert("names".into(), held);
    let env = Env {
        tls: crate::tls::client::Configs::new(Arc::default(), crate::tls::provider()),
        dice: RefCell::new(rand::make_rng()),
        shard: Arc::default(),
        registry: Arc::default(),
        resolver: Resolver::default(),
        peers: RefCell::default(),
    };
    Upstreams::new(Rc::new(env)).get("names", &snapshot).unwrap()
}

/// The last bytes of the hosts' addresses.
fn hosts(upstream: &Upstream) -> Vec<u8> {
    let mut all = Vec::new();
    upstream.each_host(|host, _| match host.address() {
        Some(SocketAddr::V4(address)) => all.push(address.ip().octets()[3]),
        other => panic!("{other:?}"),
    });
    all.sort_unstable();
    all
}

async fn until(upstream: &Upstream, expected: &[u8]) {
    let wait = async {
        while hosts(upstream) != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(15), wait).await;
    assert!(done.is_ok(), "the hosts are {:?}, not {expected:?}", hosts(upstream));
}

async fn picked(upstream: &Rc<Upstream>) -> Result<SocketAddr, crate::failure::Failure> {
    let host = upstream.pick(SocketAddr::from(([0, 0, 0, 0], 0)), &[], 1).await?;
    Ok(host.address().unwrap())
}

const STRICT: i32 = 1;
const LOGICAL: i32 = 2;

#[tokio::test]
async fn all_addresses_are_followed_and_the_last_good_ones_are_kept() {
    LocalSet::new()
        .run_until(async {
            let server = Server::start().await;
            // Not looked up again for the sake of its time to live: the refresh rate counts.
            server.set("one.example", &[1, 2], 3600);
            server.set("two.example", &[3], 3600);
            let upstream = cluster(STRICT, server.address, &["one.example", "two.example"], |_| {});
            assert_eq!(picked(&upstream).await.unwrap().port(), 80, "the first request waits for an address");
            until(&upstream, &[1, 2, 3]).await;
            server.set("one.example", &[2, 4], 3600);
            until(&upstream, &[2, 3, 4]).await;
            // A name that is gone, and then the name server.
            server.zone.lock().unwrap().remove("one.example");
            server.set("two.example", &[5], 3600);
            until(&upstream, &[2, 4, 5]).await;
            server.task.abort();
            let _ = server.task.await;
            let before = Instant::now();
            while before.elapsed() < Duration::from_millis(400) {
                assert!(picked(&upstream).await.is_ok(), "what is known serves on");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(hosts(&upstream), [2, 4, 5]);
        })
        .await;
}

#[tokio::test]
async fn one_address_stands_for_a_logical_name_and_its_time_to_live_counts() {
    LocalSet::new()
        .run_until(async {
            let server = Server::start().await;
            server.set("one.example", &[7, 8], 1);
            let upstream = cluster(LOGICAL, server.address, &["one.example"], |cluster| {
                cluster.respect_dns_ttl = true;
                cluster.dns_refresh_rate = Some(length(3_600_000));
            });
            assert_eq!(picked(&upstream).await.unwrap(), "127.0.9.7:80".parse().unwrap());
            assert_eq!(hosts(&upstream), [7]);
            server.set("one.example", &[9], 1);
            until(&upstream, &[9]).await;
        })
        .await;
}

#[tokio::test]
async fn a_name_that_appears_later_is_found_and_none_waits_for_another() {
    LocalSet::new()
        .run_until(async {
            let server = Server::start().await;
            server.set("two.example", &[2], 60);
            let upstream = cluster(STRICT, server.address, &["one.example", "two.example"], |_| {});
            assert_eq!(picked(&upstream).await.unwrap(), "127.0.9.2:80".parse().unwrap());
            server.set("one.example", &[1], 60);
            until(&upstream, &[1, 2]).await;
            let nowhere = cluster(STRICT, server.address, &["three.example"], |_| {});
            assert_eq!(picked(&nowhere).await.unwrap_err(), crate::failure::Failure::NamesUnknown);
            server.set("three.example", &[3], 60);
            until(&nowhere, &[3]).await;
        })
        .await;
}

#[tokio::test]
async fn a_silent_name_server_keeps_a_request_for_the_time_of_a_connection_at_most() {
    LocalSet::new()
        .run_until(async {
            let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let upstream = cluster(STRICT, silent.local_addr().unwrap(), &["one.example"], |cluster| {
                cluster.connect_timeout = Some(length(200));
            });
            assert_eq!(picked(&upstream).await.unwrap_err(), crate::failure::Failure::NamesUnknown);
        })
        .await;
}

fn length(milliseconds: i32) -> envoy_types::pb::google::protobuf::Duration {
    envoy_types::pb::google::protobuf::Duration {
        seconds: i64::from(milliseconds / 1000),
        nanos: milliseconds % 1000 * 1_000_000,
    }
}
