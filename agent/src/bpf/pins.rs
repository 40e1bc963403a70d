//! Where everything is pinned, and the bpffs mount below it.
//!
//! `<dir>/v<ABI_VERSION>/{maps,programs,links,lookup}`: maps and programs by name, cgroup links by program,
//! `sk_lookup` links by the cookie of their namespace; `layout-<digest>` says how the maps are laid out. Programs of
//! another ABI version, or whose maps are laid out in another way, live beside, never together.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use millrace_ebpf_abi::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::layout::{CARRIED, Layout};
use super::{BpfError, sys};

/// Earlier layouts that may wait to be taken over from: each start of another agent that never gets so far
/// adds one.
const MAX_ASIDE: u32 = 64;

/// The directories of one ABI version.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
}

impl Pins {
    /// Makes the directories, and mounts bpffs if there is none. What an agent of another layout left is
    /// set aside; maps of it that keep what is known of live connections are shared where they are alike.
    pub(super) fn open(root: &Path, layout: &Layout) -> Result<Self, BpfError> {
        ensure_bpffs(root)?;
        let pins = Self::at(root);
        let told = pins.version.join(format!("layout-{:08x}", layout.digest()));
        if pins.version.exists() && !told.exists() {
            pins.set_aside()?;
        }
        for dir in [
            told,
            pins.maps(),
            pins.programs(),
            pins.links(),
            pins.lookups(),
        ] {
            fs::create_dir_all(&dir).map_err(BpfError::bpffs("creating", dir))?;
        }
        for older in pins.other_layouts()? {
            pins.share(&older, layout)?;
        }
        Ok(pins)
    }

    /// Moves the pins of this version, which are of another layout, to a name of their own.
    fn set_aside(&self) -> Result<(), BpfError> {
        let beside = |number: u32| self.root.join(format!("v{ABI_VERSION}-{number}"));
        let free = (0..MAX_ASIDE).map(beside).find(|path| !path.exists());
        let to = free.unwrap_or_else(|| beside(MAX_ASIDE));
        tracing::warn!(pins = %to.display(), "maps of another layout are replaced");
        fs::rename(&self.version, &to).map_err(BpfError::bpffs("setting aside", &self.version))
    }

    /// Pins maps of an earlier layout a second time, so that both agents' programs work on them.
    fn share(&self, older: &Path, layout: &Layout) -> Result<(), BpfError> {
        for name in CARRIED {
            let (from, to) = (older.join("maps").join(name), self.map(name));
            if to.exists() || !layout.is_alike(name, &from) {
                continue;
            }
            let map = sys::get(&from).map_err(BpfError::bpffs("opening", &from))?;
            sys::pin(map.as_fd(), &to).map_err(BpfError::bpffs("pinning", &to))?;
        }
        Ok(())
    }

    /// Directories of this ABI version with other layouts.
    fn other_layouts(&self) -> Result<Vec<PathBuf>, BpfError> {
        let prefix = format!("v{ABI_VERSION}-");
        let mut others = self.other_versions()?;
        others.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&prefix))
        });
        Ok(others)
    }

    /// The directories, whether they exist or not.
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            version: root.join(format!("v{ABI_VERSION}")),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn programs(&self) -> PathBuf {
        self.version.join("programs")
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    fn links(&self) -> PathBuf {
        self.version.join("links")
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    fn lookups(&self) -> PathBuf {
        self.version.join("lookup")
    }

    pub(super) fn lookup(&self, netns_cookie: u64) -> PathBuf {
        self.lookups().join(netns_cookie.to_string())
    }

    /// Cookies of the namespaces that have a pinned link.
    pub(super) fn lookup_cookies(&self) -> Result<Vec<u64>, BpfError> {
        let dir = self.lookups();
        let entries = fs::read_dir(&dir).map_err(BpfError::bpffs("reading", &dir))?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// Directories of other ABI versions and layouts.
    pub(super) fn other_versions(&self) -> Result<Vec<PathBuf>, BpfError> {
        let entries = fs::read_dir(&self.root).map_err(BpfError::bpffs("reading", &self.root))?;
        Ok(entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| *path != self.version && is_version(path))
            .collect())
    }
}

/// Ids of the programs of every pinned cgroup link, of any ABI version.
pub(super) fn attached_ids(root: &Path) -> Vec<u32> {
    let listed = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let versions = listed(root.to_owned()).map(|entry| entry.path());
    versions
        .filter(|path| is_version(path))
        .flat_map(|version| listed(version.join("links")))
        .filter_map(|link| {
            let link = sys::get(&link.path()).ok()?;
            Some(sys::link_info(link.as_fd()).ok()?.program_id)
        })
        .collect()
}

/// Removes a pin; one that is not there is fine.
pub(super) fn unpin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::bpffs("removing", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes everything below `root`, links first: without its link a program is detached.
pub(super) fn remove_all(root: &Path) -> Result<(), BpfError> {
    let Ok(entries) = fs::read_dir(root) else {
        return Ok(());
    };
    for version in entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| is_version(path))
    {
        remove_version(&version)?;
    }
    match fs::remove_dir(root) {
        // Something of somebody else's is in there, or it is the mount itself.
        Err(error)
            if error.kind() == io::ErrorKind::DirectoryNotEmpty
                || error.raw_os_error() == Some(libc::EBUSY) =>
        {
            Ok(())
        }
        other => other.map_err(BpfError::bpffs("removing", root)),
    }
}

/// Removes the pins of one ABI version. Connect programs go first, so that nothing is redirected that the
/// others no longer hide.
pub(super) fn remove_version(version: &Path) -> Result<(), BpfError> {
    let links = version.join("links");
    for name in [
        "millrace_connect4",
        "millrace_connect6",
        "millrace_send4",
        "millrace_send6",
    ] {
        unpin(&links.join(name))?;
    }
    forget_policies(&version.join("maps/POLICIES"))?;
    fs::remove_dir_all(version).map_err(BpfError::bpffs("removing", version))
}

/// Connections that are promoted stay so as long as they live, pins or not; without a policy of their pod
/// they go by TCP. Every version's policies are keyed by a 64-bit cookie.
fn forget_policies(path: &Path) -> Result<(), BpfError> {
    let map = match sys::get(path) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BpfError::bpffs("opening", path)(error)),
    };
    for cookie in sys::keys(map.as_fd()).map_err(BpfError::bpffs("listing", path))? {
        sys::remove(map.as_fd(), cookie).map_err(BpfError::bpffs("emptying", path))?;
    }
    Ok(())
}

fn is_version(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str()?.strip_prefix('v'))
        .is_some_and(|numbers| numbers.split('-').all(|n| n.parse::<u32>().is_ok()))
}

/// Mounts bpffs where the pins want to live, if nobody has. Needs `CAP_SYS_ADMIN`, which the agent gives up
/// at its start: the launcher calls this before there is an agent, an agent alone before it gives it up.
///
/// # Errors
///
/// If a directory cannot be made or the kernel refuses the mount.
pub fn ensure_bpffs(root: &Path) -> Result<(), BpfError> {
    let existing = root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if is_bpffs(existing)? {
        return Ok(());
    }
    let usual = Path::new("/sys/fs/bpf");
    let target = if root.starts_with(usual) && usual.exists() {
        usual
    } else {
        fs::create_dir_all(root).map_err(BpfError::bpffs("creating", root))?;
        root
    };
    mount(
        Some("bpf"),
        target,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(io::Error::from)
    .map_err(BpfError::bpffs("mounting bpffs at", target))?;
    tracing::info!(path = %target.display(), "mounted bpffs");
    Ok(())
}

fn is_bpffs(path: &Path) -> Result<bool, BpfError> {
    let stat = statfs(path)
        .map_err(io::Error::from)
        .map_err(BpfError::bpffs("examining", path))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}
