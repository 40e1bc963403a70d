//! gRPC's own client and server, as Python's package index has them: a peer in tests.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Mode, Outcome, python};
use crate::run;
use crate::workspace::cache_dir;

const REQUIREMENT: &str = "grpcio==1.85.1";

/// A Python that has the package.
pub(crate) fn find() -> Option<PathBuf> {
    let python = environment().ok()?.join("bin/python");
    let mut ask = run::foreign(&python);
    let version = run::capture(ask.args(["-c", "import grpc; print(grpc.__version__)"])).ok()?;
    let wanted = REQUIREMENT.rsplit('=').next();
    (Some(version.trim()) == wanted).then_some(python)
}

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    if let Some(path) = find() {
        return Ok(Outcome::Found(path.display().to_string()));
    }
    if mode == Mode::Check {
        return Ok(Outcome::Missing(format!("{REQUIREMENT} from PyPI")));
    }
    python::install(&environment()?, REQUIREMENT)?;
    let path = find().context("Python does not find the package that was installed")?;
    Ok(Outcome::Installed(path.display().to_string()))
}

fn environment() -> anyhow::Result<PathBuf> {
    Ok(cache_dir()?.join("grpc"))
}
