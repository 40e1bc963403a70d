//! What is not HTTP on a port that says so: ports without a name, servers that speak first, and DNS. Each is
//! called from a pod through a real node, captured in both ways.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::{CAPTURE, CAPTURES, Service};
use millrace_testkit::echo::{self, Seen};
use millrace_testkit::http::Server;
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::raw::{End, exchange_half_closed};
use millrace_testkit::{CLUSTER_DNS, Cluster, PodOptions, require, until};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(15);
const BANNER: &str = "220 ready when you are\r\n";

/// A service whose one port has no name, and the pod that serves it.
struct Unnamed {
    service: Service,
    _server: Server,
    _pod: MeshPod,
}

impl Unnamed {
    fn start(
        node: &MeshNode,
        capture: &str,
        (name, number): (&str, u8),
        serve: impl FnOnce(TcpListener) -> anyhow::Result<Server>,
    ) -> anyhow::Result<Self> {
        let service = Service::new(name, number).port("", PORT);
        service.apply(node.mesh())?;
        let options = PodOptions::named(&format!("{name}-{capture}"))
            .label("app", name)
            .annotation(CAPTURE, capture);
        let (pod, server) = node.serving_pod(options, |pod| {
            serve(pod.listen((Ipv6Addr::UNSPECIFIED, PORT).into())?)
        })?;
        Ok(Self {
            service,
            _server: server,
            _pod: pod,
        })
    }

    fn at(&self) -> SocketAddr {
        self.service.at(PORT)
    }
}

#[test]
fn a_port_without_a_name_carries_what_its_client_or_server_speaks() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        for across in [false, true] {
            let cluster = Cluster::new()?;
            let mesh = Mesh::start(&cluster)?;
            let (near, far) = (mesh.node("near")?, mesh.node("far")?);
            let node = if across { &far } else { &near };
            let what = format!("{capture}, across nodes {across}");
            let web = Unnamed::start(node, capture, ("web", 1), |it| echo::http(it, "web"))?;
            let bytes = Unnamed::start(node, capture, ("bytes", 2), echo::tcp)?;
            let mail = Unnamed::start(node, capture, ("mail", 3), |it| echo::banner(it, BANNER))?;
            let client = near.pod(PodOptions::named("client").annotation(CAPTURE, capture))?;

            // HTTP is seen to be HTTP: the proxy routed it and gave it an id.
            let seen = until(SOON, || {
                let answer = client.get(web.at(), "web:7000", "/")?;
                ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
                Seen::of(&answer)
            })
            .with_context(|| what.clone())?;
            assert!(seen.header("x-request-id").is_some(), "{what}: {seen:?}");
            let source = seen.remote.ip().to_canonical();
            assert!([client.ip(), client.ip6()].contains(&source), "{what}");

            // Bytes that are no HTTP pass as they are, and half-closing with them.
            let sent = b"\x00\x01GEX / HTTP/9\r\nnot a header at all";
            until(SOON, || {
                let mut stream = client.connect(bytes.at())?;
                let (echoed, end) = exchange_half_closed(&mut stream, sent, SOON)?;
                ensure!(
                    (&echoed[..], end) == (&sent[..], End::Closed),
                    "{echoed:?} {end:?}"
                );
                Ok(())
            })
            .with_context(|| what.clone())?;

            // A server that speaks first is heard before the client has said a word.
            for turn in 0..2 {
                until(SOON, || speaks_first(&client, mail.at()))
                    .with_context(|| format!("{what}, turn {turn}"))?;
            }
        }
    }
    Ok(())
}

fn speaks_first(client: &MeshPod, at: SocketAddr) -> anyhow::Result<()> {
    let stream = client.connect(at)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).context("the server's words")?;
    ensure!(line == BANNER, "{line:?}");
    stream.get_mut().write_all(b"EHLO\r\n")?;
    line.clear();
    stream.read_line(&mut line).context("the answer")?;
    ensure!(line == "EHLO\r\n", "{line:?}");
    Ok(())
}

/// A resolver outside the mesh that knows one address for every name.
struct Resolver {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

impl Resolver {
    fn start(socket: UdpSocket) -> anyhow::Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer)
                    && let Some(answer) = answer(&buffer[..length])
                {
                    socket.send_to(&answer, from).ok();
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The question of a query: a name, two bytes of type, two of class (RFC 1035, 4.1.2).
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += usize::from(query[end]) + 1;
    }
    query.get(12..end + 5)
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut answer = query.get(..2)?.to_vec();
    // A response, recursion desired and available; one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question(query)?);
    // The question's name, A, IN, 60 s, four bytes.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ELSEWHERE.octets());
    Some(answer)
}

/// The address that a resolver gives for a name, asked from inside the pod.
fn resolve(pod: &MeshPod, name: &str, id: u16) -> anyhow::Result<IpAddr> {
    let [high, low] = id.to_be_bytes();
    let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let server = SocketAddr::new(CLUSTER_DNS.into(), 53);
    let socket = pod.udp((Ipv4Addr::UNSPECIFIED, 0).into())?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(&query, server)?;
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).context(name.to_owned())?;
    // As if the server that was asked had answered: nobody has its address.
    ensure!(from == server, "{name} is answered by {from}");
    let answer = &buffer[..length];
    ensure!(answer[..2] == query[..2], "{name}: another id: {answer:?}");
    let (code, answers) = (answer[3] & 15, u16::from_be_bytes([answer[6], answer[7]]));
    ensure!(
        (code, answers) == (0, 1),
        "{name}: {code}, {answers} answers"
    );
    // Behind the question: name, type, class, time to live, length, address.
    let at = 12 + question(answer).context("no question")?.len() + 12;
    let octets: [u8; 4] = answer.get(at..at + 4).context("too short")?.try_into()?;
    Ok(Ipv4Addr::from(octets).into())
}

#[test]
fn names_of_the_mesh_are_answered_by_the_proxy_and_others_by_a_resolver() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let outside = cluster.host("resolver")?;
    let _resolver = Resolver::start(outside.udp((outside.ip(), 53).into())?)?;
    let file = cluster.id().state_dir().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {}\n", outside.ip()))?;
    // The node's own resolver, which the proxy asks in its pods' stead.
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec \"$@\"",
        file.display()
    );
    let wrapper = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        &script,
        "sh",
    ];
    let node = mesh.node_through("n1", &wrapper, &[])?;
    let service = Service::new("echo", 1).port("http", 8080);
    service.apply(&mesh)?;
    for capture in CAPTURES {
        let options = PodOptions::named(&format!("client-{capture}"));
        let client = node.pod(options.annotation(CAPTURE, capture))?;
        for (id, (name, address)) in (1..).zip([
            ("echo.default.svc.cluster.local", service.ip()),
            ("echo.default", service.ip()),
            ("echo", service.ip()),
            ("www.example.com", ELSEWHERE.into()),
            ("nobody.example", ELSEWHERE.into()),
        ]) {
            until(SOON, || {
                let found = resolve(&client, name, id)?;
                ensure!(found == address, "{name} is {found}");
                Ok(())
            })
            .with_context(|| format!("{capture}: {}", node.log()))?;
        }
    }
    Ok(())
}
