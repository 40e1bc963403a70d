//! The guest's file system: test programs, the agent, this program, the system programs that tests run, the libraries
//! of all of them, and a kernel's modules.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::cpio::Archive;
use super::event::{PLAN, Plan};
use super::modules;
use crate::run;
use crate::workspace::find_program;

/// This program, the guest's first process.
pub(super) const FIRST_PROCESS: &str = "/vmtest/xtask";
const MODULES: &str = "/vmtest/modules";

/// What tests and the agent run.
const TOOLS: [&str; 19] = [
    "bash",
    "bpftool",
    "cp",
    "grep",
    "ip",
    "ip6tables",
    "ip6tables-nft-restore",
    "ip6tables-restore",
    "ip6tables-save",
    "iptables",
    "iptables-nft-restore",
    "iptables-restore",
    "iptables-save",
    "mv",
    "nft",
    "nsenter",
    "sh",
    "sleep",
    "sysctl",
];
/// Where iptables keeps its extensions, which it opens by name.
const EXTENSIONS: &str = "xtables";

/// Files of every system that pods are given their own versions of.
const SYSTEM_FILES: [(&str, &str); 2] = [
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("/etc/resolv.conf", "nameserver 127.0.0.1\n"),
];

/// What does not depend on the kernel: programs with their libraries, read once.
pub(super) struct Programs {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Programs {
    /// Gathers the programs of a plan: those of the project as built, by where the guest has them.
    pub(super) fn gather(built: &[(PathBuf, PathBuf)], scratch: &Path) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("finding this program")?;
        let this = [(PathBuf::from(FIRST_PROCESS), this)];
        let mut files = Vec::new();
        let mut libraries = BTreeSet::new();
        for (at, path) in this.iter().chain(built) {
            libraries.extend(libraries_of(path)?);
            files.push((at.clone(), stripped(path, scratch)?));
        }
        for path in TOOLS.iter().filter_map(|tool| find_program(tool)) {
            let found = libraries_of(&path)?;
            let extensions = found.iter().filter_map(|library| library.parent());
            for extensions in extensions.map(|dir| dir.join(EXTENSIONS)) {
                // It looks below `/usr`, whatever link led the linker there.
                let at = fs::canonicalize(&extensions).unwrap_or(extensions);
                libraries.extend(files_in(&at));
            }
            libraries.extend(found);
            files.push((path.clone(), read(&path)?));
        }
        for path in libraries {
            let content = read(&path)?;
            files.push((path, content));
        }
        Ok(Self { files })
    }

    /// Writes the archive for one kernel to `image`, completing the plan with the modules that are in it.
    pub(super) fn write(
        &self,
        image: &Path,
        modules: &Path,
        plan: &mut Plan,
    ) -> anyhow::Result<()> {
        let file = File::create(image).with_context(|| format!("making {}", image.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        let writing = || format!("writing {}", image.display());
        for dir in ["/dev", "/proc", "/sys", "/run", "/tmp", "/var"] {
            archive.directory(Path::new(dir)).with_context(writing)?;
        }
        for (path, text) in SYSTEM_FILES {
            archive
                .file(Path::new(path), text.as_bytes())
                .with_context(writing)?;
        }
        plan.modules.clear();
        for (name, content) in modules::wanted(modules)? {
            let path = Path::new(MODULES).join(name);
            archive.file(&path, &content).with_context(writing)?;
            plan.modules.push(path);
        }
        for (path, content) in &self.files {
            archive.file(path, content).with_context(writing)?;
        }
        let text = serde_json::to_vec(plan).context("the plan as JSON")?;
        archive.file(Path::new(PLAN), &text).with_context(writing)?;
        archive.finish().with_context(writing)?;
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A program without its debug information, which is most of it.
fn stripped(path: &Path, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let program = find_program("strip").context("no strip")?;
    let smaller = scratch.join("stripped");
    let mut strip = run::foreign(program);
    strip.arg("--strip-debug").arg("-o").arg(&smaller).arg(path);
    run::check(&mut strip)?;
    let content = read(&smaller)?;
    fs::remove_file(&smaller).with_context(|| format!("removing {}", smaller.display()))?;
    Ok(content)
}

/// The shared libraries that a program is linked with, its loader included.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let ldd = find_program("ldd").context("no ldd")?;
    let output = run::quiet(run::foreign(ldd).arg(program))?;
    let listed = String::from_utf8_lossy(&output.stdout);
    // A program that needs none is no dynamic executable, with which ldd is not content.
    let missing = listed.lines().find(|line| line.contains("not found"));
    let program = program.display();
    ensure!(
        missing.is_none(),
        "{program}: {}",
        missing.unwrap_or_default().trim()
    );
    Ok(listed.lines().filter_map(library).collect())
}

/// The path in a line of ldd's: `name => /path (0x…)` or `/path (0x…)`; the kernel's own has none.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
    Some(PathBuf::from(path))
}

/// The files of a directory that need not be there.
fn files_in(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map_or_else(
        |_| Vec::new(),
        |entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.is_file())
                .collect()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let found = |line| library(line).map(|path| path.display().to_string());
        let libc = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)";
        assert_eq!(
            found(libc).as_deref(),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        let loader = "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)";
        assert_eq!(
            found(loader).as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(found("\tlinux-vdso.so.1 (0x00007f)"), None);
    }
}
