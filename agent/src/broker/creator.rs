//! Which cgroup a process lives in: what tells the sockets that the broker makes from those of an application
//! that has set the proxy's mark on its own.
//!
//! A socket belongs for life to the cgroup of the process that created it, and no pod can enter the broker's.
//! Paths are the host's, also where the broker runs in a container with cgroups and mounts of its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;

/// Where `nft` looks for the paths that it is given (its `SYSFS_CGROUPSV2_PATH`).
const NFT_ROOT: &str = "/sys/fs/cgroup";

/// A cgroup2 directory that is not the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creator {
    /// The cgroup's id: the inode of its directory.
    pub id: u64,
    /// How deep it is below the root.
    pub level: usize,
    /// Its path as `nft` wants it.
    pub nft_path: String,
}

/// The cgroup of this process; `None` where cgroup2 does not tell it from others.
pub fn own() -> Option<Creator> {
    of(std::process::id())
}

/// The cgroup of a process; `None` where there is no cgroup2, or the process is in its root.
pub fn of(pid: u32) -> Option<Creator> {
    // A thread of its own: what it enters, it does not leave.
    std::thread::scope(|scope| {
        let found = scope.spawn(|| {
            enter_host_cgroups();
            find(pid)
        });
        found.join().ok().flatten()
    })
}

/// Makes the calling thread, and what it starts, see cgroups as the host does: levels are counted from there.
pub(super) fn enter_host_cgroups() {
    let entered = fs::File::open("/proc/1/ns/cgroup")
        .map_err(|error| error.to_string())
        .and_then(|host| {
            setns(host, CloneFlags::CLONE_NEWCGROUP).map_err(|errno| errno.to_string())
        });
    if let Err(error) = entered {
        tracing::debug!(error, "cgroups are seen as this process sees them");
    }
}

/// This process's own by its path, which is nobody else's while it lives there: a node with many pods has
/// thousands of mounts to search.
static OWN: Mutex<Option<(String, Creator)>> = Mutex::new(None);

fn find(pid: u32) -> Option<Creator> {
    let listed = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = listed.lines().find_map(|line| line.strip_prefix("0::"))?;
    if pid != std::process::id() {
        return search(path);
    }
    let mut own = OWN.lock();
    if own.as_ref().is_none_or(|(known, _)| known != path) {
        *own = Some((path.to_owned(), search(path)?));
    }
    own.as_ref().map(|(_, creator)| creator.clone())
}

fn search(path: &str) -> Option<Creator> {
    let level = depth(path)?;
    let directory = [
        ("/proc/thread-self/mountinfo", "/"),
        ("/proc/1/mountinfo", "/proc/1/root"),
    ]
    .iter()
    .find_map(|(mounts, root)| {
        let mounts = fs::read_to_string(mounts).ok()?;
        directories(&mounts, path)
            .map(|directory| {
                Path::new(root).join(directory.strip_prefix("/").unwrap_or(&directory))
            })
            .find(|directory| directory.join("cgroup.procs").exists())
    })?;
    Some(Creator {
        id: fs::metadata(&directory).ok()?.ino(),
        level,
        nft_path: nft_path(&directory)?,
    })
}

/// How deep a path is; `None` for the root and for what is outside of what can be seen.
fn depth(path: &str) -> Option<usize> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let seen = !names.is_empty() && !names.contains(&"..") && !path.ends_with(" (deleted)");
    seen.then_some(names.len())
}

/// Where a cgroup is mounted, by the text of a `mountinfo` file (`proc_pid_mountinfo(5)`).
fn directories<'a>(mounts: &'a str, path: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    mounts.lines().filter_map(move |line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(at).join(below))
    })
}

/// A directory as `nft` wants it: relative to its own root, in quotes.
fn nft_path(directory: &Path) -> Option<String> {
    let text = match directory.strip_prefix(NFT_ROOT) {
        Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
        Ok(below) => below.to_str()?.to_owned(),
        Err(_) => format!("../../..{}", directory.to_str()?),
    };
    (!text.contains(['"', '\n'])).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
25 1 0:23 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu
31 1 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:12 - cgroup2 cgroup2 rw
32 1 0:29 /kubepods/a /mnt rw,nosuid - cgroup2 cgroup2 rw";

    #[test]
    fn a_cgroup_is_found_below_every_mount_that_holds_it() {
        let found: Vec<_> = directories(MOUNTS, "/kubepods/a/broker").collect();
        assert_eq!(
            found,
            [
                Path::new("/sys/fs/cgroup/unified/kubepods/a/broker"),
                Path::new("/mnt/broker")
            ]
        );
        assert_eq!(directories(MOUNTS, "/system").count(), 1);
    }

    #[test]
    fn the_root_and_what_cannot_be_seen_tell_nobody_apart() {
        assert_eq!(depth("/a/b"), Some(2));
        for path in ["/", "/../b", "/a (deleted)"] {
            assert_eq!(depth(path), None, "{path}");
        }
    }

    #[test]
    fn nft_is_told_a_path_below_its_own_root() {
        let told = |path: &str| nft_path(Path::new(path));
        assert_eq!(told("/sys/fs/cgroup"), Some(".".to_owned()));
        assert_eq!(told("/sys/fs/cgroup/a/b"), Some("a/b".to_owned()));
        assert_eq!(
            told("/proc/1/root/sys/fs/cgroup/a"),
            Some("../../../proc/1/root/sys/fs/cgroup/a".to_owned())
        );
        assert_eq!(told("/sys/fs/cgroup/a\"b"), None);
    }
}
