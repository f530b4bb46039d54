//! Items by key: what joins, indexes and comparisons stand on.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use farrier_action::text::ItemExpr;
use farrier_model::{Failure, FailureKind, Scope, Text, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The name that expressions give an item: letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ItemName(pub Text);

impl fmt::Display for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names that mean something else in every expression.
const TAKEN: [&str; 6] = ["inputs", "vars", "steps", "run", "alert", "targets"];

impl<'de> Deserialize<'de> for ItemName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ItemName, D::Error> {
        let name = String::deserialize(deserializer)?;
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(D::Error::custom(format!(
                "`{name}` is not a name: use letters, digits and underscores"
            )));
        }
        if TAKEN.contains(&&*name) {
            return Err(D::Error::custom(format!(
                "`{name}` means something else in expressions; use another name"
            )));
        }
        Ok(ItemName(name.into()))
    }
}

impl JsonSchema for ItemName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "item_name".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" })
    }
}

/// What to do when two items have the same key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// Fail, naming the key.
    #[default]
    Error,
    /// Keep the first item.
    First,
    /// Keep the last item.
    Last,
}

/// How a list is keyed.
pub(crate) struct Keying<'a> {
    /// The field with the list, for messages.
    pub(crate) place: &'a str,
    /// What expressions call the item.
    pub(crate) name: &'a Text,
    pub(crate) key: &'a ItemExpr,
}

impl Keying<'_> {
    /// Each item with its key and the scope that it was evaluated in. Nothing when a key is known only later.
    ///
    /// Items without a usable key are an error: leaving one out silently would make it look deleted.
    pub(crate) fn each(
        &self,
        items: &[Value],
        scope: &Scope,
        mut visit: impl FnMut(usize, Text, &Scope) -> Result<(), Failure>,
    ) -> Result<Option<()>, Failure> {
        for (position, item) in items.iter().enumerate() {
            let scope = scope.with(self.name.clone(), item.clone());
            let at = |failure: Failure| about(self.place, position, item, failure);
            let key = match self.key.eval(&scope).map_err(at)? {
                Value::Text(text) => text,
                key @ (Value::Int(_) | Value::Bool(_)) => key.to_string().into(),
                Value::Unknown(_) => return Ok(None),
                other => {
                    let message = format!(
                        "the key `{}` is {}, and a key is text or a whole number",
                        self.key.0.source(),
                        other.kind()
                    );
                    return Err(at(Failure::new(FailureKind::Input, message)));
                }
            };
            visit(position, key, &scope)?;
        }
        Ok(Some(()))
    }

    /// The items by key, in order of first appearance. Nothing when a key is known only later.
    pub(crate) fn unique(
        &self,
        items: &[Value],
        scope: &Scope,
        duplicates: Duplicates,
        mut value: impl FnMut(usize, &Scope) -> Result<Value, Failure>,
    ) -> Result<Option<Vec<(Text, Value)>>, Failure> {
        let mut entries: Vec<(Text, Value)> = Vec::with_capacity(items.len());
        // Where in `entries` a key is, and which item it came from.
        let mut known: HashMap<Text, (usize, usize)> = HashMap::with_capacity(items.len());
        let all_known = self.each(items, scope, |position, key, scope| {
            match (known.get(&key), duplicates) {
                (None, _) => {
                    known.insert(key.clone(), (entries.len(), position));
                    entries.push((key, value(position, scope)?));
                }
                (Some(_), Duplicates::First) => {}
                (Some((entry, _)), Duplicates::Last) => entries[*entry].1 = value(position, scope)?,
                (Some((_, first)), Duplicates::Error) => {
                    let place = self.place;
                    return Err(Failure::new(
                        FailureKind::Input,
                        format!("`{place}[{first}]` and `{place}[{position}]` have the same key `{key}`"),
                    )
                    .help("correct the source, choose a key that is unique, or say which one counts with `duplicates`"));
                }
            }
            Ok(())
        })?;
        Ok(all_known.map(|()| entries))
    }
}

/// Says which item a failure is about: by its place in the list and by what it is.
pub(crate) fn about(place: &str, position: usize, item: &Value, failure: Failure) -> Failure {
    const SHOWN: usize = 80;
    let mut shown: String = item.to_string().chars().take(SHOWN + 1).collect();
    if shown.chars().count() > SHOWN {
        shown.pop();
        shown.push('…');
    }
    let message = format!("`{place}[{position}]` ({shown}): {}", failure.message);
    Failure { message, ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::json;

    #[test]
    fn names_are_names() {
        for name in ["a", "_a", "db_2"] {
            assert!(Value::text(name).read::<ItemName>().is_ok(), "{name}");
        }
        for name in ["", "2a", "a.b", "a b", "steps", "ä", "a-b"] {
            assert!(Value::text(name).read::<ItemName>().is_err(), "{name}");
        }
    }

    #[test]
    fn long_items_are_cut_in_messages() {
        let failure =
            about("from", 3, &Value::text("é".repeat(200)), Failure::new(FailureKind::Input, "wrong"));
        assert_eq!(failure.message, format!("`from[3]` ({}…): wrong", "é".repeat(80)));
        let failure = about("from", 0, &json("{'a': 1}"), Failure::new(FailureKind::Input, "wrong"));
        assert_eq!(failure.message, r#"`from[0]` ({"a":1}): wrong"#);
    }
}
