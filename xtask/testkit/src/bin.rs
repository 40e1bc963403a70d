//! Finding the binaries under test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
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

/// A path of `program` at which every user may execute it: its own, unless that is below a directory
/// that is closed to others (as `/root` is), else that of a copy in `dir`.
pub(crate) fn reachable(program: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let open = |path: &Path| {
        let mode = path
            .metadata()
            .map(|metadata| metadata.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o001 != 0)
    };
    let program =
        fs::canonicalize(program).with_context(|| format!("finding {}", program.display()))?;
    if program.ancestors().all(open) {
        return Ok(program);
    }
    let name = program
        .file_name()
        .with_context(|| format!("{} names no file", program.display()))?;
    let copy = dir.join(name);
    if !copy.is_file() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        fs::copy(&program, &copy).with_context(|| format!("copying {}", program.display()))?;
    }
    Ok(copy)
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
