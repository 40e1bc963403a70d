//! The end of a connection that is, or was, promoted.
//!
//! A `recv` of the application's that began before the promotion knows nothing of the map and would take a
//! FIN for the end while redirected bytes wait. So no FIN is sent before the application has read the first
//! of them; a task of its own waits for that with a duplicate of the descriptor.

use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::sockopt;
use super::way::STALLED;
use super::{Lane, sample};

/// Pause before the kernel is asked again.
const PAUSE: Duration = Duration::from_millis(1);

impl Lane {
    /// Sends FIN in its own time; false where that may be done at once.
    pub fn ends_later(&self, tcp: &TcpStream) -> bool {
        self.after_the_first(tcp, |fd| {
            if let Err(error) = SockRef::from(&fd).shutdown(Shutdown::Write) {
                tracing::trace!(%error, "the connection has ended already");
            }
        })
    }

    /// The connection is about to be closed: with a reset where bytes are unread, as TCP does, which
    /// does not see those that were redirected.
    pub fn close(&self, tcp: &TcpStream) {
        if self.entry.borrow().is_none() {
            return;
        }
        self.after_the_first(tcp, drop);
        let Some(entry) = self.entry.take() else {
            return;
        };
        if !entry.is_refused() {
            let mut byte = [MaybeUninit::uninit()];
            let socket = SockRef::from(tcp);
            if matches!(socket.peek(&mut byte), Ok(1..))
                && let Err(error) = tcp.set_zero_linger()
            {
                tracing::trace!(%error, "cannot set SO_LINGER");
            }
            self.accelerator.stats().closed(&sample(tcp, &entry));
        }
        self.accelerator.forget(entry.id());
    }

    /// Does this when the application has read what was redirected, or has had the time to; false where it has
    /// shown that it reads.
    fn after_the_first(
        &self,
        tcp: &TcpStream,
        then: impl FnOnce(OwnedFd) + Send + 'static,
    ) -> bool {
        if !self.is_promoted() || !self.redirects.get() || self.proved.get() {
            return false;
        }
        let way = sockopt::way(tcp.as_fd());
        self.look(&way);
        if self.proved.get() {
            return false;
        }
        let (Ok(runtime), Ok(fd)) = (
            tokio::runtime::Handle::try_current(),
            tcp.as_fd().try_clone_to_owned(),
        ) else {
            return false;
        };
        runtime.spawn(async move {
            let until = Instant::now() + STALLED;
            while sockopt::way(fd.as_fd()).unread_redirected > 0 && Instant::now() < until {
                tokio::time::sleep(PAUSE).await;
            }
            then(fd);
        });
        true
    }
}
