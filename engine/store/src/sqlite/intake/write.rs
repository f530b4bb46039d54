//! What the alerts of a transaction have changed, written with a few statements.

use farrier_alert::Held;
use farrier_model::Text;
use farrier_model::time::Timestamp;
use sqlx::sqlite::SqliteArguments;

use super::desk::{Desk, Gauge, Incident, Start};
use super::{Identity, encoded};
use crate::Notice;
use crate::sqlite::bulk::{Fresh, chunked};
use crate::sqlite::writer::{Trouble, Writer, add};
use crate::sqlite::{asides, outbox};

impl Writer {
    /// Writes everything, and says how many runs it created.
    pub(super) async fn close(&mut self, desk: &Desk<'_>) -> Result<u64, Trouble> {
        let now = desk.now;
        // What closes goes first: it makes room for another incident of the same identity.
        let closed: Vec<_> = desk.closed.iter().map(|(identity, incident)| (identity, incident)).collect();
        self.write_incidents(&closed, Some(now), now).await?;
        let open: Vec<_> = desk.incidents.iter().collect();
        self.write_incidents(&open, None, now).await?;
        self.write_starts(&desk.starts, now).await?;
        self.write_heard(desk).await?;
        for (run, request) in &desk.withdrawals {
            let body = encoded(&(&request.by, &request.ask))?;
            asides::request(&mut self.connection, *run, request, &body, now).await?;
        }
        for ((environment, runbook), gauge) in desk.gauges.iter().filter(|(_, gauge)| gauge.changed) {
            self.write_gauge((environment, runbook), gauge, now).await?;
        }
        Ok(desk.starts.len() as u64)
    }

    async fn write_incidents(
        &mut self,
        incidents: &[(&Identity, &Incident)],
        closed_at: Option<i64>,
        now: i64,
    ) -> Result<(), Trouble> {
        let held = |arguments: &mut SqliteArguments, incident: &Incident| {
            let (held, until, why) = match &incident.held {
                Some((held, until, why)) => (Some(Held::name(*held)), *until, Some(why.as_str())),
                None => (None, None, None),
            };
            add(arguments, held)?;
            add(arguments, until)?;
            add(arguments, why)?;
            add(arguments, incident.wish.as_ref().map(|(wish, _)| wish.as_str()))?;
            add(arguments, incident.wish.as_ref().map(|(_, bundle)| bundle.as_str()))
        };
        let new: Vec<_> = incidents
            .iter()
            .filter_map(|(identity, incident)| Some((identity, incident, incident.opening.as_ref()?)))
            .collect();
        let insert = "INSERT INTO incident (incident_id, environment, runbook, key, alert, receiver, opened_at, last_event, \
             resolved_at, closed_at, run_id, runs, priority, held, held_until, held_why, wish, bundle) VALUES ";
        chunked(&mut self.connection, (insert, 18, ""), &new, |arguments, (identity, incident, opening)| {
            add(arguments, incident.id.to_string())?;
            add(arguments, identity.0.clone())?;
            add(arguments, identity.1.clone())?;
            add(arguments, identity.2.clone())?;
            add(arguments, opening.0.clone())?;
            add(arguments, opening.1.clone())?;
            add(arguments, now)?;
            add(arguments, now)?;
            add(arguments, incident.resolved_at)?;
            add(arguments, closed_at)?;
            add(arguments, incident.run.map(|run| run.to_string()))?;
            add(arguments, incident.runs)?;
            add(arguments, incident.priority)?;
            held(arguments, incident)
        })
        .await?;
        let old: Vec<_> = incidents
            .iter()
            .filter_map(|(_, incident)| incident.opening.is_none().then_some(incident))
            .collect();
        let update = (
            "WITH changed (id, resolved_at, closed_at, run_id, runs, held, held_until, held_why, wish, bundle, at) AS (VALUES ",
            11,
            ") UPDATE incident SET last_event = changed.at, resolved_at = changed.resolved_at, closed_at = changed.closed_at, \
             run_id = changed.run_id, runs = changed.runs, held = changed.held, held_until = changed.held_until, \
             held_why = changed.held_why, wish = changed.wish, bundle = changed.bundle FROM changed \
             WHERE incident.incident_id = changed.id",
        );
        chunked(&mut self.connection, update, &old, |arguments, incident| {
            add(arguments, incident.id.to_string())?;
            add(arguments, incident.resolved_at)?;
            add(arguments, closed_at)?;
            add(arguments, incident.run.map(|run| run.to_string()))?;
            add(arguments, incident.runs)?;
            held(arguments, incident)?;
            add(arguments, now)
        })
        .await?;
        let alerts: Vec<_> = incidents
            .iter()
            .flat_map(|(_, incident)| {
                incident.alerts.iter().map(|(fingerprint, alert)| (incident.id, fingerprint, alert))
            })
            .filter(|(_, _, (_, _, changed))| *changed)
            .collect();
        let upsert = (
            "INSERT INTO incident_alert (incident_id, fingerprint, firing, starts_at) VALUES ",
            4,
            " ON CONFLICT (incident_id, fingerprint) DO UPDATE SET firing = excluded.firing, starts_at = excluded.starts_at",
        );
        chunked(&mut self.connection, upsert, &alerts, |arguments, (id, fingerprint, (firing, began, _))| {
            add(arguments, id.to_string())?;
            add(arguments, (*fingerprint).clone())?;
            add(arguments, i64::from(*firing))?;
            add(arguments, *began)
        })
        .await
    }

    async fn write_starts(&mut self, starts: &[Start], now: i64) -> Result<(), Trouble> {
        let runs: Vec<_> = starts
            .iter()
            .map(|start| Fresh { new: &start.new, row: &start.row, schedule: None, held: None })
            .collect();
        self.create_all(&runs, now).await?;
        let insert = "INSERT INTO incident_run (run_id, incident_id, environment, runbook, key, at) VALUES ";
        chunked(&mut self.connection, (insert, 6, ""), starts, |arguments, start| {
            add(arguments, start.new.id.to_string())?;
            add(arguments, start.incident.to_string())?;
            add(arguments, start.identity.0.clone())?;
            add(arguments, start.identity.1.clone())?;
            add(arguments, start.identity.2.clone())?;
            add(arguments, now)
        })
        .await
    }

    async fn write_heard(&mut self, desk: &Desk<'_>) -> Result<(), Trouble> {
        let upsert = (
            "INSERT INTO event (dedup, environment, runbook, receiver, alert, fingerprint, status, starts_at, ends_at, body, \
             first_at, last_at, seen, decision, why, incident_id) VALUES ",
            16,
            " ON CONFLICT (dedup, environment, runbook) DO UPDATE SET last_at = excluded.last_at, seen = event.seen + 1, \
             incident_id = coalesce(excluded.incident_id, event.incident_id), \
             decision = CASE WHEN excluded.decision = 'joined' THEN event.decision ELSE excluded.decision END, \
             why = CASE WHEN excluded.decision = 'joined' THEN event.why ELSE excluded.why END",
        );
        chunked(&mut self.connection, upsert, &desk.heard, |arguments, heard| {
            let arrival = heard.arrival;
            add(arguments, arrival.dedup.to_string())?;
            add(arguments, heard.environment.clone())?;
            add(arguments, heard.runbook.clone())?;
            add(arguments, arrival.receiver.clone())?;
            add(arguments, arrival.alert.clone())?;
            add(arguments, arrival.fingerprint.clone())?;
            add(arguments, arrival.status.name())?;
            add(arguments, arrival.starts_at.map(Timestamp::as_millisecond))?;
            add(arguments, arrival.ends_at.map(Timestamp::as_millisecond))?;
            add(arguments, arrival.body.as_str())?;
            add(arguments, desk.now)?;
            add(arguments, desk.now)?;
            add(arguments, 1_i64)?;
            add(arguments, heard.decision)?;
            add(arguments, heard.why.as_str())?;
            add(arguments, heard.incident.map(|incident| incident.to_string()))
        })
        .await
    }

    async fn write_gauge(
        &mut self,
        (environment, runbook): (&Text, &Text),
        gauge: &Gauge,
        now: i64,
    ) -> Result<(), Trouble> {
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
        .execute(&mut self.connection)
        .await?;
        if let Some((why, owner)) = &gauge.blown {
            let notice = blown_notice(environment, runbook, why, owner, now);
            outbox::put(&mut self.connection, &notice, now).await?;
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
