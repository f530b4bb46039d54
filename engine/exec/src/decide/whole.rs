//! The run as a whole: the barrier, undo in reverse order, `finally`, and the last event.

use farrier_model::event::ParkCause;
use farrier_model::{
    BoundPlan, Event, Failure, FailureKind, NodeEvent, NodeState, RunState, Subject, Text, Value, ids,
};
use farrier_runbook::graph::{GuardAction, RateOf, Undo};

use super::waits::undoes;
use super::{Decider, Step, WorkKind};
use crate::guard::{self, GuardFinding};
use crate::plan::Plan;
use crate::run::{ApprovalRun, NodeRef, Phase, Run};

impl Run {
    /// Whether people have approved exactly this before the first write, so that nobody has to be asked once more: whoever
    /// began the run has said yes before they were.
    pub(crate) fn is_approved(&self, plan: &Plan) -> bool {
        self.approvals.get(&Subject::Run).is_some_and(ApprovalRun::is_granted)
            && self.bound.as_ref().is_some_and(|read| read.plan.differences(plan).is_empty())
            && plan.guards.iter().all(|finding| finding.passed || self.accepted.contains(&*finding.guard))
    }
}

impl Decider<'_> {
    pub(super) fn proceed(&mut self, by: String, accepted: Vec<Text>, plan: &Plan) -> Step {
        if !self.run.memory.at_barrier {
            return Ok(());
        }
        self.run.memory.at_barrier = false;
        for guard in
            accepted.into_iter().filter(|guard| !self.run.accepted.contains(guard)).collect::<Vec<_>>()
        {
            self.emit(Event::Resumed { by: by.clone(), accepted: Some(guard) })?;
        }
        let open: Vec<GuardFinding> = self
            .findings()
            .into_iter()
            .filter(|finding| !finding.passed && !self.run.accepted.contains(&*finding.guard))
            .collect();
        if let Some(stopped) = open.iter().find(|finding| finding.otherwise == GuardAction::Stop) {
            self.stop_with(Failure::new(FailureKind::Guard, stopped.sentence()));
            return Ok(());
        }
        let bound = match plan.bind() {
            Ok(bound) => Box::new(bound),
            Err(error) => {
                self.stop_with(Failure::new(FailureKind::Internal, error.to_string()));
                return Ok(());
            }
        };
        if let Some(asks) = open.first() {
            let (reason, guard) = (asks.sentence(), Some(asks.guard.as_str().into()));
            return self.park(reason, ParkCause::Guard, guard, Some(bound));
        }
        let differences = match &self.run.bound {
            Some(read) => read.plan.differences(plan),
            None => Vec::new(),
        };
        let approved = self.run.approvals.get(&Subject::Run).is_some_and(ApprovalRun::is_granted);
        if !differences.is_empty() && !approved {
            // What somebody read is not what would happen now. Nothing has been changed.
            let message = format!("the plan is not true any more: {}", differences.join("; "));
            self.stop_with(Failure::new(FailureKind::Drift, message));
            return Ok(());
        }
        if self.run.approvals_needed > 0 && (!approved || !differences.is_empty()) {
            return self.ask_for_the_run(bound);
        }
        let total = self.run.memory.total;
        self.emit(Event::WritesAllowed {
            creates: total.create,
            updates: total.update + total.run + total.send,
            deletes: total.delete,
        })
    }

    /// The environment wants people to approve what the run is about to do.
    fn ask_for_the_run(&mut self, plan: Box<BoundPlan>) -> Step {
        let count = self.run.approvals_needed;
        let (subject, who) = (Subject::Run, Vec::new());
        self.emit(Event::ApprovalAsked { subject, who, count, expires: None, plan })
    }

    /// A guard asks, about exactly what is planned now.
    pub(super) fn park_at_guard(&mut self, reason: String, guard: Text) -> Step {
        let findings = self.findings();
        let plan = Plan::of(self.run, findings).bind().ok().map(Box::new);
        self.park(reason, ParkCause::Guard, Some(guard), plan)
    }

    /// What every guard says of everything that is planned.
    pub(super) fn findings(&self) -> Vec<GuardFinding> {
        let graph = &self.run.graph;
        let mut findings: Vec<GuardFinding> =
            self.run.run_guards().map(|guard| self.finding(guard, None, false)).collect();
        for step in graph.indices() {
            let spec = graph.step(step);
            findings.extend(spec.guards.iter().map(|guard| self.finding(guard, Some(step), false)));
        }
        findings
    }

    /// What one guard says, of the step it stands in or of the whole run. `one_more`: of a rate, one execution beyond those
    /// that were made; otherwise all that are planned.
    pub(super) fn finding(
        &self,
        guard: &farrier_runbook::graph::Guard,
        step: Option<farrier_runbook::graph::StepIndex>,
        one_more: bool,
    ) -> GuardFinding {
        let graph = &self.run.graph;
        let id = step.map(|step| &*graph.step(step).id);
        let Some(rate) = &guard.rate else {
            let counts = step.map_or(self.run.memory.total, |step| self.step_counts(step));
            return guard::check(guard, id, counts);
        };
        let made = self.run.memory.rates.get(&guard::name(guard, id)).copied().unwrap_or(0);
        let more = if one_more { 1 } else { self.planned_executions(&rate.of) };
        guard::check_rate(guard, id, made + more)
    }

    /// How often the run is about to execute what a rate counts, as far as is known.
    fn planned_executions(&self, of: &[RateOf]) -> u64 {
        let graph = &self.run.graph;
        let nodes = self.run.nodes().filter(|node| of.iter().any(|of| of.counts(graph.step(node.step))));
        let planned = nodes.filter(|node| {
            let run_node = self.run.node(*node);
            !run_node.state.is_settled()
                && run_node.planned.as_ref().is_some_and(|plan| plan.counts().total() > 0)
        });
        let own = of.iter().any(|of| matches!(of, RateOf::Runbook(name) if *name == graph.name));
        // A dry run is no run yet, so it is not among those that were made.
        planned.count() as u64 + u64::from(own && self.limits.plan_only)
    }

    /// Nothing is at work and nothing is ready. True when something became ready by what was decided here.
    pub(super) fn quiet(&mut self) -> Step<bool> {
        if self.run.memory.letting_go {
            return Ok(false);
        }
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
        let wants_undo = undoes(self.run.stop, self.run.cancelled_by.is_some(), self.run.cancel_undoes);
        if wants_undo && !self.run.committed {
            if self.run.undo_started.is_none() && !self.undo_candidates().is_empty() {
                let reason = match (&self.run.cancelled_by, &self.run.first_failure) {
                    (Some(by), _) => format!("{by} cancelled the run"),
                    (None, Some(failure)) => failure.to_string(),
                    (None, None) => String::new(),
                };
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
            // Whoever says no to the plan wants nothing written. A signal is another thing: what follows is the runbook's word.
            let declined = self.run.cancelled_by.is_some()
                && !self.run.writes_allowed
                && self.run.stopping_signal().is_empty();
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

    /// What has not started and never will: skipped after an early finish, blocked below a step that failed. Steps
    /// that a stopped run just did not come to stay pending.
    pub(super) fn skip_the_rest(&mut self) -> Step {
        let graph = self.run.graph.clone();
        for step in graph.order().iter().copied().filter(|step| !graph.step(*step).finally) {
            let node = NodeRef::step(step);
            if self.run.node(node).state != NodeState::Pending {
                continue;
            }
            if let Some(reason) = self.run.finished_early.clone() {
                self.emit_node(node, 0, NodeEvent::Skipped { reason: reason.into() })?;
                continue;
            }
            let failed = graph.needs(step).find(|(on, need)| {
                self.run.step(*on).node.state.is_settled() && !self.run.need_met(*on, *need)
            });
            if let Some((on, _)) = failed {
                let by = self.run.name(NodeRef::step(on));
                self.emit_node(node, 0, NodeEvent::Blocked { by })?;
            }
        }
        Ok(())
    }

    /// Nodes whose effect stands and is to be reversed, the last to succeed first; one whose undo has begun leads.
    pub(super) fn undo_candidates(&self) -> Vec<NodeRef> {
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

    pub(super) fn undo(&mut self, node: NodeRef) -> Step {
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

    pub(super) fn finish(&mut self) -> Step {
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
