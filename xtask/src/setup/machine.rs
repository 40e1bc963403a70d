//! What `cargo xtask vmtest` needs besides: an emulator of a whole machine, and kernels to boot in it.
//!
//! Not a part of the ordinary setup: it is a hundred megabytes that neither building nor testing on the
//! running kernel uses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{Mode, Outcome, packages};
use crate::run;
use crate::ui;
use crate::workspace::find_program;

/// What is run, and the Debian package it is in.
const PROGRAMS: [(&str, &str); 6] = [
    ("dpkg-deb", "dpkg"),
    ("ldd", "libc-bin"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    packages::provide_programs(&PROGRAMS, mode)
}

/// A Debian kernel package, unpacked.
#[derive(Clone, Debug)]
pub(crate) struct KernelPackage {
    /// The package's name and version.
    pub(crate) name: String,
    /// Its release, as the kernel calls itself.
    pub(crate) release: String,
    /// Where it is unpacked.
    pub(crate) root: PathBuf,
}

impl KernelPackage {
    /// The image to boot.
    pub(crate) fn image(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The directory of its modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// The newest kernel of a series, as `6.1`, that the configured package sources have, unpacked below `dir`.
///
/// # Errors
///
/// If there is none, or it cannot be fetched; the text says which.
pub(crate) fn kernel_package(series: &str, dir: &Path) -> anyhow::Result<KernelPackage> {
    if !packages::has_apt() {
        bail!("Debian's kernels come through apt-get, which is not here");
    }
    let names = || packages::newest_first(&format!("linux-image-{series}."), "-cloud-amd64");
    let mut found = names()?;
    if found.is_empty() {
        packages::update()?;
        found = names()?;
    }
    let Some((name, version)) = found.into_iter().next() else {
        bail!("no configured package source has linux-image-{series}.*-cloud-amd64");
    };
    let release = name.trim_start_matches("linux-image-").to_owned();
    let root = dir.join(format!("{name}_{}", version.replace(':', "-")));
    let package = KernelPackage {
        name: format!("{name} {version}"),
        release,
        root,
    };
    if !package.image().is_file() {
        unpack(&name, &package.root)?;
    }
    if !package.image().is_file() {
        bail!("{} holds no {}", package.name, package.image().display());
    }
    Ok(package)
}

/// Downloads and unpacks; what stands at `root` in the end is whole.
fn unpack(name: &str, root: &Path) -> anyhow::Result<()> {
    ui::say(format_args!("downloading {name}"));
    let beside = |what: &str| {
        let mut path = root.as_os_str().to_owned();
        path.push(what);
        PathBuf::from(path)
    };
    let (unpacked, fetched) = (beside(".new"), beside(".deb"));
    for dir in [&unpacked, &fetched] {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    packages::download(name, &fetched)?;
    let archive = fs::read_dir(&fetched)
        .with_context(|| format!("reading {}", fetched.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get brought no file for {name}"))?;
    let program = find_program("dpkg-deb").context("no dpkg-deb")?;
    run::check(run::foreign(program).arg("-x").arg(&archive).arg(&unpacked))
        .with_context(|| format!("unpacking {name}"))?;
    fs::remove_dir_all(&fetched).with_context(|| format!("removing {}", fetched.display()))?;
    fs::rename(&unpacked, root).with_context(|| format!("making {}", root.display()))
}
