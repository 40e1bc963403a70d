//! The canonical address: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
//!
//! Built by the kernel programs from context words and by the agent from `IpAddr`; two addresses that mean
//! the same host are equal whatever the family of the socket they came from.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address as four network-order words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Addr {
    words: [u32; 4],
}

const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();

impl Addr {
    /// `::`, which stands for "no address" in a [`crate::PodPolicy`].
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };
    /// `127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::from_v4_word(0x7f00_0001_u32.to_be());

    /// From one network-order word, as `user_ip4` and its like hold it.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED_PREFIX, word],
        }
    }

    /// From four network-order words, as `user_ip6` and its like hold them.
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The address as four network-order words; IPv4 is mapped.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The IPv4 address as a network-order word; meaningful only if [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// Whether this is an IPv4 address, mapped or plain at its source.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED_PREFIX
    }

    /// Whether this is `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.words[3]) >> 24 == 127
        } else {
            self.equals(&Self::LOOPBACK_V6)
        }
    }

    /// Whether this is `0.0.0.0` or `::`, which Linux connects to the local host.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[3] == 0 && (self.is_v4() || self.equals(&Self::UNSPECIFIED))
    }

    /// The loopback address of the same family.
    #[must_use]
    #[inline(always)]
    pub const fn loopback(&self) -> Self {
        if self.is_v4() {
            Self::LOOPBACK_V4
        } else {
            Self::LOOPBACK_V6
        }
    }

    /// Equality, word by word: a derived comparison becomes a `memcmp` call, which BPF has not.
    #[inline(always)]
    pub const fn equals(&self, other: &Self) -> bool {
        (self.words[0] ^ other.words[0])
            | (self.words[1] ^ other.words[1])
            | (self.words[2] ^ other.words[2])
            | (self.words[3] ^ other.words[3])
            == 0
    }

    /// The 16 octets in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.words;
        let (a, b, c, d) = (
            a.to_ne_bytes(),
            b.to_ne_bytes(),
            c.to_ne_bytes(),
            d.to_ne_bytes(),
        );
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from(ip).to_be())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        let octets = ip.octets();
        let word = |at: usize| {
            u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
        };
        Self::from_v6_words([word(0), word(4), word(8), word(12)])
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            Self::V4(Ipv4Addr::from(u32::from_be(addr.v4_word())))
        } else {
            Self::V6(Ipv6Addr::from(addr.octets()))
        }
    }
}

const _: () = assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("address in a test").into()
    }

    #[test]
    fn mapped_and_plain_ipv4_are_one_address() {
        assert_eq!(addr("10.1.2.3"), addr("::ffff:10.1.2.3"));
        assert_eq!(
            IpAddr::from(addr("::ffff:10.1.2.3")),
            IpAddr::from([10, 1, 2, 3])
        );
    }

    #[test]
    fn conversion_keeps_every_octet() {
        let ip: IpAddr = "2001:db8:1:2:3:4:5:6".parse().expect("address in a test");
        assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        assert_eq!(Addr::from(ip).octets()[..4], [0x20, 0x01, 0x0d, 0xb8]);
    }

    #[test]
    fn loopback_and_unspecified_are_known_in_both_families() {
        for text in ["127.0.0.1", "127.9.8.7", "::ffff:127.0.0.1", "::1"] {
            assert!(addr(text).is_loopback(), "{text}");
        }
        for text in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
            assert!(addr(text).is_unspecified(), "{text}");
            assert!(!addr(text).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1", "::2", "1::1", "10.0.0.0"] {
            assert!(
                !addr(text).is_loopback() && !addr(text).is_unspecified(),
                "{text}"
            );
        }
    }

    #[test]
    fn loopback_of_the_same_family_is_chosen() {
        assert_eq!(addr("10.0.0.1").loopback(), addr("127.0.0.1"));
        assert_eq!(addr("fd00::1").loopback(), addr("::1"));
    }
}
