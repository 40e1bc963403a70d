//! `cargo xtask lint`: formatting, layout, clippy with warnings denied, and what dependencies may be.

use crate::run;
use crate::ui::{self, Step};
use crate::{bpf, build, dependencies, layout, setup, workspace};

/// The kernel programs compile for another target, with a toolchain of their own; fuzz targets bring a C++
/// library along, and their own build denies warnings.
const NOT_LINTED_HERE: [&str; 5] = [
    "millrace-ebpf",
    "millrace-agent-fuzz",
    "millrace-proxy-fuzz",
    "millrace-controlplane-fuzz",
    "millrace-xds-fuzz",
];

/// What is said where the kernel programs cannot be linted.
pub(crate) const NO_CLIPPY_BPF: &str =
    "SKIP: the compiler for the kernel programs has no clippy (Debian: rust-web-clippy)";

pub(crate) fn run() -> anyhow::Result<()> {
    setup::ensure_for_build()?;
    let step = |name: &str, check: fn() -> anyhow::Result<()>| {
        let _step = Step::begin(name);
        check()
    };
    step("fmt", fmt)?;
    step("layout", layout::run)?;
    build::kernel_programs()?;
    step("clippy", clippy)?;
    step("clippy (kernel programs)", || {
        if !clippy_bpf()? {
            ui::say(NO_CLIPPY_BPF);
        }
        Ok(())
    })?;
    step("dependencies", dependencies::run)
}

pub(crate) fn fmt() -> anyhow::Result<()> {
    run::check(run::cargo().args(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy() -> anyhow::Result<()> {
    let mut cargo = run::cargo();
    cargo.args(["clippy", "--workspace", "--all-targets"]);
    for package in NOT_LINTED_HERE {
        cargo.args(["--exclude", package]);
    }
    run::check(cargo.args(["--", "-D", "warnings"]))
}

/// Clippy for the kernel programs; whether there was one.
pub(crate) fn clippy_bpf() -> anyhow::Result<bool> {
    bpf::lint(&workspace::root())
}
