//! `cargo xtask clean-host`: removes what runs left behind, and runs that were kept on purpose.

use millrace_testkit::clean;
pub(crate) use millrace_testkit::clean::traces;

use crate::ui;

pub(crate) fn run() -> anyhow::Result<()> {
    let removed = clean::all()?;
    if removed.is_empty() {
        ui::result("nothing was left behind");
    }
    for line in removed {
        ui::result(line);
    }
    Ok(())
}
