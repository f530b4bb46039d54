//! The words of Farrier as types: values, ids, states, events, changes.
//!
//! Read first: [`Value`] (what flows between steps), [`Event`] (what the journal holds),
//! [`NodeState`] and [`RunState`] (where a node and a run may go next), [`Change`] (what a plan is made of).
//!
//! **Rule:** nothing here does I/O or reads a clock; "now" is always an argument.

pub mod ask;
pub mod change;
pub mod event;
pub mod expr;
pub mod failure;
mod filters;
pub mod ids;
pub mod literal;
pub mod secret;
pub mod spec;
pub mod state;
pub mod time;
pub mod value;

pub use ask::{Ask, Request, Subject};
pub use change::{Change, ChangeKind, Effect, Fidelity};
pub use event::{BoundPlan, Entry, Event, NodeEvent, PlannedRun, Wait};
pub use expr::{Expr, ExprError, Scope};
pub use failure::{Failure, FailureKind};
pub use filters::OWN_FILTERS;
pub use ids::{Digest, NodeName, RunId, StepId};
pub use secret::Secret;
pub use spec::{ActionSpec, TargetSpec, Type};
pub use state::{IllegalEvent, NodeState, RunState};
pub use value::{Map, Text, Value};
