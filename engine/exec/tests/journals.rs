//! Old journals keep loading: every journal under `testdata/journals/` is read and folded by today's code, and gives
//! the nodes, outputs and end that stand beside it.
//!
//! A folder holds one shape of run: for each of its runs `NAME.yaml` (the runbook it is pinned to), `NAME.jsonl` (its
//! journal as it was written then) and `NAME.summary.txt` (what it folds to). Journals are never written again, since
//! each stands for the version that wrote it. A new shape is added to [`shapes`] and written with
//! `FARRIER_WRITE_FIXTURES=1 cargo test -p farrier-exec --test journals`. When a run of today ends in another way than
//! the stored one and that is meant, give the shape a new name here and leave the old folder where it is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Bench, runbook};
use farrier_exec::driver::{ProceedAlways, Start, Unobserved};
use farrier_exec::{Driver, Halt, Run};
use farrier_model::{Ask, Entry, Event, NodeEvent, NodeState, RunId, RunState, Text, Value};
use farrier_runbook::Bundle;
use farrier_store::{RunFilter, Store as _};

/// What happens to a run besides what its runbook says.
enum Fate {
    /// Nothing.
    Undisturbed,
    /// Attempts at these objects fail so many times.
    Failing(&'static [(&'static str, u32)]),
    /// Its process dies in the first effect, before (`false`) or after it; then it is resumed, and a person answers for
    /// a step in doubt.
    DiesInEffect { after: bool },
    /// A guard parks it, and a person accepts that.
    GuardAccepted,
    /// A person cancels it after its first effect.
    Cancelled,
    /// It waits again and again: for a signal, for two approvals, and for a time.
    Answered,
}

struct Shape {
    name: &'static str,
    risk: &'static str,
    fate: Fate,
    ends: RunState,
    text: &'static str,
    /// The runbook `NAME_child`, for shapes that start one.
    child: Option<&'static str>,
}

/// One per way of writing a journal.
fn shapes() -> Vec<Shape> {
    let shape = |name, fate, ends, text| Shape { name, risk: "recoverable", fate, ends, text, child: None };
    let once = "steps:
  before: { uses: fake.read, with: { target: world, object: old } }
  send: { uses: fake.once, needs: [before], with: { target: world, object: mail, value: sent }, undo: none }
  after: { uses: fake.set, needs: [send], with: { target: world, object: done, value: 'yes' }, undo: restore }
";
    vec![
        shape(
            "success",
            Fate::Undisturbed,
            RunState::Succeeded,
            "inputs: { size: { type: int, default: 3 }, wanted: { type: bool, default: false } }
steps:
  look: { uses: fake.read, with: { target: world, object: old } }
  make: { uses: fake.set, with: { target: world, object: new, value: { size: \"${ inputs.size }\", of: [1, 2.5, null, true] } }, undo: restore }
  take: { uses: fake.set, needs: [make], with: { target: world, object: old }, undo: restore }
  maybe: { uses: fake.set, if: inputs.wanted, with: { target: world, object: extra, value: x }, undo: restore }
outputs: { made: \"${ steps.make.value }\" }
",
        ),
        shape(
            "retry",
            Fate::Failing(&[("a", 2)]),
            RunState::Succeeded,
            "steps:
  a: { uses: fake.set, with: { target: world, object: a, value: v }, retry: { attempts: 3, backoff: 5s..15m }, undo: restore }
",
        ),
        shape(
            "item_failed",
            Fate::Failing(&[("b", 9)]),
            RunState::Degraded,
            "steps:
  each:
    uses: fake.set
    for_each: { in: \"${ ['a', 'b', 'c'] }\", as: name, key: name, parallel: 1, on_item_failure: isolate }
    with: { target: world, object: \"${ name }\", value: \"${ name ~ '!' }\" }
    on_failure: continue
    undo: restore
  needs_it: { uses: fake.set, needs: [each], with: { target: world, object: d, value: v }, undo: restore }
  does_not: { uses: fake.set, needs: [{ each: finished }], with: { target: world, object: e, value: v }, undo: restore }
",
        ),
        shape("undo", Fate::Undisturbed, RunState::Undone, UNDO),
        shape("undo_failed", Fate::Failing(&[("undo old", 9)]), RunState::Parked, UNDO),
        Shape {
            risk: "destructive",
            ..shape("in_doubt_not_applied", Fate::DiesInEffect { after: false }, RunState::Succeeded, once)
        },
        Shape {
            risk: "destructive",
            ..shape("in_doubt_applied", Fate::DiesInEffect { after: true }, RunState::Succeeded, once)
        },
        shape(
            "in_doubt_probed_output",
            Fate::DiesInEffect { after: true },
            RunState::Succeeded,
            "steps:
  restart: { uses: fake.probed, with: { target: world, object: boot, value: 2 }, undo: none }
",
        ),
        shape(
            "in_doubt_repeated",
            Fate::DiesInEffect { after: false },
            RunState::Succeeded,
            "steps:
  write: { uses: fake.set, with: { target: world, object: a, value: v }, undo: restore }
",
        ),
        shape(
            "guard_accepted",
            Fate::GuardAccepted,
            RunState::Succeeded,
            "guards:
  - { count: [create], at_most: 1, otherwise: ask }
steps:
  a: { uses: fake.set, with: { target: world, object: a, value: v }, undo: restore }
  b: { uses: fake.set, with: { target: world, object: b, value: v }, undo: restore }
",
        ),
        Shape {
            child: Some(
                "inputs: { name: { type: string } }
steps:
  make: { uses: fake.set, with: { target: world, object: \"${ inputs.name }\", value: \"${ inputs.name ~ '!' }\" }, undo: restore }
outputs: { made: \"${ steps.make.value }\" }
",
            ),
            ..shape(
                "child_run",
                Fate::Undisturbed,
                RunState::Succeeded,
                "steps:
  call: { uses: runbook.child_run_child, with: { name: hut }, undo: none }
outputs: { made: \"${ steps.call.made }\" }
",
            )
        },
        shape(
            "finished_early",
            Fate::Undisturbed,
            RunState::Succeeded,
            "steps:
  look:
    uses: fake.read
    with: { target: world, object: nothing }
    expect: [{ that: result.value is not none, otherwise: nothing is left to do, then: finish }]
  write: { uses: fake.set, needs: [look], with: { target: world, object: a, value: v }, undo: restore }
",
        ),
        shape(
            "verify",
            Fate::Undisturbed,
            RunState::Succeeded,
            "steps:
  write:
    uses: fake.set
    with: { target: world, object: a, value: ready }
    verify: { that: result.value == 'ready', within: 10m, every: 5s, hold: 30s, otherwise: it did not stay ready }
    undo: restore
",
        ),
        shape(
            "answered",
            Fate::Answered,
            RunState::Succeeded,
            "signals: [{ name: go_on, who: [ada], then: continue }]
locks: [{ name: nodes, wait: 2h }]
steps:
  first: { uses: fake.set, with: { target: world, object: old, value: changed }, undo: restore }
  called: { uses: flow.wait, needs: [first], with: { for: 40d, signal: go_on } }
  sure: { uses: flow.approval, needs: [called], with: { who: [ada, grace], count: 2, within: 3d } }
  pause: { uses: flow.wait, needs: [sure], with: { for: 1h } }
  last: { uses: fake.set, needs: [pause], lock: { name: catalogue }, with: { target: world, object: new, value: v }, undo: restore }
outputs: { called_by: \"${ steps.called.sent_by }\", approved_by: \"${ steps.sure.approved_by }\" }
",
        ),
        shape(
            "cancelled",
            Fate::Cancelled,
            RunState::Cancelled,
            "steps:
  write: { uses: fake.set, with: { target: world, object: a, value: v }, undo: restore }
  wait:
    uses: fake.read
    needs: [write]
    with: { target: world, object: never }
    verify: { that: result.value == 'ready', within: 1h, every: 5s }
",
        ),
    ]
}

const UNDO: &str = "steps:
  one: { uses: fake.set, with: { target: world, object: old, value: changed }, undo: restore }
  two: { uses: fake.keyed, needs: [one], with: { target: world, object: new, value: v }, undo: restore }
  bad: { uses: fake.set, needs: [two], with: { target: world, object: c, value: v, fail: true }, on_failure: undo, undo: restore }
";

/// A run of today: its bundle, and the journals of the run and of its child by the name of their runbook.
struct Recorded {
    bundle: Arc<Bundle>,
    journals: BTreeMap<Text, Vec<Entry>>,
    ended: RunState,
}

async fn record(shape: &Shape) -> Recorded {
    let mut bench = Bench::new(&format!("journal_{}", shape.name));
    bench.world.state.lock().unwrap().objects.insert("old".into(), Value::text("as it was"));
    let mut runbooks = vec![runbook(shape.name, shape.risk, shape.text)];
    if let Some(child) = shape.child {
        runbooks.push(runbook(&format!("{}_child", shape.name), shape.risk, child));
    }
    let start = bench.start(&runbooks, Value::map::<&str>([]));
    let ended = match shape.fate {
        Fate::Undisturbed => bench.run(&start).await.unwrap(),
        Fate::Failing(objects) => {
            let failing = objects.iter().map(|(object, times)| ((*object).to_owned(), *times));
            bench.world.state.lock().unwrap().failing.extend(failing);
            bench.run(&start).await.unwrap()
        }
        Fate::DiesInEffect { after } => {
            bench.world.state.lock().unwrap().die_at_effect = Some((1, after));
            let world = bench.world.clone();
            tokio::select! {
                ended = bench.run(&start) => panic!("{} ended although its process died: {ended:?}", shape.name),
                () = world.died() => {}
            }
            bench.store = bench.store.restart();
            bench.world.state.lock().unwrap().dead = false;
            let id = bench.store.runs(RunFilter::default()).await.unwrap()[0].id;
            let ended = bench.driver().resume(id, &start, &ProceedAlways, &[]).await.unwrap();
            if ended.state == RunState::Parked {
                answer(&bench, &start, id, after).await;
                bench.driver().resume(id, &start, &ProceedAlways, &[]).await.unwrap()
            } else {
                ended
            }
        }
        Fate::GuardAccepted => {
            let parked = bench.run(&start).await.unwrap();
            let guard = parked.guard.clone().unwrap();
            bench.driver().resume(parked.run, &start, &ProceedAlways, &[guard]).await.unwrap()
        }
        Fate::Answered => {
            bench.options.patience = Duration::ZERO;
            let waits = bench.run(&start).await.unwrap();
            assert_eq!(waits.state, RunState::Waiting, "{waits:?}");
            let (id, driver) = (waits.run, bench.driver());
            driver.ask(id, "mallory", Ask::Signal { name: "go_on".into(), reason: None }).await.unwrap();
            driver
                .ask(id, "ada", Ask::Signal { name: "go_on".into(), reason: Some("now".into()) })
                .await
                .unwrap();
            driver.resume(id, &start, &ProceedAlways, &[]).await.unwrap();
            let journal = bench.store.journal(id).await.unwrap();
            let run = Run::replay(id, start.bundle.graph().clone(), &journal).unwrap();
            let (subject, asked) = run.approvals.first_key_value().unwrap();
            for by in ["ada", "grace"] {
                let (subject, digest) = (subject.clone(), asked.plan.digest);
                driver.ask(id, by, Ask::Approve { subject, digest, reason: None }).await.unwrap();
            }
            driver.resume(id, &start, &ProceedAlways, &[]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(3601)).await;
            driver.resume(id, &start, &ProceedAlways, &[]).await.unwrap()
        }
        Fate::Cancelled => {
            let (cancel, wishes) = tokio::sync::watch::channel(Halt::No);
            let world = bench.world.clone();
            let canceller = tokio::spawn(async move {
                while world.state().ledger.is_empty() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                cancel.send(Halt::Cancel { by: "tester".into() }).unwrap();
                // The channel stays open until the run has ended.
                cancel.closed().await;
            });
            let driver = Driver::new(
                bench.registry.clone(),
                Arc::new(bench.store.clone()),
                bench.clock.clone(),
                bench.options.clone(),
                Arc::new(Unobserved),
                wishes,
            );
            let ended = driver.start(&start, &ProceedAlways, |_| {}).await.unwrap();
            drop(driver);
            canceller.await.unwrap();
            ended
        }
    };
    let mut journals = BTreeMap::new();
    for row in bench.store.runs(RunFilter::default()).await.unwrap() {
        journals.insert(row.runbook.clone(), bench.store.journal(row.id).await.unwrap());
    }
    Recorded { bundle: start.bundle, journals, ended: ended.state }
}

/// A person's answer for every step in doubt, as `farrier resolve` records it.
async fn answer(bench: &Bench, start: &Start, id: RunId, applied: bool) {
    let journal = bench.store.journal(id).await.unwrap();
    let run = Run::replay(id, start.bundle.graph().clone(), &journal).unwrap();
    let by = "tester: looked at the target".to_owned();
    let mut events = vec![Event::Resumed { by: by.clone(), accepted: None }];
    for reference in run.nodes().filter(|node| run.node(*node).state == NodeState::InDoubt) {
        let node = run.node(reference);
        let event = if applied {
            NodeEvent::Succeeded { output: Value::Null, changed: node.effects.len() as u64 }
        } else {
            NodeEvent::NotApplied { by: by.clone() }
        };
        events.push(Event::Node { node: run.name(reference), attempt: node.attempt, event });
    }
    assert!(events.len() > 1, "nothing is in doubt");
    let claim = bench.store.claim(id, &by).await.unwrap();
    bench.store.append(&claim, events, None).await.unwrap();
    bench.store.release(&claim).await.unwrap();
}

/// Everything that a journal folds to, except ids and times.
fn summary(bundle: &Bundle, runbook: &str, journal: &[Entry]) -> String {
    let id = RunId(uuid::Uuid::nil());
    let run = match Run::replay(id, bundle.graphs[runbook].clone(), journal) {
        Ok(run) => run,
        Err(error) => panic!("the journal of `{runbook}` does not load any more: {error}"),
    };
    let mut text = format!("run {}, {} changed\n", run.state.name(), run.changed());
    let _ = writeln!(text, "inputs {}", run.inputs);
    let _ = writeln!(text, "outputs {}", run.outputs);
    if let Some(failure) = &run.failure {
        let _ = writeln!(text, "failure {failure}");
    }
    if let Some((reason, cause)) = &run.parked {
        let _ = writeln!(text, "parked {cause:?}: {reason}");
    }
    for reference in run.nodes() {
        let node = run.node(reference);
        let _ = write!(text, "\n{} {}, attempt {}", run.name(reference), node.state.name(), node.attempt);
        let _ =
            writeln!(text, ", {} changed{}", node.changed, if node.continued { ", continued" } else { "" });
        for (word, value) in [("inputs", &node.inputs), ("output", &node.output)] {
            let _ = value.as_ref().map(|value| writeln!(text, "  {word} {value}"));
        }
        for change in &node.effects {
            let _ = writeln!(
                text,
                "  {} {}: {} -> {}",
                change.kind.name(),
                change.object,
                change.before,
                change.after
            );
        }
        let _ = node.reason.as_ref().map(|reason| writeln!(text, "  reason {reason}"));
        let _ = node.failure.as_ref().map(|failure| writeln!(text, "  failure {failure}"));
    }
    text
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/journals")
}

/// The stored runs of one shape: runbook, journal, summary.
struct Stored {
    bundle: Arc<Bundle>,
    runs: Vec<(Text, Vec<Entry>, String)>,
}

fn stored(shape: &str) -> Stored {
    let read = |path: &Path| {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
    };
    let mut sources: BTreeMap<Text, Text> = BTreeMap::new();
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder().join(shape)).unwrap() {
        let path = entry.unwrap().path();
        let name: Text = path.file_stem().unwrap().to_str().unwrap().into();
        match path.extension().unwrap().to_str().unwrap() {
            "yaml" => drop(sources.insert(name, read(&path).into())),
            "jsonl" => {
                let entries = read(&path)
                    .lines()
                    .enumerate()
                    .map(|(at, line)| {
                        serde_json::from_str(line)
                            .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), at + 1))
                    })
                    .collect();
                runs.push((name, entries, read(&path.with_extension("summary.txt"))));
            }
            _ => {}
        }
    }
    assert!(!runs.is_empty(), "{shape} has no journal");
    runs.sort_by(|a, b| a.0.cmp(&b.0));
    let registry = common::registry();
    let bundle = farrier_runbook::compile_bundle(shape, &sources, registry.catalog())
        .unwrap_or_else(|diagnostics| panic!("{}", diagnostics.render(false)));
    Stored { bundle: Arc::new(bundle), runs }
}

fn stored_shapes() -> BTreeSet<String> {
    let folders = fs::read_dir(folder()).unwrap();
    let shapes: BTreeSet<String> =
        folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(shapes.len() >= 10, "the stored journals are gone: {shapes:?}");
    shapes
}

fn write(shape: &str, recorded: &Recorded) {
    let folder = folder().join(shape);
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in &recorded.bundle.sources {
        fs::write(folder.join(format!("{name}.yaml")), &**text).unwrap();
    }
    for (name, journal) in &recorded.journals {
        let lines: String =
            journal.iter().map(|entry| serde_json::to_string(entry).unwrap() + "\n").collect();
        fs::write(folder.join(format!("{name}.jsonl")), lines).unwrap();
        let summary = summary(&recorded.bundle, name, journal);
        fs::write(folder.join(format!("{name}.summary.txt")), summary).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn runs_of_today_end_as_the_stored_ones() {
    let may_write = std::env::var_os("FARRIER_WRITE_FIXTURES").is_some();
    for shape in shapes() {
        let recorded = record(&shape).await;
        assert_eq!(recorded.ended, shape.ends, "{}", shape.name);
        if may_write && !folder().join(shape.name).exists() {
            write(shape.name, &recorded);
        }
        let stored = stored(shape.name);
        assert_eq!(stored.runs.len(), recorded.journals.len(), "{}", shape.name);
        for (name, _, expected) in &stored.runs {
            let summary = summary(&recorded.bundle, name, &recorded.journals[name]);
            assert_eq!(&summary, expected, "a run of `{name}` today");
        }
    }
}

#[test]
fn stored_journals_load_and_fold_to_what_stands_beside_them() {
    for shape in stored_shapes() {
        let stored = stored(&shape);
        for (name, journal, expected) in &stored.runs {
            assert_eq!(&summary(&stored.bundle, name, journal), expected, "{shape}/{name}");
            let Event::Created { bundle, .. } = &journal[0].event else { panic!("{shape}/{name}") };
            if name.to_string() == shape {
                assert_eq!(*bundle, stored.bundle.digest, "{shape}: the texts are not those of the journal");
            }
        }
    }
}

/// What was read is written as it was, so nothing in an old journal is silently dropped.
#[test]
fn stored_journals_are_written_as_they_were() {
    for shape in stored_shapes() {
        for (name, journal, _) in stored(&shape).runs {
            let text = fs::read_to_string(folder().join(&shape).join(format!("{name}.jsonl"))).unwrap();
            for (line, entry) in text.lines().zip(&journal) {
                let written: serde_json::Value = serde_json::to_value(entry).unwrap();
                let old: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(includes(&written, &old), "{shape}/{name}: {line}\nis written as\n{written}");
            }
        }
    }
}

/// Whether `new` has everything that `old` has; a field that was added since may stand beside it.
fn includes(new: &serde_json::Value, old: &serde_json::Value) -> bool {
    match (new, old) {
        (serde_json::Value::Object(new), serde_json::Value::Object(old)) => {
            old.iter().all(|(key, old)| new.get(key).is_some_and(|new| includes(new, old)))
        }
        (serde_json::Value::Array(new), serde_json::Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| includes(new, old))
        }
        _ => new == old,
    }
}

#[test]
fn every_kind_of_event_is_in_a_stored_journal() {
    let mut missing: BTreeSet<&str> = [
        "created",
        "claimed",
        "writes_allowed",
        "expanded",
        "skipped",
        "blocked",
        "intent",
        "applied",
        "succeeded",
        "failed",
        "in_doubt",
        "not_applied",
        "undo_intent",
        "undo_done",
        "undo_failed",
        "finished_early",
        "undo_started",
        "cancel_requested",
        "parked",
        "resumed",
        "finished",
    ]
    .into();
    for shape in stored_shapes() {
        for (_, journal, _) in stored(&shape).runs {
            for entry in journal {
                missing.remove(entry.event.name());
            }
        }
    }
    assert!(missing.is_empty(), "no stored journal has {missing:?}");
}
