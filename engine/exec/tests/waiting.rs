//! Runs that wait: for a time, a signal, an approval, a lock, a child run. A waiting run is a row with a moment; nothing
//! of it is left in the process, and whoever takes it up goes on where the journal ends.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{Bench, runbook};
use farrier_exec::driver::{ProceedAlways, Start, Unobserved};
use farrier_exec::{Driver, Ended, Engine, Halt, Launcher, Options, Plan, Run};
use farrier_model::{Ask, Digest, Event, FailureKind, NodeState, RunId, RunState, Subject, Text, Value};
use farrier_runbook::environment::Approvals;
use farrier_store::{RunFilter, RunRow, Store, StoreError};
use tokio::sync::watch;

const DAY: Duration = Duration::from_secs(86_400);

fn nothing() -> Value {
    Value::map::<&str>([])
}

/// A bench whose runs are let go of as soon as they wait.
fn impatient(name: &str) -> Bench {
    let mut bench = Bench::new(name);
    bench.options = Options { patience: Duration::ZERO, resume_parked: false, ..bench.options };
    bench
}

fn start(bench: &Bench, name: &str, rest: &str) -> Start {
    bench.start(&[runbook(name, "recoverable", rest)], nothing())
}

async fn begin(bench: &Bench, start: &Start) -> Ended {
    bench.driver().start(start, &ProceedAlways, |_| {}).await.unwrap()
}

async fn resume(bench: &Bench, run: RunId, start: &Start) -> Ended {
    bench.driver().resume(run, start, &ProceedAlways, &[]).await.unwrap()
}

async fn ask(bench: &Bench, run: RunId, by: &str, ask: Ask) {
    bench.driver().ask(run, by, ask).await.unwrap();
}

async fn replay(bench: &Bench, run: RunId, start: &Start) -> Run {
    let journal = bench.store.journal(run).await.unwrap();
    Run::replay(run, start.bundle.graph().clone(), &journal).unwrap()
}

async fn refusals(bench: &Bench, run: RunId) -> Vec<String> {
    let journal = bench.store.journal(run).await.unwrap();
    let refused = journal.into_iter().filter_map(|entry| match entry.event {
        Event::RequestRefused { why, .. } => Some(why),
        _ => None,
    });
    refused.collect()
}

async fn is_whole(bench: &Bench) {
    let report = farrier_store::fsck(&bench.store).await.unwrap();
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

fn objects(bench: &Bench) -> Vec<String> {
    bench.world.state().objects.into_keys().collect()
}

const FORTY_DAYS: &str = "signals:
  - { name: go_on, who: [admins], then: continue }
  - { name: reenable, who: [owner], until: drop, then: undo }
steps:
  lock: { uses: fake.set, with: { target: world, object: locked, value: yes }, undo: restore }
  grace: { uses: flow.wait, needs: [lock], with: { for: 40d, signal: go_on } }
  drop: { uses: fake.set, needs: [grace], with: { target: world, object: dropped, value: \"${ steps.grace.by }\" }, undo: restore, commit_point: true }
";

#[tokio::test(start_paused = true)]
async fn a_wait_of_forty_days_is_a_row_with_a_moment() {
    let bench = impatient("forty_days");
    let start = start(&bench, "forty_days", FORTY_DAYS);
    let plan: Plan = bench.driver().plan(&start).await.unwrap();
    assert!(
        !plan.is_empty() && !plan.is_certain(),
        "a plan that waits never says that all is known: {plan:#?}"
    );

    let begun = bench.clock.now();
    let ended = begin(&bench, &start).await;
    assert_eq!(ended.state, RunState::Waiting);
    let (reason, until) = ended.waits.unwrap();
    assert_eq!(reason, format!("step `grace` waits until {} or signal `go_on`", until.unwrap()));
    let row = bench.store.run(ended.run).await.unwrap().unwrap();
    assert_eq!((row.state, row.owner, row.not_before), (RunState::Waiting, None, until));
    assert_eq!(until.unwrap(), begun + 40 * DAY);
    assert_eq!(objects(&bench), ["locked"]);

    // Too early: it is looked at, and waits on until the same moment.
    tokio::time::sleep(39 * DAY).await;
    let due = bench.store.due(10).await.unwrap();
    assert_eq!((due.runs, due.next), (vec![], until));
    let ended = resume(&bench, ended.run, &start).await;
    assert_eq!((ended.state, ended.waits.unwrap().1), (RunState::Waiting, until));

    tokio::time::sleep(DAY).await;
    assert_eq!(bench.store.due(10).await.unwrap().runs.len(), 1);
    let ended = resume(&bench, ended.run, &start).await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert_eq!(bench.world.state().objects["dropped"], Value::text("time"));
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_signal_ends_a_wait_or_takes_everything_back() {
    // Sent by somebody else, sent twice, sent too late, and not known.
    let bench = impatient("signal_continue");
    let mut start = start(&bench, "signal_continue", FORTY_DAYS);
    start.world.people = Arc::new(BTreeMap::from([(Text::from("admins"), vec![Text::from("ada")])]));
    let run = begin(&bench, &start).await.run;
    let signal = |name: &str| Ask::Signal { name: name.into(), reason: Some("now".into()) };
    ask(&bench, run, "mallory", signal("go_on")).await;
    ask(&bench, run, "ada", signal("stop")).await;
    assert_eq!(resume(&bench, run, &start).await.state, RunState::Waiting);
    assert_eq!(
        refusals(&bench, run).await,
        [
            "mallory may not send it: that is for admins",
            "`signal_continue` accepts no signal `stop`; it accepts: `go_on`, `reenable`"
        ]
    );
    ask(&bench, run, "ada", signal("go_on")).await;
    assert_eq!(bench.store.due(10).await.unwrap().runs.len(), 1, "what was asked makes it due");
    let ended = resume(&bench, run, &start).await;
    assert_eq!(ended.state, RunState::Succeeded);
    assert_eq!(bench.world.state().objects["dropped"], Value::text("signal"));
    let late = bench.driver().ask(run, "owner", signal("reenable")).await;
    assert!(late.is_err(), "a run that has ended accepts nothing");
    is_whole(&bench).await;

    let bench = impatient("signal_undo");
    let start = self::start(&bench, "signal_undo", FORTY_DAYS);
    let run = begin(&bench, &start).await.run;
    tokio::time::sleep(12 * DAY).await;
    ask(&bench, run, "owner", signal("reenable")).await;
    let ended = resume(&bench, run, &start).await;
    assert_eq!(ended.state, RunState::Undone, "{:?}", ended.failure);
    assert_eq!(objects(&bench), [""; 0]);
    assert_eq!(replay(&bench, run, &start).await.node(node(&start, "grace")).state, NodeState::Skipped);
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_step_of_finally_that_has_begun_goes_on_whatever_becomes_of_the_run() {
    let bench = impatient("finally_goes_on");
    {
        let mut world = bench.world.state.lock().unwrap();
        world.failing.insert("a".into(), 9);
        world.failing.insert("told".into(), 1);
    }
    let rest = "steps:
  a: { uses: fake.read, with: { target: world, object: a } }
finally:
  tell:
    uses: fake.keyed
    if: run.state == 'failed'
    with: { target: world, object: told, value: \"${ run.state }\" }
    undo: none
    retry: { attempts: 3, on: [conflict], backoff: 1h..1h }
";
    let start = self::start(&bench, "finally_goes_on", rest);
    let begun = begin(&bench, &start).await;
    assert_eq!(begun.state, RunState::Waiting, "it is tried again: {:?}", begun.failure);
    ask(&bench, begun.run, "owner", Ask::Cancel { undo: false, reason: None }).await;
    assert_eq!(resume(&bench, begun.run, &start).await.state, RunState::Waiting);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let ended = resume(&bench, begun.run, &start).await;
    assert_eq!(ended.state, RunState::Cancelled, "{:?}", ended.failure);
    assert_eq!(bench.world.state().ledger, ["fake.keyed told"]);
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_signal_is_for_the_people_that_the_run_has_read_of() {
    let bench = impatient("signal_members");
    let start = |members: &[&str]| {
        let members = Value::list(members.iter().map(|name| Value::text(*name)).collect());
        bench.world.state.lock().unwrap().objects.insert("members".into(), members);
        let rest = "signals:
  - { name: go_on, who: [admins, \"${ steps.members.value }\"], then: continue }
  - { name: stop, who: [\"${ steps.after.value }\"], then: cancel }
steps:
  members: { uses: fake.read, with: { target: world, object: members } }
  grace: { uses: flow.wait, needs: [members], with: { for: 1d, signal: go_on } }
  after: { uses: fake.read, needs: [grace], with: { target: world, object: members } }
";
        let mut start = self::start(&bench, "signal_members", rest);
        let groups = [("admins", "ada"), ("bogdan", "grace")];
        let groups = groups.map(|(group, member)| (Text::from(group), vec![Text::from(member)]));
        start.world.people = Arc::new(BTreeMap::from(groups));
        start
    };
    let signal = |name: &str| Ask::Signal { name: name.into(), reason: None };
    // Names that were read are of people: not of the group that has the same name.
    let first = start(&["bogdan", "chidi"]);
    let run = begin(&bench, &first).await.run;
    ask(&bench, run, "mallory", signal("go_on")).await;
    ask(&bench, run, "grace", signal("go_on")).await;
    ask(&bench, run, "bogdan", signal("stop")).await;
    assert_eq!(resume(&bench, run, &first).await.state, RunState::Waiting);
    assert_eq!(
        refusals(&bench, run).await,
        [
            "mallory may not send it: that is for admins, bogdan, chidi",
            "grace may not send it: that is for admins, bogdan, chidi",
            "bogdan may not send it: that is for nobody; whom `steps.after.value` names is not known now",
        ]
    );
    ask(&bench, run, "chidi", signal("go_on")).await;
    assert_eq!(resume(&bench, run, &first).await.state, RunState::Succeeded);
    // Nobody is read of: the groups that are written there still may, and others still may not.
    let second = start(&[]);
    let run = begin(&bench, &second).await.run;
    ask(&bench, run, "chidi", signal("go_on")).await;
    assert_eq!(resume(&bench, run, &second).await.state, RunState::Waiting);
    assert_eq!(refusals(&bench, run).await, ["chidi may not send it: that is for admins"]);
    ask(&bench, run, "ada", signal("go_on")).await;
    assert_eq!(resume(&bench, run, &second).await.state, RunState::Succeeded);
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_comes_before_the_first_write_is_followed_all_the_same() {
    let rest = "signals:
  - { name: reenable, who: [owner], then: undo }
steps:
  lock: { uses: fake.set, with: { target: world, object: locked, value: yes }, undo: restore }
finally:
  enable: { uses: fake.set, if: run.signal == 'reenable', with: { target: world, object: enabled, value: yes }, undo: none }
";
    for (ask_for, enabled) in [
        (Ask::Signal { name: "reenable".into(), reason: None }, true),
        // Whoever says no to the plan wants nothing written.
        (Ask::Cancel { undo: true, reason: None }, false),
    ] {
        let bench = impatient(&format!("signal_early_{enabled}"));
        let mut start = start(&bench, &format!("signal_early_{enabled}"), rest);
        start.world.approvals = Approvals { recoverable: 1, destructive: 1 };
        let waiting = begin(&bench, &start).await;
        assert_eq!(waiting.state, RunState::Waiting);
        ask(&bench, waiting.run, "owner", ask_for).await;
        assert_eq!(resume(&bench, waiting.run, &start).await.state, RunState::Cancelled);
        let wanted: &[&str] = if enabled { &["enabled"] } else { &[] };
        assert_eq!(objects(&bench), wanted);
        is_whole(&bench).await;
    }
}

fn node(start: &Start, step: &str) -> farrier_exec::NodeRef {
    farrier_exec::NodeRef::step(start.bundle.graph().find(step).unwrap())
}

#[tokio::test(start_paused = true)]
async fn after_the_commit_point_a_run_only_goes_forward() {
    let bench = impatient("committed");
    let start = start(
        &bench,
        "committed",
        "signals: [{ name: reenable, who: [owner], until: drop, then: undo }]
steps:
  drop: { uses: fake.set, with: { target: world, object: dropped, value: x }, undo: restore, commit_point: true }
  pause: { uses: flow.wait, needs: [drop], with: { for: 1h } }
  rest: { uses: fake.set, needs: [pause], with: { target: world, object: rest, value: x }, undo: none }
",
    );
    let run = begin(&bench, &start).await.run;
    ask(&bench, run, "owner", Ask::Signal { name: "reenable".into(), reason: None }).await;
    ask(&bench, run, "owner", Ask::Cancel { undo: true, reason: None }).await;
    assert_eq!(resume(&bench, run, &start).await.state, RunState::Waiting);
    assert_eq!(
        refusals(&bench, run).await,
        [
            "`reenable` is accepted until step `drop` begins, and it has begun",
            "the run has passed its commit point and only goes forward"
        ]
    );
    tokio::time::sleep(DAY).await;
    assert_eq!(resume(&bench, run, &start).await.state, RunState::Succeeded);
    assert_eq!(objects(&bench), ["dropped", "rest"]);
}

/// A deletion that failed and is tried again may have deleted half.
#[tokio::test(start_paused = true)]
async fn while_the_commit_point_is_tried_again_a_run_only_goes_forward() {
    let bench = impatient("half-committed");
    let start = start(
        &bench,
        "half-committed",
        "steps:
  a: { uses: fake.set, needs: [], with: { target: world, object: a, value: x }, undo: restore }
  drop: { uses: fake.set, needs: [a], with: { target: world, object: dropped, value: x }, undo: none, commit_point: true, retry: { attempts: 3, backoff: 1h..1h } }
",
    );
    bench.world.state.lock().unwrap().failing.insert("dropped".into(), 1);
    let run = begin(&bench, &start).await.run;
    ask(&bench, run, "owner", Ask::Cancel { undo: true, reason: None }).await;
    assert_eq!(resume(&bench, run, &start).await.state, RunState::Waiting);
    assert_eq!(refusals(&bench, run).await, ["the run has passed its commit point and only goes forward"]);
    tokio::time::sleep(DAY).await;
    assert_eq!(resume(&bench, run, &start).await.state, RunState::Succeeded);
    assert_eq!(objects(&bench), ["a", "dropped"]);
}

const APPROVED: &str = "steps:
  look: { uses: fake.read, with: { target: world, object: old } }
  first: { uses: fake.set, with: { target: world, object: first, value: x }, undo: restore }
  sure: { uses: flow.approval, needs: [first], with: { who: [roots], count: 2, within: 3d } }
  drop: { uses: fake.set, needs: [sure], with: { target: world, object: old }, undo: none }
";

async fn asked(bench: &Bench, run: RunId, start: &Start) -> (Subject, Digest, Plan) {
    let run = replay(bench, run, start).await;
    let (subject, approval) = run.approvals.iter().find(|(_, approval)| approval.is_open()).unwrap();
    (subject.clone(), approval.plan.digest, Plan::of_bound(&approval.plan).unwrap())
}

fn roots(start: &mut Start) {
    let group = ["ada", "grace", "tester"].map(Text::from).to_vec();
    start.world.people = Arc::new(BTreeMap::from([(Text::from("roots"), group)]));
}

/// G7: an approval is valid only for the plan digest it was given for. Removed, to see it fail: the comparison of digests
/// in `open_approval`, and the comparison with the approved changes in `intend`.
#[tokio::test(start_paused = true)]
async fn g7_an_approval_binds_to_what_was_read() {
    let bench = impatient("g7");
    bench.world.state.lock().unwrap().objects.insert("old".into(), Value::text("a"));
    let mut start = start(&bench, "g7", APPROVED);
    roots(&mut start);
    let run = begin(&bench, &start).await.run;
    let (subject, digest, plan) = asked(&bench, run, &start).await;
    // What people read is what is left: the step that waits below, with its change.
    let drop = plan.steps.iter().find(|step| &*step.id == "drop").unwrap();
    assert_eq!(drop.changes.len(), 1, "{plan:#?}");
    assert_eq!(drop.changes[0].before, Value::text("a"));

    let yes = |digest| Ask::Approve { subject: subject.clone(), digest, reason: None };
    ask(&bench, run, "ada", yes(Digest::of("another plan"))).await;
    ask(&bench, run, "tester", yes(digest)).await;
    ask(&bench, run, "mallory", yes(digest)).await;
    ask(&bench, run, "ada", yes(digest)).await;
    ask(&bench, run, "ada", yes(digest)).await;
    assert_eq!(resume(&bench, run, &start).await.state, RunState::Waiting, "one of two is not enough");
    let refused = refusals(&bench, run).await;
    assert_eq!(refused.len(), 4, "{refused:#?}");
    assert!(refused[0].starts_with("the answer is for plan "), "{refused:#?}");
    assert!(refused[1].contains("somebody else has to approve it"), "{refused:#?}");
    assert!(refused[2].contains("mallory may not approve it"), "{refused:#?}");
    assert!(refused[3].contains("another person has to"), "{refused:#?}");

    ask(&bench, run, "grace", yes(digest)).await;
    // The world moves on between the yes and the act: what was approved is not what would happen.
    bench.world.state.lock().unwrap().objects.insert("old".into(), Value::text("b"));
    let ended = resume(&bench, run, &start).await;
    let failure = ended.failure.unwrap();
    assert_eq!((ended.state, failure.kind), (RunState::Failed, FailureKind::Drift), "{failure}");
    assert!(failure.message.contains("`old` was a, and is b now"), "{failure}");
    assert_eq!(bench.world.state().objects["old"], Value::text("b"), "nothing was overwritten");
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn approved_rejected_or_too_late() {
    for (name, answer, ends) in [
        ("yes", Some(true), RunState::Succeeded),
        ("no", Some(false), RunState::Failed),
        ("late", None, RunState::Failed),
    ] {
        let bench = impatient(&format!("approval_{name}"));
        bench.world.state.lock().unwrap().objects.insert("old".into(), Value::text("a"));
        let mut start = start(&bench, "approval", APPROVED);
        roots(&mut start);
        let run = begin(&bench, &start).await.run;
        let (subject, digest, _) = asked(&bench, run, &start).await;
        match answer {
            Some(true) => {
                for by in ["grace", "ada"] {
                    ask(&bench, run, by, Ask::Approve { subject: subject.clone(), digest, reason: None })
                        .await;
                }
            }
            Some(false) => {
                let reason = Some("not on a Friday".into());
                ask(&bench, run, "ada", Ask::Reject { subject, digest, reason }).await;
            }
            None => tokio::time::sleep(4 * DAY).await,
        }
        let ended = resume(&bench, run, &start).await;
        assert_eq!(ended.state, ends, "{name}: {:?}", ended.failure);
        if ends == RunState::Failed {
            assert_eq!(ended.failure.unwrap().kind, FailureKind::Rejected);
        }
        assert_eq!(bench.world.state().objects["old"].is_null(), ends == RunState::Succeeded);
        is_whole(&bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_environment_can_want_approvals_before_the_first_write() {
    let bench = impatient("environment_approval");
    let mut start = start(
        &bench,
        "environment_approval",
        "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: x }, undo: none }
",
    );
    start.world.approvals = Approvals { recoverable: 1, destructive: 2 };
    let ended = begin(&bench, &start).await;
    assert_eq!((ended.state, objects(&bench)), (RunState::Waiting, vec![]));
    let (subject, digest, plan) = asked(&bench, ended.run, &start).await;
    assert_eq!((subject.clone(), plan.summary.create), (Subject::Run, 1));
    // What they read changes before they answer: they are asked again.
    bench.world.state.lock().unwrap().objects.insert("a".into(), Value::text("other"));
    ask(&bench, ended.run, "ada", Ask::Approve { subject: subject.clone(), digest, reason: None }).await;
    assert_eq!(resume(&bench, ended.run, &start).await.state, RunState::Waiting);
    let (_, again, plan) = asked(&bench, ended.run, &start).await;
    assert_ne!(again, digest);
    assert_eq!(plan.summary.update, 1);
    ask(&bench, ended.run, "ada", Ask::Approve { subject, digest: again, reason: None }).await;
    assert_eq!(resume(&bench, ended.run, &start).await.state, RunState::Succeeded);
    assert_eq!(bench.world.state().objects["a"], Value::text("x"));
    is_whole(&bench).await;
}

const HOLDS: &str = "locks: [{ name: nodes, capacity: 1, wait: 2h }]
steps:
  a: { uses: fake.set, with: { target: world, object: \"${ run.id }\", value: x }, undo: none }
  pause: { uses: flow.wait, needs: [a], with: { for: 1h } }
";

#[tokio::test(start_paused = true)]
async fn locks_are_held_by_runs_first_come_first_served() {
    let bench = impatient("locks");
    let start = start(&bench, "locks", HOLDS);
    let runs: Vec<RunId> =
        [begin(&bench, &start).await, begin(&bench, &start).await, begin(&bench, &start).await]
            .iter()
            .map(|ended| {
                assert_eq!(ended.state, RunState::Waiting);
                ended.run
            })
            .collect();
    let holders = || async {
        let tickets = bench.store.tickets(None).await.unwrap();
        tickets.iter().map(|ticket| (ticket.run, ticket.held_since.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(holders().await, [(runs[0], true), (runs[1], false), (runs[2], false)]);
    assert_eq!(bench.world.state().objects.len(), 1, "who waits for a lock does nothing, not even read");
    // The second one gives up in time; the third one is next.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(resume(&bench, runs[0], &start).await.state, RunState::Succeeded);
    let due = bench.store.due(10).await.unwrap();
    assert_eq!(due.runs.iter().map(|row| row.id).collect::<Vec<_>>(), [runs[1]], "the next in line is due");
    assert_eq!(holders().await, [(runs[1], true), (runs[2], false)]);
    assert_eq!(resume(&bench, runs[1], &start).await.state, RunState::Waiting);
    assert_eq!(bench.world.state().objects.len(), 2);
    tokio::time::sleep(Duration::from_secs(3601)).await;
    let ended = resume(&bench, runs[2], &start).await;
    assert_eq!(ended.failure.unwrap().kind, FailureKind::Lock, "it waited longer than two hours");
    assert_eq!(resume(&bench, runs[1], &start).await.state, RunState::Succeeded);
    assert_eq!(holders().await, []);
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_a_step_is_held_while_it_writes() {
    let mut bench = Bench::new("step_locks");
    bench.options.parallel = 8;
    let start = start(
        &bench,
        "step_locks",
        "steps:
  each:
    uses: fake.set
    for_each: { in: \"${ ['a', 'b', 'c', 'd'] }\", as: name, key: name }
    lock: { name: one_at_a_time, capacity: 1 }
    with: { target: world, object: \"${ name }\", value: x }
    undo: none
",
    );
    let ended = begin(&bench, &start).await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    let mut held = 0;
    let mut taken = 0;
    for entry in bench.store.journal(ended.run).await.unwrap() {
        match entry.event {
            Event::LockTaken { .. } => {
                held += 1;
                taken += 1;
                assert_eq!(held, 1, "two items held the lock at once");
            }
            Event::LockReleased { .. } => held -= 1,
            _ => {}
        }
    }
    assert_eq!((taken, held), (4, 0));
    assert!(bench.store.tickets(None).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_run_per_key_is_alive() {
    let bench = impatient("one_run_per");
    let rest = "inputs: { name: { type: string } }
one_run_per: inputs.name
steps:
  pause: { uses: flow.wait, with: { for: 1h } }
";
    let of = |name: &str| {
        bench.start(&[runbook("one_run_per", "recoverable", rest)], Value::map([("name", Value::text(name))]))
    };
    let (a, b) = (of("a"), of("b"));
    let first = begin(&bench, &a).await.run;
    begin(&bench, &b).await;
    let refused = bench.driver().start(&a, &ProceedAlways, |_| {}).await.unwrap_err();
    let farrier_exec::DriverError::Store(StoreError::KeyTaken { run, .. }) = refused else {
        panic!("{refused}")
    };
    assert_eq!(run, first);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(resume(&bench, first, &a).await.state, RunState::Succeeded);
    assert_eq!(begin(&bench, &a).await.state, RunState::Waiting, "the key is free again");
}

#[tokio::test(start_paused = true)]
async fn rates_count_across_runs() {
    let bench = impatient("rates");
    let start = start(
        &bench,
        "rates",
        "guards: [{ rate: reboot, at_most: 3, within: 24h, otherwise: ask }]
steps:
  reboot:
    uses: fake.keyed
    for_each: { in: \"${ ['x', 'y'] }\", as: host, key: host, parallel: 1 }
    with: { target: world, object: \"${ run.id ~ host }\", value: x }
    undo: none
",
    );
    assert_eq!(begin(&bench, &start).await.state, RunState::Succeeded);
    let parked = begin(&bench, &start).await;
    assert_eq!(parked.state, RunState::Parked, "two more would be four");
    assert!(parked.parked.as_ref().unwrap().contains("4 executions, more than the limit of 3"), "{parked:?}");
    assert_eq!(bench.world.state().objects.len(), 2);
    // It asks about exactly what it would do.
    let asks = replay(&bench, parked.run, &start).await.asking_plan.unwrap();
    assert_eq!(Plan::of_bound(&asks).unwrap().summary.create, 2);
    // A day later the first two do not count any more.
    tokio::time::sleep(DAY + Duration::from_secs(1)).await;
    let ended =
        bench.driver().resume(parked.run, &start, &ProceedAlways, &[parked.guard.unwrap()]).await.unwrap();
    assert_eq!(ended.state, RunState::Succeeded);
    assert_eq!(bench.world.state().objects.len(), 4);
}

const PARENT: &str = "steps:
  call: { uses: runbook.inner, with: { name: a }, undo: none }
  after: { uses: fake.set, needs: [call], with: { target: world, object: after, value: x }, undo: none }
";
const INNER: &str = "inputs: { name: { type: string } }
steps:
  pause: { uses: flow.wait, with: { for: 2d } }
  make: { uses: fake.set, needs: [pause], with: { target: world, object: \"${ inputs.name }\", value: x }, undo: none }
";

fn family(bench: &Bench) -> Start {
    bench.start(&[runbook("outer", "recoverable", PARENT), runbook("inner", "recoverable", INNER)], nothing())
}

#[tokio::test(start_paused = true)]
async fn a_parent_waits_with_its_child() {
    let bench = impatient("family");
    let start = family(&bench);
    let ended = begin(&bench, &start).await;
    assert_eq!(ended.state, RunState::Waiting);
    let rows = bench.store.runs(RunFilter::default()).await.unwrap();
    assert!(rows.iter().all(|row| row.state == RunState::Waiting && row.owner.is_none()), "{rows:#?}");
    tokio::time::sleep(2 * DAY).await;
    let ended = resume(&bench, ended.run, &start).await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    assert_eq!(objects(&bench), ["a", "after"]);
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn cancelling_a_parent_cancels_the_child_that_waits() {
    let bench = impatient("family_cancel");
    let start = family(&bench);
    let run = begin(&bench, &start).await.run;
    ask(&bench, run, "ada", Ask::Cancel { undo: false, reason: None }).await;
    let ended = resume(&bench, run, &start).await;
    assert_eq!(ended.state, RunState::Cancelled, "{ended:?}");
    let rows = bench.store.runs(RunFilter::default()).await.unwrap();
    assert!(rows.iter().all(|row| row.state == RunState::Cancelled), "{rows:#?}");
    assert_eq!(objects(&bench), [""; 0]);
    is_whole(&bench).await;
}

/// Starts runs of one bundle; children by the name in their row.
struct Known(Start);

#[async_trait]
impl Launcher for Known {
    async fn start_of(&self, row: &RunRow, created: &Event) -> Result<Start, String> {
        let Event::Created { inputs, trigger, plan, .. } = created else { return Err("no".into()) };
        let bundle = farrier_runbook::Bundle { root: row.runbook.clone(), ..(*self.0.bundle).clone() };
        let (inputs, trigger, plan) = (inputs.clone(), trigger.clone(), plan.clone());
        Ok(Start { bundle: Arc::new(bundle), inputs, trigger, plan, ..self.0.clone() })
    }
}

fn engine(bench: &Bench, start: &Start) -> (Engine, Driver, watch::Sender<Halt>) {
    let (stop, halt) = watch::channel(Halt::No);
    let driver = Driver::new(
        bench.registry.clone(),
        Arc::new(bench.store.clone()),
        bench.clock.clone(),
        bench.options.clone(),
        Arc::new(Unobserved),
        halt,
    );
    (Engine::new(driver.clone(), Arc::new(Known(start.clone())), 8), driver, stop)
}

#[tokio::test(start_paused = true)]
async fn an_engine_takes_up_what_is_due_in_time() {
    let bench = impatient("engine");
    // Twenty families at once, each with objects of its own.
    let texts = [
        PARENT.replace("object: after", "object: \"${ run.id }\""),
        INNER.replace("inputs.name }\", v", "run.id }\", v"),
    ];
    let start = bench.start(
        &[runbook("outer", "recoverable", &texts[0]), runbook("inner", "recoverable", &texts[1])],
        nothing(),
    );
    let (engine, driver, stop) = engine(&bench, &start);
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(driver.enqueue(&start).await.unwrap());
    }
    let working = tokio::spawn(async move { engine.run(false).await });
    // Simulated time passes by itself while everybody sleeps.
    tokio::time::sleep(2 * DAY + Duration::from_secs(60)).await;
    for run in &runs {
        let row = bench.store.run(*run).await.unwrap().unwrap();
        assert_eq!(row.state, RunState::Succeeded, "{row:#?}");
        let late = row.finished_at.unwrap().duration_since(row.created_at).as_secs() - 2 * 86_400;
        assert!((0..60).contains(&late), "{late} s late");
    }
    stop.send(Halt::LetGo).unwrap();
    working.await.unwrap().unwrap();
    is_whole(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_told_to_stop_lets_go_of_everything() {
    let bench = impatient("let_go");
    let start = start(
        &bench,
        "let_go",
        "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: x }, undo: none }
  pause: { uses: fake.read, needs: [a], with: { target: world, object: never }, verify: { that: result.value == 'x', within: 10d, every: 10s } }
  b: { uses: fake.set, needs: [pause], with: { target: world, object: b, value: x }, undo: none }
",
    );
    let (engine, driver, stop) = engine(&bench, &start);
    let run = driver.enqueue(&start).await.unwrap();
    let working = tokio::spawn(async move { engine.run(false).await });
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(bench.store.run(run).await.unwrap().unwrap().state, RunState::Running);
    stop.send(Halt::LetGo).unwrap();
    working.await.unwrap().unwrap();
    let row = bench.store.run(run).await.unwrap().unwrap();
    assert_eq!((row.state, row.owner), (RunState::Waiting, None));
    assert!(row.not_before.unwrap() <= bench.clock.now(), "it is due at once");
    bench.world.state.lock().unwrap().objects.insert("never".into(), Value::text("x"));
    let (engine, _, _stop) = self::engine(&bench, &start);
    engine.run(true).await.unwrap();
    assert_eq!(bench.store.run(run).await.unwrap().unwrap().state, RunState::Succeeded);
    assert_eq!(objects(&bench), ["a", "b", "never"]);
    is_whole(&bench).await;
}

/// A person answers the child; the parent that was parked with it goes on by itself.
#[tokio::test(start_paused = true)]
async fn a_parent_that_is_parked_with_its_child_goes_on_with_it() {
    let bench = impatient("parked_family");
    let inner = INNER.replace("steps:", "guards: [{ count: [create], at_most: 0, otherwise: ask }]\nsteps:");
    let start = bench.start(
        &[runbook("outer", "recoverable", PARENT), runbook("inner", "recoverable", &inner)],
        nothing(),
    );
    let (engine, driver, _stop) = engine(&bench, &start);
    let run = driver.enqueue(&start).await.unwrap();
    engine.run(true).await.unwrap();
    let rows = bench.store.runs(RunFilter::default()).await.unwrap();
    assert!(rows.iter().all(|row| row.state == RunState::Parked), "{rows:#?}");
    let child = rows.iter().find(|row| row.parent == Some(run)).unwrap();
    let guard = "count: [create], at_most: 0";
    driver.ask(child.id, "ada", Ask::Resume { accepted: Some("another guard".into()) }).await.unwrap();
    engine.run(true).await.unwrap();
    assert_eq!(refusals(&bench, child.id).await, ["no guard `another guard` asks"]);
    assert_eq!(bench.store.run(child.id).await.unwrap().unwrap().state, RunState::Parked);
    driver.ask(child.id, "ada", Ask::Resume { accepted: Some(guard.into()) }).await.unwrap();
    for _ in 0..2 {
        engine.run(true).await.unwrap();
        tokio::time::sleep(3 * DAY).await;
    }
    let rows = bench.store.runs(RunFilter::default()).await.unwrap();
    assert!(rows.iter().all(|row| row.state == RunState::Succeeded), "{rows:#?}");
    is_whole(&bench).await;
}

/// The first of three children asks a person. The others are made at once, and the parent says which one was left. Only that one goes
/// on when it may, and who started it stays as it ended.
#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_a_person_is_left_when_its_step_says_so() {
    let outer = "steps:
  each:
    uses: runbook.inner
    for_each: { in: \"${ [['a', 'b'], ['c'], ['d']] }\", as: names, key: 'names[0]', parallel: 1, on_item_failure: isolate }
    with: { names: \"${ names }\" }
    on_parked: fail
    undo: none
";
    let inner = "inputs: { names: { type: list, of: string } }
guards: [{ count: [create], at_most: 1, otherwise: ask }]
steps:
  make:
    uses: fake.set
    for_each: { in: \"${ inputs.names }\", as: name, key: name }
    with: { target: world, object: \"${ name }\", value: x }
    undo: none
";
    let bench = impatient("left_child");
    let texts = [runbook("outer", "recoverable", outer), runbook("inner", "recoverable", inner)];
    let start = bench.start(&texts, nothing());
    let (engine, driver, _stop) = engine(&bench, &start);
    let run = driver.enqueue(&start).await.unwrap();
    engine.run(true).await.unwrap();
    assert_eq!(objects(&bench), ["c", "d"]);
    let rows = bench.store.runs(RunFilter::default()).await.unwrap();
    let parent = rows.iter().find(|row| row.id == run).unwrap();
    let left = rows.iter().find(|row| row.state == RunState::Parked).unwrap();
    assert_eq!(parent.state, RunState::Failed);
    assert_eq!(left.parent, Some(run));
    let reason = parent.reason.as_deref().unwrap();
    assert!(reason.starts_with("1 of 3 items failed; first `a`"), "{reason}");
    assert!(reason.contains(&format!("child run {} of `inner` waits for a person", left.id)), "{reason}");
    is_whole(&bench).await;

    let guard = Some("count: [create], at_most: 1".into());
    driver.ask(left.id, "ada", Ask::Resume { accepted: guard }).await.unwrap();
    engine.run(true).await.unwrap();
    assert_eq!(objects(&bench), ["a", "b", "c", "d"]);
    let state = async |run| bench.store.run(run).await.unwrap().unwrap().state;
    assert_eq!((state(left.id).await, state(run).await), (RunState::Succeeded, RunState::Failed));
    is_whole(&bench).await;
}
