//! [`Change`]: one difference that a plan shows and an apply makes.

use serde::{Deserialize, Serialize};

use crate::value::{Text, Value};

/// What happens to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It does not exist and will.
    Create,
    /// It exists and will differ.
    Update,
    /// It exists and will not.
    Delete,
    /// Something opaque is run on it.
    Run,
    /// Something is sent to it.
    Send,
}

impl ChangeKind {
    /// The stored and shown name.
    pub fn name(self) -> &'static str {
        match self {
            ChangeKind::Create => "create",
            ChangeKind::Update => "update",
            ChangeKind::Delete => "delete",
            ChangeKind::Run => "run",
            ChangeKind::Send => "send",
        }
    }
}

/// One difference between the world as it is and as the step wants it. Secrets in it are references.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The object's name in its target's own terms: a DN, `table tools: name=foo`, a path.
    pub object: Text,
    /// What happens to it.
    pub kind: ChangeKind,
    /// What was read, as far as the change touches it; null when it does not exist.
    #[serde(default)]
    pub before: Value,
    /// What it will be, with the same fields as `before`; null when it will not exist.
    #[serde(default)]
    pub after: Value,
    /// What apply compares with before it writes, when `before` alone does not tell (a version, an inode).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Text>,
}

/// What may be done with a step whose intent is in the journal and whose outcome is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Changes nothing: run again.
    Read,
    /// Sets things to a state: run again with the same rendered inputs.
    Repeatable,
    /// The target remembers the effect id: submit again under it; "exists, ours" is done.
    Keyed,
    /// The target can be asked: probe, then decide.
    Probed,
    /// Nobody can tell: park the run, a person decides.
    Once,
}

impl Effect {
    /// The stored and shown name.
    pub fn name(self) -> &'static str {
        match self {
            Effect::Read => "read",
            Effect::Repeatable => "repeatable",
            Effect::Keyed => "keyed",
            Effect::Probed => "probed",
            Effect::Once => "once",
        }
    }
}

/// How far a step's plan can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fidelity {
    /// The server itself judged the change (a server-side dry run).
    Exact,
    /// Farrier compared real state with the wanted state.
    Computed,
    /// The step is opaque: what it would run is shown, not what that would change.
    Described,
    /// An input is known only after another step has run.
    Deferred,
}

impl Fidelity {
    /// The stored and shown name.
    pub fn name(self) -> &'static str {
        match self {
            Fidelity::Exact => "exact",
            Fidelity::Computed => "computed",
            Fidelity::Described => "described",
            Fidelity::Deferred => "deferred",
        }
    }
}
