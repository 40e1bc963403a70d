use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sys::socket::{setsockopt, sockopt};
use proptest::prelude::*;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::forward::{read_message, write_message};
use super::message::{Limit, decide};
use super::names::{NameTable, NameTableBuilder};
use super::*;
use crate::cluster::Manager;
use crate::snapshot::Resources;

fn table(addresses: usize) -> NameTable {
    let mut builder = NameTableBuilder::default();
    let ips: Vec<IpAddr> = (0..addresses)
        .map(|n| {
            IpAddr::from([
                10,
                96,
                u8::try_from(n / 200).unwrap(),
                u8::try_from(n % 200).unwrap(),
            ])
        })
        .collect();
    assert!(builder.add("reviews.default.svc.cluster.local", &ips));
    assert!(builder.add("api.example.com", &ips));
    builder.build()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(message: &Message, names: &NameTable, limit: Limit) -> Decision {
    let scope = Scope {
        namespace: Some("default"),
        domain: "cluster.local",
    };
    decide(&message.to_vec().unwrap(), names, scope, limit)
}

fn answered(decision: Decision) -> Message {
    let Decision::Answer(bytes) = decision else {
        panic!("no answer: {decision:?}");
    };
    Message::from_vec(&bytes).unwrap()
}

#[test]
fn mesh_names_are_answered_as_they_were_asked() {
    let query = question("Reviews.Default.", RecordType::A);
    let answer = answered(ask(&query, &table(2), Limit::Datagram));
    assert_eq!(answer.metadata.id, 4711);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.queries, query.queries);
    assert_eq!(answer.answers.len(), 2);
    let names: Vec<_> = answer.answers.iter().map(|r| r.name.to_ascii()).collect();
    assert_eq!(
        names[0], "Reviews.Default.",
        "the case of the question is kept"
    );
    assert!(answer.edns.is_none());
}

#[test]
fn a_name_without_addresses_of_the_family_has_no_data() {
    for kind in [RecordType::AAAA, RecordType::HTTPS] {
        let answer = answered(ask(&question("reviews.", kind), &table(1), Limit::Datagram));
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.answers.is_empty());
    }
}

#[test]
fn a_search_expansion_is_answered_by_an_alias() {
    let query = question("api.example.com.default.svc.cluster.local.", RecordType::A);
    let answer = answered(ask(&query, &table(1), Limit::Datagram));
    assert_eq!(answer.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(answer.answers[1].name.to_ascii(), "api.example.com.");
}

#[test]
fn what_is_not_known_here_is_forwarded() {
    let names = table(1);
    for (name, kind) in [
        ("example.org.", RecordType::A),
        ("reviews.", RecordType::SRV),
        ("5.0.96.10.in-addr.arpa.", RecordType::PTR),
        ("nosuch.default.svc.cluster.local.", RecordType::A),
    ] {
        let decision = ask(&question(name, kind), &names, Limit::Datagram);
        assert_eq!(decision, Decision::Forward, "{name} {kind}");
    }
}

#[test]
fn long_answers_are_truncated_on_datagrams_only() {
    let (names, mut query) = (table(300), question("reviews.", RecordType::A));
    let short = answered(ask(&query, &names, Limit::Datagram));
    assert!(short.metadata.truncation && short.answers.is_empty());
    let long = answered(ask(&query, &names, Limit::Stream));
    assert_eq!((long.metadata.truncation, long.answers.len()), (false, 300));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    query.set_edns(edns);
    let middle = answered(ask(&query, &table(50), Limit::Datagram));
    assert_eq!(middle.answers.len(), 50);
    assert!(middle.edns.is_some());
}

#[test]
fn malformed_questions_are_refused_and_responses_dropped() {
    let names = NameTable::default();
    let scope = Scope {
        namespace: None,
        domain: "cluster.local",
    };
    let mut bytes = question("a.", RecordType::A).to_vec().unwrap();
    bytes.truncate(14);
    let Decision::Refuse(refusal) = decide(&bytes, &names, scope, Limit::Datagram) else {
        panic!("not refused");
    };
    let refusal = Message::from_vec(&refusal).unwrap();
    assert_eq!(refusal.metadata.id, 4711);
    assert_eq!(refusal.metadata.response_code, ResponseCode::FormErr);
    let mut two = question("a.", RecordType::A);
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert!(matches!(
        ask(&two, &names, Limit::Datagram),
        Decision::Refuse(_)
    ));
    bytes[2] |= 0x80;
    assert_eq!(
        decide(&bytes, &names, scope, Limit::Datagram),
        Decision::Drop
    );
    assert_eq!(
        decide(&[0; 11], &names, scope, Limit::Datagram),
        Decision::Drop
    );
}

proptest! {
    #[test]
    fn any_bytes_are_decided_upon(bytes: Vec<u8>, other: Vec<u8>) {
        let scope = Scope { namespace: Some("n"), domain: "d" };
        decide(&bytes, &table(1), scope, Limit::Datagram);
        message::failure(&bytes);
        message::answers(&bytes, &other);
    }

    #[test]
    fn damaged_questions_are_decided_upon(at in 0usize..64, byte: u8) {
        let mut bytes = question("reviews.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        let scope = Scope { namespace: Some("default"), domain: "cluster.local" };
        decide(&bytes, &table(1), scope, Limit::Stream);
    }
}

/// A server on loopback and a resolver behind it.
struct Fixture {
    dns: Arc<Dns>,
    stop: CancellationToken,
}

fn fixture(upstream: SocketAddr) -> Fixture {
    let store = Arc::new(Store::new());
    let resources = Resources {
        names: Arc::new(table(1)),
        ..Resources::default()
    };
    store.publish(&resources, &Manager::new());
    let upstreams = Upstreams::fixed(vec![upstream]);
    let dns = Dns::new(store, Arc::default(), upstreams, "cluster.local".into());
    Fixture {
        dns,
        stop: CancellationToken::new(),
    }
}

fn client() -> Client {
    Client {
        pod: None,
        namespace: Some("default".into()),
    }
}

impl Fixture {
    fn udp(&self, bind: &str) -> SocketAddr {
        let socket = std::net::UdpSocket::bind(bind).unwrap();
        // As the broker makes it: an IPv4 datagram on a dual-stack socket is then told of twice.
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).unwrap();
        let address = socket.local_addr().unwrap();
        let served = self
            .dns
            .serve_udp(socket.into(), client(), self.stop.clone());
        served.unwrap();
        address
    }

    fn tcp(&self) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = self
            .dns
            .serve_tcp(listener.into(), client(), self.stop.clone());
        served.unwrap();
        address
    }
}

/// Answers every question with 192.0.2.1, after a forged answer with another id.
fn resolver_answer(query: &[u8]) -> [Vec<u8>; 2] {
    let query = Message::from_vec(query).unwrap();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    let name = query.queries[0].name().clone();
    answer.add_queries(query.queries);
    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    answer.add_answer(Record::from_rdata(name, 5, data));
    let mut forged = answer.clone();
    forged.metadata.id = answer.metadata.id.wrapping_add(1);
    [forged.to_vec().unwrap(), answer.to_vec().unwrap()]
}

async fn udp_resolver() -> (SocketAddr, tokio::task::JoinHandle<Vec<u16>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut ids = Vec::new();
        let mut buffer = [0; 1024];
        while ids.len() < 2 {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            ids.push(message::id(&buffer).unwrap());
            for answer in resolver_answer(&buffer[..length]) {
                socket.send_to(&answer, peer).await.unwrap();
            }
        }
        ids
    });
    (address, task)
}

async fn exchange(server: SocketAddr, from: &str, query: &Message) -> Message {
    let socket = UdpSocket::bind(from).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 2048];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer));
    let length = received.await.expect("no answer").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn answers_leave_from_the_address_that_was_asked() {
    let fixture = fixture("127.0.0.1:9".parse().unwrap());
    let query = question("reviews.", RecordType::A);
    for (bind, asked, from) in [
        ("0.0.0.0:0", "127.0.0.9", "127.0.0.1:0"),
        ("[::]:0", "127.0.0.9", "127.0.0.1:0"),
        ("[::]:0", "::1", "[::1]:0"),
    ] {
        let port = fixture.udp(bind).port();
        let server = SocketAddr::new(asked.parse().unwrap(), port);
        // A connected socket takes answers from the address it asked alone.
        let answer = exchange(server, from, &query).await;
        assert_eq!(answer.answers.len(), 1, "{bind} {asked}");
    }
    assert_eq!(fixture.dns.stats.get(Outcome::Mesh), 3);
}

#[tokio::test]
async fn other_questions_are_forwarded_with_ids_of_their_own() {
    let (upstream, resolver) = udp_resolver().await;
    let fixture = fixture(upstream);
    let server = fixture.udp("127.0.0.1:0");
    let query = question("example.org.", RecordType::A);
    for _ in 0..2 {
        let answer = exchange(server, "127.0.0.1:0", &query).await;
        assert_eq!(answer.metadata.id, 4711);
        assert_eq!(answer.answers.len(), 1);
    }
    let ids = resolver.await.unwrap();
    assert!(ids[0] != ids[1] || ids[0] != 4711, "{ids:?}");
    assert_eq!(fixture.dns.stats.get(Outcome::Forwarded), 2);
}

#[tokio::test]
async fn a_dead_resolver_gives_servfail() {
    // Nobody listens there: the kernel says so at once.
    let closed = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let fixture = fixture(closed);
    let server = fixture.udp("127.0.0.1:0");
    let answer = exchange(
        server,
        "127.0.0.1:0",
        &question("example.org.", RecordType::A),
    )
    .await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(answer.queries.len(), 1);
    assert_eq!(fixture.dns.stats.get(Outcome::Failed), 1);
}

#[tokio::test]
async fn streams_carry_several_questions() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let resolver = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let query = read_message(&mut stream).await.unwrap().unwrap();
        for answer in resolver_answer(&query) {
            write_message(&mut stream, &answer).await.unwrap();
        }
    });
    let fixture = fixture(upstream);
    let mut stream = TcpStream::connect(fixture.tcp()).await.unwrap();
    for name in ["reviews.", "example.org."] {
        let query = question(name, RecordType::A).to_vec().unwrap();
        write_message(&mut stream, &query).await.unwrap();
        let answer = read_message(&mut stream).await.unwrap().unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(
            (answer.metadata.id, answer.answers.len()),
            (4711, 1),
            "{name}"
        );
    }
    resolver.await.unwrap();
}

#[tokio::test]
async fn a_question_that_was_taken_is_answered_when_no_more_are() {
    let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let fixture = fixture(resolver.local_addr().unwrap());
    let server = fixture.udp("127.0.0.1:0");
    let mut idle = TcpStream::connect(fixture.tcp()).await.unwrap();
    let query = question("example.org.", RecordType::A);
    let asking = tokio::spawn(async move { exchange(server, "127.0.0.1:0", &query).await });
    let mut buffer = [0; 1024];
    let (length, peer) = resolver.recv_from(&mut buffer).await.unwrap();
    fixture.stop.cancel();
    // Who asks nothing is not waited for.
    assert!(read_message(&mut idle).await.unwrap().is_none());
    while fixture.dns.tasks.len() > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.dns.tasks.len(), 1, "the question is waited for");
    for answer in resolver_answer(&buffer[..length]) {
        resolver.send_to(&answer, peer).await.unwrap();
    }
    fixture.dns.settled().await;
    assert_eq!(asking.await.unwrap().answers.len(), 1);
}
