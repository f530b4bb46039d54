//! [`Ledger`] on SQLite: reads go to the readers, everything else to the one writer.

use std::collections::HashMap;
use std::ops::ControlFlow;

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_schedule::{Calendar, Due, ScheduleId, Spec, tzdb_version};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::fires::{LedgerDone, LedgerWork};
use super::writer::{Done, Work};
use super::{SqliteStore, mismatched};
use crate::body::Row;
use crate::ledger::{
    Alarm, AlarmKind, Fire, FireRow, Fired, Ledger, NewSchedule, Paused, ScheduleRow, Synced,
};
use crate::{Notice, StoreError, Violation, rules, timestamp};

const SCHEDULE: &str = "schedule_id, environment, runbook, spec, spec_version, since, cursor, next_due, paused_by, paused_why, \
     paused_at, retired_at, awake_since";
const FIRE: &str = "nominal, since, decision, reason, run_id, into_nominal, decided_at";

impl SqliteStore {
    async fn ledger(&self, work: LedgerWork) -> Result<LedgerDone, StoreError> {
        match self.work(Work::Ledger(Box::new(work))).await? {
            (_, Done::Ledger(done)) => Ok(done),
            _ => Err(mismatched()),
        }
    }

    async fn changes(&self, work: LedgerWork) -> Result<bool, StoreError> {
        match self.ledger(work).await? {
            LedgerDone::Changed(changed) => Ok(changed),
            _ => Err(mismatched()),
        }
    }

    async fn rows(&self, sql: String, bind: &[&str]) -> Result<Vec<SqliteRow>, StoreError> {
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for value in bind {
            query = query.bind((*value).to_owned());
        }
        query.fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))
    }

    /// What is wrong with the records of due times: I6 and I7 of the protocol.
    pub(super) async fn audit_ledger(&self) -> Result<Vec<Violation>, StoreError> {
        let mut violations = Vec::new();
        let mut tell = |invariant, message| {
            violations.push(Violation { run: None, seq: None, invariant, message });
        };
        let lost = self
            .rows(
                "SELECT f.schedule_id, f.nominal, f.run_id FROM fire f LEFT JOIN run r ON r.run_id = f.run_id \
                 WHERE f.decision = 'run' AND f.run_gone = 0 AND (r.run_id IS NULL OR r.schedule_id IS NOT f.schedule_id)"
                    .into(),
                &[],
            )
            .await?;
        for row in lost {
            let read = || -> Result<String, sqlx::Error> {
                let (schedule, nominal): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
                let run: Option<&str> = row.try_get(2)?;
                let run = run.unwrap_or("no run");
                Ok(format!("schedule {schedule}, due {}: its run {run} is not there", timestamp(nominal)))
            };
            tell("I7", read().unwrap_or_else(|error| error.to_string()));
        }
        let strays = self
            .rows(
                "SELECT r.run_id, r.schedule_id FROM run r LEFT JOIN fire f ON f.run_id = r.run_id AND f.decision = 'run' \
                 JOIN schedule s ON s.schedule_id = r.schedule_id WHERE f.run_id IS NULL AND r.created_at > s.kept_after + 86400000 \
                 AND r.created_at >= s.since"
                    .into(),
                &[],
            )
            .await?;
        for row in strays {
            let (run, schedule): (&str, &str) =
                (row.try_get(0).unwrap_or_default(), row.try_get(1).unwrap_or_default());
            tell("I7", format!("run {run} says that schedule {schedule} started it, and no due time does"));
        }
        let schedules = self.rows(format!("SELECT {SCHEDULE}, kept_after FROM schedule"), &[]).await?;
        for row in schedules {
            let schedule = match schedule_row(&row) {
                Ok(schedule) => schedule,
                Err(error) => {
                    tell("row", error.to_string());
                    continue;
                }
            };
            let kept_after = timestamp(row.try_get(13).map_err(|error| self.unreadable(error))?);
            if let ControlFlow::Break(message) = self.gap(&schedule, kept_after).await? {
                tell("I6", format!("schedule {}: {message}", schedule.id));
            }
        }
        Ok(violations)
    }

    /// Walks the due times of a schedule's present version beside their records. As far as can be judged: records that are old
    /// enough are gone, and a time that another release of the time zone database named is taken as it is.
    async fn gap(
        &self,
        schedule: &ScheduleRow,
        kept_after: Timestamp,
    ) -> Result<ControlFlow<String>, StoreError> {
        let Ok(calendar) = Calendar::new(&schedule.id, &schedule.spec) else {
            return Ok(ControlFlow::Continue(()));
        };
        let zoned = matches!(schedule.spec.due, Due::Cron { .. });
        let version = schedule.spec_version.to_string();
        let sql = "SELECT nominal, since, tzdb FROM fire WHERE schedule_id = ? AND spec_version = CAST(? AS BIGINT) ORDER BY nominal";
        let records = self.rows(sql.into(), &[&schedule.id.0, &version]).await?;
        let mut covered = schedule.since.max(kept_after);
        for record in records {
            let failed = |error| self.unreadable(error);
            let nominal = timestamp(record.try_get(0).map_err(failed)?);
            let first = record.try_get::<Option<i64>, _>(1).map_err(failed)?.map_or(nominal, timestamp);
            if first <= covered {
                // What was kept from before.
                covered = covered.max(nominal);
                continue;
            }
            let judged = !zoned || record.try_get::<&str, _>(2).map_err(failed)? == tzdb_version();
            let expected = calendar.next(covered);
            if judged && expected != Some(first) {
                let expected = expected.map_or("nothing".to_owned(), |expected| expected.to_string());
                return Ok(ControlFlow::Break(format!(
                    "{expected} is due after {covered}, and {first} is recorded"
                )));
            }
            covered = nominal;
        }
        if covered != schedule.cursor {
            return Ok(ControlFlow::Break(format!(
                "it is decided up to {}, and recorded up to {covered}",
                schedule.cursor
            )));
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[async_trait]
impl Ledger for SqliteStore {
    async fn cluster(&self) -> Result<Uuid, StoreError> {
        let rows = self.rows("SELECT id FROM cluster".into(), &[]).await?;
        let id = rows.first().and_then(|row| row.try_get::<&str, _>(0).ok()?.parse().ok());
        id.ok_or_else(|| StoreError::Corrupt {
            place: "the store".into(),
            message: "it has no identity".into(),
        })
    }

    async fn put_schedules(&self, wanted: Vec<NewSchedule>) -> Result<Synced, StoreError> {
        match self.ledger(LedgerWork::Put { wanted }).await? {
            LedgerDone::Synced(synced) => Ok(synced),
            _ => Err(mismatched()),
        }
    }

    async fn next_schedules(&self, limit: usize) -> Result<Vec<ScheduleRow>, StoreError> {
        let sql = format!(
            "SELECT {SCHEDULE} FROM schedule INDEXED BY schedule_due WHERE retired_at IS NULL AND next_due IS NOT NULL \
             ORDER BY next_due LIMIT {limit}"
        );
        self.rows(sql, &[]).await?.iter().map(schedule_row).collect()
    }

    async fn fire(&self, fires: Vec<Fire>) -> Result<Vec<Fired>, StoreError> {
        let mut rows = HashMap::new();
        for (_, run) in fires.iter().flat_map(|fire| &fire.runs) {
            rules::check_new(run)?;
            let row = Row::of(&run.created).map_err(|error| StoreError::Invalid {
                run: run.id,
                message: format!("an event cannot be stored: {error}"),
            })?;
            rows.insert(run.id, row);
        }
        match self.ledger(LedgerWork::Fire { fires, rows }).await? {
            LedgerDone::Fired(fired) => Ok(fired),
            _ => Err(mismatched()),
        }
    }

    async fn pause(&self, schedule: &ScheduleId, by: &str, why: &str) -> Result<bool, StoreError> {
        let (by, why) = (by.to_owned(), why.to_owned());
        self.changes(LedgerWork::Pause { schedule: schedule.clone(), by, why }).await
    }

    async fn unpause(&self, schedule: &ScheduleId) -> Result<bool, StoreError> {
        self.changes(LedgerWork::Unpause { schedule: schedule.clone() }).await
    }

    async fn schedule(&self, schedule: &ScheduleId) -> Result<Option<ScheduleRow>, StoreError> {
        let sql = format!("SELECT {SCHEDULE} FROM schedule WHERE schedule_id = ?");
        self.rows(sql, &[&schedule.0]).await?.first().map(schedule_row).transpose()
    }

    async fn schedules(&self, retired: bool) -> Result<Vec<(ScheduleRow, Option<FireRow>)>, StoreError> {
        let among = if retired { "" } else { "WHERE retired_at IS NULL" };
        let rows =
            self.rows(format!("SELECT {SCHEDULE} FROM schedule {among} ORDER BY schedule_id"), &[]).await?;
        let mut schedules = Vec::with_capacity(rows.len());
        for row in &rows {
            let schedule = schedule_row(row)?;
            let last = self.fires(&schedule.id, 1).await?.pop();
            schedules.push((schedule, last));
        }
        Ok(schedules)
    }

    async fn fires(&self, schedule: &ScheduleId, limit: usize) -> Result<Vec<FireRow>, StoreError> {
        let sql =
            format!("SELECT {FIRE} FROM fire WHERE schedule_id = ? ORDER BY nominal DESC LIMIT {limit}");
        self.rows(sql, &[&schedule.0]).await?.iter().map(fire_row).collect()
    }

    async fn seen_at(&self) -> Result<Option<Timestamp>, StoreError> {
        let rows = self.rows("SELECT seen_at FROM clock".into(), &[]).await?;
        Ok(rows.first().and_then(|row| row.try_get(0).ok()).map(timestamp))
    }

    async fn see(&self) -> Result<(), StoreError> {
        self.changes(LedgerWork::See).await.map(|_| ())
    }

    async fn last_success(&self, environment: &str, runbook: &str) -> Result<Option<Timestamp>, StoreError> {
        // By the index of creation times: the latest success is among the latest runs.
        let sql = "SELECT finished_at FROM run WHERE runbook = ? AND environment = ? AND state = 'succeeded' \
             ORDER BY created_at DESC LIMIT 1";
        let rows = self.rows(sql.into(), &[runbook, environment]).await?;
        Ok(rows.first().and_then(|row| row.try_get(0).ok()).map(timestamp))
    }

    async fn raise(
        &self,
        kind: AlarmKind,
        subject: &str,
        message: &str,
        tell: Vec<Notice>,
    ) -> Result<bool, StoreError> {
        let (subject, message) = (subject.to_owned(), message.to_owned());
        self.changes(LedgerWork::Raise { kind, subject, message, tell }).await
    }

    async fn clear(&self, kind: AlarmKind, subject: &str) -> Result<bool, StoreError> {
        self.changes(LedgerWork::Clear { kind, subject: subject.to_owned() }).await
    }

    async fn alarms(&self) -> Result<Vec<Alarm>, StoreError> {
        let rows =
            self.rows("SELECT kind, subject, message, since FROM alarm ORDER BY since".into(), &[]).await?;
        let read = |row: &SqliteRow| -> Result<Option<Alarm>, sqlx::Error> {
            // A kind of a later version is not for us to tell.
            let Some(kind) = AlarmKind::from_name(row.try_get(0)?) else { return Ok(None) };
            let since = timestamp(row.try_get(3)?);
            Ok(Some(Alarm { kind, subject: row.try_get(1)?, message: row.try_get(2)?, since }))
        };
        let alarms = rows.iter().map(read).filter_map(Result::transpose).collect::<Result<_, _>>();
        alarms.map_err(|error| self.unreadable(error))
    }
}

fn schedule_row(row: &SqliteRow) -> Result<ScheduleRow, StoreError> {
    let read = || -> Result<ScheduleRow, sqlx::Error> {
        let spec: Spec =
            serde_json::from_str(row.try_get(3)?).map_err(|error| sqlx::Error::Decode(error.into()))?;
        let time = |at: usize| row.try_get::<Option<i64>, _>(at).map(|time| time.map(timestamp));
        let paused = match (row.try_get(8)?, row.try_get::<Option<String>, _>(9)?, time(10)?) {
            (Some(by), why, Some(at)) => Some(Paused { by, why: why.unwrap_or_default(), at }),
            (_, _, _) => None,
        };
        Ok(ScheduleRow {
            id: ScheduleId(row.try_get::<&str, _>(0)?.into()),
            environment: row.try_get::<&str, _>(1)?.into(),
            runbook: row.try_get::<&str, _>(2)?.into(),
            spec,
            spec_version: row.try_get(4)?,
            since: timestamp(row.try_get(5)?),
            cursor: timestamp(row.try_get(6)?),
            next_due: time(7)?,
            paused,
            retired_at: time(11)?,
            awake_since: timestamp(row.try_get(12)?),
        })
    };
    read().map_err(|error| StoreError::Corrupt {
        place: row.try_get::<String, _>(0).map_or("a schedule".into(), |id| format!("schedule {id}")),
        message: error.to_string(),
    })
}

fn fire_row(row: &SqliteRow) -> Result<FireRow, StoreError> {
    let read = || -> Result<FireRow, sqlx::Error> {
        let run: Option<&str> = row.try_get(4)?;
        let damaged = |_| sqlx::Error::Decode("its run has no id".into());
        Ok(FireRow {
            nominal: timestamp(row.try_get(0)?),
            since: row.try_get::<Option<i64>, _>(1)?.map(timestamp),
            decision: row.try_get(2)?,
            reason: row.try_get(3)?,
            run: run.map(|run| run.parse().map_err(damaged)).transpose()?,
            into: row.try_get::<Option<i64>, _>(5)?.map(timestamp),
            decided_at: timestamp(row.try_get(6)?),
        })
    };
    read().map_err(|error| StoreError::Corrupt {
        place: "the record of a due time".into(),
        message: error.to_string(),
    })
}
