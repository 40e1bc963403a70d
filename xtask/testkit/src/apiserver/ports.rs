//! Ports of the kernel's choice for servers that must be told a number.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::Context as _;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

/// A loopback port that nobody else gets: a socket that never listens is bound to it with `SO_REUSEPORT`, which a
/// server of the same user shares while it runs.
#[derive(Debug)]
pub(super) struct HeldPort {
    port: u16,
    _socket: OwnedFd,
}

impl HeldPort {
    pub(super) fn take() -> anyhow::Result<Self> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("making a socket")?;
        setsockopt(&socket, sockopt::ReusePort, &true).context("SO_REUSEPORT")?;
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).context("taking a port")?;
        let bound: SockaddrIn = getsockname(socket.as_raw_fd()).context("reading the port")?;
        Ok(Self {
            port: bound.port(),
            _socket: socket,
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}
