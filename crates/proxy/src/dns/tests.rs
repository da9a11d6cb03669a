//! The server against a real client, and against name servers that lie, cut off and are silent.

use std::net::Ipv4Addr;

use api::xds::nds::name_table::NameInfo;
use api::xds::pack;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::forward::{read_message, write_message};
use super::*;

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn settings(servers: Vec<SocketAddr>) -> Settings {
    Settings {
        listen: vec![LOCAL.into()],
        servers,
        search: Some("shop.svc.cluster.local".into()),
        namespace: "shop".into(),
        domain: "svc.cluster.local".into(),
        parallel: false,
        timeout: Duration::from_millis(1_500),
    }
}

fn names() -> Any {
    let info = |ips: &[&str], registry: &str| NameInfo {
        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        registry: registry.to_owned(),
        ..NameInfo::default()
    };
    let many: Vec<String> = (0..200).map(|number| format!("10.1.0.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let table = [
        ("cart.shop.svc.cluster.local", info(&["10.96.0.1"], "Kubernetes")),
        ("api.example.com", info(&["240.240.0.1", "2001:2::1"], "External")),
        ("*.wild.example.com", info(&["240.240.0.2"], "External")),
        ("many.example.com", info(&many, "External")),
    ];
    pack(&NameTable { table: table.into_iter().map(|(name, info)| (name.to_owned(), info)).collect() })
}

async fn start(servers: Vec<SocketAddr>) -> (Arc<Dns>, Serving) {
    let (dns, serving) = Dns::start(settings(servers)).await.unwrap();
    dns.set_names(&names()).unwrap();
    (dns, serving)
}

fn query(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn over_udp(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind(LOCAL).await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert!(length <= 1232, "{length} bytes over UDP");
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn over_tcp(server: SocketAddr, bytes: &[u8]) -> Message {
    let mut stream = tokio::net::TcpStream::connect(server).await.unwrap();
    write_message(&mut stream, bytes).await.unwrap();
    Message::from_vec(&read_message(&mut stream).await.unwrap().unwrap()).unwrap()
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    over_udp(server, &query(7, name, kind).to_vec().unwrap()).await
}

fn addresses(message: &Message) -> Vec<String> {
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.to_string()),
        RData::AAAA(address) => Some(address.to_string()),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

/// An answer with one address.
fn answer_to(question: &[u8], address: Ipv4Addr) -> Message {
    let question = Message::from_vec(question).unwrap();
    let mut answer = question.clone().into_response();
    answer.add_answer(Record::from_rdata(question.queries[0].name().clone(), 5, RData::A(A(address))));
    answer
}

#[tokio::test]
async fn a_real_client_finds_the_names_of_the_mesh() {
    let (_dns, serving) = start(Vec::new()).await;
    let at = serving.addresses()[0];
    for protocol in [ProtocolConfig::Udp, ProtocolConfig::Tcp] {
        let mut connection = ConnectionConfig::new(protocol.clone());
        connection.port = at.port();
        let server = NameServerConfig::new(at.ip(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let client = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
        for (name, expected) in [
            ("cart.shop.svc.cluster.local.", "10.96.0.1"),
            ("CART.shop.", "10.96.0.1"),
            ("cart.", "10.96.0.1"),
            ("any.wild.example.com.", "240.240.0.2"),
            ("api.example.com.shop.svc.cluster.local.", "240.240.0.1"),
        ] {
            let found = client.ipv4_lookup(name).await.unwrap_or_else(|error| panic!("{protocol:?} {name}: {error}"));
            let found: Vec<String> = found.answers().iter().map(|record| record.data.to_string()).collect();
            assert_eq!(found.last().unwrap(), expected, "{protocol:?} {name}");
        }
        let found = client.ipv6_lookup("api.example.com.").await.unwrap();
        assert_eq!(found.answers()[0].data.to_string(), "2001:2::1");
    }
}

#[tokio::test]
async fn answers_are_as_istios() {
    let (_dns, serving) = start(Vec::new()).await;
    let at = serving.addresses()[0];
    // The name is known, the family is not.
    let empty = ask(at, "cart.shop.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!((empty.response_code, empty.answers.len(), empty.authoritative), (ResponseCode::NoError, 0, true));
    // A suffix that the client added is told, and the address with it.
    let expanded = ask(at, "api.example.com.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(expanded.answers[0].data.to_string(), "api.example.com.");
    assert_eq!(expanded.answers[1].name.to_string(), "api.example.com.");
    assert_eq!(expanded.answers[1].ttl, 30);
    // What does not fit is cut, and had over TCP.
    let cut = ask(at, "many.example.com.", RecordType::A).await;
    assert!(cut.truncation && cut.answers.is_empty());
    let whole = over_tcp(at, &query(7, "many.example.com.", RecordType::A).to_vec().unwrap()).await;
    assert_eq!(addresses(&whole).len(), 200);
    // In an order of their own each time.
    let again = over_tcp(at, &query(7, "many.example.com.", RecordType::A).to_vec().unwrap()).await;
    assert_ne!(addresses(&whole), addresses(&again));
    // Nobody can be asked for other names.
    assert_eq!(ask(at, "elsewhere.example.org.", RecordType::A).await.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn before_the_table_comes_nothing_is_known() {
    let (dns, serving) = Dns::start(settings(Vec::new())).await.unwrap();
    let at = serving.addresses()[0];
    assert_eq!(ask(at, "api.example.com.", RecordType::A).await.response_code, ResponseCode::ServFail);
    dns.set_names(&names()).unwrap();
    assert_eq!(addresses(&ask(at, "api.example.com.", RecordType::A).await), ["240.240.0.1"]);
    // A table that cannot be read leaves the one before.
    let broken = NameInfo { ips: vec!["x".into()], ..NameInfo::default() };
    assert!(dns.set_names(&pack(&NameTable { table: [("a".to_owned(), broken)].into() })).is_err());
    assert_eq!(addresses(&ask(at, "api.example.com.", RecordType::A).await), ["240.240.0.1"]);
    let text = dns.prometheus();
    assert!(text.contains("istio_agent_dns_requests_total 3\n"), "{text}");
    assert!(text.contains("istio_agent_dns_upstream_requests_total 0\n"), "{text}");
}

#[tokio::test]
async fn only_the_server_that_was_asked_is_believed() {
    let upstream = UdpSocket::bind(LOCAL).await.unwrap();
    let (dns, serving) = start(vec![upstream.local_addr().unwrap()]).await;
    let at = serving.addresses()[0];
    let lies = tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, from) = upstream.recv_from(&mut buffer).await.unwrap();
        let question = &buffer[..length];
        let lie = answer_to(question, Ipv4Addr::new(6, 6, 6, 6));
        let send = async |message: &Message| {
            upstream.send_to(&message.to_vec().unwrap(), from).await.unwrap();
        };
        let mut other_number = lie.clone();
        other_number.metadata.id = lie.id.wrapping_add(1);
        send(&other_number).await;
        let mut other_question = lie.clone();
        other_question.queries = vec![Query::query(Name::from_ascii("bank.example.org.").unwrap(), RecordType::A)];
        send(&other_question).await;
        let mut question_itself = lie.clone();
        question_itself.metadata.message_type = MessageType::Query;
        send(&question_itself).await;
        upstream.send_to(&[1, 2, 3], from).await.unwrap();
        // All is right but where it comes from.
        let stranger = UdpSocket::bind(LOCAL).await.unwrap();
        stranger.send_to(&lie.to_vec().unwrap(), from).await.unwrap();
        send(&answer_to(question, Ipv4Addr::new(192, 0, 2, 1))).await;
    });
    let told = ask(at, "elsewhere.example.org.", RecordType::A).await;
    lies.await.unwrap();
    assert_eq!((told.id, addresses(&told)), (7, vec!["192.0.2.1".to_owned()]));
    let text = dns.prometheus();
    assert!(text.contains("istio_agent_dns_upstream_request_duration_seconds_count 1\n"), "{text}");
}

/// A name server that says the same over TCP as it cuts off over UDP.
async fn cutting_server() -> SocketAddr {
    let (datagrams, connections) = serve::open(LOCAL.into()).await.unwrap();
    let at = datagrams.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer).await {
            let mut cut = Message::from_vec(&buffer[..length]).unwrap().into_response();
            cut.metadata.truncation = true;
            datagrams.send_to(&cut.to_vec().unwrap(), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = connections.accept().await {
            let question = read_message(&mut stream).await.unwrap().unwrap();
            let mut answer = answer_to(&question, Ipv4Addr::new(192, 0, 2, 9));
            if answer.queries[0].query_type() == RecordType::TXT {
                let text = TXT::new(vec!["x".repeat(250); 10]);
                answer.answers = vec![Record::from_rdata(answer.queries[0].name().clone(), 5, RData::TXT(text))];
            }
            write_message(&mut stream, &answer.to_vec().unwrap()).await.unwrap();
        }
    });
    at
}

#[tokio::test]
async fn what_is_cut_off_is_had_over_tcp() {
    let (_dns, serving) = start(vec![cutting_server().await]).await;
    let at = serving.addresses()[0];
    assert_eq!(addresses(&ask(at, "long.example.org.", RecordType::A).await), ["192.0.2.9"]);
    // Too long for UDP all the same: the client is told to come over TCP.
    let cut = ask(at, "long.example.org.", RecordType::TXT).await;
    assert!(cut.truncation && cut.answers.is_empty());
    let whole = over_tcp(at, &query(9, "long.example.org.", RecordType::TXT).to_vec().unwrap()).await;
    assert_eq!((whole.id, whole.answers.len()), (9, 1));
}

#[tokio::test]
async fn a_dead_server_is_passed_over_and_not_asked_first_again() {
    let dead = UdpSocket::bind(LOCAL).await.unwrap();
    let (_dns, serving) = start(vec![dead.local_addr().unwrap(), cutting_server().await]).await;
    let at = serving.addresses()[0];
    for _ in 0..2 {
        assert_eq!(addresses(&ask(at, "a.example.org.", RecordType::A).await), ["192.0.2.9"]);
    }
    let mut buffer = [0; 512];
    let mut asked = 0;
    while dead.try_recv(&mut buffer).is_ok() {
        asked += 1;
    }
    assert_eq!(asked, 2, "one question, sent twice");
}

#[tokio::test]
async fn all_servers_are_asked_at_once_where_that_is_wanted() {
    let dead = UdpSocket::bind(LOCAL).await.unwrap();
    let mut settings = settings(vec![dead.local_addr().unwrap(), cutting_server().await]);
    settings.parallel = true;
    // The dead one is not waited for: its time would be longer than the client's.
    settings.timeout = Duration::from_secs(60);
    let (dns, serving) = Dns::start(settings).await.unwrap();
    dns.set_names(&names()).unwrap();
    let at = serving.addresses()[0];
    assert_eq!(addresses(&ask(at, "a.example.org.", RecordType::A).await), ["192.0.2.9"]);
    let mut buffer = [0; 512];
    assert!(dead.try_recv(&mut buffer).is_ok(), "it was not asked");
}

#[tokio::test]
async fn questions_without_number_neither_fill_memory_nor_stop_the_mesh() {
    let silent = UdpSocket::bind(LOCAL).await.unwrap();
    let (dns, serving) = start(vec![silent.local_addr().unwrap()]).await;
    let at = serving.addresses()[0];
    let client = UdpSocket::bind(LOCAL).await.unwrap();
    let most = dns.forwarder.places_left();
    assert!(most <= 10_000);
    let (mut refused, mut full) = (0, false);
    let mut buffer = [0; 512];
    for number in 0..10_000u16 {
        let question = query(number, "elsewhere.example.org.", RecordType::A);
        client.send_to(&question.to_vec().unwrap(), at).await.unwrap();
        // Lets the server run, and takes what it says at once.
        tokio::task::yield_now().await;
        // Asked each time: on a slow machine the first are given up, and their places free, before the last is sent.
        full |= dns.forwarder.places_left() == 0;
        while client.try_recv(&mut buffer).is_ok() {
            refused +=
                usize::from(Message::from_vec(&buffer).is_ok_and(|it| it.response_code == ResponseCode::ServFail));
        }
    }
    let waiting = most - dns.forwarder.places_left();
    assert!(full || refused == 0, "{waiting} wait of {most}, {refused} were refused");
    assert!(waiting > 0);
    assert_eq!(addresses(&ask(at, "cart.shop.", RecordType::A).await), ["10.96.0.1"]);
}

#[tokio::test]
async fn broken_messages_are_answered_or_left_alone() {
    let (_dns, serving) = start(Vec::new()).await;
    let at = serving.addresses()[0];
    let whole = query(7, "cart.shop.", RecordType::A).to_vec().unwrap();
    let mut two = query(7, "cart.shop.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("cart.").unwrap(), RecordType::A));
    assert_eq!(over_udp(at, &two.to_vec().unwrap()).await.response_code, ResponseCode::FormErr);
    assert_eq!(over_udp(at, &whole[..whole.len() - 3]).await.response_code, ResponseCode::FormErr);
    let mut update = whole.clone();
    update[2] = 5 << 3;
    assert_eq!(over_udp(at, &update).await.response_code, ResponseCode::NotImp);
    // An answer, and what is too short to be anything, get nothing: the next thing that comes is the answer to what follows.
    let client = UdpSocket::bind(LOCAL).await.unwrap();
    let mut answer = whole.clone();
    answer[2] |= 0x80;
    for silent in [&answer[..], &whole[..11], &[]] {
        client.send_to(silent, at).await.unwrap();
    }
    client.send_to(&query(8, "cart.shop.", RecordType::A).to_vec().unwrap(), at).await.unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().id, 8);
}

proptest::proptest! {
    #[test]
    fn no_message_is_fatal(noise: Vec<u8>, place in 0usize..40, byte: u8) {
        let mut almost = query(7, "cart.shop.", RecordType::A).to_vec().unwrap();
        if let Some(at) = almost.get_mut(place) {
            *at = byte;
        }
        for bytes in [&noise, &almost] {
            if let Ok(question) = message::Question::read(bytes) {
                let sent = question.sent_on(bytes, 9);
                question.is_answered_by(&sent, &noise);
                question.is_answered_by(&sent, &almost);
                question.failure();
            }
        }
    }
}
