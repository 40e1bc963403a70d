//! `cargo xtask lint`: formatting, layout, clippy with warnings denied, and cargo-deny where it is
//! installed.

use crate::run;
use crate::ui::Step;
use crate::workspace::find_program;
use crate::{build, layout, setup};

/// The kernel programs compile for another target only; their own build lints them.
const NOT_FOR_THE_HOST: &str = "millrace-ebpf";

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
    if has_deny() {
        step("deny", deny)?;
    }
    Ok(())
}

pub(crate) fn fmt() -> anyhow::Result<()> {
    run::check(run::cargo().args(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy() -> anyhow::Result<()> {
    let mut cargo = run::cargo();
    cargo.args([
        "clippy",
        "--workspace",
        "--exclude",
        NOT_FOR_THE_HOST,
        "--all-targets",
    ]);
    run::check(cargo.args(["--", "-D", "warnings"]))
}

pub(crate) fn has_deny() -> bool {
    find_program("cargo-deny").is_some()
}

pub(crate) fn deny() -> anyhow::Result<()> {
    run::check(run::cargo().args(["deny", "check"]))
}
