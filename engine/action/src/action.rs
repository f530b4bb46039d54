//! The contract of an action.

use std::future::Future;
use std::time::Duration;

use farrier_model::spec::Risk;
use farrier_model::time::{Timestamp, format_duration};
use farrier_model::{Change, Effect, Failure, FailureKind, Fidelity, Text, Value};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{ReadCx, WriteCx};

/// A named operation that a step calls. The implementing type is the input, `deny_unknown_fields`; its doc comments
/// become the manual and the editor's help.
///
/// A run and a dry run take one path: `plan`, then (guards, approval), then `apply` with exactly the changes that
/// `plan` returned. There is no dry-run flag to look at.
///
/// The harness in [`crate::harness`] checks for every action that `plan` writes nothing, that a `plan` after `apply`
/// has no changes, that only planned objects change, that `undo` restores, and that bad input is a typed error.
pub trait Action: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// `plugin.verb`.
    const NAME: &'static str;
    /// What may be done with it in doubt.
    const EFFECT: Effect;
    /// The worst it can do.
    const RISK: Risk;
    /// It touches no target and depends on its inputs alone.
    const PURE: bool = false;
    /// Its purpose is to delete; such a step must say what it needs.
    const DELETES: bool = false;
    /// A field of the input: a step that says `true` there, in so many words, changes nothing and is not
    /// [`RISK`](Action::RISK).
    const READ_ONLY_IF: Option<&'static str> = None;
    /// `undo` is implemented.
    const RESTORES: bool = false;
    /// An example step in YAML (the part under `steps:`), shown in the manual and compiled by the tests.
    const EXAMPLE: &'static str;

    /// What later steps can use.
    type Output: Serialize + JsonSchema + Send;

    /// Reads the world and says what would change. Called any number of times, also long before `apply`. A read
    /// that fails is an error, never an empty answer.
    fn plan(&self, cx: &ReadCx) -> impl Future<Output = Result<Planned<Self::Output>, Failure>> + Send;

    /// Makes exactly `changes`. Called after their intent is durable, never with an empty list, and again with the
    /// same effect id when the first answer was lost (see [`Effect`]). Every write compares with what the plan saw;
    /// on a mismatch it overwrites nothing and fails with [`FailureKind::Drift`].
    fn apply(
        &self,
        _cx: &WriteCx,
        _changes: &[Change],
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send {
        async {
            Err(Failure::new(
                FailureKind::Internal,
                format!("`{}` changes nothing, so it has no apply", Self::NAME),
            ))
        }
    }

    /// Asks the world whether `changes` happened. Called for [`Effect::Probed`] steps in doubt.
    fn probe(
        &self,
        _cx: &ReadCx,
        _changes: &[Change],
    ) -> impl Future<Output = Result<Probe, Failure>> + Send {
        async { Ok(Probe::Unknown) }
    }

    /// Brings back what was before `changes`, comparing before it writes as `apply` does; objects already as before
    /// are left alone, so that it can be called again after a crash.
    fn undo(&self, _cx: &WriteCx, _changes: &[Change]) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Err(Failure::new(FailureKind::Internal, format!("`{}` cannot restore", Self::NAME))) }
    }
}

/// What a plan found.
#[derive(Debug, Clone)]
pub struct Planned<O> {
    /// What apply would change; empty when everything is as wanted.
    pub changes: Vec<Change>,
    /// The output, as far as it is known now. Nothing: all of it is known only after apply.
    pub output: Option<O>,
    /// Names of output fields known only after apply.
    pub unknown: Vec<&'static str>,
    /// How far to believe it.
    pub fidelity: Fidelity,
    /// How many existing objects were compared; shares in guards are shares of this.
    pub considered: Option<u64>,
    /// Remarks for the reader of the plan.
    pub notes: Vec<String>,
    /// The step is done when this has come; it has no changes.
    pub wait: Option<WaitFor>,
}

/// What a step waits for. The run holds no task meanwhile, and may be taken up by another process.
#[derive(Debug, Clone, PartialEq)]
pub enum WaitFor {
    /// A time, counted from when the step is reached.
    Length {
        /// How long.
        length: Duration,
        /// A signal that ends the wait early.
        signal: Option<Text>,
    },
    /// A moment.
    Until {
        /// When.
        at: Timestamp,
        /// A signal that ends the wait early.
        signal: Option<Text>,
    },
    /// A signal, without end.
    Signal {
        /// Its name.
        name: Text,
    },
    /// People's approval of what the run is about to do.
    Approval {
        /// Who may say yes: people, or groups of the environment; empty for anyone but the person who asked for the run.
        who: Vec<Text>,
        /// How many must.
        count: u32,
        /// How long they have.
        within: Option<Duration>,
    },
}

impl WaitFor {
    /// What it is, after "waits".
    pub fn describe(&self) -> String {
        let early = |signal: &Option<Text>| {
            signal.as_ref().map_or_else(String::new, |signal| format!(", or until signal `{signal}`"))
        };
        match self {
            WaitFor::Length { length, signal } => {
                format!("for {}{}", format_duration(*length), early(signal))
            }
            WaitFor::Until { at, signal } => format!("until {at}{}", early(signal)),
            WaitFor::Signal { name } => format!("for signal `{name}`"),
            WaitFor::Approval { who, count, within } => {
                let many = if *count == 1 { "one approval".into() } else { format!("{count} approvals") };
                let of = if who.is_empty() { String::new() } else { format!(" of {}", who.join(", ")) };
                let within =
                    within.map_or_else(String::new, |time| format!(" within {}", format_duration(time)));
                format!("for {many}{of}{within}")
            }
        }
    }
}

impl<O> Planned<O> {
    /// Nothing to change; the output is known.
    pub fn known(output: O) -> Planned<O> {
        Planned {
            changes: Vec::new(),
            output: Some(output),
            unknown: Vec::new(),
            fidelity: Fidelity::Computed,
            considered: None,
            notes: Vec::new(),
            wait: None,
        }
    }

    /// Nothing to change, and done only when `wait` has come; the output comes then.
    pub fn waiting(wait: WaitFor) -> Planned<O> {
        Planned { wait: Some(wait), ..Planned::described(Vec::new()) }
    }

    /// These changes, with the output they will give.
    pub fn changes(changes: Vec<Change>, output: O) -> Planned<O> {
        Planned { changes, ..Planned::known(output) }
    }

    /// Something opaque: what it is about to do is shown, its output comes later.
    pub fn described(changes: Vec<Change>) -> Planned<O> {
        Planned {
            changes,
            output: None,
            unknown: Vec::new(),
            fidelity: Fidelity::Described,
            considered: None,
            notes: Vec::new(),
            wait: None,
        }
    }

    /// Marks an output field as known only after apply.
    pub fn unknown(mut self, field: &'static str) -> Planned<O> {
        self.unknown.push(field);
        self
    }

    /// Says how many existing objects were compared.
    pub fn considered(mut self, count: usize) -> Planned<O> {
        self.considered = Some(count as u64);
        self
    }

    /// Adds a remark for the reader of the plan.
    pub fn note(mut self, note: impl Into<String>) -> Planned<O> {
        self.notes.push(note.into());
        self
    }

    /// The same with the output as a [`Value`]: fields known only later stand as unknown after `step`, unless
    /// nothing changes.
    pub(crate) fn erase(self, step: &str) -> Result<Planned<Value>, Failure>
    where
        O: Serialize,
    {
        let output = match self.output {
            None => None,
            Some(output) => {
                let value = Value::of(&output).map_err(|error| {
                    Failure::new(FailureKind::Internal, format!("the output is not a value: {error}"))
                })?;
                Some(match value.as_map() {
                    Some(map) if !self.unknown.is_empty() && !self.changes.is_empty() => {
                        Value::map(map.iter().map(|(key, value)| {
                            let unknown = self.unknown.iter().any(|name| **name == **key);
                            (key.clone(), if unknown { Value::Unknown(step.into()) } else { value.clone() })
                        }))
                    }
                    _ => value,
                })
            }
        };
        Ok(Planned {
            output,
            changes: self.changes,
            unknown: self.unknown,
            fidelity: self.fidelity,
            considered: self.considered,
            notes: self.notes,
            wait: self.wait,
        })
    }
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The effect happened; the output is what a plan returns now.
    Applied,
    /// It did not happen.
    NotApplied,
    /// Nobody can tell; the run is parked.
    Unknown,
}
