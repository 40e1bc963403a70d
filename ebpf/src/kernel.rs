//! What the programs read of the kernel's own structures, by offsets that the agent found in its BTF.
//!
//! Addresses are numbers here: a socket that is gone is read as anything or not at all, so its cookie is
//! compared before anything else of it counts.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use millrace_ebpf_abi::{
    AccelAnswer, AccelSocket, AccelSplice, AccelTraffic, AccelWay, EndFacts, KernelLayout, Pipe,
    Sight, SpliceSight, experiment, priority,
};

use crate::ctx::Sock;

/// The offsets; the agent writes them into the object.
#[unsafe(no_mangle)]
pub static LAYOUT: KernelLayout = KernelLayout::UNKNOWN;

/// Rules that an experiment switches off; the agent writes 0.
#[unsafe(no_mangle)]
pub static EXPERIMENT: u32 = 0;

/// One offset. Volatile: the compiler knows only the value that the object begins with.
macro_rules! at {
    ($field:ident) => {
        // SAFETY: a static of this object.
        unsafe { (&raw const LAYOUT.$field).read_volatile() }
    };
}

/// Rules that are switched off.
#[inline(always)]
pub fn experiment() -> u32 {
    // SAFETY: a static of this object.
    unsafe { (&raw const EXPERIMENT).read_volatile() }
}

/// Whether the offsets are known.
#[inline(always)]
pub fn is_known() -> bool {
    at!(known) == 1
}

/// A `struct sock` of the kernel's.
#[derive(Clone, Copy)]
pub struct KernelSock {
    address: u64,
}

impl KernelSock {
    /// The socket at an address.
    #[inline(always)]
    pub fn at(address: u64) -> Self {
        Self { address }
    }

    /// Address of the number that says whether its protocol is short of memory; a socket in a map has a copy
    /// of the protocol that shares it.
    #[inline(always)]
    pub fn pressure(self) -> Option<u64> {
        let prot: u64 = self.read(at!(prot))?;
        read(prot + u64::from(at!(memory_pressure)))
    }

    /// Its cookie.
    #[inline(always)]
    pub fn cookie(self) -> Option<u64> {
        self.read(at!(cookie))
    }

    /// How far it has written by TCP.
    #[inline(always)]
    pub fn write_seq(self) -> Option<u32> {
        self.read(at!(write_seq))
    }

    /// How far it has been read, of what came by TCP.
    #[inline(always)]
    fn copied_seq(self) -> Option<u32> {
        self.read(at!(copied_seq))
    }

    #[inline(always)]
    fn read<T>(self, offset: u32) -> Option<T> {
        read(self.address + u64::from(offset))
    }

    /// Whether nobody has it open any more, though the kernel may keep it until its FIN is answered: a proxy that
    /// has died.
    #[inline(always)]
    fn is_orphan(self) -> Option<bool> {
        let socket: u64 = self.read(at!(socket))?;
        Some(socket == 0)
    }

    /// Redirected bytes that wait here.
    #[inline(always)]
    pub fn redirected_unread(self) -> Option<u32> {
        read(self.psock()? + u64::from(at!(psock_unread)))
    }

    /// References to its psock: the map's, and one of each `sendmsg` and `recvmsg` for as long as it lasts
    /// (`tcp_bpf_sendmsg`), so also while a message is on its way to another socket. 0 of a socket that has none.
    #[inline(always)]
    pub fn psock_refs(self) -> Option<u32> {
        match self.psock()? {
            0 => Some(0),
            psock => read(psock + u64::from(at!(psock_refs))),
        }
    }

    /// The psock is behind a pointer whose low bits are flags (include/linux/skmsg.h, `SK_USER_DATA_PTRMASK`).
    #[inline(always)]
    fn psock(self) -> Option<u64> {
        let pointer: u64 = self.read(at!(user_data))?;
        Some(pointer & !7)
    }
}

#[inline(always)]
fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper answers an error where nothing can be read.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// What decides over the promotion of an end; what cannot be read refuses it.
#[inline(always)]
pub fn end_facts(sock: Sock, address: u64) -> Option<EndFacts> {
    let kernel = KernelSock::at(address);
    let socket: u64 = kernel.read(at!(socket))?;
    let file: u64 = if socket == 0 {
        0
    } else {
        read(socket + u64::from(at!(file)))?
    };
    let file_flags: u32 = if file == 0 {
        0
    } else {
        read(file + u64::from(at!(file_flags)))?
    };
    let net: u64 = kernel.read(at!(net))?;
    let filter: u64 = kernel.read(at!(filter))?;
    let flags: u32 = kernel.read(at!(flags))?;
    let inq: u8 = kernel.read(at!(inq))?;
    let mptcp: u8 = kernel.read(at!(mptcp))?;
    Some(EndFacts {
        cookie: kernel.cookie()?,
        netns_cookie: read(net + u64::from(at!(net_cookie)))?,
        state: sock.state(),
        mark: sock.mark(),
        has_file: file != 0,
        file_flags,
        rcvlowat: kernel.read(at!(rcvlowat))?,
        peek_off: kernel.read(at!(peek_off))?,
        tsflags: kernel.read(at!(tsflags))?,
        excluded_flags: flags & at!(excluded_flags),
        has_filter: filter != 0,
        inq: u32::from(inq) & at!(inq_mask) != 0,
        mptcp: mptcp != 0,
    })
}

/// Both ends, as the sender of a message sees them; `None` if the other end is gone. Every look costs, so that
/// nothing is read that cannot matter.
#[inline(always)]
pub fn sight(sock: Sock, state: &AccelSocket) -> Option<Sight> {
    let (own, peer) = (KernelSock::at(state.own), KernelSock::at(state.peer));
    if peer.cookie()? != state.peer_cookie {
        return None;
    }
    // The storage of a socket lives as long as the socket, whose cookie was just seen.
    let peer_flags: u32 = read(state.peer_state + AccelSocket::FLAGS_AT)?;
    let peer_priority = if peer_flags & AccelSocket::PROXY == 0 {
        priority::NORMAL
    } else {
        peer.read(at!(priority))?
    };
    Some(Sight {
        peer_alive: true,
        peer_flags,
        peer_priority,
        peer_copied_seq: peer.copied_seq()?,
        peer_unread: peer.read(at!(rmem_alloc))?,
        peer_rcvbuf: peer.read(at!(rcvbuf))?,
        state: sock.state(),
        write_seq: own.write_seq()?,
        armed_from: state.armed_from,
        unread_messages: state.unread_messages,
        pressure: read::<u64>(state.pressure)? != 0,
    })
}

/// The way from one promoted connection's application to another's, through the proxy.
#[inline(always)]
pub fn pipe(
    (from, from_proxy): (&AccelSocket, &AccelSocket),
    (to_proxy, to): (&AccelSocket, &AccelSocket),
) -> Option<Pipe> {
    let [from, from_proxy, to_proxy, to] =
        [from.own, from_proxy.own, to_proxy.own, to.own].map(KernelSock::at);
    // What the sender has written is read first: later messages are not those that are found to have arrived.
    let write_seq = from.write_seq()?;
    Some(Pipe {
        write_seq,
        refs: from.psock_refs()?,
        proxy_copied_seq: from_proxy.copied_seq()?,
        proxy_unread: from_proxy.redirected_unread()?,
        proxy_write_seq: to_proxy.write_seq()?,
        copied_seq: to.copied_seq()?,
    })
}

/// A spliced application and the other one, as the sender of a message sees them; `None` if an end is gone.
#[inline(always)]
pub fn splice_sight(
    (sock, state): (Sock, &AccelSocket),
    splice: &AccelSplice,
    size: u32,
    settings: [Option<millrace_ebpf_abi::Acceleration>; 2],
) -> Option<SpliceSight> {
    let proxy = KernelSock::at(state.peer);
    let (to_proxy, to) = (
        KernelSock::at(splice.to_proxy),
        KernelSock::at(splice.to_own),
    );
    if proxy.cookie()? != state.peer_cookie
        || to_proxy.cookie()? != splice.to_proxy_cookie
        || to.cookie()? != splice.to
        || proxy.is_orphan()?
        || to_proxy.is_orphan()?
    {
        return None;
    }
    let is_unbroken = splice.at == state.sent.redirected_bytes
        && splice.seq == KernelSock::at(state.own).write_seq()?
        && splice.proxy_seq == to_proxy.write_seq()?;
    Some(SpliceSight {
        size,
        settings,
        priorities: [proxy.read(at!(priority))?, to_proxy.read(at!(priority))?],
        flags: [state.flags, read(splice.to_state + AccelSocket::FLAGS_AT)?],
        state: sock.state(),
        is_unbroken: is_unbroken || experiment() & experiment::SPLICE_ANYHOW != 0,
        peer_unread: to.read(at!(rmem_alloc))?,
        peer_rcvbuf: to.read(at!(rcvbuf))?,
        unread_messages: splice.unread_messages,
        pressure: read::<u64>(state.pressure)? != 0,
    })
}

/// Whether a message may go by the map; `None` of a socket that is no end of a promoted connection.
#[inline(always)]
pub fn way(state: &AccelSocket, is_on: bool) -> Option<AccelWay> {
    if state.flags & (AccelSocket::READY | AccelSocket::LEFT | AccelSocket::BUSY) == 0 {
        return None;
    }
    let mut way = AccelWay {
        flags: state.flags,
        unread_redirected: 0,
        unread_tcp: 0,
        obstacles: if is_on { 0 } else { AccelWay::OFF },
    };
    let peer = KernelSock::at(state.peer);
    if state.flags & AccelSocket::READY == 0 || peer.cookie() != Some(state.peer_cookie) {
        return Some(way);
    }
    let peer_flags: u32 = read(state.peer_state + AccelSocket::FLAGS_AT)?;
    if (state.flags | peer_flags) & AccelSocket::OPTION != 0 {
        way.obstacles |= AccelWay::OPTION;
    }
    if read::<u64>(state.pressure)? != 0 {
        way.obstacles |= AccelWay::PRESSURE;
    }
    way.unread_redirected = peer.redirected_unread()?;
    let written = KernelSock::at(state.own).write_seq()?;
    way.unread_tcp = written.wrapping_sub(peer.copied_seq()?);
    Some(way)
}

/// How an end of a promoted connection is; of one whose other end is gone, what it sent itself.
#[inline(always)]
pub fn answer(state: &AccelSocket) -> Option<AccelAnswer> {
    if state.flags & (AccelSocket::READY | AccelSocket::LEFT | AccelSocket::BUSY) == 0 {
        return None;
    }
    let peer = KernelSock::at(state.peer);
    let mut answer = AccelAnswer {
        sent: state.sent,
        received: AccelTraffic::default(),
        unread_redirected: 0,
        unread_tcp: 0,
        flags: state.flags,
        reserved: 0,
    };
    if state.peer != 0 && peer.cookie() == Some(state.peer_cookie) {
        answer.received = read(state.peer_state + AccelSocket::SENT_AT)?;
        if state.flags & AccelSocket::READY != 0 {
            answer.unread_redirected = peer.redirected_unread()?;
        }
        let written = KernelSock::at(state.own).write_seq()?;
        answer.unread_tcp = written.wrapping_sub(peer.copied_seq()?);
    }
    Some(answer)
}
