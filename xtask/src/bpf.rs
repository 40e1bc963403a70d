//! Builds the kernel programs into `target/bpf/millrace-ebpf.o`, where the agent's build script looks.
//!
//! `setup` knows which compilers and linkers are there and prefers rustup's nightly; this module only runs
//! them. The object's place does not follow `CARGO_TARGET_DIR`, so that every build of the agent finds it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::setup::{KernelToolchain, find_kernel_toolchain, find_linker};
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
    let tools = Tools::find()?;
    ui::say(format_args!(
        "{}, linked by {}",
        tools.toolchain.rustc.display(),
        tools.linker.display()
    ));
    let mut cargo = tools.cargo(workspace, "build");
    run::check(cargo.arg("--release")).context("building the kernel programs")?;
    let object = workspace.join(OBJECT);
    let built = directory(workspace)
        .join(TARGET)
        .join("release/millrace-ebpf");
    install(&built, &object)?;
    Ok(object)
}

/// Lints the kernel programs as they are compiled for the kernel; returns whether there is a clippy to do so.
///
/// # Errors
///
/// If there is no compiler or linker, or clippy finds something.
pub(crate) fn lint(workspace: &Path) -> anyhow::Result<bool> {
    let tools = Tools::find()?;
    let Some(clippy) = tools.toolchain.clippy() else {
        return Ok(false);
    };
    // What `cargo clippy` does; as a subcommand rustup's would be found, which is of another version.
    let mut cargo = tools.cargo(workspace, "check");
    cargo.env("RUSTC_WORKSPACE_WRAPPER", clippy).env(
        "CLIPPY_ARGS",
        "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
    );
    run::check(&mut cargo).context("linting the kernel programs")?;
    Ok(true)
}

/// What compiles and links for the kernel.
struct Tools {
    toolchain: KernelToolchain,
    linker: PathBuf,
}

impl Tools {
    fn find() -> anyhow::Result<Self> {
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
        Ok(Self { toolchain, linker })
    }

    /// A command of cargo for the kernel programs.
    fn cargo(&self, workspace: &Path, subcommand: &str) -> Command {
        let mut cargo = run::foreign(&self.toolchain.cargo);
        cargo
            .current_dir(workspace)
            .args([subcommand, "--package", "millrace-ebpf"])
            .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
            .arg(directory(workspace))
            .env("RUSTC", &self.toolchain.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&self.linker));
        if self.toolchain.bootstrap {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        cargo
    }
}

fn directory(workspace: &Path) -> PathBuf {
    workspace.join("target/bpf")
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
