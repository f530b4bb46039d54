//! Where runs live: the journal, durable and fenced.
//!
//! Read first: [`Store`] (the contract), [`StoreError`] (what can go wrong and what to do then), then `rules.rs` (who may
//! write what, as pure functions that both stores share). [`SqliteStore`] keeps runs in a data directory;
//! [`MemoryStore`] has the same semantics without a disk, for plans, tests and simulators, and can fail on request;
//! [`fsck`](fsck()) checks the invariants of either. [`Ledger`] is where schedules and their due times are kept, with the runs that
//! follow from them.
//!
//! # How a run is kept safe
//!
//! - A run belongs to one owner at a time. Each [`claim`](Store::claim) adds one to the run's **epoch**; an append names
//!   the epoch it was made under, and the store refuses it ([`StoreError::Fenced`]) once the epoch has moved on.
//! - What precedes an effect ([`Event::needs_lease`]) also needs a lease that still has a margin to run. Outcomes need
//!   only the epoch: recording the truth late is right as long as nobody else took the run.
//! - An append is durable when it returns, and many callers share one commit. When the answer to an append is lost
//!   ([`StoreError::Ambiguous`]), sending the same [`Batch`] again returns the entries of the first time.
//! - The database itself refuses a second `succeeded` of a node and a second intent with the same attempt.
//! - What others want of a run ([`Request`]) is stored first and taken into the journal by its owner, in one transaction. Locks
//!   are tickets in a line, made and given back by the journal's own events: a lock is held exactly as long as the journal
//!   says so.
//! - A waiting run ([`Event::Suspended`]) is a row with a time; [`Store::due`] finds those whose time has come.
//! - Each start of an owning process adds one to the store's **generation**. A lease of an earlier generation is expired
//!   at once, because the directory lock proves that its process is gone.
//!
//! **Rule:** only the adapter modules know SQL, and nothing but this crate writes a journal.

mod body;
mod error;
pub mod fsck;
mod intake;
mod ledger;
mod memory;
mod notice;
mod record;
mod rules;
mod sqlite;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_model::{Digest, Entry, Event, NodeName, Request, RunId, RunState, Text};
use uuid::Uuid;

pub use error::StoreError;
pub use fsck::{FsckReport, Violation, check_run, fsck};
pub use intake::{
    Arriving, EventRow, FuseRow, IncidentFilter, IncidentRow, Intake, Outcome, Released, Taken,
};
pub use ledger::{
    Alarm, AlarmKind, Fire, FireRow, Fired, Ledger, NewSchedule, Paused, ScheduleRow, Synced, run_of,
};
pub use memory::{Fault, MemoryStore};
pub use notice::{Delivery, Notice, NoticeFilter, Outbox, Posted};
pub use record::RunRecord;
pub use sqlite::{Act, ActFilter, Keep, Mode, OpenOptions, Pruned, Retention, SqliteStore, StoreCounts};

/// How often [`Store::append`] sends a batch again when the answer was lost, before it gives up.
const RESENDS: usize = 5;

/// A durable home for runs. All methods may be called from many tasks at once.
#[async_trait]
pub trait Store: Outbox {
    /// Creates a run with its first event, durably. Creating the same id again returns false and changes nothing, so a
    /// trigger that is not sure whether it was heard may simply ask again.
    ///
    /// Refused with [`StoreError::KeyTaken`] while another run of the runbook with the same key is alive, and with
    /// [`StoreError::PlanUsed`] when its saved plan has been carried out before.
    async fn create_run(&self, new: NewRun) -> Result<bool, StoreError>;

    /// Takes ownership for `owner` (`host:pid`): the epoch grows by one, the lease starts, and [`Event::Claimed`] is in
    /// the journal, all in one transaction. A queued or waiting run becomes running; a parked or undoing one keeps its
    /// state. First start and takeover are the same call.
    ///
    /// Refused with [`StoreError::Owned`] while another owner's lease of this generation is alive (plus grace), and with
    /// [`StoreError::Final`] when the run has ended.
    async fn claim(&self, run: RunId, owner: &str) -> Result<Claim, StoreError>;

    /// Appends `events` in order under the claim, and moves the run to `state`; durable when it returns.
    ///
    /// Without `state` the events decide: `Finished` and `Parked` say it themselves, `Resumed` means running,
    /// `UndoStarted` undoing, `Suspended` waiting, all others leave it. A batch with `Finished` ends the run and the
    /// ownership with it; one with `Suspended` ends the ownership.
    ///
    /// [`StoreError::Fenced`] means: stop, kill the children, never retry. Sends the batch again by itself when the answer
    /// was lost.
    async fn append(
        &self,
        claim: &Claim,
        events: Vec<Event>,
        state: Option<RunState>,
    ) -> Result<Vec<Entry>, StoreError> {
        self.append_surely(claim, Batch::new(events, state)).await
    }

    /// As [`append`](Store::append), for a whole batch.
    async fn append_surely(&self, claim: &Claim, batch: Batch) -> Result<Vec<Entry>, StoreError> {
        for _ in 0..RESENDS {
            match self.append_batch(claim, batch.clone()).await {
                Err(StoreError::Ambiguous { .. }) => {}
                answer => return answer,
            }
        }
        self.append_batch(claim, batch).await
    }

    /// Like [`append`](Store::append), with an entry id that the caller keeps: after [`StoreError::Ambiguous`] the same
    /// batch may be sent again, and returns the entries of the first time if it had arrived, even when the run has been
    /// taken over or has ended since.
    async fn append_batch(&self, claim: &Claim, batch: Batch) -> Result<Vec<Entry>, StoreError>;

    /// Extends the leases of `claims`. Returns the runs that are no longer owned under their claim; their work must stop.
    async fn heartbeat(&self, claims: &[Claim]) -> Result<Vec<RunId>, StoreError>;

    /// Gives the run back, so that anyone may claim it at once. Releasing twice, or a run that has moved on, does nothing.
    async fn release(&self, claim: &Claim) -> Result<(), StoreError>;

    /// The whole journal in order; an error when it has a gap or does not exist.
    async fn journal(&self, run: RunId) -> Result<Vec<Entry>, StoreError> {
        self.journal_after(run, 0).await
    }

    /// The entries with `seq > after`, in order: what a follower of a run asks for again and again.
    async fn journal_after(&self, run: RunId, after: i64) -> Result<Vec<Entry>, StoreError>;

    /// What is known of a run without reading its journal.
    async fn run(&self, run: RunId) -> Result<Option<RunRow>, StoreError>;

    /// The runs that fit `filter`, newest first.
    async fn runs(&self, filter: RunFilter) -> Result<Vec<RunRow>, StoreError>;

    /// Stores what somebody wants of a run, and makes a waiting run due. [`StoreError::Final`] when the run has ended.
    /// Storing the same request twice stores it once.
    async fn request(&self, run: RunId, request: Request) -> Result<(), StoreError>;

    /// What was asked of a run and has not been taken into its journal, in the order of arrival. [`Batch::taken`] takes.
    async fn requests(&self, run: RunId) -> Result<Vec<Request>, StoreError>;

    /// The tickets of a run, or of all runs, by lock and number. Those with [`Ticket::held_since`] hold their lock.
    async fn tickets(&self, run: Option<RunId>) -> Result<Vec<Ticket>, StoreError>;

    /// Runs that nobody works on and somebody should: queued, left by an owner that died, waiting until a moment that has
    /// come, or parked and asked for something. The longest due first, at most `limit`.
    async fn due(&self, limit: usize) -> Result<Due, StoreError> {
        self.due_in(None, limit).await
    }

    /// The same in these environments alone; in all without them. The moment of the next may be that of another environment.
    async fn due_in(&self, environments: Option<&[Text]>, limit: usize) -> Result<Due, StoreError>;

    /// How often something was executed since a moment.
    async fn executions(&self, of: &Executed, since: Timestamp) -> Result<u64, StoreError>;

    /// Keeps the texts that runs are pinned to: `root` is the runbook that was started, `sources` all texts it can reach,
    /// by name. Content-addressed: storing the same digest again does nothing.
    async fn put_bundle(
        &self,
        digest: Digest,
        root: &str,
        sources: &BTreeMap<Text, Text>,
    ) -> Result<(), StoreError>;

    /// The texts stored under `digest`, with the name of the root.
    async fn bundle(&self, digest: Digest) -> Result<Option<(Text, BTreeMap<Text, Text>)>, StoreError>;

    /// Reads a journal as far as it can be read, with what is wrong in how it is stored (gaps, a broken hash chain,
    /// bodies that do not parse). For [`fsck`](fsck()); everything else wants [`journal`](Store::journal), which refuses such a
    /// journal as a whole.
    async fn audit(&self, run: RunId) -> Result<Audit, StoreError>;

    /// What is wrong in the storage beneath all runs: damaged pages, blobs that do not fit their digest.
    async fn audit_storage(&self) -> Result<Vec<Violation>, StoreError>;
}

/// A run to be created.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id; the identity under which creation is idempotent.
    pub id: RunId,
    /// Name of the runbook.
    pub runbook: Text,
    /// The texts it is pinned to, see [`Store::put_bundle`].
    pub bundle: Digest,
    /// The environment's name.
    pub environment: Text,
    /// What lists call it.
    pub title: Text,
    /// The run that started it.
    pub parent: Option<RunId>,
    /// No second run of the runbook with this key is created while this one is alive.
    pub live_key: Option<Text>,
    /// [`Event::Created`]. The digest of its saved plan, if it has one, is good for this one run.
    pub created: Event,
}

/// A place in the line for a lock, or the lock itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The lock's name.
    pub lock: Text,
    /// The place: who has the smaller number was there first. Never used twice, so it also fences.
    pub number: i64,
    /// Who.
    pub run: RunId,
    /// The node that wants it; none for the whole run.
    pub node: Option<NodeName>,
    /// How many may hold it at once, according to this holder.
    pub capacity: u32,
    /// Since when it is in line.
    pub asked_at: Timestamp,
    /// Since when it holds the lock; none while it waits.
    pub held_since: Option<Timestamp>,
}

/// What [`Store::due`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// To be claimed.
    pub runs: Vec<RunRow>,
    /// When the next waiting run is due; none when none waits for a moment.
    pub next: Option<Timestamp>,
}

/// What [`Store::executions`] counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Executed {
    /// Runs of a runbook, by when they were created; without those that were taken back, and those that ended before they
    /// changed anything.
    Runs {
        /// The runbook.
        runbook: Text,
    },
    /// Intents of a step or its items, in all runs of a runbook.
    Step {
        /// The runbook.
        runbook: Text,
        /// The step.
        step: Text,
    },
}

/// The right to write a run's journal, until someone else claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The run.
    pub run: RunId,
    /// Which ownership this is.
    pub epoch: i64,
    /// The sequence number that the first append under this claim gets.
    pub next_seq: i64,
}

/// Events that are appended together or not at all, under an id by which the store knows them again.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Unique per batch; the same when it is sent again.
    pub entry_id: Uuid,
    /// In order.
    pub events: Vec<Event>,
    /// The state that the run moves to.
    pub state: Option<RunState>,
    /// Requests that its events answer; they are gone from the store with it.
    pub taken: Vec<Uuid>,
    /// What people are to hear because of it.
    pub notices: Vec<Notice>,
}

impl Batch {
    /// A batch under a new id.
    pub fn new(events: Vec<Event>, state: Option<RunState>) -> Batch {
        Batch { entry_id: Uuid::now_v7(), events, state, taken: Vec::new(), notices: Vec::new() }
    }

    /// The same, answering requests.
    #[must_use]
    pub fn taking(self, taken: Vec<Uuid>) -> Batch {
        Batch { taken, ..self }
    }

    /// The same, telling people.
    #[must_use]
    pub fn telling(self, notices: Vec<Notice>) -> Batch {
        Batch { notices, ..self }
    }
}

/// What is known of a run without reading its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// Name of the runbook.
    pub runbook: Text,
    /// The texts it is pinned to.
    pub bundle: Digest,
    /// The environment's name.
    pub environment: Text,
    /// What lists call it.
    pub title: Text,
    /// Where it stands.
    pub state: RunState,
    /// Who works on it; none when released, never claimed, or ended. A name here does not prove that the owner lives.
    pub owner: Option<String>,
    /// How often it was claimed.
    pub epoch: i64,
    /// Until when the owner may start effects.
    pub lease_until: Option<Timestamp>,
    /// When a waiting run goes on by itself.
    pub not_before: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its journal last grew.
    pub updated_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The run that started it.
    pub parent: Option<RunId>,
    /// Why it is parked, or the first reason for a bad end.
    pub reason: Option<String>,
    /// The number of entries in its journal.
    pub seq: i64,
}

/// Which runs to list. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// In one of these states; empty means any.
    pub states: Vec<RunState>,
    /// Of this runbook.
    pub runbook: Option<Text>,
    /// Started by this run.
    pub parent: Option<RunId>,
    /// Which have ended after this moment.
    pub ended_after: Option<Timestamp>,
    /// Whose id begins so, as people type it.
    pub id_prefix: Option<String>,
    /// Older than this one in the list's order: the creation time and id of the last row of the page before.
    pub before: Option<(Timestamp, RunId)>,
    /// At most so many; none means all.
    pub limit: Option<usize>,
}

/// A journal as far as it can be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Audit {
    /// What can be read, in order.
    pub entries: Vec<Entry>,
    /// What is wrong with how it is stored.
    pub violations: Vec<Violation>,
}

/// How long ownership lasts. The defaults bound a takeover at 22 s; a restart of the only process does not wait at all,
/// because it starts a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease lasts from its last heartbeat.
    pub ttl: Duration,
    /// What must remain of a lease to begin an effect.
    pub margin: Duration,
    /// How long after its end a lease still keeps others away, so that the old owner's children are dead by then.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { ttl: Duration::from_secs(15), margin: Duration::from_secs(3), grace: Duration::from_secs(5) }
    }
}

/// Where a store gets the time from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Clock {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock for tests and simulators.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// The time, in whole milliseconds as stores keep it.
    pub fn now(&self) -> Timestamp {
        timestamp(self.now_ms())
    }

    /// Milliseconds since 1970. Stores keep whole milliseconds, so that what an append returns equals what is read later.
    pub(crate) fn now_ms(&self) -> i64 {
        (self.0)().as_millisecond()
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A stored time. Out of range only in a damaged row, and then the epoch is as good as any.
pub(crate) fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}
