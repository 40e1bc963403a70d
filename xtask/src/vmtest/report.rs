//! What came of every kernel: a record that can be written as JSON, and the table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::event::{Finished, Outcome};
use super::suites::{PARTS, part_of};

/// What came of one kernel.
#[derive(Debug, Default, Serialize)]
pub(super) struct Record {
    /// The series that was asked for.
    pub(super) series: String,
    /// The package, if it could be had.
    pub(super) package: Option<String>,
    /// The kernel's name for itself.
    pub(super) release: Option<String>,
    /// Why the kernel could not be had.
    pub(super) not_available: Option<String>,
    /// Why the run ended before all tests had.
    pub(super) trouble: Option<String>,
    /// What `millrace-agent probe` printed.
    pub(super) probe: Value,
    /// How many tests were to be run.
    pub(super) listed: usize,
    /// The tests that ended.
    pub(super) tests: Vec<Finished>,
    /// Warnings and faults in the kernel's own log.
    pub(super) kernel_warnings: Vec<String>,
    /// From power-on to the end.
    pub(super) seconds: f64,
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) not_applicable: usize,
    pub(super) skipped: usize,
    pub(super) timed_out: usize,
}

impl Count {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::NotApplicable { .. } => self.not_applicable += 1,
            Outcome::Skipped { .. } => self.skipped += 1,
            Outcome::Failed { .. } => self.failed += 1,
            Outcome::TimedOut { .. } => self.timed_out += 1,
        }
    }

    fn shown(self) -> String {
        let mut text = format!("{} passed", self.passed);
        let rest = [
            (self.failed, "failed"),
            (self.timed_out, "timed out"),
            (self.skipped, "skipped"),
            (self.not_applicable, "not applicable"),
        ];
        for (count, what) in rest.into_iter().filter(|(count, _)| *count > 0) {
            write!(text, ", {count} {what}").ok();
        }
        text
    }
}

impl Record {
    /// Whether all that was to be done here was done and went well; `strict` is content with no skipped test.
    pub(super) fn is_good(&self, strict: bool) -> bool {
        let count = self.count();
        self.trouble.is_none()
            && count.failed + count.timed_out == 0
            && !(strict && count.skipped > 0)
            && self.tests.len() == self.listed
            && self.kernel_warnings.is_empty()
    }

    pub(super) fn count(&self) -> Count {
        let mut count = Count::default();
        for test in &self.tests {
            count.add(&test.outcome);
        }
        count
    }

    /// What the probe found, by feature: `yes`, or why not.
    fn features(&self) -> Vec<(String, Result<(), String>)> {
        let kernel = &self.probe["kernel"];
        let lists = [("", "features"), ("acceleration: ", "acceleration")];
        let mut found = Vec::new();
        for (prefix, list) in lists {
            for feature in kernel[list].as_array().into_iter().flatten() {
                let name = format!("{prefix}{}", feature["name"].as_str().unwrap_or("?"));
                let verdict = if feature["verdict"] == "available" {
                    Ok(())
                } else {
                    Err(feature["reason"].as_str().unwrap_or("missing").to_owned())
                };
                found.push((name, verdict));
            }
        }
        found
    }

    /// What takes the place of what is missing.
    fn degradation(&self) -> String {
        let has = |what: &str| self.probe[what]["available"] == true;
        let capture = match (has("ebpf"), has("iptables")) {
            (true, _) => "captured by eBPF",
            (false, true) => "captured by iptables",
            (false, false) => "not captured",
        };
        let bytes = if has("ebpf") && has("acceleration") {
            "accelerated by sk_msg"
        } else {
            "carried by plain TCP"
        };
        format!("{capture}, {bytes}")
    }
}

/// The table, in Markdown, with the reasons of every `no` and the output of every failure below it.
pub(super) fn table(records: &[Record]) -> String {
    let tried: Vec<&Record> = records
        .iter()
        .filter(|record| record.package.is_some())
        .collect();
    let mut notes = Vec::new();
    let mut rows = vec![row("", &tried, |record| format!("Linux {}", record.series))];
    rows.push(row("release", &tried, |record| {
        record.release.clone().unwrap_or_else(|| "–".to_owned())
    }));
    rows.push(row("pods are", &tried, Record::degradation));
    for name in feature_names(&tried) {
        rows.push(row(&name, &tried, |record| {
            verdict(record, &name, &mut notes)
        }));
    }
    for part in PARTS {
        let name = format!("tests of {part}");
        rows.push(row(&name, &tried, |record| of_part(record, part)));
    }
    rows.push(row("all tests", &tried, |record| record.count().shown()));
    let mut text = aligned(&rows);
    for (at, note) in notes.iter().enumerate() {
        write!(text, "\n[{}] {note}", at + 1).ok();
    }
    for record in records {
        details(&mut text, record);
    }
    text
}

fn row(name: &str, records: &[&Record], mut cell: impl FnMut(&Record) -> String) -> Vec<String> {
    let cells = records.iter().map(|record| cell(record));
    std::iter::once(name.to_owned()).chain(cells).collect()
}

/// In the order of the first kernel that has them.
fn feature_names(records: &[&Record]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in records.iter().flat_map(|record| record.features()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn verdict(record: &Record, name: &str, notes: &mut Vec<String>) -> String {
    let mut features = record.features().into_iter();
    let Some((_, verdict)) = features.find(|(known, _)| known == name) else {
        return "–".to_owned();
    };
    let Err(reason) = verdict else {
        return "yes".to_owned();
    };
    let known = notes.iter().position(|note| *note == reason);
    let at = known.unwrap_or_else(|| {
        notes.push(reason);
        notes.len() - 1
    });
    format!("no [{}]", at + 1)
}

fn of_part(record: &Record, part: &str) -> String {
    let mut count = Count::default();
    let about = |test: &&Finished| part_of(&test.test) == part;
    for test in record.tests.iter().filter(about) {
        count.add(&test.outcome);
    }
    if count == Count::default() {
        "–".to_owned()
    } else {
        count.shown()
    }
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "| {cell:<width$} ").ok();
        }
        text.push_str("|\n");
        if at == 0 {
            for width in &widths {
                write!(text, "|{:-<1$}", "", width + 2).ok();
            }
            text.push_str("|\n");
        }
    }
    text
}

/// What went wrong with one kernel.
fn details(text: &mut String, record: &Record) {
    let series = &record.series;
    if let Some(reason) = &record.not_available {
        write!(text, "\nN/A: Linux {series}: {reason}").ok();
    }
    if let Some(trouble) = &record.trouble {
        write!(text, "\nLinux {series}: {trouble}").ok();
    }
    for warning in &record.kernel_warnings {
        write!(text, "\nLinux {series}: its log: {warning}").ok();
    }
    not_run(text, record);
    for test in &record.tests {
        let (what, output) = match &test.outcome {
            Outcome::Failed { output } => ("FAILED", output),
            Outcome::TimedOut { output } => ("TIMED OUT", output),
            _ => continue,
        };
        let (name, seconds) = (&test.test, test.seconds);
        let output = output.replace('\n', "\n    ");
        write!(
            text,
            "\nLinux {series}: {what} {name} ({seconds:.1} s)\n    {output}"
        )
        .ok();
    }
}

/// Why tests did not run, each reason once.
fn not_run(text: &mut String, record: &Record) {
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for test in &record.tests {
        let reason = match &test.outcome {
            Outcome::NotApplicable { reason } => ("N/A", reason.as_str()),
            Outcome::Skipped { reason } => ("SKIP", reason.as_str()),
            _ => continue,
        };
        reasons.entry(reason).or_default().push(&test.test);
    }
    for ((what, reason), tests) in reasons {
        let (series, count, tests) = (&record.series, tests.len(), tests.join(", "));
        write!(
            text,
            "\n{what}: Linux {series}: {reason}\n    {count} tests: {tests}"
        )
        .ok();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(series: &str, verdict: &Value) -> Record {
        Record {
            series: series.to_owned(),
            package: Some("linux-image".to_owned()),
            probe: json!({
                "ebpf": {"available": true},
                "acceleration": {"available": false},
                "kernel": {"features": [verdict], "acceleration": []},
            }),
            listed: 1,
            tests: vec![Finished {
                test: "bpf_dns::a".to_owned(),
                outcome: Outcome::Passed,
                seconds: 1.0,
            }],
            ..Record::default()
        }
    }

    #[test]
    fn a_verdict_that_is_no_has_its_reason_below() {
        let missing = json!({"name": "bpf_bind", "verdict": "missing", "reason": "too old"});
        let there = json!({"name": "bpf_bind", "verdict": "available"});
        let table = table(&[record("6.1", &missing), record("6.12", &there)]);
        assert!(table.contains("| no [1]"), "{table}");
        assert!(table.contains("\n[1] too old"), "{table}");
        assert!(
            table.contains("| captured by eBPF, carried by plain TCP |"),
            "{table}"
        );
    }

    #[test]
    fn a_run_that_ended_early_is_not_good() {
        let there = json!({"name": "bpf_bind", "verdict": "available"});
        let mut record = record("6.1", &there);
        assert!(record.is_good(true));
        record.listed = 2;
        assert!(!record.is_good(true));
    }
}
