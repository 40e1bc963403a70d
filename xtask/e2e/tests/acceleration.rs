//! Acceleration: the messages of a connection that earned it go past TCP, both ways, and are the same bytes;
//! those of a pod whose setting is `off` do not. What is too large for the map goes by TCP, to a socket that
//! is an ordinary one then, also where the agent that takes it out of the map is gone or does not answer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::acceleration::{is_possible, page};
use millrace_e2e::{Backend, CAPTURE, Service};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod, Role};
use millrace_testkit::{Cluster, Pod, PodOptions, require, until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
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
        let body = self.request(&path, "")?;
        let seen: Value = serde_json::from_slice(&body)?;
        ensure!(seen["path"] == path.as_str(), "{path} was answered {seen}");
        Ok(())
    }

    /// A request that is answered with so many bytes.
    fn ask_for(&mut self, length: usize) -> anyhow::Result<()> {
        let body = self.request("/", &format!("x-echo-bytes: {length}\r\n"))?;
        let is_whole = body.len() == length && body.iter().all(|byte| *byte == b'x');
        ensure!(is_whole, "{} bytes of {length}", body.len());
        Ok(())
    }

    fn request(&mut self, path: &str, header: &str) -> anyhow::Result<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo:{HTTP}\r\n{header}\r\n");
        self.stream
            .write_all(request.as_bytes())
            .context("sending a request")?;
        let (head, body) = self.answer().with_context(|| format!("answer to {path}"))?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(body)
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

/// The connections of a pod's own making that have asked.
fn of_pod<'a>(page: &'a Value, pod: &Pod) -> Vec<&'a Value> {
    let connections = page["connections"].as_array().into_iter().flatten();
    let mine = |one: &&Value| one["uid"] == pod.uid() && one["side"] == "downstream";
    connections.filter(mine).collect()
}

/// A service, a pod whose connections may be accelerated, and one whose may not.
struct Scene {
    node: MeshNode,
    service: Service,
    _backend: Backend,
    auto: MeshPod,
    off: MeshPod,
}

impl Scene {
    /// `None`, said, on a kernel that does not accelerate.
    fn new(cluster: &Cluster) -> anyhow::Result<Option<Self>> {
        let mesh = Mesh::start(cluster)?;
        let node = mesh.node("node")?;
        let service = Service::new("echo", 1).port("http", HTTP);
        service.apply(&mesh)?;
        let backend = service.backend(&node, "v1", "ebpf")?;
        let pod = |name: &str, setting: Option<&str>| {
            let options = PodOptions::named(name).annotation(CAPTURE, "ebpf");
            node.pod(match setting {
                Some(setting) => options.annotation(ACCELERATION, setting),
                None => options,
            })
        };
        let (auto, off) = (pod("auto", None)?, pod("off", Some("off"))?);
        if !is_possible(&node)? {
            return Ok(None);
        }
        Ok(Some(Self {
            node,
            service,
            _backend: backend,
            auto,
            off,
        }))
    }

    fn client(&self, pod: &Pod) -> anyhow::Result<Client> {
        until(SOON, || {
            let mut client = Client::connect(pod, self.service.at(HTTP))?;
            client.ask().map(|()| client)
        })
    }

    /// A connection of the pod that nobody forbids it, in the map.
    fn promoted(&self) -> anyhow::Result<Client> {
        let mut client = self.client(&self.auto)?;
        self.until_state(&mut client, "promoted")?;
        Ok(client)
    }

    /// Asks until the pod's only connection is in this state.
    fn until_state(&self, client: &mut Client, state: &str) -> anyhow::Result<()> {
        until(SOON, || {
            client.ask()?;
            let page = page(&self.node)?;
            let connections = of_pod(&page, &self.auto);
            ensure!(connections.len() == 1, "{page}");
            ensure!(connections[0]["state"] == state, "{page}");
            Ok(())
        })
    }

    fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let metrics = self.node.admin("/stats/prometheus")?.text();
        let name = format!("millrace_proxy_acceleration_{name} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
        Ok(value.with_context(|| name.clone())?.parse()?)
    }
}

#[test]
fn messages_of_a_promoted_connection_go_past_tcp_unchanged() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster)? else {
        return Ok(());
    };
    let mut plain = scene.client(&scene.off)?;
    let mut client = scene.promoted()?;
    until(SOON, || {
        plain.ask()?;
        client.ask()?;
        let page = page(&scene.node)?;
        for way in ["to_application", "from_application"] {
            let connections = of_pod(&page, &scene.auto);
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
    assert_eq!(of_pod(&page(&scene.node)?, &scene.off).len(), 0);
    Ok(())
}

#[test]
fn a_large_answer_takes_the_connection_out_of_the_map_and_small_ones_back() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster)? else {
        return Ok(());
    };
    let mut client = scene.promoted()?;
    for length in [100_000, 17_000, 1 << 20] {
        client.ask_for(length)?;
        let page = page(&scene.node)?;
        let connection = of_pod(&page, &scene.auto)[0];
        assert_eq!(connection["state"], "left", "{length}: {page}");
        assert_eq!(connection["returned"], "large", "{page}");
        assert_eq!(connection["to_application"]["tcp_bytes"], 0, "{page}");
        scene.until_state(&mut client, "promoted")?;
    }
    assert_eq!(scene.metric("left_total")?, 3);
    assert_eq!(scene.metric("forced_total")?, 0);
    Ok(())
}

/// An agent that is stopped answers nobody and is not gone.
#[test]
fn an_agent_that_does_not_answer_holds_nobody_up() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster)? else {
        return Ok(());
    };
    let mut client = scene.promoted()?;
    scene.node.signal(Role::Agent, Signal::SIGSTOP)?;
    // Nobody takes it out of the map: everything goes by it, a piece after the other.
    for length in [17_000, 300_000, 100] {
        client.ask_for(length)?;
    }
    assert!(scene.metric("forced_total")? > 0);
    let mut other = Client::connect(&scene.auto, scene.service.at(HTTP))?;
    for _ in 0..20 {
        other.ask()?;
    }
    other.ask_for(100_000)?;
    let state = page(&scene.node)?;
    let promoted = of_pod(&state, &scene.auto);
    assert_eq!(promoted.len(), 1, "the other asked in vain: {state}");
    drop(other);
    scene.node.signal(Role::Agent, Signal::SIGCONT)?;
    until(SOON, || {
        client.ask_for(17_000)?;
        let page = page(&scene.node)?;
        ensure!(of_pod(&page, &scene.auto)[0]["state"] == "left", "{page}");
        Ok(())
    })
}
