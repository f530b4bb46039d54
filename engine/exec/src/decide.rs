//! What a run does next. Pure: the answer depends on the run, the inputs and `now`, and on nothing else.
//!
//! [`Run::decide`] takes what happened since the last call, and returns events to make durable and work to hand out
//! after that. It looks only at nodes whose situation may have changed (`memory.dirty`), so a run of 10,000 steps
//! costs a few microseconds per step.
//!
//! **The barrier.** Until writes are allowed, steps are planned as far as that is possible without writing: those whose
//! needs are settled for real ("firm": apply may make exactly these changes), and, below steps with changes, whatever
//! can be computed provisionally, which is shown and counted and planned again when its turn comes. When nothing more
//! can be planned, the guards are held against all of it; a dry run ends here, and a run goes on.

use std::sync::Arc;

use farrier_action::{Planned, Probe};
use farrier_model::event::ParkCause;
use farrier_model::time::Timestamp;
use farrier_model::{
    Effect, Event, Failure, FailureKind, Fidelity, NodeEvent, NodeState, RunState, Scope, Text, Value, ids,
};
use farrier_runbook::graph::{GuardAction, OnFailure, OnItemFailure, StepIndex, Undo, Uses};

use crate::guard::{self, Counts, GuardFinding};
use crate::plan::Plan;
use crate::run::{Items, NodeRef, Phase, PlannedNode, ReplayError, Run};

/// How far a run goes, and how wide.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Stop at the barrier and keep failed attempts as they are: a dry run.
    pub plan_only: bool,
    /// Tasks at once.
    pub parallel: usize,
    /// How often a step in doubt is tried by itself before a person is asked.
    pub doubts: u32,
    /// How often a run may be taken over from an owner that died before a person is asked.
    pub takeovers: u32,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// A task ended.
    Report {
        /// The node it worked on.
        node: NodeRef,
        /// What it found.
        report: Report,
    },
    /// The barrier may be passed, with these guards accepted by `by`.
    Proceed {
        /// Who.
        by: String,
        /// The guards, as they are written in findings.
        accepted: Vec<Text>,
    },
    /// Somebody wants the run to stop.
    Cancel {
        /// Who.
        by: String,
    },
}

/// How a task ended.
#[derive(Debug)]
pub enum Report {
    /// A plan.
    Planned(Result<PlanReport, Failure>),
    /// An apply.
    Applied(Result<Value, Failure>),
    /// The checks after an apply; the output as last seen, and why the run is over, if it is.
    Verified(Result<(Value, Option<String>), Failure>),
    /// A probe.
    Probed(Result<Probe, Failure>),
    /// An undo.
    Undone(Result<(), Failure>),
    /// A child run waits for a person.
    ChildParked(String),
    /// It only read, and was given up because the run stops.
    GivenUp,
}

/// What a plan found, and what followed from it.
#[derive(Debug)]
pub struct PlanReport {
    /// Changes and output.
    pub planned: Arc<Planned<Value>>,
    /// The dry run of a child.
    pub child: Option<Arc<Plan>>,
    /// An `expect` said that the run is over and well.
    pub finish: Option<String>,
}

/// A task to hand out.
#[derive(Debug)]
pub struct Work {
    /// The node.
    pub node: NodeRef,
    /// Which try.
    pub attempt: u32,
    /// What to do.
    pub kind: WorkKind,
    /// The rendered inputs.
    pub inputs: Value,
    /// Names for item expressions, `expect` and `verify`.
    pub scope: Scope,
    /// The key for targets that remember keys.
    pub effect_id: String,
}

/// What to do with a node.
#[derive(Debug, Clone)]
pub enum WorkKind {
    /// Read, compare, and check a finished result.
    Plan {
        /// Look once instead of polling until `verify` holds.
        look_once: bool,
    },
    /// Make these changes.
    Apply(Arc<Planned<Value>>),
    /// Check an applied result.
    Verify(Value),
    /// Ask the world whether these changes happened.
    Probe(Arc<Planned<Value>>),
    /// Reverse these changes.
    Undo {
        /// What was changed.
        changes: Vec<farrier_model::Change>,
        /// The step's output, for an undo by another action.
        output: Value,
    },
}

/// What [`Run::decide`] answers.
#[derive(Debug, Default)]
pub struct Decision {
    /// To be made durable, in order, before any of `work` begins.
    pub events: Vec<Event>,
    /// To be handed out then.
    pub work: Vec<Work>,
    /// Tasks to give up: they only read, and the run stops. Each is answered with [`Report::GivenUp`].
    pub give_up: Vec<NodeRef>,
    /// When to ask again even if nothing happens.
    pub wake: Option<Timestamp>,
    /// The barrier is reached: these are the guards' findings, and an answer is awaited. A dry run is complete.
    pub barrier: Option<Vec<GuardFinding>>,
    /// The run is finished or parked.
    pub over: bool,
}

struct Decider<'r> {
    run: &'r mut Run,
    limits: Limits,
    now: Timestamp,
    decision: Decision,
}

impl Run {
    /// Takes `inputs` in and says what to do next. See the module's page.
    ///
    /// # Errors
    /// When the decider contradicts the transition rules: a defect of Farrier.
    pub fn decide(
        &mut self,
        inputs: Vec<Input>,
        now: Timestamp,
        limits: Limits,
    ) -> Result<Decision, ReplayError> {
        let mut decider = Decider { run: self, limits, now, decision: Decision::default() };
        decider.go(inputs)?;
        Ok(decider.decision)
    }

    /// The state this run would end in if it ended now.
    pub fn provisional_state(&self) -> RunState {
        if self.state.is_final() {
            self.state
        } else if self.cancelled_by.is_some() {
            RunState::Cancelled
        } else if self.stop.is_some() {
            if self.undo_started.is_some() { RunState::Undone } else { RunState::Failed }
        } else if self.continued_failures > 0 {
            RunState::Degraded
        } else {
            RunState::Succeeded
        }
    }

    fn stopping(&self) -> bool {
        self.stop.is_some() || self.cancelled_by.is_some() || self.finished_early.is_some()
    }
}

type Step<T = ()> = Result<T, ReplayError>;

impl Decider<'_> {
    fn go(&mut self, inputs: Vec<Input>) -> Step {
        for input in inputs {
            match input {
                Input::Report { node, report } => self.report(node, report)?,
                Input::Proceed { by, accepted } => self.proceed(by, accepted)?,
                Input::Cancel { by } => {
                    self.run.memory.at_barrier = false;
                    if self.run.cancelled_by.is_none() && !self.run.state.is_final() {
                        self.emit(Event::CancelRequested { by })?;
                    }
                }
            }
        }
        if self.run.state.is_final() || self.run.parked.is_some() {
            self.decision.over = self.run.memory.active == 0;
            return Ok(());
        }
        self.recover()?;
        if self.run.parked.is_some() {
            self.decision.over = true;
            return Ok(());
        }
        self.deadline();
        if self.run.stopping() && !self.run.memory.gave_up {
            self.run.memory.gave_up = true;
            let reading = |node: &NodeRef| {
                matches!(self.run.node(*node).phase, Phase::Reading)
                    && !self.run.graph.step(node.step).finally
            };
            self.decision.give_up = self.run.nodes().filter(reading).collect();
        }
        while let Some((at, node)) = self.run.memory.timers.first().copied() {
            if at > self.now {
                break;
            }
            self.run.memory.timers.pop_first();
            self.run.memory.dirty.insert(node);
        }
        loop {
            while let Some(node) = self.run.memory.dirty.pop_first() {
                self.look(node)?;
                if self.run.parked.is_some() {
                    self.decision.over = self.run.memory.active == 0;
                    return Ok(());
                }
            }
            self.start_queued()?;
            if !self.run.memory.dirty.is_empty() {
                continue;
            }
            let retries_wait = !self.run.memory.timers.is_empty() && !self.run.stopping();
            if self.run.memory.active > 0 || retries_wait {
                break;
            }
            if !self.quiet()? {
                break;
            }
        }
        if self.run.state.is_final() || self.run.parked.is_some() {
            self.decision.over = self.run.memory.active == 0;
        } else {
            let deadline = self.run.graph.timeout.map(|timeout| self.run.started_at + timeout);
            let retry = self.run.memory.timers.first().map(|(at, _)| *at);
            self.decision.wake = deadline.into_iter().chain(retry).min();
        }
        Ok(())
    }

    fn emit(&mut self, event: Event) -> Step {
        self.run.fold(&event, self.now)?;
        self.decision.events.push(event);
        Ok(())
    }

    fn emit_node(&mut self, node: NodeRef, attempt: u32, event: NodeEvent) -> Step {
        let name = self.run.name(node);
        self.emit(Event::Node { node: name, attempt, event })
    }

    /// Once per process: what a dead owner left running is in doubt.
    fn recover(&mut self) -> Step {
        if std::mem::replace(&mut self.run.memory.recovered, true) {
            return Ok(());
        }
        if self.run.claims > self.limits.takeovers + 1 {
            let reason = format!(
                "its owner died {} times while it ran; look for what ends the process, then resume it",
                self.run.claims - 1
            );
            return self.emit(Event::Parked { reason, cause: ParkCause::Poison, guard: None });
        }
        let nodes: Vec<NodeRef> = self.run.nodes().collect();
        for node in nodes {
            let (state, attempt, retry_at) = {
                let node = self.run.node(node);
                (node.state, node.attempt, node.retry_at)
            };
            match state {
                NodeState::Running => {
                    let reason = "its owner stopped before it recorded an outcome".into();
                    self.emit_node(node, attempt, NodeEvent::InDoubt { reason })?;
                    self.run.memory.dirty.insert(node);
                }
                NodeState::InDoubt | NodeState::Waiting => {
                    self.run.memory.dirty.insert(node);
                }
                NodeState::Retryable => match retry_at {
                    Some(at) if at > self.now => {
                        self.run.memory.timers.insert((at, node));
                    }
                    _ => {
                        self.run.memory.dirty.insert(node);
                    }
                },
                NodeState::Pending if node.item.is_some() => {
                    self.run.memory.dirty.insert(node);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn deadline(&mut self) {
        let Some(timeout) = self.run.graph.timeout else { return };
        if self.now >= self.run.started_at + timeout && !self.run.stopping() {
            self.run.stop = Some(OnFailure::Stop);
            let text = farrier_model::time::format_duration(timeout);
            self.run.first_failure = Some(Failure::new(
                FailureKind::Timeout,
                format!("the run took longer than its `timeout` of {text}"),
            ));
        }
    }

    // ---- nodes -------------------------------------------------------------------------------------------------

    fn look(&mut self, node: NodeRef) -> Step {
        let run_node = self.run.node(node);
        if matches!(run_node.phase, Phase::Busy | Phase::Reading | Phase::Queued) {
            return Ok(());
        }
        match run_node.state {
            NodeState::InDoubt => self.in_doubt(node),
            NodeState::Waiting => self.start(node),
            NodeState::Pending | NodeState::Retryable => {
                if node.item.is_some() {
                    self.look_at_pending_item(node)
                } else {
                    self.look_at_pending_step(node.step)
                }
            }
            _ => Ok(()),
        }
    }

    fn look_at_pending_step(&mut self, step: StepIndex) -> Step {
        let node = NodeRef::step(step);
        let graph = self.run.graph.clone();
        let spec = graph.step(step);
        if !spec.finally && self.run.stopping() {
            return Ok(());
        }
        let real = if spec.finally {
            self.run.memory.finally_open && self.finally_needs_settled(step)
        } else {
            self.run.step(step).unsettled == 0
        };
        let provisional = self.provisional_allowed() && self.run.step(step).unplanned == 0;
        if !real && !provisional {
            return Ok(());
        }
        if self.run.step(step).items.as_ref().is_some_and(|items| items.journaled) && real {
            return self.look_at_items(step);
        }
        if real {
            if !spec.finally {
                for (on, need) in graph.needs(step) {
                    if !self.run.need_met(on, need) {
                        let by = self.run.name(NodeRef::step(on));
                        let attempt = self.run.node(node).attempt;
                        return self.emit_node(node, attempt, NodeEvent::Blocked { by });
                    }
                }
            }
            if spec.requires_clean && self.run.continued_failures > 0 && !self.limits.plan_only {
                let guard: Text = format!("{}: requires_clean", spec.id).into();
                if !self.run.accepted.contains(&guard) {
                    let reason =
                        format!("step `{}` requires that no earlier step failed, and one did", spec.id);
                    return self.emit(Event::Parked { reason, cause: ParkCause::Guard, guard: Some(guard) });
                }
            }
        }
        let scope = match self.run.scope(node) {
            Ok(scope) => scope,
            Err(failure) => return self.fail(node, failure, real),
        };
        if let Some(condition) = &spec.condition {
            match condition.eval_bool(&scope) {
                Ok(Some(true)) => {}
                Ok(Some(false)) if real => {
                    let reason = format!("`{}` is false", condition.source()).into();
                    return self.emit_node(node, 0, NodeEvent::Skipped { reason });
                }
                Ok(Some(false)) => {
                    self.run.node_mut(node).phase = Phase::WouldSkip;
                    self.run.count_planned(step);
                    return Ok(());
                }
                Ok(None) => {
                    self.defer(node, None, true);
                    return Ok(());
                }
                Err(error) => {
                    let message = format!("in `if: {}`: {}", condition.source(), error.message);
                    return self.fail(node, Failure::new(FailureKind::Input, message), real);
                }
            }
        }
        if spec.for_each.is_some() { self.expand(step, &scope, real) } else { self.start(node) }
    }

    fn provisional_allowed(&self) -> bool {
        !self.run.writes_allowed && !self.run.stopping()
    }

    /// A step of `finally` waits only for other steps of `finally`.
    fn finally_needs_settled(&self, step: StepIndex) -> bool {
        let graph = &self.run.graph;
        graph
            .needs(step)
            .filter(|(on, _)| graph.step(*on).finally)
            .all(|(on, _)| self.run.step(on).node.state.is_settled())
    }

    fn expand(&mut self, step: StepIndex, scope: &Scope, real: bool) -> Step {
        let node = NodeRef::step(step);
        let items = match self.items_of(step, scope) {
            Ok(Some(items)) => items,
            Ok(None) => {
                self.defer(node, None, false);
                return Ok(());
            }
            Err(failure) => return self.fail(node, failure, real),
        };
        let keys = items.keys.clone();
        let run_step = &mut self.run.steps[step.index()];
        let same = run_step.items.as_ref().is_some_and(|known| known.keys == keys);
        if same {
            if let Some(known) = &mut run_step.items {
                known.values = items.values;
            }
        } else {
            run_step.items = Some(items);
        }
        if real {
            self.emit_node(node, 0, NodeEvent::Expanded { keys: keys.clone() })?;
        }
        self.run.memory.dirty.extend((0..keys.len()).map(|item| NodeRef { step, item: Some(item as u32) }));
        if keys.is_empty() {
            if real {
                return self.emit_node(node, 0, NodeEvent::Succeeded { output: Value::Null, changed: 0 });
            }
            self.run.count_planned(step);
        }
        Ok(())
    }

    /// The items of a step; nothing when they are not known yet.
    fn items_of(&self, step: StepIndex, scope: &Scope) -> Result<Option<Items>, Failure> {
        let spec = self.run.graph.step(step);
        let Some(for_each) = &spec.for_each else { return Ok(None) };
        let wrong = |message: String| Failure::new(FailureKind::Input, message);
        let list =
            for_each.items.eval(scope).map_err(|e| wrong(format!("in `for_each.in`: {}", e.message)))?;
        let values: Vec<Value> = match &list {
            Value::Unknown(_) => return Ok(None),
            Value::List(items) => items.to_vec(),
            other => return Err(wrong(format!("`for_each.in` is {}, not a list", other.kind()))),
        };
        let mut items = Items { unsettled: values.len(), ..Items::default() };
        for (at, value) in values.iter().enumerate() {
            let key = for_each
                .key
                .eval(&scope.with(for_each.as_name.clone(), value.clone()))
                .map_err(|e| wrong(format!("in `for_each.key` of item {at}: {}", e.message)))?;
            let key: Text = match key {
                Value::Unknown(_) => return Ok(None),
                Value::Text(text) => text,
                Value::Int(number) => number.to_string().into(),
                other => {
                    return Err(wrong(format!(
                        "the key of item {at} is {}, not text or a number",
                        other.kind()
                    )));
                }
            };
            if items.by_key.insert(key.clone(), at as u32).is_some() {
                return Err(wrong(format!("two items have the key `{key}`")));
            }
            items.keys.push(key);
        }
        items.nodes = vec![crate::run::NodeRun::default(); values.len()];
        items.values = values;
        Ok(Some(items))
    }

    fn look_at_pending_item(&mut self, node: NodeRef) -> Step {
        let graph = self.run.graph.clone();
        let spec = graph.step(node.step);
        if self.run.stopping() && !(spec.finally && self.run.memory.finally_open) {
            return Ok(());
        }
        let Some(items) = &self.run.step(node.step).items else { return Ok(()) };
        if items.values.is_empty() {
            // After a replay the keys are known from the journal and the values are rendered again from it.
            let scope = match self.run.scope(NodeRef::step(node.step)) {
                Ok(scope) => scope,
                Err(failure) => return self.fail(node, failure, true),
            };
            match self.items_of(node.step, &scope) {
                Ok(Some(fresh)) => {
                    if let Some(items) = &mut self.run.steps[node.step.index()].items {
                        if fresh.keys != items.keys {
                            let message = "the items are not those that the journal recorded";
                            return self.fail(node, Failure::new(FailureKind::Internal, message), true);
                        }
                        items.values = fresh.values;
                    }
                }
                Ok(None) => return Ok(()),
                Err(failure) => return self.fail(node, failure, true),
            }
        }
        self.start(node)
    }

    /// A step with items: stop the rest after a failure if asked, and conclude when all are settled.
    fn look_at_items(&mut self, step: StepIndex) -> Step {
        let graph = self.run.graph.clone();
        let spec = graph.step(step);
        let Some(items) = &self.run.step(step).items else { return Ok(()) };
        let failed: Vec<(Text, Failure)> = items
            .keys
            .iter()
            .zip(&items.nodes)
            .filter(|(_, node)| node.state == NodeState::Failed)
            .map(|(key, node)| (key.clone(), node.failure.clone().unwrap_or_else(lost_failure)))
            .collect();
        let stop = spec.for_each.as_ref().is_some_and(|each| each.on_item_failure == OnItemFailure::Stop);
        if stop && let Some((first, _)) = failed.first() {
            let by = self.run.name(NodeRef { step, item: items.by_key.get(first).copied() });
            let waiting: Vec<NodeRef> = (0..items.nodes.len())
                .filter(|at| {
                    let node = &items.nodes[*at];
                    node.state == NodeState::Pending && !matches!(node.phase, Phase::Busy | Phase::Reading)
                })
                .map(|at| NodeRef { step, item: Some(at as u32) })
                .collect();
            for node in waiting {
                self.emit_node(node, 0, NodeEvent::Blocked { by: by.clone() })?;
            }
        }
        let Some(items) = &self.run.step(step).items else { return Ok(()) };
        if items.unsettled > 0 {
            return Ok(());
        }
        let total = items.nodes.len();
        let node = NodeRef::step(step);
        match failed.first() {
            None => self.emit_node(node, 0, NodeEvent::Succeeded { output: Value::Null, changed: 0 }),
            Some((key, first)) => {
                let message = format!("{} of {total} items failed; first `{key}`: {first}", failed.len());
                let failure = Failure { message, in_doubt: false, target: None, ..first.clone() };
                let continued = spec.on_failure == OnFailure::Continue;
                self.emit_node(node, 0, NodeEvent::Failed { failure, retry_at: None, continued })
            }
        }
    }

    /// Whether everything the node depends on is settled for real.
    fn is_firm(&self, step: StepIndex) -> bool {
        let spec = self.run.graph.step(step);
        if spec.finally { self.run.memory.finally_open } else { self.run.step(step).unsettled == 0 }
    }

    fn defer(&mut self, node: NodeRef, after: Option<Text>, maybe: bool) {
        let after = after.unwrap_or_else(|| self.first_open_need(node.step));
        self.run.node_mut(node).phase = Phase::Deferred { after, maybe };
        self.count_planned_node(node);
    }

    fn first_open_need(&self, step: StepIndex) -> Text {
        let graph = &self.run.graph;
        let mut open: Vec<StepIndex> = graph
            .needs(step)
            .map(|(on, _)| on)
            .filter(|on| !self.run.step(*on).node.state.is_settled())
            .collect();
        open.sort();
        open.first().map_or_else(|| graph.step(step).id.clone(), |on| graph.step(*on).id.clone())
    }

    fn count_planned_node(&mut self, node: NodeRef) {
        if node.item.is_some() {
            let all = self.run.step(node.step).items.as_ref().is_some_and(|items| {
                items.nodes.iter().all(|node| {
                    node.state.is_settled()
                        || node.planned.is_some()
                        || matches!(node.phase, Phase::Deferred { .. })
                })
            });
            if !all {
                return;
            }
        }
        self.run.count_planned(node.step);
    }

    // ---- starting work -----------------------------------------------------------------------------------------

    /// Starts the next piece of work of a node, or queues it for a free place.
    fn start(&mut self, node: NodeRef) -> Step {
        if let Some(planned) = &self.run.node(node).planned
            && !(self.run.writes_allowed)
        {
            // It waits at the barrier; or its provisional plan has become outdated by a settled need.
            let firm_now = self.is_firm(node.step);
            if planned.firm || !firm_now {
                return Ok(());
            }
            self.run.node_mut(node).planned = None;
        }
        if !self.has_place(node) {
            self.run.node_mut(node).phase = Phase::Queued;
            self.run.memory.queue.insert(node);
            return Ok(());
        }
        let state = self.run.node(node).state;
        if state == NodeState::Waiting {
            let output = self.run.node(node).output.clone().unwrap_or_default();
            return self.hand_out(node, WorkKind::Verify(output), None);
        }
        if self.run.writes_allowed {
            match self.run.node_mut(node).planned.take() {
                Some(planned) if planned.firm => return self.intend(node, planned),
                _ => {}
            }
        }
        self.plan(node)
    }

    fn has_place(&self, node: NodeRef) -> bool {
        if self.run.memory.active >= self.limits.parallel {
            return false;
        }
        let graph = &self.run.graph;
        match (node.item, &graph.step(node.step).for_each, &self.run.step(node.step).items) {
            (Some(_), Some(each), Some(items)) => each.parallel.is_none_or(|limit| items.active < limit),
            _ => true,
        }
    }

    fn start_queued(&mut self) -> Step {
        let mut from = None;
        while self.run.memory.active < self.limits.parallel {
            let next = match from {
                None => self.run.memory.queue.first().copied(),
                Some(from) => self.run.memory.queue.range(from..).next().copied(),
            };
            let Some(node) = next else { break };
            if !self.has_place(node) {
                // The step's own limit is reached: go on with the next step.
                from = Some(NodeRef::step(StepIndex::new(node.step.index() + 1)));
                continue;
            }
            self.run.memory.queue.remove(&node);
            self.run.node_mut(node).phase = Phase::Idle;
            self.look(node)?;
        }
        Ok(())
    }

    fn plan(&mut self, node: NodeRef) -> Step {
        let graph = self.run.graph.clone();
        let spec = graph.step(node.step);
        let firm = self.is_firm(node.step);
        if !firm && let Uses::Action { effect: Effect::Read, pure: false, .. } = spec.uses {
            self.defer(node, None, false);
            return Ok(());
        }
        let scope = match self.run.scope(node) {
            Ok(scope) => scope,
            Err(failure) => return self.fail(node, failure, firm),
        };
        let inputs = match self.run.node(node).inputs.clone() {
            Some(recorded) => recorded,
            None => match spec.with.eval(&scope) {
                Ok(inputs) => inputs,
                Err(error) => {
                    return self.fail(
                        node,
                        Failure::new(FailureKind::Input, format!("in `with`: {}", error.message)),
                        firm,
                    );
                }
            },
        };
        if let Some(after) = inputs.unknown_after() {
            self.defer(node, Some(after.clone()), false);
            return Ok(());
        }
        let look_once = self.limits.plan_only || !firm;
        self.hand_out(node, WorkKind::Plan { look_once }, Some((inputs, scope)))
    }

    fn hand_out(&mut self, node: NodeRef, kind: WorkKind, rendered: Option<(Value, Scope)>) -> Step {
        let (inputs, scope) = if let Some(rendered) = rendered {
            rendered
        } else {
            let scope = match self.run.scope(node) {
                Ok(scope) => scope,
                Err(failure) => return self.fail(node, failure, true),
            };
            (self.run.node(node).inputs.clone().unwrap_or_default(), scope)
        };
        let direction = if matches!(kind, WorkKind::Undo { .. }) { "undo" } else { "do" };
        let effect_id = ids::effect_id(self.run.id, &self.run.name(node), direction);
        let run_node = self.run.node_mut(node);
        run_node.phase = match kind {
            WorkKind::Plan { .. } | WorkKind::Verify(_) => Phase::Reading,
            _ => Phase::Busy,
        };
        let attempt = match kind {
            WorkKind::Plan { .. } => run_node.attempt + 1,
            _ => run_node.attempt,
        };
        self.run.memory.active += 1;
        if node.item.is_some()
            && let Some(items) = &mut self.run.steps[node.step.index()].items
        {
            items.active += 1;
        }
        self.decision.work.push(Work { node, attempt, kind, inputs, scope, effect_id });
        Ok(())
    }

    /// Records the intent and hands out the apply. Guards see the changes first.
    fn intend(&mut self, node: NodeRef, planned: PlannedNode) -> Step {
        let graph = self.run.graph.clone();
        let spec = graph.step(node.step);
        self.count(node, planned.counts());
        let mut findings: Vec<GuardFinding> =
            graph.guards.iter().map(|guard| guard::check(guard, None, self.run.memory.total)).collect();
        let step_counts = self.step_counts(node.step);
        findings.extend(spec.guards.iter().map(|guard| guard::check(guard, Some(&spec.id), step_counts)));
        for finding in findings {
            if finding.passed || self.run.accepted.contains(&*finding.guard) {
                continue;
            }
            let message = finding.sentence();
            return match finding.otherwise {
                GuardAction::Stop => self.fail(node, Failure::new(FailureKind::Guard, message), true),
                GuardAction::Ask | GuardAction::Page => {
                    let reason = format!("step `{}`: {message}", self.run.name(node));
                    let guard = Some(finding.guard.into());
                    self.emit(Event::Parked { reason, cause: ParkCause::Guard, guard })
                }
            };
        }
        let effect = match &spec.uses {
            Uses::Action { effect, .. } => *effect,
            Uses::Runbook { .. } => Effect::Keyed,
        };
        let attempt = self.run.node(node).attempt + 1;
        let effect_id = ids::effect_id(self.run.id, &self.run.name(node), "do");
        let PlannedNode { inputs, planned, .. } = planned;
        self.emit_node(
            node,
            attempt,
            NodeEvent::Intent { inputs: inputs.clone(), changes: planned.changes.clone(), effect, effect_id },
        )?;
        let scope = match self.run.scope(node) {
            Ok(scope) => scope,
            Err(failure) => return self.fail(node, failure, true),
        };
        self.hand_out(node, WorkKind::Apply(planned), Some((inputs, scope)))
    }

    fn count(&mut self, node: NodeRef, counts: Counts) {
        if let Some(old) = self.run.memory.counts.insert(node, counts) {
            self.run.memory.total.subtract(old);
        }
        self.run.memory.total.add(counts);
    }

    fn step_counts(&self, step: StepIndex) -> Counts {
        let mut sum = Counts::default();
        let first = NodeRef::step(step);
        for (_, counts) in self.run.memory.counts.range(first..).take_while(|(node, _)| node.step == step) {
            sum.add(*counts);
        }
        sum
    }

    /// A step in doubt: its effect class says what may be done.
    fn in_doubt(&mut self, node: NodeRef) -> Step {
        let run_node = self.run.node(node);
        let effect = run_node.effect.unwrap_or(Effect::Once);
        let planned = Planned { changes: run_node.effects.clone(), ..Planned::known(Value::Null) };
        let name = self.run.name(node);
        let reason = self.run.node(node).reason.clone().unwrap_or_default();
        if effect == Effect::Once || self.run.node(node).attempt > self.limits.doubts {
            let reason = format!(
                "step `{name}` may or may not have happened ({reason}); look at its target, then tell Farrier with \
                 `farrier resolve`"
            );
            return self.emit(Event::Parked { reason, cause: ParkCause::InDoubt, guard: None });
        }
        if !self.has_place(node) {
            self.run.node_mut(node).phase = Phase::Queued;
            self.run.memory.queue.insert(node);
            return Ok(());
        }
        match effect {
            Effect::Read | Effect::Repeatable => self.plan(node),
            Effect::Keyed => {
                let inputs = self.run.node(node).inputs.clone().unwrap_or_default();
                let attempt = self.run.node(node).attempt + 1;
                let effect_id = ids::effect_id(self.run.id, &name, "do");
                let changes = planned.changes.clone();
                self.emit_node(node, attempt, NodeEvent::Intent { inputs, changes, effect, effect_id })?;
                self.hand_out(node, WorkKind::Apply(Arc::new(planned)), None)
            }
            Effect::Probed => self.hand_out(node, WorkKind::Probe(Arc::new(planned)), None),
            Effect::Once => Ok(()),
        }
    }

    // ---- reports -----------------------------------------------------------------------------------------------

    fn report(&mut self, node: NodeRef, report: Report) -> Step {
        self.run.memory.active = self.run.memory.active.saturating_sub(1);
        if node.item.is_some()
            && let Some(items) = &mut self.run.steps[node.step.index()].items
        {
            items.active = items.active.saturating_sub(1);
        }
        self.run.node_mut(node).phase = Phase::Idle;
        self.run.memory.dirty.insert(NodeRef::step(node.step));
        match report {
            Report::Planned(Ok(plan)) => self.planned(node, plan),
            Report::Planned(Err(failure)) => {
                let firm = self.is_firm(node.step);
                self.fail(node, failure, firm)
            }
            Report::Applied(Ok(output)) => {
                let spec = self.run.graph.step(node.step);
                let attempt = self.run.node(node).attempt;
                if spec.verify.is_some() || !spec.expect.is_empty() {
                    self.run.memory.dirty.insert(node);
                    return self.emit_node(node, attempt, NodeEvent::Applied { output });
                }
                let changed = self.run.node(node).effects.len() as u64;
                self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed })
            }
            Report::Verified(Ok((output, finish))) => {
                let attempt = self.run.node(node).attempt;
                let changed = self.run.node(node).effects.len() as u64;
                self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed })?;
                self.finish_early(node, finish)
            }
            Report::Applied(Err(failure)) | Report::Verified(Err(failure)) => self.fail(node, failure, true),
            Report::Probed(Ok(Probe::Applied)) => {
                let attempt = self.run.node(node).attempt;
                self.run.memory.dirty.insert(node);
                self.emit_node(node, attempt, NodeEvent::Applied { output: Value::Null })
            }
            Report::Probed(Ok(Probe::NotApplied)) => {
                let attempt = self.run.node(node).attempt;
                self.run.memory.dirty.insert(node);
                self.emit_node(node, attempt, NodeEvent::NotApplied { by: "probe".into() })
            }
            Report::Probed(Ok(Probe::Unknown)) => self.park_in_doubt(node, "its probe cannot tell"),
            Report::Probed(Err(failure)) => self.park_in_doubt(node, &format!("its probe failed: {failure}")),
            Report::Undone(Ok(())) => {
                let attempt = self.run.node(node).attempt;
                self.emit_node(node, attempt, NodeEvent::UndoDone)
            }
            Report::Undone(Err(failure)) => {
                let attempt = self.run.node(node).attempt;
                let name = self.run.name(node);
                self.emit_node(node, attempt, NodeEvent::UndoFailed { failure: failure.clone() })?;
                let remaining: Vec<String> = self
                    .undo_candidates()
                    .into_iter()
                    .map(|node| format!("`{}`", self.run.name(node)))
                    .collect();
                let reason = format!(
                    "undo of step `{name}` failed: {failure}; still in effect: {}",
                    remaining.join(", ")
                );
                self.emit(Event::Parked { reason, cause: ParkCause::UndoFailed, guard: None })
            }
            Report::GivenUp => {
                if self.run.node(node).state != NodeState::Waiting {
                    return Ok(());
                }
                let message = "the run stopped before its effect was verified";
                self.fail(node, Failure::new(FailureKind::Verification, message), true)
            }
            Report::ChildParked(reason) => {
                let reason = format!("step `{}`: {reason}", self.run.name(node));
                self.emit(Event::Parked { reason, cause: ParkCause::Child, guard: None })
            }
        }
    }

    fn park_in_doubt(&mut self, node: NodeRef, why: &str) -> Step {
        let reason = format!(
            "step `{}` may or may not have happened: {why}; look at its target, then tell Farrier with `farrier resolve`",
            self.run.name(node)
        );
        self.emit(Event::Parked { reason, cause: ParkCause::InDoubt, guard: None })
    }

    fn planned(&mut self, node: NodeRef, plan: PlanReport) -> Step {
        let firm = self.is_firm(node.step);
        let certain = !matches!(plan.planned.fidelity, Fidelity::Deferred | Fidelity::Described);
        let child_open = plan.child.as_ref().is_some_and(|child| !child.is_certain());
        if plan.planned.changes.is_empty() && certain && !child_open && firm {
            let attempt = self.run.node(node).attempt.max(1);
            let changed = self.run.node(node).effects.len() as u64;
            let output = plan.planned.output.clone().unwrap_or_default();
            if !plan.planned.notes.is_empty() {
                self.run.memory.notes.insert(node, plan.planned.notes.clone());
            }
            if let Some(considered) = plan.planned.considered {
                self.count(node, Counts { considered, ..Counts::default() });
            }
            self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed })?;
            return self.finish_early(node, plan.finish);
        }
        let inputs = match self.rendered_inputs(node) {
            Ok(inputs) => inputs,
            Err(failure) => return self.fail(node, failure, firm),
        };
        let planned = PlannedNode { inputs, planned: plan.planned, child: plan.child, firm };
        if self.run.writes_allowed && firm && !self.limits.plan_only {
            return self.intend(node, planned);
        }
        self.count(node, planned.counts());
        self.run.node_mut(node).planned = Some(planned);
        self.count_planned_node(node);
        Ok(())
    }

    fn rendered_inputs(&mut self, node: NodeRef) -> Result<Value, Failure> {
        if let Some(recorded) = self.run.node(node).inputs.clone() {
            return Ok(recorded);
        }
        let scope = self.run.scope(node)?;
        let graph = self.run.graph.clone();
        graph
            .step(node.step)
            .with
            .eval(&scope)
            .map_err(|error| Failure::new(FailureKind::Input, error.message))
    }

    fn finish_early(&mut self, node: NodeRef, reason: Option<String>) -> Step {
        let Some(reason) = reason else { return Ok(()) };
        if self.run.finished_early.is_some() {
            return Ok(());
        }
        let name = self.run.name(node);
        self.emit(Event::FinishedEarly { node: name, reason })
    }

    /// A failed attempt: in doubt, tried again, or final.
    fn fail(&mut self, node: NodeRef, failure: Failure, firm: bool) -> Step {
        if !firm {
            // Below steps with changes the world is not yet as this step will find it.
            self.defer(node, None, false);
            return Ok(());
        }
        let graph = self.run.graph.clone();
        let spec = graph.step(node.step);
        let (state, attempt) = (self.run.node(node).state, self.run.node(node).attempt);
        if failure.in_doubt && state == NodeState::Running {
            self.run.memory.dirty.insert(node);
            return self.emit_node(node, attempt, NodeEvent::InDoubt { reason: failure.to_string() });
        }
        // An attempt that got no further than its plan has not been counted by an intent.
        let attempt = if matches!(state, NodeState::Running | NodeState::Waiting | NodeState::InDoubt) {
            attempt
        } else {
            attempt + 1
        };
        let passing = if spec.retry.on.is_empty() {
            failure.kind.may_pass()
        } else {
            spec.retry.on.contains(&failure.kind)
        };
        let again =
            attempt < spec.retry.attempts && passing && !self.limits.plan_only && !self.run.stopping();
        let retry_at = again.then(|| self.now + spec.retry.pause_after(attempt));
        let continued = retry_at.is_none() && node.item.is_none() && spec.on_failure == OnFailure::Continue;
        self.emit_node(node, attempt, NodeEvent::Failed { failure, retry_at, continued })?;
        if let Some(at) = retry_at {
            self.run.memory.timers.insert((at, node));
        }
        Ok(())
    }

    // ---- the run as a whole ------------------------------------------------------------------------------------

    fn proceed(&mut self, by: String, accepted: Vec<Text>) -> Step {
        if !self.run.memory.at_barrier {
            return Ok(());
        }
        self.run.memory.at_barrier = false;
        for guard in accepted {
            self.emit(Event::Resumed { by: by.clone(), accepted: Some(guard) })?;
        }
        let open: Vec<GuardFinding> = self
            .findings()
            .into_iter()
            .filter(|finding| !finding.passed && !self.run.accepted.contains(&*finding.guard))
            .collect();
        if let Some(stopped) = open.iter().find(|finding| finding.otherwise == GuardAction::Stop) {
            self.run.stop = Some(OnFailure::Stop);
            self.run.first_failure = Some(Failure::new(FailureKind::Guard, stopped.sentence()));
            return Ok(());
        }
        if let Some(asks) = open.first() {
            let (reason, guard) = (asks.sentence(), Some(asks.guard.as_str().into()));
            return self.emit(Event::Parked { reason, cause: ParkCause::Guard, guard });
        }
        let total = self.run.memory.total;
        self.emit(Event::WritesAllowed {
            creates: total.create,
            updates: total.update + total.run + total.send,
            deletes: total.delete,
        })
    }

    /// What every guard says of everything that is planned.
    fn findings(&self) -> Vec<GuardFinding> {
        let graph = &self.run.graph;
        let mut findings: Vec<GuardFinding> =
            graph.guards.iter().map(|guard| guard::check(guard, None, self.run.memory.total)).collect();
        for step in graph.indices() {
            let spec = graph.step(step);
            if !spec.guards.is_empty() {
                let counts = self.step_counts(step);
                findings.extend(spec.guards.iter().map(|guard| guard::check(guard, Some(&spec.id), counts)));
            }
        }
        findings
    }

    /// Nothing is at work and nothing is ready. True when something became ready by what was decided here.
    fn quiet(&mut self) -> Step<bool> {
        if self.run.memory.at_barrier {
            self.decision.barrier = Some(self.findings());
            return Ok(false);
        }
        let something_planned = self.run.nodes().any(|node| {
            let node = self.run.node(node);
            !node.state.is_settled()
                && (node.planned.is_some() || matches!(node.phase, Phase::Deferred { .. }))
        });
        if !self.run.writes_allowed && something_planned {
            if !self.run.stopping() {
                self.run.memory.at_barrier = true;
                self.decision.barrier = Some(self.findings());
                return Ok(false);
            }
            if self.limits.plan_only {
                self.decision.barrier = Some(self.findings());
                return Ok(false);
            }
            if self.run.memory.finally_open {
                self.emit(Event::WritesAllowed { creates: 0, updates: 0, deletes: 0 })?;
                return Ok(true);
            }
        }
        let wants_undo = self.run.stop == Some(OnFailure::Undo) && self.run.cancelled_by.is_none();
        if wants_undo && !self.run.committed {
            if self.run.undo_started.is_none() && !self.undo_candidates().is_empty() {
                let reason = self.run.first_failure.as_ref().map_or_else(String::new, ToString::to_string);
                self.emit(Event::UndoStarted { reason })?;
            }
            if self.run.undo_started.is_some()
                && let Some(node) = self.undo_candidates().first().copied()
            {
                return self.undo(node).map(|()| false);
            }
        }
        if !self.run.memory.finally_open {
            self.run.memory.finally_open = true;
            self.skip_the_rest()?;
            let declined = self.run.cancelled_by.is_some() && !self.run.writes_allowed;
            let graph = self.run.graph.clone();
            if !declined && graph.main_steps() < graph.len() {
                let finally = graph.indices().skip(graph.main_steps()).map(NodeRef::step);
                for node in finally {
                    let run_node = self.run.node_mut(node);
                    if matches!(run_node.phase, Phase::Deferred { .. } | Phase::WouldSkip) {
                        run_node.phase = Phase::Idle;
                    }
                    if !run_node.state.is_settled() {
                        self.run.memory.dirty.insert(node);
                    }
                }
                return Ok(true);
            }
        }
        self.finish()?;
        Ok(false)
    }

    /// After an early finish, what has not started is skipped.
    fn skip_the_rest(&mut self) -> Step {
        let Some(reason) = self.run.finished_early.clone() else { return Ok(()) };
        let graph = self.run.graph.clone();
        for step in graph.indices().take(graph.main_steps()) {
            let node = NodeRef::step(step);
            if self.run.node(node).state == NodeState::Pending {
                self.emit_node(node, 0, NodeEvent::Skipped { reason: reason.clone().into() })?;
            }
        }
        Ok(())
    }

    /// Nodes whose effect stands and is to be reversed, the last to succeed first; one whose undo has begun leads.
    fn undo_candidates(&self) -> Vec<NodeRef> {
        let graph = &self.run.graph;
        let mut nodes: Vec<NodeRef> = self
            .run
            .nodes()
            .filter(|node| {
                let spec = graph.step(node.step);
                let run_node = self.run.node(*node);
                !spec.finally
                    && !matches!(spec.undo, Undo::None)
                    && !run_node.effects.is_empty()
                    && matches!(run_node.state, NodeState::Succeeded | NodeState::Failed | NodeState::Undoing)
            })
            .collect();
        nodes.sort_by_key(|node| {
            let run_node = self.run.node(*node);
            (run_node.state != NodeState::Undoing, std::cmp::Reverse(run_node.order))
        });
        nodes
    }

    fn undo(&mut self, node: NodeRef) -> Step {
        let attempt = self.run.node(node).attempt + 1;
        let effect_id = ids::effect_id(self.run.id, &self.run.name(node), "undo");
        self.emit_node(node, attempt, NodeEvent::UndoIntent { effect_id })?;
        let run_node = self.run.node(node);
        let kind = WorkKind::Undo {
            changes: run_node.effects.clone(),
            output: run_node.output.clone().unwrap_or_default(),
        };
        self.hand_out(node, kind, None)
    }

    fn finish(&mut self) -> Step {
        let finally_failed = self
            .run
            .graph
            .indices()
            .skip(self.run.graph.main_steps())
            .any(|step| self.run.step(step).node.state == NodeState::Failed);
        let mut state = match self.run.provisional_state() {
            RunState::Succeeded if finally_failed => RunState::Degraded,
            state => state,
        };
        let mut failure = self.run.first_failure.clone();
        let mut outputs = Value::Null;
        if matches!(state, RunState::Succeeded | RunState::Degraded)
            && let Some(template) = self.run.graph.clone().outputs.clone()
        {
            let evaluated = self.run.outputs_scope().and_then(|scope| {
                template.eval(&scope).map_err(|error| {
                    Failure::new(FailureKind::Input, format!("in `outputs`: {}", error.message))
                })
            });
            match evaluated {
                Ok(value) => outputs = value,
                Err(_) if self.run.finished_early.is_some() => {}
                Err(error) => {
                    state = RunState::Failed;
                    failure = failure.or(Some(error));
                }
            }
        }
        if state == RunState::Succeeded {
            failure = None;
        }
        self.emit(Event::Finished { state, outputs, failure })
    }
}

fn lost_failure() -> Failure {
    Failure::new(FailureKind::Internal, "it failed without a recorded reason")
}
