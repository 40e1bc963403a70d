//! Counts what test programs report: results, skips, and what the kernel makes impossible.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context as _;

use crate::{run, ui};

/// What a stage's tests came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// `SKIP: reason` lines: what this machine lacks.
    pub(crate) skipped: Vec<String>,
    /// `N/A: reason` lines: what its kernel makes impossible.
    pub(crate) not_applicable: Vec<String>,
}

impl Tally {
    /// A check that has no tests of its own counts as one.
    pub(crate) fn of(outcome: &anyhow::Result<()>) -> Self {
        if let Err(error) = outcome {
            ui::say(format_args!("error: {error:#}"));
        }
        let passed = u64::from(outcome.is_ok());
        Self {
            passed,
            failed: 1 - passed,
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend_from_slice(&other.skipped);
        self.not_applicable.extend_from_slice(&other.not_applicable);
    }

    /// Runs test programs, shows what they print, and counts. A command that fails without a failed
    /// test (it did not compile, say) counts as one failure.
    pub(crate) fn run(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", run::shown(command)))?;
        let stdout = child.stdout.take().context("the child's stdout")?;
        let stderr = child.stderr.take().context("the child's stderr")?;
        let (mut tally, from_stderr) = thread::scope(|scope| {
            let other = scope.spawn(move || Self::read(stderr));
            (Self::read(stdout), other.join().unwrap_or_default())
        });
        tally.add(&from_stderr);
        let status = child.wait().context("waiting for the tests")?;
        if !status.success() && tally.failed == 0 {
            tally.failed = 1;
        }
        Ok(tally)
    }

    fn read(output: impl Read) -> Self {
        let mut tally = Self::default();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            eprintln!("{line}");
            tally.count(&line);
        }
        tally
    }

    fn count(&mut self, line: &str) {
        let line = line.trim();
        if let Some(result) = line.strip_prefix("test result: ") {
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let count = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                match words.next() {
                    Some("passed") => self.passed += count,
                    Some("failed") => self.failed += count,
                    _ => {}
                }
            }
        } else if line.starts_with("SKIP: ") {
            self.skipped.push(line.to_owned());
        } else if line.starts_with("N/A: ") {
            self.not_applicable.push(line.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_skips_are_counted() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
            "SKIP: needs root [a_test]",
            "N/A: ktls: the kernel has none",
            "the word SKIP: elsewhere",
        ] {
            tally.count(line);
        }
        assert_eq!((tally.passed, tally.failed), (15, 2));
        assert_eq!((tally.skipped.len(), tally.not_applicable.len()), (1, 1));
    }
}
