//! The YAML tree with a line for every node.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use thiserror::Error;

/// A node and the line it starts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The line in the file, from 1.
    pub line: u64,
    /// What is there.
    pub value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number beyond `i64`.
    Uint(u64),
    /// Any other number.
    Float(f64),
    /// A text.
    String(String),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in the file's order: key, line of the key, value.
    Map(Vec<(String, u64, Node)>),
}

/// Why a document is not YAML.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not YAML: {message}")]
pub struct SyntaxError {
    /// The line in the file, from 1.
    pub line: u64,
    /// What the parser says.
    pub message: String,
}

/// Reads one document.
///
/// # Errors
/// When the text is not YAML, repeats a key, or expands without bound.
pub fn parse(document: super::Document<'_>) -> Result<Node, SyntaxError> {
    let mut node: Node = serde_saphyr::from_str(document.text).map_err(|error| SyntaxError {
        line: error
            .location()
            .map_or(1, |location| location.line().max(1))
            + document.lines_before,
        message: first_line(&error.without_snippet().to_string()),
    })?;
    node.shift(document.lines_before);
    Ok(node)
}

/// The parser's message without its own, document-relative, place.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let end = line.find(" at line ").unwrap_or(line.len());
    line[..end].trim_end_matches([',', ':', ' ']).to_owned()
}

impl From<serde_json::Value> for Node {
    /// A tree on one line, which means nothing.
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(truth) => Value::Bool(truth),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Value::Int(number),
                (None, Some(number)) => Value::Uint(number),
                (None, None) => Value::Float(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Value::String(text),
            Json::Array(items) => Value::Seq(items.into_iter().map(Self::from).collect()),
            Json::Object(fields) => {
                let fields = fields.into_iter();
                Value::Map(fields.map(|(key, value)| (key, 1, value.into())).collect())
            }
        };
        Self { line: 1, value }
    }
}

impl From<&Node> for serde_json::Value {
    /// The tree without its lines.
    fn from(node: &Node) -> Self {
        match &node.value {
            Value::Null => Self::Null,
            Value::Bool(truth) => (*truth).into(),
            Value::Int(number) => (*number).into(),
            Value::Uint(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::String(text) => text.as_str().into(),
            Value::Seq(items) => items.iter().map(Self::from).collect(),
            Value::Map(entries) => {
                let entries = entries.iter();
                let fields = entries.map(|(key, _, value)| (key.clone(), Self::from(value)));
                Self::Object(fields.collect())
            }
        }
    }
}

impl Node {
    fn shift(&mut self, lines: u64) {
        self.line += lines;
        match &mut self.value {
            Value::Seq(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => {
                for (_, line, node) in entries {
                    *line += lines;
                    node.shift(lines);
                }
            }
            _ => {}
        }
    }

    /// The value under a key, if this is a map that has it.
    pub fn field(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(name, ..)| name == key)
                .map(|(.., node)| node),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The line of a path such as `spec.http[0].route`: of the deepest part that exists.
    pub fn line_of(&self, path: &str) -> u64 {
        let mut node = self;
        let mut line = self.line;
        let mut rest = path;
        while !rest.is_empty() {
            let found = match &node.value {
                Value::Seq(items) => index_prefix(rest).and_then(|(index, after)| {
                    items.get(index).map(|item| (item.line, item, after))
                }),
                // A key may hold dots itself, so the longest key that fits is taken.
                Value::Map(entries) => entries
                    .iter()
                    .filter_map(|(key, line, value)| {
                        let after = rest.strip_prefix(key.as_str())?;
                        let ends = after.is_empty() || after.starts_with(['.', '[']);
                        ends.then_some((key.len(), *line, value, after))
                    })
                    .max_by_key(|(length, ..)| *length)
                    .map(|(_, line, value, after)| (line, value, after)),
                _ => None,
            };
            let Some((found_line, next, after)) = found else {
                break;
            };
            line = found_line;
            node = next;
            rest = after.strip_prefix('.').unwrap_or(after);
        }
        line
    }
}

fn index_prefix(path: &str) -> Option<(usize, &str)> {
    let (index, after) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, after))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Uint(value), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            entries.push((key.value, line, access.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}
