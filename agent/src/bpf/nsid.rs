//! Numbers of network namespaces: what the promotion program names a pod's namespace by.
//!
//! A number belongs to the namespace of who asks and lasts as long as both; the agent assigns it from a
//! descriptor of the pod's namespace and enters nothing (rtnetlink `RTM_NEWNSID`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const NOT_ASSIGNED: i32 = -1;
const HEADER: usize = 16;
/// `struct rtgenmsg`, padded.
const BODY: usize = 4;

/// The number that `netns` has in the caller's own namespace, assigned now if there is none.
///
/// # Errors
///
/// If the kernel refuses; `CAP_NET_ADMIN` is needed.
pub fn nsid(netns: BorrowedFd<'_>) -> io::Result<u32> {
    let netlink: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    if let Some(known) = ask(&netlink, netns)? {
        return Ok(known);
    }
    let any = NOT_ASSIGNED.cast_unsigned();
    let request = message(
        RTM_NEWNSID,
        NLM_F_REQUEST | NLM_F_ACK,
        &[(NETNSA_FD, number(netns)), (NETNSA_NSID, any)],
    );
    match acknowledgement(&exchange(&netlink, &request)?) {
        // Somebody else was faster.
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    ask(&netlink, netns)?.ok_or_else(|| io::Error::other("the number just assigned is not known"))
}

fn ask(netlink: &OwnedFd, netns: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let request = message(RTM_GETNSID, NLM_F_REQUEST, &[(NETNSA_FD, number(netns))]);
    let answer = exchange(netlink, &request)?;
    if half(&answer, 4) != Some(RTM_NEWNSID) {
        acknowledgement(&answer)?;
        return Err(malformed());
    }
    let mut at = HEADER + BODY;
    while let (Some(length), Some(kind)) = (half(&answer, at), half(&answer, at + 2)) {
        if kind == NETNSA_NSID {
            let value = word(&answer, at + 4).ok_or_else(malformed)?;
            return Ok(u32::try_from(value).ok());
        }
        at += usize::from(length.max(4)).next_multiple_of(4);
    }
    Err(malformed())
}

fn exchange(netlink: &OwnedFd, request: &[u8]) -> io::Result<Vec<u8>> {
    sendto(
        netlink.as_raw_fd(),
        request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = vec![0_u8; 4096];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

fn message(kind: u16, flags: u16, attributes: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + BODY];
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    for (kind, value) in attributes {
        bytes.extend_from_slice(&8_u16.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&value.to_ne_bytes());
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    if half(answer, 4) != Some(NLMSG_ERROR) {
        return Err(malformed());
    }
    match word(answer, HEADER).ok_or_else(malformed)? {
        0 => Ok(()),
        negative => Err(io::Error::from_raw_os_error(-negative)),
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "netlink answer is malformed")
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}
