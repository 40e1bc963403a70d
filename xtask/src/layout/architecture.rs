//! What ARCHITECTURE.md names must exist: every repository path in it, and every `function()` in the path named
//! before it. Called by `cargo xtask layout`.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

const DOCUMENT: &str = "ARCHITECTURE.md";

/// The faults of ARCHITECTURE.md: names that are nowhere.
pub(super) fn architecture_names_exist(root: &Path) -> anyhow::Result<Vec<String>> {
    let text =
        fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("reading {DOCUMENT}"))?;
    let source = |path: &str| fs::read_to_string(root.join(path)).ok();
    Ok(faults(&text, |path| root.join(path).exists(), source))
}

fn faults(
    text: &str,
    exists: impl Fn(&str) -> bool,
    source: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut faults = Vec::new();
    let mut last: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        if begins_block(line) {
            last = None;
        }
        let fault = |what: String| format!("{DOCUMENT}:{}: {what}", index + 1);
        for span in code_spans(line) {
            if let Some(name) = function_name(span) {
                match &last {
                    None => faults.push(fault(format!("`{span}` follows no path"))),
                    Some(path) if !source(path).is_some_and(|text| defines(&text, name)) => {
                        faults.push(fault(format!("{path} defines no `{name}`")));
                    }
                    Some(_) => {}
                }
            } else if is_repository_path(span) {
                if !exists(span) {
                    faults.push(fault(format!("there is no {span}")));
                }
                last = Some(span.to_owned());
            }
        }
    }
    faults
}

/// A blank line, heading, table row or list item: a function belongs to a path of its own block.
fn begins_block(line: &str) -> bool {
    let line = line.trim_start();
    let numbered = line.split_once(". ").is_some_and(|(number, _)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    });
    line.is_empty() || numbered || ["#", "|", "- "].iter().any(|mark| line.starts_with(mark))
}

/// What stands between single backticks.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// `name()` or `Type::name()`.
fn function_name(span: &str) -> Option<&str> {
    let path = span.strip_suffix("()")?;
    let name = path.rsplit("::").next()?;
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    };
    (!name.is_empty() && plain(path)).then_some(name)
}

/// Where everything is that the document names.
const TOP: [&str; 6] = ["agent", "controlplane", "deploy", "ebpf", "proxy", "xtask"];

fn is_repository_path(span: &str) -> bool {
    let plain = span
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    let top = span.split_once('/').map(|(top, _)| top);
    plain && top.is_some_and(|top| TOP.contains(&top))
}

fn defines(source: &str, name: &str) -> bool {
    [format!("fn {name}("), format!("fn {name}<")]
        .iter()
        .any(|definition| source.contains(definition.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<String> {
        let files = [("agent/src/b.rs", "pub fn run(x: u8) {}\nfn of<T>() {}\n")];
        let find = |path: &str| files.iter().find(|(name, _)| *name == path);
        faults(
            text,
            |path| find(path).is_some(),
            |path| find(path).map(|(_, source)| (*source).to_owned()),
        )
    }

    #[test]
    fn names_that_exist_are_no_faults() {
        assert_eq!(
            check("see `agent/src/b.rs` `run()` and\n`of()`"),
            Vec::<String>::new()
        );
        assert_eq!(
            check("`connect(2)` of `*.rs` in `/run/a.rs`"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn missing_paths_and_functions_are_named_with_their_line() {
        assert_eq!(
            check("\n`agent/src/c.rs`"),
            ["ARCHITECTURE.md:2: there is no agent/src/c.rs"]
        );
        assert_eq!(
            check("`agent/src/b.rs` `walk()`"),
            ["ARCHITECTURE.md:1: agent/src/b.rs defines no `walk`"]
        );
    }

    #[test]
    fn a_function_belongs_to_a_path_of_its_own_row_or_paragraph() {
        for text in [
            "`agent/src/b.rs`\n\n`run()`",
            "| `agent/src/b.rs` |\n| `run()` |",
        ] {
            assert_eq!(check(text).len(), 1, "{text}");
        }
    }
}
