//! [`Run`]: the fold of a run's journal, plus what its owner holds in memory while it works.
//!
//! The two halves are kept apart in each node: everything in [`NodeRun`] comes from events, except `phase`, which
//! only the living process knows and a restart begins anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use farrier_action::Planned;
use farrier_model::event::{ParkCause, Trigger};
use farrier_model::time::Timestamp;
use farrier_model::{
    Change, Effect, Entry, Event, Failure, IllegalEvent, NodeEvent, NodeName, NodeState, RunId, RunState,
    Text, Value,
};
use farrier_runbook::graph::{Graph, Guard, Need, OnFailure, Step, StepIndex};

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
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The runbook's outputs, at the end.
    pub outputs: Value,
    /// The first reason for a bad end.
    pub failure: Option<Failure>,
    /// Why it is parked.
    pub parked: Option<(String, ParkCause)>,
    /// Claims since it was created or last parked; more than one means that an owner died or let go.
    pub claims: u32,
    /// Members of the environment's groups of targets, by alias; not part of the journal.
    pub targets: Value,
    /// What the environment allows at most, besides the runbook's own guards; not part of the journal.
    pub environment_guards: Vec<Guard>,
    /// The guard that parked it.
    pub asking_guard: Option<Text>,
    pub(crate) steps: Vec<StepRun>,
    pub(crate) index: Arc<HashMap<Text, StepIndex>>,
    pub(crate) writes_allowed: bool,
    pub(crate) finished_early: Option<String>,
    pub(crate) undo_started: Option<String>,
    pub(crate) cancelled_by: Option<String>,
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
    /// Retry times, soonest first.
    pub(crate) timers: BTreeSet<(Timestamp, NodeRef)>,
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
        let Event::Created { environment, inputs, trigger, .. } = &created.event else {
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
        Ok(Run {
            id,
            state: RunState::Queued,
            environment: environment.clone(),
            inputs: inputs.clone(),
            trigger: trigger.clone(),
            started_at: created.at,
            finished_at: None,
            outputs: Value::Null,
            failure: None,
            parked: None,
            claims: 0,
            targets: Value::Null,
            environment_guards: Vec::new(),
            asking_guard: None,
            steps,
            index: Arc::new(index),
            writes_allowed: false,
            finished_early: None,
            undo_started: None,
            cancelled_by: None,
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
        match event {
            Event::Created { .. } => return Err(ReplayError::NotCreated),
            Event::Claimed { .. } => {
                self.claims += 1;
                self.state = if self.undo_started.is_some() { RunState::Undoing } else { RunState::Running };
                self.parked = None;
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
            Event::CancelRequested { by } => self.cancelled_by = Some(by.clone()),
            Event::Parked { reason, cause, guard } => {
                self.asking_guard.clone_from(guard);
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
            NodeEvent::InDoubt { reason } => node.reason = Some(reason.clone().into()),
            NodeEvent::NotApplied { .. } => node.retry_at = None,
            NodeEvent::UndoIntent { .. } => {}
            NodeEvent::UndoDone => node.reason = None,
            NodeEvent::UndoFailed { failure } => node.failure = Some(failure.clone()),
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
            if dependent_run.unsettled == 0 || (!self.writes_allowed && dependent_run.unplanned == 0) {
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
            if step.unsettled == 0 && !step.node.state.is_settled() {
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
