//! A connection stays on the worker that accepted it (R49), as the kernel sees it: each worker's thread
//! waits at an epoll instance of its own, and a connection's sockets are registered at one of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};

use millrace_testkit::{eventually, until};

use crate::process::Proxy;
use crate::{LIMIT, static_file};

/// The process as /proc shows it.
struct Threads {
    pid: u32,
    /// Epoll instance, by its descriptor, of each worker by its thread's name.
    workers: BTreeMap<String, u32>,
}

impl Threads {
    /// Of a proxy with `count` workers, once each waits for something to do.
    fn of(pid: u32, count: usize) -> Self {
        let workers = until(LIMIT, || {
            let found = waiting(pid);
            if found.len() == count {
                Ok(found)
            } else {
                Err(format!("waiting at an epoll instance: {found:?}"))
            }
        });
        let workers = workers.unwrap();
        Self { pid, workers }
    }

    /// The workers at whose epoll instance the process's socket from `local` to `peer` is registered.
    fn serving(&self, local: SocketAddr, peer: SocketAddr) -> Vec<&str> {
        let inode = inode(self.pid, local, peer);
        let mut serving = Vec::new();
        for (name, epoll) in &self.workers {
            let path = format!("/proc/{}/fdinfo/{epoll}", self.pid);
            let registered = fs::read_to_string(path).unwrap();
            let mut inodes = registered.lines().filter_map(|line| {
                let (_, rest) = line.split_once("ino:")?;
                u64::from_str_radix(rest.split(' ').next()?, 16).ok()
            });
            if inodes.any(|registered| registered == inode) {
                serving.push(name.as_str());
            }
        }
        serving
    }

    /// The one worker that serves a connection, as soon as it has been accepted.
    fn worker(&self, local: SocketAddr, peer: SocketAddr) -> &str {
        let [worker] = self.serving(local, peer)[..] else {
            panic!("{peer} is served by {:?}", self.serving(local, peer));
        };
        worker
    }
}

/// The threads of workers that wait at an epoll instance just now.
fn waiting(pid: u32) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        let name = read("comm").trim().to_owned();
        // The system call's number and its first argument.
        let call = read("syscall");
        let argument = call.split(' ').nth(1).unwrap_or_default();
        let Ok(fd) = u32::from_str_radix(argument.trim_start_matches("0x"), 16) else {
            continue;
        };
        let file = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        if name.starts_with("worker-") && file.to_string_lossy() == "anon_inode:[eventpoll]" {
            found.insert(name, fd);
        }
    }
    found
}

/// Of a TCP socket over IPv4 in the process's network namespace.
fn inode(pid: u32, local: SocketAddr, peer: SocketAddr) -> u64 {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let found = table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ends = (address(fields.next()?)?, address(fields.next()?)?);
        let inode = fields.nth(6)?.parse().ok()?;
        (ends == (local, peer)).then_some(inode)
    });
    found.unwrap_or_else(|| panic!("no socket from {local} to {peer}"))
}

/// `0100007F:1F90`; the address is in network order, printed as a number of the machine's.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?;
    let ip = Ipv4Addr::from(ip.to_ne_bytes());
    Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?).into())
}

/// Answers every request of a connection, echoes its body and names the other end of the connection.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while let Some(body) = message(&mut reader).map(|(_, body)| body) {
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nx-peer: {peer}\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if (&stream).write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Head and body of the next message; none at the end.
fn message(reader: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = header(&head, "content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1);
    lines.find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// A client's connection.
struct Client {
    stream: TcpStream,
    worker: String,
}

impl Client {
    /// Connects, and is served once.
    fn new(listener: SocketAddr, threads: &Threads, backend: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&listener, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut client = Self {
            stream,
            worker: String::new(),
        };
        client.begin("first");
        client.finish("first", threads, backend);
        threads
            .worker(listener, client.local())
            .clone_into(&mut client.worker);
        client
    }

    fn local(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Sends a request but for its last byte.
    fn begin(&mut self, body: &str) {
        let (most, _) = body.split_at(body.len() - 1);
        let length = body.len();
        let request =
            format!("POST / HTTP/1.1\r\nhost: any\r\ncontent-length: {length}\r\n\r\n{most}");
        self.stream.write_all(request.as_bytes()).unwrap();
    }

    /// Sends the last byte; the connection upstream is of the same worker.
    fn finish(&mut self, body: &str, threads: &Threads, backend: SocketAddr) {
        let (_, last) = body.split_at(body.len() - 1);
        self.stream.write_all(last.as_bytes()).unwrap();
        let mut reader = BufReader::new(self.stream.try_clone().unwrap());
        let (head, got) = message(&mut reader).unwrap();
        assert_eq!(got, body, "{head}");
        if !self.worker.is_empty() {
            let upstream = header(&head, "x-peer").unwrap().parse().unwrap();
            assert_eq!(threads.worker(upstream, backend), self.worker);
        }
    }
}

#[test]
fn both_workers_accept_and_a_connection_stays_where_it_was_accepted() {
    let backend = backend();
    let proxy = Proxy::start(&static_file("STATIC", "127.0.0.1", backend), 2);
    let listener = proxy.address("listener_0");
    let threads = Threads::of(proxy.pid(), 2);
    let epolls: Vec<_> = threads.workers.values().collect();
    assert_ne!(epolls[0], epolls[1], "each waits at its own");

    // The kernel chooses by a hash of the addresses: all on one side would take a million years of this.
    let mut clients: Vec<Client> = Vec::new();
    for name in threads.workers.keys() {
        while clients
            .iter()
            .filter(|client| client.worker == *name)
            .count()
            < 3
        {
            assert!(clients.len() < 100, "{name} accepts nothing");
            clients.push(Client::new(listener, &threads, backend));
        }
    }
    for round in 0..20 {
        let body = format!("round {round}");
        for client in &mut clients {
            client.begin(&body);
        }
        for client in &clients {
            assert_eq!(threads.worker(listener, client.local()), client.worker);
        }
        for client in &mut clients {
            client.finish(&body, &threads, backend);
            assert_eq!(threads.worker(listener, client.local()), client.worker);
        }
    }
    eventually(LIMIT, "the threads wait where they waited before", || {
        waiting(proxy.pid()) == threads.workers
    });
}
