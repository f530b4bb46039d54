//! [`Graph`]: a runbook with every reference resolved, every input typed and no cycle.
//!
//! Only [`crate::compile()`] makes one, so nothing downstream checks again. It is built once and never changed; the
//! state of a run lives elsewhere, in a list indexed by [`StepIndex`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farrier_model::expr::Template;
use farrier_model::spec::Risk;
use farrier_model::{ChangeKind, Digest, Effect, Expr, StepId, Text, Value};
use farrier_schedule::Spec;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use regex::Regex;

use crate::said::Gives;

/// A step's place in the graph: main steps in file order, then those of `finally` in file order.
pub type StepIndex = NodeIndex<u32>;

/// What one step wants of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It succeeded or was skipped.
    Succeeded,
    /// It is over, however it ended.
    Finished,
}

/// A checked runbook. See the module's page.
#[derive(Debug)]
pub struct Graph {
    /// The runbook's name.
    pub name: Text,
    /// One line for lists.
    pub summary: Text,
    /// Who gets escalations.
    pub owner: Text,
    /// Where people read more, as a URL.
    pub docs: Option<Text>,
    /// Digest of the text it was compiled from.
    pub digest: Digest,
    /// The ceiling of what it may do.
    pub risk: Risk,
    /// Names runs in lists.
    pub run_title: Option<Template>,
    /// The targets it uses, by alias.
    pub targets: BTreeMap<Text, TargetUse>,
    /// Typed inputs, in file order.
    pub inputs: Vec<InputSpec>,
    /// Named values, each after those it uses.
    pub vars: Vec<(Text, Template)>,
    /// Guards over the whole run.
    pub guards: Vec<Guard>,
    /// When it starts by itself, in file order.
    pub triggers: Vec<Trigger>,
    /// Who is told when a run needs people.
    pub escalate: Option<Escalate>,
    /// The dead-man's switch of a periodic task.
    pub health: Option<Health>,
    /// The run fails when it takes longer.
    pub timeout: Option<Duration>,
    /// Evaluated after the last step of a run that succeeded or is degraded.
    pub outputs: Option<Template>,
    /// While a run is alive, no second one with the same value starts.
    pub one_run_per: Option<Expr>,
    /// Locks held by the whole run.
    pub locks: Vec<Lock>,
    /// Events from outside that a run accepts.
    pub signals: Vec<Signal>,
    pub(crate) steps: DiGraph<Step, Need, u32>,
    pub(crate) order: Vec<StepIndex>,
    pub(crate) main_steps: usize,
}

/// What a runbook says of one of its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetUse {
    /// `ldap`, `sql`, …
    pub kind: Text,
    /// It stands for several targets of that kind.
    pub group: bool,
}

/// One input of a runbook.
#[derive(Debug, Clone)]
pub struct InputSpec {
    /// The name.
    pub name: Text,
    /// The type.
    pub kind: InputKind,
    /// Used when the input is not given; already checked.
    pub default: Option<Value>,
    /// It must be given: there is no default.
    pub required: bool,
    /// Anchored at both ends.
    pub pattern: Option<Regex>,
    /// Smallest number, length or duration (ms).
    pub min: Option<i64>,
    /// Largest number, length or duration (ms).
    pub max: Option<i64>,
    /// The only values allowed.
    pub one_of: Vec<Value>,
    /// For people.
    pub about: Text,
}

/// The type of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputKind {
    /// Text without line breaks or control characters.
    String,
    /// Any text.
    Text,
    /// A whole number.
    Int,
    /// `true` or `false`.
    Bool,
    /// `40d`.
    Duration,
    /// RFC 3339.
    Timestamp,
    /// A list of one type.
    List(Box<InputKind>),
    /// A map with text keys.
    Map,
    /// One component of a path: not empty, not `.` or `..`, no slash, no NUL.
    PathSegment,
    /// A distinguished name.
    Dn,
    /// A host name or address.
    Host,
    /// A Kubernetes object name: a DNS label or subdomain.
    K8sName,
    /// A Toolforge tool name without its project prefix.
    ToolName,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Uses {
    /// An action of a plugin.
    Action {
        /// `plugin.verb`.
        name: Text,
        /// Its effect class.
        effect: Effect,
        /// It also runs in plans below steps with changes.
        pure: bool,
    },
    /// Another runbook, as a child run.
    Runbook {
        /// Its name; it is in the same [`Bundle`].
        name: Text,
    },
}

/// One vertex.
#[derive(Debug)]
pub struct Step {
    /// The key in the file.
    pub id: StepId,
    /// Belongs to `finally`.
    pub finally: bool,
    /// What it does.
    pub uses: Uses,
    /// The input of the action or of the child run.
    pub with: Template,
    /// Steps whose outputs its expressions read (a subset of its needs).
    pub reads: Vec<StepIndex>,
    /// Runs only when true.
    pub condition: Option<Expr>,
    /// One node for each item.
    pub for_each: Option<ForEach>,
    /// Attempts and pauses.
    pub retry: Retry,
    /// The attempt fails when it takes longer.
    pub timeout: Option<Duration>,
    /// What a final failure does to the run.
    pub on_failure: OnFailure,
    /// A child run that is parked is left to people, and the step has failed; otherwise the run is parked with it.
    pub leaves_parked: bool,
    /// How its effect is reversed.
    pub undo: Undo,
    /// What its output is, and who relies on what of it.
    pub gives: Gives,
    /// Checked at once on `result`.
    pub expect: Vec<Expectation>,
    /// Polled until true.
    pub verify: Option<Verify>,
    /// Guards over this step's changes.
    pub guards: Vec<Guard>,
    /// A lock held while it makes its changes.
    pub lock: Option<Lock>,
    /// Stands in for the output when the step was skipped or failed and was continued.
    pub default_output: Option<Value>,
    /// From here the run only goes forward.
    pub commit_point: bool,
    /// Stops and asks when an earlier failure was continued.
    pub requires_clean: bool,
}

/// One node for each item of a list.
#[derive(Debug, Clone)]
pub struct ForEach {
    /// The list.
    pub items: Template,
    /// The item's name in expressions.
    pub as_name: Text,
    /// The item's stable identity: text or a number, unique in the list.
    pub key: Expr,
    /// How many at once.
    pub parallel: Option<usize>,
    /// Whether one failed item stops the others that have not begun.
    pub on_item_failure: OnItemFailure,
}

/// See [`ForEach::on_item_failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnItemFailure {
    /// The others go on; the step is then failed, or the run degraded.
    Isolate,
    /// Those that have not begun do not begin.
    Stop,
}

/// How often an attempt is repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Tries in all; 1 is no retry.
    pub attempts: u32,
    /// The pause after the first failure; doubles each time.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// Kinds of failure that are tried again; empty means those that may pass by themselves.
    pub on: Vec<farrier_model::FailureKind>,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { attempts: 1, first: Duration::from_secs(1), longest: Duration::from_secs(60), on: Vec::new() }
    }
}

impl Retry {
    /// The pause after failed attempt `attempt` (from 1).
    pub fn pause_after(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// What a final failure does to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Nothing new starts; what runs finishes; the run fails.
    Stop,
    /// The run goes on and ends degraded.
    Continue,
    /// As stop, and then everything that was done is undone.
    Undo,
}

/// How a step's effect is reversed.
#[derive(Debug, Clone)]
pub enum Undo {
    /// Not at all, by decision of the author.
    None,
    /// By the action, from the recorded before-image.
    Restore,
    /// By another action.
    Action {
        /// `plugin.verb`.
        name: Text,
        /// Its effect class.
        effect: Effect,
        /// Its input; sees `result`, the step's own output.
        with: Template,
    },
}

/// One line of `expect`.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// Must be true of `result`.
    pub that: Expr,
    /// What to say otherwise.
    pub otherwise: Option<Template>,
    /// The run is then over and succeeded, instead of failed.
    pub then_finish: bool,
}

/// Polls until true.
#[derive(Debug, Clone)]
pub struct Verify {
    /// Must become true of `result`.
    pub that: Expr,
    /// How long it may take.
    pub within: Duration,
    /// The pause between looks.
    pub every: Duration,
    /// How long it must stay true.
    pub hold: Duration,
    /// What to say otherwise.
    pub otherwise: Option<Template>,
}

/// A limit on planned changes.
#[derive(Debug, Clone)]
pub struct Guard {
    /// The kinds it counts; empty counts all.
    pub count: Vec<ChangeKind>,
    /// At most so many.
    pub at_most: Option<u64>,
    /// At most this share of the objects that were compared, 0.0 to 1.0.
    pub share: Option<f64>,
    /// Counts executions over time, across runs, instead of changes.
    pub rate: Option<Rate>,
    /// What happens beyond that.
    pub otherwise: GuardAction,
    /// The guard as written, for messages.
    pub text: Text,
}

/// What a guard counts across runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// What is counted.
    pub of: RateOf,
    /// The time over which it is counted.
    pub within: Duration,
}

/// See [`Rate::of`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateOf {
    /// A step of this runbook, each execution that changes something.
    Step(StepId),
    /// Runs of a runbook.
    Runbook(Text),
}

/// A named lock. First come, first served.
#[derive(Debug, Clone)]
pub struct Lock {
    /// Its name.
    pub name: Template,
    /// How many may hold it at once.
    pub capacity: u32,
    /// How long to wait for it; none without end.
    pub wait: Option<Duration>,
}

/// An event from outside that a run accepts.
#[derive(Debug, Clone)]
pub struct Signal {
    /// Its name.
    pub name: Text,
    /// Who may send it: each gives a person or a group of the environment, or a list of them.
    pub who: Vec<Template>,
    /// It is accepted until this step starts.
    pub until: Option<StepIndex>,
    /// What follows.
    pub then: crate::authored::SignalThen,
}

/// What a guard does when it trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardAction {
    /// The run fails before the change.
    Stop,
    /// The run is parked until a person accepts.
    Ask,
    /// As ask, and the owner is paged.
    Page,
}

/// When a runbook starts by itself.
#[derive(Debug, Clone)]
pub enum Trigger {
    /// By the clock.
    Clock {
        /// When it is due, and what becomes of each due time.
        spec: Spec,
        /// Values for inputs; no names are in scope.
        inputs: Template,
    },
    /// By an alert.
    Alert(Box<farrier_alert::Route>),
}

/// Who is told when a run needs people.
#[derive(Debug, Clone)]
pub struct Escalate {
    /// The occasions.
    pub on: Vec<crate::authored::Occasion>,
    /// A name under `notify:` in the environment.
    pub to: Text,
}

/// The dead-man's switch of a periodic task.
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// There must be a successful run this often.
    pub success_every: Duration,
    /// What happens otherwise.
    pub otherwise: crate::authored::HealthOtherwise,
}

impl Graph {
    /// A step.
    ///
    /// # Panics
    /// When `index` is of another graph.
    pub fn step(&self, index: StepIndex) -> &Step {
        &self.steps[index]
    }

    /// A step by its id.
    pub fn find(&self, id: &str) -> Option<StepIndex> {
        self.indices().find(|index| &*self.steps[*index].id == id)
    }

    /// Every step, in file order, `finally` last.
    pub fn indices(&self) -> impl DoubleEndedIterator<Item = StepIndex> + use<> {
        (0..self.steps.node_count() as u32).map(StepIndex::from)
    }

    /// The runbooks that its steps start, each as often as a step names it.
    pub fn children(&self) -> impl Iterator<Item = &Text> {
        self.steps.node_weights().filter_map(|step| match &step.uses {
            Uses::Runbook { name } => Some(name),
            Uses::Action { .. } => None,
        })
    }

    /// How many steps there are, `finally` included.
    pub fn len(&self) -> usize {
        self.steps.node_count()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many steps are outside `finally`.
    pub fn main_steps(&self) -> usize {
        self.main_steps
    }

    /// A topological order, by file order among equals.
    pub fn order(&self) -> &[StepIndex] {
        &self.order
    }

    /// What a step needs.
    pub fn needs(&self, index: StepIndex) -> impl Iterator<Item = (StepIndex, Need)> + '_ {
        self.steps.edges_directed(index, Direction::Incoming).map(|edge| (edge.source(), *edge.weight()))
    }

    /// What needs a step.
    pub fn dependents(&self, index: StepIndex) -> impl Iterator<Item = (StepIndex, Need)> + '_ {
        self.steps.edges_directed(index, Direction::Outgoing).map(|edge| (edge.target(), *edge.weight()))
    }
}

/// A graph together with every graph it can start: what a run is pinned to.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The runbook that a person asked for.
    pub root: Text,
    /// By name, the root included.
    pub graphs: BTreeMap<Text, Arc<Graph>>,
    /// The texts they were compiled from, by name.
    pub sources: BTreeMap<Text, Text>,
    /// Digest of all texts.
    pub digest: Digest,
}

impl Bundle {
    /// The graph of the root.
    ///
    /// # Panics
    /// Never for a bundle that the compiler made.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graphs[&self.root]
    }
}
