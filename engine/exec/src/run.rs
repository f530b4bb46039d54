//! [`Run`]: the fold of a run's journal, plus what its owner holds in memory while it works.
//!
//! The two halves are kept apart in each node: everything in [`NodeRun`] comes from events, except `phase`, which
//! only the living process knows and a restart begins anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use farrier_action::{Planned, WaitFor};
use farrier_model::event::{ParkCause, Trigger};
use farrier_model::time::Timestamp;
use farrier_model::{
    BoundPlan, Change, Digest, Effect, Entry, Event, Failure, IllegalEvent, NodeEvent, NodeName, NodeState,
    RunId, RunState, Subject, Text, Value, Wait,
};
use farrier_runbook::graph::{Graph, Guard, Need, OnFailure, Step, StepIndex};

use crate::bound::Bound;
use crate::guard::Counts;

/// A node of a run: a step, or an item of a `for_each` step by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeRef {
    /// The step.
    pub step: StepIndex,
    /// The item.
    pub item: Option<u32>,
}

impl NodeRef {
    /// The node of a plain step.
    pub fn step(step: StepIndex) -> NodeRef {
        NodeRef { step, item: None }
    }
}

/// A journal that cannot be folded.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// An event that cannot happen to its node.
    #[error("node `{node}`: {source}")]
    Illegal {
        /// The node.
        node: NodeName,
        /// What is wrong.
        source: IllegalEvent,
    },
    /// An event about a node that the pinned runbook does not have.
    #[error("the journal speaks of node `{0}`, which the runbook does not have")]
    UnknownNode(NodeName),
    /// A plan in the journal that this version cannot read.
    #[error("a plan in the journal cannot be read: {0}")]
    Plan(String),
    /// The first event is not `created`, or it comes twice.
    #[error("the journal does not begin with exactly one `created`")]
    NotCreated,
}

/// One node: its journaled state, and its phase in this process.
#[derive(Debug, Clone, Default)]
pub struct NodeRun {
    /// Where it stands, as far as the journal tells.
    pub state: NodeState,
    /// The last try that began, from 1; 0 before the first.
    pub attempt: u32,
    /// Its output, when it succeeded or its effect was applied.
    pub output: Option<Value>,
    /// Why it failed last.
    pub failure: Option<Failure>,
    /// It failed and the run went on.
    pub continued: bool,
    /// When it will be tried again.
    pub retry_at: Option<Timestamp>,
    /// The inputs of its first intent; recovery uses these and never renders again.
    pub inputs: Option<Value>,
    /// The effect class of its intent.
    pub effect: Option<Effect>,
    /// What it changed, or may have changed, over all attempts: the earliest before-image and the latest after-image
    /// of each object.
    pub effects: Vec<Change>,
    /// How many objects it changed.
    pub changed: u64,
    /// Position in the order in which nodes succeeded; undo goes through it backwards.
    pub order: u64,
    /// Why it was skipped, or what blocked it.
    pub reason: Option<Text>,
    /// What it waits for, while it is waiting; nothing when its effect is being verified.
    pub wait: Option<Wait>,
    /// What this process is doing with it.
    pub phase: Phase,
    /// Its plan, until it is applied or outdated.
    pub planned: Option<PlannedNode>,
}

/// What the owner's process is doing with a node. Lost with the process.
#[derive(Debug, Clone, Default)]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// Waits for a free place.
    Queued,
    /// Stands in line for its lock.
    Locked,
    /// Its child run was looked at and waits; nothing to do until something comes.
    Rests,
    /// A task is at work on its effect.
    Busy,
    /// A task is reading for it; it can be given up.
    Reading,
    /// A dry run found that it would be skipped.
    WouldSkip,
    /// Its plan needs something known only after another step.
    Deferred {
        /// That step.
        after: Text,
        /// Whether it would run at all is not known either.
        maybe: bool,
    },
}

/// A plan that waits for the barrier or for its inputs to become final.
#[derive(Debug, Clone)]
pub struct PlannedNode {
    /// The rendered inputs.
    pub inputs: Value,
    /// What the action or the child run's dry run found.
    pub planned: Arc<Planned<Value>>,
    /// The dry run of a child.
    pub child: Option<Arc<crate::plan::Plan>>,
    /// Nothing it depends on has changes of its own, so apply may make exactly these changes.
    pub firm: bool,
}

impl PlannedNode {
    /// Its changes by kind; those of a child run count one by one.
    pub(crate) fn counts(&self) -> Counts {
        match &self.child {
            Some(child) => child.counts(),
            None => Counts::of(&self.planned.changes, self.planned.considered),
        }
    }
}

/// The items of a `for_each` step.
#[derive(Debug, Default)]
pub struct Items {
    /// Their keys, in order.
    pub keys: Vec<Text>,
    /// Their values; empty after a replay until they are needed.
    pub values: Vec<Value>,
    /// Their nodes.
    pub nodes: Vec<NodeRun>,
    /// The keys are in the journal.
    pub(crate) journaled: bool,
    pub(crate) by_key: HashMap<Text, u32>,
    pub(crate) unsettled: usize,
    pub(crate) active: usize,
}

/// A lock that a run wants or holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockRun {
    /// When it gives up waiting.
    pub until: Option<Timestamp>,
    /// The fence, once it holds the lock.
    pub fence: Option<i64>,
}

/// A person's word on a step in doubt.
#[derive(Debug, Clone, PartialEq)]
pub struct Attested {
    /// The step.
    pub node: NodeName,
    /// Whether its effect happened.
    pub applied: bool,
    /// What it gave; null when they said nothing of it.
    pub output: Value,
    /// Who said so.
    pub by: String,
}

impl Attested {
    /// Whether this says the same of the same step.
    pub fn says_what(&self, other: &Attested) -> bool {
        self.node == other.node && self.applied == other.applied && self.output == other.output
    }
}

/// An approval that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ApprovalRun {
    /// Who may say yes; empty for anyone but the person who asked for the run.
    pub who: Vec<Text>,
    /// How many must say yes.
    pub count: u32,
    /// When it is too late.
    pub expires: Option<Timestamp>,
    /// The plan.
    pub plan: BoundPlan,
    /// Who said yes, in order.
    pub approved: Vec<String>,
    /// Who said no, and what they said.
    pub rejected: Option<(String, Option<String>)>,
}

impl ApprovalRun {
    /// Whether enough people said yes.
    pub fn is_granted(&self) -> bool {
        self.approved.len() >= self.count as usize
    }

    /// Whether an answer is still awaited.
    pub fn is_open(&self) -> bool {
        !self.is_granted() && self.rejected.is_none()
    }
}

/// A signal that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalRun {
    /// Who sent it.
    pub by: String,
    /// What they said.
    pub reason: Option<String>,
}

/// One step of a run.
#[derive(Debug, Default)]
pub struct StepRun {
    /// The step as a whole.
    pub node: NodeRun,
    /// Its items, once known.
    pub items: Option<Items>,
    /// Needs whose steps are not settled.
    pub(crate) unsettled: u32,
    /// Needs whose steps are neither settled nor planned.
    pub(crate) unplanned: u32,
    /// It already counts as planned for its dependents.
    pub(crate) counted_planned: bool,
}

/// Everything that is known of a run. Build it with [`Run::replay`] or [`Run::new`].
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The checked runbook it is pinned to.
    pub graph: Arc<Graph>,
    /// Where it stands.
    pub state: RunState,
    /// The environment's name.
    pub environment: Text,
    /// The checked inputs.
    pub inputs: Value,
    /// Why it began.
    pub trigger: Trigger,
    /// When it was created.
    pub started_at: Timestamp,
    /// What expressions take for it: when the plan that this run carries out was made, otherwise the same.
    pub(crate) moment: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The runbook's outputs, at the end.
    pub outputs: Value,
    /// The first reason for a bad end.
    pub failure: Option<Failure>,
    /// Why it is parked.
    pub parked: Option<(String, ParkCause)>,
    /// Claims since it was created or last parked, or since its last progress, which counts as one; more than one means that
    /// an owner died.
    pub claims: u32,
    /// Members of the environment's groups of targets, by alias; not part of the journal.
    pub targets: Value,
    /// What the environment allows at most, besides the runbook's own guards; not part of the journal.
    pub environment_guards: Vec<Guard>,
    /// How many people must approve before the first write, and who belongs to which group, in this environment; not part
    /// of the journal.
    pub approvals_needed: u32,
    /// See [`Run::approvals_needed`].
    pub people: Arc<BTreeMap<Text, Vec<Text>>>,
    /// The guard that parked it.
    pub asking_guard: Option<Text>,
    /// What that guard asks about.
    pub asking_plan: Option<BoundPlan>,
    /// Why it waits and until when, while nobody works on it.
    pub suspended: Option<(String, Option<Timestamp>)>,
    /// Locks that it wants or holds, by name and node.
    pub locks: BTreeMap<(Text, Option<NodeName>), LockRun>,
    /// Approvals that were asked for.
    pub approvals: BTreeMap<Subject, ApprovalRun>,
    /// Signals that arrived, by name.
    pub signals: BTreeMap<Text, SignalRun>,
    /// People's words on steps in doubt that another person has to confirm.
    pub attested: Vec<Attested>,
    /// The saved plan that it was started to carry out.
    pub saved_plan: Option<Digest>,
    pub(crate) steps: Vec<StepRun>,
    pub(crate) index: Arc<HashMap<Text, StepIndex>>,
    pub(crate) writes_allowed: bool,
    pub(crate) finished_early: Option<String>,
    pub(crate) undo_started: Option<String>,
    pub(crate) cancelled_by: Option<String>,
    pub(crate) cancel_undoes: bool,
    pub(crate) bound: Option<Arc<Bound>>,
    pub(crate) accepted: BTreeSet<Text>,
    pub(crate) committed: bool,
    pub(crate) continued_failures: u32,
    pub(crate) first_failure: Option<Failure>,
    pub(crate) stop: Option<OnFailure>,
    pub(crate) next_order: u64,
    pub(crate) memory: Memory,
}

/// What only the living process knows about the run as a whole.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Nodes to look at, in file order.
    pub(crate) dirty: BTreeSet<NodeRef>,
    /// Nodes that wait for a free place, in file order.
    pub(crate) queue: BTreeSet<NodeRef>,
    /// Tasks at work.
    pub(crate) active: usize,
    /// Steps of `finally` may begin.
    pub(crate) finally_open: bool,
    /// The barrier was reported and no answer came yet.
    pub(crate) at_barrier: bool,
    /// Evaluated once.
    pub(crate) vars: Option<Result<Value, Failure>>,
    /// The counts of each node that has changes, and their sum.
    pub(crate) counts: BTreeMap<NodeRef, Counts>,
    pub(crate) total: Counts,
    /// Moments at which to look at a node again, soonest first.
    pub(crate) timers: BTreeSet<(Timestamp, NodeRef)>,
    /// Nodes that wait for a time, an answer or a child run.
    pub(crate) waiting: BTreeSet<NodeRef>,
    /// Approvals whose plan is being made.
    pub(crate) asking: HashMap<NodeRef, WaitFor>,
    /// How often what the rate guards count was executed, by the guard's name.
    pub(crate) rates: HashMap<String, u64>,
    /// Why it was parked when its owner took it up.
    pub(crate) was_parked: Option<Event>,
    /// A person has let the parked run go on.
    pub(crate) unparked: bool,
    /// Its owner is about to let go: nothing new begins.
    pub(crate) letting_go: bool,
    /// Reading tasks were told to give up.
    pub(crate) gave_up: bool,
    /// Recovery of what a dead owner left has been started.
    pub(crate) recovered: bool,
    /// Remarks of plans that found nothing to change.
    pub(crate) notes: HashMap<NodeRef, Vec<String>>,
}

impl Run {
    /// A run of which only its first event is known.
    ///
    /// # Errors
    /// When `created` is another event.
    pub fn new(id: RunId, graph: Arc<Graph>, created: &Entry) -> Result<Run, ReplayError> {
        let Event::Created { environment, inputs, trigger, plan, .. } = &created.event else {
            return Err(ReplayError::NotCreated);
        };
        let index: HashMap<Text, StepIndex> =
            graph.indices().map(|index| (graph.step(index).id.clone(), index)).collect();
        let steps = graph
            .indices()
            .map(|index| {
                let needs = graph.needs(index).count() as u32;
                StepRun { unsettled: needs, unplanned: needs, ..StepRun::default() }
            })
            .collect();
        let mut memory = Memory::default();
        memory.dirty.extend(graph.indices().filter(|i| graph.needs(*i).next().is_none()).map(NodeRef::step));
        let bound = plan.as_ref().map(|plan| Bound::of(plan)).transpose().map_err(ReplayError::Plan)?;
        Ok(Run {
            id,
            state: RunState::Queued,
            environment: environment.clone(),
            inputs: inputs.clone(),
            trigger: trigger.clone(),
            started_at: created.at,
            moment: plan.as_ref().and_then(|plan| plan.run).map_or(created.at, |planned| planned.started_at),
            finished_at: None,
            outputs: Value::Null,
            failure: None,
            parked: None,
            claims: 0,
            targets: Value::Null,
            environment_guards: Vec::new(),
            approvals_needed: 0,
            people: Arc::default(),
            asking_guard: None,
            asking_plan: None,
            suspended: None,
            locks: BTreeMap::new(),
            approvals: BTreeMap::new(),
            signals: BTreeMap::new(),
            attested: Vec::new(),
            saved_plan: plan.as_ref().map(|plan| plan.digest),
            steps,
            index: Arc::new(index),
            writes_allowed: false,
            finished_early: None,
            undo_started: None,
            cancelled_by: None,
            cancel_undoes: false,
            bound: bound.map(Arc::new),
            accepted: BTreeSet::new(),
            committed: false,
            continued_failures: 0,
            first_failure: None,
            stop: None,
            next_order: 0,
            memory,
            graph,
        })
    }

    /// A run from its whole journal.
    ///
    /// # Errors
    /// When the journal does not fit the runbook: it is damaged or from a newer version.
    pub fn replay(id: RunId, graph: Arc<Graph>, journal: &[Entry]) -> Result<Run, ReplayError> {
        let [created, rest @ ..] = journal else { return Err(ReplayError::NotCreated) };
        let mut run = Run::new(id, graph, created)?;
        for entry in rest {
            run.fold(&entry.event, entry.at)?;
        }
        Ok(run)
    }

    /// Takes one event in. Replay and live execution both come through here.
    ///
    /// # Errors
    /// When the event cannot follow what came before.
    pub fn fold(&mut self, event: &Event, at: Timestamp) -> Result<(), ReplayError> {
        if goes_on(event) {
            self.memory.was_parked = None;
        }
        match event {
            Event::Created { .. } => return Err(ReplayError::NotCreated),
            Event::Claimed { .. } => {
                self.claims += 1;
                self.state = if self.undo_started.is_some() { RunState::Undoing } else { RunState::Running };
                // An owner that died before it did anything has not let the run go on.
                if let Some((reason, cause)) = self.parked.take() {
                    self.memory.was_parked = Some(Event::Parked {
                        reason,
                        cause,
                        guard: self.asking_guard.clone(),
                        plan: self.asking_plan.clone().map(Box::new),
                    });
                }
                self.suspended = None;
                self.memory.recovered = false;
            }
            Event::WritesAllowed { .. } => {
                self.writes_allowed = true;
                self.memory.at_barrier = false;
                self.mark_planned_dirty();
            }
            Event::Node { node, attempt, event } => self.fold_node(node, *attempt, event)?,
            Event::FinishedEarly { reason, .. } => self.finished_early = Some(reason.clone()),
            Event::UndoStarted { reason } => {
                self.undo_started = Some(reason.clone());
                self.state = RunState::Undoing;
            }
            Event::CancelRequested { by, undo, .. } => {
                self.cancelled_by = Some(by.clone());
                self.cancel_undoes = *undo;
            }
            Event::Suspended { until, reason } => {
                self.suspended = Some((reason.clone(), *until));
                self.state = RunState::Waiting;
                // To be woken is not to be taken over from an owner that died.
                self.claims = 0;
            }
            Event::LockAsked { lock, node, until, .. } => {
                let wanted = LockRun { until: *until, fence: None };
                self.locks.insert((lock.clone(), node.clone()), wanted);
            }
            Event::LockTaken { lock, node, fence } => {
                let held = self.locks.entry((lock.clone(), node.clone()));
                held.or_insert(LockRun { until: None, fence: None }).fence = Some(*fence);
            }
            Event::LockReleased { lock, node } => {
                self.locks.remove(&(lock.clone(), node.clone()));
            }
            Event::ApprovalAsked { subject, who, count, expires, plan } => {
                let asked = ApprovalRun {
                    who: who.clone(),
                    count: *count,
                    expires: *expires,
                    plan: (**plan).clone(),
                    approved: Vec::new(),
                    rejected: None,
                };
                self.approvals.insert(subject.clone(), asked);
            }
            Event::Approved { subject, by, .. } => {
                let Some(asked) = self.approvals.get_mut(subject) else { return Ok(()) };
                if !asked.approved.contains(by) {
                    asked.approved.push(by.clone());
                }
                if asked.is_granted() {
                    self.bound = Some(Arc::new(Bound::of(&asked.plan).map_err(ReplayError::Plan)?));
                }
            }
            Event::Rejected { subject, by, reason, .. } => {
                if let Some(asked) = self.approvals.get_mut(subject) {
                    asked.rejected = Some((by.clone(), reason.clone()));
                }
            }
            Event::SignalReceived { name, by, reason } => {
                let received = SignalRun { by: by.clone(), reason: reason.clone() };
                self.signals.entry(name.clone()).or_insert(received);
            }
            Event::Attested { node, applied, output, by, .. } => self.attested.push(Attested {
                node: node.clone(),
                applied: *applied,
                output: output.clone().unwrap_or_default(),
                by: by.clone(),
            }),
            Event::RequestRefused { .. } => {}
            Event::Parked { reason, cause, guard, plan } => {
                self.asking_guard.clone_from(guard);
                self.asking_plan = plan.as_deref().cloned();
                self.parked = Some((reason.clone(), *cause));
                self.state = RunState::Parked;
                self.claims = 0;
            }
            Event::Resumed { accepted, .. } => {
                self.parked = None;
                self.state = RunState::Running;
                self.accepted.extend(accepted.clone());
                self.memory.at_barrier = false;
            }
            Event::Finished { state, outputs, failure } => {
                self.state = *state;
                self.outputs = outputs.clone();
                self.failure.clone_from(failure);
                self.finished_at = Some(at);
            }
        }
        Ok(())
    }

    fn fold_node(&mut self, name: &NodeName, attempt: u32, event: &NodeEvent) -> Result<(), ReplayError> {
        let reference = self.find(name).ok_or_else(|| ReplayError::UnknownNode(name.clone()))?;
        let step = self.graph.clone();
        let step = step.step(reference.step);
        let node = self.node_mut(reference);
        let before = node.state;
        let state =
            before.after(event).map_err(|source| ReplayError::Illegal { node: name.clone(), source })?;
        node.state = state;
        node.attempt = attempt.max(node.attempt);
        if !matches!(event, NodeEvent::Expanded { .. }) {
            node.phase = Phase::Idle;
            node.planned = None;
            node.wait = None;
        }
        let mut effect_applied = None;
        match event {
            NodeEvent::Expanded { keys } => self.set_items(reference.step, keys.clone()),
            NodeEvent::Skipped { reason } => node.reason = Some(reason.clone()),
            NodeEvent::Blocked { by } => node.reason = Some(by.to_string().into()),
            NodeEvent::Intent { inputs, changes, effect, .. } => {
                node.inputs.get_or_insert_with(|| inputs.clone());
                node.effect = Some(*effect);
                merge_effects(&mut node.effects, changes);
                node.retry_at = None;
            }
            NodeEvent::Applied { output } => {
                node.output = Some(output.clone());
                effect_applied = Some(step);
            }
            NodeEvent::Succeeded { output, changed } => {
                if step.for_each.is_none() || reference.item.is_some() {
                    node.output = Some(output.clone());
                }
                node.changed = *changed;
                node.failure = None;
                node.retry_at = None;
                if *changed > 0 {
                    effect_applied = Some(step);
                }
            }
            NodeEvent::Failed { failure, retry_at, continued } => {
                node.failure = Some(failure.clone());
                node.retry_at = *retry_at;
                node.continued = *continued;
            }
            NodeEvent::WaitBegan { wait } => node.wait = Some(wait.clone()),
            NodeEvent::InDoubt { reason } => node.reason = Some(reason.clone().into()),
            NodeEvent::NotApplied { .. } => node.retry_at = None,
            NodeEvent::UndoIntent { .. } => {}
            NodeEvent::UndoDone => node.reason = None,
            NodeEvent::UndoFailed { failure } => node.failure = Some(failure.clone()),
        }
        if self.node(reference).wait.is_some() {
            self.memory.waiting.insert(reference);
        } else if before == NodeState::Waiting {
            self.memory.waiting.remove(&reference);
        }
        if effect_applied.is_some_and(|step| step.commit_point) {
            self.committed = true;
        }
        if before != state && !before.is_settled() && state.is_settled() {
            self.settle(reference, step);
        }
        Ok(())
    }

    /// What follows from a node being settled: its order, its step, its dependents, the run's fate.
    fn settle(&mut self, reference: NodeRef, step: &Step) {
        let order = self.next_order;
        self.next_order += 1;
        // A long run may lose many owners; only one that gets nowhere is what ends them.
        self.claims = self.claims.min(1);
        let node = self.node_mut(reference);
        node.order = order;
        let failed = node.state == NodeState::Failed;
        let continued = node.continued;
        let failure = node.failure.clone();
        self.memory.queue.remove(&reference);
        if reference.item.is_some() {
            let items = self.steps[reference.step.index()].items.as_mut();
            if let Some(items) = items {
                items.unsettled = items.unsettled.saturating_sub(1);
            }
            self.memory.dirty.insert(NodeRef::step(reference.step));
            return;
        }
        if failed {
            if continued {
                self.continued_failures += 1;
            } else if self.stop.is_none() && !step.finally {
                self.stop = Some(step.on_failure);
            }
            if !continued || self.first_failure.is_none() {
                self.first_failure = self.first_failure.take().or(failure);
            }
        }
        let graph = self.graph.clone();
        let was_planned = std::mem::replace(&mut self.steps[reference.step.index()].counted_planned, true);
        for (dependent, _) in graph.dependents(reference.step) {
            let dependent_run = &mut self.steps[dependent.index()];
            dependent_run.unsettled = dependent_run.unsettled.saturating_sub(1);
            if !was_planned {
                dependent_run.unplanned = dependent_run.unplanned.saturating_sub(1);
            }
            let may_begin = dependent_run.unsettled == 0 || self.comes_last(dependent);
            if may_begin || (!self.writes_allowed && self.steps[dependent.index()].unplanned == 0) {
                self.memory.dirty.insert(NodeRef::step(dependent));
            }
        }
    }

    /// Counts a step as planned for its dependents.
    pub(crate) fn count_planned(&mut self, step: StepIndex) {
        if std::mem::replace(&mut self.steps[step.index()].counted_planned, true) {
            return;
        }
        let graph = self.graph.clone();
        for (dependent, _) in graph.dependents(step) {
            let dependent_run = &mut self.steps[dependent.index()];
            dependent_run.unplanned = dependent_run.unplanned.saturating_sub(1);
            if dependent_run.unplanned == 0 {
                self.memory.dirty.insert(NodeRef::step(dependent));
            }
        }
    }

    pub(crate) fn set_items(&mut self, step: StepIndex, keys: Vec<Text>) {
        let run = &mut self.steps[step.index()];
        if let Some(items) = &mut run.items
            && items.keys == keys
        {
            items.journaled = true;
            return;
        }
        run.items = Some(Items {
            by_key: keys.iter().enumerate().map(|(at, key)| (key.clone(), at as u32)).collect(),
            nodes: vec![NodeRun::default(); keys.len()],
            unsettled: keys.len(),
            journaled: true,
            values: Vec::new(),
            active: 0,
            keys,
        });
    }

    /// Whether the main steps are over and this one belongs to `finally`: what the run did not come to, it does not wait for.
    fn comes_last(&self, step: StepIndex) -> bool {
        self.memory.finally_open && self.graph.step(step).finally
    }

    /// After the barrier: planned nodes go on, deferred ones begin anew when their needs are met.
    fn mark_planned_dirty(&mut self) {
        for index in self.graph.indices() {
            let step = &mut self.steps[index.index()];
            if matches!(step.node.phase, Phase::Deferred { .. } | Phase::WouldSkip) {
                step.node.phase = Phase::Idle;
            }
            let provisional_items = step.items.as_ref().is_some_and(|items| !items.journaled);
            if provisional_items {
                step.items = None;
                step.node.phase = Phase::Idle;
            }
            let (open, settled) = (step.unsettled == 0, step.node.state.is_settled());
            if !settled && (open || self.comes_last(index)) {
                self.memory.dirty.insert(NodeRef::step(index));
            }
            let Some(items) = &mut self.steps[index.index()].items else { continue };
            for (at, node) in items.nodes.iter_mut().enumerate() {
                if matches!(node.phase, Phase::Deferred { .. } | Phase::WouldSkip) {
                    node.phase = Phase::Idle;
                }
                if !node.state.is_settled() {
                    self.memory.dirty.insert(NodeRef { step: index, item: Some(at as u32) });
                }
            }
        }
    }

    /// Makes a run that is under way fit for a dry run of what is left of it, as if `passed` had been passed. What others
    /// are at work on is not known yet, as in any plan.
    pub(crate) fn rehearse(&mut self, passed: &NodeName) {
        self.writes_allowed = false;
        self.bound = None;
        self.state = RunState::Running;
        self.suspended = None;
        self.memory.at_barrier = false;
        self.memory.recovered = true;
        self.memory.timers.clear();
        self.memory.waiting.clear();
        if let Some(node) = self.find(passed) {
            let id = self.graph.step(node.step).id.clone();
            let step = self.graph.clone();
            let run_node = self.node_mut(node);
            run_node.output = Some(Value::Unknown(id));
            run_node.state = NodeState::Succeeded;
            run_node.wait = None;
            self.settle(node, step.step(node.step));
        }
        for index in self.graph.clone().indices() {
            let step = &mut self.steps[index.index()];
            let at_work =
                |node: &NodeRun| !node.state.is_settled() && !matches!(node.state, NodeState::Pending);
            if at_work(&step.node) || step.items.as_ref().is_some_and(|items| items.nodes.iter().any(at_work))
            {
                self.count_planned(index);
            }
            let step = &self.steps[index.index()];
            if !step.node.state.is_settled() && (step.unsettled == 0 || step.unplanned == 0) {
                self.memory.dirty.insert(NodeRef::step(index));
                let items = step.items.as_ref().map_or(0, |items| items.nodes.len() as u32);
                self.memory.dirty.extend((0..items).map(|item| NodeRef { step: index, item: Some(item) }));
            }
        }
    }

    /// Who asked for the run: whose approval does not count.
    pub fn requested_by(&self) -> Option<&str> {
        self.trigger.by()
    }

    /// Whether its commit point is passed, or being passed: it only goes forward. A deletion that is tried again may have
    /// deleted half.
    pub fn is_committed(&self) -> bool {
        use NodeState::{InDoubt, Retryable, Running, Waiting};
        let begun = |node: NodeRef| {
            let of = self.node(node);
            of.effect.is_some() && matches!(of.state, Running | Waiting | InDoubt | Retryable)
        };
        self.committed || self.nodes().any(|node| self.graph.step(node.step).commit_point && begun(node))
    }

    /// Whether somebody asked it to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled_by.is_some()
    }

    /// A node by name.
    pub fn find(&self, name: &NodeName) -> Option<NodeRef> {
        let step = *self.index.get(&name.step)?;
        match &name.item {
            None => Some(NodeRef::step(step)),
            Some(key) => {
                let item = *self.steps[step.index()].items.as_ref()?.by_key.get(key)?;
                Some(NodeRef { step, item: Some(item) })
            }
        }
    }

    /// The name of a node.
    pub fn name(&self, reference: NodeRef) -> NodeName {
        let step = self.graph.step(reference.step).id.clone();
        let item = reference.item.and_then(|at| {
            self.steps[reference.step.index()].items.as_ref().map(|items| items.keys[at as usize].clone())
        });
        NodeName { step, item }
    }

    /// A node.
    ///
    /// # Panics
    /// When `reference` is of another run.
    pub fn node(&self, reference: NodeRef) -> &NodeRun {
        let step = &self.steps[reference.step.index()];
        match (reference.item, &step.items) {
            (Some(item), Some(items)) => &items.nodes[item as usize],
            _ => &step.node,
        }
    }

    pub(crate) fn node_mut(&mut self, reference: NodeRef) -> &mut NodeRun {
        let step = &mut self.steps[reference.step.index()];
        match (reference.item, &mut step.items) {
            (Some(item), Some(items)) => &mut items.nodes[item as usize],
            _ => &mut step.node,
        }
    }

    /// A step with its items.
    pub fn step(&self, index: StepIndex) -> &StepRun {
        &self.steps[index.index()]
    }

    /// Every node that exists now, steps in file order, each followed by its items.
    pub fn nodes(&self) -> impl Iterator<Item = NodeRef> + '_ {
        self.graph.indices().flat_map(|step| {
            let items = self.steps[step.index()].items.as_ref().map_or(0, |items| items.nodes.len() as u32);
            std::iter::once(NodeRef::step(step))
                .chain((0..items).map(move |item| NodeRef { step, item: Some(item) }))
        })
    }

    /// The same, without the items that are known before their step may begin: a plan shows those, and no journal has them
    /// yet.
    pub fn journaled_nodes(&self) -> impl Iterator<Item = NodeRef> + '_ {
        let journaled = |node: &NodeRef| {
            node.item.is_none()
                || self.steps[node.step.index()].items.as_ref().is_some_and(|items| items.journaled)
        };
        self.nodes().filter(journaled)
    }

    /// Whether the guards have let writes begin.
    pub fn writes_allowed(&self) -> bool {
        self.writes_allowed
    }

    /// How many changes were made, over all nodes.
    pub fn changed(&self) -> u64 {
        self.nodes().map(|node| self.node(node).changed).sum()
    }

    /// The guards over the whole run: the runbook's, then the environment's.
    pub(crate) fn run_guards(&self) -> impl Iterator<Item = &Guard> {
        self.graph.guards.iter().chain(&self.environment_guards)
    }

    /// Whether a need is met by where its step stands.
    pub(crate) fn need_met(&self, on: StepIndex, need: Need) -> bool {
        let node = &self.steps[on.index()].node;
        match need {
            Need::Finished => node.state.is_settled(),
            Need::Succeeded => match node.state {
                NodeState::Succeeded | NodeState::Skipped => true,
                NodeState::Failed => node.continued && self.graph.step(on).default_output.is_some(),
                _ => false,
            },
        }
    }
}

/// Adds the changes of one more attempt: the before-image stays that of the first.
fn merge_effects(effects: &mut Vec<Change>, changes: &[Change]) {
    if effects.is_empty() {
        effects.extend_from_slice(changes);
        return;
    }
    let known: HashMap<Text, usize> =
        effects.iter().enumerate().map(|(at, change)| (change.object.clone(), at)).collect();
    for change in changes {
        match known.get(&change.object) {
            Some(at) => effects[*at].after.clone_from(&change.after),
            None => effects.push(change.clone()),
        }
    }
}

/// Whether a run that was parked went on when this happened: somebody had let it, whether the journal says so or not.
fn goes_on(event: &Event) -> bool {
    match event {
        Event::Node { event, .. } => !matches!(event, NodeEvent::InDoubt { .. }),
        Event::WritesAllowed { .. }
        | Event::CancelRequested { .. }
        | Event::UndoStarted { .. }
        | Event::ApprovalAsked { .. }
        | Event::Suspended { .. }
        | Event::Resumed { .. } => true,
        _ => false,
    }
}
