//! What the programs tell the agent at once instead of only counting it.
//!
//! Written to a ring buffer by connect and `sk_lookup` when a pod's traffic could not be captured; read by
//! the agent, which reports the pod as not captured. An event that finds the ring full is counted.

use crate::Addr;

/// Why an event was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum EventKind {
    /// An open pod's connection went direct.
    WentDirect = 1,
    /// A closed pod's connection was refused.
    Refused = 2,
    /// The original destination of a captured connection could not be published.
    OrigDstLost = 3,
}

impl EventKind {
    /// The kind of a number, if there is one.
    pub const fn from_value(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::WentDirect),
            2 => Some(Self::Refused),
            3 => Some(Self::OrigDstLost),
            _ => None,
        }
    }
}

/// One event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Event {
    /// The pod.
    pub netns_cookie: u64,
    /// An [`EventKind`].
    pub kind: u32,
    /// Index of the [`crate::Counter`] that counted it.
    pub counter: u32,
    /// Destination of the connection.
    pub addr: Addr,
    /// Port of the destination.
    pub port: u16,
    /// A [`crate::Direction`].
    pub direction: u8,
    /// Always 0.
    pub reserved: [u8; 5],
}

const _: () = assert!(size_of::<Event>() == 8 + 4 + 4 + 16 + 8);
