//! What ARCHITECTURE.md names must exist: every repository path in it, every `function()` in the path named before
//! it (as code, not in a comment or a test), every other name of the project's code somewhere in its code, and every
//! section that it refers to. A numbered step names at least one path. Called by `cargo xtask layout`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::functions;

const DOCUMENT: &str = "ARCHITECTURE.md";

/// Constants of the kernel's that no code of the project has occasion to write.
const OTHERS: [&str; 8] = [
    "ALLOW_MULTI",
    "BPF_F_BEFORE",
    "BPF_F_PREORDER",
    "BPF_PROG_QUERY",
    "BPF_PROG_TEST_RUN",
    "SO_PEERCRED",
    "SO_REUSEPORT",
    "TCP_ULP",
];

/// The faults of ARCHITECTURE.md: names that are nowhere.
pub(super) fn architecture_names_exist(
    root: &Path,
    sources: &[PathBuf],
) -> anyhow::Result<Vec<String>> {
    let text =
        fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("reading {DOCUMENT}"))?;
    let source = |path: &str| fs::read_to_string(root.join(path)).ok();
    let mut names: BTreeSet<String> = OTHERS.map(str::to_owned).into();
    for file in sources {
        let text = fs::read_to_string(root.join(file))
            .with_context(|| format!("reading {}", file.display()))?;
        names.extend(words_of_code(&text).map(str::to_owned));
    }
    let tree = Tree {
        exists: |path: &str| root.join(path).exists(),
        source,
        names: &names,
    };
    Ok(tree.faults(&text))
}

/// Every word of a source that is not in a comment of its own lines.
fn words_of_code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
}

/// What is there to be named.
struct Tree<'a, E, S> {
    exists: E,
    source: S,
    names: &'a BTreeSet<String>,
}

impl<E: Fn(&str) -> bool, S: Fn(&str) -> Option<String>> Tree<'_, E, S> {
    fn faults(&self, text: &str) -> Vec<String> {
        let sections: BTreeSet<String> = text.lines().filter_map(section).collect();
        let mut faults = Vec::new();
        let mut last: Option<String> = None;
        for (index, line) in text.lines().enumerate() {
            if begins_block(line) {
                last = None;
            }
            let before = faults.len();
            if line.matches('`').count() % 2 == 1 {
                faults.push("a backtick without its other".to_owned());
            }
            for span in code_spans(line) {
                faults.extend(self.fault(span, &mut last));
            }
            if is_step(line) && last.is_none() {
                faults.push("a step without a path".to_owned());
            }
            for link in links(line) {
                if !sections.contains(link) {
                    faults.push(format!("there is no section {link}"));
                }
            }
            for fault in &mut faults[before..] {
                *fault = format!("{DOCUMENT}:{}: {fault}", index + 1);
            }
        }
        faults
    }

    /// What is wrong with a name; a path is kept for the functions that follow.
    fn fault(&self, span: &str, last: &mut Option<String>) -> Option<String> {
        if let Some(name) = function_name(span) {
            let Some(path) = last else {
                return Some(format!("`{span}` follows no path"));
            };
            let source = (self.source)(path);
            let defined = source.is_some_and(|text| functions::defines(&text, name));
            return (!defined).then(|| format!("{path} defines no `{name}`"));
        }
        if is_repository_path(span) {
            *last = Some(span.to_owned());
            return (!(self.exists)(span)).then(|| format!("there is no {span}"));
        }
        let name = is_name(span) && !self.names.contains(span);
        name.then(|| format!("no code has the name `{span}`"))
    }
}

/// How links call the section that begins with this line.
fn section(line: &str) -> Option<String> {
    let title = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let plain = title
        .chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    Some(plain.collect::<String>().to_lowercase().replace(' ', "-"))
}

/// The sections that a line refers to.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](#")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// Whether the line is an item of a numbered list.
fn is_step(line: &str) -> bool {
    line.split_once(". ")
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// A blank line, heading, table row or list item: a function belongs to a path of its own block.
fn begins_block(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || is_step(line) || ["#", "|", "- "].iter().any(|mark| line.starts_with(mark))
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

/// Whatever begins like one is one, and so is every source file: what cannot be found is a fault. A pattern of names
/// and a path of a running system are none.
fn is_repository_path(span: &str) -> bool {
    let top = span.split_once('/').map(|(top, _)| top);
    let is_rust = Path::new(span).extension().is_some_and(|end| end == "rs");
    let is_source = is_rust && !span.starts_with(['*', '/']);
    is_source || top.is_some_and(|top| TOP.contains(&top))
}

/// A type, constant, map or program of the project's: one word that is no word of English, nor one that the kernel's
/// functions have.
fn is_name(span: &str) -> bool {
    let word = span.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let begins = span.starts_with(|c: char| c.is_ascii_alphabetic());
    let ours = span.starts_with("millrace_") || span.contains(|c: char| c.is_ascii_uppercase());
    word && begins && ours
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "pub(crate) async fn run(x: u8) {}\nstruct Kept;\n    fn of<T>() {}\n// fn old() {} Gone\n\
        #[cfg(test)]\nmod tests {\n    fn tried() {}\n}\n";

    fn check(text: &str) -> Vec<String> {
        let names = words_of_code(SOURCE).map(str::to_owned).collect();
        let tree = Tree {
            exists: |path: &str| path == "agent/src/b.rs",
            source: |path: &str| (path == "agent/src/b.rs").then(|| SOURCE.to_owned()),
            names: &names,
        };
        tree.faults(text)
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

    #[test]
    fn what_only_a_comment_or_a_test_has_is_not_there() {
        let faults = check("`agent/src/b.rs` `old()` `tried()` `Kept` `Gone` `tcp_sendmsg`");
        assert_eq!(
            faults,
            [
                "ARCHITECTURE.md:1: agent/src/b.rs defines no `old`",
                "ARCHITECTURE.md:1: agent/src/b.rs defines no `tried`",
                "ARCHITECTURE.md:1: no code has the name `Gone`",
            ]
        );
    }

    #[test]
    fn nothing_that_looks_like_a_path_is_passed_over() {
        for path in ["src/b.rs", "b.rs", "agent/src/{b,c}.rs", "agnt/src/b.rs"] {
            let faults = check(&format!("`{path}`"));
            assert_eq!(faults, [format!("ARCHITECTURE.md:1: there is no {path}")]);
        }
    }

    #[test]
    fn a_step_names_where_it_happens() {
        assert_eq!(
            check("1. It goes on in `agent/src/b.rs`."),
            Vec::<String>::new()
        );
        let faults = check("1. It goes on.");
        assert_eq!(faults, ["ARCHITECTURE.md:1: a step without a path"]);
    }

    #[test]
    fn sections_and_backticks_fit_together() {
        assert_eq!(
            check("## State and threads\n[there](#state-and-threads)").len(),
            0
        );
        assert_eq!(check("## State\n[there](#states)").len(), 1);
        assert_eq!(check("`agent/src/b.rs` `run()").len(), 1);
    }
}
