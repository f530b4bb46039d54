//! `sql.sync`: makes the rows of a table what a list says.
//!
//! Read in this order: [`Sync`] (the input), `wanted` (the list in the table's own terms), `compare` (list against
//! table: the plan), `unique` (what would collide), `write` (the changes, all in one transaction).
//!
//! **Which rows are the same.** A row is found by its key, spelled exactly. Where the column's collation holds
//! differently spelled keys equal (`Foo` and `foo` in MariaDB's default), two such rows cannot both exist: two wanted
//! ones are an error that names both, and a wanted one and an existing one are the same row, whose spelling is updated.

mod compare;
mod unique;
mod wanted;
mod write;

use std::collections::BTreeMap;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dialect::Clock;
use crate::table::TableName;
use crate::target::Sql;

/// Makes the rows of a table what a list says: inserts, updates and, when told so, deletes.
///
/// The plan compares the list with the table and shows every row that would change. Applying makes exactly those
/// changes in one transaction: other readers see all of them or none. A row that was changed by someone else in the
/// meantime stops it, and nothing is changed. The key must be a primary or unique key of the table.
///
/// Values are compared as the column would store them: `5` and `"5"` are the same in a number column, text is compared
/// byte by byte, and null differs from the empty text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    /// The database.
    target: Target<Sql>,
    /// The table, perhaps with its schema: `tools`, `toollabs_p.tools`.
    table: TableName,
    /// The columns that tell rows apart. Two rows that the database would hold equal, such as `Foo` and `foo` under
    /// most MariaDB collations, are the same row.
    #[schemars(length(min = 1))]
    key: Vec<String>,
    /// The wanted rows: a list of maps from column names to values, all with the same columns.
    #[schemars(schema_with = "rows_schema")]
    rows: Value,
    /// Columns that never cause a change. Those that `rows` has are written with rows that change for another reason,
    /// such as the time of the last change.
    #[serde(default)]
    ignore: Vec<String>,
    /// Columns that get the database's own time on the rows that are written: `now` for a date and time, `unix_time`
    /// for seconds since 1970. They never cause a change.
    #[serde(default)]
    set_on_write: BTreeMap<String, WriteTime>,
    /// Columns whose old value stays when the wanted one is null.
    #[serde(default)]
    keep_old_when_null: Vec<String>,
    /// The rows that this step owns, as values of columns: other rows are neither compared nor deleted. New rows get
    /// these values.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    only_where: BTreeMap<String, Value>,
    /// What happens to rows of the table that the list does not have.
    #[serde(default)]
    rows_not_listed: NotListed,
    /// How many rows one statement may write, at most. Default 500.
    #[serde(default = "five_hundred")]
    #[schemars(range(min = 1, max = 10000))]
    chunk: usize,
}

fn rows_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "type": "object" } })
}

fn five_hundred() -> usize {
    500
}

/// What happens to rows of the table that the list does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NotListed {
    /// They stay as they are.
    #[default]
    Keep,
    /// They are deleted.
    Delete,
}

/// A clock of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WriteTime {
    /// Date and time, UTC.
    Now,
    /// Seconds since 1970.
    UnixTime,
}

impl From<WriteTime> for Clock {
    fn from(time: WriteTime) -> Clock {
        match time {
            WriteTime::Now => Clock::Now,
            WriteTime::UnixTime => Clock::UnixTime,
        }
    }
}

/// How many rows `sql.sync` changed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Synced {
    /// Rows that were not in the table.
    inserted: u64,
    /// Rows that differed.
    updated: u64,
    /// Rows that the list does not have.
    deleted: u64,
    /// Rows of the list that were in the table already.
    unchanged: u64,
}

impl Synced {
    fn of(changes: &[Change], wanted: usize) -> Synced {
        let count = |kind| changes.iter().filter(|change| change.kind == kind).count() as u64;
        let (inserted, updated) = (count(ChangeKind::Create), count(ChangeKind::Update));
        Synced {
            inserted,
            updated,
            deleted: count(ChangeKind::Delete),
            unchanged: (wanted as u64).saturating_sub(inserted + updated),
        }
    }
}

impl Action for Sync {
    const NAME: &'static str = "sql.sync";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
tools_table:
  uses: sql.sync
  with:
    target: catalogue
    table: tools
    key: [name]
    rows:
      - { name: tools.wm-lol, id: 51234, home: /data/project/wm-lol, maintainers: alice bob }
    set_on_write: { updated: unix_time }
    rows_not_listed: delete
  undo: restore
";
    type Output = Synced;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Synced>, Failure> {
        let reader = cx.reader(&self.target).await?;
        let found = async {
            let mut session = reader.0.read().await?;
            let found = compare::compare(self, &mut *session).await;
            session.rollback().await;
            found
        }
        .await
        .map_err(|failure| failure.at(self.target.alias()))?;
        let output = Synced::of(&found.changes, self.wanted_count());
        let mut planned = Planned::changes(found.changes, output).considered(found.considered);
        if self.wanted_count() == 0 && !planned.changes.is_empty() {
            planned = planned.note("the list of wanted rows is empty");
        }
        Ok(planned)
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Synced, Failure> {
        let writer = cx.writer(&self.target).await?;
        write::apply(self, &*writer.0, changes).await.map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Synced::of(changes, self.wanted_count()))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        write::undo(self, &*writer.0, changes).await.map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Sync {
    fn wanted_count(&self) -> usize {
        self.rows.as_list().map_or(0, <[Value]>::len)
    }
}
