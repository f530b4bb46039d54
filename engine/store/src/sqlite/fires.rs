//! What the writer does to schedules, within its transaction: decisions, runs and cursors together.
//!
//! Many schedules are due in the same second, so everything is read and written with a few statements for many rows.

use std::collections::{BTreeMap, HashMap, HashSet};

use farrier_model::time::Timestamp;
use farrier_model::{Ask, Request, RunId};
use farrier_schedule::{Calendar, Decision, Live, ScheduleId, Skip, Spec, What, settle, tzdb_version};
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::bulk::{Fresh, KeyHolders, by_ids, chunked};
use super::writer::{Trouble, Writer, add};
use super::{asides, outbox};
use crate::body::Row;
use crate::ledger::{AlarmKind, Fire, Fired, NewSchedule, Synced};
use crate::rules::Moment;
use crate::{NewRun, Notice, timestamp};

/// What is done to the ledger.
pub(crate) enum LedgerWork {
    Put {
        wanted: Vec<NewSchedule>,
    },
    Fire {
        fires: Vec<Fire>,
        /// The first journal row of each run.
        rows: HashMap<RunId, Row>,
    },
    Pause {
        schedule: ScheduleId,
        by: String,
        why: String,
    },
    Unpause {
        schedule: ScheduleId,
    },
    See,
    Raise {
        kind: AlarmKind,
        subject: String,
        message: String,
        tell: Vec<Notice>,
    },
    Clear {
        kind: AlarmKind,
        subject: String,
    },
}

/// What came of it.
pub(crate) enum LedgerDone {
    Synced(Synced),
    Fired(Vec<Fired>),
    /// Whether anything changed.
    Changed(bool),
}

/// A schedule's row as far as firing needs it.
struct Stored {
    spec_version: i64,
    cursor: i64,
    paused: bool,
    retired: bool,
}

/// A row of the table `fire` that is about to be written.
struct Record<'a> {
    schedule: &'a ScheduleId,
    nominal: i64,
    since: Option<i64>,
    decision: &'static str,
    reason: Option<&'static str>,
    run: Option<String>,
    into: Option<i64>,
    spec_version: i64,
}

/// Everything that a transaction writes for many schedules.
#[derive(Default)]
struct Outcome<'a> {
    records: Vec<Record<'a>>,
    /// Runs with the due time until which they are held, if they are.
    runs: Vec<(&'a ScheduleId, &'a NewRun, Option<i64>)>,
    /// Schedule, cursor, next moment.
    cursors: Vec<(&'a ScheduleId, i64, Option<i64>)>,
    cancels: Vec<(&'a ScheduleId, RunId, i64)>,
    holds: Vec<(&'a ScheduleId, &'a str)>,
}

impl Writer {
    /// Does it, and says how many journal entries were written.
    pub(super) async fn ledger(
        &mut self,
        work: &LedgerWork,
        moment: Moment,
    ) -> Result<(LedgerDone, u64), Trouble> {
        let now = moment.now;
        let done = match work {
            LedgerWork::Fire { fires, rows } => {
                let (fired, written) = self.fire(fires, rows, now).await?;
                return Ok((LedgerDone::Fired(fired), written));
            }
            LedgerWork::Put { wanted } => LedgerDone::Synced(put(&mut self.connection, wanted, now).await?),
            LedgerWork::Pause { schedule, by, why } => {
                let changed = sqlx::query(
                    "UPDATE schedule SET paused_by = coalesce(paused_by, ?), paused_why = coalesce(paused_why, ?), \
                     paused_at = coalesce(paused_at, ?) WHERE schedule_id = ? AND retired_at IS NULL",
                )
                .bind(by.clone())
                .bind(why.clone())
                .bind(now)
                .bind(schedule.to_string());
                LedgerDone::Changed(changed.execute(&mut self.connection).await?.rows_affected() > 0)
            }
            LedgerWork::Unpause { schedule } => {
                let changed = sqlx::query(
                    "UPDATE schedule SET paused_by = NULL, paused_why = NULL, paused_at = NULL, awake_since = ? \
                     WHERE schedule_id = ? AND paused_at IS NOT NULL",
                )
                .bind(now)
                .bind(schedule.to_string());
                LedgerDone::Changed(changed.execute(&mut self.connection).await?.rows_affected() > 0)
            }
            LedgerWork::See => {
                let seen = sqlx::query(
                    "INSERT INTO clock (one, seen_at) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET seen_at = excluded.seen_at",
                );
                seen.bind(now).execute(&mut self.connection).await?;
                LedgerDone::Changed(true)
            }
            LedgerWork::Raise { kind, subject, message, tell } => {
                let raised = sqlx::query(
                    "INSERT INTO alarm (kind, subject, message, since) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                )
                .bind(kind.name())
                .bind(subject.clone())
                .bind(message.clone())
                .bind(now);
                let raised = raised.execute(&mut self.connection).await?.rows_affected() > 0;
                for notice in tell.iter().filter(|_| raised) {
                    outbox::put(&mut self.connection, notice, now).await?;
                }
                LedgerDone::Changed(raised)
            }
            LedgerWork::Clear { kind, subject } => {
                let cleared = sqlx::query("DELETE FROM alarm WHERE kind = ? AND subject = ?");
                let cleared = cleared.bind(kind.name()).bind(subject.clone());
                LedgerDone::Changed(cleared.execute(&mut self.connection).await?.rows_affected() > 0)
            }
        };
        Ok((done, 0))
    }

    async fn fire(
        &mut self,
        fires: &[Fire],
        rows: &HashMap<RunId, Row>,
        now: i64,
    ) -> Result<(Vec<Fired>, u64), Trouble> {
        let ids: Vec<String> = fires.iter().map(|fire| fire.schedule.to_string()).collect();
        let stored = stored(&mut self.connection, &ids).await?;
        let mut alive = alive(&mut self.connection, &ids).await?;
        let mut outcome = Outcome::default();
        // Keys that runs of this very transaction have taken.
        let mut keys = KeyHolders::new();
        let mut fired = Vec::with_capacity(fires.len());
        let mut decided = HashSet::new();
        for fire in fires {
            let seen = stored.get(&*fire.schedule.0).filter(|stored| {
                !stored.retired
                    && stored.spec_version == fire.spec_version
                    && stored.cursor == fire.cursor.as_millisecond()
            });
            // The same schedule twice in one call: the second saw an old cursor.
            let Some(seen) = seen.filter(|_| decided.insert(&fire.schedule)) else {
                fired.push(Fired::Moved);
                continue;
            };
            let live = alive.entry(fire.schedule.to_string()).or_default();
            fired.push(self.decide(fire, seen.paused, live, &mut keys, &mut outcome).await?);
        }
        let written = self.write(&outcome, rows, now).await?;
        Ok((fired, written))
    }

    async fn decide<'a>(
        &mut self,
        fire: &'a Fire,
        paused: bool,
        live: &mut Live,
        keys: &mut KeyHolders,
        outcome: &mut Outcome<'a>,
    ) -> Result<Fired, Trouble> {
        let runs: BTreeMap<i64, &NewRun> =
            fire.runs.iter().map(|(nominal, run)| (nominal.as_millisecond(), run)).collect();
        let (mut decisions, mut stirred) = (Vec::with_capacity(fire.turn.verdicts.len()), Vec::new());
        for verdict in &fire.turn.verdicts {
            let nominal = verdict.nominal.as_millisecond();
            let what = if paused { What::Skip(Skip::Paused) } else { verdict.what };
            let mut decision = settle(&fire.spec, what, live);
            let mut run = None;
            if let Decision::Run { held, cancel } = &decision {
                let new = runs.get(&nominal).copied();
                let taken = match new {
                    Some(new) => self.key_holder(new, keys).await?,
                    None => None,
                };
                match (new, taken) {
                    (None, _) => decision = Decision::Skipped(Skip::Inputs),
                    (Some(_), Some(holder)) => decision = Decision::Skipped(Skip::KeyTaken(holder)),
                    (Some(new), None) => {
                        run = Some(new.id.to_string());
                        outcome.runs.push((&fire.schedule, new, held.then_some(nominal)));
                        for other in cancel {
                            outcome.cancels.push((&fire.schedule, *other, nominal));
                            stirred.push(*other);
                        }
                        keys.extend(new.live_key.clone().map(|key| ((new.runbook.clone(), key), new.id)));
                        if *held {
                            live.held.push((verdict.nominal, new.id));
                        } else {
                            live.going.push(new.id);
                        }
                    }
                }
            }
            let (name, reason, other, into) = match &decision {
                Decision::Run { .. } => ("run", None, None, None),
                Decision::Skipped(skip) => ("skipped", Some(skip.name()), skip.run(), None),
                Decision::Coalesced(into) => ("coalesced", None, None, Some(into.as_millisecond())),
            };
            outcome.records.push(Record {
                schedule: &fire.schedule,
                nominal,
                since: verdict.since.map(Timestamp::as_millisecond),
                decision: name,
                reason,
                run: run.or(other.map(|other| other.to_string())),
                into,
                spec_version: fire.spec_version,
            });
            decisions.push((verdict.nominal, decision));
        }
        let next = fire.turn.next.map(Timestamp::as_millisecond);
        outcome.cursors.push((&fire.schedule, fire.turn.cursor.as_millisecond(), next));
        if let (Some(why), false) = (&fire.turn.hold, paused) {
            outcome.holds.push((&fire.schedule, why));
        }
        Ok(Fired::Done { decisions, stirred })
    }

    /// The run that keeps `new` from being created because of `one_run_per`.
    async fn key_holder(&mut self, new: &NewRun, keys: &KeyHolders) -> Result<Option<RunId>, Trouble> {
        let Some(key) = &new.live_key else { return Ok(None) };
        if let Some(run) = keys.get(&(new.runbook.clone(), key.clone())) {
            return Ok(Some(*run));
        }
        Ok(match self.obstacle(new).await? {
            Some(crate::StoreError::KeyTaken { run, .. }) => Some(run),
            _ => None,
        })
    }

    async fn write(
        &mut self,
        outcome: &Outcome<'_>,
        rows: &HashMap<RunId, Row>,
        now: i64,
    ) -> Result<u64, Trouble> {
        let missing = || sqlx::Error::Encode("a run without its first entry".into());
        let mut runs = Vec::with_capacity(outcome.runs.len());
        for (schedule, new, held) in &outcome.runs {
            let row = rows.get(&new.id).ok_or_else(missing)?;
            runs.push(Fresh { new, row, schedule: Some(schedule), held: *held });
        }
        self.create_all(&runs, now).await?;
        let insert = "INSERT INTO fire (schedule_id, nominal, since, decision, reason, run_id, into_nominal, spec_version, tzdb, \
             decided_at) VALUES ";
        chunked(&mut self.connection, (insert, 10, ""), &outcome.records, |arguments, record| {
            add(arguments, record.schedule.0.clone())?;
            add(arguments, record.nominal)?;
            add(arguments, record.since)?;
            add(arguments, record.decision)?;
            add(arguments, record.reason)?;
            add(arguments, record.run.clone())?;
            add(arguments, record.into)?;
            add(arguments, record.spec_version)?;
            add(arguments, tzdb_version())?;
            add(arguments, now)
        })
        .await?;
        let moved = (
            "WITH moved (schedule_id, cursor, next_due) AS (VALUES ",
            3,
            ") UPDATE schedule SET cursor = moved.cursor, next_due = moved.next_due FROM moved \
             WHERE schedule.schedule_id = moved.schedule_id",
        );
        chunked(&mut self.connection, moved, &outcome.cursors, |arguments, (schedule, cursor, next)| {
            add(arguments, schedule.0.clone())?;
            add(arguments, *cursor)?;
            add(arguments, *next)
        })
        .await?;
        for (schedule, run, nominal) in &outcome.cancels {
            let reason = format!("due again at {}", timestamp(*nominal));
            let ask = Ask::Cancel { undo: false, reason: Some(reason) };
            let by = format!("schedule {schedule}");
            let unwritable = |error: serde_json::Error| sqlx::Error::Encode(error.into());
            let body = serde_json::to_string(&(&by, &ask)).map_err(unwritable)?;
            let request = Request { id: Uuid::now_v7(), at: timestamp(now), by, ask };
            asides::request(&mut self.connection, *run, &request, &body, now).await?;
        }
        for (schedule, why) in &outcome.holds {
            sqlx::query(
                "UPDATE schedule SET paused_by = 'farrier', paused_why = ?, paused_at = ? WHERE schedule_id = ?",
            )
            .bind((*why).to_owned())
            .bind(now)
            .bind(schedule.to_string())
            .execute(&mut self.connection)
            .await?;
        }
        Ok(runs.len() as u64)
    }
}

async fn stored(
    connection: &mut SqliteConnection,
    ids: &[String],
) -> Result<HashMap<String, Stored>, Trouble> {
    let mut stored = HashMap::with_capacity(ids.len());
    let sql =
        "SELECT schedule_id, spec_version, cursor, paused_at, retired_at FROM schedule WHERE schedule_id IN";
    by_ids(connection, sql, ids, |row| {
        let found = Stored {
            spec_version: row.try_get(1)?,
            cursor: row.try_get(2)?,
            paused: row.try_get::<Option<i64>, _>(3)?.is_some(),
            retired: row.try_get::<Option<i64>, _>(4)?.is_some(),
        };
        stored.insert(row.try_get(0)?, found);
        Ok(())
    })
    .await?;
    Ok(stored)
}

/// The runs of schedules that are not over.
async fn alive(connection: &mut SqliteConnection, ids: &[String]) -> Result<HashMap<String, Live>, Trouble> {
    let mut alive: HashMap<String, Live> = HashMap::new();
    let sql = "SELECT schedule_id, run_id, held FROM run INDEXED BY run_schedule \
         WHERE finished_at IS NULL AND schedule_id IS NOT NULL AND schedule_id IN";
    by_ids(connection, sql, ids, |row| {
        let live = alive.entry(row.try_get(0)?).or_default();
        let run = row.try_get::<&str, _>(1)?;
        let run = run.parse().map_err(|_| sqlx::Error::Decode(format!("`{run}` is not a run id").into()))?;
        match row.try_get::<Option<i64>, _>(2)? {
            Some(nominal) => live.held.push((timestamp(nominal), run)),
            None => live.going.push(run),
        }
        Ok(())
    })
    .await?;
    for live in alive.values_mut() {
        live.held.sort_unstable();
    }
    Ok(alive)
}

/// Makes the stored schedules be those of `wanted`.
async fn put(connection: &mut SqliteConnection, wanted: &[NewSchedule], now: i64) -> Result<Synced, Trouble> {
    let rows =
        sqlx::query("SELECT schedule_id, spec, cursor, retired_at, environment, runbook FROM schedule")
            .fetch_all(&mut *connection)
            .await?;
    let mut known = HashMap::with_capacity(rows.len());
    for row in rows {
        let spec: Option<Spec> = serde_json::from_str(row.try_get(1)?).ok();
        let retired = row.try_get::<Option<i64>, _>(3)?.is_some();
        known.insert(row.try_get::<String, _>(0)?, (spec, row.try_get::<i64, _>(2)?, retired));
    }
    let mut synced = Synced::default();
    for schedule in wanted {
        let before = known.remove(&*schedule.id.0);
        if let Some((Some(spec), _, false)) = &before
            && *spec == schedule.spec
        {
            continue;
        }
        let unwritable = |error: serde_json::Error| sqlx::Error::Encode(error.into());
        let spec = serde_json::to_string(&schedule.spec).map_err(unwritable)?;
        // A clock that went back does not make a due time come again.
        let cursor = before.as_ref().map_or(now, |(_, cursor, _)| now.max(*cursor));
        let calendar = Calendar::new(&schedule.id, &schedule.spec);
        let next = calendar.ok().and_then(|calendar| calendar.next_start(timestamp(cursor)));
        sqlx::query(
            "INSERT INTO schedule (schedule_id, environment, runbook, spec, spec_version, since, cursor, next_due, kept_after, \
             awake_since) VALUES (?1, ?2, ?3, ?4, 1, ?5, ?5, ?6, ?5, ?7) ON CONFLICT (schedule_id) DO UPDATE SET \
             spec = excluded.spec, spec_version = schedule.spec_version + 1, since = excluded.since, cursor = excluded.cursor, \
             next_due = excluded.next_due, retired_at = NULL, \
             awake_since = CASE WHEN schedule.retired_at IS NULL THEN schedule.awake_since ELSE excluded.awake_since END",
        )
        .bind(schedule.id.0.clone())
        .bind(schedule.environment.clone())
        .bind(schedule.runbook.clone())
        .bind(spec)
        .bind(cursor)
        .bind(next.map(Timestamp::as_millisecond))
        .bind(now)
        .execute(&mut *connection)
        .await?;
        if matches!(before, Some((_, _, false))) {
            synced.edited += 1;
        } else {
            synced.added += 1;
        }
    }
    for (id, _) in known.iter().filter(|(_, (_, _, retired))| !retired) {
        sqlx::query("UPDATE schedule SET retired_at = ? WHERE schedule_id = ?")
            .bind(now)
            .bind(id.clone())
            .execute(&mut *connection)
            .await?;
        synced.retired += 1;
    }
    Ok(synced)
}

/// Takes records away whose due time is before `before`, and keeps in mind how far. The latest of a schedule stays.
pub(super) async fn forget(connection: &mut SqliteConnection, before: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE schedule SET kept_after = (SELECT max(nominal) FROM fire WHERE fire.schedule_id = schedule.schedule_id \
           AND fire.nominal < ?1 AND fire.nominal < schedule.cursor) \
         WHERE EXISTS (SELECT 1 FROM fire WHERE fire.schedule_id = schedule.schedule_id AND fire.nominal < ?1 \
           AND fire.nominal < schedule.cursor)",
    )
    .bind(before)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM fire WHERE nominal < ?1 \
         AND nominal < (SELECT cursor FROM schedule WHERE schedule.schedule_id = fire.schedule_id)",
    )
    .bind(before)
    .execute(connection)
    .await
    .map(|_| ())
}
