//! `bpf-linker`, built against the system's LLVM into the cache.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{Mode, Outcome, kernel};
use crate::run;
use crate::ui;
use crate::workspace::{cache_dir, find_program, tools_dir};

const VERSION: &str = "0.13.0";
/// The LLVM versions that this version of the linker can be built with, best first.
const LLVM: [u32; 3] = [23, 22, 21];
/// What linking libLLVM wants besides it: a header, and the Debian package it is in.
const LIBRARIES: [(&str, &str); 2] = [
    ("/usr/include/zlib.h", "zlib1g-dev"),
    ("/usr/include/zstd.h", "libzstd-dev"),
];

/// A linker that reads bitcode of LLVM `llvm`: the one in the cache, else one on `PATH`.
pub(crate) fn find(llvm: u32) -> Option<PathBuf> {
    let cached = LLVM
        .iter()
        .filter(|version| **version >= llvm)
        .filter_map(|version| Some(root(*version).ok()?.join("bin/bpf-linker")))
        .find(|path| path.is_file());
    cached.or_else(|| find_program("bpf-linker").filter(|path| reads(path, llvm)))
}

/// Whether a linker that reads this bitcode is here or can be built here.
pub(super) fn could_read(llvm: u32) -> bool {
    find(llvm).is_some() || library(llvm).is_some()
}

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    let Some(toolchain) = kernel::find() else {
        return Ok(Outcome::Missing(
            "comes after rust for the kernel".to_owned(),
        ));
    };
    if let Some(path) = find(toolchain.llvm) {
        return Ok(Outcome::Found(path.display().to_string()));
    }
    if mode == Mode::Check {
        return Ok(Outcome::Missing(format!(
            "bpf-linker {VERSION} for LLVM {}",
            toolchain.llvm
        )));
    }
    let path = install(toolchain.llvm)?;
    Ok(Outcome::Installed(path.display().to_string()))
}

fn install(llvm: u32) -> anyhow::Result<PathBuf> {
    let Some((version, library)) = library(llvm) else {
        bail!("no shared LLVM {llvm} is installed (Debian: libllvm{llvm})");
    };
    let missing: Vec<&str> = LIBRARIES
        .iter()
        .filter(|(header, _)| !Path::new(header).is_file())
        .map(|(_, package)| *package)
        .collect();
    if super::packages::has_apt() && !missing.is_empty() {
        super::packages::install(&missing)?;
    }
    // The linker's build looks for `lib/libLLVM.so` below a prefix; Debian has only the versioned
    // name unless the whole of llvm-dev is installed.
    let prefix = cache_dir()?.join(format!("llvm-{version}"));
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("creating {}", lib.display()))?;
    let link = lib.join("libLLVM.so");
    fs::remove_file(&link).ok();
    symlink(&library, &link).with_context(|| format!("linking {}", link.display()))?;

    ui::say(format_args!(
        "building bpf-linker {VERSION} with {} (a minute or two)",
        library.display()
    ));
    let root = root(version)?;
    let feature = format!("llvm-{version}");
    let mut cargo = run::cargo();
    // Not in the workspace: its lock file, profile and toolchain file are not the tool's.
    cargo
        .current_dir("/")
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--no-default-features",
        ])
        .args(["--features", &feature, "--root"])
        .arg(&root)
        .env("LLVM_PREFIX", &prefix)
        .env_remove("CARGO_TARGET_DIR");
    run::check(&mut cargo).context("building bpf-linker")?;
    find(llvm).context("bpf-linker was built and is not where it was put")
}

fn root(llvm: u32) -> anyhow::Result<PathBuf> {
    Ok(tools_dir()?.join(format!("bpf-linker-{VERSION}-llvm-{llvm}")))
}

/// The newest shared LLVM that reads bitcode of `llvm` and that the linker can be built with.
fn library(llvm: u32) -> Option<(u32, PathBuf)> {
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    LLVM.iter()
        .filter(|version| **version >= llvm)
        .find_map(|version| {
            let places = [
                multiarch.clone(),
                format!("/usr/lib/llvm-{version}/lib"),
                "/usr/lib64".to_owned(),
            ];
            let name = format!("libLLVM.so.{version}");
            places
                .iter()
                .filter_map(|dir| fs::read_dir(dir).ok())
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| {
                    path.file_name()
                        .is_some_and(|file| file.to_string_lossy().starts_with(&name))
                })
                .map(|path| (*version, path))
        })
}

/// Whether a linker found on `PATH` reads this bitcode, by the LLVM it is linked with.
fn reads(linker: &Path, llvm: u32) -> bool {
    let Ok(libraries) = run::capture(run::foreign("ldd").arg(linker)) else {
        return false;
    };
    let version = libraries.lines().find_map(|line| {
        let version = line.trim().strip_prefix("libLLVM.so.")?;
        version.split(['.', '-', ' ']).next()?.parse::<u32>().ok()
    });
    // One that is linked statically does not say; its users chose it.
    version.is_none_or(|version| version >= llvm)
}
