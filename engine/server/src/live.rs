//! [`Live`]: tells whoever follows a run that its journal has grown. What has happened is read from the store, so a follower that
//! was too slow, or came back after a while, misses nothing.

use std::sync::Arc;

use farrier_exec::{Observer, RunUpdate};
use farrier_model::{RunId, RunState, Text};
use tokio::sync::broadcast;

/// Notes that a slow follower may be behind before it has to look itself.
const NOTES: usize = 256;

/// Something about a run became durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The run.
    pub run: RunId,
    /// Its runbook.
    pub runbook: Text,
    /// The names of the events, in order.
    pub events: Arc<[&'static str]>,
    /// The state it ended in, when it ended.
    pub ended: Option<RunState>,
}

/// The way from drivers to followers. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Live(broadcast::Sender<Note>);

impl Live {
    /// Without followers, telling costs next to nothing.
    pub fn new() -> Live {
        Live(broadcast::Sender::new(NOTES))
    }

    /// Tells all followers.
    pub fn tell(&self, note: Note) {
        // Nobody follows: nobody has to know.
        let _ = self.0.send(note);
    }

    /// Follows from now on.
    pub fn follow(&self) -> broadcast::Receiver<Note> {
        self.0.subscribe()
    }

    /// How many follow.
    pub fn followers(&self) -> usize {
        self.0.receiver_count()
    }
}

impl Default for Live {
    fn default() -> Live {
        Live::new()
    }
}

impl Observer for Live {
    fn update(&self, update: RunUpdate<'_>) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let ended = update.events.iter().find_map(|event| match event {
            farrier_model::Event::Finished { state, .. } => Some(*state),
            _ => None,
        });
        self.tell(Note {
            run: update.run,
            runbook: update.runbook.into(),
            events: update.events.iter().map(farrier_model::Event::name).collect(),
            ended,
        });
    }
}

/// Several observers as one.
pub(crate) struct Observers(pub(crate) Vec<Arc<dyn Observer>>);

impl Observer for Observers {
    fn update(&self, update: RunUpdate<'_>) {
        let RunUpdate { run, runbook, depth, events } = update;
        for observer in &self.0 {
            observer.update(RunUpdate { run, runbook, depth, events });
        }
    }
}
