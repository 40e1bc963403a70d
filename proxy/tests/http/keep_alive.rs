//! A request is not lost because the upstream closed an idle connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::support::*;

/// What happens at the server, in an order that is known for certain: a clock that ticks at each look.
#[derive(Default)]
struct Watch {
    executed: AtomicU64,
    clock: AtomicU64,
    /// When each close began and when it was done.
    closes: Mutex<Vec<(u64, u64)>>,
}

impl Watch {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn close(&self, began: u64, stream: TcpStream) {
        let index = {
            let mut closes = self.closes.lock();
            closes.push((began, u64::MAX));
            closes.len() - 1
        };
        drop(stream);
        self.closes.lock()[index].1 = self.now();
    }
}

/// A server that closes idle connections at random, by FIN or reset, unless a request has come.
fn restless(watch: Arc<Watch>) -> std::net::SocketAddr {
    server(move |mut stream| {
        let mut rng = fastrand::Rng::new();
        loop {
            let (head, body) = read_message(&mut stream);
            if head.is_empty() {
                return;
            }
            watch.executed.fetch_add(1, Ordering::Relaxed);
            let answer = ok(std::str::from_utf8(&body).unwrap());
            if stream.write_all(&answer).is_err() {
                return;
            }
            if rng.u8(0..4) == 0 {
                stream.set_nonblocking(true).unwrap();
                let linger = rng.bool().then_some(Duration::ZERO);
                socket2::SockRef::from(&stream).set_linger(linger).unwrap();
                for _ in 0..rng.u32(0..2000) {
                    std::hint::spin_loop();
                }
                let began = watch.now();
                if stream.peek(&mut [0]).is_err() {
                    watch.close(began, stream);
                    return;
                }
                stream.set_nonblocking(false).unwrap();
            }
        }
    })
}

/// Sends requests one after the other; those that failed, by when they began and ended.
fn failures(
    address: std::net::SocketAddr,
    watch: &Watch,
    (method, count): (&str, u32),
) -> Vec<(u64, u64)> {
    let mut stream = connect(address);
    let mut failed = Vec::new();
    for n in 0..count {
        let body = if method == "POST" {
            n.to_string()
        } else {
            String::new()
        };
        let length = body.len();
        let request =
            format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
        let began = watch.now();
        stream.write_all(request.as_bytes()).unwrap();
        let (head, got) = read_message(&mut stream);
        if head.starts_with("HTTP/1.1 200") {
            assert_eq!(String::from_utf8(got).unwrap(), body);
        } else {
            failed.push((began, watch.now()));
        }
    }
    failed
}

#[test]
fn no_get_fails_when_idle_connections_are_closed_at_random() {
    let watch = Arc::<Watch>::default();
    let proxy = Setup::new(&[restless(watch.clone())]).start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(failures(proxy.address, &watch, ("GET", 100)).is_empty()));
        }
    });
    assert!(watch.executed.load(Ordering::Relaxed) >= 800);
}

/// What a POST meets that is under way while its connection is closed may have been read, for all that
/// anybody can know: it is answered 503 with the flag UC, as Envoy answers any request there, and never
/// sent again. A connection that was closed before fails none, however it was closed.
#[test]
fn a_post_fails_only_where_its_connection_is_closed_meanwhile() {
    let watch = Arc::<Watch>::default();
    let proxy = Setup::new(&[restless(watch.clone())]).start();
    // One at a time: every connection that is closed is the one that the request came by.
    let failed = failures(proxy.address, &watch, ("POST", 800));
    assert_eq!(
        watch.executed.load(Ordering::Relaxed) + failed.len() as u64,
        800,
        "no POST is executed twice"
    );
    let mut closes = watch.closes.lock().clone();
    assert!(!closes.is_empty());
    for (began, ended) in &failed {
        let met = closes
            .iter()
            .position(|(closing, closed)| closing < ended && began < closed);
        let met = met.unwrap_or_else(|| panic!("{began} to {ended} met none of {closes:?}"));
        closes.remove(met);
    }
    let lines = proxy.log();
    let told = lines.iter().filter(|line| line.contains(" 503 UC "));
    assert_eq!(told.count(), failed.len());
}

#[test]
fn a_post_that_was_received_is_not_sent_twice() {
    let executed = Arc::new(AtomicU64::new(0));
    let counted = executed.clone();
    let upstream = server(move |mut stream| {
        let (_, _) = read_message(&mut stream);
        stream.write_all(&ok("first")).unwrap();
        let (head, _) = read_message(&mut stream);
        assert!(!head.is_empty());
        counted.fetch_add(1, Ordering::Relaxed);
        // Received, and no answer.
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    client.write_all(post).unwrap();
    assert_eq!(read_message(&mut client).1, b"first");
    client.write_all(post).unwrap();
    let (head, _) = read_message(&mut client);
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(executed.load(Ordering::Relaxed), 1);
    drop(client);
    let log = proxy.log();
    assert!(log[1].contains(" 503 UC "), "{log:?}");
}

#[test]
fn a_post_of_which_a_part_was_read_is_not_sent_twice() {
    let executed = Arc::new(AtomicU64::new(0));
    let counted = executed.clone();
    let upstream = server(move |mut stream| {
        // Quick answers put the connection into the mode in which acknowledgements are delayed.
        for _ in 0..8 {
            if read_message(&mut stream).0.is_empty() {
                return;
            }
            stream.write_all(&ok("warm")).unwrap();
        }
        let mut part = [0; 20];
        stream.read_exact(&mut part).unwrap();
        counted.fetch_add(1, Ordering::Relaxed);
        // Closing with the rest unread resets the connection, and nothing was acknowledged.
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    for _ in 0..8 {
        client.write_all(post).unwrap();
        assert_eq!(read_message(&mut client).1, b"warm");
    }
    client.write_all(post).unwrap();
    let (head, _) = read_message(&mut client);
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(executed.load(Ordering::Relaxed), 1);
}

#[test]
fn a_connection_closed_while_idle_is_found_dead() {
    let (closed, was_closed) = std::sync::mpsc::channel();
    let upstream = server(move |mut stream| {
        read_head(&mut stream);
        stream.write_all(&ok("x")).unwrap();
        let mut rest = Vec::new();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        closed.send(()).unwrap();
        stream.read_to_end(&mut rest).ok();
        assert!(rest.is_empty(), "nothing is sent on a closed connection");
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    for _ in 0..5 {
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        assert_eq!(read_message(&mut client).1, b"x");
        // Over loopback the FIN has then arrived.
        was_closed.recv().unwrap();
    }
}

#[test]
fn a_host_that_leaves_gets_no_more_requests() {
    let (old, new) = (responder(|_, _| ok("old")), responder(|_, _| ok("new")));
    let mut proxy = Setup::new(&[old]).start();
    let mut client = proxy.connect();
    let mut get = || {
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        read_message(&mut client).1
    };
    assert_eq!(get(), b"old");
    proxy.update(|resources| {
        let replaced = Arc::new(cluster("main", &[new]));
        resources.clusters.insert("main".into(), replaced);
    });
    assert_eq!(get(), b"new");
    assert_eq!(get(), b"new");
}
