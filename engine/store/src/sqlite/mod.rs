//! [`SqliteStore`]: runs in one data directory, written by one process, readable by others at the same time.
//!
//! Write-ahead log with `synchronous=FULL`: what was acknowledged survives a power cut as far as the disk keeps its word.
//! One writer task owns the only writing connection (see `writer.rs`); reads go through a pool of two read-only ones.
//!
//! An owner holds the directory's lock. If the last owner did not stop cleanly, the file is checked before anything is
//! claimed. Opened with [`Mode::ReadOnly`], nothing is locked and nothing changed, so `runs`, `show` and `logs` work beside
//! a running service.

mod acts;
mod asides;
mod ballast;
mod bulk;
mod directory;
mod fires;
mod intake;
mod ledger;
mod moving;
mod outbox;
mod reader;
mod retention;
mod schema;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_model::{Digest, Entry, Event, Request, RunId, RunState, Text};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Row as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::body::{self, Row};
use crate::{
    Audit, Batch, Claim, Clock, Due, Executed, NewRun, RunFilter, RunRow, Store, StoreError, Ticket, Timing,
    Violation, rules,
};
pub use acts::{Act, ActFilter};
use ballast::Ballast;
pub use retention::{Keep, Pruned, Retention};
use writer::{Answer, Done, Files, Job, Status, Work, Writer};

/// How long to wait for a lock of SQLite's own. Only a backup tool or a curious person can hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many starts are remembered.
const STARTS_KEPT: i64 = 100;

/// What a store is opened for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// To run things: the directory is locked, the generation grows.
    #[default]
    Owner,
    /// To look: works while another process owns the directory, and changes nothing.
    ReadOnly,
}

/// How to open a [`SqliteStore`].
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// What for.
    pub mode: Mode,
    /// Where the time comes from.
    pub clock: Clock,
    /// How long ownership lasts.
    pub timing: Timing,
}

impl OpenOptions {
    /// To look only.
    pub fn read_only() -> OpenOptions {
        OpenOptions { mode: Mode::ReadOnly, ..OpenOptions::default() }
    }
}

/// What a store has done since it was opened, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Transactions that were committed.
    pub commits: u64,
    /// Journal entries that were appended.
    pub entries: u64,
}

/// Runs in a data directory. Clones are handles to the same store; the last one to go lets the writer finish what is
/// queued and stop cleanly, [`close`](SqliteStore::close) also waits for it.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    /// None when opened for reading.
    jobs: Option<mpsc::Sender<Job>>,
    readers: SqlitePool,
    status: Arc<Status>,
    errors: Errors,
    generation: i64,
    clock: Clock,
    timing: Timing,
}

/// `SQLITE_READONLY_ROLLBACK`: a reader found a transaction that only a writer can take back.
const READONLY_ROLLBACK: &str = "776";

impl SqliteStore {
    /// Opens the store in `dir`; as owner, makes it if there is none. Must be called within a tokio runtime, which runs
    /// the writer from then on.
    pub async fn open(dir: &Path, options: OpenOptions) -> Result<SqliteStore, StoreError> {
        let file = directory::database(dir);
        let errors = Errors { file: Arc::from(file.as_path()) };
        let status = Arc::new(Status::default());
        if options.mode == Mode::ReadOnly {
            if !file.exists() {
                return Err(StoreError::Missing { dir: dir.to_path_buf() });
            }
            let readers = readers(&file);
            let mut connection = readers.acquire().await.map_err(|error| errors.damaged(error))?;
            let missing = || StoreError::Missing { dir: dir.to_path_buf() };
            let found = match schema::version(&mut connection).await {
                // A rollback journal, and not a log, is there only until the first owner has made the tables.
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(READONLY_ROLLBACK) => 0,
                found => found.map_err(|error| errors.damaged(error))?,
            };
            errors.check_version(found)?;
            if found == 0 {
                // Its first owner died, or has not come, so far as to make the tables.
                return Err(missing());
            }
            if found < schema::VERSION {
                let known = schema::VERSION;
                return Err(StoreError::OlderSchema { file, found, known });
            }
            let generation = match generation(&mut connection).await {
                Err(sqlx::Error::RowNotFound) => return Err(missing()),
                found => found.map_err(|error| errors.map(error))?,
            };
            drop(connection);
            let OpenOptions { clock, timing, .. } = options;
            return Ok(SqliteStore { jobs: None, readers, status, errors, generation, clock, timing });
        }

        let locked = dir.to_path_buf();
        let lock = tokio::task::spawn_blocking(move || directory::own(&locked))
            .await
            .map_err(|error| StoreError::Unavailable { message: error.to_string() })??;
        let mut ballast = Ballast::keep(dir);
        let (connection, generation) = match begin(&file, &errors, &options.clock).await {
            // What was left in doubt on a full disk is found out on a full disk too.
            Err(StoreError::Full { .. }) if ballast.give_up() => {
                begin(&file, &errors, &options.clock).await?
            }
            begun => begun?,
        };
        let anchored = dir.to_path_buf();
        // SQLite does not look whether the names of new files have become durable.
        let anchors = tokio::task::spawn_blocking(move || directory::anchor(&anchored))
            .await
            .map_err(|error| StoreError::Unavailable { message: error.to_string() })?
            .map_err(|error| errors.fatal(&error))?;
        let files = Files { _lock: lock, anchors, ballast };
        status.full.store(files.ballast.is_full(), Ordering::Relaxed);
        let (jobs, queue) = mpsc::channel(writer::QUEUE);
        let OpenOptions { clock, timing, .. } = options;
        let clocks = (clock.clone(), timing);
        let writer = Writer::new(connection, files, clocks, generation, status.clone(), errors.clone());
        tokio::spawn(writer.run(queue));
        let (jobs, readers) = (Some(jobs), readers(&file));
        Ok(SqliteStore { jobs, readers, status, errors, generation, clock, timing })
    }

    /// Which start of an owning process this is; for a reader, the latest one.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// The database file.
    pub fn file(&self) -> &Path {
        &self.errors.file
    }

    /// Whether the disk is full: outcomes are recorded, nothing new is accepted.
    pub fn is_full(&self) -> bool {
        self.status.full.load(Ordering::Relaxed)
    }

    /// What ended all writing, if something did.
    pub fn fatal(&self) -> Option<StoreError> {
        self.status.fatal.get().cloned()
    }

    /// Has each commit told from now on, with the time from the beginning of its transaction to its being durable. Only the first
    /// who asks is told.
    pub fn on_commit(&self, tell: impl Fn(std::time::Duration) + Send + Sync + 'static) {
        let _ = self.status.committed.set(writer::OnCommit(Box::new(tell)));
    }

    /// How many runs that are not over are in which state.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn live_states(&self) -> Result<Vec<(RunState, i64)>, StoreError> {
        let rows = sqlx::query(
            "SELECT state, count(*) FROM run WHERE state IN ('queued', 'running', 'waiting', 'undoing', 'parked') GROUP BY state",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(|error| self.unreadable(error))?;
        let mut states = Vec::new();
        for row in rows {
            let state: &str = row.try_get(0).map_err(|error| self.unreadable(error))?;
            let count = row.try_get(1).map_err(|error| self.unreadable(error))?;
            states.extend(RunState::from_name(state).map(|state| (state, count)));
        }
        Ok(states)
    }

    /// What was written since it was opened.
    pub fn counts(&self) -> StoreCounts {
        StoreCounts {
            commits: self.status.commits.load(Ordering::Relaxed),
            entries: self.status.rows.load(Ordering::Relaxed),
        }
    }

    /// Finishes what is queued, empties the log, records the clean stop and gives up the directory. Other handles answer
    /// [`StoreError::Closed`] from then on.
    pub async fn close(self) {
        self.readers.close().await;
        if let Some(jobs) = self.jobs {
            let (reply, closed) = oneshot::channel();
            if jobs.send(Job::Close(reply)).await.is_ok() {
                // An error means that the writer is gone already.
                let _ = closed.await;
            }
        }
    }

    async fn work(&self, work: Work) -> Result<(Work, Done), StoreError> {
        let jobs = self.jobs.as_ref().ok_or(StoreError::ReadOnly)?;
        let (reply, answer) = oneshot::channel();
        jobs.send(Job::Work(work, reply)).await.map_err(|_| StoreError::Closed)?;
        let (work, answer): (Work, Answer) = answer.await.map_err(|_| StoreError::Closed)?;
        answer.map(|done| (work, done))
    }

    async fn send(&self, claim: &Claim, batch: Batch) -> Result<Vec<Entry>, StoreError> {
        let (batch, rows) = encode(claim.run, batch).await?;
        let work = Work::Append { claim: *claim, batch, rows };
        match self.work(work).await? {
            (Work::Append { claim, batch, .. }, Done::Appended { first_seq, at }) => {
                Ok(rules::entries(batch.events, first_seq, claim.epoch, at))
            }
            (_, Done::Known(entries)) => Ok(entries),
            _ => Err(mismatched()),
        }
    }

    /// What reading a row of the journal, a run or a bundle says when the connection fails.
    fn unreadable(&self, error: sqlx::Error) -> StoreError {
        match error {
            sqlx::Error::PoolClosed => StoreError::Closed,
            error => self.errors.map(error),
        }
    }
}

/// The writer answered another question: broken bookkeeping of our own, told rather than guessed at.
fn mismatched() -> StoreError {
    StoreError::Unavailable { message: "the writer gave an answer of another kind".into() }
}

/// Events to rows, off the async threads when they are large.
async fn encode(run: RunId, batch: Batch) -> Result<(Batch, Vec<Row>), StoreError> {
    let rows = |batch: &Batch| batch.events.iter().map(Row::of).collect::<Result<Vec<Row>, _>>();
    let unwritable = |error: serde_json::Error| StoreError::Invalid {
        run,
        message: format!("an event cannot be stored: {error}"),
    };
    if !body::looks_large(&batch.events) {
        let rows = rows(&batch).map_err(unwritable)?;
        return Ok((batch, rows));
    }
    let (batch, rows) = tokio::task::spawn_blocking(move || {
        let rows = rows(&batch);
        (batch, rows)
    })
    .await
    .map_err(|error| StoreError::Unavailable { message: error.to_string() })?;
    Ok((batch, rows.map_err(unwritable)?))
}

#[async_trait]
impl Store for SqliteStore {
    async fn create_run(&self, new: NewRun) -> Result<bool, StoreError> {
        rules::check_new(&new)?;
        let (mut batch, mut rows) = encode(new.id, Batch::new(vec![new.created.clone()], None)).await?;
        let (Some(_), Some(row)) = (batch.events.pop(), rows.pop()) else { return Err(mismatched()) };
        match self.work(Work::Create { new: Box::new(new), row }).await? {
            (_, Done::Created(created)) => Ok(created),
            _ => Err(mismatched()),
        }
    }

    async fn claim(&self, run: RunId, owner: &str) -> Result<Claim, StoreError> {
        let owner = owner.to_string();
        let claimed = Event::Claimed { owner: owner.clone() };
        let (_, mut rows) = encode(run, Batch::new(vec![claimed], None)).await?;
        let row = rows.pop().ok_or_else(mismatched)?;
        match self.work(Work::Claim { run, owner, row }).await? {
            (_, Done::Claimed(claim)) => Ok(claim),
            _ => Err(mismatched()),
        }
    }

    // The answer of a local file cannot be lost, so nothing is kept for sending it again.
    async fn append_surely(&self, claim: &Claim, batch: Batch) -> Result<Vec<Entry>, StoreError> {
        self.send(claim, batch).await
    }

    async fn append_batch(&self, claim: &Claim, batch: Batch) -> Result<Vec<Entry>, StoreError> {
        self.send(claim, batch).await
    }

    async fn heartbeat(&self, claims: &[Claim]) -> Result<Vec<RunId>, StoreError> {
        match self.work(Work::Heartbeat { claims: claims.to_vec() }).await? {
            (_, Done::Fenced(runs)) => Ok(runs),
            _ => Err(mismatched()),
        }
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        self.work(Work::Release { claim: *claim }).await.map(|_| ())
    }

    async fn journal_after(&self, run: RunId, after: i64) -> Result<Vec<Entry>, StoreError> {
        let rows = sqlx::query(reader::ENTRIES_AFTER)
            .bind(run.to_string())
            .bind(after)
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        let mut entries = Vec::with_capacity(rows.len());
        for (row, expected) in rows.iter().zip(after.max(0) + 1..) {
            let entry = reader::entry(run, row)?;
            if entry.seq != expected {
                let place = format!("run {run} entry {expected}");
                return Err(StoreError::Corrupt { place, message: "it is missing".into() });
            }
            entries.push(entry);
        }
        if entries.is_empty() && self.run(run).await?.is_none() {
            return Err(StoreError::NoRun { run });
        }
        Ok(entries)
    }

    async fn run(&self, run: RunId) -> Result<Option<RunRow>, StoreError> {
        let row = reader::run_query(run)
            .build()
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        row.as_ref().map(reader::run_row).transpose()
    }

    async fn runs(&self, filter: RunFilter) -> Result<Vec<RunRow>, StoreError> {
        let rows = reader::runs_query(&filter)
            .build()
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        rows.iter().map(reader::run_row).collect()
    }

    async fn request(&self, run: RunId, request: Request) -> Result<(), StoreError> {
        let body = serde_json::to_string(&(&request.by, &request.ask)).map_err(|error| {
            StoreError::Invalid { run, message: format!("a request cannot be stored: {error}") }
        })?;
        self.work(Work::Request { run, request: Box::new(request), body }).await.map(|_| ())
    }

    async fn requests(&self, run: RunId) -> Result<Vec<Request>, StoreError> {
        let rows = sqlx::query(reader::REQUESTS)
            .bind(run.to_string())
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        rows.iter().map(|row| reader::request(run, row)).collect()
    }

    async fn tickets(&self, run: Option<RunId>) -> Result<Vec<Ticket>, StoreError> {
        let rows = reader::tickets_query(run)
            .build()
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        rows.iter().map(reader::ticket).collect()
    }

    async fn due_in(&self, environments: Option<&[Text]>, limit: usize) -> Result<Due, StoreError> {
        let listed = |names: &[Text]| {
            serde_json::Value::from(names.iter().map(|name| (**name).to_owned()).collect::<Vec<String>>())
        };
        let environments = environments.map(|names| listed(names).to_string());
        let environments = environments.as_deref();
        let now = self.clock.now_ms();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let lease_end = now - self.timing.grace.as_millis() as i64;
        let mut waiting = reader::due_query(now, environments, limit);
        let waiting =
            waiting.build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        let mut unowned = reader::unowned_query(self.generation, lease_end, environments, limit);
        let unowned =
            unowned.build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        let mut asked = reader::asked_query(environments, limit);
        let asked = asked.build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        let next = sqlx::query(reader::NEXT_DUE)
            .bind(now)
            .fetch_optional(&self.readers)
            .await
            .and_then(|row| row.map(|row| row.try_get::<i64, _>(0)).transpose())
            .map_err(|error| self.unreadable(error))?;
        let runs = waiting
            .iter()
            .chain(&unowned)
            .chain(&asked)
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .map(reader::run_row)
            .collect::<Result<Vec<RunRow>, StoreError>>()?;
        Ok(Due { runs, next: next.map(crate::timestamp) })
    }

    async fn executions(&self, of: &Executed, since: Timestamp) -> Result<u64, StoreError> {
        let since = since.as_millisecond();
        let query = match of {
            Executed::Runs { runbook } => sqlx::query(
                "SELECT count(*) FROM run r WHERE r.runbook = ? AND r.created_at > ? AND r.state <> 'undone' \
                     AND (r.finished_at IS NULL \
                     OR EXISTS (SELECT 1 FROM journal j WHERE j.run_id = r.run_id AND j.kind = 'intent'))",
            )
            .bind(runbook.clone())
            .bind(since),
            // Items are `step[key]`; the character after `[` ends their range.
            Executed::Step { runbook, step } => sqlx::query(
                "SELECT count(*) FROM journal j JOIN run r ON r.run_id = j.run_id \
                 WHERE j.kind = 'intent' AND (j.node = ?1 OR (j.node > ?1 || '[' AND j.node < ?1 || '\\')) \
                 AND j.at > ?2 AND r.runbook = ?3",
            )
            .bind(step.clone())
            .bind(since)
            .bind(runbook.clone()),
        };
        let row = query.fetch_one(&self.readers).await.map_err(|error| self.unreadable(error))?;
        let count: i64 = row.try_get(0).map_err(|error| self.unreadable(error))?;
        Ok(count.unsigned_abs())
    }

    async fn put_bundle(
        &self,
        digest: Digest,
        root: &str,
        sources: &BTreeMap<Text, Text>,
    ) -> Result<(), StoreError> {
        let unwritable = |error: String| StoreError::Unavailable {
            message: format!("the runbook texts cannot be packed: {error}"),
        };
        let json = serde_json::to_vec(sources).map_err(|error| unwritable(error.to_string()))?;
        let sources = body::pack(&json).map_err(|error| unwritable(error.to_string()))?;
        self.work(Work::Bundle { digest, root: root.to_string(), sources }).await.map(|_| ())
    }

    async fn bundle(&self, digest: Digest) -> Result<Option<(Text, BTreeMap<Text, Text>)>, StoreError> {
        let row = sqlx::query("SELECT root, sources FROM bundle WHERE digest = ?")
            .bind(digest.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        let Some(row) = row else { return Ok(None) };
        let corrupt =
            |message: String| StoreError::Corrupt { place: format!("bundle {}", digest.short()), message };
        let root: &str = row.try_get(0).map_err(|error| corrupt(error.to_string()))?;
        let packed: &[u8] = row.try_get(1).map_err(|error| corrupt(error.to_string()))?;
        let json = body::unpack(packed).map_err(|error| corrupt(error.to_string()))?;
        let sources = serde_json::from_slice(&json).map_err(|error| corrupt(error.to_string()))?;
        Ok(Some((root.into(), sources)))
    }

    async fn audit(&self, run: RunId) -> Result<Audit, StoreError> {
        // One transaction, so that the chain's end and the journal are of the same moment.
        let mut snapshot = self.readers.begin().await.map_err(|error| self.unreadable(error))?;
        let head: Vec<u8> = sqlx::query("SELECT head FROM run WHERE run_id = ?")
            .bind(run.to_string())
            .fetch_optional(&mut *snapshot)
            .await
            .and_then(|row| row.map(|row| row.try_get(0)).transpose())
            .map_err(|error| self.unreadable(error))?
            .ok_or(StoreError::NoRun { run })?;
        let rows = sqlx::query(reader::ENTRIES_AFTER)
            .bind(run.to_string())
            .bind(i64::MIN)
            .fetch_all(&mut *snapshot)
            .await
            .map_err(|error| self.unreadable(error))?;
        let mut auditor = reader::Auditor::default();
        for row in &rows {
            auditor.row(run, row);
        }
        auditor.end(run, &head);
        Ok(Audit { entries: auditor.entries, violations: auditor.violations })
    }

    async fn audit_storage(&self) -> Result<Vec<Violation>, StoreError> {
        let mut violations = Vec::new();
        let mut violation = |invariant, message| {
            violations.push(Violation { run: None, seq: None, invariant, message });
        };
        let pages = sqlx::query("PRAGMA integrity_check")
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        for row in pages {
            let message: String = row.try_get(0).map_err(|error| self.unreadable(error))?;
            if message != "ok" {
                violation("pages", format!("`{}`: {message}", self.file().display()));
            }
        }
        let marks = sqlx::query("SELECT run_id FROM retention")
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
        for row in marks {
            let run: String = row.try_get(0).map_err(|error| self.unreadable(error))?;
            violation("retention", format!("run {run} is marked to be taken away, and not by farrier"));
        }
        violations.extend(self.audit_ledger().await?);
        violations.extend(self.audit_incidents().await?);
        let mut violation = |invariant, message| {
            violations.push(Violation { run: None, seq: None, invariant, message });
        };
        // One at a time: a blob can be large, their number too.
        let mut last = String::new();
        loop {
            let row = sqlx::query(
                "SELECT digest, raw_len, zstd FROM blob WHERE digest > ? ORDER BY digest LIMIT 1",
            )
            .bind(last.clone())
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| self.unreadable(error))?;
            let Some(row) = row else { break };
            last = row.try_get(0).map_err(|error| self.unreadable(error))?;
            let raw_len: i64 = row.try_get(1).map_err(|error| self.unreadable(error))?;
            let packed: &[u8] = row.try_get(2).map_err(|error| self.unreadable(error))?;
            match body::unpack(packed) {
                Ok(raw) if body::blob_digest(&raw) == last && raw.len() as i64 == raw_len => {}
                Ok(_) => violation("blob", format!("blob {last} does not have the digest it is named by")),
                Err(error) => violation("blob", format!("blob {last} cannot be decompressed: {error}")),
            }
        }
        Ok(violations)
    }
}

/// What SQLite's errors mean here.
#[derive(Debug, Clone)]
pub(crate) struct Errors {
    pub(crate) file: Arc<Path>,
}

impl Errors {
    /// Whether after this error nobody knows what the disk holds.
    pub(crate) fn is_fatal(error: &sqlx::Error) -> bool {
        match error {
            // READONLY, IOERR, CORRUPT, CANTOPEN, NOTADB: the low byte of the extended code.
            sqlx::Error::Database(_) => {
                matches!(primary_code(error), Some(8 | 10 | 11 | 14 | 26)) && !Errors::is_full(error)
            }
            sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => true,
            _ => false,
        }
    }

    /// Whether there was no room for it. What was to be written is not there, and everything else is as it was.
    pub(crate) fn is_full(error: &sqlx::Error) -> bool {
        // FULL, and IOERR_SHMSIZE: no room for the index of the log.
        matches!(code(error), Some(13 | 4874))
    }

    pub(crate) fn full(&self) -> StoreError {
        let message = "the disk is full; nothing new begins until there is room again".into();
        StoreError::Full { file: self.file.to_path_buf(), message }
    }

    pub(crate) fn fatal(&self, error: &impl ToString) -> StoreError {
        StoreError::Fatal { file: self.file.to_path_buf(), message: error.to_string() }
    }

    /// An error of reading or writing.
    pub(crate) fn map(&self, error: sqlx::Error) -> StoreError {
        match error {
            error if Errors::is_full(&error) => self.full(),
            error if Errors::is_fatal(&error) => self.fatal(&error),
            error @ (sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }) => self.damaged(error),
            error => StoreError::Unavailable { message: format!("`{}`: {error}", self.file.display()) },
        }
    }

    /// An error of opening: what cannot be read is damaged.
    fn damaged(&self, error: sqlx::Error) -> StoreError {
        match primary_code(&error) {
            Some(11 | 26) | None => StoreError::Corrupt {
                place: format!("`{}`", self.file.display()),
                message: error.to_string(),
            },
            _ => self.map(error),
        }
    }

    fn check_version(&self, found: i64) -> Result<(), StoreError> {
        if found > schema::VERSION {
            return Err(StoreError::NewerSchema {
                file: self.file.to_path_buf(),
                found,
                known: schema::VERSION,
            });
        }
        Ok(())
    }
}

fn code(error: &sqlx::Error) -> Option<i64> {
    error.as_database_error()?.code()?.parse().ok()
}

fn primary_code(error: &sqlx::Error) -> Option<i64> {
    Some(code(error)? & 0xff)
}

fn connect_options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(1_000)
        .disable_statement_logging()
}

/// Connections are opened when first used, and never change anything.
fn readers(file: &Path) -> SqlitePool {
    let options: SqliteConnectOptions = connect_options(file).read_only(true);
    SqlitePoolOptions::new().max_connections(2).connect_lazy_with(options)
}

/// Asserts that the settings that durability rests on have been taken.
async fn read_back(connection: &mut SqliteConnection, errors: &Errors) -> Result<(), StoreError> {
    let settings =
        [("PRAGMA journal_mode", "wal"), ("PRAGMA synchronous", "2"), ("PRAGMA foreign_keys", "1")];
    for (pragma, expected) in settings {
        let row =
            sqlx::query(pragma).fetch_one(&mut *connection).await.map_err(|error| errors.damaged(error))?;
        let found = row
            .try_get::<String, _>(0)
            .or_else(|_| row.try_get::<i64, _>(0).map(|number| number.to_string()))
            .map_err(|error| errors.damaged(error))?;
        if found != expected {
            let dir = errors.file.parent().map(PathBuf::from).unwrap_or_default();
            let message = format!(
                "SQLite does not take `{pragma}` = {expected} there (it says {found}); use a local disk"
            );
            return Err(StoreError::Directory { dir, message });
        }
    }
    Ok(())
}

async fn generation(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query("SELECT generation FROM cluster").fetch_one(connection).await?.try_get(0)
}

async fn stopped_cleanly(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT stopped_at FROM node ORDER BY generation DESC LIMIT 1")
        .fetch_optional(connection)
        .await?;
    match row {
        Some(row) => Ok(row.try_get::<Option<i64>, _>(0)?.is_some()),
        None => Ok(true),
    }
}

async fn quick_check(connection: &mut SqliteConnection, errors: &Errors) -> Result<(), StoreError> {
    tracing::info!(file = %errors.file.display(), "the last stop was not clean; checking the store");
    let rows = sqlx::query("PRAGMA quick_check(5)")
        .fetch_all(connection)
        .await
        .map_err(|error| errors.damaged(error))?;
    let found: Vec<String> = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()
        .map_err(|error| errors.damaged(error))?;
    if found == ["ok"] {
        return Ok(());
    }
    Err(StoreError::Corrupt { place: format!("`{}`", errors.file.display()), message: found.join("; ") })
}

/// After how many pages of 4 KiB the write-ahead log is carried over into the database. A page that many transactions change is
/// carried over once, so a long log saves writing; after a kill it is read once.
const LOG_PAGES: &str = "4000";
/// How much of the database the writer keeps in memory, while it works. What is keyed by chance, such as ids, lies all over it.
const CACHE_KIB: &str = "-16000";

/// Opens the database for its owner: checked if the last stop was unclean, brought up to date, in a new generation.
async fn begin(file: &Path, errors: &Errors, clock: &Clock) -> Result<(SqliteConnection, i64), StoreError> {
    let mut connection = connect_options(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", LOG_PAGES)
        .pragma("cache_size", CACHE_KIB)
        .connect()
        .await
        .map_err(|error| errors.damaged(error))?;
    read_back(&mut connection, errors).await?;
    let found = schema::version(&mut connection).await.map_err(|error| errors.damaged(error))?;
    errors.check_version(found)?;
    if found > 0 && !stopped_cleanly(&mut connection).await.map_err(|error| errors.damaged(error))? {
        quick_check(&mut connection, errors).await?;
    }
    let now = clock.now_ms();
    schema::migrate(&mut connection, found, now).await.map_err(|error| errors.damaged(error))?;
    let generation = begin_generation(&mut connection, now).await.map_err(|error| errors.damaged(error))?;
    Ok((connection, generation))
}

/// Records this start. Every lease of earlier generations is expired by it.
async fn begin_generation(connection: &mut SqliteConnection, now: i64) -> Result<i64, sqlx::Error> {
    use sqlx::Connection as _;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(
        "INSERT INTO cluster (one, id, generation) VALUES (1, ?, 1) \
         ON CONFLICT (one) DO UPDATE SET generation = cluster.generation + 1",
    )
    .bind(Uuid::now_v7().to_string())
    .execute(&mut *transaction)
    .await?;
    let generation = generation(&mut transaction).await?;
    sqlx::query("INSERT INTO node (node_id, generation, pid, version, started_at) VALUES (?, ?, ?, ?, ?)")
        .bind(Uuid::now_v7().to_string())
        .bind(generation)
        .bind(i64::from(std::process::id()))
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("DELETE FROM node WHERE generation <= ?")
        .bind(generation - STARTS_KEPT)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(generation)
}
