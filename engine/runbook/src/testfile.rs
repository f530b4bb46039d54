//! Tests of a runbook: `NAME.test.yaml`, run by `farrier test`.
//!
//! Read [`Tests`], then [`Test`]. A test gives a runbook inputs and a world of stand-ins, replaces what it does not
//! want to happen, says what happens meanwhile, and what must come out.

mod events;
mod words;

use std::collections::HashMap;

use farrier_model::spec::Catalog;
use farrier_model::{ChangeKind, NodeState, RunState};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::{At, Keyed};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, FileId, Span, nearest, quoted};
use crate::environment::{Approvals, TargetBindings, read_targets};
use crate::graph::{Graph, Uses};
use crate::read::read;
use crate::yaml::{Node, parse};

pub use events::{Call, EventAt, Happens};
pub use words::{Condition, Length, Moment};

/// The tests of one runbook, which stands beside this file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tests {
    /// The cases. Each starts from nothing.
    #[schemars(length(min = 1))]
    pub tests: Vec<Test>,
}

/// One case.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What it shows, in a sentence: `gives the disk back when the rebuild fails`.
    #[schemars(length(min = 1))]
    pub name: At<String>,
    /// The inputs of the run.
    #[serde(default)]
    pub inputs: Keyed<Node>,
    /// An environment file with the stand-ins to use, from the folder of this file.
    pub environment: Option<At<String>>,
    /// The stand-ins to use, written as in an environment. They replace those of `environment` with the same name.
    #[serde(default)]
    pub targets: Option<Node>,
    /// Groups of people, as in an environment. They replace those of `environment` with the same name.
    #[serde(default)]
    pub people: Keyed<Vec<String>>,
    /// How many people must approve a run before its first write, as in an environment. Without it, what `environment` says.
    pub approvals: Option<Approvals>,
    /// When the case begins, by its own clock. Without it, the first second of 2026. No case waits really: whenever
    /// nothing is at work, its clock goes on to the next moment.
    pub start: Option<At<Moment>>,
    /// What happens while the run is under way.
    #[serde(default)]
    pub events: Vec<EventAt>,
    /// Steps, or actions such as `mail.send`, that are not executed. A step's own entry counts before its action's.
    #[serde(default)]
    pub actions: Keyed<StandIn>,
    /// What planning must show. Without it nothing is planned beforehand.
    pub plan: Option<ExpectedPlan>,
    /// What the run must come to. Without it the test ends with the plan.
    pub expect: Option<Expected>,
    /// What the stand-ins are: filled from `targets` when the file has been read.
    #[serde(skip)]
    pub bindings: TargetBindings,
}

/// What happens instead of a step. Exactly one key.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StandIn {
    /// It fails with this message.
    Fail(At<String>),
    /// It succeeds with this output and changes nothing.
    Output(Node),
}

/// What planning must show.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectedPlan {
    /// How many changes of each kind each step would make. Kinds that are not named must not occur in a step that is;
    /// steps that are not named are not looked at.
    #[serde(default)]
    pub changes: Keyed<Counts>,
    /// Steps whose changes cannot be known yet: exactly these.
    pub deferred: Option<Vec<At<String>>>,
    /// Planning must fail, with a message that contains this.
    pub fails: Option<At<String>>,
    /// The plan as it is shown, in this file beside the test. `farrier test --update` writes it.
    #[schemars(extend("pattern" = "^[^/]+\\.plan\\.txt$", "x-expected" = "the name of a file that ends in `.plan.txt`"))]
    pub golden: Option<At<String>>,
}

/// What the run must come to.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The state of the run.
    pub state: At<RunIs>,
    /// The states of steps; those that are not named are not looked at.
    #[serde(default)]
    pub steps: Keyed<At<StepIs>>,
    /// How many changes of each kind each step made; as in `plan`.
    #[serde(default)]
    pub changes: Keyed<Counts>,
    /// Outputs of the run; those that are not named are not looked at.
    #[serde(default)]
    pub outputs: Keyed<Node>,
    /// The steps that were undone, in this order and no others.
    pub undone: Option<Vec<At<String>>>,
    /// The message of the run's end contains this.
    pub message_contains: Option<At<String>>,
    /// Whether planning again afterwards finds nothing to change.
    pub settled: Option<At<bool>>,
    /// These steps succeeded, one after the other in this order; others may have come between.
    #[serde(default)]
    pub order: Vec<At<String>>,
    /// When the run ended, from the start of the case, to the second.
    pub at: Option<At<Length>>,
    /// The run ended within this time of the start of the case.
    pub ended_within: Option<At<Length>>,
    /// What the run waits for contains this; for `state: waiting`.
    pub waits: Option<At<String>>,
    /// How the world looks at the end.
    #[serde(default)]
    pub world: Vec<WorldCheck>,
    /// The mails that were sent to the stand-ins for mail: exactly these, in this order.
    pub mails: Option<Vec<MailIs>>,
}

/// A look at the world.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorldCheck {
    /// An action that only reads.
    pub uses: At<String>,
    /// Its input. Nothing in it is evaluated.
    pub with: Option<Node>,
    /// A bare expression that must be true of `result`, what the action found.
    pub that: At<Condition>,
    /// What to say when it is not.
    pub otherwise: Option<String>,
    /// The call: filled when the file has been checked.
    #[serde(skip)]
    pub call: Option<Call>,
}

/// A mail that was sent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailIs {
    /// An address that it was sent to.
    pub to: Option<At<String>>,
    /// Its subject contains this.
    pub subject_contains: Option<At<String>>,
    /// Its text contains this.
    pub text_contains: Option<At<String>>,
}

/// Changes by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Objects that did not exist.
    #[serde(default)]
    pub create: u64,
    /// Objects that differ.
    #[serde(default)]
    pub update: u64,
    /// Objects that exist no more.
    #[serde(default)]
    pub delete: u64,
    /// Opaque commands.
    #[serde(default)]
    pub run: u64,
    /// Messages.
    #[serde(default)]
    pub send: u64,
}

impl Counts {
    /// Counts changes.
    pub fn of(kinds: impl IntoIterator<Item = ChangeKind>) -> Counts {
        let mut counts = Counts::default();
        for kind in kinds {
            *match kind {
                ChangeKind::Create => &mut counts.create,
                ChangeKind::Update => &mut counts.update,
                ChangeKind::Delete => &mut counts.delete,
                ChangeKind::Run => &mut counts.run,
                ChangeKind::Send => &mut counts.send,
            } += 1;
        }
        counts
    }
}

macro_rules! states {
    ($(#[$doc:meta])* $name:ident: $of:ident { $($(#[$about:meta])* $state:ident),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$about])* $state),+
        }
        impl From<$name> for $of {
            fn from(state: $name) -> $of {
                match state {
                    $($name::$state => $of::$state),+
                }
            }
        }
    };
}

states! {
    /// The state that a run is in when nothing moves any more.
    RunIs: RunState {
        /// Every step succeeded or was skipped.
        Succeeded,
        /// Finished, but a failure was continued over or left items behind.
        Degraded,
        /// A step failed; what had been done stays.
        Failed,
        /// A step failed and everything was undone.
        Undone,
        /// A person stopped it.
        Cancelled,
        /// A person is needed.
        Parked,
        /// It waits for a time, a lock or an answer.
        Waiting
    }
}

states! {
    /// The state of a step.
    StepIs: NodeState {
        /// It did not start.
        Pending,
        /// Its effect is done and it still verifies.
        Waiting,
        /// Nobody knows whether it happened.
        InDoubt,
        /// It failed and will be tried again.
        Retryable,
        /// Done.
        Succeeded,
        /// Failed for good.
        Failed,
        /// Its `if` was false, or the run had already finished early.
        Skipped,
        /// Something it needs did not succeed.
        Blocked,
        /// Its effect was reversed.
        Undone
    }
}

/// Reads a test file. Nothing is returned when something in it is wrong. [`check_tests`] compares it with its runbook.
pub fn read_tests(file: FileId, bytes: &[u8], catalog: &Catalog, out: &mut Diagnostics) -> Option<Tests> {
    let node = parse(file, bytes, out)?;
    let mut tests = read::<Tests>(&node, out)?;
    let mut names: HashMap<String, Span> = HashMap::new();
    for test in &mut tests.tests {
        if let Some(first) = names.insert(test.name.value.clone(), test.name.span) {
            out.push(
                Diagnostic::new(
                    codes::SAME_TEST_NAME,
                    test.name.span,
                    format!("two tests are named {}", quoted(&test.name)),
                )
                .label(first, "the other one")
                .help("say what differs"),
            );
        }
        if test.plan.is_none() && test.expect.is_none() {
            out.push(
                Diagnostic::new(
                    codes::EXPECTS_NOTHING,
                    test.name.span,
                    format!("{} expects nothing", quoted(&test.name)),
                )
                .help("add `expect: { state: succeeded }`, or `plan:`"),
            );
        }
        if let (Some(plan), Some(expect)) = (&test.plan, &test.expect)
            && let Some(fails) = &plan.fails
        {
            out.push(
                Diagnostic::new(codes::RUN_AFTER_FAILED_PLAN, fails.span, "a plan that fails is not run")
                    .label(expect.state.span, "this never comes to be")
                    .help("remove `expect:` or `fails:`"),
            );
        }
        for event in &mut test.events {
            event.check(test.name.span, catalog, out);
        }
        if let Some(event) = test.events.first()
            && test.expect.is_none()
        {
            out.push(
                Diagnostic::new(codes::TEST_EVENT, event.span(test.name.span), "nothing happens to a plan")
                    .help("add `expect:`, so that there is a run, or remove `events:`"),
            );
        }
        for check in test.expect.iter_mut().flat_map(|expect| &mut expect.world) {
            let mut call = Call {
                uses: check.uses.clone(),
                with: check.with.clone(),
                input: farrier_model::Value::Null,
            };
            call.check(true, catalog, out);
            check.call = Some(call);
        }
        if let Some(targets) = &test.targets {
            if targets.as_map().is_some() {
                test.bindings = read_targets(targets, catalog, out).unwrap_or_default();
            } else {
                let message = format!("`targets`: expected a map, found {}", targets.describe());
                out.push(Diagnostic::new(codes::WRONG_TYPE, targets.span, message).expected("a map"));
            }
        }
    }
    (!out.has_errors_in(file)).then_some(tests)
}

/// Compares tests with the runbook that they are about.
pub fn check_tests(tests: &Tests, graph: &Graph, out: &mut Diagnostics) {
    let actions = graph.indices().filter_map(|index| match &graph.step(index).uses {
        Uses::Action { name, .. } => Some(&**name),
        Uses::Runbook { .. } => None,
    });
    let names = Names {
        runbook: &graph.name,
        steps: graph.indices().map(|index| &*graph.step(index).id).collect(),
        inputs: graph.inputs.iter().map(|input| &*input.name).collect(),
        actions: actions.collect(),
        signals: graph.signals.iter().map(|signal| &*signal.name).collect(),
    };
    check_names(tests, &names, out);
}

/// What a test may name.
struct Names<'a> {
    runbook: &'a str,
    steps: Vec<&'a str>,
    inputs: Vec<&'a str>,
    actions: Vec<&'a str>,
    signals: Vec<&'a str>,
}

fn check_names(tests: &Tests, names: &Names<'_>, out: &mut Diagnostics) {
    for test in &tests.tests {
        for (name, _) in &test.inputs {
            known("input", name, &names.inputs, codes::TEST_UNKNOWN_INPUT, names, out);
        }
        for (name, _) in &test.actions {
            if name.contains('.') {
                known("action", name, &names.actions, codes::TEST_UNKNOWN_STEP, names, out);
            } else {
                known("step", name, &names.steps, codes::TEST_UNKNOWN_STEP, names, out);
            }
        }
        let plan = test.plan.iter();
        let planned = plan
            .flat_map(|plan| plan.changes.iter().map(|(name, _)| name).chain(plan.deferred.iter().flatten()));
        let run = test.expect.iter().flat_map(|expect| {
            let steps = expect.steps.iter().map(|(name, _)| name);
            steps
                .chain(expect.changes.iter().map(|(name, _)| name))
                .chain(expect.undone.iter().flatten())
                .chain(&expect.order)
        });
        let mut named = Vec::new();
        for event in &test.events {
            named.extend(&event.after);
            match event.happens() {
                Some(Happens::Signal(name)) => {
                    known("signal", name, &names.signals, codes::TEST_UNKNOWN_SIGNAL, names, out);
                }
                Some(Happens::Approve(step) | Happens::Reject(step)) if step.as_str() == "-" => {}
                Some(Happens::Approve(step) | Happens::Reject(step) | Happens::Resolve { step, .. }) => {
                    named.push(step);
                }
                _ => {}
            }
        }
        for name in planned.chain(run).chain(named) {
            known("step", name, &names.steps, codes::TEST_UNKNOWN_STEP, names, out);
        }
    }
}

fn known(
    what: &str,
    name: &At<String>,
    candidates: &[&str],
    code: crate::codes::Code,
    names: &Names<'_>,
    out: &mut Diagnostics,
) {
    // `step[key]` is one item of a `for_each` step.
    let plain = name.split('[').next().unwrap_or_default();
    if candidates.contains(&plain) {
        return;
    }
    let message = format!("`{}` has no {what} {}", names.runbook, quoted(plain));
    let diagnostic = Diagnostic::new(code, name.span, message);
    out.push(match nearest(plain, candidates.iter().copied()) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
        None if candidates.is_empty() => diagnostic.help(format!("it has no {what}s")),
        None => {
            let all: Vec<String> = candidates.iter().map(|name| quoted(name)).collect();
            diagnostic.help(format!("its {what}s are {}", all.join(", ")))
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_name_what_the_runbook_has() {
        let text = "tests:
  - name: everything
    inputs: { host: st-4, slto: 7 }
    actions:
      array.rebuild: { fail: checksum mismatch }
      mail.sned: { output: {} }
      drain: { output: { pods: [a] } }
      gone: { output: ~ }
    events:
      - { at: 1d, signal: go_no, by: ada }
      - { at: 1d, approve: '-' }
      - { at: 1d, approve: nobody }
    plan: { changes: { drain: { update: 1 }, 'each[st-4]': { delete: 2 } }, deferred: [later] }
    expect:
      state: failed
      steps: { drain: undone, dran: succeeded }
      undone: [drain, nowhere]
";
        let mut out = Diagnostics::new();
        let file = out.add_file("x.test.yaml", text.as_bytes());
        let tests = read_tests(file, text.as_bytes(), &Catalog::default(), &mut out)
            .unwrap_or_else(|| panic!("{}", out.render(false)));
        let test = &tests.tests[0];
        assert!(
            matches!(test.actions.get("drain"), Some(StandIn::Output(pods)) if pods.get("pods").is_some())
        );
        let plan = test.plan.as_ref().unwrap();
        assert_eq!(plan.changes.get("drain"), Some(&Counts { update: 1, ..Counts::default() }));
        let expect = test.expect.as_ref().unwrap();
        assert_eq!(RunState::from(expect.state.value), RunState::Failed);
        assert_eq!(
            expect.steps.get("drain").map(|state| NodeState::from(state.value)),
            Some(NodeState::Undone)
        );

        let names = Names {
            runbook: "x",
            steps: vec!["drain", "each"],
            inputs: vec!["host", "slot"],
            actions: vec!["array.rebuild", "mail.send"],
            signals: vec!["go_on"],
        };
        check_names(&tests, &names, &mut out);
        let mut found: Vec<(&str, &str)> =
            out.sorted().iter().map(|found| (found.code.as_str(), out.text(found.span))).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                ("E0904", "dran"),
                ("E0904", "gone"),
                ("E0904", "later"),
                ("E0904", "mail.sned"),
                ("E0904", "nobody"),
                ("E0904", "nowhere"),
                ("E0905", "slto"),
                ("E0906", "go_no"),
            ]
        );
    }

    #[test]
    fn changes_are_counted_by_kind() {
        let counts =
            Counts::of([ChangeKind::Delete, ChangeKind::Create, ChangeKind::Delete, ChangeKind::Send]);
        assert_eq!(counts, Counts { create: 1, delete: 2, send: 1, ..Counts::default() });
    }
}
