//! Handing out work: free places, plans, intents after guards, and steps in doubt.

use std::sync::Arc;

use farrier_action::Planned;
use farrier_model::event::ParkCause;
use farrier_model::expr::Template;
use farrier_model::{Change, Effect, Failure, FailureKind, NodeEvent, NodeState, Scope, Value, ids};
use farrier_runbook::graph::{GuardAction, StepIndex, Uses};

use super::{Decider, Step, Work, WorkKind};
use crate::guard::{Counts, GuardFinding};
use crate::run::{NodeRef, Phase, PlannedNode};

impl Decider<'_> {
    /// Starts the next piece of work of a node, or queues it for a free place.
    pub(super) fn start(&mut self, node: NodeRef) -> Step {
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
                Some(planned) if planned.firm => {
                    return match planned.planned.wait.clone() {
                        Some(wait) => self.begin_wait(node, wait),
                        None => self.intend(node, planned),
                    };
                }
                _ => {}
            }
        }
        self.plan(node)
    }

    pub(super) fn has_place(&self, node: NodeRef) -> bool {
        if self.run.memory.active >= self.limits.parallel {
            return false;
        }
        let graph = &self.run.graph;
        match (node.item, &graph.step(node.step).for_each, &self.run.step(node.step).items) {
            (Some(_), Some(each), Some(items)) => each.parallel.is_none_or(|limit| items.active < limit),
            _ => true,
        }
    }

    pub(super) fn start_queued(&mut self) -> Step {
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

    pub(super) fn plan(&mut self, node: NodeRef) -> Step {
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

    pub(super) fn hand_out(
        &mut self,
        node: NodeRef,
        kind: WorkKind,
        rendered: Option<(Value, Scope)>,
    ) -> Step {
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
            WorkKind::Plan { .. } | WorkKind::Verify(_) | WorkKind::Rehearse => Phase::Reading,
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
        let bound = match (&self.run.bound, &kind) {
            (Some(bound), WorkKind::Apply(_)) => {
                let name = self.run.name(node);
                bound.child(&name).and_then(|plan| plan.bind().ok())
            }
            _ => None,
        };
        self.decision.work.push(Work { node, attempt, kind, inputs, scope, effect_id, bound });
        Ok(())
    }

    /// Records the intent and hands out the apply. Guards see the changes first.
    pub(super) fn intend(&mut self, node: NodeRef, planned: PlannedNode) -> Step {
        let graph = self.run.graph.clone();
        let spec = graph.step(node.step);
        match self.holds_lock(node)? {
            Ok(true) => {}
            Ok(false) => {
                let run_node = self.run.node_mut(node);
                run_node.phase = Phase::Locked;
                run_node.planned = Some(planned);
                return Ok(());
            }
            Err(failure) => return self.fail(node, failure, true),
        }
        self.count(node, planned.counts());
        let rates = |guard: &&farrier_runbook::graph::Guard| match &guard.rate {
            None => true,
            Some(rate) => rate.of.iter().any(|of| of.counts(spec)),
        };
        let mut findings: Vec<GuardFinding> =
            self.run.run_guards().filter(rates).map(|guard| self.finding(guard, None, true)).collect();
        findings
            .extend(spec.guards.iter().filter(rates).map(|guard| self.finding(guard, Some(node.step), true)));
        for finding in findings {
            if finding.passed || self.run.accepted.contains(&*finding.guard) {
                continue;
            }
            let message = finding.sentence();
            return match finding.otherwise {
                GuardAction::Stop => self.fail(node, Failure::new(FailureKind::Guard, message), true),
                GuardAction::Ask | GuardAction::Page => {
                    let reason = format!("step `{}`: {message}", self.run.name(node));
                    self.run.node_mut(node).planned = Some(planned);
                    self.park_at_guard(reason, finding.guard.into())
                }
            };
        }
        if let Some(bound) = self.run.bound.clone()
            && planned.child.is_none()
            && let Some(difference) =
                bound.departure(&self.run.name(node), &planned.planned.changes, &self.own_changes(node))
        {
            let message = format!("what it would change is not what was approved: {difference}");
            return self.fail(node, Failure::new(FailureKind::Drift, message), true);
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

    /// What other steps on the target of this one have changed, in no particular order among those that do not need each other.
    fn own_changes(&self, node: NodeRef) -> Vec<&Change> {
        let graph = &self.run.graph;
        let Some(target) = named_target(&graph.step(node.step).with) else { return Vec::new() };
        let mut others: Vec<NodeRef> = self
            .run
            .nodes()
            .filter(|other| {
                other.step != node.step
                    && self.run.node(*other).state == NodeState::Succeeded
                    && named_target(&graph.step(other.step).with) == Some(target)
            })
            .collect();
        others.sort_by_key(|other| self.run.node(*other).order);
        others.into_iter().flat_map(|other| &self.run.node(other).effects).collect()
    }

    pub(super) fn count(&mut self, node: NodeRef, counts: Counts) {
        if let Some(old) = self.run.memory.counts.insert(node, counts) {
            self.run.memory.total.subtract(old);
        }
        self.run.memory.total.add(counts);
    }

    pub(super) fn step_counts(&self, step: StepIndex) -> Counts {
        let mut sum = Counts::default();
        let first = NodeRef::step(step);
        for (_, counts) in self.run.memory.counts.range(first..).take_while(|(node, _)| node.step == step) {
            sum.add(*counts);
        }
        sum
    }

    /// A step in doubt: its effect class says what may be done.
    pub(super) fn in_doubt(&mut self, node: NodeRef) -> Step {
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
            return self.park(reason, ParkCause::InDoubt, None, None);
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
}

/// The one target that a step names.
fn named_target(with: &Template) -> Option<&str> {
    match with {
        Template::Const(with) => with.get("target")?.as_str(),
        Template::Map(entries) => match entries.iter().find(|(name, _)| &**name == "target")? {
            (_, Template::Const(target)) => target.as_str(),
            _ => None,
        },
        _ => None,
    }
}
