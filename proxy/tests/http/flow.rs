//! Back-pressure: who does not read stops who writes, through the proxy, and gets every byte later.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::*;

/// Far more than the sockets' buffers on both sides of the proxy can hold.
const SIZE: usize = 96 << 20;
/// A writer that gets nothing off for so long has been stopped. One that only was slow counts as stopped
/// too: that can hide a fault on a slow machine, and never make one up.
const STOPPED: Duration = Duration::from_millis(500);

/// Keeps the kernel from holding for this end what is to be held back.
fn small_buffers(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    socket.set_send_buffer_size(64 << 10).unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
}

/// Writes `SIZE` bytes, and tells once how many it had written when it was stopped.
fn write_all(stream: &mut TcpStream, stopped: &Sender<usize>) {
    let chunk = vec![b'x'; 64 << 10];
    let mut left = SIZE;
    small_buffers(stream);
    stream.set_write_timeout(Some(STOPPED)).unwrap();
    while left > 0 {
        match stream.write(&chunk[..left.min(chunk.len())]) {
            Ok(n) => left -= n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stopped.send(SIZE - left).ok();
                stream.set_write_timeout(None).unwrap();
            }
            Err(error) => panic!("{} bytes written: {error}", SIZE - left),
        }
    }
    // Whoever still waits to be told learns that nothing stopped it.
    stopped.send(SIZE).ok();
}

/// Reads as many bytes as were sent.
fn read_all(stream: &mut TcpStream) {
    let copied = std::io::copy(&mut stream.take(SIZE as u64), &mut std::io::sink()).unwrap();
    assert_eq!(copied, SIZE as u64);
}

/// An upstream that sends a large body, and where it is told how far that got before it was stopped.
fn large_body() -> (std::net::SocketAddr, Receiver<usize>) {
    let (stopped, told) = channel();
    let upstream = server(move |mut stream| {
        read_head(&mut stream);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        write_all(&mut stream, &stopped);
        wait_for_end(stream);
    });
    (upstream, told)
}

#[test]
fn a_client_that_does_not_read_stops_the_upstream() {
    let (upstream, stopped) = large_body();
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    small_buffers(&client);
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 200"));
    assert!(stopped.recv().unwrap() < SIZE);
    read_all(&mut client);
}

#[test]
fn an_http2_stream_that_is_not_read_stops_the_upstream_and_no_other_stream() {
    let (upstream, stopped) = large_body();
    let small = responder(|_, _| ok("small"));
    let mut setup = Setup::new(&[upstream]);
    let other = forward(millrace_proxy::resource::ClusterSpecifier::Cluster(
        "other".into(),
    ));
    let vhost = std::sync::Arc::make_mut(&mut setup.routes.virtual_hosts[0]);
    let routes = [route("/other", other)].map(std::sync::Arc::new);
    vhost.routes.splice(0..0, routes);
    setup.clusters.push(cluster("other", &[small]));
    let proxy = setup.start();
    let address = proxy.address;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut send, conn) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            // Room for other streams beside one that fills its own window.
            .initial_stream_window_size(1 << 16)
            .initial_connection_window_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(conn);
        let get = |path: &str| {
            Request::get(format!("http://a{path}"))
                .body(Empty::<Bytes>::new())
                .unwrap()
        };
        let mut large = send.send_request(get("/")).await.unwrap();
        // The connection goes on being driven while this waits.
        while stopped.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        let small = send.send_request(get("/other")).await.unwrap();
        assert_eq!(small.collect().await.unwrap().to_bytes(), "small");
        let mut size = 0;
        while let Some(frame) = large.frame().await {
            size += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        assert_eq!(size, SIZE);
    });
}

#[test]
fn an_upstream_that_does_not_read_stops_the_client() {
    let (stopped, told) = channel();
    let told = std::sync::Arc::new(parking_lot::Mutex::new(told));
    let upstream = server(move |mut stream| {
        small_buffers(&stream);
        read_head(&mut stream);
        assert!(told.lock().recv().unwrap() < SIZE);
        read_all(&mut stream);
        stream.write_all(&ok("got it")).unwrap();
        wait_for_end(stream);
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    write_all(&mut client, &stopped);
    assert_eq!(read_message(&mut client).1, b"got it");
}
