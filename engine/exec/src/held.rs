//! What a driver holds back while the disk is full: events that may not be written yet, and the work that waits for them.
//!
//! A run that is under way when the disk fills up stays as it is. What its tasks report is written, from the room that the
//! store keeps for that; what would begin something waits here, in order per node, and is tried again every moment. The
//! journal may then have an outcome before an intent of another node that was decided earlier: they do not depend on
//! each other, or the intent would not have been decided.

use std::time::Duration;

use farrier_model::{Event, NodeName};
use tokio::time::Instant;
use uuid::Uuid;

use crate::decide::Work;

/// How often it is tried again.
pub(crate) const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) events: Vec<Event>,
    pub(crate) taken: Vec<Uuid>,
    pub(crate) work: Vec<Work>,
    /// Children that could not be told yet to stop.
    pub(crate) cancel: Vec<NodeName>,
    tried: Option<Instant>,
}

impl Held {
    /// Whether nothing is held back.
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.taken.is_empty() && self.work.is_empty() && self.cancel.is_empty()
    }

    /// Whether events are held back.
    pub(crate) fn holds_events(&self) -> bool {
        !(self.events.is_empty() && self.taken.is_empty())
    }

    /// Whether work on `node` has to wait: an event about it is held back, or one about the whole run.
    pub(crate) fn holds(&self, node: &NodeName) -> bool {
        self.events.iter().any(|event| match event {
            Event::Node { node: held, .. } => held == node,
            _ => true,
        })
    }

    /// Holds those of `events` back that begin something, with what follows from them, and returns the others.
    pub(crate) fn split(&mut self, events: Vec<Event>) -> Vec<Event> {
        let mut now = Vec::new();
        for event in events {
            let later = event.needs_lease()
                || match &event {
                    Event::Node { node, .. } => self.holds(node),
                    // The last word about a run comes after everything else.
                    Event::Finished { .. } | Event::Parked { .. } | Event::Suspended { .. } => {
                        self.holds_events()
                    }
                    _ => self.events.iter().any(|held| !matches!(held, Event::Node { .. })),
                };
            if later { self.events.push(event) } else { now.push(event) }
        }
        now
    }

    /// Whether it is time to try again; true once per moment.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.tried.is_none_or(|tried| tried.elapsed() >= AGAIN);
        if due {
            self.tried = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farrier_model::{Effect, NodeEvent, RunState, Value};

    fn intent(step: &str) -> Event {
        let (inputs, changes, effect) = (Value::Null, Vec::new(), Effect::Once);
        let event = NodeEvent::Intent { inputs, changes, effect, effect_id: step.into() };
        Event::Node { node: NodeName::step(step), attempt: 1, event }
    }

    fn succeeded(step: &str) -> Event {
        let event = NodeEvent::Succeeded { output: Value::Null, changed: 1 };
        Event::Node { node: NodeName::step(step), attempt: 1, event }
    }

    fn finished() -> Event {
        Event::Finished { state: RunState::Succeeded, outputs: Value::Null, failure: None }
    }

    #[test]
    fn outcomes_go_first_and_each_node_keeps_its_order() {
        let mut held = Held::default();
        let now = held.split(vec![succeeded("a"), intent("b"), succeeded("c"), succeeded("b")]);
        assert_eq!(now, [succeeded("a"), succeeded("c")]);
        assert_eq!(held.events, [intent("b"), succeeded("b")]);
        assert!(held.holds(&NodeName::step("b")) && !held.holds(&NodeName::step("c")));
        assert_eq!(held.split(vec![succeeded("d"), finished()]), [succeeded("d")]);
        assert_eq!(held.events.len(), 3, "the end waits for everything else");
    }

    #[test]
    fn nothing_overtakes_what_is_about_the_whole_run() {
        let mut held = Held::default();
        let allowed = Event::WritesAllowed { creates: 1, updates: 0, deletes: 0 };
        let now = held.split(vec![succeeded("a"), allowed.clone(), succeeded("b")]);
        assert_eq!(now, [succeeded("a")]);
        assert_eq!(held.events, [allowed, succeeded("b")]);
        assert!(held.holds(&NodeName::step("z")));
    }

    #[test]
    fn it_is_due_at_once_and_then_every_moment() {
        let mut held = Held::default();
        assert!(held.is_due());
        assert!(!held.is_due());
    }
}
