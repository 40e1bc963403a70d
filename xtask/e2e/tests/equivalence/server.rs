//! The servers of each place: of every kind of port that a service can declare, and one that is told what to
//! do and says what became of it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::echo::{self, Seen};
use millrace_testkit::h2::EchoServer;
use millrace_testkit::http::{Peer, Response, Server};
use millrace_testkit::{Host, until};
use parking_lot::{Condvar, Mutex};

use crate::scene::SOON;

/// HTTP, declared.
pub(crate) const HTTP: u16 = 8080;
/// gRPC, declared.
pub(crate) const GRPC: u16 = 9090;
/// Bytes that come back, declared as TCP.
pub(crate) const ECHO: u16 = 9000;
/// A server that speaks first, declared as TCP.
pub(crate) const BANNER: u16 = 9025;
/// The server that is told what to do, declared as TCP.
pub(crate) const CONTROL: u16 = 9100;
/// HTTP on a port whose protocol nobody declares.
pub(crate) const SOME_HTTP: u16 = 7000;
/// Bytes that come back, likewise.
pub(crate) const SOME_BYTES: u16 = 7001;
/// A server that speaks first, likewise.
pub(crate) const SOME_BANNER: u16 = 7002;
/// Declared as HTTP, and nobody listens.
pub(crate) const CLOSED_HTTP: u16 = 9555;
/// Declared as TCP, and nobody listens.
pub(crate) const CLOSED_TCP: u16 = 9556;
/// HTTP on a port of the pods that no service has.
pub(crate) const UNDECLARED: u16 = 6000;

/// What services declare, by the prefix that tells the protocol.
pub(crate) const PORTS: [(&str, u16); 10] = [
    ("http", HTTP),
    ("grpc", GRPC),
    ("tcp-echo", ECHO),
    ("tcp-banner", BANNER),
    ("tcp-control", CONTROL),
    ("", SOME_HTTP),
    ("", SOME_BYTES),
    ("", SOME_BANNER),
    ("http-closed", CLOSED_HTTP),
    ("tcp-closed", CLOSED_TCP),
];

/// What servers that speak first say.
pub(crate) const GREETING: &str = "220 ready when you are\r\n";

/// The servers of one host.
pub(crate) struct Servers {
    /// What they saw.
    pub(crate) seen: Arc<Witness>,
    _h2: EchoServer,
    _plain: Vec<Server>,
}

/// What servers saw, for whoever asks later.
#[derive(Default)]
pub(crate) struct Witness {
    events: Mutex<BTreeMap<String, String>>,
    requests: Mutex<BTreeMap<String, u32>>,
    released: Mutex<bool>,
    release: Condvar,
}

impl Witness {
    /// Waits until something was noted under this key, and returns it.
    pub(crate) fn event(&self, key: &str) -> anyhow::Result<String> {
        let mut found = None;
        until(SOON, || {
            found = self.events.lock().get(key).cloned();
            ensure!(found.is_some(), "nothing was seen of {key}");
            anyhow::Ok(())
        })?;
        found.context("nothing was seen")
    }

    /// How many requests for this path have come.
    pub(crate) fn requests(&self, path: &str) -> u32 {
        self.requests.lock().get(path).copied().unwrap_or_default()
    }

    /// Lets every request that is held, and all to come, be answered.
    pub(crate) fn release(&self) {
        *self.released.lock() = true;
        self.release.notify_all();
    }

    fn note(&self, key: &str, what: String) {
        self.events.lock().insert(key.to_owned(), what);
    }

    fn hold(&self) {
        let mut released = self.released.lock();
        while !*released {
            self.release.wait(&mut released);
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.seen.release();
    }
}

impl Servers {
    /// Starts them all in a pod or another host; they answer with this name.
    pub(crate) fn start(host: &Host, name: &str) -> anyhow::Result<Self> {
        let seen = Arc::new(Witness::default());
        // Of both families, as most programs listen.
        let listen = |port: u16| host.listen((Ipv6Addr::UNSPECIFIED, port).into());
        let mut plain = Vec::new();
        for port in [HTTP, SOME_HTTP, UNDECLARED] {
            plain.push(http(listen(port)?, name, &seen)?);
        }
        for port in [ECHO, SOME_BYTES] {
            plain.push(echo::tcp(listen(port)?)?);
        }
        for port in [BANNER, SOME_BANNER] {
            plain.push(echo::banner(listen(port)?, GREETING)?);
        }
        let witness = Arc::clone(&seen);
        plain.push(Server::start(listen(CONTROL)?, move |stream, peer| {
            // What goes wrong here is seen at the other end, or never noted.
            control(stream, peer, &witness).ok();
        })?);
        Ok(Self {
            seen,
            _h2: EchoServer::start(listen(GRPC)?, name)?,
            _plain: plain,
        })
    }
}

/// An echo server that counts what it is asked for, and holds requests for `/hold`.
fn http(
    listener: std::net::TcpListener,
    name: &str,
    witness: &Arc<Witness>,
) -> anyhow::Result<Server> {
    let (name, witness) = (name.to_owned(), Arc::clone(witness));
    Server::http(listener, move |request, peer| {
        *witness
            .requests
            .lock()
            .entry(request.path.clone())
            .or_default() += 1;
        if request.path.starts_with("/hold") {
            witness.hold();
        }
        let seen = Seen {
            server: name.clone(),
            method: request.method.clone(),
            path: request.path.clone(),
            headers: request.headers.0.clone(),
            body_length: request.body.len(),
            remote: peer.remote,
            local: peer.local,
        };
        let status = request.headers.first("x-echo-status");
        let status = status.and_then(|status| status.parse().ok()).unwrap_or(200);
        let body = serde_json::to_vec(&seen).unwrap_or_default();
        Response::new(status, body).header("x-server", &name)
    })
}

/// Reads one line and does what it says: `seen` tells the addresses of both ends, `reset` resets,
/// `half KEY` ends its side and notes what comes after that, `record KEY` notes what comes and how it ends.
fn control(mut stream: TcpStream, peer: Peer, witness: &Witness) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let line = String::from_utf8(line)?;
    let (word, key) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    match word {
        "seen" => write!(stream, "{} {}", peer.remote, peer.local)?,
        "reset" => {
            witness.note(key, "reset by the server".to_owned());
            Server::abort(&stream);
        }
        "half" => {
            stream.write_all(b"the server has said all")?;
            stream.shutdown(Shutdown::Write)?;
            witness.note(key, recorded(&mut stream));
        }
        _ => {
            stream.write_all(b"listening")?;
            witness.note(key, recorded(&mut stream));
        }
    }
    Ok(())
}

/// Everything that comes, and how it ended.
fn recorded(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let end = match stream.read_to_end(&mut bytes) {
        Ok(_) => "end",
        Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset",
        Err(_) => "error",
    };
    format!("{:?}, {end}", String::from_utf8_lossy(&bytes))
}
