//! [`Live`]: tells whoever follows a run that its journal has grown. What has happened is read from the store, so a follower that
//! was too slow, or came back after a while, misses nothing.

use std::sync::Arc;

use farrier_action::Progress;
use farrier_exec::{Observer, ProgressUpdate, RunUpdate};
use farrier_model::{NodeName, RunId, RunState, Text};
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

/// How far a step has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The run.
    pub run: RunId,
    /// The step.
    pub node: NodeName,
    /// Its latest word.
    pub progress: Progress,
}

/// The way from drivers to followers. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Live {
    notes: broadcast::Sender<Note>,
    /// Apart from the notes, so that talkative steps push none of those out.
    told: broadcast::Sender<Told>,
}

impl Live {
    /// Without followers, telling costs next to nothing.
    pub fn new() -> Live {
        Live { notes: broadcast::Sender::new(NOTES), told: broadcast::Sender::new(NOTES) }
    }

    /// Tells all followers.
    pub fn tell(&self, note: Note) {
        // Nobody follows: nobody has to know.
        let _ = self.notes.send(note);
    }

    /// Follows from now on.
    pub fn follow(&self) -> broadcast::Receiver<Note> {
        self.notes.subscribe()
    }

    /// Hears how far steps have come from now on. Who is too slow misses some of it for good.
    pub fn listen(&self) -> broadcast::Receiver<Told> {
        self.told.subscribe()
    }

    /// How many follow.
    pub fn followers(&self) -> usize {
        self.notes.receiver_count()
    }
}

impl Default for Live {
    fn default() -> Live {
        Live::new()
    }
}

impl Observer for Live {
    fn update(&self, update: RunUpdate<'_>) {
        if self.notes.receiver_count() == 0 {
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

    fn progress(&self, update: ProgressUpdate<'_>) {
        if let Some(progress) = update.progress.filter(|_| self.told.receiver_count() > 0) {
            let told = Told { run: update.run, node: update.node.clone(), progress: progress.clone() };
            let _ = self.told.send(told);
        }
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

    fn progress(&self, update: ProgressUpdate<'_>) {
        for observer in &self.0 {
            observer.progress(update);
        }
    }
}
