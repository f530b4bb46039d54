//! [`StoreError`]: what a store can answer instead of doing what it was asked.

use std::path::PathBuf;

use farrier_model::{RunId, RunState};

/// What went wrong. Cloneable, because one failed commit is the answer to many callers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process works with this data directory. Stop it, or ask it over its API. Reading is still possible.
    #[error("data directory `{}` is in use by {}", dir.display(), pid.map_or("another process".into(), |pid| format!("process {pid}")))]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// The process, as it wrote into its lock file.
        pid: Option<u32>,
    },
    /// Opened for reading, and there is nothing to read.
    #[error("`{}` holds no farrier data yet; start a run there first", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot hold a store.
    #[error("data directory `{}` cannot be used: {message}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why, and what to do.
        message: String,
    },
    /// The database was written by a newer version. Use that version, or a copy from before the upgrade.
    #[error("`{}` has schema version {found}, but this farrier knows versions up to {known}; use the newer farrier", file.display())]
    NewerSchema {
        /// The database.
        file: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// The database is older than this version and was opened for reading. Any owner brings it up to date.
    #[error("`{}` has schema version {found}, older than {known}; it is brought up to date when farrier next runs something there", file.display())]
    OlderSchema {
        /// The database.
        file: PathBuf,
        /// Its version.
        found: i64,
        /// What this program needs.
        known: i64,
    },
    /// A write to a store that was opened for reading.
    #[error("the store was opened for reading only")]
    ReadOnly,
    /// Another owner's lease is alive. Try again when it has run out.
    #[error("the run is owned by `{owner}`")]
    Owned {
        /// Who.
        owner: String,
    },
    /// The run has ended; nothing more happens to it.
    #[error("run {run} has ended: {}", state.name())]
    Final {
        /// The run.
        run: RunId,
        /// How.
        state: RunState,
    },
    /// The run was taken over or released, or its lease is too short to begin an effect. Stop, kill the children, never
    /// retry: whatever is in doubt now is the next owner's to resolve.
    #[error("run {run} is no longer ours to write (epoch {epoch})")]
    Fenced {
        /// The run.
        run: RunId,
        /// The epoch of the refused claim.
        epoch: i64,
    },
    /// There is no such run.
    #[error("there is no run {run}")]
    NoRun {
        /// Its id.
        run: RunId,
    },
    /// Another run of the runbook with the same `one_run_per` is alive.
    #[error("run {run} of the same runbook is still alive for {key}")]
    KeyTaken {
        /// That run.
        run: RunId,
        /// The key, as people read it.
        key: String,
    },
    /// A saved plan is carried out once.
    #[error("this plan was carried out before, by run {run}")]
    PlanUsed {
        /// That run.
        run: RunId,
    },
    /// The journal already holds what must be there only once. The caller's view of the run is wrong.
    #[error("run {run}: the journal refuses {what}")]
    Refused {
        /// The run.
        run: RunId,
        /// The event, and why.
        what: String,
    },
    /// The caller broke the contract of the call: a defect.
    #[error("run {run}: {message}")]
    Invalid {
        /// The run.
        run: RunId,
        /// How.
        message: String,
    },
    /// The batch may or may not be durable. Send the same batch again.
    #[error("run {run}: the answer to an append was lost")]
    Ambiguous {
        /// The run.
        run: RunId,
    },
    /// It did not happen and may go better later.
    #[error("the store cannot do this now: {message}")]
    Unavailable {
        /// Why.
        message: String,
    },
    /// The store has been closed, or the simulated process that held it has crashed.
    #[error("the store has been closed")]
    Closed,
    /// The disk or the database failed. Nothing was acknowledged that is not durable; every later write is refused, since
    /// after a failed sync nobody knows what the disk holds. Stop, repair, start again.
    #[error("writing `{}` failed: {message}", file.display())]
    Fatal {
        /// The database.
        file: PathBuf,
        /// What the database said.
        message: String,
    },
    /// The disk is full. What must not be lost (outcomes, heartbeats, releases) is still written as long as the ballast
    /// lasts; this was not, and did not happen. It goes better once there is room: try again.
    #[error("there is no room to write `{}`: {message}", file.display())]
    Full {
        /// The database.
        file: PathBuf,
        /// What was refused, and until when.
        message: String,
    },
    /// Stored data is not what was written. `farrier fsck` lists all of it.
    #[error("{place} is damaged: {message}")]
    Corrupt {
        /// The file, or run and sequence number.
        place: String,
        /// What was found.
        message: String,
    },
}

impl StoreError {
    /// Whether this store can be written no more.
    pub fn is_fatal(&self) -> bool {
        matches!(self, StoreError::Fatal { .. } | StoreError::Closed)
    }
}
