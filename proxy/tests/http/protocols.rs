//! HTTP/2 on either side, gRPC, upgrades and CONNECT.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use millrace_proxy::resource::{HttpConnectionManager, UpstreamProtocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// A gRPC-like server: sends back each chunk and ends with trailers.
fn grpc_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(|request: Request<Incoming>| async move {
                    assert_eq!(request.headers().get("te").unwrap(), "trailers");
                    let body = request
                        .into_body()
                        .map_frame(|frame| match frame.into_data() {
                            Ok(data) => Frame::data(data),
                            Err(_) => Frame::data(Bytes::new()),
                        });
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", 7.into());
                    trailers.insert("x-more", 1.into());
                    let body = body.with_trailers(async move { Some(Ok(trailers)) });
                    Ok::<_, hyper::Error>(
                        Response::builder()
                            .header("content-type", "application/grpc")
                            .body(body)
                            .unwrap(),
                    )
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    });
    address
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

async fn h2_client(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(conn);
    send
}

fn grpc_request(body: Body) -> Request<Body> {
    Request::post("http://reviews/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

#[test]
fn grpc_streams_both_ways_with_trailers() {
    let proxy = Setup::new(&[grpc_server()])
        .cluster(|c| c.protocol = UpstreamProtocol::Http2)
        .start();
    let address = proxy.address;
    runtime().block_on(async move {
        let mut send = h2_client(address).await;
        let (tx, rx) =
            tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
        let stream = futures_util::stream::unfold(rx, |mut rx| async move {
            rx.recv().await.map(|item| (item, rx))
        });
        let response = send
            .send_request(grpc_request(StreamBody::new(stream).boxed()))
            .await;
        // The response began before the request ended.
        let mut response = response.unwrap();
        for n in 0..3 {
            tx.send(Ok(Frame::data(Bytes::from(format!("message {n}")))))
                .await
                .unwrap();
            let frame = response.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), format!("message {n}"));
        }
        drop(tx);
        let trailers = response
            .collect()
            .await
            .unwrap()
            .trailers()
            .cloned()
            .unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert_eq!(trailers["x-more"], "1");
    });
    let log = proxy.log();
    assert!(
        log[0].starts_with("POST /pkg.Service/Method HTTP/2 200 - via_upstream 27 27 main 1 7"),
        "{log:?}"
    );
}

#[test]
fn a_stream_that_is_under_way_when_the_proxy_drains_goes_on_to_its_end() {
    let proxy = Setup::new(&[grpc_server()])
        .cluster(|c| c.protocol = UpstreamProtocol::Http2)
        .start();
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut send, conn) = handshake.await.unwrap();
        let ended = tokio::spawn(conn);
        let (tx, rx) =
            tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
        let stream = futures_util::stream::unfold(rx, |mut rx| async move {
            rx.recv().await.map(|item| (item, rx))
        });
        let request = grpc_request(StreamBody::new(stream).boxed());
        let mut response = send.send_request(request).await.unwrap();
        let mut say = async |n: u32| {
            let message = Bytes::from(format!("message {n}"));
            tx.send(Ok(Frame::data(message.clone()))).await.unwrap();
            let frame = response.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), message);
        };
        say(0).await;
        proxy.drain();
        // Streams that the client begins before it has heard of it are served.
        let another = || grpc_request(Full::new(Bytes::new()).boxed());
        while send.send_request(another()).await.is_ok() {
            say(1).await;
        }
        for n in 2..5 {
            say(n).await;
        }
        drop(tx);
        let rest = response.collect().await.unwrap();
        assert_eq!(rest.trailers().unwrap()["grpc-status"], "7");
        // Nobody resets the connection: it ends when its last stream has.
        ended.await.unwrap().unwrap();
    });
    let log = proxy.log();
    let fine = |line: &String| line.contains(" 200 - via_upstream ");
    assert!(log.iter().all(fine), "{log:?}");
}

#[test]
fn a_local_answer_to_grpc_is_a_grpc_status() {
    let proxy = Setup::new(&[]).start();
    let address = proxy.address;
    let response = runtime().block_on(async move {
        let mut send = h2_client(address).await;
        let body = Full::new(Bytes::from_static(b"x")).boxed();
        send.send_request(grpc_request(body)).await.unwrap()
    });
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
}

#[test]
fn http2_becomes_http1_upstream() {
    let upstream = responder(|head, body| {
        assert_eq!(header(head, "host"), Some("reviews"));
        assert_eq!(header(head, "cookie"), Some("a=1; b=2"));
        ok(std::str::from_utf8(body).unwrap())
    });
    let proxy = Setup::new(&[upstream]).start();
    let address = proxy.address;
    runtime().block_on(async move {
        let mut send = h2_client(address).await;
        for n in 0..3 {
            let request = Request::post("http://reviews/x")
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .body(Full::new(Bytes::from(n.to_string())).boxed())
                .unwrap();
            let response = send.send_request(request).await.unwrap();
            let body = response.collect().await.unwrap().to_bytes();
            assert_eq!(body, n.to_string());
        }
    });
}

#[test]
fn http1_becomes_http2_upstream_and_trailers_come_back() {
    let proxy = Setup::new(&[grpc_server()])
        .cluster(|c| c.protocol = UpstreamProtocol::Http2)
        .start();
    let answer = exchange(
        proxy.address,
        b"POST /pkg.Service/Method HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, te\r\n\
          Content-Type: application/grpc\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\r\nhi\r\n"), "{answer}");
    assert!(answer.contains("grpc-status: 7\r\n"), "{answer}");
}

#[test]
fn a_websocket_is_tunnelled() {
    let upstream = server(|mut stream| {
        let head = read_head(&mut stream);
        assert_eq!(header(&head, "upgrade"), Some("websocket"));
        assert_eq!(header(&head, "connection"), Some("upgrade"));
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..n]).unwrap();
        }
    });
    let proxy = Setup::new(&[upstream]).start();
    chat(&proxy);
    let log = proxy.log();
    assert!(
        log[0].contains("GET /chat HTTP/1.1 101 - via_upstream 10 10"),
        "{log:?}"
    );
}

/// A client's WebSocket over HTTP/1.1, through to an echo.
fn chat(proxy: &Proxy) {
    let mut client = proxy.connect();
    client
        .write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\nearly")
        .unwrap();
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(header(&head, "sec-websocket-accept"), Some("x"));
    let mut echo = [0; 5];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"early");
    client.write_all(b"later").unwrap();
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"later");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut echo).unwrap(), 0);
}

/// A WebSocket server over HTTP/1.1 that echoes, and whether a key came with the request.
fn websocket_h1() -> SocketAddr {
    server(|mut stream| {
        let head = read_head(&mut stream);
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
        assert_eq!(header(&head, "upgrade"), Some("websocket"));
        let key = header(&head, "sec-websocket-key").unwrap();
        assert_eq!(key.len(), 24, "{key}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..n]).unwrap();
        }
    })
}

/// A WebSocket server over HTTP/2 that echoes.
fn websocket_h2() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(|mut request: Request<Incoming>| async move {
                    assert_eq!(request.method(), "CONNECT");
                    let protocol = request.extensions().get::<Protocol>().unwrap();
                    assert_eq!(protocol.as_str(), "websocket");
                    assert_eq!(request.uri().path(), "/chat");
                    let upgrade = hyper::upgrade::on(&mut request);
                    tokio::spawn(async move {
                        let (mut read, mut write) =
                            tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                        tokio::io::copy(&mut read, &mut write).await.unwrap();
                        write.shutdown().await.unwrap();
                    });
                    let answer = Response::builder().header("sec-websocket-accept", "x");
                    Ok::<_, hyper::Error>(answer.body(Full::new(Bytes::new())).unwrap())
                });
                let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.enable_connect_protocol();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    address
}

/// A client's WebSocket over HTTP/2, through to an echo.
async fn extended_connect(address: SocketAddr) -> Response<Incoming> {
    let mut send = h2_client(address).await;
    let mut request = Request::connect("http://a/chat")
        .body(Full::new(Bytes::new()).boxed())
        .unwrap();
    request
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    send.ready().await.unwrap();
    send.send_request(request).await.unwrap()
}

#[test]
fn a_websocket_over_http2_is_tunnelled_to_either_protocol() {
    for (upstream, protocol) in [
        (websocket_h1(), UpstreamProtocol::Http1),
        (websocket_h2(), UpstreamProtocol::Http2),
    ] {
        let proxy = Setup::new(&[upstream])
            .cluster(|c| c.protocol = protocol)
            .start();
        let address = proxy.address;
        runtime().block_on(async move {
            let response = extended_connect(address).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert!(response.headers().get("upgrade").is_none());
            assert!(response.headers().get("sec-websocket-accept").is_none());
            let upgraded = hyper::upgrade::on(response).await.unwrap();
            let mut tunnel = TokioIo::new(upgraded);
            let mut echo = [0; 5];
            for word in [b"early", b"later"] {
                tunnel.write_all(word).await.unwrap();
                tunnel.read_exact(&mut echo).await.unwrap();
                assert_eq!(&echo, word);
            }
            tunnel.shutdown().await.unwrap();
            assert_eq!(tunnel.read(&mut echo).await.unwrap(), 0);
        });
        let log = proxy.log();
        assert!(
            log[0].contains("GET /chat HTTP/2 200 - via_upstream 10 10"),
            "{log:?}"
        );
    }
}

#[test]
fn a_websocket_becomes_http2_upstream() {
    let proxy = Setup::new(&[websocket_h2()])
        .cluster(|c| c.protocol = UpstreamProtocol::Http2)
        .start();
    chat(&proxy);
}

#[test]
fn an_upstream_that_does_not_switch_fails_a_connect_with_a_protocol() {
    let proxy = Setup::new(&[responder(|_, _| ok("no"))]).start();
    let address = proxy.address;
    let response = runtime().block_on(extended_connect(address));
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);

    let refused = Setup::new(&[responder(|_, _| ok("no"))])
        .hcm(|hcm| hcm.upgrades.clear())
        .start();
    let response = runtime().block_on(extended_connect(refused.address));
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

/// `kubectl exec` asks for SPDY by POST; any protocol that is allowed is carried, whoever speaks first.
#[test]
fn any_protocol_that_is_allowed_is_tunnelled() {
    const BULK: usize = 1 << 20;
    let upstream = server(|mut stream| {
        let head = read_head(&mut stream);
        assert!(
            head.starts_with("POST /exec?command=sh HTTP/1.1\r\n"),
            "{head}"
        );
        assert_eq!(header(&head, "upgrade"), Some("SPDY/3.1"));
        let version = header(&head, "x-stream-protocol-version");
        assert_eq!(version, Some("v4.channel.k8s.io"));
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nprompt";
        stream.write_all(answer.as_bytes()).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let proxy = Setup::new(&[upstream])
        .hcm(|hcm| hcm.upgrades = vec!["spdy/3.1".into()])
        .start();
    let mut client = proxy.connect();
    client
        .write_all(b"POST /exec?command=sh HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(header(&head, "upgrade"), Some("SPDY/3.1"));
    let version = header(&head, "x-stream-protocol-version");
    assert_eq!(version, Some("v4.channel.k8s.io"));
    let mut prompt = [0; 6];
    client.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"prompt");
    let bulk: Vec<u8> = (0..BULK).map(|at| at.to_le_bytes()[1]).collect();
    client.write_all(&bulk).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    back.reverse();
    assert!(back == bulk, "{} bytes came back", back.len());

    // The websocket of every listener is not among what this one allows.
    let answer = exchange(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    drop(client);
    let log = proxy.log();
    let line = format!(
        "POST /exec?command=sh HTTP/1.1 101 - via_upstream {BULK} {}",
        BULK + 6
    );
    assert!(log[0].starts_with(&line), "{log:?}");
}

#[test]
fn an_upgrade_that_is_not_allowed_is_refused() {
    let upstream = responder(|_, _| ok(""));
    let proxy = Setup::new(&[upstream])
        .hcm(|hcm| hcm.upgrades.clear())
        .start();
    let answer = exchange(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[test]
fn large_bodies_flow_in_bounded_memory() {
    const SIZE: usize = 100 << 20;
    let upstream = server(|mut stream| {
        let head = read_head(&mut stream);
        let size: usize = header(&head, "content-length").unwrap().parse().unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
        let mut writer = stream.try_clone().unwrap();
        writer.write_all(answer.as_bytes()).unwrap();
        std::io::copy(&mut stream.take(size as u64), &mut writer).unwrap();
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    let mut writer = client.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..SIZE >> 20 {
            writer.write_all(&chunk).unwrap();
        }
    });
    let before = resident();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 200"));
    let mut left = SIZE;
    let mut most = 0;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let n = client.read(&mut buffer).unwrap();
        assert!(n > 0);
        left -= n;
        most = most.max(resident());
    }
    writing.join().unwrap();
    assert!(most.saturating_sub(before) < 32 << 20, "{before} -> {most}");
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A server of raw TCP that echoes.
fn echo() -> SocketAddr {
    server(|mut stream| {
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..n]).unwrap();
        }
    })
}

#[test]
fn connect_opens_a_tunnel_to_raw_tcp() {
    let allowed = |hcm: &mut HttpConnectionManager| hcm.upgrades.push("connect".into());
    let proxy = Setup::new(&[echo()]).hcm(allowed).start();
    let mut client = proxy.connect();
    client
        .write_all(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nearly")
        .unwrap();
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(header(&head, "transfer-encoding"), None);
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut got).unwrap(), 0);

    let address = proxy.address;
    runtime().block_on(async move {
        let mut send = h2_client(address).await;
        let request = Request::connect("a:80")
            .body(Full::new(Bytes::new()).boxed())
            .unwrap();
        let response = send.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        tunnel.write_all(b"later").await.unwrap();
        let mut got = [0; 5];
        tunnel.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"later");
    });
    let log = proxy.log();
    assert!(
        log[0].contains("HTTP/1.1 200 - via_upstream 5 5 main"),
        "{log:?}"
    );
}

#[test]
fn connect_that_is_not_allowed_is_refused() {
    let proxy = Setup::new(&[echo()]).start();
    let answer = exchange(
        proxy.address,
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}
