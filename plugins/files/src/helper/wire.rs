//! What goes in and out of a helper: one line of JSON each.

use farrier_model::{Change, Failure, Fidelity, NodeName, RunId, Value};
use serde::{Deserialize, Serialize};

/// The version of this language. A helper of another one refuses.
pub(crate) const VERSION: u32 = 1;

/// A longer request is refused. A file that `files.write` writes is the largest part of one.
pub(crate) const LONGEST_REQUEST: usize = 8 << 20;

/// A longer answer is a failure.
pub(crate) const LONGEST_ANSWER: usize = 64 << 20;

/// What is wanted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) version: u32,
    pub(crate) verb: Verb,
    pub(crate) phase: Phase,
    /// What the step says under `with`.
    pub(crate) input: Value,
    /// What was planned; empty in a plan.
    #[serde(default)]
    pub(crate) changes: Vec<Change>,
    pub(crate) run: RunId,
    pub(crate) node: NodeName,
    pub(crate) attempt: u32,
    pub(crate) effect: String,
}

/// The actions that a helper knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verb {
    Usage,
    Write,
    Archive,
    CheckArchive,
    DeleteTree,
}

/// What is done of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Plan,
    Apply,
    Undo,
    Probe,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Planned {
        changes: Vec<Change>,
        output: Option<Value>,
        unknown: Vec<String>,
        fidelity: Fidelity,
        considered: Option<u64>,
        notes: Vec<String>,
    },
    Applied(Value),
    Undone {},
    Probed(Probed),
    Failed(Failure),
}

/// What a probe found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Probed {
    Applied,
    NotApplied,
    Unknown,
}
