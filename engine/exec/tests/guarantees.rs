//! The guarantees of the manual, G1 to G8, each with a small test of its own that fails when its mechanism is taken out;
//! what was taken out once, to see it fail, is said at each. G7 is in `waiting.rs`. The sweeps over every write, every
//! effect and every fault are in `crash.rs` and `simulator.rs`, and the same on the real binary in
//! `engine/cli/tests/chaos`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{Bench, runbook};
use farrier_exec::driver::{ProceedAlways, Start};
use farrier_exec::{Ended, Engine, Launcher, Options};
use farrier_model::{Event, NodeEvent, RunId, RunState, Value};
use farrier_store::{RunRow, Store, StoreError};

fn start(bench: &Bench, name: &str, rest: &str) -> Start {
    bench.start(&[runbook(name, "destructive", rest)], Value::map::<&str>([]))
}

/// Starts every run from the same.
struct Same(Start);

#[async_trait]
impl Launcher for Same {
    async fn start_of(&self, _: &RunRow, _: &Event) -> Result<Start, String> {
        Ok(self.0.clone())
    }
}

/// Cannot start any.
struct Unready;

#[async_trait]
impl Launcher for Unready {
    async fn start_of(&self, _: &RunRow, _: &Event) -> Result<Start, String> {
        Err("its environment is gone".into())
    }
}

/// The next process: everything durable, nothing in memory, and an engine that works until nothing is due.
async fn next_process(bench: &mut Bench, launcher: impl Launcher + 'static) {
    restart(bench);
    Engine::new(bench.driver(), Arc::new(launcher), 8).run(true).await.unwrap();
}

fn restart(bench: &mut Bench) {
    bench.store = bench.store.restart();
    bench.world.state.lock().unwrap().dead = false;
}

/// Starts a run, and dies inside its n-th effect: before it happens, or after.
async fn die_at(bench: &Bench, start: &Start, nth: u32, after: bool) {
    bench.world.state.lock().unwrap().die_at_effect = Some((nth, after));
    let world = bench.world.clone();
    tokio::select! {
        _ = bench.run(start) => panic!("the run ended although its process died"),
        () = world.died() => {}
    }
}

async fn only_run(bench: &Bench) -> RunRow {
    let mut runs = bench.store.runs(farrier_store::RunFilter::default()).await.unwrap();
    assert_eq!(runs.len(), 1);
    runs.remove(0)
}

async fn resume(bench: &Bench, run: RunId, start: &Start) -> Ended {
    bench.driver().resume(run, start, &ProceedAlways, &[]).await.unwrap()
}

async fn is_whole(bench: &Bench) {
    let report = farrier_store::fsck(&bench.store).await.unwrap();
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

const THREE: &str = "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: new }, undo: restore }
  b: { uses: fake.keyed, needs: [a], with: { target: world, object: b, value: new }, undo: restore }
  c: { uses: fake.probed, needs: [b], with: { target: world, object: c, value: new }, undo: restore }
";

/// G1: once a run's id is known, it is durable, and it reaches an end or is parked with a reason.
///
/// Taken out, to see it fail: runs that a dead owner left behind, in what the store says is due; and the engine's memory of
/// what it has taken up, without which two tasks fenced each other for ever over a run that could not be driven.
#[tokio::test(start_paused = true)]
async fn g1_a_run_whose_id_is_known_reaches_its_end() {
    let mut bench = Bench::new("g1");
    let start = start(&bench, "g1", THREE);
    // The process dies as soon as it has said the id.
    let run = bench.driver().enqueue(&start).await.unwrap();
    next_process(&mut bench, Same(start.clone())).await;
    assert_eq!(bench.store.run(run).await.unwrap().unwrap().state, RunState::Succeeded);
    is_whole(&bench).await;

    // It dies in the middle, and nobody calls for the run: the next process finds it.
    let mut bench = Bench::new("g1_left");
    die_at(&bench, &start_of(&bench, "g1_left"), 2, true).await;
    let start = start_of(&bench, "g1_left");
    next_process(&mut bench, Same(start)).await;
    assert_eq!(only_run(&bench).await.state, RunState::Succeeded);
    assert_eq!(bench.world.state().ledger.len(), 3);
    is_whole(&bench).await;

    // Where it cannot go on, it says why.
    let mut bench = Bench::new("g1_unready");
    let start = start_of(&bench, "g1_unready");
    bench.driver().enqueue(&start).await.unwrap();
    next_process(&mut bench, Unready).await;
    let row = only_run(&bench).await;
    assert_eq!(row.state, RunState::Parked);
    assert!(row.reason.unwrap().contains("its environment is gone"));
    is_whole(&bench).await;
}

fn start_of(bench: &Bench, name: &str) -> Start {
    start(bench, name, THREE)
}

/// G2: a step with a recorded success is not executed again, by whoever takes the run up.
///
/// Taken out, to see it fail: taking a recorded success in when a journal is folded.
#[tokio::test(start_paused = true)]
async fn g2_what_is_finished_is_not_repeated() {
    let mut bench = Bench::new("g2");
    let start = start(
        &bench,
        "g2",
        "steps:
  a: { uses: fake.once, with: { target: world, object: a, value: x }, undo: none }
  b: { uses: fake.set, needs: [a], with: { target: world, object: b, value: x }, undo: none }
  c: { uses: fake.once, needs: [b], with: { target: world, object: c, value: x }, undo: none }
",
    );
    die_at(&bench, &start, 2, false).await;
    let run = only_run(&bench).await.id;
    restart(&mut bench);
    // Somebody else puts the world back: the step is finished all the same, and nobody looks again.
    bench.world.state.lock().unwrap().objects.remove("a");
    assert_eq!(resume(&bench, run, &start).await.state, RunState::Succeeded);
    assert_eq!(bench.world.state().ledger, ["fake.once a", "fake.set b", "fake.once c"]);
    is_whole(&bench).await;
}

/// G3: a step that was begun and has no recorded outcome follows its class: done again, submitted under the same key,
/// decided by asking, or left to a person.
///
/// Taken out, to see it fail: parking a `once` step in doubt, and one key for all attempts: the key then differed by attempt.
#[tokio::test(start_paused = true)]
async fn g3_doubt_is_never_guessed() {
    for (kind, after, ends, effects) in [
        ("set", false, RunState::Succeeded, 1),
        ("set", true, RunState::Succeeded, 1),
        ("keyed", false, RunState::Succeeded, 1),
        ("keyed", true, RunState::Succeeded, 1),
        ("probed", false, RunState::Succeeded, 1),
        ("probed", true, RunState::Succeeded, 1),
        ("once", false, RunState::Parked, 0),
        ("once", true, RunState::Parked, 1),
    ] {
        let name = format!("g3_{kind}_{after}");
        let mut bench = Bench::new(&name);
        let step = format!(
            "steps:\n  a: {{ uses: fake.{kind}, with: {{ target: world, object: a, value: x }}, undo: none }}\n"
        );
        let start = start(&bench, &name, &step);
        die_at(&bench, &start, 1, after).await;
        let run = only_run(&bench).await.id;
        restart(&mut bench);
        // The object alone must not tell whether a keyed effect happened: somebody has removed it since.
        if kind == "keyed" {
            bench.world.state.lock().unwrap().objects.remove("a");
        }
        let ended = resume(&bench, run, &start).await;
        assert_eq!(ended.state, ends, "{name}: {:?}", ended.failure);
        assert_eq!(bench.world.state().ledger.len(), effects, "{name}");
        is_whole(&bench).await;
    }
}

/// G4 is about schedules, and there are none yet. What holds today of due times: the moment that a run waits for is
/// durable, survives restarts, and starts it once.
///
/// Taken out, to see it fail: keeping the moment in the run's row when it is let go.
#[tokio::test(start_paused = true)]
async fn g4_the_moment_that_a_run_waits_for_is_not_missed() {
    let mut bench = Bench::new("g4");
    bench.options = Options { patience: Duration::ZERO, resume_parked: false, ..bench.options };
    let start = start(
        &bench,
        "g4",
        "steps:
  pause: { uses: flow.wait, with: { for: 3h } }
  a: { uses: fake.once, needs: [pause], with: { target: world, object: a, value: x }, undo: none }
",
    );
    let run = bench.driver().enqueue(&start).await.unwrap();
    for hour in 0..6 {
        next_process(&mut bench, Same(start.clone())).await;
        let effects = bench.world.state().ledger.len();
        assert_eq!(effects, usize::from(hour >= 3), "after {hour} h");
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    assert_eq!(bench.store.run(run).await.unwrap().unwrap().state, RunState::Succeeded);
    is_whole(&bench).await;
}

/// G5: the next process of the directory does not wait for a lease to run out; another owner waits for at most 22 s.
///
/// Taken out, to see it fail: the comparison of generations in `rules::claim`.
#[tokio::test(start_paused = true)]
async fn g5_a_run_is_taken_over_in_bounded_time() {
    let mut bench = Bench::new("g5");
    let start = start(&bench, "g5", THREE);
    die_at(&bench, &start, 1, true).await;
    let run = only_run(&bench).await.id;
    // Another owner while nobody knows whether the first one lives.
    let refused = bench.store.claim(run, "another").await.unwrap_err();
    assert!(matches!(refused, StoreError::Owned { .. }), "{refused}");
    // The process that the directory's lock proves to be the only one.
    let died = bench.clock.now();
    let old = bench.store.clone();
    restart(&mut bench);
    let claim = bench.store.claim(run, "the next process").await.unwrap();
    assert_eq!(bench.clock.now(), died, "at once");
    assert!(old.claim(run, "the dead one").await.is_err(), "the dead one is fenced for good");
    // And again, now that this owner falls silent.
    tokio::time::sleep(Duration::from_secs(19)).await;
    assert!(bench.store.claim(run, "another").await.is_err(), "its commands may still be at work");
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.store.claim(run, "another").await.unwrap();
    let late = vec![Event::Parked {
        reason: "late".into(),
        cause: farrier_model::event::ParkCause::InDoubt,
        guard: None,
        plan: None,
    }];
    let fenced = bench.store.append(&claim, late, None).await.unwrap_err();
    assert!(matches!(fenced, StoreError::Fenced { .. }), "{fenced}");
    is_whole(&bench).await;
}

/// G6: on failure every step that succeeded and has an undo is undone, the last one first; or the run is parked and
/// says which effects remain.
///
/// Taken out, to see it fail: the order in which `decide` begins undos; and parking when one of them fails.
#[tokio::test(start_paused = true)]
async fn g6_everything_is_taken_back_or_the_run_says_what_is_left() {
    let steps = format!(
        "{THREE}  bad: {{ uses: fake.set, needs: [c], with: {{ target: world, object: d, value: x, fail: true }}, \
         on_failure: undo, undo: restore }}\n"
    );
    let bench = Bench::new("g6");
    let start = start(&bench, "g6", &steps);
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Undone, "{:?}", ended.failure);
    let ledger = bench.world.state().ledger;
    assert_eq!(ledger[3..], ["undo fake.probed c", "undo fake.keyed b", "undo fake.set a"]);
    assert!(bench.world.state().objects.is_empty());
    is_whole(&bench).await;

    let bench = Bench::new("g6_left");
    let start = self::start(&bench, "g6_left", &steps);
    bench.world.state.lock().unwrap().failing.insert("undo b".into(), 100);
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Parked);
    let reason = ended.parked.unwrap();
    assert!(reason.contains('b'), "{reason}");
    let objects: Vec<String> = bench.world.state().objects.into_keys().collect();
    assert!(objects.contains(&"b".to_owned()) && !objects.contains(&"c".to_owned()), "{objects:?}");
    is_whole(&bench).await;
}

/// G8: every effect has an intent that is durable before the effect begins, whichever effect the process dies at.
///
/// Taken out, to see it fail: waiting for the append, in `Driver::drive`, before work is handed out. That the journal
/// only grows is the store's part: `engine/store/tests/conformance.rs`.
#[tokio::test(start_paused = true)]
async fn g8_every_effect_has_an_intent_that_precedes_it() {
    for nth in 1..=3 {
        for after in [false, true] {
            let name = format!("g8_{nth}_{after}");
            let bench = Bench::new(&name);
            die_at(&bench, &start_of(&bench, &name), nth, after).await;
            let run = only_run(&bench).await.id;
            // What the next process reads, and no more.
            let durable = bench.store.restart().journal(run).await.unwrap();
            let intents = durable
                .iter()
                .filter(|entry| matches!(entry.event, Event::Node { event: NodeEvent::Intent { .. }, .. }));
            assert_eq!(intents.count(), nth as usize, "{name}");
            assert_eq!(bench.world.state().ledger.len(), nth as usize - usize::from(!after), "{name}");
        }
    }
}
