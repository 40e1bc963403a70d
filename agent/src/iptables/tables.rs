//! Which tables of netfilter exist in the calling thread's namespace, asked of the kernel itself: most pods
//! have none, and finding that out by running tools took most of the time of an enrolment.

use std::io;
use std::os::fd::AsRawFd as _;

use millrace_runtime::handoff::Family;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::rules::TABLES;

/// Every table that iptables can have.
const OF_IPTABLES: [&str; 5] = ["nat", "raw", "mangle", "filter", "security"];

/// Whether rules of ours may be there: a table that we use exists in either form, or the kernel does not
/// say.
pub(super) fn may_exist(family: Family) -> bool {
    has_legacy(family) || any_nft(family, &TABLES)
}

/// Whether the nft variant has anything to list.
pub(super) fn may_be_listed(family: Family) -> bool {
    any_nft(family, &OF_IPTABLES)
}

fn any_nft(family: Family, tables: &[&str]) -> bool {
    let family = match family {
        Family::V4 => libc::NFPROTO_IPV4,
        Family::V6 => libc::NFPROTO_IPV6,
    };
    let exists = |table: &&str| has_table(family, table).unwrap_or(true);
    tables.iter().any(exists)
}

/// Whether tables of the legacy form exist, of any family.
pub fn has_any_legacy() -> bool {
    [Family::V4, Family::V6].into_iter().any(has_legacy)
}

/// Whether tables of the legacy form exist.
pub(super) fn has_legacy(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty())
}

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE`, and what answers it (`linux/netfilter/nf_tables.h`).
const GET_TABLE: u16 = (10 << 8) | 1;
const NEW_TABLE: u16 = 10 << 8;
const NFTA_TABLE_NAME: u16 = 1;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// Whether a table of nft's exists; `family` is an `NFPROTO_`.
///
/// # Errors
/// When the kernel does not say.
pub fn has_table(family: libc::c_int, table: &str) -> io::Result<bool> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let request = question(family, table)?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut answer = [0_u8; 4096];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    exists(&answer[..length])
}

/// A `nlmsghdr`, a `nfgenmsg` with the family, and the table's name.
fn question(family: libc::c_int, table: &str) -> io::Result<Vec<u8>> {
    let mut name = table.as_bytes().to_vec();
    name.push(0);
    let attribute = u16::try_from(4 + name.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; 4];
    bytes.extend(GET_TABLE.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([u8::try_from(family).map_err(io::Error::other)?, 0, 0, 0]);
    bytes.extend(attribute.to_ne_bytes());
    bytes.extend(NFTA_TABLE_NAME.to_ne_bytes());
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    Ok(bytes)
}

fn exists(answer: &[u8]) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no answer about a table");
    let kind: [u8; 2] = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(malformed)?;
    match u16::from_ne_bytes(kind) {
        NEW_TABLE => Ok(true),
        NLMSG_ERROR => {
            let code: [u8; 4] = answer
                .get(HEADER..HEADER + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or_else(malformed)?;
            match i32::from_ne_bytes(code).wrapping_neg() {
                libc::ENOENT => Ok(false),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use millrace_testkit::{Cluster, require};

    use super::*;

    #[test]
    fn tables_are_seen_when_they_are_there() -> anyhow::Result<()> {
        require!(cluster);
        require!(tool "iptables-nft");
        require!(tool "ip6tables-nft");
        let cluster = Cluster::new()?;
        let node = cluster.node("n1")?;
        let pod = node.pod("pod")?;
        let seen = || pod.run(|| Ok([Family::V4, Family::V6].map(may_exist)));
        assert_eq!(seen()?, [false, false]);
        for (tool, expected) in [
            ("ip6tables-nft", [false, true]),
            ("iptables-nft", [true, true]),
        ] {
            let mut add = Command::new(tool);
            add.args(["-t", "raw", "-N", "FOREIGN"]);
            pod.stdout(add)?;
            assert_eq!(seen()?, expected, "{tool}");
        }
        Ok(())
    }

    #[test]
    fn what_the_kernel_does_not_tell_may_be_there() {
        let refused = [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let error = |code: i32| [&refused[..], &(-code).to_ne_bytes()].concat();
        assert!(!exists(&error(libc::ENOENT)).unwrap());
        assert!(exists(&error(libc::EPERM)).is_err());
        assert!(exists(&refused).is_err() && exists(&[]).is_err());
    }
}
