//! Tests of document cutting, lines and paths.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Document, decode, documents, parse};

fn lines(file: &str) -> Vec<(u64, &str)> {
    documents(file)
        .into_iter()
        .map(|d| (d.lines_before, d.text))
        .collect()
}

#[test]
fn documents_are_cut_at_separator_lines_only() {
    assert_eq!(lines("a: 1\n---\nb: 2\n"), [(0, "a: 1\n"), (2, "b: 2\n")]);
    assert_eq!(
        lines("---\na: 1\n---\n# only a comment\n---\n"),
        [(1, "a: 1\n")]
    );
    assert_eq!(lines("a: |\n  x\n  ---\n"), [(0, "a: |\n  x\n  ---\n")]);
    assert_eq!(
        lines("a: 1\n--- # two\nb: 1\n"),
        [(0, "a: 1\n"), (1, " # two\nb: 1\n")]
    );
    assert_eq!(lines("a: ---\n----\n").len(), 1);
}

#[derive(Debug, Deserialize)]
struct Outer {
    name: String,
    #[serde(default)]
    inner: Vec<Inner>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Inner {
    port: u16,
}

fn document(text: &str) -> Document<'_> {
    Document {
        text,
        lines_before: 10,
    }
}

#[test]
fn values_arrive_and_unknown_fields_are_named_with_their_line() {
    let node = parse(document(
        "name: x\ninner:\n- port: 80\n  prot: 1\nextra: {a: 1}\n",
    ))
    .unwrap();
    let decoded = decode::<Outer>(&node).unwrap();
    assert_eq!(
        (decoded.value.name.as_str(), decoded.value.inner[0].port),
        ("x", 80)
    );
    assert_eq!(
        decoded.unknown,
        [("inner[0].prot".to_owned(), 14), ("extra".to_owned(), 15)]
    );
}

#[test]
fn a_wrong_type_is_named_by_path_and_line() {
    let node = parse(document("name: x\ninner:\n- port: 80\n- port: eighty\n")).unwrap();
    let error = decode::<Outer>(&node).unwrap_err();
    assert_eq!((error.path.as_str(), error.line), ("inner[1].port", 14));
    assert!(error.message.contains("expected u16"), "{}", error.message);

    let node = parse(document("name: x\nlabels: {a: b}\n")).unwrap();
    assert_eq!(decode::<Outer>(&node).unwrap().value.labels["a"], "b");
    let node = parse(document("name: x\nlabels:\n  version: 1.0\n")).unwrap();
    let error = decode::<Outer>(&node).unwrap_err();
    assert_eq!((error.path.as_str(), error.line), ("labels.version", 13));
}

#[test]
fn a_missing_field_is_named_at_its_parent() {
    let node = parse(document("inner: []\n")).unwrap();
    let error = decode::<Outer>(&node).unwrap_err();
    assert_eq!(error.path, "");
    assert_eq!(error.message, "missing field `name`");
}

#[test]
fn broken_yaml_has_its_line_in_the_file() {
    let error = parse(document("a: 1\nb: [1, 2\nc: 3\n")).unwrap_err();
    assert!((12..=14).contains(&error.line), "{error:?}");
    let error = parse(document("a: 1\na: 2\n")).unwrap_err();
    assert!(error.message.contains("duplicate"), "{error:?}");
    assert!(!error.message.contains("line"), "{error:?}");
}

#[test]
fn line_of_finds_the_deepest_part_that_exists() {
    let node = parse(document(
        "spec:\n  a.b: 1\n  http:\n  - x: 1\n  - route:\n    - weight: 3\n",
    ))
    .unwrap();
    assert_eq!(node.line_of("spec.http[1].route[0].weight"), 16);
    assert_eq!(node.line_of("spec.a.b"), 12);
    assert_eq!(node.line_of("spec.http[1].nothing"), 15);
    assert_eq!(node.line_of("nowhere"), 11);
}
