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

mod bound;
mod decide;
pub mod driver;
mod engine;
mod escalation;
mod guard;
mod held;
mod history;
pub mod plan;
mod pokes;
mod post;
mod run;
pub mod saved;
mod scope;
mod task;
mod telling;

pub use bound::canonical;
pub use decide::{Decision, Input, Limits, Refusal, Report, Work, WorkKind};
pub use driver::{
    Confirm, Driver, DriverError, Ended, Halt, Interpose, Observer, Options, ProgressUpdate, RunUpdate,
    StandIn, Stillness, Witness,
};
pub use engine::{Engine, Launcher};
pub use guard::{Counts, GuardFinding};
pub use plan::{Plan, PlanStep, PlanStepState};
pub use post::{EVERYBODY, Mailing, Post, Recipients};
pub use run::{ApprovalRun, Attested, LockRun, NodeRef, NodeRun, Phase, ReplayError, Run, SignalRun};
pub use saved::{SavedPlan, SavedPlanError};
