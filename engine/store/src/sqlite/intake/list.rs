//! Incidents and events as they are read.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::{id_of, run_of};
use crate::sqlite::SqliteStore;
use crate::{EventRow, IncidentFilter, IncidentRow, StoreError, Violation, timestamp};
use farrier_model::Text;

impl SqliteStore {
    /// What is wrong with incidents: for `fsck`.
    pub(in crate::sqlite) async fn audit_incidents(&self) -> Result<Vec<Violation>, StoreError> {
        let mut violations = Vec::new();
        for (message, sql) in [
            (
                "its run is not there",
                "SELECT incident_id FROM incident WHERE closed_at IS NULL AND run_id IS NOT NULL \
                 AND run_id NOT IN (SELECT run_id FROM run)",
            ),
            (
                "it has neither a run, nor a reason why not",
                "SELECT incident_id FROM incident WHERE closed_at IS NULL AND run_id IS NULL AND held IS NULL \
                 AND resolved_at IS NULL",
            ),
            (
                "it has resolved and its run has ended, but it is open",
                "SELECT incident_id FROM incident WHERE closed_at IS NULL AND resolved_at IS NOT NULL AND NOT EXISTS \
                 (SELECT 1 FROM run WHERE run.run_id = incident.run_id AND run.finished_at IS NULL)",
            ),
            (
                "it is closed, and an alert of it still fires",
                "SELECT incident_id FROM incident WHERE closed_at IS NOT NULL AND incident_id IN \
                 (SELECT incident_id FROM incident_alert WHERE firing <> 0)",
            ),
            (
                "more than one run of it is alive",
                "SELECT incident_id FROM incident_run JOIN run ON run.run_id = incident_run.run_id \
                 WHERE run.finished_at IS NULL GROUP BY incident_id HAVING count(*) > 1",
            ),
        ] {
            let rows =
                sqlx::query(sql).fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
            for row in rows {
                let id: String = row.try_get(0).map_err(|error| self.unreadable(error))?;
                let message = format!("incident {id}: {message}");
                violations.push(Violation { run: None, seq: None, invariant: "incident", message });
            }
        }
        Ok(violations)
    }
}

pub(super) fn incidents_query(filter: &IncidentFilter) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "SELECT incident_id, environment, runbook, key, alert, receiver, opened_at, last_event, resolved_at, closed_at, run_id, \
         runs, held, held_until, held_why FROM incident WHERE 1 = 1",
    );
    if filter.open {
        query.push(" AND closed_at IS NULL");
    }
    if let Some(runbook) = &filter.runbook {
        query.push(" AND runbook = ").push_bind(runbook.clone());
    }
    if let Some(prefix) = &filter.id_prefix {
        // Ids consist of hexadecimal digits and `-`; `g` follows them all.
        let prefix = prefix.to_lowercase();
        query.push(" AND incident_id >= ").push_bind(prefix.clone());
        query.push(" AND incident_id < ").push_bind(format!("{prefix}g"));
    }
    query.push(" ORDER BY opened_at DESC, incident_id");
    if let Some(limit) = filter.limit {
        query.push(" LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    }
    query
}

pub(super) fn incident_row(row: &SqliteRow) -> Result<IncidentRow, sqlx::Error> {
    let text = |at: usize| row.try_get::<&str, _>(at).map(Text::from);
    let time = |at: usize| row.try_get::<Option<i64>, _>(at).map(|ms| ms.map(timestamp));
    Ok(IncidentRow {
        id: id_of(row.try_get(0)?)?,
        environment: text(1)?,
        runbook: text(2)?,
        key: text(3)?,
        alert: text(4)?,
        receiver: text(5)?,
        opened_at: timestamp(row.try_get(6)?),
        last_event: timestamp(row.try_get(7)?),
        resolved_at: time(8)?,
        closed_at: time(9)?,
        run: run_of(row.try_get(10)?)?,
        runs: row.try_get::<i64, _>(11)?.unsigned_abs(),
        held: row.try_get(12)?,
        held_until: time(13)?,
        held_why: row.try_get(14)?,
    })
}

pub(super) fn event_row(row: &SqliteRow) -> Result<EventRow, sqlx::Error> {
    let text = |at: usize| row.try_get::<&str, _>(at).map(Text::from);
    Ok(EventRow {
        runbook: text(0)?,
        environment: text(1)?,
        receiver: text(2)?,
        alert: text(3)?,
        status: row.try_get(4)?,
        first_at: timestamp(row.try_get(5)?),
        last_at: timestamp(row.try_get(6)?),
        seen: row.try_get::<i64, _>(7)?.unsigned_abs(),
        decision: row.try_get(8)?,
        why: row.try_get(9)?,
        body: row.try_get(10)?,
    })
}
