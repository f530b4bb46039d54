//! What the API says: types that are read and written, apart from those that the engine works with. The command line prints the
//! same ones, so that `farrier show -o json` and the API agree.

use farrier_action::Progress;
use farrier_exec::{NodeRef, Plan, Run};
use farrier_model::spec::Risk;
use farrier_model::{Change, Entry, Event, FailureKind, NodeState, RunState, Value, Wait};
use farrier_runbook::graph::{InputSpec, Trigger};
use farrier_runbook::{Bundle, Graph};
use farrier_store::{Act, FireRow, IncidentRow, RunRow, ScheduleRow, Ticket};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::live::Told;

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunSummary {
    /// Its id.
    pub id: String,
    /// Its runbook.
    pub runbook: String,
    /// What lists call it.
    pub title: String,
    /// Where it takes place.
    pub environment: String,
    /// `queued`, `running`, `waiting`, `undoing`, `succeeded`, `degraded`, `failed`, `undone`, `cancelled` or `parked`.
    #[schema(value_type = String)]
    pub state: RunState,
    /// When it was created.
    pub created_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
    /// The run that started it.
    pub parent: Option<String>,
    /// Why it is parked, or the first reason for a bad end.
    pub reason: Option<String>,
}

impl RunSummary {
    /// Of a stored run.
    pub fn of(row: &RunRow) -> RunSummary {
        RunSummary {
            id: row.id.to_string(),
            runbook: row.runbook.to_string(),
            title: row.title.to_string(),
            environment: row.environment.to_string(),
            state: row.state,
            created_at: row.created_at.to_string(),
            finished_at: row.finished_at.map(|at| at.to_string()),
            parent: row.parent.map(|parent| parent.to_string()),
            reason: row.reason.clone(),
        }
    }
}

/// A page of runs, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunPage {
    /// The runs.
    pub runs: Vec<RunSummary>,
    /// What `before` is on the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A step or an item of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// `step` or `step[item]`.
    pub node: String,
    /// `pending`, `running`, `waiting`, `retryable`, `in_doubt`, `succeeded`, `failed`, `skipped`, `blocked`, …
    #[schema(value_type = String)]
    pub state: NodeState,
    /// Its latest attempt, from 1.
    pub attempt: u32,
    /// How many objects it changed.
    pub changed: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The class of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kind: Option<FailureKind>,
    /// Why it is as it is, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub changes: Vec<Change>,
    /// It is in doubt: fields of its output that others read, so that whoever says that it happened says them, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_say: Vec<String>,
}

/// A plan that people are asked to approve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApprovalView {
    /// The step that waits; `-` for the whole run.
    pub subject: String,
    /// Who is asked; anyone, when empty.
    pub who: Vec<String>,
    /// How many have to say yes.
    pub count: u32,
    /// Who has.
    pub approved: Vec<String>,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// What an answer has to name.
    pub digest: String,
    /// What would be done.
    #[schema(value_type = Object)]
    pub plan: Plan,
}

/// One run, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// Its id.
    pub id: String,
    /// Its runbook.
    pub runbook: String,
    /// What lists call it.
    pub title: String,
    /// Where it takes place.
    pub environment: String,
    /// As in lists.
    #[schema(value_type = String)]
    pub state: RunState,
    /// When it was created.
    pub created_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
    /// The run that started it.
    pub parent: Option<String>,
    /// Why it is parked, or the first reason for a bad end.
    pub reason: Option<String>,
    /// Its checked inputs.
    #[schema(value_type = Object)]
    pub inputs: Value,
    /// Its outputs.
    #[schema(value_type = Object)]
    pub outputs: Value,
    /// The first reason for a bad end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The class of that failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kind: Option<FailureKind>,
    /// Why it is parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<String>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// When it goes on by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Plans that people are asked to approve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<ApprovalView>,
    /// The saved plan that it carries out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// What the guard asks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub asks: Option<Plan>,
    /// The guard that a person has to accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<String>,
    /// Its steps and items.
    pub steps: Vec<StepView>,
}

impl RunView {
    /// Of a stored run and its replay.
    ///
    /// # Errors
    /// A plan in its journal is not of this version.
    pub fn of(row: &RunRow, run: &Run) -> Result<RunView, String> {
        let RunSummary { id, runbook, title, environment, state, created_at, finished_at, parent, reason } =
            RunSummary::of(row);
        let asks = run.parked.as_ref().and(run.asking_plan.as_ref());
        Ok(RunView {
            id,
            runbook,
            title,
            environment,
            state,
            created_at,
            finished_at,
            parent,
            reason,
            inputs: run.inputs.clone(),
            outputs: run.outputs.clone(),
            failure: run.failure.as_ref().map(ToString::to_string),
            kind: run.failure.as_ref().map(|failure| failure.kind),
            parked: run.parked.as_ref().map(|(reason, _)| reason.clone()),
            waits: run.suspended.as_ref().map(|(reason, _)| reason.clone()),
            until: row.not_before.map(|at| at.to_string()),
            approvals: if row.state.is_final() { Vec::new() } else { open_approvals(run)? },
            plan: run.saved_plan.map(|digest| digest.to_string()),
            asks: asks.map(Plan::of_bound).transpose()?,
            guard: run.asking_guard.as_ref().map(ToString::to_string),
            steps: run.nodes().map(|node| step_view(run, node)).collect(),
        })
    }

    /// How many objects it changed.
    pub fn changed(&self) -> u64 {
        self.steps.iter().map(|step| step.changed).sum()
    }
}

/// The approvals that a run still waits for.
fn open_approvals(run: &Run) -> Result<Vec<ApprovalView>, String> {
    let open = run.approvals.iter().filter(|(_, asked)| asked.is_open());
    open.map(|(subject, asked)| {
        Ok(ApprovalView {
            subject: subject.to_string(),
            who: asked.who.iter().map(ToString::to_string).collect(),
            count: asked.count,
            approved: asked.approved.clone(),
            expires: asked.expires.map(|expires| expires.to_string()),
            digest: asked.plan.digest.to_string(),
            plan: Plan::of_bound(&asked.plan)?,
        })
    })
    .collect()
}

fn step_view(run: &Run, node: NodeRef) -> StepView {
    let name = run.name(node).to_string();
    let mut must_say: Vec<String> = Vec::new();
    if run.node(node).state == NodeState::InDoubt {
        must_say =
            run.graph.step(node.step).must_be_said().iter().map(|(field, _)| field.to_string()).collect();
        must_say.dedup();
    }
    let node = run.node(node);
    StepView {
        node: name,
        state: node.state,
        attempt: node.attempt,
        changed: node.changed,
        failure: node.failure.as_ref().map(ToString::to_string),
        kind: node.failure.as_ref().map(|failure| failure.kind),
        reason: match &node.wait {
            Some(wait) => Some(format!("waits {}", describe_wait(wait))),
            None => node.reason.as_ref().map(ToString::to_string),
        },
        changes: node.effects.clone(),
        must_say,
    }
}

/// What a node waits for, after "waits".
pub fn describe_wait(wait: &Wait) -> String {
    match wait {
        Wait::Until { at, signal: None } => format!("until {at}"),
        Wait::Until { at, signal: Some(signal) } => format!("until {at} or signal `{signal}`"),
        Wait::Signal { name } => format!("for signal `{name}`"),
        Wait::Approval => "for approval".into(),
        Wait::Child { run, .. } => format!("for its run {run}"),
    }
}

/// A line of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EntryView {
    /// Its place, from 1.
    pub seq: i64,
    /// Which ownership of the run wrote it.
    pub epoch: i64,
    /// When.
    pub at: String,
    /// What happened.
    #[schema(value_type = Object)]
    pub event: Event,
}

impl From<Entry> for EntryView {
    fn from(entry: Entry) -> EntryView {
        EntryView { seq: entry.seq, epoch: entry.epoch, at: entry.at.to_string(), event: entry.event }
    }
}

/// How far a step has come: an event `progress` among those of a run. It has no id and is in no journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressView {
    /// The step.
    pub node: String,
    /// How many are done.
    pub done: u64,
    /// Of how many; 0 where nobody knows yet.
    pub total: u64,
    /// Of what, and what else is to say: one short line.
    pub text: String,
}

impl From<Told> for ProgressView {
    fn from(Told { node, progress, .. }: Told) -> ProgressView {
        let Progress { done, total, text } = progress;
        ProgressView { node: node.to_string(), done, total, text }
    }
}

/// A runbook in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunbookSummary {
    /// Its name.
    pub name: String,
    /// One line.
    pub summary: String,
    /// Who gets escalations.
    pub owner: String,
    /// The folder it stands in, below `runbooks/`: what rights are given for.
    pub area: String,
    /// The most it may do: `read_only`, `recoverable` or `destructive`.
    pub risk: String,
    /// Where people read more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docs: Option<String>,
    /// Whether the clock starts it.
    pub scheduled: bool,
    /// Whether alerts start it.
    pub alerted: bool,
}

impl RunbookSummary {
    /// Of a compiled runbook.
    pub fn of(graph: &Graph, area: &str) -> RunbookSummary {
        let is_alert = |trigger: &Trigger| matches!(trigger, Trigger::Alert { .. });
        RunbookSummary {
            name: graph.name.to_string(),
            summary: graph.summary.to_string(),
            owner: graph.owner.to_string(),
            area: area.to_owned(),
            risk: risk(graph.risk).to_owned(),
            docs: graph.docs.as_ref().map(ToString::to_string),
            scheduled: graph.triggers.iter().any(|trigger| !is_alert(trigger)),
            alerted: graph.triggers.iter().any(is_alert),
        }
    }
}

fn risk(risk: Risk) -> &'static str {
    match risk {
        Risk::ReadOnly => "read_only",
        Risk::Recoverable => "recoverable",
        Risk::Destructive => "destructive",
    }
}

/// An input of a runbook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InputView {
    /// Its name.
    pub name: String,
    /// Its type, in words.
    pub kind: String,
    /// Whether it must be given.
    pub required: bool,
    /// What it is when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub default: Option<Value>,
    /// What it has to look like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The only values allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub one_of: Vec<Value>,
    /// For people.
    pub about: String,
}

impl InputView {
    fn of(spec: &InputSpec) -> InputView {
        InputView {
            name: spec.name.to_string(),
            kind: farrier_runbook::inputs::describe(&spec.kind),
            required: spec.required,
            default: spec.default.clone(),
            pattern: spec.pattern.as_ref().map(ToString::to_string),
            one_of: spec.one_of.clone(),
            about: spec.about.to_string(),
        }
    }
}

/// One runbook, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunbookView {
    /// What lists say.
    pub about: RunbookSummary,
    /// Its inputs, in the file's order.
    pub inputs: Vec<InputView>,
    /// The names of the signals that its runs accept.
    pub signals: Vec<String>,
    /// The kinds of its targets, by the name it uses.
    pub targets: std::collections::BTreeMap<String, String>,
    /// The environments in which it may be started here.
    pub environments: Vec<String>,
    /// Its text.
    pub text: String,
}

impl RunbookView {
    /// Of a compiled runbook.
    pub fn of(bundle: &Bundle, area: &str, environments: Vec<String>) -> RunbookView {
        let graph = bundle.graph();
        let targets = graph.targets.iter().map(|(alias, used)| (alias.to_string(), used.kind.to_string()));
        RunbookView {
            about: RunbookSummary::of(graph, area),
            inputs: graph.inputs.iter().map(InputView::of).collect(),
            signals: graph.signals.iter().map(|signal| signal.name.to_string()).collect(),
            targets: targets.collect(),
            environments,
            text: bundle.sources.get(&bundle.root).map(ToString::to_string).unwrap_or_default(),
        }
    }
}

/// A lock that is held, or a place in the line for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LockView {
    /// The lock.
    pub lock: String,
    /// `holds` or `waits`.
    pub state: String,
    /// Who.
    pub run: String,
    /// What lists call that run.
    pub title: String,
    /// The step that wants it; absent for the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// How many may hold it at once.
    pub capacity: u32,
    /// Since when.
    pub since: String,
}

impl LockView {
    /// Of a ticket of a run.
    pub fn of(ticket: Ticket, title: String) -> LockView {
        let (state, since) = match ticket.held_since {
            Some(since) => ("holds", since),
            None => ("waits", ticket.asked_at),
        };
        LockView {
            lock: ticket.lock.to_string(),
            state: state.to_owned(),
            run: ticket.run.to_string(),
            title,
            step: ticket.node.map(|node| node.to_string()),
            capacity: ticket.capacity,
            since: since.to_string(),
        }
    }
}

/// What somebody did, or was kept from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActView {
    /// Its id.
    pub id: String,
    /// When.
    pub at: String,
    /// Who.
    pub who: String,
    /// The way in: `socket`, `token`, `login` or `certificate`.
    pub via: String,
    /// The route.
    pub what: String,
    /// What it was about; empty for none.
    pub object: String,
    /// `ok`, or the code of the refusal.
    pub outcome: String,
    /// More, in a few words.
    pub detail: String,
}

impl From<Act> for ActView {
    fn from(act: Act) -> ActView {
        let Act { id, at, who, via, what, object, outcome, detail } = act;
        ActView { id: id.to_string(), at: at.to_string(), who, via, what, object, outcome, detail }
    }
}

/// A page of the audit, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActPage {
    /// The acts.
    pub acts: Vec<ActView>,
    /// What `before` is on the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A schedule, and what came of it last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleView {
    /// `environment/runbook`, with `#2` for the second one of a runbook.
    pub schedule: String,
    /// The runbook that it starts.
    pub runbook: String,
    /// Where.
    pub environment: String,
    /// When, in words.
    pub when: String,
    /// What became of the last due time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<FireView>,
    /// When it is looked at next, jitter included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Who keeps it from starting runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_because: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<String>,
}

impl ScheduleView {
    /// Of a schedule and its last record.
    pub fn of(row: &ScheduleRow, last: Option<FireRow>) -> ScheduleView {
        let paused = row.paused.as_ref();
        ScheduleView {
            schedule: row.id.to_string(),
            runbook: row.runbook.to_string(),
            environment: row.environment.to_string(),
            when: row.spec.due.to_string(),
            last: last.map(FireView::of),
            next: row.next_due.map(|next| next.to_string()),
            paused_by: paused.map(|paused| paused.by.clone()),
            paused_because: paused.map(|paused| paused.why.clone()),
            paused_at: paused.map(|paused| paused.at.to_string()),
        }
    }
}

/// What became of a due time, or of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FireView {
    /// The due time; the last one, when it stands for several.
    pub due: String,
    /// `run`, `skipped` or `coalesced`.
    pub decision: String,
    /// Why it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The run that started, or that was in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// When it was decided.
    pub decided_at: String,
}

impl FireView {
    fn of(row: FireRow) -> FireView {
        FireView {
            due: row.nominal.to_string(),
            decision: row.decision,
            reason: row.reason,
            run: row.run.map(|run| run.to_string()),
            decided_at: row.decided_at.to_string(),
        }
    }
}

/// To keep a schedule from starting runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// Which.
    pub schedule: String,
    /// Why, for those who find it paused.
    pub reason: String,
}

/// To let a schedule start runs again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnpauseRequest {
    /// Which.
    pub schedule: String,
}

/// What alerts have opened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IncidentView {
    /// Its id.
    pub id: String,
    /// The runbook that answers.
    pub runbook: String,
    /// Where.
    pub environment: String,
    /// What tells it from others of the runbook.
    pub key: String,
    /// The alert that opened it.
    pub alert: String,
    /// The receiver that it came in under.
    pub receiver: String,
    /// Since when it is open.
    pub opened_at: String,
    /// Since when none of its alerts fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_at: Option<String>,
    /// When it closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<String>,
    /// Its latest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// How many runs it had.
    pub runs: u64,
    /// Why it has no run now although it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_because: Option<String>,
}

impl From<IncidentRow> for IncidentView {
    fn from(row: IncidentRow) -> IncidentView {
        IncidentView {
            id: row.id.to_string(),
            runbook: row.runbook.to_string(),
            environment: row.environment.to_string(),
            key: row.key.to_string(),
            alert: row.alert.to_string(),
            receiver: row.receiver.to_string(),
            opened_at: row.opened_at.to_string(),
            resolved_at: row.resolved_at.map(|at| at.to_string()),
            closed_at: row.closed_at.map(|at| at.to_string()),
            run: row.run.map(|run| run.to_string()),
            runs: row.runs,
            held_because: row.held_why,
        }
    }
}

/// To let alerts start a runbook again whose fuse has blown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnfuseRequest {
    /// In this environment only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// What happened, in your words.
    pub reason: String,
}

/// Fuses that were mended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Unfused {
    /// How many.
    pub mended: u64,
}

/// What is to be planned or run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// Where. There is no default.
    pub environment: String,
    /// The inputs, by name. Text is read by the input's type, as on the command line; other values as they are.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub inputs: std::collections::BTreeMap<String, Value>,
    /// The text of a saved plan, to make exactly its changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanAnswer {
    /// What would be done, as `farrier plan -o json` prints it.
    #[schema(value_type = Object)]
    pub plan: Plan,
    /// The same as a saved plan, by which a run can be started that makes exactly these changes; absent when it is not whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
}

/// A run that was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Started {
    /// Its id. It is on disk.
    pub run: String,
    /// False when the same idempotency key has created it before.
    pub created: bool,
}

/// Yes or no to a plan that a run waits with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerRequest {
    /// The step that waits; `-` for the whole run.
    pub subject: String,
    /// The digest of the plan that was read, whole.
    pub digest: String,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// One of the runbook's signals.
    pub name: String,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The wish that a run stops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// Take back what was done.
    #[serde(default)]
    pub undo: bool,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The wish that a parked run goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// The guard that is accepted, as the run names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<String>,
}

/// Whether a step in doubt has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// `step` or `step[item]`.
    pub node: String,
    /// It happened.
    pub applied: bool,
    /// What it gave: fields of the step's output. Those that others read have to be there (`must_say` of the step).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// How they know.
    pub reason: String,
}

/// What came of logging out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogoutView {
    /// False for a token of the service file, which is taken out there.
    pub ended: bool,
}

/// A name and a password.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The name.
    pub name: String,
    /// The password. It is held against the directory and kept nowhere.
    pub password: String,
}

impl std::fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// Their name.
    pub name: String,
    /// The way they came in.
    pub via: String,
    /// The most they may do anywhere.
    pub role: String,
    /// The token of a new login, to be sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Until when it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// How the service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// Nothing is wrong.
    pub ok: bool,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// What does not keep it from its work and should be looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadView {
    /// The number of the set in use.
    pub set: u64,
    /// Whether it is a new one.
    pub changed: bool,
}
