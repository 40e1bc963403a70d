//! Keys of the per-pod exceptions: ports, CIDRs and inbound listeners.
//!
//! Ports and CIDRs are keyed by the rule set that a [`crate::PodPolicy`] names, never by the pod, so that a
//! changed set becomes valid with the one write of the policy.

use crate::Addr;

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Direction {
    /// From the pod.
    Outbound = 0,
    /// To the pod.
    Inbound = 1,
}

/// What a rule says about a port or a CIDR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Rule {
    /// Capture.
    Include = 1,
    /// Leave alone.
    Exclude = 2,
    /// The pod's own address: leave alone.
    Own = 3,
}

impl Rule {
    /// The rule of a map value; an unknown value excludes nothing and includes nothing.
    #[inline(always)]
    pub const fn from_value(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Include),
            2 => Some(Self::Exclude),
            3 => Some(Self::Own),
            _ => None,
        }
    }
}

/// Key of a port rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PortKey {
    /// The pod's rule set.
    pub rule_set: u64,
    /// The port.
    pub port: u16,
    /// A [`Direction`].
    pub direction: u8,
    /// Always 0.
    pub reserved: [u8; 5],
}

impl PortKey {
    /// The key of `port` in `rule_set`.
    #[inline(always)]
    pub const fn new(rule_set: u64, direction: Direction, port: u16) -> Self {
        Self {
            rule_set,
            port,
            direction: direction as u8,
            reserved: [0; 5],
        }
    }
}

/// Data of an LPM key: the rule set, always matched in full, then the address.
///
/// Both are in network order because a trie matches from the first bit on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CidrKey {
    rule_set: [u32; 2],
    addr: [u32; 4],
}

const LOW_HALF: u64 = 0xffff_ffff;

impl CidrKey {
    /// Prefix length of a whole address.
    pub const FULL: u32 = Self::RULE_SET_BITS + 128;
    /// Bits before the address.
    pub const RULE_SET_BITS: u32 = 64;

    /// The key of `addr` in `rule_set`.
    #[inline(always)]
    pub const fn new(rule_set: u64, addr: Addr) -> Self {
        Self {
            rule_set: [
                ((rule_set >> 32) as u32).to_be(),
                ((rule_set & LOW_HALF) as u32).to_be(),
            ],
            addr: addr.words(),
        }
    }

    /// The rule set of this key.
    pub const fn rule_set(&self) -> u64 {
        (u32::from_be(self.rule_set[0]) as u64) << 32 | u32::from_be(self.rule_set[1]) as u64
    }

    /// The address of this key.
    pub const fn addr(&self) -> Addr {
        Addr::from_v6_words(self.addr)
    }
}

/// Key of one inbound listener of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ListenerKey {
    /// The pod.
    pub netns_cookie: u64,
    /// `AF_INET` or `AF_INET6`: what the arriving packets are.
    pub family: u16,
    /// Which of the pod's listeners, below [`crate::LISTENER_SLOTS`]; any of them leads to the whole
    /// `SO_REUSEPORT` group.
    pub slot: u16,
    /// Always 0.
    pub reserved: u32,
}

impl ListenerKey {
    /// The key of a pod's listener.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, family: u16, slot: u16) -> Self {
        Self {
            netns_cookie,
            family,
            slot,
            reserved: 0,
        }
    }
}

const _: () = assert!(size_of::<PortKey>() == 8 + 2 + 1 + 5);
const _: () = assert!(size_of::<CidrKey>() == 24);
const _: () = assert!(size_of::<ListenerKey>() == 8 + 2 + 2 + 4);
