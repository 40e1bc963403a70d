//! Where a connection was really meant to go, and what a socket's storage remembers.
//!
//! Written by connect, sendmsg and sockops; read by getpeername, recvmsg, sockops and getsockopt.

use crate::Addr;

/// Original destination of a captured connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OrigDst {
    /// Address that the application asked for.
    pub addr: Addr,
    /// Port that the application asked for.
    pub port: u16,
    /// Always 0.
    pub reserved: u16,
}

impl OrigDst {
    /// An original destination.
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self {
            addr,
            port,
            reserved: 0,
        }
    }
}

/// What a socket is to the capture path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum SocketRole {
    /// Known for telemetry only.
    Plain = 0,
    /// An application's socket that was redirected to the pod's listener.
    Redirected = 1,
    /// The proxy's accepted end of a redirected connection.
    Accepted = 2,
    /// Made by the broker, for the proxy.
    Ours = 3,
}

/// Socket storage: lives and dies with the socket, so nothing can evict it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SocketState {
    /// Original destination; for an unconnected datagram socket the server that was asked last.
    pub orig_dst: OrigDst,
    /// Port of the in-pod listener that stands in for it; 0 if not redirected.
    pub redirected_port: u16,
    /// A [`SocketRole`].
    pub role: u8,
    /// 0: not counted; else [`crate::Direction`] plus one, to be counted again at close.
    pub counted: u8,
}

const _: () = assert!(size_of::<OrigDst>() == 16 + 2 + 2);
const _: () = assert!(size_of::<SocketState>() == 20 + 2 + 1 + 1);
