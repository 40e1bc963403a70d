//! An upstream that keeps every byte, and serves what it reads in its own way.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use millrace_testkit::eventually;
use parking_lot::Mutex;

use super::reading::{Next, READERS, Reader, Request};
use crate::support::{ok, server};

#[derive(Default)]
struct Seen {
    /// What came, by connection.
    connections: Vec<Vec<u8>>,
    open: usize,
}

/// The upstream, seen from the test.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Upstream {
    pub(crate) fn new(reader: Reader) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let noted = seen.clone();
        let address = server(move |stream| {
            let index = {
                let mut seen = noted.lock();
                seen.connections.push(Vec::new());
                seen.open += 1;
                seen.connections.len() - 1
            };
            serve(stream, reader, &noted, index);
            noted.lock().open -= 1;
        });
        Self { address, seen }
    }

    /// What everybody reads alike of what came, once all connections have ended.
    ///
    /// # Panics
    /// When two readers differ, or the strict one refuses.
    pub(crate) fn read_by_all(&self, what: &str) -> Vec<Request> {
        eventually(Duration::from_secs(20), "connections end", || {
            self.seen.lock().open == 0
        });
        let mut requests = Vec::new();
        for bytes in &self.seen.lock().connections {
            let read = READERS.map(|reader| reader.all(bytes));
            for (reader, other) in READERS.iter().zip(&read) {
                let text = String::from_utf8_lossy(bytes);
                assert_eq!(
                    *other, read[0],
                    "{what}: {reader:?} reads otherwise: {text}"
                );
            }
            let [(strictly, rest), ..] = read;
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(rest, Next::More, "{what}: {text}");
            requests.extend(strictly);
        }
        requests
    }
}

fn serve(mut stream: TcpStream, reader: Reader, seen: &Mutex<Seen>, index: usize) {
    let (mut waiting, mut buffer) = (Vec::new(), [0; 16_384]);
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        seen.lock().connections[index].extend_from_slice(&buffer[..length]);
        waiting.extend_from_slice(&buffer[..length]);
        loop {
            let answer = match reader.next(&waiting) {
                Next::Request(_, length) => {
                    drop(waiting.drain(..length));
                    ok("served")
                }
                Next::More => break,
                Next::Refused(_) => {
                    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                        .to_vec()
                }
            };
            if stream.write_all(&answer).is_err() || answer.starts_with(b"HTTP/1.1 400") {
                return;
            }
        }
    }
}
