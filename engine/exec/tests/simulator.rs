//! A seeded simulator: random graphs, random worlds, random faults, and laws that must hold for every seed.
//!
//! The number of seeds is `FARRIER_SIM_SEEDS` (300 by default; the full test run sets 10,000). A failing seed is named in
//! the message and runs alone with `FARRIER_SIM_SEED=n`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::{Bench, runbook};
use farrier_exec::Run;
use farrier_exec::driver::{ProceedAlways, Start};
use farrier_model::event::ParkCause;
use farrier_model::{Event, NodeEvent, NodeState, RunId, RunState, Value};
use farrier_store::{Fault, RunFilter, Store, StoreError};

/// SplitMix64: small, well spread, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A random runbook. Every effect is on an object named after its step.
fn random_runbook(random: &mut Random) -> (String, Vec<(String, &'static str)>) {
    let mut steps = String::from("steps:\n");
    let count = 2 + random.below(10);
    let mut kinds = Vec::new();
    let mut single = Vec::new();
    for at in 0..count {
        let kind = ["set", "set", "keyed", "probed", "once", "noop", "read"][random.below(7) as usize];
        let mut needs: Vec<String> = Vec::new();
        for before in 0..at {
            if random.one_in(3) {
                needs.push(if random.one_in(6) {
                    format!("{{ s{before}: finished }}")
                } else {
                    format!("s{before}")
                });
            }
        }
        let mut step = format!("  s{at}:\n    uses: fake.{kind}\n    needs: [{}]\n", needs.join(", "));
        if matches!(kind, "noop" | "read") {
            single.push(at);
        }
        match kind {
            "noop" => step.push_str(&format!("    with: {{ value: {at} }}\n")),
            "read" => step.push_str(&format!("    with: {{ target: world, object: s{at} }}\n")),
            _ => {
                let fail = random.one_in(12);
                let items = kind != "once" && random.one_in(4);
                if items {
                    let mode = if random.one_in(2) { "isolate" } else { "stop" };
                    let list: Vec<String> = (0..=random.below(4)).map(|n| n.to_string()).collect();
                    step.push_str(&format!(
                        "    for_each: {{ in: \"${{ [{}] }}\", as: n, key: n, parallel: 2, on_item_failure: {mode} }}\n",
                        list.join(", ")
                    ));
                }
                let object = if items { format!("\"${{ 's{at}i' ~ n }}\"") } else { format!("s{at}") };
                step.push_str(&format!(
                    "    with: {{ target: world, object: {object}, value: v, fail: {fail} }}\n"
                ));
                if kind != "once" && random.one_in(3) {
                    step.push_str("    retry: { attempts: 3, backoff: 1ms..2ms }\n");
                }
                let policy = ["stop", "continue", "undo"][random.below(3) as usize];
                step.push_str(&format!("    on_failure: {policy}\n"));
                step.push_str(if kind == "once" || random.one_in(3) {
                    "    undo: none\n"
                } else {
                    "    undo: restore\n"
                });
                kinds.push((format!("s{at}"), kind));
            }
        }
        steps.push_str(&step);
    }
    if random.one_in(2) {
        steps.push_str("finally:\n");
        let mut before = "";
        for id in ["tell", "told"] {
            // Whether it came to be read or not, and whether one step of `finally` comes after the other or not.
            let reads = single.get(random.below(8) as usize).map_or("true".into(), |at| {
                format!("steps.s{at}.value | default('nothing') != 'something else'")
            });
            let needs = if random.one_in(2) { before } else { "" };
            steps.push_str(&format!(
                "  {id}: {{ uses: fake.keyed, needs: [{needs}], if: \"{reads}\", with: {{ target: world, object: {id}, value: v }}, \
                 undo: none }}\n"
            ));
            kinds.push((id.into(), "keyed"));
            before = id;
        }
    }
    (steps, kinds)
}

/// Answers for the steps in doubt as somebody would who can look at the world. The store may fail him too.
async fn resolve(bench: &Bench, start: &Start, id: RunId) -> Result<(), StoreError> {
    let journal = bench.store.journal(id).await?;
    let run = Run::replay(id, start.bundle.graph().clone(), &journal).unwrap();
    match run.parked.as_ref().map(|(_, cause)| *cause) {
        Some(ParkCause::InDoubt) => {}
        Some(ParkCause::Poison) => return Ok(()),
        other => panic!("parked by {other:?}"),
    }
    let claim = bench.store.claim(id, "operator").await?;
    let mut events = Vec::new();
    for node in run.nodes() {
        if run.node(node).state == NodeState::InDoubt {
            let name = run.name(node);
            let happened = bench.world.state().ledger.contains(&format!("fake.once {}", name.step));
            let event = if happened {
                NodeEvent::Succeeded { output: Value::Null, changed: 1 }
            } else {
                NodeEvent::NotApplied { by: "operator".into() }
            };
            events.push(Event::Node { node: name, attempt: run.node(node).attempt, event });
        }
    }
    if !events.is_empty() {
        bench.store.append(&claim, events, None).await?;
    }
    bench.store.release(&claim).await
}

async fn simulate(seed: u64) {
    let mut random = Random(seed);
    let (steps, kinds) = random_runbook(&mut random);
    let mut bench = Bench::new(&format!("sim_{seed}"));
    bench.options.parallel = 1 + random.below(4) as usize;
    let start = bench.start(&[runbook("sim", "destructive", &steps)], Value::map::<&str>([]));
    let before = bench.world.state().objects;
    for (object, _) in &kinds {
        if random.one_in(8) {
            bench.world.state.lock().unwrap().failing.insert(object.clone(), 1 + random.below(3) as u32);
        }
    }
    // Steps that read are not among those.
    for at in 0..12 {
        if random.one_in(12) {
            bench.world.state.lock().unwrap().failing.entry(format!("s{at}")).or_insert(1);
        }
    }
    for round in 0.. {
        assert!(round < 60, "the run does not end");
        let quiet = round >= 12;
        if !quiet && random.one_in(2) {
            let fault = [
                Fault::CrashBefore,
                Fault::CrashAfter,
                Fault::AnswerLost,
                Fault::RequestLost,
                Fault::FailOnce,
            ][random.below(5) as usize];
            bench.store.inject(1 + random.below(20), fault);
        }
        if !quiet && random.one_in(2) {
            bench.world.state.lock().unwrap().die_at_effect =
                Some((1 + random.below(6) as u32, random.one_in(2)));
        }
        let rows = bench.store.runs(RunFilter::default()).await.unwrap();
        let driver = bench.driver();
        let drive = async {
            match rows.first() {
                None => driver.start(&start, &ProceedAlways, |_| {}).await,
                Some(row) if row.state.is_final() => Ok(ended_of(row.id, row.state)),
                Some(row) => driver.resume(row.id, &start, &ProceedAlways, &[]).await,
            }
        };
        let world = bench.world.clone();
        let ended = tokio::select! {
            ended = drive => ended.ok(),
            () = world.died() => None,
        };
        bench.store = bench.store.restart();
        {
            let mut state = bench.world.state.lock().unwrap();
            state.dead = false;
            state.die_at_effect = None;
        }
        match ended {
            Some(ended) if ended.state == RunState::Parked => {
                let answered = resolve(&bench, &start, ended.run).await;
                if answered.is_err() {
                    bench.store = bench.store.restart();
                }
            }
            Some(ended) => {
                check_laws(&bench, &start, &kinds, ended.run, ended.state, &before).await;
                break;
            }
            None => {}
        }
    }
    common::World::forget(&format!("sim_{seed}"));
}

fn ended_of(run: RunId, state: RunState) -> farrier_exec::Ended {
    farrier_exec::Ended {
        run,
        state,
        outputs: Value::Null,
        failure: None,
        parked: None,
        guard: None,
        waits: None,
        changed: 0,
    }
}

async fn check_laws(
    bench: &Bench,
    start: &Start,
    kinds: &[(String, &str)],
    id: RunId,
    state: RunState,
    before: &std::collections::BTreeMap<String, Value>,
) {
    let journal = bench.store.journal(id).await.unwrap();
    let run = Run::replay(id, start.bundle.graph().clone(), &journal).unwrap();
    assert_eq!(run.state, state);
    let world = bench.world.state();
    for (object, kind) in kinds {
        let count = world.ledger.iter().filter(|line| **line == format!("fake.{kind} {object}")).count();
        assert!(count <= 1, "`fake.{kind} {object}` happened {count} times");
        let Some(node) = run.nodes().find(|node| run.name(*node).to_string() == *object) else { continue };
        match run.node(node).state {
            NodeState::Succeeded if run.graph.step(node.step).for_each.is_none() => {
                assert_eq!(
                    world.objects.get(object),
                    Some(&Value::text("v")),
                    "`{object}` succeeded and is not there"
                );
            }
            NodeState::Undone | NodeState::Pending | NodeState::Skipped | NodeState::Blocked => {
                assert_eq!(
                    world.objects.get(object),
                    before.get(object),
                    "`{object}` did not happen and is there"
                );
            }
            _ => {}
        }
    }
    for node in run.nodes().filter(|node| run.graph.step(node.step).finally) {
        let node_state = run.node(node).state;
        assert!(node_state.is_settled(), "{} of `finally` is {node_state:?}", run.name(node));
    }
    if state == RunState::Succeeded {
        for node in run.nodes() {
            let node_state = run.node(node).state;
            assert!(
                matches!(node_state, NodeState::Succeeded | NodeState::Skipped),
                "{}: {node_state:?}",
                run.name(node)
            );
        }
    }
    let report = farrier_store::fsck(&bench.store).await.unwrap();
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[test]
fn every_seed_keeps_the_laws() {
    let only: Option<u64> = std::env::var("FARRIER_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: u64 =
        std::env::var("FARRIER_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
    let range = only.map_or(0..seeds, |seed| seed..seed + 1);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let range = range.clone();
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .start_paused(true)
                    .build()
                    .unwrap();
                for seed in range.filter(|seed| seed % workers == worker) {
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        runtime.block_on(simulate(seed));
                    }));
                    if let Err(panic) = outcome {
                        eprintln!("seed {seed} failed; run it alone with FARRIER_SIM_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}
