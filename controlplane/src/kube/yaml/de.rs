//! A serde deserializer over the tree that records the path of errors and of fields nobody read.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use thiserror::Error;

use super::tree::{Node, Value};

/// A value with the fields of the tree that it has no place for.
#[derive(Debug)]
pub struct Decoded<T> {
    /// The value.
    pub value: T,
    /// Path and line of each field that was not read.
    pub unknown: Vec<(String, u64)>,
}

/// Why the tree is not the wanted type, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct DecodeError {
    /// The field's path; empty at the root.
    pub path: String,
    /// The line in the file; 0 until it is known.
    pub line: u64,
    /// What is wrong.
    pub message: String,
}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            path: String::new(),
            line: 0,
            message: message.to_string(),
        }
    }
}

/// Reads a typed value from the tree.
///
/// # Errors
/// When a field has the wrong type or a required one is missing.
pub fn decode<T: DeserializeOwned>(node: &Node) -> Result<Decoded<T>, DecodeError> {
    let unknown = RefCell::new(Vec::new());
    let value = T::deserialize(Reader {
        node,
        path: Path::Root,
        unknown: &unknown,
    })?;
    Ok(Decoded {
        value,
        unknown: unknown.into_inner(),
    })
}

#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Path::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    path: Path<'a>,
    unknown: &'a RefCell<Vec<(String, u64)>>,
}

impl Reader<'_> {
    /// Gives an error its place unless a deeper reader already has.
    fn place(&self, mut error: DecodeError) -> DecodeError {
        if error.line == 0 {
            error.line = self.node.line;
            error.path = self.path.to_string();
        }
        error
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Uint(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(value) => visitor.visit_str(value),
            Value::Seq(items) => visitor.visit_seq(Items {
                reader: &self,
                nodes: items,
                next: 0,
            }),
            Value::Map(entries) => visitor.visit_map(Entries {
                reader: &self,
                pairs: entries,
                next: 0,
            }),
        }
        .map_err(|error| self.place(error))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
        .map_err(|error| self.place(error))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor
            .visit_newtype_struct(self)
            .map_err(|error| self.place(error))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            Value::Map(entries) if entries.len() == 1 => visitor.visit_enum(Variant {
                reader: &self,
                entry: &entries[0],
            }),
            other => Err(de::Error::invalid_type(unexpected(other), &"a name")),
        }
        .map_err(|error| self.place(error))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unknown
            .borrow_mut()
            .push((self.path.to_string(), self.node.line));
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Int(value) => Unexpected::Signed(*value),
        Value::Uint(value) => Unexpected::Unsigned(*value),
        Value::Float(value) => Unexpected::Float(*value),
        Value::String(value) => Unexpected::Str(value),
        Value::Seq(_) => Unexpected::Seq,
        Value::Map(_) => Unexpected::Map,
    }
}

struct Items<'a> {
    reader: &'a Reader<'a>,
    nodes: &'a [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some(node) = self.nodes.get(self.next) else {
            return Ok(None);
        };
        let path = Path::Index(&self.reader.path, self.next);
        self.next += 1;
        seed.deserialize(Reader {
            node,
            path,
            unknown: self.reader.unknown,
        })
        .map(Some)
    }
}

struct Entries<'a> {
    reader: &'a Reader<'a>,
    pairs: &'a [(String, u64, Node)],
    next: usize,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, ..)) = self.pairs.get(self.next) else {
            return Ok(None);
        };
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let (key, line, node) = &self.pairs[self.next];
        self.next += 1;
        let path = Path::Key(&self.reader.path, key);
        seed.deserialize(Reader {
            node,
            path,
            unknown: self.reader.unknown,
        })
        .map_err(|mut error| {
            // The key's line is what a person looks for; a scalar is on the same one.
            if error.line == node.line && error.path == path.to_string() {
                error.line = *line;
            }
            error
        })
    }
}

struct Variant<'a> {
    reader: &'a Reader<'a>,
    entry: &'a (String, u64, Node),
}

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), DecodeError> {
        let name = seed.deserialize(StrDeserializer::<DecodeError>::new(&self.entry.0))?;
        Ok((name, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Err(de::Error::invalid_type(Unexpected::Map, &"a name"))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        let path = Path::Key(&self.reader.path, &self.entry.0);
        seed.deserialize(Reader {
            node: &self.entry.2,
            path,
            unknown: self.reader.unknown,
        })
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, DecodeError> {
        Err(de::Error::invalid_type(Unexpected::Map, &"a name"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let path = Path::Key(&self.reader.path, &self.entry.0);
        Reader {
            node: &self.entry.2,
            path,
            unknown: self.reader.unknown,
        }
        .deserialize_any(visitor)
    }
}
