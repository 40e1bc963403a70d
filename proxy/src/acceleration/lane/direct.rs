//! A lane whose application sends straight into another pod: whether it may, opening and closing that way, and what
//! went it.

use std::time::Duration;

use millrace_runtime::handoff::accel::SpliceEnd;
use millrace_runtime::handoff::{Acceleration, Refusal};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::super::Stats;
use super::super::entry::Phase;
use super::super::sockopt::{self, Mark};
use super::{Carries, Lane};

/// What an application sent past the proxy since it was asked last.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// So many bytes.
    pub bytes: u64,
    /// Time since the last of all.
    pub quiet: Duration,
}

impl Lane {
    /// Whether the connection may be spliced: promoted, of a pod whose operator vouches, and nothing but bytes.
    pub fn may_be_direct(&self) -> bool {
        self.carries.get() == Carries::Bytes
            && self.setting == Acceleration::On
            && self
                .entry
                .borrow()
                .as_ref()
                .is_some_and(|entry| entry.phase() == Phase::Promoted && entry.returned().is_none())
    }

    /// Whether the proxy has opened the way past itself.
    pub fn is_direct(&self) -> bool {
        self.mark.get() == Mark::Direct
    }

    /// Asks for both to be spliced; nothing may be read or written from here on until it is answered.
    pub fn ask_to_splice(
        &self,
        tcp: &TcpStream,
        (other, other_tcp): (&Self, &TcpStream),
    ) -> Option<oneshot::Receiver<Result<(), Refusal>>> {
        self.set_mark(tcp, Mark::Normal).ok()?;
        other.set_mark(other_tcp, Mark::Normal).ok()?;
        let ends = [self.end(tcp)?, other.end(other_tcp)?];
        self.accelerator.ask_to_splice(ends)
    }

    fn end(&self, tcp: &TcpStream) -> Option<SpliceEnd> {
        Some(SpliceEnd {
            uid: self.pod.spec.uid.clone(),
            cookie: SockRef::from(tcp).cookie().ok()?,
        })
    }

    /// Opens the way; it is open when the other lane's is, too.
    pub fn open(&self, tcp: &TcpStream) {
        if let Err(error) = self.set_mark(tcp, Mark::Direct) {
            tracing::debug!(%error, "cannot mark a connection, it is not spliced");
            return;
        }
        // No FIN before the application has read what comes past the proxy.
        self.redirects.set(true);
        self.proved.set(false);
        // The kernel forgets what it counted of an application that has been out of the map for long.
        let now = sockopt::spliced(tcp).unwrap_or_default();
        let counted = self.moved.get().filter(|before| before.bytes <= now.bytes);
        self.moved.set(Some(counted.unwrap_or_default()));
        if let Some(entry) = &*self.entry.borrow() {
            entry.set_spliced(true);
        }
    }

    /// Closes the way: the application's next message comes to the proxy.
    pub fn close_way(&self, tcp: &TcpStream) {
        if self.is_direct()
            && let Err(error) = self.set_mark(tcp, Mark::Normal)
        {
            tracing::debug!(%error, "cannot mark a connection");
        }
        if let Some(entry) = &*self.entry.borrow() {
            entry.set_spliced(false);
        }
    }

    /// What the application sent past the proxy since this was asked last; `None` where it never did.
    pub fn moved(&self, tcp: &TcpStream) -> Option<Moved> {
        let before = self.moved.get()?;
        let now = sockopt::spliced(tcp)?;
        self.moved.set(Some(now));
        let bytes = now.bytes.saturating_sub(before.bytes);
        let messages = now.messages.saturating_sub(before.messages);
        self.stats().moved(messages, bytes);
        if let Some(entry) = &*self.entry.borrow() {
            entry.set_moved(now);
        }
        Some(Moved {
            bytes,
            quiet: now.quiet,
        })
    }

    /// The process's counters.
    pub fn stats(&self) -> &Stats {
        self.accelerator.stats()
    }
}
