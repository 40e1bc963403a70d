//! Connections that came into a pod before its guard did: their answers pass, as those of later ones do.
//!
//! Conntrack has not seen them, so the guard could not tell them from what the pod opened itself. The kernel's
//! table of sockets can: the pod listens on their port.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A listening socket's `st` in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// More than the kernel gives at once.
const PIECE: usize = 64 * 1024;

/// A connection that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Older {
    pub(super) remote: IpAddr,
    pub(super) remote_port: u16,
    pub(super) local_port: u16,
}

/// Those of the calling thread's namespace.
pub(super) fn came_in() -> Vec<Older> {
    among(&["tcp", "tcp6"].map(table))
}

/// Read in few pieces: for each the kernel searches all of the host's connections for the namespace's.
fn table(name: &str) -> String {
    let mut text = String::with_capacity(PIECE);
    let read = File::open(format!("/proc/thread-self/net/{name}"))
        .and_then(|mut table| table.read_to_string(&mut text));
    if let Err(error) = read {
        tracing::debug!(name, %error, "table of sockets is not read");
    }
    text
}

fn among(tables: &[String]) -> Vec<Older> {
    let sockets: Vec<Socket<'_>> = tables
        .iter()
        .flat_map(|table| table.lines().filter_map(Socket::read))
        .collect();
    let listening: BTreeSet<u16> = sockets
        .iter()
        .filter(|socket| socket.state == LISTEN)
        .map(|socket| socket.local.1)
        .collect();
    sockets
        .iter()
        .filter(|socket| socket.state != LISTEN && listening.contains(&socket.local.1))
        .filter(|socket| socket.remote.1 != 0 && !socket.remote.0.is_loopback())
        .map(|socket| Older {
            remote: socket.remote.0,
            remote_port: socket.remote.1,
            local_port: socket.local.1,
        })
        .collect()
}

/// A line of `/proc/net/tcp` or `tcp6`.
struct Socket<'a> {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    state: &'a str,
}

impl<'a> Socket<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        Some(Self {
            local: address(words.next()?)?,
            remote: address(words.next()?)?,
            state: words.next()?,
        })
    }
}

/// `0100007F:1F90`: words of the address in the machine's byte order, each as eight digits.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = if address.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for at in 0..4 {
            bytes
                .get_mut(at * 4..at * 4 + 4)?
                .copy_from_slice(&word(at)?);
        }
        Ipv6Addr::from(bytes).to_canonical()
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 00000000:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0501F40A:2382 0601F40A:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0501F40A:D432 0601F40A:2382 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0100007F:2382 0100007F:D433 01 00000000:00000000 00:00000000 00000000     0        0 4 1
   4: nonsense";

    const TCP6: &str =
        "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:2383 00000000000000000000000000000000:0000 0A 0:0
   1: 0000000000000000FFFF00000501F40A:2383 0000000000000000FFFF00000601F40A:D434 03 0:0
   2: 000000FD000000000000000005000000:2383 000000FD000000000000000006000000:D435 08 0:0";

    #[test]
    fn what_came_to_a_port_that_is_listened_on_is_found() {
        let found = among(&[TCP.to_owned(), TCP6.to_owned()]);
        let older = |remote: &str, remote_port, local_port| Older {
            remote: remote.parse().expect("an address"),
            remote_port,
            local_port,
        };
        let wanted = [
            older("10.244.1.6", 54321, 9090),
            older("10.244.1.6", 54324, 9091),
            older("fd00::6", 54325, 9091),
        ];
        assert_eq!(found, wanted);
    }
}
