//! Connections into pods of this node: whose they are, and what becomes of them when a pod goes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use crate::support::*;

/// A server that hands its connections to the test.
fn accepting() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let (sender, accepted) = mpsc::channel();
    let address = server(move |stream| drop(sender.send(stream)));
    (address, accepted)
}

fn get(client: &mut TcpStream) {
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
}

fn answer(server: &mut TcpStream, client: &mut TcpStream) {
    assert!(read_head(server).starts_with("GET / "));
    server.write_all(&ok("x")).unwrap();
    assert_eq!(read_message(client).1, b"x");
}

#[test]
fn a_connection_into_a_pod_is_not_used_for_the_next_pod_of_its_address() {
    let (address, accepted) = accepting();
    let proxy = Setup::new(&[address]).start();
    let _first = proxy.add_pod("u-1", address.ip());
    let mut client = proxy.connect();
    get(&mut client);
    let mut old = accepted.recv().unwrap();
    answer(&mut old, &mut client);
    get(&mut client);
    answer(&mut old, &mut client);

    // The next pod has the address before the first is known to be gone.
    let _next = proxy.add_pod("u-2", address.ip());
    get(&mut client);
    let mut new = accepted.recv().unwrap();
    answer(&mut new, &mut client);
    assert_eq!(old.read(&mut [0; 1]).unwrap(), 0, "the old one is closed");
}

#[test]
fn idle_connections_into_a_pod_end_when_it_goes() {
    let (address, accepted) = accepting();
    let proxy = Setup::new(&[address]).start();
    let _asked = proxy.add_pod("u-1", address.ip());
    let mut client = proxy.connect();
    get(&mut client);
    let mut server = accepted.recv().unwrap();
    answer(&mut server, &mut client);
    proxy.pods.remove(&"u-1".into()).unwrap();
    assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);

    // Its address is nobody's on this node now: the proxy connects by itself.
    get(&mut client);
    let mut direct = accepted.recv().unwrap();
    answer(&mut direct, &mut client);
}

#[test]
fn a_request_under_way_with_a_pod_that_goes_ends_soon() {
    let (address, accepted) = accepting();
    let proxy = Setup::new(&[address]).start();
    let _asked = proxy.add_pod("u-1", address.ip());
    let mut client = proxy.connect();
    get(&mut client);
    let mut server = accepted.recv().unwrap();
    read_head(&mut server);
    proxy.pods.remove(&"u-1".into()).unwrap();
    let (head, _) = read_message(&mut client);
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
}
