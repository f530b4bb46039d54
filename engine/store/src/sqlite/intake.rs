//! Alerts in SQLite: [`Intake`] through the one writer.
//!
//! What a request needs to know is read once, for all of its alerts together; what each does is decided in memory by
//! [`farrier_alert::decide()`]; what has changed is written once. Lists travel as JSON, so that a request costs a handful of
//! statements however many alerts it has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use async_trait::async_trait;
use farrier_alert::{Arrival, Counted, Decision, Facts, Held, Open, Resolution, Rule, Status, decide};
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{Ask, Digest, Event, Request, RunId, RunState, Text};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::writer::{Answer, Done as Answered, Trouble, Work, Writer};
use super::{SqliteStore, asides, mismatched, outbox};
use crate::body::Row;
use crate::rules::Moment;
use crate::{
    Arriving, EventRow, FuseRow, IncidentFilter, IncidentRow, Intake, NewRun, Notice, Outcome, Released,
    StoreError, Taken, Violation, timestamp,
};

/// Who withdraws a run whose alert has resolved.
const ALERTMANAGER: &str = "alertmanager";

/// What intake wants of the writer.
pub(crate) enum Errand {
    Take(Vec<Arriving>),
    Release { limit: i64, frozen: Vec<Text> },
    Unfuse { environment: Option<String>, runbook: String, by: String, reason: String },
    Forget { before: i64 },
}

impl Errand {
    /// How much it writes, about.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Errand::Take(arriving) => arriving.len(),
            _ => 1,
        }
    }
}

/// What it answers.
pub(crate) enum Done {
    Taken(Taken),
    Released(Released),
    Count(u64),
}

/// Environment and runbook.
type Scope = (Text, Text);
/// Environment, runbook and key: what an open incident is known by.
type Identity = (Text, Text, Text);

/// An open incident, as far as a request needs it.
struct Incident {
    id: Uuid,
    run: Option<RunId>,
    runs: i64,
    running: bool,
    resolved_at: Option<i64>,
    held: Option<(Held, Option<i64>, String)>,
    wish: Option<(String, String)>,
    priority: i32,
    /// Whether each alert fires, and since when. The last: to be written.
    alerts: HashMap<Text, (bool, Option<i64>, bool)>,
}

/// What is counted for a runbook, and whether that has to be written.
struct Gauge {
    counted: Counted,
    /// Why it blows with this request, and who hears of it.
    blown: Option<(String, Text)>,
    changed: bool,
}

/// What a request knows.
#[derive(Default)]
struct Desk {
    cluster: Uuid,
    known: HashMap<(Digest, Text, Text), i64>,
    incidents: HashMap<Identity, Incident>,
    gauges: HashMap<Scope, Gauge>,
    last_runs: HashMap<Identity, Option<(Timestamp, bool)>>,
    /// Rows of events, as JSON.
    events: Vec<serde_json::Value>,
    blown: Vec<(Text, Text, String)>,
}

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

impl Writer {
    pub(super) async fn intake(&mut self, errand: &Errand, moment: Moment) -> Result<Answer, Trouble> {
        let done = match errand {
            Errand::Take(arriving) => Done::Taken(self.take(arriving, moment).await?),
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

    async fn take(&mut self, arriving: &[Arriving], moment: Moment) -> Result<Taken, Trouble> {
        let mut desk = Desk::open(&mut self.connection, arriving).await?;
        let mut order: Vec<usize> = (0..arriving.len()).collect();
        // What is scarce goes to the more important first.
        order.sort_by_key(|at| {
            let routed = arriving[*at].arrival.routed.as_ref();
            std::cmp::Reverse(routed.map_or(i32::MIN, |routed| routed.rule.policy.priority))
        });
        let mut outcomes: Vec<Option<Outcome>> = vec![None; arriving.len()];
        for at in order {
            let outcome = self.take_one(&mut desk, &arriving[at], moment).await?;
            outcomes[at] = Some(outcome);
        }
        desk.close(&mut self.connection, moment.now).await?;
        Ok(Taken { outcomes: outcomes.into_iter().flatten().collect(), blown: desk.blown })
    }

    async fn take_one(
        &mut self,
        desk: &mut Desk,
        Arriving { arrival, run }: &Arriving,
        moment: Moment,
    ) -> Result<Outcome, Trouble> {
        let now = timestamp(moment.now);
        let routed = match &arrival.routed {
            Ok(routed) => routed,
            Err(ignored) => {
                let known = (arrival.dedup, Text::from(""), ignored.runbook.clone());
                let new = desk.known.insert(known, moment.now).is_none();
                let outcome = Outcome {
                    decision: "ignored",
                    why: ignored.reason.clone(),
                    incident: None,
                    run: None,
                    stops: None,
                    new,
                };
                desk.record(arrival, "", &ignored.runbook, &outcome, moment.now);
                return Ok(outcome);
            }
        };
        let identity = (routed.environment.clone(), routed.runbook.clone(), routed.key.clone());
        let news = (arrival.dedup, routed.environment.clone(), routed.runbook.clone());
        let known_since = desk.known.get(&news).map(|at| timestamp(*at));
        let mut facts = Facts { known_since, ..Facts::default() };
        if let Some(incident) = desk.incidents.get(&identity) {
            facts.open = Some(incident.open(&arrival.fingerprint));
            if arrival.status == Status::Resolved
                && incident.running
                && let Some(run) = incident.run
                && let Some(open) = &mut facts.open
            {
                open.writing = is_writing(&mut self.connection, run).await?;
            }
        } else if arrival.status == Status::Firing {
            facts.ended = ended_since(&mut self.connection, arrival).await?.map(timestamp);
        }
        let may_start =
            arrival.status == Status::Firing && facts.open.as_ref().is_none_or(|open| !open.running);
        if may_start {
            self.look_up(desk, &identity, &routed.rule, moment.now).await?;
            desk.fill(&mut facts, &identity);
        }
        let times = (arrival.starts_at, arrival.ends_at);
        let mut decision = decide(arrival.status, times, &routed.rule, &facts, now);
        let mut outcome = Outcome {
            decision: decision.name(),
            why: routed.rule.why(&decision),
            incident: desk.incidents.get(&identity).map(|incident| incident.id),
            run: None,
            stops: None,
            new: known_since.is_none(),
        };
        let opens = matches!(decision, Decision::Start { .. } | Decision::Holds { .. });
        if opens && !desk.incidents.contains_key(&identity) {
            let incident =
                open_incident(&mut self.connection, arrival, &identity, &routed.rule, moment.now).await?;
            outcome.incident = Some(incident.id);
            desk.incidents.insert(identity.clone(), incident);
        }
        if let Decision::Start { proposed } = decision {
            match self.begin(desk, &identity, run.as_ref(), &arrival.receiver, proposed, moment).await? {
                Ok(run) => outcome.run = Some(run),
                Err(why) => {
                    decision = Decision::Holds { held: Held::KeyTaken, until: None, why, blows: false };
                    (outcome.decision, outcome.why) = (decision.name(), decision.to_string());
                }
            }
        }
        if let Decision::Holds { held, until, why, blows } = &decision {
            let blows = blows.then_some(&routed.rule.owner);
            desk.hold(&identity, (*held, until.map(Timestamp::as_millisecond), why.clone()), blows);
            if let (Some(incident), Some(run)) = (desk.incidents.get_mut(&identity), run) {
                incident.wish = Some(Wish::of(&routed.rule, run)?);
            }
        }
        if let Some(incident) = desk.incidents.get_mut(&identity) {
            let began = arrival.starts_at.map(Timestamp::as_millisecond);
            let before =
                incident.alerts.get(&arrival.fingerprint).map(|(firing, began, _)| (*firing, *began));
            let after = match &decision {
                Decision::Late | Decision::Resolved(Resolution::Nothing | Resolution::Outdated) => before,
                Decision::Resolved(_) => Some((false, before.map_or(began, |(_, began)| began))),
                // A late copy of an earlier beginning does not move it back.
                _ => {
                    Some((true, began.max(before.filter(|(firing, _)| *firing).and_then(|(_, began)| began))))
                }
            };
            if let Some((firing, began)) = after.filter(|after| Some(*after) != before) {
                incident.alerts.insert(arrival.fingerprint.clone(), (firing, began, true));
            }
            match decision {
                Decision::Resolved(Resolution::Closes | Resolution::Cancels | Resolution::WithRun) => {
                    incident.resolved_at = Some(moment.now);
                    (incident.held, incident.wish) = (None, None);
                }
                Decision::Start { .. } | Decision::Joins { .. } | Decision::Holds { .. } => {
                    incident.resolved_at = None;
                }
                _ => {}
            }
            if let (Decision::Resolved(Resolution::Cancels), Some(run)) = (&decision, incident.run) {
                outcome.stops = Some(run);
                withdraw(&mut self.connection, run, arrival, moment.now).await?;
            }
        }
        if decision == Decision::Resolved(Resolution::Closes)
            && let Some(incident) = desk.incidents.remove(&identity)
        {
            write_incident(&mut self.connection, &incident, Some(moment.now), moment.now).await?;
        }
        desk.known.entry(news).or_insert(moment.now);
        desk.record(arrival, &routed.environment, &routed.runbook, &outcome, moment.now);
        Ok(outcome)
    }

    /// Creates the run of an incident; the reason when another run is in its way.
    async fn begin(
        &mut self,
        desk: &mut Desk,
        identity: &Identity,
        template: Option<&NewRun>,
        receiver: &Text,
        proposed: bool,
        moment: Moment,
    ) -> Result<Result<RunId, String>, Trouble> {
        let Some(incident) = desk.incidents.get_mut(identity) else {
            return Err(damaged("the incident of a run is not open".into()).into());
        };
        let Some(mut new) = template.cloned() else {
            return Ok(Err("its route gives no run".into()));
        };
        new.id =
            RunId(Uuid::new_v5(&desk.cluster, format!("{}/{}", incident.id, incident.runs + 1).as_bytes()));
        if let Event::Created { trigger, .. } = &mut new.created {
            *trigger = Trigger::Alert {
                incident: incident.id.to_string().into(),
                receiver: receiver.clone(),
                proposed,
            };
        }
        let row = Row::of(&new.created).map_err(|error| sqlx::Error::Encode(error.into()))?;
        match self.create(&new, &row, moment).await? {
            Ok(_) => {}
            Err(StoreError::KeyTaken { run, key }) => {
                return Ok(Err(format!("run {run} has the key {key}, and one run at a time may have it")));
            }
            Err(error) => return Ok(Err(error.to_string())),
        }
        sqlx::query(
            "INSERT INTO incident_run (run_id, incident_id, environment, runbook, key, at) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO NOTHING",
        )
        .bind(new.id.to_string())
        .bind(incident.id.to_string())
        .bind(identity.0.clone())
        .bind(identity.1.clone())
        .bind(identity.2.clone())
        .bind(moment.now)
        .execute(&mut self.connection)
        .await?;
        incident.run = Some(new.id);
        incident.runs += 1;
        incident.running = true;
        (incident.held, incident.wish) = (None, None);
        desk.used(identity);
        Ok(Ok(new.id))
    }

    /// Reads what is counted for a runbook and the last run of an incident, once for a request.
    async fn look_up(
        &mut self,
        desk: &mut Desk,
        identity: &Identity,
        rule: &Rule,
        now: i64,
    ) -> Result<(), Trouble> {
        let scope = (identity.0.clone(), identity.1.clone());
        if let Entry::Vacant(vacant) = desk.gauges.entry(scope) {
            let gauge = gauge(&mut self.connection, vacant.key(), rule, now).await?;
            vacant.insert(gauge);
        }
        if !desk.last_runs.contains_key(identity) {
            let last = last_run(&mut self.connection, identity).await?;
            desk.last_runs.insert(identity.clone(), last);
        }
        Ok(())
    }

    async fn release_held(
        &mut self,
        limit: i64,
        frozen: &[Text],
        moment: Moment,
    ) -> Result<Released, Trouble> {
        let rows = sqlx::query(
            "SELECT i.incident_id, i.environment, i.runbook, i.key, i.wish, i.receiver FROM incident i \
             WHERE i.held IS NOT NULL AND i.closed_at IS NULL AND (i.held_until IS NULL OR i.held_until <= ?1) \
             AND NOT EXISTS (SELECT 1 FROM gauge g WHERE g.environment = i.environment AND g.runbook = i.runbook \
                             AND g.blown_at IS NOT NULL) \
             ORDER BY i.priority DESC, i.opened_at, i.incident_id LIMIT ?2",
        )
        .bind(moment.now)
        .bind(limit)
        .fetch_all(&mut self.connection)
        .await?;
        let mut desk = Desk { cluster: cluster(&mut self.connection).await?, ..Desk::default() };
        let mut released = Released::default();
        let identities = rows
            .iter()
            .map(|row| Ok([row.try_get::<&str, _>(1)?, row.try_get(2)?, row.try_get(3)?]))
            .collect::<Result<Vec<[&str; 3]>, sqlx::Error>>()?;
        desk.load_incidents(&mut self.connection, &encoded(&identities)?).await?;
        for row in &rows {
            let text = |at: usize| row.try_get::<&str, _>(at).map(Text::from);
            let identity = (text(1)?, text(2)?, text(3)?);
            let wish: Option<&str> = row.try_get(4)?;
            let wish: Option<Wish> = wish.and_then(|wish| serde_json::from_str(wish).ok());
            // What cannot be read waits for the next repeat, which brings a new one.
            let Some(mut wish) = wish else { continue };
            wish.rule.frozen = frozen.contains(&identity.0);
            let Some(incident) = desk.incidents.get(&identity) else { continue };
            let mut facts = Facts { open: Some(incident.open("")), ..Facts::default() };
            self.look_up(&mut desk, &identity, &wish.rule, moment.now).await?;
            desk.fill(&mut facts, &identity);
            let mut decision = farrier_alert::release(&wish.rule, &facts, timestamp(moment.now));
            if let Decision::Start { proposed } = decision {
                match self
                    .begin(&mut desk, &identity, wish.new_run().as_ref(), &text(5)?, proposed, moment)
                    .await?
                {
                    Ok(run) => released.runs.push(run),
                    Err(why) => {
                        decision = Decision::Holds { held: Held::KeyTaken, until: None, why, blows: false };
                    }
                }
            }
            if let Decision::Holds { held, until, why, blows } = decision {
                let blows = blows.then_some(&wish.rule.owner);
                desk.hold(&identity, (held, until.map(Timestamp::as_millisecond), why), blows);
            }
        }
        desk.close(&mut self.connection, moment.now).await?;
        let held = sqlx::query("SELECT count(*) FROM incident WHERE held IS NOT NULL AND closed_at IS NULL")
            .fetch_one(&mut self.connection)
            .await?;
        released.held = held.try_get::<i64, _>(0)?.unsigned_abs();
        released.blown = desk.blown;
        Ok(released)
    }
}

impl Incident {
    /// How it looks to one of its alerts.
    fn open(&self, fingerprint: &str) -> Open {
        let others_fire = self.alerts.iter().any(|(other, (firing, ..))| *firing && **other != *fingerprint);
        let fires_since = self
            .alerts
            .get(fingerprint)
            .filter(|(firing, ..)| *firing)
            .map(|(_, began, _)| began.map(timestamp));
        Open { running: self.running, writing: false, others_fire, fires_since }
    }
}

impl Desk {
    /// Reads what a request needs to know.
    async fn open(connection: &mut SqliteConnection, arriving: &[Arriving]) -> Result<Desk, sqlx::Error> {
        let mut desk = Desk { cluster: cluster(connection).await?, ..Desk::default() };
        let mut news: Vec<String> = arriving.iter().map(|one| one.arrival.dedup.to_string()).collect();
        news.dedup();
        let rows = sqlx::query(
            "SELECT e.dedup, e.environment, e.runbook, e.first_at FROM json_each(?) j CROSS JOIN event e ON e.dedup = j.value",
        )
        .bind(encoded(&news)?)
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            let dedup = Digest::try_from(row.try_get::<String, _>(0)?).map_err(damaged)?;
            let text = |at: usize| row.try_get::<&str, _>(at).map(Text::from);
            desk.known.insert((dedup, text(1)?, text(2)?), row.try_get(3)?);
        }
        let mut identities: Vec<[&str; 3]> = arriving
            .iter()
            .filter_map(|one| one.arrival.routed.as_ref().ok())
            .map(|routed| [&*routed.environment, &*routed.runbook, &*routed.key])
            .collect();
        identities.sort_unstable();
        identities.dedup();
        desk.load_incidents(connection, &encoded(&identities)?).await?;
        Ok(desk)
    }

    /// Reads the open incidents of these identities, a list of triples as JSON.
    async fn load_incidents(
        &mut self,
        connection: &mut SqliteConnection,
        identities: &str,
    ) -> Result<(), sqlx::Error> {
        let rows = sqlx::query(
            "SELECT i.incident_id, i.environment, i.runbook, i.key, i.run_id, i.runs, i.resolved_at, i.held, i.held_until, \
             i.held_why, i.wish, i.bundle, i.priority, r.run_id IS NOT NULL AND r.finished_at IS NULL \
             FROM json_each(?) j CROSS JOIN incident i ON i.environment = j.value ->> 0 AND i.runbook = j.value ->> 1 \
             AND i.key = j.value ->> 2 AND i.closed_at IS NULL LEFT JOIN run r ON r.run_id = i.run_id",
        )
        .bind(identities.to_owned())
        .fetch_all(&mut *connection)
        .await?;
        let mut by_id: HashMap<Uuid, Incident> = HashMap::new();
        let mut names: HashMap<Uuid, Identity> = HashMap::new();
        for row in &rows {
            let text = |at: usize| row.try_get::<&str, _>(at).map(Text::from);
            let id = id_of(row.try_get(0)?)?;
            let held: Option<&str> = row.try_get(7)?;
            let wish: Option<String> = row.try_get(10)?;
            names.insert(id, (text(1)?, text(2)?, text(3)?));
            by_id.insert(
                id,
                Incident {
                    id,
                    run: run_of(row.try_get(4)?)?,
                    runs: row.try_get(5)?,
                    running: row.try_get(13)?,
                    resolved_at: row.try_get(6)?,
                    held: match held.and_then(Held::from_name) {
                        Some(held) => Some((
                            held,
                            row.try_get(8)?,
                            row.try_get::<Option<String>, _>(9)?.unwrap_or_default(),
                        )),
                        None => None,
                    },
                    wish: match wish {
                        Some(wish) => Some((wish, row.try_get::<Option<String>, _>(11)?.unwrap_or_default())),
                        None => None,
                    },
                    priority: row.try_get(12)?,
                    alerts: HashMap::new(),
                },
            );
        }
        let ids: Vec<String> = by_id.keys().map(ToString::to_string).collect();
        if !ids.is_empty() {
            let rows = sqlx::query(
                "SELECT a.incident_id, a.fingerprint, a.firing, a.starts_at FROM json_each(?) j \
                 CROSS JOIN incident_alert a ON a.incident_id = j.value",
            )
            .bind(encoded(&ids)?)
            .fetch_all(&mut *connection)
            .await?;
            for row in &rows {
                if let Some(incident) = by_id.get_mut(&id_of(row.try_get(0)?)?) {
                    let fingerprint = Text::from(row.try_get::<&str, _>(1)?);
                    let firing = row.try_get::<i64, _>(2)? != 0;
                    incident.alerts.insert(fingerprint, (firing, row.try_get(3)?, false));
                }
            }
        }
        for (id, incident) in by_id {
            if let Some(identity) = names.remove(&id) {
                self.incidents.insert(identity, incident);
            }
        }
        Ok(())
    }

    fn fill(&self, facts: &mut Facts, identity: &Identity) {
        facts.last_run = self.last_runs.get(identity).copied().flatten();
        if let Some(gauge) = self.gauges.get(&(identity.0.clone(), identity.1.clone())) {
            facts.counted = gauge.counted;
        }
    }

    /// A run was created.
    fn used(&mut self, identity: &Identity) {
        if let Some(gauge) = self.gauges.get_mut(&(identity.0.clone(), identity.1.clone())) {
            gauge.counted.active += 1;
            gauge.counted.runs += 1;
            gauge.counted.tokens = gauge.counted.tokens.map(|tokens| tokens.saturating_sub(1000));
            gauge.changed = true;
        }
    }

    /// An incident has to wait, and perhaps all of the runbook.
    fn hold(&mut self, identity: &Identity, held: (Held, Option<i64>, String), blows: Option<&Text>) {
        if let Some(owner) = blows
            && let Some(gauge) = self.gauges.get_mut(&(identity.0.clone(), identity.1.clone()))
        {
            gauge.counted.blown = true;
            gauge.blown = Some((held.2.clone(), owner.clone()));
            gauge.changed = true;
            self.blown.push((identity.0.clone(), identity.1.clone(), held.2.clone()));
        }
        if let Some(incident) = self.incidents.get_mut(identity) {
            incident.held = Some(held);
        }
    }

    fn record(&mut self, arrival: &Arrival, environment: &str, runbook: &str, outcome: &Outcome, now: i64) {
        self.events.push(json!([
            arrival.dedup.to_string(),
            environment,
            runbook,
            &*arrival.receiver,
            &*arrival.alert,
            &*arrival.fingerprint,
            arrival.status.name(),
            arrival.starts_at.map(Timestamp::as_millisecond),
            arrival.ends_at.map(Timestamp::as_millisecond),
            arrival.body,
            now,
            outcome.decision,
            outcome.why,
            outcome.incident.map(|incident| incident.to_string()),
        ]));
    }

    /// Writes what has changed.
    async fn close(&mut self, connection: &mut SqliteConnection, now: i64) -> Result<(), sqlx::Error> {
        if !self.events.is_empty() {
            sqlx::query(
                "INSERT INTO event (dedup, environment, runbook, receiver, alert, fingerprint, status, starts_at, ends_at, body, \
                 first_at, last_at, seen, decision, why, incident_id) \
                 SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, \
                 value ->> 8, value ->> 9, value ->> 10, value ->> 10, 1, value ->> 11, value ->> 12, value ->> 13 \
                 FROM json_each(?) WHERE true \
                 ON CONFLICT (dedup, environment, runbook) DO UPDATE SET last_at = excluded.last_at, seen = event.seen + 1, \
                 incident_id = coalesce(excluded.incident_id, event.incident_id), \
                 decision = CASE WHEN excluded.decision = 'joined' THEN event.decision ELSE excluded.decision END, \
                 why = CASE WHEN excluded.decision = 'joined' THEN event.why ELSE excluded.why END",
            )
            .bind(encoded(&self.events)?)
            .execute(&mut *connection)
            .await?;
        }
        for incident in self.incidents.values() {
            write_incident(connection, incident, None, now).await?;
        }
        for ((environment, runbook), gauge) in self.gauges.iter().filter(|(_, gauge)| gauge.changed) {
            sqlx::query(
                "INSERT INTO gauge (environment, runbook, tokens, counted_at, blown_at, blown_why) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                 ON CONFLICT (environment, runbook) DO UPDATE SET tokens = ?3, counted_at = ?4, \
                 blown_at = coalesce(gauge.blown_at, ?5), blown_why = coalesce(gauge.blown_why, ?6)",
            )
            .bind(environment.clone())
            .bind(runbook.clone())
            .bind(gauge.counted.tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX)))
            .bind(now)
            .bind(gauge.blown.as_ref().map(|_| now))
            .bind(gauge.blown.as_ref().map(|(why, _)| why.clone()))
            .execute(&mut *connection)
            .await?;
            if let Some((why, owner)) = &gauge.blown {
                outbox::put(connection, &blown_notice(environment, runbook, why, owner, now), now).await?;
            }
        }
        Ok(())
    }
}

/// What people hear when a fuse blows.
fn blown_notice(environment: &Text, runbook: &Text, why: &str, owner: &Text, now: i64) -> Notice {
    Notice {
        id: Notice::id_of(&format!("fuse/{environment}/{runbook}/{now}")),
        run: None,
        environment: environment.clone(),
        to: owner.clone(),
        occasion: "fuse".into(),
        subject: format!("alerts do not start `{runbook}` in {environment} any more"),
        body: format!(
            "{why}.\n\nIncidents that would start it are kept and wait: `farrier incidents`. When it is clear what \
             happened, `farrier unfuse {runbook} --env {environment} --reason …` lets them start.\n"
        ),
    }
}

async fn cluster(connection: &mut SqliteConnection) -> Result<Uuid, sqlx::Error> {
    let row = sqlx::query("SELECT id FROM cluster").fetch_one(connection).await?;
    let id: &str = row.try_get(0)?;
    Ok(id.parse().unwrap_or_else(|_| Uuid::new_v5(&Uuid::nil(), id.as_bytes())))
}

async fn open_incident(
    connection: &mut SqliteConnection,
    arrival: &Arrival,
    identity: &Identity,
    rule: &Rule,
    now: i64,
) -> Result<Incident, sqlx::Error> {
    let id = Uuid::new_v4();
    sqlx::query(
        "INSERT INTO incident (incident_id, environment, runbook, key, alert, receiver, opened_at, last_event, runs, priority) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
    )
    .bind(id.to_string())
    .bind(identity.0.clone())
    .bind(identity.1.clone())
    .bind(identity.2.clone())
    .bind(arrival.alert.clone())
    .bind(arrival.receiver.clone())
    .bind(now)
    .bind(now)
    .bind(rule.policy.priority)
    .execute(connection)
    .await?;
    Ok(Incident {
        id,
        run: None,
        runs: 0,
        running: false,
        resolved_at: None,
        held: None,
        wish: None,
        priority: rule.policy.priority,
        alerts: HashMap::new(),
    })
}

async fn write_incident(
    connection: &mut SqliteConnection,
    incident: &Incident,
    closed_at: Option<i64>,
    now: i64,
) -> Result<(), sqlx::Error> {
    let (held, until, why) = match &incident.held {
        Some((held, until, why)) => (Some(held.name()), *until, Some(why.clone())),
        None => (None, None, None),
    };
    let (wish, bundle) = incident.wish.clone().unzip();
    sqlx::query(
        "UPDATE incident SET last_event = ?, resolved_at = ?, closed_at = ?, run_id = ?, runs = ?, held = ?, held_until = ?, \
         held_why = ?, priority = ?, wish = ?, bundle = ? WHERE incident_id = ?",
    )
    .bind(now)
    .bind(incident.resolved_at)
    .bind(closed_at)
    .bind(incident.run.map(|run| run.to_string()))
    .bind(incident.runs)
    .bind(held)
    .bind(until)
    .bind(why)
    .bind(incident.priority)
    .bind(wish)
    .bind(bundle)
    .bind(incident.id.to_string())
    .execute(&mut *connection)
    .await?;
    let id = incident.id.to_string();
    let alerts: Vec<serde_json::Value> = incident
        .alerts
        .iter()
        .filter(|(_, (_, _, changed))| *changed)
        .map(|(fingerprint, (firing, began, _))| json!([id, &**fingerprint, i64::from(*firing), began]))
        .collect();
    if !alerts.is_empty() {
        sqlx::query(
            "INSERT INTO incident_alert (incident_id, fingerprint, firing, starts_at) \
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE true \
             ON CONFLICT (incident_id, fingerprint) DO UPDATE SET firing = excluded.firing, starts_at = excluded.starts_at",
        )
        .bind(encoded(&alerts)?)
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Whether a run may have written.
async fn is_writing(connection: &mut SqliteConnection, run: RunId) -> Result<bool, sqlx::Error> {
    sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM journal WHERE run_id = ? AND kind IN ('writes_allowed', 'intent'))",
    )
    .bind(run.to_string())
    .fetch_one(connection)
    .await?
    .try_get(0)
}

/// When a resolution came in that is newer than the beginning of this alert.
async fn ended_since(
    connection: &mut SqliteConnection,
    arrival: &Arrival,
) -> Result<Option<i64>, sqlx::Error> {
    let Some(began) = arrival.starts_at else { return Ok(None) };
    sqlx::query(
        "SELECT max(first_at) FROM event WHERE fingerprint = ? AND status = 'resolved' AND ends_at >= ?",
    )
    .bind(arrival.fingerprint.clone())
    .bind(began.as_millisecond())
    .fetch_one(connection)
    .await?
    .try_get(0)
}

async fn last_run(
    connection: &mut SqliteConnection,
    identity: &Identity,
) -> Result<Option<(Timestamp, bool)>, sqlx::Error> {
    // A run that was withdrawn has done nothing that would have to settle.
    let row = sqlx::query(
        "SELECT ended_at, state FROM incident_run WHERE environment = ? AND runbook = ? AND key = ? \
         AND ended_at IS NOT NULL AND state <> 'cancelled' ORDER BY at DESC LIMIT 1",
    )
    .bind(identity.0.clone())
    .bind(identity.1.clone())
    .bind(identity.2.clone())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let succeeded = row.try_get::<&str, _>(1)? == RunState::Succeeded.name();
    Ok(Some((timestamp(row.try_get(0)?), succeeded)))
}

async fn gauge(
    connection: &mut SqliteConnection,
    scope: &Scope,
    rule: &Rule,
    now: i64,
) -> Result<Gauge, sqlx::Error> {
    let row = sqlx::query(
        "SELECT tokens, counted_at, blown_at, mended_at FROM gauge WHERE environment = ? AND runbook = ?",
    )
    .bind(scope.0.clone())
    .bind(scope.1.clone())
    .fetch_optional(&mut *connection)
    .await?;
    let mut counted = Counted::default();
    let mut mended = i64::MIN;
    if let Some(row) = row {
        counted.tokens = row.try_get::<Option<i64>, _>(0)?.map(i64::unsigned_abs);
        counted.counted_at = row.try_get::<Option<i64>, _>(1)?.map(timestamp);
        counted.blown = row.try_get::<Option<i64>, _>(2)?.is_some();
        mended = row.try_get::<Option<i64>, _>(3)?.unwrap_or(i64::MIN);
    }
    // From here on they are counted as of now.
    counted.tokens = Some(counted.tokens_at(rule, timestamp(now)));
    counted.counted_at = Some(timestamp(now));
    let within = i64::try_from(rule.policy.fuse.within.as_millis()).unwrap_or(i64::MAX);
    let since = now.saturating_sub(within).max(mended);
    let counts = sqlx::query(
        "SELECT (SELECT count(*) FROM incident_run WHERE environment = ?1 AND runbook = ?2 AND ended_at IS NULL), \
         (SELECT count(*) FROM incident_run WHERE environment = ?1 AND runbook = ?2 AND at > ?3), \
         (SELECT count(*) FROM incident_run WHERE environment = ?1 AND runbook = ?2 AND ended_at > ?3 \
          AND state IN ('failed', 'undone', 'degraded'))",
    )
    .bind(scope.0.clone())
    .bind(scope.1.clone())
    .bind(since)
    .fetch_one(connection)
    .await?;
    let count =
        |at: usize| counts.try_get::<i64, _>(at).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    (counted.active, counted.runs, counted.failures) = (count(0)?, count(1)?, count(2)?);
    Ok(Gauge { counted, blown: None, changed: false })
}

/// Asks a run to stop, unless it has begun to write when its owner hears of it.
async fn withdraw(
    connection: &mut SqliteConnection,
    run: RunId,
    arrival: &Arrival,
    now: i64,
) -> Result<(), Trouble> {
    let request = Request {
        // The same resolution asks once.
        id: Uuid::new_v5(&run.0, arrival.dedup.to_string().as_bytes()),
        at: timestamp(now),
        by: ALERTMANAGER.into(),
        ask: Ask::Withdraw { reason: format!("the alert `{}` has resolved", arrival.alert) },
    };
    let body = encoded(&(&request.by, &request.ask))?;
    asides::request(connection, run, &request, &body, now).await?;
    Ok(())
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

    /// What is wrong with incidents: for `fsck`.
    pub(super) async fn audit_incidents(&self) -> Result<Vec<Violation>, StoreError> {
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

#[async_trait]
impl Intake for SqliteStore {
    async fn take(&self, arriving: Vec<Arriving>) -> Result<Taken, StoreError> {
        match self.errand(Errand::Take(arriving)).await? {
            Done::Taken(taken) => Ok(taken),
            _ => Err(mismatched()),
        }
    }

    async fn start_held(&self, limit: usize, frozen: &[Text]) -> Result<Released, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        match self.errand(Errand::Release { limit, frozen: frozen.to_vec() }).await? {
            Done::Released(released) => Ok(released),
            _ => Err(mismatched()),
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
            _ => Err(mismatched()),
        }
    }

    async fn incidents(&self, filter: IncidentFilter) -> Result<Vec<IncidentRow>, StoreError> {
        let mut query = incidents_query(&filter);
        let rows = query.build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        rows.iter().map(|row| incident_row(row).map_err(|error| self.unreadable(error))).collect()
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
        rows.iter().map(|row| event_row(row).map_err(|error| self.unreadable(error))).collect()
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
            _ => Err(mismatched()),
        }
    }
}

fn incidents_query(filter: &IncidentFilter) -> QueryBuilder<Sqlite> {
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

fn incident_row(row: &SqliteRow) -> Result<IncidentRow, sqlx::Error> {
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

fn event_row(row: &SqliteRow) -> Result<EventRow, sqlx::Error> {
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
