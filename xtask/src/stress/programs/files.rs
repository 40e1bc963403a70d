//! Files of tagged bytes, which programs serve that know nothing of tags.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::stress::tag::{Tag, Way};

/// Around what matters: nothing, heads, sixteen KiB, the cap, more than a socket holds.
const LENGTHS: [usize; 16] = [
    0, 1, 17, 100, 400, 1000, 2500, 4096, 9000, 15_900, 16_384, 17_000, 40_000, 70_000, 300_000,
    1_000_000,
];

/// A file, known by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    index: u32,
    pub(super) length: usize,
}

impl File {
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.index, self.length)
    }

    fn parse(name: &str) -> Option<Self> {
        let (index, length) = name.split_once('-')?;
        Some(Self {
            index: index.parse().ok()?,
            length: length.parse().ok()?,
        })
    }

    pub(super) fn tag(&self, run: u32) -> Tag {
        Tag {
            run,
            number: u32::MAX - self.index,
            way: Way::Down,
        }
    }

    /// Writes all files into a directory.
    pub(super) fn write_all(dir: &Path, run: u32) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        for (index, length) in (0..).zip(LENGTHS) {
            let file = Self { index, length };
            let path = dir.join(file.name());
            fs::write(&path, file.tag(run).bytes(0, length))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// The files of a directory.
    pub(super) fn list(dir: &Path) -> anyhow::Result<Vec<Self>> {
        let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
        let mut files: Vec<Self> = entries
            .filter_map(|entry| Self::parse(entry.ok()?.file_name().to_str()?))
            .collect();
        files.sort_by_key(|file| file.index);
        anyhow::ensure!(!files.is_empty(), "no files in {}", dir.display());
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name() {
        let file = File {
            index: 3,
            length: 100,
        };
        assert_eq!(File::parse(&file.name()), Some(file));
        assert_eq!(File::parse("index.html"), None);
    }
}
