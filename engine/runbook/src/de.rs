//! serde over [`Node`]s. The schema has been checked before, so errors here are rare: a type whose own reading refuses
//! a value. They carry the place of the innermost node.

use std::cell::RefCell;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use std::borrow::Cow;

use crate::at;
use crate::diagnostic::Span;
use crate::yaml::{Key, Node, NodeKind};

/// The name under which the deserialiser recognises a field that wants the [`Node`] itself.
const NODE: &str = "$farrier::Node";

thread_local! {
    static LOAN: RefCell<Option<Node>> = const { RefCell::new(None) };
}

/// What a type did not accept, and where.
#[derive(Debug, Clone)]
pub struct ReadError {
    /// A lower-case fragment.
    pub message: String,
    /// The innermost part that was being read.
    pub span: Option<Span>,
}

impl ReadError {
    fn at(mut self, span: Span) -> ReadError {
        self.span.get_or_insert(span);
        self
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> ReadError {
        ReadError { message: message.to_string(), span: None }
    }
}

/// Reads a type out of a node.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    node: &'a Node,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(node: &'a Node) -> Reader<'a> {
        Reader { node }
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.kind {
            NodeKind::Broken => Err(de::Error::custom("this part was left out")),
            NodeKind::Scalar(scalar) => {
                if scalar.is_null() {
                    visitor.visit_unit()
                } else if let Some(flag) = scalar.to_bool() {
                    visitor.visit_bool(flag)
                } else if let Some(number) = scalar.to_int() {
                    visitor.visit_i64(number)
                } else if let farrier_model::Value::Float(number) = scalar.to_value() {
                    visitor.visit_f64(number)
                } else {
                    visitor.visit_str(&scalar.text)
                }
            }
            NodeKind::List(items) => visitor.visit_seq(Items(items.iter())),
            NodeKind::Map(entries) => visitor.visit_map(Entries { rest: entries.iter(), value: None }),
        }
    }

    fn placed<T>(self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        result.map_err(|error| error.at(self.node.span))
    }
}

macro_rules! numbers {
    ($($method:ident)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            self.placed(match self.node.as_scalar() {
                Some(scalar) => match (scalar.to_int(), scalar.to_float()) {
                    (Some(number), _) => visitor.visit_i64(number),
                    (None, Some(number)) => visitor.visit_f64(number),
                    (None, None) => self.visit(visitor),
                },
                None => self.visit(visitor),
            })
        })+
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.placed(self.visit(visitor))
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_f32 deserialize_f64
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.placed(match self.node.as_scalar() {
            Some(scalar) => visitor.visit_str(&scalar.text),
            None => self.visit(visitor),
        })
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.placed(if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match name {
            at::NAME => at::lend(self.node.span),
            NODE => LOAN.set(Some(self.node.clone())),
            _ => {}
        }
        self.placed(visitor.visit_newtype_struct(self))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.placed(match &self.node.kind {
            NodeKind::Scalar(scalar) => {
                let name: de::value::StrDeserializer<'_, ReadError> = (*scalar.text).into_deserializer();
                visitor.visit_enum(name)
            }
            NodeKind::Map(entries) if entries.len() == 1 => {
                visitor.visit_enum(Variant { key: &entries[0].0, value: &entries[0].1 })
            }
            _ => Err(de::Error::custom("exactly one key is needed here")),
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i128 u128 bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        self.0
            .next()
            .map(|node| seed.deserialize(Reader::new(node)).map_err(|error| error.at(node.span)))
            .transpose()
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(KeyReader(key)).map(Some).map_err(|error| error.at(key.span))
    }
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let node =
            self.value.take().ok_or_else(|| <ReadError as de::Error>::custom("a value before its key"))?;
        seed.deserialize(Reader::new(node)).map_err(|error| error.at(node.span))
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// Keys are text, possibly with their place.
#[derive(Clone, Copy)]
struct KeyReader<'a>(&'a Key);

impl<'de> Deserializer<'de> for KeyReader<'_> {
    type Error = ReadError;
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_str(&self.0.text)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        if name == at::NAME {
            at::lend(self.0.span);
        }
        visitor.visit_newtype_struct(self)
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let name: de::value::StrDeserializer<'_, ReadError> = (*self.0.text).into_deserializer();
        visitor.visit_enum(name)
    }
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Variant<'a> {
    key: &'a Key,
    value: &'a Node,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = ReadError;
    type Variant = VariantValue<'a>;
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, VariantValue<'a>), ReadError> {
        Ok((seed.deserialize(KeyReader(self.key))?, VariantValue(self.value)))
    }
}

struct VariantValue<'a>(&'a Node);

impl<'de> VariantAccess<'de> for VariantValue<'_> {
    type Error = ReadError;
    fn unit_variant(self) -> Result<(), ReadError> {
        <ReadError as de::Error>::custom("this name takes no value").at(self.0.span).into_err()
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, ReadError> {
        seed.deserialize(Reader::new(self.0)).map_err(|error| error.at(self.0.span))
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        Reader::new(self.0).deserialize_any(visitor)
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        Reader::new(self.0).deserialize_any(visitor)
    }
}

impl ReadError {
    fn into_err<T>(self) -> Result<T, ReadError> {
        Err(self)
    }
}

impl Node {
    /// Reads a type without checking the schema first; for types that read one of their shapes by hand.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn read_as<T: DeserializeOwned>(&self) -> Result<T, ReadError> {
        T::deserialize(Reader::new(self))
    }
}

impl<'de> Deserialize<'de> for Node {
    /// Only from authored files: other formats have no places.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a part of an authored file")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<Node, D::Error> {
                LOAN.take()
                    .ok_or_else(|| de::Error::custom("a part of an authored file can only be read from one"))
            }
        }
        deserializer.deserialize_newtype_struct(NODE, NodeVisitor)
    }
}

impl JsonSchema for Node {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Anything".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        true.into()
    }
}
