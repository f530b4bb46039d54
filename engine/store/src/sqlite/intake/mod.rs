//! Alerts in SQLite: [`Intake`] through the one writer.
//!
//! What the requests of one transaction need to know is read once, for all of their alerts together (`desk.rs`); what each does
//! is decided in memory by [`farrier_alert::decide()`] (`take.rs`); what has changed is written once (`write.rs`). So the more
//! alerts come in, the fewer statements each of them costs.

mod desk;
mod list;
mod take;
mod write;

use std::collections::HashSet;

use async_trait::async_trait;
use farrier_alert::{Decision, Facts, Held, Rule};
use farrier_model::time::Timestamp;
use farrier_model::{Event, RunId, Text};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, Row as _, Sqlite, SqliteConnection};
use uuid::Uuid;

use self::desk::{Candidate, Desk};
use super::writer::{Answer, Done as Answered, Trouble, Work, Writer};
use super::{SqliteStore, mismatched};
use crate::rules::Moment;
use crate::{
    Arriving, EventRow, FuseRow, IncidentFilter, IncidentRow, Intake, NewRun, Outcome, Released, StoreError,
    Taken, timestamp,
};

/// What intake wants of the writer besides taking alerts in.
pub(crate) enum Errand {
    Release { limit: i64, frozen: Vec<Text> },
    Unfuse { environment: Option<String>, runbook: String, by: String, reason: String },
    Forget { before: i64 },
}

/// What it answers.
pub(crate) enum Done {
    Released(Released),
    Count(u64),
}

/// Environment and runbook.
type Scope = (Text, Text);
/// Environment, runbook and key: what an open incident is known by.
type Identity = (Text, Text, Text);

/// What a held incident waits to start.
#[derive(Serialize, Deserialize)]
struct Wish {
    rule: Rule,
    title: Text,
    live_key: Option<Text>,
    created: Event,
}

impl Wish {
    fn of(rule: &Rule, new: &NewRun) -> Result<(String, String), sqlx::Error> {
        let wish = Wish {
            rule: rule.clone(),
            title: new.title.clone(),
            live_key: new.live_key.clone(),
            created: new.created.clone(),
        };
        Ok((encoded(&wish)?, new.bundle.to_string()))
    }

    fn new_run(&self) -> Option<NewRun> {
        let Event::Created { runbook, bundle, environment, .. } = &self.created else { return None };
        Some(NewRun {
            id: RunId(Uuid::nil()),
            runbook: runbook.clone(),
            bundle: *bundle,
            environment: environment.clone(),
            title: self.title.clone(),
            parent: None,
            live_key: self.live_key.clone(),
            created: self.created.clone(),
        })
    }
}

fn encoded(data: &impl Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(data).map_err(|error| sqlx::Error::Encode(error.into()))
}

fn damaged(message: String) -> sqlx::Error {
    sqlx::Error::Decode(message.into())
}

fn id_of(text: &str) -> Result<Uuid, sqlx::Error> {
    text.parse().map_err(|_| damaged(format!("`{text}` is not the id of an incident")))
}

fn run_of(text: Option<&str>) -> Result<Option<RunId>, sqlx::Error> {
    text.map(|text| text.parse().map_err(|_| damaged(format!("`{text}` is not a run id")))).transpose()
}

/// Whether an incident that is held may start now, as far as the store knows by itself.
const MAY_START: &str = "(i.held_until IS NULL OR i.held_until <= ?1) AND NOT EXISTS \
     (SELECT 1 FROM gauge g WHERE g.environment = i.environment AND g.runbook = i.runbook AND g.blown_at IS NOT NULL)";

impl Writer {
    pub(super) async fn intake(&mut self, errand: &Errand, moment: Moment) -> Result<Answer, Trouble> {
        let done = match errand {
            Errand::Release { limit, frozen } => {
                Done::Released(self.release_held(*limit, frozen, moment).await?)
            }
            Errand::Unfuse { environment, runbook, by, reason } => {
                let mended = sqlx::query(
                    "UPDATE gauge SET blown_at = NULL, blown_why = NULL, mended_at = ?1, mended_by = ?2, mended_why = ?3 \
                     WHERE runbook = ?4 AND (?5 IS NULL OR environment = ?5) AND blown_at IS NOT NULL",
                )
                .bind(moment.now)
                .bind(by.clone())
                .bind(reason.clone())
                .bind(runbook.clone())
                .bind(environment.clone())
                .execute(&mut self.connection)
                .await?;
                Done::Count(mended.rows_affected())
            }
            Errand::Forget { before } => Done::Count(forget(&mut self.connection, *before).await?),
        };
        Ok(Ok(Answered::Intake(done)))
    }

    /// Takes the alerts of several requests in, and gives what became of each request.
    pub(super) async fn take(
        &mut self,
        requests: &[&[Arriving]],
        moment: Moment,
    ) -> Result<(Vec<Taken>, u64), Trouble> {
        let mut desk = Desk::new(&mut self.connection, moment.now).await?;
        // What is scarce goes to the more important first.
        let mut order: Vec<(usize, usize)> = requests
            .iter()
            .enumerate()
            .flat_map(|(of, request)| (0..request.len()).map(move |at| (of, at)))
            .collect();
        order.sort_by_key(|(of, at)| {
            let routed = requests[*of][*at].arrival.routed.as_ref();
            std::cmp::Reverse(routed.map_or(i32::MIN, |routed| routed.rule.policy.priority))
        });
        let all: Vec<&Arriving> = order.iter().map(|(of, at)| &requests[*of][*at]).collect();
        desk.load(&mut self.connection, &all).await?;
        let mut outcomes: Vec<Vec<Option<Outcome>>> =
            requests.iter().map(|request| vec![None; request.len()]).collect();
        let mut taken: Vec<Taken> = requests.iter().map(|_| Taken::default()).collect();
        for (of, at) in order {
            outcomes[of][at] = Some(desk.take(&requests[of][at])?);
            taken[of].blown.append(&mut desk.blown);
        }
        for (taken, outcomes) in taken.iter_mut().zip(outcomes) {
            taken.outcomes = outcomes.into_iter().flatten().collect();
        }
        let created = self.close(&desk).await?;
        Ok((taken, created))
    }

    async fn release_held(
        &mut self,
        limit: i64,
        frozen: &[Text],
        moment: Moment,
    ) -> Result<Released, Trouble> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT i.environment, i.runbook, i.key, i.wish, i.receiver FROM incident i \
             WHERE i.held IS NOT NULL AND i.closed_at IS NULL AND {MAY_START} \
             ORDER BY i.priority DESC, i.opened_at, i.incident_id LIMIT ?2"
        )))
        .bind(moment.now)
        .bind(limit)
        .fetch_all(&mut self.connection)
        .await?;
        // What cannot be read waits for the next repeat, which brings a new one.
        let wishes: Vec<(Identity, Wish, Text)> = rows
            .iter()
            .map(|row| {
                let text = |at: usize| row.try_get::<&str, _>(at).map(Text::from);
                let wish: Option<Wish> =
                    row.try_get::<Option<&str>, _>(3)?.and_then(|wish| serde_json::from_str(wish).ok());
                let Some(mut wish) = wish else { return Ok(None) };
                wish.rule.frozen = frozen.contains(&text(0)?);
                Ok(Some(((text(0)?, text(1)?, text(2)?), wish, text(4)?)))
            })
            .filter_map(Result::transpose)
            .collect::<Result<_, sqlx::Error>>()?;
        let mut desk = Desk::new(&mut self.connection, moment.now).await?;
        let identities: HashSet<&Identity> = wishes.iter().map(|(identity, ..)| identity).collect();
        desk.load_incidents(&mut self.connection, &identities).await?;
        let runs: Vec<Option<NewRun>> = wishes.iter().map(|(_, wish, _)| wish.new_run()).collect();
        let candidates: Vec<Candidate<'_>> = wishes
            .iter()
            .zip(&runs)
            .map(|((identity, wish, _), run)| Candidate {
                identity: identity.clone(),
                rule: &wish.rule,
                run: run.as_ref(),
            })
            .collect();
        desk.weigh(&mut self.connection, &candidates).await?;
        let mut released = Released::default();
        for ((identity, wish, receiver), run) in wishes.iter().zip(&runs) {
            let Some(incident) = desk.incidents.get(identity) else { continue };
            let mut facts = Facts { open: Some(incident.open("")), ..Facts::default() };
            desk.fill(&mut facts, identity);
            let mut decision = farrier_alert::release(&wish.rule, &facts, timestamp(moment.now));
            if let Decision::Start { proposed } = decision {
                match desk.begin(identity, run.as_ref(), receiver, proposed)? {
                    Ok(run) => released.runs.push(run),
                    Err(why) => {
                        decision = Decision::Holds { held: Held::KeyTaken, until: None, why, blows: false };
                    }
                }
            }
            if let Decision::Holds { held, until, why, blows } = decision {
                let blows = blows.then_some(&wish.rule.owner);
                desk.hold(identity, (held, until.map(Timestamp::as_millisecond), why), blows);
            }
        }
        self.close(&desk).await?;
        let held = sqlx::query("SELECT count(*) FROM incident WHERE held IS NOT NULL AND closed_at IS NULL")
            .fetch_one(&mut self.connection)
            .await?;
        released.held = held.try_get::<i64, _>(0)?.unsigned_abs();
        released.blown = desk.blown;
        Ok(released)
    }
}

/// A run has ended, within the transaction that says so: its incident closes when none of its alerts fires any more.
pub(super) async fn run_ended(
    connection: &mut SqliteConnection,
    run: RunId,
    now: i64,
) -> Result<(), sqlx::Error> {
    let ended = sqlx::query(
        "UPDATE incident_run SET ended_at = ?1, state = (SELECT state FROM run WHERE run_id = ?2) WHERE run_id = ?2",
    )
    .bind(now)
    .bind(run.to_string())
    .execute(&mut *connection)
    .await?;
    if ended.rows_affected() > 0 {
        sqlx::query(
            "UPDATE incident SET closed_at = ? WHERE run_id = ? AND resolved_at IS NOT NULL AND closed_at IS NULL",
        )
        .bind(now)
        .bind(run.to_string())
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Takes away what nothing was heard of since a moment.
async fn forget(connection: &mut SqliteConnection, before: i64) -> Result<u64, sqlx::Error> {
    const OLD: &str = "SELECT incident_id FROM incident WHERE closed_at IS NOT NULL AND closed_at < ?1 AND last_event < ?1 \
         AND NOT EXISTS (SELECT 1 FROM incident_run r WHERE r.incident_id = incident.incident_id AND r.ended_at IS NULL)";
    let mut gone = 0;
    for sql in [
        format!("DELETE FROM incident_alert WHERE incident_id IN ({OLD})"),
        format!("DELETE FROM incident_run WHERE incident_id IN ({OLD})"),
        format!("DELETE FROM event WHERE incident_id IN ({OLD})"),
        format!("DELETE FROM incident WHERE incident_id IN ({OLD})"),
        "DELETE FROM event WHERE last_at < ?1 AND (incident_id IS NULL \
         OR incident_id NOT IN (SELECT incident_id FROM incident))"
            .to_owned(),
    ] {
        let counts = !sql.contains("incident_alert") && !sql.contains("incident_run WHERE incident_id");
        let deleted = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(before)
            .execute(&mut *connection)
            .await?
            .rows_affected();
        gone += if counts { deleted } else { 0 };
    }
    Ok(gone)
}

impl SqliteStore {
    async fn errand(&self, errand: Errand) -> Result<Done, StoreError> {
        match self.work(Work::Intake(errand)).await? {
            (_, Answered::Intake(done)) => Ok(done),
            _ => Err(mismatched()),
        }
    }
}

#[async_trait]
impl Intake for SqliteStore {
    async fn take(&self, arriving: Vec<Arriving>) -> Result<Taken, StoreError> {
        match self.work(Work::Take(arriving)).await? {
            (_, Answered::Taken(taken)) => Ok(taken),
            _ => Err(mismatched()),
        }
    }

    async fn start_held(&self, limit: usize, frozen: &[Text]) -> Result<Released, StoreError> {
        let waiting = sqlx::query(AssertSqlSafe(format!(
            "SELECT count(*), coalesce(sum({MAY_START}), 0) FROM incident i WHERE i.held IS NOT NULL AND i.closed_at IS NULL"
        )))
        .bind(self.clock.now_ms())
        .fetch_one(&self.readers)
        .await
        .and_then(|row| Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?)));
        let (held, due) = waiting.map_err(|error| self.unreadable(error))?;
        if due == 0 {
            // This is asked for ever again; the writer rests meanwhile.
            return Ok(Released { held: held.unsigned_abs(), ..Released::default() });
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        match self.errand(Errand::Release { limit, frozen: frozen.to_vec() }).await? {
            Done::Released(released) => Ok(released),
            Done::Count(_) => Err(mismatched()),
        }
    }

    async fn unfuse(
        &self,
        environment: Option<&str>,
        runbook: &str,
        by: &str,
        reason: &str,
    ) -> Result<u64, StoreError> {
        let errand = Errand::Unfuse {
            environment: environment.map(str::to_owned),
            runbook: runbook.to_owned(),
            by: by.to_owned(),
            reason: reason.to_owned(),
        };
        match self.errand(errand).await? {
            Done::Count(count) => Ok(count),
            Done::Released(_) => Err(mismatched()),
        }
    }

    async fn incidents(&self, filter: IncidentFilter) -> Result<Vec<IncidentRow>, StoreError> {
        let mut query = list::incidents_query(&filter);
        let rows = query.build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        rows.iter().map(|row| list::incident_row(row).map_err(|error| self.unreadable(error))).collect()
    }

    async fn events(&self, incident: Option<Uuid>, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT runbook, environment, receiver, alert, status, first_at, last_at, seen, decision, why, body FROM event WHERE ",
        );
        match incident {
            Some(incident) => {
                query.push("incident_id = ").push_bind(incident.to_string());
                query.push(" ORDER BY first_at, status");
            }
            None => {
                query.push("incident_id IS NULL ORDER BY last_at DESC, dedup");
            }
        }
        query.push(" LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = query.build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        rows.iter().map(|row| list::event_row(row).map_err(|error| self.unreadable(error))).collect()
    }

    async fn incident_runs(&self, incident: Uuid) -> Result<Vec<RunId>, StoreError> {
        let rows = sqlx::query("SELECT run_id FROM incident_run WHERE incident_id = ? ORDER BY at")
            .bind(incident.to_string())
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        rows.iter()
            .filter_map(|row| row.try_get::<&str, _>(0).map(Some).and_then(run_of).transpose())
            .map(|run| run.map_err(|error| self.unreadable(error)))
            .collect()
    }

    async fn fuses(&self) -> Result<Vec<FuseRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT environment, runbook, blown_at, blown_why, (SELECT count(*) FROM incident i \
             WHERE i.environment = gauge.environment AND i.runbook = gauge.runbook AND i.closed_at IS NULL \
             AND i.held = 'fused') FROM gauge WHERE blown_at IS NOT NULL ORDER BY blown_at, environment, runbook",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(|error| self.unreadable(error))?;
        let read = |row: &SqliteRow| -> Result<FuseRow, sqlx::Error> {
            Ok(FuseRow {
                environment: row.try_get::<&str, _>(0)?.into(),
                runbook: row.try_get::<&str, _>(1)?.into(),
                blown_at: timestamp(row.try_get(2)?),
                why: row.try_get::<Option<String>, _>(3)?.unwrap_or_default(),
                held: row.try_get::<i64, _>(4)?.unsigned_abs(),
            })
        };
        rows.iter().map(|row| read(row).map_err(|error| self.unreadable(error))).collect()
    }

    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError> {
        match self.errand(Errand::Forget { before: before.as_millisecond() }).await? {
            Done::Count(count) => Ok(count),
            Done::Released(_) => Err(mismatched()),
        }
    }
}
