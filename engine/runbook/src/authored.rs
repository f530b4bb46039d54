//! A runbook as a person wrote it: every key, with its place. The doc comments here are the manual's text and the
//! editor's help.
//!
//! Read [`Runbook`], then [`Step`]. These types only say which keys there are and what shape they have; what the texts
//! inside mean is checked by [`crate::compile()`].

use std::borrow::Cow;

use farrier_model::spec::Risk;
use farrier_model::{ChangeKind, FailureKind};
pub use farrier_schedule::{CatchUp, ClockChange, Overlap};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use crate::at::{At, Keyed};
use crate::graph;
use crate::yaml::Node;

/// A runbook: what it needs to know, when it starts, what it does, and what keeps it safe.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Runbook {
    /// The name. It is the file's name without `.yaml`.
    pub runbook: At<String>,
    /// One line for lists and pages.
    pub summary: At<String>,
    /// Who is responsible, and gets escalations; a name under `notify:` in the environment.
    pub owner: At<String>,
    /// Where people read more, as a URL.
    #[serde(default)]
    pub docs: Option<At<String>>,
    /// Names runs in lists, such as `delete ${ inputs.tool }`.
    #[serde(default)]
    pub run_title: Option<MixedText>,
    /// The most that this runbook may do. A step that can do more is an error.
    pub risk: At<RiskLevel>,
    /// The systems it reaches, by a name of your choice: `directory: ldap`, or `replicas: group of sql`. The environment
    /// says which system each name stands for.
    #[serde(default)]
    pub targets: Keyed<At<String>>,
    /// What it must be told, checked before a run exists.
    #[serde(default)]
    pub inputs: Keyed<Input>,
    /// Named expressions, read as `vars.NAME`. They may use inputs and each other.
    #[serde(default)]
    pub vars: Keyed<Node>,
    /// When it starts by itself. It can always be started by hand.
    #[serde(default)]
    pub triggers: Vec<Trigger>,
    /// A bare expression. While a run is alive, no second one with the same value starts.
    #[serde(default)]
    pub one_run_per: Option<Bare>,
    /// Locks held by the whole run.
    #[serde(default)]
    pub locks: Vec<Lock>,
    /// Limits on changes, checked on the plan before the first write.
    #[serde(default)]
    pub guards: Vec<Guard>,
    /// Events from outside that a run accepts.
    #[serde(default)]
    pub signals: Vec<Signal>,
    /// What it does, by step id. Order in the file means nothing: a step starts when the steps it needs are done.
    pub steps: Keyed<Step>,
    /// Steps that run at the end, however the run ended.
    #[serde(default)]
    pub finally: Keyed<Step>,
    /// What a run leaves for its caller and for lists, by name.
    #[serde(default)]
    pub outputs: Option<Keyed<Node>>,
    /// Who is told when a run needs people.
    #[serde(default)]
    pub escalate: Option<Escalate>,
    /// A run that takes longer fails.
    #[serde(default)]
    pub timeout: Option<DurationText>,
    /// The dead-man's switch of a periodic task.
    #[serde(default)]
    pub health: Option<Health>,
}

/// The most that a runbook may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RiskLevel {
    /// It changes nothing.
    ReadOnly,
    /// What it changes can be brought back from what Farrier recorded.
    Recoverable,
    /// What it changes may be gone.
    Destructive,
}

impl From<RiskLevel> for Risk {
    fn from(level: RiskLevel) -> Risk {
        match level {
            RiskLevel::ReadOnly => Risk::ReadOnly,
            RiskLevel::Recoverable => Risk::Recoverable,
            RiskLevel::Destructive => Risk::Destructive,
        }
    }
}

/// One thing a runbook must be told.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The type of the value.
    #[serde(rename = "type")]
    pub kind: At<InputType>,
    /// The type of the items of a `list`; `string` when left out.
    #[serde(default)]
    pub of: Option<At<InputType>>,
    /// Used when the input is not given. `null` makes the input optional.
    #[serde(default)]
    pub default: Option<Node>,
    /// A regular expression that the whole value must match. An input that an alert label feeds must have one.
    #[serde(default)]
    pub pattern: Option<At<String>>,
    /// The smallest number, length or duration.
    #[serde(default)]
    pub min: Option<Bound>,
    /// The largest number, length or duration.
    #[serde(default)]
    pub max: Option<Bound>,
    /// The only values allowed.
    #[serde(default)]
    pub one_of: Option<Vec<Node>>,
    /// For people who fill it in.
    #[serde(default)]
    pub about: Option<At<String>>,
}

/// The type of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputType {
    /// Text on one line, without control characters.
    String,
    /// Any text.
    Text,
    /// A whole number.
    Int,
    /// `true` or `false`.
    Bool,
    /// Such as `90s` or `40d`.
    Duration,
    /// Such as `2026-11-22T10:15:30Z`.
    Timestamp,
    /// A list; `of` names the type of its items.
    List,
    /// A map with text keys.
    Map,
    /// One component of a path: not empty, not `.` or `..`, without a slash.
    PathSegment,
    /// A distinguished name of a directory.
    Dn,
    /// A host name or address.
    Host,
    /// The name of a Kubernetes object.
    K8sName,
    /// The name of a Toolforge tool, without its project prefix.
    ToolName,
}

impl InputType {
    /// The type as the graph knows it; `of` is the type of a list's items.
    pub fn kind(self, of: Option<InputType>) -> graph::InputKind {
        use graph::InputKind;
        match self {
            InputType::String => InputKind::String,
            InputType::Text => InputKind::Text,
            InputType::Int => InputKind::Int,
            InputType::Bool => InputKind::Bool,
            InputType::Duration => InputKind::Duration,
            InputType::Timestamp => InputKind::Timestamp,
            InputType::List => {
                // A list of lists has no way to name its inner type.
                let inner = of.filter(|inner| *inner != InputType::List).unwrap_or(InputType::String);
                InputKind::List(Box::new(inner.kind(None)))
            }
            InputType::Map => InputKind::Map,
            InputType::PathSegment => InputKind::PathSegment,
            InputType::Dn => InputKind::Dn,
            InputType::Host => InputKind::Host,
            InputType::K8sName => InputKind::K8sName,
            InputType::ToolName => InputKind::ToolName,
        }
    }
}

/// When a runbook starts by itself: exactly one of `every`, `cron` and `alert`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// The time from one start to the next.
    #[serde(default)]
    pub every: Option<DurationText>,
    /// A cron pattern of five fields, or six with seconds first.
    #[serde(default)]
    pub cron: Option<At<String>>,
    /// The time zone of `cron`, such as `Europe/Berlin`; `Etc/UTC` when left out.
    #[serde(default)]
    pub timezone: Option<At<String>>,
    /// What a change of the clock means for `cron`: `once` when the pattern names its hours, otherwise `as_shown`.
    #[serde(default)]
    pub clock_change: Option<At<ClockChange>>,
    /// What happens when a run is still going at the next due time; `skip` when left out.
    #[serde(default)]
    pub overlap: Option<At<Overlap>>,
    /// What happens with due times that were missed; `latest` when left out.
    #[serde(default)]
    pub catch_up: Option<At<CatchUp>>,
    /// Starts are spread over this time, so that many jobs do not begin in the same second.
    #[serde(default)]
    pub jitter: Option<DurationText>,
    /// Values for the inputs of scheduled runs.
    #[serde(default)]
    pub inputs: Keyed<Node>,
    /// Starts when Alertmanager sends a matching alert.
    #[serde(default)]
    pub alert: Option<AlertTrigger>,
}

/// A start by an alert.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertTrigger {
    /// Matchers in Alertmanager's syntax, such as `alertname="DiskFull"`; all must match.
    #[serde(rename = "match")]
    pub matchers: Vec<At<String>>,
    /// A bare expression of the alert: alerts with the same value are one incident.
    #[serde(default)]
    pub per: Option<Bare>,
    /// Values for the inputs, from `alert.labels` and `alert.annotations`.
    #[serde(default)]
    pub inputs: Keyed<Node>,
    /// What happens when the alert resolves while the run goes on; `cancel` when left out.
    #[serde(default)]
    pub resolved: Option<At<Resolved>>,
    /// How long after a run the same incident does not start another.
    #[serde(default)]
    pub cooldown: Option<Cooldown>,
    /// Whether the run starts or is proposed to people; `run` when left out.
    #[serde(default)]
    pub mode: Option<At<AlertMode>>,
    /// Only alerts that come in under these receivers, by the name in the webhook's path; any when left out.
    #[serde(default)]
    pub receivers: Vec<At<String>>,
    /// Who comes first when not all may start: larger is sooner, 0 when left out.
    #[serde(default)]
    pub priority: Option<At<i32>>,
    /// At most so many runs of the runbook that alerts have started are alive at once; 20 when left out.
    #[serde(default)]
    pub max_active: Option<At<u32>>,
    /// How often alerts start runs of the runbook; without it, 20 at once and then one each 30 seconds.
    #[serde(default)]
    pub limit: Option<StartLimit>,
    /// When alerts start no run of the runbook any more, until a person says so.
    #[serde(default)]
    pub fuse: Option<FuseSettings>,
    /// An alert that began longer ago, or in the future, only proposes a run of a destructive runbook; `24h` when left out.
    #[serde(default)]
    pub max_age: Option<DurationText>,
}

/// How often alerts start runs: so many at once, and one more after each time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartLimit {
    /// So many at once.
    pub burst: At<u32>,
    /// The time after which one more may start.
    pub every: DurationText,
}

/// What is too much to be right. What is left out has its usual value.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FuseSettings {
    /// More than so many runs, for a runbook with `risk: destructive`; 10 when left out.
    #[serde(default)]
    pub runs: Option<At<u32>>,
    /// So many runs that did not succeed; 5 when left out.
    #[serde(default)]
    pub failures: Option<At<u32>>,
    /// Within this time; 1 hour when left out.
    #[serde(default)]
    pub within: Option<DurationText>,
}

/// What a resolved alert does to its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resolved {
    /// The run is cancelled before its first write; afterwards it is only noted.
    Cancel,
    /// It is only noted.
    Note,
}

/// Whether an alert starts a run or proposes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertMode {
    /// The run starts.
    Run,
    /// The run is planned and waits for a person.
    Propose,
}

/// How long the same incident does not start another run.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cooldown {
    /// After a run that succeeded.
    #[serde(default)]
    pub after_success: Option<DurationText>,
    /// After a run that did not.
    #[serde(default)]
    pub after_failure: Option<DurationText>,
}

/// A named lock, shared by all runbooks that name it. First come, first served.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The name; may contain `${ }`.
    pub name: MixedText,
    /// How many may hold it at once; 1 when left out.
    #[serde(default)]
    pub capacity: Option<At<u32>>,
    /// How long to wait for it; without end when left out.
    #[serde(default)]
    pub wait: Option<DurationText>,
}

/// A limit on changes: `at_most`, `share`, or both; or, with `rate`, on how often something happens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// The kinds of change it counts; all when left out.
    #[serde(default)]
    pub count: Option<Vec<At<CountedKind>>>,
    /// A step or a runbook whose executions are counted, across runs, instead of changes.
    #[serde(default)]
    pub rate: Option<At<String>>,
    /// At most so many.
    #[serde(default)]
    pub at_most: Option<At<u64>>,
    /// At most this share of the objects that were compared, such as `2%`.
    #[serde(default)]
    pub share: Option<At<String>>,
    /// The time over which a `rate` counts.
    #[serde(default)]
    pub within: Option<DurationText>,
    /// What happens beyond that; `stop` when left out.
    #[serde(default)]
    pub otherwise: Option<At<GuardOtherwise>>,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountedKind {
    /// Something that did not exist will.
    Create,
    /// Something will differ.
    Update,
    /// Something will not exist any more.
    Delete,
    /// Something opaque is run.
    Run,
    /// Something is sent.
    Send,
}

impl From<CountedKind> for ChangeKind {
    fn from(kind: CountedKind) -> ChangeKind {
        match kind {
            CountedKind::Create => ChangeKind::Create,
            CountedKind::Update => ChangeKind::Update,
            CountedKind::Delete => ChangeKind::Delete,
            CountedKind::Run => ChangeKind::Run,
            CountedKind::Send => ChangeKind::Send,
        }
    }
}

/// What happens when a guard trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuardOtherwise {
    /// The run fails before the change.
    Stop,
    /// The run waits until a person accepts or refuses.
    Ask,
    /// As `ask`, and the owner is paged.
    Page,
}

/// An event from outside that a run accepts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Its name.
    pub name: At<String>,
    /// Who may send it: names of people and groups, or `${ }` that give such names when the signal comes.
    pub who: Vec<Who>,
    /// It is accepted until this step starts.
    #[serde(default)]
    pub until: Option<At<String>>,
    /// What follows.
    pub then: At<SignalThen>,
}

/// What follows a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SignalThen {
    /// What was done is undone, and the run ends.
    Undo,
    /// The run ends, and what was done stays.
    Cancel,
    /// A step that waits for it goes on.
    Continue,
}

/// Who is told when a run needs people.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Escalate {
    /// The occasions.
    pub on: Vec<At<Occasion>>,
    /// A name under `notify:` in the environment; the owner when left out.
    #[serde(default)]
    pub to: Option<At<String>>,
}

/// An occasion to tell people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// The run failed.
    Failed,
    /// The run ended with a continued failure.
    Degraded,
    /// The run was undone.
    Undone,
    /// The run was cancelled.
    Cancelled,
    /// The run needs a decision.
    Parked,
    /// A guard tripped.
    Guard,
    /// A lock was not free in time.
    LockTimeout,
}

/// The dead-man's switch of a periodic task.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// There must be a successful run this often.
    pub success_every: DurationText,
    /// What happens otherwise; `page` when left out.
    #[serde(default)]
    pub otherwise: Option<At<HealthOtherwise>>,
}

/// What happens when successes stay away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthOtherwise {
    /// The owner is paged.
    Page,
    /// The owner is told.
    Tell,
}

/// One unit of work.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// An action, `plugin.verb`, or `runbook.NAME` for a child run.
    pub uses: At<String>,
    /// The input of the action or of the child run.
    #[serde(default)]
    pub with: Option<Node>,
    /// Steps that come first: `[a, { b: finished }]`. `a` must have succeeded or been skipped; `b` must be over,
    /// however it ended. Using another step's output needs that step by itself.
    #[serde(default)]
    pub needs: Option<Vec<Need>>,
    /// A bare expression; when it is false the step is skipped.
    #[serde(default, rename = "if")]
    pub condition: Option<Bare>,
    /// Does the step once for each item of a list.
    #[serde(default)]
    pub for_each: Option<ForEach>,
    /// Tries again after a failure.
    #[serde(default)]
    pub retry: Option<Retry>,
    /// An attempt that takes longer fails.
    #[serde(default)]
    pub timeout: Option<DurationText>,
    /// What a final failure does to the run; `stop` when left out.
    #[serde(default)]
    pub on_failure: Option<At<OnFailure>>,
    /// What becomes of a step that starts a run when that run is parked; `wait` when left out.
    #[serde(default)]
    pub on_parked: Option<At<OnParked>>,
    /// How the step's effect is reversed: `restore`, `none`, or another action.
    #[serde(default)]
    pub undo: Option<Undo>,
    /// What must be true of `result` at once.
    #[serde(default)]
    pub expect: Vec<Expect>,
    /// What must become true of `result`.
    #[serde(default)]
    pub verify: Option<Verify>,
    /// A lock held by this step.
    #[serde(default)]
    pub lock: Option<Lock>,
    /// Limits on this step's changes.
    #[serde(default)]
    pub guards: Vec<Guard>,
    /// From here the run only goes forward: cancelling and undoing are refused.
    #[serde(default)]
    pub commit_point: Option<At<bool>>,
    /// Stops and asks a person when any earlier step failed and was continued.
    #[serde(default)]
    pub requires_clean: Option<At<bool>>,
    /// Stands in for the output when the step was skipped, or failed and was continued.
    #[serde(default)]
    pub default_output: Option<Node>,
}

/// What a final failure does to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Nothing new starts, what runs finishes, and the run fails.
    Stop,
    /// The run goes on and ends degraded.
    Continue,
    /// As `stop`, and then everything that was done is undone.
    Undo,
}

/// What becomes of a step whose child run waits for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnParked {
    /// The run waits with its child.
    Wait,
    /// The step, or the item, has failed, and the child is left to people.
    Fail,
}

/// Does a step once for each item of a list.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForEach {
    /// The list.
    #[serde(rename = "in")]
    pub items: Node,
    /// The item's name in expressions; `item` when left out.
    #[serde(default, rename = "as")]
    pub as_name: Option<At<String>>,
    /// A bare expression: the item's stable identity, text or a number, unique in the list.
    pub key: Bare,
    /// How many at once.
    #[serde(default)]
    pub parallel: Option<At<u32>>,
    /// Whether a failed item stops those that have not begun; `stop` when left out.
    #[serde(default)]
    pub on_item_failure: Option<At<OnItemFailure>>,
}

/// What a failed item does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnItemFailure {
    /// The others go on.
    Isolate,
    /// Those that have not begun do not begin.
    Stop,
}

/// Tries again after a failure.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Tries in all.
    pub attempts: At<u32>,
    /// The pause, doubling from the first to the longest: `5s..15m`.
    #[serde(default)]
    pub backoff: Option<At<String>>,
    /// The kinds of failure that are tried again; those that may pass by themselves when left out.
    #[serde(default)]
    pub on: Option<Vec<At<RetryOn>>>,
}

/// A kind of failure that can be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// The target cannot be reached or went away.
    Unreachable,
    /// The target does not accept our credentials.
    Denied,
    /// The target refused the request.
    Refused,
    /// The world is not as the plan saw it.
    Drift,
    /// Someone else was in the way.
    Conflict,
    /// The answer was too large or cut off.
    Limit,
    /// It took too long.
    Timeout,
    /// An `expect` did not hold.
    Expectation,
    /// A `verify` did not become true in time.
    Verification,
    /// A child run did not succeed.
    Child,
    /// A command ran and reported failure.
    Exit,
}

impl From<RetryOn> for FailureKind {
    fn from(kind: RetryOn) -> FailureKind {
        match kind {
            RetryOn::Unreachable => FailureKind::Unreachable,
            RetryOn::Denied => FailureKind::Denied,
            RetryOn::Refused => FailureKind::Refused,
            RetryOn::Drift => FailureKind::Drift,
            RetryOn::Conflict => FailureKind::Conflict,
            RetryOn::Limit => FailureKind::Limit,
            RetryOn::Timeout => FailureKind::Timeout,
            RetryOn::Expectation => FailureKind::Expectation,
            RetryOn::Verification => FailureKind::Verification,
            RetryOn::Child => FailureKind::Child,
            RetryOn::Exit => FailureKind::Exit,
        }
    }
}

/// One line of `expect`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// A bare expression that must be true of `result`.
    pub that: Bare,
    /// What to say otherwise.
    #[serde(default)]
    pub otherwise: Option<MixedText>,
    /// `finish`: otherwise the run is over and has succeeded, instead of failed.
    #[serde(default)]
    pub then: Option<At<ExpectThen>>,
}

/// What an expectation that does not hold does instead of failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpectThen {
    /// The run is over and has succeeded.
    Finish,
}

/// Looks again until something is true.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// A bare expression that must become true of `result`.
    pub that: Bare,
    /// How long it may take.
    pub within: DurationText,
    /// The pause between looks; `10s` when left out.
    #[serde(default)]
    pub every: Option<DurationText>,
    /// How long it must stay true; `0s` when left out.
    #[serde(default)]
    pub hold: Option<DurationText>,
    /// What to say otherwise.
    #[serde(default)]
    pub otherwise: Option<MixedText>,
}

/// Declares a type that is a node of one YAML shape: text whose meaning the compiler reads, with the place of each byte.
macro_rules! node_text {
    ($(#[$doc:meta])* $name:ident, $description:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Node);

        impl $name {
            /// The text as YAML reads it.
            pub fn text(&self) -> &str {
                self.0.as_text().map_or("", |text| text)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    };
}

node_text!(
    /// A bare expression: no `${ }` around it.
    Bare,
    "A bare expression, without `${ }`."
);
node_text!(
    /// Text that may mix plain text and `${ }`.
    MixedText,
    "Text that may contain `${ }`."
);
node_text!(
    /// A duration such as `90s`, `5m`, `1h30m`, `40d`.
    DurationText,
    "A duration such as `90s`, `5m`, `1h30m` or `40d`."
);

node_text!(
    /// A name, or one `${ }` that gives names.
    Who,
    "The name of a person or a group, or one `${ }` that gives a name or a list of names."
);

/// The bound of an input: a number, a length or a duration.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Bound(pub Node);

impl JsonSchema for Bound {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Bound".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"] })
    }
}

/// One entry of `needs`: `a`, or `{ b: finished }`.
#[derive(Debug, Clone)]
pub struct Need {
    /// The step.
    pub step: At<String>,
    /// It need only be over, however it ended.
    pub finished: bool,
}

impl<'de> Deserialize<'de> for Need {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Need, D::Error> {
        use serde::de::Error;
        let node = Node::deserialize(deserializer)?;
        if let Some(text) = node.as_text() {
            return Ok(Need { step: At::new(text.to_string(), node.span), finished: false });
        }
        // The schema has let only one key and these two words through.
        let read = match node.as_map() {
            Some([(key, value)]) => match value.as_text().map(|text| &**text) {
                Some("finished") => Some((key, true)),
                Some("succeeded") => Some((key, false)),
                _ => None,
            },
            _ => None,
        };
        let (key, finished) =
            read.ok_or_else(|| D::Error::custom("expected the id of a step, or `{ id: finished }`"))?;
        Ok(Need { step: At::new(key.text.to_string(), key.span), finished })
    }
}

impl JsonSchema for Need {
    fn schema_name() -> Cow<'static, str> {
        "Need".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "description": "The id of a step that must have succeeded or been skipped." },
                {
                    "type": "object",
                    "description": "The id of a step, and what is needed of it.",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": { "type": "string", "enum": ["finished", "succeeded"] },
                },
            ],
        })
    }
}

/// How a step's effect is reversed.
#[derive(Debug, Clone)]
pub enum Undo {
    /// `none`: not at all, by your decision.
    None(crate::diagnostic::Span),
    /// `restore`: by the action, from what it recorded.
    Restore(crate::diagnostic::Span),
    /// By another action.
    Action(Box<UndoAction>),
}

/// Another action that reverses a step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UndoAction {
    /// `plugin.verb`.
    pub uses: At<String>,
    /// Its input; sees `result`, the step's own output.
    #[serde(default)]
    pub with: Option<Node>,
}

impl<'de> Deserialize<'de> for Undo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Undo, D::Error> {
        use serde::de::Error;
        let node = Node::deserialize(deserializer)?;
        match node.as_text().map(|text| &**text) {
            Some("none") => Ok(Undo::None(node.span)),
            Some("restore") => Ok(Undo::Restore(node.span)),
            Some(_) => Err(D::Error::custom("expected `restore`, `none` or `{ uses, with }`")),
            None => {
                let action = node.read_as::<UndoAction>().map_err(|error| D::Error::custom(error.message))?;
                Ok(Undo::Action(Box::new(action)))
            }
        }
    }
}

impl JsonSchema for Undo {
    fn schema_name() -> Cow<'static, str> {
        "Undo".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {
                    "type": "string",
                    "enum": ["restore", "none"],
                    "description": "`restore`: by the action, from what it recorded. `none`: not at all, by your decision.",
                },
                generator.subschema_for::<UndoAction>(),
            ],
        })
    }
}
