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
//!
//! **Waiting.** When nothing is at work and nothing can begin until a moment, an answer, a lock or the end of a child
//! run, the run is suspended: the owner lets go, and a row in the store with a time is all that is left of it. A wait
//! that is short (`Limits::patience`) and that nobody else has to end is sat out instead.

mod asks;
mod doubts;
mod locks;
mod nodes;
mod reports;
mod waits;
mod whole;
mod work;

pub use asks::Refusal;

use std::sync::Arc;
use std::time::Duration;

use farrier_action::{Planned, Probe};
use farrier_model::event::ParkCause;
use farrier_model::time::Timestamp;
use farrier_model::{
    BoundPlan, Event, Failure, FailureKind, NodeEvent, NodeName, NodeState, Request, RunId, RunState, Scope,
    Text, Value,
};
use farrier_runbook::graph::OnFailure;
use farrier_store::Ticket;
use uuid::Uuid;

use crate::guard::GuardFinding;
use crate::plan::Plan;
use crate::run::{NodeRef, Phase, ReplayError, Run};

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
    /// The longest wait that is sat out.
    pub patience: Duration,
    /// A person wants a parked run to go on.
    pub resume_parked: bool,
    /// Only take requests in; start nothing.
    pub answer_only: bool,
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
        /// What the run is about to do.
        plan: Arc<Plan>,
    },
    /// Somebody wants the run to stop.
    Cancel {
        /// Who.
        by: String,
    },
    /// Somebody wants something of it.
    Request(Request),
    /// Where the run stands in the lines for its locks.
    Tickets(Vec<Ticket>),
    /// Something that it waits for may have come: a child run's end.
    Poke,
    /// Its owner lets go of it: nothing new begins, what is at work ends.
    LetGo,
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
    /// A probe, and the output of an effect that it found done.
    Probed(Result<(Probe, Value), Failure>),
    /// An undo.
    Undone(Result<(), Failure>),
    /// A child run waits for a person.
    ChildParked(String),
    /// A child run waits, or another task is at work on it.
    ChildWaits {
        /// The child.
        run: RunId,
        /// When it goes on by itself.
        at: Option<Timestamp>,
    },
    /// What is left of the run, for those who are asked to approve it.
    Rehearsed(Result<Box<BoundPlan>, Failure>),
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
    /// The plan that a child run is bound to.
    pub bound: Option<BoundPlan>,
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
    /// Make the plan of what is left of the run after this node.
    Rehearse,
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

impl WorkKind {
    /// One word for the log.
    pub fn name(&self) -> &'static str {
        match self {
            WorkKind::Plan { .. } => "plan",
            WorkKind::Apply(_) => "apply",
            WorkKind::Verify(_) => "verify",
            WorkKind::Rehearse => "rehearse",
            WorkKind::Probe(_) => "probe",
            WorkKind::Undo { .. } => "undo",
        }
    }
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
    /// The run is finished, parked or suspended.
    pub over: bool,
    /// Requests that `events` answer.
    pub taken: Vec<Uuid>,
    /// Ask the store about the run's tickets after this was appended, and tell.
    pub tickets: bool,
    /// Child runs that are to stop with this one.
    pub cancel: Vec<NodeName>,
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
            if self.undo_started.is_some() { RunState::Undone } else { RunState::Cancelled }
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
                Input::Proceed { by, accepted, plan } => self.proceed(by, accepted, &plan)?,
                Input::Cancel { by } => {
                    self.run.memory.at_barrier = false;
                    if self.run.cancelled_by.is_none() && !self.run.state.is_final() {
                        self.cancel(by, false, None)?;
                    }
                }
                Input::Request(request) => self.request(request)?,
                Input::Tickets(tickets) => self.tickets(&tickets)?,
                Input::Poke => self.look_at_waiting(),
                Input::LetGo => self.run.memory.letting_go = true,
            }
        }
        if let Some(parked) = self.run.memory.was_parked.take()
            && !self.run.memory.unparked
            && !self.limits.resume_parked
        {
            self.emit(parked)?;
        }
        if self.run.state.is_final() || self.run.parked.is_some() {
            self.decision.over = self.run.memory.active == 0;
            return Ok(());
        }
        if self.limits.answer_only {
            return self.suspend(Some(self.now), "it was answered and can go on".into());
        }
        self.recover()?;
        if self.run.parked.is_some() {
            self.decision.over = true;
            return Ok(());
        }
        self.deadline();
        if (self.run.stopping() || self.run.memory.letting_go) && !self.run.memory.gave_up {
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
            self.wake(node);
        }
        if !self.limits.plan_only && !self.hold_run_locks()? {
            return self.rest();
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
            if self.run.memory.active > 0 || self.something_waits() {
                break;
            }
            if !self.run.memory.dirty.is_empty() {
                continue;
            }
            if !self.quiet()? {
                break;
            }
        }
        if self.run.state.is_final() || self.run.parked.is_some() {
            self.decision.over = self.run.memory.active == 0;
            return Ok(());
        }
        self.rest()
    }

    fn emit(&mut self, event: Event) -> Step {
        self.run.fold(&event, self.now)?;
        self.decision.events.push(event);
        Ok(())
    }

    fn park(
        &mut self,
        reason: String,
        cause: ParkCause,
        guard: Option<Text>,
        plan: Option<Box<BoundPlan>>,
    ) -> Step {
        self.emit(Event::Parked { reason, cause, guard, plan })
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
            return self.park(reason, ParkCause::Poison, None, None);
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
                    // Waiting nodes look for themselves whether what they wait for has come.
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
}

fn lost_failure() -> Failure {
    Failure::new(FailureKind::Internal, "it failed without a recorded reason")
}
