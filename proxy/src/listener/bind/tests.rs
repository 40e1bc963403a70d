//! Sockets of listeners follow the configuration.

use millrace_runtime::drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::fixture::{Fixture, cluster, listener, tcp_chain};

#[test]
fn every_worker_has_a_socket_at_the_same_port() {
    let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
    assert_eq!(sockets.len(), 3);
    for socket in &sockets {
        let bound = socket2::SockRef::from(socket).local_addr().unwrap();
        assert_eq!(bound.as_socket(), Some(address));
    }
}

#[tokio::test]
async fn listeners_come_and_go_with_the_configuration() {
    let fixture = Fixture::new();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let clusters = || [cluster("c", &[server.local_addr().unwrap()])];
    let (_trigger, watcher) = drain::channel();
    let (workers, _threads) = Workers::start(2, &fixture.parts, &watcher).unwrap();
    let mut binder = Binder::new(workers, CancellationToken::new());

    fixture.publish([listener("l", [tcp_chain("tcp", "c")])], clusters());
    assert!(binder.apply(&fixture.parts.store.load()).is_empty());
    let address = binder.address("l").unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut accepted, _) = server.accept().await.unwrap();

    fixture.publish([], clusters());
    assert!(binder.apply(&fixture.parts.store.load()).is_empty());
    assert_eq!(binder.address("l"), None);
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // A connection outlives the listener that took it.
    client.write_all(b"still").await.unwrap();
    let mut still = [0; 5];
    accepted.read_exact(&mut still).await.unwrap();
}

#[tokio::test]
async fn a_listener_that_cannot_be_bound_is_named_and_keeps_no_other_from_it() {
    let fixture = Fixture::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut refused = listener("refused", [tcp_chain("tcp", "c")]);
    refused.address = taken.local_addr().unwrap();
    fixture.publish([refused, listener("bound", [tcp_chain("tcp", "c")])], []);
    let (_trigger, watcher) = drain::channel();
    let (workers, _threads) = Workers::start(1, &fixture.parts, &watcher).unwrap();
    let mut binder = Binder::new(workers, CancellationToken::new());
    let errors = binder.apply(&fixture.parts.store.load());
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].name, "refused");
    assert!(binder.address("bound").is_some());
}
