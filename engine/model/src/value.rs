//! [`Value`]: the data that flows between steps.
//!
//! Cloning a value is a reference count, however large it is: lists, maps and texts are shared. The rows of a table
//! share one set of column names ([`Map::record`]), so 35,000 rows cost little more than their cells.
//!
//! [`Value::Unknown`] is the third value of planning: it names the step whose result will fill it in. It never
//! reaches the journal or an action's input.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::de::{self, DeserializeOwned, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Shared, immutable text.
pub type Text = Arc<str>;

/// Any datum of the language. Equality is structural; an `Int` never equals a `Float`.
#[derive(Clone, Default, PartialEq)]
pub enum Value {
    /// No value.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// Unicode text. Timestamps are RFC 3339 text, durations text such as `40d`.
    Text(Text),
    /// An ordered list.
    List(Arc<List>),
    /// Names with values, in order of insertion.
    Map(Arc<Map>),
    /// Known only after the named step has run. Exists in plans alone.
    Unknown(Text),
}

/// The items of a [`Value::List`].
#[derive(Clone, Default, PartialEq)]
pub struct List(pub Vec<Value>);

impl std::ops::Deref for List {
    type Target = Vec<Value>;
    fn deref(&self) -> &Vec<Value> {
        &self.0
    }
}

/// The entries of a [`Value::Map`]: either a record whose keys are shared with its neighbours, or a dictionary.
#[derive(Clone)]
pub struct Map(Repr);

#[derive(Clone)]
enum Repr {
    /// Few keys, found by scanning; `keys` is shared between the rows of a table.
    Record { keys: Arc<[Text]>, values: Box<[Value]> },
    /// Any number of keys, found by hashing.
    Dict(IndexMap<Text, Value>),
}

/// Above this many keys a record would be slower to scan than to hash.
const RECORD_KEYS: usize = 12;

impl Map {
    /// One row: `values` in the order of `keys`.
    ///
    /// # Panics
    /// When the lengths differ: the caller's bookkeeping is broken.
    pub fn record(keys: Arc<[Text]>, values: Vec<Value>) -> Map {
        assert_eq!(keys.len(), values.len(), "a record has one value for each key");
        if keys.len() > RECORD_KEYS {
            return Map(Repr::Dict(keys.iter().cloned().zip(values).collect()));
        }
        Map(Repr::Record { keys, values: values.into_boxed_slice() })
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match &self.0 {
            Repr::Record { keys, values } => keys.iter().position(|k| &**k == key).map(|i| &values[i]),
            Repr::Dict(entries) => entries.get(key),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::Record { values, .. } => values.len(),
            Repr::Dict(entries) => entries.len(),
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Text, &Value)> {
        (0..self.len()).filter_map(|i| self.entry(i))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Text> {
        self.iter().map(|(key, _)| key)
    }

    fn entry(&self, index: usize) -> Option<(&Text, &Value)> {
        match &self.0 {
            Repr::Record { keys, values } => Some((keys.get(index)?, values.get(index)?)),
            Repr::Dict(entries) => entries.get_index(index),
        }
    }
}

impl PartialEq for Map {
    /// Order of entries does not matter, as in JSON.
    fn eq(&self, other: &Map) -> bool {
        self.len() == other.len() && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: Into<Text>> FromIterator<(K, Value)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(entries: I) -> Map {
        Map(Repr::Dict(entries.into_iter().map(|(key, value)| (key.into(), value)).collect()))
    }
}

impl Value {
    /// A text value.
    pub fn text(text: impl Into<Text>) -> Value {
        Value::Text(text.into())
    }

    /// A list value.
    pub fn list(items: Vec<Value>) -> Value {
        Value::List(Arc::new(List(items)))
    }

    /// A map value from any entries.
    pub fn map<K: Into<Text>>(entries: impl IntoIterator<Item = (K, Value)>) -> Value {
        Value::Map(Arc::new(entries.into_iter().collect()))
    }

    /// A row that shares `keys` with its neighbours. Panics when lengths differ, see [`Map::record`].
    pub fn record(keys: Arc<[Text]>, values: Vec<Value>) -> Value {
        Value::Map(Arc::new(Map::record(keys, values)))
    }

    /// The entry of a map.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(map) => map.get(key),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number, if this is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The truth value, if this is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The items, if this is a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The entries, if this is a map.
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// Whether this is [`Value::Null`].
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The step that an unknown part waits for, looking inside lists and maps.
    pub fn unknown_after(&self) -> Option<&Text> {
        match self {
            Value::Unknown(step) => Some(step),
            Value::List(items) => items.iter().find_map(Value::unknown_after),
            Value::Map(map) => map.iter().find_map(|(_, value)| value.unknown_after()),
            _ => None,
        }
    }

    /// What kind of value this is, as error messages call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "text",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Unknown(_) => "unknown",
        }
    }

    /// The JSON text. Unknown parts become `{"$unknown": "step"}`, which only plans contain.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| String::from("null"))
    }

    /// Reads JSON text.
    ///
    /// # Errors
    /// When `text` is not JSON.
    pub fn from_json(text: &str) -> Result<Value, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Turns any serialisable data into a value; values inside it are shared, not copied.
    ///
    /// # Errors
    /// When the type has map keys that are not text, or bytes.
    pub fn of<T: Serialize + ?Sized>(data: &T) -> Result<Value, ValueError> {
        bridge::to_value(data)
    }

    /// Reads typed data out of this value; fields of type [`Value`] are shared, not copied.
    ///
    /// # Errors
    /// When the shape does not fit `T`; the message names what was expected.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ValueError> {
        T::deserialize(bridge::Reader(self))
    }

    /// The deserialiser behind [`Value::read`], for callers that add the path of the field to errors.
    pub fn reader(&self) -> impl Deserializer<'_, Error = ValueError> {
        bridge::Reader(self)
    }
}

impl fmt::Display for Value {
    /// Text as it stands, everything else as JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => f.write_str(text),
            Value::Unknown(step) => write!(f, "(known after {step})"),
            other => f.write_str(&other.to_json()),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_json())
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

macro_rules! value_from {
    ($($source:ty => |$name:ident| $value:expr),+ $(,)?) => {
        $(impl From<$source> for Value {
            fn from($name: $source) -> Value { $value }
        })+
    };
}
value_from! {
    bool => |flag| Value::Bool(flag),
    i64 => |number| Value::Int(number),
    i32 => |number| Value::Int(i64::from(number)),
    u32 => |number| Value::Int(i64::from(number)),
    usize => |number| Value::Int(number as i64),
    f64 => |number| Value::Float(number),
    &str => |text| Value::Text(text.into()),
    String => |text| Value::Text(text.into()),
    Text => |text| Value::Text(text),
    Vec<Value> => |items| Value::list(items),
    Map => |map| Value::Map(Arc::new(map)),
}

/// Why data does not fit the asked shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

impl de::Error for ValueError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        ValueError(message.to_string())
    }
}

impl serde::ser::Error for ValueError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        ValueError(message.to_string())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(handle) = bridge::lend(self) {
            return serializer.serialize_newtype_struct(bridge::NAME, &handle);
        }
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(flag) => serializer.serialize_bool(*flag),
            Value::Int(number) => serializer.serialize_i64(*number),
            Value::Float(number) => serializer.serialize_f64(*number),
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items.iter() {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries.iter() {
                    map.serialize_entry(&**key, value)?;
                }
                map.end()
            }
            Value::Unknown(step) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("$unknown", &**step)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_newtype_struct(bridge::NAME, ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    /// Reached from formats other than [`Value`] itself, and from the bridge with the value on loan.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match bridge::take_loan() {
            Some(value) => Ok(value),
            None => deserializer.deserialize_any(ValueVisitor),
        }
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
    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Int(number))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        i64::try_from(number)
            .map(Value::Int)
            .map_err(|_| E::custom(format!("the number {number} is too large")))
    }
    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::text(text))
    }
    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::text(text))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::with_capacity(access.size_hint().unwrap_or(0).min(4096));
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::list(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(Text, Value)> = Vec::with_capacity(access.size_hint().unwrap_or(0).min(4096));
        while let Some(entry) = access.next_entry::<String, Value>()? {
            entries.push((keys::shared(entry.0), entry.1));
        }
        Ok(if entries.len() <= RECORD_KEYS {
            let (keys, values): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
            Value::record(keys::shared_set(keys), values)
        } else {
            Value::map(entries)
        })
    }
}

/// Key texts and key sets of recently read maps, so that the rows of one table share them.
mod keys {
    use super::{Arc, Text};
    use std::cell::RefCell;

    thread_local! {
        static LAST_SETS: RefCell<Vec<Arc<[Text]>>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn shared(key: String) -> Text {
        LAST_SETS.with_borrow(|sets| {
            sets.iter()
                .flat_map(|set| set.iter())
                .find(|known| ***known == *key)
                .cloned()
                .unwrap_or_else(|| key.into())
        })
    }

    /// Eight sets are enough for the nesting seen in practice; older ones are forgotten.
    pub(super) fn shared_set(keys: Vec<Text>) -> Arc<[Text]> {
        LAST_SETS.with_borrow_mut(|sets| {
            if let Some(known) = sets.iter().find(|set| ***set == *keys) {
                return known.clone();
            }
            let set: Arc<[Text]> = keys.into();
            if sets.len() == 8 {
                sets.remove(0);
            }
            sets.push(set.clone());
            set
        })
    }
}

/// Typed data to values and back, without copying the values inside.
///
/// serde has no way to hand a foreign object through its data model, so a value is put on loan in a thread-local and
/// picked up on the other side of one `newtype_struct` call. The same method carries minijinja's own values.
mod bridge {
    use super::{
        Arc, Deserializer, IntoDeserializer, List, Map, MapAccess, SeqAccess, Serialize, SerializeMap,
        SerializeSeq, Serializer, Text, Value, ValueError, Visitor, de,
    };
    use serde::forward_to_deserialize_any;
    use std::cell::{Cell, RefCell};

    pub(super) const NAME: &str = "$farrier::Value";

    thread_local! {
        static WRITING: Cell<u32> = const { Cell::new(0) };
        static LOAN: RefCell<Option<Value>> = const { RefCell::new(None) };
    }

    /// While [`to_value`] runs, puts `value` on loan and returns a handle to serialise in its place.
    pub(super) fn lend(value: &Value) -> Option<u8> {
        (WRITING.get() > 0).then(|| {
            LOAN.set(Some(value.clone()));
            0
        })
    }

    pub(super) fn take_loan() -> Option<Value> {
        LOAN.take()
    }

    pub(super) fn to_value<T: Serialize + ?Sized>(data: &T) -> Result<Value, ValueError> {
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                WRITING.set(WRITING.get() - 1);
            }
        }
        WRITING.set(WRITING.get() + 1);
        let _guard = Guard;
        data.serialize(Writer)
    }

    struct Writer;

    type Out = Result<Value, ValueError>;

    fn number_too_large(number: impl std::fmt::Display) -> ValueError {
        ValueError(format!("the number {number} is too large"))
    }

    impl Serializer for Writer {
        type Ok = Value;
        type Error = ValueError;
        type SerializeSeq = Items;
        type SerializeTuple = Items;
        type SerializeTupleStruct = Items;
        type SerializeTupleVariant = Variant<Items>;
        type SerializeMap = Entries;
        type SerializeStruct = Entries;
        type SerializeStructVariant = Variant<Entries>;

        fn serialize_bool(self, v: bool) -> Out {
            Ok(Value::Bool(v))
        }
        fn serialize_i8(self, v: i8) -> Out {
            Ok(Value::Int(v.into()))
        }
        fn serialize_i16(self, v: i16) -> Out {
            Ok(Value::Int(v.into()))
        }
        fn serialize_i32(self, v: i32) -> Out {
            Ok(Value::Int(v.into()))
        }
        fn serialize_i64(self, v: i64) -> Out {
            Ok(Value::Int(v))
        }
        fn serialize_u8(self, v: u8) -> Out {
            Ok(Value::Int(v.into()))
        }
        fn serialize_u16(self, v: u16) -> Out {
            Ok(Value::Int(v.into()))
        }
        fn serialize_u32(self, v: u32) -> Out {
            Ok(Value::Int(v.into()))
        }
        fn serialize_u64(self, v: u64) -> Out {
            i64::try_from(v).map(Value::Int).map_err(|_| number_too_large(v))
        }
        fn serialize_f32(self, v: f32) -> Out {
            Ok(Value::Float(v.into()))
        }
        fn serialize_f64(self, v: f64) -> Out {
            Ok(Value::Float(v))
        }
        fn serialize_char(self, v: char) -> Out {
            Ok(Value::text(v.to_string()))
        }
        fn serialize_str(self, v: &str) -> Out {
            Ok(Value::text(v))
        }
        fn serialize_bytes(self, _: &[u8]) -> Out {
            Err(ValueError("bytes are not a value; encode them as text".into()))
        }
        fn serialize_none(self) -> Out {
            Ok(Value::Null)
        }
        fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Out {
            value.serialize(self)
        }
        fn serialize_unit(self) -> Out {
            Ok(Value::Null)
        }
        fn serialize_unit_struct(self, _: &'static str) -> Out {
            Ok(Value::Null)
        }
        fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Out {
            Ok(Value::text(variant))
        }
        fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Out {
            match (name == NAME).then(take_loan).flatten() {
                Some(loan) => Ok(loan),
                None => value.serialize(self),
            }
        }
        fn serialize_newtype_variant<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            _: u32,
            variant: &'static str,
            value: &T,
        ) -> Out {
            Ok(Value::map([(variant, value.serialize(Writer)?)]))
        }
        fn serialize_seq(self, len: Option<usize>) -> Result<Items, ValueError> {
            Ok(Items(Vec::with_capacity(len.unwrap_or(0))))
        }
        fn serialize_tuple(self, len: usize) -> Result<Items, ValueError> {
            self.serialize_seq(Some(len))
        }
        fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Items, ValueError> {
            self.serialize_seq(Some(len))
        }
        fn serialize_tuple_variant(
            self,
            _: &'static str,
            _: u32,
            variant: &'static str,
            len: usize,
        ) -> Result<Variant<Items>, ValueError> {
            Ok(Variant { name: variant, inner: self.serialize_seq(Some(len))? })
        }
        fn serialize_map(self, _: Option<usize>) -> Result<Entries, ValueError> {
            Ok(Entries { entries: Vec::new(), key: None })
        }
        fn serialize_struct(self, _: &'static str, len: usize) -> Result<Entries, ValueError> {
            self.serialize_map(Some(len))
        }
        fn serialize_struct_variant(
            self,
            _: &'static str,
            _: u32,
            variant: &'static str,
            len: usize,
        ) -> Result<Variant<Entries>, ValueError> {
            Ok(Variant { name: variant, inner: self.serialize_map(Some(len))? })
        }
    }

    pub(super) struct Items(Vec<Value>);
    pub(super) struct Entries {
        entries: Vec<(Text, Value)>,
        key: Option<Text>,
    }
    pub(super) struct Variant<I> {
        name: &'static str,
        inner: I,
    }

    impl SerializeSeq for Items {
        type Ok = Value;
        type Error = ValueError;
        fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), ValueError> {
            self.0.push(value.serialize(Writer)?);
            Ok(())
        }
        fn end(self) -> Out {
            Ok(Value::list(self.0))
        }
    }
    impl serde::ser::SerializeTuple for Items {
        type Ok = Value;
        type Error = ValueError;
        fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), ValueError> {
            SerializeSeq::serialize_element(self, value)
        }
        fn end(self) -> Out {
            SerializeSeq::end(self)
        }
    }
    impl serde::ser::SerializeTupleStruct for Items {
        type Ok = Value;
        type Error = ValueError;
        fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), ValueError> {
            SerializeSeq::serialize_element(self, value)
        }
        fn end(self) -> Out {
            SerializeSeq::end(self)
        }
    }
    impl serde::ser::SerializeTupleVariant for Variant<Items> {
        type Ok = Value;
        type Error = ValueError;
        fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), ValueError> {
            SerializeSeq::serialize_element(&mut self.inner, value)
        }
        fn end(self) -> Out {
            Ok(Value::map([(self.name, SerializeSeq::end(self.inner)?)]))
        }
    }
    impl SerializeMap for Entries {
        type Ok = Value;
        type Error = ValueError;
        fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), ValueError> {
            self.key = Some(match key.serialize(Writer)? {
                Value::Text(text) => text,
                Value::Int(number) => number.to_string().into(),
                Value::Bool(flag) => flag.to_string().into(),
                other => return Err(ValueError(format!("a map key must be text, not {}", other.kind()))),
            });
            Ok(())
        }
        fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), ValueError> {
            let key = self.key.take().ok_or_else(|| ValueError("a map value came before its key".into()))?;
            self.entries.push((key, value.serialize(Writer)?));
            Ok(())
        }
        fn end(self) -> Out {
            Ok(Value::map(self.entries))
        }
    }
    impl serde::ser::SerializeStruct for Entries {
        type Ok = Value;
        type Error = ValueError;
        fn serialize_field<T: Serialize + ?Sized>(
            &mut self,
            key: &'static str,
            value: &T,
        ) -> Result<(), ValueError> {
            self.entries.push((key.into(), value.serialize(Writer)?));
            Ok(())
        }
        fn end(self) -> Out {
            SerializeMap::end(self)
        }
    }
    impl serde::ser::SerializeStructVariant for Variant<Entries> {
        type Ok = Value;
        type Error = ValueError;
        fn serialize_field<T: Serialize + ?Sized>(
            &mut self,
            key: &'static str,
            value: &T,
        ) -> Result<(), ValueError> {
            serde::ser::SerializeStruct::serialize_field(&mut self.inner, key, value)
        }
        fn end(self) -> Out {
            Ok(Value::map([(self.name, SerializeMap::end(self.inner)?)]))
        }
    }

    /// Reads typed data out of a value.
    pub(super) struct Reader<'v>(pub(super) &'v Value);

    impl<'de> Deserializer<'de> for Reader<'_> {
        type Error = ValueError;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            match self.0 {
                Value::Null => visitor.visit_unit(),
                Value::Bool(flag) => visitor.visit_bool(*flag),
                Value::Int(number) => visitor.visit_i64(*number),
                Value::Float(number) => visitor.visit_f64(*number),
                Value::Text(text) => visitor.visit_str(text),
                Value::List(items) => {
                    let mut reader = ListReader { items, next: 0 };
                    let read = visitor.visit_seq(&mut reader)?;
                    match reader.items.len() - reader.next {
                        0 => Ok(read),
                        more => Err(ValueError(format!("the list has {more} items too many"))),
                    }
                }
                Value::Map(map) => visitor.visit_map(MapReader { map, next: 0 }),
                Value::Unknown(step) => Err(ValueError(format!("known only after step `{step}`"))),
            }
        }
        fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            match self.0 {
                Value::Null => visitor.visit_none(),
                _ => visitor.visit_some(self),
            }
        }
        fn deserialize_newtype_struct<V: Visitor<'de>>(
            self,
            name: &'static str,
            visitor: V,
        ) -> Result<V::Value, ValueError> {
            if name == NAME {
                LOAN.set(Some(self.0.clone()));
            }
            visitor.visit_newtype_struct(self)
        }
        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _: &'static str,
            _: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, ValueError> {
            match self.0 {
                Value::Text(text) => visitor.visit_enum((&**text).into_deserializer()),
                Value::Map(map) if map.len() == 1 => {
                    visitor.visit_enum(de::value::MapAccessDeserializer::new(MapReader { map, next: 0 }))
                }
                other => {
                    Err(ValueError(format!("expected a name or a map with one key, found {}", other.kind())))
                }
            }
        }
        fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            match self.0 {
                Value::Int(number) => visitor.visit_f64(*number as f64),
                _ => self.deserialize_any(visitor),
            }
        }
        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 char str string bytes byte_buf unit unit_struct seq tuple
            tuple_struct map struct identifier ignored_any
        }
    }

    struct ListReader<'v> {
        items: &'v Arc<List>,
        next: usize,
    }
    impl<'de> SeqAccess<'de> for &mut ListReader<'_> {
        type Error = ValueError;
        fn next_element_seed<T: de::DeserializeSeed<'de>>(
            &mut self,
            seed: T,
        ) -> Result<Option<T::Value>, ValueError> {
            let Some(item) = self.items.get(self.next) else { return Ok(None) };
            self.next += 1;
            seed.deserialize(Reader(item)).map(Some)
        }
        fn size_hint(&self) -> Option<usize> {
            Some(self.items.len() - self.next)
        }
    }

    struct MapReader<'v> {
        map: &'v Arc<Map>,
        next: usize,
    }
    impl<'de> MapAccess<'de> for MapReader<'_> {
        type Error = ValueError;
        fn next_key_seed<K: de::DeserializeSeed<'de>>(
            &mut self,
            seed: K,
        ) -> Result<Option<K::Value>, ValueError> {
            match self.map.entry(self.next) {
                Some((key, _)) => seed.deserialize((&**key).into_deserializer()).map(Some),
                None => Ok(None),
            }
        }
        fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ValueError> {
            let (_, value) = self
                .map
                .entry(self.next)
                .ok_or_else(|| ValueError("a map value was read before its key".into()))?;
            self.next += 1;
            seed.deserialize(Reader(value))
        }
        fn size_hint(&self) -> Option<usize> {
            Some(self.map.len() - self.next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Fast,
        After { seconds: i64 },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Typed {
        name: String,
        rows: Value,
        many: Vec<Value>,
        mode: Mode,
        other: Option<Mode>,
        ratio: f64,
    }

    #[test]
    fn typed_data_round_trips_and_shares_the_values_inside() {
        let rows = Value::list(vec![Value::map([("a", Value::Int(1))]), Value::Null]);
        let typed = Typed {
            name: "x".into(),
            rows: rows.clone(),
            many: vec![rows.clone(), Value::text("t")],
            mode: Mode::After { seconds: 3 },
            other: Some(Mode::Fast),
            ratio: 2.0,
        };
        let value = Value::of(&typed).unwrap();
        let (Value::List(inner), Value::List(original)) = (value.get("rows").unwrap(), &rows) else {
            panic!()
        };
        assert!(Arc::ptr_eq(inner, original), "the list is shared on the way in");
        let back: Typed = value.read().unwrap();
        let Value::List(inner) = &back.rows else { panic!() };
        assert!(Arc::ptr_eq(inner, original), "the list is shared on the way out");
        assert_eq!(back, typed);
        assert_eq!(Value::from_json(&value.to_json()).unwrap(), value);
    }

    #[test]
    fn a_list_that_is_too_long_for_its_type_is_an_error() {
        let list = Value::list(vec![Value::Int(1), Value::Int(2), Value::Int(3)]);
        assert!(list.read::<(i64, i64)>().is_err());
        assert_eq!(list.read::<(i64, i64, i64)>().unwrap(), (1, 2, 3));
        assert_eq!(list.read::<Vec<i64>>().unwrap(), [1, 2, 3]);
    }

    #[test]
    fn rows_read_from_json_share_their_keys() {
        let rows = Value::from_json(r#"[{"name":"a","id":1},{"name":"b","id":2}]"#).unwrap();
        let keys: Vec<_> = rows
            .as_list()
            .unwrap()
            .iter()
            .map(|row| match row {
                Value::Map(map) => match &map.0 {
                    Repr::Record { keys, .. } => keys.as_ptr(),
                    Repr::Dict(_) => panic!("small maps are records"),
                },
                _ => panic!(),
            })
            .collect();
        assert_eq!(keys[0], keys[1]);
    }

    #[test]
    fn unknown_parts_are_found_inside_lists_and_maps() {
        let value = Value::list(vec![Value::map([("a", Value::Unknown("drain".into()))])]);
        assert_eq!(value.unknown_after().map(|step| &**step), Some("drain"));
        assert_eq!(value.to_json(), r#"[{"a":{"$unknown":"drain"}}]"#);
    }
}
