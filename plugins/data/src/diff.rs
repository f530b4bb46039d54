//! `data.diff`.

use std::collections::HashMap;

use farrier_action::text::ItemExpr;
use farrier_action::{Action, Planned, ReadCx};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, Scope, Text, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::keyed::{Duplicates, Keying};
use crate::planned;

/// Compares two lists by key: what is only in the new one, only in the old one, or in both and different.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diff {
    /// The list as it was.
    #[schemars(with = "Vec<serde_json::Value>")]
    old: Vec<Value>,
    /// The list as it is or should be.
    #[schemars(with = "Vec<serde_json::Value>")]
    new: Vec<Value>,
    /// The key of an item of either list, a bare expression in which the item is called `item`. No two items of one
    /// list may have the same key.
    key: ItemExpr,
    /// Fields of the items that do not count.
    #[serde(default)]
    ignore: Vec<String>,
}

/// How the lists differ.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Differences {
    /// Items that only the new list has, in its order.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub added: Value,
    /// Items that only the old list has, in its order.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub removed: Value,
    /// Items that both have and that differ, in the order of the new list.
    pub changed: Vec<Changed>,
    /// How many items both have and that do not differ.
    pub same: u64,
}

/// An item that differs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Changed {
    /// Its key, as text.
    pub key: String,
    /// The item of the old list.
    #[schemars(with = "serde_json::Value")]
    pub before: Value,
    /// The item of the new list.
    #[schemars(with = "serde_json::Value")]
    pub after: Value,
}

impl Action for Diff {
    const NAME: &'static str = "data.diff";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
accounts_drift:
  uses: data.diff
  with:
    old: ${ steps.recorded.rows }
    new: ${ steps.present.rows }
    key: item.username
    ignore: [last_seen]
";
    type Output = Differences;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Differences>, Failure> {
        self.differences(cx.scope()).map(planned)
    }
}

impl Diff {
    /// The differences; nothing when a key is not known yet.
    fn differences(&self, scope: &Scope) -> Result<Option<Differences>, Failure> {
        let item = Text::from("item");
        let keyed = |place: &str, items: &[Value]| {
            let keying = Keying { place, name: &item, key: &self.key };
            keying.unique(items, scope, Duplicates::Error, |position, _| Ok(items[position].clone()))
        };
        let (Some(old), Some(new)) = (keyed("old", &self.old)?, keyed("new", &self.new)?) else {
            return Ok(None);
        };

        let mut old_only: HashMap<&Text, &Value> = old.iter().map(|(key, item)| (key, item)).collect();
        let mut differences =
            Differences { added: Value::Null, removed: Value::Null, changed: Vec::new(), same: 0 };
        let mut added = Vec::new();
        for (key, after) in &new {
            match old_only.remove(key) {
                None => added.push(after.clone()),
                Some(before) if self.same(before, after) => differences.same += 1,
                Some(before) => differences.changed.push(Changed {
                    key: key.to_string(),
                    before: before.clone(),
                    after: after.clone(),
                }),
            }
        }
        differences.added = Value::list(added);
        let removed = old.iter().filter(|(key, _)| old_only.contains_key(key)).map(|(_, item)| item.clone());
        differences.removed = Value::list(removed.collect());
        Ok(Some(differences))
    }

    fn same(&self, before: &Value, after: &Value) -> bool {
        let (Some(before_map), Some(after_map)) = (before.as_map(), after.as_map()) else {
            return before == after;
        };
        let counts = |key: &Text| !self.ignore.iter().any(|name| **name == **key);
        before_map.iter().filter(|(key, _)| counts(key)).all(|(key, value)| after_map.get(key) == Some(value))
            && after_map.keys().filter(|key| counts(key)).all(|key| before_map.get(key).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{json, output, refuses, scope};
    use proptest::prelude::*;

    #[tokio::test]
    async fn lists_are_compared_by_key() {
        let cases = [
            ("[{'k': 1, 'v': 1}]", "[{'k': 1, 'v': 1}]", "[]", "[]", "[]", 1),
            ("[]", "[{'k': 2}, {'k': 1}]", "[{'k': 2}, {'k': 1}]", "[]", "[]", 0),
            ("[{'k': 2}, {'k': 1}]", "[]", "[]", "[{'k': 2}, {'k': 1}]", "[]", 0),
            (
                "[{'k': 1, 'v': 1}]",
                "[{'k': 1, 'v': 2}]",
                "[]",
                "[]",
                "[{'key': '1', 'before': {'k': 1, 'v': 1}, 'after': {'k': 1, 'v': 2}}]",
                0,
            ),
            // Ignored fields do not count, whether they differ, come or go.
            (
                "[{'k': 1, 'seen': 1}, {'k': 2, 'seen': 1}]",
                "[{'k': 1, 'seen': 2}, {'k': 2}]",
                "[]",
                "[]",
                "[]",
                2,
            ),
            // A field that comes or goes does.
            (
                "[{'k': 1}]",
                "[{'k': 1, 'v': null}]",
                "[]",
                "[]",
                "[{'key': '1', 'before': {'k': 1}, 'after': {'k': 1, 'v': null}}]",
                0,
            ),
            (
                "[{'k': 1, 'v': null}]",
                "[{'k': 1}]",
                "[]",
                "[]",
                "[{'key': '1', 'before': {'k': 1, 'v': null}, 'after': {'k': 1}}]",
                0,
            ),
        ];
        for (old, new, added, removed, changed, same) in cases {
            let input = json(&format!("{{'old': {old}, 'new': {new}, 'key': 'item.k', 'ignore': ['seen']}}"));
            let output = output("data.diff", &input).await.unwrap();
            let expected = json(&format!(
                "{{'added': {added}, 'removed': {removed}, 'changed': {changed}, 'same': {same}}}"
            ));
            assert_eq!(output, expected, "{old} and {new}");
        }
    }

    #[tokio::test]
    async fn equal_keys_in_one_list_are_an_error() {
        let failure = output("data.diff", &json("{'old': [], 'new': ['a', 'b', 'a'], 'key': 'item'}"))
            .await
            .unwrap_err();
        assert_eq!(failure.message, "`new[0]` and `new[2]` have the same key `a`");
        refuses(
            "data.diff",
            "{'old': [], 'new': [], 'key': 'item'}",
            &[
                "{'old': [], 'new': [], 'key': 'item +'}",
                "{'old': [], 'key': 'item'}",
                "{'old': 'a', 'new': [], 'key': 'item'}",
                "{'old': [{}], 'new': [], 'key': 'item'}",
            ],
        )
        .await;
    }

    #[test]
    fn an_unknown_key_defers_the_comparison() {
        let diff: Diff = json("{'old': [], 'new': [1], 'key': 'steps.later'}").read().unwrap();
        assert!(diff.differences(&scope()).unwrap().is_none());
    }

    proptest! {
        /// Taking `removed` and `before` out of the old list and putting `added` and `after` in gives the new one.
        #[test]
        fn the_differences_lead_from_old_to_new(
            old in proptest::collection::btree_map(0..20_i64, 0..3_i64, 0..12),
            new in proptest::collection::btree_map(0..20_i64, 0..3_i64, 0..12),
        ) {
            let list = |map: &std::collections::BTreeMap<i64, i64>| -> Vec<Value> {
                map.iter().map(|(k, v)| Value::map([("k", Value::Int(*k)), ("v", Value::Int(*v))])).collect()
            };
            let diff = Diff {
                old: list(&old),
                new: list(&new),
                key: Value::text("item.k").read().unwrap(),
                ignore: Vec::new(),
            };
            let found = diff.differences(&scope()).unwrap().unwrap();
            let mut items = diff.old.clone();
            let gone: Vec<&Value> =
                found.removed.as_list().unwrap().iter().chain(found.changed.iter().map(|change| &change.before)).collect();
            items.retain(|item| !gone.contains(&item));
            prop_assert_eq!(items.len() as u64, found.same);
            items.extend(found.added.as_list().unwrap().iter().cloned());
            items.extend(found.changed.iter().map(|change| change.after.clone()));
            items.sort_by_key(|item| item.get("k").and_then(Value::as_int));
            prop_assert_eq!(items, diff.new);
        }
    }
}
