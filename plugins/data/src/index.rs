//! `data.index`.

use std::collections::{BTreeMap, HashMap};

use farrier_action::text::ItemExpr;
use farrier_action::{Action, Planned, ReadCx};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, Scope, Text, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::keyed::{Duplicates, ItemName, Keying, about};
use crate::planned;

/// Keys a list: a map from each item's key to the item, or to a value made of it.
///
/// To join two lists into a table, `data.rows` with its `lookup` is shorter.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The list to key.
    #[schemars(with = "Vec<serde_json::Value>")]
    from: Vec<Value>,
    /// What the expressions below call the item.
    #[serde(rename = "as")]
    name: ItemName,
    /// The key of an item, a bare expression. Text, or a whole number, which stands for its digits.
    key: ItemExpr,
    /// What stands under the key, a bare expression. Left out, the item itself.
    #[serde(default)]
    value: Option<ItemExpr>,
    /// What to do when two items have the same key: `error`, `first`, `last`, or `list`, which gives a list of values
    /// under every key.
    #[serde(default)]
    duplicates: Collect,
}

/// What to do when two items have the same key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Collect {
    /// Fail, naming the key.
    #[default]
    Error,
    /// Keep the first item.
    First,
    /// Keep the last item.
    Last,
    /// Keep all: every key has a list of values.
    List,
}

/// The keyed list.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Indexed {
    /// Values by key, in order of the first item with the key.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub value: Value,
    /// How many keys there are.
    pub count: u64,
}

impl Action for Index {
    const NAME: &'static str = "data.index";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
names_by_number:
  uses: data.index
  with:
    from: ${ steps.accounts.entries }
    as: account
    key: account.uidNumber
    value: account.cn
    duplicates: list
";
    type Output = Indexed;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Indexed>, Failure> {
        self.indexed(cx.scope()).map(planned)
    }
}

impl Index {
    /// The index; nothing when a key is not known yet.
    fn indexed(&self, scope: &Scope) -> Result<Option<Indexed>, Failure> {
        let keying = Keying { place: "from", name: &self.name.0, key: &self.key };
        let value_of = |position: usize, scope: &Scope| match &self.value {
            None => Ok(self.from[position].clone()),
            Some(value) => {
                value.eval(scope).map_err(|failure| about("from", position, &self.from[position], failure))
            }
        };
        let duplicates = match self.duplicates {
            Collect::Error => Duplicates::Error,
            Collect::First => Duplicates::First,
            Collect::Last => Duplicates::Last,
            Collect::List => return self.lists(&keying, scope, value_of),
        };
        let entries = keying.unique(&self.from, scope, duplicates, value_of)?;
        Ok(entries.map(|entries| Indexed { count: entries.len() as u64, value: Value::map(entries) }))
    }

    fn lists(
        &self,
        keying: &Keying<'_>,
        scope: &Scope,
        value_of: impl Fn(usize, &Scope) -> Result<Value, Failure>,
    ) -> Result<Option<Indexed>, Failure> {
        let mut lists: Vec<(Text, Vec<Value>)> = Vec::new();
        let mut known: HashMap<Text, usize> = HashMap::new();
        let all_known = keying.each(&self.from, scope, |position, key, scope| {
            let at = *known.entry(key).or_insert_with_key(|key| {
                lists.push((key.clone(), Vec::new()));
                lists.len() - 1
            });
            lists[at].1.push(value_of(position, scope)?);
            Ok(())
        })?;
        let count = lists.len() as u64;
        let value = Value::map(lists.into_iter().map(|(key, values)| (key, Value::list(values))));
        Ok(all_known.map(|()| Indexed { value, count }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{json, output, refuses, scope};
    use farrier_model::FailureKind;

    const PODS: &str =
        "[{'name': 'p1', 'node': 'a'}, {'name': 'p2', 'node': 'b'}, {'name': 'p3', 'node': 'a'}]";

    fn input(more: &str) -> Value {
        json(&format!("{{'from': {PODS}, 'as': 'pod', {more}}}"))
    }

    #[tokio::test]
    async fn keys_lead_to_items_or_values() {
        for (more, expected) in [
            ("'key': 'pod.name', 'value': 'pod.node'", "{'p1': 'a', 'p2': 'b', 'p3': 'a'}"),
            ("'key': 'pod.node', 'value': 'pod.name', 'duplicates': 'first'", "{'a': 'p1', 'b': 'p2'}"),
            ("'key': 'pod.node', 'value': 'pod.name', 'duplicates': 'last'", "{'a': 'p3', 'b': 'p2'}"),
            (
                "'key': 'pod.node', 'value': 'pod.name', 'duplicates': 'list'",
                "{'a': ['p1', 'p3'], 'b': ['p2']}",
            ),
            (
                "'key': 'pod.node', 'duplicates': 'first'",
                "{'a': {'name': 'p1', 'node': 'a'}, 'b': {'name': 'p2', 'node': 'b'}}",
            ),
        ] {
            let expected = json(expected);
            let output = output("data.index", &input(more)).await.unwrap();
            assert_eq!(output.get("value"), Some(&expected), "{more}");
            assert_eq!(output.get("count"), Some(&Value::Int(expected.as_map().unwrap().len() as i64)));
            let order = |value: &Value| value.as_map().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(order(output.get("value").unwrap()), order(&expected), "{more}");
        }
    }

    #[tokio::test]
    async fn trouble_is_named() {
        let failure = output("data.index", &input("'key': 'pod.node'")).await.unwrap_err();
        assert_eq!(failure.message, "`from[0]` and `from[2]` have the same key `a`");
        let failure = output("data.index", &input("'key': 'pod.name', 'value': 'pod.x'")).await.unwrap_err();
        assert!(
            failure.message.starts_with(r#"`from[0]` ({"name":"p1","node":"a"}): in `pod.x`:"#),
            "{failure}"
        );
        assert_eq!(failure.kind, FailureKind::Input);
        refuses(
            "data.index",
            "{'from': [], 'as': 'a', 'key': 'a'}",
            &[
                "{'from': [], 'as': 'a'}",
                "{'from': [], 'as': 'a', 'key': 'a', 'duplicates': 'all'}",
                "{'from': 3, 'as': 'a', 'key': 'a'}",
            ],
        )
        .await;
    }

    #[test]
    fn an_unknown_key_defers_the_index() {
        for more in ["", ", 'duplicates': 'list'"] {
            let index: Index = input(&format!("'key': 'steps.later.x'{more}")).read().unwrap();
            assert!(index.indexed(&scope()).unwrap().is_none());
        }
    }
}
