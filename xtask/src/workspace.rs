//! Where things are: the workspace, cargo's target directory, the cache that outlives it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Tools that were installed for Millrace; outside the target directory, so that `cargo clean`
/// and fresh checkouts keep them.
pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(&env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("millrace"))
}

/// Where `cargo install --root` puts tools.
pub(crate) fn tools_dir() -> anyhow::Result<PathBuf> {
    Ok(cache_dir()?.join("tools"))
}

/// The first executable of this name on `PATH`, with the sbin directories that a user's often lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
