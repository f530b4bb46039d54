//! The one writer: a task with the only connection that writes.
//!
//! Callers queue their work and wait. The writer takes all that is queued, does it in one transaction and answers after
//! the commit, so the more callers there are, the fewer commits each of them costs. Within a group, appends are decided
//! against heads in memory and written with a few multi-row statements.
//!
//! **When a group fails**, because one batch breaks a unique index or a run changed behind the writer's back, everything is
//! rolled back and each piece of work is done again in a transaction of its own: only the culprit is refused. Work that
//! arrived before is looked up by its entry id first.
//!
//! **When the disk is full**, the ballast is freed and what must not be lost is written with it; what can wait is refused
//! until there is room again (see `ballast.rs`).
//!
//! **When the disk fails**, or the database is not the file that its name means any more, nobody knows what it holds: everyone is refused from then on.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use farrier_model::{Digest, Entry, Event, Request, RunId, RunState};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Connection as _, Row as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::acts::{self, Act};
use super::ballast::Ballast;
use super::directory::{Anchors, DirectoryLock};
use super::fires::{LedgerDone, LedgerWork};
use super::retention::Pruned;
use super::{Errors, asides, outbox, reader, retention};
use crate::body::{self, Place, Row};
use crate::record::{Verified, VerifiedRow};
use crate::rules::{self, Aside, Head, Moment};
use crate::{Arriving, Batch, Claim, Clock, Delivery, NewRun, Notice, StoreError, Taken, Timing};

/// How much work may wait. Enough for the callers of one commit to queue while the one before it runs; beyond that they
/// wait themselves.
pub(crate) const QUEUE: usize = 1024;
/// How many rows a transaction may have before the work that is still queued waits for the next.
const GROUP_ROWS: usize = 20_000;
/// Sizes of the multi-row statements: few, so that each is prepared once.
pub(super) const CHUNKS: [usize; 3] = [64, 8, 1];
/// How often is looked for room while the disk is full.
const ROOM: Duration = Duration::from_secs(1);
/// After so long without work the write-ahead log is emptied into the database.
const IDLE: Duration = Duration::from_secs(5);

/// What the writer is asked for.
pub(crate) enum Work {
    Create {
        new: Box<NewRun>,
        row: Row,
    },
    Claim {
        run: RunId,
        owner: String,
        row: Row,
    },
    Append {
        claim: Claim,
        batch: Batch,
        rows: Vec<Row>,
    },
    Heartbeat {
        claims: Vec<Claim>,
    },
    Release {
        claim: Claim,
    },
    Bundle {
        digest: Digest,
        root: String,
        sources: Vec<u8>,
    },
    Request {
        run: RunId,
        request: Box<Request>,
        body: String,
    },
    /// Who did what.
    Act {
        act: Box<Act>,
    },
    Notice {
        notice: Box<Notice>,
    },
    Delivered {
        notice: Uuid,
        delivery: Delivery,
    },
    Import {
        run: Box<Verified>,
    },
    /// What is done to schedules.
    Ledger(Box<LedgerWork>),
    /// Alerts that come in.
    Take(Vec<Arriving>),
    /// What is done to alerts besides.
    Intake(super::intake::Errand),
    /// Takes a run away; none for what nothing refers to.
    Prune {
        run: Option<RunId>,
    },
}

impl Work {
    /// Whether it may be refused while the disk is full. What says how an effect ended, or who owns a run, may not.
    fn can_wait(&self) -> bool {
        match self {
            Work::Append { batch, .. } => batch.events.iter().any(Event::needs_lease),
            Work::Heartbeat { .. } | Work::Release { .. } | Work::Notice { .. } | Work::Delivered { .. } => {
                false
            }
            Work::Create { .. }
            | Work::Claim { .. }
            | Work::Bundle { .. }
            | Work::Request { .. }
            | Work::Act { .. }
            | Work::Import { .. }
            | Work::Ledger(_)
            | Work::Take(_)
            | Work::Intake(_)
            | Work::Prune { .. } => true,
        }
    }
}

/// What it answers.
pub(crate) enum Done {
    Created(bool),
    Claimed(Claim),
    /// The events got sequence numbers from this one on.
    Appended {
        first_seq: i64,
        at: i64,
    },
    /// The batch had been appended before.
    Known(Vec<Entry>),
    Fenced(Vec<RunId>),
    Pruned(Pruned),
    Ledger(LedgerDone),
    Taken(Taken),
    Intake(super::intake::Done),
    Nothing,
}

pub(crate) type Answer = Result<Done, StoreError>;

pub(crate) enum Job {
    Work(Work, oneshot::Sender<(Work, Answer)>),
    /// Stop cleanly, and say when it is done.
    Close(oneshot::Sender<()>),
}

/// What others may know of the writer.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) commits: AtomicU64,
    pub(crate) rows: AtomicU64,
    /// Whether the disk is full.
    pub(crate) full: AtomicBool,
    /// Set once, by the first failure that ends all writing.
    pub(crate) fatal: OnceLock<StoreError>,
    /// Is told how long each transaction took, from its beginning to its being durable.
    pub(crate) committed: OnceLock<OnCommit>,
}

/// Told of each commit.
pub(crate) struct OnCommit(pub(crate) Box<dyn Fn(Duration) + Send + Sync>);

impl std::fmt::Debug for OnCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnCommit")
    }
}

/// The files of a data directory besides what SQLite does with them.
pub(crate) struct Files {
    pub(crate) _lock: DirectoryLock,
    pub(crate) anchors: Anchors,
    pub(crate) ballast: Ballast,
}

pub(crate) struct Writer {
    pub(crate) connection: SqliteConnection,
    pub(crate) files: Files,
    pub(crate) clock: Clock,
    pub(crate) timing: Timing,
    pub(crate) generation: i64,
    pub(crate) status: Arc<Status>,
    pub(crate) errors: Errors,
    heads: HashMap<RunId, Cached>,
    statements: Statements,
}

/// A run that an owner of this generation works on. True to the database except inside a transaction that was not committed
/// yet; forgotten when one is rolled back.
#[derive(Clone)]
struct Cached {
    head: Head,
    link: [u8; 32],
}

/// Why a transaction cannot be committed.
pub(super) enum Trouble {
    Sql(sqlx::Error),
    /// A run's row is not as it is in memory.
    Stale,
    /// What was committed is not where anyone will look for it.
    Adrift(String),
}

impl Trouble {
    fn is_full(&self) -> bool {
        matches!(self, Trouble::Sql(error) if Errors::is_full(error))
    }
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Trouble {
        Trouble::Sql(error)
    }
}

impl Writer {
    pub(crate) fn new(
        connection: SqliteConnection,
        files: Files,
        (clock, timing): (Clock, Timing),
        generation: i64,
        status: Arc<Status>,
        errors: Errors,
    ) -> Writer {
        let (heads, statements) = (HashMap::new(), Statements::new());
        Writer { connection, files, clock, timing, generation, status, errors, heads, statements }
    }

    /// Works until it is told to close or nobody can ask any more.
    pub(crate) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut log_is_empty = true;
        let mut told = None;
        while told.is_none() {
            let full = self.files.ballast.is_full();
            let first = if log_is_empty && !full {
                jobs.recv().await
            } else {
                match tokio::time::timeout(if full { ROOM } else { IDLE }, jobs.recv()).await {
                    Ok(first) => first,
                    Err(_) if full => {
                        self.look_for_room();
                        continue;
                    }
                    Err(_) => {
                        self.empty_log().await;
                        log_is_empty = true;
                        continue;
                    }
                }
            };
            let Some(first) = first else { break };
            let mut group = Vec::new();
            let mut rows = 0;
            let mut next = Some(first);
            while let Some(job) = next.take() {
                match job {
                    Job::Close(reply) => told = Some(reply),
                    Job::Work(work, reply) => {
                        rows += match &work {
                            Work::Append { rows, .. } => rows.len(),
                            Work::Take(arriving) => arriving.len(),
                            _ => 0,
                        };
                        group.push((work, reply));
                        if rows < GROUP_ROWS && group.len() < QUEUE {
                            next = jobs.try_recv().ok();
                        }
                    }
                }
            }
            self.serve(group).await;
            log_is_empty = false;
        }
        jobs.close();
        self.stop().await;
        if let Some(reply) = told {
            // The lock is gone by now; who asked may open the directory again.
            let _ = reply.send(());
        }
    }

    /// Does a group of work and answers it.
    async fn serve(&mut self, group: Vec<(Work, oneshot::Sender<(Work, Answer)>)>) {
        let (works, replies): (Vec<Work>, Vec<_>) = group.into_iter().unzip();
        let answers = self.answers(&works).await;
        for ((work, reply), answer) in works.into_iter().zip(replies).zip(answers) {
            // A caller that went away does not undo what it asked for.
            let _ = reply.send((work, answer));
        }
    }

    async fn answers(&mut self, works: &[Work]) -> Vec<Answer> {
        if let Some(fatal) = self.status.fatal.get() {
            return works.iter().map(|_| Err(fatal.clone())).collect();
        }
        self.look_for_room();
        if !self.files.ballast.is_full() {
            match self.transaction(works, false).await {
                Ok(answers) => return answers,
                Err(trouble) if trouble.is_full() => {
                    self.run_out_of_room();
                }
                Err(_) => {}
            }
        }
        let mut answers = Vec::with_capacity(works.len());
        for work in works {
            answers.push(self.answer(work).await);
        }
        answers
    }

    /// Does one piece of work in a transaction of its own.
    async fn answer(&mut self, work: &Work) -> Answer {
        loop {
            if let Some(fatal) = self.status.fatal.get() {
                return Err(fatal.clone());
            }
            if self.files.ballast.is_full() && work.can_wait() {
                return Err(self.errors.full());
            }
            return match self.transaction(std::slice::from_ref(work), true).await {
                Ok(mut answers) => answers.pop().unwrap_or(Err(StoreError::Closed)),
                Err(trouble) if trouble.is_full() && self.run_out_of_room() => continue,
                Err(trouble) => Err(self.explain(work, trouble)),
            };
        }
    }

    /// Gives the ballast up; whether that gave room.
    fn run_out_of_room(&mut self) -> bool {
        let freed = self.files.ballast.give_up();
        self.status.full.store(true, Ordering::Relaxed);
        freed
    }

    fn look_for_room(&mut self) {
        self.files.ballast.look();
        self.status.full.store(self.files.ballast.is_full(), Ordering::Relaxed);
    }

    /// What one piece of work that failed alone is told.
    fn explain(&self, work: &Work, trouble: Trouble) -> StoreError {
        let error = match trouble {
            Trouble::Stale => {
                return StoreError::Unavailable {
                    message: format!(
                        "`{}` is being changed by someone else; only farrier may write it",
                        self.errors.file.display()
                    ),
                };
            }
            Trouble::Adrift(message) => return self.errors.fatal(&message),
            Trouble::Sql(error) => error,
        };
        if let (Work::Append { claim, rows, .. }, sqlx::Error::Database(database)) = (work, &error)
            && database.is_unique_violation()
            && database.message().contains("journal.node")
        {
            // SQLite names the columns of the index, which tells the two indexes apart.
            let intent = database.message().contains("journal.attempt");
            let kind = rows.iter().map(|row| row.kind).find(|kind| intent && kind.ends_with("intent"));
            return rules::refusal(claim.run, kind.unwrap_or("succeeded"));
        }
        self.errors.map(error)
    }

    /// Does `works` in one transaction: all answers after the commit, or nothing happened.
    ///
    /// `careful`: look a batch up by its entry id before writing it.
    async fn transaction(&mut self, works: &[Work], careful: bool) -> Result<Vec<Answer>, Trouble> {
        let result = self.attempt(works, careful).await;
        if let Err(trouble) = &result {
            self.heads.clear();
            let rolled_back = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
            let fatal = match trouble {
                Trouble::Sql(error) if Errors::is_fatal(error) => Some(self.errors.fatal(error)),
                Trouble::Adrift(message) => Some(self.errors.fatal(message)),
                Trouble::Sql(_) | Trouble::Stale => None,
            };
            if let Some(fatal) = fatal {
                self.fail(fatal);
            } else if let Err(error) = rolled_back {
                // An error that ended the transaction by itself leaves nothing to roll back.
                tracing::debug!(%error, "rollback after an error");
            }
        }
        result
    }

    fn fail(&self, fatal: StoreError) {
        tracing::error!(%fatal, "the store failed and accepts no more writes");
        // Only the first failure is told.
        let _ = self.status.fatal.set(fatal);
    }

    async fn attempt(&mut self, works: &[Work], careful: bool) -> Result<Vec<Answer>, Trouble> {
        let moment = Moment { now: self.clock.now_ms(), generation: self.generation, timing: self.timing };
        let begun = std::time::Instant::now();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        let mut staged = Staged { at: moment.now, ..Staged::default() };
        let mut answers = Vec::with_capacity(works.len());
        let mut requests: Vec<(usize, &[Arriving])> = Vec::new();
        for (at, work) in works.iter().enumerate() {
            if !matches!(work, Work::Append { .. } | Work::Take(_)) {
                self.flush(&mut staged).await?;
            }
            answers.push(match work {
                Work::Append { claim, batch, rows } => {
                    self.append(claim, batch, rows, &mut staged, moment, careful).await?
                }
                Work::Create { new, row } => self.create(new, row, moment).await?,
                Work::Request { run, request, body } => self.request(*run, request, body, moment).await?,
                Work::Act { act } => {
                    acts::write(&mut self.connection, act).await?;
                    Ok(Done::Nothing)
                }
                Work::Notice { notice } => {
                    outbox::put(&mut self.connection, notice, moment.now).await?;
                    Ok(Done::Nothing)
                }
                Work::Delivered { notice, delivery } => {
                    outbox::delivered(&mut self.connection, *notice, delivery, moment.now).await?;
                    Ok(Done::Nothing)
                }
                Work::Claim { run, owner, row } => self.claim(*run, owner, row, moment).await?,
                Work::Import { run } => self.import(run, moment).await?,
                Work::Ledger(work) => {
                    let (done, written) = self.ledger(work, moment).await?;
                    staged.written += written;
                    Ok(Done::Ledger(done))
                }
                Work::Prune { run: Some(run) } => {
                    Ok(Done::Pruned(retention::take_away(&mut self.connection, *run).await?))
                }
                Work::Prune { run: None } => {
                    Ok(Done::Pruned(retention::sweep(&mut self.connection, moment.now).await?))
                }
                Work::Take(arriving) => {
                    requests.push((at, arriving));
                    // Is answered below.
                    Ok(Done::Nothing)
                }
                Work::Intake(errand) => self.intake(errand, moment).await?,
                Work::Heartbeat { claims } => Ok(Done::Fenced(self.heartbeat(claims, moment).await?)),
                Work::Release { claim } => self.release(claim).await?,
                Work::Bundle { digest, root, sources } => {
                    self.bundle(digest, root, sources, moment).await?;
                    Ok(Done::Nothing)
                }
            });
        }
        let mut rows = staged.written + staged.rows.len() as u64;
        self.flush(&mut staged).await?;
        // All together, and last, so that they know of runs that have just ended.
        if !requests.is_empty() {
            let alerts: Vec<&[Arriving]> = requests.iter().map(|(_, arriving)| *arriving).collect();
            let (taken, created) = self.take(&alerts, moment).await?;
            rows += created;
            for ((at, _), taken) in requests.into_iter().zip(taken) {
                answers[at] = Ok(Done::Taken(taken));
            }
        }
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        // Nobody is told of a commit into a file that nobody will open again.
        self.files.anchors.check().map_err(Trouble::Adrift)?;
        self.status.commits.fetch_add(1, Ordering::Relaxed);
        self.status.rows.fetch_add(rows, Ordering::Relaxed);
        if let Some(OnCommit(tell)) = self.status.committed.get() {
            tell(begun.elapsed());
        }
        self.heads.retain(|_, cached| cached.head.owner.is_some());
        Ok(answers)
    }

    /// Who stands in the way of a new run: nothing for its own id, which may be created again.
    pub(super) async fn obstacle(&mut self, new: &NewRun) -> Result<Option<StoreError>, Trouble> {
        let Some(key) = &new.live_key else { return Ok(None) };
        let row =
            sqlx::query("SELECT run_id FROM run WHERE runbook = ? AND live_key = ? AND finished_at IS NULL")
                .bind(new.runbook.clone())
                .bind(key.clone())
                .fetch_optional(&mut self.connection)
                .await?;
        let Some(row) = row else { return Ok(None) };
        let run = row.try_get::<String, _>(0)?.parse().unwrap_or(new.id);
        Ok((run != new.id).then(|| StoreError::KeyTaken { run, key: key.to_string() }))
    }

    async fn request(
        &mut self,
        run: RunId,
        request: &Request,
        body: &str,
        moment: Moment,
    ) -> Result<Answer, Trouble> {
        let Some(stored) = self.load(run).await? else { return Ok(Err(StoreError::NoRun { run })) };
        if stored.head.state.is_final() {
            return Ok(Err(StoreError::Final { run, state: stored.head.state }));
        }
        asides::request(&mut self.connection, run, request, body, moment.now).await?;
        Ok(Ok(Done::Nothing))
    }

    pub(super) async fn create(
        &mut self,
        new: &NewRun,
        row: &Row,
        moment: Moment,
    ) -> Result<Answer, Trouble> {
        let run = new.id.to_string();
        if let Some(obstacle) = self.obstacle(new).await? {
            return Ok(Err(obstacle));
        }
        let entry_id = Uuid::now_v7();
        let place =
            Place { run: &run, seq: 1, epoch: 0, at: moment.now, entry_id: entry_id.as_bytes(), part: 0 };
        let link = body::link(&body::NO_LINK, place, row.said());
        let head = Head::created(moment.now);
        let inserted = sqlx::query(
            "INSERT INTO run (run_id, runbook, bundle, environment, title, parent_id, state, generation, epoch, seq, head, \
             created_at, updated_at, live_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(run.clone())
        .bind(new.runbook.clone())
        .bind(new.bundle.to_string())
        .bind(new.environment.clone())
        .bind(new.title.clone())
        .bind(new.parent.map(|parent| parent.to_string()))
        .bind(head.state.name())
        .bind(head.generation)
        .bind(head.epoch)
        .bind(head.seq)
        .bind(link.to_vec())
        .bind(moment.now)
        .bind(moment.now)
        .bind(new.live_key.clone())
        .execute(&mut self.connection)
        .await?;
        if inserted.rows_affected() == 0 {
            return Ok(Ok(Done::Created(false)));
        }
        if let Some(plan) = rules::plan_of(new)
            && let Some(user) = asides::use_plan(&mut self.connection, plan, new.id, moment.now).await?
        {
            // Nothing of it stays: the row is the only thing that was written for it.
            sqlx::query("DELETE FROM run WHERE run_id = ?")
                .bind(run.clone())
                .execute(&mut self.connection)
                .await?;
            return Ok(Err(StoreError::PlanUsed { run: user.parse().unwrap_or(new.id) }));
        }
        self.insert(&[Line { place, row, link }]).await?;
        Ok(Ok(Done::Created(true)))
    }

    /// Stores a run from elsewhere as it is. Its locks are asked for anew; its saved plan counts as used.
    async fn import(&mut self, verified: &Verified, moment: Moment) -> Result<Answer, Trouble> {
        let Verified { record, state, head, rows, events } = verified;
        let (run, name) = (record.id, record.id.to_string());
        if let Some(stored) = self.load(run).await? {
            let same = stored.link == head.as_slice() && stored.head.seq == rows.len() as i64;
            let message = "it is not imported: another journal is stored under this id".into();
            return Ok(if same {
                Ok(Done::Created(false))
            } else {
                Err(StoreError::Invalid { run, message })
            });
        }
        if let (Some(key), false) = (&record.live_key, state.is_final()) {
            let taken = sqlx::query(
                "SELECT run_id FROM run WHERE runbook = ? AND live_key = ? AND finished_at IS NULL",
            )
            .bind(record.runbook.clone())
            .bind(key.clone())
            .fetch_optional(&mut self.connection)
            .await?;
            if let Some(row) = taken {
                let run = row.try_get::<String, _>(0)?.parse().unwrap_or(run);
                return Ok(Err(StoreError::KeyTaken { run, key: key.clone() }));
            }
        }
        if let Some(texts) = &record.texts {
            let sources = serde_json::to_vec(&texts.sources)
                .map_err(std::io::Error::other)
                .and_then(|json| body::pack(&json))
                .map_err(|error| sqlx::Error::Encode(error.into()))?;
            self.bundle(&record.bundle, &texts.root, &sources, moment).await?;
        }
        sqlx::query(
            "INSERT INTO run (run_id, runbook, bundle, environment, title, parent_id, state, reason, generation, epoch, seq,              head, created_at, updated_at, finished_at, not_before, live_key)              VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(name.clone())
        .bind(record.runbook.clone())
        .bind(record.bundle.to_string())
        .bind(record.environment.clone())
        .bind(record.title.clone())
        .bind(record.parent.map(|parent| parent.to_string()))
        .bind(state.name())
        .bind(record.reason.clone())
        .bind(record.epoch)
        .bind(rows.len() as i64)
        .bind(head.clone())
        .bind(record.created_at)
        .bind(record.updated_at)
        .bind(record.finished_at)
        .bind(record.not_before)
        .bind(record.live_key.clone())
        .execute(&mut self.connection)
        .await?;
        let lines: Vec<Line<'_>> = rows
            .iter()
            .map(|VerifiedRow { seq, epoch, at, entry_id, part, row, link }| {
                let (seq, epoch, at, part) = (*seq, *epoch, *at, *part);
                Line { place: Place { run: &name, seq, epoch, at, entry_id, part }, row, link: *link }
            })
            .collect();
        self.insert(&lines).await?;
        if let (Some(Event::Created { plan: Some(plan), .. }), None) = (events.first(), record.parent) {
            asides::use_plan(&mut self.connection, plan.digest, run, moment.now).await?;
        }
        if !state.is_final() {
            asides::perform(&mut self.connection, run, &rules::asides(events), &[], moment.now).await?;
        }
        Ok(Ok(Done::Created(true)))
    }

    /// Stores texts once. Asking again keeps them from being taken for left over, see `retention.rs`.
    async fn bundle(
        &mut self,
        digest: &Digest,
        root: &str,
        sources: &[u8],
        moment: Moment,
    ) -> Result<(), Trouble> {
        sqlx::query(
            "INSERT INTO bundle (digest, root, sources, at) VALUES (?, ?, ?, ?)              ON CONFLICT DO UPDATE SET at = excluded.at WHERE bundle.at < excluded.at - ?",
        )
        .bind(digest.to_string())
        .bind(root.to_owned())
        .bind(sources.to_vec())
        .bind(moment.now)
        .bind(retention::LEFT_OVER_MS / 4)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    async fn claim(&mut self, run: RunId, owner: &str, row: &Row, moment: Moment) -> Result<Answer, Trouble> {
        let Some(before) = self.load(run).await? else { return Ok(Err(StoreError::NoRun { run })) };
        let head = match before.head.claim(run, owner, moment) {
            Ok(head) => head,
            Err(refused) => return Ok(Err(refused)),
        };
        let name = run.to_string();
        let entry_id = Uuid::now_v7();
        let place = Place {
            run: &name,
            seq: head.seq,
            epoch: head.epoch,
            at: moment.now,
            entry_id: entry_id.as_bytes(),
            part: 0,
        };
        let link = body::link(&before.link, place, row.said());
        self.update(run, &before.head, &head, link).await?;
        self.insert(&[Line { place, row, link }]).await?;
        let claim = Claim { run, epoch: head.epoch, next_seq: head.seq + 1 };
        self.heads.insert(run, Cached { head, link });
        Ok(Ok(Done::Claimed(claim)))
    }

    async fn append<'w>(
        &mut self,
        claim: &Claim,
        batch: &'w Batch,
        rows: &'w [Row],
        staged: &mut Staged<'w>,
        moment: Moment,
        careful: bool,
    ) -> Result<Answer, Trouble> {
        let run = claim.run;
        if careful && let Some(known) = self.known(run, batch).await? {
            return Ok(known);
        }
        let before = match self.heads.get(&run) {
            Some(cached) => cached.clone(),
            None => match self.load(run).await? {
                Some(cached) => cached,
                None => return Ok(Err(StoreError::NoRun { run })),
            },
        };
        let head = match before.head.append(claim, batch, moment) {
            Ok(head) => head,
            Err(refused) => {
                // The answer to it may have been lost before the run moved on.
                self.flush(staged).await?;
                return Ok(self.known(run, batch).await?.unwrap_or(Err(refused)));
            }
        };
        let first_seq = before.head.seq + 1;
        let mut link = before.link;
        let text = match staged.runs.get(&run) {
            Some(change) => change.text.clone(),
            None => Arc::from(run.to_string()),
        };
        for (row, part) in rows.iter().zip(0..) {
            let seq = first_seq + part;
            let entry_id = batch.entry_id.as_bytes().as_slice();
            link = body::link(
                &link,
                Place { run: &text, seq, epoch: claim.epoch, at: moment.now, entry_id, part },
                row.said(),
            );
            let run = text.clone();
            staged.rows.push(StagedRow {
                run,
                seq,
                epoch: claim.epoch,
                at: moment.now,
                entry_id,
                part,
                row,
                link,
            });
        }
        let change = staged.runs.entry(run).or_insert_with(|| Change {
            text,
            before: before.head.clone(),
            after: head.clone(),
            link,
        });
        (change.after, change.link) = (head.clone(), link);
        let asides = rules::asides(&batch.events);
        if !(asides.is_empty() && batch.taken.is_empty() && batch.notices.is_empty()) {
            staged.asides.push((run, asides, batch));
        }
        self.heads.insert(run, Cached { head, link });
        Ok(Ok(Done::Appended { first_seq, at: moment.now }))
    }

    async fn heartbeat(&mut self, claims: &[Claim], moment: Moment) -> Result<Vec<RunId>, Trouble> {
        let mut fenced = Vec::new();
        for claim in claims {
            let before = match self.heads.get(&claim.run) {
                Some(cached) => Some(cached.clone()),
                None => self.load(claim.run).await?,
            };
            let renewed =
                before.and_then(|before| before.head.heartbeat(claim, moment).map(|head| (before, head)));
            match renewed {
                Some((before, head)) => {
                    self.update(claim.run, &before.head, &head, before.link).await?;
                    self.heads.insert(claim.run, Cached { head, link: before.link });
                }
                None => fenced.push(claim.run),
            }
        }
        Ok(fenced)
    }

    async fn release(&mut self, claim: &Claim) -> Result<Answer, Trouble> {
        let Some(before) = self.load(claim.run).await? else {
            return Ok(Err(StoreError::NoRun { run: claim.run }));
        };
        if let Some(head) = before.head.release(claim) {
            self.update(claim.run, &before.head, &head, before.link).await?;
            self.heads.remove(&claim.run);
        }
        Ok(Ok(Done::Nothing))
    }

    /// A run's head as the database has it.
    async fn load(&mut self, run: RunId) -> Result<Option<Cached>, Trouble> {
        let row = sqlx::query(
            "SELECT state, owner, generation, epoch, lease_until, seq, reason, updated_at, finished_at, head, not_before \
             FROM run WHERE run_id = ?",
        )
        .bind(run.to_string())
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(row.map(|row| cached(&row)).transpose()?)
    }

    /// The answer of the first time, when `batch` is in the journal already.
    async fn known(&mut self, run: RunId, batch: &Batch) -> Result<Option<Answer>, Trouble> {
        let rows = sqlx::query(reader::KNOWN_ENTRIES)
            .bind(run.to_string())
            .bind(batch.entry_id.as_bytes().to_vec())
            .fetch_all(&mut self.connection)
            .await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let answer = rows
            .iter()
            .map(|row| reader::entry(run, row))
            .collect::<Result<Vec<Entry>, StoreError>>()
            .and_then(|entries| rules::same_batch(run, &entries, batch).map(|()| Done::Known(entries)));
        Ok(Some(answer))
    }

    /// Moves a run's row from `before` to `after`; stale when the row is no longer as before.
    async fn update(
        &mut self,
        run: RunId,
        before: &Head,
        after: &Head,
        link: [u8; 32],
    ) -> Result<(), Trouble> {
        let updated = sqlx::query(
            "UPDATE run SET state = ?, reason = ?, owner = ?, generation = ?, epoch = ?, lease_until = ?, seq = ?, head = ?, \
             updated_at = ?, finished_at = ?, not_before = ? WHERE run_id = ? AND epoch = ? AND seq = ? AND owner IS NOT DISTINCT FROM ?",
        )
        .bind(after.state.name())
        .bind(after.reason.clone())
        .bind(after.owner.clone())
        .bind(after.generation)
        .bind(after.epoch)
        .bind(after.lease_until)
        .bind(after.seq)
        .bind(link.to_vec())
        .bind(after.updated_at)
        .bind(after.finished_at)
        .bind(after.not_before)
        .bind(run.to_string())
        .bind(before.epoch)
        .bind(before.seq)
        .bind(before.owner.clone())
        .execute(&mut self.connection)
        .await?;
        if updated.rows_affected() == 1 { Ok(()) } else { Err(Trouble::Stale) }
    }

    /// Writes what was staged: the runs' rows (which checks the fence again, in the database), then the journal's.
    async fn flush(&mut self, staged: &mut Staged<'_>) -> Result<(), Trouble> {
        let Staged { runs, rows, asides, at, written } = std::mem::take(staged);
        staged.at = at;
        let mut plain = Vec::new();
        for (run, change) in runs {
            let Change { before, after, link, .. } = &change;
            // Most appends move nothing but the row's counters, which no index holds.
            if before.state == after.state && before.owner == after.owner && before.reason == after.reason {
                plain.push(change);
            } else {
                self.update(run, before, after, *link).await?;
            }
        }
        let mut rest = plain.as_slice();
        for (size, sql) in &self.statements.advance {
            while rest.len() >= *size {
                let (chunk, more) = rest.split_at(*size);
                rest = more;
                let mut arguments = SqliteArguments::default();
                for Change { text, before, after, link } in chunk {
                    add(&mut arguments, text.clone())?;
                    add(&mut arguments, before.epoch)?;
                    add(&mut arguments, before.seq)?;
                    add(&mut arguments, after.seq)?;
                    add(&mut arguments, link.to_vec())?;
                    add(&mut arguments, after.updated_at)?;
                }
                let updated = sqlx::query_with(AssertSqlSafe(sql.clone()), arguments)
                    .execute(&mut self.connection)
                    .await?;
                if updated.rows_affected() != *size as u64 {
                    return Err(Trouble::Stale);
                }
            }
        }
        let lines: Vec<Line<'_>> = rows.iter().map(StagedRow::line).collect();
        self.insert(&lines).await?;
        staged.written = written + lines.len() as u64;
        for (run, asides, batch) in asides {
            asides::perform(&mut self.connection, run, &asides, &batch.taken, at).await?;
            for notice in &batch.notices {
                outbox::put(&mut self.connection, notice, at).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn insert(&mut self, lines: &[Line<'_>]) -> Result<(), Trouble> {
        for blob in lines.iter().filter_map(|line| line.row.blob.as_ref()) {
            sqlx::query("INSERT INTO blob (digest, raw_len, zstd) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(blob.digest.clone())
                .bind(blob.raw_len)
                .bind(blob.zstd.clone())
                .execute(&mut self.connection)
                .await?;
        }
        let mut rest = lines;
        for (size, sql) in &self.statements.insert {
            while rest.len() >= *size {
                let (chunk, more) = rest.split_at(*size);
                rest = more;
                let mut arguments = SqliteArguments::default();
                for Line { place, row, link } in chunk {
                    add(&mut arguments, place.run)?;
                    add(&mut arguments, place.seq)?;
                    add(&mut arguments, place.epoch)?;
                    add(&mut arguments, place.at)?;
                    add(&mut arguments, row.node.clone())?;
                    add(&mut arguments, row.attempt)?;
                    add(&mut arguments, row.kind)?;
                    add(&mut arguments, row.body.clone())?;
                    add(&mut arguments, row.blob.as_ref().map(|blob| blob.digest.clone()))?;
                    add(&mut arguments, place.entry_id)?;
                    add(&mut arguments, place.part)?;
                    add(&mut arguments, link.to_vec())?;
                }
                sqlx::query_with(AssertSqlSafe(sql.clone()), arguments).execute(&mut self.connection).await?;
            }
        }
        Ok(())
    }

    /// Empties the write-ahead log, and gives the memory of cached pages back.
    async fn empty_log(&mut self) {
        if self.status.fatal.get().is_some() {
            return;
        }
        for pragma in ["PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA shrink_memory"] {
            if let Err(error) = sqlx::query(pragma).execute(&mut self.connection).await {
                if Errors::is_fatal(&error) {
                    self.fail(self.errors.fatal(&error));
                    return;
                }
                tracing::warn!(%error, "the write-ahead log could not be emptied");
            }
        }
    }

    /// A clean stop: the next start need not check the file. After a fatal error there is none.
    async fn stop(mut self) {
        self.empty_log().await;
        if self.status.fatal.get().is_none() {
            let stopped = sqlx::query("UPDATE node SET stopped_at = ? WHERE generation = ?")
                .bind(self.clock.now_ms())
                .bind(self.generation)
                .execute(&mut self.connection)
                .await;
            if let Err(error) = stopped {
                tracing::warn!(%error, "the store could not record its clean stop");
            }
        }
        let Writer { connection, files, .. } = self;
        if let Err(error) = connection.close().await {
            tracing::warn!(%error, "closing the store failed");
        }
        drop(files);
    }
}

/// Reads the moving part of a run's row.
fn cached(row: &SqliteRow) -> Result<Cached, sqlx::Error> {
    let state: String = row.try_get(0)?;
    let link: Vec<u8> = row.try_get(9)?;
    let damaged = |message: String| sqlx::Error::Decode(message.into());
    let head = Head {
        state: RunState::from_name(&state).ok_or_else(|| damaged(format!("`{state}` is not a run state")))?,
        owner: row.try_get(1)?,
        generation: row.try_get(2)?,
        epoch: row.try_get(3)?,
        lease_until: row.try_get(4)?,
        seq: row.try_get(5)?,
        reason: row.try_get(6)?,
        updated_at: row.try_get(7)?,
        finished_at: row.try_get(8)?,
        not_before: row.try_get(10)?,
    };
    let link = link.try_into().map_err(|_| damaged("the head of the hash chain is not 32 bytes".into()))?;
    Ok(Cached { head, link })
}

pub(super) fn add<'t, T>(arguments: &mut SqliteArguments, value: T) -> Result<(), Trouble>
where
    T: sqlx::Encode<'t, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    arguments.add(value).map_err(|error| Trouble::Sql(sqlx::Error::Encode(error)))
}

/// Appends of this transaction that are decided and not written yet.
#[derive(Default)]
struct Staged<'w> {
    runs: HashMap<RunId, Change>,
    rows: Vec<StagedRow<'w>>,
    /// What the batches change besides, in their order.
    asides: Vec<(RunId, Vec<Aside>, &'w Batch)>,
    /// The moment of the transaction.
    at: i64,
    /// Rows of this transaction that are written already.
    written: u64,
}

/// What all batches of this transaction do to a run's row together.
struct Change {
    text: Arc<str>,
    before: Head,
    after: Head,
    link: [u8; 32],
}

struct StagedRow<'w> {
    run: Arc<str>,
    seq: i64,
    epoch: i64,
    at: i64,
    entry_id: &'w [u8],
    part: i64,
    row: &'w Row,
    link: [u8; 32],
}

impl StagedRow<'_> {
    fn line(&self) -> Line<'_> {
        let StagedRow { run, seq, epoch, at, entry_id, part, row, link } = self;
        let place = Place { run, seq: *seq, epoch: *epoch, at: *at, entry_id, part: *part };
        Line { place, row, link: *link }
    }
}

/// A journal row about to be inserted.
pub(super) struct Line<'a> {
    pub(super) place: Place<'a>,
    pub(super) row: &'a Row,
    pub(super) link: [u8; 32],
}

/// The multi-row statements by their number of rows, largest first.
struct Statements {
    insert: Vec<(usize, Arc<str>)>,
    advance: Vec<(usize, Arc<str>)>,
}

impl Statements {
    fn new() -> Statements {
        let insert = |rows: usize| {
            let mut sql = String::from(
                "INSERT INTO journal (run_id, seq, epoch, at, node, attempt, kind, body, blob, entry_id, part, hash) VALUES ",
            );
            tuples(&mut sql, rows, 12);
            sql
        };
        let advance = |rows: usize| {
            let mut sql = String::from("WITH change (run_id, epoch, seq_before, seq, head, at) AS (VALUES ");
            tuples(&mut sql, rows, 6);
            sql.push_str(
                ") UPDATE run SET seq = change.seq, head = change.head, updated_at = change.at FROM change \
                 WHERE run.run_id = change.run_id AND run.epoch = change.epoch AND run.seq = change.seq_before \
                 AND run.owner IS NOT NULL",
            );
            sql
        };
        Statements {
            insert: CHUNKS.map(|rows| (rows, Arc::from(insert(rows)))).to_vec(),
            advance: CHUNKS.map(|rows| (rows, Arc::from(advance(rows)))).to_vec(),
        }
    }
}

#[cfg(test)]
mod tests;

pub(super) fn tuples(sql: &mut String, rows: usize, columns: usize) {
    let tuple = format!("({})", vec!["?"; columns].join(", "));
    for row in 0..rows {
        let comma = if row == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(sql, "{comma}{tuple}");
    }
}
