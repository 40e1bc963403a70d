//! Starting processes inside a host: its cgroup, network and mount namespaces, a uid, a log file.
//!
//! Every fork is made by one thread that lives as long as the process. The kernel delivers a
//! child's parent-death signal when the *thread* that forked it ends, so children of a test's own
//! thread would die with that thread instead of with the run.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setsid, setuid};

use crate::wait::until;

type Job = Box<dyn FnOnce() + Send>;

/// How much of a log is shown when its test fails.
const TAIL: usize = 8 * 1024;
const REAP: Duration = Duration::from_secs(10);

/// Runs `work` on the thread that makes all forks.
pub(crate) fn on_spawner<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        // Unbounded: each sender waits for its own job's answer before it can send another.
        let (sender, jobs) = channel::<Job>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    });
    let (reply, answer) = sync_channel(1);
    let job: Job = Box::new(move || drop(reply.send(work())));
    spawner
        .send(job)
        .map_err(|_| anyhow!("the spawner thread is gone"))?;
    answer.recv().context("the spawner thread panicked")
}

/// The place a process is put into; descriptors are opened before the fork.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) cgroup: File,
    pub(crate) namespaces: Vec<(OwnedFd, CloneFlags)>,
    pub(crate) log_dir: PathBuf,
    pub(crate) detached: bool,
}

/// A process about to be started in a host; made by [`Host::launch`](crate::Host::launch).
#[derive(Debug)]
pub struct Launch {
    name: String,
    command: Command,
    place: Place,
    uid: Option<u32>,
}

impl Launch {
    pub(crate) fn new(name: &str, command: Command, place: Place) -> Self {
        Self {
            name: name.to_owned(),
            command,
            place,
            uid: None,
        }
    }

    /// Runs the process under this user and group id, without supplementary groups.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Starts the process; what it prints goes to `<log dir>/<name>.log`.
    pub fn spawn(mut self) -> anyhow::Result<Process> {
        let log = self.place.log_dir.join(format!("{}.log", self.name));
        let open = || OpenOptions::new().create(true).append(true).open(&log);
        let out = open().with_context(|| format!("opening {}", log.display()))?;
        let err = open().with_context(|| format!("opening {}", log.display()))?;
        self.command.stdin(Stdio::null()).stdout(out).stderr(err);
        let (name, detached) = (self.name.clone(), self.place.detached);
        let child = self.start()?;
        Ok(Process {
            name,
            child,
            log,
            detached,
        })
    }

    /// Runs the process to its end and returns what it printed.
    pub fn output(mut self) -> anyhow::Result<Output> {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let name = self.name.clone();
        self.start()?
            .wait_with_output()
            .with_context(|| format!("waiting for {name}"))
    }

    /// Starts the process with whatever streams its command has.
    pub fn start(self) -> anyhow::Result<Child> {
        let Self {
            name,
            mut command,
            place,
            uid,
        } = self;
        let started = on_spawner(move || {
            // SAFETY: the closure only makes system calls on descriptors opened before the fork
            // and allocates nothing on its successful path.
            unsafe { command.pre_exec(move || enter(&place, uid)) };
            command.spawn()
        })?;
        started.with_context(|| format!("starting {name}"))
    }
}

/// Moves the calling process into its place; the uid changes after everything that needs root, and
/// the parent-death signal is asked for last because changing credentials clears it.
fn enter(place: &Place, uid: Option<u32>) -> io::Result<()> {
    nix::unistd::write(&place.cgroup, b"0")?;
    for (namespace, kind) in &place.namespaces {
        setns(namespace, *kind)?;
    }
    setsid()?;
    if let Some(uid) = uid {
        setgroups(&[])?;
        setgid(Gid::from_raw(uid))?;
        setuid(Uid::from_raw(uid))?;
    }
    if !place.detached {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    }
    Ok(())
}

/// Starts a process where the caller is, with its log at `<log dir>/<name>.log`; it dies with the caller.
#[cfg(feature = "apiserver")]
pub(crate) fn spawn_here(
    name: &str,
    mut command: Command,
    log_dir: &Path,
) -> anyhow::Result<Process> {
    let log = log_dir.join(format!("{name}.log"));
    let out = OpenOptions::new().create(true).append(true).open(&log);
    let out = out.with_context(|| format!("opening {}", log.display()))?;
    let err = out.try_clone().context("duplicating the log")?;
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let started = on_spawner(move || {
        // SAFETY: the closure only makes system calls and allocates nothing on its successful path.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        command.spawn()
    })?;
    Ok(Process {
        name: name.to_owned(),
        child: started.with_context(|| format!("starting {name}"))?,
        log,
        detached: false,
    })
}

/// A running process of a host. It is killed on drop, and its log is shown if the test failed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    detached: bool,
}

impl Process {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that gets what the process prints.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What the process printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The exit status, when the process has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        nix::sys::signal::kill(pid, signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        until(deadline, || self.exited().ok_or("it still runs"))
            .with_context(|| format!("waiting for {} to end", self.name))
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        // Already gone is what is wanted.
        self.child.kill().ok();
        self.wait(REAP).map(drop)
    }

    /// Asks the process to end with SIGTERM and waits.
    pub fn stop(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        if self.exited().is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(deadline)
    }

    /// Fails with the log's end when the process has ended.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.exited() {
            None => Ok(()),
            Some(status) => {
                anyhow::bail!("{} ended with {status}:\n{}", self.name, tail(&self.log()))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "---- {} (pid {}) ----\n{}",
                self.name,
                self.pid(),
                tail(&self.log())
            );
        }
        if !self.detached
            && let Err(error) = self.kill()
        {
            eprintln!("{error:#}");
        }
    }
}

fn tail(log: &str) -> &str {
    let start = log.len().saturating_sub(TAIL);
    let start = (start..=log.len())
        .find(|at| log.is_char_boundary(*at))
        .unwrap_or(log.len());
    &log[start..]
}

/// The namespace files of a process, opened for [`Place::namespaces`].
pub(crate) fn namespace_of(
    pid: i32,
    kind: &str,
    flag: CloneFlags,
) -> anyhow::Result<(OwnedFd, CloneFlags)> {
    let path = format!("/proc/{pid}/ns/{kind}");
    let file = File::open(&path).with_context(|| format!("opening {path}"))?;
    Ok((file.into(), flag))
}
