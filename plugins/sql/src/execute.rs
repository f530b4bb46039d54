//! `sql.execute`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::column::short;
use crate::database::Database;
use crate::statement::Statement;
use crate::target::Sql;

/// Runs one statement that changes something.
///
/// The plan can only show the statement, not what it would change; where the wanted rows are known, `sql.sync` is
/// the better step. The statement runs in a transaction of its own: when the number of rows is not what `expect_rows`
/// says, nothing of it lasts. With `unless` the step knows by itself that it is already done.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    /// The database.
    target: Target<Sql>,
    /// One statement. `$name` stands for a value from `params` and is never quoted; a list as a value becomes several.
    /// A dollar sign is `$$`.
    sql: Literal,
    /// The values of the parameters, for `sql` and for `unless`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    params: BTreeMap<String, Value>,
    /// How many rows the statement must change: a number, or `{min: …, max: …}`.
    expect_rows: Option<ExpectRows>,
    /// A statement that reads, with the same parameters. When it finds a row, the step is done already.
    unless: Option<Literal>,
}

/// What `sql.execute` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Executed {
    /// How many rows the statement changed; 0 when there was nothing to do.
    rows_affected: u64,
}

/// How many rows are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExpectRows {
    min: u64,
    max: Option<u64>,
}

impl fmt::Display for ExpectRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.min, self.max) {
            (min, Some(max)) if min == max => write!(f, "{min}"),
            (0, Some(max)) => write!(f, "at most {max}"),
            (min, Some(max)) => write!(f, "{min} to {max}"),
            (min, None) => write!(f, "at least {min}"),
        }
    }
}

impl<'de> Deserialize<'de> for ExpectRows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ExpectRows, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Range {
            min: Option<u64>,
            max: Option<u64>,
        }
        let value = Value::deserialize(deserializer)?;
        let range = match &value {
            Value::Int(number) => {
                let number = u64::try_from(*number)
                    .map_err(|_| D::Error::custom(format!("{number} is not a number of rows")))?;
                Range { min: Some(number), max: Some(number) }
            }
            Value::Map(_) => value.read().map_err(D::Error::custom)?,
            other => {
                return Err(D::Error::custom(format!(
                    "expected a number or `{{min: …, max: …}}`, found {}",
                    other.kind()
                )));
            }
        };
        let expected = ExpectRows { min: range.min.unwrap_or(0), max: range.max };
        if expected.max.is_some_and(|max| max < expected.min) {
            return Err(D::Error::custom("`max` is less than `min`"));
        }
        Ok(expected)
    }
}

impl JsonSchema for ExpectRows {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "expect_rows".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                {
                    "type": "object",
                    "properties": {
                        "min": { "type": "integer", "minimum": 0 },
                        "max": { "type": "integer", "minimum": 0 }
                    },
                    "additionalProperties": false
                }
            ]
        })
    }
}

impl Action for Execute {
    const NAME: &'static str = "sql.execute";
    const EFFECT: Effect = Effect::Once;
    const RISK: Risk = Risk::Destructive;
    const EXAMPLE: &'static str = "\
forget_tool:
  uses: sql.execute
  with:
    target: database
    sql: DELETE FROM toolstate WHERE toolname = $tool
    params: { tool: wm-lol }
    expect_rows: 1
    unless: SELECT 1 FROM (SELECT COUNT(*) AS n FROM toolstate WHERE toolname = $tool) AS present WHERE n = 0
  undo: none
";
    type Output = Executed;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Executed>, Failure> {
        let reader = cx.reader(&self.target).await?;
        let done = self.done(&*reader.0).await.map_err(|failure| failure.at(self.target.alias()))?;
        if done {
            return Ok(Planned::known(Executed { rows_affected: 0 }));
        }
        let mut after = vec![("sql", Value::text(&*self.sql.0))];
        if !self.params.is_empty() {
            after.push((
                "params",
                Value::map(self.params.iter().map(|(name, value)| (name.as_str(), value.clone()))),
            ));
        }
        if let Some(expected) = self.expect_rows {
            after.push(("expect_rows", Value::text(expected.to_string())));
        }
        Ok(Planned::described(vec![Change {
            object: self.object().into(),
            kind: ChangeKind::Run,
            before: Value::Null,
            after: Value::map(after),
            fingerprint: None,
        }]))
    }

    async fn apply(&self, cx: &WriteCx, _: &[Change]) -> Result<Executed, Failure> {
        let writer = cx.writer(&self.target).await?;
        let rows_affected = self.run(&*writer.0).await.map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Executed { rows_affected })
    }
}

impl Execute {
    /// `statement: ` and the beginning of the statement.
    fn object(&self) -> String {
        let words: Vec<&str> = self.sql.0.split_whitespace().collect();
        format!("statement: {}", short(&words.join(" ")))
    }

    fn statement(&self, database: &dyn Database) -> Result<Statement, Failure> {
        let dialect = database.dialect();
        let statement = Statement::parse(&self.sql.0, dialect)?;
        statement.must_stand_alone()?;
        if self.expect_rows.is_some() && dialect.commits_by_itself(&statement.word) {
            return Err(Failure::new(
                FailureKind::Input,
                format!(
                    "`{}` commits by itself in {}, so `expect_rows` could not undo it",
                    statement.word,
                    dialect.name()
                ),
            )
            .help("remove `expect_rows`"));
        }
        statement.bind(&self.params, dialect)?;
        Ok(statement)
    }

    async fn done(&self, database: &dyn Database) -> Result<bool, Failure> {
        self.statement(database)?;
        let Some(unless) = &self.unless else { return Ok(false) };
        let dialect = database.dialect();
        let unless = Statement::parse(&unless.0, dialect)?;
        unless.must_read()?;
        let sql = unless.bind(&self.params, dialect)?;
        let mut found = false;
        let mut session = database.read().await?;
        let outcome = session
            .fetch(&sql.text, &sql.params, &mut |_| {
                found = true;
                Ok(ControlFlow::Break(()))
            })
            .await;
        session.rollback().await;
        outcome?;
        Ok(found)
    }

    async fn run(&self, database: &dyn Database) -> Result<u64, Failure> {
        let statement = self.statement(database)?;
        let dialect = database.dialect();
        let sql = statement.bind(&self.params, dialect)?;
        let mut session = database.write().await?;
        let rows = match session.execute(&sql.text, &sql.params).await {
            Ok(rows) => rows,
            Err(fault) => {
                session.rollback().await;
                // Such a statement may have taken effect without any commit of ours.
                let lasting = fault.unanswered && dialect.commits_by_itself(&statement.word);
                return Err(if lasting { fault.failure.in_doubt() } else { fault.failure });
            }
        };
        if let Some(expected) = self.expect_rows
            && (rows < expected.min || expected.max.is_some_and(|max| rows > max))
        {
            session.rollback().await;
            return Err(Failure::new(
                FailureKind::Refused,
                format!("the statement changed {rows} rows where {expected} were expected; it was undone"),
            ));
        }
        session.commit().await?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_rows_read_as_a_number_or_a_range() {
        let read =
            |json: &str| Value::from_json(json).unwrap().read::<ExpectRows>().map(|rows| rows.to_string());
        for (json, expected) in [
            ("1", Ok("1")),
            (r#"{"min":1}"#, Ok("at least 1")),
            (r#"{"max":3}"#, Ok("at most 3")),
            (r#"{"min":1,"max":3}"#, Ok("1 to 3")),
            (r#"{"min":3,"max":1}"#, Err("less than")),
            ("-1", Err("number of rows")),
            (r#""1""#, Err("expected a number")),
            (r#"{"mim":1}"#, Err("mim")),
        ] {
            match (read(json), expected) {
                (Ok(shown), Ok(expected)) => assert_eq!(shown, expected),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{json}: {error}"),
                (other, _) => panic!("{json} gave {other:?}"),
            }
        }
    }
}
