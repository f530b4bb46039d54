//! What runs do: needs, conditions, items, retries, checks, failures, undo, guards, children. In-memory store, fakes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use common::{Bench, runbook};
use farrier_exec::driver::{Answer, Confirm};
use farrier_exec::{Limits, Plan, PlanStepState, Run};
use farrier_model::event::ParkCause;
use farrier_model::time::Timestamp;
use farrier_model::{Event, FailureKind, RunState, Value};
use farrier_store::Store as _;

async fn run_text(name: &str, risk: &str, rest: &str) -> (Bench, farrier_exec::Ended) {
    let bench = Bench::new(name);
    let start = bench.start(&[runbook(name.rsplit(':').next().unwrap(), risk, rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    (bench, ended)
}

fn object(bench: &Bench, name: &str) -> Value {
    bench.world.state().objects.get(name).cloned().unwrap_or_default()
}

#[tokio::test]
async fn steps_run_in_the_order_of_their_needs_and_pass_outputs_on() {
    let (bench, ended) = run_text(
        "order",
        "recoverable",
        "steps:
  third: { uses: fake.set, needs: [second], with: { target: world, object: c, value: '3' }, undo: restore }
  second: { uses: fake.set, with: { target: world, object: b, value: \"${ steps.first.value ~ '!' }\" }, undo: restore }
  first: { uses: fake.set, with: { target: world, object: a, value: one }, undo: restore }
outputs: { all: \"${ steps.second.value }\" }
",
    )
    .await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert_eq!(bench.world.state().ledger, ["fake.set a", "fake.set b", "fake.set c"]);
    assert_eq!(ended.outputs, Value::map([("all", Value::text("one!"))]));
    assert_eq!(ended.changed, 3);
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_records_no_intent() {
    let rest =
        "steps:\n  a: { uses: fake.set, with: { target: world, object: a, value: one }, undo: restore }\n";
    let (bench, _) = run_text("again", "recoverable", rest).await;
    let start = bench.start(&[runbook("again", "recoverable", rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    assert_eq!((ended.state, ended.changed), (RunState::Succeeded, 0));
    assert_eq!(bench.world.state().ledger.len(), 1);
    assert_eq!(bench.journal(ended.run).await, ["created", "claimed", "succeeded a", "finished"]);
}

#[tokio::test]
async fn conditions_skip_and_skipped_satisfies_a_need() {
    let (bench, ended) = run_text(
        "conditions",
        "recoverable",
        "inputs: { wanted: { type: bool, default: false } }
steps:
  maybe: { uses: fake.set, if: inputs.wanted, with: { target: world, object: a, value: x }, undo: restore }
  after: { uses: fake.set, needs: [maybe], with: { target: world, object: b, value: y }, undo: restore }
",
    )
    .await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert_eq!(bench.world.state().ledger, ["fake.set b"]);
}

#[tokio::test]
async fn items_run_by_key_and_their_outputs_come_back_in_order() {
    let (bench, ended) = run_text(
        "items",
        "recoverable",
        "steps:
  each:
    uses: fake.set
    for_each: { in: \"${ ['x', 'y', 'z'] }\", as: name, key: name, parallel: 2 }
    with: { target: world, object: \"${ name }\", value: \"${ name ~ name }\" }
    undo: restore
outputs: { all: \"${ steps.each.items | map(attribute='output.value') | join(',') }\" }
",
    )
    .await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert_eq!(ended.outputs.get("all"), Some(&Value::text("xx,yy,zz")));
    let journal = bench.journal(ended.run).await;
    assert!(journal.contains(&"intent each[y]".to_owned()), "{journal:?}");
    assert_eq!(journal.iter().filter(|line| line.starts_with("expanded")).count(), 1);
}

#[tokio::test]
async fn one_failed_item_is_isolated_or_stops_the_rest() {
    for (mode, expected) in [("isolate", 2), ("stop", 0)] {
        let bench = Bench::new(&format!("item_failure_{mode}"));
        bench.world.state.lock().unwrap().failing.insert("a".into(), 9);
        let rest = format!(
            "steps:
  each:
    uses: fake.set
    for_each: {{ in: \"${{ ['a', 'b', 'c'] }}\", as: name, key: name, parallel: 1, on_item_failure: {mode} }}
    with: {{ target: world, object: \"${{ name }}\", value: v }}
    undo: restore
"
        );
        let start = bench.start(&[runbook("item_failure", "recoverable", &rest)], Value::map::<&str>([]));
        let ended = bench.run(&start).await.unwrap();
        assert_eq!(ended.state, RunState::Failed);
        assert_eq!(bench.world.state().ledger.len(), expected, "{mode}");
        let message = ended.failure.unwrap().message;
        assert!(message.contains("1 of 3 items failed") && message.contains("`a`"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_are_repeated_with_pauses_and_recorded() {
    for items in [false, true] {
        let bench = Bench::new(&format!("retry_{items}"));
        bench.world.state.lock().unwrap().failing.insert("a".into(), 2);
        let for_each = if items { "    for_each: { in: \"${ ['a'] }\", as: name, key: name }\n" } else { "" };
        let rest = format!(
            "steps:
  a:
    uses: fake.set
{for_each}    with: {{ target: world, object: a, value: v }}
    retry: {{ attempts: 3, backoff: 5s..1m }}
    undo: restore
"
        );
        let start = bench.start(&[runbook("retry", "recoverable", &rest)], Value::map::<&str>([]));
        let ended = bench.run(&start).await.unwrap();
        assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
        let journal = bench.store.journal(ended.run).await.unwrap();
        let of_a: Vec<(&str, i64)> = journal
            .iter()
            .filter_map(|entry| match &entry.event {
                farrier_model::Event::Node { node, event, .. } if (node.item.is_some()) == items => {
                    Some((event.name(), entry.at.as_second() - journal[0].at.as_second()))
                }
                _ => None,
            })
            .collect();
        let names: Vec<&str> = of_a.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["intent", "failed", "intent", "failed", "intent", "succeeded"], "items: {items}");
        // The pause doubles: 5 s, then 10 s.
        let (second, third, last) = (of_a[2].1, of_a[4].1, of_a[5].1);
        assert!((5..=6).contains(&second), "{of_a:?}");
        assert!((15..=17).contains(&third) && last <= 17, "{of_a:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_asks_to_wait_is_left_alone_that_long_but_not_for_ever() {
    // Less than the step's own pause, more, and too much.
    for (asked, pauses) in [(2, [5, 10]), (90, [90, 90]), (1_000_000, [3600, 3600])] {
        let bench = Bench::new(&format!("retry_after_{asked}"));
        {
            let mut state = bench.world.state.lock().unwrap();
            state.failing.insert("a".into(), 2);
            state.retry_after_s = Some(asked);
        }
        let rest = "steps:
  a:
    uses: fake.set
    with: { target: world, object: a, value: v }
    retry: { attempts: 3, backoff: 5s..1m }
    undo: restore
";
        let start = bench.start(&[runbook("retry_after", "recoverable", rest)], Value::map::<&str>([]));
        let ended = bench.run(&start).await.unwrap();
        assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
        let journal = bench.store.journal(ended.run).await.unwrap();
        let waited: Vec<i64> = journal
            .iter()
            .filter_map(|entry| match &entry.event {
                farrier_model::Event::Node {
                    event: farrier_model::NodeEvent::Failed { retry_at: Some(at), .. },
                    ..
                } => Some(at.as_second() - entry.at.as_second()),
                _ => None,
            })
            .collect();
        assert_eq!(waited, pauses, "{asked}");
    }
}

#[tokio::test]
async fn expectations_fail_a_step_or_finish_the_run() {
    let (_, ended) = run_text(
        "expect",
        "read_only",
        "steps:
  look:
    uses: fake.read
    with: { target: world, object: nothing }
    expect: [{ that: result.value is not none, otherwise: \"there is no object in ${ run.runbook }\" }]
",
    )
    .await;
    assert_eq!(ended.state, RunState::Failed);
    let failure = ended.failure.unwrap();
    assert_eq!((failure.kind, &*failure.message), (FailureKind::Expectation, "there is no object in expect"));

    let (bench, ended) = run_text(
        "finish",
        "recoverable",
        "steps:
  look:
    uses: fake.read
    with: { target: world, object: nothing }
    expect: [{ that: result.value is not none, otherwise: nothing is left to do, then: finish }]
  write: { uses: fake.set, needs: [look], with: { target: world, object: a, value: v }, undo: restore }
",
    )
    .await;
    assert_eq!(ended.state, RunState::Succeeded);
    assert!(bench.world.state().ledger.is_empty());
    assert!(bench.journal(ended.run).await.contains(&"skipped write".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn verify_polls_until_it_holds_or_time_is_up() {
    let bench = Bench::new("verify");
    let rest = "steps:
  a:
    uses: fake.read
    with: { target: world, object: a }
    verify: { that: result.value == 'ready', within: 10m, every: 5s, otherwise: it never became ready }
";
    let start = bench.start(&[runbook("verify", "read_only", rest)], Value::map::<&str>([]));
    let world = bench.world.clone();
    let later = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        world.state.lock().unwrap().objects.insert("a".into(), Value::text("ready"));
    });
    let ended = bench.run(&start).await.unwrap();
    later.await.unwrap();
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert!(bench.world.state().reads > 5);

    bench.world.state.lock().unwrap().objects.clear();
    let ended = bench.run(&start).await.unwrap();
    let failure = ended.failure.unwrap();
    assert_eq!(failure.kind, FailureKind::Verification);
    assert!(failure.message.starts_with("it never became ready"), "{failure}");
}

#[tokio::test]
async fn a_continued_failure_degrades_the_run_and_blocks_what_needs_it() {
    let bench = Bench::new("continue");
    let rest = "steps:
  weak: { uses: fake.set, with: { target: world, object: a, value: v, fail: true }, on_failure: continue, undo: none }
  needs_it: { uses: fake.set, needs: [weak], with: { target: world, object: b, value: v }, undo: none }
  does_not: { uses: fake.set, needs: [{ weak: finished }], with: { target: world, object: c, value: v }, undo: none }
";
    let start = bench.start(&[runbook("continue", "recoverable", rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Degraded);
    assert_eq!(bench.world.state().ledger, ["fake.set c"]);
    assert!(bench.journal(ended.run).await.contains(&"blocked needs_it".to_owned()));
}

#[tokio::test]
async fn a_failure_undoes_everything_in_reverse_order() {
    let bench = Bench::new("undo");
    bench.world.state.lock().unwrap().objects.insert("b".into(), Value::text("old"));
    let before = bench.world.state().objects;
    let rest = "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: new }, undo: restore }
  b: { uses: fake.set, needs: [a], with: { target: world, object: b, value: new }, undo: restore }
  c: { uses: fake.keyed, needs: [b], with: { target: world, object: c, value: new }, undo: restore }
  bad: { uses: fake.set, needs: [c], with: { target: world, object: d, value: new, fail: true }, on_failure: undo, undo: restore }
finally:
  tell: { uses: fake.set, with: { target: world, object: told, value: \"${ run.state }\" }, undo: none }
";
    let start = bench.start(&[runbook("undo", "recoverable", rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Undone, "{:?}", ended.failure);
    let state = bench.world.state();
    assert_eq!(
        state.ledger,
        [
            "fake.set a",
            "fake.set b",
            "fake.keyed c",
            "undo fake.keyed c",
            "undo fake.set b",
            "undo fake.set a",
            "fake.set told"
        ]
    );
    assert_eq!(state.objects.get("told"), Some(&Value::text("undone")));
    let mut rest = state.objects;
    rest.remove("told");
    assert_eq!(rest, before);
}

#[tokio::test]
async fn nothing_is_undone_behind_a_commit_point() {
    let bench = Bench::new("commit_point");
    // `bad` knows of the commit point only through the world.
    let rest = "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: new }, undo: restore, commit_point: true }
  seen: { uses: fake.read, with: { target: world, object: first } }
  first: { uses: fake.set, needs: [seen], with: { target: world, object: first, value: x }, undo: restore }
  wait:
    uses: fake.read
    needs: [first]
    with: { target: world, object: a }
    verify: { that: result.value == 'new', within: 1m, every: 1ms }
  bad:
    uses: fake.set
    needs: [wait]
    with: { target: world, object: d, value: new, fail: true }
    on_failure: undo
    undo: none
";
    let start = bench.start(&[runbook("commit_point", "recoverable", rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Failed);
    assert_eq!(object(&bench, "a"), Value::text("new"));
    assert_eq!(object(&bench, "first"), Value::text("x"));
}

struct Asked {
    plan: Mutex<Option<Plan>>,
    answer: Answer,
}

#[async_trait]
impl Confirm for Asked {
    async fn confirm(&self, plan: &Plan) -> Answer {
        *self.plan.lock().unwrap() = Some(plan.clone());
        self.answer.clone()
    }
}

#[tokio::test]
async fn the_barrier_shows_the_whole_plan_and_no_write_happens_before_the_answer() {
    let bench = Bench::new("barrier");
    let rest = "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: v }, undo: none }
  b: { uses: fake.set, needs: [a], with: { target: world, object: b, value: \"${ steps.a.value }\" }, undo: none }
  look: { uses: fake.read, needs: [b], with: { target: world, object: b } }
  c: { uses: fake.set, with: { target: world, object: c, value: \"${ steps.look.value }\" }, undo: none }
";
    let start = bench.start(&[runbook("barrier", "recoverable", rest)], Value::map::<&str>([]));
    let asked = Asked { plan: Mutex::new(None), answer: Answer::Decline };
    let ended = bench.run_with(&start, &asked).await.unwrap();
    assert_eq!(ended.state, RunState::Cancelled);
    assert!(bench.world.state().ledger.is_empty());
    let plan = asked.plan.into_inner().unwrap().unwrap();
    let states: Vec<_> = plan.steps.iter().map(|step| (&*step.id, step.state.clone())).collect();
    assert_eq!(
        states,
        [
            ("a", PlanStepState::Changes),
            ("b", PlanStepState::Changes),
            ("look", PlanStepState::After("b".into())),
            ("c", PlanStepState::After("look".into())),
        ]
    );
    assert_eq!(plan.summary.create, 2);

    let dry = bench.driver().plan(&start).await.unwrap();
    assert_eq!(dry.steps.len(), 4);
    assert!(!dry.is_certain());
    assert!(bench.world.state().ledger.is_empty());
    assert_eq!(
        bench.store.runs(farrier_store::RunFilter::default()).await.unwrap().len(),
        1,
        "a plan keeps no journal"
    );
}

#[tokio::test]
async fn a_plan_that_fails_below_steps_with_changes_is_known_later_and_fails_then() {
    let bench = Bench::new("fails_below");
    let rest = "steps:
  first: { uses: fake.set, with: { target: world, object: a, value: [no, text] }, undo: restore }
  second: { uses: fake.set, with: { target: world, object: \"${ steps.first.value }\", value: x }, undo: restore }
";
    let start = bench.start(&[runbook("fails_below", "recoverable", rest)], Value::map::<&str>([]));
    let plan = bench.driver().plan(&start).await.unwrap();
    let second = plan.steps.iter().find(|step| &*step.id == "second").unwrap();
    assert!(matches!(&second.state, PlanStepState::After(step) if **step == *"first"), "{:?}", second.state);
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Failed);
    assert_eq!(ended.failure.unwrap().kind, FailureKind::Input);
}

#[tokio::test]
async fn guards_stop_or_ask_before_the_first_write() {
    for (otherwise, state) in [("stop", RunState::Failed), ("ask", RunState::Parked)] {
        let bench = Bench::new(&format!("guard_{otherwise}"));
        let rest = format!(
            "guards:
  - {{ count: [create], at_most: 2, otherwise: {otherwise} }}
steps:
  each:
    uses: fake.set
    for_each: {{ in: \"${{ ['a', 'b', 'c'] }}\", as: name, key: name }}
    with: {{ target: world, object: \"${{ name }}\", value: v }}
    undo: restore
"
        );
        let start = bench.start(&[runbook("guard", "recoverable", &rest)], Value::map::<&str>([]));
        let ended = bench.run(&start).await.unwrap();
        assert_eq!(ended.state, state, "{otherwise}");
        assert!(bench.world.state().ledger.is_empty(), "{otherwise}: nothing is written");
        if otherwise == "stop" {
            assert_eq!(ended.failure.unwrap().kind, FailureKind::Guard);
        } else {
            let row = bench.store.run(ended.run).await.unwrap().unwrap();
            assert_eq!(row.state, RunState::Parked);
            let again = bench
                .driver()
                .resume(ended.run, &start, &farrier_exec::driver::ProceedAlways, &[])
                .await
                .unwrap();
            assert_eq!(again.state, RunState::Parked, "without acceptance it is parked again");
            let guard = again.guard.clone().unwrap();
            let done = bench
                .driver()
                .resume(ended.run, &start, &farrier_exec::driver::ProceedAlways, &[guard])
                .await
                .unwrap();
            assert_eq!(done.state, RunState::Succeeded, "{:?}", done.failure);
            assert_eq!(bench.world.state().ledger.len(), 3);
        }
    }
}

#[tokio::test]
async fn owners_that_die_let_no_parked_run_go_on() {
    let bench = Bench::new("parked_owners");
    let rest = "guards:
  - { count: [create], at_most: 0, otherwise: ask }
steps:
  a: { uses: fake.set, with: { target: world, object: a, value: v }, undo: restore }
";
    let start = bench.start(&[runbook("guard", "recoverable", rest)], Value::map::<&str>([]));
    let parked = bench.run(&start).await.unwrap();
    assert_eq!(parked.state, RunState::Parked);
    for owners in 1..4 {
        bench.store.claim(parked.run, "one that dies").await.unwrap();
        let journal = bench.store.journal(parked.run).await.unwrap();
        let mut run = Run::replay(parked.run, start.bundle.graph().clone(), &journal).unwrap();
        let limits = Limits {
            plan_only: false,
            parallel: 1,
            doubts: 1,
            takeovers: 9,
            patience: Duration::ZERO,
            resume_parked: false,
            answer_only: false,
        };
        let decision = run.decide(Vec::new(), Timestamp::now(), limits).unwrap();
        let parks = matches!(&decision.events[..], [Event::Parked { cause: ParkCause::Guard, .. }]);
        assert!(parks && decision.work.is_empty(), "after {owners}: {decision:?}");
    }
}

#[tokio::test]
async fn an_environment_can_allow_less_than_the_runbook() {
    let bench = Bench::new("environment_guard");
    let rest = "guards:
  - { count: [create], at_most: 5, otherwise: stop }
steps:
  a: { uses: fake.set, with: { target: world, object: a, value: v }, undo: none }
";
    let mut start = bench.start(&[runbook("environment_guard", "recoverable", rest)], Value::map::<&str>([]));
    start.world.guards.push(farrier_runbook::graph::Guard {
        count: Vec::new(),
        at_most: Some(0),
        rate: None,
        share: None,
        otherwise: farrier_runbook::graph::GuardAction::Stop,
        text: "at_most: 0".into(),
    });
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.failure.unwrap().kind, FailureKind::Guard);
    assert!(bench.world.state().ledger.is_empty());
}

#[tokio::test]
async fn guards_count_again_when_unknown_parts_become_known() {
    let bench = Bench::new("late_guard");
    let rest = "guards:
  - { count: [create], at_most: 2, otherwise: stop }
steps:
  first: { uses: fake.set, with: { target: world, object: list, value: \"${ ['a', 'b', 'c'] }\" }, undo: restore }
  read: { uses: fake.read, needs: [first], with: { target: world, object: list } }
  each:
    uses: fake.set
    for_each: { in: \"${ steps.read.value }\", as: name, key: name, parallel: 1 }
    with: { target: world, object: \"${ name }\", value: v }
    undo: restore
";
    let start = bench.start(&[runbook("late_guard", "recoverable", rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Failed);
    assert!(bench.world.state().ledger.len() <= 2, "{:?}", bench.world.state().ledger);
}

#[tokio::test]
async fn an_empty_list_below_a_step_with_changes_is_known_to_change_nothing() {
    let bench = Bench::new("empty_list");
    let rest = "steps:
  first: { uses: fake.set, with: { target: world, object: a, value: v }, undo: restore }
  each:
    uses: fake.set
    needs: [first]
    for_each: { in: \"${ [] }\", as: name, key: name }
    with: { target: world, object: \"${ name }\", value: v }
    undo: restore
  last: { uses: fake.set, needs: [each], with: { target: world, object: b, value: v }, undo: restore }
";
    let start = bench.start(&[runbook("empty_list", "recoverable", rest)], Value::map::<&str>([]));
    let plan = bench.driver().plan(&start).await.unwrap();
    let states: Vec<&PlanStepState> = plan.steps.iter().map(|step| &step.state).collect();
    assert_eq!(states, [&PlanStepState::Changes, &PlanStepState::Done, &PlanStepState::Changes], "{plan:#?}");
    assert!(plan.is_certain());
    let ended = bench.run(&start).await.unwrap();
    assert_eq!((ended.state, bench.world.state().ledger.len()), (RunState::Succeeded, 2));
}

#[tokio::test]
async fn child_runs_have_their_own_journal_and_their_changes_count_for_the_parent() {
    let bench = Bench::new("children");
    let parent = runbook(
        "children",
        "recoverable",
        "steps:
  each:
    uses: runbook.child
    for_each: { in: \"${ ['a', 'b'] }\", as: name, key: name }
    with: { name: \"${ name }\" }
    undo: none
outputs: { all: \"${ steps.each.items | map(attribute='output.made') | join(',') }\" }
",
    );
    let child = runbook(
        "child",
        "recoverable",
        "inputs: { name: { type: string } }
steps:
  make: { uses: fake.set, with: { target: world, object: \"${ inputs.name }\", value: \"${ inputs.name ~ '!' }\" }, undo: restore }
outputs: { made: \"${ steps.make.value }\" }
",
    );
    let start = bench.start(&[parent, child], Value::map::<&str>([]));
    let plan = bench.driver().plan(&start).await.unwrap();
    assert_eq!(plan.summary.create, 2, "{plan:#?}");
    assert!(plan.steps[0].items[0].child.is_some());
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert_eq!(ended.outputs.get("all"), Some(&Value::text("a!,b!")));
    let runs = bench.store.runs(farrier_store::RunFilter::default()).await.unwrap();
    assert_eq!(runs.len(), 3);
    assert_eq!(runs.iter().filter(|row| row.parent == Some(ended.run)).count(), 2);
}

#[tokio::test]
async fn a_failed_read_is_in_the_plan_and_names_its_target() {
    let bench = Bench::new("failed_read");
    bench.world.state.lock().unwrap().failing.insert("a".into(), 99);
    let rest = "steps:\n  look: { uses: fake.read, with: { target: world, object: a } }\n";
    let start = bench.start(&[runbook("failed_read", "read_only", rest)], Value::map::<&str>([]));
    let plan = bench.driver().plan(&start).await.unwrap();
    assert_eq!(
        plan.failure.as_ref().map(ToString::to_string).unwrap(),
        "target `world`: the world does not answer"
    );
    assert!(matches!(plan.steps[0].state, PlanStepState::Failed(_)));
}

#[tokio::test(start_paused = true)]
async fn timeouts_end_attempts_and_whole_runs() {
    let bench = Bench::new("timeout");
    let rest = "timeout: 10s
steps:
  wait:
    uses: fake.read
    with: { target: world, object: a }
    verify: { that: result.value == 'never', within: 1h, every: 1s }
    retry: { attempts: 3, on: [verification] }
  after: { uses: fake.read, needs: [wait], with: { target: world, object: b } }
";
    let start = bench.start(&[runbook("timeout", "read_only", rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Failed);
    assert_eq!(ended.failure.unwrap().kind, FailureKind::Timeout);
}

/// A crash after a probed effect: the steps below see its output as if its answer had come.
#[tokio::test]
async fn an_effect_that_a_probe_found_done_has_its_output() {
    let mut bench = Bench::new("probed_output");
    let rest = "steps:
  boot: { uses: fake.probed, with: { target: world, object: boot, value: 2 }, undo: none }
  note: { uses: fake.set, with: { target: world, object: note, value: \"${ steps.boot.value }\" }, undo: none }
";
    let start = bench.start(&[runbook("probed_output", "recoverable", rest)], Value::map::<&str>([]));
    bench.world.state.lock().unwrap().die_at_effect = Some((1, true));
    let world = bench.world.clone();
    tokio::select! {
        _ = bench.run(&start) => panic!("the run ended although its process died"),
        () = world.died() => {}
    }
    bench.store = bench.store.restart();
    bench.world.state.lock().unwrap().dead = false;
    let run = bench.store.runs(farrier_store::RunFilter::default()).await.unwrap()[0].id;
    let ended = bench.driver().resume(run, &start, &farrier_exec::driver::ProceedAlways, &[]).await.unwrap();
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert_eq!(bench.world.state().objects["note"], Value::Int(2));
}
