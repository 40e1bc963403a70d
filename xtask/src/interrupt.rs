//! Ctrl-C and SIGTERM remove what the run made before the process ends.

use std::thread;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};

/// From now on the two signals clean up and exit; to be called before other threads are started,
/// because threads inherit the mask that leaves the signals to the one that waits for them.
pub(crate) fn clean_up_on_signal() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("blocking signals")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\n{signal}: cleaning up");
        millrace_testkit::clean::own();
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}
