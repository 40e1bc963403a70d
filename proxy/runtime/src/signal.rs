//! Unix signals as values: the stop signals, reload and the child signal of a supervisor.
//!
//! Created once per process inside its runtime; whoever owns the process's life awaits
//! [`Signals::next`].

use std::fmt;
use std::io;

use tokio::signal::unix;

/// A signal that a Millrace process reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: reload or upgrade.
    Hangup,
}

impl Signal {
    /// Whether the process shall end.
    pub fn is_stop(self) -> bool {
        self != Self::Hangup
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        })
    }
}

/// Handlers for every signal of [`Signal`].
#[derive(Debug)]
pub struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    /// Installs the handlers. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(unix::SignalKind::interrupt())?,
            terminate: unix::signal(unix::SignalKind::terminate())?,
            hangup: unix::signal(unix::SignalKind::hangup())?,
        })
    }

    /// The next signal; cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.hangup.recv() => Signal::Hangup,
        }
    }

    /// Waits for a signal that ends the process; reloads in between are not acted on.
    pub async fn stop(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if signal.is_stop() {
                return signal;
            }
        }
    }
}
