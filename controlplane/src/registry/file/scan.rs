//! What there is in the directory, and which of it is different.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::pending::Due;

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
    has_links: bool,
}

impl Scanner {
    pub(super) fn new(directory: PathBuf) -> Self {
        let identity = identity(&directory);
        Self {
            directory,
            identity,
            seen: BTreeMap::new(),
            has_links: false,
        }
    }

    /// Whether the directory is still the one that was watched.
    pub(super) fn is_same_directory(&mut self) -> bool {
        let now = identity(&self.directory);
        std::mem::replace(&mut self.identity, now) == now
    }

    /// Finds and reads what is new or different. Files that are due by name are read whatever they look
    /// like, since two writes within one tick of the file system's clock look the same; files that
    /// somebody has `open` for writing are left as they were. Where the names say all, nothing else is
    /// looked at, however much there is.
    pub(super) fn scan(&mut self, due: &Due, open: impl Fn(&Path) -> bool) -> io::Result<Scan> {
        if !due.all
            && !self.has_links
            && let Some(scan) = self.scan_files(&due.paths, &open)
        {
            return Ok(scan);
        }
        self.scan_all(&due.paths, open)
    }

    fn scan_all(
        &mut self,
        due: &BTreeSet<PathBuf>,
        open: impl Fn(&Path) -> bool,
    ) -> io::Result<Scan> {
        let mut found = Found::default();
        found.list(&self.directory, &self.directory, 0)?;
        self.has_links = found.has_links;
        let found = found.files;
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

    /// Looks at these paths alone; none where one of them is no file, so that others may come or go with it.
    fn scan_files(
        &mut self,
        paths: &BTreeSet<PathBuf>,
        open: impl Fn(&Path) -> bool,
    ) -> Option<Scan> {
        let mut scan = Scan::default();
        let mut seen = Vec::new();
        for path in paths {
            let below = path.strip_prefix(&self.directory).ok()?;
            let name = below.display().to_string();
            let metadata = match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_file() => Some(metadata),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                _ => return None,
            };
            let Some(metadata) = metadata else {
                let inside = format!("{name}/");
                let mut after = self.seen.range(inside.clone()..);
                if after
                    .next()
                    .is_some_and(|(name, _)| name.starts_with(&inside))
                {
                    return None;
                }
                if self.seen.contains_key(&name) {
                    scan.gone.push(name);
                }
                continue;
            };
            let visible = !below.iter().any(|part| is_hidden(Path::new(part)));
            let reachable = below.components().count() <= MAX_DEPTH + 1;
            if visible && reachable && is_configuration(path) && !open(path) {
                scan.read.push((name.clone(), read(path, metadata.len())));
                seen.push((name, Stamp::of(&metadata)));
            }
        }
        for name in &scan.gone {
            self.seen.remove(name);
        }
        self.seen.extend(seen);
        Some(scan)
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

/// Configuration files by their path below the root.
#[derive(Debug, Default)]
struct Found {
    files: BTreeMap<String, (PathBuf, Stamp)>,
    /// Whether anything is a symbolic link, so that a file changes with what has another name.
    has_links: bool,
}

impl Found {
    /// Lists a directory. Hidden files are left out: editors' and Kubernetes' own (`..data`) are among them.
    fn list(&mut self, root: &Path, directory: &Path, depth: usize) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            self.has_links |= entry.file_type().is_ok_and(|it| it.is_symlink());
            if is_hidden(&path) {
                continue;
            }
            // A file may vanish between being listed and being looked at.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() && depth < MAX_DEPTH {
                match self.list(root, &path, depth + 1) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            } else if metadata.is_file() && is_configuration(&path) {
                let below = path.strip_prefix(root).unwrap_or(&path);
                let name = below.display().to_string();
                self.files.insert(name, (path, Stamp::of(&metadata)));
            }
        }
        Ok(())
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_configuration(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(directory: &Path, names: &[&str]) -> Due {
        Due {
            paths: names.iter().map(|name| directory.join(name)).collect(),
            all: false,
        }
    }

    /// Names of what was read, and of what is gone.
    fn look(scanner: &mut Scanner, due: &Due) -> (Vec<String>, Vec<String>) {
        let scan = scanner.scan(due, |_| false).unwrap();
        (
            scan.read.into_iter().map(|(name, _)| name).collect(),
            scan.gone,
        )
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// A directory that was seen as it is.
    fn seen() -> (tempfile::TempDir, Scanner) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        for name in ["a.yaml", "b.yaml", "below/c.yaml"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let mut scanner = Scanner::new(directory.path().to_owned());
        let all = Due {
            all: true,
            ..Due::default()
        };
        assert_eq!(look(&mut scanner, &all).0.len(), 3);
        (directory, scanner)
    }

    #[test]
    fn a_file_that_is_named_is_looked_at_alone() {
        let (directory, mut scanner) = seen();
        let path = directory.path();
        fs::write(path.join("a.yaml"), "new").unwrap();
        fs::write(path.join("b.yaml"), "nobody said so").unwrap();
        fs::write(path.join(".hidden.yaml"), "").unwrap();
        fs::write(path.join("notes.txt"), "").unwrap();
        fs::remove_file(path.join("below/c.yaml")).unwrap();
        let told = due(
            path,
            &["a.yaml", ".hidden.yaml", "notes.txt", "below/c.yaml"],
        );
        assert_eq!(
            look(&mut scanner, &told),
            (names(&["a.yaml"]), names(&["below/c.yaml"]))
        );
        let all = Due {
            all: true,
            ..Due::default()
        };
        assert_eq!(look(&mut scanner, &all), (names(&["b.yaml"]), names(&[])));
    }

    #[test]
    fn what_comes_and_goes_with_a_directory_or_a_link_is_found() {
        let (directory, mut scanner) = seen();
        let path = directory.path();
        fs::rename(path.join("below"), path.join("other")).unwrap();
        assert_eq!(
            look(&mut scanner, &due(path, &["below"])),
            (names(&["other/c.yaml"]), names(&["below/c.yaml"]))
        );
        fs::write(path.join(".target"), "1").unwrap();
        std::os::unix::fs::symlink(".target", path.join("link.yaml")).unwrap();
        let told = due(path, &["link.yaml"]);
        assert_eq!(
            look(&mut scanner, &told),
            (names(&["link.yaml"]), names(&[]))
        );
        // What the link leads to has another name.
        fs::write(path.join(".target"), "another length").unwrap();
        let told = due(path, &[".target"]);
        assert_eq!(
            look(&mut scanner, &told),
            (names(&["link.yaml"]), names(&[]))
        );
    }
}
