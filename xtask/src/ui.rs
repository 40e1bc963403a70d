//! What a person sees: progress on stderr, results on stdout.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// A failure whose report the command has written already; its last line stays the last.
#[derive(Debug)]
pub(crate) struct Reported;

impl std::error::Error for Reported {}

impl Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed, as reported")
    }
}

/// Writes a result line to stdout.
pub(crate) fn result(line: impl Display) {
    // A reader that went away (`| head`) is no failure of the command.
    writeln!(std::io::stdout().lock(), "{line}").ok();
}

/// Writes a line of progress to stderr.
pub(crate) fn say(line: impl Display) {
    eprintln!("{line}");
}

/// Announces a step and tells how long it took when dropped.
pub(crate) struct Step {
    name: String,
    started: Instant,
}

impl Step {
    pub(crate) fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        say(format_args!("{} {name}", bold("==>")));
        Self {
            name,
            started: Instant::now(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        say(format_args!(
            "{} {} ({})",
            bold("<=="),
            self.name,
            seconds(self.elapsed())
        ));
    }
}

pub(crate) fn seconds(time: Duration) -> String {
    let total = time.as_secs();
    if total >= 60 {
        format!("{} min {:02} s", total / 60, total % 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

pub(crate) fn bold(text: impl Display) -> String {
    paint("1", text)
}

pub(crate) fn green(text: impl Display) -> String {
    paint("32", text)
}

pub(crate) fn red(text: impl Display) -> String {
    paint("31", text)
}

pub(crate) fn dim(text: impl Display) -> String {
    paint("2", text)
}

fn paint(code: &str, text: impl Display) -> String {
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_string()
    }
}
