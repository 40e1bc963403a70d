//! Raw TCP between two pods of a node whose operators vouch: the applications' messages go straight from one to
//! the other, are the same bytes, and are counted; whatever ends that, the connection goes on.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::acceleration::{is_possible, page};
use millrace_e2e::{CAPTURE, Service, logged};
use millrace_testkit::http::Server;
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod, Role};
use millrace_testkit::{Cluster, Pod, PodOptions, require, until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 9000;
const SOON: Duration = Duration::from_secs(20);
const ACCELERATION: &str = "millrace.io/acceleration";

/// As programs with an event loop are: the socket does not block.
fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(stream, PollFlags::POLLIN)?,
            other => return Ok(other?),
        }
    }
}

fn write(stream: &mut TcpStream, mut bytes: &[u8]) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(stream, PollFlags::POLLOUT)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait(stream: &TcpStream, events: PollFlags) -> anyhow::Result<()> {
    let mut fds = [PollFd::new(stream.as_fd(), events)];
    let ready = poll(&mut fds, PollTimeout::try_from(SOON)?)?;
    ensure!(ready > 0, "nothing happens for {SOON:?}");
    Ok(())
}

/// Sends back what it reads, without ever blocking in a call.
fn echo(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nonblocking(true)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        // A server waits for as long as its client likes.
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(stream.shutdown(Shutdown::Write)?),
            Ok(count) => write(&mut stream, &buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Two pods, one with a server.
struct Scene {
    node: MeshNode,
    service: Service,
    _server: Server,
    _backend: MeshPod,
    client: MeshPod,
}

impl Scene {
    /// `None`, said, on a kernel that does not accelerate.
    fn new(cluster: &Cluster, settings: [&str; 2]) -> anyhow::Result<Option<Self>> {
        let mesh = Mesh::start(cluster)?;
        let node = mesh.node("node")?;
        let service = Service::new("echo", 1).port("tcp", PORT);
        service.apply(&mesh)?;
        let options = |name: &str, setting: &str| {
            let options = PodOptions::named(name).annotation(CAPTURE, "ebpf");
            options.annotation(ACCELERATION, setting)
        };
        let mut serving = options("echo-v1", settings[1]).label("app", "echo");
        serving.ports = vec![("tcp".to_owned(), PORT)];
        let (backend, server) = node.serving_pod(serving, |pod| {
            let listener = pod.listen((Ipv6Addr::UNSPECIFIED, PORT).into())?;
            Server::start(listener, |stream, _| {
                echo(stream).ok();
            })
        })?;
        let client = node.pod(options("client", settings[0]))?;
        if !is_possible(&node)? {
            return Ok(None);
        }
        Ok(Some(Self {
            node,
            service,
            _server: server,
            _backend: backend,
            client,
        }))
    }

    fn client(&self) -> anyhow::Result<Client> {
        until(SOON, || {
            let mut client = Client::connect(&self.client, self.service.at(PORT))?;
            client.ask(100).map(|()| client)
        })
    }

    /// Asks until the connection of the client's pod is in this state.
    fn until_state(&self, client: &mut Client, state: &str) -> anyhow::Result<()> {
        until(SOON, || {
            client.ask(100)?;
            let page = page(&self.node)?;
            let connection = of_pod(&page, &self.client);
            ensure!(connection["state"] == state, "{page}");
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

/// The newest connection of a pod's own making that has asked.
fn of_pod<'a>(page: &'a Value, pod: &Pod) -> &'a Value {
    let mut connections = page["connections"].as_array().into_iter().flatten();
    let mine = |one: &&Value| one["uid"] == pod.uid() && one["side"] == "downstream";
    connections.rfind(mine).unwrap_or(&Value::Null)
}

/// Sends bytes that are known by their place, and has them sent back.
struct Client {
    stream: TcpStream,
    sent: u64,
}

impl Client {
    fn connect(pod: &Pod, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = pod.connect(to)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, sent: 0 })
    }

    fn ask(&mut self, length: u64) -> anyhow::Result<()> {
        let tag = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[5];
        let said: Vec<u8> = (self.sent..self.sent + length).map(tag).collect();
        write(&mut self.stream, &said)?;
        self.sent += length;
        let mut heard = vec![0; said.len()];
        let mut count = 0;
        while count < heard.len() {
            let more = read(&mut self.stream, &mut heard[count..])?;
            ensure!(more > 0, "closed after {count} bytes of {length}");
            count += more;
        }
        ensure!(heard == said, "other bytes came back");
        Ok(())
    }
}

#[test]
fn applications_of_two_pods_send_to_each_other_and_are_counted() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster, ["on", "on"])? else {
        return Ok(());
    };
    let mut client = scene.client()?;
    scene.until_state(&mut client, "spliced")?;
    let proxys = of_pod(&page(&scene.node)?, &scene.client)["from_application"].clone();
    for _ in 0..1000 {
        client.ask(100)?;
    }
    let page = page(&scene.node)?;
    let connection = of_pod(&page, &scene.client);
    assert_eq!(connection["from_application"], proxys, "{page}");
    assert!(scene.metric("spliced_total")? >= 1);
    assert_eq!(scene.metric("spliced_connections")?, 2);
    let sent = client.sent;
    client.stream.shutdown(Shutdown::Write)?;
    assert_eq!(read(&mut client.stream, &mut [0; 8])?, 0);
    drop(client);
    let all = |line: &Value| line["bytes_received"] == sent && line["bytes_sent"] == sent;
    logged(&scene.node, all).with_context(|| format!("{sent} bytes each way"))?;
    assert!(scene.metric("spliced_messages_total")? >= 2000);
    assert!(scene.metric("spliced_bytes_total")? >= 200_000);
    Ok(())
}

/// What is too much for the other application's queue goes by the proxy, and later messages past it again.
#[test]
fn large_messages_go_by_the_proxy_and_small_ones_past_it_again() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster, ["on", "on"])? else {
        return Ok(());
    };
    let mut client = scene.client()?;
    for round in 1..=2 {
        scene.until_state(&mut client, "spliced")?;
        client.ask(300_000)?;
        assert!(scene.metric("unspliced_total")? >= round);
    }
    Ok(())
}

#[test]
fn a_pod_whose_operator_does_not_vouch_is_not_spliced() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster, ["on", "auto"])? else {
        return Ok(());
    };
    let mut client = scene.client()?;
    scene.until_state(&mut client, "promoted")?;
    for _ in 0..500 {
        client.ask(100)?;
    }
    scene.until_state(&mut client, "promoted")?;
    assert_eq!(scene.metric("spliced_total")?, 0);
    Ok(())
}

#[test]
fn a_setting_that_changes_brings_the_connection_back_to_the_proxy() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster, ["on", "on"])? else {
        return Ok(());
    };
    let mut client = scene.client()?;
    scene.until_state(&mut client, "spliced")?;
    scene.client.annotate(ACCELERATION, "off")?;
    scene.until_state(&mut client, "left")?;
    for _ in 0..100 {
        client.ask(100)?;
    }
    assert_eq!(scene.metric("spliced_connections")?, 0);
    Ok(())
}

#[test]
fn the_next_proxy_goes_on_with_spliced_connections() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster, ["on", "on"])? else {
        return Ok(());
    };
    let mut client = scene.client()?;
    scene.until_state(&mut client, "spliced")?;
    for _ in 0..2 {
        let old = proxy(&scene.node)?;
        scene.node.signal(Role::Launcher, Signal::SIGHUP)?;
        until(SOON, || {
            client.ask(100)?;
            ensure!(proxy(&scene.node)? != old, "it is the old one yet");
            let page = page(&scene.node)?;
            let connection = of_pod(&page, &scene.client);
            ensure!(connection["state"] == "spliced", "{page}");
            Ok(())
        })?;
        for _ in 0..200 {
            client.ask(100)?;
        }
    }
    let sent = client.sent;
    drop(client);
    let all = |line: &Value| line["bytes_received"] == sent && line["bytes_sent"] == sent;
    logged(&scene.node, all).with_context(|| format!("{sent} bytes each way"))?;
    Ok(())
}

/// Who answers as the proxy.
fn proxy(node: &MeshNode) -> anyhow::Result<Value> {
    let page: Value = node.admin("/handover")?.json()?;
    Ok(page["pid"].clone())
}

#[test]
fn a_connection_ends_with_its_proxy() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let Some(scene) = Scene::new(&cluster, ["on", "on"])? else {
        return Ok(());
    };
    let mut client = scene.client()?;
    scene.until_state(&mut client, "spliced")?;
    scene.node.signal(Role::Proxy, Signal::SIGKILL)?;
    let ended = until(SOON, || match client.ask(100) {
        Err(error) => Ok(error),
        Ok(()) => anyhow::bail!("it goes on"),
    })?;
    println!("{ended:#}");
    // The next one begins anew.
    let mut client = scene.client()?;
    scene.until_state(&mut client, "spliced")
}
