//! Whether the rules of a namespace may have changed, without reading them.
//!
//! nftables counts its changes, by whatever tool, iptables' nft variant included: asking for the number costs
//! one message, reading rules a process. Legacy iptables counts nothing; it is known only which tables exist.
//! Devices count too: one that is new is not among those on which the guard holds packet sockets.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::broker::guard;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET: u16 = 10 << 8 | 16;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`.
const NEW: u16 = 10 << 8 | 15;
const NLM_F_REQUEST: u16 = 1;
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
}

impl Generations {
    /// For the calling thread's namespace.
    pub fn open() -> Self {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        );
        let names = ["ip_tables_names", "ip6_tables_names"];
        let legacy = names
            .iter()
            .filter_map(|name| File::open(format!("/proc/thread-self/net/{name}")).ok());
        Self {
            netlink: netlink.ok(),
            legacy: legacy.collect(),
            devices: File::open("/proc/thread-self/net/dev").ok(),
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
