//! What the end of a task means for its node: success, another attempt, doubt, or the end.

use std::time::Duration;

use farrier_action::Probe;
use farrier_model::event::ParkCause;
use farrier_model::{Event, Failure, FailureKind, Fidelity, NodeEvent, NodeState, Value};
use farrier_runbook::graph::OnFailure;

use super::{Decider, PlanReport, Report, Step};
use crate::guard::Counts;
use crate::run::{NodeRef, Phase, PlannedNode};

/// How long a server may keep a step from its next try.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

impl Decider<'_> {
    pub(super) fn report(&mut self, node: NodeRef, report: Report) -> Step {
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
                self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed })?;
                self.release_lock(node)
            }
            Report::Verified(Ok((output, finish))) => {
                let attempt = self.run.node(node).attempt;
                let changed = self.run.node(node).effects.len() as u64;
                self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed })?;
                self.release_lock(node)?;
                self.finish_early(node, finish)
            }
            Report::Applied(Err(failure)) | Report::Verified(Err(failure)) => self.fail(node, failure, true),
            Report::Probed(Ok((Probe::Applied, output))) => {
                let attempt = self.run.node(node).attempt;
                self.run.memory.dirty.insert(node);
                self.emit_node(node, attempt, NodeEvent::Applied { output })
            }
            Report::Probed(Ok((Probe::NotApplied, _))) => {
                let attempt = self.run.node(node).attempt;
                self.run.memory.dirty.insert(node);
                self.emit_node(node, attempt, NodeEvent::NotApplied { by: "probe".into() })
            }
            Report::Probed(Ok((Probe::Unknown, _))) => self.park_in_doubt(node, "its probe cannot tell"),
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
                self.park(reason, ParkCause::UndoFailed, None, None)
            }
            Report::GivenUp => {
                if self.run.node(node).state != NodeState::Waiting || self.run.memory.letting_go {
                    return Ok(());
                }
                let message = "the run stopped before its effect was verified";
                self.fail(node, Failure::new(FailureKind::Verification, message), true)
            }
            Report::ChildParked(reason) => {
                if self.run.graph.step(node.step).leaves_parked {
                    return self.fail(node, Failure::new(FailureKind::Child, reason), true);
                }
                let reason = format!("step `{}`: {reason}", self.run.name(node));
                self.park(reason, ParkCause::Child, None, None)
            }
            Report::ChildWaits { run, at } => self.child_waits(node, run, at),
            Report::Rehearsed(Ok(plan)) => self.ask_approval(node, plan),
            Report::Rehearsed(Err(failure)) => {
                self.run.memory.asking.remove(&node);
                self.fail(node, failure, true)
            }
        }
    }

    pub(super) fn park_in_doubt(&mut self, node: NodeRef, why: &str) -> Step {
        let reason = format!(
            "step `{}` may or may not have happened: {why}; look at its target, then tell Farrier with `farrier resolve`",
            self.run.name(node)
        );
        self.park(reason, ParkCause::InDoubt, None, None)
    }

    pub(super) fn planned(&mut self, node: NodeRef, plan: PlanReport) -> Step {
        let firm = self.is_firm(node.step);
        let certain = !matches!(plan.planned.fidelity, Fidelity::Deferred | Fidelity::Described);
        if let Some(wait) = &plan.planned.wait
            && self.run.writes_allowed
            && firm
            && !self.limits.plan_only
        {
            return self.begin_wait(node, wait.clone());
        }
        let child_open = plan.child.as_ref().is_some_and(|child| !child.is_certain());
        if plan.planned.changes.is_empty() && plan.planned.wait.is_none() && certain && !child_open && firm {
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
            self.release_lock(node)?;
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

    pub(super) fn rendered_inputs(&mut self, node: NodeRef) -> Result<Value, Failure> {
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

    pub(super) fn finish_early(&mut self, node: NodeRef, reason: Option<String>) -> Step {
        let Some(reason) = reason else { return Ok(()) };
        if self.run.finished_early.is_some() {
            return Ok(());
        }
        let name = self.run.name(node);
        self.emit(Event::FinishedEarly { node: name, reason })
    }

    /// A failed attempt: in doubt, tried again, or final.
    pub(super) fn fail(&mut self, node: NodeRef, failure: Failure, firm: bool) -> Step {
        if !firm {
            // Below steps with changes the world is not yet as this step will find it.
            self.defer(node, None, false);
            return Ok(());
        }
        let graph = self.run.graph.clone();
        let spec = graph.step(node.step);
        let (state, attempt) = (self.run.node(node).state, self.run.node(node).attempt);
        let child_waited = state == NodeState::Waiting && self.run.node(node).wait.is_some();
        if failure.in_doubt && (state == NodeState::Running || child_waited) {
            self.run.memory.dirty.insert(node);
            return self.emit_node(node, attempt, NodeEvent::InDoubt { reason: failure.to_string() });
        }
        // An attempt that got no further than its plan has not been counted by an intent.
        let attempt = if matches!(state, NodeState::Running | NodeState::Waiting | NodeState::InDoubt) {
            attempt
        } else {
            attempt + 1
        };
        // `finally` comes when the run is stopping, and its steps are tried as often as others.
        let goes_on = spec.finally && self.run.memory.finally_open;
        let passing = if spec.retry.on.is_empty() {
            failure.kind.may_pass()
        } else {
            spec.retry.on.contains(&failure.kind)
        };
        let again = attempt < spec.retry.attempts
            && passing
            && !self.limits.plan_only
            && (goes_on || !self.run.stopping());
        // Who asks sooner than a server wants is turned away for longer.
        let asked =
            failure.retry_after_s.map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds.into()));
        let pause = spec.retry.pause_after(attempt).max(asked.min(LONGEST_ASKED));
        let retry_at = again.then(|| self.now + pause);
        let continued = retry_at.is_none() && node.item.is_none() && spec.on_failure == OnFailure::Continue;
        self.emit_node(node, attempt, NodeEvent::Failed { failure, retry_at, continued })?;
        self.release_lock(node)?;
        if let Some(at) = retry_at {
            self.run.memory.timers.insert((at, node));
        }
        Ok(())
    }
}
