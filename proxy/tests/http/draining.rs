//! HTTP/2 streams that are under way when the proxy drains, as far as the bytes on the wire.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use crate::support::*;

/// Frame types (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_STREAM_AND_HEADERS: u8 = 5;
/// What a stream and a connection may have in flight.
const WINDOW: u32 = 1 << 20;

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

/// A client that decides itself when it reads.
struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let mut client = Self(connect(address));
        client
            .0
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        let window = [&[0, 4], &WINDOW.to_be_bytes()[..]].concat();
        client.send(SETTINGS, 0, 0, &window);
        client.send(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[&head, payload].concat()).unwrap();
    }

    /// `GET /` of host `a`: indexed fields, and one literal (RFC 7541 section 6).
    fn get(&mut self, stream: u32) {
        let block = [0x82, 0x86, 0x84, 0x01, 1, b'a'];
        self.send(HEADERS, END_STREAM_AND_HEADERS, stream, &block);
    }

    fn frame(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).unwrap();
        let [_, _, _, kind, flags, ..] = head;
        Frame {
            kind,
            flags,
            payload,
        }
    }

    /// Reads up to a frame of this kind, answering pings on the way.
    fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.frame();
            if frame.kind == PING && frame.flags & ACK == 0 {
                self.send(PING, ACK, 0, &frame.payload);
            }
            if frame.kind == kind {
                return frame;
            }
        }
    }
}

/// Whether the proxy's end of the connection of `client` has sent its FIN.
fn proxy_has_finished(client: &TcpStream) -> bool {
    let hex = |address: SocketAddr| format!("0100007F:{:04X}", address.port());
    let ends = [client.peer_addr().unwrap(), client.local_addr().unwrap()]
        .map(hex)
        .join(" ");
    let sockets = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let socket = sockets.lines().find(|line| line.contains(&ends));
    // `st` 01 is ESTABLISHED.
    socket.is_none_or(|line| !line.contains(&format!("{ends} 01 ")))
}

#[test]
fn the_last_bytes_of_the_last_stream_reach_a_client_that_still_speaks() {
    // More than a client's kernel takes while its program does not read.
    const BODY: usize = 400 << 10;
    let (go, gate) = mpsc::channel::<()>();
    let gate = std::sync::Arc::new(parking_lot::Mutex::new(gate));
    let upstream = server(move |mut stream| {
        read_head(&mut stream);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"x").unwrap();
        gate.lock().recv().unwrap();
        stream.write_all(&vec![b'x'; BODY - 1]).unwrap();
        wait_for_end(stream);
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = Client::connect(proxy.address);
    client.get(1);
    let first = client.until(DATA);
    proxy.drain();
    client.until(GOAWAY);
    // The second one tells which streams are served; it follows the answer to a ping.
    let last = client.until(GOAWAY);
    assert_eq!(last.payload[..4], 1_u32.to_be_bytes());
    go.send(()).unwrap();
    while !proxy_has_finished(&client.0) {
        std::thread::yield_now();
    }
    // As of a request that crossed the farewell.
    client.get(3);
    let mut received = first.payload.len();
    loop {
        let frame = client.until(DATA);
        received += frame.payload.len();
        if frame.flags & END_STREAM != 0 {
            break;
        }
    }
    assert_eq!(received, BODY);
}
