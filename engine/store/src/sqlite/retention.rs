//! What goes after its time: [`SqliteStore::prune`]. A run goes whole or not at all: its row, its journal, the runs that it
//! started, and then the blobs and texts that nothing refers to any more.
//!
//! The journal stays append-only for everyone else: its trigger lets a row go only while its run is marked in the table
//! `retention`, and the mark lives within the one transaction that takes the run away. A mark that is found later was not
//! made here, and `fsck` tells of it.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier_model::RunId;
use sqlx::{Row as _, SqliteConnection};

use super::writer::{Done, Work};
use super::{SqliteStore, mismatched};
use crate::StoreError;

/// Texts that no run refers to are kept so long: a run that is about to be created may mean them.
pub(super) const LEFT_OVER_MS: i64 = 60 * 60 * 1000;
/// Notices about no run are kept so long after they were told.
const TOLD_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// Records of due times are kept so long.
const FIRES_KEPT_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// How long finished runs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// So long after their end.
    pub keep: Duration,
    /// And the newest so many of a runbook, however old they are.
    pub at_least: u64,
}

/// Which finished runs go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// The rule for all runbooks; none keeps the runs of those that are not named for ever.
    pub others: Option<Keep>,
    /// The rules of single runbooks.
    pub runbooks: BTreeMap<String, Keep>,
}

/// What [`SqliteStore::prune`] took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pruned {
    /// Runs, those that were started by others included.
    pub runs: u64,
    /// Journal entries.
    pub entries: u64,
    /// Bodies that nothing else had in it.
    pub blobs: u64,
    /// Texts of runbooks.
    pub texts: u64,
}

impl Pruned {
    fn add(&mut self, more: Pruned) {
        self.runs += more.runs;
        self.entries += more.entries;
        self.blobs += more.blobs;
        self.texts += more.texts;
    }
}

const ROOT: &str = "finished_at IS NOT NULL AND (parent_id IS NULL \
     OR NOT EXISTS (SELECT 1 FROM run parent WHERE parent.run_id = run.parent_id))";

impl SqliteStore {
    /// The runs whose time is over, oldest end first. Runs that others started go with those and are not named.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn expired(&self, retention: &Retention) -> Result<Vec<RunId>, StoreError> {
        let failed = |error| self.unreadable(error);
        let names = sqlx::query("SELECT DISTINCT runbook FROM run").fetch_all(&self.readers).await;
        let mut expired = Vec::new();
        for row in names.map_err(failed)? {
            let runbook: String = row.try_get(0).map_err(failed)?;
            let Some(keep) = retention.runbooks.get(&runbook).or(retention.others.as_ref()) else { continue };
            let ended_before =
                self.clock.now_ms() - i64::try_from(keep.keep.as_millis()).unwrap_or(i64::MAX / 2);
            let sql = format!(
                "SELECT run_id, finished_at FROM run WHERE runbook = ?1 AND finished_at < ?2 AND {ROOT} AND run_id NOT IN \
                 (SELECT run_id FROM run WHERE runbook = ?1 AND {ROOT} ORDER BY finished_at DESC, run_id DESC LIMIT ?3)"
            );
            let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(runbook)
                .bind(ended_before)
                .bind(i64::try_from(keep.at_least).unwrap_or(i64::MAX))
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
            for row in rows {
                let ended: i64 = row.try_get(1).map_err(failed)?;
                if let Ok(run) = row.try_get::<&str, _>(0).map_err(failed)?.parse::<RunId>() {
                    expired.push((ended, run));
                }
            }
        }
        expired.sort_unstable();
        Ok(expired.into_iter().map(|(_, run)| run).collect())
    }

    /// Takes away what [`expired`](SqliteStore::expired) names, a run at a time, so that nobody waits long for it.
    ///
    /// # Errors
    /// The store fails; what was taken away until then is gone.
    pub async fn prune(&self, retention: &Retention) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        let expired = self.expired(retention).await?;
        for run in expired.into_iter().map(Some).chain([None]) {
            match self.work(Work::Prune { run }).await? {
                (_, Done::Pruned(more)) => pruned.add(more),
                _ => return Err(mismatched()),
            }
        }
        Ok(pruned)
    }
}

/// A run with all below it.
const TREE: &str = "WITH RECURSIVE tree (run_id) AS (VALUES (?1) UNION SELECT run.run_id FROM run JOIN tree \
     ON run.parent_id = tree.run_id) ";

/// Takes a run away, within the writer's transaction. Nothing happens while one below it is alive.
pub(super) async fn take_away(connection: &mut SqliteConnection, run: RunId) -> Result<Pruned, sqlx::Error> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{TREE}SELECT run_id, finished_at FROM run WHERE run_id IN (SELECT run_id FROM tree)"
    )))
    .bind(run.to_string())
    .fetch_all(&mut *connection)
    .await?;
    let mut pruned = Pruned::default();
    let mut runs = Vec::new();
    for row in rows {
        if row.try_get::<Option<i64>, _>(1)?.is_none() {
            return Ok(pruned);
        }
        runs.push(row.try_get::<String, _>(0)?);
    }
    for run in runs {
        let blobs = sqlx::query("SELECT DISTINCT blob FROM journal WHERE run_id = ? AND blob IS NOT NULL")
            .bind(run.clone())
            .fetch_all(&mut *connection)
            .await?;
        let mut entries = 0;
        for sql in [
            "INSERT INTO retention (run_id) VALUES (?)",
            "UPDATE fire SET run_gone = 1 WHERE decision = 'run' AND run_id = ?",
            "DELETE FROM request WHERE run_id = ?",
            "DELETE FROM ticket WHERE run_id = ?",
            "DELETE FROM outbox WHERE run_id = ?",
            "DELETE FROM run WHERE run_id = ?",
            "DELETE FROM retention WHERE run_id = ?",
        ] {
            if sql.starts_with("DELETE FROM run ") {
                let deleted = sqlx::query("DELETE FROM journal WHERE run_id = ?").bind(run.clone());
                entries = deleted.execute(&mut *connection).await?.rows_affected();
            }
            sqlx::query(sql).bind(run.clone()).execute(&mut *connection).await?;
        }
        for row in blobs {
            let deleted = sqlx::query(
                "DELETE FROM blob WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM journal WHERE blob = ?1)",
            )
            .bind(row.try_get::<String, _>(0)?)
            .execute(&mut *connection)
            .await?;
            pruned.blobs += deleted.rows_affected();
        }
        pruned.add(Pruned { runs: 1, entries, ..Pruned::default() });
    }
    Ok(pruned)
}

/// Takes away the texts that no run refers to, records of due times that are old, and notices about no run that were told long
/// ago.
pub(super) async fn sweep(connection: &mut SqliteConnection, now: i64) -> Result<Pruned, sqlx::Error> {
    super::fires::forget(connection, now - FIRES_KEPT_MS).await?;
    let deleted = sqlx::query("DELETE FROM bundle WHERE at < ? AND digest NOT IN (SELECT bundle FROM run)")
        .bind(now - LEFT_OVER_MS)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM outbox WHERE run_id IS NULL AND sent_at < ?")
        .bind(now - TOLD_MS)
        .execute(connection)
        .await?;
    Ok(Pruned { texts: deleted.rows_affected(), ..Pruned::default() })
}
