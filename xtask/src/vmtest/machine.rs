//! Boots a kernel with a file system under qemu, without any hardware support, and hears what the guest tells.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::event::Event;
use super::guest;
use super::image::FIRST_PROCESS;
use crate::run;
use crate::workspace::find_program;

/// The unpacked archive, the tests, and room for what they queue in sockets.
const MEMORY: &str = "3072M";
/// What is told of the console when a guest ends before its work is done.
const TOLD_LINES: usize = 25;
/// How many events may wait; the reader is always faster than an emulated machine.
const WAITING: usize = 64;

/// What to boot.
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Path,
    pub(super) image: &'a Path,
    /// Where the kernel's messages go.
    pub(super) console: &'a Path,
    /// How long the machine may run.
    pub(super) deadline: Duration,
}

/// A machine that is ended with this value.
struct Machine {
    child: Child,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended by itself is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Boot<'_> {
    /// Runs the machine to its end and hands every event to `heard`.
    ///
    /// # Errors
    ///
    /// If it cannot be started, runs longer than it may, or ends before its work is done.
    pub(super) fn run(&self, mut heard: impl FnMut(Event)) -> anyhow::Result<()> {
        let until = Instant::now() + self.deadline;
        let mut machine = self.start()?;
        let stdout = machine.child.stdout.take().context("qemu's stdout")?;
        let events = events(stdout);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Event::Done) => return Ok(()),
                Ok(Event::Trouble { text }) => bail!("in the guest: {text}"),
                Ok(event) => heard(event),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "not done after {}; ended",
                    crate::ui::seconds(self.deadline)
                ),
                Err(RecvTimeoutError::Disconnected) => bail!(
                    "the machine ended before its work was done; its last words:\n{}",
                    self.last_words()
                ),
            }
        }
    }

    fn start(&self) -> anyhow::Result<Machine> {
        let qemu = find_program("qemu-system-x86_64").context("no qemu-system-x86_64")?;
        let setpriv = find_program("setpriv").context("no setpriv")?;
        let console = format!("file:{}", self.console.display());
        // Mitigations and cleared memory cost an emulator most; for a privileged loader the verifier has none either way.
        let append = format!(
            "console=ttyS0 panic=-1 mitigations=off init_on_alloc=0 rdinit={FIRST_PROCESS} -- {}",
            guest::FIRST
        );
        // Whatever ends this process ends the machine.
        let mut command = run::foreign(setpriv);
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(qemu)
            .args(["-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1"])
            // A nanosecond for each instruction: however slow the emulation, to the guest it is not.
            .args(["-icount", "shift=0,sleep=off"])
            .args(["-m", MEMORY, "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", &console])
            .args(["-chardev", "stdio,id=events,signal=off"])
            .args(["-serial", "chardev:events"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.image)
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let child = command
            .spawn()
            .with_context(|| format!("running {}", run::shown(&command)))?;
        Ok(Machine { child })
    }

    fn last_words(&self) -> String {
        let console = fs::read(self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n")
    }
}

/// Reads events until the machine closes its port; what is none is passed over.
fn events(stdout: ChildStdout) -> Receiver<Event> {
    let (sender, receiver) = sync_channel(WAITING);
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let Ok(event) = serde_json::from_slice(line.trim_ascii()) else {
                continue;
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}
