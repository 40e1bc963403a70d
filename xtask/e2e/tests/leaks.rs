//! Whatever an application tries and whichever processes are gone: a witness on the link of a pod that fails
//! closed sees no packet that Millrace did not send. And a pod that fails open works on without Millrace.
//!
//! Nobody has the addresses of services: what is captured is asked of a pod, so any packet *to a service* that
//! leaves a pod was not captured.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::witness::{Frame, Witness};
use millrace_e2e::{CAPTURE, CAPTURES, Scene};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod, Role};
use millrace_testkit::{CLUSTER_DNS, Cluster, Host, Pod, PodOptions, require, until};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(20);
/// Rules of open pods let go 10 s after the last time that they were refreshed.
const LET_GO: Duration = Duration::from_secs(30);
const ON_LOSS: &str = "millrace.io/on-capture-loss";
const SOME: u64 = 100;

/// Ways out that the IP stack knows.
const STACK: [&str; 6] = [
    "raw-syn",
    "raw-data",
    "raw-dns",
    "raw-fragment",
    "raw-options",
    "raw-atomic",
];
/// Ways past the IP stack.
const PACKET: [&str; 4] = [
    "packet",
    "packet-bypass",
    "packet-disguised",
    "packet-options",
];
/// Ways of asking a resolver.
const DATAGRAM: [&str; 3] = ["datagram", "datagram-connected", "datagram-marked"];
/// Ways that begin a connection.
const CONNECT: [&str; 3] = ["connect", "fast-open", "fast-open-connect"];
/// The proxy's mark, and that of its deliveries.
const MARKS: [Option<&str>; 3] = [None, Some("539"), Some("10539")];

/// Whether a frame is one that only a leak explains.
fn to_a_service(frame: &Frame) -> bool {
    match frame.to {
        IpAddr::V4(to) => to.octets()[..2] == [10, 96],
        IpAddr::V6(to) => to.segments()[..2] == [0xfd00, 0x96],
    }
}

/// An application of a pod.
#[derive(Clone, Copy)]
struct App<'a> {
    node: &'a MeshNode,
    pod: &'a Pod,
    uid: Option<u32>,
}

impl<'a> App<'a> {
    fn of(node: &'a MeshNode, pod: &'a Pod) -> Self {
        Self {
            node,
            pod,
            uid: None,
        }
    }

    /// Tries one way and says what the application saw.
    fn leak(&self, way: &str, to: SocketAddr, mark: Option<&str>) -> anyhow::Result<String> {
        let cluster = self.node.mesh().cluster();
        let program = cluster.executable(Path::new(env!("CARGO_BIN_EXE_leak")))?;
        let mut command = Command::new(program);
        command.arg(way).arg(to.to_string()).args(mark);
        let mut launch = self.pod.launch("leak", command)?;
        if let Some(uid) = self.uid {
            launch = launch.uid(uid);
        }
        let output = launch.output()?;
        ensure!(
            output.status.success(),
            "{way}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The resolver, of each family.
fn dns() -> [SocketAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
    [CLUSTER_DNS.into(), v6.into()].map(|ip| SocketAddr::new(ip, 53))
}

/// The service, of each family.
fn http(scene: &Scene) -> [SocketAddr; 2] {
    [scene.service.ip(), scene.service.ip6()].map(|ip| SocketAddr::new(ip, Scene::HTTP))
}

/// Waits until a new pod can use IPv6: once the kernel has worked off that its link is up.
fn has_ipv6(pod: &Pod) -> anyhow::Result<()> {
    until(SOON, || {
        let socket = pod.udp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0))?;
        // Nobody's, and nothing that is captured.
        socket.connect("[2001:db8::1]:9")?;
        let own = socket.local_addr()?.ip();
        ensure!(own == pod.ip6(), "it would send from {own}");
        Ok(())
    })
}

/// Where a way goes, by each family: DNS to the resolver, all else to the service.
fn targets(service: [SocketAddr; 2], way: &str) -> [SocketAddr; 2] {
    if way.contains("dns") || way.contains("datagram") {
        dns()
    } else {
        service
    }
}

#[test]
fn the_witness_sees_every_way_out_of_a_pod_that_is_not_captured() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let node = mesh.node("n1")?;
    let pod = node.announce(PodOptions::named("bare"))?;
    let nobody: [IpAddr; 2] = ["10.96.7.1".parse()?, "fd00:96:7::1".parse()?];
    let service = nobody.map(|ip| SocketAddr::new(ip, 8080));
    let witness = Witness::start(&node, &pod, to_a_service)?;
    let app = App::of(&node, &pod);
    has_ipv6(&pod)?;
    let ways = STACK.into_iter().chain(PACKET).chain(["xdp"]);
    for way in ways.chain(DATAGRAM) {
        for to in targets(service, way) {
            let before = witness.leaks();
            // The first packet to a neighbour waits until it is found, and a device until its last XDP socket is gone.
            until(SOON, || {
                let told = app.leak(way, to, Some("539"))?;
                ensure!(witness.leaks() > before, "{to}: {told}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Tries a way with every mark by both families.
fn nothing_leaves(
    app: &App<'_>,
    witness: &Witness,
    service: [SocketAddr; 2],
    way: &str,
) -> anyhow::Result<()> {
    for to in targets(service, way) {
        for mark in MARKS {
            let told = app.leak(way, to, mark)?;
            witness.catch_up()?;
            ensure!(witness.leaks() == 0, "to {to}, mark {mark:?}: {told}");
        }
    }
    Ok(())
}

#[test]
fn nothing_leaves_a_closed_pod_by_raw_and_packet_sockets() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let witness = Witness::start(&scene.near, &scene.client, to_a_service)?;
        let app = App::of(&scene.near, &scene.client);
        for way in STACK.into_iter().chain(PACKET) {
            nothing_leaves(&app, &witness, http(&scene), way).context(capture)?;
        }
        scene.answered_by("echo-v2").context(capture)?;
        witness.saw_nothing().context(capture)?;
    }
    Ok(())
}

/// Connections to such a port are the application's own business; what only claims to belong to one is not.
#[test]
fn a_port_that_is_excluded_inbound_is_no_way_out() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let node = mesh.node("n1")?;
    let nobody: [IpAddr; 2] = ["10.96.7.1".parse()?, "fd00:96:7::1".parse()?];
    let service = nobody.map(|ip| SocketAddr::new(ip, 8080));
    let stranger = node.announce(PodOptions::named("stranger"))?;
    for capture in CAPTURES {
        // The port that the forged segments come from.
        let exclude = "traffic.sidecar.istio.io/excludeInboundPorts";
        let pod = PodOptions::named(capture).annotation(CAPTURE, capture);
        let pod = node.pod(pod.annotation(exclude, "40404"))?;
        let witness = Witness::start(&node, &pod, to_a_service)?;
        has_ipv6(&pod)?;
        nothing_leaves(&App::of(&node, &pod), &witness, service, "raw-data").context(capture)?;
        for ip in [pod.ip(), pod.ip6()] {
            let at = SocketAddr::new(ip, 40404);
            let listener = pod.listen(at)?;
            let mut client = until(SOON, || stranger.connect(at))?;
            let (mut served, _) = listener.accept()?;
            served.write_all(b"answer")?;
            client.set_read_timeout(Some(SOON))?;
            client.read_exact(&mut [0; 6]).context("it is answered")?;
        }
        witness.saw_nothing().context(capture)?;
    }
    Ok(())
}

/// Its frames reach the driver past everything in the pod's namespace, so the socket must not get that far; only
/// programs can see to that.
#[test]
fn a_closed_pod_gets_no_xdp_socket_that_sends() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let witness = Witness::start(&scene.near, &scene.client, to_a_service)?;
    for to in http(&scene) {
        let told = App::of(&scene.near, &scene.client).leak("xdp", to, None)?;
        ensure!(told.contains("refused"), "{told}");
    }
    witness.saw_nothing()
}

#[test]
fn a_forged_mark_or_user_is_captured_like_any_other() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let witness = Witness::start(&scene.near, &scene.client, to_a_service)?;
        let app = App::of(&scene.near, &scene.client);
        for mark in MARKS {
            for to in http(&scene) {
                let told = app.leak("connect", to, mark)?;
                // Delivered to itself, the last mark's connection never leaves the pod.
                let fine = told.contains("answered HTTP/1.1 200");
                ensure!(
                    fine || mark == Some("10539"),
                    "{capture}: to {to}, mark {mark:?}: {told}"
                );
            }
            for (way, to) in DATAGRAM
                .into_iter()
                .flat_map(|way| dns().map(|to| (way, to)))
            {
                app.leak(way, to, mark)?;
            }
        }
        let user = App {
            uid: Some(1337),
            ..app
        };
        for to in http(&scene) {
            let told = user.leak("connect", to, None)?;
            ensure!(told.contains("answered HTTP/1.1 200"), "{capture}: {told}");
        }
        witness.saw_nothing().context(capture)?;
    }
    Ok(())
}

#[test]
fn fast_open_data_is_captured() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let witness = Witness::start(&scene.near, &scene.client, to_a_service)?;
        let app = App::of(&scene.near, &scene.client);
        for way in ["fast-open", "fast-open-connect"] {
            // The second has a cookie, so its data travels with the SYN.
            for to in http(&scene).into_iter().flat_map(|to| [to, to]) {
                let told = app.leak(way, to, None)?;
                ensure!(told.contains("answered HTTP/1.1 200"), "{capture}: {told}");
            }
        }
        witness.saw_nothing().context(capture)?;
    }
    Ok(())
}

#[test]
fn connections_that_a_closed_pod_made_before_its_capture_end() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let node = mesh.node("n1")?;
    let stranger = node.announce(PodOptions::named("stranger"))?;
    for capture in CAPTURES {
        let options = PodOptions::named(capture).annotation(CAPTURE, capture);
        let pod = node.announce(options)?;
        for pod in [&pod, &stranger] {
            has_ipv6(pod)?;
        }
        let addresses = [(pod.ip(), stranger.ip()), (pod.ip6(), stranger.ip6())];
        let mut older = Vec::new();
        for (own, other) in addresses {
            older.push(Older::make(&pod, &stranger, own, other)?);
        }
        pod.relabel("millrace.io/dataplane-mode", "node")?;
        node.captured(&pod)?;
        for older in &mut older {
            let (address, own) = (older.own.ip(), older.own.port());
            let witness = Witness::start(&node, &pod, move |frame| {
                let old = frame.ports.0 == own;
                // The kernel's word that a connection has ended is none of the application's.
                let ends = i32::from(frame.flags) & 0x04 != 0 && frame.payload == 0;
                frame.from == address && old && !ends
            })?;
            older.made_ends().context(capture)?;
            older.taken_goes_on().context(capture)?;
            witness.saw_nothing().context(capture)?;
        }
    }
    Ok(())
}

/// Two connections of a pod that are older than its capture: one that it made and one that it took.
struct Older {
    own: SocketAddr,
    made: TcpStream,
    theirs: TcpStream,
    served: TcpStream,
    taken: TcpStream,
    _listening: TcpListener,
}

impl Older {
    fn make(pod: &Pod, stranger: &Pod, own: IpAddr, other: IpAddr) -> anyhow::Result<Self> {
        let outside = stranger.listen(SocketAddr::new(other, 0))?;
        let inside = pod.listen(SocketAddr::new(own, 0))?;
        let mut made = pod.connect(outside.local_addr()?)?;
        let mut taken = stranger.connect(inside.local_addr()?)?;
        let (mut theirs, _) = outside.accept()?;
        let (mut served, _) = inside.accept()?;
        for (from, to) in [(&mut made, &mut theirs), (&mut served, &mut taken)] {
            let mut bytes = [0; 5];
            from.write_all(b"early")?;
            to.read_exact(&mut bytes)?;
        }
        Ok(Self {
            own: made.local_addr()?,
            made,
            theirs,
            served,
            taken,
            _listening: inside,
        })
    }

    fn made_ends(&mut self) -> anyhow::Result<()> {
        until(SOON, || {
            let written = self.made.write(b"late");
            ensure!(written.is_err(), "{}: {written:?}", self.own);
            anyhow::Ok(())
        })?;
        self.theirs.set_nonblocking(true)?;
        let mut bytes = [0; 16];
        let read = self.theirs.read(&mut bytes);
        ensure!(!matches!(read, Ok(1..)), "it arrived: {read:?}");
        Ok(())
    }

    /// Whoever sends first.
    fn taken_goes_on(&mut self) -> anyhow::Result<()> {
        for turn in ["answers", "is asked"] {
            let (from, to) = match turn {
                "answers" => (&mut self.served, &mut self.taken),
                _ => (&mut self.taken, &mut self.served),
            };
            let mut bytes = [0; 4];
            from.write_all(b"late")?;
            to.set_read_timeout(Some(SOON))?;
            to.read_exact(&mut bytes)
                .with_context(|| format!("the pod {turn} on an older connection"))?;
        }
        Ok(())
    }
}

/// Kills every process of Millrace on the node, at once as far as that can be.
fn kill_all(node: &MeshNode) -> anyhow::Result<()> {
    for role in Role::ALL {
        // The launcher's death is that of agent and broker.
        if node.pid(role).is_some() {
            node.signal(role, Signal::SIGKILL).ok();
        }
    }
    until(SOON, || {
        let pids = node.pids();
        ensure!(pids.is_empty(), "{pids:?} still run");
        Ok(())
    })
}

/// Everything that no process holds and that a reboot ends.
fn forget_pins(node: &MeshNode) -> anyhow::Result<()> {
    for entry in fs::read_dir(node.bpffs_dir())? {
        let entry = entry?;
        // Beside directories of pins there are files of the kernel's own.
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[test]
fn a_closed_pod_stays_closed_until_it_is_captured_again() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let witness = Witness::start(&scene.near, &scene.client, to_a_service)?;
        let app = App::of(&scene.near, &scene.client);
        let load = scene.load()?;
        load.more(SOME)?;
        kill_all(&scene.near)?;
        forget_pins(&scene.near)?;
        let ways = CONNECT.into_iter().chain(DATAGRAM);
        for way in ways.chain(STACK).chain(PACKET) {
            nothing_leaves(&app, &witness, http(&scene), way).context(capture)?;
        }
        for to in dns() {
            let by_tcp = app.leak("connect", to, None)?;
            ensure!(by_tcp.contains("refused"), "{capture}: {by_tcp}");
        }
        scene.near.resume()?;
        scene.near.captured(&scene.client)?;
        scene.answered_by("echo-v2")?;
        load.more(SOME)?;
        let outcome = load.stop()?;
        eprintln!(
            "{capture}: {} answered, {} refused meanwhile",
            outcome.answered,
            outcome.failures.len()
        );
        witness.saw_nothing().context(capture)?;
    }
    Ok(())
}

/// What the guard was told of programs holds for 10 s.
fn is_told_nothing(pod: &Pod) -> anyhow::Result<()> {
    until(LET_GO, || {
        let mut list = Command::new("nft");
        list.args(["list", "set", "inet", "millrace_guard", "steered"]);
        let listed = pod.stdout(list)?;
        ensure!(!listed.contains("elements"), "{listed}");
        anyhow::Ok(())
    })
}

/// A connection arrives at the listener, or is refused.
fn arrives(from: &Host, to: &TcpListener) -> anyhow::Result<bool> {
    to.set_nonblocking(true)?;
    while to.accept().is_ok() {}
    let mut made = match from.connect_within(to.local_addr()?, SOON) {
        Ok(made) => made,
        Err(error) => {
            let refused = format!("{error:#}").contains("refused");
            ensure!(refused, "neither taken nor refused: {error:#}");
            ensure!(to.accept().is_err(), "it was taken all the same");
            return Ok(false);
        }
    };
    // A proxy may want to know first what it is about.
    made.write_all(b"hello\n")?;
    until(SOON, || to.accept().map(drop))?;
    Ok(true)
}

/// Neither side of a connection is to be had without Millrace's decision; those that the node itself makes, as
/// kubelet does, are none of its business while eBPF captures.
#[test]
fn strangers_do_not_reach_a_closed_pod_when_its_programs_are_gone() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        let node = mesh.node("n1")?;
        let stranger = node.announce(PodOptions::named("stranger"))?;
        let pod = node.pod(PodOptions::named(capture).annotation(CAPTURE, capture))?;
        let listeners: Vec<TcpListener> = [pod.ip(), pod.ip6()]
            .into_iter()
            .map(|ip| pod.listen(SocketAddr::new(ip, 8080)))
            .collect::<anyhow::Result<_>>()?;
        let by_programs = capture == "ebpf";
        for listener in &listeners {
            for from in [&**stranger, &**node] {
                until(SOON, || {
                    ensure!(arrives(from, listener)?, "{capture}: with all at work");
                    Ok(())
                })?;
            }
        }
        // Agent and broker end with the launcher; programs and proxy stay, and decide as before.
        node.signal(Role::Launcher, Signal::SIGKILL)?;
        if by_programs {
            is_told_nothing(&pod)?;
        }
        for listener in &listeners {
            // The proxy takes it; to deliver it may need a socket of the broker's.
            stranger.connect_within(listener.local_addr()?, SOON)?;
            node.connect_within(listener.local_addr()?, SOON)?;
        }
        kill_all(&node)?;
        forget_pins(&node)?;
        for listener in &listeners {
            // The kernel lets programs and sockets go a moment after their last holder.
            until(SOON, || {
                let made = stranger.connect_within(listener.local_addr()?, SOON);
                ensure!(made.is_err(), "somebody listens");
                anyhow::Ok(())
            })?;
            ensure!(
                !arrives(&stranger, listener)?,
                "{capture}: a stranger is in"
            );
            let own = arrives(&node, listener)?;
            ensure!(own == by_programs, "{capture}: the node's own: {own}");
        }
        node.resume()?;
        node.captured(&pod)?;
        for listener in &listeners {
            until(SOON, || {
                ensure!(arrives(&stranger, listener)?, "{capture}: captured again");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn nothing_leaves_a_closed_pod_while_processes_are_killed_under_load() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let witness = Witness::start(&scene.near, &scene.client, to_a_service)?;
        let load = scene.load()?;
        let together: [&[Role]; 5] = [
            &[Role::Proxy],
            &[Role::Broker, Role::Proxy],
            &[Role::Agent],
            &[Role::Agent, Role::Broker, Role::Proxy],
            &[Role::Broker],
        ];
        for roles in together {
            load.more(SOME)?;
            let mut killed = Vec::new();
            for role in roles {
                killed.push((*role, scene.near.signal(*role, Signal::SIGKILL)?));
            }
            for (role, pid) in killed {
                until(SOON, || {
                    let now = scene.near.pid(role).context("none runs")?;
                    ensure!(now != pid, "{role:?} still runs");
                    anyhow::Ok(())
                })?;
            }
            scene.near.captured(&scene.client)?;
            load.more(SOME)?;
        }
        load.stop()?;
        witness.saw_nothing().context(capture)?;
    }
    Ok(())
}

/// A pod of the node `n1` that fails open.
fn open_pod(node: &MeshNode, capture: &str) -> anyhow::Result<MeshPod> {
    let options = PodOptions::named(&format!("open-{capture}"))
        .annotation(CAPTURE, capture)
        .annotation(ON_LOSS, "open");
    node.pod(options)
}

#[test]
fn an_open_pod_works_on_without_any_process_of_millrace() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        let node = mesh.node("n1")?;
        let stranger = node.announce(PodOptions::named("stranger"))?;
        let server = stranger.listen(stranger.at(0))?;
        let resolver = stranger.udp(stranger.at(53))?;
        resolver.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        let pod = open_pod(&node, capture)?;
        // Each from a port of its own, as resolvers do: conntrack remembers what became of a port.
        let asks = || {
            let question = pod.udp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))?;
            question.send_to(b"question", stranger.at(53)).ok();
            let mut bytes = [0; 64];
            resolver.recv_from(&mut bytes).context("nothing has come")
        };
        assert!(asks().is_err(), "{capture}: DNS is captured");
        kill_all(&node)?;
        until(LET_GO, || {
            let to = server.local_addr()?;
            let mut stream = pod.connect_within(to, SOON)?;
            let (mut taken, from) = server.accept()?;
            ensure!(from.ip() == pod.ip(), "{capture}: from {from}");
            taken.set_nonblocking(false)?;
            stream.write_all(b"ping")?;
            let mut bytes = [0; 4];
            taken.read_exact(&mut bytes)?;
            anyhow::Ok(())
        })
        .with_context(|| format!("{capture}: TCP goes direct"))?;
        until(LET_GO, || asks().map(drop)).with_context(|| format!("{capture}: DNS"))?;
        node.resume()?;
        node.captured(&pod)?;
        until(SOON, || {
            ensure!(asks().is_err(), "{capture}: DNS still goes direct");
            Ok(())
        })?;
    }
    Ok(())
}
