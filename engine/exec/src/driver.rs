//! The driver: performs what [`Run::decide`] asks for, and appends what it decided.
//!
//! One loop owns a run and puts every input (task reports, answers, the clock, a wish to cancel) in one order. For
//! each round it decides, appends the events in one batch, waits until they are durable, and only then hands out the
//! work. Outcomes that arrive together share a batch, and batches of several runs share a commit in the store.
//!
//! What others want of a run is in the store; whoever put it there pokes the run's driver, if this process has one. A
//! suspended run has none: it is a row with a time, until [`crate::Engine`] or a person takes it up.

mod children;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_action::{ActionRegistry, Progress, Targets};
use farrier_model::event::{ParkCause, Trigger};
use farrier_model::time::Timestamp;
use farrier_model::{
    Ask, BoundPlan, Entry, Event, Failure, NodeName, PlannedRun, Request, RunId, RunState, Text, Value,
};
use farrier_runbook::environment::Approvals;
use farrier_runbook::graph::{Bundle, Graph, Guard, Rate, RateOf};
use farrier_store::{Batch, Claim, Clock, Executed, NewRun, Store, StoreError};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::Instrument as _;

use crate::decide::{Decision, Input, Limits, Report, Work};
use crate::escalation;
use crate::guard;
use crate::held::{self, Held};
use crate::history::Kept;
use crate::plan::Plan;
use crate::pokes::{Entered, Pokes};
use crate::run::{NodeRef, ReplayError, Run};
use crate::task::{self, TaskCx};

pub(crate) use children::Children;

/// How often a lease is renewed.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Reports taken into one decision; bounds the size of a batch.
const MAX_BATCH: usize = 512;
/// The longest sleep, so that a clock that jumped is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Why a run could not be driven. Failures of steps are not errors of the driver.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The store.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The journal does not fit the runbook.
    #[error("run {run} cannot be replayed")]
    Replay {
        /// The run.
        run: RunId,
        /// What does not fit.
        #[source]
        source: ReplayError,
    },
    /// An expression at the top of the runbook cannot be evaluated with these inputs.
    #[error("runbook `{runbook}`: {failure}")]
    Inputs {
        /// The runbook.
        runbook: Text,
        /// What is wrong.
        failure: Failure,
    },
    /// Another task of this process is at work on it.
    #[error("run {0} is being worked on already")]
    Driven(RunId),
    /// There is no such run.
    #[error("there is no run {0}")]
    NoRun(RunId),
    /// Its process ended before what was at work did.
    #[error("run {0} was let go while something was at work; the next owner finds out what came of it")]
    LetGo(RunId),
    /// Another owner took the run over; nothing more is written.
    #[error("run {0} was taken over by another process")]
    Fenced(RunId),
}

/// What a person or a policy answers at the barrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Go on; these guards are accepted.
    Proceed {
        /// Guards, as their findings name them.
        accepted: Vec<Text>,
    },
    /// Do not.
    Decline,
}

/// Who is asked before the first write.
#[async_trait]
pub trait Confirm: Send + Sync {
    /// Shown the whole plan; the answer decides.
    async fn confirm(&self, plan: &Plan) -> Answer;
}

/// Says yes to everything that no guard stops.
#[derive(Debug, Clone, Copy)]
pub struct ProceedAlways;

#[async_trait]
impl Confirm for ProceedAlways {
    async fn confirm(&self, _: &Plan) -> Answer {
        Answer::Proceed { accepted: Vec::new() }
    }
}

/// What happened to a run, as it happens.
#[derive(Debug)]
pub struct RunUpdate<'a> {
    /// The run.
    pub run: RunId,
    /// Its runbook.
    pub runbook: &'a str,
    /// How many runs it is below the one that a person started.
    pub depth: usize,
    /// What was just made durable.
    pub events: &'a [Event],
}

/// How far a step has come, as it says itself.
#[derive(Debug, Clone, Copy)]
pub struct ProgressUpdate<'a> {
    /// The run.
    pub run: RunId,
    /// Its runbook.
    pub runbook: &'a str,
    /// How many runs it is below the one that a person started.
    pub depth: usize,
    /// The step.
    pub node: &'a NodeName,
    /// The latest word; nothing when the attempt is over.
    pub progress: Option<&'a Progress>,
}

/// Is told of every batch of events after it is durable. Must return at once.
pub trait Observer: Send + Sync {
    /// One batch.
    fn update(&self, update: RunUpdate<'_>);

    /// How far a step has come. A step is at work while this is called: it must neither write nor wait.
    fn progress(&self, _: ProgressUpdate<'_>) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn update(&self, _: RunUpdate<'_>) {}
}

/// What happens instead of an action, in tests of runbooks.
#[derive(Debug, Clone, PartialEq)]
pub enum StandIn {
    /// It fails so: a reading action when it reads, a writing one when it would write.
    Fail(Failure),
    /// It succeeds with this output and changes nothing.
    Output(Value),
}

/// Decides for every node whether its action is really executed.
pub trait Interpose: Send + Sync {
    /// What happens instead of a node's action in a run of `runbook`; nothing for the action itself. `applies`: this is the
    /// attempt to change the world, which a reading action never makes.
    fn instead_of(&self, runbook: &str, node: &NodeName, action: &str, applies: bool) -> Option<StandIn>;

    /// The action itself begins to change the world.
    fn begins(&self, _node: &NodeName) {}

    /// The action itself has changed the world, and nobody has been told yet.
    fn has_applied(&self, _node: &NodeName) {}
}

/// Looks at a run each time something about it became durable, in tests of runbooks.
#[async_trait]
pub trait Witness: Send + Sync {
    /// The run as its owner sees it now; the journal in the store is at least as long.
    async fn appended(&self, run: &Run);
}

/// Keeps simulated time from passing while an action is at work, in tests of runbooks.
pub trait Stillness: Send + Sync {
    /// Time stands still until what is returned is dropped.
    fn hold(&self) -> Box<dyn Send>;
}

/// What the process wants of all its runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Halt {
    /// Nothing.
    #[default]
    No,
    /// They stop: what is at work ends, and the runs end cancelled.
    Cancel {
        /// Who wants it.
        by: String,
    },
    /// The process ends: nothing new begins, what is at work ends, and the runs wait for the next process.
    LetGo,
}

/// Settings of a driver.
#[derive(Clone)]
pub struct Options {
    /// Tasks of one run at once.
    pub parallel: usize,
    /// Who owns the runs, for people: `host:pid`.
    pub owner: String,
    /// How often a step in doubt is tried by itself.
    pub doubts: u32,
    /// A run taken over more often than this is parked: it may be what ends its owners.
    pub takeovers: u32,
    /// The longest wait for a time that is sat out instead of letting go of the run.
    pub patience: Duration,
    /// A person wants parked runs to go on, children included.
    pub resume_parked: bool,
    /// How long what is at work may take to end when the process ends.
    pub grace: Duration,
    /// Takes the place of actions, in tests of runbooks.
    pub interpose: Option<Arc<dyn Interpose>>,
    /// Holds simulated time while actions are at work.
    pub stillness: Option<Arc<dyn Stillness>>,
    /// Looks at runs after every append.
    pub witness: Option<Arc<dyn Witness>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            parallel: 16,
            owner: format!("pid {}", std::process::id()),
            doubts: 5,
            takeovers: 5,
            patience: Duration::MAX,
            resume_parked: true,
            grace: Duration::from_secs(30),
            interpose: None,
            stillness: None,
            witness: None,
        }
    }
}

/// Where runs take place.
#[derive(Debug, Clone)]
pub struct World {
    /// The environment's name.
    pub environment: Text,
    /// Its targets.
    pub targets: Arc<Targets>,
    /// What it allows at most, besides the runbook's own guards.
    pub guards: Vec<Guard>,
    /// How many people must approve a run before its first write.
    pub approvals: Approvals,
    /// Who belongs to which group.
    pub people: Arc<BTreeMap<Text, Vec<Text>>>,
}

impl World {
    /// A world that allows everything.
    pub fn new(environment: impl Into<Text>, targets: Arc<Targets>) -> World {
        World {
            environment: environment.into(),
            targets,
            guards: Vec::new(),
            approvals: Approvals::default(),
            people: Arc::default(),
        }
    }
}

/// How a run ended, or why it stopped for now.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The run.
    pub run: RunId,
    /// Its state: final, `parked` or `waiting`.
    pub state: RunState,
    /// Its outputs.
    pub outputs: Value,
    /// The first reason for a bad end.
    pub failure: Option<Failure>,
    /// Why it is parked.
    pub parked: Option<String>,
    /// The guard that parked it, to be accepted by name.
    pub guard: Option<Text>,
    /// What it waits for, and until when.
    pub waits: Option<(String, Option<Timestamp>)>,
    /// How many objects it changed.
    pub changed: u64,
}

impl Ended {
    fn of(run: &Run) -> Ended {
        Ended {
            run: run.id,
            state: run.state,
            outputs: run.outputs.clone(),
            failure: run.failure.clone(),
            parked: run.parked.as_ref().map(|(reason, _)| reason.clone()),
            guard: run.parked.as_ref().and(run.asking_guard.clone()),
            waits: run.suspended.clone(),
            changed: run.changed(),
        }
    }
}

/// Drives runs. Cloning shares everything.
#[derive(Clone)]
pub struct Driver {
    registry: Arc<ActionRegistry>,
    store: Arc<dyn Store>,
    clock: Clock,
    options: Options,
    observer: Arc<dyn Observer>,
    halt: watch::Receiver<Halt>,
    pokes: Pokes,
    /// Held from counting what rates count until what was decided on it is durable.
    rates: Arc<tokio::sync::Mutex<()>>,
}

/// What one run is about to do, from which a [`Driver`] starts it.
#[derive(Debug, Clone)]
pub struct Start {
    /// The runbook with all it can start.
    pub bundle: Arc<Bundle>,
    /// Where.
    pub world: World,
    /// Checked inputs.
    pub inputs: Value,
    /// Why.
    pub trigger: Trigger,
    /// The saved plan that the run carries out.
    pub plan: Option<Box<BoundPlan>>,
}

/// The row of a run that is about to be created, for whoever creates it in a transaction of its own. The texts must be in the store
/// by then.
///
/// # Errors
/// An expression at the top of the runbook cannot be evaluated with these inputs.
pub fn new_run(
    id: RunId,
    start: &Start,
    parent: Option<RunId>,
    now: Timestamp,
) -> Result<NewRun, DriverError> {
    let graph = start.bundle.graph();
    let entry = Entry { seq: 1, epoch: 0, at: now, event: created(start, graph) };
    let replay = |source| DriverError::Replay { run: id, source };
    let mut run = Run::new(id, graph.clone(), &entry).map_err(replay)?;
    run.targets = target_groups(&start.world.targets);
    let title = run.title();
    let live_key =
        run.live_key().map_err(|failure| DriverError::Inputs { runbook: graph.name.clone(), failure })?;
    Ok(NewRun {
        id,
        runbook: graph.name.clone(),
        bundle: start.bundle.digest,
        environment: start.world.environment.clone(),
        title: title.into(),
        parent,
        live_key,
        created: entry.event,
    })
}

impl Driver {
    /// A driver on a store. `halt` says what the process wants of its runs.
    pub fn new(
        registry: Arc<ActionRegistry>,
        store: Arc<dyn Store>,
        clock: Clock,
        options: Options,
        observer: Arc<dyn Observer>,
        halt: watch::Receiver<Halt>,
    ) -> Driver {
        let (pokes, rates) = (Pokes::default(), Arc::default());
        Driver { registry, store, clock, options, observer, halt, pokes, rates }
    }

    /// The store that its runs are in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Makes whoever drives `run` look up, or whoever takes up what is due, after something was put into the store for it.
    pub fn poke(&self, run: RunId) {
        self.pokes.poke(run);
    }

    /// Makes whoever takes up what is due look up.
    pub fn poke_due(&self) {
        self.pokes.poke_due();
    }

    pub(crate) fn pokes(&self) -> &Pokes {
        &self.pokes
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn halt(&self) -> watch::Receiver<Halt> {
        self.halt.clone()
    }

    /// A dry run: reads the world, writes nothing, neither there nor in the store.
    ///
    /// # Errors
    /// A defect of Farrier. A read that fails is in the plan.
    pub async fn plan(&self, start: &Start) -> Result<Plan, DriverError> {
        self.plan_as(start, PlannedRun { id: RunId::NONE, started_at: self.clock.now() }).await
    }

    /// The run that [`plan_as`](Driver::plan_as) plans for whoever will carry the plan out.
    pub fn next_run(&self) -> PlannedRun {
        let started_at = self.clock.now();
        PlannedRun { id: RunId::at(started_at.as_millisecond(), rand_bytes()), started_at }
    }

    /// A dry run of one run: what its steps write of its id and its moment is what they will write.
    ///
    /// # Errors
    /// As [`plan`](Driver::plan).
    pub async fn plan_as(&self, start: &Start, planned: PlannedRun) -> Result<Plan, DriverError> {
        let run = planned.id;
        let graph = start.bundle.graph().clone();
        let entry = Entry { seq: 1, epoch: 0, at: self.clock.now(), event: created(start, &graph) };
        let replay = |source| DriverError::Replay { run, source };
        let mut run = Run::new(run, graph, &entry).map_err(replay)?;
        run.moment = planned.started_at;
        let outcome = self.drive(&mut run, start, None, &NeverAsked, 0).await?;
        let mut plan = match outcome {
            Outcome::Barrier(plan) => *plan,
            Outcome::Over => Plan::of(&mut run, Vec::new()),
        };
        plan.run = (planned.id != RunId::NONE).then_some(planned);
        Ok(plan)
    }

    /// Creates a run and leaves it to whoever takes up what is due.
    ///
    /// # Errors
    /// The store fails, another run of its key is alive, or its saved plan was used before.
    pub async fn enqueue(&self, start: &Start) -> Result<RunId, DriverError> {
        let id = self.create_new(start).await?;
        self.pokes.poke(id);
        Ok(id)
    }

    /// As [`enqueue`](Driver::enqueue), under an id that follows from what asked for it. False when it was created before,
    /// and nothing was changed.
    ///
    /// # Errors
    /// As [`enqueue`](Driver::enqueue).
    pub async fn enqueue_as(&self, id: RunId, start: &Start) -> Result<bool, DriverError> {
        let created = self.create(id, start, None).await?;
        self.pokes.poke(id);
        Ok(created)
    }

    /// Stores what somebody wants of a run, and makes whoever drives it look up. The id of the request is gone from the store
    /// once it was answered.
    ///
    /// # Errors
    /// The store fails, or the run has ended.
    pub async fn ask(&self, run: RunId, by: &str, ask: Ask) -> Result<uuid::Uuid, DriverError> {
        let id = uuid::Uuid::now_v7();
        self.store.request(run, Request { id, at: self.clock.now(), by: by.to_owned(), ask }).await?;
        self.pokes.poke(run);
        Ok(id)
    }

    /// Takes what was asked of a run that nobody drives into its journal, and starts nothing. Gives the run as it is
    /// then, with the events that were written.
    ///
    /// # Errors
    /// The store fails, or somebody works on the run.
    pub async fn answer(&self, id: RunId, start: &Start) -> Result<(Run, Vec<Event>), DriverError> {
        let entered = self.pokes.enter(id).ok_or(DriverError::Driven(id))?;
        let claim = self.store.claim(id, &self.options.owner).await?;
        let before = self.store.journal(id).await?.len() as i64;
        let how =
            TakeUp { confirm: &NeverAsked, accepted: &[], depth: 0, answer_only: true, entered: &entered };
        let run = self.take_up(id, start, &claim, how).await?;
        let entries = self.store.journal_after(id, before).await?;
        Ok((run, entries.into_iter().map(|entry| entry.event).collect()))
    }

    /// Starts a run and drives it until it is over or parked. When this returns the run's id to `begun`, the run is
    /// on disk.
    ///
    /// # Errors
    /// The store fails, or the runbook needs what this version does not execute.
    pub async fn start(
        &self,
        start: &Start,
        confirm: &dyn Confirm,
        begun: impl FnOnce(RunId),
    ) -> Result<Ended, DriverError> {
        let id = self.create_new(start).await?;
        begun(id);
        self.resume(id, start, confirm, &[]).await
    }

    /// Takes a run, new or left by a dead owner, and drives it until it is over or parked.
    ///
    /// # Errors
    /// The store fails, somebody else owns the run, or it is final.
    pub async fn resume(
        &self,
        id: RunId,
        start: &Start,
        confirm: &dyn Confirm,
        accepted: &[Text],
    ) -> Result<Ended, DriverError> {
        let entered = self.pokes.enter(id).ok_or(DriverError::Driven(id))?;
        self.resume_at(id, start, confirm, accepted, 0, entered).await
    }

    /// A parent that is parked only because its child was goes on when the child has ended.
    async fn let_parent_go_on(&self, parent: RunId) -> Result<(), DriverError> {
        let row = self.store.run(parent).await?;
        if row.is_none_or(|row| row.state != RunState::Parked) {
            return Ok(());
        }
        let journal = self.store.journal(parent).await?;
        let cause = journal.iter().rev().find_map(|entry| match &entry.event {
            Event::Parked { cause, .. } => Some(*cause),
            _ => None,
        });
        if cause == Some(ParkCause::Child) {
            self.ask(parent, &self.options.owner, Ask::Resume { accepted: None }).await?;
        }
        Ok(())
    }

    /// A run that nobody has created: the one of its plan, or a new one.
    async fn create_new(&self, start: &Start) -> Result<RunId, DriverError> {
        let planned = start.plan.as_ref().and_then(|plan| plan.run);
        let id = planned.unwrap_or_else(|| self.next_run()).id;
        if !self.create(id, start, None).await? {
            return Err(DriverError::Store(StoreError::PlanUsed { run: id }));
        }
        Ok(id)
    }

    async fn create(&self, id: RunId, start: &Start, parent: Option<RunId>) -> Result<bool, DriverError> {
        let new = new_run(id, start, parent, self.clock.now())?;
        self.store.put_bundle(start.bundle.digest, &start.bundle.root, &start.bundle.sources).await?;
        Ok(self.store.create_run(new).await?)
    }

    fn resume_at<'a>(
        &'a self,
        id: RunId,
        start: &'a Start,
        confirm: &'a dyn Confirm,
        accepted: &'a [Text],
        depth: usize,
        entered: Entered,
    ) -> BoxFuture<'a, Result<Ended, DriverError>> {
        Box::pin(async move {
            let claim = self.store.claim(id, &self.options.owner).await?;
            let how = TakeUp { confirm, accepted, depth, answer_only: false, entered: &entered };
            let run = self.take_up(id, start, &claim, how).await?;
            drop(entered);
            if run.state.is_final() || run.parked.is_some() {
                if let Some(parent) = parent_of(&run) {
                    if run.state.is_final() {
                        self.let_parent_go_on(parent).await?;
                    }
                    self.pokes.poke(parent);
                }
                self.pokes.poke_all();
            }
            Ok(Ended::of(&run))
        })
    }

    /// Folds the journal of a claimed run and drives it as far as it goes.
    async fn take_up(
        &self,
        id: RunId,
        start: &Start,
        claim: &Claim,
        how: TakeUp<'_>,
    ) -> Result<Run, DriverError> {
        let journal = self.store.journal(id).await?;
        let replay = |source| DriverError::Replay { run: id, source };
        let mut run = Run::replay(id, start.bundle.graph().clone(), &journal).map_err(replay)?;
        drop(journal);
        for guard in how.accepted {
            let event = Event::Resumed { by: self.options.owner.clone(), accepted: Some(guard.clone()) };
            run.fold(&event, self.clock.now()).map_err(replay)?;
            self.store.append(claim, vec![event], Some(run.state)).await?;
        }
        let span = tracing::error_span!(
            "run",
            run_id = %id,
            runbook = %run.graph.name,
            environment = %start.world.environment,
        );
        let driven = self.drive(&mut run, start, Some((claim, &how)), how.confirm, how.depth);
        let outcome = driven.instrument(span).await;
        let let_go = matches!(outcome, Err(DriverError::LetGo(_)));
        if run.state.is_final() || run.parked.is_some() || outcome.is_ok() || let_go {
            self.store.release(claim).await?;
        }
        outcome?;
        Ok(run)
    }

    async fn drive(
        &self,
        run: &mut Run,
        start: &Start,
        claim: Option<(&Claim, &TakeUp<'_>)>,
        confirm: &dyn Confirm,
        depth: usize,
    ) -> Result<Outcome, DriverError> {
        let answer_only = claim.is_some_and(|(_, how)| how.answer_only);
        let limits = Limits {
            plan_only: claim.is_none(),
            parallel: self.options.parallel.max(1),
            doubts: self.options.doubts,
            takeovers: self.options.takeovers,
            patience: self.options.patience,
            resume_parked: self.options.resume_parked && !answer_only,
            answer_only,
        };
        let (claim, entered) = claim.map_or((None, None), |(claim, how)| (Some(claim), Some(how.entered)));
        run.targets = target_groups(&start.world.targets);
        run.environment_guards.clone_from(&start.world.guards);
        run.people = start.world.people.clone();
        // Whoever approves a run approves the runs that it starts.
        let on_its_own = depth == 0 && parent_of(run).is_none();
        let proposed = u32::from(matches!(start.trigger, Trigger::Alert { proposed: true, .. }));
        run.approvals_needed =
            if on_its_own { start.world.approvals.needed(run.graph.risk).max(proposed) } else { 0 };
        let rates = rates_of(run);
        let tasks = Arc::new(TaskCx {
            run: run.id,
            graph: run.graph.clone(),
            registry: self.registry.clone(),
            targets: start.world.targets.clone(),
            interpose: self.options.interpose.clone(),
            stillness: self.options.stillness.clone(),
            observer: self.observer.clone(),
            depth,
            children: Children {
                driver: self.clone(),
                start: start.clone(),
                depth,
                parent: run.id,
                // Nobody has ever taken up a run that is only planned.
                moment: (run.claims == 0).then_some(run.moment),
                bound: run.bound.clone(),
            },
            history: Arc::new(Kept {
                run: run.id,
                store: self.store.clone(),
                clock: self.clock.clone(),
                environment: start.world.environment.clone(),
            }),
        });
        let (reports_in, mut reports) = mpsc::channel::<(NodeRef, Report)>(MAX_BATCH);
        let mut working = JoinSet::new();
        let mut handles: HashMap<NodeRef, AbortHandle> = HashMap::new();
        let mut halt = self.halt.clone();
        let mut last_moment: Option<tokio::time::Instant> = None;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut held = Held::default();
        let mut inputs: Vec<Input> = Vec::new();
        if claim.is_some() {
            inputs.extend(self.news(run).await?);
            inputs.extend(halt_input(&halt.borrow_and_update()));
        }
        loop {
            let counting = if rates.is_empty() {
                None
            } else {
                let guard = self.rates.lock().await;
                run.memory.rates = self.count_rates(&rates).await?;
                Some(guard)
            };
            let Decision { events, work, give_up, wake, barrier, over, taken, tickets, cancel } = run
                .decide(std::mem::take(&mut inputs), self.clock.now(), limits)
                .map_err(|source| DriverError::Replay { run: run.id, source })?;
            if let Some(claim) = claim
                && !(events.is_empty() && taken.is_empty() && !held.holds_events())
            {
                let stored = self.write(claim, run, events, taken, &mut held).await;
                let events = stored.map_err(|error| match error {
                    StoreError::Fenced { .. } => DriverError::Fenced(run.id),
                    other => DriverError::Store(other),
                })?;
                if events.iter().any(|event| matches!(event, Event::LockReleased { .. })) {
                    self.pokes.poke_all();
                }
                self.observer.update(RunUpdate {
                    run: run.id,
                    runbook: &run.graph.name,
                    depth,
                    events: &events,
                });
                if let Some(witness) = &self.options.witness {
                    witness.appended(run).await;
                }
            }
            drop(counting);
            held.cancel.extend(cancel);
            for child in std::mem::take(&mut held.cancel) {
                match self.cancel_child(run, &child).await {
                    Err(DriverError::Store(StoreError::Full { .. })) => held.cancel.push(child),
                    told => told?,
                }
            }
            if claim.is_some() && tickets {
                inputs.push(Input::Tickets(self.store.tickets(Some(run.id)).await?));
            }
            for node in give_up {
                // One that ended in this very moment has its report on the way.
                if handles.get(&node).is_some_and(|handle| !handle.is_finished())
                    && let Some(handle) = handles.remove(&node)
                {
                    handle.abort();
                    inputs.push(Input::Report { node, report: Report::GivenUp });
                }
            }
            held.work.extend(work);
            for work in std::mem::take(&mut held.work) {
                let node = work.node;
                if held.holds_events() && held.holds(&run.name(node)) {
                    held.work.push(work);
                    continue;
                }
                handles.insert(node, spawn(&mut working, &tasks, run, work, reports_in.clone()));
            }
            if !inputs.is_empty() {
                continue;
            }
            if over && held.is_empty() {
                return Ok(Outcome::Over);
            }
            if let Some(findings) = barrier {
                let plan = Box::new(Plan::of(run, findings));
                if limits.plan_only {
                    return Ok(Outcome::Barrier(plan));
                }
                let answer = if run.is_approved(&plan) {
                    Answer::Proceed { accepted: Vec::new() }
                } else {
                    confirm.confirm(&plan).await
                };
                inputs.push(match answer {
                    Answer::Proceed { accepted } => {
                        Input::Proceed { by: self.options.owner.clone(), accepted, plan: Arc::from(plan) }
                    }
                    Answer::Decline => Input::Cancel { by: self.options.owner.clone() },
                });
                continue;
            }
            let pause = wake.map_or(LONGEST_SLEEP, |wake| until(self.clock.now(), wake)).min(LONGEST_SLEEP);
            let pause = if held.is_empty() { pause } else { pause.min(held::AGAIN) };
            tokio::select! {
                biased;
                Some((node, report)) = reports.recv() => {
                    let mut next = Some((node, report));
                    while let Some((node, report)) = next {
                        // The report of a task that was given up while it was being sent counts no more.
                        if handles.remove(&node).is_some() {
                            inputs.push(Input::Report { node, report });
                        }
                        next = if inputs.len() < MAX_BATCH { reports.try_recv().ok() } else { None };
                    }
                }
                Ok(()) = halt.changed(), if claim.is_some() => {
                    let wanted = halt.borrow_and_update().clone();
                    if wanted == Halt::LetGo {
                        last_moment = Some(tokio::time::Instant::now() + self.options.grace);
                    }
                    inputs.extend(halt_input(&wanted));
                }
                () = poked(entered) => inputs.extend(self.news(run).await?),
                () = moment(last_moment) => {
                    // What is still at work is cut off and left in doubt; the next owner finds out.
                    return Err(DriverError::LetGo(run.id));
                }
                _ = heartbeat.tick(), if claim.is_some() => {
                    if let Some(claim) = claim {
                        match self.store.heartbeat(std::slice::from_ref(claim)).await {
                            // The lease is as long as it is; what needs a longer one is held back anyway.
                            Err(StoreError::Full { .. }) => {}
                            Ok(fenced) if !fenced.contains(&run.id) => {}
                            fenced => {
                                fenced?;
                                return Err(DriverError::Fenced(run.id));
                            }
                        }
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
            while working.try_join_next().is_some() {}
        }
    }
}

/// The rates that guards of a run count: the guard's name, what, and over which time.
type Rates = Vec<(String, Executed, Duration)>;

fn rates_of(run: &Run) -> Rates {
    let graph = &run.graph;
    let of_run = run.run_guards().map(|guard| (guard, None));
    let of_steps = graph.indices().flat_map(|step| {
        graph.step(step).guards.iter().map(move |guard| (guard, Some(&*graph.step(step).id)))
    });
    let counted = |(guard, step): (&Guard, Option<&str>)| {
        let name = guard::name(guard, step);
        let counted = |rate: &Rate| {
            let of = rate.of.iter().map(|of| match of {
                RateOf::Step(step) => Executed::Step { runbook: graph.name.clone(), step: step.clone() },
                RateOf::Runbook(runbook) => Executed::Runs { runbook: runbook.clone() },
            });
            of.map(|executed| (name.clone(), executed, rate.within)).collect::<Rates>()
        };
        guard.rate.as_ref().map(counted).unwrap_or_default()
    };
    of_run.chain(of_steps).flat_map(counted).collect()
}

impl Driver {
    /// Makes events durable. While the disk is full, those that begin something are held back and tried again every moment;
    /// what is returned is on disk.
    async fn write(
        &self,
        claim: &Claim,
        run: &Run,
        events: Vec<Event>,
        taken: Vec<uuid::Uuid>,
        held: &mut Held,
    ) -> Result<Vec<Event>, StoreError> {
        let state = run.state;
        let append = async |events: &[Event], state, taken: &[uuid::Uuid]| {
            let notices = escalation::notices(run, events);
            let batch = Batch::new(events.to_vec(), state).taking(taken.to_vec()).telling(notices);
            let entries = self.store.append_surely(claim, batch).await?;
            Ok(entries.into_iter().map(|entry| entry.event).collect::<Vec<Event>>())
        };
        if !held.holds_events() {
            match append(&events, Some(state), &taken).await {
                Err(StoreError::Full { .. }) => {
                    tracing::warn!(run_id = %claim.run, "the disk is full; the run goes on when there is room");
                }
                answer => return answer,
            }
        }
        let mut durable = Vec::new();
        let now = held.split(events);
        if !(now.is_empty() && taken.is_empty()) {
            match append(&now, None, &taken).await {
                Ok(written) => durable = written,
                // Not even for these is there room left.
                Err(StoreError::Full { .. }) => {
                    held.events.extend(now);
                    held.taken.extend(taken);
                }
                Err(error) => return Err(error),
            }
        }
        if held.holds_events() && held.is_due() {
            match append(&held.events, Some(state), &held.taken).await {
                Ok(written) => {
                    held.events.clear();
                    held.taken.clear();
                    durable.extend(written);
                }
                Err(StoreError::Full { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(durable)
    }

    async fn count_rates(&self, rates: &Rates) -> Result<HashMap<String, u64>, DriverError> {
        let mut counts: HashMap<String, u64> = HashMap::new();
        for (name, executed, within) in rates {
            let count = self.store.executions(executed, self.clock.now() - *within).await?;
            *counts.entry(name.clone()).or_default() += count;
        }
        Ok(counts)
    }

    /// What came for a run since anybody looked.
    async fn news(&self, run: &Run) -> Result<Vec<Input>, DriverError> {
        let requests = self.store.requests(run.id).await?;
        let mut inputs: Vec<Input> = requests.into_iter().map(Input::Request).collect();
        if run.locks.values().any(|lock| lock.fence.is_none()) {
            inputs.push(Input::Tickets(self.store.tickets(Some(run.id)).await?));
        }
        inputs.push(Input::Poke);
        Ok(inputs)
    }

    /// Tells a child run to stop with its parent. One that has ended needs not be told.
    async fn cancel_child(&self, run: &Run, node: &NodeName) -> Result<(), DriverError> {
        let reason = Some(format!("run {}, which started it, was cancelled", run.id));
        let by = run.cancelled_by.clone().unwrap_or_default();
        match self.ask(run.id.child(node), &by, Ask::Cancel { undo: false, reason }).await {
            Ok(_) | Err(DriverError::Store(StoreError::Final { .. } | StoreError::NoRun { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn parent_of(run: &Run) -> Option<RunId> {
    match &run.trigger {
        Trigger::Parent { run, .. } => Some(*run),
        Trigger::Manual { .. } | Trigger::Schedule { .. } | Trigger::Alert { .. } => None,
    }
}

fn halt_input(halt: &Halt) -> Option<Input> {
    match halt {
        Halt::No => None,
        Halt::Cancel { by } => Some(Input::Cancel { by: by.clone() }),
        Halt::LetGo => Some(Input::LetGo),
    }
}

async fn poked(entered: Option<&Entered>) {
    match entered {
        Some(entered) => entered.poked().await,
        None => std::future::pending().await,
    }
}

async fn moment(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How a claimed run is taken up.
struct TakeUp<'a> {
    confirm: &'a dyn Confirm,
    accepted: &'a [Text],
    depth: usize,
    answer_only: bool,
    entered: &'a Entered,
}

enum Outcome {
    Over,
    Barrier(Box<Plan>),
}

fn spawn(
    working: &mut JoinSet<()>,
    tasks: &Arc<TaskCx>,
    run: &Run,
    work: Work,
    reports: mpsc::Sender<(NodeRef, Report)>,
) -> AbortHandle {
    let node = work.node;
    let name = run.name(node);
    let tasks = tasks.clone();
    let performed = async move {
        let report = task::perform(tasks, name, work).await;
        // The receiver is gone only when the run is no longer ours.
        let _ = reports.send((node, report)).await;
    };
    // A task of its own, and a step of this run all the same.
    working.spawn(performed.in_current_span())
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO).max(Duration::from_millis(1))
}

fn created(start: &Start, graph: &Graph) -> Event {
    Event::Created {
        runbook: graph.name.clone(),
        bundle: start.bundle.digest,
        environment: start.world.environment.clone(),
        inputs: start.inputs.clone(),
        trigger: start.trigger.clone(),
        plan: start.plan.clone(),
    }
}

fn target_groups(targets: &Targets) -> Value {
    Value::map(targets.groups().map(|(alias, members)| {
        (alias.as_str(), Value::list(members.iter().map(|member| Value::text(member.as_str())).collect()))
    }))
}

fn rand_bytes() -> [u8; 10] {
    let random = uuid::Uuid::new_v4().into_bytes();
    std::array::from_fn(|at| random[at])
}

/// Never asked: a dry run ends before the question.
struct NeverAsked;

#[async_trait]
impl Confirm for NeverAsked {
    async fn confirm(&self, _: &Plan) -> Answer {
        Answer::Decline
    }
}
