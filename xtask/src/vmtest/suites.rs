//! Which tests run in the guests, and what of Millrace each of them is about.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::workspace;

/// What cargo is told to build: all of the agent's suites, and the one of whole meshes that is about what a kernel
/// does. The others of those would tell nothing else of it.
pub(super) const TARGETS: [&[&str]; 2] = [
    &["--package", "millrace-agent", "--tests"],
    &["--package", "millrace-e2e", "--test", "leaks"],
];
/// Where suites are, each a file.
const PLACES: [&str; 2] = ["agent/tests", "xtask/e2e/tests"];
/// Those of the agent's that are about text alone, which they read from the sources.
const NOT_ABOUT_KERNELS: [&str; 2] = ["fuzz", "rules"];

/// One that reads the sources of its neighbours.
const READS_SOURCES: &str = "bpf_counters::every_counter_is_compared_by_a_test_or_explained";

/// What the guests leave out besides what they are told to.
pub(super) fn skipped(asked: &[String]) -> Vec<String> {
    let always = std::iter::once(READS_SOURCES.to_owned());
    always.chain(asked.iter().cloned()).collect()
}

/// What a mesh can lose on a kernel, in the order of the table.
pub(super) const PARTS: [&str; 5] = ["capture", "DNS", "guard", "integrity", "acceleration"];

/// The part that a test, `suite::test`, is about.
pub(super) fn part_of(test: &str) -> &'static str {
    let (suite, name) = test.split_once("::").unwrap_or((test, ""));
    match suite {
        "bpf_dns" => "DNS",
        "leaks" => "guard",
        "foreign" | "integrity" => "integrity",
        _ if suite.contains("accel") => "acceleration",
        _ if name.contains("guard") || name.starts_with("a_closed_pod") => "guard",
        _ => "capture",
    }
}

/// An executable that cargo built for the guests.
pub(super) enum Built {
    /// A suite of tests, with its name.
    Suite(String, PathBuf),
    /// A program that tests run.
    Program(PathBuf),
}

/// What a message of cargo says to have been built, if it is wanted in guests.
pub(super) fn built(message: &Value) -> Option<Built> {
    let path = PathBuf::from(message["executable"].as_str()?);
    let source = Path::new(message["target"]["src_path"].as_str()?);
    if message["profile"]["test"] != true {
        return Some(Built::Program(path));
    }
    let source = source.strip_prefix(workspace::root()).ok()?;
    Some(Built::Suite(suite(source)?, path))
}

/// The suite that a source file is, if it is one for the guests.
fn suite(source: &Path) -> Option<String> {
    let name = source.file_stem()?.to_str()?;
    let is_suite = PLACES
        .iter()
        .any(|dir| source.parent() == Some(Path::new(dir)));
    (is_suite && !NOT_ABOUT_KERNELS.contains(&name)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_about_kernels_run_and_no_others() {
        let name = |source: &str| suite(Path::new(source));
        assert_eq!(name("agent/tests/bpf_new.rs").as_deref(), Some("bpf_new"));
        assert_eq!(name("xtask/e2e/tests/leaks.rs").as_deref(), Some("leaks"));
        for other in ["agent/tests/rules.rs", "agent/src/main.rs"] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn tests_belong_to_parts_of_the_table() {
        for (test, part) in [
            ("bpf_dns::a", "DNS"),
            ("leaks::a", "guard"),
            ("foreign::a", "integrity"),
            ("bpf_accel_rules::a", "acceleration"),
            ("init::a_guard_refuses", "guard"),
            ("broker::a", "capture"),
        ] {
            assert_eq!(part_of(test), part, "{test}");
            assert!(PARTS.contains(&part), "{part}");
        }
    }
}
