//! [`MemoryStore`]: the semantics of a real store without a disk, for plans, runbook tests and simulators.
//!
//! It can fail on request: [`MemoryStore::inject`] picks the n-th write from now and what happens to it. A crash makes the
//! handle dead, as a process is; [`MemoryStore::restart`] gives the next process's handle to what had become durable.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_model::{Digest, Entry, Event, NodeEvent, NodeName, Request, RunId, RunState, Text};
use uuid::Uuid;

use crate::rules::{self, Aside, Head, Moment};
use crate::{
    Audit, Batch, Claim, Clock, Delivery, Due, Executed, NewRun, Notice, NoticeFilter, Outbox, Posted,
    RunFilter, RunRow, Store, StoreError, Ticket, Timing, Violation, timestamp,
};

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The process dies before the write is durable.
    CrashBefore,
    /// The process dies after the write is durable, before anyone hears of it.
    CrashAfter,
    /// The write becomes durable and the answer is lost: [`StoreError::Ambiguous`].
    AnswerLost,
    /// The write does not arrive, and nobody can tell: [`StoreError::Ambiguous`].
    RequestLost,
    /// The write does not happen, and says so: [`StoreError::Unavailable`].
    FailOnce,
    /// The disk is full from this write on, until it has refused so many writes that can wait: [`StoreError::Full`].
    Full(u32),
}

/// Runs in memory. Clones are handles of the same process to the same runs.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
    /// The process that this handle belongs to.
    generation: i64,
    clock: Clock,
    timing: Timing,
    turns: u32,
}

#[derive(Debug, Default)]
struct Shared {
    generation: i64,
    crashed: bool,
    runs: HashMap<RunId, Run>,
    bundles: HashMap<Digest, (Text, BTreeMap<Text, Text>)>,
    requests: Vec<(RunId, Request)>,
    tickets: Vec<Line>,
    /// The last number of each lock.
    numbers: HashMap<Text, i64>,
    plans: HashMap<Digest, RunId>,
    outbox: Vec<Posted>,
    writes: u64,
    /// How many writes a full disk still refuses.
    refusals: u32,
    faults: BTreeMap<u64, Fault>,
}

/// Whether something began to change here.
fn is_intent(entry: &Entry) -> bool {
    matches!(&entry.event, Event::Node { event: NodeEvent::Intent { .. }, .. })
}

/// A ticket, and whether its run knows that it holds the lock.
#[derive(Debug)]
struct Line {
    ticket: Ticket,
    told: bool,
}

#[derive(Debug)]
struct Run {
    new: NewRun,
    created_at: i64,
    head: Head,
    entries: Vec<Entry>,
    /// The number of the write that appended its last entry, and of that which claimed it last.
    written: u64,
    claimed: u64,
    once: HashSet<(&'static str, String, u32)>,
    /// Where each batch stands: index of its first entry, and their number.
    batches: HashMap<Uuid, (usize, usize)>,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new(Clock::system())
    }
}

impl MemoryStore {
    /// An empty store in its first generation.
    pub fn new(clock: Clock) -> MemoryStore {
        let shared = Shared { generation: 1, ..Shared::default() };
        MemoryStore {
            shared: Arc::new(Mutex::new(shared)),
            generation: 1,
            clock,
            timing: Timing::default(),
            turns: 0,
        }
    }

    /// The same handle with other lease times.
    pub fn timing(mut self, timing: Timing) -> MemoryStore {
        self.timing = timing;
        self
    }

    /// The same handle, on which other tasks get so many turns before an append becomes durable, as they do while a disk
    /// is at work: whoever acts on what is not durable yet is found out.
    pub fn slow(mut self, turns: u32) -> MemoryStore {
        self.turns = turns;
        self
    }

    /// Makes `fault` happen to the `nth` write from now; 1 is the next one.
    pub fn inject(&self, nth: u64, fault: Fault) {
        let mut shared = self.lock();
        let at = shared.writes + nth;
        shared.faults.insert(at, fault);
    }

    /// How many faults are still to come: a sweep over "the n-th write fails" is over when its fault did not happen.
    pub fn pending_faults(&self) -> usize {
        self.lock().faults.len()
    }

    /// How many writes there were: creations, claims, appends, heartbeats, releases and bundles.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// What the next process sees: everything durable, a new generation, all older handles dead.
    pub fn restart(&self) -> MemoryStore {
        let mut shared = self.lock();
        shared.generation += 1;
        shared.crashed = false;
        MemoryStore {
            shared: self.shared.clone(),
            generation: shared.generation,
            clock: self.clock.clone(),
            timing: self.timing,
            turns: self.turns,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic of another holder cannot leave a run half written: every write decides first and then stores.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<MutexGuard<'_, Shared>, StoreError> {
        let shared = self.lock();
        if shared.crashed || shared.generation != self.generation {
            return Err(StoreError::Closed);
        }
        Ok(shared)
    }

    fn moment(&self) -> Moment {
        Moment { now: self.clock.now_ms(), generation: self.generation, timing: self.timing }
    }

    /// One transaction: `act` decides and stores. `run` is named when an answer is lost; a full disk refuses what can wait.
    fn write<T>(
        &self,
        run: Option<RunId>,
        can_wait: bool,
        act: impl FnOnce(&mut Shared, Moment) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut shared = self.read()?;
        shared.writes += 1;
        let count = shared.writes;
        let fault = shared.faults.remove(&count);
        let lost = || match run {
            Some(run) => StoreError::Ambiguous { run },
            None => StoreError::Unavailable { message: "the answer was lost".into() },
        };
        match fault {
            Some(Fault::CrashBefore) => {
                shared.crashed = true;
                return Err(StoreError::Closed);
            }
            Some(Fault::RequestLost) => return Err(lost()),
            Some(Fault::FailOnce) => {
                return Err(StoreError::Unavailable { message: "a fault was injected".into() });
            }
            Some(Fault::Full(refusals)) => shared.refusals = refusals,
            Some(Fault::CrashAfter | Fault::AnswerLost) | None => {}
        }
        if can_wait && shared.refusals > 0 {
            shared.refusals -= 1;
            let message = "a fault was injected".into();
            return Err(StoreError::Full { file: "memory".into(), message });
        }
        let answer = act(&mut shared, self.moment());
        match fault {
            Some(Fault::CrashAfter) => {
                shared.crashed = true;
                Err(StoreError::Closed)
            }
            Some(Fault::AnswerLost) => Err(lost()),
            _ => answer,
        }
    }
}

impl Shared {
    fn run(&mut self, run: RunId) -> Result<&mut Run, StoreError> {
        self.runs.get_mut(&run).ok_or(StoreError::NoRun { run })
    }

    /// What a batch changes besides its run.
    fn aside(&mut self, run: RunId, aside: Aside, now: i64) {
        let of = |line: &Line, lock: &Text, node: &Option<NodeName>| {
            line.ticket.run == run && line.ticket.lock == *lock && line.ticket.node == *node
        };
        match aside {
            Aside::Ask { lock, node, capacity } => {
                if self.tickets.iter().any(|line| of(line, &lock, &node)) {
                    return;
                }
                let number = self.numbers.entry(lock.clone()).or_default();
                *number += 1;
                let ticket = Ticket {
                    lock: lock.clone(),
                    number: *number,
                    run,
                    node,
                    capacity,
                    asked_at: timestamp(now),
                    held_since: None,
                };
                self.tickets.push(Line { ticket, told: false });
                self.grant(&lock, now);
            }
            Aside::Told { lock, node } => {
                for line in self.tickets.iter_mut().filter(|line| of(line, &lock, &node)) {
                    line.told = true;
                }
            }
            Aside::Release { lock, node } => {
                self.tickets.retain(|line| !of(line, &lock, &node));
                self.grant(&lock, now);
            }
            Aside::Over => {
                let locks: Vec<Text> = self
                    .tickets
                    .iter()
                    .filter(|line| line.ticket.run == run)
                    .map(|line| line.ticket.lock.clone())
                    .collect();
                self.tickets.retain(|line| line.ticket.run != run);
                for lock in locks {
                    self.grant(&lock, now);
                }
                self.requests.retain(|(of, _)| *of != run);
                self.wake_parent(run, now);
            }
            Aside::Parked => self.wake_parent(run, now),
            Aside::Waits => {
                let claimed = self.runs.get(&run).map_or(0, |run| run.claimed);
                let child_came = self.runs.values().any(|child| {
                    child.new.parent == Some(run)
                        && (child.head.state.is_final() || child.head.state == RunState::Parked)
                        && child.written > claimed
                });
                let came = self.requests.iter().any(|(of, _)| *of == run)
                    || self
                        .tickets
                        .iter()
                        .any(|line| line.ticket.run == run && line.ticket.held_since.is_some() && !line.told);
                if came || child_came {
                    self.make_due(run, now);
                }
            }
        }
    }

    fn grant(&mut self, lock: &Text, now: i64) {
        let mut line: Vec<&mut Line> =
            self.tickets.iter_mut().filter(|line| line.ticket.lock == *lock).collect();
        line.sort_by_key(|line| line.ticket.number);
        let places: Vec<(bool, u32)> =
            line.iter().map(|line| (line.ticket.held_since.is_some(), line.ticket.capacity)).collect();
        let mut due = Vec::new();
        for at in rules::grants(&places) {
            line[at].ticket.held_since = Some(timestamp(now));
            due.push(line[at].ticket.run);
        }
        for run in due {
            self.make_due(run, now);
        }
    }

    fn notify(&mut self, notice: Notice, now: i64) {
        if self.outbox.iter().any(|posted| posted.notice.id == notice.id) {
            return;
        }
        let at = timestamp(now);
        self.outbox.push(Posted { notice, at, attempts: 0, not_before: at, sent_at: None, trouble: None });
    }

    fn make_due(&mut self, run: RunId, now: i64) {
        if let Some(run) = self.runs.get_mut(&run)
            && run.head.state == RunState::Waiting
            && run.head.not_before.is_none_or(|at| at > now)
        {
            run.head.not_before = Some(now);
        }
    }

    fn wake_parent(&mut self, run: RunId, now: i64) {
        if let Some(parent) = self.runs.get(&run).and_then(|run| run.new.parent) {
            self.make_due(parent, now);
        }
    }
}

impl Run {
    fn row(&self) -> RunRow {
        let Run { new, head, .. } = self;
        RunRow {
            id: new.id,
            runbook: new.runbook.clone(),
            bundle: new.bundle,
            environment: new.environment.clone(),
            title: new.title.clone(),
            state: head.state,
            owner: head.owner.clone(),
            epoch: head.epoch,
            lease_until: head.lease_until.map(timestamp),
            not_before: head.not_before.map(timestamp),
            created_at: timestamp(self.created_at),
            updated_at: timestamp(head.updated_at),
            finished_at: head.finished_at.map(timestamp),
            parent: new.parent,
            reason: head.reason.clone(),
            seq: head.seq,
        }
    }
}

#[async_trait]
impl Outbox for MemoryStore {
    async fn notify(&self, notice: Notice) -> Result<(), StoreError> {
        self.write(None, false, |shared, moment| {
            shared.notify(notice, moment.now);
            Ok(())
        })
    }

    async fn notices(&self, filter: NoticeFilter) -> Result<Vec<Posted>, StoreError> {
        let shared = self.read()?;
        let pending = filter.pending || filter.due.is_some();
        let fits = |posted: &&Posted| {
            !(pending && posted.sent_at.is_some())
                && filter.due.is_none_or(|due| posted.not_before <= due)
                && filter.run.is_none_or(|run| posted.notice.run == Some(run))
        };
        Ok(shared.outbox.iter().filter(fits).take(filter.limit.unwrap_or(usize::MAX)).cloned().collect())
    }

    async fn delivered(&self, notice: Uuid, delivery: Delivery) -> Result<(), StoreError> {
        self.write(None, false, |shared, moment| {
            let posted = shared
                .outbox
                .iter_mut()
                .find(|posted| posted.notice.id == notice && posted.sent_at.is_none());
            match (posted, delivery) {
                (Some(posted), Delivery::Sent) => {
                    posted.sent_at = Some(timestamp(moment.now));
                    posted.trouble = None;
                }
                (Some(posted), Delivery::Failed { trouble, again }) => {
                    posted.attempts += 1;
                    posted.trouble = Some(trouble);
                    posted.not_before = again;
                }
                (None, _) => {}
            }
            Ok(())
        })
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create_run(&self, new: NewRun) -> Result<bool, StoreError> {
        rules::check_new(&new)?;
        self.write(Some(new.id), true, |shared, moment| {
            if shared.runs.contains_key(&new.id) {
                return Ok(false);
            }
            if let Some(key) = &new.live_key
                && let Some(run) = shared.runs.values().find(|run| {
                    run.new.runbook == new.runbook
                        && run.new.live_key == new.live_key
                        && run.head.finished_at.is_none()
                })
            {
                return Err(StoreError::KeyTaken { run: run.new.id, key: key.to_string() });
            }
            if let Some(plan) = rules::plan_of(&new) {
                if let Some(run) = shared.plans.get(&plan) {
                    return Err(StoreError::PlanUsed { run: *run });
                }
                shared.plans.insert(plan, new.id);
            }
            let run = Run {
                created_at: moment.now,
                head: Head::created(moment.now),
                entries: rules::entries(vec![new.created.clone()], 1, 0, moment.now),
                written: shared.writes,
                claimed: 0,
                once: HashSet::new(),
                batches: HashMap::new(),
                new,
            };
            shared.runs.insert(run.new.id, run);
            Ok(true)
        })
    }

    async fn claim(&self, run: RunId, owner: &str) -> Result<Claim, StoreError> {
        self.write(Some(run), true, |shared, moment| {
            let write = shared.writes;
            let stored = shared.run(run)?;
            let head = stored.head.claim(run, owner, moment)?;
            (stored.written, stored.claimed) = (write, write);
            let claimed = vec![Event::Claimed { owner: owner.to_string() }];
            stored.entries.extend(rules::entries(claimed, head.seq, head.epoch, moment.now));
            stored.head = head;
            Ok(Claim { run, epoch: stored.head.epoch, next_seq: stored.head.seq + 1 })
        })
    }

    async fn append_batch(&self, claim: &Claim, batch: Batch) -> Result<Vec<Entry>, StoreError> {
        for _ in 0..self.turns {
            tokio::task::yield_now().await;
        }
        let run = claim.run;
        self.write(Some(run), batch.events.iter().any(Event::needs_lease), |shared, moment| {
            let write = shared.writes;
            let stored = shared.run(run)?;
            if let Some((first, count)) = stored.batches.get(&batch.entry_id) {
                let entries = &stored.entries[*first..first + count];
                rules::same_batch(run, entries, &batch)?;
                return Ok(entries.to_vec());
            }
            let head = stored.head.append(claim, &batch, moment)?;
            let asides = rules::asides(&batch.events);
            let mut once = HashSet::new();
            for key in batch.events.iter().filter_map(rules::once_only) {
                if stored.once.contains(&key) || once.contains(&key) {
                    return Err(rules::refusal(run, key.0));
                }
                once.insert(key);
            }
            stored.once.extend(once);
            if !batch.events.is_empty() {
                stored.batches.insert(batch.entry_id, (stored.entries.len(), batch.events.len()));
            }
            let entries = rules::entries(batch.events, stored.head.seq + 1, claim.epoch, moment.now);
            stored.entries.extend(entries.iter().cloned());
            stored.written = write;
            stored.head = head;
            shared.requests.retain(|(_, request)| !batch.taken.contains(&request.id));
            for aside in asides {
                shared.aside(run, aside, moment.now);
            }
            for notice in batch.notices {
                shared.notify(notice, moment.now);
            }
            Ok(entries)
        })
    }

    async fn heartbeat(&self, claims: &[Claim]) -> Result<Vec<RunId>, StoreError> {
        self.write(None, false, |shared, moment| {
            let mut fenced = Vec::new();
            for claim in claims {
                let stored = shared.runs.get_mut(&claim.run);
                match stored.and_then(|run| run.head.heartbeat(claim, moment).map(|head| (run, head))) {
                    Some((run, head)) => run.head = head,
                    None => fenced.push(claim.run),
                }
            }
            Ok(fenced)
        })
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        self.write(Some(claim.run), false, |shared, _| {
            let stored = shared.run(claim.run)?;
            if let Some(head) = stored.head.release(claim) {
                stored.head = head;
            }
            Ok(())
        })
    }

    async fn journal_after(&self, run: RunId, after: i64) -> Result<Vec<Entry>, StoreError> {
        let mut shared = self.read()?;
        let entries = &shared.run(run)?.entries;
        let first = usize::try_from(after).unwrap_or(0).min(entries.len());
        Ok(entries[first..].to_vec())
    }

    async fn run(&self, run: RunId) -> Result<Option<RunRow>, StoreError> {
        Ok(self.read()?.runs.get(&run).map(Run::row))
    }

    async fn runs(&self, filter: RunFilter) -> Result<Vec<RunRow>, StoreError> {
        let shared = self.read()?;
        let prefix = filter.id_prefix.unwrap_or_default().to_lowercase();
        let mut rows: Vec<RunRow> = shared
            .runs
            .values()
            .filter(|run| filter.states.is_empty() || filter.states.contains(&run.head.state))
            .filter(|run| filter.runbook.as_ref().is_none_or(|runbook| *runbook == run.new.runbook))
            .filter(|run| filter.parent.is_none_or(|parent| run.new.parent == Some(parent)))
            .filter(|run| prefix.is_empty() || run.new.id.to_string().starts_with(&prefix))
            .map(Run::row)
            .filter(|row| filter.ended_after.is_none_or(|after| row.finished_at.is_some_and(|at| at > after)))
            .filter(|row| {
                filter.before.is_none_or(|(at, id)| {
                    (row.created_at.as_millisecond(), row.id) < (at.as_millisecond(), id)
                })
            })
            .collect();
        rows.sort_unstable_by_key(|row| std::cmp::Reverse((row.created_at, row.id)));
        rows.truncate(filter.limit.unwrap_or(usize::MAX));
        Ok(rows)
    }

    async fn request(&self, run: RunId, request: Request) -> Result<(), StoreError> {
        self.write(Some(run), true, |shared, moment| {
            let state = shared.run(run)?.head.state;
            if state.is_final() {
                return Err(StoreError::Final { run, state });
            }
            if shared.requests.iter().all(|(_, known)| known.id != request.id) {
                shared.requests.push((run, request));
            }
            shared.make_due(run, moment.now);
            Ok(())
        })
    }

    async fn requests(&self, run: RunId) -> Result<Vec<Request>, StoreError> {
        let shared = self.read()?;
        let mut requests: Vec<Request> =
            shared.requests.iter().filter(|(of, _)| *of == run).map(|(_, request)| request.clone()).collect();
        requests.sort_by_key(|request| (request.at, request.id));
        Ok(requests)
    }

    async fn tickets(&self, run: Option<RunId>) -> Result<Vec<Ticket>, StoreError> {
        let shared = self.read()?;
        let of = |line: &&Line| run.is_none_or(|run| line.ticket.run == run);
        let mut tickets: Vec<Ticket> =
            shared.tickets.iter().filter(of).map(|line| line.ticket.clone()).collect();
        tickets.sort_by(|a, b| (&a.lock, a.number).cmp(&(&b.lock, b.number)));
        Ok(tickets)
    }

    async fn due_in(&self, environments: Option<&[Text]>, limit: usize) -> Result<Due, StoreError> {
        let now = self.clock.now_ms();
        let shared = self.read()?;
        let lease_end = now - self.timing.grace.as_millis() as i64;
        let waits = |run: &&Run| run.head.state == RunState::Waiting;
        let mut waiting: Vec<&Run> = shared
            .runs
            .values()
            .filter(waits)
            .filter(|run| run.head.not_before.is_some_and(|at| at <= now))
            .collect();
        waiting.sort_by_key(|run| (run.head.not_before, run.new.id));
        let mut unowned: Vec<&Run> = shared
            .runs
            .values()
            .filter(|run| {
                matches!(run.head.state, RunState::Queued | RunState::Running | RunState::Undoing)
                    && (run.head.owner.is_none()
                        || run.head.generation < self.generation
                        || run.head.lease_until.is_some_and(|until| until < lease_end))
            })
            .collect();
        unowned.sort_by_key(|run| (run.created_at, run.new.id));
        let mut asked: Vec<&Run> = shared
            .runs
            .values()
            .filter(|run| run.head.state == RunState::Parked)
            .filter(|run| shared.requests.iter().any(|(of, _)| *of == run.new.id))
            .collect();
        asked.sort_by_key(|run| (run.created_at, run.new.id));
        let next = shared.runs.values().filter(waits).filter_map(|run| run.head.not_before);
        let is_within = |run: &&Run| environments.is_none_or(|names| names.contains(&run.new.environment));
        Ok(Due {
            runs: waiting
                .into_iter()
                .chain(unowned)
                .chain(asked)
                .filter(is_within)
                .take(limit)
                .map(Run::row)
                .collect(),
            next: next.filter(|at| *at > now).min().map(timestamp),
        })
    }

    async fn executions(&self, of: &Executed, since: Timestamp) -> Result<u64, StoreError> {
        let shared = self.read()?;
        let since = since.as_millisecond();
        Ok(match of {
            Executed::Runs { runbook } => shared
                .runs
                .values()
                .filter(|run| run.new.runbook == *runbook && run.created_at > since)
                .filter(|run| match run.head.state {
                    RunState::Undone => false,
                    state => !state.is_final() || run.entries.iter().any(is_intent),
                })
                .count() as u64,
            Executed::Step { runbook, step } => shared
                .runs
                .values()
                .filter(|run| run.new.runbook == *runbook)
                .flat_map(|run| &run.entries)
                .filter(|entry| entry.at.as_millisecond() > since)
                .filter(|entry| {
                    matches!(
                        &entry.event,
                        Event::Node { node, event: NodeEvent::Intent { .. }, .. } if node.step == *step
                    )
                })
                .count() as u64,
        })
    }

    async fn put_bundle(
        &self,
        digest: Digest,
        root: &str,
        sources: &BTreeMap<Text, Text>,
    ) -> Result<(), StoreError> {
        self.write(None, true, |shared, _| {
            shared.bundles.entry(digest).or_insert_with(|| (root.into(), sources.clone()));
            Ok(())
        })
    }

    async fn bundle(&self, digest: Digest) -> Result<Option<(Text, BTreeMap<Text, Text>)>, StoreError> {
        Ok(self.read()?.bundles.get(&digest).cloned())
    }

    async fn audit(&self, run: RunId) -> Result<Audit, StoreError> {
        Ok(Audit { entries: self.journal(run).await?, violations: Vec::new() })
    }

    async fn audit_storage(&self) -> Result<Vec<Violation>, StoreError> {
        self.read().map(|_| Vec::new())
    }
}
