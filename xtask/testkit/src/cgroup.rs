//! cgroup2 directories: made for a run, killed and removed with it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::wait::until;

/// How long killed processes may take to leave a cgroup.
const LEAVE: Duration = Duration::from_secs(10);

/// Where cgroup2 is mounted, found in `/proc/self/mounts` and never assumed.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

/// A cgroup2 directory; on drop its processes are killed and it is removed with all below it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory (its parents must exist).
    pub fn create(path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path })
    }

    /// Makes a cgroup below this one.
    pub fn child(&self, name: &str) -> anyhow::Result<Self> {
        Self::create(self.path.join(name))
    }

    /// The directory in the cgroup2 file system.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in this directory (not below it).
    pub fn pids(&self) -> Vec<u32> {
        let listed = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        listed
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    /// Opened so that a child process can move itself in by writing `0`.
    pub(crate) fn entrance(&self) -> anyhow::Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

/// Kills every process in the subtree and removes it; a directory that is not there is fine.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    kill(path)?;
    until(LEAVE, || remove_tree(path)).with_context(|| format!("removing {}", path.display()))
}

fn kill(path: &Path) -> anyhow::Result<()> {
    let file = path.join("cgroup.kill");
    if file.exists() {
        return fs::write(&file, "1").with_context(|| format!("writing {}", file.display()));
    }
    // Before Linux 5.14: one by one, again until nobody is left to fork another.
    until(LEAVE, || {
        let pids = pids_below(path);
        for pid in &pids {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(*pid),
                nix::sys::signal::Signal::SIGKILL,
            )
            .ok();
        }
        if pids.is_empty() {
            Ok(())
        } else {
            Err("processes are left")
        }
    })
}

fn pids_below(path: &Path) -> Vec<i32> {
    let own = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(path) {
        pids.extend(pids_below(&child));
    }
    pids
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
