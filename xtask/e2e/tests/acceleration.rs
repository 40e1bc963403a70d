//! Acceleration: the messages of a connection that earned it go past TCP, both ways, and are the same bytes;
//! those of a pod whose setting is `off` do not.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::{CAPTURE, Service};
use millrace_testkit::mesh::{Mesh, MeshNode};
use millrace_testkit::{Cluster, Pod, PodOptions, require, skip, until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

const HTTP: u16 = 8080;
const SOON: Duration = Duration::from_secs(20);
const ACCELERATION: &str = "millrace.io/acceleration";

/// A client as programs with an event loop are: its socket does not block.
struct Client {
    stream: TcpStream,
    sent: u32,
}

impl Client {
    fn connect(pod: &Pod, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = pod.connect(to)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, sent: 0 })
    }

    /// A request that no other is like, and the answer that says so.
    fn ask(&mut self) -> anyhow::Result<()> {
        self.sent += 1;
        let path = format!("/request/{}", self.sent);
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo:{HTTP}\r\n\r\n");
        self.stream
            .write_all(request.as_bytes())
            .context("sending a request")?;
        let (head, body) = self.answer().with_context(|| format!("answer to {path}"))?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let seen: Value = serde_json::from_slice(&body)?;
        ensure!(seen["path"] == path.as_str(), "{path} was answered {seen}");
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<(String, Vec<u8>)> {
        let mut inbox = Vec::new();
        let end = loop {
            if let Some(at) = inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.read(&mut inbox)?;
        };
        let body = inbox.split_off(end);
        let head = String::from_utf8(inbox)?;
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.context("no content-length")?.1.parse()?;
        let mut body = body;
        while body.len() < length {
            self.read(&mut body)?;
        }
        ensure!(body.len() == length, "{} bytes of {length}", body.len());
        Ok((head, body))
    }

    fn read(&mut self, inbox: &mut Vec<u8>) -> anyhow::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => anyhow::bail!("the proxy closed the connection"),
                Ok(count) => {
                    inbox.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self) -> anyhow::Result<()> {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(SOON)?)?;
        ensure!(ready > 0, "nothing to read for {SOON:?}");
        Ok(())
    }
}

fn page(node: &MeshNode) -> anyhow::Result<Value> {
    node.admin("/acceleration")?.json()
}

/// The connections of a pod's own making that have asked.
fn of_pod<'a>(page: &'a Value, pod: &Pod) -> Vec<&'a Value> {
    let connections = page["connections"].as_array().into_iter().flatten();
    let mine = |one: &&Value| one["uid"] == pod.uid() && one["side"] == "downstream";
    connections.filter(mine).collect()
}

#[test]
fn messages_of_a_promoted_connection_go_past_tcp_unchanged() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let node = mesh.node("node")?;
    let service = Service::new("echo", 1).port("http", HTTP);
    service.apply(&mesh)?;
    let _backend = service.backend(&node, "v1", "ebpf")?;
    let options = |name: &str, setting: &str| {
        PodOptions::named(name)
            .annotation(CAPTURE, "ebpf")
            .annotation(ACCELERATION, setting)
    };
    let auto = node.pod(options("auto", "auto"))?;
    let off = node.pod(options("off", "off"))?;
    until(SOON, || {
        let agent = page(&node)?["agent"].clone();
        ensure!(agent["state"] != "absent", "{agent}");
        Ok::<_, anyhow::Error>(())
    })?;
    let agent = page(&node)?["agent"].clone();
    if agent["state"] == "unavailable" {
        return skip::skip(&format!(
            "this kernel does not accelerate: {}",
            agent["reason"]
        ));
    }

    let mut plain = until(SOON, || {
        let mut client = Client::connect(&off, service.at(HTTP))?;
        client.ask().map(|()| client)
    })?;
    let mut client = Client::connect(&auto, service.at(HTTP))?;
    until(SOON, || {
        plain.ask()?;
        client.ask()?;
        let page = page(&node)?;
        let connections = of_pod(&page, &auto);
        ensure!(connections.len() == 1, "{page}");
        ensure!(connections[0]["state"] == "promoted", "{page}");
        Ok::<_, anyhow::Error>(())
    })?;
    until(SOON, || {
        plain.ask()?;
        client.ask()?;
        let page = page(&node)?;
        for way in ["to_application", "from_application"] {
            let connections = of_pod(&page, &auto);
            let count = connections
                .first()
                .and_then(|one| one[way]["redirected_messages"].as_u64());
            ensure!(count.is_some_and(|count| count > 0), "{way}: {page}");
        }
        Ok::<_, anyhow::Error>(())
    })?;
    for _ in 0..500 {
        client.ask()?;
    }
    assert_eq!(of_pod(&page(&node)?, &off).len(), 0);
    Ok(())
}
