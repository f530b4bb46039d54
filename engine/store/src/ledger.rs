//! [`Ledger`]: schedules and what became of their due times, beside the runs that follow from them.
//!
//! The ledger keeps one row for each schedule, with the last due time that was decided (its **cursor**) and the moment at which it
//! must be looked at next, and one record for each due time (**fire**). [`Ledger::fire`] writes the decisions, the runs and the
//! new cursor in one transaction, or nothing: so there is no due time without a decision and none with two, whoever dies when.
//! A run's id follows from the schedule and the due time, see [`run_of`], so even creating it twice would create it once.

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_model::{RunId, Text};
use farrier_schedule::{Decision, ScheduleId, Spec, Turn};
use uuid::Uuid;

use crate::{NewRun, Notice, StoreError};

/// The id of the run that starts for a due time of a schedule.
pub fn run_of(cluster: Uuid, schedule: &ScheduleId, nominal: Timestamp) -> RunId {
    RunId(Uuid::new_v5(&cluster, format!("{schedule} {}", nominal.as_millisecond()).as_bytes()))
}

/// Where schedules are kept. All methods may be called from many tasks at once.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// The identity of this store, from which the ids of scheduled runs follow.
    async fn cluster(&self) -> Result<Uuid, StoreError>;

    /// Makes the schedules be those of `wanted`. A new one, one whose [`Spec`] is another now, and one that comes back begin at this
    /// moment: nothing is due for the time before. What is not wanted any more is kept and retired.
    async fn put_schedules(&self, wanted: Vec<NewSchedule>) -> Result<Synced, StoreError>;

    /// The schedules that have to be looked at next, soonest first, at most `limit`. Paused ones are among them: their due times
    /// are decided too.
    async fn next_schedules(&self, limit: usize) -> Result<Vec<ScheduleRow>, StoreError>;

    /// Writes what became of due times, each schedule's part all or nothing, in one transaction for all. Overlap is judged here, against
    /// the runs that are alive at this moment. [`Fired::Moved`] when the schedule is no longer as the caller saw it.
    async fn fire(&self, fires: Vec<Fire>) -> Result<Vec<Fired>, StoreError>;

    /// Keeps a schedule from starting anything until it is unpaused; false when there is no such schedule. Its due times are recorded
    /// as skipped. Pausing again changes nothing.
    async fn pause(&self, schedule: &ScheduleId, by: &str, why: &str) -> Result<bool, StoreError>;

    /// Lets a schedule start runs again; false when it is unknown or was not paused.
    async fn unpause(&self, schedule: &ScheduleId) -> Result<bool, StoreError>;

    /// One schedule.
    async fn schedule(&self, schedule: &ScheduleId) -> Result<Option<ScheduleRow>, StoreError>;

    /// Every schedule with the last record of it, by id; with the retired ones when `retired`.
    async fn schedules(&self, retired: bool) -> Result<Vec<(ScheduleRow, Option<FireRow>)>, StoreError>;

    /// The records of a schedule, newest first, at most `limit`.
    async fn fires(&self, schedule: &ScheduleId, limit: usize) -> Result<Vec<FireRow>, StoreError>;

    /// When the clock was last seen by whoever fires.
    async fn seen_at(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Records that the clock was seen now, after everything that was due has been decided.
    async fn see(&self) -> Result<(), StoreError>;

    /// When a run of the runbook in the environment last succeeded.
    async fn last_success(&self, environment: &str, runbook: &str) -> Result<Option<Timestamp>, StoreError>;

    /// Raises an alarm, and stores what people are to hear of it in the same transaction; false when it is raised already.
    async fn raise(
        &self,
        kind: AlarmKind,
        subject: &str,
        message: &str,
        tell: Vec<Notice>,
    ) -> Result<bool, StoreError>;

    /// Takes an alarm back; false when there was none.
    async fn clear(&self, kind: AlarmKind, subject: &str) -> Result<bool, StoreError>;

    /// The alarms that are raised, oldest first.
    async fn alarms(&self) -> Result<Vec<Alarm>, StoreError>;
}

/// A schedule as the project has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSchedule {
    /// Its identity.
    pub id: ScheduleId,
    /// The environment in which its runs take place.
    pub environment: Text,
    /// The runbook that it starts.
    pub runbook: Text,
    /// When, and how.
    pub spec: Spec,
}

/// What [`Ledger::put_schedules`] changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    /// New, or back.
    pub added: u64,
    /// Now with another spec.
    pub edited: u64,
    /// Not wanted any more.
    pub retired: u64,
}

impl Synced {
    /// Whether anything is different now.
    pub fn is_change(&self) -> bool {
        *self != Synced::default()
    }
}

/// A schedule as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleRow {
    /// Its identity.
    pub id: ScheduleId,
    /// The environment in which its runs take place.
    pub environment: Text,
    /// The runbook that it starts.
    pub runbook: Text,
    /// When, and how.
    pub spec: Spec,
    /// Grows with each edit.
    pub spec_version: i64,
    /// Since when it has this version. Nothing is due before.
    pub since: Timestamp,
    /// The last due time that was decided.
    pub cursor: Timestamp,
    /// When it has to be looked at next, jitter included; none when it is due no more.
    pub next_due: Option<Timestamp>,
    /// Who paused it, and why.
    pub paused: Option<Paused>,
    /// Since when the project has it no more.
    pub retired_at: Option<Timestamp>,
    /// Since when it has not been paused.
    pub awake_since: Timestamp,
}

/// Why a schedule starts nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// Who.
    pub by: String,
    /// In their words.
    pub why: String,
    /// When.
    pub at: Timestamp,
}

/// Due times of one schedule that have come.
#[derive(Debug, Clone)]
pub struct Fire {
    /// The schedule, as the caller saw it.
    pub schedule: ScheduleId,
    /// Its spec then.
    pub spec: Spec,
    /// Its version then.
    pub spec_version: i64,
    /// Its cursor then.
    pub cursor: Timestamp,
    /// What is to become of them.
    pub turn: Turn,
    /// A run for each verdict that starts one, by due time. Its id is [`run_of`].
    pub runs: Vec<(Timestamp, NewRun)>,
}

/// What came of a [`Fire`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fired {
    /// It is on disk.
    Done {
        /// One decision for each verdict.
        decisions: Vec<(Timestamp, Decision)>,
        /// These runs were asked to end: whoever drives them should look up.
        stirred: Vec<RunId>,
    },
    /// Somebody else has decided, or edited or retired the schedule. Nothing was written; look at it again.
    Moved,
}

/// A record of what became of a due time, or of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FireRow {
    /// The due time; the last one, when it stands for several.
    pub nominal: Timestamp,
    /// The first of those that it stands for.
    pub since: Option<Timestamp>,
    /// `run`, `skipped` or `coalesced`.
    pub decision: String,
    /// Why it was skipped, see [`farrier_schedule::Skip::name`].
    pub reason: Option<String>,
    /// The run that started; of one that was skipped, the run that was in the way.
    pub run: Option<RunId>,
    /// The due time that stands for it.
    pub into: Option<Timestamp>,
    /// When it was decided.
    pub decided_at: Timestamp,
}

/// What somebody has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlarmKind {
    /// A periodic task has not succeeded for longer than its `success_every`.
    Overdue,
    /// The clock jumped ahead.
    ClockJumped,
    /// The clock went back.
    ClockBack,
}

impl AlarmKind {
    /// The word under which it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            AlarmKind::Overdue => "overdue",
            AlarmKind::ClockJumped => "clock_jumped",
            AlarmKind::ClockBack => "clock_back",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<AlarmKind> {
        [AlarmKind::Overdue, AlarmKind::ClockJumped, AlarmKind::ClockBack]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// An alarm that is raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What it is about.
    pub kind: AlarmKind,
    /// Of what: `environment/runbook`, or `clock`.
    pub subject: String,
    /// One sentence.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}
