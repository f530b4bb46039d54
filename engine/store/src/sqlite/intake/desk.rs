//! What the requests of one transaction need to know, read once for all of their alerts.
//!
//! Lists travel as JSON, so that a transaction costs a handful of statements however many alerts it has.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use farrier_alert::{Arrival, Counted, Facts, Held, Open, Rule, Status};
use farrier_model::time::Timestamp;
use farrier_model::{Digest, Request, RunId, RunState, Text};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::{Identity, Scope, damaged, encoded, id_of, run_of};
use crate::body::Row;
use crate::sqlite::bulk::KeyHolders;
use crate::{Arriving, NewRun, Outcome, timestamp};

/// An incident, as far as alerts need it.
pub(super) struct Incident {
    pub(super) id: Uuid,
    /// The alert that opens it and the receiver of that, until it is stored.
    pub(super) opening: Option<(Text, Text)>,
    pub(super) run: Option<RunId>,
    pub(super) runs: i64,
    pub(super) running: bool,
    pub(super) resolved_at: Option<i64>,
    pub(super) held: Option<(Held, Option<i64>, String)>,
    /// What it waits to start, and the texts of that.
    pub(super) wish: Option<(String, String)>,
    pub(super) priority: i32,
    /// Whether each alert fires, and since when. The last: to be written.
    pub(super) alerts: HashMap<Text, (bool, Option<i64>, bool)>,
}

/// What is counted for a runbook, and whether that has to be written.
pub(super) struct Gauge {
    pub(super) counted: Counted,
    /// Why it blows now, and who hears of it.
    pub(super) blown: Option<(String, Text)>,
    pub(super) changed: bool,
}

/// A piece of news with what it did.
pub(super) struct Heard<'a> {
    pub(super) arrival: &'a Arrival,
    pub(super) environment: Text,
    pub(super) runbook: Text,
    pub(super) decision: &'static str,
    pub(super) why: String,
    pub(super) incident: Option<Uuid>,
}

/// A run that an incident starts.
pub(super) struct Start {
    pub(super) new: NewRun,
    pub(super) row: Row,
    pub(super) incident: Uuid,
    pub(super) identity: Identity,
}

/// What is known, and what follows from it and has to be written.
pub(super) struct Desk<'a> {
    pub(super) now: i64,
    pub(super) cluster: Uuid,
    /// When each piece of news came first.
    pub(super) known: HashMap<(Digest, Text, Text), i64>,
    /// The open incidents.
    pub(super) incidents: HashMap<Identity, Incident>,
    /// Those that close now.
    pub(super) closed: Vec<(Identity, Incident)>,
    /// Runs that may have written.
    pub(super) writing: HashSet<RunId>,
    /// When a resolution came in that is newer than this beginning of the alert.
    ended: HashMap<(Text, i64), i64>,
    /// Resolutions that came in just now: when the alert ended, and when that was heard of first.
    resolutions: HashMap<Text, Vec<(i64, i64)>>,
    pub(super) gauges: HashMap<Scope, Gauge>,
    last_runs: HashMap<Identity, (Timestamp, bool)>,
    pub(super) holders: KeyHolders,
    pub(super) heard: Vec<Heard<'a>>,
    pub(super) starts: Vec<Start>,
    pub(super) withdrawals: Vec<(RunId, Request)>,
    pub(super) blown: Vec<(Text, Text, String)>,
}

impl Incident {
    /// How it looks to one of its alerts.
    pub(super) fn open(&self, fingerprint: &str) -> Open {
        let others_fire = self.alerts.iter().any(|(other, (firing, ..))| *firing && **other != *fingerprint);
        let fires_since = self
            .alerts
            .get(fingerprint)
            .filter(|(firing, ..)| *firing)
            .map(|(_, began, _)| began.map(timestamp));
        Open { running: self.running, writing: false, others_fire, fires_since }
    }
}

/// An incident that may start a run.
pub(super) struct Candidate<'a> {
    pub(super) identity: Identity,
    pub(super) rule: &'a Rule,
    pub(super) run: Option<&'a NewRun>,
}

impl<'a> Desk<'a> {
    /// Knows nothing yet.
    pub(super) async fn new(connection: &mut SqliteConnection, now: i64) -> Result<Desk<'a>, sqlx::Error> {
        Ok(Desk {
            now,
            cluster: cluster(connection).await?,
            known: HashMap::new(),
            incidents: HashMap::new(),
            closed: Vec::new(),
            writing: HashSet::new(),
            ended: HashMap::new(),
            resolutions: HashMap::new(),
            gauges: HashMap::new(),
            last_runs: HashMap::new(),
            holders: KeyHolders::new(),
            heard: Vec::new(),
            starts: Vec::new(),
            withdrawals: Vec::new(),
            blown: Vec::new(),
        })
    }

    /// Reads what these alerts need to know.
    pub(super) async fn load(
        &mut self,
        connection: &mut SqliteConnection,
        arriving: &[&'a Arriving],
    ) -> Result<(), sqlx::Error> {
        self.load_known(connection, arriving).await?;
        let routed: Vec<_> = arriving
            .iter()
            .filter_map(|one| Some((&one.arrival, one.arrival.routed.as_ref().ok()?, one.run.as_ref())))
            .map(|(arrival, routed, run)| {
                let identity = (routed.environment.clone(), routed.runbook.clone(), routed.key.clone());
                (arrival, identity, &routed.rule, run)
            })
            .collect();
        let identities: HashSet<&Identity> = routed.iter().map(|(_, identity, ..)| identity).collect();
        self.load_incidents(connection, &identities).await?;
        let resolving: HashSet<&Identity> = routed
            .iter()
            .filter(|(arrival, ..)| arrival.status == Status::Resolved)
            .map(|(_, identity, ..)| identity)
            .collect();
        self.load_writing(connection, &resolving).await?;
        let firing = routed.iter().filter(|(arrival, ..)| arrival.status == Status::Firing);
        // An incident that closes here may be followed by late copies of what it was about.
        let perhaps_late = firing.clone().filter(|(_, identity, ..)| {
            !self.incidents.contains_key(identity) || resolving.contains(identity)
        });
        let perhaps_late: HashSet<(Text, i64)> = perhaps_late
            .filter_map(|(arrival, ..)| {
                Some((arrival.fingerprint.clone(), arrival.starts_at?.as_millisecond()))
            })
            .collect();
        self.load_ended(connection, &perhaps_late).await?;
        let candidates: Vec<Candidate<'_>> = firing
            .filter(|(_, identity, ..)| !self.incidents.get(identity).is_some_and(|open| open.running))
            .map(|(_, identity, rule, run)| Candidate { identity: identity.clone(), rule, run: *run })
            .collect();
        self.weigh(connection, &candidates).await
    }

    async fn load_known(
        &mut self,
        connection: &mut SqliteConnection,
        arriving: &[&Arriving],
    ) -> Result<(), sqlx::Error> {
        let news: HashSet<String> = arriving.iter().map(|one| one.arrival.dedup.to_string()).collect();
        let rows = sqlx::query(
            "SELECT e.dedup, e.environment, e.runbook, e.first_at FROM json_each(?) j CROSS JOIN event e ON e.dedup = j.value",
        )
        .bind(encoded(&news)?)
        .fetch_all(connection)
        .await?;
        for row in rows {
            let dedup = Digest::try_from(row.try_get::<String, _>(0)?).map_err(damaged)?;
            self.known.insert((dedup, text(&row, 1)?, text(&row, 2)?), row.try_get(3)?);
        }
        Ok(())
    }

    /// Reads the open incidents of these identities.
    pub(super) async fn load_incidents(
        &mut self,
        connection: &mut SqliteConnection,
        identities: &HashSet<&Identity>,
    ) -> Result<(), sqlx::Error> {
        let rows = sqlx::query(
            "SELECT i.incident_id, i.environment, i.runbook, i.key, i.run_id, i.runs, i.resolved_at, i.held, i.held_until, \
             i.held_why, i.wish, i.bundle, i.priority, r.run_id IS NOT NULL AND r.finished_at IS NULL \
             FROM json_each(?) j CROSS JOIN incident i ON i.environment = j.value ->> 0 AND i.runbook = j.value ->> 1 \
             AND i.key = j.value ->> 2 AND i.closed_at IS NULL LEFT JOIN run r ON r.run_id = i.run_id",
        )
        .bind(encoded(identities)?)
        .fetch_all(&mut *connection)
        .await?;
        let mut by_id: HashMap<Uuid, Incident> = HashMap::new();
        let mut names: HashMap<Uuid, Identity> = HashMap::new();
        for row in &rows {
            let id = id_of(row.try_get(0)?)?;
            let held: Option<&str> = row.try_get(7)?;
            let wish: Option<String> = row.try_get(10)?;
            names.insert(id, (text(row, 1)?, text(row, 2)?, text(row, 3)?));
            by_id.insert(
                id,
                Incident {
                    id,
                    opening: None,
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

    /// Reads which of the runs of these incidents may have written.
    async fn load_writing(
        &mut self,
        connection: &mut SqliteConnection,
        resolving: &HashSet<&Identity>,
    ) -> Result<(), sqlx::Error> {
        let running = resolving.iter().filter_map(|identity| self.incidents.get(*identity));
        let running = running.filter(|incident| incident.running).filter_map(|incident| incident.run);
        let runs: Vec<String> = running.map(|run| run.to_string()).collect();
        if runs.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(
            "SELECT j.value FROM json_each(?) j WHERE EXISTS \
             (SELECT 1 FROM journal WHERE run_id = j.value AND kind IN ('writes_allowed', 'intent'))",
        )
        .bind(encoded(&runs)?)
        .fetch_all(connection)
        .await?;
        for row in rows {
            self.writing.extend(run_of(row.try_get(0)?)?);
        }
        Ok(())
    }

    async fn load_ended(
        &mut self,
        connection: &mut SqliteConnection,
        beginnings: &HashSet<(Text, i64)>,
    ) -> Result<(), sqlx::Error> {
        if beginnings.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(
            "SELECT j.value ->> 0, j.value ->> 1, (SELECT max(first_at) FROM event WHERE fingerprint = j.value ->> 0 \
             AND status = 'resolved' AND ends_at >= j.value ->> 1) AS heard FROM json_each(?) j WHERE heard IS NOT NULL",
        )
        .bind(encoded(beginnings)?)
        .fetch_all(connection)
        .await?;
        for row in rows {
            self.ended.insert((text(&row, 0)?, row.try_get(1)?), row.try_get(2)?);
        }
        Ok(())
    }

    /// Reads what decides whether these may start a run now: what is counted for their runbooks, their last runs, and who has
    /// their keys.
    pub(super) async fn weigh(
        &mut self,
        connection: &mut SqliteConnection,
        candidates: &[Candidate<'_>],
    ) -> Result<(), sqlx::Error> {
        if candidates.is_empty() {
            return Ok(());
        }
        for Candidate { identity, rule, .. } in candidates {
            let scope = (identity.0.clone(), identity.1.clone());
            if let Entry::Vacant(vacant) = self.gauges.entry(scope) {
                let gauge = gauge(connection, vacant.key(), rule, self.now).await?;
                vacant.insert(gauge);
            }
        }
        let identities: HashSet<&Identity> = candidates.iter().map(|candidate| &candidate.identity).collect();
        // A run that was withdrawn has done nothing that would have to settle.
        let rows = sqlx::query(
            "SELECT r.environment, r.runbook, r.key, r.ended_at, r.state FROM json_each(?) j CROSS JOIN incident_run r \
             ON r.run_id = (SELECT run_id FROM incident_run WHERE environment = j.value ->> 0 AND runbook = j.value ->> 1 \
             AND key = j.value ->> 2 AND ended_at IS NOT NULL AND state <> 'cancelled' ORDER BY at DESC LIMIT 1)",
        )
        .bind(encoded(&identities)?)
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            let identity = (text(&row, 0)?, text(&row, 1)?, text(&row, 2)?);
            let succeeded = row.try_get::<&str, _>(4)? == RunState::Succeeded.name();
            self.last_runs.insert(identity, (timestamp(row.try_get(3)?), succeeded));
        }
        let keys = candidates.iter().filter_map(|candidate| candidate.run);
        let keys: HashSet<[&Text; 2]> =
            keys.filter_map(|run| Some([&run.runbook, run.live_key.as_ref()?])).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(
            "SELECT r.runbook, r.live_key, r.run_id FROM json_each(?) j CROSS JOIN run r \
             ON r.runbook = j.value ->> 0 AND r.live_key = j.value ->> 1 AND r.finished_at IS NULL",
        )
        .bind(encoded(&keys)?)
        .fetch_all(connection)
        .await?;
        for row in rows {
            if let Some(run) = run_of(row.try_get(2)?)? {
                self.holders.insert((text(&row, 0)?, text(&row, 1)?), run);
            }
        }
        Ok(())
    }

    /// Whether this alert, as far as it began at its time, is known to have ended since, and since when.
    pub(super) fn ended_since(&self, arrival: &Arrival) -> Option<i64> {
        let began = arrival.starts_at?.as_millisecond();
        let stored = self.ended.get(&(arrival.fingerprint.clone(), began)).copied();
        let now = self.resolutions.get(&arrival.fingerprint).into_iter().flatten();
        now.filter(|(ended, _)| *ended >= began).map(|(_, heard)| *heard).max().max(stored)
    }

    pub(super) fn fill(&self, facts: &mut Facts, identity: &Identity) {
        facts.last_run = self.last_runs.get(identity).copied();
        if let Some(gauge) = self.gauges.get(&(identity.0.clone(), identity.1.clone())) {
            facts.counted = gauge.counted;
        }
    }

    /// A run was created.
    pub(super) fn used(&mut self, identity: &Identity) {
        if let Some(gauge) = self.gauges.get_mut(&(identity.0.clone(), identity.1.clone())) {
            gauge.counted.active += 1;
            gauge.counted.runs += 1;
            gauge.counted.tokens = gauge.counted.tokens.map(|tokens| tokens.saturating_sub(1000));
            gauge.changed = true;
        }
    }

    /// An incident has to wait, and perhaps all of the runbook.
    pub(super) fn hold(
        &mut self,
        identity: &Identity,
        held: (Held, Option<i64>, String),
        blows: Option<&Text>,
    ) {
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

    /// A piece of news came in, and did this.
    pub(super) fn record(
        &mut self,
        arrival: &'a Arrival,
        (environment, runbook): (Text, Text),
        outcome: &Outcome,
    ) {
        let news = (arrival.dedup, environment.clone(), runbook.clone());
        let first = *self.known.entry(news).or_insert(self.now);
        if arrival.status == Status::Resolved
            && let Some(ended) = arrival.ends_at
        {
            let heard = self.resolutions.entry(arrival.fingerprint.clone()).or_default();
            heard.push((ended.as_millisecond(), first));
        }
        let Outcome { decision, why, incident, .. } = outcome;
        let (why, incident) = (why.clone(), *incident);
        self.heard.push(Heard { arrival, environment, runbook, decision, why, incident });
    }
}

fn text(row: &SqliteRow, at: usize) -> Result<Text, sqlx::Error> {
    row.try_get::<&str, _>(at).map(Text::from)
}

async fn cluster(connection: &mut SqliteConnection) -> Result<Uuid, sqlx::Error> {
    let row = sqlx::query("SELECT id FROM cluster").fetch_one(connection).await?;
    let id: &str = row.try_get(0)?;
    Ok(id.parse().unwrap_or_else(|_| Uuid::new_v5(&Uuid::nil(), id.as_bytes())))
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
