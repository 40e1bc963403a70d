//! Whether the rules of a namespace may have changed, without reading them.
//!
//! nftables counts its changes, by whatever tool, iptables' nft variant included: asking for the number costs
//! one message, reading rules a process. Legacy iptables counts nothing; it is known only which tables exist.
//! Devices count too: one that is new is not among those on which the guard holds packet sockets.
//!
//! The kernel also says so by itself when rules or devices change ([`Generations::notices`]), so that nothing at all
//! is asked of a namespace in which nothing happens.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    socket,
};

use crate::broker::guard;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET: u16 = 10 << 8 | 16;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`.
const NEW: u16 = 10 << 8 | 15;
const NLM_F_REQUEST: u16 = 1;
/// Groups that hear of changes: `NFNLGRP_NFTABLES`, and `RTNLGRP_LINK`.
const OF_RULES: u32 = 1 << 6;
const OF_DEVICES: u32 = 1;
/// Most notices that are taken at once; more are left for the next time.
const NOTICES: usize = 1024;
/// Header, then `struct nfgenmsg`, then attributes: length, kind, value.
const REQUEST: usize = 16 + 4;
/// Most that is read of a file: hundreds of devices.
const LONGEST: usize = 64 << 10;
/// `NFTA_GEN_ID`, the first attribute of the answer.
const ID: u16 = 1;

/// What is known of a namespace's rules without reading them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// nftables' own count of changes.
    nft: Option<u32>,
    /// Names of legacy tables.
    legacy: String,
    /// Names of devices.
    devices: Vec<String>,
}

impl Generation {
    /// Whether there are tables whose changes nobody counts.
    pub fn has_uncounted(&self) -> bool {
        self.nft.is_none() || !self.legacy.is_empty()
    }
}

/// Asks about the namespace it was made in.
#[derive(Debug)]
pub struct Generations {
    netlink: Option<OwnedFd>,
    legacy: Vec<File>,
    devices: Option<File>,
    notices: Option<[OwnedFd; 2]>,
}

impl Generations {
    /// For the calling thread's namespace.
    pub fn open() -> Self {
        // Before anything is asked, so that no change falls in between.
        let notices = listen(SockProtocol::NetlinkNetFilter, OF_RULES)
            .and_then(|rules| Ok([rules, listen(SockProtocol::NetlinkRoute, OF_DEVICES)?]));
        let netlink = talk(SockProtocol::NetlinkNetFilter);
        let names = ["ip_tables_names", "ip6_tables_names"];
        let legacy = names
            .iter()
            .filter_map(|name| File::open(format!("/proc/thread-self/net/{name}")).ok());
        Self {
            netlink: netlink.ok(),
            legacy: legacy.collect(),
            devices: File::open("/proc/thread-self/net/dev").ok(),
            notices: notices.ok(),
        }
    }

    /// Descriptors of which one becomes readable when rules or devices change, or fails when there were too many
    /// changes to tell; `None` where the kernel does not say. Legacy tables change in silence.
    pub fn notices(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.notices
            .as_ref()
            .map(|notices| notices.each_ref().map(AsFd::as_fd))
    }

    /// Takes the notices that there are. What they are about has happened before [`Self::now`] is asked next.
    pub fn take_notices(&self) {
        let mut notice = [0_u8; 1];
        for notices in self.notices.iter().flatten() {
            for _ in 0..NOTICES {
                let taken = recv(notices.as_raw_fd(), &mut notice, MsgFlags::empty());
                // What they say is asked for anyway, and also where some were lost.
                if taken == Err(Errno::EAGAIN) {
                    break;
                }
            }
        }
    }

    /// The generation now.
    pub fn now(&self) -> Generation {
        let mut legacy = String::new();
        for names in &self.legacy {
            legacy.push_str(&read(names));
        }
        Generation {
            nft: self.netlink.as_ref().and_then(|netlink| ask(netlink).ok()),
            legacy,
            devices: guard::names(&self.devices.as_ref().map(read).unwrap_or_default()),
        }
    }
}

fn talk(protocol: SockProtocol) -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        protocol,
    )
}

fn listen(protocol: SockProtocol, groups: u32) -> nix::Result<OwnedFd> {
    let netlink = talk(protocol)?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(netlink)
}

/// A file of `/proc` from its beginning, as far as it can be read and is of a sensible length.
fn read(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() < LONGEST {
        match file.read_at(&mut buffer, bytes.len() as u64) {
            Ok(length @ 1..) => bytes.extend_from_slice(&buffer[..length]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The kernel answers within the call that asks.
fn ask(netlink: &OwnedFd) -> io::Result<u32> {
    let mut request = [0_u8; REQUEST];
    request[0..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&GET.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    sendto(
        netlink.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0_u8; 256];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    id_of(&answer[..length])
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no generation"))
}

fn id_of(answer: &[u8]) -> Option<u32> {
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let is_answer = half(4)? == NEW && half(REQUEST + 2)? == ID;
    let value = answer.get(REQUEST + 4..REQUEST + 8)?.try_into().ok()?;
    is_answer.then(|| u32::from_be_bytes(value))
}
