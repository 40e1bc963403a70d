//! A node with pods, the kernel programs attached at its cgroup, and in-pod listeners as the broker makes
//! them.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    clippy::expect_used,
    reason = "each test binary uses a part; what a test needs must be there"
)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use millrace_agent::bpf::{
    Bpf, BpfConfig, CapturePolicy, Counter, LogLevel, PodEnrolment, Replace, netns_cookie,
};
use millrace_testkit::{Cluster, Host, Node, Pod};
use nix::sys::socket::{self, SockaddrStorage, setsockopt, sockopt};

pub const PATIENCE: Duration = Duration::from_secs(5);
pub const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Ends a test that this machine cannot run.
macro_rules! node {
    () => {{
        millrace_testkit::require!(cluster);
        crate::bpf::Fixture::new()
    }};
}
pub(crate) use node;

/// A node with eBPF in place. Field order is drop order: pins go before the cgroup.
pub struct Fixture {
    bpf: Option<Bpf>,
    config: BpfConfig,
    pub node: Node,
    _cluster: Cluster,
}

impl Fixture {
    pub fn new() -> Self {
        Self::of(|config| config)
    }

    fn of(change: impl FnOnce(BpfConfig) -> BpfConfig) -> Self {
        let cluster = Cluster::new().expect("a cluster");
        let node = cluster.node("node").expect("a node");
        let config = change(config(&node));
        let bpf = Bpf::load_or_adopt(&config).expect("programs load");
        Self {
            bpf: Some(bpf),
            config,
            node,
            _cluster: cluster,
        }
    }

    pub fn bpf(&mut self) -> &mut Bpf {
        self.bpf.as_mut().expect("loaded")
    }

    /// The same as [`Self::bpf`], with the node beside it.
    pub fn bpf_and_node(&mut self) -> (&mut Bpf, &Node) {
        (self.bpf.as_mut().expect("loaded"), &self.node)
    }

    /// A node whose programs leave some rules of acceleration out.
    pub fn with_experiment(experiment: u32) -> Self {
        Self::of(|config| BpfConfig {
            experiment,
            ..config
        })
    }

    /// A node some of whose maps are small.
    pub fn with_max_entries(max_entries: &[(&'static str, u32)]) -> Self {
        Self::of(|config| BpfConfig {
            max_entries: max_entries.to_vec(),
            ..config
        })
    }

    /// The next agent's maps are of the usual sizes.
    pub fn forget_max_entries(&mut self) {
        self.config.max_entries.clear();
    }

    /// The agent dies; what it pinned stays.
    pub fn kill_agent(&mut self) {
        self.bpf = None;
    }

    /// Another agent starts.
    pub fn restart_agent(&mut self, replace: Replace) -> &mut Bpf {
        let config = BpfConfig {
            replace,
            ..self.config.clone()
        };
        self.bpf
            .insert(Bpf::load_or_adopt(&config).expect("programs are adopted"))
    }

    pub fn count(&self, counter: Counter) -> u64 {
        let counters = self
            .bpf
            .as_ref()
            .expect("loaded")
            .counters()
            .expect("counters");
        counters
            .iter()
            .find(|value| value.counter == counter)
            .expect("every counter")
            .value
    }

    /// A pod that nobody captures.
    pub fn pod(&self, name: &str) -> Pod {
        self.node.pod(name).expect("a pod")
    }

    /// A captured pod with all its listeners.
    pub fn captured(&mut self, name: &str, policy: CapturePolicy) -> Captured {
        let captured = Captured::new(self.pod(name));
        self.enroll(&captured, policy);
        captured
    }

    pub fn enroll(&mut self, captured: &Captured, policy: CapturePolicy) {
        let inbound = captured
            .inbound
            .iter()
            .map(|listener| listener.as_fd())
            .collect();
        self.bpf()
            .enroll(&PodEnrolment {
                netns_cookie: captured.cookie,
                netns: captured.pod.netns().file().as_fd(),
                ips: vec![captured.pod.ip(), captured.pod.ip6()],
                policy,
                inbound_listeners: inbound,
            })
            .expect("the pod is enrolled");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(bpf) = self.bpf.take() {
            bpf.detach_all().expect("everything is detached");
        }
    }
}

pub fn config(node: &Node) -> BpfConfig {
    BpfConfig {
        bpffs_dir: node.bpffs_dir(),
        cgroup: node.cgroup_root().to_owned(),
        host_netns_cookie: cookie_of(node),
        log_level: LogLevel::Off,
        replace: Replace::Changed,
        experiment: 0,
        max_entries: Vec::new(),
    }
}

pub fn cookie_of(host: &Host) -> u64 {
    host.run(|| Ok(netns_cookie()?))
        .expect("the namespace's cookie")
}

/// A pod with the broker's listeners in it.
pub struct Captured {
    pub pod: Pod,
    pub cookie: u64,
    pub outbound4: TcpListener,
    pub outbound6: TcpListener,
    pub dns4: UdpSocket,
    pub dns6: UdpSocket,
    pub dns_tcp: TcpListener,
    /// IPv4 and IPv6.
    pub inbound: [TcpListener; 2],
}

impl Captured {
    /// Ends the outbound listeners. A process that another test is just starting may hold copies of the
    /// descriptors, so that closing them need not do it; `shutdown()` does.
    pub fn stop_listening(&self) {
        for listener in [&self.outbound4, &self.outbound6] {
            socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both).expect("shutdown");
        }
    }

    pub fn new(pod: Pod) -> Self {
        Self {
            cookie: cookie_of(&pod),
            outbound4: listen(&pod, "127.0.0.1:15001"),
            outbound6: listen(&pod, "[::1]:15001"),
            dns4: udp(&pod, "127.0.0.1:15053"),
            dns6: udp(&pod, "[::1]:15053"),
            dns_tcp: listen(&pod, "127.0.0.1:15053"),
            inbound: [listen(&pod, "0.0.0.0:15006"), listen_v6only(&pod, 15006)],
            pod,
        }
    }
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().expect("address in a test")
}

pub fn listen(host: &Host, at: &str) -> TcpListener {
    host.listen(addr(at)).expect("a listener")
}

pub fn udp(host: &Host, at: &str) -> UdpSocket {
    let socket = host.udp(addr(at)).expect("a UDP socket");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("SO_RCVTIMEO");
    socket
}

/// `[::]` beside a listener on `0.0.0.0` of the same port.
pub fn listen_v6only(host: &Host, port: u16) -> TcpListener {
    let fd = host
        .socket(libc::AF_INET6, libc::SOCK_STREAM, 0)
        .expect("a socket");
    setsockopt(&fd, sockopt::Ipv6V6Only, &true).expect("IPV6_V6ONLY");
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at)).expect("bind");
    socket::listen(&fd, socket::Backlog::MAXALLOWABLE).expect("listen");
    TcpListener::from(fd)
}

/// The next connection, not waited for without end.
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut poll = [nix::poll::PollFd::new(
        listener.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    let patience = nix::poll::PollTimeout::try_from(PATIENCE).expect("a timeout");
    let ready = nix::poll::poll(&mut poll, patience).expect("poll");
    assert_eq!(ready, 1, "nobody connected to {:?}", listener.local_addr());
    let (stream, peer) = listener.accept().expect("accept");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("SO_RCVTIMEO");
    (stream, peer)
}

/// Whether a connection waits to be accepted.
pub fn has_connection(listener: &TcpListener) -> bool {
    let mut poll = [nix::poll::PollFd::new(
        listener.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO).expect("poll") == 1
}

/// `SO_ORIGINAL_DST` or `IP6T_SO_ORIGINAL_DST`, as any proxy asks for it.
pub fn original_dst(stream: &TcpStream, level: i32) -> nix::Result<SocketAddr> {
    // SAFETY: plain integers and arrays of them.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut length = if level == libc::SOL_IP { 16 } else { 28 };
    // SAFETY: the buffer is longer than `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            level,
            80,
            (&raw mut storage).cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(result)?;
    // SAFETY: the kernel or the program filled the address in and said how long it is.
    let any = unsafe {
        <SockaddrStorage as socket::SockaddrLike>::from_raw(
            (&raw const storage).cast(),
            Some(length),
        )
    };
    let any = any.expect("a socket address");
    Ok(match (any.as_sockaddr_in(), any.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::from((v4.ip(), v4.port())),
        (_, Some(v6)) => SocketAddr::from((v6.ip(), v6.port())),
        _ => panic!("neither IPv4 nor IPv6"),
    })
}

/// A TCP socket of the host with a mark, connected.
pub fn connect_marked(host: &Host, to: SocketAddr, mark: u32) -> std::io::Result<TcpStream> {
    let fd = tcp_socket(host, to);
    setsockopt(&fd, sockopt::Mark, &mark).expect("SO_MARK");
    connect(fd, to)
}

pub fn tcp_socket(host: &Host, to: SocketAddr) -> OwnedFd {
    let domain = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    host.socket(domain, libc::SOCK_STREAM, 0).expect("a socket")
}

pub fn connect(fd: OwnedFd, to: SocketAddr) -> std::io::Result<TcpStream> {
    let patience = nix::sys::time::TimeVal::new(5, 0);
    setsockopt(&fd, sockopt::SendTimeout, &patience).expect("SO_SNDTIMEO");
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(fd);
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("SO_RCVTIMEO");
    Ok(stream)
}

/// A duplicate that does not share the lifetime.
pub fn duplicate(socket: &impl std::os::fd::AsFd) -> OwnedFd {
    let fd = nix::unistd::dup(socket).expect("dup");
    // SAFETY: `dup` made it, nobody else has it.
    unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) }
}

/// Says something at one end and hears it at the other.
pub fn passes_bytes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"ping").expect("write");
    let mut heard = [0; 4];
    to.read_exact(&mut heard).expect("read");
    assert_eq!(&heard, b"ping");
}
