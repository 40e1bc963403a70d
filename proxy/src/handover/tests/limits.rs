//! A successor that may not have as many descriptors as there are connections, in a process of its own.

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, setrlimit};

use super::*;

/// What the other process is told by: the socket and the server of the node, and how many
/// descriptors it has left when it listens (0 are those that it does not need).
const TOLD: &str = "MILLRACE_TEST_SUCCESSOR";
/// More than the limited successor takes, fewer than this process may have.
const CONNECTIONS: usize = 100;
const LIMIT: u64 = 192;

/// The other process; it ends when this is dropped.
struct Successor(Child);

impl Successor {
    fn start(node: &Node, left: usize) -> Self {
        let server = node.server.local_addr().unwrap();
        let told = format!("{}|{server}|{left}", node.path().display());
        let name = "handover::tests::limits::a_limited_successor_of_other_tests";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(TOLD, told)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_limited_successor_of_other_tests() {
    let Ok(told) = std::env::var(TOLD) else {
        return;
    };
    let mut told = told.split('|');
    let mut next = || told.next().unwrap();
    let (path, server, left) = (
        next(),
        next().parse().unwrap(),
        next().parse::<usize>().unwrap(),
    );
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, LIMIT).unwrap();
    let place = Place {
        path: path.into(),
        server,
    };
    let epoch = place.epoch(1, &["t"]);
    let mut hoard = Vec::new();
    if left > 0 {
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
        }
        hoard.truncate(hoard.len() - left);
    }
    let parent = || std::io::stdin().read(&mut [0]);
    tokio::task::spawn_blocking(parent).await.unwrap().unwrap();
    drop(epoch);
}

/// Connections of an epoch that was told to end.
async fn connected(node: &Node) -> (Vec<(TcpStream, TcpStream)>, Epoch) {
    let old = node.epoch(0, &["t"]);
    let address = old.serve("t");
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = TcpStream::connect(address).await.unwrap();
        let (server, _) = node.server.accept().await.unwrap();
        connections.push((client, server));
    }
    (connections, old)
}

async fn exchange_all(connections: &mut [(TcpStream, TcpStream)]) {
    for (client, server) in connections {
        exchange(client, server).await;
    }
}

/// Waits until the successor listens.
async fn listening(node: &Node) {
    while Connection::<Taking, Giving>::connect(&node.path()).is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_successor_keeps_descriptors_for_new_connections() {
    let node = Node::new().await;
    let (mut connections, old) = connected(&node).await;
    let successor = Successor::start(&node, 0);
    listening(&node).await;
    let leaving = old.leave().await;
    let kept = |leaving: &Leaving| leaving.handover.json()["kept"]["full"].as_u64().unwrap();
    while kept(&leaving) == 0 {
        exchange_all(&mut connections).await;
    }
    exchange_all(&mut connections).await;
    let given = leaving.handover.stats().given_total();
    assert!((1..CONNECTIONS as u64).contains(&given), "{given}");
    drop(successor);
    // Those that went with it are gone; the others go to the next one.
    let _new = node.epoch(2, &["t"]);
    assert_eq!(leaving.emptied().await, CONNECTIONS as u64);
}

#[tokio::test]
async fn a_successor_without_descriptors_takes_nothing_and_breaks_nothing() {
    let node = Node::new().await;
    let (mut connections, old) = connected(&node).await;
    // For the conversation and its will; a connection's two sockets do not fit.
    let successor = Successor::start(&node, 3);
    listening(&node).await;
    let leaving = old.leave().await;
    while leaving.handover.stats().kept_total() < 2 * CONNECTIONS as u64 {
        exchange_all(&mut connections).await;
    }
    exchange_all(&mut connections).await;
    assert_eq!(leaving.handover.stats().given_total(), 0);
    let new = node.epoch(2, &["t"]);
    drop(successor);
    assert_eq!(leaving.emptied().await, CONNECTIONS as u64);
    exchange_all(&mut connections).await;
    assert_eq!(new.handover.stats().adopted_total(), CONNECTIONS as u64);
}
