//! Asks a type what it reads: a deserializer that offers every field and notes what is taken.

use std::fmt;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Value, json};

/// The schema of what a type reads, as `CustomResourceDefinitions` have it.
pub(super) fn schema<T: for<'de> Deserialize<'de>>() -> Value {
    let mut schema = anything();
    T::deserialize(Tracer(&mut schema)).unwrap();
    schema
}

/// Where the type does not say, or must not be held to what it says.
fn anything() -> Value {
    json!({ "x-kubernetes-preserve-unknown-fields": true })
}

struct Tracer<'a>(&'a mut Value);

#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl serde::de::Error for Refused {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// A method that notes a scalar and gives one.
macro_rules! scalar {
    ($($method:ident $visit:ident $value:expr, $schema:literal;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            *self.0 = json!({ "type": $schema });
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Refused;

    scalar! {
        deserialize_bool visit_bool false, "boolean";
        deserialize_i8 visit_i8 1, "integer";
        deserialize_i16 visit_i16 1, "integer";
        deserialize_i32 visit_i32 1, "integer";
        deserialize_i64 visit_i64 1, "integer";
        deserialize_u8 visit_u8 1, "integer";
        deserialize_u16 visit_u16 1, "integer";
        deserialize_u32 visit_u32 1, "integer";
        deserialize_u64 visit_u64 1, "integer";
        deserialize_f32 visit_f32 1.0, "number";
        deserialize_f64 visit_f64 1.0, "number";
        deserialize_str visit_str "", "string";
        deserialize_string visit_str "", "string";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        *self.0 = anything();
        visitor.visit_str("")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let mut item = anything();
        let value = visitor.visit_seq(Once(Some(&mut item)))?;
        *self.0 = json!({ "type": "array", "items": item });
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let mut values = anything();
        let value = visitor.visit_map(Fields {
            names: vec!["any"],
            at: 0,
            each: |_: &str, schema| values = schema,
        })?;
        *self.0 = json!({ "type": "object", "additionalProperties": values });
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let mut properties = serde_json::Map::new();
        // A second spelling of a field is offered once only, as a type reads a field once.
        let (names, others): (Vec<_>, Vec<_>) = fields
            .iter()
            .copied()
            .partition(|name: &&str| !name.contains('_'));
        let value = visitor.visit_map(Fields {
            names,
            at: 0,
            each: |name: &str, schema| {
                properties.insert(name.to_owned(), schema);
            },
        })?;
        for name in others {
            properties.insert(name.to_owned(), anything());
        }
        *self.0 = json!({ "type": "object", "properties": properties });
        Ok(value)
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier ignored_any
    }
}

/// One item.
struct Once<'a>(Option<&'a mut Value>);

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        let item = self.0.take();
        item.map(|item| seed.deserialize(Tracer(item))).transpose()
    }
}

/// Fields by name, each told of with its schema.
struct Fields<'n, F> {
    names: Vec<&'n str>,
    at: usize,
    each: F,
}

impl<'de, F: FnMut(&str, Value)> MapAccess<'de> for Fields<'_, F> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Refused> {
        let Some(name) = self.names.get(self.at) else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, Refused> =
            serde::de::IntoDeserializer::into_deserializer(*name);
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refused> {
        let mut schema = anything();
        let value = seed.deserialize(Tracer(&mut schema))?;
        let name = self
            .names
            .get(self.at)
            .ok_or_else(|| Refused::custom("no key"))?;
        (self.each)(name, schema);
        self.at += 1;
        Ok(value)
    }
}
