//! What the agent decided for one pod, in the words that the programs read.
//!
//! One [`PodPolicy`] per network namespace cookie. It is the single owner of a pod's capture: writing it
//! activates both directions at once, deleting it ends both.

use crate::Addr;

/// Mark of every socket of the proxy, under [`GUARD_MARK_MASK`].
pub const GUARD_MARK: u32 = 0x539;
/// Bits of a socket's mark that [`GUARD_MARK`] is compared under.
pub const GUARD_MARK_MASK: u32 = 0xffff;
/// Bit that a delivery socket, one that connects to the pod's own application, carries besides.
pub const DELIVERY_MARK: u32 = 0x1_0000;

/// Ports inside a pod's namespace.
pub mod ports {
    /// Outbound capture.
    pub const OUTBOUND: u16 = 15001;
    /// Inbound capture.
    pub const INBOUND: u16 = 15006;
    /// HBONE.
    pub const HBONE: u16 = 15008;
    /// The agent's canaries, in both directions.
    pub const CANARY: u16 = 15009;
    /// DNS capture.
    pub const DNS_CAPTURE: u16 = 15053;
    /// The port that DNS servers listen on.
    pub const DNS: u16 = 53;
    /// Merged metrics.
    pub const METRICS: u16 = 15020;
    /// `/healthz/ready`.
    pub const READY: u16 = 15021;
    /// Envoy's own Prometheus port, exempt from capture in every Istio sidecar.
    pub const ENVOY_METRICS: u16 = 15090;
}

/// `millrace.io/acceleration` of a pod.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u32)]
pub enum Acceleration {
    /// Never.
    #[default]
    Off = 0,
    /// Connections earn it.
    Auto = 1,
    /// The operator vouches for the programs of the pod.
    On = 2,
}

impl Acceleration {
    /// Whether there is any.
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        !matches!(self, Self::Off)
    }
}

/// Capture policy of one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PodPolicy {
    /// Key of this pod's port and CIDR rules; a new set gets a new number, so that rules change in one write.
    pub rule_set: u64,
    /// The policy word, see the constants of this type.
    pub flags: u32,
    /// Port of the outbound listener.
    pub outbound_port: u16,
    /// Port of the inbound listener.
    pub inbound_port: u16,
    /// Port of the HBONE listener.
    pub hbone_port: u16,
    /// Port of the DNS listener.
    pub dns_port: u16,
    /// The pod's first IPv4 address; [`Addr::UNSPECIFIED`] if it has none.
    pub address_v4: Addr,
    /// The pod's first IPv6 address; [`Addr::UNSPECIFIED`] if it has none.
    pub address_v6: Addr,
    /// Always 0.
    pub reserved: u32,
}

impl PodPolicy {
    /// Outbound TCP is redirected to [`Self::outbound_port`].
    pub const CAPTURE_OUTBOUND: u32 = 1 << 0;
    /// Inbound TCP is steered to the pod's inbound listener.
    pub const CAPTURE_INBOUND: u32 = 1 << 1;
    /// UDP and TCP to port 53 are redirected to [`Self::dns_port`].
    pub const CAPTURE_DNS: u32 = 1 << 2;
    /// `millrace.io/on-capture-loss: open`: what cannot be captured goes direct. Otherwise it is refused.
    pub const OPEN: u32 = 1 << 3;
    /// Two bits that hold the pod's [`Acceleration`].
    pub const ACCELERATION_SHIFT: u32 = 4;
    /// Mask of the two bits at [`Self::ACCELERATION_SHIFT`].
    pub const ACCELERATION_MASK: u32 = 0b11 << Self::ACCELERATION_SHIFT;
    /// There are outbound port rules.
    pub const OUTBOUND_PORT_RULES: u32 = 1 << 6;
    /// There are outbound CIDR rules, or addresses of the pod's own besides the first of each family.
    pub const OUTBOUND_CIDR_RULES: u32 = 1 << 7;
    /// There are inbound port rules.
    pub const INBOUND_PORT_RULES: u32 = 1 << 8;
    /// Only destinations that an include rule names are captured.
    pub const OUTBOUND_INCLUDE_ONLY: u32 = 1 << 9;
    /// Only inbound ports that an include rule names are captured.
    pub const INBOUND_INCLUDE_ONLY: u32 = 1 << 10;

    /// Whether captured connections arrive at this port.
    #[inline(always)]
    pub const fn is_capture_port(&self, port: u16) -> bool {
        port == self.outbound_port || port == self.inbound_port
    }

    /// Whether every bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    /// The pod's acceleration setting; an unknown value counts as off.
    #[inline(always)]
    pub const fn acceleration(&self) -> Acceleration {
        match (self.flags & Self::ACCELERATION_MASK) >> Self::ACCELERATION_SHIFT {
            1 => Acceleration::Auto,
            2 => Acceleration::On,
            _ => Acceleration::Off,
        }
    }

    /// The same policy with another acceleration setting.
    #[must_use]
    pub const fn with_acceleration(mut self, acceleration: Acceleration) -> Self {
        self.flags = self.flags & !Self::ACCELERATION_MASK
            | (acceleration as u32) << Self::ACCELERATION_SHIFT;
        self
    }

    /// The pod's first address of the family of `other`.
    #[inline(always)]
    pub const fn address_like(&self, other: &Addr) -> Addr {
        if other.is_v4() {
            self.address_v4
        } else {
            self.address_v6
        }
    }

    /// Whether `port` is one that Millrace itself serves in the pod and that inbound capture leaves alone.
    #[inline(always)]
    pub const fn is_reserved_port(&self, port: u16) -> bool {
        port == self.outbound_port
            || port == self.inbound_port
            || port == self.hbone_port
            || port == self.dns_port
            || port == ports::METRICS
            || port == ports::READY
            || port == ports::ENVOY_METRICS
    }
}

const _: () = assert!(size_of::<PodPolicy>() == 8 + 4 + 4 * 2 + 16 + 16 + 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceleration_lives_in_two_bits_and_touches_no_other() {
        for acceleration in [Acceleration::On, Acceleration::Off, Acceleration::Auto] {
            let policy = PodPolicy {
                flags: !0,
                ..PodPolicy::default()
            }
            .with_acceleration(acceleration);
            assert_eq!(policy.acceleration(), acceleration);
            assert_eq!(policy.flags | PodPolicy::ACCELERATION_MASK, !0);
        }
    }
}
