//! The demo's voice: stdout for a person, stderr when stdout belongs to JSON.

use std::fmt::Display;

use super::bookinfo::WayIn;
use super::report::Report;
use crate::ui::{self, bold, dim, green, red};

pub(super) struct Narrator {
    aside: bool,
}

impl Narrator {
    pub(super) fn new(json: bool) -> Self {
        Self { aside: json }
    }

    pub(super) fn say(&self, line: impl Display) {
        if self.aside {
            ui::say(line);
        } else {
            ui::result(line);
        }
    }

    pub(super) fn title(&self, title: &str) {
        self.say("");
        self.say(bold(format_args!(
            "── {title} {}",
            "─".repeat(74_usize.saturating_sub(title.chars().count()))
        )));
    }

    /// Text that is somebody else's: a file, a page of the admin port.
    pub(super) fn quote(&self, heading: &str, text: &str) {
        self.say(format_args!("{}", dim(heading)));
        for line in text.lines() {
            self.say(format_args!("    {line}"));
        }
    }

    pub(super) fn check(&self, ok: bool, line: impl Display) {
        let mark = if ok { green("✓") } else { red("✗") };
        self.say(format_args!("{mark} {line}"));
    }

    pub(super) fn verdict(&self, report: &Report) {
        self.title("Verdict");
        for (ok, line) in report.lines() {
            self.check(ok, line);
        }
    }

    pub(super) fn look_around(&self, ways_in: &[WayIn], run: &str) {
        self.title("Left running");
        for WayIn { shows, command } in ways_in {
            self.say(format_args!("{shows}:\n    {command}"));
        }
        self.say(format_args!(
            "Remove it all with:\n    cargo xtask clean-host {run}"
        ));
    }
}
