//! States of runs and nodes, and the one total function that moves a node.

use serde::{Deserialize, Serialize};

use crate::event::NodeEvent;

/// Where a run stands. Names are stored: never rename or reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Created, nobody works on it. A claim moves it on.
    Queued,
    /// Its owner works on it.
    Running,
    /// It waits for a time, a lock or an answer; nobody works on it. The awaited thing moves it on.
    Waiting,
    /// Its owner undoes what was done.
    Undoing,
    /// Every step succeeded or was skipped.
    Succeeded,
    /// Finished, but a failure was continued over or left items behind.
    Degraded,
    /// A step failed; what had been done stays.
    Failed,
    /// A step failed and everything was undone.
    Undone,
    /// A person stopped it.
    Cancelled,
    /// A person is needed, and the reason is recorded. A person moves it on.
    Parked,
}

impl RunState {
    /// The stored and shown name.
    pub fn name(self) -> &'static str {
        match self {
            RunState::Queued => "queued",
            RunState::Running => "running",
            RunState::Waiting => "waiting",
            RunState::Undoing => "undoing",
            RunState::Succeeded => "succeeded",
            RunState::Degraded => "degraded",
            RunState::Failed => "failed",
            RunState::Undone => "undone",
            RunState::Cancelled => "cancelled",
            RunState::Parked => "parked",
        }
    }

    /// Whether nothing moves it any more.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            RunState::Succeeded
                | RunState::Degraded
                | RunState::Failed
                | RunState::Undone
                | RunState::Cancelled
        )
    }

    /// Reads the stored name.
    pub fn from_name(name: &str) -> Option<RunState> {
        const ALL: [RunState; 10] = [
            RunState::Queued,
            RunState::Running,
            RunState::Waiting,
            RunState::Undoing,
            RunState::Succeeded,
            RunState::Degraded,
            RunState::Failed,
            RunState::Undone,
            RunState::Cancelled,
            RunState::Parked,
        ];
        ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Where a node stands, as far as the journal tells. Names are stored: never rename or reuse one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Not started. The dispatcher starts it when its needs are met.
    #[default]
    Pending,
    /// An intent is recorded and its owner is carrying it out.
    Running,
    /// The effect is recorded as done and `verify` is still polling; or it waits for a time, an answer or a child run.
    Waiting,
    /// An intent without an outcome was found. Its effect class, a probe or a person moves it on.
    InDoubt,
    /// It failed and will be tried again at a recorded time.
    Retryable,
    /// Done. Never executed again in this run.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Its `if` was false, or the run had already finished early.
    Skipped,
    /// Something it needs did not succeed.
    Blocked,
    /// Its undo is being carried out.
    Undoing,
    /// Its effect was reversed.
    Undone,
}

impl NodeState {
    /// The stored and shown name.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Pending => "pending",
            NodeState::Running => "running",
            NodeState::Waiting => "waiting",
            NodeState::InDoubt => "in_doubt",
            NodeState::Retryable => "retryable",
            NodeState::Succeeded => "succeeded",
            NodeState::Failed => "failed",
            NodeState::Skipped => "skipped",
            NodeState::Blocked => "blocked",
            NodeState::Undoing => "undoing",
            NodeState::Undone => "undone",
        }
    }

    /// Whether going forward is over for it.
    pub fn is_settled(self) -> bool {
        matches!(
            self,
            NodeState::Succeeded
                | NodeState::Failed
                | NodeState::Skipped
                | NodeState::Blocked
                | NodeState::Undoing
                | NodeState::Undone
        )
    }

    /// The state after `event`. Replay and live execution both come through here.
    ///
    /// # Errors
    /// When the pair is impossible: the journal is damaged or was written by a newer version.
    pub fn after(self, event: &NodeEvent) -> Result<NodeState, IllegalEvent> {
        use NodeEvent as E;
        use NodeState as S;
        match (self, event) {
            (S::Pending, E::Expanded { .. }) => Ok(S::Pending),
            // Its condition is false, or the run was over before what it waited for.
            (S::Pending | S::Waiting, E::Skipped { .. }) => Ok(S::Skipped),
            (S::Pending, E::Blocked { .. }) => Ok(S::Blocked),
            (S::Pending | S::Retryable | S::InDoubt, E::Intent { .. }) => Ok(S::Running),
            // A step that waits has no effect; one that starts a child run has its intent, and waits for the child's end.
            (S::Running | S::InDoubt | S::Waiting, E::Applied { .. })
            | (S::Pending | S::Retryable | S::Running | S::Waiting, E::WaitBegan { .. }) => Ok(S::Waiting),
            // A step that changes nothing has no intent: its outcome is its only event.
            (S::Pending | S::Retryable | S::Running | S::Waiting | S::InDoubt, E::Succeeded { .. }) => {
                Ok(S::Succeeded)
            }
            (
                S::Pending | S::Retryable | S::Running | S::Waiting | S::InDoubt,
                E::Failed { retry_at, .. },
            ) => Ok(if retry_at.is_some() { S::Retryable } else { S::Failed }),
            (S::Running | S::Waiting, E::InDoubt { .. }) => Ok(S::InDoubt),
            (S::InDoubt, E::NotApplied { .. }) => Ok(S::Retryable),
            // A failed step may have applied its effect, or a part of it, so it can be undone as well.
            (S::Succeeded | S::Failed | S::Undoing, E::UndoIntent { .. }) => Ok(S::Undoing),
            (S::Undoing, E::UndoDone) => Ok(S::Undone),
            (S::Undoing, E::UndoFailed { .. }) => Ok(S::Succeeded),
            (state, event) => Err(IllegalEvent { state, event: event.name() }),
        }
    }
}

/// A journal said that something happened to a node that cannot happen in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event `{event}` cannot happen to a node that is {}", state.name())]
pub struct IllegalEvent {
    /// Where the node stood.
    pub state: NodeState,
    /// What was said to have happened.
    pub event: &'static str,
}
