//! Connections that move between two epochs in this process, and what becomes of them when one of
//! the two goes away in the middle.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use millrace_runtime::drain::{self, Outcome};
use millrace_runtime::handoff::Connection;
use millrace_runtime::handoff::listener::{BindOptions, Listener};
use millrace_runtime::ready::Ready;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::adopt::Resolver;
use super::giver::Giver;
use super::message::{Carried, Giving, Taking, VERSION};
use super::taker::Taker;
use super::will::Will;
use super::*;
use crate::fixture::{Fixture, cluster, http_chain, listener, pair, tcp_chain};
use crate::listener::accepted::Origin;
use crate::metrics::{Telemetry, TelemetryCollector};
use crate::resource::TrafficDirection;
use crate::worker::{Threads, Workers};

mod faults;
mod limits;

const LONG: Duration = Duration::from_mins(1);

/// A directory for the socket, and the server behind the proxies.
struct Node {
    dir: tempfile::TempDir,
    server: TcpListener,
}

impl Node {
    async fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            server: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("takeover.sock")
    }

    fn place(&self) -> Place {
        Place {
            path: self.path(),
            server: self.server.local_addr().unwrap(),
        }
    }

    /// As [`Place::epoch`].
    fn epoch(&self, number: u32, listeners: &[&str]) -> Epoch {
        self.place().epoch(number, listeners)
    }

    /// A client's connection through `epoch` to the server, with the server's end.
    async fn connect(&self, epoch: &Epoch) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(epoch.serve("t")).await.unwrap();
        let (server, _) = self.server.accept().await.unwrap();
        (client, server)
    }

    /// Listens in the place of the newest epoch.
    fn impostor(&self) -> Listener {
        let options = BindOptions {
            mode: 0o600,
            owner: None,
        };
        Listener::bind(&self.path(), options).unwrap()
    }
}

/// Where epochs meet, and the server behind them.
struct Place {
    path: PathBuf,
    server: SocketAddr,
}

impl Place {
    /// An epoch that serves these listeners: `t` for bytes to the server, `h` for HTTP that has no
    /// route.
    fn epoch(&self, number: u32, listeners: &[&str]) -> Epoch {
        let (handover, offers) = Handover::new(number);
        let mut fixture = Fixture::new();
        fixture.parts.handover = handover.clone();
        self.publish(&fixture, listeners);
        let (trigger, watcher) = drain::channel();
        let (workers, threads) = Workers::start(2, &fixture.parts, &watcher).unwrap();
        let resolver = Resolver {
            store: fixture.parts.store.clone(),
            pods: fixture.parts.pods.clone(),
        };
        let leaving = CancellationToken::new();
        let when = (Ready::new(), leaving.clone());
        let taker = Taker::new(
            Taker::listen(&self.path).unwrap(),
            handover.clone(),
            resolver,
            workers.clone(),
            when,
        );
        Epoch {
            path: self.path.clone(),
            taker: Some(tokio::spawn(taker.run())),
            handover,
            offers: Some(offers),
            leaving,
            workers,
            threads,
            trigger,
            fixture,
        }
    }

    fn publish(&self, fixture: &Fixture, listeners: &[&str]) {
        let made = listeners.iter().map(|name| match *name {
            "t" => listener("t", [tcp_chain("tcp", "c")]),
            _ => listener("h", [http_chain("http", &[])]),
        });
        fixture.publish(made, [cluster("c", &[self.server])]);
    }
}

struct Epoch {
    path: PathBuf,
    handover: Handover,
    offers: Option<mpsc::Receiver<Offer>>,
    leaving: CancellationToken,
    taker: Option<JoinHandle<tokio::task::JoinSet<()>>>,
    workers: Workers,
    threads: Threads,
    trigger: drain::Trigger,
    fixture: Fixture,
}

/// An epoch that was told to end.
struct Leaving {
    handover: Handover,
    threads: Threads,
    outcome: JoinHandle<Outcome>,
    giver: JoinHandle<()>,
    _sessions: tokio::task::JoinSet<()>,
}

impl Epoch {
    fn serve(&self, name: &str) -> SocketAddr {
        let socket = StdListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let origin = Origin::Listener(name.into());
        let stop = CancellationToken::new();
        self.workers.serve(1, socket.into(), origin, stop);
        address
    }

    /// As the process does when it is told to end.
    async fn leave(mut self) -> Leaving {
        self.leaving.cancel();
        let sessions = self.taker.take().unwrap().await.unwrap();
        self.handover.settled().await;
        let offers = self.offers.take().unwrap();
        let giver = Giver::new(self.path, (self.handover.clone(), offers));
        let giver = tokio::spawn(giver.run());
        self.handover.sought().await;
        Leaving {
            handover: self.handover,
            threads: self.threads,
            outcome: tokio::spawn(self.trigger.drain(LONG)),
            giver,
            _sessions: sessions,
        }
    }
}

impl Leaving {
    /// Waits until nothing is left here; says how many connections went to the next epoch.
    async fn emptied(self) -> u64 {
        assert_eq!(self.outcome.await.unwrap(), Outcome::Finished);
        self.threads.join();
        self.giver.abort();
        self.handover.stats().given_total()
    }
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let mut got = [0; 4];
    client.write_all(b"ping").await.unwrap();
    server.read_exact(&mut got).await.unwrap();
    server.write_all(b"pong").await.unwrap();
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"pong");
}

/// Sends these bytes and reads one answer, which says that there is no route.
async fn ask(client: &mut TcpStream, request: &[u8]) {
    client.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = client.read_u8().await.unwrap();
        answer.push(byte);
    }
    let text = String::from_utf8(answer).unwrap();
    assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    assert!(!text.contains("connection: close"), "{text}");
}

/// Waits until no connection to the listener at `address` waits to be accepted.
async fn all_accepted(address: SocketAddr) {
    let local = format!(":{:04X} ", address.port());
    loop {
        let sockets = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        // `st` 0A is LISTEN, whose `rx_queue` is the backlog.
        let waiting = sockets.lines().find(|line| {
            line.contains(&local) && line.contains(" 0A ") && !line.contains(":00000000 00:")
        });
        if waiting.is_none() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn idle_http_connections_go_on_in_the_next_epoch() {
    let node = Node::new().await;
    let old = node.epoch(0, &["h"]);
    let address = old.serve("h");
    let mut used = TcpStream::connect(address).await.unwrap();
    ask(&mut used, GET).await;
    // A second request has begun: what was read of it moves too.
    let mut begun = TcpStream::connect(address).await.unwrap();
    let more = [GET, &GET[..9]].concat();
    ask(&mut begun, &more).await;
    let mut fresh = TcpStream::connect(address).await.unwrap();
    // One that waits in the backlog goes with the listener, of which nobody here keeps a duplicate.
    all_accepted(address).await;
    let new = node.epoch(1, &["h"]);
    let leaving = old.leave().await;
    // Whoever has sent something is served by whichever epoch has the connection.
    ask(&mut fresh, GET).await;
    assert_eq!(leaving.emptied().await, 3);
    ask(&mut begun, &GET[9..]).await;
    ask(&mut used, GET).await;
    ask(&mut fresh, GET).await;
    assert_eq!(new.handover.stats().adopted_total(), 3);
    assert_eq!(new.handover.stats().kept_total(), 0);
}

#[tokio::test]
async fn bytes_that_could_not_be_written_yet_move_along() {
    let node = Node::new().await;
    let old = node.epoch(0, &["t"]);
    let (mut client, mut server) = node.connect(&old).await;
    exchange(&mut client, &mut server).await;
    // As much as goes in while nobody reads, in both directions.
    let (sent, back) = (fill(&client).await, fill(&server).await);
    let new = node.epoch(1, &["t"]);
    assert_eq!(old.leave().await.emptied().await, 1);
    let read = async |stream: &mut TcpStream, length: usize| {
        let mut all = vec![0; length];
        stream.read_exact(&mut all).await.unwrap();
        let wrong = all.iter().enumerate().find(|(at, b)| **b != byte(*at));
        assert_eq!(wrong, None);
    };
    tokio::join!(read(&mut server, sent), read(&mut client, back));
    exchange(&mut client, &mut server).await;
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(new.handover.stats().adopted_total(), 1);
}

fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

/// Writes numbered bytes until, for some rounds of everybody else, nothing goes in.
async fn fill(stream: &TcpStream) -> usize {
    let (mut sent, mut stalled) = (0, 0);
    while stalled < 2000 {
        let chunk: Vec<u8> = (sent..sent + 4096).map(byte).collect();
        match stream.try_write(&chunk) {
            Ok(n) => (sent, stalled) = (sent + n, 0),
            Err(_) => stalled += 1,
        }
        tokio::task::yield_now().await;
    }
    sent
}

#[tokio::test]
async fn a_half_closed_connection_moves_with_its_end() {
    let node = Node::new().await;
    let old = node.epoch(0, &["t"]);
    let (mut client, mut server) = node.connect(&old).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    let _new = node.epoch(1, &["t"]);
    assert_eq!(old.leave().await.emptied().await, 1);
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(
        (question, answer),
        (b"question".to_vec(), b"answer".to_vec())
    );
}

#[tokio::test]
async fn connections_pass_through_many_epochs() {
    let node = Node::new().await;
    let mut epoch = node.epoch(0, &["t", "h"]);
    let (mut client, mut server) = node.connect(&epoch).await;
    let mut http = TcpStream::connect(epoch.serve("h")).await.unwrap();
    ask(&mut http, GET).await;
    for number in 1..=20 {
        let next = node.epoch(number, &["t", "h"]);
        assert_eq!(epoch.leave().await.emptied().await, 2, "{number}");
        exchange(&mut client, &mut server).await;
        ask(&mut http, GET).await;
        epoch = next;
    }
}

const WELCOME: Taking = Taking::Welcome {
    version: VERSION,
    epoch: 1,
    pid: 1,
};

/// A successor that goes away when it has been given a connection, before or after it took it.
async fn unreliable(successor: &Listener, takes: bool) {
    let (session, _) = successor.accept::<Giving, Taking>().await.unwrap();
    session.recv().await.unwrap();
    session.send(&WELCOME, &[]).await.unwrap();
    let will = session.recv().await.unwrap().unwrap();
    assert_eq!(will.message, Giving::Will);
    let given = session.recv().await.unwrap().unwrap();
    let Giving::Give { id, .. } = given.message else {
        panic!("{:?}", given.message);
    };
    assert_eq!(given.fds.len(), 2);
    if takes {
        session.send(&Taking::Taken { id }, &[]).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_successor_did_not_take_stays_and_goes_to_the_next_one() {
    for takes in [false, true] {
        let node = Node::new().await;
        let old = node.epoch(0, &["t"]);
        let (mut client, mut server) = node.connect(&old).await;
        let successor = node.impostor();
        let (leaving, ()) = tokio::join!(old.leave(), unreliable(&successor, takes));
        drop(successor);
        exchange(&mut client, &mut server).await;
        let new = node.epoch(2, &["t"]);
        assert_eq!(leaving.emptied().await, 1);
        exchange(&mut client, &mut server).await;
        assert_eq!(new.handover.stats().adopted_total(), 1);
    }
}

#[tokio::test]
async fn what_the_successor_does_not_know_stays_until_it_does() {
    let node = Node::new().await;
    let old = node.epoch(0, &["t"]);
    let (mut client, mut server) = node.connect(&old).await;
    let new = node.epoch(1, &["h"]);
    let leaving = old.leave().await;
    while leaving.handover.stats().kept_total() == 0 {
        exchange(&mut client, &mut server).await;
    }
    node.place().publish(&new.fixture, &["t", "h"]);
    assert_eq!(leaving.emptied().await, 1);
    exchange(&mut client, &mut server).await;
    assert_eq!(new.handover.stats().adopted_total(), 1);
}

#[tokio::test]
async fn a_successor_of_another_version_is_none() {
    let node = Node::new().await;
    let old = node.epoch(0, &["t"]);
    let (mut client, mut server) = node.connect(&old).await;
    let successor = node.impostor();
    let refuse = async {
        let (session, _) = successor.accept::<Giving, Taking>().await.unwrap();
        session.recv().await.unwrap();
        let refused = Taking::Refused {
            version: VERSION + 1,
        };
        session.send(&refused, &[]).await.unwrap();
    };
    let (leaving, ()) = tokio::join!(old.leave(), refuse);
    assert_eq!(leaving.handover.stage(), Stage::Alone);
    exchange(&mut client, &mut server).await;
    drop((client, server, successor));
    assert_eq!(leaving.emptied().await, 0);
}

/// The conversation of a predecessor that is welcome.
async fn introduced(node: &Node) -> (Connection<Taking, Giving>, Will) {
    let session = Connection::<Taking, Giving>::connect(&node.path()).unwrap();
    let hello = Giving::Hello {
        version: VERSION,
        epoch: 0,
        pid: 1,
    };
    session.send(&hello, &[]).await.unwrap();
    let answer = session.recv().await.unwrap().unwrap().message;
    assert!(matches!(answer, Taking::Welcome { .. }), "{answer:?}");
    let will = Will::new().unwrap();
    session.send(&Giving::Will, &[will.as_fd()]).await.unwrap();
    (session, will)
}

/// A raw connection of `t` between these two.
fn raw(peer: SocketAddr) -> Box<Parcel> {
    let pair = message::Pair {
        cluster: "c".to_owned(),
        host: peer,
        attempts: 1,
        unread: 0,
        lane: None,
        out: message::Flow::default(),
        back: message::Flow::default(),
        received: 0,
        sent: 0,
        idle_us: 0,
    };
    Box::new(Parcel {
        connection: 7,
        worker: 0,
        pod: None,
        direction: TrafficDirection::Outbound,
        peer,
        local: peer,
        orig_dst: peer,
        listener: "t".to_owned(),
        filter_chain: "tcp".to_owned(),
        server_name: None,
        age_us: 0,
        parked_ns: 0,
        unread: 0,
        lane: None,
        carried: Carried::Bytes { pair },
    })
}

/// A predecessor that has given one connection and heard that it was taken.
async fn given(
    node: &Node,
    ends: [&OwnedFd; 2],
    peer: SocketAddr,
) -> (Connection<Taking, Giving>, Will) {
    let (session, will) = introduced(node).await;
    let fds = ends.map(|end| end.as_fd());
    let give = Giving::give(3, raw(peer));
    session.send(&give, &fds).await.unwrap();
    let answer = session.recv().await.unwrap().unwrap().message;
    assert_eq!(answer, Taking::Taken { id: 3 });
    (session, will)
}

/// Both ends of a connection, the second one as a descriptor that can be given.
async fn ends() -> (TcpStream, OwnedFd) {
    let (near, far) = pair().await;
    (near, far.into_std().unwrap().into())
}

#[tokio::test]
async fn what_was_taken_is_the_takers_when_its_giver_dies() {
    let node = Node::new().await;
    let new = node.epoch(1, &["t"]);
    let ((mut client, near), (mut server, far)) = (ends().await, ends().await);
    let peer = client.peer_addr().unwrap();
    let (session, will) = given(&node, [&near, &far], peer).await;
    // All of a process's descriptors are closed when it dies.
    drop((near, far, session, will));
    exchange(&mut client, &mut server).await;
    assert_eq!(new.handover.stats().adopted_total(), 1);
}

#[tokio::test]
async fn what_was_taken_stays_with_a_giver_that_lives() {
    let node = Node::new().await;
    let new = node.epoch(1, &["t"]);
    let ((mut client, near), (_server, far)) = (ends().await, ends().await);
    let peer = client.peer_addr().unwrap();
    let (session, will) = given(&node, [&near, &far], peer).await;
    will.revoke().unwrap();
    drop(session);
    new.handover.unprepared().await;
    // The giver alone reads and writes it.
    let near = std::net::TcpStream::from(near);
    let mut near = TcpStream::from_std(near).unwrap();
    exchange(&mut client, &mut near).await;
    assert_eq!(new.handover.stats().adopted_total(), 0);
}

#[tokio::test]
async fn a_message_out_of_order_stops_the_taking_and_loses_nothing() {
    let node = Node::new().await;
    let new = node.epoch(1, &["t"]);
    let ((mut client, near), (mut server, far)) = (ends().await, ends().await);
    let peer = client.peer_addr().unwrap();
    let (session, will) = given(&node, [&near, &far], peer).await;
    session.send(&Giving::Go { id: 99 }, &[]).await.unwrap();
    // It crosses the answer: what was taken before is let go all the same.
    session.send(&Giving::Go { id: 3 }, &[]).await.unwrap();
    drop((near, far));
    let answer = session.recv().await.unwrap().unwrap().message;
    assert_eq!(answer, Taking::Stop);
    will.revoke().unwrap();
    drop(session);
    exchange(&mut client, &mut server).await;
    assert_eq!(new.handover.stats().adopted_total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_is_offered_again_in_a_pause_between_two_requests() {
    let (handover, _offers) = Handover::new(0);
    handover.set_stage(Stage::Open);
    let leaving = CancellationToken::new();
    leaving.cancel();
    let mut parking = Parking::new(handover, leaving);
    parking.declined = 1;
    parking.again = Instant::now() + RETRY;
    // It is busy again before the time has come, which does not start the wait anew.
    let soon = tokio::time::timeout(RETRY * 3 / 4, parking.turn());
    assert!(soon.await.is_err());
    let soon = tokio::time::timeout(RETRY / 2, parking.turn());
    assert!(soon.await.is_ok());
}
