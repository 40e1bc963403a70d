//! Epochs of a proxy that runs from a file, and proxies that are none of each other's.

use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

use crate::process::Proxy;
use crate::{backend, get, static_file};

/// A port that no other process is given, and at which proxies can listen.
fn port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn start(address: SocketAddr, text: &'static str, epoch: &str) -> Proxy {
    let file = static_file("STATIC", "127.0.0.1", backend(text));
    let listener =
        "name: listener_0\n    address: {socket_address: {address: 127.0.0.1, port_value: ";
    let file = file.replace(
        &format!("{listener}0"),
        &format!("{listener}{}", address.port()),
    );
    let id = std::process::id().to_string();
    Proxy::start_with(&file, 2, &["--base-id", &id, "--restart-epoch", epoch])
}

#[test]
fn an_epoch_takes_over_from_the_one_before_and_from_nobody_else() {
    let ((_held, address), (_other, elsewhere)) = (port(), port());
    let first = start(address, "first", "0");
    assert_eq!(first.address("listener_0"), address);
    assert!(get(address, "/").ends_with("first"));

    let (status, told) = start(address, "twin", "0").end();
    assert!(!status.success(), "{told}");
    assert!(told.contains("epoch 0 runs already"), "{told}");

    // Its listener is elsewhere, so that it was given another proxy's name by mistake.
    let (_, told) = start(elsewhere, "stranger", "1").end();
    assert!(told.contains("needs a --base-id of its own"), "{told}");
    assert!(get(address, "/").ends_with("first"));

    let second = start(address, "second", "1");
    let (status, told) = first.end();
    assert!(status.success(), "{told}");
    assert!(told.contains("another epoch serves"), "{told}");
    assert!(get(address, "/").ends_with("second"));
    drop(second);
}
