//! What the kernel programs tell of a promoted connection, and what the proxy tells them.

use std::io;
use std::os::fd::AsFd;

use millrace_runtime::handoff::accel::{
    AccelSpliced, AccelState, AccelWay, Membership, PRIORITY_DIRECT, PRIORITY_FORCED,
    PRIORITY_LEAVING, PRIORITY_NORMAL, PRIORITY_OUT, SOCKOPT_LEVEL, SOCKOPT_SPLICED, SOCKOPT_STATE,
    SOCKOPT_WAY,
};
use nix::sys::socket::{GetSockOpt, setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// The value of `SO_PRIORITY`, which the kernel programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mark {
    Normal,
    Leaving,
    Out,
    Forced,
    Direct,
}

impl Mark {
    /// Marks the proxy's end.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub(super) fn set(self, tcp: &TcpStream) -> io::Result<()> {
        let priority = match self {
            Self::Normal => PRIORITY_NORMAL,
            Self::Leaving => PRIORITY_LEAVING,
            Self::Out => PRIORITY_OUT,
            Self::Forced => PRIORITY_FORCED,
            Self::Direct => PRIORITY_DIRECT,
        };
        Ok(setsockopt(tcp, sockopt::Priority, &priority.cast_signed())?)
    }
}

/// Answers the kernel's [`AccelState`].
#[derive(Clone, Copy, Debug)]
struct State;

nix::getsockopt_impl!(
    State,
    SOCKOPT_LEVEL,
    SOCKOPT_STATE,
    [u8; AccelState::SIZE],
    sockopt::GetStruct<[u8; AccelState::SIZE]>
);

/// Answers the kernel's [`AccelWay`].
#[derive(Clone, Copy, Debug)]
struct Way;

nix::getsockopt_impl!(
    Way,
    SOCKOPT_LEVEL,
    SOCKOPT_WAY,
    [u8; AccelWay::SIZE],
    sockopt::GetStruct<[u8; AccelWay::SIZE]>
);

/// Answers the kernel's [`AccelSpliced`].
#[derive(Clone, Copy, Debug)]
struct Spliced;

nix::getsockopt_impl!(
    Spliced,
    SOCKOPT_LEVEL,
    SOCKOPT_SPLICED,
    [u8; AccelSpliced::SIZE],
    sockopt::GetStruct<[u8; AccelSpliced::SIZE]>
);

/// What the application sent straight into another pod; `None` of a connection that never was spliced.
pub(super) fn spliced(tcp: &TcpStream) -> Option<AccelSpliced> {
    let bytes = Spliced.get(tcp).ok()?;
    Some(AccelSpliced::from_bytes(&bytes))
}

/// What the kernel counts; `None` of a connection that never was promoted.
pub(super) fn state(tcp: &TcpStream) -> Option<AccelState> {
    State
        .get(tcp)
        .ok()
        .map(|bytes| AccelState::from_bytes(&bytes))
}

/// What stands in the way of a message; of a connection that never was promoted, that it is out.
pub(super) fn way(tcp: impl AsFd) -> AccelWay {
    let way = Way.get(&tcp).map(|bytes| AccelWay::from_bytes(&bytes));
    way.unwrap_or_default()
}

/// Where the connection is once the programs are done with it, which takes microseconds. To be asked with a
/// mark that keeps them from beginning again.
pub(super) fn settled(tcp: &TcpStream) -> Membership {
    loop {
        match way(tcp).membership {
            Membership::Changing => std::thread::yield_now(),
            membership => return membership,
        }
    }
}
