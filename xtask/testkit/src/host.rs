//! What a node and a pod have in common: a network namespace, a cgroup, and the sandbox process
//! through which tests make sockets and processes there.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Context as _;
use nix::sched::CloneFlags;
use nix::sys::socket::{self, Backlog, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::sandbox::{Sandbox, View};
use crate::spawn::{Launch, Place, Process};

/// The default bound of [`Host::connect`].
const CONNECT: Duration = Duration::from_secs(10);

/// A network namespace and cgroup to act in. Sockets and processes made here are, for the kernel,
/// the host's own: its programs and firewall rules see no difference.
#[derive(Debug)]
pub struct Host {
    // Dropped in this order: the sandbox keeps the cgroup busy and the namespace alive.
    sandbox: Sandbox,
    private: bool,
    cgroup: Cgroup,
    netns: Netns,
    log_dir: PathBuf,
    detached: bool,
}

/// What a host is made of.
pub(crate) struct Parts {
    pub(crate) netns: Netns,
    pub(crate) cgroup: Cgroup,
    pub(crate) log_dir: PathBuf,
    pub(crate) view: Option<View>,
    pub(crate) detached: bool,
}

impl Host {
    pub(crate) fn start(parts: Parts) -> anyhow::Result<Self> {
        let Parts {
            netns,
            cgroup,
            log_dir,
            view,
            detached,
        } = parts;
        fs::create_dir_all(&log_dir).with_context(|| format!("creating {}", log_dir.display()))?;
        let private = view.is_some();
        let place = Place {
            cgroup: cgroup.entrance()?,
            namespaces: vec![network(&netns)?],
            log_dir: log_dir.clone(),
            detached,
        };
        let sandbox = Sandbox::start(place, view)?;
        Ok(Self {
            sandbox,
            private,
            cgroup,
            netns,
            log_dir,
            detached,
        })
    }

    /// The host's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The host's cgroup2 directory.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Where logs of the host's processes go.
    pub fn log_dir(&self) -> &Path {
        &self.log_dir
    }

    /// The process that holds the namespaces, for `nsenter -t`.
    pub fn sandbox_pid(&self) -> u32 {
        self.sandbox.pid().unsigned_abs()
    }

    /// Prepares a process of the host; `name` names its log.
    pub fn launch(&self, name: &str, command: Command) -> anyhow::Result<Launch> {
        let mut namespaces = vec![network(&self.netns)?];
        if self.private {
            namespaces.extend(self.sandbox.namespaces()?);
        }
        let place = Place {
            cgroup: self.cgroup.entrance()?,
            namespaces,
            log_dir: self.log_dir.clone(),
            detached: self.detached,
        };
        Ok(Launch::new(name, command, place))
    }

    /// Starts a process that lives as long as the returned handle.
    pub fn spawn(&self, name: &str, command: Command) -> anyhow::Result<Process> {
        self.launch(name, command)?.spawn()
    }

    /// Runs a process to its end.
    pub fn output(&self, command: Command) -> anyhow::Result<Output> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.launch(&name, command)?.output()
    }

    /// Runs a process to its end and returns its standard output; fails unless it succeeds.
    pub fn stdout(&self, command: Command) -> anyhow::Result<String> {
        let shown = format!("{command:?}");
        let output = self.output(command)?;
        anyhow::ensure!(
            output.status.success(),
            "{shown}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A raw socket of the host: `AF_*`, `SOCK_*` (with flags), `IPPROTO_*`.
    pub fn socket(&self, domain: i32, kind: i32, protocol: i32) -> anyhow::Result<OwnedFd> {
        self.sandbox.socket(domain, kind, protocol)
    }

    /// Connects from the host, in at most ten seconds.
    pub fn connect(&self, to: SocketAddr) -> anyhow::Result<TcpStream> {
        self.connect_within(to, CONNECT)
    }

    /// Connects from the host.
    pub fn connect_within(&self, to: SocketAddr, limit: Duration) -> anyhow::Result<TcpStream> {
        let fd = self.socket(domain(to), libc::SOCK_STREAM, 0)?;
        // Linux bounds a blocking connect by the send timeout.
        let bound = TimeVal::new(
            limit.as_secs().cast_signed(),
            i64::from(limit.subsec_micros()),
        );
        setsockopt(&fd, sockopt::SendTimeout, &bound).context("bounding the connect")?;
        socket::connect(
            std::os::fd::AsRawFd::as_raw_fd(&fd),
            &SockaddrStorage::from(to),
        )
        .map_err(std::io::Error::from)
        .with_context(|| format!("connecting to {to}"))?;
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(0, 0)).context("lifting the bound")?;
        Ok(TcpStream::from(fd))
    }

    /// Listens in the host; port 0 takes a free one.
    pub fn listen(&self, at: SocketAddr) -> anyhow::Result<TcpListener> {
        let fd = self.socket(domain(at), libc::SOCK_STREAM, 0)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
        bind(&fd, at)?;
        socket::listen(&fd, Backlog::MAXALLOWABLE).with_context(|| format!("listening on {at}"))?;
        Ok(TcpListener::from(fd))
    }

    /// A UDP socket of the host; port 0 takes a free one.
    pub fn udp(&self, at: SocketAddr) -> anyhow::Result<UdpSocket> {
        let fd = self.socket(domain(at), libc::SOCK_DGRAM, 0)?;
        bind(&fd, at)?;
        Ok(UdpSocket::from(fd))
    }

    /// Runs `work` on a thread in the host's network namespace (but in the caller's cgroup).
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.netns.run(work)
    }
}

fn network(netns: &Netns) -> anyhow::Result<(OwnedFd, CloneFlags)> {
    let file = netns
        .file()
        .try_clone()
        .context("duplicating the namespace's descriptor")?;
    Ok((file.into(), CloneFlags::CLONE_NEWNET))
}

fn domain(address: SocketAddr) -> i32 {
    if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }
}

fn bind(fd: &OwnedFd, at: SocketAddr) -> anyhow::Result<()> {
    socket::bind(
        std::os::fd::AsRawFd::as_raw_fd(fd),
        &SockaddrStorage::from(at),
    )
    .map_err(std::io::Error::from)
    .with_context(|| format!("binding {at}"))
}
