//! Packages of Python's index, each in a virtual environment of its own.

use std::path::Path;

use anyhow::Context as _;

use super::packages;
use crate::run;
use crate::ui;

/// Makes the environment anew, with this package in it.
pub(super) fn install(environment: &Path, requirement: &str) -> anyhow::Result<()> {
    ui::say(format_args!("installing {requirement} from PyPI"));
    let make = || {
        let mut python = run::foreign("python3");
        run::capture(python.args(["-m", "venv", "--clear"]).arg(environment))
    };
    if make().is_err() {
        // Debian's python3 comes without what a virtual environment needs.
        packages::install(&["python3-venv"])?;
        make().context("making a Python virtual environment")?;
    }
    let pip = environment.join("bin/pip");
    run::check(run::foreign(&pip).args(["install", "--quiet", requirement]))
        .with_context(|| format!("installing {requirement}"))
}
