//! The driver: performs what [`Run::decide`] asks for, and appends what it decided.
//!
//! One loop owns a run and puts every input (task reports, answers, the clock, a wish to cancel) in one order. For
//! each round it decides, appends the events in one batch, waits until they are durable, and only then hands out the
//! work. Outcomes that arrive together share a batch, and batches of several runs share a commit in the store.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_action::{ActionRegistry, Planned, Targets};
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{
    Change, ChangeKind, Entry, Event, Failure, FailureKind, Fidelity, NodeName, RunId, RunState, Text, Value,
};
use farrier_runbook::graph::{Bundle, Graph, Guard};
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_store::{Claim, Clock, NewRun, Store, StoreError};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::decide::{Decision, Input, Limits, PlanReport, Report, Work};
use crate::plan::Plan;
use crate::run::{NodeRef, ReplayError, Run};
use crate::task::{self, TaskCx};

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
    /// The runbook uses features that this version checks but does not execute.
    #[error("this version cannot run `{runbook}`: it uses {}", .features.join(", "))]
    NotExecuted {
        /// The runbook.
        runbook: Text,
        /// The features.
        features: Vec<String>,
    },
    /// There is no such run.
    #[error("there is no run {0}")]
    NoRun(RunId),
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

/// Is told of every batch of events after it is durable. Must return at once.
pub trait Observer: Send + Sync {
    /// One batch.
    fn update(&self, update: RunUpdate<'_>);
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
    /// What happens instead; nothing for the action itself.
    fn instead_of(&self, node: &NodeName, action: &str) -> Option<StandIn>;
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
    /// Takes the place of actions, in tests of runbooks.
    pub interpose: Option<Arc<dyn Interpose>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            parallel: 16,
            owner: format!("pid {}", std::process::id()),
            doubts: 5,
            takeovers: 5,
            interpose: None,
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
}

/// How a run ended, or why it stopped for now.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The run.
    pub run: RunId,
    /// Its state: final, or `parked`.
    pub state: RunState,
    /// Its outputs.
    pub outputs: Value,
    /// The first reason for a bad end.
    pub failure: Option<Failure>,
    /// Why it is parked.
    pub parked: Option<String>,
    /// The guard that parked it, to be accepted by name.
    pub guard: Option<Text>,
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
    cancel: watch::Receiver<Option<String>>,
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
}

impl Driver {
    /// A driver on a store. `cancel` carries the name of whoever wants its runs to stop.
    pub fn new(
        registry: Arc<ActionRegistry>,
        store: Arc<dyn Store>,
        clock: Clock,
        options: Options,
        observer: Arc<dyn Observer>,
        cancel: watch::Receiver<Option<String>>,
    ) -> Driver {
        Driver { registry, store, clock, options, observer, cancel }
    }

    /// A dry run: reads the world, writes nothing, neither there nor in the store.
    ///
    /// # Errors
    /// A defect of Farrier. A read that fails is in the plan.
    pub async fn plan(&self, start: &Start) -> Result<Plan, DriverError> {
        let run = RunId(uuid::Uuid::nil());
        let graph = start.bundle.graph().clone();
        let entry = Entry { seq: 1, epoch: 0, at: self.clock.now(), event: created(start, &graph) };
        let replay = |source| DriverError::Replay { run, source };
        let mut run = Run::new(run, graph, &entry).map_err(replay)?;
        let outcome = self.drive(&mut run, start, None, &NeverAsked, 0).await?;
        Ok(match outcome {
            Outcome::Barrier(plan) => *plan,
            Outcome::Over => Plan::of(&mut run, Vec::new()),
        })
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
        let id = RunId::at(self.clock.now().as_millisecond(), rand_bytes());
        self.create(id, start, None).await?;
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
        self.resume_at(id, start, confirm, accepted, 0).await
    }

    async fn create(&self, id: RunId, start: &Start, parent: Option<RunId>) -> Result<(), DriverError> {
        for graph in start.bundle.graphs.values() {
            if !graph.not_executed.is_empty() {
                let features = graph.not_executed.iter().map(|feature| format!("`{feature}`")).collect();
                return Err(DriverError::NotExecuted { runbook: graph.name.clone(), features });
            }
        }
        let graph = start.bundle.graph();
        self.store.put_bundle(start.bundle.digest, &start.bundle.root, &start.bundle.sources).await?;
        let entry = Entry { seq: 1, epoch: 0, at: self.clock.now(), event: created(start, graph) };
        let title =
            Run::new(id, graph.clone(), &entry).map_or_else(|_| graph.name.to_string(), |run| run.title());
        self.store
            .create_run(NewRun {
                id,
                runbook: graph.name.clone(),
                bundle: start.bundle.digest,
                environment: start.world.environment.clone(),
                title: title.into(),
                parent,
                created: entry.event,
            })
            .await?;
        Ok(())
    }

    fn resume_at<'a>(
        &'a self,
        id: RunId,
        start: &'a Start,
        confirm: &'a dyn Confirm,
        accepted: &'a [Text],
        depth: usize,
    ) -> BoxFuture<'a, Result<Ended, DriverError>> {
        Box::pin(async move {
            let claim = self.store.claim(id, &self.options.owner).await?;
            let journal = self.store.journal(id).await?;
            let replay = |source| DriverError::Replay { run: id, source };
            let mut run = Run::replay(id, start.bundle.graph().clone(), &journal).map_err(replay)?;
            drop(journal);
            for guard in accepted {
                let event = Event::Resumed { by: self.options.owner.clone(), accepted: Some(guard.clone()) };
                run.fold(&event, self.clock.now()).map_err(replay)?;
                self.store.append(&claim, vec![event], Some(run.state)).await?;
            }
            let outcome = self.drive(&mut run, start, Some(&claim), confirm, depth).await;
            if run.state.is_final() || run.parked.is_some() || outcome.is_ok() {
                self.store.release(&claim).await?;
            }
            outcome?;
            Ok(Ended::of(&run))
        })
    }

    async fn drive(
        &self,
        run: &mut Run,
        start: &Start,
        claim: Option<&Claim>,
        confirm: &dyn Confirm,
        depth: usize,
    ) -> Result<Outcome, DriverError> {
        let limits = Limits {
            plan_only: claim.is_none(),
            parallel: self.options.parallel.max(1),
            doubts: self.options.doubts,
            takeovers: self.options.takeovers,
        };
        run.targets = target_groups(&start.world.targets);
        run.environment_guards.clone_from(&start.world.guards);
        let tasks = Arc::new(TaskCx {
            run: run.id,
            graph: run.graph.clone(),
            registry: self.registry.clone(),
            targets: start.world.targets.clone(),
            interpose: self.options.interpose.clone(),
            children: Children { driver: self.clone(), start: start.clone(), depth },
        });
        let (reports_in, mut reports) = mpsc::channel::<(NodeRef, Report)>(MAX_BATCH);
        let mut working = JoinSet::new();
        let mut handles: HashMap<NodeRef, AbortHandle> = HashMap::new();
        let mut cancel = self.cancel.clone();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inputs: Vec<Input> =
            cancel.borrow_and_update().iter().map(|by| Input::Cancel { by: by.clone() }).collect();
        loop {
            let Decision { events, work, give_up, wake, barrier, over } = run
                .decide(std::mem::take(&mut inputs), self.clock.now(), limits)
                .map_err(|source| DriverError::Replay { run: run.id, source })?;
            if let Some(claim) = claim
                && !events.is_empty()
            {
                let stored = self.store.append(claim, events, Some(run.state)).await;
                let entries = stored.map_err(|error| match error {
                    StoreError::Fenced { .. } => DriverError::Fenced(run.id),
                    other => DriverError::Store(other),
                })?;
                let events: Vec<Event> = entries.into_iter().map(|entry| entry.event).collect();
                self.observer.update(RunUpdate {
                    run: run.id,
                    runbook: &run.graph.name,
                    depth,
                    events: &events,
                });
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
            for work in work {
                let node = work.node;
                handles.insert(node, spawn(&mut working, &tasks, run, work, reports_in.clone()));
            }
            if !inputs.is_empty() {
                continue;
            }
            if over {
                return Ok(Outcome::Over);
            }
            if let Some(findings) = barrier {
                let plan = Box::new(Plan::of(run, findings));
                if limits.plan_only {
                    return Ok(Outcome::Barrier(plan));
                }
                inputs.push(match confirm.confirm(&plan).await {
                    Answer::Proceed { accepted } => {
                        Input::Proceed { by: self.options.owner.clone(), accepted }
                    }
                    Answer::Decline => Input::Cancel { by: self.options.owner.clone() },
                });
                continue;
            }
            let pause = wake.map_or(LONGEST_SLEEP, |wake| until(self.clock.now(), wake)).min(LONGEST_SLEEP);
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
                Ok(()) = cancel.changed() => {
                    inputs.extend(cancel.borrow_and_update().iter().map(|by| Input::Cancel { by: by.clone() }));
                }
                _ = heartbeat.tick(), if claim.is_some() => {
                    if let Some(claim) = claim
                        && self.store.heartbeat(std::slice::from_ref(claim)).await?.contains(&run.id)
                    {
                        return Err(DriverError::Fenced(run.id));
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
            while working.try_join_next().is_some() {}
        }
    }
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
    working.spawn(async move {
        let report = task::perform(tasks, name, work).await;
        // The receiver is gone only when the run is no longer ours.
        let _ = reports.send((node, report)).await;
    })
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

/// Plans and runs the child runs of one run.
#[derive(Clone)]
pub(crate) struct Children {
    driver: Driver,
    start: Start,
    depth: usize,
}

impl Children {
    fn start_of(&self, runbook: &Text, inputs: &Value, trigger: Trigger) -> Result<Start, Failure> {
        let bundle = Bundle { root: runbook.clone(), ..(*self.start.bundle).clone() };
        let graph = bundle.graphs.get(runbook).ok_or_else(|| {
            Failure::new(
                FailureKind::Internal,
                format!("runbook `{runbook}` is not part of this run's bundle"),
            )
        })?;
        let given = inputs.as_map().into_iter().flat_map(farrier_model::Map::iter);
        let given = given.map(|(name, value)| (name.clone(), Given::Value(value.clone()))).collect();
        let inputs = check_inputs(graph, &given).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Failure::new(FailureKind::Input, problems.join("; "))
        })?;
        Ok(Start { bundle: Arc::new(bundle), world: self.start.world.clone(), inputs, trigger })
    }

    /// The dry run of a child, as the plan of the step that starts it.
    pub(crate) fn plan<'a>(
        &'a self,
        runbook: &'a Text,
        inputs: &'a Value,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<PlanReport, Failure>> {
        Box::pin(async move {
            let trigger = Trigger::Parent { run: RunId(uuid::Uuid::nil()), node: node.clone() };
            let start = self.start_of(runbook, inputs, trigger)?;
            let plan = self.driver.plan(&start).await.map_err(|error| {
                Failure::new(FailureKind::Internal, format!("runbook `{runbook}`: {error}"))
            })?;
            if let Some(failure) = &plan.failure {
                let message = format!("runbook `{runbook}`: {}", failure.message);
                return Err(Failure { message, ..failure.clone() });
            }
            let planned = if plan.is_empty() {
                Planned::known(plan.outputs.clone())
            } else {
                let fidelity = if plan.is_certain() { Fidelity::Computed } else { Fidelity::Deferred };
                let change = Change {
                    object: format!("run of {runbook}").into(),
                    kind: ChangeKind::Run,
                    before: Value::Null,
                    after: start.inputs.clone(),
                    fingerprint: None,
                };
                Planned { fidelity, output: None, ..Planned::changes(vec![change], Value::Null) }
            };
            Ok(PlanReport { planned: Arc::new(planned), child: Some(Arc::new(plan)), finish: None })
        })
    }

    /// Starts a child, or takes up one that was started before, and waits for its end.
    pub(crate) fn run<'a>(
        &'a self,
        runbook: &'a Text,
        inputs: &'a Value,
        parent: RunId,
        node: &'a NodeName,
    ) -> impl Future<Output = Report> + Send + 'a {
        let id = parent.child(node);
        Box::pin(async move {
            let start =
                match self.start_of(runbook, inputs, Trigger::Parent { run: parent, node: node.clone() }) {
                    Ok(start) => start,
                    Err(failure) => return Report::Applied(Err(failure)),
                };
            match self.run_to_end(id, parent, &start).await {
                Ok(ended) => report(runbook, ended),
                Err(error) => {
                    let mut message = format!("child run {id} of `{runbook}`: {error}");
                    let mut cause = std::error::Error::source(&error);
                    while let Some(source) = cause {
                        message = format!("{message}: {source}");
                        cause = source.source();
                    }
                    Report::Applied(Err(Failure::new(FailureKind::Internal, message).in_doubt()))
                }
            }
        })
    }

    async fn run_to_end(&self, id: RunId, parent: RunId, start: &Start) -> Result<Ended, DriverError> {
        self.driver.create(id, start, Some(parent)).await?;
        if let Some(row) = self.driver.store.run(id).await?
            && row.state.is_final()
        {
            let journal = self.driver.store.journal(id).await?;
            let run = Run::replay(id, start.bundle.graph().clone(), &journal)
                .map_err(|source| DriverError::Replay { run: id, source })?;
            return Ok(Ended::of(&run));
        }
        self.driver.resume_at(id, start, &ProceedAlways, &[], self.depth + 1).await
    }
}

/// What a child's end means for the step that started it.
fn report(runbook: &Text, ended: Ended) -> Report {
    match ended.state {
        RunState::Succeeded => Report::Applied(Ok(ended.outputs)),
        RunState::Parked => {
            let why = ended.parked.unwrap_or_default();
            Report::ChildParked(format!("child run {} of `{runbook}` waits for a person: {why}", ended.run))
        }
        state => {
            let why = ended.failure.map_or_else(String::new, |failure| format!(": {failure}"));
            let message = format!("child run {} of `{runbook}` ended {}{why}", ended.run, state.name());
            Report::Applied(Err(Failure::new(FailureKind::Child, message)))
        }
    }
}
