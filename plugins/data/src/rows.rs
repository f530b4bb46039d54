//! `data.rows`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use farrier_action::text::ItemExpr;
use farrier_action::{Action, Planned, ReadCx};
use farrier_model::expr::Template;
use farrier_model::spec::Risk;
use farrier_model::{Effect, Expr, Failure, FailureKind, Scope, Text, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::keyed::{Duplicates, ItemName, Keying, about};
use crate::planned;

/// Makes a table: one row for each item of a list, with one expression per column.
///
/// `lookup` joins other lists: each is keyed once, and the expressions of `where` and `row` then find its items under
/// its name, as in `group[account.cn].member`. A key that the lookup does not have fails the step and is named, unless
/// the lookup has a `default`; for a single use, `(group[account.cn] | default({'member': []})).member` does the same.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// The list to go through, mostly another step's output.
    #[schemars(with = "Vec<serde_json::Value>")]
    from: Vec<Value>,
    /// What the expressions below call the item.
    #[serde(rename = "as")]
    name: ItemName,
    /// Which items give a row: a bare expression that is true or false. Left out, all do.
    #[serde(rename = "where", default)]
    filter: Option<ItemExpr>,
    /// Lists to look things up in, by the name that expressions use.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, LookupInput>")]
    lookup: BTreeMap<ItemName, LookupInput>,
    /// The columns of a row, each with its expression.
    row: Row,
}

/// A list to look things up in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LookupInput {
    /// The list.
    #[serde(rename = "in")]
    #[schemars(with = "Vec<serde_json::Value>")]
    items: Vec<Value>,
    /// The key of an item, a bare expression in which the item has the lookup's name: `group.cn`. Text, or a whole
    /// number, which stands for its digits.
    key: ItemExpr,
    /// What to do when two items have the same key: `error`, `first` or `last`.
    #[serde(default)]
    duplicates: Duplicates,
    /// What a key that no item has stands for. Left out, such a key is an error.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "serde_json::Value")]
    default: Option<Value>,
}

/// `default: null` is a default; no `default` is none.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The columns of a table, evaluated for each item.
#[derive(Debug)]
pub struct Row {
    names: Arc<[Text]>,
    cells: Vec<Template>,
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Row, D::Error> {
        let tree = Value::deserialize(deserializer)?;
        match Template::parse(&tree).map_err(D::Error::custom)? {
            Template::Map(columns) if !columns.is_empty() => {
                let (names, cells): (Vec<Text>, Vec<Template>) = columns.into_iter().unzip();
                Ok(Row { names: names.into(), cells })
            }
            _ => Err(D::Error::custom("a row is a map with at least one column and its expression")),
        }
    }
}

impl JsonSchema for Row {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "row".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "x-farrier": "item_template" })
    }
}

/// The table.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Table {
    /// The rows, in the order of the list.
    #[schemars(schema_with = "rows_schema")]
    pub rows: Value,
    /// How many rows there are.
    pub count: u64,
}

fn rows_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "object", "x-farrier": "keys_of:row" } })
}

impl Action for Rows {
    const NAME: &'static str = "data.rows";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
tool_rows:
  uses: data.rows
  with:
    from: ${ steps.accounts.entries }
    as: account
    where: account.uidNumber is not none
    lookup:
      group: { in: '${ steps.groups.entries }', key: group.cn, default: { member: [] } }
    row:
      name: ${ account.cn }
      id: ${ account.uidNumber }
      maintainers: ${ group[account.cn].member | map('rdn') | join(' ') }
";
    type Output = Table;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Table>, Failure> {
        self.table(cx.scope()).map(planned)
    }
}

impl Rows {
    /// The table; nothing when it is not known yet which rows there are.
    fn table(&self, scope: &Scope) -> Result<Option<Table>, Failure> {
        let Some(scope) = self.with_lookups(scope)? else { return Ok(None) };
        let columns: Vec<Column<'_>> =
            self.row.cells.iter().map(|cell| Column::new(cell, &self.name.0)).collect();
        let mut rows = Vec::with_capacity(if self.filter.is_some() { 0 } else { self.from.len() });
        for (position, item) in self.from.iter().enumerate() {
            let scope = scope.with(self.name.0.clone(), item.clone());
            if let Some(filter) = &self.filter {
                let at = |failure: Failure| about("from", position, item, within("`where`", failure));
                match filter.eval(&scope).map_err(at)? {
                    Value::Bool(true) => {}
                    Value::Bool(false) => continue,
                    Value::Unknown(_) => return Ok(None),
                    other => {
                        let message =
                            format!("`{}` is {}, not true or false", filter.0.source(), other.kind());
                        return Err(at(Failure::new(FailureKind::Input, message)));
                    }
                }
            }
            let mut cells = Vec::with_capacity(columns.len());
            for (name, column) in self.row.names.iter().zip(&columns) {
                let cell = column.eval(item, &scope);
                cells.push(cell.map_err(|failure| {
                    about("from", position, item, within(&format!("column `{name}`"), failure))
                })?);
            }
            rows.push(Value::record(self.row.names.clone(), cells));
        }
        let count = rows.len() as u64;
        Ok(Some(Table { rows: Value::list(rows), count }))
    }

    /// `scope` with every lookup under its name; nothing when a key in one is not known yet.
    fn with_lookups(&self, scope: &Scope) -> Result<Option<Scope>, Failure> {
        let mut joined = scope.clone();
        for (name, lookup) in &self.lookup {
            if *name == self.name {
                return Err(Failure::new(
                    FailureKind::Input,
                    format!(
                        "`{name}` names both the item (`as`) and a lookup; give one of them another name"
                    ),
                ));
            }
            let place = format!("lookup.{name}.in");
            let keying = Keying { place: &place, name: &name.0, key: &lookup.key };
            let items = keying
                .unique(&lookup.items, scope, lookup.duplicates, |at, _| Ok(lookup.items[at].clone()))?;
            let Some(items) = items else { return Ok(None) };
            joined = joined.with_lookup(name.0.clone(), Value::map(items), lookup.default.clone());
        }
        Ok(Some(joined))
    }
}

/// One column, made ready for many items.
enum Column<'a> {
    /// `item.a.b`, by far the most common: read without the expression engine.
    Path {
        path: Vec<&'a str>,
        expr: &'a Expr,
    },
    Expr(&'a Expr),
    Tree(&'a Template),
}

impl<'a> Column<'a> {
    fn new(cell: &'a Template, item_name: &str) -> Column<'a> {
        let Template::Expr(expr) = cell else { return Column::Tree(cell) };
        match expr.as_path().map(|path| path.split('.').collect::<Vec<_>>()) {
            Some(path) if path[0] == item_name => Column::Path { path: path[1..].to_vec(), expr },
            _ => Column::Expr(expr),
        }
    }

    fn eval(&self, item: &Value, scope: &Scope) -> Result<Value, Failure> {
        let failed = |source: Option<&Expr>, message: String| {
            let place = source.map(|expr| format!("in `{}`: ", expr.source().trim())).unwrap_or_default();
            Failure::new(FailureKind::Input, format!("{place}{message}"))
        };
        match self {
            Column::Path { path, expr } => match path.iter().try_fold(item, |value, key| value.get(key)) {
                Some(value) => Ok(value.clone()),
                // Not there, or not a map: the expression engine has the words for it.
                None => expr.eval(scope).map_err(|error| failed(Some(expr), error.message)),
            },
            Column::Expr(expr) => expr.eval(scope).map_err(|error| failed(Some(expr), error.message)),
            Column::Tree(tree) => tree.eval(scope).map_err(|error| failed(None, error.message)),
        }
    }
}

fn within(place: &str, failure: Failure) -> Failure {
    Failure { message: format!("{place}: {}", failure.message), ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{json, output, refuses, scope};

    fn rows(text: &str) -> Result<Option<Table>, Failure> {
        json(text)
            .read::<Rows>()
            .map_err(|error| Failure::new(FailureKind::Input, error.to_string()))?
            .table(&scope())
    }

    const JOIN: &str = "{
        'from': [{'cn': 'tools.a', 'uidNumber': 1}, {'cn': 'tools.b', 'uidNumber': 2}],
        'as': 'account',
        'lookup': {'group': {'in': [{'cn': 'tools.a', 'member': ['uid=x,ou=p', 'uid=y,ou=p']}], 'key': 'group.cn' MORE}},
        'row': {'name': '${ account.cn }', 'text': '${ inputs.project }/${ account.uidNumber }', 'who': 'CELL'}
    }";

    #[tokio::test]
    async fn one_row_per_item_with_joined_columns() {
        let cell = "${ group[account.cn].member | map(\\\"rdn\\\") | join(\\\" \\\") }";
        let text = JOIN.replace("MORE", ", 'default': {'member': []}").replace("CELL", cell);
        let table = output("data.rows", &json(&text)).await.unwrap();
        let expected = json(
            "[{'name': 'tools.a', 'text': 'tools/1', 'who': 'x y'}, {'name': 'tools.b', 'text': 'tools/2', 'who': ''}]",
        );
        assert_eq!(table.get("rows"), Some(&expected));
        assert_eq!(table.get("count"), Some(&Value::Int(2)));
    }

    #[test]
    fn failures_name_the_item_the_column_and_the_missing_key() {
        let cases = [
            (
                "",
                "${ group[account.cn].member }",
                "`from[1]` ({\"cn\":\"tools.b\",\"uidNumber\":2}): column `who`: in \
              `group[account.cn].member`: `group` has no item with the key `tools.b`",
            ),
            ("", "${ account.nothing }", "column `who`: in `account.nothing`:"),
            ("", "${ account.cn.deeper }", "`from[0]`"),
            ("", "${ group }!", "`group` is map, which cannot be put into text"),
        ];
        for (more, cell, expected) in cases {
            let failure = rows(&JOIN.replace("MORE", more).replace("CELL", cell)).unwrap_err();
            assert!(failure.message.contains(expected), "{cell}: {failure}");
            assert_eq!(failure.kind, FailureKind::Input);
        }
        let failure = rows("{'from': [1, 2], 'as': 'n', 'where': 'n', 'row': {'a': 1}}").unwrap_err();
        assert_eq!(failure.message, "`from[0]` (1): `where`: `n` is int, not true or false");
    }

    #[test]
    fn missing_keys_have_defaults_where_the_author_says_so() {
        for (more, cell, expected) in [
            (", 'default': null", "${ group[account.cn] is none }", "true"),
            (", 'default': {'member': 7}", "${ group[account.cn].member }", "7"),
            ("", "${ (group[account.cn] | default({\\\"member\\\": 8})).member }", "8"),
            ("", "${ account.cn in group }", "false"),
        ] {
            let table = rows(&JOIN.replace("MORE", more).replace("CELL", cell)).unwrap().unwrap();
            assert_eq!(table.rows.as_list().unwrap()[1].get("who"), Some(&json(expected)), "{cell}");
        }
    }

    #[test]
    fn equal_keys_are_an_error_unless_one_of_them_counts() {
        let text = |duplicates: &str| {
            format!(
                "{{'from': [7], 'as': 'id', 'row': {{'name': '${{ by[id].name }}'}}, 'lookup': {{'by': {{'key': 'by.id' \
                 {duplicates}, 'in': [{{'id': 6, 'name': 'x'}}, {{'id': 7, 'name': 'one'}}, {{'id': 7, 'name': 'two'}}]}}}}}}"
            )
        };
        let failure = rows(&text("")).unwrap_err();
        assert_eq!(failure.message, "`lookup.by.in[1]` and `lookup.by.in[2]` have the same key `7`");
        assert!(failure.help.unwrap().contains("duplicates"));
        for (word, expected) in [("first", "one"), ("last", "two")] {
            let table = rows(&text(&format!(", 'duplicates': '{word}'"))).unwrap().unwrap();
            assert_eq!(table.rows, json(&format!("[{{'name': '{expected}'}}]")));
        }
    }

    #[test]
    fn unusable_keys_are_errors() {
        for (key, expected) in [("null", "is null"), ("[1]", "is list"), ("1.5", "is float")] {
            let text = format!(
                "{{'from': [], 'as': 'a', 'row': {{'a': 1}}, 'lookup': {{'by': {{'in': [{{'k': {key}}}], 'key': 'by.k'}}}}}}"
            );
            let failure = rows(&text).unwrap_err();
            assert!(
                failure.message.contains(expected) && failure.message.contains("lookup.by.in[0]"),
                "{failure}"
            );
        }
    }

    #[test]
    fn where_chooses_items() {
        let table =
            rows("{'from': [1, 2, 3, 4], 'as': 'n', 'where': 'n % 2 == 0', 'row': {'n': '${ n }'}}").unwrap();
        assert_eq!(table.unwrap().rows, json("[{'n': 2}, {'n': 4}]"));
        let table = rows("{'from': [], 'as': 'n', 'row': {'n': '${ n }'}}").unwrap().unwrap();
        assert_eq!((table.rows, table.count), (json("[]"), 0));
    }

    #[test]
    fn what_is_known_later_stays_unknown() {
        let table =
            rows("{'from': [1], 'as': 'n', 'row': {'n': '${ n }', 'later': '${ steps.later.x }'}}").unwrap();
        let row = table.unwrap().rows.as_list().unwrap()[0].clone();
        assert_eq!(row.get("n"), Some(&Value::Int(1)));
        assert_eq!(row.get("later"), Some(&Value::Unknown("later".into())));
        for text in [
            "{'from': [1], 'as': 'n', 'where': 'n == steps.later.x', 'row': {'n': 1}}",
            "{'from': [1], 'as': 'n', 'lookup': {'by': {'in': [1], 'key': 'steps.later.x'}}, 'row': {'n': 1}}",
        ] {
            assert!(rows(text).unwrap().is_none(), "{text}");
        }
    }

    #[test]
    fn cells_and_column_names_are_shared() {
        let input = json(
            "{'from': [{'a': {'b': [1]}}, {'a': {'b': [2]}}], 'as': 'x', 'row': {'c': '${ x.a }', 'd': '${ [x.a][0] }'}}",
        );
        let action: Rows = input.read().unwrap();
        let Value::Map(original) = action.from[1].get("a").unwrap() else { panic!() };
        let table = action.table(&scope()).unwrap().unwrap();
        let rows = table.rows.as_list().unwrap();
        for column in ["c", "d"] {
            let Some(Value::Map(cell)) = rows[1].get(column) else { panic!() };
            assert!(Arc::ptr_eq(cell, original), "{column}");
        }
        let names = |row: &Value| row.as_map().unwrap().keys().map(|key| key.as_ptr()).collect::<Vec<_>>();
        assert_eq!(names(&rows[0]), names(&rows[1]));
    }

    #[tokio::test]
    async fn bad_input_is_refused() {
        refuses(
            "data.rows",
            "{'from': [], 'as': 'a', 'row': {'a': 1}}",
            &[
                "{'from': {}, 'as': 'a', 'row': {'a': 1}}",
                "{'from': null, 'as': 'a', 'row': {'a': 1}}",
                "{'from': [], 'as': 'a b', 'row': {'a': 1}}",
                "{'from': [], 'as': 'steps', 'row': {'a': 1}}",
                "{'from': [], 'as': 'a', 'row': {}}",
                "{'from': [], 'as': 'a', 'row': '${ a }'}",
                "{'from': [], 'as': 'a', 'row': {'a': '${ a + }'}}",
                "{'from': [], 'as': 'a', 'row': {'a': '${ a | nosuch }'}}",
                "{'from': [], 'as': 'a', 'where': '', 'row': {'a': 1}}",
                "{'from': [], 'as': 'a', 'lookup': {'a': {'in': [], 'key': 'a'}}, 'row': {'a': 1}}",
                "{'from': [], 'as': 'a', 'lookup': {'b': {'in': [], 'key': 'b', 'keys': 1}}, 'row': {'a': 1}}",
                "{'from': [], 'as': 'a', 'lookup': {'b': {'in': [], 'key': 'b', 'duplicates': 'all'}}, 'row': {'a': 1}}",
            ],
        )
        .await;
    }

    #[test]
    fn the_schema_lets_the_compiler_check_column_names() {
        let registry = crate::testing::registry();
        let spec = &registry.catalog().actions["data.rows"];
        assert_eq!(spec.output["properties"]["rows"]["items"]["x-farrier"], "keys_of:row");
        assert_eq!(spec.input["properties"]["row"]["x-farrier"], "item_template");
        assert_eq!(spec.input["properties"]["where"]["x-farrier"], "item_expression", "{}", spec.input);
        let lookup = &spec.input["properties"]["lookup"]["additionalProperties"];
        assert_eq!(lookup["properties"]["key"]["x-farrier"], "item_expression", "{}", spec.input);
    }
}
