//! Finding the binaries under test.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The path of one of the workspace's binaries: `MILLRACE_BIN_DIR` where it is set, else beside the
/// running test or tool, else the newest of the target directory's `release` and `debug`.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("MILLRACE_BIN_DIR") {
        let path = Path::new(&dir).join(name);
        if path.is_file() {
            return Ok(path);
        }
        bail!(
            "MILLRACE_BIN_DIR has no {name}: {} is not a file",
            path.display()
        );
    }
    let target = target_dir()?;
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join(name))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max_by_key(|(modified, _)| *modified)
        .map(|(_, path)| path)
        .with_context(|| {
            format!(
                "{name} is not built below {}; run `cargo xtask build`",
                target.display()
            )
        })
}

/// Where cargo put the running executable: `<target>/<profile>/[deps/]name`.
fn target_dir() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe().context("finding the running executable")?;
    let profile = executable
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps") && !dir.ends_with("examples"));
    profile
        .and_then(Path::parent)
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not in a target directory", executable.display()))
}
