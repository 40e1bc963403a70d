//! Named network namespaces, as `ip netns` makes them, and running code inside one.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use parking_lot::Mutex;

/// Where `ip netns` looks for names.
const NAMES: &str = "/run/netns";

/// A network namespace bound to a name below `/run/netns`; the name is removed on drop, the
/// namespace itself goes with its last process and socket.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace with its loopback down and nothing else in it.
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        share_names()?;
        let path = Path::new(NAMES).join(name);
        File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let bound = thread::scope(|scope| {
            scope
                .spawn(|| bind_new(&path))
                .join()
                .unwrap_or_else(|_| Err(anyhow!("panicked")))
        });
        if let Err(error) = bound {
            fs::remove_file(&path).ok();
            return Err(error.context(format!("making the network namespace {name}")));
        }
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// The name to give to `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path that stands for the namespace, as a container runtime reports it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// An open descriptor of the namespace.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread of its own inside the namespace.
    ///
    /// Sockets made there live in the namespace but in the caller's cgroup; for a pod's own
    /// sockets use [`Pod`](crate::Pod)'s methods.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        in_netns(&self.file, work)
    }

    /// Sets `net.*` sysctls, given as `path/below/net` and value.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys/net").join(key);
                fs::write(&path, value)
                    .with_context(|| format!("writing {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Takes a name away from its namespace; true when there was one.
    pub(crate) fn unname(name: &str) -> bool {
        let path = Path::new(NAMES).join(name);
        umount2(&path, MntFlags::MNT_DETACH).ok();
        fs::remove_file(&path).is_ok()
    }

    /// The names below `/run/netns` that start with `prefix`.
    pub(crate) fn names(prefix: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(NAMES) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        Self::unname(&self.name);
    }
}

/// Makes the directory of names, shared with mount namespaces that are made later, so that a process
/// in one of those can open the namespaces too. `ip netns` does the same.
fn share_names() -> anyhow::Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock();
    if *done {
        return Ok(());
    }
    fs::create_dir_all(NAMES).with_context(|| format!("creating {NAMES}"))?;
    let share = || {
        let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NAMES, None::<&str>, shared, None::<&str>)
    };
    if share().is_err() {
        // It is no mount point yet.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(NAMES), NAMES, None::<&str>, flags, None::<&str>)
            .with_context(|| format!("mounting {NAMES} on itself"))?;
        share().with_context(|| format!("sharing {NAMES}"))?;
    }
    *done = true;
    Ok(())
}

fn bind_new(path: &Path) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("binding the namespace to {}", path.display()))
}

/// Runs `work` on a thread of its own inside the network namespace `netns`.
pub fn in_netns<T: Send>(
    netns: impl AsFd + Send,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            work()
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
