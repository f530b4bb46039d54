//! [`Event`]: the facts of which a run's journal consists, in past tense.
//!
//! A stored name is never reused. Adding a field: give it a default, so that old journals load, and add a fixture
//! under `testdata/journals/`.

use serde::{Deserialize, Serialize};

use crate::ask::Subject;
use crate::change::{Change, Effect};
use crate::failure::Failure;
use crate::ids::{Digest, NodeName, RunId};
use crate::state::RunState;
use crate::time::Timestamp;
use crate::value::{Text, Value};

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the run, from 1, without gaps.
    pub seq: i64,
    /// Which ownership of the run wrote it; never decreases with `seq`.
    pub epoch: i64,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

/// Why a run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A person asked.
    Manual {
        /// Who.
        by: String,
    },
    /// A step of another run.
    Parent {
        /// That run.
        run: RunId,
        /// That step or item.
        node: NodeName,
        /// The person who asked for the run at the top; none in journals of versions that did not record it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// The clock.
    Schedule {
        /// The schedule's id in the ledger.
        schedule: Text,
        /// The moment it was due, before jitter.
        nominal: Timestamp,
    },
    /// An alert.
    Alert {
        /// The incident it belongs to.
        incident: Text,
        /// The receiver in Alertmanager's configuration that sent it.
        receiver: Text,
        /// The run is a proposal: it waits for an approval before its first write, whatever the environment says.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        proposed: bool,
    },
}

impl Trigger {
    /// The person who asked for it, if one did.
    pub fn by(&self) -> Option<&str> {
        match self {
            Trigger::Manual { by } => Some(by),
            Trigger::Parent { by, .. } => by.as_deref(),
            Trigger::Schedule { .. } | Trigger::Alert { .. } => None,
        }
    }
}

/// A plan that somebody has read and that binds what a run does: its changes are made or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoundPlan {
    /// What approvals name.
    pub digest: Digest,
    /// The plan itself, as the engine writes it.
    pub plan: Value,
    /// The run that was planned, when the plan was made before it: whoever carries the plan out is that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<PlannedRun>,
}

/// What a plan says of the run that will carry it out. Steps may write either of it, so it was read with the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedRun {
    /// `run.id`.
    pub id: RunId,
    /// `run.started_at`.
    pub started_at: Timestamp,
}

/// What a waiting node waits for. The run holds no task and no lease meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// A moment.
    Until {
        /// When it goes on by itself.
        at: Timestamp,
        /// A signal that ends the wait early.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<Text>,
    },
    /// A signal, without end.
    Signal {
        /// Its name.
        name: Text,
    },
    /// People's approval.
    Approval,
    /// The end of a child run.
    Child {
        /// That run.
        run: RunId,
        /// When it goes on by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Timestamp>,
    },
}

/// A fact about a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first event: everything that the run is pinned to.
    Created {
        /// Name of the runbook.
        runbook: Text,
        /// Digest of the texts of the runbook and of those it can start.
        bundle: Digest,
        /// The environment's name.
        environment: Text,
        /// The checked inputs, defaults filled in.
        inputs: Value,
        /// Why it began.
        trigger: Trigger,
        /// The saved plan that it carries out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<Box<BoundPlan>>,
    },
    /// An owner took the run; its epoch is the entry's.
    Claimed {
        /// `host:pid` of the owner, for people.
        owner: String,
    },
    /// All steps that can be planned before the first write were planned and the guards let them pass.
    WritesAllowed {
        /// How many objects would be created, updated and deleted; run and send count as updates.
        creates: u64,
        /// See `creates`.
        updates: u64,
        /// See `creates`.
        deletes: u64,
    },
    /// Something happened to a node.
    Node {
        /// Which.
        node: NodeName,
        /// Which try, from 1.
        attempt: u32,
        /// What.
        event: NodeEvent,
    },
    /// An `expect … then: finish` ended the run early; what has not started is skipped.
    FinishedEarly {
        /// The step that said so.
        node: NodeName,
        /// Its reason.
        reason: String,
    },
    /// From here the run only goes backwards.
    UndoStarted {
        /// Why.
        reason: String,
    },
    /// A person asked to stop.
    CancelRequested {
        /// Who.
        by: String,
        /// What was done is to be undone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        undo: bool,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Nothing is left to do now: the run waits, and its owner has let go of it.
    Suspended {
        /// When it goes on by itself; none when only somebody else can move it on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
        /// What it waits for, for people.
        reason: String,
    },
    /// It stands in line for a lock.
    LockAsked {
        /// The lock's name.
        lock: Text,
        /// The node that wants it; none for the whole run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
        /// How many may hold it at once.
        capacity: u32,
        /// When it gives up; none to wait without end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// It holds a lock.
    LockTaken {
        /// The lock's name.
        lock: Text,
        /// The node that wanted it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
        /// A number that grows with every holder of this lock.
        fence: i64,
    },
    /// It has given a lock back, or its place in the line up.
    LockReleased {
        /// The lock's name.
        lock: Text,
        /// The node that wanted it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
    },
    /// People are asked to approve a plan.
    ApprovalAsked {
        /// What waits for it.
        subject: Subject,
        /// Who may say yes: people, or groups of the environment; empty for anyone but the person who asked for the run.
        who: Vec<Text>,
        /// How many must say yes.
        count: u32,
        /// When it is too late.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<Timestamp>,
        /// What they are asked to approve.
        plan: Box<BoundPlan>,
    },
    /// A person said yes to a plan.
    Approved {
        /// What waits for it.
        subject: Subject,
        /// Who.
        by: String,
        /// The plan that they had read.
        digest: Digest,
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A person said no to a plan.
    Rejected {
        /// What waited for it.
        subject: Subject,
        /// Who.
        by: String,
        /// The plan that they had read.
        digest: Digest,
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A signal of the runbook arrived and was accepted.
    SignalReceived {
        /// Its name.
        name: Text,
        /// Who sent it.
        by: String,
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A person gave their word on a step in doubt, and another one has to say the same.
    Attested {
        /// The step.
        node: NodeName,
        /// Whether its effect happened.
        applied: bool,
        /// What it gave, as they say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Value>,
        /// Who.
        by: String,
        /// How they know.
        reason: String,
    },
    /// Somebody asked for something that the run does not accept.
    RequestRefused {
        /// Who.
        by: String,
        /// What they asked for.
        what: String,
        /// Why not.
        why: String,
    },
    /// The run waits for a person.
    Parked {
        /// Why, naming the step.
        reason: String,
        /// The class of reason.
        cause: ParkCause,
        /// The guard that asks, as its finding names it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guard: Option<Text>,
        /// What a guard asks about, exactly.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<Box<BoundPlan>>,
    },
    /// A person let a parked run go on.
    Resumed {
        /// Who.
        by: String,
        /// The guard they accepted, if it was parked by one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accepted: Option<Text>,
    },
    /// The last event.
    Finished {
        /// How it ended.
        state: RunState,
        /// The runbook's outputs; null unless it succeeded or is degraded.
        #[serde(default)]
        outputs: Value,
        /// The first reason for a bad end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
    },
}

/// Why a run is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParkCause {
    /// A step may or may not have happened.
    InDoubt,
    /// A guard asks.
    Guard,
    /// An undo failed; effects remain.
    UndoFailed,
    /// It was taken over too often.
    Poison,
    /// A child run is parked.
    Child,
    /// Its runbook or its environment cannot be used as they are now.
    Unready,
}

/// A fact about a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeEvent {
    /// The items of a `for_each` step became known.
    Expanded {
        /// Their keys, in order.
        keys: Vec<Text>,
    },
    /// It will not run.
    Skipped {
        /// Why.
        reason: Text,
    },
    /// It cannot run.
    Blocked {
        /// The node it needed.
        by: NodeName,
    },
    /// It is about to change the world. Durable before the first effect.
    Intent {
        /// The rendered inputs; recovery uses these and never renders again.
        inputs: Value,
        /// What it will change, with before-images.
        changes: Vec<Change>,
        /// What may be done with it in doubt.
        effect: Effect,
        /// The key for targets that remember keys.
        effect_id: String,
    },
    /// The effect is done, verification remains.
    Applied {
        /// The action's output.
        output: Value,
    },
    /// Done.
    Succeeded {
        /// The action's output.
        output: Value,
        /// How many objects it changed.
        #[serde(default)]
        changed: u64,
    },
    /// The attempt failed.
    Failed {
        /// Why.
        failure: Failure,
        /// When it will be tried again; none when this was the last attempt.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<Timestamp>,
        /// The run goes on without it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        continued: bool,
    },
    /// It waits, without anybody at work on it.
    WaitBegan {
        /// What for.
        wait: Wait,
    },
    /// An intent without an outcome was found, or the answer to an effect was lost.
    InDoubt {
        /// What is known of it.
        reason: String,
    },
    /// A probe or a person found that the effect did not happen; it will be tried again.
    NotApplied {
        /// Who found it.
        by: String,
    },
    /// Its effect is about to be reversed.
    UndoIntent {
        /// The key for targets that remember keys.
        effect_id: String,
    },
    /// Its effect was reversed.
    UndoDone,
    /// Reversing it failed; the effect stands.
    UndoFailed {
        /// Why.
        failure: Failure,
    },
}

impl NodeEvent {
    /// The stored and shown name.
    pub fn name(&self) -> &'static str {
        match self {
            NodeEvent::Expanded { .. } => "expanded",
            NodeEvent::Skipped { .. } => "skipped",
            NodeEvent::Blocked { .. } => "blocked",
            NodeEvent::Intent { .. } => "intent",
            NodeEvent::Applied { .. } => "applied",
            NodeEvent::Succeeded { .. } => "succeeded",
            NodeEvent::Failed { .. } => "failed",
            NodeEvent::WaitBegan { .. } => "wait_began",
            NodeEvent::InDoubt { .. } => "in_doubt",
            NodeEvent::NotApplied { .. } => "not_applied",
            NodeEvent::UndoIntent { .. } => "undo_intent",
            NodeEvent::UndoDone => "undo_done",
            NodeEvent::UndoFailed { .. } => "undo_failed",
        }
    }
}

impl Event {
    /// The stored and shown name.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Created { .. } => "created",
            Event::Claimed { .. } => "claimed",
            Event::WritesAllowed { .. } => "writes_allowed",
            Event::Node { event, .. } => event.name(),
            Event::FinishedEarly { .. } => "finished_early",
            Event::UndoStarted { .. } => "undo_started",
            Event::CancelRequested { .. } => "cancel_requested",
            Event::Suspended { .. } => "suspended",
            Event::LockAsked { .. } => "lock_asked",
            Event::LockTaken { .. } => "lock_taken",
            Event::LockReleased { .. } => "lock_released",
            Event::ApprovalAsked { .. } => "approval_asked",
            Event::Approved { .. } => "approved",
            Event::Rejected { .. } => "rejected",
            Event::SignalReceived { .. } => "signal_received",
            Event::Attested { .. } => "attested",
            Event::RequestRefused { .. } => "request_refused",
            Event::Parked { .. } => "parked",
            Event::Resumed { .. } => "resumed",
            Event::Finished { .. } => "finished",
        }
    }

    /// Whether writing it needs a live lease: true for what precedes an effect. Recording a fact late is right even
    /// after the lease ran out, as long as nobody else has taken the run.
    pub fn needs_lease(&self) -> bool {
        matches!(
            self,
            Event::WritesAllowed { .. }
                | Event::Node { event: NodeEvent::Intent { .. } | NodeEvent::UndoIntent { .. }, .. }
        )
    }
}
