//! What an action may touch: [`ReadCx`] while planning and probing, [`WriteCx`] while applying and undoing.

use std::ops::Deref;
use std::sync::Arc;

use farrier_model::{Failure, FailureKind, NodeName, RunId, Scope};
use tokio::sync::watch;

use crate::history::History;
use crate::known::Known;
use crate::progress::Progress;
use crate::target::{Target, TargetKind, Targets};

/// Which attempt of which node is at work.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The run.
    pub run: RunId,
    /// The node.
    pub node: NodeName,
    /// The try, from 1.
    pub attempt: u32,
    /// The key for targets that remember keys: the same for every attempt.
    pub effect_id: String,
}

/// Access to the world for reading. There is no way from here to a writer.
#[derive(Debug, Clone)]
pub struct ReadCx {
    targets: Arc<Targets>,
    scope: Scope,
    node: NodeInfo,
    look_once: bool,
    told: Option<watch::Sender<Option<Progress>>>,
    history: Option<Arc<dyn History>>,
}

impl ReadCx {
    /// A context for one node.
    pub fn new(targets: Arc<Targets>, scope: Scope, node: NodeInfo) -> ReadCx {
        ReadCx { targets, scope, node, look_once: false, told: None, history: None }
    }

    /// The same for a plan that must not wait, see [`ReadCx::looks_once`].
    #[must_use]
    pub fn looking_once(self, look_once: bool) -> ReadCx {
        ReadCx { look_once, ..self }
    }

    /// The same for an attempt whose progress somebody may hear of.
    #[must_use]
    pub fn telling(self, told: watch::Sender<Option<Progress>>) -> ReadCx {
        ReadCx { told: Some(told), ..self }
    }

    /// The same for a step that may look at other runs.
    #[must_use]
    pub fn with_history(self, history: Arc<dyn History>) -> ReadCx {
        ReadCx { history: Some(history), ..self }
    }

    /// What becomes of other runs.
    ///
    /// # Errors
    /// Whoever uses the action knows of none.
    pub fn history(&self) -> Result<&dyn History, Failure> {
        let none = || Failure::new(FailureKind::Internal, "nothing says what becomes of other runs");
        self.history.as_deref().ok_or_else(none)
    }

    /// Says how far the step has come: `done` of `total` (0 where nobody knows), and in a few words of what. Nobody has to hear
    /// of it, and it never waits, so it may be called as often as something is done. The words are the action's own and the names of objects,
    /// never what a program or a server said: they are shown without having been looked through.
    pub fn progress(&self, done: usize, total: usize, text: impl FnOnce() -> String) {
        if let Some(told) = self.told.as_ref().filter(|told| told.receiver_count() > 0) {
            told.send_replace(Some(Progress::new(done, total, &text())));
        }
    }

    /// The reading side of a target, connected on first use with its `read_as` credentials and then shared.
    ///
    /// # Errors
    /// The target does not exist in this environment, is of another kind, or cannot be reached.
    pub async fn reader<K: TargetKind>(&self, target: &Target<K>) -> Result<Arc<K::Reader>, Failure> {
        self.targets.reader(target).await
    }

    /// The names that expressions of this step see, for actions that evaluate one per item.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether this plan is only to be shown, so that an action that waits for something looks once and says, with
    /// [`Fidelity::Deferred`](farrier_model::Fidelity::Deferred), what it would wait for.
    pub fn looks_once(&self) -> bool {
        self.look_once
    }

    /// The secrets that targets were connected with so far.
    pub(crate) fn known(&self) -> Arc<Known> {
        self.targets.known()
    }

    /// Which attempt of which node is at work.
    pub fn node(&self) -> &NodeInfo {
        &self.node
    }
}

/// Access to the world for writing; reads as well.
#[derive(Debug, Clone)]
pub struct WriteCx(ReadCx);

impl WriteCx {
    /// Turns a reading context into a writing one. Only the driver calls this, after the intent is durable.
    pub fn after_intent(read: ReadCx) -> WriteCx {
        WriteCx(read)
    }

    /// The writing side of a target, connected on first use with its `write_as` credentials and then shared.
    ///
    /// # Errors
    /// As [`ReadCx::reader`].
    pub async fn writer<K: TargetKind>(&self, target: &Target<K>) -> Result<Arc<K::Writer>, Failure> {
        self.0.targets.writer(target).await
    }
}

impl Deref for WriteCx {
    type Target = ReadCx;
    fn deref(&self) -> &ReadCx {
        &self.0
    }
}
