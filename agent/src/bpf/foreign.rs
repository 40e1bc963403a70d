//! cgroup programs of others at the hooks that Millrace uses: where they are and whether they run before ours.
//!
//! A program attached below our cgroup runs before one above it, those at one cgroup in the order of their
//! attaching, unless an attachment asked to be first (kernel 6.17). The kernel's own list of what runs for a
//! cgroup is in that order, so nothing is guessed here.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use super::loader::Bpf;
use super::programs::{CGROUP_PROGRAMS, CgroupProgram};
use super::sys::{self, Attached};
use super::{BpfError, pins};

/// Most directories below the cgroup that are looked at: several per pod of a full node.
const MOST_DIRECTORIES: usize = 4096;

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
    /// Programs of others that run for pods: at our cgroup, above and below it.
    ///
    /// # Errors
    ///
    /// If our own cgroup cannot be asked.
    pub fn foreign(&self) -> Result<Vec<ForeignProgram>, BpfError> {
        let mut own = Vec::new();
        for (_, fd) in &self.programs {
            own.extend(sys::program_id(fd.as_fd()));
        }
        own.extend(pins::attached_ids(self.pins.root()));
        scan(&self.cgroup, &own).map_err(|source| BpfError::Cgroup {
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
    scan(cgroup, &[])
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

fn scan(cgroup: &Path, own: &[u32]) -> io::Result<Vec<ForeignProgram>> {
    let mut found = Vec::new();
    let below = File::open(cgroup)?;
    for directory in ancestors(cgroup) {
        // What is attached above us runs for our cgroup.
        look(&directory, below.as_fd(), own, &mut found)?;
    }
    let mut waiting = vec![cgroup.to_owned()];
    let mut seen = 0;
    while let Some(directory) = waiting.pop() {
        seen += 1;
        if seen > MOST_DIRECTORIES {
            tracing::warn!(
                directories = seen,
                "too many cgroups, foreign programs below are not looked for"
            );
            break;
        }
        // A cgroup that goes away meanwhile has no programs.
        if let Ok(file) = File::open(&directory) {
            look(&directory, file.as_fd(), own, &mut found).or_else(ignore_gone)?;
        }
        waiting.extend(children(&directory));
    }
    Ok(found)
}

fn ignore_gone(error: io::Error) -> io::Result<()> {
    let gone = [libc::ENODEV, libc::ENOENT].map(Some);
    if gone.contains(&error.raw_os_error()) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Adds what is attached to `directory`; the order is that of the programs that run for `runs_for`.
fn look(
    directory: &Path,
    runs_for: BorrowedFd<'_>,
    own: &[u32],
    found: &mut Vec<ForeignProgram>,
) -> io::Result<()> {
    let file = File::open(directory)?;
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
    Ok(())
}

/// The cgroups above, up to the root of the hierarchy.
fn ancestors(cgroup: &Path) -> Vec<PathBuf> {
    let is_cgroup =
        |path: &&Path| statfs(*path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let above = cgroup.ancestors().skip(1);
    above.take_while(is_cgroup).map(Path::to_owned).collect()
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
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
}
