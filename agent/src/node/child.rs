//! One process of a node: how it is started, with which privileges, and how it is ended.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{News, NodeConfig};
use crate::bpf::ensure_bpffs;
use crate::privileges::{self, PrivilegeError};
use crate::supervise::Epoch;

/// Which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Broker,
    Agent,
    Proxy,
}

/// A started process; whether it has ended is told through the launcher's news.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// When patience ends.
    pub(super) kill_at: Option<Instant>,
}

impl Child {
    /// Starts a process and the task that waits for its end.
    pub(super) fn start(
        role: Role,
        epoch: Epoch,
        config: &NodeConfig,
        news: &mpsc::Sender<News>,
    ) -> Result<Self, PrivilegeError> {
        let mut command = command(role, epoch, config);
        let handle = tokio::runtime::Handle::current();
        let mut spawn = move || {
            let _runtime = handle.enter();
            command.stdin(Stdio::null()).spawn()
        };
        let mut process = match role {
            // Broker and agent reduce themselves: they know best what they need.
            Role::Broker | Role::Agent => spawn()?,
            Role::Proxy => privileges::without_any(spawn)?,
        };
        let id = process
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .ok_or_else(|| io::Error::other("the process ended at once"))?;
        let news = news.clone();
        tokio::spawn(async move {
            let status = process.wait().await;
            let clean = status.as_ref().is_ok_and(std::process::ExitStatus::success);
            match status {
                Ok(status) => tracing::info!(?role, %epoch, %status, "process ended"),
                Err(error) => tracing::warn!(?role, %epoch, %error, "process cannot be waited for"),
            }
            // The launcher is gone only when everything has ended.
            news.send(News::Exited(role, epoch, clean)).await.ok();
        });
        Ok(Self {
            pid: Pid::from_raw(id),
            kill_at: None,
        })
    }

    /// The process id.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Asks the process to end; after `within` it is killed, counted from the first time.
    pub(super) fn terminate(&mut self, within: Option<Duration>) {
        self.signal(Signal::SIGTERM);
        if let Some(within) = within {
            self.kill_at.get_or_insert_with(|| Instant::now() + within);
        }
    }

    /// Ends the process.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.kill_at = None;
    }

    fn signal(&self, signal: Signal) {
        // The process is reaped by its task, which then removes this child: the id is still its.
        if let Err(error) = kill(self.pid, signal) {
            tracing::debug!(pid = self.pid(), %signal, %error, "signal not delivered");
        }
    }
}

/// Asks a proxy that an earlier launcher started to drain. Its process id comes from the kernel by
/// way of the broker, its user is looked up: nothing else is ever signalled.
pub(super) fn drain_stranger(pid: u32, proxy_uid: u32) {
    let owner = fs::metadata(format!("/proc/{pid}")).map(|meta| meta.uid());
    let Ok(pid) = i32::try_from(pid) else { return };
    if pid > 1 && owner.is_ok_and(|uid| uid == proxy_uid) {
        tracing::info!(pid, "proxy of an earlier launcher drains");
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
    }
}

/// Makes the directories that the processes share; the proxy gets one of its own to write to.
pub(super) fn prepare(config: &NodeConfig) -> anyhow::Result<()> {
    for dir in [&config.run_dir, &config.state_dir] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        // Their sockets and files have modes of their own; the proxy must be able to pass.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("setting the mode of {}", dir.display()))?;
    }
    // Of its own, as the run directory is where agent and broker have their sockets.
    for own in [proxy_state(&config.state_dir), config.run_dir.join("proxy")] {
        fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
        chown(&own, Some(config.proxy_uid), Some(config.proxy_gid))
            .with_context(|| format!("giving {} to the proxy", own.display()))?;
    }
    if let Err(error) = ensure_bpffs(&config.bpffs_dir) {
        tracing::warn!(error = %crate::broker::chain(&error), "no bpffs, pods will be captured by iptables");
    }
    let link = config.run_dir.join("proxy-admin.sock");
    match symlink("proxy/admin.sock", &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.with_context(|| format!("linking {}", link.display())),
    }
}

fn proxy_state(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("proxy")
}

fn command(role: Role, epoch: Epoch, config: &NodeConfig) -> Command {
    let mut command = match role {
        Role::Broker => {
            let mut command = Command::new(&config.agent_bin);
            command
                .args(["broker", "--with-launcher"])
                .args(&config.broker_args);
            command
        }
        Role::Agent => {
            let mut command = Command::new(&config.agent_bin);
            command
                .args(["run", "--with-launcher"])
                .args(&config.agent_args);
            command
        }
        Role::Proxy => {
            let mut command = Command::new(&config.proxy_bin);
            command
                .args(&config.proxy_args)
                .arg("--run-dir")
                .arg(&config.run_dir)
                .arg("--state-dir")
                .arg(proxy_state(&config.state_dir))
                .args(["--epoch", &epoch.to_string()])
                .uid(config.proxy_uid)
                .gid(config.proxy_gid);
            command
        }
    };
    // A terminal's signals are the launcher's to pass on.
    command.process_group(0).kill_on_drop(false);
    command
}
