//! L4 telemetry of a pod: its application's own TCP connections, seen by sockops.
//!
//! The agent makes and removes the elements; the programs only add to them, per CPU.

use crate::Direction;

/// Key of a pod's telemetry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct TelemetryKey {
    /// The pod.
    pub netns_cookie: u64,
    /// A [`Direction`].
    pub direction: u32,
    /// Always 0.
    pub reserved: u32,
}

impl TelemetryKey {
    /// The key of one direction of a pod.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, direction: Direction) -> Self {
        Self {
            netns_cookie,
            direction: direction as u32,
            reserved: 0,
        }
    }
}

/// Sums over the connections of one direction of a pod; bytes, RTT and retransmits are added at close.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PodTelemetry {
    /// Connections established.
    pub opened: u64,
    /// Connections closed after they were established.
    pub closed: u64,
    /// Bytes that the application sent and the peer acknowledged.
    pub sent_bytes: u64,
    /// Bytes that the application's socket received.
    pub received_bytes: u64,
    /// Sum of the smoothed round-trip times at close, in microseconds; divide by `closed`.
    pub rtt_us_sum: u64,
    /// Segments sent again.
    pub retransmits: u64,
}

impl PodTelemetry {
    /// The sum of two, as for the values of several CPUs.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            opened: self.opened + other.opened,
            closed: self.closed + other.closed,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received_bytes: self.received_bytes + other.received_bytes,
            rtt_us_sum: self.rtt_us_sum + other.rtt_us_sum,
            retransmits: self.retransmits + other.retransmits,
        }
    }
}

const _: () = assert!(size_of::<TelemetryKey>() == 16);
const _: () = assert!(size_of::<PodTelemetry>() == 6 * 8);
