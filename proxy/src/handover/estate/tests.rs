//! What is kept of listening sockets, and what of those of another epoch is believed.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;

use super::*;

fn listener() -> (Place, OwnedFd) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    (Place::Tcp(socket.local_addr().unwrap()), socket.into())
}

fn places(estate: &Estate) -> Vec<Place> {
    let copies = estate.copies().unwrap();
    copies.into_iter().map(|(place, _)| place).collect()
}

#[test]
fn a_socket_is_kept_until_it_is_let_go() {
    let estate = Estate::default();
    let (place, socket) = listener();
    let other = listener();
    estate.hold(place, &[&socket, &socket]).unwrap();
    estate.hold(other.0, &[&other.1]).unwrap();
    let next = Estate::of(estate.copies().unwrap());
    assert_eq!(next.take(place).len(), 2);
    assert!(next.take(place).is_empty(), "given out twice");
    estate.release(place);
    assert_eq!(places(&estate), [other.0]);
}

#[test]
fn who_drains_still_meets_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let name = UnixListener::bind(dir.path().join("s")).unwrap();
    let estate = Estate::default();
    let (place, socket) = listener();
    estate.hold(place, &[&socket]).unwrap();
    estate.hold(Place::Claims, &[&name]).unwrap();
    estate.release_ports();
    assert_eq!(places(&estate), [Place::Claims]);
    estate.release_all();
    assert_eq!(places(&estate), []);
}

#[test]
fn a_port_of_the_kernels_choice_is_not_kept() {
    let estate = Estate::default();
    let (_, socket) = listener();
    let asked = Place::Tcp(([127, 0, 0, 1], 0).into());
    estate.hold(asked, &[&socket]).unwrap();
    assert_eq!(places(&estate), []);
}

#[test]
fn a_socket_that_is_another_is_closed() {
    let (Place::Tcp(address), tcp) = listener() else {
        panic!("no listener");
    };
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = udp.local_addr().unwrap();
    let bound = socket2::Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
    bound
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let silent = bound.local_addr().unwrap().as_socket().unwrap();
    let copy = || tcp.try_clone().unwrap();
    let given: [(Place, OwnedFd); 5] = [
        (Place::Tcp(at), copy()),
        (Place::Udp(address), copy()),
        (Place::Claims, copy()),
        (Place::Tcp(at), udp.into()),
        (Place::Tcp(silent), bound.into()),
    ];
    let all = given.each_ref().map(|(place, _)| *place);
    let estate = Estate::of(given);
    for place in all {
        assert!(estate.take(place).is_empty(), "{place:?}");
    }
}

#[test]
fn an_epoch_that_shares_no_port_is_a_stranger() {
    let estate = || {
        let (first, second) = (listener(), listener());
        (first.0, Estate::of([first, second]))
    };
    assert_eq!(Estate::default().settle(), Inherited::Nothing);
    let (place, shared) = estate();
    assert_eq!(shared.take(place).len(), 1);
    assert_eq!(shared.settle(), Inherited::Shared);
    assert_eq!(estate().1.settle(), Inherited::Foreign);
}
