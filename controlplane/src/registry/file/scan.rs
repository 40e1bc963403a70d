//! What there is in the directory, and which of it is different.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directories below the configuration directory are followed this deep, links included.
const MAX_DEPTH: usize = 8;
/// Larger files are refused: Kubernetes itself takes no object of this size.
const MAX_FILE: u64 = 32 * 1024 * 1024;

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Names and texts of files that are new or different.
    pub(super) read: Vec<(String, io::Result<String>)>,
    /// Names of files that are gone.
    pub(super) gone: Vec<String>,
}

/// Remembers what was seen.
#[derive(Debug)]
pub(super) struct Scanner {
    directory: PathBuf,
    identity: Option<(u64, u64)>,
    seen: BTreeMap<String, Stamp>,
}

impl Scanner {
    pub(super) fn new(directory: PathBuf) -> Self {
        let identity = identity(&directory);
        Self {
            directory,
            identity,
            seen: BTreeMap::new(),
        }
    }

    /// Whether the directory is still the one that was watched.
    pub(super) fn is_same_directory(&mut self) -> bool {
        let now = identity(&self.directory);
        std::mem::replace(&mut self.identity, now) == now
    }

    /// Finds and reads what is new or different. Files that are `due` are read whatever they look
    /// like, since two writes within one tick of the file system's clock look the same; files that
    /// somebody has `open` for writing are left as they were.
    pub(super) fn scan(
        &mut self,
        due: &BTreeSet<PathBuf>,
        open: impl Fn(&Path) -> bool,
    ) -> io::Result<Scan> {
        let mut found = BTreeMap::new();
        list(&self.directory, &self.directory, 0, &mut found)?;
        let mut scan = Scan::default();
        for (name, (path, stamp)) in &found {
            if open(path) {
                continue;
            }
            if self.seen.get(name) != Some(stamp) || due.contains(path) {
                scan.read.push((name.clone(), read(path, stamp.length)));
            }
        }
        scan.gone = self
            .seen
            .keys()
            .filter(|name| !found.contains_key(*name))
            .cloned()
            .collect();
        let before = std::mem::take(&mut self.seen);
        for (name, (path, stamp)) in found {
            // An open file is not seen in its new form.
            let stamp = if open(&path) {
                before.get(&name).copied()
            } else {
                Some(stamp)
            };
            self.seen.extend(stamp.map(|stamp| (name, stamp)));
        }
        Ok(scan)
    }
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

fn read(path: &Path, length: u64) -> io::Result<String> {
    if length > MAX_FILE {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_FILE} bytes"
        )));
    }
    fs::read_to_string(path)
}

/// Lists configuration files by their path below the root. Hidden ones are left out: editors' and
/// Kubernetes' own (`..data`) are among them.
fn list(
    root: &Path,
    directory: &Path,
    depth: usize,
    found: &mut BTreeMap<String, (PathBuf, Stamp)>,
) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // A file may vanish between being listed and being looked at.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if hidden {
            continue;
        }
        if metadata.is_dir() && depth < MAX_DEPTH {
            match list(root, &path, depth + 1, found) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        } else if metadata.is_file() && is_configuration(&path) {
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .display()
                .to_string();
            found.insert(name, (path, Stamp::of(&metadata)));
        }
    }
    Ok(())
}

fn is_configuration(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension))
}
