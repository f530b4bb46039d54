//! `sql.query`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind, Text, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::column::short;
use crate::database::{Database, Row};
use crate::statement::Statement;
use crate::target::Sql;
use crate::value::{Cell, parse_zoned, zoned_text};

/// Reads rows from a database.
///
/// The statement runs in a transaction that the server keeps from writing, as the target's `read_as` account. Each
/// column that later steps use is listed under `columns` with its type, so a column that is missing, null or of another
/// type is found here and not three steps later.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The database.
    target: Target<Sql>,
    /// One statement that reads. `$name` stands for a value from `params` and is never quoted; a list as a value
    /// becomes several, as in `WHERE name IN ($names)`. A dollar sign is `$$`.
    sql: Literal,
    /// The values of the statement's parameters.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    params: BTreeMap<String, Value>,
    /// The columns to take from the answer, each with its type.
    columns: Columns,
    /// The step fails when there are more rows than this. Default 1,000,000.
    #[serde(default = "a_million")]
    max_rows: u64,
}

fn a_million() -> u64 {
    1_000_000
}

/// What `sql.query` found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Rows {
    /// The rows in the database's order, each a map with the keys of `columns`.
    #[schemars(schema_with = "rows_schema")]
    rows: Value,
}

fn rows_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "object", "x-farrier": "keys_of:columns" } })
}

/// Names with types, in the author's order.
#[derive(Debug)]
struct Columns(Vec<(Text, ColumnType)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ColumnType {
    scalar: Scalar,
    optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    Text,
    Int,
    Float,
    Bool,
    Timestamp,
}

const SCALARS: [(&str, Scalar); 5] = [
    ("string", Scalar::Text),
    ("int", Scalar::Int),
    ("float", Scalar::Float),
    ("bool", Scalar::Bool),
    ("timestamp", Scalar::Timestamp),
];

impl ColumnType {
    fn parse(text: &str) -> Option<ColumnType> {
        let (name, optional) = text.strip_prefix("optional ").map_or((text, false), |name| (name, true));
        let (_, scalar) = SCALARS.iter().find(|(known, _)| *known == name)?;
        Some(ColumnType { scalar: *scalar, optional })
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Columns, D::Error> {
        struct ColumnsVisitor;
        impl<'de> Visitor<'de> for ColumnsVisitor {
            type Value = Columns;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from column names to types")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Columns, A::Error> {
                let mut columns = Vec::new();
                while let Some((name, kind)) = access.next_entry::<String, String>()? {
                    let kind = ColumnType::parse(&kind).ok_or_else(|| {
                        A::Error::custom(format!(
                            "column `{name}` has the type `{kind}`; the types are string, int, float, bool and \
                             timestamp, each perhaps with `optional` before it"
                        ))
                    })?;
                    columns.push((name.into(), kind));
                }
                if columns.is_empty() {
                    return Err(A::Error::custom("`columns` names no column"));
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(ColumnsVisitor)
    }
}

impl JsonSchema for Columns {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "columns".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<String> =
            SCALARS.iter().flat_map(|(name, _)| [(*name).to_owned(), format!("optional {name}")]).collect();
        json_schema!({
            "type": "object",
            "minProperties": 1,
            "additionalProperties": { "type": "string", "enum": names }
        })
    }
}

impl Action for Query {
    const NAME: &'static str = "sql.query";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
databases:
  uses: sql.query
  with:
    target: database
    sql: SELECT schema_name AS name FROM information_schema.schemata WHERE LEFT(schema_name, LENGTH($prefix)) = $prefix
    params: { prefix: s51234__ }
    columns: { name: string }
";
    type Output = Rows;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Rows>, Failure> {
        let reader = cx.reader(&self.target).await?;
        let rows = self.read(&*reader.0).await.map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Planned::known(Rows { rows }))
    }
}

impl Query {
    async fn read(&self, database: &dyn Database) -> Result<Value, Failure> {
        let dialect = database.dialect();
        let statement = Statement::parse(&self.sql.0, dialect)?;
        statement.must_read()?;
        let sql = statement.bind(&self.params, dialect)?;
        let keys: Arc<[Text]> = self.columns.0.iter().map(|(name, _)| name.clone()).collect();
        let mut places: Option<Vec<usize>> = None;
        let mut rows: Vec<Value> = Vec::new();
        let mut session = database.read().await?;
        let outcome = session
            .fetch(&sql.text, &sql.params, &mut |row| {
                if rows.len() as u64 >= self.max_rows {
                    return Err(Failure::new(
                        FailureKind::Limit,
                        format!("the answer has more than {} rows", self.max_rows),
                    )
                    .help("narrow the statement, or raise `max_rows`"));
                }
                if places.is_none() {
                    places = Some(self.places(row)?);
                }
                let mut values = Vec::with_capacity(keys.len());
                for (place, (name, kind)) in places.iter().flatten().zip(&self.columns.0) {
                    let value = kind.value(&row.cell(*place)?).map_err(|reason| {
                        Failure::new(
                            FailureKind::Refused,
                            format!("column `{name}` of row {} {reason}", rows.len() + 1),
                        )
                    })?;
                    values.push(value);
                }
                rows.push(Value::record(keys.clone(), values));
                Ok(ControlFlow::Continue(()))
            })
            .await;
        session.rollback().await;
        outcome?;
        Ok(Value::list(rows))
    }

    /// Where the wanted columns stand in the answer.
    fn places(&self, row: &dyn Row) -> Result<Vec<usize>, Failure> {
        let names = row.names();
        self.columns
            .0
            .iter()
            .map(|(wanted, _)| {
                let mut places = (0..names.len()).filter(|place| *names[*place] == **wanted);
                match (places.next(), places.next()) {
                    (Some(place), None) => Ok(place),
                    (Some(_), Some(_)) => Err(Failure::new(
                        FailureKind::Refused,
                        format!("the answer has several columns named `{wanted}`"),
                    )
                    .help("give each its own name with AS")),
                    (None, _) => Err(Failure::new(
                        FailureKind::Refused,
                        format!("the answer has no column `{wanted}`"),
                    )
                    .help(format!("its columns are: {}", names.join(", ")))),
                }
            })
            .collect()
    }
}

impl ColumnType {
    /// The value of a cell, or what is wrong with it.
    fn value(self, cell: &Cell<'_>) -> Result<Value, String> {
        let unfit = || Err(format!("is {}, not {}", cell.kind(), self.scalar.phrase()));
        Ok(match (self.scalar, cell) {
            (_, Cell::Null) if self.optional => Value::Null,
            (_, Cell::Null) => {
                return Err(format!("is null; if that may be, declare it `optional {}`", self.scalar.name()));
            }
            (Scalar::Text, Cell::Text(_) | Cell::Bytes(_) | Cell::Decimal(_)) => cell.to_value(),
            (Scalar::Int, Cell::Int(number)) => Value::Int(*number),
            (Scalar::Int, Cell::Bool(flag)) => Value::Int(i64::from(*flag)),
            // A sum of whole numbers is a decimal in MariaDB and PostgreSQL.
            (Scalar::Int, Cell::Decimal(digits)) => {
                match crate::value::decimal_text(digits).map(|text| text.parse()) {
                    Some(Ok(number)) => Value::Int(number),
                    _ => return Err(format!("is `{digits}`, not a whole number that fits 64 bits")),
                }
            }
            (Scalar::Float, Cell::Float(number)) => Value::Float(*number),
            (Scalar::Float, Cell::Int(number)) => Value::Float(*number as f64),
            (Scalar::Float, Cell::Decimal(digits)) => match digits.parse() {
                Ok(number) => Value::Float(number),
                Err(_) => return unfit(),
            },
            (Scalar::Bool, Cell::Bool(flag)) => Value::Bool(*flag),
            (Scalar::Bool, Cell::Int(number @ (0 | 1))) => Value::Bool(*number == 1),
            (Scalar::Bool, Cell::Int(number)) => {
                return Err(format!("is {number}, not a truth value (0 or 1)"));
            }
            (Scalar::Timestamp, Cell::Text(text)) => match parse_zoned(text) {
                Some(moment) => Value::text(zoned_text(moment)),
                None => return Err(format!("is `{}`, not a date and time", short(text))),
            },
            _ => return unfit(),
        })
    }
}

impl Scalar {
    fn name(self) -> &'static str {
        SCALARS.iter().find(|(_, scalar)| *scalar == self).map_or("", |(name, _)| name)
    }
    fn phrase(self) -> &'static str {
        match self {
            Scalar::Text => "text",
            Scalar::Int => "a whole number",
            Scalar::Float => "a number",
            Scalar::Bool => "a truth value",
            Scalar::Timestamp => "a date and time",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_take_the_declared_type_or_say_why_not() {
        let decimal = |text: &'static str| Cell::Decimal(text.into());
        let text = |text: &'static str| Cell::Text(text.into());
        for (kind, cell, expected) in [
            ("string", text("a"), Ok(Value::text("a"))),
            ("string", decimal("1.50"), Ok(Value::text("1.50"))),
            ("string", Cell::Bytes(vec![1, 2].into()), Ok(Value::text("AQI="))),
            ("string", Cell::Int(1), Err("is a whole number, not text")),
            ("string", Cell::Null, Err("is null; if that may be, declare it `optional string`")),
            ("optional string", Cell::Null, Ok(Value::Null)),
            ("int", Cell::Int(5), Ok(Value::Int(5))),
            ("int", decimal("35.00"), Ok(Value::Int(35))),
            ("int", decimal("35.5"), Err("is `35.5`, not a whole number that fits 64 bits")),
            ("int", text("5"), Err("is text, not a whole number")),
            ("float", Cell::Int(5), Ok(Value::Float(5.0))),
            ("float", decimal("0.5"), Ok(Value::Float(0.5))),
            ("bool", Cell::Int(1), Ok(Value::Bool(true))),
            ("bool", Cell::Int(2), Err("is 2, not a truth value (0 or 1)")),
            ("timestamp", text("2026-11-22 10:15:30"), Ok(Value::text("2026-11-22T10:15:30Z"))),
            ("timestamp", text("soon"), Err("is `soon`, not a date and time")),
        ] {
            let kind = ColumnType::parse(kind).unwrap();
            assert_eq!(kind.value(&cell), expected.map_err(str::to_owned), "{cell:?} as {kind:?}");
        }
        for wrong in ["text", "optional", "Optional int", "optional  int", ""] {
            assert_eq!(ColumnType::parse(wrong), None, "{wrong}");
        }
    }
}
