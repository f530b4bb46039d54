//! What each alert does: decided in memory, one after the other, by what the [`Desk`] knows.

use farrier_alert::{Arrival, Decision, Facts, Held, Resolution, Rule, Status, decide};
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{Ask, Event, Request, RunId, Text};
use std::collections::HashMap;
use uuid::Uuid;

use super::desk::{Desk, Incident, Start};
use super::{Identity, Wish};
use crate::body::Row;
use crate::{Arriving, NewRun, Outcome, timestamp};

/// Who withdraws a run whose alert has resolved.
const ALERTMANAGER: &str = "alertmanager";

impl<'a> Desk<'a> {
    pub(super) fn take(&mut self, Arriving { arrival, run }: &'a Arriving) -> Result<Outcome, sqlx::Error> {
        let now = timestamp(self.now);
        let routed = match &arrival.routed {
            Ok(routed) => routed,
            Err(ignored) => {
                let nowhere = (Text::from(""), ignored.runbook.clone());
                let known = (arrival.dedup, nowhere.0.clone(), nowhere.1.clone());
                let outcome = Outcome {
                    decision: "ignored",
                    why: ignored.reason.clone(),
                    incident: None,
                    run: None,
                    stops: None,
                    new: !self.known.contains_key(&known),
                };
                self.record(arrival, nowhere, &outcome);
                return Ok(outcome);
            }
        };
        let identity = (routed.environment.clone(), routed.runbook.clone(), routed.key.clone());
        let news = (arrival.dedup, routed.environment.clone(), routed.runbook.clone());
        let known_since = self.known.get(&news).map(|at| timestamp(*at));
        let mut facts = Facts { known_since, ..Facts::default() };
        if let Some(incident) = self.incidents.get(&identity) {
            let mut open = incident.open(&arrival.fingerprint);
            open.writing = incident.run.is_some_and(|run| self.writing.contains(&run));
            facts.open = Some(open);
        } else if arrival.status == Status::Firing {
            facts.ended = self.ended_since(arrival).map(timestamp);
        }
        if arrival.status == Status::Firing && facts.open.as_ref().is_none_or(|open| !open.running) {
            self.fill(&mut facts, &identity);
        }
        let times = (arrival.starts_at, arrival.ends_at);
        let mut decision = decide(arrival.status, times, &routed.rule, &facts, now);
        let mut outcome = Outcome {
            decision: decision.name(),
            why: routed.rule.why(&decision),
            incident: self.incidents.get(&identity).map(|incident| incident.id),
            run: None,
            stops: None,
            new: known_since.is_none(),
        };
        let opens = matches!(decision, Decision::Start { .. } | Decision::Holds { .. });
        if opens && !self.incidents.contains_key(&identity) {
            let incident = opened(arrival, &routed.rule);
            outcome.incident = Some(incident.id);
            self.incidents.insert(identity.clone(), incident);
        }
        if let Decision::Start { proposed } = decision {
            match self.begin(&identity, run.as_ref(), &arrival.receiver, proposed)? {
                Ok(run) => outcome.run = Some(run),
                Err(why) => {
                    decision = Decision::Holds { held: Held::KeyTaken, until: None, why, blows: false };
                    (outcome.decision, outcome.why) = (decision.name(), decision.to_string());
                }
            }
        }
        if let Decision::Holds { held, until, why, blows } = &decision {
            let blows = blows.then_some(&routed.rule.owner);
            self.hold(&identity, (*held, until.map(Timestamp::as_millisecond), why.clone()), blows);
            if let (Some(incident), Some(run)) = (self.incidents.get_mut(&identity), run) {
                incident.wish = Some(Wish::of(&routed.rule, run)?);
            }
        }
        if let Some(incident) = self.incidents.get_mut(&identity) {
            incident.note(arrival, &decision, self.now);
            if let (Decision::Resolved(Resolution::Cancels), Some(run)) = (&decision, incident.run) {
                outcome.stops = Some(run);
                self.withdrawals.push((run, withdrawal(run, arrival, now)));
            }
        }
        if decision == Decision::Resolved(Resolution::Closes)
            && let Some(incident) = self.incidents.remove(&identity)
        {
            self.closed.push((identity, incident));
        }
        self.record(arrival, (routed.environment.clone(), routed.runbook.clone()), &outcome);
        Ok(outcome)
    }

    /// Begins the run of an incident; the reason when another run is in its way.
    pub(super) fn begin(
        &mut self,
        identity: &Identity,
        template: Option<&NewRun>,
        receiver: &Text,
        proposed: bool,
    ) -> Result<Result<RunId, String>, sqlx::Error> {
        let Some(incident) = self.incidents.get_mut(identity) else {
            return Err(super::damaged("the incident of a run is not open".into()));
        };
        let Some(mut new) = template.cloned() else {
            return Ok(Err("its route gives no run".into()));
        };
        let key = new.live_key.clone().map(|key| (new.runbook.clone(), key));
        if let Some((run, (_, key))) =
            key.as_ref().and_then(|key| self.holders.get_key_value(key)).map(|(key, run)| (run, key))
        {
            return Ok(Err(format!("run {run} has the key {key}, and one run at a time may have it")));
        }
        new.id =
            RunId(Uuid::new_v5(&self.cluster, format!("{}/{}", incident.id, incident.runs + 1).as_bytes()));
        if let Event::Created { trigger, .. } = &mut new.created {
            *trigger = Trigger::Alert {
                incident: incident.id.to_string().into(),
                receiver: receiver.clone(),
                proposed,
            };
        }
        let row = Row::of(&new.created).map_err(|error| sqlx::Error::Encode(error.into()))?;
        incident.run = Some(new.id);
        incident.runs += 1;
        incident.running = true;
        (incident.held, incident.wish) = (None, None);
        let (run, incident) = (new.id, incident.id);
        self.holders.extend(key.map(|key| (key, run)));
        self.starts.push(Start { new, row, incident, identity: identity.clone() });
        self.used(identity);
        Ok(Ok(run))
    }
}

fn opened(arrival: &Arrival, rule: &Rule) -> Incident {
    Incident {
        id: Uuid::new_v4(),
        opening: Some((arrival.alert.clone(), arrival.receiver.clone())),
        run: None,
        runs: 0,
        running: false,
        resolved_at: None,
        held: None,
        wish: None,
        priority: rule.policy.priority,
        alerts: HashMap::new(),
    }
}

impl Incident {
    /// Keeps in mind how one of its alerts is now.
    fn note(&mut self, arrival: &Arrival, decision: &Decision, now: i64) {
        let began = arrival.starts_at.map(Timestamp::as_millisecond);
        let before = self.alerts.get(&arrival.fingerprint).map(|(firing, began, _)| (*firing, *began));
        let after = match decision {
            Decision::Late | Decision::Resolved(Resolution::Nothing | Resolution::Outdated) => before,
            Decision::Resolved(_) => Some((false, before.map_or(began, |(_, began)| began))),
            // A late copy of an earlier beginning does not move it back.
            _ => Some((true, began.max(before.filter(|(firing, _)| *firing).and_then(|(_, began)| began)))),
        };
        if let Some((firing, began)) = after.filter(|after| Some(*after) != before) {
            self.alerts.insert(arrival.fingerprint.clone(), (firing, began, true));
        }
        match decision {
            Decision::Resolved(Resolution::Closes | Resolution::Cancels | Resolution::WithRun) => {
                self.resolved_at = Some(now);
                (self.held, self.wish) = (None, None);
            }
            Decision::Start { .. } | Decision::Joins { .. } | Decision::Holds { .. } => {
                self.resolved_at = None;
            }
            _ => {}
        }
    }
}

/// Asks a run to stop, unless it has begun to write when its owner hears of it.
fn withdrawal(run: RunId, arrival: &Arrival, now: Timestamp) -> Request {
    Request {
        // The same resolution asks once.
        id: Uuid::new_v5(&run.0, arrival.dedup.to_string().as_bytes()),
        at: now,
        by: ALERTMANAGER.into(),
        ask: Ask::Withdraw { reason: format!("the alert `{}` has resolved", arrival.alert) },
    }
}
