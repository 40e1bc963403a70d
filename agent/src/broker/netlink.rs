//! As much of rtnetlink as two policy-routing objects and an address need: one request, one acknowledgement.
//!
//! Called by `routes.rs` on a thread that is inside a pod's namespace.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Request flags besides `NLM_F_REQUEST | NLM_F_ACK`.
pub(super) const CREATE_EXCLUSIVE: u16 = 0x400 | 0x200;
/// Creates or replaces.
pub(super) const CREATE_REPLACE: u16 = 0x400 | 0x100;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// A request under construction.
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Begins a message of `kind` whose fixed part is `body`.
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = flags | NLM_F_REQUEST | NLM_F_ACK;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    /// Appends a 32-bit attribute.
    pub(super) fn attribute(mut self, kind: u16, value: u32) -> Self {
        self.bytes.extend_from_slice(&8_u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Appends an attribute that is an IPv6 address.
    pub(super) fn address(mut self, kind: u16, address: Ipv6Addr) -> Self {
        self.bytes.extend_from_slice(&20_u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&address.octets());
        self
    }

    /// Sends the request and waits for the kernel's answer.
    pub(super) fn execute(mut self) -> io::Result<()> {
        let length = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let netlink: OwnedFd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        sendto(
            netlink.as_raw_fd(),
            &self.bytes,
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )?;
        let mut answer = [0_u8; 4096];
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        acknowledgement(&answer[..length])
    }
}

fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    let malformed = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "netlink answer is no acknowledgement",
        )
    };
    let kind: [u8; 2] = answer
        .get(4..6)
        .and_then(|b| b.try_into().ok())
        .ok_or_else(malformed)?;
    let code: [u8; 4] = answer
        .get(HEADER..HEADER + 4)
        .and_then(|b| b.try_into().ok())
        .ok_or_else(malformed)?;
    if u16::from_ne_bytes(kind) != NLMSG_ERROR {
        return Err(malformed());
    }
    match i32::from_ne_bytes(code) {
        0 => Ok(()),
        negative => Err(io::Error::from_raw_os_error(negative.wrapping_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_kernel_answers_is_an_error_or_none() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![0; HEADER];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            acknowledgement(&bytes)
        };
        assert!(answer(NLMSG_ERROR, 0).is_ok());
        let exists = answer(NLMSG_ERROR, -libc::EEXIST).expect_err("refused");
        assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
        for code in [i32::MIN, i32::MAX, -1] {
            answer(NLMSG_ERROR, code).expect_err("refused");
        }
        answer(3, 0).expect_err("no acknowledgement");
        for cut in 0..HEADER + 4 {
            acknowledgement(&vec![2; cut]).expect_err("cut off");
        }
    }
}
