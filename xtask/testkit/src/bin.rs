//! Finding the binaries under test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, bail, ensure};

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
        duplicate(&program, &copy)?;
    }
    Ok(copy)
}

/// Copies `program` by a process of its own: a descriptor that writes to it in this process would be inherited by
/// whatever another thread starts meanwhile, and the copy could not be executed until that one's exec (ETXTBSY).
/// The copy gets its name only when it is whole.
fn duplicate(program: &Path, copy: &Path) -> anyhow::Result<()> {
    let mut partial = copy.as_os_str().to_owned();
    partial.push(format!(".{:?}", thread::current().id()));
    let status = Command::new("cp")
        .arg("--")
        .arg(program)
        .arg(&partial)
        .status()
        .context("running cp")?;
    ensure!(
        status.success(),
        "copying {} to {}: cp ended with {status}",
        program.display(),
        copy.display()
    );
    fs::rename(&partial, copy).with_context(|| format!("naming {}", copy.display()))
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_copy_can_be_executed_while_other_threads_start_processes() {
        let dir = std::env::temp_dir().join(format!("millrace-copies-{}", std::process::id()));
        let closed = dir.join("closed");
        fs::create_dir_all(&closed).unwrap();
        fs::copy("/bin/true", closed.join("true")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        // A child of its own, as long as it takes to reach exec.
                        assert!(Command::new("/bin/true").status().unwrap().success());
                    }
                });
            }
            let busy = (0..200).find_map(|round: u32| {
                let copies = dir.join(round.to_string());
                let copy = reachable(&closed.join("true"), &copies).unwrap();
                Command::new(copy).status().err()
            });
            done.store(true, Ordering::Relaxed);
            assert!(busy.is_none(), "{busy:?}");
        });
        fs::remove_dir_all(&dir).unwrap();
    }
}
