//! Removes what runs made: one run's things at its end, a dead run's things whenever found.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};

use crate::cgroup;
use crate::netns::Netns;
use crate::registry::{CGROUP_PREFIX, RunId, STATE_ROOT};

/// Removes everything of runs whose process is gone, and of runs left running on purpose; returns
/// a line for each run removed.
pub fn all() -> anyhow::Result<Vec<String>> {
    stale(|run| !run.is_owned() || is_kept(run))
}

/// Removes everything of one run, unless the process that made it still runs; returns whether there was anything.
pub fn one(id: &str) -> anyhow::Result<bool> {
    let wanted = RunId::parse(id).with_context(|| format!("{id} is no run's id"))?;
    let removed = stale(|run| *run == wanted && (!run.is_owned() || is_kept(run)))?;
    Ok(!removed.is_empty())
}

/// Removes everything of runs whose process is gone.
pub fn dead() -> anyhow::Result<Vec<String>> {
    stale(|run| !run.is_owned())
}

/// Removes everything that this process made; for a signal handler's thread before it exits.
pub fn own() {
    for run in RunId::known().into_iter().filter(RunId::is_mine) {
        if let Err(error) = remove(&run) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

/// Everything on the machine that carries the id of a run: namespaces, cgroups, mounts, files and
/// processes in its cgroups. Empty when nothing is left of it.
pub fn traces(id: &str) -> anyhow::Result<Vec<String>> {
    let run = RunId::parse(id).with_context(|| format!("{id} is no run's id"))?;
    let mut found: Vec<String> = Netns::names(&run.netns_prefix())
        .into_iter()
        .map(|name| format!("netns {name}"))
        .collect();
    let cgroup = cgroup::cgroup2_mount().map(|mount| mount.join(run.cgroup_name()));
    for path in [Some(run.state_dir()), Some(run.program_dir()), cgroup]
        .into_iter()
        .flatten()
    {
        if path.exists() {
            found.push(path.display().to_string());
        }
    }
    found.extend(mounts_below(&run.state_dir()));
    Ok(found)
}

fn is_kept(run: &RunId) -> bool {
    fs::read_to_string(run.state_dir().join("owner")).is_ok_and(|owner| owner.trim() == "kept")
}

fn stale(gone: impl Fn(&RunId) -> bool) -> anyhow::Result<Vec<String>> {
    fs::create_dir_all(STATE_ROOT).with_context(|| format!("creating {STATE_ROOT}"))?;
    // Two cleaners at once would trip over each other's half-removed trees.
    let lock = File::create(Path::new(STATE_ROOT).join(".lock")).context("opening the lock")?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let mut removed = Vec::new();
    for run in found().into_iter().filter(gone) {
        remove(&run)?;
        removed.push(format!("removed what run {} left behind", run.as_str()));
    }
    Ok(removed)
}

/// Every run that has left a trace: a directory, a cgroup or a network namespace.
fn found() -> Vec<RunId> {
    let mut ids: BTreeSet<String> = RunId::known()
        .iter()
        .map(|run| run.as_str().to_owned())
        .collect();
    for name in Netns::names("millrace-") {
        let id = name
            .trim_start_matches("millrace-")
            .split('-')
            .next()
            .unwrap_or_default();
        ids.insert(id.to_owned());
    }
    if let Some(entries) = cgroup::cgroup2_mount().and_then(|mount| fs::read_dir(mount).ok()) {
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let id = name
                .to_str()
                .and_then(|name| name.strip_prefix(CGROUP_PREFIX));
            ids.extend(id.map(str::to_owned));
        }
    }
    ids.iter().filter_map(|id| RunId::parse(id)).collect()
}

/// Removes everything that carries the run's id: processes, pins, namespaces, cgroups, files.
pub(crate) fn remove(run: &RunId) -> anyhow::Result<()> {
    if let Some(mount) = cgroup::cgroup2_mount() {
        cgroup::remove(&mount.join(run.cgroup_name()))?;
    }
    let state = run.state_dir();
    for mount_point in mounts_below(&state) {
        umount2(Path::new(&mount_point), MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {mount_point}"))?;
    }
    for name in Netns::names(&run.netns_prefix()) {
        Netns::unname(&name);
    }
    // The state comes last: it names the owner of everything else.
    for dir in [run.program_dir(), state] {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Mount points below `dir`, innermost first.
fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| Path::new(at).starts_with(dir))
        .map(str::to_owned)
        .collect();
    found.reverse();
    found
}
