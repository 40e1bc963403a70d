//! The canary: a connection and a question that the agent sends from inside a pod, and one from the node
//! to the pod, to see that they arrive where capture should lead them.
//!
//! Outbound ones go to addresses that nothing has (a documentation range, the discard-only prefix), inbound
//! ones to a port that Millrace reserves. So only the proxy can answer, and it knows a canary by its
//! destination alone: it answers, counts it apart and forwards nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::pod::{Family, PodUid};

/// Where IPv4 canaries go (RFC 5737).
pub const CANARY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 15);
/// Where IPv6 canaries go (RFC 6666).
pub const CANARY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0xf);
/// Port of a canary, inbound and outbound.
pub const CANARY_PORT: u16 = 15009;
/// The name that a canary asks for; the answer is the address above.
pub const CANARY_NAME: &str = "canary.millrace.invalid";
/// Longest answer to a canary connection.
pub const CANARY_ANSWER: usize = 64;

/// Where outbound canaries of a family go.
pub fn canary_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => CANARY_V4.into(),
        Family::V6 => CANARY_V6.into(),
    }
}

/// Whether an outbound connection to `address` is a canary.
pub fn is_canary(address: IpAddr) -> bool {
    address == IpAddr::V4(CANARY_V4) || address == IpAddr::V6(CANARY_V6)
}

/// What the proxy answers on behalf of a pod: a digest of its uid, so that the answer proves whose listener
/// took the canary and tells a stranger nothing.
pub fn canary_answer(uid: &PodUid) -> String {
    // FNV-1a; both ends may be of different builds, so no hasher of the standard library.
    let digest = uid.0.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("millrace-canary {digest:016x}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_pods_apart_and_fit() {
        let (a, b) = (canary_answer(&"a".into()), canary_answer(&"b".into()));
        assert_ne!(a, b);
        assert_eq!(a, "millrace-canary af63dc4c8601ec8c\n");
        assert!(a.len() <= CANARY_ANSWER);
        assert!(is_canary(canary_address(Family::V4)) && is_canary(canary_address(Family::V6)));
        assert!(!is_canary("10.96.0.10".parse().unwrap()));
    }
}
