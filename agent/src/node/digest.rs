//! A digest over everything that the proxy is started with: its arguments and watched files.
//!
//! Equal digests mean that a running proxy is as desired (R25).

use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// The first eight bytes of a SHA-256 over `args` and the contents of `files`; a directory counts
/// with every file directly in it, a file that cannot be read counts as absent.
pub(super) fn of(args: &[String], files: &[PathBuf]) -> u64 {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update(bytes.len().to_be_bytes());
        hash.update(bytes);
    };
    for arg in args {
        field(arg.as_bytes());
    }
    for file in expand(files) {
        field(file.as_os_str().as_encoded_bytes());
        field(&fs::read(&file).unwrap_or_default());
    }
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn expand(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for file in files {
        match fs::read_dir(file) {
            Ok(entries) => {
                all.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            }
            Err(_) => all.push(file.clone()),
        }
    }
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_or_argument_changes_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cert.pem");
        fs::write(&file, "one").unwrap();
        let watched = [dir.path().to_owned()];
        let args = ["--workers".to_owned()];
        let first = of(&args, &watched);
        assert_eq!(first, of(&args, &watched));
        fs::write(&file, "two").unwrap();
        assert_ne!(first, of(&args, &watched));
        fs::write(&file, "one").unwrap();
        assert_ne!(first, of(&[], &watched));
    }
}
