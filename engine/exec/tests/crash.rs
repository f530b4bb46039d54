//! Crashes: the process stops after every single event, before every single write, and inside effects; the run that
//! is resumed ends as one that was never disturbed, with every effect once.
//!
//! Guards G1, G2, G3 and G6 of the protocol. Removed, to see these tests fail: handing out work only after its events
//! were appended (`stopping_at_every_write_of_a_mixed_run_changes_nothing_in_the_end` and the simulator then find doubled
//! effects); parking a `once` step in doubt (both sweeps find effects that happened twice).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Bench, runbook};
use farrier_exec::driver::{ProceedAlways, Start};
use farrier_exec::{DriverError, Ended, Options, Run};
use farrier_model::event::ParkCause;
use farrier_model::{Ask, Event, NodeEvent, NodeState, RunId, RunState, Text, Value};
use farrier_store::{Fault, RunFilter, Store, StoreError};

/// Fifty nodes of every effect class, with items, a condition, a continued failure and outputs.
fn mixed() -> Vec<(String, String)> {
    let mut steps = String::from("steps:\n");
    for group in 0..5 {
        let kinds = ["set", "keyed", "probed", "once", "set", "noop"];
        for (at, kind) in kinds.iter().enumerate() {
            let needs = match (group, at) {
                (0, 0) => String::new(),
                (_, 0) => format!("needs: [g{}s3], ", group - 1),
                _ => format!("needs: [g{group}s{}], ", at - 1),
            };
            if *kind == "noop" {
                steps.push_str(&format!(
                    "  g{group}s{at}: {{ uses: fake.noop, {needs}with: {{ value: {at} }} }}\n"
                ));
            } else {
                steps.push_str(&format!(
                    "  g{group}s{at}: {{ uses: fake.{kind}, {needs}with: {{ target: world, object: g{group}s{at}, value: v{at} }}, undo: none }}\n"
                ));
            }
        }
    }
    steps.push_str(
        "  each:
    uses: fake.keyed
    needs: [g0s1]
    for_each: { in: \"${ [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] }\", as: n, key: n, parallel: 4 }
    with: { target: world, object: \"${ 'item' ~ n }\", value: \"${ n }\" }
    undo: none
  never: { uses: fake.set, if: steps.g0s5.value == 99, with: { target: world, object: never, value: x }, undo: none }
  weak: { uses: fake.set, with: { target: world, object: weak, value: x, fail: true }, on_failure: continue, undo: none }
  last: { uses: fake.read, needs: [each, g4s4, never], with: { target: world, object: g4s4 } }
finally:
  tell: { uses: fake.keyed, with: { target: world, object: told, value: \"${ run.state }\" }, undo: none }
outputs: { last: \"${ steps.last.value }\" }
",
    );
    vec![runbook("mixed", "destructive", &steps)]
}

/// What an observer of the world and of the journal may compare: the ledger in any order, and every node's end.
fn end_state(bench: &Bench, ended: &Ended) -> (Vec<String>, RunState, Value) {
    let mut ledger = bench.world.state().ledger;
    ledger.sort();
    (ledger, ended.state, ended.outputs.clone())
}

/// Resumes until the run is over, as an operator would: looks at the world before answering for a `once` step.
async fn resume_to_the_end(bench: &mut Bench, start: &Start) -> Ended {
    for _ in 0..200 {
        bench.store = bench.store.restart();
        bench.world.state.lock().unwrap().dead = false;
        let runs = bench.store.runs(RunFilter::default()).await.unwrap();
        let Some(row) = runs.iter().find(|row| row.parent.is_none()) else {
            // Nothing was acknowledged, so the person starts again.
            return bench.run(start).await.unwrap();
        };
        if row.state.is_final() {
            return ended_of(&replay(bench, start, row.id).await);
        }
        let ended = bench.driver().resume(row.id, start, &ProceedAlways, &[]).await.unwrap();
        if ended.state != RunState::Parked {
            return ended;
        }
        resolve(bench, start, ended.run).await;
    }
    panic!("the run does not end");
}

fn ended_of(run: &Run) -> Ended {
    Ended {
        run: run.id,
        state: run.state,
        outputs: run.outputs.clone(),
        failure: run.failure.clone(),
        parked: None,
        guard: None,
        waits: None,
        changed: run.changed(),
    }
}

async fn replay(bench: &Bench, start: &Start, run: RunId) -> Run {
    let journal = bench.store.journal(run).await.unwrap();
    Run::replay(run, start.bundle.graph().clone(), &journal).unwrap()
}

/// Tells Farrier of every step in doubt whether it happened.
async fn resolve(bench: &Bench, start: &Start, id: RunId) {
    let run = replay(bench, start, id).await;
    assert_eq!(run.parked.as_ref().map(|(_, cause)| *cause), Some(ParkCause::InDoubt), "{:?}", run.parked);
    let claim = bench.store.claim(id, "operator").await.unwrap();
    let mut events = Vec::new();
    for node in run.nodes() {
        if run.node(node).state != NodeState::InDoubt {
            continue;
        }
        let name = run.name(node);
        let happened =
            bench.world.state().ledger.iter().any(|line| line.ends_with(&format!(" {}", name.step)));
        let event = if happened {
            NodeEvent::Succeeded { output: Value::Null, changed: 1 }
        } else {
            NodeEvent::NotApplied { by: "operator".into() }
        };
        events.push(Event::Node { node: name, attempt: run.node(node).attempt, event });
    }
    bench.store.append(&claim, events, None).await.unwrap();
    bench.store.release(&claim).await.unwrap();
}

#[tokio::test]
async fn stopping_at_every_write_of_a_mixed_run_changes_nothing_in_the_end() {
    let undisturbed = Bench::new("crash_reference");
    let start = undisturbed.start(&mixed(), Value::map::<&str>([]));
    let ended = undisturbed.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Degraded, "{:?}", ended.failure);
    let reference = end_state(&undisturbed, &ended);
    let writes = undisturbed.store.writes();
    assert!(writes > 20, "only {writes} writes: the sweep would prove little");

    let mut parked = 0;
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::AnswerLost, Fault::RequestLost] {
        for nth in 1..=writes {
            let mut bench = Bench::new(&format!("crash_{fault:?}_{nth}"));
            let start = bench.start(&mixed(), Value::map::<&str>([]));
            bench.store.inject(nth, fault);
            let ended = match bench.run(&start).await {
                Ok(ended) if ended.state != RunState::Parked => ended,
                Ok(_) => {
                    parked += 1;
                    resume_to_the_end(&mut bench, &start).await
                }
                Err(_) => resume_to_the_end(&mut bench, &start).await,
            };
            assert_eq!(end_state(&bench, &ended), reference, "{fault:?} at write {nth}");
            check_invariants(&bench, &start, &ended).await;
        }
    }
    let _ = parked;
}

/// Guards T6: a disk that fills up at any write delays a run and changes nothing in it. Removed, to see it fail: holding
/// back what a full disk refuses.
#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_up_at_any_write_delays_a_run_and_loses_nothing() {
    let undisturbed = Bench::new("full_reference");
    let start = undisturbed.start(&mixed(), Value::map::<&str>([]));
    let reference = end_state(&undisturbed, &undisturbed.run(&start).await.unwrap());
    let writes = undisturbed.store.writes();
    // Texts, run and claim: a run that did not begin is refused, and can be started again.
    for nth in 1..=writes {
        for refusals in [1, 4] {
            let bench = Bench::new(&format!("full_{nth}_{refusals}"));
            let start = bench.start(&mixed(), Value::map::<&str>([]));
            bench.store.inject(nth, Fault::Full(refusals));
            match bench.run(&start).await {
                Ok(ended) => {
                    assert_eq!(end_state(&bench, &ended), reference, "full at write {nth}");
                    check_invariants(&bench, &start, &ended).await;
                }
                Err(error) => {
                    assert!(matches!(error, DriverError::Store(StoreError::Full { .. })), "{error}");
                    assert!(nth <= 3, "{nth}: only what has not begun is refused");
                    assert!(bench.world.state().ledger.is_empty());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_inside_every_effect_doubles_and_loses_nothing() {
    let undisturbed = Bench::new("effect_reference");
    let start = undisturbed.start(&mixed(), Value::map::<&str>([]));
    let ended = undisturbed.run(&start).await.unwrap();
    let reference = end_state(&undisturbed, &ended);
    let effects = undisturbed.world.state().ledger.len() as u32;
    assert!(effects >= 42, "{effects}");
    for after in [false, true] {
        for nth in 1..=effects {
            let mut bench = Bench::new(&format!("effect_{after}_{nth}"));
            let start = bench.start(&mixed(), Value::map::<&str>([]));
            bench.world.state.lock().unwrap().die_at_effect = Some((nth, after));
            let world = bench.world.clone();
            let died = world.died();
            // The driver is dropped where it stands, with everything it holds in memory.
            let finished = tokio::select! {
                ended = bench.run(&start) => Some(ended.unwrap()),
                () = died => None,
            };
            assert!(finished.is_none(), "the run ended although its process died");
            let ended = resume_to_the_end(&mut bench, &start).await;
            assert_eq!(
                end_state(&bench, &ended),
                reference,
                "died {} effect {nth}",
                if after { "after" } else { "before" }
            );
            check_invariants(&bench, &start, &ended).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_while_undoing_undoes_the_rest() {
    let steps = "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: new }, undo: restore }
  b: { uses: fake.set, needs: [a], with: { target: world, object: b, value: new }, undo: restore }
  c: { uses: fake.keyed, needs: [b], with: { target: world, object: c, value: new }, undo: restore }
  bad: { uses: fake.set, needs: [c], with: { target: world, object: d, value: new, fail: true }, on_failure: undo, undo: restore }
";
    for after in [false, true] {
        for nth in 1..=6 {
            let mut bench = Bench::new(&format!("undo_{after}_{nth}"));
            bench.world.state.lock().unwrap().objects.insert("b".into(), Value::text("old"));
            let before = bench.world.state().objects;
            let start = bench.start(&[runbook("undoing", "recoverable", steps)], Value::map::<&str>([]));
            bench.world.state.lock().unwrap().die_at_effect = Some((nth, after));
            let world = bench.world.clone();
            tokio::select! {
                _ = bench.run(&start) => panic!("the run ended although its process died"),
                () = world.died() => {}
            }
            let ended = resume_to_the_end(&mut bench, &start).await;
            assert_eq!(ended.state, RunState::Undone, "{:?}", ended.failure);
            assert_eq!(bench.world.state().objects, before, "effect {nth}");
            check_invariants(&bench, &start, &ended).await;
        }
    }
}

/// One owner of the only run, in a new process, that dies before its `nth` effect; nothing when it did.
async fn one_life(bench: &mut Bench, start: &Start, nth: u32) -> Option<Ended> {
    bench.store = bench.store.restart();
    {
        let mut state = bench.world.state.lock().unwrap();
        state.dead = false;
        state.die_at_effect = Some((nth, false));
    }
    let world = bench.world.clone();
    let rows = bench.store.runs(RunFilter::default()).await.unwrap();
    let driver = bench.driver();
    let drive = async {
        match rows.first() {
            None => driver.start(start, &ProceedAlways, |_| {}).await,
            Some(row) => driver.resume(row.id, start, &ProceedAlways, &[]).await,
        }
    };
    tokio::select! {
        ended = drive => Some(ended.unwrap()),
        () = world.died() => None,
    }
}

#[tokio::test]
async fn a_run_that_ends_its_owners_again_and_again_is_parked() {
    let mut bench = Bench::new("poison");
    let start = bench.start(
        &[runbook(
            "poison",
            "recoverable",
            "steps:\n  a: { uses: fake.set, with: { target: world, object: a, value: v }, undo: none }\n",
        )],
        Value::map::<&str>([]),
    );
    for round in 0..20 {
        if let Some(ended) = one_life(&mut bench, &start, 1).await {
            assert_eq!(ended.state, RunState::Parked);
            assert!(round >= 3, "parked too early, in round {round}");
            return;
        }
    }
    panic!("a run that kills its owner was taken up twenty times");
}

/// Removed, to see it fail: progress that counts as one claim, in the fold.
#[tokio::test]
async fn a_run_that_gets_on_may_lose_any_number_of_owners() {
    let mut bench = Bench::new("unlucky");
    let mut steps = String::from("steps:\n");
    for at in 0..12 {
        let needs = if at == 0 { "[]".into() } else { format!("[s{}]", at - 1) };
        steps.push_str(&format!(
            "  s{at}: {{ uses: fake.set, needs: {needs}, with: {{ target: world, object: o{at}, value: v }}, undo: none }}\n"
        ));
    }
    let start = bench.start(&[runbook("unlucky", "recoverable", &steps)], Value::map::<&str>([]));
    for deaths in 0..20 {
        // Each owner gets one step done and dies in the next.
        if let Some(ended) = one_life(&mut bench, &start, 2).await {
            assert_eq!(ended.state, RunState::Succeeded);
            assert!(deaths > 6, "only {deaths} owners died");
            return;
        }
    }
    panic!("it gets nowhere");
}

const WAITING: &str = "signals: [{ name: go_on, who: [roots], then: continue }]
locks: [{ name: nodes, capacity: 1, wait: 2h }]
steps:
  a: { uses: fake.keyed, with: { target: world, object: a, value: v }, undo: none }
  pause: { uses: flow.wait, needs: [a], with: { for: 40d, signal: go_on } }
  sure: { uses: flow.approval, needs: [pause], with: { who: [roots], within: 3d } }
  b: { uses: fake.set, needs: [sure], lock: { name: racks, capacity: 1 }, with: { target: world, object: b, value: v }, undo: none }
";

/// Lives of a run that waits, until it is over. In each one somebody says what it waits for, once more when it is not
/// sure that it was heard.
async fn wait_to_the_end(bench: &mut Bench, start: &Start) -> Ended {
    for _ in 0..50 {
        let runs = bench.store.runs(RunFilter::default()).await;
        let Some(row) = runs.ok().and_then(|runs| runs.into_iter().next()) else {
            // It is not there, or the store has died: the next process looks again.
            bench.store = bench.store.restart();
            if bench.store.runs(RunFilter::default()).await.unwrap().is_empty() {
                let _ = bench.run(start).await;
            }
            continue;
        };
        if row.state.is_final() {
            return ended_of(&replay(bench, start, row.id).await);
        }
        if row.state == RunState::Waiting {
            let run = replay(bench, start, row.id).await;
            let open = run.approvals.iter().find(|(_, approval)| approval.is_open());
            let ask = match open {
                Some((subject, approval)) => {
                    Ask::Approve { subject: subject.clone(), digest: approval.plan.digest, reason: None }
                }
                None => Ask::Signal { name: "go_on".into(), reason: None },
            };
            let _ = bench.driver().ask(row.id, "ada", ask).await;
        }
        match bench.driver().resume(row.id, start, &ProceedAlways, &[]).await {
            Ok(ended) if ended.state.is_final() => return ended,
            Ok(_) => {}
            Err(_) => bench.store = bench.store.restart(),
        }
    }
    panic!("the run does not end");
}

/// What others want of a run, its locks and its waits are written like everything else: each write may die or be lost.
#[tokio::test]
async fn stopping_at_every_write_of_a_waiting_run_changes_nothing_in_the_end() {
    let prepared = |name: &str| {
        let mut bench = Bench::new(name);
        bench.options = Options { patience: Duration::ZERO, ..bench.options };
        let mut start = bench.start(&[runbook("waiting", "destructive", WAITING)], Value::map::<&str>([]));
        start.world.people = Arc::new(BTreeMap::from([(Text::from("roots"), vec![Text::from("ada")])]));
        (bench, start)
    };
    let (mut undisturbed, start) = prepared("waiting_reference");
    undisturbed.run(&start).await.unwrap();
    let ended = wait_to_the_end(&mut undisturbed, &start).await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.failure);
    let reference = end_state(&undisturbed, &ended);
    let kinds = undisturbed.journal(ended.run).await;
    for kind in ["lock_asked", "lock_taken", "lock_released", "suspended", "signal_received", "approved"] {
        assert!(kinds.iter().any(|known| known.starts_with(kind)), "no `{kind}`: {kinds:?}");
    }
    let writes = undisturbed.store.writes();
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::AnswerLost, Fault::RequestLost] {
        let mut happened = 0;
        for nth in 1..=writes {
            let when = format!("{fault:?} at write {nth} of {writes}");
            let (mut bench, start) = prepared(&format!("waiting_{fault:?}_{nth}"));
            bench.store.inject(nth, fault);
            let _ = bench.run(&start).await;
            let ended = wait_to_the_end(&mut bench, &start).await;
            // A heartbeat more or less moves the last writes.
            happened += u64::from(bench.store.pending_faults() == 0);
            assert_eq!(end_state(&bench, &ended), reference, "{when}");
            assert!(bench.store.tickets(None).await.unwrap().is_empty(), "{when}: a lock is left");
            assert!(bench.store.requests(ended.run).await.unwrap().is_empty(), "{when}: a request is left");
            check_invariants(&bench, &start, &ended).await;
        }
        assert!(happened + 3 >= writes, "{fault:?} happened at {happened} of {writes} writes");
    }
}

async fn check_invariants(bench: &Bench, start: &Start, ended: &Ended) {
    let report = farrier_store::fsck(&bench.store).await.unwrap();
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    // What is shown about a run can be rebuilt from its journal.
    let again = replay(bench, start, ended.run).await;
    assert_eq!(
        (again.state, &again.outputs, again.changed(), &again.failure),
        (ended.state, &ended.outputs, ended.changed, &ended.failure)
    );
}
