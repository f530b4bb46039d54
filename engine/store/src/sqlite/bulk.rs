//! Many rows with few statements: what schedules and alerts do in one transaction.

use std::collections::HashMap;

use farrier_model::{RunId, Text};
use farrier_schedule::ScheduleId;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::writer::{CHUNKS, Line, Trouble, Writer, add, tuples};
use crate::NewRun;
use crate::body::{self, Place, Row};
use crate::rules::Head;

/// A run that is created together with others. That nothing is in its way is known.
pub(super) struct Fresh<'a> {
    pub(super) new: &'a NewRun,
    /// Its first journal entry.
    pub(super) row: &'a Row,
    /// The schedule that it is of.
    pub(super) schedule: Option<&'a ScheduleId>,
    /// The due time for which it is held back, if it is.
    pub(super) held: Option<i64>,
}

/// Runbook and key of `one_run_per`, and the run that has it.
pub(super) type KeyHolders = HashMap<(Text, Text), RunId>;

impl Writer {
    pub(super) async fn create_all(&mut self, runs: &[Fresh<'_>], now: i64) -> Result<(), Trouble> {
        let head = Head::created(now);
        let entry_ids: Vec<Uuid> = runs.iter().map(|_| Uuid::now_v7()).collect();
        let names: Vec<String> = runs.iter().map(|run| run.new.id.to_string()).collect();
        let lines = runs.iter().zip(&entry_ids).zip(&names).map(|((run, entry_id), name)| {
            let place =
                Place { run: name, seq: 1, epoch: 0, at: now, entry_id: entry_id.as_bytes(), part: 0 };
            let link = body::link(&body::NO_LINK, place, run.row.said());
            Line { place, row: run.row, link }
        });
        let lines: Vec<Line<'_>> = lines.collect();
        let insert = "INSERT INTO run (run_id, runbook, bundle, environment, title, state, generation, epoch, seq, head, \
             created_at, updated_at, live_key, schedule_id, held) VALUES ";
        let rows: Vec<_> = runs.iter().zip(&lines).collect();
        chunked(&mut self.connection, (insert, 15, ""), &rows, |arguments, (run, line)| {
            add(arguments, line.place.run)?;
            add(arguments, run.new.runbook.clone())?;
            add(arguments, run.new.bundle.to_string())?;
            add(arguments, run.new.environment.clone())?;
            add(arguments, run.new.title.clone())?;
            add(arguments, head.state.name())?;
            add(arguments, head.generation)?;
            add(arguments, head.epoch)?;
            add(arguments, head.seq)?;
            add(arguments, line.link.to_vec())?;
            add(arguments, now)?;
            add(arguments, now)?;
            add(arguments, run.new.live_key.clone())?;
            add(arguments, run.schedule.map(|schedule| schedule.0.clone()))?;
            add(arguments, run.held)
        })
        .await?;
        self.insert(&lines).await
    }
}

/// Runs a statement with a list of tuples for all of `items`, many at a time.
pub(super) async fn chunked<T>(
    connection: &mut SqliteConnection,
    (head, columns, tail): (&str, usize, &str),
    items: &[T],
    bind: impl Fn(&mut SqliteArguments, &T) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut rest = items;
    for size in CHUNKS {
        while rest.len() >= size {
            let (chunk, more) = rest.split_at(size);
            rest = more;
            let mut sql = String::from(head);
            tuples(&mut sql, size, columns);
            sql.push_str(tail);
            let mut arguments = SqliteArguments::default();
            for item in chunk {
                bind(&mut arguments, item)?;
            }
            sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// Runs `sql` with a list of ids in the place of its last word, some at a time.
pub(super) async fn by_ids(
    connection: &mut SqliteConnection,
    sql: &str,
    ids: &[String],
    mut each: impl FnMut(&SqliteRow) -> Result<(), sqlx::Error>,
) -> Result<(), Trouble> {
    let mut rest = ids;
    for size in CHUNKS {
        while rest.len() >= size {
            let (chunk, more) = rest.split_at(size);
            rest = more;
            let sql = format!("{sql} ({})", vec!["?"; size].join(", "));
            let mut arguments = SqliteArguments::default();
            for id in chunk {
                add(&mut arguments, id.clone())?;
            }
            for row in sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_all(&mut *connection).await? {
                each(&row)?;
            }
        }
    }
    Ok(())
}
