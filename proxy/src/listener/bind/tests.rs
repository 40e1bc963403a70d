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
    let mut binder = Binder::new(workers, Estate::default(), CancellationToken::new());

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
    let mut binder = Binder::new(workers, Estate::default(), CancellationToken::new());
    let errors = binder.apply(&fixture.parts.store.load());
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].name, "refused");
    assert!(binder.address("bound").is_some());
}

#[tokio::test]
async fn the_next_epoch_serves_every_socket_of_the_one_before() {
    let free = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let (address, before) = (free.0, Estate::default());
    let (_, old) = open(&before, address, 3).unwrap();
    assert_eq!(old.len(), 3);
    for (workers, sockets) in [(1, 3), (3, 3), (4, 4)] {
        let next = Estate::of(before.copies().unwrap());
        let (_, served) = open(&next, address, workers).unwrap();
        assert_eq!(served.len(), sockets, "{workers} workers");
        assert_eq!(
            next.copies().unwrap().len(),
            sockets,
            "kept for the epoch after"
        );
    }
}

#[tokio::test]
async fn a_listener_that_is_gone_is_kept_for_nobody() {
    let fixture = Fixture::new();
    let (address, _) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let mut fixed = listener("l", [tcp_chain("tcp", "c")]);
    fixed.address = address;
    fixture.publish([fixed], []);
    let (_trigger, watcher) = drain::channel();
    let (workers, _threads) = Workers::start(1, &fixture.parts, &watcher).unwrap();
    let estate = Estate::default();
    let mut binder = Binder::new(workers, estate.clone(), CancellationToken::new());
    assert!(binder.apply(&fixture.parts.store.load()).is_empty());
    assert_eq!(estate.copies().unwrap().len(), 1);
    fixture.publish([], []);
    assert!(binder.apply(&fixture.parts.store.load()).is_empty());
    assert!(estate.copies().unwrap().is_empty());
}
