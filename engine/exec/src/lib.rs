//! Execution: from a graph to a finished run.
//!
//! Read first: [`Run`] (the fold of a journal), then `decide` on it (what to do next, pure), then [`driver`] (does
//! it). A plan, a run and a resumed run are the same path: fold what is in the journal, decide, perform, append. A plan
//! stops at the barrier before the first write and keeps no journal.
//!
//! ```text
//!            ┌─────────── reports ───────────┐
//!            ▼                               │
//!  journal ─fold─▶ Run ─decide─▶ events ─▶ store ─▶ work ─▶ node tasks
//! ```
//!
//! **Rule:** no task performs an effect before the batch with its intent is durable, because work is handed out only
//! after the events decided with it were appended.

mod decide;
pub mod driver;
mod guard;
pub mod plan;
mod run;
mod scope;
mod task;

pub use decide::{Decision, Input, Limits, Report, Work, WorkKind};
pub use driver::{Confirm, Driver, DriverError, Ended, Interpose, Observer, Options, RunUpdate, StandIn};
pub use guard::{Counts, GuardFinding};
pub use plan::{Plan, PlanStep, PlanStepState};
pub use run::{NodeRef, NodeRun, Phase, ReplayError, Run};
