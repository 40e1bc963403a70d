//! The two ends of a TCP connection in one network namespace, seen from the connecting socket.
//!
//! Key of the maps that hand a fact from the connecting socket to the accepting one. The cookie keeps pods
//! apart: two pods may use the same loopback tuple at the same time.

use crate::Addr;

/// A connection as its connecting end sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct SockTuple {
    /// Cookie of the namespace of the *connecting* socket; 0 where the reader cannot know it (`sk_lookup`).
    pub netns_cookie: u64,
    /// Address of the connecting socket.
    pub local: Addr,
    /// Address that it connects to.
    pub remote: Addr,
    /// Port of the connecting socket.
    pub local_port: u16,
    /// Port that it connects to.
    pub remote_port: u16,
    /// Always 0: map keys are compared byte by byte.
    pub reserved: u32,
}

impl SockTuple {
    /// The same connection as the other end sees it.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            netns_cookie: self.netns_cookie,
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            reserved: 0,
        }
    }
}

const _: () = assert!(size_of::<SockTuple>() == 8 + 16 + 16 + 2 + 2 + 4);
