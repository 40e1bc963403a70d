//! clippy and rustfmt of the workspace's own toolchain.

use super::{Mode, Outcome};
use crate::run;
use crate::workspace::find_program;

const COMPONENTS: [&str; 2] = ["clippy", "rustfmt"];

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    let version = run::capture(run::cargo().arg("--version"))?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(Outcome::Found(format!(
            "{version}, {}",
            COMPONENTS.join(", ")
        )));
    }
    let names = missing.join(" ");
    if mode == Mode::Check || find_program("rustup").is_none() {
        return Ok(Outcome::Missing(format!(
            "run `rustup component add {names}`"
        )));
    }
    run::check(
        run::foreign("rustup")
            .args(["component", "add"])
            .args(&missing),
    )?;
    Ok(Outcome::Installed(names))
}

fn missing() -> Vec<&'static str> {
    let runs = |tool: &str| run::capture(run::cargo().args([tool, "--version"])).is_ok();
    let tools = [("clippy", COMPONENTS[0]), ("fmt", COMPONENTS[1])];
    tools
        .iter()
        .filter(|(tool, _)| !runs(tool))
        .map(|(_, component)| *component)
        .collect()
}
