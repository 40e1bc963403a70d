//! The sockets that a proxy without a broker listens on, and those that the epoch before it had.
//!
//! Of every socket a duplicate stays here for as long as the proxy listens on it, so that the next epoch
//! can be given it (`claim`): who waits in its backlog waits on, whichever process ends. Whatever binds a
//! port asks here first whether the epoch before had it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use socket2::{SockRef, Type};

/// What a socket listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Connections to this address.
    Tcp(SocketAddr),
    /// Datagrams to this address.
    Udp(SocketAddr),
    /// Epochs that want to follow this one.
    Claims,
    /// Connections of the epoch before.
    Takeover,
}

impl Place {
    /// Whether a socket is what it is said to be.
    fn is_of(self, socket: &OwnedFd) -> bool {
        let socket = SockRef::from(socket);
        let bound = |address: SocketAddr, kind: Type| {
            let local = socket.local_addr().ok().and_then(|local| local.as_socket());
            local == Some(address) && socket.r#type().is_ok_and(|actual| actual == kind)
        };
        let listens = || socket.is_listener().unwrap_or_default();
        match self {
            Self::Tcp(address) => bound(address, Type::STREAM) && listens(),
            Self::Udp(address) => bound(address, Type::DGRAM),
            Self::Claims | Self::Takeover => {
                let unix = socket.local_addr().is_ok_and(|local| local.is_unix());
                unix && listens()
            }
        }
    }

    /// Whether clients of the proxy reach it there.
    fn is_port(self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Udp(_))
    }
}

type Sockets = BTreeMap<Place, Vec<OwnedFd>>;

/// The sockets of one epoch. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Estate(Arc<Mutex<Holdings>>);

#[derive(Debug, Default)]
struct Holdings {
    inherited: Sockets,
    held: Sockets,
    /// Whether any port of the epoch before is this one's too.
    shares: bool,
}

/// What became of the ports of the epoch before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// It had none.
    Nothing,
    /// This epoch listens on some of them.
    Shared,
    /// This epoch listens on none of them.
    Foreign,
}

impl Estate {
    /// With the sockets of the epoch before. One that is not what it is said to be is closed.
    pub fn of(sockets: impl IntoIterator<Item = (Place, OwnedFd)>) -> Self {
        let estate = Self::default();
        for (place, socket) in sockets {
            if place.is_of(&socket) {
                let mut holdings = estate.0.lock();
                holdings.inherited.entry(place).or_default().push(socket);
            } else {
                tracing::warn!(?place, "the epoch before gave another socket than it said");
            }
        }
        estate
    }

    /// The sockets with which the epoch before listens there; each is given out once.
    pub fn take(&self, place: Place) -> Vec<OwnedFd> {
        let mut holdings = self.0.lock();
        let sockets = holdings.inherited.remove(&place).unwrap_or_default();
        holdings.shares |= place.is_port() && !sockets.is_empty();
        sockets
    }

    /// Keeps duplicates of the sockets with which this epoch listens there. A port that the kernel chose
    /// is not kept: the next epoch has another one.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn hold<F: AsFd>(&self, place: Place, sockets: &[F]) -> io::Result<()> {
        if matches!(place, Place::Tcp(address) | Place::Udp(address) if address.port() == 0) {
            return Ok(());
        }
        let copies = sockets.iter().map(|s| s.as_fd().try_clone_to_owned());
        let copies = copies.collect::<io::Result<Vec<_>>>()?;
        self.0.lock().held.entry(place).or_default().extend(copies);
        Ok(())
    }

    /// This epoch does not listen there any more.
    pub fn release(&self, place: Place) {
        self.0.lock().held.remove(&place);
    }

    /// This epoch listens for no client any more.
    pub fn release_ports(&self) {
        self.0.lock().held.retain(|place, _| !place.is_port());
    }

    /// This epoch listens for nobody any more.
    pub fn release_all(&self) {
        self.0.lock().held.clear();
    }

    /// Closes what the epoch before had and this one did not take.
    pub fn settle(&self) -> Inherited {
        let mut holdings = self.0.lock();
        let left = std::mem::take(&mut holdings.inherited);
        if holdings.shares {
            Inherited::Shared
        } else if left.keys().any(|place| place.is_port()) {
            Inherited::Foreign
        } else {
            Inherited::Nothing
        }
    }

    /// Duplicates of everything that this epoch listens on.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn copies(&self) -> io::Result<Vec<(Place, OwnedFd)>> {
        let holdings = self.0.lock();
        let all = holdings.held.iter();
        let all = all.flat_map(|(place, sockets)| sockets.iter().map(move |s| (*place, s)));
        all.map(|(place, socket)| Ok((place, socket.try_clone()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
