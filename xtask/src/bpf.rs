//! Builds the kernel programs into `target/bpf/millrace-ebpf.o`, where the agent's build script looks.
//!
//! `setup` knows which compilers and linkers are there and prefers rustup's nightly; this module only runs
//! them. The object's place does not follow `CARGO_TARGET_DIR`, so that every build of the agent finds it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::setup::{find_kernel_toolchain, find_linker};
use crate::{run, ui};

/// Where the object is put, below the workspace.
const OBJECT: &str = "target/bpf/millrace-ebpf.o";
const TARGET: &str = "bpfel-unknown-none";
/// The kernel's BTF needs full debug information; the linker turns it into BTF.
const FLAGS: [&str; 6] = [
    "-C",
    "link-arg=--btf",
    "-C",
    "debuginfo=2",
    "--cfg",
    "bpf_target_arch=\"x86_64\"",
];

/// Builds the object and returns its path; says what it used.
///
/// # Errors
///
/// If there is no compiler or linker for it, with what to do; or if the build fails.
pub(crate) fn build(workspace: &Path) -> anyhow::Result<PathBuf> {
    let toolchain = find_kernel_toolchain().context(
        "no compiler for eBPF: neither rustup's nightly with rust-src nor Debian's rustc-web with \
         rust-web-src; run `cargo xtask setup`",
    )?;
    let linker = find_linker(toolchain.llvm).with_context(|| {
        format!(
            "no bpf-linker for LLVM {}; run `cargo xtask setup`",
            toolchain.llvm
        )
    })?;
    ui::say(format_args!(
        "{}, linked by {}",
        toolchain.rustc.display(),
        linker.display()
    ));
    let directory = workspace.join("target/bpf");
    let mut cargo = run::foreign(&toolchain.cargo);
    cargo
        .current_dir(workspace)
        .args(["build", "--release", "--package", "millrace-ebpf"])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&directory)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&linker));
    if toolchain.bootstrap {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    run::check(&mut cargo).context("building the kernel programs")?;
    let object = workspace.join(OBJECT);
    install(
        &directory.join(TARGET).join("release/millrace-ebpf"),
        &object,
    )?;
    Ok(object)
}

/// Compiler flags, parted by the unit separator so that the linker's path may hold spaces.
fn flags(linker: &Path) -> OsString {
    let mut flags = OsString::from("-C\u{1f}linker=");
    flags.push(linker);
    for flag in FLAGS {
        flags.push("\u{1f}");
        flags.push(flag);
    }
    flags
}

/// Replaces the object only if it changed, so that the agent is not rebuilt for nothing.
fn install(built: &Path, object: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(object).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let temporary = object.with_extension("o.new");
    fs::write(&temporary, bytes).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, object).with_context(|| format!("writing {}", object.display()))
}
