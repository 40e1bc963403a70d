//! cgroup programs of others at the hooks that Millrace uses: where they are and whether they run before ours.
//!
//! A program attached below our cgroup runs before one above it, those at one cgroup in the order of their
//! attaching, unless an attachment asked to be first (kernel 6.17). The kernel's own list of what runs for a
//! cgroup is in that order, so nothing is guessed here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use super::loader::Bpf;
use super::programs::{CGROUP_PROGRAMS, CgroupProgram};
use super::sys::{self, Attached};
use super::{BpfError, pins};

/// Directories below the cgroup that are looked at each time.
const PART: usize = 200;

/// Whether a program of somebody else's runs before Millrace's.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// It sees what the application asked for, and Millrace what it made of that.
    Before,
    /// It sees what Millrace left.
    After,
    /// Millrace has no program there.
    Alone,
}

impl Order {
    /// As metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Alone => "alone",
        }
    }
}

/// A program of somebody else's.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ForeignProgram {
    /// The kernel's number for it.
    pub id: u32,
    /// The hook, as `bpftool` names it.
    pub hook: &'static str,
    /// The cgroup that it is attached to; `None` for a pod's namespace.
    pub at: Option<PathBuf>,
    /// When it runs.
    pub order: Order,
}

impl Bpf {
    /// Programs of others that run for pods: at our cgroup, above and below it. A node has several cgroups for
    /// each pod: of those below a part is looked at, and of the others it is told what was found before; the
    /// `whole` of it only where something is known to have changed.
    ///
    /// # Errors
    ///
    /// If our own cgroup cannot be asked.
    pub fn foreign(&mut self, whole: bool) -> Result<Vec<ForeignProgram>, BpfError> {
        let mut own = Vec::new();
        for (_, fd) in &self.programs {
            own.extend(sys::program_id(fd.as_fd()));
        }
        own.extend(pins::attached_ids(self.pins.root()));
        let most = if whole { usize::MAX } else { PART };
        scan(&self.cgroup, &own, &mut self.search, most).map_err(|source| BpfError::Cgroup {
            path: self.cgroup.clone(),
            source,
        })
    }
}

/// The same for a node where nothing of Millrace's is attached.
///
/// # Errors
///
/// If the cgroup cannot be asked.
pub fn foreign_at(cgroup: &Path) -> io::Result<Vec<ForeignProgram>> {
    scan(cgroup, &[], &mut Search::default(), usize::MAX)
}

/// When the program runs, by the list of all that do.
pub(super) fn place(effective: &[u32], id: u32, own: &[u32]) -> Order {
    let of = |wanted: &dyn Fn(&u32) -> bool| effective.iter().position(wanted);
    match (of(&|other| *other == id), of(&|other| own.contains(other))) {
        (_, None) => Order::Alone,
        (Some(theirs), Some(ours)) if theirs < ours => Order::Before,
        _ => Order::After,
    }
}

fn scan(
    cgroup: &Path,
    own: &[u32],
    search: &mut Search,
    most: usize,
) -> io::Result<Vec<ForeignProgram>> {
    let mut found = Vec::new();
    let ours = File::open(cgroup)?;
    for directory in ancestors(cgroup) {
        // What is attached above us runs for our cgroup.
        let above = File::open(&directory)?;
        found.extend(look(&directory, &above, ours.as_fd(), own)?);
    }
    found.extend(look(cgroup, &ours, ours.as_fd(), own)?);
    search.part(cgroup, most, |directory, file| {
        look(directory, file, file.as_fd(), own).or_else(ignore_gone)
    })?;
    found.extend(search.found.values().flatten().cloned());
    Ok(found)
}

/// Programs of others in the directories below one, which are looked at a part at a time, in the order of their
/// paths.
#[derive(Debug, Default)]
pub(super) struct Search {
    found: BTreeMap<PathBuf, Vec<ForeignProgram>>,
    /// Where the next part begins, if not with the first.
    next: Option<PathBuf>,
}

impl Search {
    /// Looks at as many as `most`, from where the part before ended.
    fn part(
        &mut self,
        root: &Path,
        most: usize,
        mut look: impl FnMut(&Path, &File) -> io::Result<Vec<ForeignProgram>>,
    ) -> io::Result<()> {
        let from = if most == usize::MAX {
            None
        } else {
            self.next.take()
        };
        let is_before = |path: &Path| from.as_ref().is_some_and(|from| path < from);
        let leads_on = |path: &PathBuf| {
            let from = from.as_ref();
            !is_before(path) || from.is_some_and(|from| from.starts_with(path))
        };
        let mut waiting = children(root);
        let mut end = None;
        let mut looked = 0;
        let mut found = BTreeMap::new();
        while let Some(directory) = waiting.pop() {
            if looked == most {
                end = Some(directory);
                break;
            }
            // A cgroup that goes away meanwhile has no programs.
            let Ok(file) = File::open(&directory) else {
                continue;
            };
            if !is_before(&directory) {
                looked += 1;
                let here = look(&directory, &file)?;
                if !here.is_empty() {
                    found.insert(directory.clone(), here);
                }
            }
            // Each directory within has a link to the one that it is in.
            if file.metadata().is_ok_and(|meta| meta.nlink() != 2) {
                waiting.extend(children(&directory).into_iter().filter(leads_on));
            }
        }
        let is_after = |path: &Path| end.as_ref().is_some_and(|end| path >= end);
        self.found
            .retain(|path, _| is_before(path) || is_after(path));
        self.found.append(&mut found);
        self.next = end;
        Ok(())
    }
}

fn ignore_gone(error: io::Error) -> io::Result<Vec<ForeignProgram>> {
    let gone = [libc::ENODEV, libc::ENOENT].map(Some);
    if gone.contains(&error.raw_os_error()) {
        Ok(Vec::new())
    } else {
        Err(error)
    }
}

/// What is attached to `directory`, which is open as `file`; the order is that of the programs that run for
/// `runs_for`.
fn look(
    directory: &Path,
    file: &File,
    runs_for: BorrowedFd<'_>,
    own: &[u32],
) -> io::Result<Vec<ForeignProgram>> {
    let mut found = Vec::new();
    for CgroupProgram { attach_type, .. } in CGROUP_PROGRAMS {
        let here = sys::query(file.as_fd(), attach_type, Attached::Here)?;
        let others: Vec<u32> = here.into_iter().filter(|id| !own.contains(id)).collect();
        if others.is_empty() {
            continue;
        }
        let effective = sys::query(runs_for, attach_type, Attached::Effective)?;
        found.extend(others.iter().map(|id| ForeignProgram {
            id: *id,
            hook: super::programs::hook_name(attach_type),
            at: Some(directory.to_owned()),
            order: place(&effective, *id, own),
        }));
    }
    Ok(found)
}

/// The cgroups above, up to the root of the hierarchy.
fn ancestors(cgroup: &Path) -> Vec<PathBuf> {
    let is_cgroup =
        |path: &&Path| statfs(*path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let above = cgroup.ancestors().skip(1);
    above.take_while(is_cgroup).map(Path::to_owned).collect()
}

/// The directories in one, the last first.
fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    paths.sort_unstable_by(|a, b| b.cmp(a));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_in_the_list_is_the_order() {
        assert_eq!(place(&[7, 1], 7, &[1, 2]), Order::Before);
        assert_eq!(place(&[1, 7], 7, &[1, 2]), Order::After);
        assert_eq!(
            place(&[2, 7, 1], 7, &[1, 2]),
            Order::After,
            "an older one of ours"
        );
        assert_eq!(place(&[7], 7, &[1]), Order::Alone);
    }

    #[test]
    fn directories_are_looked_at_in_parts_each_in_its_turn() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a/1", "a/2", "b", "c/1"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let mut search = Search::default();
        let part = |search: &mut Search, most| {
            let mut looked = Vec::new();
            let look = |at: &Path, _: &File| {
                let name = at.strip_prefix(root.path()).unwrap();
                looked.push(name.display().to_string());
                let program = ForeignProgram {
                    id: 7,
                    hook: "connect4",
                    at: Some(at.to_owned()),
                    order: Order::After,
                };
                Ok(Some(program)
                    .filter(|_| name == Path::new("a/1"))
                    .into_iter()
                    .collect())
            };
            search.part(root.path(), most, look).unwrap();
            looked
        };
        assert_eq!(part(&mut search, 4), ["a", "a/1", "a/2", "b"]);
        assert_eq!(part(&mut search, 4), ["c", "c/1"]);
        assert_eq!(search.found.len(), 1, "it was not looked at in this part");
        assert_eq!(part(&mut search, 2), ["a", "a/1"]);
        fs::remove_dir(root.path().join("a/1")).unwrap();
        assert_eq!(part(&mut search, 1), ["a/2"]);
        assert_eq!(part(&mut search, usize::MAX), ["a", "a/2", "b", "c", "c/1"]);
        assert!(search.found.is_empty());
        assert_eq!(part(&mut search, 1), ["a"]);
    }
}
