//! Waiting: for a time, a signal, an approval, a child run. And letting go of a run that has nothing else to do.

use farrier_action::{Planned, WaitFor};
use farrier_model::time::Timestamp;
use farrier_model::{BoundPlan, Event, Failure, FailureKind, NodeEvent, RunId, Subject, Text, Value, Wait};
use farrier_runbook::graph::OnFailure;
use std::sync::Arc;

use super::{Decider, Step, WorkKind};
use crate::run::{NodeRef, Phase};

impl Decider<'_> {
    /// A step is reached that waits.
    pub(super) fn begin_wait(&mut self, node: NodeRef, wait: WaitFor) -> Step {
        let attempt = self.run.node(node).attempt.max(1);
        let wait = match wait {
            WaitFor::Length { length, signal } => Wait::Until { at: self.now + length, signal },
            WaitFor::Until { at, signal } => Wait::Until { at, signal },
            WaitFor::Signal { name } => Wait::Signal { name },
            WaitFor::Approval { .. } => {
                self.run.memory.asking.insert(node, wait);
                return self.hand_out(node, WorkKind::Rehearse, None);
            }
        };
        self.emit_node(node, attempt, NodeEvent::WaitBegan { wait })?;
        self.check_wait(node)
    }

    /// The plan of what is left of the run is there: people are asked.
    pub(super) fn ask_approval(&mut self, node: NodeRef, plan: Box<BoundPlan>) -> Step {
        let Some(WaitFor::Approval { who, count, within }) = self.run.memory.asking.remove(&node) else {
            return Ok(());
        };
        let subject = Subject::Node(self.run.name(node));
        let expires = within.map(|within| self.now + within);
        self.emit(Event::ApprovalAsked { subject, who, count, expires, plan })?;
        let attempt = self.run.node(node).attempt.max(1);
        self.emit_node(node, attempt, NodeEvent::WaitBegan { wait: Wait::Approval })?;
        self.check_wait(node)
    }

    /// A child run waits, and its parent with it.
    pub(super) fn child_waits(&mut self, node: NodeRef, run: RunId, at: Option<Timestamp>) -> Step {
        let wait = Wait::Child { run, at };
        if self.run.node(node).wait.as_ref() != Some(&wait) {
            let attempt = self.run.node(node).attempt;
            self.emit_node(node, attempt, NodeEvent::WaitBegan { wait })?;
        }
        self.run.node_mut(node).phase = Phase::Rests;
        if let Some(at) = at.filter(|at| *at > self.now) {
            self.run.memory.timers.insert((at, node));
        }
        Ok(())
    }

    /// Something may have come for the nodes that wait: each looks for itself.
    pub(super) fn look_at_waiting(&mut self) {
        for node in self.run.memory.waiting.clone() {
            self.wake(node);
        }
    }

    pub(super) fn wake(&mut self, node: NodeRef) {
        let run_node = self.run.node_mut(node);
        if matches!(run_node.phase, Phase::Rests) {
            run_node.phase = Phase::Idle;
        }
        self.run.memory.dirty.insert(node);
    }

    /// Whether what a node waits for has come.
    pub(super) fn check_wait(&mut self, node: NodeRef) -> Step {
        let Some(wait) = self.run.node(node).wait.clone() else { return Ok(()) };
        let attempt = self.run.node(node).attempt.max(1);
        let stops = self.run.stopping() && !self.run.graph.step(node.step).finally;
        match wait {
            // A child run stops by itself when it is told to, and its end is waited for.
            Wait::Child { .. } => {
                if !self.has_place(node) {
                    self.run.node_mut(node).phase = Phase::Queued;
                    self.run.memory.queue.insert(node);
                    return Ok(());
                }
                let planned =
                    Planned { changes: self.run.node(node).effects.clone(), ..Planned::known(Value::Null) };
                self.hand_out(node, WorkKind::Apply(Arc::new(planned)), None)
            }
            _ if stops => {
                let reason = Text::from("the run stopped while it waited");
                self.emit_node(node, attempt, NodeEvent::Skipped { reason })
            }
            Wait::Until { at, signal } => {
                if let Some(signal) = signal.as_ref()
                    && self.run.signals.contains_key(signal)
                {
                    return self.signalled(node, signal);
                }
                if at <= self.now {
                    let output = waited("time", None, None);
                    return self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed: 0 });
                }
                self.run.memory.timers.insert((at, node));
                Ok(())
            }
            Wait::Signal { name } => {
                if self.run.signals.contains_key(&name) {
                    self.signalled(node, &name)
                } else {
                    Ok(())
                }
            }
            Wait::Approval => self.check_approval(node, attempt),
        }
    }

    fn signalled(&mut self, node: NodeRef, signal: &Text) -> Step {
        let attempt = self.run.node(node).attempt.max(1);
        let Some(received) = self.run.signals.get(signal) else { return Ok(()) };
        let output = waited("signal", Some(&received.by), received.reason.as_deref());
        self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed: 0 })
    }

    fn check_approval(&mut self, node: NodeRef, attempt: u32) -> Step {
        let subject = Subject::Node(self.run.name(node));
        let Some(asked) = self.run.approvals.get(&subject) else { return Ok(()) };
        if asked.is_granted() {
            let by = asked.approved.iter().map(|by| Value::text(by.as_str())).collect();
            let digest = Value::text(asked.plan.digest.to_string());
            let output = Value::map([("approved_by", Value::list(by)), ("digest", digest)]);
            return self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed: 0 });
        }
        if let Some(failure) = refusal(asked.rejected.as_ref(), asked.expires, self.now) {
            return self.fail(node, failure, true);
        }
        if let Some(expires) = asked.expires {
            self.run.memory.timers.insert((expires, node));
        }
        Ok(())
    }

    /// Whether the run waits for its approval before the first write. A no, or no answer in time, ends it.
    pub(super) fn waits_for_approval(&mut self) -> bool {
        let Some(asked) = self.run.approvals.get(&Subject::Run) else { return false };
        if let Some(failure) = refusal(asked.rejected.as_ref(), asked.expires, self.now) {
            self.stop_with(failure);
            return false;
        }
        asked.is_open() && !self.run.stopping()
    }

    /// Whether a moment, an answer, a lock or a child run has to come before anything else can happen. Nodes that
    /// waited in vain, because the run stops, are looked at.
    pub(super) fn something_waits(&mut self) -> bool {
        if self.run.stopping() {
            let vain: Vec<NodeRef> = self
                .run
                .memory
                .waiting
                .iter()
                .copied()
                .filter(|node| !self.run.graph.step(node.step).finally)
                .filter(|node| !matches!(self.run.node(*node).wait, Some(Wait::Child { .. })))
                .collect();
            self.run.memory.dirty.extend(vain.iter().copied());
            let retried = |(_, node): &(Timestamp, NodeRef)| self.run.graph.step(node.step).finally;
            let is_waited_for =
                !self.run.memory.waiting.is_empty() || self.run.memory.timers.iter().any(retried);
            return vain.is_empty() && is_waited_for;
        }
        let open = !self.run.writes_allowed && self.waits_for_approval();
        open || !self.run.memory.timers.is_empty()
            || !self.run.memory.waiting.is_empty()
            || self.run.locks.values().any(|lock| lock.fence.is_none())
    }

    /// Nothing can begin now: when to look again, and whether to let go until then.
    pub(super) fn rest(&mut self) -> Step {
        let deadline = self.run.graph.timeout.map(|timeout| self.run.started_at + timeout);
        let timer = self.run.memory.timers.first().map(|(at, _)| *at);
        let lock = self.run.locks.values().filter(|lock| lock.fence.is_none()).filter_map(|lock| lock.until);
        let approval = self
            .run
            .approvals
            .get(&Subject::Run)
            .filter(|asked| asked.is_open())
            .and_then(|asked| asked.expires);
        let wake = deadline
            .filter(|_| !self.run.stopping())
            .into_iter()
            .chain(timer)
            .chain(lock)
            .chain(approval)
            .min();
        self.decision.wake = wake;
        let idle = self.run.memory.active == 0
            && self.decision.work.is_empty()
            && !self.decision.tickets
            && self.decision.cancel.is_empty();
        if self.limits.plan_only || !idle {
            return Ok(());
        }
        if self.run.memory.letting_go {
            self.decision.barrier = None;
            return self.suspend(Some(self.now), "its process stopped".into());
        }
        if self.run.memory.at_barrier {
            return Ok(());
        }
        let Some((reason, others)) = self.waits_for() else { return Ok(()) };
        let far = wake.is_none_or(|wake| {
            std::time::Duration::try_from(wake.duration_since(self.now)).unwrap_or_default()
                > self.limits.patience
        });
        if others || far { self.suspend(wake, reason) } else { Ok(()) }
    }

    pub(super) fn suspend(&mut self, until: Option<Timestamp>, reason: String) -> Step {
        self.decision.over = true;
        self.emit(Event::Suspended { until, reason })
    }

    /// What the run waits for, in words, and whether somebody else has to end that.
    fn waits_for(&self) -> Option<(String, bool)> {
        let run = &*self.run;
        if let Some(((lock, _), _)) = run.locks.iter().find(|(_, lock)| lock.fence.is_none()) {
            return Some((format!("waits for lock `{lock}`"), true));
        }
        if !run.writes_allowed
            && let Some(asked) = run.approvals.get(&Subject::Run)
            && asked.is_open()
        {
            let missing = asked.count as usize - asked.approved.len();
            return Some((format!("waits for {missing} more to approve its plan"), true));
        }
        let mut told = Vec::new();
        let mut others = false;
        for node in &run.memory.waiting {
            let name = run.name(*node);
            match &run.node(*node).wait {
                Some(Wait::Until { at, signal }) => {
                    others |= signal.is_some();
                    let early = signal.as_ref().map_or_else(String::new, |s| format!(" or signal `{s}`"));
                    told.push(format!("step `{name}` waits until {at}{early}"));
                }
                Some(Wait::Signal { name: signal }) => {
                    others = true;
                    told.push(format!("step `{name}` waits for signal `{signal}`"));
                }
                Some(Wait::Approval) => {
                    others = true;
                    told.push(format!("step `{name}` waits for approval"));
                }
                Some(Wait::Child { run, .. }) => {
                    others = true;
                    told.push(format!("step `{name}` waits for its run {run}"));
                }
                None => {}
            }
        }
        if told.is_empty() {
            let (at, node) = run.memory.timers.first()?;
            return Some((format!("step `{}` is tried again at {at}", run.name(*node)), false));
        }
        const SHOWN: usize = 3;
        let more = told.len().saturating_sub(SHOWN);
        told.truncate(SHOWN);
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        Some((told.join("; "), others))
    }
}

fn waited(by: &str, sent_by: Option<&str>, reason: Option<&str>) -> Value {
    let optional = |text: Option<&str>| text.map_or(Value::Null, Value::text);
    Value::map([("by", Value::text(by)), ("sent_by", optional(sent_by)), ("reason", optional(reason))])
}

fn refusal(
    rejected: Option<&(String, Option<String>)>,
    expires: Option<Timestamp>,
    now: Timestamp,
) -> Option<Failure> {
    if let Some((by, reason)) = rejected {
        let why = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        return Some(Failure::new(FailureKind::Rejected, format!("{by} rejected it{why}")));
    }
    let late = expires.filter(|expires| *expires <= now)?;
    Some(Failure::new(FailureKind::Rejected, format!("nobody approved it until {late}")))
}

/// What a person's cancel does to the end of a run: whether everything that was done is undone.
pub(super) fn undoes(stop: Option<OnFailure>, cancelled: bool, cancel_undoes: bool) -> bool {
    if cancelled { cancel_undoes } else { stop == Some(OnFailure::Undo) }
}
