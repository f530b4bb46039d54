//! Who may write what: the decisions that both stores make, as pure functions over a run's [`Head`].
//!
//! The adapters only load a head, ask here, and store what comes back in the same transaction.

use farrier_model::{Digest, Entry, Event, NodeEvent, NodeName, RunId, RunState, Text};

use crate::{Batch, Claim, NewRun, StoreError, Timing, timestamp};

/// What decides about a write: the moving part of a run's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) state: RunState,
    pub(crate) owner: Option<String>,
    /// The store's generation when the owner claimed or last renewed.
    pub(crate) generation: i64,
    pub(crate) epoch: i64,
    pub(crate) lease_until: Option<i64>,
    /// When a waiting run is due.
    pub(crate) not_before: Option<i64>,
    pub(crate) seq: i64,
    pub(crate) reason: Option<String>,
    pub(crate) updated_at: i64,
    pub(crate) finished_at: Option<i64>,
}

/// The circumstances of a write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: i64,
    pub(crate) generation: i64,
    pub(crate) timing: Timing,
}

impl Moment {
    fn lease_end(&self) -> i64 {
        self.now + self.timing.ttl.as_millis() as i64
    }
}

impl Head {
    /// The head of a run that was created now; its journal holds the one event.
    pub(crate) fn created(now: i64) -> Head {
        Head {
            state: RunState::Queued,
            owner: None,
            generation: 0,
            epoch: 0,
            lease_until: None,
            not_before: None,
            seq: 1,
            reason: None,
            updated_at: now,
            finished_at: None,
        }
    }

    /// The head after `owner` has taken the run; its journal has grown by [`Event::Claimed`].
    pub(crate) fn claim(&self, run: RunId, owner: &str, moment: Moment) -> Result<Head, StoreError> {
        if self.state.is_final() {
            return Err(StoreError::Final { run, state: self.state });
        }
        if let Some(current) = &self.owner {
            let grace = moment.timing.grace.as_millis() as i64;
            let alive = self.generation == moment.generation
                && self.lease_until.is_some_and(|until| moment.now < until + grace);
            if alive && current != owner {
                return Err(StoreError::Owned { owner: current.clone() });
            }
        }
        Ok(Head {
            state: match self.state {
                RunState::Queued | RunState::Waiting => RunState::Running,
                other => other,
            },
            owner: Some(owner.to_string()),
            generation: moment.generation,
            epoch: self.epoch + 1,
            lease_until: Some(moment.lease_end()),
            not_before: None,
            seq: self.seq + 1,
            updated_at: moment.now,
            ..self.clone()
        })
    }

    /// The head after `batch` was appended.
    pub(crate) fn append(&self, claim: &Claim, batch: &Batch, moment: Moment) -> Result<Head, StoreError> {
        let run = claim.run;
        let fenced = StoreError::Fenced { run, epoch: claim.epoch };
        if self.epoch != claim.epoch {
            return Err(fenced);
        }
        if self.state.is_final() {
            return Err(StoreError::Final { run, state: self.state });
        }
        if self.owner.is_none() {
            return Err(fenced);
        }
        let margin = moment.timing.margin.as_millis() as i64;
        let lease_holds = self.generation == moment.generation
            && self.lease_until.is_some_and(|until| until > moment.now + margin);
        if !lease_holds && batch.events.iter().any(Event::needs_lease) {
            return Err(fenced);
        }
        let mut head =
            Head { seq: self.seq + batch.events.len() as i64, updated_at: moment.now, ..self.clone() };
        let invalid = |message: String| Err(StoreError::Invalid { run, message });
        let mut finished = None;
        for (index, event) in batch.events.iter().enumerate() {
            match event {
                Event::Created { .. } | Event::Claimed { .. } => {
                    return invalid(format!("event `{}` is written by the store alone", event.name()));
                }
                Event::Finished { .. } | Event::Suspended { .. } if index + 1 < batch.events.len() => {
                    return invalid(format!("event `{}` is not the last of its batch", event.name()));
                }
                Event::Suspended { until, .. } => {
                    head.state = RunState::Waiting;
                    head.owner = None;
                    head.lease_until = None;
                    head.not_before = until.map(farrier_model::time::Timestamp::as_millisecond);
                }
                Event::Finished { state, failure, .. } => {
                    finished = Some(*state);
                    head.reason = failure.as_ref().map(ToString::to_string);
                    head.state = *state;
                }
                Event::Parked { reason, .. } => {
                    head.reason = Some(reason.clone());
                    head.state = RunState::Parked;
                }
                Event::Resumed { .. } => {
                    head.reason = None;
                    head.state = RunState::Running;
                }
                Event::UndoStarted { .. } => head.state = RunState::Undoing,
                _ => {}
            }
        }
        if let Some(state) = batch.state {
            head.state = state;
        }
        let suspended = matches!(batch.events.last(), Some(Event::Suspended { .. }));
        if suspended && head.state != RunState::Waiting {
            return invalid(format!("event `suspended` does not fit state `{}`", head.state.name()));
        }
        if finished.is_some_and(|state| state != head.state) || finished.is_some() != head.state.is_final() {
            // A final state without `finished` in the journal could not be rebuilt from it.
            return invalid(format!(
                "state `{}` does not fit event `finished` {}",
                head.state.name(),
                finished.map_or("being absent".into(), |state| format!("with state `{}`", state.name()))
            ));
        }
        if head.state.is_final() {
            head.owner = None;
            head.lease_until = None;
            head.finished_at = Some(moment.now);
        }
        Ok(head)
    }

    /// The head after a heartbeat; none when the claim is no longer good.
    pub(crate) fn heartbeat(&self, claim: &Claim, moment: Moment) -> Option<Head> {
        self.is_held(claim).then(|| Head {
            generation: moment.generation,
            lease_until: Some(moment.lease_end()),
            ..self.clone()
        })
    }

    /// The head after the run was given back; none when the claim is no longer good.
    pub(crate) fn release(&self, claim: &Claim) -> Option<Head> {
        self.is_held(claim).then(|| Head { owner: None, lease_until: None, ..self.clone() })
    }

    fn is_held(&self, claim: &Claim) -> bool {
        self.owner.is_some() && self.epoch == claim.epoch && !self.state.is_final()
    }
}

/// Refuses a new run whose first event says something else than its row.
pub(crate) fn check_new(new: &NewRun) -> Result<(), StoreError> {
    let fits = matches!(
        &new.created,
        Event::Created { runbook, bundle, environment, .. }
            if *runbook == new.runbook && *bundle == new.bundle && *environment == new.environment
    );
    if fits {
        Ok(())
    } else {
        let message =
            "the first event must be `created`, with the runbook, bundle and environment of the run".into();
        Err(StoreError::Invalid { run: new.id, message })
    }
}

/// The digest of the saved plan that a new run carries out. A child run only has its part of its parent's.
pub(crate) fn plan_of(new: &NewRun) -> Option<Digest> {
    match &new.created {
        Event::Created { plan: Some(plan), .. } if new.parent.is_none() => Some(plan.digest),
        _ => None,
    }
}

/// What an event changes besides the journal and the run's row, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Aside {
    /// Stand in line for a lock.
    Ask { lock: Text, node: Option<NodeName>, capacity: u32 },
    /// The run knows that it holds the lock.
    Told { lock: Text, node: Option<NodeName> },
    /// Give a lock, or the place in its line, back.
    Release { lock: Text, node: Option<NodeName> },
    /// The run is over: give everything back, and make a waiting parent due.
    Over,
    /// Make a waiting parent due: its child needs a person.
    Parked,
    /// The run waits: due at once if something has come for it that it does not know.
    Waits,
}

/// What the events of a batch change besides.
pub(crate) fn asides(events: &[Event]) -> Vec<Aside> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::LockAsked { lock, node, capacity, .. } => {
                Some(Aside::Ask { lock: lock.clone(), node: node.clone(), capacity: *capacity })
            }
            Event::LockTaken { lock, node, .. } => {
                Some(Aside::Told { lock: lock.clone(), node: node.clone() })
            }
            Event::LockReleased { lock, node } => {
                Some(Aside::Release { lock: lock.clone(), node: node.clone() })
            }
            Event::Finished { .. } => Some(Aside::Over),
            Event::Parked { .. } => Some(Aside::Parked),
            Event::Suspended { .. } => Some(Aside::Waits),
            _ => None,
        })
        .collect()
}

/// Which of the tickets of one lock are granted next: first come, first served, and nobody is overtaken. `line` is in
/// the order of numbers: whether it is held, and how many may hold it at once.
pub(crate) fn grants(line: &[(bool, u32)]) -> Vec<usize> {
    let held = line.iter().filter(|(held, _)| *held).count();
    let waiting = line.iter().enumerate().filter(|(_, (held, _))| !held);
    waiting
        .zip(held..)
        .take_while(|((_, (_, capacity)), holders)| *holders < *capacity as usize)
        .map(|((at, _), _)| at)
        .collect()
}

/// What the journal refuses to hold twice: a node's success, and a node's intent under one attempt.
/// The SQLite store has unique indexes for the same.
pub(crate) fn once_only(event: &Event) -> Option<(&'static str, String, u32)> {
    match event {
        Event::Node { node, event: NodeEvent::Succeeded { .. }, .. } => {
            Some(("succeeded", node.to_string(), 0))
        }
        Event::Node {
            node,
            attempt,
            event: event @ (NodeEvent::Intent { .. } | NodeEvent::UndoIntent { .. }),
        } => Some((event.name(), node.to_string(), *attempt)),
        _ => None,
    }
}

/// How a refusal by [`once_only`] reads.
pub(crate) fn refusal(run: RunId, kind: &str) -> StoreError {
    let what = match kind {
        "succeeded" => "a second `succeeded` of the same step".to_string(),
        kind => format!("a second `{kind}` of the same step with the same attempt"),
    };
    StoreError::Refused { run, what }
}

/// The entries that `events` become when the first gets `first_seq`.
pub(crate) fn entries(events: Vec<Event>, first_seq: i64, epoch: i64, at: i64) -> Vec<Entry> {
    let at = timestamp(at);
    events.into_iter().zip(first_seq..).map(|(event, seq)| Entry { seq, epoch, at, event }).collect()
}

/// Checks that a batch which arrived again is the one that is stored under its id.
pub(crate) fn same_batch(run: RunId, stored: &[Entry], batch: &Batch) -> Result<(), StoreError> {
    if stored.len() == batch.events.len() && stored.iter().zip(&batch.events).all(|(a, b)| a.event == *b) {
        return Ok(());
    }
    let message = format!("entry id {} was already used for other events", batch.entry_id);
    Err(StoreError::Invalid { run, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_granted_in_the_order_of_the_line() {
        for (line, granted) in [
            (vec![], vec![]),
            (vec![(false, 1), (false, 1)], vec![0]),
            (vec![(true, 1), (false, 1)], vec![]),
            (vec![(true, 2), (false, 2), (false, 2)], vec![1]),
            // Whoever wants it for itself alone is not overtaken by those who would share it.
            (vec![(true, 3), (false, 1), (false, 3)], vec![]),
            (vec![(false, 3), (false, 3), (false, 1)], vec![0, 1]),
        ] {
            assert_eq!(grants(&line), granted, "{line:?}");
        }
    }
}
