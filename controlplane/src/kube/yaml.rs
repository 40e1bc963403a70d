//! A YAML tree that knows its lines, and a deserializer over it that knows its path.
//!
//! Two passes, because neither serde's errors nor a YAML library's say both where in the file and
//! where in the object a field is, and unknown fields must be found without being refused.

mod de;
mod tree;

pub use self::de::{DecodeError, Decoded, decode};
pub use self::tree::{Node, SyntaxError, Value, parse};

/// One document of a file, cut out by its `---` lines as kubectl does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// The text, without the separators.
    pub text: &'a str,
    /// Lines of the file before the text.
    pub lines_before: u64,
}

/// Cuts a file into documents, so that one that is not YAML does not take the others with it.
pub fn documents(file: &str) -> Vec<Document<'_>> {
    let mut result = Vec::new();
    let (mut start, mut lines_before, mut line, mut offset) = (0, 0, 0, 0);
    for text in file.split_inclusive('\n') {
        line += 1;
        if text
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim().is_empty() || rest.starts_with([' ', '\t']))
        {
            result.push(Document {
                text: &file[start..offset],
                lines_before,
            });
            start = offset
                + if text[3..].trim().is_empty() {
                    text.len()
                } else {
                    3
                };
            lines_before = if start == offset + 3 { line - 1 } else { line };
        }
        offset += text.len();
    }
    result.push(Document {
        text: &file[start..],
        lines_before,
    });
    result.retain(|document| !is_blank(document.text));
    result
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "..."
    })
}

#[cfg(test)]
mod tests;
