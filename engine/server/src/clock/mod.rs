//! [`Clockwork`]: takes the schedules whose due time has come, and writes what becomes of each due time, with the runs that follow.
//!
//! It decides nothing by itself. [`farrier_schedule`] says which due times have come and what is to become of them, the ledger judges
//! overlap and writes decisions, runs and cursor in one transaction, and the engine drives the runs. What it keeps in memory is the near
//! future: the next few thousand schedules by the moment at which they are due. So a hundred thousand idle schedules cost one
//! sleeping task.
//!
//! - When schedules are edited it is told by the channel of its [`Jobs`], and by [`Poker::poke`] of anything else.
//! - A transaction that fails is tried again a second later, with everything read anew. Nothing is late because another schedule cannot be
//!   started: whatever is wrong with one schedule becomes the decision on its due time.
//! - It looks at the clock at least every half minute. What it has seen last outlives the process, so a clock that jumped while nobody
//!   was there is noticed too.

mod health;
mod jobs;
mod near;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use farrier_exec::driver::new_run;
use farrier_exec::{Driver, EVERYBODY, Halt};
use farrier_model::Digest;
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_schedule::{Calendar, Decision, Jump, Pending, ScheduleId, Turn, What, is_jump, verdicts};
use farrier_store::{Alarm, AlarmKind, Clock, Fire, Fired, Ledger, Notice, ScheduleRow, StoreError, run_of};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

pub use jobs::{Job, Jobs, Watch, of_set, of_sets};

use health::Health;
use near::Near;

/// The longest sleep, so that a clock that jumped is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How long to wait when the store cannot answer.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Schedules in one transaction. Enough to share a commit, few enough that the first of them does not wait for the last.
const BATCH: usize = 256;
/// How often the time is written down while nothing is due.
const SEEN_EVERY: Duration = Duration::from_secs(60);
/// A clock that goes back by less is being adjusted.
const BACK: Duration = Duration::from_secs(60);
/// How long after a jump its alarm is taken back.
const JUMP_TOLD: Duration = Duration::from_secs(24 * 60 * 60);
/// Texts that are this long in the store are put there again, before anyone takes them for left over.
const TEXTS_FRESH: Duration = Duration::from_secs(10 * 60);

/// Is told what the clock does, for metrics and messages. Must return at once.
pub trait ClockObserver: Send + Sync {
    /// A due time was decided, `late` after its start was due (jitter is not lateness).
    fn decided(&self, _schedule: &ScheduleId, _nominal: Timestamp, _decision: &Decision, _late: Duration) {}

    /// An alarm was raised.
    fn raised(&self, _alarm: &Alarm) {}

    /// An alarm was taken back.
    fn cleared(&self, _kind: AlarmKind, _subject: &str) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl ClockObserver for Unwatched {}

/// Makes a [`Clockwork`] look up: a schedule was paused, or the tests' clock has moved.
#[derive(Debug, Clone, Default)]
pub struct Poker(Arc<Notify>);

impl Poker {
    /// Makes it look up.
    pub fn poke(&self) {
        self.0.notify_one();
    }
}

/// The loop over schedules. See the module's page.
pub struct Clockwork {
    ledger: Arc<dyn Ledger>,
    driver: Driver,
    clock: Clock,
    jobs: watch::Receiver<Arc<dyn Jobs>>,
    observer: Arc<dyn ClockObserver>,
    halt: watch::Receiver<Halt>,
    poker: Poker,
    near: Near,
    health: Health,
    /// When texts were put into the store.
    texts: HashMap<Digest, Timestamp>,
    /// When the clock was seen last, and the time that was written down last.
    seen: Option<Timestamp>,
    written: Option<Timestamp>,
    jump: Option<Jump>,
    is_back: bool,
}

impl Clockwork {
    /// A clockwork over a ledger. Runs are created in the same store as the driver's; the driver's engine takes them up.
    pub fn new(
        ledger: Arc<dyn Ledger>,
        driver: Driver,
        clock: Clock,
        jobs: watch::Receiver<Arc<dyn Jobs>>,
        observer: Arc<dyn ClockObserver>,
        halt: watch::Receiver<Halt>,
    ) -> Clockwork {
        Clockwork {
            ledger,
            driver,
            clock,
            jobs,
            observer,
            halt,
            poker: Poker::default(),
            near: Near::default(),
            health: Health::default(),
            texts: HashMap::new(),
            seen: None,
            written: None,
            jump: None,
            is_back: false,
        }
    }

    /// How to make it look up.
    pub fn poker(&self) -> Poker {
        self.poker.clone()
    }

    /// Works until the process is to end, or, with `until_idle`, until nothing is due any more.
    ///
    /// # Errors
    /// The store can be written no more.
    pub async fn run(mut self, until_idle: bool) -> Result<(), StoreError> {
        let mut begun = None;
        while *self.halt.borrow_and_update() == Halt::No {
            let now = self.clock.now();
            let next = match self.step(&mut begun, now).await {
                Ok(Some(next)) => next,
                Ok(None) => continue,
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "due times wait for the store");
                    self.near = Near::default();
                    now.checked_add(STORE_PAUSE).unwrap_or(now)
                }
            };
            if until_idle && begun.is_some() && next > now {
                return Ok(());
            }
            let pause = Duration::try_from(next.duration_since(now)).unwrap_or_default().min(LONGEST_SLEEP);
            tokio::select! {
                _ = self.halt.changed() => {}
                changed = self.jobs.changed() => match changed {
                    Ok(()) => begun = None,
                    // Nobody is left who could change them; that is no reason to look again and again.
                    Err(_) => tokio::time::sleep(pause).await,
                },
                () = self.poker.0.notified() => self.near = Near::default(),
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Does what is to be done now: nothing when more is to be done at once, otherwise when to look again.
    async fn step(
        &mut self,
        begun: &mut Option<Uuid>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let cluster = match begun {
            Some(cluster) => *cluster,
            None => *begun.insert(self.begin().await?),
        };
        self.look_at_the_clock(now).await?;
        if self.near.is_empty_before(now) {
            let rows = self.ledger.next_schedules(near::SIZE).await?;
            self.near = Near::of(rows);
        }
        let due = self.near.take(now, BATCH);
        if !due.is_empty() {
            self.fire(cluster, due, now).await?;
            return Ok(None);
        }
        if self.written.is_none_or(|written| written.checked_add(SEEN_EVERY).is_ok_and(|next| next <= now)) {
            self.ledger.see().await?;
            self.written = Some(now);
        }
        let jobs = self.jobs.borrow().clone();
        let check = self.health.check(&*self.ledger, &*jobs, &*self.observer, now).await?;
        let latest = now.checked_add(LONGEST_SLEEP).unwrap_or(now);
        Ok(Some(
            [self.near.next(), check].into_iter().flatten().min().map_or(latest, |next| next.min(latest)),
        ))
    }

    /// Makes the ledger's schedules be those of the project.
    async fn begin(&mut self) -> Result<Uuid, StoreError> {
        let jobs = self.jobs.borrow_and_update().clone();
        let synced = self.ledger.put_schedules(jobs.schedules()).await?;
        if synced.is_change() {
            let farrier_store::Synced { added, edited, retired } = synced;
            tracing::info!(added, edited, retired, "schedules changed");
        }
        self.near = Near::default();
        self.health = Health::default();
        if self.seen.is_none() {
            self.seen = self.ledger.seen_at().await?;
        }
        self.ledger.cluster().await
    }

    async fn look_at_the_clock(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let last = self.seen.unwrap_or(now);
        if is_jump(last, now) {
            tracing::error!(from = %last, to = %now, "the clock jumped ahead, or nobody was there");
            self.jump = Some(Jump { from: last, to: now });
            let message = format!(
                "the clock went from {last} to {now} at once; what was due between is started once at most"
            );
            self.ledger.clear(AlarmKind::ClockJumped, "clock").await?;
            self.alarm(AlarmKind::ClockJumped, message, now).await?;
        } else if last.checked_sub(BACK).is_ok_and(|back| now < back) && !self.is_back {
            tracing::error!(from = %last, to = %now, "the clock went back; nothing is due until it has passed that time again");
            self.is_back = true;
            let message = format!(
                "the clock went back from {last} to {now}; nothing is due until it has passed that time again"
            );
            self.alarm(AlarmKind::ClockBack, message, now).await?;
        }
        if now < last && self.is_back {
            // Time is measured from the latest moment that was seen.
            return Ok(());
        }
        if self.is_back {
            self.is_back = false;
            health::clear(&*self.ledger, &*self.observer, AlarmKind::ClockBack, "clock").await?;
        }
        if self.jump.is_some_and(|jump| jump.to.checked_add(JUMP_TOLD).is_ok_and(|end| end < now)) {
            self.jump = None;
            health::clear(&*self.ledger, &*self.observer, AlarmKind::ClockJumped, "clock").await?;
        }
        self.seen = Some(now.max(last));
        Ok(())
    }

    /// Raises an alarm about the clock, and tells everybody in each environment where something may have been missed.
    async fn alarm(&self, kind: AlarmKind, message: String, now: Timestamp) -> Result<(), StoreError> {
        let environments = self.jobs.borrow().told();
        let tell = environments.into_iter().map(|environment| Notice {
            id: Uuid::now_v7(),
            run: None,
            subject: format!("the clock of the schedules in {environment} is not to be trusted"),
            environment,
            to: EVERYBODY.into(),
            occasion: kind.name().into(),
            body: format!(
                "{message}.\n\nWhat may destroy something is paused after a jump, until somebody says otherwise.\n\nLook: farrier \
                 schedules\n"
            ),
        });
        health::raise(&*self.ledger, &*self.observer, kind, "clock", message.clone(), tell.collect(), now)
            .await
    }

    /// Decides what is due, and makes it so.
    async fn fire(&mut self, cluster: Uuid, due: Vec<ScheduleRow>, now: Timestamp) -> Result<(), StoreError> {
        let jobs = self.jobs.borrow().clone();
        let mut fires = Vec::with_capacity(due.len());
        let mut delays = Vec::with_capacity(due.len());
        for schedule in &due {
            let (fire, delay) = self.fire_of(cluster, &*jobs, schedule, now).await?;
            fires.push(fire);
            delays.push(delay);
        }
        let turns: Vec<(Timestamp, Option<Timestamp>, bool)> =
            fires.iter().map(|fire| (fire.turn.cursor, fire.turn.next, fire.turn.hold.is_some())).collect();
        let (fired, failed) = self.fire_surely(fires).await?;
        let after = self.clock.now();
        let mut any = false;
        for (((schedule, fired), (cursor, next, held)), delay) in
            due.into_iter().zip(fired).zip(turns).zip(delays)
        {
            let Fired::Done { decisions, stirred } = fired else {
                // Somebody else was quicker, or it was edited: it is read anew.
                self.near = Near::default();
                continue;
            };
            for (nominal, decision) in &decisions {
                let start = nominal.checked_add(delay).unwrap_or(*nominal);
                let late = Duration::try_from(after.duration_since(start)).unwrap_or_default();
                self.observer.decided(&schedule.id, *nominal, decision, late);
                any |= matches!(decision, Decision::Run { .. });
            }
            for run in stirred {
                self.driver.poke(run);
            }
            if held {
                tracing::error!(schedule = %schedule.id, "paused: the clock jumped, and its runbook may destroy something");
            }
            self.near.put(ScheduleRow { cursor, next_due: next, ..schedule });
        }
        if any {
            self.driver.poke_due();
        }
        failed.map_or(Ok(()), Err)
    }

    /// Fires all together; when that fails, each by itself, so that one that cannot be stored keeps no other from starting. Gives the
    /// first error beside what was done.
    async fn fire_surely(&self, fires: Vec<Fire>) -> Result<(Vec<Fired>, Option<StoreError>), StoreError> {
        match self.ledger.fire(fires.clone()).await {
            Ok(fired) => return Ok((fired, None)),
            Err(error) if error.is_fatal() || matches!(error, StoreError::Full { .. }) => return Err(error),
            Err(error) => tracing::warn!(%error, "due times are decided one schedule at a time"),
        }
        let (mut all, mut failed) = (Vec::with_capacity(fires.len()), None);
        for fire in fires {
            let id = fire.schedule.clone();
            match self.ledger.fire(vec![fire]).await {
                Ok(fired) => all.extend(fired),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    tracing::error!(schedule = %id, %error, "its due times cannot be decided");
                    all.push(Fired::Moved);
                    failed = failed.or(Some(error));
                }
            }
        }
        Ok((all, failed))
    }

    /// What is to become of a schedule's due times, with the runs that probably follow, and its share of the jitter.
    async fn fire_of(
        &mut self,
        cluster: Uuid,
        jobs: &dyn Jobs,
        schedule: &ScheduleRow,
        now: Timestamp,
    ) -> Result<(Fire, Duration), StoreError> {
        let ScheduleRow { id, spec, spec_version, cursor, .. } = schedule;
        let of = |turn, runs| Fire {
            schedule: id.clone(),
            spec: spec.clone(),
            spec_version: *spec_version,
            cursor: *cursor,
            turn,
            runs,
        };
        let nothing = |next| Turn { verdicts: Vec::new(), cursor: *cursor, next, hold: None };
        let calendar = match Calendar::new(id, spec) {
            Ok(calendar) => calendar,
            Err(error) => {
                tracing::error!(schedule = %id, %error, "the schedule is due no more: this version cannot read it");
                return Ok((of(nothing(None), Vec::new()), Duration::ZERO));
            }
        };
        let job = jobs.job(schedule);
        let turn = verdicts(&Pending {
            spec,
            calendar: &calendar,
            cursor: *cursor,
            now,
            jump: self.jump,
            destructive: job.as_ref().is_some_and(|job| job.destructive),
            frozen: job.as_ref().is_some_and(|job| job.frozen),
        });
        // Another release of the time zone database may say that it is not due yet.
        let turn = turn.unwrap_or_else(|| nothing(calendar.next_start(*cursor)));
        let mut runs = Vec::new();
        for verdict in turn.verdicts.iter().filter(|verdict| verdict.what == What::Start) {
            let Some(job) = &job else { continue };
            let nominal = verdict.nominal;
            let prepared = job.start.clone().and_then(|mut start| {
                start.trigger = Trigger::Schedule { schedule: id.0.clone(), nominal };
                let run = new_run(run_of(cluster, id, nominal), &start, None, now)
                    .map_err(|error| error.to_string())?;
                Ok((start, run))
            });
            match prepared {
                Ok((start, run)) => {
                    self.put_texts(&start, now).await?;
                    runs.push((nominal, run));
                }
                Err(error) => tracing::error!(schedule = %id, %nominal, error, "the run cannot be created"),
            }
        }
        Ok((of(turn, runs), calendar.delay()))
    }

    async fn put_texts(
        &mut self,
        start: &farrier_exec::driver::Start,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let bundle = &start.bundle;
        let fresh = self.texts.get(&bundle.digest).and_then(|put| put.checked_add(TEXTS_FRESH).ok());
        if fresh.is_none_or(|fresh| fresh <= now) {
            self.driver.store().put_bundle(bundle.digest, &bundle.root, &bundle.sources).await?;
            self.texts.insert(bundle.digest, now);
        }
        Ok(())
    }
}
